# SPDX-License-Identifier: GPL-3.0-or-later
"""One key of NVS is changed without losing any, at every cut, torn or not.

The judge is the tests' own belief of the firmware's rules (nvs_firmware.py), of all versions; what
must hold is in nvs_proofs.py.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idftool.nvs.parser import parse as idftool_parse

from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase, Program
from ota_service.formats.nvs import NvsEdit, PageState, erase_key, parse_nvs, set_string
from ota_service.formats.nvs.page import Loader
from ota_service.formats.nvs.prove import NvsProof
from tests.formats import images, nvs_images
from tests.formats.cuts import cut_states, single_bits
from tests.formats.nvs_firmware import ACTIVE, FREEING, FULL, SZ, TO_5_3, Firmware, item
from tests.formats.nvs_page import TO_4_3
from tests.formats.nvs_proofs import BASE, KEY, NS, App, booted, change, prove
from tests.formats.outcomes import outcome
from tests.formats.test_nvs_read import ODD_PAGE, PAGE

BLANK = b"\xff" * PAGE


def every_bit(data: bytes, edit: NvsEdit, *, erases_only: bool = False) -> None:
    """Each operation with one of its bits changed alone, or all but one: old or new only."""
    others, _ = booted(data)
    end, _ = booted(edit.result)
    values = (others.pop((NS, KEY), None), end.pop((NS, KEY), None))
    flash = data
    for op in edit.ops:
        after = dict(cut_states(flash, [op], BASE, torn_each=0))["op 0 done"]
        if isinstance(op, Erase) or not erases_only:
            for state in single_bits(flash, after):
                found, _ = booted(state)
                assert found.pop((NS, KEY), None) in values, op
                assert found == others, op
        flash = after


def fill(app: Firmware, entries: int, name: bytes = b"app") -> None:
    """Write numbers until the page that is written to has `entries` entries left."""
    ns = app.namespace(name)
    number = 0
    while app.list[-1].next < 126 - entries:
        key = b"fill%d.%d" % (app.list[-1].seq, number)
        app.list[-1].append(item(ns, 0x04, key, number.to_bytes(4, "little")))
        number += 1


def crowded(pages: int, *, left: int = 0, tag: bytes | None = b"1.0.0", erased: int = 0) -> bytes:
    """A partition with one free page; all others full but for `left` entries in the last.

    `erased` numbers of the first page are deleted again, so that it can be collected.
    """
    flash = bytearray(BLANK * pages)
    app = Firmware(flash)
    app.set_item(NS, b"WIFI_SSID", SZ, b"shop floor\0")
    if tag is not None:
        app.set_item(NS, KEY, SZ, tag + b"\0")
    for number in range(pages - 1):
        if number:
            app.list[-1].mark(FULL)
            app.activate()
        if number == 1:
            app.set_blob(NS, b"TLS_CERT", images.noise(500))
        fill(app, left if number == pages - 2 else 0)
    for number in range(erased):
        app.delete(b"app", b"fill0.%d" % number)
    return bytes(flash)


def test_append() -> None:
    """With room in the active page the item is appended and the old one marked erased."""
    data = nvs_images.board(0x6000)
    edit = prove(data, "1.0.1", torn=9)
    assert edit.strategy == "append"
    assert not any(isinstance(op, Erase) for op in edit.ops)
    judge = idftool_parse(edit.result)
    assert not judge.errors
    version = judge.get("VIAM_NS", "OTA_VERSION")
    assert version is not None
    assert version.value == "1.0.1"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 31, 32, 63, 64, 128])
def test_every_length(size: int) -> None:
    """Versions of every length up to 128 bytes, multiples of an entry among them."""
    prove(nvs_images.board(0x6000, "1"), "v" * size)


def test_utf8() -> None:
    """A version may be any text."""
    prove(nvs_images.board(0x6000), "größer-Ω-🚀")


def test_new_page() -> None:
    """Without room in the active page, and two free ones, a new page is begun."""
    edit = prove(nvs_images.board(0x4000), "v" * 128, torn=9)
    assert edit.strategy == "new-page"


@pytest.mark.slow
def test_collect() -> None:
    """With one free page the emptiest one is moved there, without an erase."""
    data = crowded(4, erased=20)
    edit = prove(data, "2.0.0", torn=1, second=0)
    assert edit.strategy == "collect"
    assert not any(isinstance(op, Erase) for op in edit.ops)
    assert parse_nvs(edit.result).free_pages == 1
    judge = idftool_parse(edit.result)
    assert [error[:26] for error in judge.errors] == ["page 0: header CRC mismatc"]
    assert {(e.namespace, e.key) for e in judge.entries} == parse_nvs(edit.result).keys()
    version = judge.get("VIAM_NS", "OTA_VERSION")
    assert version is not None
    assert version.value == "2.0.0"


@pytest.mark.slow
def test_collect_with_the_old_version_in_another_page() -> None:
    """The page that is moved need not be the one that holds the key."""
    data = bytearray(crowded(4, erased=30, tag=None))
    app = Firmware(data)
    app.list[-1].erase(app.list[-1].items()[5][0])
    app.list[-1].erase(app.list[-1].items()[5][0])
    # Two entries in the last page are taken by the version, written by hand in their place.
    page = app.list[-1]
    for slot, value in ((5, b"1.0.0\0"),):
        block = item(app.namespaces()[NS], SZ, KEY, value)
        start = page.at + 64 + slot * 32
        data[start : start + 64] = block
        data[page.at + 32 + slot // 4] = data[page.at + 32 + slot // 4] & ~(15 << 2) | 0b1010 << 2
    assert booted(bytes(data))[0][NS, KEY] == (SZ, b"1.0.0\0")
    edit = prove(bytes(data), "2.0.0", torn=0)
    assert edit.strategy == "collect"


@pytest.mark.slow
def test_collect_in_the_place_of_the_old_version() -> None:
    """All pages are full, and the only room is that of the old version itself."""
    data = crowded(4)
    edit = prove(data, "2.0.0", torn=0)
    assert edit.strategy == "collect"


def test_no_room() -> None:
    """Where nothing gives way, nothing is done."""
    for tag, value in ((b"1.0.0", "v" * 64), (None, "1")):
        result = outcome(change, crowded(4, tag=tag), value)
        assert isinstance(result, OtaError)
        assert result.code == "nvs-full"


def test_a_blank_partition() -> None:
    """The first page, namespace and version of a board that has never run."""
    edit = prove(BLANK * 4, "1.0.0", torn=9)
    assert edit.strategy == "new-page"
    assert parse_nvs(edit.result).namespaces == {"VIAM_NS": 1}


def test_a_missing_namespace() -> None:
    """The namespace is made with the lowest number that nothing uses."""
    data = nvs_images.generated(0x4000, [("a", [("x", "u8", "1")]), ("b", [("y", "u8", "2")])])
    edit = prove(data, "1.0.0")
    assert parse_nvs(edit.result).namespaces["VIAM_NS"] == 3


@pytest.mark.slow
def test_a_missing_namespace_in_a_crowded_partition() -> None:
    """Namespace and version find room by collecting as well."""
    flash = bytearray(BLANK * 3)
    app = Firmware(flash)
    fill(app, 0)
    app.list[-1].mark(FULL)
    app.activate()
    fill(app, 1)
    for number in range(10):
        app.delete(b"app", b"fill0.%d" % number)
    assert prove(bytes(flash), "1.0.0").strategy == "collect"


def test_a_number_without_its_name_is_not_free() -> None:
    """An app's items under a number whose name is lost would be found under the new name."""
    flash = bytearray(BLANK * 4)
    app = Firmware(flash)
    app.namespace(b"app")
    app.list[-1].append(item(2, 0x04, KEY, (7).to_bytes(4, "little")))
    edit = prove(bytes(flash), "1.0.0")
    assert parse_nvs(edit.result).namespaces["VIAM_NS"] == 3


def test_all_namespaces_taken() -> None:
    """254 namespaces are possible: the last one is used, one more is refused."""
    flash = bytearray(BLANK * 5)
    app = Firmware(flash)
    for number in range(253):
        app.namespace(b"ns%d" % number)
    edit = prove(bytes(flash), "1", torn=0)
    assert parse_nvs(edit.result).namespaces["VIAM_NS"] == 254
    Firmware(flash).namespace(b"one more")
    result = outcome(change, bytes(flash), "1")
    assert isinstance(result, OtaError)
    assert result.code == "nvs-full"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "value"), [("u8", "7"), ("i64", "-1"), ("hex2bin", "0a" * 300)]
)
def test_a_value_of_another_type(encoding: str, value: str) -> None:
    """A number or a blob under the key is replaced; before, there was no string."""
    data = nvs_images.generated(
        0x5000, [("VIAM_NS", [("OTA_VERSION", encoding, value), ("ROBOT_ID", "string", "me")])]
    )
    assert parse_nvs(data).get_string("VIAM_NS", "OTA_VERSION") is None
    edit = prove(data, "1.0.0")
    assert len([k for k in parse_nvs(edit.result).contents() if k[1] == KEY]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_page_formats(version: int) -> None:
    """A board of the first page format keeps it."""
    data = nvs_images.board(0x4000, version=version)
    edit = prove(data, "v" * 100)
    assert {page.version for page in parse_nvs(edit.result).order} == {
        0xFF if version == 1 else 0xFE
    }


@pytest.mark.slow
def test_an_old_blob_beside() -> None:
    """Blobs of the first format (type 0x41) survive a collection."""
    flash = bytearray(nvs_images.board(0x3000, version=1))
    app = Firmware(flash)
    app.list[-1].mark(FULL)
    app.activate()
    fill(app, 0)
    edit = prove(bytes(flash), "v" * 60)
    assert edit.strategy == "collect"


def test_equal_values_cost_nothing() -> None:
    """Storing what is stored is no operation; so is taking away what is not there."""
    data = nvs_images.board(0x4000, "1.0.0")
    assert set_string(data, base=0, namespace="VIAM_NS", key="OTA_VERSION", value="1.0.0") == (
        NvsEdit((), "unchanged", data)
    )
    for namespace, key in (("VIAM_NS", "NOTHING"), ("NOWHERE", "OTA_VERSION")):
        assert erase_key(data, base=0, namespace=namespace, key=key).strategy == "unchanged"


@pytest.mark.slow
def test_taking_the_key_away() -> None:
    """A board that had no version before the update gets none after its rollback."""
    data = nvs_images.board(0x4000, None)
    with_tag = prove(data, "1.0.0").result
    edit = prove(with_tag, None, torn=9)
    assert edit.strategy == "erase"
    assert parse_nvs(edit.result).contents() == parse_nvs(data).contents()


def test_the_proof_refuses_what_only_a_torn_program_would_break() -> None:
    """A header whose first word does not go first: cut in it, the entry seems free."""
    data = nvs_images.board(0x4000, "1.0")
    edit = change(data, "2.0")
    index = parse_nvs(data).namespaces["VIAM_NS"]
    proof = NvsProof(data, BASE, (index, KEY), "VIAM_NS", Loader())
    assert proof.holds(edit.ops, b"2.0\0")
    first, second, *rest = edit.ops
    assert isinstance(first, Program)
    assert isinstance(second, Program)
    joined = Program(first.offset, first.data + second.data)
    assert not proof.holds([joined, *rest], b"2.0\0")


def written(flash: bytes, kind: int) -> list[bytes]:
    """The headers of a type that are WRITTEN, of the key that is changed."""
    found = []
    for place in range(0, len(flash), PAGE):
        for entry in range(126):
            raw = flash[place + 64 + entry * 32 : place + 96 + entry * 32]
            state = flash[place + 32 + entry // 4] >> entry % 4 * 2 & 3
            if state == 2 and raw[1] == kind and raw[8:24] == KEY.ljust(16, b"\0"):
                found.append(raw)
    return found


def test_taking_a_blob_away() -> None:
    """Its index goes before its parts, as the firmware does it: an app that asks for the size of
    what it can no longer read would be told one."""
    blob = [("ROBOT_ID", "string", "me"), ("OTA_VERSION", "hex2bin", "0a" * 300)]
    data = nvs_images.generated(0x5000, [("VIAM_NS", blob)])
    assert len(written(data, 0x48)) == len(written(data, 0x42)) == 1
    edit = prove(data, None, torn=9)
    assert {key for _, key in parse_nvs(edit.result).keys()} == {"ROBOT_ID"}  # noqa: SIM118
    for state in dict(cut_states(data, edit.ops, BASE, torn_each=0)).values():
        assert not written(state, 0x48) or written(state, 0x42)


@pytest.mark.slow
def test_every_single_bit_of_an_append() -> None:
    """Each operation of an append with its first or its last bit alone, whichever it is."""
    data = nvs_images.board(0x4000, "1.0")
    every_bit(data, change(data, "2.0"))


@pytest.mark.parametrize(
    "kind", ["append", "new-page", pytest.param("collect", marks=pytest.mark.slow), "erase"]
)
def test_going_on_after_a_cut_without_a_start_of_the_firmware(kind: str) -> None:
    """A host that finds its own half-done change on a board in download mode ends it safely."""
    data, value = {
        "append": (nvs_images.board(0x4000), "2.0.0"),
        "new-page": (nvs_images.board(0x4000), "v" * 128),
        "collect": (crowded(3, erased=20), "2.0.0"),
        "erase": (nvs_images.board(0x4000), None),
    }[kind]
    edit = change(data, value)
    assert edit.strategy == kind
    states = [state for _, state in cut_states(data, edit.ops, BASE, torn_each=1)]
    rng = random.Random(kind)
    for state in rng.sample(states, min(5, len(states))):
        for wanted in (value, "3.0"):
            again = prove(state, wanted, torn=0, rules=(TO_5_3,))
            before = {k: v for k, v in booted(data)[0].items() if k != (NS, KEY)}
            after = {k: v for k, v in booted(again.result)[0].items() if k != (NS, KEY)}
            assert before == after


@pytest.mark.slow
def test_a_page_that_is_being_freed() -> None:
    """An app's cut collection, at each of its writes, is ended before anything is changed."""
    start = crowded(4, erased=20)
    flash = bytearray(start)
    snapshots: list[bytes] = []

    def note(place: int, data: bytes | None) -> None:
        snapshots.append(bytes(flash))

    app = Firmware(flash, on_write=note)
    app.room(5)
    freeing = [s for s in snapshots if FREEING in states(s)]
    assert len(freeing) > 50
    for state in freeing[:: len(freeing) // 3]:
        prove(state, "2.0.0", torn=0, rules=(TO_5_3,))
        prove(state, None, torn=0, rules=(TO_5_3,))


def states(data: bytes) -> list[int]:
    """The state word of each page."""
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), PAGE)]


@pytest.mark.slow
def test_a_torn_item_of_the_app() -> None:
    """A header whose payload was never marked written does not swallow the version."""
    flash = bytearray(
        nvs_images.generated(
            0x4000, [("VIAM_NS", [*nvs_images.MICRO_RDK[:5], ("OTA_VERSION", "string", "1.0.0")])]
        )
    )
    page = Firmware(flash).list[-1]
    free = page.free
    start = page.at + 64 + free * 32
    short = item(1, SZ, b"WIFI_SSID", b"short\0")
    long = item(1, SZ, b"WIFI_SSID", b"a name that is longer than one entry is\0")
    for torn, length, marked in (
        (long, 0, []),
        (long, 4, []),
        (long, 32, []),
        (long, 32, [0]),
        (long, 40, [0]),
        (long, 96, [0]),
        (long, 96, [0, 1]),
        (long, 96, [0, 2]),
        (short, 32, [0]),
        (short, 64, [0]),
        (short, 64, []),
    ):
        state = bytearray(flash)
        state[start : start + length] = torn[:length]
        for entry in marked:
            state[page.at + 32 + (free + entry) // 4] &= ~(1 << (free + entry) % 4 * 2)
        edit = prove(bytes(state), "2.0.0", torn=2)
        assert edit.strategy == "append"
        every_bit(bytes(state), edit)


def test_dirty_free_entries_are_skipped() -> None:
    """A free entry that is blank in its first word only is not written to."""
    data = bytearray(nvs_images.generated(0x3000, [("VIAM_NS", [("a", "u8", "1")])]))
    data[64 + 4 * 32 + 9] = 0x55
    edit = prove(bytes(data), "v" * 90)
    assert edit.strategy == "append"
    page = parse_nvs(edit.result).order[0]
    assert [i.index for i in page.items] == [0, 1, 5]


@pytest.mark.slow
def test_old_firmware_never_meets_an_illegal_entry() -> None:
    """Remains of a cut write are marked erased by a way that old firmware starts from."""
    data = bytearray(nvs_images.generated(0x3000, [("VIAM_NS", [("a", "u8", "1")])]))
    data[64 + 2 * 32 : 64 + 3 * 32] = item(1, 0x01, b"b", b"\x05")  # its bit is missing
    data[64 + 4 * 32 + 9] = 0x55
    flash = bytes(data)
    for op in change(flash, "v" * 90).ops:
        after = dict(cut_states(flash, [op], BASE, torn_each=0))["op 0 done"]
        for state in single_bits(flash, after):
            booted(state, rules=TO_4_3)
        flash = after


def test_the_twin_of_another_key() -> None:
    """An app cut before it erased the older form of a key: that is done before we append."""
    flash = bytearray(BLANK * 3)
    app = Firmware(flash)
    app.set_item(NS, b"WIFI_SSID", SZ, b"old\0")
    app.set_item(NS, KEY, SZ, b"1\0")
    app.list[-1].mark(FULL)
    app.activate().append(item(1, SZ, b"WIFI_SSID", b"new\0"))
    assert booted(bytes(flash))[0][NS, b"WIFI_SSID"] == (SZ, b"new\0")
    assert prove(bytes(flash), "2").strategy == "append"
    prove(bytes(flash), None)


@pytest.mark.slow
@pytest.mark.parametrize("dead", ["corrupt", "torn header", "written without header"])
def test_free_pages_that_are_not_blank(dead: str) -> None:
    """A free page with remains in it is erased first, so that no remains come back."""
    data = bytearray(crowded(3, erased=20))
    if dead == "corrupt":
        data[0x2000:] = data[:0x1000]
        data[0x2000] = 0xF0
    elif dead == "torn header":
        data[0x2000:] = data[:0x1000]
        data[0x201D] &= 0
    else:
        data[0x2040:] = data[0x40:0x1000]
    edit = prove(bytes(data), "2.0.0", torn=9)
    assert edit.strategy == "collect"
    assert sum(isinstance(op, Erase) for op in edit.ops) == 1
    every_bit(bytes(data), edit, erases_only=True)


@pytest.mark.slow
def test_rotated_pages() -> None:
    """The free page may be any physical one, and stays free in number."""
    data = crowded(4, erased=20)
    for turn in range(1, 4):
        rotated = data[turn * PAGE :] + data[: turn * PAGE]
        assert prove(rotated, "2.0.0", torn=0, rules=(TO_5_3,)).strategy == "collect"


def test_refusals(tmp_path: Path) -> None:
    """Encrypted, without a free page, of a later format, mangled: refused with the right code."""
    full = bytearray(crowded(3))
    full[0x2000:0x3000] = full[0x1000:0x2000]
    body = b"\x09\0\0\0" + full[0x2008:0x201C]
    full[0x2004:0x201C] = body
    full[0x201C:0x2020] = zlib.crc32(body, 0xFFFFFFFF).to_bytes(4, "little")
    hole = bytearray(nvs_images.board(0x4000))
    hole[32] |= 0b11  # the first entry of the page counts as free
    hole[64:68] = b"\xff" * 4
    freeing = bytearray(crowded(4))
    freeing[0], freeing[0x1000] = 0xF8, 0xF8
    for data, code in (
        (nvs_images.encrypted(0x6000, tmp_path), "flash-encrypted"),
        (bytes(full), "nvs-invalid"),
        (bytes(hole), "nvs-invalid"),
        (bytes(freeing), "nvs-invalid"),
        (crowded(3)[:0x2000], "nvs-invalid"),
    ):
        result = outcome(change, data, "2.0")
        assert isinstance(result, OtaError), code
        assert result.code == code


def test_page_numbers_used_up() -> None:
    """A page number that would wrap round would make the newest page the oldest."""
    data = bytearray(nvs_images.board(0x4000))
    body = b"\xfe\xff\xff\xff" + bytes(data[8:28])
    data[4:32] = body + zlib.crc32(body, 0xFFFFFFFF).to_bytes(4, "little")
    assert change(bytes(data), "2.0").strategy == "append"
    result = outcome(change, bytes(data), "v" * 128)
    assert isinstance(result, OtaError)
    assert result.code == "nvs-invalid"


@pytest.mark.parametrize(
    ("namespace", "key", "value"),
    [
        ("", "k", "v"),
        ("n", "", "v"),
        ("n" * 16, "k", "v"),
        ("n", "k" * 16, "v"),
        ("n", "k", "a\0b"),
        ("n", "k", "v" * 4000),
        ("n\0", "k", "v"),
    ],
)
def test_wrong_use(namespace: str, key: str, value: str) -> None:
    """Names and values that NVS cannot hold are the caller's fault."""
    with pytest.raises(ValueError, match="NVS"):
        set_string(BLANK * 3, base=0, namespace=namespace, key=key, value=value)


@pytest.mark.slow
def test_the_longest_string() -> None:
    """4000 bytes with the NUL are what nvs_set_str takes; they fill a page."""
    edit = set_string(BLANK * 3, base=0, namespace="n", key="k", value="v" * 3999)
    assert parse_nvs(edit.result).get_string("n", "k") == "v" * 3999
    prove(nvs_images.board(0x4000), "v" * 3999, torn=0)


def lives(first: int, last: int) -> Counter[str]:
    """Random lives of an app, half of them cut in a write, then our change; the strategies."""
    seen: Counter[str] = Counter()
    for seed in range(first, last):
        app = App(3 + seed % 5, seed)
        data = app.live(app.rng.randrange(1, 120), cut=seed % 2 == 1)
        if seed % 6 == 0:  # a page's end is where the strategies part
            started = Firmware(app.flash)
            if started.list[-1].state == ACTIVE:
                fill(started, app.rng.randrange(3))
            data = bytes(app.flash)
        value = app.rng.choice(["9.9.9", "v" * 128, "1"]) if seed % 5 else None
        edit = outcome(prove, data, value, torn=1, seed=seed)
        if isinstance(edit, OtaError):
            assert edit.code == "nvs-full"
            seen[edit.code] += 1
        else:
            seen[edit.strategy] += 1
            # The app lives on over our change, is cut again, and we change it again.
            app.flash = bytearray(edit.result)
            again = app.live(app.rng.randrange(1, 30), cut=True)
            second = outcome(change, again, "8")
            assert not isinstance(second, OtaError) or second.code == "nvs-full"
    return seen


@pytest.mark.slow
def test_many_lives_of_an_app() -> None:
    """Many random lives; every strategy comes up among them."""
    seen = lives(1000, 1010)
    assert {"append", "collect", "new-page", "erase"} <= seen.keys()


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.lists(ODD_PAGE | st.just(BLANK), min_size=3, max_size=4).map(b"".join),
    st.sampled_from(["1.0.0", "v" * 100, None]),
)
def test_any_pages(data: bytes, value: str | None) -> None:
    """From whatever pages: a proven change, or a documented error; never anything else."""
    result = outcome(change, data, value)
    if isinstance(result, OtaError):
        assert result.code in ("nvs-invalid", "nvs-full", "flash-encrypted")
        return
    nvs = parse_nvs(result.result)
    assert nvs.get_string(NS.decode(), KEY.decode()) == value
    assert nvs.free_pages >= 1 or not nvs.order
    assert all(page.state is not PageState.FREEING for page in nvs.order) or not result.ops
