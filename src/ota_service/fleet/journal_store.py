# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's database: one connection to a file that must outlive us, in WAL mode.

A write returns when the file has it (synchronous=FULL: a killed process or a power cut loses
nothing). Where the file cannot be written (disk full, read-only, removed, another process's), a
copy in memory takes its place, `problem` says so, and later writes try to bring all of it to the
file again: an update is not stopped by its journal. A file that is damaged is set aside, and
`warning` says so.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.fleet import journal_schema
from ota_service.fleet.journal_lock import FILE_MODE
from ota_service.fleet.journal_rows import Record, SqlValue, Statement, from_row, upsert

RETRY_S = 5.0
"""How long writes leave a file alone that has just refused one."""

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_WRONG = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
"""What is wrong with a statement, not with the disk."""
_PRAGMAS = (
    # Exclusive first: WAL then needs no shared memory, which a full disk could break.
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 200",
    "PRAGMA journal_size_limit = 1048576",
)


class Store:
    """One database; thread-safe. Whoever opens it holds the folder's lock.

    refused: asked before each write, for why the file may not be touched now.
    """

    def __init__(
        self,
        path: Path,
        *,
        migrations: tuple[str, ...] = journal_schema.MIGRATIONS,
        retry_s: float = RETRY_S,
        refused: Callable[[], OtaError | None] = lambda: None,
    ) -> None:
        """Open the database at `path`, made if need be.

        No state of the disk makes it fail: see `problem` and `warning`. A wrong migration does.
        """
        self.path = path
        self.warning: str | None = None
        self.problem: OtaError | None = None
        self._migrations = migrations
        self._retry_s = retry_s
        self._refused = refused
        self._tried_s = -math.inf
        self._mutex = threading.RLock()
        self._inode = 0
        self._closed = False
        try:
            self._db = self._open_file()
        except (sqlite3.Error, OSError) as error:
            self._db = self._read_only_copy()
            self._failed(error)

    def read(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._mutex:
            try:
                return self._db.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                self._fall_back(error)
                return self._db.execute(sql, parameters).fetchall()

    def read_one(self, sql: str, parameters: Sequence[SqlValue] = ()) -> sqlite3.Row | None:
        """The first row of a query, if there is one."""
        rows = self.read(sql, parameters)
        return rows[0] if rows else None

    def get(self, kind: type[Record], table: str, **where: SqlValue) -> Record | None:
        """A record by its key."""
        return next(iter(self.all(kind, table, "1", **where)), None)

    def all(
        self, kind: type[Record], table: str, order: str = "1", **where: SqlValue
    ) -> list[Record]:
        """The records that have these values."""
        sql = f"SELECT * FROM {table}{_having(where)} ORDER BY {order}"
        return [from_row(kind, row) for row in self.read(sql, tuple(where.values()))]

    def put(self, table: str, record: object, *keys: str) -> None:
        """Store a record whole, in place of the one with the same keys."""
        self.write(upsert(table, record, *keys))

    def drop(self, table: str, **where: SqlValue) -> None:
        """Remove the records that have these values."""
        self.write((f"DELETE FROM {table}{_having(where)}", tuple(where.values())))

    def write(self, *statements: Statement) -> None:
        """Carry statements out as one transaction; returns when the file has it.

        Raises sqlite3.Error only for statements that are wrong in themselves; nothing is then
        changed.
        """
        with self._mutex:
            self._find_file()
            try:
                self._carry_out(statements)
            except sqlite3.Error as error:
                self._fall_back(error)
                self._carry_out(statements)

    def exclusive(self) -> AbstractContextManager[object]:
        """Keep others out between a read and the write that follows from it."""
        return self._mutex

    def retry(self) -> None:
        """Bring to the file what it lacks, now."""
        with self._mutex:
            self._tried_s = -math.inf
            self._find_file()

    def close(self) -> None:
        """Bring to the file what it lacks, and close it; idempotent. Reads still work."""
        with self._mutex:
            if self._closed:
                return
            self.retry()
            copy = _connect(":memory:")
            with contextlib.suppress(sqlite3.Error):
                self._db.backup(copy)
            self._db.close()
            self._db, self._closed = copy, True

    # --- the file

    def _carry_out(self, statements: Sequence[Statement]) -> None:
        with _transaction(self._db):
            for sql, parameters in statements:
                self._db.execute(sql, parameters)

    def _find_file(self) -> None:
        """Before a write: is the file still ours and in place, or can it be had again?"""
        if self._closed:
            return
        refused = self._refused()
        if refused is not None:
            self._to_memory()
            self.problem = refused
            return
        if self.problem is None and self._in_place():
            return
        if self.problem is None:
            self._to_memory()
        elif time.monotonic() - self._tried_s < self._retry_s:
            return
        self._come_back()

    def _in_place(self) -> bool:
        """Whether the open file is still the one under its name: nobody removed the folder."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def _to_memory(self) -> None:
        """Go on with a copy in memory."""
        if not self._inode:
            return
        copy = _connect(":memory:")
        with contextlib.suppress(sqlite3.Error):
            self._db.backup(copy)
        journal_schema.migrate(copy, self._migrations)
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._db, self._inode = copy, 0

    def _fall_back(self, error: sqlite3.Error) -> None:
        """The file refused something: go on in memory. Raises what is wrong with a statement."""
        if not self._inode or getattr(error, "sqlite_errorcode", 1) & 0xFF in _WRONG:
            raise error
        self._to_memory()
        self._failed(error)

    def _come_back(self) -> None:
        """Bring everything to the file, with what another process has left in it meanwhile."""
        memory = self._db
        try:
            self._db = self._open_file()
            with _transaction(self._db):
                journal_schema.merge(memory, self._db)
        except (sqlite3.Error, OSError) as error:
            if self._db is not memory:
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
            self._db, self._inode = memory, 0
            self._failed(error)
            return
        memory.close()
        self.problem = None

    def _open_file(self) -> sqlite3.Connection:
        """The file, made with mode 600 before SQLite sees it; its WAL inherits the mode.

        One that is damaged, or of a newer program, is set aside, and a new one begun. Raises
        sqlite3.Error or OSError.
        """
        for _ in range(2):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                os.fchmod(fd, FILE_MODE)
                inode = os.fstat(fd).st_ino
            finally:
                os.close(fd)
            file = _connect(self.path)
            try:
                for pragma in _PRAGMAS:
                    file.execute(pragma).fetchone()
                report = str(file.execute("PRAGMA quick_check(1)").fetchone()[0])
                found = journal_schema.version(file)
                if report == "ok" and found <= len(self._migrations):
                    journal_schema.migrate(file, self._migrations)
                    self._inode = inode
                    return file
                file.close()
                if report != "ok":
                    self._set_aside("damaged", f"is damaged ({report.splitlines()[-1]})")
                else:
                    self._set_aside("newer", f"is of a newer version ({found}) of this program")
            except sqlite3.Error as error:
                file.close()
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                    raise
                self._set_aside("damaged", f"is damaged ({error})")
        raise sqlite3.OperationalError("the file could not be opened")

    def _read_only_copy(self) -> sqlite3.Connection:
        """A copy in memory of a file that can only be read; empty where there is none."""
        memory = _connect(":memory:")
        with contextlib.suppress(sqlite3.Error):
            readable = _connect(f"{self.path.absolute().as_uri()}?immutable=1", uri=True)
            with contextlib.closing(readable):
                readable.execute("PRAGMA quick_check").fetchone()
                if journal_schema.version(readable) <= len(self._migrations):
                    readable.backup(memory)
        journal_schema.migrate(memory, self._migrations)
        return memory

    def _set_aside(self, word: str, reason: str) -> None:
        """Rename the file and its WAL. Raises OSError."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        stem = f"{self.path.stem}.{word}-{stamp}"
        aside = self.path.with_name(f"{stem}.sqlite3")
        number = 0
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{stem}-{number}.sqlite3")
        os.rename(self.path, aside)
        for ending in ("-wal", "-journal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}{ending}", f"{aside}{ending}")
        self.warning = (
            f"The journal {self.path} {reason}; it was set aside as {aside.name}, and a new one "
            "begun."
        )

    def _failed(self, error: sqlite3.Error | OSError) -> None:
        self._tried_s = time.monotonic()
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self.problem = OtaError(
            "disk-full" if full else "internal",
            f"The journal {self.path} cannot be written ({reason}). Updates go on; what they "
            "learn is kept in memory and written when that is possible again.",
            remedy=(
                "Free some space on the disk of that folder."
                if full
                else "Check that the folder exists and that this user may write it."
            ),
        )


def _having(where: Mapping[str, SqlValue]) -> str:
    """A condition; names are ours, values are bound."""
    return " WHERE " + " AND ".join(f"{name} IS ?" for name in where) if where else ""


def _connect(where: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(where, isolation_level=None, check_same_thread=False, uri=uri)
    connection.row_factory = sqlite3.Row
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
