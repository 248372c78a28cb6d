# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's database: a working copy in memory, and its file, which must outlive us.

Reads come from memory, so they neither wait for a disk nor fail. Each write goes to memory, then
in one transaction to the file, and returns when the file has it (WAL, synchronous=FULL: a killed
process or a power cut loses nothing that a write has returned for).

Where the file cannot be written (disk full, read-only, removed), the write still succeeds in
memory, `problem` says so, and later writes try to bring the whole copy to the file again: an
update is not stopped by its journal. A file that is damaged is set aside, and `warning` says so.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.fleet import journal_schema
from ota_service.fleet.journal_lock import FILE_MODE
from ota_service.fleet.journal_rows import SqlValue, Statement

RETRY_S = 5.0
"""How long writes leave a file alone that has just refused one."""

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PRAGMAS = (
    # Exclusive first: WAL then needs no shared memory, which a full disk could break.
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 200",
    "PRAGMA journal_size_limit = 1048576",
)


class Store:
    """One database; thread-safe. Whoever opens it holds the folder's lock."""

    def __init__(
        self,
        path: Path,
        *,
        migrations: tuple[str, ...] = journal_schema.MIGRATIONS,
        retry_s: float = RETRY_S,
    ) -> None:
        """Open the database at `path`, made if need be.

        No state of the disk makes it fail: see `problem` and `warning`. A wrong migration does.
        """
        self.path = path
        self.warning: str | None = None
        self._migrations = migrations
        self._retry_s = retry_s
        self._problem: OtaError | None = None
        self._tried_at = -math.inf
        self._late: list[Statement] = []
        self._order = threading.RLock()  # one writer at a time, so both copies see one order
        self._mutex = threading.Lock()  # the copy in memory; never held during disk work
        self._memory = self._new_memory()
        self._file: sqlite3.Connection | None = None
        self._inode = 0
        try:
            self._load()
        except BaseException:
            _close(self._file)
            raise

    @property
    def problem(self) -> OtaError | None:
        """Why the file does not have what memory has; None: it has everything."""
        return self._problem

    def read(self, sql: str, parameters: Sequence[SqlValue] = ()) -> list[sqlite3.Row]:
        """The rows of a query, from memory."""
        with self._mutex:
            return self._memory.execute(sql, parameters).fetchall()

    def read_one(self, sql: str, parameters: Sequence[SqlValue] = ()) -> sqlite3.Row | None:
        """The first row of a query, if there is one."""
        rows = self.read(sql, parameters)
        return rows[0] if rows else None

    def write(self, *statements: Statement, durable: bool = True) -> None:
        """Carry statements out as one transaction.

        durable: return when the file has it. Otherwise the file gets it with the next durable
        write or at `close`, for details whose loss with a killed process does no harm.

        Raises sqlite3.Error only for statements that are wrong in themselves; nothing is then
        changed.
        """
        with self._order:
            with self._mutex, _transaction(self._memory):
                for sql, parameters in statements:
                    self._memory.execute(sql, parameters)
            self._late.extend(statements)
            if durable:
                self._save()

    def exclusive(self) -> AbstractContextManager[object]:
        """Keep other writers out between a read and the write that follows from it."""
        return self._order

    def retry(self) -> None:
        """Bring to the file what it lacks, now."""
        with self._order:
            self._tried_at = -math.inf
            if self._problem or self._late:
                self._save()

    def close(self) -> None:
        """Bring to the file what it lacks, and close it; idempotent. Reads still work."""
        with self._order:
            if self._inode >= 0:
                self.retry()
            self._inode = -1
            _close(self._file)
            self._file = None

    # --- the file

    def _load(self) -> None:
        """Fill memory from the file, which is made, set aside or upgraded as it needs."""
        try:
            self._open_file()
            assert self._file is not None
            self._file.backup(self._memory)
            found = journal_schema.version(self._memory)
            if found > len(self._migrations):
                self._set_aside("newer", f"is of a newer version ({found}) of this program")
                self._memory = self._new_memory()
        except (sqlite3.Error, OSError) as error:
            self._memory = self._new_memory()
            if _is_damaged(error):
                self._set_aside("damaged", f"is damaged ({error})")
            else:
                self._load_read_only()
                self._failed(error)
        if journal_schema.migrate(self._memory, self._migrations):
            self._copy_to_file()

    def _new_memory(self) -> sqlite3.Connection:
        """An empty database in memory, closed when the store itself goes: reads outlive `close`."""
        memory = _connect(":memory:")
        weakref.finalize(self, memory.close)
        return memory

    def _load_read_only(self) -> None:
        """Fill memory from a file that can be read but not written."""
        with contextlib.suppress(sqlite3.Error):
            readable = _connect(f"{self.path.absolute().as_uri()}?immutable=1", uri=True)
            with contextlib.closing(readable):
                readable.execute("PRAGMA quick_check").fetchone()
                if journal_schema.version(readable) <= len(self._migrations):
                    readable.backup(self._memory)

    def _open_file(self) -> None:
        """Open the file, made with mode 600 before SQLite sees it; its WAL inherits the mode.

        Raises sqlite3.Error or OSError.
        """
        _close(self._file)
        self._file = None
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
            report = file.execute("PRAGMA quick_check(1)").fetchone()[0]
            if report != "ok":
                raise _damage(f"quick_check: {str(report).splitlines()[-1]}")
        except BaseException:
            _close(file)
            raise
        self._file = file
        self._inode = inode

    def _set_aside(self, word: str, reason: str) -> None:
        """Rename the file (and its WAL) and begin an empty one."""
        _close(self._file)
        self._file = None
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        stem = f"{self.path.stem}.{word}-{stamp}"
        aside = self.path.with_name(f"{stem}.sqlite3")
        number = 0
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{stem}-{number}.sqlite3")
        try:
            os.rename(self.path, aside)
            for ending in ("-wal", "-journal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self.path}{ending}", f"{aside}{ending}")
            kept = f"it was set aside as {aside.name}, and a new one begun"
        except OSError as error:
            kept = f"it could not be set aside ({error.strerror})"
        self.warning = f"The journal {self.path} {reason}; {kept}."
        try:
            self._open_file()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def _save(self) -> None:
        """Bring the statements that the file lacks to it, or, after a failure, everything."""
        statements, self._late = self._late, []
        if self._inode < 0:  # closed
            return
        if self._problem is None and self._is_in_place() and self._file is not None:
            try:
                with _transaction(self._file):
                    for sql, parameters in statements:
                        self._file.execute(sql, parameters)
                return
            except sqlite3.Error as error:
                self._failed(error)
                return
        if self._problem is None or time.monotonic() - self._tried_at >= self._retry_s:
            self._copy_to_file()

    def _copy_to_file(self) -> None:
        """Make the file what memory is, in one transaction of SQLite's backup."""
        try:
            if self._file is None or not self._is_in_place():
                self._open_file()
            self._backup()
        except (sqlite3.Error, OSError) as error:
            if not _is_damaged(error):
                self._failed(error)
                return
            self._set_aside("damaged", f"is damaged ({error})")
            try:
                self._backup()
            except sqlite3.Error as again:
                self._failed(again)
                return
        self._problem = None

    def _backup(self) -> None:
        if self._file is None:
            raise sqlite3.OperationalError("the file could not be opened")
        # By way of a second copy, so that readers wait for memory only, never for the disk.
        with contextlib.closing(_connect(":memory:")) as copy:
            with self._mutex:
                self._memory.backup(copy)
            copy.backup(self._file)

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one under its name: nobody removed the folder."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def _failed(self, error: sqlite3.Error | OSError) -> None:
        self._tried_at = time.monotonic()
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        self._problem = OtaError(
            "disk-full" if full else "internal",
            f"The journal {self.path} cannot be written ({reason}). Updates go on; what they "
            "learn is kept in memory and written when that is possible again.",
            remedy=(
                "Free some space on the disk of that folder."
                if full
                else "Check that the folder exists and that this user may write it."
            ),
        )


def _connect(where: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(where, isolation_level=None, check_same_thread=False, uri=uri)
    connection.row_factory = sqlite3.Row
    return connection


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


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


class _Damage(sqlite3.DatabaseError):
    """What SQLite's own check found, with the code of its own errors of that kind."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _damage(text: str) -> _Damage:
    return _Damage(text)


def _is_damaged(error: sqlite3.Error | OSError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
