# SPDX-License-Identifier: GPL-3.0-or-later
"""What must last: one journal a process, shared by its services.

It lies in the state folder (mode 700) as `journal.sqlite3` (mode 600) and survives killed
processes and power cuts. All of its methods block, some for as long as a disk takes: call them
in threads. They are safe in any thread.

    open_journal(state_dir) -> Journal      counted: each one needs its close()
    Journal                                 boards, attempts, runs; the parts have modules apart
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.fleet.journal_attempts import AttemptsPart
from ota_service.fleet.journal_boards import BoardsPart
from ota_service.fleet.journal_lock import FolderLock, prepare_folder
from ota_service.fleet.journal_runs import RunsPart
from ota_service.fleet.journal_store import Store

FILE_NAME = "journal.sqlite3"


class Journal(BoardsPart, AttemptsPart, RunsPart):
    """The journal of one state folder. Made by `open_journal`.

    interrupted_attempts: those that a dead process had begun; they count as failed already.
    """

    def __init__(self, folder: Path) -> None:
        """Open or begin the journal. Raises `state-busy`; nothing else stops it, see `problem`."""
        self.folder = folder
        self._lock: FolderLock | None = None
        try:
            prepare_folder(folder)
            self._lock = FolderLock(folder)
        except OSError:
            pass  # the store finds the same and says so, in `problem`
        try:
            super().__init__(Store(folder / FILE_NAME))
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self.interrupted_attempts = self._close_interrupted_attempts()
        self._close_interrupted_runs()
        self._uses = 1

    @property
    def warning(self) -> str | None:
        """What was wrong with the file that was found, if anything; for the log."""
        return self._store.warning

    @property
    def problem(self) -> OtaError | None:
        """Why the journal is kept in memory for now; None: it is safe on the disk."""
        return self._store.problem

    def retry(self) -> None:
        """Try to write what could not be written, now."""
        self._store.retry()

    # --- settings of the program itself

    def meta(self, key: str) -> str | None:
        """A value of the program's own."""
        row = self._store.read_one("SELECT value FROM meta WHERE key = ?", (key,))
        return str(row["value"]) if row else None

    def set_meta(self, key: str, value: str | None) -> None:
        """Store a value of the program's own; None removes it."""
        if value is None:
            self._store.write(("DELETE FROM meta WHERE key = ?", (key,)))
            return
        self._store.write(
            (
                "INSERT INTO meta VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )
        )

    # --- its life

    def close(self) -> None:
        """End one use; the last one closes the file and gives the folder up."""
        global _open
        with _mutex:
            self._uses = max(0, self._uses - 1)
            if self._uses:
                return
            if _open is self:
                _open = None
            self._store.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_mutex = threading.Lock()
_open: Journal | None = None


def open_journal(state_dir: Path | str) -> Journal:
    """The journal of `state_dir`, the one that is open already where there is one.

    Raises `state-busy`, naming the other process that has it, and `config-invalid`, naming both
    folders, where this process has the journal of another folder open.
    """
    global _open
    folder = Path(os.path.realpath(Path(state_dir).expanduser()))
    with _mutex:
        if _open is None:
            _open = Journal(folder)
            return _open
        if _open.folder != folder:
            raise OtaError(
                "config-invalid",
                f"The services of this module name two state folders, {_open.folder} and {folder}.",
                remedy="Set state_dir of all services to the same folder, or leave it out.",
            )
        _open._uses += 1
        return _open
