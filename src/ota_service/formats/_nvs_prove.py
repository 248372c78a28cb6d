# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a change of NVS survives each cut: every version's start is tried on what is left.

Source of what the versions do: ESP-IDF v4.3 to v6.0, `nvs_page.cpp`, `nvs_pagemanager.cpp`,
`nvs_storage.cpp`; a second start follows the first one, because what one start leaves (a page that
was full and is now written to) the next one looks at with other rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ota_service.errors import OtaError
from ota_service.formats._nvs_page import (
    NAMESPACES,
    PAGE_BYTES,
    TYPE_STRING,
    Contents,
    Loader,
    Page,
    PageState,
)
from ota_service.formats._nvs_read import start
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


class _Start(NamedTuple):
    """One start: what is read of all but the changed key, that key's string, whether the entries
    that are written next are blank, the bytes of each page afterwards, and `Nvs.blobs_fit`."""

    others: Contents
    string: bytes | None
    tail_is_blank: bool
    flash: list[bytes]
    blobs_fit: bool


Pages = tuple[Page, ...]


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
        self._free: dict[int, Page] = {}
        self._starts: dict[tuple[Pages, bool], _Start] = {}
        self._before = [
            before[place : place + PAGE_BYTES] for place in range(0, len(before), PAGE_BYTES)
        ]
        self._want = {version: self._start_twice(self._before, version) for version in VERSIONS}

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
            found = self._start_twice(pages, version)
            if found is None or want[0].tail_is_blank > found[0].tail_is_blank:
                return False
            strings = {value} if ended else {value, *(one.string for one in want)}
            for one in found:
                if one.string not in strings:
                    return False
                if one.others != want[0].others and not _same(one, want):
                    return False
        return True

    def _start_twice(self, raws: list[bytes], version: Version) -> tuple[_Start, _Start] | None:
        """What this version makes of it and reads; None where it does not start."""
        try:
            first = self._start(raws, version)
            return first, first if first.flash == raws else self._start(first.flash, version)
        except OtaError:
            return None

    def _start(self, raws: list[bytes], version: Version) -> _Start:
        pages = tuple(self._page(raw, i, version) for i, raw in enumerate(raws))
        if version.stops and any(page.stops for page in pages):
            raise OtaError("nvs-invalid")
        known = self._starts.get((pages, version.drops))
        if known is None and version.drops:
            kept = self._start(raws, version._replace(drops=False))
            known = kept if kept.blobs_fit else None
        if known is not None:
            return known
        nvs = start(pages, drops=version.drops)
        if not nvs.free_pages:
            raise OtaError("nvs-invalid")
        contents, last = nvs.contents(), nvs.last
        string = contents.get((*self._key, TYPE_STRING))
        for kind in range(0x100):
            for mine in self._mine:
                contents.pop((*mine, kind), None)
        blank = last is None or last.state is not PageState.ACTIVE or last.tail_is_blank
        result = _Start(contents, string, blank, nvs.flash(), nvs.blobs_fit)
        self._starts[pages, version.drops] = result
        return result

    def _page(self, raw: bytes, index: int, version: Version) -> Page:
        """A page; all free ones in one place are the same, whatever is left in them."""
        page = self._load(raw, index, any_chunk=version.any_chunk)
        if page.live:
            return page
        return self._free.setdefault(index, Page(index, b"\xff" * PAGE_BYTES, PageState.BLANK))


def _same(found: _Start, want: tuple[_Start, _Start]) -> bool:
    """Whether each key reads as after the first or the second start without the change."""
    first, second = want[0].others, want[1].others
    return all(
        found.others.get(place) in (first.get(place), second.get(place))
        for place in {*found.others, *first, *second}
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
