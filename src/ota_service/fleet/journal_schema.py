# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's tables: one for each kind of record, with its fields as columns.

The version is SQLite's `user_version`. A journal of an earlier one gets the tables and columns that
it lacks, and keeps those that no record has any more. A field that comes, or means another thing,
makes a new version.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from ota_service.fleet.journal_rows import Record

VERSION = 10
FIRST = 9
"""Of the first release's journal: no program that was released has left an older one."""

_TYPES = {"int": "INTEGER", "bool": "INTEGER", "float": "REAL"}
"""Everything else is text; times are ISO 8601 in UTC with microseconds, so that they sort."""


def version(connection: sqlite3.Connection) -> int:
    """The version of the tables of a database; 0: it has none yet."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def refusal(found: int) -> tuple[str, str] | None:
    """A word and the reason why a journal of a version is none of this program's."""
    if found > VERSION:
        return "newer", f"is of a newer version ({found}) of this program"
    if 0 < found < FIRST:
        return "older", f"is of a version ({found}) before this program's first release"
    return None


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables and columns that a database lacks; all of them or none."""
    if version(connection) == VERSION:
        return
    statements = ["BEGIN"]
    for kind in Record.__subclasses__():
        types = {name: _sql_type(str(field.type)) for name, field in kind.columns().items()}
        found = {row[1] for row in connection.execute(f"PRAGMA table_info({kind.TABLE})")}
        if not found:
            columns = [f'"{name}" {sql}' for name, sql in types.items()]
            columns.append(f"PRIMARY KEY ({', '.join(kind.KEYS)})")
            statements.append(f"CREATE TABLE {kind.TABLE} ({', '.join(columns)})")
            continue
        for name in types.keys() - found:
            statements.append(f'ALTER TABLE {kind.TABLE} ADD COLUMN "{name}" {types[name]}')
    connection.executescript(";".join([*statements, f"PRAGMA user_version = {VERSION}", "COMMIT"]))


def _sql_type(annotation: str) -> str:
    return _TYPES.get(annotation.partition(" | ")[0], "TEXT")


Rows = dict[type[Record], dict[tuple[Any, ...], None]]
"""The rows of each table, in their order."""


def rows(connection: sqlite3.Connection) -> Rows:
    """All that a database holds."""
    return {
        kind: dict.fromkeys(
            tuple(row)
            for row in connection.execute(f"SELECT {', '.join(_columns(kind))} FROM {kind.TABLE}")
        )
        for kind in Record.__subclasses__()
    }


def carry_over(before: Rows, after: Rows, target: sqlite3.Connection) -> None:
    """Do to another database what has changed from one state of rows to a later one.

    Its other rows stay as they are. Within a transaction.
    """
    for kind, left in after.items():
        known, columns = before.get(kind, {}), _columns(kind)
        same, marks = " AND ".join(f"{c} IS ?" for c in columns), ", ".join("?" * len(columns))
        target.executemany(
            f"DELETE FROM {kind.TABLE} WHERE {same}", [row for row in known if row not in left]
        )
        target.executemany(
            f"INSERT OR REPLACE INTO {kind.TABLE} ({', '.join(columns)}) VALUES ({marks})",
            [row for row in left if row not in known],
        )


def _columns(kind: type[Record]) -> list[str]:
    return [f'"{name}"' for name in kind.columns()]
