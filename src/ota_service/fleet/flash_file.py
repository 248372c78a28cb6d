# SPDX-License-Identifier: GPL-3.0-or-later
"""The Merged Binary that `flash` writes, from a path or a url, checked beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware.urls import redact_url
from ota_service.fleet.orders import FlashFile
from ota_service.update.flash_plan import check_merged

MAX_FILE_BYTES = 64 << 20


def shown_file(place: Path | str) -> str:
    """Where the file is (a path, or a url), without secrets."""
    return str(place) if isinstance(place, Path) else redact_url(place)


async def flash_file(
    place: Path | str, confirm: str, keep_nvs: bool, fetch: Callable[[str], Awaitable[bytes]]
) -> FlashFile:
    """Get and check the file. fetch: for urls. Raises OtaError."""
    if isinstance(place, Path):
        data = await asyncio.to_thread(_read, place)
    else:
        data = await fetch(place)
    return FlashFile(await asyncio.to_thread(check_merged, data), confirm, keep_nvs)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise OtaError("not-an-image", f"{path} has {size:,} bytes: no flash is that large.")
        return path.read_bytes()
    except OSError as error:
        raise OtaError(
            "not-an-image",
            f"{path} cannot be read: {error.strerror}.",
            remedy="Name a Merged Binary on the machine that the boards are attached to.",
        ) from None
