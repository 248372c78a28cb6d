# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads regions of a flash that are mostly blank without sending the blank part over the wire,
and remembers what was read.

Pages in use are read as far as they are used, pages that have the digest of a blank one not at
all. What was put together so is believed only when one digest of the whole region, computed by
the board, agrees; else the region is left for an ordinary read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ota_service.formats.flashops import SECTOR_BYTES

Peek = Callable[[int, int], bytes]
"""The bytes at (offset, size_bytes), not yet trusted."""
Md5 = Callable[[int, int], str]
"""The digest (hex) of (offset, size_bytes), computed by the board."""
Used = Callable[[bytes], int]
"""From a page's first bytes: how many of its bytes are expected to be in use."""


@dataclass(frozen=True, slots=True)
class Region:
    """A region to be read.

    page_bytes: it is looked at in pages of this size. head_bytes: what is read of each page
    first. used: how much of a page its head says is in use; None: all of it. mostly_blank:
    whether pages behind the first are probably blank, so that their digest is asked for first.
    """

    offset: int
    size_bytes: int
    page_bytes: int
    head_bytes: int
    used: Used | None = None
    mostly_blank: bool = False

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.offset + self.size_bytes


def whole(offset: int, size_bytes: int) -> Region:
    """A region that is in use from end to end."""
    return Region(offset, size_bytes, size_bytes, size_bytes)


def read_regions(regions: Iterable[Region], peek: Peek, md5: Md5) -> list[tuple[int, bytes]]:
    """(offset, bytes) of each region whose digest agrees.

    Regions that touch each other are proven by one digest.
    """
    found: list[tuple[int, bytes]] = []
    for group in _touching(regions):
        parts = [(region.offset, _assemble(region, peek, md5)) for region in group]
        start, data = parts[0][0], b"".join(part for _, part in parts)
        if md5(start, len(data)) == digest(data):
            found += parts
    return found


def _touching(regions: Iterable[Region]) -> list[list[Region]]:
    groups: list[list[Region]] = []
    for region in sorted(regions, key=lambda one: one.offset):
        if groups and groups[-1][-1].end == region.offset:
            groups[-1].append(region)
        else:
            groups.append([region])
    return groups


def _assemble(region: Region, peek: Peek, md5: Md5) -> bytes:
    count = -(-region.size_bytes // region.page_bytes)
    blank: set[int] = set()
    if region.mostly_blank and count > 1:
        blank = _blank_pages(region, range(1, count), md5)
    pages = []
    for index in range(count):
        at = region.offset + index * region.page_bytes
        size = min(region.page_bytes, region.end - at)
        pages.append(b"" if index in blank else _page(region, at, size, peek))
        pages[-1] = pages[-1].ljust(size, b"\xff")
    return b"".join(pages)


def _blank_pages(region: Region, pages: Sequence[int], md5: Md5) -> set[int]:
    """Those of `pages` that are blank, by the digests of halves, quarters and so on."""
    size = len(pages) * region.page_bytes
    if md5(region.offset + pages[0] * region.page_bytes, size) == blank_digest(size):
        return set(pages)
    if len(pages) == 1:
        return set()
    half = len(pages) // 2
    return _blank_pages(region, pages[:half], md5) | _blank_pages(region, pages[half:], md5)


def _page(region: Region, at: int, size: int, peek: Peek) -> bytes:
    head = peek(at, min(region.head_bytes, size))
    used = size if region.used is None else min(size, region.used(head))
    if used > len(head):
        head += peek(at + len(head), used - len(head))
    return head


def digest(data: bytes) -> str:
    """MD5 in hex, as the stub loader computes it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@lru_cache(256)
def blank_digest(size_bytes: int) -> str:
    """The MD5 of erased flash."""
    return digest(b"\xff" * size_bytes)


# --- where pages of known kinds end

_NVS_HEAD_BYTES, _NVS_ENTRY_BYTES, _NVS_ENTRIES = 64, 32, 126
_TABLE_ENTRY_BYTES, _TABLE_HEAD_BYTES, _TABLE_BYTES = 32, 0x100, 0xC00
_OTADATA_ENTRY_BYTES = 32
_EMPTY = b"\xff"


def nvs_region(offset: int, size_bytes: int) -> Region:
    """NVS: header and bitmap of each page that is in use, then its entries in use."""
    return Region(offset, size_bytes, SECTOR_BYTES, _NVS_HEAD_BYTES, _nvs_used, mostly_blank=True)


def _nvs_used(head: bytes) -> int:
    """By the bitmap behind the header: two bits for each entry, both set where it is empty."""
    bitmap = int.from_bytes(head[32:64].ljust(32, b"\xff"), "little")
    for entry in reversed(range(_NVS_ENTRIES)):
        if bitmap >> 2 * entry & 3 != 3:
            return _NVS_HEAD_BYTES + (entry + 1) * _NVS_ENTRY_BYTES
    return _NVS_HEAD_BYTES


def otadata_region(offset: int, size_bytes: int) -> Region:
    """otadata: the entry at the start of each of its sectors."""
    return Region(offset, size_bytes, SECTOR_BYTES, _OTADATA_ENTRY_BYTES, len)


def table_region(offset: int) -> Region:
    """The partition table's sector, read to the table's end."""
    return Region(offset, SECTOR_BYTES, SECTOR_BYTES, _TABLE_HEAD_BYTES, _table_used)


def _table_used(head: bytes) -> int:
    for at in range(0, len(head), _TABLE_ENTRY_BYTES):
        if head[at : at + _TABLE_ENTRY_BYTES] == _EMPTY * _TABLE_ENTRY_BYTES:
            return len(head)
    return _TABLE_BYTES


# --- what was read


class Seen:
    """Proven bytes by their place. While the stub loader runs, only we change the flash: what was
    read is read once, and what is changed is dropped."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytes]] = []

    def put(self, offset: int, data: bytes) -> None:
        """Remember bytes; they replace what was known of their place."""
        self.drop(offset, len(data))
        self._parts.append((offset, data))

    def get(self, offset: int, size_bytes: int) -> bytes | None:
        """The bytes, where all of them are known."""
        found = bytearray()
        at = offset
        while at < offset + size_bytes:
            part = next((p for p in self._parts if p[0] <= at < p[0] + len(p[1])), None)
            if part is None:
                return None
            found += part[1][at - part[0] : offset + size_bytes - part[0]]
            at = offset + len(found)
        return bytes(found)

    def drop(self, offset: int, size_bytes: int) -> None:
        """Forget what was known of a place."""
        end = offset + size_bytes
        kept: list[tuple[int, bytes]] = []
        for start, data in self._parts:
            if start < offset:
                kept.append((start, data[: offset - start]))
            if start + len(data) > end:
                kept.append((max(start, end), data[max(0, end - start) :]))
        self._parts = [part for part in kept if part[1]]

    def clear(self) -> None:
        """Forget everything."""
        self._parts.clear()
