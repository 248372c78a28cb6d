# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a change of NVS survives each cut: every version's start is tried on what is left.

Source of what the versions do: ESP-IDF v4.3 to v6.0, `nvs_page.cpp`, `nvs_pagemanager.cpp`,
`nvs_storage.cpp`; a second start follows the first one, because what one start leaves (a page that
was full and is now written to) the next one looks at with other rules.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ota_service.errors import OtaError
from ota_service.formats.flashops import FlashOp, apply_ops
from ota_service.formats.nvs.page import (
    NAMESPACES,
    PAGE_BYTES,
    TYPE_STRING,
    Contents,
    Loader,
    Page,
    PageState,
)
from ota_service.formats.nvs.read import start

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


class _Start(NamedTuple):
    """One start: what is read of all but the changed key, that key's string, whether the entries
    that are written next are blank, the pages afterwards, `Nvs.blobs_fit`, and whether a page
    stops the oldest firmware (`Page.stops`)."""

    others: Contents
    string: bytes | None
    tail_is_blank: bool
    after: tuple[Page, ...]
    blobs_fit: bool
    stops: bool


Pages = tuple[Page, ...]
Starts = tuple[_Start, _Start]


class NvsProof:
    """Proves changes of one key of the partition `before`, which starts at `base`.

    key: namespace's index and key. namespace: its name, whose entry the change may add.
    """

    def __init__(
        self, before: bytes, base: int, key: tuple[int, bytes], namespace: str, load: Loader
    ) -> None:
        self._load = load
        self._base = base
        self._key = key
        self._mine = {key, (NAMESPACES, namespace.encode())}
        self._alike: dict[Hashable, Page] = {}
        self._starts: dict[tuple[Pages, bool], _Start | None] = {}
        self._twice: dict[tuple[Pages, bool, bool], Starts | None] = {}
        self._before = [
            before[place : place + PAGE_BYTES] for place in range(0, len(before), PAGE_BYTES)
        ]
        self._pages = {
            any_chunk: [self._page(raw, i, any_chunk) for i, raw in enumerate(self._before)]
            for any_chunk in (False, True)
        }
        first = {any_chunk: tuple(pages) for any_chunk, pages in self._pages.items()}
        # A version that did not start before the change either is not asked.
        self._want = {
            version: want for version in VERSIONS if (want := self._start_twice(first, version))
        }
        self._read: dict[tuple[int, bytes, int], set[bytes]] = {}
        for one in (one for want in self._want.values() for one in want):
            for place, value in one.others.items():
                self._read.setdefault(place, set()).add(value)

    def holds(self, ops: Iterable[FlashOp], value: bytes | None) -> bool:
        """Whether `value`, a string with its NUL, or the old one is read after every cut of `ops`,
        and every other key; and `value` in the end. None: no string."""
        raws = list(self._before)
        pages = {any_chunk: list(loaded) for any_chunk, loaded in self._pages.items()}
        try:
            for op in ops:
                index, offset = divmod(op.offset - self._base, PAGE_BYTES)
                flash = bytearray(raws[index])
                apply_ops(flash, [op], op.offset - offset)
                tried: set[tuple[Page, ...]] = set()
                for state in (*_torn(raws[index], bytes(flash)), bytes(flash)):
                    forms = tuple(self._page(state, index, any_chunk) for any_chunk in pages)
                    for loaded, form in zip(pages.values(), forms, strict=True):
                        loaded[index] = form
                    if forms not in tried and not self._survives(pages, value, ended=False):
                        return False
                    tried.add(forms)
                raws[index] = bytes(flash)
        except OtaError:
            return False
        return self._survives(pages, value, ended=True)

    def _survives(
        self, loaded: Mapping[bool, Sequence[Page]], value: bytes | None, *, ended: bool
    ) -> bool:
        pages = {any_chunk: tuple(some) for any_chunk, some in loaded.items()}
        for version, want in self._want.items():
            found = self._start_twice(pages, version)
            if found is None or want[0].tail_is_blank > found[0].tail_is_blank:
                return False
            strings = {value} if ended else {value, *(one.string for one in want)}
            for one in found if found[0] is not found[1] else found[:1]:
                if one.string not in strings:
                    return False
                if one.others != want[0].others and not self._same(one, want):
                    return False
        return True

    def _same(self, found: _Start, want: Starts) -> bool:
        """Whether each key reads as after the first or the second start without the change.

        One that this version had lost by itself then may still be there, as others read it.
        """
        first, second = want[0].others, want[1].others
        for place in {*found.others, *first, *second}:
            value, right = found.others.get(place), {first.get(place), second.get(place)}
            if value not in right and (right != {None} or value not in self._read.get(place, ())):
                return False
        return True

    def _start_twice(self, pages: Mapping[bool, Pages], version: Version) -> Starts | None:
        """What this version makes of it and reads; None where it does not start."""
        key = (pages[version.any_chunk], version.any_chunk, version.drops)
        if key not in self._twice:
            self._twice[key] = self._two_starts(*key)
        found = self._twice[key]
        if found is None or (version.stops and (found[0].stops or found[1].stops)):
            return None
        return found

    def _two_starts(self, pages: Pages, any_chunk: bool, drops: bool) -> Starts | None:
        first = self._start(pages, drops)
        if first is None:
            return None
        after: list[Page] = []
        for page, left in zip(pages, first.after, strict=True):
            same = left is page and left.flashed == left.raw
            after.append(page if same else self._page(left.flashed, left.index, any_chunk))
        second = self._start(tuple(after), drops)
        return None if second is None else (first, second)

    def _start(self, pages: Pages, drops: bool) -> _Start | None:
        key = (pages, drops)
        if key not in self._starts:
            kept = self._start(pages, False) if drops else None
            # Versions differ where a blob's index does not fit its parts, and nowhere else.
            fits = kept is not None and kept.blobs_fit
            self._starts[key] = kept if fits else self._start_once(pages, drops)
        return self._starts[key]

    def _start_once(self, pages: Pages, drops: bool) -> _Start | None:
        try:
            nvs = start(pages, drops=drops)
        except OtaError:
            return None
        if not nvs.free_pages:
            return None
        contents, last = nvs.contents(), nvs.last
        string = contents.get((*self._key, TYPE_STRING))
        others = {place: value for place, value in contents.items() if place[:2] not in self._mine}
        blank = last is None or last.state is not PageState.ACTIVE or last.tail_is_blank
        stops = any(page.stops for page in pages)
        return _Start(others, string, blank, tuple(nvs.pages), nvs.blobs_fit, stops)

    def _page(self, raw: bytes, index: int, any_chunk: bool) -> Page:
        """A page; those that no start tells apart are the same: of the free ones all in one place,
        of the others those that differ in what is erased."""
        page = self._load(raw, index, any_chunk=any_chunk)
        if not page.live:
            free = self._alike.get(index) or Page(index, b"\xff" * PAGE_BYTES, PageState.BLANK)
            return self._alike.setdefault(index, free)
        return self._alike.setdefault(page.kept, page)


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
