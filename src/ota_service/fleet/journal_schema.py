# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's tables, and the way from each released version of them to the next.

The version is SQLite's `user_version`: that of the first release is `FIRST`, and each migration
adds one. A migration that has been released is never changed; a new one is added below it. Times
are text, ISO 8601 in UTC with microseconds, so that they sort as they are.
"""

from __future__ import annotations

import sqlite3
from typing import Any

FIRST = 9
"""Of the first release's journal: no program that was released has left an older one."""

_FIRST = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY, value TEXT NOT NULL
) WITHOUT ROWID;

-- What was last seen on each board; `mac` is the identity.
CREATE TABLE boards (
    mac TEXT PRIMARY KEY, chip TEXT, flash_bytes INTEGER,
    port TEXT, usb_location TEXT, usb_serial TEXT, seen_at TEXT,
    version TEXT, version_read_at TEXT,
    slot TEXT, project TEXT, app_version TEXT, confirmed INTEGER, layout TEXT,
    silent INTEGER, unchecked INTEGER
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

CREATE TABLE attempts (
    board TEXT NOT NULL, target TEXT NOT NULL, failed INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'none', code TEXT, message TEXT, since TEXT,
    open_since TEXT, updated_at TEXT NOT NULL, seq INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (board, target)
) WITHOUT ROWID;

CREATE TABLE pending (
    mac TEXT PRIMARY KEY, target TEXT NOT NULL, version TEXT NOT NULL, slot TEXT NOT NULL,
    since TEXT NOT NULL, until TEXT NOT NULL, previous_slot TEXT, previous_version TEXT,
    power_failed INTEGER NOT NULL DEFAULT 0, boot TEXT, up_until_s REAL
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

-- Firmwares that no further board of a service gets.
CREATE TABLE stops (
    service TEXT NOT NULL, target TEXT NOT NULL, reason TEXT NOT NULL, since TEXT NOT NULL,
    PRIMARY KEY (service, target)
) WITHOUT ROWID;

-- What waits in a slot of a board, but for its magic byte, to be activated.
CREATE TABLE staged (
    mac TEXT PRIMARY KEY, target TEXT NOT NULL, version TEXT NOT NULL, slot TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, md5 TEXT NOT NULL,
    staged_md5 TEXT NOT NULL, head TEXT NOT NULL, since TEXT NOT NULL
) WITHOUT ROWID;

-- What the last update brought to each board, for its way back.
CREATE TABLE brought (
    mac TEXT PRIMARY KEY, target TEXT NOT NULL, slot TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    md5 TEXT NOT NULL, version TEXT NOT NULL, previous_version TEXT, since TEXT NOT NULL
) WITHOUT ROWID;

-- What the robot is to be told when a session with a board is over, from before it begins.
CREATE TABLE owed_calls (
    service TEXT NOT NULL, board TEXT NOT NULL, call TEXT NOT NULL, since TEXT NOT NULL,
    PRIMARY KEY (service, board)
) WITHOUT ROWID;

-- Groups of boards in the middle of their switch, which the next start finishes.
CREATE TABLE board_groups (
    service TEXT NOT NULL, id TEXT NOT NULL, target TEXT NOT NULL, version TEXT NOT NULL,
    phase TEXT NOT NULL, since TEXT NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (service, id)
) WITHOUT ROWID;
"""

_REWRITTEN = """
-- The last time that each board was rewritten of which what is known of it takes account.
ALTER TABLE boards ADD COLUMN rewritten INTEGER;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _REWRITTEN)
"""Statements: the tables of the first release, and each way from one version to the next."""


def version(connection: sqlite3.Connection) -> int:
    """The version of the tables of a database; 0: it has none yet."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def refusal(found: int, migrations: tuple[str, ...] = MIGRATIONS) -> tuple[str, str] | None:
    """A word and the reason why a journal of a version is none of this program's."""
    if found >= FIRST + len(migrations):
        return "newer", f"is of a newer version ({found}) of this program"
    if 0 < found < FIRST:
        return "older", f"is of a version ({found}) before this program's first release"
    return None


def migrate(connection: sqlite3.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Bring a database's tables up to date."""
    found = version(connection)
    steps = list(enumerate(migrations, FIRST))
    for number, statements in steps[max(0, found + 1 - FIRST) :]:
        connection.executescript(f"BEGIN; {statements} PRAGMA user_version = {number}; COMMIT;")


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
