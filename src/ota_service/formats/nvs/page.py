# SPDX-License-Identifier: GPL-3.0-or-later
"""One page of NVS as the firmware sees it after loading it: its items, and what it would repair.

Format: ESP-IDF, "Non-volatile Storage Library" (API reference), `nvs_page.hpp`, `nvs_types.hpp`;
what loading does: `Page::load`, `Page::mLoadEntryTable` and `Page::findItem` in `nvs_page.cpp`,
v4.3 to v6.0. A page is a value: what loading or a later step erases makes another one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from functools import cached_property, lru_cache

from ota_service.errors import OtaError

PAGE_BYTES = 0x1000
ENTRY_BYTES = 32
ENTRY_COUNT = 126
BITMAP_AT, ENTRIES_AT = 32, 64
VERSION_2 = 0xFE
"""The page version of today; 0xFF is the first one, lower ones are from the future."""

TYPE_STRING, TYPE_BLOB, TYPE_BLOB_DATA, TYPE_BLOB_INDEX, TYPE_U8 = 0x21, 0x41, 0x42, 0x48, 0x01
VARIABLE = (TYPE_STRING, TYPE_BLOB, TYPE_BLOB_DATA)
CHUNK_ANY = TYPE_ANY = NAMESPACE_ANY = 0xFF
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


Hash = tuple[int, bytes, int]
Contents = dict[tuple[int, bytes, int], bytes]
"""(namespace index, key, type) -> value."""


@lru_cache(maxsize=1 << 14)
def has_crc(entry: bytes) -> bool:
    """Whether an entry has the CRC of an item's header."""
    return crc32(entry[:4] + entry[8:]) == int.from_bytes(entry[4:8], "little")


@lru_cache(maxsize=1 << 14)
def _hash_24(entry: bytes) -> int:
    return crc32(entry[:1] + entry[8:24] + entry[3:4]) & 0xFFFFFF


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
    def hash(self) -> Hash:
        """What the firmware's lookup goes by: the type is not part of it."""
        return (self.namespace, self.raw_key, self.chunk)

    @property
    def end(self) -> int:
        """The entry behind it."""
        return self.index + self.span

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


@dataclass(frozen=True, eq=False)
class Page:
    """One page. index: its physical place in the partition.

    states: of the entries, as loading leaves them. items: what can be found in it. next_free:
    the entry that the firmware would write next (126: none); only active pages have one.
    stops: loading meets an entry over which firmware before v5 stops for ever. last_type: of the
    last item, whose twin loading looks for.
    """

    index: int
    raw: bytes
    state: PageState
    seq: int = 0
    version: int = VERSION_2
    states: tuple[int, ...] = ()
    items: tuple[Item, ...] = ()
    next_free: int = ENTRY_COUNT
    stops: bool = False
    last_type: int | None = None

    @property
    def live(self) -> bool:
        """Whether it holds items."""
        return self.state in (PageState.ACTIVE, PageState.FULL, PageState.FREEING)

    @property
    def used(self) -> int:
        """Entries of its items."""
        return sum(item.span for item in self.items)

    @cached_property
    def on_flash(self) -> tuple[int, ...]:
        """The states of the entries as they stand on flash."""
        return entry_states(self.raw[BITMAP_AT:ENTRIES_AT])

    @cached_property
    def firsts(self) -> dict[Hash, Item]:
        """What a lookup in this page finds: the first item of each hash, whatever its type."""
        found: dict[Hash, Item] = {}
        for item in self.items:
            found.setdefault(item.hash, item)
        return found

    @cached_property
    def plain(self) -> Contents:
        """What is read from it of all but blobs in parts."""
        return {
            (item.namespace, item.key, item.type): item.value
            for item in self.firsts.values()
            if item.type not in (TYPE_BLOB_DATA, TYPE_BLOB_INDEX) and item.value_ok
        }

    @cached_property
    def parts(self) -> tuple[tuple[Hash, Item], ...]:
        """Its parts of blobs, by their hashes."""
        return tuple((item.hash, item) for item in self.items if item.type == TYPE_BLOB_DATA)

    @cached_property
    def payloads(self) -> dict[Hash, bytes]:
        """The bytes of those that a lookup finds; none where their CRC is wrong."""
        return {
            name: part.value if part.value_ok else b""
            for name, part in self.parts
            if self.finds(part)
        }

    @cached_property
    def indexes(self) -> tuple[Item, ...]:
        """Its indexes of blobs."""
        return tuple(item for item in self.items if item.type == TYPE_BLOB_INDEX)

    @cached_property
    def blobs(self) -> tuple[tuple[Item, int, tuple[Hash, ...]], ...]:
        """Those of them that a lookup finds, with the blob's size and the hashes of its parts."""
        return tuple(
            (index, size, tuple((*index.hash[:2], chunk) for chunk in chunks))
            for index in self.indexes
            if self.finds(index)
            for size, chunks in [blob_of(index)]
        )

    @cached_property
    def tail_is_blank(self) -> bool:
        """Whether all entries from the next free one on are empty and blank."""
        empty = set(self.states[self.next_free :]) <= {EntryState.EMPTY}
        left = self.entry(self.next_free, ENTRY_COUNT - self.next_free)
        return empty and not left.strip(b"\xff")

    @cached_property
    def flashed(self) -> bytes:
        """Its bytes after what loading erased has been marked so on flash."""
        if self.states == self.on_flash or not self.live:
            return self.raw
        table = bytearray(self.raw[BITMAP_AT:ENTRIES_AT])
        for index, state in enumerate(self.states):
            shift = index % 4 * 2
            table[index // 4] = table[index // 4] & ~(3 << shift) & 0xFF | state << shift
        return self.raw[:BITMAP_AT] + bytes(table) + self.raw[ENTRIES_AT:]

    @cached_property
    def kept(self) -> tuple[object, ...]:
        """All of it that any later start can tell: everything but the bytes of erased entries."""
        known = (self.index, self.state, self.seq, self.version, self.next_free, self.stops)
        return (*known, self.states, int.from_bytes(self.raw, "little") & _bits_kept(self.states))

    def finds(self, item: Item) -> bool:
        """Whether `item` is what a lookup of its key finds here."""
        return self.firsts[item.hash] is item

    def entry(self, index: int, span: int = 1) -> bytes:
        """The 32 bytes of an entry, or of so many."""
        start = ENTRIES_AT + index * ENTRY_BYTES
        return self.raw[start : start + span * ENTRY_BYTES]

    def is_blank(self, index: int) -> bool:
        """Whether an entry is empty, and not a bit of it has been written."""
        return self.states[index] == EntryState.EMPTY and not self.entry(index).strip(b"\xff")

    def without(self, gone: Iterable[Item]) -> Page:
        """The page after the firmware has erased items of it."""
        states, indexes, free = list(self.states), set(), self.next_free
        for item in gone:
            states[item.index : item.end] = [EntryState.ERASED] * item.span
            indexes.add(item.index)
            free = max(free, item.end)
        left = tuple(item for item in self.items if item.index not in indexes)
        return replace(self, states=tuple(states), items=left, next_free=free)


def blob_of(index: Item) -> tuple[int, range]:
    """The size of a blob and the numbers of its parts, by its index."""
    count, start = index.raw[28], index.raw[29]
    return int.from_bytes(index.raw[24:28], "little"), range(start, start + count)


@lru_cache(maxsize=1 << 10)
def _bits_kept(states: tuple[int, ...]) -> int:
    """The bits of a page that belong to entries that are not erased."""
    bits = b"".join((b"\0" if s == EntryState.ERASED else b"\xff") * ENTRY_BYTES for s in states)
    return int.from_bytes(bits, "little") << ENTRIES_AT * 8


_STATES_OF = [tuple(byte >> shift & 3 for shift in (0, 2, 4, 6)) for byte in range(256)]


def entry_states(bitmap: bytes) -> tuple[int, ...]:
    """The states of the 126 entries, values of `EntryState`."""
    return tuple([state for byte in bitmap for state in _STATES_OF[byte]][:ENTRY_COUNT])


def header_bytes(state: PageState, seq: int, version: int) -> bytes:
    """A page's header, 32 bytes."""
    body = struct.pack("<IB19s", seq, version, b"\xff" * 19)
    return struct.pack("<I24sI", STATE_WORDS[state], body, crc32(body))


def written_bitmap(count: int) -> bytearray:
    """The bitmap of a page whose first `count` entries are WRITTEN, and no other."""
    bitmap = bytearray(b"\xff" * (ENTRIES_AT - BITMAP_AT))
    for index in range(count):
        bitmap[index // 4] &= ~(1 << index % 4 * 2)
    return bitmap


def page_bytes(items: Sequence[Item], state: PageState, seq: int, version: int) -> bytes:
    """A page that holds `items` in their order and nothing else."""
    entries = b"".join(item.raw for item in items)
    bitmap = written_bitmap(len(entries) // ENTRY_BYTES)
    page = header_bytes(state, seq, version) + bitmap + entries
    return page.ljust(PAGE_BYTES, b"\xff")


def load_page(raw: bytes, index: int, *, any_chunk: bool = False) -> Page:
    """The page as loading it leaves it.

    any_chunk: as ESP-IDF from 4.4.8, 5.0.9, 5.1.5, 5.2.3 and 5.3 on look for what the last item
    doubles: any earlier part of its blob counts, not the same one only.
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
    page = Page(index, raw, state, seq, version, entry_states(raw[BITMAP_AT:ENTRIES_AT]))
    if state is PageState.ACTIVE:
        return _load_active(page, any_chunk=any_chunk)
    return _load_full(page) if page.live else page


class Loader:
    """`load_page`, for each page once."""

    def __init__(self) -> None:
        self._pages: dict[tuple[bytes, int, bool], Page] = {}

    def __call__(self, raw: bytes, index: int, *, any_chunk: bool = False) -> Page:
        """The page as loading it leaves it: the same object where `any_chunk` cannot make a
        difference. Raises as `load_page`."""
        place = (raw, index, any_chunk)
        page = self._pages.get(place)
        if page is None:
            page = self(raw, index) if any_chunk else load_page(raw, index)
            if any_chunk and page.last_type in (TYPE_BLOB, TYPE_BLOB_DATA, TYPE_ANY):
                page = load_page(raw, index, any_chunk=True)
            self._pages[place] = page
        return page


def _item(page: Page, index: int) -> Item | None:
    """The item whose header is entry `index`; None where its CRC is wrong."""
    raw = page.entry(index)
    if not has_crc(raw):
        return None
    namespace, kind, span, chunk = raw[:4]
    where = f"Page {page.index} of NVS has at entry {index} an item"
    if kind in VARIABLE:
        size = int.from_bytes(raw[24:26], "little")
        if span != 1 + -(-size // ENTRY_BYTES) or index + span > ENTRY_COUNT:
            raise OtaError("nvs-invalid", f"{where} of {size} bytes in {span} entries.")
        if kind == TYPE_BLOB_DATA and chunk == CHUNK_ANY:
            raise OtaError("nvs-invalid", f"{where} that is a part of a blob without a number.")
    elif span != 1:
        raise OtaError("nvs-invalid", f"{where} of type {kind:#x} in {span} entries.")
    return Item(index, namespace, kind, span, chunk, raw[8:24], page.entry(index, span))


def _load_active(page: Page, *, any_chunk: bool) -> Page:
    states = list(page.states)
    free = states.index(EntryState.EMPTY) if EntryState.EMPTY in states else ENTRY_COUNT
    # Bytes without their bit in the bitmap: a write was cut. Only the first word is looked at.
    while free < ENTRY_COUNT and page.entry(free)[:4] != b"\xff" * 4:
        states[free] = EntryState.ERASED
        free += 1
    index, end = 0, free
    items: dict[int, Item] = {}
    last: int | None = None
    stops = False
    while index < end:
        state = states[index]
        if state != EntryState.WRITTEN:
            stops |= state == EntryState.ILLEGAL
            states[index] = EntryState.ERASED
            last = None
            index += 1
            continue
        last = index
        item = _item(page, index)
        if item is None:
            states[index] = EntryState.ERASED
            index += 1
            continue
        torn = states[index : item.end] != [EntryState.WRITTEN] * item.span
        name = _hash_24(item.raw[:ENTRY_BYTES])
        older = items.pop(name, None) if not torn else item
        if torn:
            last = None
        else:
            items[name] = item
        if older is not None:
            states[older.index : older.end] = [EntryState.ERASED] * older.span
            free = max(free, older.end)
        index = item.end
    found = tuple(sorted(items.values(), key=lambda item: item.index))
    loaded = replace(page, states=tuple(states), items=found, next_free=free, stops=stops)
    if last is None:
        return loaded
    raw = page.entry(last)
    loaded = replace(loaded, last_type=raw[1])
    twin = _twin_of_last(found, raw, any_chunk=any_chunk)
    return loaded.without([twin]) if twin is not None and twin.index < last else loaded


def _twin_of_last(items: Sequence[Item], raw: bytes, *, any_chunk: bool) -> Item | None:
    """What `findItem` finds for the last item's namespace, type and key, without its chunk.

    raw: the bytes of its header, which may have the wrong CRC. With other versions' rule the
    search begins at the index of a blob, and ends there for its parts.
    """
    namespace, kind, key = raw[0], raw[1], raw[8:23].split(b"\0", 1)[0]
    start = 0
    by_hash = kind != TYPE_BLOB_DATA if any_chunk else kind != TYPE_ANY
    if namespace != NAMESPACE_ANY and by_hash:
        name = (namespace, key.ljust(16, b"\0"), CHUNK_ANY)
        start = next((item.index for item in items if item.hash == name), ENTRY_COUNT)
    for item in items:
        if item.index < start or namespace not in (NAMESPACE_ANY, item.namespace):
            continue
        named = item.raw_key[:15].split(b"\0", 1)[0] == key
        if named and not _passed_over(item, kind, any_chunk=any_chunk):
            return item if kind in (TYPE_ANY, item.type) else None
    return None


def _passed_over(item: Item, kind: int, *, any_chunk: bool) -> bool:
    """Whether `findItem` goes on behind an item of the right name in its search for a type; any
    other one that has not that type ends it."""
    if any_chunk and kind == TYPE_BLOB_DATA:
        return item.type != kind
    if any_chunk and kind == TYPE_BLOB:
        return item.type == TYPE_BLOB_DATA
    return kind == TYPE_BLOB_INDEX and item.chunk != CHUNK_ANY


def _load_full(page: Page) -> Page:
    states = list(page.states)
    items: list[Item] = []
    index = 0
    while index < ENTRY_COUNT:
        if states[index] != EntryState.WRITTEN:
            index += 1
            continue
        item = _item(page, index)
        if item is None:
            states[index] = EntryState.ERASED
            index += 1
            continue
        if states[index : item.end] != [EntryState.WRITTEN] * item.span:
            states[index : item.end] = [EntryState.ERASED] * item.span
        else:
            items.append(item)
        index = item.end
    return replace(page, states=tuple(states), items=tuple(items))
