# SPDX-License-Identifier: GPL-3.0-or-later
"""The state folder and its lock: one service, or any number of commands, and who they are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ota_service.errors import OtaError

LOCK_NAME = "journal.lock"
FOLDER_MODE = 0o700
FILE_MODE = 0o600


def prepare_folder(folder: Path) -> None:
    """Make the state folder, for this user alone.

    A folder that was there before is closed to others only if it is empty: one that holds other
    things may be shared on purpose. The files in it are private in any case. Raises OSError.
    """
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True)
    except FileExistsError:
        if stat.S_IMODE(folder.stat().st_mode) == FOLDER_MODE or any(folder.iterdir()):
            return
    folder.chmod(FOLDER_MODE)  # whatever the umask made of it


class FolderLock:
    """The lock on a state folder, from the first `refusal` until `release`.

    shared: with others that share it, too. alone: nobody else had it when it was taken.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.folder = folder
        self.shared = shared
        self.alone = False
        self._fd = -1

    @contextmanager
    def opening(self) -> Iterator[None]:
        """One process at a time: whoever is alone may tidy up before others come."""
        fd = -1
        # What the disk has against it, the store finds as well, and says so.
        with contextlib.suppress(OSError):
            prepare_folder(self.folder)
            fd = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if fd >= 0:
                os.close(fd)

    def refusal(self) -> OtaError | None:
        """Why the folder is not ours, where another process has it (`state-busy`, naming it).

        Takes the lock where it is not held, also after the folder was replaced under us.
        """
        if not self._in_place():
            self.release()
            try:
                prepare_folder(self.folder)
                self._take()
            except OtaError as error:
                return error
            except OSError:
                return None
        return None

    def release(self) -> None:
        """Give the folder up; idempotent. The file stays, so that no one locks a removed one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _in_place(self) -> bool:
        """Whether what is locked is still what others would lock."""
        try:
            found = os.stat(self.folder / LOCK_NAME)
        except OSError:
            return False
        return self._fd >= 0 and os.path.samestat(found, os.fstat(self._fd))

    def _take(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.folder / LOCK_NAME, flags, FILE_MODE)
        try:
            self.alone = _locked(fd, fcntl.LOCK_EX)
            if self.alone:
                os.ftruncate(fd, 0)
            if (self.shared and not _locked(fd, fcntl.LOCK_SH)) or not (self.shared or self.alone):
                raise OtaError(
                    "state-busy", f"The state folder {self.folder} is in use by {_holders(fd)}."
                )
            with contextlib.suppress(OSError):  # a full disk costs the name, not the lock
                os.fchmod(fd, FILE_MODE)
                os.write(fd, f"{os.getpid()} {_command()}\n".encode())
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd


def _locked(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _command() -> str:
    """The name of this program, without its arguments: they may hold secrets."""
    return os.path.basename(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable)


def _holders(fd: int) -> str:
    """Who the lock file says has it, of those that still live: "pid 1234 (esp32-ota)"."""
    try:
        lines = os.pread(fd, 1 << 16, 0).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    found = []
    for line in lines:
        pid, _, command = line.partition(" ")
        if pid.isdigit() and _lives(int(pid)):
            found.append(f"pid {pid} ({command})" if command else f"pid {pid}")
    return ", ".join(found) or "another process"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
