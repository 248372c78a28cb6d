# SPDX-License-Identifier: GPL-3.0-or-later
"""One page of NVS as ESP-IDF's firmware reads, repairs and writes it.

Source: ESP-IDF, components/nvs_flash/src/nvs_page.cpp, and esp32.md, "What the firmware does
when it loads a page". Every write goes to the region at once and in ESP-IDF's order, so that
power may be cut between any two.
"""

from __future__ import annotations

import struct

from esp32_sim.nvsformat import (
    ACTIVE,
    ANY_NS,
    ANY_TYPE,
    BITMAP_OFFSET,
    BLOB,
    BLOB_DATA,
    BLOB_IDX,
    CHUNK_ANY,
    CHUNK_MAX_BYTES,
    CORRUPT,
    EMPTY,
    ENTRIES_OFFSET,
    ENTRY_BYTES,
    ENTRY_COUNT,
    ERASED,
    FREEING,
    FULL,
    HEADER,
    INT_TYPES,
    SECTOR,
    UNINIT,
    VARIABLE,
    VERSION,
    WRITTEN,
    Identity,
    Item,
    Region,
    crc32,
    new_version,
)


class Page:
    """A loaded page; `load` repairs what a power loss has left.

    older: by the rules up to ESP-IDF 4.4.7, 5.0.8, 5.1.4 and 5.2.2. The newer ones look for any
    part of a blob where they look for a blob's data without saying which part, and take an item
    that cannot be for a broken one even where its CRC is right.
    """

    def __init__(self, region: Region, base: int, *, older: bool = False) -> None:
        self.region = region
        self.base = base
        self.older = older
        self.state = UNINIT
        self.seq = 0
        self.bitmap = bytearray(b"\xff" * 32)
        self.first_used: int | None = None
        self.next_free: int | None = None
        # The firmware's hash list: what it was told, in that order, to the entry's number.
        self._hashed: dict[int, Identity] = {}
        self._read: dict[int, Item] = {}  # entries in use do not change

    def load(self) -> None:
        """Read header and entries; raises NvsError for a page of a later version."""
        page = self.region.read(self.base, SECTOR)
        state, seq, version, _, crc = HEADER.unpack_from(page)
        if state == UNINIT:
            self.state = UNINIT if page == b"\xff" * SECTOR else CORRUPT
        elif crc != crc32(page[4:28]):
            self.state = CORRUPT
        else:
            if version < VERSION:
                raise new_version()
            if state not in (ACTIVE, FULL, FREEING):
                self.state = CORRUPT
                return
            self.state, self.seq = state, seq
            self.bitmap = bytearray(page[BITMAP_OFFSET:ENTRIES_OFFSET])
            self.first_used = self._first_written(0)
            if state == ACTIVE:
                self._load_active()
            else:
                self._load_full()

    @property
    def is_free(self) -> bool:
        """Blank or corrupt: such pages have no sequence number."""
        return self.state in (UNINIT, CORRUPT)

    # --- entries

    def entry_state(self, index: int) -> int:
        """EMPTY, WRITTEN or ERASED."""
        return self.bitmap[index // 4] >> index % 4 * 2 & 3

    def _mark(self, index: int, state: int) -> None:
        shift = index % 4 * 2
        self.bitmap[index // 4] = self.bitmap[index // 4] & ~(3 << shift) | state << shift

    def _write_word(self, word: int) -> None:
        self.region.program(
            self.base + BITMAP_OFFSET + 4 * word, bytes(self.bitmap[4 * word : 4 * word + 4])
        )

    def alter(self, index: int, state: int) -> None:
        """Change one entry's state."""
        self._mark(index, state)
        self._write_word(index // 16)

    def alter_range(self, begin: int, end: int, state: int) -> None:
        """Change several, from the last to the first, word by word."""
        for word in range((end - 1) // 16, begin // 16 - 1, -1):
            for index in range(max(begin, word * 16), min(end, word * 16 + 16)):
                self._mark(index, state)
            self._write_word(word)

    def _address(self, index: int) -> int:
        return self.base + ENTRIES_OFFSET + ENTRY_BYTES * index

    def raw_entry(self, index: int) -> bytes:
        """The 32 bytes of an entry."""
        return self.region.read(self._address(index), ENTRY_BYTES)

    def item(self, index: int) -> Item:
        """An entry read as an item's header."""
        found = self._read.get(index)
        if found is None:
            found = self._read[index] = Item.parse(self.raw_entry(index))
        return found

    @property
    def used_count(self) -> int:
        """Entries in state WRITTEN."""
        return sum(self.entry_state(i) == WRITTEN for i in range(ENTRY_COUNT))

    @property
    def _end(self) -> int:
        """First entry that nobody looks at."""
        return ENTRY_COUNT if self.next_free is None else min(self.next_free, ENTRY_COUNT)

    def _holds(self, index: int, item: Item) -> bool:
        """checkHeaderConsistency: whether an entry's header can be believed."""
        if not item.crc_ok:
            return False
        if self.older:
            return True
        if item.type not in VARIABLE:
            fits = item.type in INT_TYPES or (item.type == BLOB_IDX and item.chunk == CHUNK_ANY)
            return fits and item.span == 1
        if item.type == BLOB_DATA and item.chunk == CHUNK_ANY:
            return False
        entries = -(-item.var_size // ENTRY_BYTES)
        return item.span == 1 + entries and index + item.span <= ENTRY_COUNT

    def _first_written(self, start: int) -> int | None:
        for i in range(start, ENTRY_COUNT):
            if self.entry_state(i) == WRITTEN:
                return i
        return None

    def _whole(self, index: int, item: Item) -> bool:
        """Whether all of an item's entries are written."""
        last = index + item.span
        return last <= ENTRY_COUNT and all(
            self.entry_state(i) == WRITTEN for i in range(index, last)
        )

    def _load_active(self) -> None:
        for i in range(ENTRY_COUNT):
            if self.entry_state(i) == EMPTY:
                self.next_free = i
                break
        # Data may have been written before the bitmap: such entries are given up.
        while self.next_free is not None and self.next_free < ENTRY_COUNT:
            if self.raw_entry(self.next_free)[:4] == b"\xff" * 4:
                break
            self.alter(self.next_free, ERASED)
            self.next_free += 1
        last: tuple[int, Item] | None = None
        end = self._end
        index = 0
        while index < end:
            span = 1
            state = self.entry_state(index)
            if state == ERASED:
                last = None
            elif state != WRITTEN and state != EMPTY:
                last = None
                self.erase_entry(index)
            else:
                item = self.item(index)
                last = index, item
                if not self._holds(index, item):
                    self.erase_entry(index)  # and yet it is what the last item is taken for
                else:
                    span, whole = self._load_item(index, item)
                    last = last if whole else None
            index += max(1, span)
        if last is not None:
            self._erase_twin_of_last(*last)

    def _load_item(self, index: int, item: Item) -> tuple[int, bool]:
        """One item with a good header: (its span, whether it is whole)."""
        self._hashed[index] = item.identity
        first = next(at for at, known in self._hashed.items() if known == item.identity)
        span = 1
        if item.type in VARIABLE:
            span = item.span
            if not self._whole(index, item):
                self.erase_entry(index)
                return span, False
        if first < index:
            self.erase_entry(first)
        return span, True

    def _erase_twin_of_last(self, index: int, item: Item) -> None:
        """The check of the last item, whose chunk number it does not mind."""
        found = self.find(item.ns, item.type, item.name)
        if found is not None and found[0] < index:
            self.erase_entry(found[0])

    def _load_full(self) -> None:
        index = self.first_used if self.first_used is not None else ENTRY_COUNT
        while index < ENTRY_COUNT:
            if self.entry_state(index) != WRITTEN:
                index += 1
                continue
            item = self.item(index)
            if not self._holds(index, item):
                self.erase_entry(index)
                index += 1
                continue
            self._hashed[index] = item.identity
            if item.type in VARIABLE and not self._whole(index, item):
                self.erase_entry(index)
            index += max(1, item.span)

    def erase_entry(self, index: int) -> None:
        """Mark an item erased, with its span where its header is intact."""
        span = 1
        if self.entry_state(index) == WRITTEN:
            self._hashed.pop(index, None)
            item = self.item(index)
            if self._holds(index, item):
                span = max(1, min(item.span, ENTRY_COUNT - index))
        if span == 1:
            self.alter(index, ERASED)
        else:
            self.alter_range(index, index + span, ERASED)
        if index == self.first_used:
            found = self._first_written(index + span)
            self.first_used = found if found is not None and found < self._end else None
        if self.next_free is not None and index + span > self.next_free:
            self.next_free = index + span

    # --- finding

    def find(
        self,
        ns: int = ANY_NS,
        kind: int = ANY_TYPE,
        key: bytes | None = None,
        *,
        start: int = 0,
        chunk: int = CHUNK_ANY,
        chunk_start: int | None = None,
    ) -> tuple[int, Item] | None:
        """The first matching item at or after entry `start`; broken headers are erased."""
        if self.is_free or self.first_used is None or start >= ENTRY_COUNT:
            return None
        index = max(start, self.first_used)
        if ns != ANY_NS and key is not None and self._by_hash(kind, chunk):
            wanted = (ns, key.ljust(16, b"\x00"), chunk)
            hits = [at for at, known in self._hashed.items() if at >= index and known == wanted]
            if not hits:
                return None
            index = hits[0]
        end = self._end
        while index < end:
            here = index
            index += 1
            if self.entry_state(here) != WRITTEN:
                continue
            item = self.item(here)
            if not self._holds(here, item):
                self.erase_entry(here)
                continue
            if item.type in VARIABLE:
                index = here + max(1, item.span)
            if ns not in (ANY_NS, item.ns) or (key is not None and item.name != key):
                continue
            if kind == BLOB_DATA and chunk not in (CHUNK_ANY, item.chunk):
                continue
            if not self.older and chunk == CHUNK_ANY and item.type != kind:
                if kind == BLOB_DATA or (kind == BLOB and item.type == BLOB_DATA):
                    continue
                if kind == BLOB and item.type == BLOB_IDX:
                    return None
            if kind == BLOB_IDX and item.chunk != CHUNK_ANY:
                continue
            if kind == BLOB_IDX and chunk_start not in (None, item.data[5]):
                continue
            if kind not in (ANY_TYPE, item.type):
                # Another type under the same key hides what follows; a search for every item of
                # a type goes on.
                if key is None and ns == ANY_NS and chunk == CHUNK_ANY:
                    continue
                return None
            return here, item
        return None

    def _by_hash(self, kind: int, chunk: int) -> bool:
        """Whether a search begins at the hash list, which tells the parts of a blob apart."""
        if self.older:
            return kind != ANY_TYPE
        return kind != BLOB_DATA or chunk != CHUNK_ANY

    def erase_item(
        self, ns: int, kind: int, key: bytes, chunk: int = CHUNK_ANY, chunk_start: int | None = None
    ) -> bool:
        """Erase the first match; False where there is none."""
        found = self.find(ns, kind, key, chunk=chunk, chunk_start=chunk_start)
        if found is None:
            return False
        self.erase_entry(found[0])
        return True

    def payload(self, index: int, item: Item) -> bytes | None:
        """The bytes of a variable-length item; None where their CRC is wrong."""
        data = b"".join(self.raw_entry(i) for i in range(index + 1, index + item.span))
        data = data[: item.var_size]
        return data if crc32(data) == item.var_crc and len(data) == item.var_size else None

    # --- writing

    def initialize(self) -> None:
        """Make a blank page the active one."""
        self.state = ACTIVE
        body = struct.pack("<IB19s", self.seq, VERSION, b"\xff" * 19)
        header = struct.pack("<I", ACTIVE) + body + struct.pack("<I", crc32(body))
        self.region.program(self.base, header)
        self.next_free = 0
        self.bitmap = bytearray(b"\xff" * 32)
        self._hashed.clear()
        self._read.clear()

    def room(self) -> int:
        """Bytes of a blob's data that still fit (getVarDataTailroom)."""
        if self.state == UNINIT:
            return CHUNK_MAX_BYTES
        if self.state == FULL or self.next_free is None:
            return 0
        return max(0, (ENTRY_COUNT - self.next_free - 1) * ENTRY_BYTES)

    def write_entry(self, raw: bytes) -> None:
        """One entry: its bytes, then its state."""
        assert self.next_free is not None
        self.region.program(self._address(self.next_free), raw)
        self._read.pop(self.next_free, None)
        self.alter(self.next_free, WRITTEN)
        if self.first_used is None:
            self.first_used = self.next_free
        self.next_free += 1

    def write_item(
        self, ns: int, kind: int, key: bytes, data: bytes, chunk: int = CHUNK_ANY
    ) -> bool:
        """Append an item; False where the page is full."""
        if self.state == UNINIT:
            self.initialize()
        if self.state != ACTIVE:
            return False
        extra = -(-len(data) // ENTRY_BYTES) if kind in VARIABLE else 0
        if self.next_free is None or self.next_free + 1 + extra > ENTRY_COUNT:
            return False
        if kind not in VARIABLE:
            self._write_header(Item.make(ns, kind, 1, chunk, key, data.ljust(8, b"\xff")))
            return True
        described = struct.pack("<HHI", len(data), 0xFFFF, crc32(data))
        self._write_header(Item.make(ns, kind, 1 + extra, chunk, key, described))
        whole = len(data) // ENTRY_BYTES
        if whole:
            first = self.next_free
            self.region.program(self._address(first), data[: whole * ENTRY_BYTES])
            self._read.clear()
            self.alter_range(first, first + whole, WRITTEN)
            self.next_free = first + whole
        if len(data) % ENTRY_BYTES:
            self.write_entry(data[whole * ENTRY_BYTES :].ljust(ENTRY_BYTES, b"\xff"))
        return True

    def _write_header(self, header: Item) -> None:
        assert self.next_free is not None
        self._hashed[self.next_free] = header.identity
        self.write_entry(header.encode())

    def set_state(self, state: int) -> None:
        """Program the header's first word."""
        self.region.program(self.base, struct.pack("<I", state))
        self.state = state

    def erase(self) -> None:
        """Erase the sector."""
        self.region.erase_sector(self.base)
        self.state = UNINIT
        self.bitmap = bytearray(b"\xff" * 32)
        self.first_used = None
        self.next_free = None
        self._hashed.clear()
        self._read.clear()

    def copy_items(self, other: Page) -> None:
        """Copy all written entries to another page (copyItems)."""
        if self.first_used is None:
            return
        if other.state == UNINIT:
            other.initialize()
        index = self.first_used
        while index < ENTRY_COUNT:
            if self.entry_state(index) != WRITTEN:
                index += 1
                continue
            item = self.item(index)
            span = max(1, item.span)
            assert other.next_free is not None
            other._hashed[other.next_free] = item.identity
            for i in range(index, min(index + span, ENTRY_COUNT)):
                other.write_entry(self.raw_entry(i))
            index += span
