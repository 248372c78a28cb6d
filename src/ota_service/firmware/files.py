# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way to a file that somebody named: a regular one, up to a size, and without waiting; and
how ours are written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from ota_service.errors import OtaError

FIRMWARE_BYTES = 64 << 20
"""No flash, and so no file for one, is larger."""
TEXT_BYTES = 4 << 20
"""Of certificates, tables and keys as text."""

Stamp = tuple[int, int, int]
"""Of a file's contents as they are now: inode, size in bytes, time of the last change in ns."""

_CHUNK_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
)


class TooLargeError(ValueError):
    """It has more bytes than are taken."""


def read_file(path: Path | str, max_bytes: int, *, links: bool = True) -> bytes:
    """The contents of a regular file.

    A device or a FIFO is not even opened: that may act on it, or wait for somebody. links: False
    for a file of our own, in whose place nobody may have put one.
    Raises OtaError "file-access" with the path and what is there instead; its `__cause__` is the
    system's error, where that was it.
    """
    try:
        return read_stamped(path, max_bytes, links=links)[0]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OtaError("file-access", f"{path} cannot be read: {why}.") from error


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """A file that appears whole, or not at all, and leaves nothing else behind. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
        with contextlib.suppress(OSError):  # not each disk can be asked for that
            sync_names(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync_names(folder: Path) -> None:
    """A power cut must not bring back what was in a folder before. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_lock(path: Path, flags: int = 0) -> int:
    """A file to lock, for writing where that can be, which an exclusive lock on NFS needs, else as
    it lies on a disk that is read-only. Raises OSError."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return os.open(path, os.O_RDONLY | flags & ~os.O_CREAT)


def read_stamped(
    path: Path | str, max_bytes: int, *, links: bool = True
) -> tuple[bytes, Stamp, Stamp]:
    """As `read_file`, with the stamps before and after. Raises OSError, ValueError."""
    _require_regular(os.stat(path, follow_symlinks=links))
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    handle = os.open(path, flags)
    try:
        status = os.fstat(handle)
        _require_regular(status)
        data = b"" if status.st_size > max_bytes else _read_all(handle, max_bytes)
        if max(status.st_size, len(data)) > max_bytes:
            raise TooLargeError(f"it has more than {max_bytes:,} bytes")
        return data, stamp_of(status), stamp_of(os.fstat(handle))
    finally:
        os.close(handle)


# --- inside


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no file")
        raise ValueError(f"it is {kind}, not a regular file")


def _read_all(handle: int, max_bytes: int) -> bytes:
    """At most one byte more than `max_bytes`: a file may grow, or not say its size."""
    found = bytearray()
    while len(found) <= max_bytes:
        data = os.read(handle, min(_CHUNK_BYTES, max_bytes + 1 - len(found)))
        if not data:
            break
        found += data
    return bytes(found)


def stamp_of(found: os.stat_result) -> Stamp:
    """Of what `os.stat` says."""
    return found.st_ino, found.st_size, found.st_mtime_ns
