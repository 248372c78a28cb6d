# SPDX-License-Identifier: GPL-3.0-or-later
"""What must last: one journal a process, shared by its services.

It lies in the state folder (mode 700) as `journal.sqlite3` (mode 600) and survives killed
processes and power cuts. All of its methods block, some for as long as a disk takes: call them
in threads. They are safe in any thread.

    open_journal(state_dir) -> Journal      counted: each one needs its close()
    Journal                                 boards, attempts, runs; the parts have modules apart
"""

from __future__ import annotations

import contextlib
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
    """The journal of one state folder. Made by `open_journal`."""

    def __init__(self, folder: Path) -> None:
        """Open or begin the journal. Raises `state-busy`; nothing else stops it, see `problem`."""
        self.folder = folder
        self._lock: FolderLock | None = None
        # What the disk has against it, the store finds as well and says so, in `problem`.
        with contextlib.suppress(OSError):
            self._lock_folder()
        try:
            super().__init__(Store(folder / FILE_NAME, refused=self._refused))
        except BaseException:
            self._unlock()
            raise
        self._close_interrupted_attempts()
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

    def _lock_folder(self) -> None:
        """Raises `state-busy`, or OSError."""
        prepare_folder(self.folder)
        self._lock = FolderLock(self.folder)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _refused(self) -> OtaError | None:
        """Before each write: the folder may have been replaced, and be another process's now."""
        if self._lock is not None and self._lock.in_place():
            return None
        self._unlock()
        try:
            self._lock_folder()
        except OtaError as error:
            return error
        except OSError:
            return None
        return None

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
            self._unlock()

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
