# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS as the firmware sees it: initialisation with its repairs, reading, writing, collecting.

Source: ESP-IDF v5, components/nvs_flash/src/nvs_pagemanager.cpp and nvs_storage.cpp. Works on a
bytearray in memory (`nvs_init`, `NvsStore`) and on the flash of a running board (`FlashRegion`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from esp32_sim.nvsformat import (
    ACTIVE,
    ANY_NS,
    ANY_TYPE,
    BLOB,
    BLOB_DATA,
    BLOB_IDX,
    CHUNK_ANY,
    CHUNK_MAX_BYTES,
    CORRUPT,
    ENTRY_BYTES,
    ENTRY_COUNT,
    FREEING,
    FULL,
    INT_TYPES,
    KEY_MAX,
    NS_INDEX,
    SECTOR,
    SZ,
    U8,
    Item,
    NvsError,
    Region,
    no_free_pages,
    not_enough_space,
)
from esp32_sim.nvspage import Page
from esp32_sim.nvsregion import EncryptedRegion, FlashRegion, MemoryRegion, Write, with_key

__all__ = [
    "EncryptedRegion",
    "FlashRegion",
    "MemoryRegion",
    "NvsError",
    "NvsState",
    "NvsStore",
    "NvsValue",
    "Write",
    "nvs_init",
    "with_key",
]

NvsValue = str | bytes | int

VERSION_0 = 0x00
VERSION_1 = 0x80
TYPE_NAMES = {
    0x01: "u8", 0x11: "i8", 0x02: "u16", 0x12: "i16", 0x04: "u32", 0x14: "i32",
    0x08: "u64", 0x18: "i64", SZ: "string", BLOB: "blob", BLOB_IDX: "blob",
}  # fmt: skip


@dataclass(frozen=True)
class NvsState:
    """What the firmware has after nvs_flash_init.

    items: (namespace, key) to (type name, value), a string's value without its terminator,
    integers as their bytes. free_pages: pages without data. error: the esp_err_t's name and
    number where init failed. writes: what init wrote.
    """

    items: dict[tuple[str, str], tuple[str, bytes]]
    free_pages: int
    error: str | None
    writes: tuple[Write, ...]

    def string(self, namespace: str, key: str) -> str | None:
        """A string's value; None where it is missing or of another type."""
        found = self.items.get((namespace, key))
        return found[1].decode("utf-8", "replace") if found and found[0] == "string" else None


def nvs_init(cells: bytearray, *, older: bool = False, key: str = "") -> NvsState:
    """Initialise NVS in a partition's bytes as firmware does at start, repairs included.

    `cells` changes as the flash would. older: by the rules of older ESP-IDF (`nvspage.Page`).
    key: of encrypted entries.
    """
    region = MemoryRegion(cells)
    store = NvsStore(with_key(region, key), older=older)
    try:
        store.init()
    except NvsError as error:
        return NvsState({}, store.free_count, str(error), tuple(region.writes))
    writes = tuple(region.writes)
    return NvsState(store.read_all(), store.free_count, None, writes)


class NvsStore:
    """NVS in use: `init` first, then `get`, `set`, `erase_key`."""

    def __init__(self, region: Region | bytearray, *, older: bool = False) -> None:
        self._older = older
        self._region: Region = MemoryRegion(region) if isinstance(region, bytearray) else region
        self._pages: list[Page] = []
        self._free: list[Page] = []
        self._next_seq = 0
        self._namespaces: dict[str, int] = {}

    @property
    def region(self) -> bytes:
        """The partition's bytes."""
        return self._region.read(0, self._region.size)

    @property
    def free_count(self) -> int:
        """Pages without data."""
        return len(self._free)

    # --- initialisation

    def init(self) -> None:
        """Load, repair, and list the namespaces; raises NvsError."""
        self._pages, self._free, self._namespaces = [], [], {}
        for index in range(self._region.size // SECTOR):
            page = Page(self._region, index * SECTOR, older=self._older)
            page.load()
            if page.is_free:
                self._free.append(page)
                continue
            at = next((i for i, p in enumerate(self._pages) if p.seq > page.seq), None)
            self._pages.insert(len(self._pages) if at is None else at, page)
        if not self._pages:
            self._next_seq = 0
            self._activate()
        else:
            self._next_seq = self._pages[-1].seq + 1
            self._erase_duplicates_of_last_item()
            self._finish_freeing()
            if not self._free:
                raise no_free_pages()
        for page in self._pages:
            for _, item in _items(page, NS_INDEX, U8):
                self._namespaces.setdefault(_text(item), item.data[0])
        indices = self._blob_indices()
        if not self._older:
            indices = self._erase_incomplete(indices)
        self._erase_orphans(indices)

    def _activate(self) -> Page:
        if not self._free:
            raise not_enough_space()
        page = self._free[0]
        if page.state == CORRUPT:
            page.erase()
        self._free.pop(0)
        self._pages.append(page)
        page.seq = self._next_seq
        self._next_seq += 1
        return page

    def _erase_duplicates_of_last_item(self) -> None:
        last_page = self._pages[-1]
        last: Item | None = None
        for _, item in _items(last_page):
            last = item
        if last is None:
            return
        kinds = [last.type, BLOB] if last.type == BLOB_IDX else [last.type]
        for kind in kinds:
            for page in self._pages[:-1]:
                if page.state != FREEING and page.erase_item(last.ns, kind, last.name, last.chunk):
                    return

    def _finish_freeing(self) -> None:
        for page in self._pages:
            if page.state != FREEING:
                continue
            newest = self._pages[-1]
            if newest.state == ACTIVE:
                newest.erase()
                self._pages.remove(newest)
                self._free.append(newest)
            target = self._activate()
            page.copy_items(target)
            page.erase()
            self._pages.remove(page)
            self._free.append(page)
            return

    def _blob_indices(self) -> list[Item]:
        return [item for page in self._pages for _, item in _items(page, ANY_NS, BLOB_IDX)]

    def _erase_incomplete(self, indices: list[Item]) -> list[Item]:
        """Erase indices of blobs whose parts are too few, too many or too small; the others."""
        sizes: list[list[int]] = [[] for _ in indices]
        for page in self._pages:
            for _, part in _items(page, ANY_NS, BLOB_DATA):
                for at, index in enumerate(indices):
                    start = index.data[5]
                    end = VERSION_1 if start == VERSION_0 else CHUNK_ANY
                    same = (index.ns, index.name) == (part.ns, part.name)
                    if same and start <= part.chunk < end:
                        sizes[at].append(part.var_size)
                        break
        kept = []
        for index, found in zip(indices, sizes, strict=True):
            size = int.from_bytes(index.data[:4], "little")
            if (sum(found), len(found)) == (size, index.data[4]):
                kept.append(index)
                continue
            any(
                page.erase_item(index.ns, BLOB_IDX, index.name, chunk_start=index.data[5])
                for page in self._pages
            )
        return kept

    def _erase_orphans(self, indices: list[Item]) -> None:
        """Erase parts of blobs that no index names: a failed write left them."""
        named = {
            (index.ns, index.name, index.data[5] + i)
            for index in indices
            for i in range(index.data[4])
        }
        for page in self._pages:
            for _, item in _items(page, ANY_NS, BLOB_DATA):
                if (item.ns, item.name, item.chunk) not in named:
                    page.erase_item(item.ns, BLOB_DATA, item.name, item.chunk)

    # --- reading

    def _find(
        self,
        ns: int,
        kind: int,
        key: bytes,
        *,
        chunk: int = CHUNK_ANY,
        chunk_start: int | None = None,
    ) -> tuple[Page, int, Item] | None:
        for page in self._pages:
            found = page.find(ns, kind, key, chunk=chunk, chunk_start=chunk_start)
            if found is not None:
                return page, *found
        return None

    def get(self, namespace: str, key: str) -> tuple[str, bytes] | None:
        """(type name, value) of a key; None where it is missing or its data is broken."""
        ns = self._namespaces.get(namespace)
        return None if ns is None else self._get(ns, key.encode())

    def _get(self, ns: int, key: bytes) -> tuple[str, bytes] | None:
        index = self._find(ns, BLOB_IDX, key)
        if index is not None:
            return self._read_blob(ns, key, index[2])
        found = self._find(ns, ANY_TYPE, key)
        if found is None or found[2].type == BLOB_DATA:
            return None
        page, at, item = found
        if item.type in INT_TYPES:
            size = struct.calcsize(INT_TYPES[item.type])
            return TYPE_NAMES[item.type], item.data[:size]
        data = page.payload(at, item)
        if data is None:
            return None
        return TYPE_NAMES[item.type], data.split(b"\x00")[0] if item.type == SZ else data

    def _read_blob(self, ns: int, key: bytes, index: Item) -> tuple[str, bytes] | None:
        size = int.from_bytes(index.data[:4], "little")
        data = b""
        for i in range(index.data[4]):
            found = self._find(ns, BLOB_DATA, key, chunk=index.data[5] + i)
            part = None if found is None else found[0].payload(found[1], found[2])
            if part is None:
                return None
            data += part
        return ("blob", data) if len(data) == size else None

    def read_all(self) -> dict[tuple[str, str], tuple[str, bytes]]:
        """All keys of all namespaces, as `get` gives them."""
        names = {number: name for name, number in self._namespaces.items()}
        values: dict[tuple[str, str], tuple[str, bytes]] = {}
        for page in self._pages:
            for _, item in _items(page):
                name = names.get(item.ns)
                if item.ns == NS_INDEX or name is None or (name, _text(item)) in values:
                    continue
                value = self._get(item.ns, item.name)
                if value is not None:
                    values[name, _text(item)] = value
        return values

    # --- writing

    def set(self, namespace: str, key: str, value: NvsValue) -> None:
        """Write a key: text as a string, bytes as a blob, a number as u32 (i32 below zero).

        Raises NvsError where there is no room.
        """
        if not 1 <= len(key.encode()) <= KEY_MAX:
            raise NvsError("ESP_ERR_NVS_KEY_TOO_LONG", 0x1109)
        ns = self._namespace(namespace)
        name = key.encode()
        if isinstance(value, str):
            self._write(ns, SZ, name, value.encode() + b"\x00")
        elif isinstance(value, int):
            code = 0x04 if value >= 0 else 0x14
            self._write(ns, code, name, struct.pack("<" + INT_TYPES[code], value))
        else:
            self._write_blob(ns, name, value)

    def erase_key(self, namespace: str, key: str) -> bool:
        """Erase a key; False where there is none."""
        ns = self._namespaces.get(namespace)
        if ns is None:
            return False
        name = key.encode()
        index = self._find(ns, BLOB_IDX, name)
        if index is not None:
            self._erase_blob(ns, name, index[2].data[5])
            return True
        found = self._find(ns, ANY_TYPE, name)
        if found is None:
            return False
        found[0].erase_entry(found[1])
        return True

    def _namespace(self, name: str) -> int:
        if name not in self._namespaces:
            used = set(self._namespaces.values())
            number = next(i for i in range(1, 255) if i not in used)
            self._write(NS_INDEX, U8, name.encode(), bytes((number,)))
            self._namespaces[name] = number
        return self._namespaces[name]

    def _write(self, ns: int, kind: int, key: bytes, data: bytes) -> None:
        if len(data) > CHUNK_MAX_BYTES:
            raise NvsError("ESP_ERR_NVS_VALUE_TOO_LONG", 0x110E)
        old = self._find(ns, ANY_TYPE, key)
        if old is not None and old[2].type == kind and self._same(old, data):
            return
        if not self._pages[-1].write_item(ns, kind, key, data):
            self._next_page()
            if not self._pages[-1].write_item(ns, kind, key, data):
                raise not_enough_space()
        self._erase_old(ns, key, old)

    @staticmethod
    def _same(found: tuple[Page, int, Item], data: bytes) -> bool:
        page, at, item = found
        if item.type in INT_TYPES:
            return item.data[: len(data)] == data
        return page.payload(at, item) == data

    def _erase_old(self, ns: int, key: bytes, old: tuple[Page, int, Item] | None) -> None:
        if old is None:
            return
        page, at, item = old
        if page.is_free or page.item(at) != item:
            # Its page was collected meanwhile: look again.
            found = self._find(ns, item.type, key)
            if found is None:
                return
            page, at, _ = found
        page.erase_entry(at)

    def _next_page(self) -> None:
        """Mark the page full and go on to the next one, collecting a page where needed."""
        current = self._pages[-1]
        if current.state not in (FULL, FREEING):
            current.set_state(FULL)
        if len(self._free) >= 2:
            self._activate()
            return
        if not self._free:
            raise not_enough_space()
        victim = max(self._pages, key=lambda page: ENTRY_COUNT - page.used_count)
        if victim.used_count == ENTRY_COUNT:
            raise not_enough_space()
        victim.set_state(FREEING)
        target = self._activate()
        victim.copy_items(target)
        victim.erase()
        self._pages.remove(victim)
        self._free.append(victim)

    def _write_blob(self, ns: int, key: bytes, data: bytes) -> None:
        old = self._find(ns, BLOB_IDX, key)
        if old is not None and self._read_blob(ns, key, old[2]) == ("blob", data):
            return
        start = VERSION_0
        if old is not None:
            start = VERSION_0 if old[2].data[5] == VERSION_1 else VERSION_1
        self._write_chunks(ns, key, data, start)
        if old is not None:
            self._erase_blob(ns, key, old[2].data[5])

    def _write_chunks(self, ns: int, key: bytes, data: bytes, start: int) -> None:
        left = data
        count = 0
        while True:
            room = self._pages[-1].room()
            if not count and room < len(data) and room < CHUNK_MAX_BYTES // 10:
                self._next_page()
                if self._pages[-1].room() == room:
                    raise not_enough_space()
                continue
            if not room:
                raise not_enough_space()
            part, left = left[:room], left[room:]
            self._pages[-1].write_item(ns, BLOB_DATA, key, part, start + count)
            count += 1
            if left or room - len(part) < ENTRY_BYTES:
                self._next_page()
            if not left:
                break
        index = struct.pack("<IBBH", len(data), count, start, 0xFFFF)
        if not self._pages[-1].write_item(ns, BLOB_IDX, key, index):
            raise not_enough_space()

    def _erase_blob(self, ns: int, key: bytes, start: int) -> None:
        found = self._find(ns, BLOB_IDX, key, chunk_start=start)
        if found is None:
            return
        page, at, item = found
        page.erase_entry(at)
        for i in range(item.data[4]):
            part = self._find(ns, BLOB_DATA, key, chunk=start + i)
            if part is not None:
                part[0].erase_entry(part[1])


def _items(page: Page, ns: int = ANY_NS, kind: int = ANY_TYPE) -> list[tuple[int, Item]]:
    """All items of a page that match, in order."""
    found: list[tuple[int, Item]] = []
    at = 0
    while (hit := page.find(ns, kind, start=at)) is not None:
        found.append(hit)
        at = hit[0] + max(1, hit[1].span)
    return found


def _text(item: Item) -> str:
    return item.name.decode("utf-8", "replace")
