# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware that lies on this machine: a file, or a folder with just one, or with a manifest.

Viam's packages arrive so: viam-server puts the path of a package's folder in the place of
`${packages.TYPE.NAME}` before the module sees the configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware.failures import NotThere
from ota_service.firmware.files import Stamp, TooLargeError, read_stamped, stamp_of
from ota_service.firmware.manifest import FILE_NAME

_READS = 3
_SHOWN_NAMES = 4


def read_firmware(path: Path, max_bytes: int) -> tuple[bytes, Stamp]:
    """A firmware's file as it was at one moment, and its stamp then.

    Raises OtaError `download-too-large`, and `NotThere` with `file-access`: it may be put there
    one day, or be allowed.
    """
    try:
        for _ in range(_READS):
            data, before, after = read_stamped(path, max_bytes)
            if before == after and len(data) == before[1]:
                return data, before
    except TooLargeError as error:
        raise OtaError(
            "download-too-large",
            f"{path}: {error}.",
            remedy="Check that this is the file that is meant; max_image_bytes limits App Images.",
        ) from None
    except (OSError, ValueError) as error:
        raise NotThere(
            "file-access",
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            remedy="Check that it is on the machine that has the boards, and that this user may "
            "read it.",
        ) from None
    raise NotThere("file-access", f"{path} changes while it is read.")


def find_file(place: Path) -> Path:
    """The file at a path, or of a folder its `manifest.json`, else its only `*.bin`; follows links.

    Raises OtaError `not-an-image` where it is not clear which file is meant, and `file-access`.
    """
    try:
        if not place.is_dir():
            return place
        found = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise NotThere("file-access", f"{place} cannot be read: {error.strerror}.") from None
    images = [name for name in found if name.endswith(".bin")]
    if FILE_NAME in found:
        return place / FILE_NAME
    if len(images) == 1:
        return place / images[0]
    listed = ", ".join(images[:_SHOWN_NAMES]) + (", ..." if len(images) > _SHOWN_NAMES else "")
    what = f"holds {len(images)} files *.bin ({listed})" if images else "holds no file *.bin"
    text = f"The folder {place} {what}; one App Image is to be there, or a {FILE_NAME}."
    remedy = "Let the url be the path of the App Image itself, or of a folder with no other *.bin."
    raise (OtaError if found else NotThere)("not-an-image", text, remedy=remedy)


def stamp_at(place: Path) -> Stamp | None:
    """Of the file at a path or in a folder; None where there is none to be read."""
    try:
        return stamp_of(os.stat(find_file(place)))
    except (OSError, OtaError):
        return None
