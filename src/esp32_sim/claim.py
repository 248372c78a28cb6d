# SPDX-License-Identifier: GPL-3.0-or-later
"""A board's folder belongs to one simulator at a time, for as long as that one lives.

The lock is the kernel's (flock), so that a killed simulator leaves nothing behind that holds the
folder; the file's contents only say who it is.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK_FILE = "simulator.lock"


class Claimed(Exception):
    """Another simulator serves the board. pid: its process, 0 where it is not known."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        super().__init__(f"simulated already, by process {pid}")


def claim(directory: Path) -> int:
    """Take a board's folder; the open file that holds it. Raises Claimed, OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        os.close(fd)
        raise Claimed(int(text) if text.isdigit() else 0) from None
    except BaseException:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
