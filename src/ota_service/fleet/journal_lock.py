# SPDX-License-Identifier: GPL-3.0-or-later
"""The state folder and its lock: one process at a time, and who it is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
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
    """The lock on a state folder, held until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises `state-busy` naming its holder, or OSError."""
        self._fd = -1
        self._path = path = folder / LOCK_NAME
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(fd)
            os.close(fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise OtaError(
                "state-busy", f"The state folder {folder} is in use by {holder}."
            ) from None
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk costs the name, not the lock
            os.fchmod(fd, FILE_MODE)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {_command()}\n".encode(), 0)

    def in_place(self) -> bool:
        """Whether what is locked is still what others would lock: the folder may be another."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._fd))

    def release(self) -> None:
        """Give the folder up; idempotent. The file stays, so that no one locks a removed one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _command() -> str:
    """The name of this program, without its arguments: they may hold secrets."""
    return os.path.basename(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable)


def _holder(fd: int) -> str:
    """Who the lock file says has it: "pid 1234 (esp32-ota)"."""
    try:
        text = os.pread(fd, 512, 0).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    pid, _, command = text.partition(" ")
    if not pid.isdigit():
        return "another process"
    return f"pid {pid} ({command})" if command else f"pid {pid}"
