# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS is read as the firmware reads it: against idftool's reader, ESP-IDF's rules, any bytes."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idftool.nvs.parser import parse as idftool_parse

from ota_service.errors import OtaError
from ota_service.formats.nvs import PageState, parse_nvs
from tests.formats import images, nvs_images
from tests.formats.nvs_firmware import ACTIVE, ALL_RULES, SZ, Firmware, NoSpace, item, start
from tests.formats.nvs_page import SHORT, TO_5_1
from tests.formats.outcomes import outcome

PAGE = 0x1000


def ours(data: bytes) -> dict[tuple[str, str], bytes | str]:
    """(namespace, key) -> value, from our reader."""
    nvs = parse_nvs(data)
    names = {index: name for name, index in nvs.namespaces.items()}
    found: dict[tuple[str, str], bytes | str] = {}
    for (namespace, key, kind), value in nvs.contents().items():
        if namespace:
            plain = value[4:] if kind == 0x48 else value
            found[names[namespace], key.decode()] = plain[:-1].decode() if kind == 0x21 else plain
    return found


@pytest.mark.parametrize("size", [0x3000, 0x4000, 0x6000, 0x14000])
@pytest.mark.parametrize("version", [1, 2])
def test_generated_partitions(size: int, version: int) -> None:
    """Strings, blobs and numbers of both page formats agree with idftool's reader."""
    data = nvs_images.board(size, version=version)
    judge = idftool_parse(data)
    assert not judge.errors
    mine = ours(data)
    assert mine.keys() == {(e.namespace, e.key) for e in judge.entries} == parse_nvs(data).keys()
    for entry in judge.entries:
        value = mine[entry.namespace, entry.key]
        if isinstance(entry.value, int):
            assert isinstance(value, bytes)
            assert value[: entry.size] == entry.value.to_bytes(entry.size, "little")
        else:
            assert value == entry.value
    nvs = parse_nvs(data)
    assert nvs.free_pages == size // PAGE - 1
    assert nvs.get_string("VIAM_NS", "OTA_VERSION") == "1.0.0"
    assert ("VIAM_NS", "ROBOT_SECRET", b"s3cr3t-of-the-robot-0123456789") in nvs.strings()


def test_a_blob_over_several_pages() -> None:
    """A blob in parts on three pages is joined as idftool joins it."""
    value = images.noise(9000)
    data = nvs_images.generated(0x6000, [("app", [("big", "hex2bin", value.hex())])])
    assert ours(data)["app", "big"] == value
    assert [page.state for page in parse_nvs(data).order] == [
        PageState.FULL,
        PageState.FULL,
        PageState.ACTIVE,
    ]


def test_missing_keys_and_types() -> None:
    """A missing namespace or key, and a value of another type, are no string."""
    data = nvs_images.board(0x4000)
    nvs = parse_nvs(data)
    assert nvs.get_string("VIAM_NS", "NOTHING") is None
    assert nvs.get_string("NO_NS", "OTA_VERSION") is None
    assert nvs.get_string("nvs.net80211", "ch") is None
    assert nvs.get_string("VIAM_NS", "TLS_CERT") is None


def test_a_blank_partition() -> None:
    """Blank NVS is empty, and all its pages are free."""
    nvs = parse_nvs(b"\xff" * 0x4000)
    assert (nvs.free_pages, nvs.keys(), nvs.last) == (4, set(), None)


@pytest.mark.parametrize("size", [0, 1, 0x1000, 0x2000, 0x3001, 0x3FFF])
def test_impossible_sizes(size: int) -> None:
    """Less than three pages, or no whole pages, cannot be NVS."""
    result = outcome(parse_nvs, b"\xff" * size)
    assert isinstance(result, OtaError)
    assert result.code == "nvs-invalid"


def test_a_later_format() -> None:
    """A page of a later version makes the firmware's start fail: nothing is to be touched."""
    data = bytearray(nvs_images.board(0x4000))
    data[8] = 0xFD
    data[28:32] = zlib.crc32(bytes(data[4:28]), 0xFFFFFFFF).to_bytes(4, "little")
    result = outcome(parse_nvs, bytes(data))
    assert isinstance(result, OtaError)
    assert result.code == "nvs-invalid"


def test_encrypted_nvs(tmp_path: Path) -> None:
    """NVS encryption and flash encryption are noticed; ordinary damage is not taken for them."""
    for data in (nvs_images.encrypted(0x6000, tmp_path), images.noise(0x6000)):
        result = outcome(parse_nvs, data)
        assert isinstance(result, OtaError)
        assert result.code == "flash-encrypted"
    assert parse_nvs(bytes(0x3000)).free_pages == 3
    assert parse_nvs(images.noise(0x1000) + nvs_images.board(0x5000)).free_pages == 5
    one = bytearray(b"\xff" * 0x3000)
    Firmware(one).set_item(b"n", b"key", SZ, b"value\0")
    one[64 + 8] &= 0  # the only namespace entry is damaged
    assert parse_nvs(bytes(one)).keys() == {("#1", "key")}


def test_the_order_of_pages_is_their_sequence() -> None:
    """Of the same key in two pages the one in the page with the lower number is read."""
    flash = bytearray(b"\xff" * 0x3000)
    app = Firmware(flash)
    app.set_item(b"n", b"k", SZ, b"first\0")
    app.list[-1].mark(0xFFFFFFFC)
    second = app.activate()
    second.append(item(1, SZ, b"k", b"second\0"))
    second.append(item(1, SZ, b"other", b"x\0"))
    for data in (flash, flash[0x1000:0x2000] + flash[:0x1000] + flash[0x2000:]):
        assert parse_nvs(bytes(data)).get_string("n", "k") == "first"


def test_a_twin_of_the_last_item_counts_as_erased() -> None:
    """Where power failed before the older form was erased, the newer one is read."""
    flash = bytearray(b"\xff" * 0x3000)
    app = Firmware(flash)
    app.set_item(b"n", b"k", SZ, b"first\0")
    app.list[-1].mark(0xFFFFFFFC)
    app.activate().append(item(1, SZ, b"k", b"second\0"))
    assert parse_nvs(bytes(flash)).get_string("n", "k") == "second"


def test_an_unfinished_copy_does_not_count() -> None:
    """While a page is being freed its items count, those of the copy do not."""
    flash = bytearray(b"\xff" * 0x3000)
    app = Firmware(flash)
    app.set_item(b"n", b"k", SZ, b"kept\0")
    app.list[-1].mark(0xFFFFFFF8)
    app.activate().append(item(0, 1, b"n", b"\x01"))
    nvs = parse_nvs(bytes(flash))
    assert nvs.dropped is not None
    assert nvs.get_string("n", "k") == "kept"
    assert nvs.free_pages == 2


Step = tuple[str, int, bytes]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["string", "blob", "number", "delete"]),
        st.integers(0, 5),
        st.binary(max_size=90) | st.binary(min_size=500, max_size=5000),
    ),
    max_size=40,
)


def act(app: Firmware, step: Step) -> None:
    """One thing that an app does."""
    what, number, value = step
    name, key = b"app%d" % (number % 2), b"key%d" % number
    text = bytes(byte % 94 + 32 for byte in value[:600]) + b"\0"
    if what == "string":
        app.set_item(name, key, SZ, text)
    elif what == "number":
        app.set_item(name, key, 0x04, value[:4].ljust(4, b"\0"))
    elif what == "blob":
        if app.locate(app.namespace(name), key, SZ) or app.locate(app.namespace(name), key, 4):
            app.delete(name, key)
        app.set_blob(name, key, value)
    else:
        app.delete(name, key)


def judged(data: bytes) -> dict[tuple[bytes, bytes], tuple[int, bytes]]:
    """What an app reads after a start, by the rules that our reader goes by as well."""
    return Firmware(bytearray(data), rules=TO_5_1).read()


def readable(data: bytes) -> dict[tuple[bytes, bytes], tuple[int, bytes]]:
    """The same from our reader."""
    nvs = parse_nvs(data)
    names = {index: name.encode() for name, index in nvs.namespaces.items()}
    return {
        (names[ns], key): (kind, value[4:] if kind == 0x48 else value[: SHORT.get(kind)])
        for (ns, key, kind), value in nvs.contents().items()
        if ns
    }


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(3, 6), STEPS, st.data())
def test_histories_of_an_app(pages: int, steps: list[Step], draw: st.DataObject) -> None:
    """After any history, cut at any write, our reader and ESP-IDF's rules agree."""
    flash = bytearray(b"\xff" * (pages * PAGE))
    snapshots: list[bytes] = []

    def note(place: int, data: bytes | None) -> None:
        snapshots.append(bytes(flash))

    app = Firmware(flash, on_write=note)
    for step in steps:
        try:
            act(app, step)
        except NoSpace:
            break
    assert readable(bytes(flash)) == judged(bytes(flash))
    if snapshots:
        for _ in range(5):
            cut = draw.draw(st.sampled_from(snapshots))
            assert readable(cut) == judged(cut)


ENTRY = st.tuples(
    st.integers(0, 3),
    st.sampled_from([0x01, 0x14, 0x21, 0x41, 0x42, 0x48, 0x99]),
    st.integers(0, 5) | st.integers(0, 255),
    st.sampled_from([0xFF, 0, 1, 0x80]),
    st.binary(min_size=1, max_size=3),
    st.binary(min_size=8, max_size=8) | st.integers(0, 130).map(lambda n: bytes([n]) + b"\0" * 7),
)


def odd_page(
    state: int, seq: int, bitmap: bytes, entries: list[tuple[int, int, int, int, bytes, bytes]]
) -> bytes:
    """A page with a right header, any bitmap, and items with right CRCs and any contents."""
    body = seq.to_bytes(4, "little") + b"\xfe" + b"\xff" * 19
    page = state.to_bytes(4, "little") + body
    page += zlib.crc32(body, 0xFFFFFFFF).to_bytes(4, "little")
    page += (b"\xaa" * (len(bitmap) % 5) + bitmap).ljust(32, b"\xff")[:32]
    for namespace, kind, span, chunk, key, value in entries:
        head, rest = bytes([namespace, kind, span, chunk]), key.ljust(16, b"\0") + value
        page += head + zlib.crc32(head + rest, 0xFFFFFFFF).to_bytes(4, "little") + rest
    return page.ljust(PAGE, b"\xff")


ODD_PAGE = st.builds(
    odd_page,
    st.sampled_from([0xFFFFFFFE, 0xFFFFFFFE, 0xFFFFFFFC, 0xFFFFFFF8, 0xFFFFFFF0]),
    st.integers(0, 3) | st.sampled_from([0xFFFFFFFE, 0xFFFFFFFF]),
    st.binary(max_size=32),
    st.lists(ENTRY, max_size=12),
)


@pytest.mark.slow
@settings(max_examples=100)
@given(
    st.lists(ODD_PAGE | st.just(b"\xff" * PAGE), min_size=3, max_size=4).map(b"".join)
    | st.binary(max_size=200)
    | st.binary(max_size=64).map(lambda start: start.ljust(0x3000, b"\0"))
)
def test_any_bytes(data: bytes) -> None:
    """Any bytes give contents or a documented error."""
    result = outcome(parse_nvs, data)
    if isinstance(result, OtaError):
        assert result.code in ("nvs-invalid", "flash-encrypted")
    else:
        result.contents()
        result.strings()
        result.keys()


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 0x3FFF) | st.integers(0, 200), st.integers(0, 255)), max_size=6
    ),
    st.booleans(),
)
def test_changed_bytes(changes: list[tuple[int, int]], mend: bool) -> None:
    """Changed headers, bitmaps and items give contents or a documented error.

    mend: with the item's CRC made right again, so that nonsense passes the first check.
    """
    data = bytearray(nvs_images.board(0x4000))
    for place, value in changes:
        data[place] = value
        if mend and 64 <= place < PAGE:
            start = place // 32 * 32
            raw = bytes(data[start : start + 32])
            data[start + 4 : start + 8] = zlib.crc32(raw[:4] + raw[8:], 0xFFFFFFFF).to_bytes(
                4, "little"
            )
    result = outcome(parse_nvs, bytes(data))
    if isinstance(result, OtaError):
        assert result.code in ("nvs-invalid", "flash-encrypted")
    else:
        result.contents()
        result.strings()
        assert result.free_pages <= 4


def test_the_judge_itself() -> None:
    """The tests' firmware writes what Espressif's generator and idftool's reader understand."""
    flash = bytearray(nvs_images.board(0x6000))
    app = Firmware(flash)
    app.set_item(b"VIAM_NS", b"OTA_VERSION", SZ, b"2.0.0\0")
    app.set_blob(b"VIAM_NS", b"NETWORKS", images.noise(7000))
    judge = idftool_parse(bytes(flash))
    assert not judge.errors
    version, networks = judge.get("VIAM_NS", "OTA_VERSION"), judge.get("VIAM_NS", "NETWORKS")
    assert version is not None
    assert networks is not None
    assert (version.value, networks.value) == ("2.0.0", images.noise(7000))
    assert app.list[-1].state == ACTIVE


def test_the_judge_checks_the_last_item_as_each_version_does() -> None:
    """The page's last item is a blob's second part: later versions erase the first one, and the
    blob with it. It is what a cut write has left of a string's header: all erase the older one."""
    flash = bytearray(b"\xff" * (3 * PAGE))
    app = Firmware(flash)
    ns = app.namespace(b"n")
    parts = [item(ns, 0x42, b"blob", images.noise(100), chunk) for chunk in range(2)]
    app.put(item(ns, 0x48, b"blob", b"\xc8\0\0\0\x02\0\xff\xff"))
    app.set_item(b"n", b"text", SZ, b"old\0")
    for one in parts:
        app.put(one)
    place = (b"n", b"blob", 0x48)
    kept = [place in start(bytes(flash), rules).keys for rules in ALL_RULES]
    assert kept == [True, True, False, False, False]
    app.put(item(ns, SZ, b"text", b"new\0"))
    torn = app.list[-1].at + 64 + (app.list[-1].next - 2) * 32
    flash[torn + 4 : torn + 8] = bytes(4)
    entry = app.list[-1].next - 1  # of its payload, which was never marked written
    flash[app.list[-1].at + 32 + entry // 4] |= 3 << entry % 4 * 2
    flash[torn + 32 : torn + 64] = b"\xff" * 32
    for rules in ALL_RULES:
        assert (b"n", b"text", SZ) not in start(bytes(flash), rules).keys
