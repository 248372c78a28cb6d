-- SPDX-License-Identifier: GPL-3.0-or-later
-- The tables of the journal as the first release (0.2.0) made them, and a little in them.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE boards (mac TEXT PRIMARY KEY, chip TEXT, flash_bytes INTEGER, port TEXT, usb_location TEXT, usb_serial
    TEXT, seen_at TEXT, version TEXT, version_read_at TEXT, slot TEXT, project TEXT, app_version TEXT, confirmed
    INTEGER, layout TEXT, silent INTEGER, unchecked INTEGER) WITHOUT ROWID;
CREATE TABLE slots (mac TEXT NOT NULL, slot TEXT NOT NULL, md5 TEXT NOT NULL, size_bytes INTEGER NOT NULL, sha256
    TEXT, version TEXT, project TEXT, app_version TEXT, installed_at TEXT, seen_running_at TEXT, PRIMARY KEY (mac,
    slot)) WITHOUT ROWID;
CREATE TABLE names (service TEXT NOT NULL, name TEXT NOT NULL, mac TEXT NOT NULL, PRIMARY KEY (service, name)) WITHOUT
    ROWID;
CREATE TABLE ports (port TEXT PRIMARY KEY, mac TEXT NOT NULL, usb_location TEXT, usb_serial TEXT, learned_at TEXT NOT
    NULL, wrong_board TEXT) WITHOUT ROWID;
CREATE TABLE not_ours (place TEXT PRIMARY KEY, reason TEXT NOT NULL, mac TEXT, since TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE bridges (place TEXT PRIMARY KEY, identity TEXT, mac TEXT, since TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE attempts (board TEXT NOT NULL, target TEXT NOT NULL, failed INTEGER NOT NULL DEFAULT 0, state TEXT NOT
    NULL DEFAULT 'none', code TEXT, message TEXT, since TEXT, open_since TEXT, updated_at TEXT NOT NULL, seq INTEGER
    NOT NULL DEFAULT 0, PRIMARY KEY (board, target)) WITHOUT ROWID;
CREATE TABLE pending (mac TEXT PRIMARY KEY, target TEXT NOT NULL, version TEXT NOT NULL, slot TEXT NOT NULL, since
    TEXT NOT NULL, until TEXT NOT NULL, previous_slot TEXT, previous_version TEXT, power_failed INTEGER NOT NULL
    DEFAULT 0, boot TEXT, up_until_s REAL) WITHOUT ROWID;
CREATE TABLE targets (service TEXT PRIMARY KEY, key TEXT NOT NULL, since TEXT NOT NULL, stopped TEXT) WITHOUT ROWID;
CREATE TABLE confirmed_firmware (sha256 TEXT PRIMARY KEY, at TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, service TEXT NOT NULL, "trigger"
    TEXT NOT NULL, target TEXT NOT NULL, started_at TEXT NOT NULL, updated_at TEXT NOT NULL, finished_at TEXT, outcome
    TEXT NOT NULL, error TEXT, result TEXT, interrupted INTEGER NOT NULL DEFAULT 0);
CREATE INDEX runs_service ON runs (service, seq);
CREATE TABLE run_boards (run TEXT NOT NULL, name TEXT NOT NULL, mac TEXT, port TEXT, data TEXT NOT NULL, PRIMARY KEY
    (run, name)) WITHOUT ROWID;
CREATE TABLE stops (service TEXT NOT NULL, target TEXT NOT NULL, reason TEXT NOT NULL, since TEXT NOT NULL, PRIMARY
    KEY (service, target)) WITHOUT ROWID;
CREATE TABLE staged (mac TEXT PRIMARY KEY, target TEXT NOT NULL, version TEXT NOT NULL, slot TEXT NOT NULL, size_bytes
    INTEGER NOT NULL, sha256 TEXT NOT NULL, md5 TEXT NOT NULL, staged_md5 TEXT NOT NULL, head TEXT NOT NULL, since
    TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE brought (mac TEXT PRIMARY KEY, target TEXT NOT NULL, slot TEXT NOT NULL, size_bytes INTEGER NOT NULL, md5
    TEXT NOT NULL, version TEXT NOT NULL, previous_version TEXT, since TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE owed_calls (service TEXT NOT NULL, board TEXT NOT NULL, call TEXT NOT NULL, since TEXT NOT NULL, PRIMARY
    KEY (service, board)) WITHOUT ROWID;
CREATE TABLE board_groups (service TEXT NOT NULL, id TEXT NOT NULL, target TEXT NOT NULL, version TEXT NOT NULL, phase
    TEXT NOT NULL, since TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (service, id)) WITHOUT ROWID;
INSERT INTO boards (mac, chip, version, version_read_at, layout, unchecked) VALUES
    ('aa:bb:cc:dd:ee:01', 'ESP32', '1.2.2', '2026-01-02T03:04:05.000006Z', 'x', NULL);
INSERT INTO attempts (board, target, failed, code, updated_at, seq) VALUES ('aa:bb:cc:dd:ee:01', 't', 2, 'link-lost', '2026-01-02T03:04:05.000006Z', 7);
INSERT INTO targets VALUES ('OTA', 't', '2026-01-02T03:04:05.000006Z', NULL);
INSERT INTO staged VALUES ('aa:bb:cc:dd:ee:01', 't', '2', 'ota_1', 9, 'aa', 'bb', 'cc', 'e905', '2026-01-02T03:04:05.000006Z');
INSERT INTO runs (id, service, "trigger", target, started_at, updated_at, finished_at, outcome) VALUES
    ('r2', 'OTA', 'command', '{}', '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z', 'succeeded');
INSERT INTO runs (id, service, "trigger", target, started_at, updated_at, finished_at, outcome) VALUES
    ('r1', 'OTA', 'command', '{}', '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z', '2026-01-02T03:04:05.000006Z', 'succeeded');
INSERT INTO run_boards VALUES ('r1', 'left', 'aa:bb:cc:dd:ee:01', NULL, '{"to":"1.2.2"}');
PRAGMA user_version = 9;
