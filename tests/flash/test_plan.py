# SPDX-License-Identifier: GPL-3.0-or-later
"""What `flash` writes, in which order, and what an interruption at any place leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.factory import build_nvs, make_flash
from esp32_sim.images import build_app
from esp32_sim.layouts import LAYOUTS, Layout, Partition
from ota_service.errors import OtaError
from ota_service.formats.merged import parse_merged
from ota_service.formats.nvs import parse_nvs
from ota_service.update.flash_merged import FlashOutcome, look_before
from ota_service.update.flash_plan import Before, check_merged, plan_flash
from ota_service.update.inspect import first_tag
from ota_service.update.kept_keys import to_keep
from ota_service.update.rewrite import rewrite
from tests.flash.in_memory import MIB, Hooks, boots, chip, keys, nvs_of
from tests.flash.merged_files import merged
from tests.support.memory_flash import MemoryFlash

SAVED = Path("backups/1")


def prepare(
    flash: MemoryFlash, data: bytes, *, keep: bool, saved: Mapping[str, bytes] | None = None
) -> FlashOutcome:
    """What a session knows when it begins to write."""
    file = check_merged(data)
    about = chip(len(flash.data))
    before = look_before(flash, about)
    wanted = to_keep(before, {SAVED: saved} if saved else {}) if keep else None
    plan = plan_flash(file, about, before, keep=wanted)
    return FlashOutcome(about, before, file, plan)


def write(flash: MemoryFlash, outcome: FlashOutcome) -> None:
    """Carry it out."""
    rewrite(flash, outcome.plan, Hooks(), outcome, again="")


@pytest.mark.parametrize(
    ("layout", "table", "mib", "named"),
    [
        ("no-ota", "ota-guide", 4, "guide"),
        ("no-ota", "micro-rdk", 8, "micro-rdk"),
        ("guide", "micro-rdk-8mb", 8, "micro-rdk-8mb"),
        ("micro-rdk-8mb", "ota-guide", 8, "guide"),
        ("micro-rdk", "micro-rdk", 8, "micro-rdk"),
    ],
)
def test_all_keys_arrive_from_each_table_in_each_other(
    layout: str, table: str, mib: int, named: str
) -> None:
    """NVS smaller, larger, elsewhere and in place; and the board starts the new app."""
    flash = MemoryFlash(make_flash(layout, mib * MIB))
    before = keys(nvs_of(flash.data, layout))
    outcome = prepare(flash, merged(table, flash_mb=mib), keep=True)
    write(flash, outcome)
    assert keys(nvs_of(flash.data, named)) == before
    read = parse_merged(bytes(flash.data))
    assert read.problems == []
    assert read.booted == outcome.file.booted
    places = [(p.offset, p.size) for p in (LAYOUTS[n].find("nvs") for n in (layout, named))]
    assert outcome.plan.kept[0].in_place == (places[0] == places[1])
    assert not outcome.plan.lost


def test_an_nvs_that_stays_is_never_touched() -> None:
    """Not one operation reaches it: nothing can go wrong with it."""
    flash = MemoryFlash(make_flash("micro-rdk", 8 * MIB))
    part = LAYOUTS["micro-rdk"].find("nvs")
    write(flash, prepare(flash, merged("micro-rdk", flash_mb=8), keep=True))
    assert flash.trace
    assert not [op for op in flash.trace if part.offset <= op.offset < part.end]


def test_without_keep_nvs_everything_is_the_files() -> None:
    """The file is the flash; what it leaves out of the table's places is blank."""
    flash = MemoryFlash(make_flash("guide", 8 * MIB, other_app=build_app("x"), other_slot="ota_1"))
    data = merged("ota-guide", flash_mb=8)
    outcome = prepare(flash, data, keep=False)
    assert outcome.plan.lost == ("nvs",)
    write(flash, outcome)
    assert bytes(flash.data[: len(data)]) == data
    assert flash.data[0x9000:0xD000] == b"\xff" * 0x4000
    for label in ("ota_0", "ota_1"):
        part = LAYOUTS["guide"].find(label)
        assert flash.data[part.offset : part.offset + 0x1000] == b"\xff" * 0x1000


def test_keys_in_the_file_are_written_unless_the_boards_are_kept() -> None:
    """Provisioning; a note says which keys won."""
    own = build_nvs(0x4000, {"WIFI_SSID": "factory", "OTA_VERSION": "0"})
    data = merged(contents={"nvs": own})
    flash = MemoryFlash(make_flash("no-ota"))
    before = keys(nvs_of(flash.data, "no-ota"))
    fresh = MemoryFlash(bytes(flash.data))
    write(fresh, prepare(fresh, data, keep=False))
    assert keys(nvs_of(fresh.data, "guide"))["VIAM_NS", "WIFI_SSID"][1] == b"factory"
    outcome = prepare(flash, data, keep=True)
    assert "kept instead" in outcome.plan.notes[0]
    write(flash, outcome)
    assert keys(nvs_of(flash.data, "guide")) == before


@pytest.mark.parametrize(
    ("changes", "table", "code"),
    [
        ({"chip_id": 9, "name": "ESP32-S3"}, "ota-guide", "wrong-chip"),
        ({"flash_bytes": 2 * MIB}, "ota-guide", "flash-size"),
        ({"flash_bytes": None}, "ota-guide", "flash-size"),
        ({"flash_encrypted": True}, "ota-guide", "flash-encrypted"),
        ({"secure_boot": True}, "ota-guide", "secure-boot"),
    ],
)
def test_boards_that_it_would_not_start_are_refused(
    changes: dict[str, Any], table: str, code: str
) -> None:
    """Before the first write."""
    with pytest.raises(OtaError) as caught:
        plan_flash(check_merged(merged(table)), chip(**changes), Before(None), keep=None)
    assert caught.value.code == code


def test_a_file_for_a_larger_flash_is_refused() -> None:
    """Its app would find the flash smaller than its header says, and give up at its start."""
    file = check_merged(merged(flash_mb=8))
    with pytest.raises(OtaError, match="0x800000") as caught:
        plan_flash(file, chip(4 * MIB), Before(None), keep=None)
    assert "--flash-size" in caught.value.remedy
    assert plan_flash(file, chip(16 * MIB), Before(None), keep=None).writes


def test_an_app_for_another_revision_is_refused() -> None:
    """As the bootloader would."""
    with pytest.raises(OtaError) as caught:
        plan_flash(check_merged(merged(min_revision=400)), chip(), Before(None), keep=None)
    assert caught.value.code == "chip-revision"


def damaged(at: int) -> bytes:
    """A Merged Binary with one bit changed."""
    data = bytearray(merged())
    data[at] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not-an-image"),
        (build_app(), "not-an-image"),
        (damaged(0x1000 + 3000), "image-corrupt"),
        (damaged(0x10000 + 3000), "image-corrupt"),
        (damaged(0x8000 + 40), "partition-table-invalid"),
        (merged()[:0x10000], "image-corrupt"),
    ],
)
def test_files_that_are_not_whole_are_refused(data: bytes, code: str) -> None:
    """Before any port is opened."""
    with pytest.raises(OtaError) as caught:
        check_merged(data)
    assert caught.value.code == code


def test_a_board_whose_keys_cannot_be_found_is_refused_with_keep_nvs() -> None:
    """Better no flash than lost keys; without keep_nvs it is written."""
    flash = MemoryFlash(make_flash("no-ota"))
    flash.data[0x8000:0x9000] = b"\xff" * 0x1000
    with pytest.raises(OtaError, match="cannot be kept") as caught:
        prepare(flash, merged(), keep=True)
    assert "without keep_nvs" in caught.value.remedy
    write(flash, prepare(flash, merged(), keep=False))
    assert boots(flash.data) == "factory"


def test_keys_that_the_new_table_has_no_place_for_are_refused() -> None:
    """An NVS partition of another name, with keys in it."""
    before = look_before(MemoryFlash(make_flash("no-ota")), chip())
    keep = {"nvs_factory": before.nvs["nvs"]}
    with pytest.raises(OtaError) as caught:
        plan_flash(check_merged(merged()), chip(), before, keep=keep)
    assert caught.value.code == "nvs-missing"


@pytest.mark.parametrize("first", [True, False])
def test_another_partition_with_the_label_of_the_nvs_is_no_nvs(first: bool) -> None:
    """In the board's table and in the file's, before the NVS and behind it: keys go by place."""
    phy = Partition("nvs", 1, 1, 0xF000, 0x1000)
    others = [p for p in LAYOUTS["guide"].partitions if p.label != "phy_init"]
    twice = Layout("twice", 4 * MIB, (phy, *others) if first else (*others, phy))
    flash = MemoryFlash(make_flash(twice, 4 * MIB))
    before = keys(nvs_of(flash.data, "guide"))
    data = merged(twice, size_bytes=20_000)
    outcome = prepare(flash, data, keep=True)
    assert [part.in_place for part in outcome.plan.kept] == [True]
    write(flash, outcome)
    assert keys(nvs_of(flash.data, "guide")) == before
    assert flash.data[0xF000 : len(data)] == data[0xF000:]
    assert boots(flash.data) == "factory"
    moved = MemoryFlash(make_flash("no-ota"))
    before = keys(nvs_of(moved.data, "no-ota"))
    write(moved, prepare(moved, data, keep=True))
    assert keys(nvs_of(moved.data, "guide")) == before
    assert moved.data[0xF000:0x10000] == b"\xff" * 0x1000
    assert boots(moved.data) == "factory"


@pytest.mark.parametrize("keep", [True, False])
def test_an_nvs_partition_of_no_whole_sectors_is_used_as_far_as_they_go(keep: bool) -> None:
    """As the firmware does: what is behind them belongs to nobody."""
    odd = [
        Partition("nvs", 1, 2, 0x9000, 0x4800) if p.label == "nvs" else p
        for p in LAYOUTS["no-ota"].partitions
    ]
    layout = Layout("odd", 4 * MIB, tuple(odd))
    own = build_nvs(0x4000, {"WIFI_SSID": "factory"})
    data = merged(layout, size_bytes=20_000, contents={"nvs": own})
    for start in (make_flash("no-ota"), make_flash("guide", 4 * MIB)):
        flash = MemoryFlash(start)
        wanted = keys(own)
        if keep:
            wanted = keys(look_before(flash, chip()).nvs["nvs"])
        write(flash, prepare(flash, data, keep=keep))
        assert keys(bytes(flash.data[0x9000:0xD000])) == wanted
        assert boots(flash.data) == "factory"
        again = prepare(flash, data, keep=keep)
        assert [part.in_place for part in again.plan.kept] == [True] * keep
        write(flash, again)
        assert keys(bytes(flash.data[0x9000:0xD000])) == wanted


def test_a_damaged_nvs_is_refused_with_keep_nvs() -> None:
    """It may be one that only the firmware can repair."""
    flash = MemoryFlash(make_flash("no-ota"))
    flash.data[0x9000:0xF000] = bytes(range(1, 256)) * 96 + bytes(96)
    with pytest.raises(OtaError):
        prepare(flash, merged(), keep=True)


def kept_of(board: bytes | None, *saved: bytes) -> bytes:
    """Which contents of nvs are kept: of the board's, and saved ones, the newest first."""
    table = look_before(MemoryFlash(make_flash("no-ota")), chip()).table
    problem = OtaError("partition-table-invalid") if board is None else None
    before = Before(None, problem) if board is None else Before(table, nvs={"nvs": board})
    folders = {Path(f"{100 - n}"): {"nvs": data} for n, data in enumerate(saved)}
    return to_keep(before, folders)["nvs"]


BLANK = b"\xff" * 0x6000
OLD: dict[str, Any] = {"WIFI_PASSWORD": "old", "ROBOT_ID": "r", "boot_count": 1, "OTA_VERSION": "1"}
NEW: dict[str, Any] = {
    "WIFI_PASSWORD": "new",
    "ROBOT_ID": "r",
    "TLS_CERT": "x" * 600,
    "OTA_VERSION": "2",
}


def test_what_was_saved_counts_where_the_board_lost_its_own() -> None:
    """No table after a cut; blank or a part of it; or erased by a firmware that started since."""
    old = build_nvs(0x6000, OLD)
    assert kept_of(None, old) == old
    assert kept_of(BLANK, old) == old
    assert kept_of(build_nvs(0x6000, {"ROBOT_ID": "r"}), old) == old
    wifi_alone: dict[str, Any] = {"nvs.net80211": {"sta.ssid": b"\0" * 36, "opmode": 2}}
    erased = build_nvs(0x6000, {}, other=wifi_alone)
    assert keys(erased)
    assert kept_of(erased, old) == old


def test_a_board_that_went_on_with_its_keys_never_gets_older_ones() -> None:
    """Also where the firmware has removed one since, and where another flash was cut then."""
    old, new = build_nvs(0x6000, OLD), build_nvs(0x6000, NEW)
    assert keys(old).keys() - keys(new).keys() == {("VIAM_NS", "boot_count")}
    assert kept_of(new, old) == new
    assert kept_of(None, new, old) == new
    assert kept_of(BLANK, new, old) == new
    more = build_nvs(0x6000, {**OLD, "WIFI_PASSWORD": "newer", "MORE": "x"})
    assert kept_of(more, old) == more
    assert kept_of(None, more, old) == more


@pytest.mark.parametrize(
    "now",
    [
        {"WIFI_PASSWORD": "provisioned anew", "OTA_VERSION": "1", "boot_count": 1},
        {"MORE": "x"},
    ],
)
def test_what_cannot_be_told_is_refused_with_both_ways_on(now: dict[str, Any]) -> None:
    """Erased, and other keys since: a number or a version is the same by chance."""
    old = build_nvs(0x6000, {**OLD, "SECRET": "s"})
    board = build_nvs(0x6000, now)
    with pytest.raises(OtaError, match="99") as caught:
        kept_of(board, build_nvs(0x6000, {}), old)
    assert caught.value.code == "nvs-invalid"
    assert "on the board and those in 99" in caught.value.message
    assert "`esp32-ota restore PORT 99`" in caught.value.remedy
    with pytest.raises(OtaError, match="in 100 and those in 99") as caught:
        kept_of(None, board, old)
    assert "move the other folder" in caught.value.remedy


def test_the_plan_says_the_tag_that_will_be_stored() -> None:
    """`nvs.keys()` and the version are what the reply carries."""
    flash = MemoryFlash(make_flash("no-ota", version="0.8"))
    plan = prepare(flash, merged(), keep=True).plan
    assert parse_nvs(plan.kept[0].data).get_string("VIAM_NS", "OTA_VERSION") == "0.8"
    assert plan.kept[0].to_dict()["moved"] is True


def test_the_version_is_in_the_first_nvs_that_has_one() -> None:
    """The default one's counts, whatever the order in the table; else another one's."""
    tagged, other, none = (
        parse_nvs(build_nvs(0x6000, {"OTA_VERSION": tag} if tag else {"A": "b"}))
        for tag in ("1.0", "2.0", "")
    )
    assert first_tag([("nvs_other", other), ("nvs", tagged)]) == "1.0"
    assert first_tag([("nvs", none), ("nvs_other", other), ("nvs_third", tagged)]) == "2.0"
    assert first_tag([("nvs", none)]) == first_tag([]) == ""
