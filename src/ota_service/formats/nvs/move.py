# SPDX-License-Identifier: GPL-3.0-or-later
"""All keys of an NVS partition into one of another size.

Items do not depend on their place, so they are carried over as they are, bit by bit; only the
pages around them are made anew. Source of what a reader relies on: `page.py`.
"""

from __future__ import annotations

from ota_service.errors import OtaError
from ota_service.formats.nvs.page import (
    ENTRY_COUNT,
    PAGE_BYTES,
    TYPE_BLOB_DATA,
    VERSION_2,
    Item,
    PageState,
    page_bytes,
)
from ota_service.formats.nvs.read import MIN_PAGES, Nvs, parse_nvs


def move_nvs(data: bytes, size_bytes: int) -> bytes:
    """The contents of the NVS partition in `data` as a partition of `size_bytes`.

    Into the same or a larger size the pages are taken over as they are. Into a smaller one the
    items are packed anew; what the firmware would erase at its next start is left out.
    Raises OtaError: what `parse_nvs` raises, and "nvs-full" where they do not fit.
    """
    if size_bytes % PAGE_BYTES or size_bytes < MIN_PAGES * PAGE_BYTES:
        raise OtaError("nvs-invalid", f"An NVS partition cannot have {size_bytes:#x} bytes.")
    nvs = parse_nvs(data)
    if size_bytes >= len(data):
        return data + b"\xff" * (size_bytes - len(data))
    packed = _pack(_items(nvs), size_bytes // PAGE_BYTES)
    if parse_nvs(packed).contents() != nvs.contents():
        raise OtaError("nvs-invalid", "The board's NVS cannot be carried over without a loss.")
    return packed


def _items(nvs: Nvs) -> list[Item]:
    """What the firmware can find, in its order."""
    first: dict[tuple[int, bytes, int, int], Item] = {}
    for _, item in nvs.items():
        first.setdefault((item.namespace, item.key, item.type, item.chunk), item)
    return list(first.values())


def _pack(items: list[Item], pages: int) -> bytes:
    """Each item into the first page with room; one page stays free, as the firmware needs it."""
    filled: list[list[Item]] = []
    used: list[int] = []
    for item in items:
        fitting = (i for i, count in enumerate(used) if count + item.span <= ENTRY_COUNT)
        index = next(fitting, len(filled))
        if index == len(filled):
            filled.append([])
            used.append(0)
        filled[index].append(item)
        used[index] += item.span
    if len(filled) > pages - 1:
        raise OtaError(
            "nvs-full",
            f"The board's keys need {len(filled) + 1} pages of NVS, the new partition has {pages}.",
            remedy="Use a partition table with a larger nvs partition.",
        )
    result = bytearray(b"\xff" * pages * PAGE_BYTES)
    for index, contents in enumerate(filled):
        # The firmware would look for an earlier part of its blob if the last page were active.
        ends_in_part = contents[-1].type == TYPE_BLOB_DATA
        last = index == len(filled) - 1 and not ends_in_part
        state = PageState.ACTIVE if last else PageState.FULL
        start = index * PAGE_BYTES
        result[start : start + PAGE_BYTES] = page_bytes(contents, state, index, VERSION_2)
    return bytes(result)
