# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS partitions as boards may have them, written by the simulator's own NVS code or the tests'.

Both follow ESP-IDF's and share nothing with `formats/`. Torn shapes are made as boards
make them: the app writes, and a reset meets it between two of its flash operations or within
one.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from esp32_sim.factory import default_nvs
from esp32_sim.nvsmodel import MemoryRegion, NvsStore, NvsValue, Write
from tests.formats import nvs_images
from tests.formats.nvs_firmware import DATA, IDX, SZ, U8, NoSpace, item
from tests.formats.nvs_firmware import Firmware as App
from tests.prove.images import OLD

SECTOR = 0x1000
ENTRIES = 126
SPACE = "VIAM_NS"
KEY = "OTA_VERSION"

Build = Callable[[int, random.Random], bytes]


def store_on(cells: bytearray) -> tuple[NvsStore, MemoryRegion]:
    """A store, and its region with the list of its writes."""
    region = MemoryRegion(cells)
    store = NvsStore(region)
    store.init()
    return store, region


def blank(size: int, rng: random.Random) -> bytes:
    """Never written."""
    return b"\xff" * size


def small(size: int, rng: random.Random) -> bytes:
    """A few keys."""
    return _with(size, {"ROBOT_ID": "0123456789abcdef", KEY: OLD.tag, "WIFI_SSID": "shop"})


def robot(size: int, rng: random.Random) -> bytes:
    """What a provisioned robot keeps."""
    return _with(size, default_nvs(version=OLD.tag))


def _with(size: int, values: dict[str, NvsValue], spaces: tuple[str, ...] = ("phy",)) -> bytes:
    cells = bytearray(b"\xff" * size)
    store, _ = store_on(cells)
    for space in spaces:
        store.set(space, "cal_version", 1143)
    for key, value in values.items():
        store.set(SPACE, key, value)
    return bytes(cells)


def _active(cells: bytes | bytearray) -> int:
    """The page that is written to: the ACTIVE one, else the newest."""
    pages = [
        (int.from_bytes(cells[at + 4 : at + 8], "little"), at)
        for at in range(0, len(cells), SECTOR)
        if cells[at : at + 4] == b"\xfe\xff\xff\xff"
    ]
    return max(pages)[1]


def empty_entries(cells: bytes | bytearray) -> int:
    """How many entries of the active page were never written."""
    at = _active(cells)
    bitmap = cells[at + 32 : at + 64]
    return sum(bitmap[i // 4] >> (i % 4 * 2) & 3 == 3 for i in range(ENTRIES))


def free_pages(cells: bytes | bytearray) -> int:
    """Pages without data."""
    return sum(
        cells[at : at + 4] == b"\xff" * 4 or cells[at : at + 4] == b"\xf0\xff\xff\xff"
        for at in range(0, len(cells), SECTOR)
    )


def _fill_page(cells: bytearray, left: int, tag: str = "n") -> None:
    """Long strings, then small keys, until `left` entries of the active page are empty."""
    store, _ = store_on(cells)
    number = 0
    while (room := empty_entries(cells)) != left:
        long = room > left + 24
        store.set("app", f"{tag}{number}", "z" * 600 if long else number)
        number += 1


def nearly_full(size: int, rng: random.Random) -> bytes:
    """One entry left in the active page; a string takes two."""
    cells = bytearray(robot(size, rng))
    _fill_page(cells, 1)
    return bytes(cells)


def full_page(size: int, rng: random.Random) -> bytes:
    """No entry left in the active page, which is still called active."""
    cells = bytearray(robot(size, rng))
    _fill_page(cells, 0)
    return bytes(cells)


def _crowd(size: int, rng: random.Random, values: dict[str, NvsValue]) -> bytearray:
    """All pages but one in use; some of what is in them is outdated."""
    cells = bytearray(_with(size, values))
    store, _ = store_on(cells)
    number = 0
    while free_pages(cells) > 1:
        # Some keys are written again and again, so that pages have something to collect.
        store.set("app", f"log{number % 9}", rng.randbytes(300 + number % 7 * 40))
        number += 1
        if number > 9:
            store.set("app", f"note{number}", rng.randbytes(700 if size < 0x10000 else 3600))
    return cells


def no_second_free(size: int, rng: random.Random) -> bytes:
    """One free page, and no room in the active one: a page has to be collected."""
    cells = _crowd(size, rng, default_nvs(version=OLD.tag))
    _fill_page(cells, 1)
    return bytes(cells)


def rotated(size: int, rng: random.Random) -> bytes:
    """The free page is not the last, and the order of the pages is not that of their places."""
    cells = _crowd(size, rng, default_nvs(version=OLD.tag))
    store, _ = store_on(cells)
    number = 0
    while cells[-SECTOR : -SECTOR + 4] == b"\xff" * 4 or _active(cells) > size // 2:
        store.set("app", f"log{number % 9}", rng.randbytes(420))
        number += 1
    return bytes(cells)


def rotated_full(size: int, rng: random.Random) -> bytes:
    """The same with no room in the active page."""
    cells = bytearray(rotated(size, rng))
    _fill_page(cells, 1, "m")
    return bytes(cells)


def blobs(size: int, rng: random.Random) -> bytes:
    """A blob in parts on several pages, the version behind it."""
    values: dict[str, NvsValue] = {"ROBOT_ID": "0123456789abcdef", "TLS_CERT": rng.randbytes(5200)}
    return _with(size, values | {KEY: OLD.tag, "ROBOT_CONFIG": rng.randbytes(900)})


def no_namespace(size: int, rng: random.Random) -> bytes:
    """Other namespaces only."""
    return _with(size, {}, ("phy", "nvs.net80211", "app"))


def long_tag(size: int, rng: random.Random) -> bytes:
    """A version of 128 bytes."""
    return _with(size, default_nvs(version=OLD.tag) | {KEY: "v" * 128})


def other_type(size: int, rng: random.Random) -> bytes:
    """The version under its name, but as a number."""
    return _with(size, default_nvs(version=OLD.tag) | {KEY: 17})


def as_blob(size: int, rng: random.Random) -> bytes:
    """The version under its name, but as a blob."""
    return _with(size, default_nvs(version=OLD.tag) | {KEY: rng.randbytes(40)})


def first_format(size: int, rng: random.Random) -> bytes:
    """Pages of the first format, with blobs of the old type."""
    return nvs_images.board(size, OLD.tag, version=1)


# --- torn by a reset in the middle of the app's own writing


def _writes(cells: bytes, act: Callable[[NvsStore], None]) -> list[Write]:
    """The flash operations of what the app does."""
    store, region = store_on(bytearray(cells))
    region.writes.clear()
    act(store)
    return region.writes


def _after(cells: bytes, writes: list[Write], share: float = 0.0) -> bytes:
    """The partition after all of `writes`, the last one done to `share` of its bytes."""
    region = MemoryRegion(bytearray(cells))
    for write in writes[:-1] if share else writes:
        if write.data:
            region.program(write.offset, write.data)
        else:
            region.erase_sector(write.offset)
    if share:
        last = writes[-1]
        if last.data:
            region.program(last.offset, last.data[: max(1, int(len(last.data) * share))])
    return bytes(region.cells)


def _torn(base: Build, act: Callable[[NvsStore], None], after: int, share: float = 0.0) -> Build:
    """`base`, and the app's writing cut after `after` operations (from its end where negative)."""

    def build(size: int, rng: random.Random) -> bytes:
        cells = base(size, rng)
        writes = _writes(cells, act)
        count = after if after >= 0 else len(writes) + after
        return _after(cells, writes[:count], share)

    return build


def _note(store: NvsStore) -> None:
    store.set("app", "note", "x" * 150)


def _note_again(store: NvsStore) -> None:
    store.set("phy", "cal_version", 2286)


def _certificate(store: NvsStore) -> None:
    store.set(SPACE, "TLS_CERT", b"\x5a" * 1300)


def _password(store: NvsStore) -> None:
    store.set(SPACE, "WIFI_PASSWORD", "another password")


def _version(store: NvsStore) -> None:
    store.set(SPACE, KEY, "rel-1-by-app")


def _collecting(share: float) -> Build:
    """The app was moving the items of a page that it frees."""

    def build(size: int, rng: random.Random) -> bytes:
        cells = no_second_free(size, rng)
        writes = _writes(cells, lambda store: store.set("app", "more", "y" * 300))
        start = next(
            i for i, w in enumerate(writes) if w.data[:4] == b"\xf8\xff\xff\xff"
        )  # FREEING
        end = next(
            (i for i in range(start + 1, len(writes)) if not writes[i].data), len(writes)
        )  # the freed page is erased
        return _after(cells, writes[: start + 1 + int((end - start - 1) * share)])

    return build


# --- by the tests' own firmware: what comes of full pages, refused writes and blobs in parts


def _crowded(app: App, left: int) -> None:
    """Strings that stay until one page is free and `left` entries of the last one are empty."""
    space, number = app.namespace(b"app"), 0
    while len(app.free) > 1 or app.list[-1].next < ENTRIES - left:
        page = app.list[-1]
        if len(app.free) > 1 and page.next == ENTRIES:
            app.turn_page()
            continue
        room = ENTRIES - page.next - (left if len(app.free) <= 1 else 0)
        value = b"z" * (min(room, 60) * 32 - 33) + b"\0"
        if room == 1:
            page.append(item(space, U8, b"u%d" % number, b"\x01"))
        else:
            page.append(item(space, SZ, b"f%d" % number, value))
        number += 1


def _robot_app(size: int) -> App:
    app = App(bytearray(b"\xff" * size))
    for key, value in default_nvs(version=OLD.tag).items():
        if isinstance(value, str):
            app.set_item(SPACE.encode(), key.encode(), SZ, value.encode() + b"\0")
        elif isinstance(value, bytes):
            app.set_blob(SPACE.encode(), key.encode(), value)
    return app


def last_part(size: int, rng: random.Random) -> bytes:
    """A full page with much to gain whose last item is a blob's second part, the first before it.

    So it stands where the app's own collection met the page that it was filling.
    """
    app = _robot_app(size)
    app.turn_page()
    space, page = app.namespace(SPACE.encode()), app.list[-1]
    key, first = b"ROBOT_LOG", rng.randbytes(700)
    page.append(item(space, DATA, key, first, 0))
    for number in range(6):
        app.set_item(b"app", b"log%d" % number, SZ, b"l" * 100 + b"\0")
    for number in range(6):
        app.delete(b"app", b"log%d" % number)
    second = rng.randbytes(page.tail())
    page.append(item(space, DATA, key, second, 1))
    app.turn_page()
    length = (len(first) + len(second)).to_bytes(4, "little")
    app.put(item(space, IDX, key, length + b"\x02\0\xff\xff"))
    _crowded(app, 1)
    return bytes(app.flash)


def _part_moved(share: float) -> Build:
    """The app was moving that page, and power failed: some of its items stand there twice."""

    def build(size: int, rng: random.Random) -> bytes:
        cells = bytearray(last_part(size, rng))
        app, states = App(cells), [bytes(cells)]
        app.on_write = lambda place, data: states.append(bytes(cells))
        app.turn_page()
        return states[1 + int((len(states) - 2) * share)]

    return build


def refused(size: int, rng: random.Random) -> bytes:
    """The parts of a blob that found no room, second of their key; only they are in the way."""
    app = _robot_app(size)
    app.set_blob(SPACE.encode(), b"NETWORKS", rng.randbytes(300))
    _crowded(app, 24)
    with contextlib.suppress(NoSpace):
        app.set_blob(SPACE.encode(), b"NETWORKS", rng.randbytes(9000))
    return bytes(app.flash)


def corrupt_page(size: int, rng: random.Random) -> bytes:
    """A page whose header was half written: free, but not blank."""
    cells = bytearray(no_second_free(size, rng))
    at = next(a for a in range(0, size, SECTOR) if cells[a : a + 4] == b"\xff" * 4)
    cells[at : at + 12] = b"\xfe\xff\xff\xff\x55\x01\x00\x00\xfe\xff\xff\xff"
    return bytes(cells)


CORE: dict[str, Build] = {
    "small": small,
    "nearly-full": nearly_full,
    "no-second-free": no_second_free,
    "rotated": rotated,
    "blobs": blobs,
    "no-namespace": no_namespace,
    "blank": blank,
    "torn-string": _torn(robot, _note, 4),
}
"""The shapes that are combined with everything else."""

MORE: dict[str, Build] = {
    "robot": robot,
    "full-page": full_page,
    "rotated-full": rotated_full,
    "long-tag": long_tag,
    "other-type": other_type,
    "as-blob": as_blob,
    "first-format": first_format,
    "torn-header": _torn(robot, _note, 2, 0.4),
    "torn-unmarked": _torn(robot, _note, 2),
    "torn-number": _torn(robot, _note_again, -1),
    "torn-blob": _torn(robot, _certificate, 5),
    "torn-blob-end": _torn(robot, _certificate, -3),
    "torn-version": _torn(robot, _version, -1),
    "torn-version-2": _torn(robot, _version, 3),
    "torn-password": _torn(robot, _password, 1),
    "torn-password-2": _torn(robot, _password, 2),
    "torn-version-1": _torn(robot, _version, 1),
    "torn-full": _torn(nearly_full, _note, 1),
    "torn-full-2": _torn(nearly_full, _note, 3),
    "freeing-begun": _collecting(0.0),
    "freeing-half": _collecting(0.5),
    "freeing-done": _collecting(1.0),
    "corrupt-page": corrupt_page,
    "last-part": last_part,
    "part-moved-half": _part_moved(0.5),
    "part-moved": _part_moved(0.9),
    "refused": refused,
}
"""Further ones, which meet each of the other dimensions' values pairwise."""

SHAPES = CORE | MORE
