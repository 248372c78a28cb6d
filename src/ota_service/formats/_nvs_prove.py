# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a change of NVS survives each cut: every version's start is tried on what is left.

Source of what the versions do: ESP-IDF v4.3 to v6.0, `nvs_page.cpp`, `nvs_pagemanager.cpp`,
`nvs_storage.cpp`; a second start follows the first one, because what one start leaves (a page that
was full and is now written to) the next one looks at with other rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ota_service.errors import OtaError
from ota_service.formats._nvs_page import (
    NAMESPACES,
    PAGE_BYTES,
    TYPE_STRING,
    Page,
    PageState,
    load_page,
)
from ota_service.formats._nvs_read import Contents, start
from ota_service.formats.flashops import FlashOp, apply_ops

FEW_BITS = 4
"""Up to so many bits of one operation are torn in every way; of more, those that decide."""


class Version(NamedTuple):
    """What differs between versions of the firmware; see `load_page` and `start`.

    stops: an entry with an illegal state makes it restart for ever.
    """

    any_chunk: bool
    drops: bool
    stops: bool = False


VERSIONS = (
    Version(any_chunk=False, drops=False, stops=True),
    Version(any_chunk=False, drops=False),
    Version(any_chunk=True, drops=False),
    Version(any_chunk=True, drops=True),
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is read after each of two starts: all but the changed key, and that key's string."""

    others: tuple[Contents, Contents]
    strings: tuple[bytes | None, bytes | None]
    tail_is_blank: bool


Pages = tuple[Page, ...]


class NvsProof:
    """Proves changes of one key of the partition `before`, which starts at `base`.

    key: namespace's index and key. namespace: its name, whose entry the change may add.
    """

    def __init__(self, before: bytes, base: int, key: tuple[int, bytes], namespace: str) -> None:
        self._base = base
        self._key = key
        self._mine = {key, (NAMESPACES, namespace.encode())}
        self._loaded: dict[tuple[bool, int, bytes], Page] = {}
        self._seen: dict[tuple[Pages, Version], _Seen | None] = {}
        self._before = [
            before[place : place + PAGE_BYTES] for place in range(0, len(before), PAGE_BYTES)
        ]
        self._want = {version: self._see(self._before, version) for version in VERSIONS}
        self._known_good: set[tuple[Pages, Pages]] = set()

    def holds(self, ops: Iterable[FlashOp], value: bytes | None) -> bool:
        """Whether `value`, a string with its NUL, or the old one is read after every cut of `ops`,
        and every other key; and `value` in the end. None: no string."""
        pages = list(self._before)
        for op in ops:
            index, offset = divmod(op.offset - self._base, PAGE_BYTES)
            before = pages[index]
            flash = bytearray(before)
            apply_ops(flash, [op], op.offset - offset)
            for state in (*_torn(before, bytes(flash)), bytes(flash)):
                pages[index] = state
                if not self._survives(pages, value, ended=False):
                    return False
        return self._survives(pages, value, ended=True)

    def _survives(self, pages: list[bytes], value: bytes | None, *, ended: bool) -> bool:
        for version, want in self._want.items():
            if want is None:
                continue  # this version did not start before the change either
            seen = self._see(pages, version)
            if seen is None or want.tail_is_blank > seen.tail_is_blank:
                return False
            if not set(seen.strings) <= ({value} if ended else {value, *want.strings}):
                return False
            for others in seen.others:
                if others != want.others[0] and not _same(others, want.others):
                    return False
        return True

    def _see(self, raws: list[bytes], version: Version) -> _Seen | None:
        """What this version reads; None where it does not start."""
        try:
            pages = tuple(self._load(raw, i, version) for i, raw in enumerate(raws))
            if (pages, version) not in self._seen:
                self._seen[pages, version] = self._start_twice(pages, version)
            return self._seen[pages, version]
        except OtaError:
            return None

    def _load(self, raw: bytes, index: int, version: Version) -> Page:
        place = (version.any_chunk, index, raw)
        page = self._loaded.get(place)
        if page is None:
            page = load_page(raw, index, any_chunk=version.any_chunk)
            if not page.live:
                page = Page(index, b"\xff" * PAGE_BYTES, PageState.BLANK)
                page = self._loaded.setdefault((version.any_chunk, index, page.raw), page)
            elif version.any_chunk:
                # The same object wherever there is no difference: then it is looked at once.
                other = self._load(raw, index, version._replace(any_chunk=False))
                page = other if other.states == page.states else page
            self._loaded[place] = page
        return page

    def _start_twice(self, pages: Pages, version: Version) -> _Seen | None:
        if version.stops and any(page.stops for page in pages):
            return None
        first = start(pages, drops=version.drops)
        if not first.free_pages:
            return None
        tail = first.last is None or first.last.state is not PageState.ACTIVE
        tail_is_blank = tail or (first.last is not None and first.last.tail_is_blank)
        raws = first.flash()
        mine, others = self._split(first.contents())
        if all(page.raw == raw for page, raw in zip(pages, raws, strict=True)):
            return _Seen((others, others), (mine, mine), tail_is_blank)
        again = tuple(self._load(raw, i, version) for i, raw in enumerate(raws))
        if version.stops and any(page.stops for page in again):
            return None
        mine_2, others_2 = self._split(start(again, drops=version.drops).contents())
        return _Seen((others, others_2), (mine, mine_2), tail_is_blank)

    def _split(self, contents: Contents) -> tuple[bytes | None, Contents]:
        others = {place: value for place, value in contents.items() if place[:2] not in self._mine}
        return contents.get((*self._key, TYPE_STRING)), others


def _same(found: Contents, want: tuple[Contents, Contents]) -> bool:
    """Whether each key reads as after the first or the second start without the change."""
    return all(
        found.get(place) in (want[0].get(place), want[1].get(place))
        for place in {*found, *want[0], *want[1]}
    )


def _torn(before: bytes, after: bytes) -> Iterator[bytes]:
    """Forms of a page in which an operation was cut: bits that it changes, not all of them."""
    old, new = int.from_bytes(before, "little"), int.from_bytes(after, "little")
    changed = old ^ new
    count = changed.bit_count()
    if count <= FEW_BITS:
        bits: list[int] = []
        left = changed
        while left:
            bits.append(left & -left)
            left &= left - 1
        masks = [
            sum(bit for i, bit in enumerate(bits) if choice >> i & 1)
            for choice in range(1, (1 << count) - 1)
        ]
    else:
        low, high = changed & -changed, 1 << changed.bit_length() - 1
        middle = (low.bit_length() + high.bit_length()) // 2
        half = changed & ((1 << middle) - 1)
        masks = [low, high, changed ^ low, changed ^ high, half, changed ^ half]
    for mask in masks:
        yield (old ^ mask).to_bytes(PAGE_BYTES, "little")
