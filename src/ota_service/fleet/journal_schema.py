# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's tables, and the way from each version of them to the next.

The version is SQLite's `user_version`: the number of migrations that have been carried out. A
migration that has been released is never changed; a new one is added below it. Times are text,
ISO 8601 in UTC with microseconds, so that they sort as they are.
"""

from __future__ import annotations

import sqlite3
from typing import Any

_FIRST = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY, value TEXT NOT NULL
) WITHOUT ROWID;

-- What was last seen on each board; `mac` is the identity.
CREATE TABLE boards (
    mac TEXT PRIMARY KEY, chip TEXT, flash_bytes INTEGER,
    port TEXT, usb_location TEXT, usb_serial TEXT, seen_at TEXT,
    version TEXT, version_read_at TEXT,
    slot TEXT, project TEXT, app_version TEXT, confirmed INTEGER, layout TEXT
) WITHOUT ROWID;

-- What each slot holds, as far as this program wrote or saw it.
CREATE TABLE slots (
    mac TEXT NOT NULL, slot TEXT NOT NULL, md5 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    sha256 TEXT, version TEXT, project TEXT, app_version TEXT,
    installed_at TEXT, seen_running_at TEXT,
    PRIMARY KEY (mac, slot)
) WITHOUT ROWID;

CREATE TABLE names (
    service TEXT NOT NULL, name TEXT NOT NULL, mac TEXT NOT NULL,
    PRIMARY KEY (service, name)
) WITHOUT ROWID;

-- Configured ports: what was behind them at the first success.
CREATE TABLE ports (
    port TEXT PRIMARY KEY, mac TEXT NOT NULL, usb_location TEXT, usb_serial TEXT,
    learned_at TEXT NOT NULL, wrong_board TEXT
) WITHOUT ROWID;

CREATE TABLE not_ours (
    place TEXT PRIMARY KEY, reason TEXT NOT NULL, mac TEXT, since TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE bridges (
    place TEXT PRIMARY KEY, identity TEXT, mac TEXT, since TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE speeds (
    port TEXT PRIMARY KEY, baud INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE attempts (
    board TEXT NOT NULL, target TEXT NOT NULL, failed INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'none', code TEXT, message TEXT, since TEXT,
    open_since TEXT, updated_at TEXT NOT NULL,
    PRIMARY KEY (board, target)
) WITHOUT ROWID;

CREATE TABLE pending (
    mac TEXT PRIMARY KEY, target TEXT NOT NULL, version TEXT NOT NULL, slot TEXT NOT NULL,
    since TEXT NOT NULL, until TEXT NOT NULL, previous_slot TEXT, previous_version TEXT
) WITHOUT ROWID;

CREATE TABLE targets (
    service TEXT PRIMARY KEY, key TEXT NOT NULL, since TEXT NOT NULL, stopped TEXT
) WITHOUT ROWID;

CREATE TABLE confirmed_firmware (
    sha256 TEXT PRIMARY KEY, at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    service TEXT NOT NULL, "trigger" TEXT NOT NULL, target TEXT NOT NULL,
    started_at TEXT NOT NULL, updated_at TEXT NOT NULL, finished_at TEXT,
    outcome TEXT NOT NULL, error TEXT, result TEXT,
    interrupted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX runs_service ON runs (service, seq);

CREATE TABLE run_boards (
    run TEXT NOT NULL, name TEXT NOT NULL, mac TEXT, port TEXT, data TEXT NOT NULL,
    PRIMARY KEY (run, name)
) WITHOUT ROWID;
"""

_LINES = """
-- A speed at which a port carried a whole slot to a board without an error.
CREATE TABLE lines (
    mac TEXT PRIMARY KEY, port TEXT NOT NULL, baud INTEGER NOT NULL
) WITHOUT ROWID;
"""

_NO_MAC = "('00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff')"

_UNKNOWN = f"""
-- Earlier versions took zeros for the MAC of every board whose chip is not an ESP32, so what
-- stands under that MAC is of nobody knows which board. Places stay known, but not by whom.
DELETE FROM boards WHERE mac IN {_NO_MAC};
DELETE FROM slots WHERE mac IN {_NO_MAC};
DELETE FROM names WHERE mac IN {_NO_MAC};
DELETE FROM ports WHERE mac IN {_NO_MAC};
DELETE FROM lines WHERE mac IN {_NO_MAC};
DELETE FROM pending WHERE mac IN {_NO_MAC};
DELETE FROM attempts WHERE board IN {_NO_MAC};
UPDATE not_ours SET mac = NULL WHERE mac IN {_NO_MAC};
UPDATE bridges SET mac = NULL WHERE mac IN {_NO_MAC};
UPDATE run_boards SET mac = NULL WHERE mac IN {_NO_MAC};
"""

_STOPS = """
-- Firmwares that no further board of a service gets.
CREATE TABLE stops (
    service TEXT NOT NULL, target TEXT NOT NULL, reason TEXT NOT NULL, since TEXT NOT NULL,
    PRIMARY KEY (service, target)
) WITHOUT ROWID;
"""

_CLOCKS = """
-- Times of a clock that jumps order nothing and end no wait; and nothing that was read before an
-- attempt that did not end well is taken for what a board holds.
ALTER TABLE attempts ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
UPDATE attempts SET seq = (
    SELECT count(*) FROM attempts AS older WHERE older.updated_at <= attempts.updated_at
);
UPDATE boards SET version_read_at = NULL WHERE EXISTS (
    SELECT 1 FROM attempts WHERE board = mac AND updated_at > version_read_at
    AND (open_since IS NOT NULL OR code IS NOT NULL)
);
ALTER TABLE pending ADD COLUMN power_failed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE pending ADD COLUMN boot TEXT;
ALTER TABLE pending ADD COLUMN up_until_s REAL;

-- Before there was a table of stops, a service was stopped for all of its targets at once: `key`
-- stands for all of them.
INSERT OR IGNORE INTO stops
    SELECT service, key, stopped, since FROM targets WHERE stopped IS NOT NULL;
UPDATE targets SET stopped = NULL;
"""

_SILENT = """
-- Whether a board's bootloader prints nothing. And nothing is remembered of a port's speed.
ALTER TABLE boards ADD COLUMN silent INTEGER;
DROP TABLE speeds;
DROP TABLE lines;
"""

_GROUPS = """
-- Groups of boards in the middle of their switch, which the next start finishes.
CREATE TABLE board_groups (
    service TEXT NOT NULL, id TEXT NOT NULL, target TEXT NOT NULL, version TEXT NOT NULL,
    phase TEXT NOT NULL, since TEXT NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (service, id)
) WITHOUT ROWID;
"""

_STAGED = """
-- What waits in a slot of a board, but for its magic byte, to be activated.
CREATE TABLE staged (
    mac TEXT PRIMARY KEY, target TEXT NOT NULL, version TEXT NOT NULL, slot TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, md5 TEXT NOT NULL,
    staged_md5 TEXT NOT NULL, head TEXT NOT NULL, since TEXT NOT NULL
) WITHOUT ROWID;
"""

_BROUGHT = """
-- What the last update brought to each board, for its way back, and whether the robot has said
-- that it works.
CREATE TABLE brought (
    mac TEXT PRIMARY KEY, target TEXT NOT NULL, slot TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    md5 TEXT NOT NULL, version TEXT NOT NULL, previous_version TEXT, since TEXT NOT NULL
) WITHOUT ROWID;
ALTER TABLE boards ADD COLUMN unchecked INTEGER;

-- What the robot is to be told when a session with a board is over, from before it begins.
CREATE TABLE owed_calls (
    service TEXT NOT NULL, board TEXT NOT NULL, call TEXT NOT NULL, since TEXT NOT NULL,
    PRIMARY KEY (service, board)
) WITHOUT ROWID;
"""

_REWRITTEN = """
-- The last time that each board was rewritten of which what is known of it takes account.
ALTER TABLE boards ADD COLUMN rewritten INTEGER;
"""

MIGRATIONS: tuple[str, ...] = (
    *(_FIRST, _LINES, _UNKNOWN, _STOPS, _CLOCKS, _SILENT, _STAGED, _BROUGHT, _GROUPS, _REWRITTEN),
)
"""Statements, each leading from the version that is its index to the next."""


def version(connection: sqlite3.Connection) -> int:
    """The version of the tables of a database; 0: it has none yet."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> bool:
    """Bring a database's tables up to date; whether there was anything to do."""
    start = version(connection)
    for number in range(start, len(migrations)):
        connection.executescript(
            f"BEGIN; {migrations[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        )
    return start < len(migrations)


Rows = dict[str, dict[tuple[Any, ...], None]]
"""The rows of each table, in their order."""


def rows(connection: sqlite3.Connection) -> Rows:
    """All that a database holds."""
    tables = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    return {
        name: dict.fromkeys(
            tuple(row)
            for row in connection.execute(
                f"SELECT {', '.join(_columns(connection, name))} FROM {name}"
            )
        )
        for (name,) in tables
    }


def carry_over(before: Rows, after: Rows, target: sqlite3.Connection) -> None:
    """Do to another database what has changed from one state of rows to a later one.

    Its other rows stay as they are. Within a transaction.
    """
    for table, left in after.items():
        known, columns = before.get(table, {}), _columns(target, table)
        same, marks = " AND ".join(f"{c} IS ?" for c in columns), ", ".join("?" * len(columns))
        target.executemany(
            f"DELETE FROM {table} WHERE {same}", [row for row in known if row not in left]
        )
        target.executemany(
            f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})",
            [row for row in left if row not in known],
        )


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """The columns of a table, but for the number that each database gives its runs by itself."""
    names = [str(column[1]) for column in connection.execute(f"PRAGMA table_info({table})")]
    return [f'"{name}"' for name in names if (table, name) != ("runs", "seq")]
