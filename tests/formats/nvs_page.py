# SPDX-License-Identifier: GPL-3.0-or-later
"""One page of NVS as ESP-IDF's code loads, searches, repairs and writes it.

The tests' own belief, written from esp32.md ("What the firmware does when it loads a page") and
from what ESP-IDF's code was seen to do, apart from `ota_service.formats` and `esp32_sim`.
Versions differ in what `Rules` names; a judge asks all of them (`ALL_RULES`).
"""

from __future__ import annotations

import binascii
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Protocol

EMPTY, WRITTEN, ILLEGAL, ERASED = 3, 2, 1, 0
UNINIT, ACTIVE, FULL, FREEING, CORRUPT = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFC, 0xFFFFFFF8, 0
SZ, BLOB, DATA, IDX, U8 = 0x21, 0x41, 0x42, 0x48, 0x01
LONG = (SZ, BLOB, DATA)
SHORT = {0x01: 1, 0x11: 1, 0x02: 2, 0x12: 2, 0x04: 4, 0x14: 4, 0x08: 8, 0x18: 8}
"""Type of a number: its size in bytes."""
ANY = 255
"""Of a namespace, a type or a chunk: any. A blob's index has this chunk, a string as well."""
N = 126
NEVER = 1 << 32
"""Of an entry: none."""
PAGE = 4096


@dataclass(frozen=True)
class Rules:
    """What ESP-IDF's versions do differently when they load.

    any_part: a blob's part is looked for whatever its chunk, so that the check of the last item
    finds another part; an index that does not match its parts is erased at the start.
    strict: a header with the right CRC and an impossible type, span or length is wrong as well.
    purges: what is erased is also programmed to zero (and there are two types more). asserts: an
    assertion ends in a restart where later versions return an error.
    """

    name: str
    any_part: bool = False
    strict: bool = False
    purges: bool = False
    asserts: bool = False


TO_4_3 = Rules("3.3 to 4.3", asserts=True)
TO_5_1 = Rules("4.4, 5.0, 5.1.2")
TO_5_3 = Rules("4.4.8, 5.2.3, 5.3", any_part=True)
TO_5_5 = Rules("5.4, 5.5", any_part=True, strict=True)
HEAD = Rules("after 5.5", any_part=True, strict=True, purges=True)
ALL_RULES = (TO_4_3, TO_5_1, TO_5_3, TO_5_5, HEAD)


class StopsAtStart(Exception):
    """An assertion: the board restarts for ever."""


class NewVersion(Exception):
    """ESP_ERR_NVS_NEW_VERSION_FOUND: stock apps then erase the whole partition."""


class LoadFails(Exception):
    """Another error of the start."""


class Flash(Protocol):
    """What a page stands on."""

    flash: bytearray
    rules: Rules

    def program(self, place: int, data: bytes) -> None:
        """AND `data` in."""

    def erase_sector(self, place: int) -> None:
        """Set a sector to 0xFF."""


def crc(data: bytes) -> int:
    """esp_rom_crc32_le from 0xFFFFFFFF."""
    return binascii.crc32(data, 0xFFFFFFFF)


def name_of(ns: int, key: bytes, chunk: int) -> bytes:
    """What the firmware's list of hashes knows an item by; the type is not part of it."""
    return bytes([ns]) + key[:15].ljust(16, b"\0") + bytes([chunk])


def key_of(raw: bytes) -> bytes:
    """An item's key, as a C string of at most 15 bytes."""
    return raw[8:23].split(b"\0")[0]


@lru_cache(maxsize=1 << 16)
def whole(raw: bytes) -> bool:
    """Whether an entry has the CRC of an item's header."""
    return crc(raw[:4] + raw[8:]) == int.from_bytes(raw[4:8], "little")


def possible(raw: bytes, index: int, rules: Rules) -> bool:
    """Whether type, span and length of an item at `index` go together."""
    kind, span, chunk = raw[1], raw[2], raw[3]
    if kind in LONG:
        size = int.from_bytes(raw[24:26], "little")
        return not (kind == DATA and chunk == ANY) and span == 1 + -(-size // 32) <= N - index
    if kind == IDX:
        largest = 127 * (N - 1) * 32
        return span == 1 and chunk == ANY and int.from_bytes(raw[24:28], "little") <= largest
    return span == 1 and (kind in SHORT or (rules.purges and kind in (0x24, 0x28)))


class Pg:
    """A page in the firmware's memory.

    first: the first used entry. free: the next free one; NEVER where the page is not written to.
    nodes: the name of each item in the list of hashes, by index. named: the indexes by name.
    """

    def __init__(self, nvs: Flash, number: int) -> None:
        self.nvs, self.at = nvs, number * PAGE
        self.state, self.seq, self.version = UNINIT, 0, 0xFE
        self.first = self.free = NEVER
        self.nodes: dict[int, bytes] = {}
        self.named: dict[bytes, tuple[int, ...]] = {}
        self.changes = 0
        self.walked: tuple[int, list[tuple[int, bytes]]] | None = None

    @property
    def live(self) -> bool:
        """Whether it has a number and a place among the others."""
        return self.state in (ACTIVE, FULL, FREEING)

    @property
    def next(self) -> int:
        """Where the next item goes; `N`: nowhere."""
        return 0 if self.state == UNINIT else min(self.free, N)

    def tail(self) -> int:
        """How many bytes of a part of a blob it has room for."""
        return 0 if self.state == FULL else max(N - self.next - 1, 0) * 32

    # --- entries and their states

    def word(self, place: int) -> int:
        return int.from_bytes(self.nvs.flash[self.at + place : self.at + place + 4], "little")

    def get(self, i: int) -> int:
        return self.nvs.flash[self.at + 32 + i // 4] >> (i % 4 * 2) & 3

    def set(self, first: int, count: int, state: int) -> None:
        """Word by word, from the last entry to the first."""
        table = bytearray(self.nvs.flash[self.at + 32 : self.at + 64])
        word = None
        for i in range(first + count - 1, first - 1, -1):
            if word is not None and word != i // 16:
                self.program(32 + word * 4, bytes(table[word * 4 : word * 4 + 4]))
            word = i // 16
            shift = i % 4 * 2
            table[i // 4] = table[i // 4] & ~(3 << shift) & 0xFF | state << shift
        assert word is not None
        self.program(32 + word * 4, bytes(table[word * 4 : word * 4 + 4]))

    def program(self, place: int, data: bytes) -> None:
        self.changes += 1
        self.nvs.program(self.at + place, data)

    def raw(self, i: int) -> bytes:
        return bytes(self.nvs.flash[self.at + 64 + i * 32 : self.at + 96 + i * 32])

    def good(self, raw: bytes, i: int) -> bool:
        """Whether the header is one."""
        return whole(raw) and (not self.nvs.rules.strict or possible(raw, i, self.nvs.rules))

    def erase(self, i: int) -> bool:
        """An item with all of its span, or one entry where the header is wrong; False: cannot."""
        rules, state, raw = self.nvs.rules, self.get(i), self.raw(i)
        if rules.asserts and state not in (WRITTEN, EMPTY):
            raise StopsAtStart
        span = 1
        if state == WRITTEN:
            known = self.nodes.pop(i, None)
            if known is not None:
                self.named[known] = tuple(j for j in self.named[known] if j != i)
            if self.good(raw, i):
                span = raw[2]
                if rules.asserts and (known is None or not 0 < span <= N - i):
                    raise StopsAtStart
                if not 0 < span <= N - i:
                    return False
        self.set(i, span, ERASED)
        if rules.purges:
            self.purge(i, span)
        if i == self.first:
            after = range(i + span, min(self.free, N))
            self.first = next((j for j in after if self.get(j) == WRITTEN), NEVER)
        if self.free != NEVER:
            self.free = max(self.free, i + span)
        return True

    def purge(self, first: int, count: int) -> None:
        for i in range(first, first + count):
            self.program(64 + i * 32, b"\0" * 32)

    # --- loading

    def load(self) -> None:
        """Take the page in and repair it; raises `NewVersion`, `LoadFails`, `StopsAtStart`."""
        header = bytes(self.nvs.flash[self.at : self.at + 32])
        self.state = int.from_bytes(header[:4], "little")
        if self.state == UNINIT:
            if self.nvs.flash[self.at : self.at + PAGE] != b"\xff" * PAGE:
                self.state = CORRUPT
            return
        if crc(header[4:28]) != int.from_bytes(header[28:], "little"):
            self.state = CORRUPT
            return
        self.seq, self.version = int.from_bytes(header[4:8], "little"), header[8]
        if self.version < 0xFE:
            raise NewVersion
        if not self.live:
            self.state = CORRUPT
            return
        self.first = next((i for i in range(N) if self.get(i) == WRITTEN), NEVER)
        if self.state == ACTIVE:
            self.load_active()
        else:
            self.load_full()

    def load_active(self) -> None:
        """esp32.md, steps 2 to 4."""
        self.free = next((i for i in range(N) if self.get(i) == EMPTY), NEVER)
        while self.free < N and self.raw(self.free)[:4] != b"\xff" * 4:
            self.set(self.free, 1, ERASED)
            if self.nvs.rules.purges:
                self.purge(self.free, 1)
            self.free += 1
        i, end = 0, min(self.free, N)
        last: int | None = None
        raw = b""
        while i < end:
            state = self.get(i)
            if state == ERASED:
                last, i = None, i + 1
                continue
            if state == ILLEGAL and not self.nvs.rules.asserts:
                self.erase(i)
                last, i = None, i + 1
                continue
            last, raw = i, self.raw(i)
            if not self.good(raw, i):
                if not self.erase(i):
                    raise LoadFails
                i += 1
                continue
            twin = self.hashed(self.insert(raw, i))
            span = 1
            if raw[1] in LONG:
                span = raw[2]
                if not self.all_written(i, span):
                    self.erase(i)
                    last, i = None, i + max(span, 1)
                    continue
            if twin < i:
                self.erase(twin)
            i += max(span, 1)
        if last is not None:
            # `raw` may be what is left of an item whose header was wrong.
            code, found, _ = self.find(raw[0], raw[1], key_of(raw))
            if code and found < last and not self.erase(found):
                raise LoadFails

    def load_full(self) -> None:
        """esp32.md, step 6."""
        i = self.first
        while i < N:
            raw = self.raw(i)
            if self.get(i) != WRITTEN:
                i += 1
                continue
            if not self.good(raw, i):
                if not self.erase(i):
                    raise LoadFails
                i += 1
                continue
            if not raw[2]:
                raise StopsAtStart if self.nvs.rules.asserts else LoadFails
            self.insert(raw, i)
            if raw[1] in LONG and not self.all_written(i + 1, raw[2] - 1):
                self.erase(i)
            i += raw[2]

    def all_written(self, first: int, count: int) -> bool:
        """Whether entries are all WRITTEN; it fails where it has to look beyond the page."""
        for j in range(first, first + count):
            if j >= N:
                raise StopsAtStart if self.nvs.rules.asserts else LoadFails
            if self.get(j) != WRITTEN:
                return False
        return True

    def insert(self, raw: bytes, i: int) -> bytes:
        name = raw[:1] + raw[8:24] + raw[3:4]
        self.nodes[i] = name
        self.named[name] = (*self.named.get(name, ()), i)
        return name

    def hashed(self, name: bytes, start: int = 0) -> int:
        """The first item of that name from entry `start` on; NEVER."""
        return next((i for i in self.named.get(name, ()) if i >= start), NEVER)

    # --- searching

    def scan(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(index, header) of the items from `start` on; wrong headers are erased on the way."""
        i = start
        while i < min(self.free, N):
            if self.get(i) != WRITTEN:
                i += 1
                continue
            raw = self.raw(i)
            if not self.good(raw, i):
                self.erase(i)
                i += 1
                continue
            yield i, raw
            i += max(raw[2], 1) if raw[1] in LONG else 1

    def items(self) -> list[tuple[int, bytes]]:
        """(index, header) of each item that a search walks over."""
        if not self.live:
            return []
        if self.walked is None or self.walked[0] != self.changes:
            found = list(self.scan(self.first))
            self.walked = (self.changes, found)
        return self.walked[1]

    def find(
        self, ns: int, kind: int, key: bytes | None, chunk: int = ANY, version: int = ANY
    ) -> tuple[bool, int, bytes]:
        """(found, index, header) of the first item of that name; ANY and None match all.

        Not found as well where the first of that name has another type.
        version: of a blob's index, 0 or 0x80.
        """
        nothing = (False, NEVER, b"")
        if not self.live:
            return nothing
        start = self.first
        any_part = self.nvs.rules.any_part
        unhashed = (kind == DATA and chunk == ANY) if any_part else kind == ANY
        if ns != ANY and key is not None and not unhashed:
            start = self.hashed(name_of(ns, key, chunk), start)
            if start == NEVER:
                return nothing
        items = self.items()
        place = bisect_left(items, (start, b""))
        if start != self.first and (place == len(items) or items[place][0] != start):
            items, place = list(self.scan(start)), 0
        for i, raw in islice(items, place, None):
            if (ns not in (ANY, raw[0])) or (key is not None and key[:15] != key_of(raw)):
                continue
            if kind == DATA and chunk not in (ANY, raw[3]):
                continue
            if any_part and chunk == ANY:
                if (kind == DATA) != (raw[1] == DATA) and kind in (DATA, BLOB):
                    continue
                if kind == BLOB and raw[1] == IDX:
                    return nothing
            if kind == IDX and (raw[3] != ANY or version not in (ANY, raw[29])):
                continue
            if kind not in (ANY, raw[1]):
                if key is None and ns == ANY and chunk == ANY:
                    continue
                return nothing
            return True, i, raw
        return nothing

    def payload(self, i: int) -> bytes | None:
        """A long item's bytes, None where their CRC is wrong."""
        raw = self.raw(i)
        size = int.from_bytes(raw[24:26], "little")
        at = self.at + 64 + (i + 1) * 32
        data = bytes(self.nvs.flash[at : at + min(size, (raw[2] - 1) * 32)])
        return data if crc(data) == int.from_bytes(raw[28:32], "little") else None

    def used(self) -> int:
        return sum(self.get(i) == WRITTEN for i in range(N)) if self.live else 0

    # --- writing

    def initialise(self) -> None:
        """The header of a page that is written to for the first time."""
        body = self.seq.to_bytes(4, "little") + bytes([self.version]) + b"\xff" * 19
        header = ACTIVE.to_bytes(4, "little") + body + crc(body).to_bytes(4, "little")
        self.program(0, header)
        self.state, self.free, self.first = ACTIVE, 0, NEVER

    def mark(self, state: int) -> None:
        self.program(0, state.to_bytes(4, "little"))
        self.state = state

    def wipe(self) -> None:
        self.changes += 1
        self.nvs.erase_sector(self.at)
        self.state, self.nodes, self.named = UNINIT, {}, {}
        self.first = self.free = NEVER

    def append_entry(self, entry: bytes) -> None:
        """One entry, then its bit."""
        self.program(64 + self.free * 32, entry)
        self.set(self.free, 1, WRITTEN)
        self.first = min(self.first, self.free)
        self.free += 1

    def append(self, entries: bytes) -> None:
        """An item: header and its bit, the whole entries of its payload, the rest."""
        if self.state == UNINIT:
            self.initialise()
        self.insert(entries, self.free)
        self.append_entry(entries[:32])
        size = int.from_bytes(entries[24:26], "little") if entries[1] in LONG else 0
        full = size // 32 if len(entries) > 32 else 0
        if full:
            self.program(64 + self.free * 32, entries[32 : 32 + full * 32])
            self.set(self.free, full, WRITTEN)
            self.free += full
        if len(entries) > 32 + full * 32:
            self.append_entry(entries[32 + full * 32 :])
