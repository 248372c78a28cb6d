# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware that lies on this machine: a file, or a folder with just one.

Viam's packages arrive so: viam-server puts the path of a package's folder in the place of
`${packages.TYPE.NAME}` before the module sees the configuration.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware.failures import NotThere

Stamp = tuple[int, int, int]
"""Of a file's contents as they are now: inode, size in bytes, time of the last change in ns."""

MAX_FILE_BYTES = 128 << 20
"""Where no limit was set: the largest flash that an ESP32-family chip addresses."""

_READS = 3
_MANIFEST = "manifest.json"
_SHOWN_NAMES = 4
_TOO_LARGE = "Check that this is the file that is meant; max_image_bytes limits App Images."


def find_file(place: Path) -> Path:
    """The file at a path, or the only `*.bin` of a folder; follows links.

    Raises OtaError `not-an-image` where it is not clear which file is meant, and `file-access`.
    """
    try:
        if not place.is_dir():
            return place
        found = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise _no_access(place, error) from None
    images = [name for name in found if name.endswith(".bin")]
    if len(images) == 1 and _MANIFEST not in found:
        return place / images[0]
    listed = ", ".join(images[:_SHOWN_NAMES]) + (", ..." if len(images) > _SHOWN_NAMES else "")
    what = f"holds {len(images)} files *.bin ({listed})" if images else "holds no file *.bin"
    if _MANIFEST in found:
        what = f"holds a {_MANIFEST}, which names several firmwares"
    text = f"The folder {place} {what}; one App Image is to be there."
    remedy = "Let the url be the path of the App Image itself, or of a folder with no other *.bin."
    raise (OtaError if found else NotThere)("not-an-image", text, remedy=remedy)


def read_file(path: Path, max_bytes: int) -> tuple[bytes, Stamp]:
    """A regular file, whole and as it was at one moment, and its stamp then.

    Nothing else is opened: that alone would reset the board behind a serial port, or wait for who
    writes into a pipe. Raises OtaError `file-access` and `download-too-large`.
    """
    try:
        for _ in range(_READS):
            _require_regular(os.stat(path))
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                before = os.fstat(file.fileno())
                _require_regular(before)
                if before.st_size > max_bytes:
                    text = f"{path} has {before.st_size:,} bytes; the limit is {max_bytes:,}."
                    raise OtaError("download-too-large", text, remedy=_TOO_LARGE)
                data = file.read(max_bytes + 1)
                if _stamp(before) == _stamp(os.fstat(file.fileno())) and (
                    len(data) == before.st_size
                ):
                    return data, _stamp(before)
    except OSError as error:
        raise _no_access(path, error) from None
    raise NotThere("file-access", f"{path} changes while it is read.")


def stamp_at(place: Path) -> Stamp | None:
    """Of the file at a path or in a folder; None where there is none to be read."""
    try:
        return _stamp(os.stat(find_file(place)))
    except (OSError, OtaError):
        return None


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _no_access(path: Path, error: OSError) -> OtaError:
    """It may be put there one day, or be allowed."""
    return NotThere(
        "file-access",
        f"{path} cannot be read: {error.strerror}.",
        remedy="Check that it is on the machine that has the boards, and that this user "
        "may read it.",
    )
