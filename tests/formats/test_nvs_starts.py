# SPDX-License-Identifier: GPL-3.0-or-later
"""Partitions in which the firmware's start erases something: they are changed without adding to it.

Blobs of many parts, pages that are being freed, items of cut writes, and what failed writes leave.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.errors import OtaError
from ota_service.formats.nvs import PageState, parse_nvs
from ota_service.formats.nvs.page import load_page
from tests.formats.nvs_firmware import ACTIVE, DATA, FREEING, FULL, SZ, item
from tests.formats.nvs_pages import (
    BLANK,
    NAMESPACE,
    VERSION,
    blob_index,
    page,
    part,
    text,
)
from tests.formats.nvs_proofs import KEY, change, prove
from tests.formats.outcomes import outcome

CASES = Path(__file__).parent / "cases"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("last-item-blob-part-1", "collect"),
        ("last-item-blob-part-2", "collect"),
        ("torn-by-connect", "append"),
    ],
)
def test_partitions_by_the_firmware_itself(name: str, strategy: str) -> None:
    """Written by ESP-IDF's own code: a robot's keys around a refused blob; a reset in a write.

    A page that became active with a part of ROBOT_CONFIG as its last item lost the earlier part
    of it; the remains of a cut write of WIFI_PASSWORD lost the password that was there.
    """
    assert prove((CASES / f"{name}.bin").read_bytes(), "2.0.0", second=2).strategy == strategy


def two_parts() -> list[bytes]:
    """A blob whose two parts stand on one page, the later one last, and its index."""
    parts = [part(b"ROBOT_CONFIG", 0, 20), part(b"ROBOT_CONFIG", 1, 30)]
    return [blob_index(b"ROBOT_CONFIG", 0, parts), *parts]


def test_pages_that_the_proof_takes_for_one_differ_in_erased_bytes_only() -> None:
    """A bit of an item, of a free entry or of a state makes another page of it."""
    raw = bytearray(page([text(b"gone", 3), text(b"there", 3)], ACTIVE, 1))
    raw[32] &= 0xC0
    right = load_page(bytes(raw), 0)
    assert [one.key for one in right.items] == [b"there"]
    erased = range(64, 64 + 3 * 32)
    for place in (*range(32, 64), *range(64, len(raw), 5)):
        other = bytearray(raw)
        other[place] ^= 4
        assert (load_page(bytes(other), 0).kept == right.kept) == (place in erased), place


@pytest.mark.slow
def test_a_page_is_chosen_whose_copy_keeps_a_blob() -> None:
    """The emptiest page ends in a part of a blob behind an earlier one: another one is moved.

    A cut there would let the firmware itself copy that page, and lose the part at its next start.
    """
    data = (
        page([NAMESPACE, *two_parts()], FULL, 3)
        + page([VERSION, text(b"WIFI_SSID", 90)], FULL, 4)
        + page([text(b"ROBOT_ID", 126)], ACTIVE, 5)
        + BLANK
    )
    edit = prove(data, "2.0.0", torn=1)
    assert edit.strategy == "collect"
    assert [one.state for one in parse_nvs(edit.result).pages].index(PageState.CORRUPT) == 1


def test_no_page_can_be_moved_without_risk() -> None:
    """Where that holds for all pages, nothing is done."""
    data = (
        page([NAMESPACE, VERSION, text(b"WIFI_SSID", 60), *two_parts()], FULL, 3)
        + page([text(b"ROBOT_ID", 126)], ACTIVE, 5)
        + BLANK
    )
    result = outcome(change, data, "2.0.0")
    assert isinstance(result, OtaError)
    assert result.code == "nvs-invalid"


def test_what_no_firmware_can_open_is_left_as_it_is() -> None:
    """Without a free page its start fails, though there is room for the version."""
    data = (
        page([NAMESPACE, VERSION, text(b"WIFI_SSID", 123)], FULL, 3)
        + page([text(b"ROBOT_ID", 126)], FULL, 4)
        + page([text(b"ROBOT_SECRET", 20)], ACTIVE, 5)
    )
    result = outcome(change, data, "2.0.0")
    assert isinstance(result, OtaError)
    assert result.code == "nvs-invalid"


@pytest.mark.slow
@pytest.mark.parametrize("value", ["2.0.0", "v" * 128, None])
def test_what_a_failed_write_left_stands_in_the_way(value: str | None) -> None:
    """Parts of a blob without an index fill a page: to the firmware that is room."""
    left = [part(b"TLS_CERT", 0x80, 100)]
    data = (
        page([NAMESPACE, VERSION, text(b"WIFI_SSID", 123)], FULL, 3)
        + page([text(b"ROBOT_ID", 20), *left], FULL, 4)
        + page([text(b"ROBOT_SECRET", 126)], ACTIVE, 5)
        + BLANK
    )
    assert prove(data, value, torn=1).strategy == ("collect" if value else "erase")


def erased(data: bytes) -> bytes:
    """A page of which all items have been erased."""
    return data[:32] + bytes(31) + b"\xf0" + data[64:]


@pytest.mark.parametrize("state", [FULL, ACTIVE])
@pytest.mark.parametrize("value", ["2.0.0", "v" * 128])
def test_a_page_whose_items_are_all_erased_is_room(state: int, value: str) -> None:
    """There is nothing to move out of it: it becomes free, and one of two free ones is begun."""
    empty = erased(page([text(b"ROBOT_ID", 126)], state, 3 if state == FULL else 5))
    full = page([NAMESPACE, VERSION, text(b"WIFI_SSID", 123)], FULL ^ ACTIVE ^ state, 4)
    assert prove(empty + full + BLANK, value, torn=1).strategy == "new-page"
    assert prove(empty + full + BLANK, None, torn=1).strategy == "erase"


@pytest.mark.parametrize("value", ["2.0.0", "v" * 128])
@pytest.mark.parametrize("together", [True, False])
def test_items_that_nothing_finds_are_out_of_the_way(value: str, together: bool) -> None:
    """Two strings of one key, as an erase that failed leaves them: moved, the hidden one would be
    found. A start of the firmware does not help."""
    old, new = text(b"ROBOT_ID", 2), text(b"ROBOT_ID", 3)
    first = [NAMESPACE, VERSION, old, *([new] if together else [])]
    rest = [] if together else [new]
    left = 126 - sum(len(item) // 32 for item in rest)
    data = page(first, FULL, 3) + page([*rest, text(b"WIFI_SSID", left)], ACTIVE, 4) + BLANK
    assert prove(data, value, torn=1).strategy == "collect"


@pytest.mark.slow
def test_a_move_that_was_cut_before_parts_without_an_index() -> None:
    """What is left out of the copy stood between a part of a blob and the end of the page."""
    freed = page([*two_parts(), part(b"TLS_CERT", 0x80, 20)], FREEING, 3)
    data = freed + page([NAMESPACE, VERSION, text(b"WIFI_SSID", 123)], FULL, 4) + BLANK
    for value in ("2.0.0", "v" * 128, None):
        prove(data, value, torn=1)


def test_a_version_is_not_lost_with_an_unfinished_copy() -> None:
    """While a page is being freed, the firmware erases older forms of what the copy ends with,
    and then the copy: the new version may not be in it while the old one stands elsewhere."""
    data = (
        page([NAMESPACE, VERSION, text(b"WIFI_SSID", 123)], FULL, 3)
        + page([text(b"ROBOT_ID", 40)], FULL, 4)
        + page([text(b"ROBOT_SECRET", 126)], ACTIVE, 5)
        + BLANK
    )
    assert prove(data, "2.0.0", torn=1).strategy == "collect"


@pytest.mark.slow
@pytest.mark.parametrize("value", ["2.0.0", None])
def test_a_part_that_stands_twice_around_an_unfinished_copy(value: str | None) -> None:
    """Without the copy another page is the last one, and firmware to 5.1 takes the part that its
    last item repeats for an older form: where that part is what the app reads, nothing is done."""
    parts = [part(b"TLS_CERT", 0x80, 20)]
    living = [NAMESPACE, VERSION, blob_index(b"TLS_CERT", 0x80, parts), *parts]
    again = item(1, DATA, b"TLS_CERT", b"the next value, never finished", 0x80)
    freed = [text(b"WIFI_SSID", 20), text(b"ROBOT_ID", 30)]
    data = (
        page(living, FULL, 3)
        + page(freed, FREEING, 4)
        + page([text(b"ROBOT_SECRET", 124), again], FULL, 5)
        + page(freed[:1], ACTIVE, 6)
    )
    result = outcome(prove, data, value, torn=2)
    assert not isinstance(result, OtaError) or result.code == "nvs-invalid"


@st.composite
def partitions(draw: st.DrawFn) -> bytes:
    """Pages of any order and filling, with what an app, its resets and its failed writes leave."""
    items = [NAMESPACE, VERSION, item(1, 0x04, b"count", b"\1\0\0\0")]
    for number in range(draw(st.integers(1, 4))):
        items.append(text(b"text%d" % number, draw(st.integers(2, 40))))
    for number in range(draw(st.integers(1, 3))):
        key, first = b"blob%d" % number, draw(st.sampled_from([0, 0x80]))
        sizes = draw(st.lists(st.integers(2, 30), min_size=1, max_size=4))
        parts = [part(key, first + i, size) for i, size in enumerate(sizes)]
        items += [*parts, blob_index(key, first, parts)]
        for i in range(draw(st.integers(0, 2))):  # a failed write of its next value
            items.append(part(key, (first ^ 0x80) + i, draw(st.integers(2, 20))))
    filled: list[list[bytes]] = [[]]
    for one in draw(st.permutations(items)):
        room = 126 - sum(map(len, filled[-1])) // 32
        if len(one) // 32 > room or draw(st.integers(0, 11)) == 0:
            filled.append([])
        filled[-1].append(one)
    freed = draw(st.sampled_from([None, None, *range(len(filled))]))
    last = draw(st.sampled_from([ACTIVE, FULL])) if freed is None else FULL
    torn = item(1, SZ, draw(st.sampled_from([b"text0", KEY])), b"torn".ljust(60) + b"\0")
    tail = torn[: draw(st.sampled_from([0, 0, 4, 31, 32, 70, 96]))] if last == ACTIVE else b""
    pages = [
        page(these, FREEING if i == freed else last if these is filled[-1] else FULL, i + 1,
             tail if these is filled[-1] else b"")
        for i, these in enumerate(filled)
    ]  # fmt: skip
    if freed is not None and filled[freed] and draw(st.booleans()):
        count = draw(st.integers(1, len(filled[freed])))
        pages.append(page(filled[freed][:count], ACTIVE, 50))
    blank = draw(st.integers(0 if pages[-1][:1] == b"\xfe" and freed is not None else 1, 2))
    pages += [BLANK] * max(blank, 3 - len(pages))
    return b"".join(draw(st.permutations(pages)))


@pytest.mark.slow
@settings(max_examples=16)
@given(partitions(), st.sampled_from(["2.0.0", "v" * 100, None]), st.integers(0, 99))
def test_any_partition(data: bytes, value: str | None, seed: int) -> None:
    """A change that survives every cut, or a refusal; where there is room, never for want of it."""
    result = outcome(prove, data, value, torn=1, seed=seed)
    if isinstance(result, OtaError):
        assert result.code in ("nvs-full", "nvs-invalid")
        assert result.code == "nvs-invalid" or parse_nvs(data).free_pages < 2
