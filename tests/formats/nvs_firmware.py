# SPDX-License-Identifier: GPL-3.0-or-later
"""ESP-IDF's NVS code as the tests' judge: start, read, write and erase on a flash of bytes.

Written from esp32.md and from what ESP-IDF's code was seen to do, apart from
`ota_service.formats` and `esp32_sim`, so that one wrong belief does not pass on all sides.
A page is `nvs_page.Pg`; here are the pages together: the whole procedure of a start, and what
an app does. It writes by NOR rules and reports each write through `on_write`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tests.formats.nvs_page import (
    ACTIVE,
    ALL_RULES,
    ANY,
    BLOB,
    CORRUPT,
    DATA,
    FREEING,
    FULL,
    HEAD,
    IDX,
    LONG,
    PAGE,
    SHORT,
    SZ,
    TO_5_3,
    U8,
    UNINIT,
    LoadFails,
    N,
    NewVersion,
    Pg,
    Rules,
    StopsAtStart,
    crc,
    key_of,
)

__all__ = [
    "ACTIVE",
    "ALL_RULES",
    "BLOB",
    "DATA",
    "FREEING",
    "FULL",
    "HEAD",
    "IDX",
    "SZ",
    "TO_5_3",
    "U8",
    "Firmware",
    "LoadFails",
    "NewVersion",
    "NoFreePages",
    "NoSpace",
    "Rules",
    "Start",
    "StopsAtStart",
    "item",
    "start",
]

Keys = dict[tuple[bytes, bytes, int], bytes]
"""(namespace, key, type) to the value as it stands in flash; a blob's type is `IDX`."""


class NoFreePages(Exception):
    """ESP_ERR_NVS_NO_FREE_PAGES: stock apps then erase the whole partition."""


class NoSpace(Exception):
    """ESP_ERR_NVS_NOT_ENOUGH_SPACE."""


@dataclass(frozen=True)
class _Loaded:
    """A page as its loading leaves it. writes: (place, data), in order."""

    state: int
    seq: int
    version: int
    first: int
    free: int
    nodes: dict[int, bytes]
    named: dict[bytes, tuple[int, ...]]
    items: tuple[tuple[int, bytes], ...]
    writes: tuple[tuple[int, bytes], ...]


class _Alone:
    """One page by itself."""

    def __init__(self, flash: bytes, rules: Rules) -> None:
        self.flash, self.rules = bytearray(flash), rules
        self.writes: list[tuple[int, bytes]] = []

    def program(self, place: int, data: bytes) -> None:
        self.writes.append((place, data))
        for i, byte in enumerate(data):
            self.flash[place + i] &= byte

    def erase_sector(self, place: int) -> None:
        raise AssertionError("loading a page erases no sector")


@lru_cache(maxsize=1 << 13)
def _loaded(flash: bytes, rules: Rules) -> _Loaded | Exception:
    alone = _Alone(flash, rules)
    page = Pg(alone, 0)
    try:
        page.load()
    except (LoadFails, NewVersion, StopsAtStart) as error:
        return error
    items = tuple(page.items())
    return _Loaded(
        page.state, page.seq, page.version, page.first, page.free,
        page.nodes, page.named, items, tuple(alone.writes),
    )  # fmt: skip


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


_VALUES: dict[tuple[bytes, Rules], dict[tuple[int, bytes, int], bytes | None]] = {}
"""What was read of pages, by their cells."""


def _value(page: Pg, i: int) -> bytes | None:
    """A string's bytes (None where their CRC is wrong), a number's."""
    raw = page.raw(i)
    return page.payload(i) if raw[1] in LONG else raw[24 : 24 + SHORT.get(raw[1], 8)]


class Firmware:
    """A started NVS.

    Raises `NoFreePages`, `NewVersion`, `LoadFails` or `StopsAtStart` as its start would fail.
    """

    def __init__(
        self,
        flash: bytearray,
        *,
        rules: Rules = TO_5_3,
        on_write: Callable[[int, bytes | None], None] | None = None,
    ) -> None:
        self.flash, self.rules, self.on_write = flash, rules, on_write
        self.pages = [self._page(i) for i in range(len(flash) // PAGE)]
        self.list = sorted((p for p in self.pages if p.live), key=lambda p: p.seq)
        self.free = [p for p in self.pages if not p.live]
        self.next_seq = 0
        if not self.list:
            self.activate()
        else:
            self.next_seq = (self.list[-1].seq + 1) & 0xFFFFFFFF
            self._drop_twin()
            self._finish_freeing()
            if not self.free:
                raise NoFreePages
        self._match_blobs()

    def _page(self, number: int) -> Pg:
        page = Pg(self, number)
        at = number * PAGE
        loaded = _loaded(bytes(self.flash[at : at + PAGE]), self.rules)
        if isinstance(loaded, Exception):
            raise loaded
        for place, data in loaded.writes:
            self.program(at + place, data)
        page.state, page.seq, page.version = loaded.state, loaded.seq, loaded.version
        page.first, page.free = loaded.first, loaded.free
        page.nodes, page.named = dict(loaded.nodes), dict(loaded.named)
        page.walked = (page.changes, list(loaded.items))
        return page

    def program(self, place: int, data: bytes) -> None:
        if self.on_write:
            self.on_write(place, data)
        for i, byte in enumerate(data):
            self.flash[place + i] &= byte

    def erase_sector(self, place: int) -> None:
        if self.on_write:
            self.on_write(place, None)
        self.flash[place : place + PAGE] = b"\xff" * PAGE

    # --- the pages together, at a start

    def activate(self) -> Pg:
        """The first free page becomes the last one; its header comes with its first item."""
        if not self.free:
            raise NoSpace
        page = self.free[0]
        if page.state == CORRUPT:
            page.wipe()
        self.free.pop(0)
        page.seq = self.next_seq
        self.next_seq = (self.next_seq + 1) & 0xFFFFFFFF
        self.list.append(page)
        return page

    def _drop_twin(self) -> None:
        """The last item of the last page goes from the page before where it stands there too."""
        items = self.list[-1].items()
        if not items:
            return
        raw = items[-1][1]
        for kind in (raw[1], BLOB) if raw[1] == IDX else (raw[1],):
            for page in self.list[:-1]:
                if page.state != FREEING:
                    found, i, _ = page.find(raw[0], kind, key_of(raw), raw[3])
                    if found and page.erase(i):
                        return

    def _finish_freeing(self) -> None:
        page = next((p for p in self.list if p.state == FREEING), None)
        if page is None:
            return
        last = self.list[-1]
        if last.state == ACTIVE:
            last.wipe()
            self.list.remove(last)
            self.free.append(last)
        try:
            self._move(page, self.activate())
        except NoSpace:
            raise LoadFails from None

    def _move(self, page: Pg, new: Pg) -> None:
        """Entry by entry, then the page is erased."""
        if page.first < N:
            if new.state == UNINIT:
                new.initialise()
            i = page.first
            while i < N:
                if page.get(i) != 2:
                    i += 1
                    continue
                raw = page.raw(i)
                if i + raw[2] > N or not raw[2]:
                    raise StopsAtStart if self.rules.asserts else LoadFails
                new.insert(raw, new.free)
                for j in range(i, i + raw[2]):
                    new.append_entry(page.raw(j))
                i += raw[2]
        page.wipe()
        self.list.remove(page)
        self.free.append(page)

    def _match_blobs(self) -> None:
        """Indexes that do not match their parts go (`any_part`), then parts without an index."""
        indexes = [raw for page in self.list for _, raw in page.items() if raw[1] == IDX]
        if self.rules.any_part:
            indexes = self._matching(indexes)
        for page in self.list:
            for _, raw in list(page.items()):
                if raw[1] == DATA and not any(
                    g[0] == raw[0] and key_of(g) == key_of(raw) and g[29] <= raw[3] < g[29] + g[28]
                    for g in indexes
                ):
                    found, i, _ = page.find(raw[0], DATA, key_of(raw), raw[3])
                    if found:
                        page.erase(i)

    def _matching(self, indexes: list[bytes]) -> list[bytes]:
        seen = [[0, 0] for _ in indexes]
        for page in self.list:
            for _, raw in page.items():
                if raw[1] != DATA:
                    continue
                for number, g in enumerate(indexes):
                    end = 0x80 if g[29] == 0 else ANY
                    if g[0] == raw[0] and key_of(g) == key_of(raw) and g[29] <= raw[3] < end:
                        seen[number][0] += 1
                        seen[number][1] += int.from_bytes(raw[24:26], "little")
                        break
        good = []
        for g, (count, size) in zip(indexes, seen, strict=True):
            if count == g[28] and size == int.from_bytes(g[24:28], "little"):
                good.append(g)
                continue
            for page in self.list:
                found, i, _ = page.find(g[0], IDX, key_of(g), ANY, g[29])
                if found and page.erase(i):
                    break
        return good

    # --- what an app does

    def namespaces(self) -> dict[bytes, int]:
        names: dict[bytes, int] = {}
        for page in self.list:
            for _, raw in page.items():
                if raw[0] == 0 and raw[1] == U8:
                    names.setdefault(key_of(raw), raw[24])
        return names

    def new_page(self) -> None:
        """Another page to write to; the one with most to gain is moved where one is free."""
        if len(self.free) >= 2:
            self.activate()
            return
        victim = max(self.list, key=lambda p: N - p.used())
        if victim.used() == N or not self.free:
            raise NoSpace
        new = self.activate()
        victim.mark(FREEING)
        self._move(victim, new)

    def turn_page(self) -> None:
        """The last page is full."""
        if self.list[-1].state != FULL:
            self.list[-1].mark(FULL)
        self.new_page()

    def room(self, entries: int) -> Pg:
        """The page to write to, a new one if need be."""
        page = self.list[-1]
        if page.state == FULL or page.next + entries > N:
            self.turn_page()
            page = self.list[-1]
            if page.next + entries > N:
                raise NoSpace
        return page

    def put(self, entries: bytes) -> None:
        self.room(len(entries) // 32).append(entries)

    def namespace(self, name: bytes) -> int:
        names = self.namespaces()
        if name not in names:
            names[name] = min(set(range(1, 255)) - set(names.values()))
            self.put(item(0, U8, name, bytes([names[name]])))
        return names[name]

    def locate(self, ns: int, key: bytes, kind: int, chunk: int = ANY) -> tuple[Pg, int] | None:
        """The first page that finds an item of that name and type (`ANY`), and its index."""
        for page in self.list:
            found, i, _ = page.find(ns, kind, key, chunk)
            if found:
                return page, i
        return None

    def set_item(self, name: bytes, key: bytes, kind: int, value: bytes) -> None:
        """A string (value with its NUL) or a number."""
        ns = self.namespace(name)
        old = self.locate(ns, key, ANY)
        entries = item(ns, kind, key, value)
        if old is not None:
            page, i = old
            same = page.raw(i)[1] == kind and page.raw(i)[24:] == entries[24:32]
            if same and (kind not in LONG or page.payload(i) == value):
                return
        self.put(entries)
        if old is not None:
            self._erase_item(ns, key)

    def _erase_item(self, ns: int, key: bytes) -> None:
        place = self.locate(ns, key, ANY)
        if place is not None:
            page, i = place
            raw = page.raw(i)
            if raw[1] == IDX:
                # Its parts as well: left behind, they would double those of the key's next blob.
                self.erase_blob(ns, key, raw[29])
            else:
                page.erase(i)

    def set_blob(self, name: bytes, key: bytes, value: bytes) -> None:
        """In as many parts as the pages have room for; what a refusal leaves is not taken away
        where the parts are the second of their key, as the firmware does not either.
        """
        ns = self.namespace(name)
        old = self.locate(ns, key, IDX)
        if old is not None and self.blob(ns, key) == value:
            return
        start = 0 if old is None else 0x80 - old[0].raw(old[1])[29]
        if len(value) > min(len(self.pages) - 1, 127) * (N - 1) * 32:
            raise NoSpace
        used: list[Pg] = []
        try:
            self._parts(ns, key, value, start, used)
        except NoSpace:
            for number, page in enumerate(used):
                found, i, _ = page.find(ns, DATA, key, number)
                if found:
                    page.erase(i)
            raise
        if old is not None:
            self.erase_blob(ns, key, 0x80 - start)

    def _parts(self, ns: int, key: bytes, value: bytes, start: int, used: list[Pg]) -> None:
        rest = value
        while True:
            page = self.list[-1]
            tail = page.tail()
            if not used and (tail < len(value) or not tail) and tail < (N - 1) * 32 // 10:
                self.turn_page()
                if self.list[-1].tail() == tail:
                    raise NoSpace
                continue
            if not tail:
                raise NoSpace
            part, rest = rest[:tail], rest[tail:]
            page.append(item(ns, DATA, key, part, start + len(used)))
            used.append(page)
            if rest or tail - len(part) < 32:
                self.turn_page()
            if not rest:
                break
        index = len(value).to_bytes(4, "little") + bytes([len(used), start]) + b"\xff\xff"
        if self.list[-1].next >= N:
            raise NoSpace
        self.list[-1].append(item(ns, IDX, key, index))

    def erase_blob(self, ns: int, key: bytes, start: int) -> None:
        """Its index of that version, then the parts."""
        for page in self.list:
            found, i, _ = page.find(ns, IDX, key, ANY, start)
            if found:
                page.erase(i)
                break
        for page in self.list:
            for i, raw in list(page.items()):
                mine = raw[0] == ns and key_of(raw) == key and raw[1] == DATA
                if mine and raw[3] & 0x80 == start:
                    page.erase(i)

    def delete(self, name: bytes, key: bytes) -> None:
        ns = self.namespaces().get(name)
        if ns is not None:
            self._erase_item(ns, key)

    # --- what an app reads

    def blob(self, ns: int, key: bytes) -> bytes | None:
        """A blob's bytes; None where it has no index, or one of its parts is missing or wrong."""
        place = self.locate(ns, key, IDX)
        if place is None:
            return None
        raw = place[0].raw(place[1])
        value = b""
        for chunk in range(raw[29], raw[29] + raw[28]):
            place = self.locate(ns, key, DATA, chunk & 0xFF)
            part = place[0].payload(place[1]) if place else None
            if part is None:
                return None
            value += part
        return value if len(value) == int.from_bytes(raw[24:28], "little") else None

    def value(self, ns: int, key: bytes, kind: int) -> bytes | None:
        """As nvs_get of that type (`IDX` for a blob); None: not there."""
        if kind == IDX and self.locate(ns, key, IDX) is not None:
            return self.blob(ns, key)
        place = self.locate(ns, key, BLOB if kind == IDX else kind)
        return _value(*place) if place is not None else None

    def keys(self) -> Keys:
        """Everything an app can read: of each name and type what the first page finds."""
        found: dict[tuple[int, bytes, int], bytes | None] = {}
        for page in self.list:
            for place, value in self._of_page(page).items():
                if place not in found:
                    found[place] = self.value(*place) if place[2] == IDX else value
        names = list(self.namespaces().items())
        return {
            (name, key, kind): value
            for (ns, key, kind), value in found.items()
            if value is not None
            for name, i in names
            if i == ns
        }

    def _of_page(self, page: Pg) -> dict[tuple[int, bytes, int], bytes | None]:
        """(namespace, key, type) to what a page has; a blob's value is not looked for here."""
        cells = (bytes(self.flash[page.at : page.at + PAGE]), self.rules)
        if cells not in _VALUES:
            values: dict[tuple[int, bytes, int], bytes | None] = {}
            for _, raw in page.items():
                ns, kind, key = raw[0], raw[1], key_of(raw)
                if not ns or not (kind in SHORT or kind in (SZ, BLOB, IDX)):
                    continue
                found, i, _ = page.find(ns, kind, key)
                if found:
                    blob = kind in (BLOB, IDX)
                    values[ns, key, IDX if blob else kind] = None if blob else _value(page, i)
            if len(_VALUES) > 1 << 14:
                _VALUES.clear()
            _VALUES[cells] = values
        return _VALUES[cells]

    def read(self) -> dict[tuple[bytes, bytes], tuple[int, bytes]]:
        """(namespace, key) -> (type, value); of several types, the first in the pages' order."""
        found: dict[tuple[bytes, bytes], tuple[int, bytes]] = {}
        for (name, key, kind), value in self.keys().items():
            found.setdefault((name, key), (kind, value))
        return found


@dataclass(frozen=True)
class Start:
    """A start of the firmware. error: the name of what went wrong, "" where nothing did; then
    `keys` are what an app reads, and `flash` is what the start leaves.
    """

    error: str
    flash: bytes
    keys: Keys


@lru_cache(maxsize=2000)
def start(flash: bytes, rules: Rules) -> Start:
    """A start by `rules`, computed once for equal contents."""
    cells = bytearray(flash)
    try:
        firmware = Firmware(cells, rules=rules)
    except (LoadFails, NewVersion, NoFreePages, NoSpace, StopsAtStart) as error:
        return Start(type(error).__name__, bytes(cells), {})
    return Start("", bytes(cells), firmware.keys())
