# SPDX-License-Identifier: GPL-3.0-or-later
"""One page of NVS as the firmware sees it after loading it: its items, and what it would repair.

Format: ESP-IDF, "Non-volatile Storage Library" (API reference), `nvs_page.hpp`, `nvs_types.hpp`;
what loading does: `Page::load` and `Page::mLoadEntryTable` in `nvs_page.cpp` (v5.x; older
versions differ only in not looking at torn items of full pages).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from ota_service.errors import OtaError

PAGE_BYTES = 0x1000
ENTRY_BYTES = 32
ENTRY_COUNT = 126
BITMAP_AT, ENTRIES_AT = 32, 64
VERSION_2 = 0xFE
"""The page version of today; 0xFF is the first one, lower ones are from the future."""

TYPE_STRING, TYPE_BLOB, TYPE_BLOB_DATA, TYPE_BLOB_INDEX, TYPE_U8 = 0x21, 0x41, 0x42, 0x48, 0x01
VARIABLE = (TYPE_STRING, TYPE_BLOB, TYPE_BLOB_DATA)
CHUNK_ANY = 0xFF
NAMESPACES = 0
"""The namespace index of the entries that name the namespaces."""


class PageState(Enum):
    """What a page is to the firmware. BLANK and CORRUPT pages are free."""

    BLANK = "blank"
    ACTIVE = "active"
    FULL = "full"
    FREEING = "freeing"
    CORRUPT = "corrupt"


STATE_WORDS = {
    PageState.ACTIVE: 0xFFFFFFFE,
    PageState.FULL: 0xFFFFFFFC,
    PageState.FREEING: 0xFFFFFFF8,
    PageState.CORRUPT: 0xFFFFFFF0,
}
_STATES = {word: state for state, word in STATE_WORDS.items()}


class EntryState(IntEnum):
    """The two bits of an entry in the page's bitmap. ILLEGAL is never written on purpose."""

    ERASED = 0
    ILLEGAL = 1
    WRITTEN = 2
    EMPTY = 3


def crc32(data: bytes) -> int:
    """The CRC of page headers, items and payloads (esp_rom_crc32_le from 0xFFFFFFFF)."""
    return zlib.crc32(data, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Item:
    """One item: a primitive, a string, a blob, a part or the index of one, or a namespace's name.

    index: of its first entry in its page. raw: its entries' bytes, 32 * span.
    """

    index: int
    namespace: int
    type: int
    span: int
    chunk: int
    raw_key: bytes
    raw: bytes

    @property
    def key(self) -> bytes:
        """The key up to its NUL."""
        return self.raw_key.split(b"\0", 1)[0]

    @property
    def hash(self) -> tuple[int, bytes, int]:
        """What the firmware's lookup goes by: the type is not part of it."""
        return (self.namespace, self.raw_key, self.chunk)

    @property
    def value(self) -> bytes:
        """The payload of an item of variable length (a string's with its NUL), else 8 bytes."""
        if self.type in VARIABLE:
            return self.raw[32 : 32 + int.from_bytes(self.raw[24:26], "little")]
        return self.raw[24:32]

    @property
    def value_ok(self) -> bool:
        """Whether the payload has its CRC; the firmware erases an item whose payload has not."""
        if self.type in VARIABLE:
            return crc32(self.value) == int.from_bytes(self.raw[28:32], "little")
        return True


@dataclass(slots=True)
class Page:
    """One page. index: its physical place in the partition.

    states: of the entries, as loading leaves them. on_flash: as they stand on flash.
    next_free: the entry that the firmware would write next (126: none); only active pages have
    one.
    """

    index: int
    raw: bytes
    state: PageState
    seq: int = 0
    version: int = VERSION_2
    on_flash: list[EntryState] = field(default_factory=list)
    states: list[EntryState] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    next_free: int = ENTRY_COUNT

    @property
    def live(self) -> bool:
        """Whether it holds items."""
        return self.state in (PageState.ACTIVE, PageState.FULL, PageState.FREEING)

    @property
    def used(self) -> int:
        """Entries of its items."""
        return sum(item.span for item in self.items)

    def entry(self, index: int) -> bytes:
        """The 32 bytes of an entry."""
        start = ENTRIES_AT + index * ENTRY_BYTES
        return self.raw[start : start + ENTRY_BYTES]

    def erase(self, item: Item) -> None:
        """Take `item` and the states of its entries away, as the firmware does in memory."""
        for index in range(item.index, item.index + item.span):
            self.states[index] = EntryState.ERASED
        self.items = [other for other in self.items if other.index != item.index]
        if self.state is PageState.ACTIVE:
            self.next_free = max(self.next_free, item.index + item.span)


_STATES_OF = [[EntryState(byte >> shift & 3) for shift in (0, 2, 4, 6)] for byte in range(256)]


def entry_states(bitmap: bytes) -> list[EntryState]:
    """The states of the 126 entries."""
    return [state for byte in bitmap for state in _STATES_OF[byte]][:ENTRY_COUNT]


def header_bytes(state: PageState, seq: int, version: int) -> bytes:
    """A page's header, 32 bytes."""
    body = struct.pack("<IB19s", seq, version, b"\xff" * 19)
    return struct.pack("<I24sI", STATE_WORDS[state], body, crc32(body))


def load_page(raw: bytes, index: int) -> Page:
    """The page as loading it leaves it.

    Raises `OtaError` "nvs-invalid" for a page of a later format, and for items whose header has
    the right CRC and yet makes no sense: versions of the firmware differ in what they do then.
    """
    word, seq = struct.unpack_from("<II", raw)
    state = _STATES.get(word, PageState.CORRUPT)
    if word == 0xFFFFFFFF:
        blank = not raw.strip(b"\xff")
        return Page(index, raw, PageState.BLANK if blank else PageState.CORRUPT)
    if crc32(raw[4:28]) != int.from_bytes(raw[28:32], "little"):
        return Page(index, raw, PageState.CORRUPT)
    version = raw[8]
    if version < VERSION_2:
        raise OtaError(
            "nvs-invalid", f"Page {index} of NVS has the unknown format version {version:#x}."
        )
    on_flash = entry_states(raw[BITMAP_AT:ENTRIES_AT])
    page = Page(index, raw, state, seq, version, on_flash, list(on_flash))
    if state is PageState.ACTIVE:
        _load_active(page)
    elif page.live:
        _load_full(page)
    return page


def _item(page: Page, index: int) -> Item | None:
    """The item whose header is entry `index`; None where its CRC is wrong."""
    raw = page.entry(index)
    namespace, kind, span, chunk, crc = struct.unpack_from("<BBBBI", raw)
    if crc32(raw[:4] + raw[8:]) != crc:
        return None
    where = f"Page {page.index} of NVS has at entry {index} an item"
    if kind in VARIABLE:
        size = int.from_bytes(raw[24:26], "little")
        if span != 1 + -(-size // ENTRY_BYTES) or index + span > ENTRY_COUNT:
            raise OtaError("nvs-invalid", f"{where} of {size} bytes in {span} entries.")
        if kind == TYPE_BLOB_DATA and chunk == CHUNK_ANY:
            raise OtaError("nvs-invalid", f"{where} that is a part of a blob without a number.")
    elif span != 1:
        raise OtaError("nvs-invalid", f"{where} of type {kind:#x} in {span} entries.")
    start = ENTRIES_AT + index * ENTRY_BYTES
    whole = page.raw[start : start + span * ENTRY_BYTES]
    return Item(index, namespace, kind, span, chunk, raw[8:24], whole)


def _load_active(page: Page) -> None:
    states = page.states
    free = next((i for i in range(ENTRY_COUNT) if states[i] is EntryState.EMPTY), ENTRY_COUNT)
    # Bytes without their bit in the bitmap: a write was cut. Only the first word is looked at.
    while free < ENTRY_COUNT and page.entry(free)[:4] != b"\xff" * 4:
        states[free] = EntryState.ERASED
        free += 1
    page.next_free = free
    index, end = 0, free
    while index < end:
        state = states[index]
        item = _item(page, index) if state is EntryState.WRITTEN else None
        if item is None:
            states[index] = EntryState.ERASED
            index += 1
            continue
        span = range(index, index + item.span)
        page.items.append(item)
        if any(states[i] is not EntryState.WRITTEN for i in span):
            page.erase(item)
        else:
            twin = next((old for old in page.items if old.hash == item.hash), item)
            if twin.index < index:
                page.erase(twin)
        index += item.span


def _load_full(page: Page) -> None:
    index = 0
    while index < ENTRY_COUNT:
        if page.states[index] is not EntryState.WRITTEN:
            index += 1
            continue
        item = _item(page, index)
        if item is None:
            page.states[index] = EntryState.ERASED
            index += 1
            continue
        page.items.append(item)
        if any(page.states[i] is not EntryState.WRITTEN for i in range(index, index + item.span)):
            page.erase(item)
        index += item.span
