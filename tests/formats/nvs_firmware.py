# SPDX-License-Identifier: GPL-3.0-or-later
"""ESP-IDF's NVS code as the tests' judge: start, read, write and erase on a flash of bytes.

Written from nvs_page.cpp, nvs_pagemanager.cpp and nvs_storage.cpp (v5.x), separately from
`ota_service.formats`, so that one wrong belief does not pass on both sides. It writes by NOR rules,
reports each write through `on_write`, and repairs at its start what the firmware repairs, the blob
indexes that do not match their parts included.

legacy: as versions before 5 do it: torn strings on full pages are not noticed, and blob
indexes are not compared with their parts.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from functools import lru_cache

EMPTY, WRITTEN, ILLEGAL, ERASED = 3, 2, 1, 0
UNINIT, ACTIVE, FULL, FREEING = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFC, 0xFFFFFFF8
SZ, BLOB, DATA, IDX, U8 = 0x21, 0x41, 0x42, 0x48, 0x01
LONG = (SZ, BLOB, DATA)
N = 126


class NoFreePages(Exception):
    """ESP_ERR_NVS_NO_FREE_PAGES: stock apps then erase the whole partition."""


class NewVersion(Exception):
    """ESP_ERR_NVS_NEW_VERSION_FOUND: the same."""


class StopsAtStart(Exception):
    """An assertion of old firmware: it restarts for ever."""


class NoSpace(Exception):
    """ESP_ERR_NVS_NOT_ENOUGH_SPACE."""


def crc(data: bytes) -> int:
    """esp_rom_crc32_le from 0xFFFFFFFF."""
    return binascii.crc32(data, 0xFFFFFFFF)


@lru_cache(maxsize=1 << 16)
def whole(raw: bytes) -> bool:
    """Whether an entry has the CRC of an item's header."""
    return crc(raw[:4] + raw[8:]) == int.from_bytes(raw[4:8], "little")


class Pg:
    """One page in the firmware's memory."""

    def __init__(self, nvs: Firmware, number: int) -> None:
        self.nvs, self.at = nvs, number * 4096
        self.state = self.word(0)
        self.seq = self.word(4)
        self.free = N  # next free entry
        self.known: tuple[tuple[int, int], list[tuple[int, bytes]]] | None = None
        header = nvs.flash[self.at : self.at + 32]
        if self.state == UNINIT:
            if nvs.flash[self.at : self.at + 4096] != b"\xff" * 4096:
                self.state = 0
        elif crc(bytes(header[4:28])) != int.from_bytes(header[28:32], "little"):
            self.state = 0
        elif header[8] < 0xFE:
            raise NewVersion
        self.live = self.state in (ACTIVE, FULL, FREEING)
        if not self.live and self.state != UNINIT:
            self.state = 0  # CORRUPT
        if self.state == ACTIVE:
            self.load_active()
        elif self.live:
            self.load_full()

    def word(self, place: int) -> int:
        return int.from_bytes(self.nvs.flash[self.at + place : self.at + place + 4], "little")

    def get(self, i: int) -> int:
        return self.nvs.flash[self.at + 32 + i // 4] >> (i % 4 * 2) & 3

    def set(self, first: int, count: int, state: int) -> None:
        """As alterEntryRangeState: word by word, from the last to the first."""
        table = bytearray(self.nvs.flash[self.at + 32 : self.at + 64])
        word = None
        for i in range(first + count - 1, first - 1, -1):
            if word is not None and word != i // 16:
                self.nvs.program(self.at + 32 + word * 4, bytes(table[word * 4 : word * 4 + 4]))
            word = i // 16
            shift = i % 4 * 2
            table[i // 4] = table[i // 4] & ~(3 << shift) & 0xFF | state << shift
        assert word is not None
        self.nvs.program(self.at + 32 + word * 4, bytes(table[word * 4 : word * 4 + 4]))

    def raw(self, i: int) -> bytes:
        return bytes(self.nvs.flash[self.at + 64 + i * 32 : self.at + 96 + i * 32])

    def good(self, i: int) -> bool:
        return whole(self.raw(i))

    def erase(self, i: int) -> None:
        span = self.raw(i)[2] if self.get(i) == WRITTEN and self.good(i) else 1
        self.set(i, span, ERASED)
        self.free = max(self.free, i + span) if self.state == ACTIVE else self.free

    def load_active(self) -> None:
        self.free = next((i for i in range(N) if self.get(i) == EMPTY), N)
        while self.free < N and self.raw(self.free)[:4] != b"\xff" * 4:
            self.set(self.free, 1, ERASED)
            self.free += 1
        i, end = 0, self.free
        seen: dict[bytes, int] = {}
        while i < end:
            if self.get(i) == ILLEGAL:
                if self.nvs.legacy:
                    raise StopsAtStart
                self.erase(i)
            if self.get(i) != WRITTEN:
                i += 1
                continue
            if not self.good(i):
                self.erase(i)
                i += 1
                continue
            raw = self.raw(i)
            name = raw[:1] + raw[8:24] + raw[3:4]
            twin = seen.get(name)
            span = 1
            if raw[1] in LONG:
                span = raw[2]
                if any(self.get(j) != WRITTEN for j in range(i, i + span)):
                    self.erase(i)
                    i += span
                    continue
            seen[name] = i
            if twin is not None:
                self.erase(twin)
            i += span

    def load_full(self) -> None:
        i = 0
        while i < N:
            if self.get(i) != WRITTEN:
                i += 1
                continue
            if not self.good(i):
                self.erase(i)
                i += 1
                continue
            raw = self.raw(i)
            if (
                raw[1] in LONG
                and not self.nvs.legacy
                and any(self.get(j) != WRITTEN for j in range(i, i + raw[2]))
            ):
                self.erase(i)
            i += raw[2]

    def items(self) -> list[tuple[int, bytes]]:
        """(index, header) of each item that findItem walks over."""
        if self.known is not None and self.known[0] == (self.nvs.writes, self.free):
            return self.known[1]
        found, i, end = [], 0, min(self.free, N)
        while i < end:
            if self.get(i) == WRITTEN:
                if self.good(i):
                    raw = self.raw(i)
                    found.append((i, raw))
                    i += raw[2] if raw[1] in LONG else 1
                    continue
                self.erase(i)
            i += 1
        self.known = ((self.nvs.writes, self.free), found)
        return found

    def find(self, ns: int, key: bytes, kind: int | None, chunk: int = 0xFF) -> int | None:
        """The first item of that name; None where it has another type than `kind`."""
        for i, raw in self.items():
            if raw[0] == ns and raw[8:24] == key.ljust(16, b"\0") and raw[3] == chunk:
                return i if kind in (None, raw[1]) else None
        return None

    def payload(self, i: int) -> bytes | None:
        """A long item's bytes, None where their CRC is wrong."""
        raw = self.raw(i)
        size = int.from_bytes(raw[24:26], "little")
        data = b"".join(self.raw(j) for j in range(i + 1, i + raw[2]))[:size]
        return data if crc(data) == int.from_bytes(raw[28:32], "little") else None

    def used(self) -> int:
        return sum(self.get(i) == WRITTEN for i in range(N))

    def initialise(self, seq: int) -> None:
        if self.state == 0:
            self.nvs.erase_sector(self.at)
        body = seq.to_bytes(4, "little") + b"\xfe" + b"\xff" * 19
        self.nvs.program(
            self.at, ACTIVE.to_bytes(4, "little") + body + crc(body).to_bytes(4, "little")
        )
        self.state, self.seq, self.live, self.free = ACTIVE, seq, True, 0

    def mark(self, state: int) -> None:
        self.nvs.program(self.at, state.to_bytes(4, "little"))
        self.state = state
        self.free = N

    def wipe(self) -> None:
        self.nvs.erase_sector(self.at)
        self.state, self.live, self.free = UNINIT, False, N

    def append(self, entries: bytes) -> None:
        """An item as writeItem does it: header, its bit, whole entries of payload, the rest."""
        place = self.at + 64 + self.free * 32
        count = len(entries) // 32 - 1
        self.nvs.program(place, entries[:32])
        self.set(self.free, 1, WRITTEN)
        size = int.from_bytes(entries[24:26], "little") if entries[1] in LONG else 0
        whole = size // 32 if count else 0
        if whole:
            self.nvs.program(place + 32, entries[32 : 32 + whole * 32])
            self.set(self.free + 1, whole, WRITTEN)
        if count > whole:
            self.nvs.program(place + 32 + whole * 32, entries[32 + whole * 32 :])
            self.set(self.free + 1 + whole, 1, WRITTEN)
        self.free += 1 + count


def item(ns: int, kind: int, key: bytes, value: bytes, chunk: int = 0xFF) -> bytes:
    """An item's entries. value: the payload, or the 8 bytes of a short item."""
    if kind in LONG:
        span = 1 + -(-len(value) // 32)
        data = len(value).to_bytes(2, "little") + b"\xff\xff" + crc(value).to_bytes(4, "little")
        tail = value.ljust((span - 1) * 32, b"\xff")
    else:
        span, data, tail = 1, value.ljust(8, b"\xff"), b""
    head = bytes([ns, kind, span, chunk])
    rest = key.ljust(16, b"\0") + data
    return head + crc(head + rest).to_bytes(4, "little") + rest + tail


class Firmware:
    """A started NVS. Raises `NoFreePages` or `NewVersion` as nvs_flash_init would fail."""

    def __init__(
        self,
        flash: bytearray,
        *,
        legacy: bool = False,
        on_write: Callable[[int, bytes | None], None] | None = None,
    ) -> None:
        self.flash, self.legacy, self.on_write = flash, legacy, on_write
        self.writes = 0
        self.pages = [Pg(self, i) for i in range(len(flash) // 4096)]
        self.list = sorted((p for p in self.pages if p.live), key=lambda p: p.seq)
        self.free = [p for p in self.pages if not p.live]
        self.next_seq = self.list[-1].seq + 1 if self.list else 0
        if not self.list:
            self.activate()
        else:
            self.drop_twins()
            self.finish_freeing()
            if not self.free:
                raise NoFreePages
        self.match_blobs()

    def program(self, place: int, data: bytes) -> None:
        if self.on_write:
            self.on_write(place, data)
        self.writes += 1
        for i, byte in enumerate(data):
            self.flash[place + i] &= byte

    def erase_sector(self, place: int) -> None:
        if self.on_write:
            self.on_write(place, None)
        self.writes += 1
        self.flash[place : place + 4096] = b"\xff" * 4096

    def activate(self) -> Pg:
        page = self.free.pop(0)
        page.initialise(self.next_seq)
        self.next_seq += 1
        self.list.append(page)
        return page

    def drop_twins(self) -> None:
        last = self.list[-1]
        items = last.items()
        if not items:
            return
        raw = items[-1][1]
        for kind in (raw[1], BLOB) if raw[1] == IDX else (raw[1],):
            for page in self.list[:-1]:
                if page.state != FREEING:
                    i = page.find(raw[0], raw[8:24].rstrip(b"\0"), kind, raw[3])
                    if i is not None:
                        page.erase(i)
                        return

    def finish_freeing(self) -> None:
        for page in list(self.list):
            if page.state == FREEING:
                last = self.list[-1]
                if last.state == ACTIVE:
                    last.wipe()
                    self.list.remove(last)
                    self.free.append(last)
                self.move(page)
                break

    def move(self, page: Pg) -> None:
        new = self.activate()
        for i, raw in page.items():
            span = raw[2]
            new.append(b"".join(page.raw(j) for j in range(i, i + span)))
        page.wipe()
        self.list.remove(page)
        self.free.append(page)

    def match_blobs(self) -> None:
        """Indexes that do not match their parts go (not in legacy), then parts without index."""
        parts = [(page, raw) for page in self.list for _, raw in page.items() if raw[1] == DATA]
        good = []
        for page in self.list:
            for i, raw in page.items():
                if raw[1] != IDX:
                    continue
                count, start = raw[28], raw[29]
                mine = [
                    p
                    for _, p in parts
                    if p[0] == raw[0] and p[8:24] == raw[8:24] and (p[3] & 0x80) == start
                ]
                size = sum(int.from_bytes(p[24:26], "little") for p in mine)
                if not self.legacy and (
                    len(mine) != count or size != int.from_bytes(raw[24:28], "little")
                ):
                    page.erase(i)
                else:
                    good.append(raw)
        for page in self.list:
            for i, raw in page.items():
                if raw[1] == DATA and not any(
                    g[0] == raw[0] and g[8:24] == raw[8:24] and g[29] <= raw[3] < g[29] + g[28]
                    for g in good
                ):
                    page.erase(i)

    # --- what an app does

    def namespaces(self) -> dict[bytes, int]:
        names: dict[bytes, int] = {}
        for page in self.list:
            for _, raw in page.items():
                if raw[0] == 0 and raw[1] == U8:
                    names.setdefault(raw[8:24].rstrip(b"\0"), raw[24])
        return names

    def room(self, entries: int) -> Pg:
        """The page to write to, a new one if need be (requestNewPage)."""
        page = self.list[-1]
        if page.state == ACTIVE and page.free + entries <= N:
            return page
        if page.state != FULL:
            page.mark(FULL)
        if len(self.free) >= 2:
            return self.activate()
        victim = max(self.list, key=lambda p: N - p.used())
        if victim.used() == N:
            raise NoSpace
        victim.mark(FREEING)
        self.move(victim)
        if self.list[-1].free + entries > N:
            raise NoSpace
        return self.list[-1]

    def put(self, entries: bytes) -> None:
        self.room(len(entries) // 32).append(entries)

    def namespace(self, name: bytes) -> int:
        names = self.namespaces()
        if name not in names:
            names[name] = min(set(range(1, 255)) - set(names.values()))
            self.put(item(0, U8, name, bytes([names[name]])))
        return names[name]

    def locate(
        self, ns: int, key: bytes, kind: int | None, chunk: int = 0xFF
    ) -> tuple[Pg, int] | None:
        for page in self.list:
            i = page.find(ns, key, kind, chunk)
            if i is not None:
                return page, i
        return None

    def set_item(self, name: bytes, key: bytes, kind: int, value: bytes) -> None:
        """A string (value with its NUL) or a short item."""
        ns = self.namespace(name)
        old = self.locate(ns, key, None)
        self.put(item(ns, kind, key, value))
        if old is not None:
            old = self.locate(ns, key, None)
            assert old is not None
            page, i = old
            raw = page.raw(i)
            if raw[1] == IDX:
                # Its parts as well: left behind, they would double those of the key's next blob.
                self.erase_blob(ns, key, raw[29])
            else:
                page.erase(i)

    def set_blob(self, name: bytes, key: bytes, value: bytes) -> None:
        ns = self.namespace(name)
        old = self.locate(ns, key, IDX)
        start = 0
        if old is not None:
            start = 0x80 - old[0].raw(old[1])[29]
        chunks, rest = 0, value
        while True:
            page = self.list[-1]
            tail = (N - page.free - 1) * 32 if page.state == ACTIVE and page.free < N - 1 else 0
            if chunks == 0 and tail < len(value) and tail < 400:
                self.room(N if page.free else 2)
                continue
            if not tail:
                raise NoSpace
            part, rest = rest[:tail], rest[tail:]
            page.append(item(ns, DATA, key, part, start + chunks))
            chunks += 1
            if rest or tail - len(part) < 32:
                page.mark(FULL)
                self.room(2)
            if not rest:
                break
        index = len(value).to_bytes(4, "little") + bytes([chunks, start]) + b"\xff\xff"
        self.put(item(ns, IDX, key, index))
        if old is not None:
            self.erase_blob(ns, key, 0x80 - start)

    def erase_blob(self, ns: int, key: bytes, start: int) -> None:
        for page in self.list:
            for i, raw in page.items():
                mine = raw[0] == ns and raw[8:24] == key.ljust(16, b"\0")
                if mine and raw[1] == IDX and raw[29] == start:
                    page.erase(i)
        for chunk in range(start, start + 127):
            place = self.locate(ns, key, DATA, chunk)
            if place is None:
                break
            place[0].erase(place[1])

    def delete(self, name: bytes, key: bytes) -> None:
        ns = self.namespaces().get(name)
        place = self.locate(ns, key, None) if ns is not None else None
        if ns is None or place is None:
            return
        page, i = place
        raw = page.raw(i)
        if raw[1] == IDX:
            self.erase_blob(ns, key, raw[29])
        else:
            page.erase(i)

    def read(self) -> dict[tuple[bytes, bytes], tuple[int, bytes]]:
        """(namespace, key) -> (type, value) of everything an app can read."""
        found: dict[tuple[bytes, bytes], tuple[int, bytes]] = {}
        names = {index: name for name, index in self.namespaces().items()}
        for page in self.list:
            for i, raw in page.items():
                key = raw[8:24].split(b"\0")[0]
                where = (names.get(raw[0], b"#%d" % raw[0]), key)
                if raw[0] == 0 or raw[1] == DATA or where in found:
                    continue
                if raw[1] == IDX:
                    value = b""
                    for chunk in range(raw[29], raw[29] + raw[28]):
                        place = self.locate(raw[0], key, DATA, chunk)
                        part = place[0].payload(place[1]) if place else None
                        if part is None:
                            value = b"(damaged)"
                            break
                        value += part
                    found[where] = (IDX, value)
                elif raw[1] in LONG:
                    data = page.payload(i)
                    if data is not None:
                        found[where] = (raw[1], data)
                else:
                    found[where] = (raw[1], raw[24:32])
        return found
