# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's database: one connection to a file that must outlive us, in WAL mode.

A write returns when the file has it (synchronous=FULL: a killed process or a power cut loses
nothing). Where the file cannot be written (disk full, read-only, removed, another process's), a
copy in memory takes its place, `problem` says so, and later writes try to bring to the file what
it lacks: an update is not stopped by its journal. A file that is damaged is set aside, and
`warning` says so.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from ota_service.errors import OtaError
from ota_service.fleet import journal_schema
from ota_service.fleet.journal_lock import FILE_MODE, FolderLock
from ota_service.fleet.journal_rows import AttemptRecord, Record, Run, SqlValue, to_sql

FILE_NAME = "journal.sqlite3"
RETRY_S = 5.0
"""How long writes leave a file alone that has just refused one."""

BUSY_S = 20.0
"""How long a write waits for another command's, which takes milliseconds."""

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_WRONG = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
"""What is wrong with a statement, not with the disk."""
_ALONE = "PRAGMA locking_mode = EXCLUSIVE"
"""First of all: WAL then needs no shared memory, which a full disk could break."""
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 200",
    "PRAGMA journal_size_limit = 1048576",
)

_NEWEST_FIRST: dict[type[Record], str] = {AttemptRecord: "seq DESC", Run: "rowid DESC"}

Kind = TypeVar("Kind", bound=Record)
Result = TypeVar("Result")
Method = TypeVar("Method", bound=Callable[..., Any])


class Store:
    """The records in one file; thread-safe. lock: asked before each write whether it is ours."""

    def __init__(self, lock: FolderLock, *, retry_s: float = RETRY_S) -> None:
        """Open the database, made if need be.

        No state of the disk makes it fail: see `problem` and `warning`.
        """
        self.path = lock.folder / FILE_NAME
        self.warning: str | None = None
        self.problem: OtaError | None = None
        self._lock = lock
        self._retry_s = retry_s
        self._tried_s = -math.inf
        self._mutex = threading.RLock()
        # Of the file that is open or was last; and what it held when memory took its place.
        self._inode, self._is_new = 0, False
        self._in_file: journal_schema.Rows | None = None
        self._closed = False
        try:
            self._db = self._open_file()
        except (sqlite3.Error, OSError) as error:
            self._db = self._read_only_copy()
            self._in_file = journal_schema.rows(self._db)
            self._failed(error)

    # --- records

    def get(self, kind: type[Kind], **where: SqlValue) -> Kind | None:
        """The record that has these values."""
        return next(iter(self.all(kind, **where)), None)

    def all(self, kind: type[Kind], **where: SqlValue) -> list[Kind]:
        """The records that have these values, attempts and runs the newest first."""
        order = _NEWEST_FIRST.get(kind, "1")
        sql = f'SELECT * FROM "{kind.TABLE}"{_having(where)} ORDER BY {order}'
        return [kind.from_row(row) for row in self.read(sql, *where.values())]

    def put(self, record: Record) -> None:
        """Store a record whole, in place of the one with the same keys."""
        row = record.to_row()
        names = ", ".join(f'"{name}"' for name in row)
        action = ", ".join(f'"{n}" = excluded."{n}"' for n in row if n not in record.KEYS)
        self.write(
            f'INSERT INTO "{record.TABLE}" ({names}) VALUES ({", ".join("?" * len(row))}) '
            f"ON CONFLICT ({', '.join(record.KEYS)}) DO UPDATE SET {action}",
            *row.values(),
        )

    def drop(self, kind: type[Record], **where: SqlValue) -> None:
        """Remove the records that have these values."""
        self.write(f'DELETE FROM "{kind.TABLE}"{_having(where)}', *where.values())

    def read(self, sql: str, *values: SqlValue) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._mutex:
            if self._db.in_transaction:
                return self._db.execute(sql, values).fetchall()
            return self._or_in_memory(lambda: self._db.execute(sql, values).fetchall())

    def write(self, sql: str, *values: object) -> None:
        """Carry a statement out; returns when the file has it, outside of any `whole`."""
        self.whole(lambda: self._db.execute(sql, [to_sql(value) for value in values]))

    def whole(self, work: Callable[[], Result]) -> Result:
        """Do reads and writes as one transaction, within another one if need be.

        Raises sqlite3.Error only for statements that are wrong in themselves; nothing is then
        changed.
        """
        with self._mutex:
            if self._db.in_transaction:
                return work()
            self._find_file()
            return self._or_in_memory(partial(self._transact, work))

    def retry(self) -> None:
        """Bring to the file what it lacks, now."""
        with self._mutex:
            self._tried_s = -math.inf
            self._find_file()

    def close(self) -> None:
        """Bring to the file what it lacks, close it, and give the folder up; idempotent.

        Memory goes on without it: a session may still have something to note.
        """
        with self._mutex:
            if not self._closed:
                self.retry()
                self._to_memory()
                self._closed = True
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the file

    def _transact(self, work: Callable[[], Result]) -> Result:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        return result

    def _or_in_memory(self, work: Callable[[], Result]) -> Result:
        """Where the file refuses it, in memory. Raises what is wrong with a statement."""
        try:
            return work()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 1) & 0xFF
            if self._in_file is not None or code in _WRONG:
                raise
            self._to_memory()
            self._failed(error)
            return work()

    def _find_file(self) -> None:
        """Before a write: is the file still ours and in place, or can it be had again?"""
        if self._closed:
            return
        refused = self._lock.refusal()
        if refused is not None:
            self._to_memory()
            self.problem = refused
        elif self.problem is None and self._in_place():
            return
        elif self.problem is None or time.monotonic() - self._tried_s >= self._retry_s:
            self._to_memory()
            self._come_back()

    def _in_place(self) -> bool:
        """Whether the open file is still the one under its name: nobody removed the folder."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def _to_memory(self) -> None:
        """Go on with a copy in memory."""
        if self._in_file is not None:
            return
        copy = _connect(":memory:")
        with contextlib.suppress(sqlite3.Error):
            self._db.backup(copy)
        journal_schema.prepare(copy)
        self._in_file = journal_schema.rows(copy) if self._in_place() else {}
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._db = copy

    def _come_back(self) -> None:
        """Bring to the file what it lacks: what was changed in memory, or all where the file is
        another one. What other processes have left in it meanwhile stays."""
        memory, inode, before = self._db, self._inode, self._in_file or {}
        try:
            self._db = self._open_file()
            # A new file may get the number of the one that was removed.
            known = before if self._inode == inode and not self._is_new else {}
            after = journal_schema.rows(memory)
            self._transact(partial(journal_schema.carry_over, known, after, self._db))
        except (sqlite3.Error, OSError) as error:
            if self._db is not memory:
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
            self._db, self._inode, self._in_file = memory, inode, before
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
                wrong = self._checked(file)
            except sqlite3.Error as error:
                file.close()
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                    raise
                wrong = ("damaged", f"is damaged ({error})")
            if wrong is None:
                self._inode, self._in_file = inode, None
                return file
            file.close()
            self._set_aside(*wrong)
        raise sqlite3.OperationalError("the file could not be opened")

    def _checked(self, file: sqlite3.Connection) -> tuple[str, str] | None:
        """Make a file ready for use; a word and the reason where it cannot be used."""
        for pragma in _PRAGMAS if self._lock.shared else (_ALONE, *_PRAGMAS):
            file.execute(pragma).fetchone()
        report = str(file.execute("PRAGMA quick_check(1)").fetchone()[0])
        if report != "ok":
            return "damaged", f"is damaged ({report.splitlines()[-1]})"
        found = journal_schema.version(file)
        self._is_new = found == 0
        wrong = journal_schema.refusal(found)
        if wrong is None:
            journal_schema.prepare(file)
        return wrong

    def _read_only_copy(self) -> sqlite3.Connection:
        """A copy in memory of a file that can only be read; empty where there is none."""
        memory = _connect(":memory:")
        with contextlib.suppress(sqlite3.Error, OSError):
            readable = _connect(f"{self.path.absolute().as_uri()}?immutable=1", uri=True)
            with contextlib.closing(readable):
                readable.execute("PRAGMA quick_check").fetchone()
                if journal_schema.refusal(journal_schema.version(readable)) is None:
                    readable.backup(memory)
                    self._inode = os.stat(self.path).st_ino
        journal_schema.prepare(memory)
        return memory

    def _set_aside(self, word: str, reason: str) -> None:
        """Rename the file and its WAL. Raises OSError."""
        stem = f"{self.path.stem}.{word}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
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
        full = full or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
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


def whole(method: Method) -> Method:
    """Make what a store's method reads and writes one transaction."""

    @functools.wraps(method)
    def as_one(self: Store, *args: Any, **kwargs: Any) -> Any:
        return self.whole(partial(method, self, *args, **kwargs))

    return cast(Method, as_one)


def _having(where: dict[str, SqlValue]) -> str:
    """A condition; names are ours, values are bound."""
    return " WHERE " + " AND ".join(f'"{name}" IS ?' for name in where) if where else ""


def _connect(where: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        where, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=uri
    )
    connection.row_factory = sqlite3.Row
    return connection
