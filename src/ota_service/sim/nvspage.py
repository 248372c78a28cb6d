# SPDX-License-Identifier: GPL-3.0-or-later
"""One page of NVS as ESP-IDF's firmware reads, repairs and writes it.

Source: ESP-IDF v5, components/nvs_flash/src/nvs_page.cpp. Every write goes to the region at
once and in ESP-IDF's order, so that power may be cut between any two.
"""

from __future__ import annotations

import struct

from ota_service.sim.nvsformat import (
    ACTIVE,
    ANY_NS,
    ANY_TYPE,
    BITMAP_OFFSET,
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
    SECTOR,
    UNINIT,
    VARIABLE,
    VERSION,
    WRITTEN,
    Item,
    Region,
    crc32,
    new_version,
)


class Page:
    """A loaded page; `load` repairs what a power loss has left."""

    def __init__(self, region: Region, base: int) -> None:
        self.region = region
        self.base = base
        self.state = UNINIT
        self.seq = 0
        self.bitmap = bytearray(b"\xff" * 32)
        self.first_used: int | None = None
        self.next_free: int | None = None

    def load(self) -> None:
        """Read header and entries; raises NvsError for a page of a later version."""
        raw = self.region.read(self.base, HEADER.size)
        state, seq, version, _, crc = HEADER.unpack(raw)
        if state == UNINIT:
            page = self.region.read(self.base, SECTOR)
            self.state = UNINIT if page == b"\xff" * SECTOR else CORRUPT
        elif crc != crc32(raw[4:28]) or state not in (ACTIVE, FULL, FREEING):
            self.state = CORRUPT
        else:
            if version < VERSION:
                raise new_version()
            self.state, self.seq = state, seq
            self._load_entries()

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
        return Item.parse(self.raw_entry(index))

    @property
    def used_count(self) -> int:
        """Entries in state WRITTEN."""
        return sum(self.entry_state(i) == WRITTEN for i in range(ENTRY_COUNT))

    def _load_entries(self) -> None:
        self.bitmap = bytearray(self.region.read(self.base + BITMAP_OFFSET, 32))
        self.first_used = self._first_written(0)
        if self.state == ACTIVE:
            self._load_active()
        else:
            self._load_full()

    def _first_written(self, start: int) -> int | None:
        for i in range(start, ENTRY_COUNT):
            if self.entry_state(i) == WRITTEN:
                return i
        return None

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
        end = ENTRY_COUNT if self.next_free is None else min(self.next_free, ENTRY_COUNT)
        seen: dict[tuple[int, bytes, int], int] = {}
        index = 0
        while index < end:
            span = 1
            if self.entry_state(index) != ERASED:
                item = self.item(index)
                if not item.crc_ok:
                    self.erase_entry(index)
                else:
                    span = self._check_active_item(index, item, seen)
            index += max(1, span)

    def _check_active_item(
        self, index: int, item: Item, seen: dict[tuple[int, bytes, int], int]
    ) -> int:
        duplicate = seen.get(item.identity)
        if duplicate is None:
            seen[item.identity] = index
        span = 1
        if item.type in VARIABLE:
            span = item.span
            if any(
                j >= ENTRY_COUNT or self.entry_state(j) != WRITTEN
                for j in range(index, index + span)
            ):
                if seen.get(item.identity) == index:
                    del seen[item.identity]
                self.erase_entry(index)
                return span
        if duplicate is not None:
            self.erase_entry(duplicate)
            seen[item.identity] = index
        return span

    def _load_full(self) -> None:
        index = self.first_used if self.first_used is not None else ENTRY_COUNT
        while index < ENTRY_COUNT:
            if self.entry_state(index) != WRITTEN:
                index += 1
                continue
            item = self.item(index)
            if not item.crc_ok:
                self.erase_entry(index)
                index += 1
                continue
            if item.type in VARIABLE and any(
                j < ENTRY_COUNT and self.entry_state(j) != WRITTEN
                for j in range(index + 1, index + item.span)
            ):
                self.erase_entry(index)
            index += max(1, item.span)

    def erase_entry(self, index: int) -> None:
        """Mark an item erased, with its span where its header is intact."""
        span = 1
        if self.entry_state(index) == WRITTEN:
            item = self.item(index)
            if item.crc_ok:
                span = max(1, min(item.span, ENTRY_COUNT - index))
        if span == 1:
            self.alter(index, ERASED)
        else:
            self.alter_range(index, index + span, ERASED)
        if index == self.first_used:
            end = ENTRY_COUNT if self.next_free is None else min(self.next_free, ENTRY_COUNT)
            found = self._first_written(index + span)
            self.first_used = found if found is not None and found < end else None
        if self.next_free is not None and index + span > self.next_free:
            self.next_free = index + span

    # --- finding

    def find(
        self,
        ns: int = ANY_NS,
        kind: int = ANY_TYPE,
        key: str | None = None,
        *,
        start: int = 0,
        chunk: int = CHUNK_ANY,
        chunk_start: int | None = None,
    ) -> tuple[int, Item] | None:
        """The first matching item at or after entry `start`; broken headers are erased."""
        if self.is_free or self.first_used is None:
            return None
        end = ENTRY_COUNT if self.next_free is None else min(self.next_free, ENTRY_COUNT)
        wanted = None if key is None else key.encode()
        index = max(start, self.first_used)
        while index < end:
            here = index
            index += 1
            if self.entry_state(here) != WRITTEN:
                continue
            item = self.item(here)
            if not item.crc_ok:
                self.erase_entry(here)
                continue
            if item.type in VARIABLE:
                index = here + max(1, item.span)
            if ns not in (ANY_NS, item.ns):
                continue
            if wanted is not None and item.key.split(b"\x00")[0] != wanted:
                continue
            if kind == BLOB_DATA and chunk not in (CHUNK_ANY, item.chunk):
                continue
            if kind == BLOB_IDX and item.chunk != CHUNK_ANY:
                continue
            if (
                kind == BLOB_IDX
                and chunk_start is not None
                and item.type == BLOB_IDX
                and item.data[5] != chunk_start
            ):
                continue
            if kind != ANY_TYPE and item.type != kind:
                # Another type under the same key hides what follows, as in ESP-IDF; a search
                # for every item of a type goes on.
                if key is None or (ns == ANY_NS and chunk == CHUNK_ANY):
                    continue
                if kind == BLOB_DATA or item.type == BLOB_DATA:
                    continue
                return None
            return here, item
        return None

    def erase_item(
        self, ns: int, kind: int, key: str, chunk: int = CHUNK_ANY, chunk_start: int | None = None
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
        self.alter(self.next_free, WRITTEN)
        if self.first_used is None:
            self.first_used = self.next_free
        self.next_free += 1

    def write_item(self, ns: int, kind: int, key: str, data: bytes, chunk: int = CHUNK_ANY) -> bool:
        """Append an item; False where the page is full."""
        if self.state == UNINIT:
            self.initialize()
        if self.state != ACTIVE:
            return False
        extra = -(-len(data) // ENTRY_BYTES) if kind in VARIABLE else 0
        if self.next_free is None or self.next_free + 1 + extra > ENTRY_COUNT:
            return False
        if kind not in VARIABLE:
            header = Item.make(ns, kind, 1, chunk, key, data.ljust(8, b"\xff"))
            self.write_entry(header.encode())
            return True
        described = struct.pack("<HHI", len(data), 0xFFFF, crc32(data))
        self.write_entry(Item.make(ns, kind, 1 + extra, chunk, key, described).encode())
        whole = len(data) // ENTRY_BYTES
        if whole:
            first = self.next_free
            self.region.program(self._address(first), data[: whole * ENTRY_BYTES])
            self.alter_range(first, first + whole, WRITTEN)
            self.next_free = first + whole
        if len(data) % ENTRY_BYTES:
            self.write_entry(data[whole * ENTRY_BYTES :].ljust(ENTRY_BYTES, b"\xff"))
        return True

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
            span = max(1, self.item(index).span)
            for i in range(index, min(index + span, ENTRY_COUNT)):
                other.write_entry(self.raw_entry(i))
            index += span
