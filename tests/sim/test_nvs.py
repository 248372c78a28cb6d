# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS: what the model writes others read, what others write it reads, and power cuts anywhere."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from esp_idf_nvs_partition_gen import nvs_partition_gen
from idftool.nvs.parser import parse

from esp32_sim.factory import build_nvs, default_nvs
from esp32_sim.nvsformat import ACTIVE, ERASED, FREEING, FULL, Item, NvsError, crc32
from esp32_sim.nvsmodel import (
    MemoryRegion,
    NvsState,
    NvsStore,
    NvsValue,
    nvs_init,
    with_key,
)
from esp32_sim.nvspage import Page

SPACE = "VIAM_NS"


def fresh(pages: int) -> bytearray:
    """A blank partition."""
    return bytearray(b"\xff" * 4096 * pages)


def opened(cells: bytearray) -> NvsStore:
    """A store after init."""
    store = NvsStore(cells)
    store.init()
    return store


def plain(value: NvsValue) -> bytes:
    """A value as its bytes."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    return struct.pack("<I" if value >= 0 else "<i", value)


def same(state: NvsState, expected: dict[str, NvsValue]) -> bool:
    """Whether the namespace holds exactly these keys."""
    found = {key: value for (space, key), (_, value) in state.items.items() if space == SPACE}
    return found == {key: plain(value) for key, value in expected.items()}


def idftool_items(cells: bytes | bytearray) -> dict[tuple[str, str], Any]:
    """What idftool's independent reader finds."""
    image = parse(bytes(cells))
    return {(entry.namespace, entry.key): entry.value for entry in image.entries}


def test_idftool_reads_what_the_model_writes() -> None:
    """Strings, blobs, numbers, after many changes and page rotations."""
    rng = random.Random(3)
    cells = fresh(6)
    store = opened(cells)
    expected: dict[tuple[str, str], Any] = {}
    for step in range(400):
        number = rng.randrange(12)
        key = f"key{number}"
        text = f"text {step} " + "x" * rng.randrange(200)
        value: NvsValue = (text, rng.randbytes(rng.randrange(1, 900)), step)[number % 3]
        store.set(SPACE, key, value)
        expected[SPACE, key] = value
    assert idftool_items(cells) == expected
    again = nvs_init(cells)
    assert again.error is None
    assert again.writes == ()
    assert same(again, {key: value for (_, key), value in expected.items()})


def test_model_reads_what_espressifs_generator_writes(tmp_path: Any) -> None:
    """esp-idf-nvs-partition-gen's strings, numbers and multi-page blobs."""
    rows = [
        "key,type,encoding,value",
        f"{SPACE},namespace,,",
        "OTA_VERSION,data,string,1.4.2",
        "EMPTY,data,string,",
        "NUMBER,data,u32,4000000000",
        "SMALL,data,i8,-5",
        "BLOB,data,hex2bin," + "ab12" * 500,
        "other,namespace,,",
        "OTA_VERSION,data,string,not this one",
    ]
    big = tmp_path / "big.bin"
    big.write_bytes(random.Random(1).randbytes(6000))
    rows.insert(-2, f"BIG,file,binary,{big}")
    source = tmp_path / "nvs.csv"
    source.write_text("\n".join(rows) + "\n")
    target = tmp_path / "nvs.bin"
    args = type("Args", (), {})()
    args.input, args.output, args.size, args.version = str(source), str(target), "0x6000", 2
    args.outdir = str(tmp_path)
    nvs_partition_gen.generate(args)
    cells = bytearray(target.read_bytes())
    state = nvs_init(cells)
    assert state.error is None
    assert state.writes == ()
    assert state.string(SPACE, "OTA_VERSION") == "1.4.2"
    assert state.string("other", "OTA_VERSION") == "not this one"
    assert state.string(SPACE, "EMPTY") == ""
    assert state.items[SPACE, "NUMBER"] == ("u32", struct.pack("<I", 4_000_000_000))
    assert state.items[SPACE, "SMALL"] == ("i8", b"\xfb")
    assert state.items[SPACE, "BLOB"] == ("blob", bytes.fromhex("ab12" * 500))
    assert state.items[SPACE, "BIG"] == ("blob", big.read_bytes())
    # And it writes on from there.
    opened(cells).set(SPACE, "OTA_VERSION", "1.5.0")
    assert idftool_items(cells)[SPACE, "OTA_VERSION"] == "1.5.0"


def test_ready_made_board() -> None:
    """What `factory` builds: read back by both readers."""
    values = default_nvs(version="1.2.3")
    cells = bytearray(build_nvs(0x4000, values))
    found = {key: v for (space, key), v in idftool_items(cells).items() if space == SPACE}
    assert found == values
    assert same(nvs_init(cells), values)


def test_entries_are_encrypted_and_nothing_else_of_nvs() -> None:
    """Page headers and states stand there as ever; the entries are noise but for who has the key,
    and go on being so when the firmware writes."""
    plain = build_nvs(0x4000, default_nvs())
    cells = bytearray(build_nvs(0x4000, default_nvs(), key="k"))
    for at in range(0, 0x4000, 32):
        mine, theirs = cells[at : at + 32], plain[at : at + 32]
        assert (mine == theirs) == (at % 0x1000 < 64 or theirs == b"\xff" * 32), hex(at)
    assert nvs_init(bytearray(cells)).items == {}, "without the key nothing is found"
    store = NvsStore(with_key(MemoryRegion(cells), "k"))
    store.init()
    store.set("VIAM_NS", "OTA_VERSION", "2.0.0")
    expected = dict(nvs_init(bytearray(plain)).items)
    expected["VIAM_NS", "OTA_VERSION"] = ("string", b"2.0.0")
    assert nvs_init(cells, key="k").items == expected
    assert b"2.0.0" not in cells


def test_missing_value() -> None:
    """A key that does not exist is None, not an empty string."""
    assert nvs_init(fresh(3)).string(SPACE, "OTA_VERSION") is None


@pytest.mark.slow
@pytest.mark.parametrize("pages", [3, 4, 6])
def test_power_cut_after_every_write(pages: int) -> None:
    """At every cut of a key change, init gives the old or the new value, all else intact.

    The model's own writes stand for the firmware's: this is ESP-IDF's promise, so it holds only
    if both the order of writes and the repairs at init are ESP-IDF's.
    """
    base: dict[str, NvsValue] = dict(default_nvs(version="1.0.0"))
    if pages == 3:
        base = {key: value for key, value in base.items() if key != "TLS_CERT"}
    cells = bytearray(build_nvs(4096 * pages, base, other={}))
    store = opened(cells)
    # Fill up, so that the changes below cross pages and collect some.
    for i in range(90):
        store.set(SPACE, "OTA_VERSION", f"0.{i}.0 " + "y" * 60)
    base["OTA_VERSION"] = "0.89.0 " + "y" * 60
    cuts = 0
    for step in range(30):
        new = f"1.{step}.0 " + "z" * 60
        copy = MemoryRegion(bytearray(cells))
        writer = NvsStore(copy)
        writer.init()
        writer.set(SPACE, "OTA_VERSION", new)
        after = {**base, "OTA_VERSION": new}
        for count in range(len(copy.writes) + 1):
            cut = MemoryRegion(bytearray(cells))
            for write in copy.writes[:count]:
                if write.data:
                    cut.program(write.offset, write.data)
                else:
                    cut.erase_sector(write.offset)
            state = nvs_init(cut.cells)
            assert state.error is None
            assert same(state, base) or same(state, after), (step, count)
            cuts += 1
        cells[:] = copy.cells
        base = after
    assert cuts > 150


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_power_cut_anywhere_in_random_histories(seed: int, older: bool) -> None:
    """Strings, blobs and numbers in any order, in small partitions, cut after every write.

    Newer ESP-IDF may lose a blob that was just being replaced (see `LAST_ITEM`), nothing else.
    """
    rng = random.Random(seed)
    cells = fresh(3 + seed)
    expected: dict[str, NvsValue] = {}
    opened(cells).set(SPACE, "k0", "first")
    expected["k0"] = "first"
    lost = 0
    for step in range(60):
        number = rng.randrange(8)
        key = f"k{number}"
        text = f"t{step}" + "x" * rng.randrange(120)
        value: NvsValue = (text, rng.randbytes(rng.randrange(1, 700)), step)[number % 3]
        copy = MemoryRegion(bytearray(cells))
        writer = NvsStore(copy, older=older)
        writer.init()
        assert copy.writes == []
        writer.set(SPACE, key, value)
        after = {**expected, key: value}
        for count in range(len(copy.writes) + 1):
            cut = MemoryRegion(bytearray(cells))
            for write in copy.writes[:count]:
                if write.data:
                    cut.program(write.offset, write.data)
                else:
                    cut.erase_sector(write.offset)
            state = nvs_init(cut.cells, older=older)
            assert state.error is None
            if not (same(state, expected) or same(state, after)):
                without = {name: kept for name, kept in expected.items() if name != key}
                assert same(state, without), (step, count)
                lost += 1
        cells[:] = copy.cells
        expected = after
    assert bool(lost) is not older


# What one page holds, what state it is in, and what the firmware reads of it at two starts in a
# row: by older rules, and by newer ones. Items: key, type, value or span, and a flaw.
Rows = list[tuple[str, str]]


def page_of(rows: Rows, state: int) -> bytearray:
    """A first page with these items, and two free ones.

    "blob N": part N of a blob, "index N": its index for N parts, "text ..": a string. Behind "!":
    broken (a header whose CRC is wrong), alone (and nothing of it written but that), torn (its
    last entry not written), erased.
    """
    cells = fresh(3)
    page = Page(MemoryRegion(cells), 0)
    page.initialize()
    page.write_item(0, 0x01, SPACE.encode(), b"\x01")
    for key, what in rows:
        kind, _, rest = what.partition(" ")
        value, _, flaw = rest.partition("!")
        at = page.next_free
        assert at is not None
        name = key.encode()
        if kind == "blob":
            page.write_item(1, 0x42, name, bytes((int(value),)) * 40, int(value))
        elif kind == "index":
            described = struct.pack("<IBBH", 40 * int(value), int(value), 0, 0xFFFF)
            page.write_item(1, 0x48, name, described)
        else:
            page.write_item(1, 0x21, name, value.encode() + b"\x00")
        end = page.next_free
        assert end is not None
        if flaw in ("broken", "alone"):
            cells[64 + 32 * at + 4 : 64 + 32 * at + 8] = bytes(4)
        for unwritten in range({"alone": at + 1, "torn": end - 1}.get(flaw, end), end):
            cells[32 + unwritten // 4] |= 3 << unwritten % 4 * 2
            cells[64 + 32 * unwritten : 96 + 32 * unwritten] = b"\xff" * 32
        if flaw == "erased":
            page.alter_range(at, end, ERASED)
    page.set_state(state)
    return cells


BLOB = [("B", "blob 0"), ("B", "blob 1"), ("B", "index 2")]
PARTS = bytes(40) + b"\x01" * 40
LAST_ITEM: list[tuple[str, Rows, int, dict[str, NvsValue], dict[str, NvsValue]]] = [
    ("whole", [*BLOB, ("V", "text a")], ACTIVE, {"B": PARTS, "V": "a"}, {"B": PARTS, "V": "a"}),
    # A later value wins; the broken one is erased, and takes the good one before it along.
    ("twin", [("V", "text a"), ("V", "text b"), ("W", "text c")], ACTIVE, {"V": "b", "W": "c"},
     {"V": "b", "W": "c"}),
    ("broken last", [("V", "text a"), ("V", "text b!alone")], ACTIVE, {}, {}),
    # The data behind a broken header are taken for an item of their own.
    ("broken with its data", [("V", "text a"), ("V", "text b!broken")], ACTIVE, {"V": "a"},
     {"V": "a"}),
    ("broken", [("V", "text a"), ("V", "text b!broken"), ("W", "text c")], ACTIVE,
     {"V": "a", "W": "c"}, {"V": "a", "W": "c"}),
    ("broken, then erased", [("V", "text a"), ("V", "text b!broken"), ("W", "text c!erased")],
     ACTIVE, {"V": "a"}, {"V": "a"}),
    ("torn last", [("V", "text a"), ("V", "text b!torn")], ACTIVE, {"V": "a"}, {"V": "a"}),
    # A blob's last part: any part before it is taken for its twin, by newer rules.
    ("part last", [("B", "index 2"), ("B", "blob 0"), ("B", "blob 1")], ACTIVE, {"B": PARTS}, {}),
    ("part last, full", [("B", "index 2"), ("B", "blob 0"), ("B", "blob 1")], FULL, {"B": PARTS},
     {"B": PARTS}),
    ("broken part", [*BLOB, ("B", "blob 2!alone")], ACTIVE, {"B": PARTS}, {}),
    ("broken, full", [("V", "text a"), ("V", "text b!broken")], FULL, {"V": "a"}, {"V": "a"}),
    # Parts without an index go; an index without its parts is of no use to anybody.
    ("no index", [("B", "blob 0"), ("V", "text a")], ACTIVE, {"V": "a"}, {"V": "a"}),
    ("no part", [("B", "blob 0"), ("B", "index 2"), ("V", "text a")], ACTIVE, {"V": "a"},
     {"V": "a"}),
    # The type is not told apart: an index is the later value of a string.
    ("type", [("B", "text a"), *BLOB, ("V", "text b")], ACTIVE, {"B": PARTS, "V": "b"},
     {"B": PARTS, "V": "b"}),
]  # fmt: skip


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("row", LAST_ITEM, ids=[row[0] for row in LAST_ITEM])
def test_loading_a_page(
    row: tuple[str, Rows, int, dict[str, NvsValue], dict[str, NvsValue]], older: bool
) -> None:
    """The procedure of esp32.md, "What the firmware does when it loads a page"."""
    _, rows, page_state, by_older, by_newer = row
    cells = page_of(rows, page_state)
    for _ in range(2):
        state = nvs_init(cells, older=older)
        assert state.error is None
        assert same(state, by_older if older else by_newer)
    assert state.writes == ()


def index_stands(cells: bytearray) -> bool:
    """Whether the blob's index is still written."""
    page = Page(MemoryRegion(cells), 0, older=True)
    page.load()
    return page.find(1, 0x48, b"B") is not None


def test_an_index_without_its_parts() -> None:
    """Newer ESP-IDF erases it at the start; older leaves it, and the key cannot be read."""
    rows = [("B", "blob 0"), ("B", "index 2"), ("V", "text a")]
    for older in (False, True):
        cells = page_of(rows, ACTIVE)
        nvs_init(cells, older=older)
        assert index_stands(cells) is older


def test_a_header_that_cannot_be() -> None:
    """A right CRC over an impossible span: broken by newer rules."""
    cells = fresh(3)
    page = Page(MemoryRegion(cells), 0)
    page.initialize()
    page.write_item(0, 0x01, SPACE.encode(), b"\x01")
    data = struct.pack("<HHI", 2, 0xFFFF, crc32(b"a\x00"))
    page.write_entry(Item.make(1, 0x21, 3, 0xFF, b"V", data).encode())
    for _ in range(2):
        page.write_entry(b"a\x00".ljust(32, b"\xff"))
    page.write_item(1, 0x21, b"W", b"b\x00")
    assert same(nvs_init(bytearray(cells), older=True), {"V": "a", "W": "b"})
    assert same(nvs_init(bytearray(cells)), {"W": "b"})


def test_an_illegal_entry_state() -> None:
    """A torn bitmap word may hold 01: that entry is given up, and is no last item."""
    cells = page_of([("V", "text a"), ("V", "text b!alone")], ACTIVE)
    assert same(nvs_init(bytearray(cells)), {})
    cells[33] &= 0xFD  # of the entry behind the broken header
    assert same(nvs_init(cells), {"V": "a"})


def test_no_free_page() -> None:
    """All pages in use: init fails with the error that makes stock apps erase everything."""
    cells = fresh(3)
    for index in range(3):
        page = Page(MemoryRegion(cells), index * 4096)
        page.seq = index
        page.initialize()
    state = nvs_init(cells)
    assert state.error is not None
    assert "NO_FREE_PAGES (0x110d)" in state.error
    assert state.items == {}


def test_later_version() -> None:
    """A page of a format that is not known yet fails init."""
    cells = bytearray(build_nvs(0x4000, {"A": "b"}))
    cells[8] = 0xFD
    cells[28:32] = crc32(bytes(cells[4:28])).to_bytes(4, "little")
    error = nvs_init(cells).error
    assert error is not None
    assert "NEW_VERSION_FOUND" in error


def test_version_one_pages_are_read() -> None:
    """Page version 0xFF, and a blob of the old type without an index."""
    cells = bytearray(build_nvs(0x4000, {"A": "text"}, other={}))
    page = Page(MemoryRegion(cells), 0)
    page.load()
    page.write_item(1, 0x41, b"OLD", b"\x01\x02\x03" * 20)
    cells[8] = 0xFF
    cells[28:32] = crc32(bytes(cells[4:28])).to_bytes(4, "little")
    state = nvs_init(cells)
    assert state.string(SPACE, "A") == "text"
    assert state.items[SPACE, "OLD"] == ("blob", b"\x01\x02\x03" * 20)


def test_corrupt_page_counts_as_free() -> None:
    """A wrong header CRC: the page's keys are gone, init goes on."""
    cells = bytearray(build_nvs(0x4000, {"A": "b"}))
    cells[4] ^= 1
    state = nvs_init(cells)
    assert state.error is None
    assert state.items == {}
    assert any(write.offset == 0 and not write.data for write in state.writes)


def torn(cells: bytearray, *, bitmap: bool) -> tuple[Page, int]:
    """Begin to write a string of three entries: header only, or bytes beyond the bitmap."""
    page = Page(MemoryRegion(cells), 0)
    page.load()
    at = page.next_free
    assert at is not None
    data = struct.pack("<HHI", 60, 0xFFFF, 0)
    item = Item.make(1, 0x21, 3, 0xFF, b"TORN", data)
    if bitmap:
        page.write_entry(item.encode())
    else:
        page.region.program(64 + 32 * at, item.encode())
    return page, at


@pytest.mark.parametrize("bitmap", [True, False])
def test_torn_item_is_erased_at_init(bitmap: bool) -> None:
    """Its whole span (or the entry beyond the bitmap) is marked, and writing goes on behind."""
    cells = bytearray(build_nvs(0x4000, {"A": "b"}, other={}))
    _, at = torn(cells, bitmap=bitmap)
    state = nvs_init(cells)
    assert state.string(SPACE, "A") == "b"
    assert (SPACE, "TORN") not in state.items
    page = Page(MemoryRegion(cells), 0)
    page.load()
    span = 3 if bitmap else 1
    assert [page.entry_state(i) for i in range(at, at + span)] == [ERASED] * span
    assert page.next_free == at + span
    opened(cells).set(SPACE, "NEW", "value")
    assert nvs_init(cells).string(SPACE, "NEW") == "value"
    assert idftool_items(cells)[SPACE, "NEW"] == "value"


def test_appending_behind_a_torn_item_loses_the_value() -> None:
    """The trap: an item written at the first EMPTY entry becomes the torn item's payload."""
    cells = bytearray(build_nvs(0x4000, {"A": "b"}, other={}))
    page, at = torn(cells, bitmap=True)
    page.write_item(1, 0x21, b"OTA_VERSION", b"2.0.0\x00")
    assert page.next_free == at + 3
    assert nvs_init(cells).string(SPACE, "OTA_VERSION") is None


def test_duplicate_of_the_last_item_is_erased() -> None:
    """Power lost between writing the new value and erasing the old one, across pages."""
    cells = fresh(4)
    region = MemoryRegion(cells)
    first = Page(region, 0)
    first.initialize()
    first.write_item(0, 0x01, SPACE.encode(), b"\x01")
    first.write_item(1, 0x21, b"V", b"old\x00")
    first.set_state(FULL)
    second = Page(region, 4096)
    second.seq = 1
    second.initialize()
    second.write_item(1, 0x21, b"V", b"new\x00")
    state = nvs_init(cells)
    assert state.string(SPACE, "V") == "new"
    assert state.writes
    assert nvs_init(cells).writes == ()


def test_duplicate_on_the_active_page_is_erased() -> None:
    """On the active page the newer of two items wins, wherever it stands."""
    cells = fresh(3)
    page = Page(MemoryRegion(cells), 0)
    page.initialize()
    page.write_item(0, 0x01, SPACE.encode(), b"\x01")
    page.write_item(1, 0x21, b"V", b"old\x00")
    page.write_item(1, 0x21, b"V", b"new\x00")
    page.write_item(1, 0x21, b"W", b"x\x00")
    state = nvs_init(cells)
    assert state.string(SPACE, "V") == "new"
    assert len(state.writes) == 1


def test_duplicate_that_is_not_the_last_item_stays() -> None:
    """Only the last item is looked for: otherwise the older page's value is read."""
    cells = fresh(4)
    region = MemoryRegion(cells)
    first = Page(region, 0)
    first.initialize()
    first.write_item(0, 0x01, SPACE.encode(), b"\x01")
    first.write_item(1, 0x21, b"V", b"old\x00")
    first.set_state(FULL)
    second = Page(region, 4096)
    second.seq = 1
    second.initialize()
    second.write_item(1, 0x21, b"V", b"new\x00")
    second.write_item(1, 0x21, b"W", b"x\x00")
    assert nvs_init(cells).string(SPACE, "V") == "old"


def test_freeing_is_finished_at_init() -> None:
    """Power lost while a page was collected: an active newest page is thrown away, and redone."""
    cells = fresh(4)
    region = MemoryRegion(cells)
    old = Page(region, 0)
    old.initialize()
    old.write_item(0, 0x01, SPACE.encode(), b"\x01")
    old.write_item(1, 0x21, b"V", b"kept\x00")
    old.set_state(FULL)
    old.set_state(FREEING)
    new = Page(region, 4096)
    new.seq = 1
    new.initialize()
    new.write_item(0, 0x01, SPACE.encode(), b"\x01")
    state = nvs_init(cells)
    assert state.string(SPACE, "V") == "kept"
    assert state.free_pages == 3
    # Both are erased; the copy stands in the first page that was free.
    assert cells[:8192] == b"\xff" * 8192


def test_freeing_without_a_full_page_loses_keys() -> None:
    """The trap of esp32.md: FREEING while the last page is still ACTIVE throws that page away."""
    cells = fresh(4)
    region = MemoryRegion(cells)
    first = Page(region, 0)
    first.initialize()
    first.write_item(0, 0x01, SPACE.encode(), b"\x01")
    first.set_state(FULL)
    last = Page(region, 4096)
    last.seq = 1
    last.initialize()
    last.write_item(1, 0x21, b"V", b"lost\x00")
    first.set_state(FREEING)
    assert nvs_init(cells).string(SPACE, "V") is None


def test_orphaned_blob_chunks_are_erased() -> None:
    """Chunks without an index go at init."""
    cells = bytearray(build_nvs(0x4000, {"A": "b"}, other={}))
    page = Page(MemoryRegion(cells), 0)
    page.load()
    at = page.next_free
    assert at is not None
    page.write_item(1, 0x42, b"B", bytes(40), 0)
    nvs_init(cells)
    page = Page(MemoryRegion(cells), 0)
    page.load()
    assert page.entry_state(at) == ERASED


def test_full_store_refuses() -> None:
    """No room: an error, and all values still there."""
    cells = fresh(3)
    store = opened(cells)
    written = 0

    def fill() -> None:
        nonlocal written
        for i in range(200):
            store.set(SPACE, f"k{i}", "v" * 200)
            written += 1

    with pytest.raises(NvsError, match="NOT_ENOUGH_SPACE"):
        fill()
    state = nvs_init(cells)
    assert state.error is None
    assert len(state.items) == written > 20


def test_erase_key() -> None:
    """Strings and blobs go; a second time there is nothing to erase."""
    cells = bytearray(build_nvs(0x4000, {"S": "text", "B": bytes(5000)}))
    store = opened(cells)
    assert store.erase_key(SPACE, "S")
    assert store.erase_key(SPACE, "B")
    assert not store.erase_key(SPACE, "S")
    assert (SPACE, "B") not in nvs_init(cells).items


def test_active_page_is_active() -> None:
    """A first write makes the first page active with sequence number 0."""
    cells = fresh(3)
    opened(cells).set(SPACE, "A", "b")
    assert struct.unpack_from("<II", cells) == (ACTIVE, 0)
    assert cells[4096:] == b"\xff" * 8192
