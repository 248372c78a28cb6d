# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards whose partition table is elsewhere, or could cost them something."""

from __future__ import annotations

import pytest

from esp32_sim.bootmodel import boot
from esp32_sim.factory import build_nvs, default_nvs, make_flash
from esp32_sim.images import build_app
from esp32_sim.layouts import LAYOUTS, Partition, encode_table
from esp32_sim.nvsmodel import nvs_init
from ota_service.errors import OtaError
from tests.flash.in_memory import boots
from tests.flash.test_plan import prepare, write
from tests.support.elsewhere import layout_at, merged_at
from tests.support.memory_board import Firmware, MemoryBoard
from tests.support.memory_flash import MemoryFlash, PowerCut

OLD = Firmware.of(build_app(version="1.0.0", size_bytes=20_000))
NEW = Firmware.of(build_app(version="1.1.0", size_bytes=20_000, seed=1))
PLACES = (0x9000, 0xA000, 0x10000, 0x1F000, 0x20000)


def elsewhere(at: int) -> MemoryBoard:
    """A board that runs 1.0.0, with its table at `at`."""
    flash = make_flash(layout_at(at), app=OLD.data, table_offset=at)
    return MemoryBoard(flash, table_offset=at)


@pytest.mark.parametrize("at", PLACES)
def test_a_board_with_its_table_elsewhere_is_updated(at: int) -> None:
    """It is no blank board; and what is below the end of its table is its bootloader's."""
    board = elsewhere(at)
    below = bytes(board.data[: at + 0x1000])
    found, made = board.plan(NEW, "1.1.0")
    assert found.table is not None
    assert (found.table.offset, found.version, made.action) == (at, "1.0.0", "write")
    trace = board.carry_out(made, NEW).trace
    assert min(op.offset for op in trace) > at
    assert bytes(board.data[: at + 0x1000]) == below
    assert board.boot().slot == "ota_1"
    assert board.nvs().items["VIAM_NS", "OTA_VERSION"][1] == b"1.1.0"
    assert board.plan(NEW, "1.1.0")[1].action == "none"


def test_old_tables_of_working_boards_are_updated() -> None:
    """Sizes that newer versions of ESP-IDF refuse to build, and an NVS with half a sector."""
    nvs, ota, phy, *rest = LAYOUTS["guide"].partitions
    parts = [
        Partition("nvs", nvs.type, nvs.subtype, nvs.offset, 0x3800),
        *(ota, phy),
        *(Partition(p.label, p.type, p.subtype, p.offset, 0xF4F80) for p in rest),
        Partition("small", 1, 2, 0x310000, 0x1000),
        Partition("small", 1, 0x90, 0x311000, 0x100),
    ]
    flash = make_flash("guide", app=OLD.data, nvs={})
    flash[0x8000:0x8C00] = encode_table(tuple(parts))
    flash[0x9000:0xC000] = build_nvs(0x3000, default_nvs(version="1.0.0"))
    board = MemoryBoard(flash)
    found, made = board.plan(NEW, "1.1.0")
    assert (found.problem, made.action) == (None, "write")
    board.carry_out(made, NEW)
    assert board.boot().slot == "ota_0"
    assert nvs_init(bytearray(board.data[0x9000:0xC000])).items["VIAM_NS", "OTA_VERSION"]


def bad_tables() -> dict[str, tuple[Partition, ...]]:
    """The OTA guide's table, changed so that a write by it would hit something else."""
    guide = LAYOUTS["guide"].partitions
    parts = {part.label: part for part in guide}

    def with_place(label: str, offset: int, size: int, flags: int = 0) -> tuple[Partition, ...]:
        old = parts[label]
        new = Partition(label, old.type, old.subtype, offset, size, flags)
        return tuple(new if part is old else part for part in guide)

    return {
        "a slot on the bootloader": with_place("ota_1", 0x0, 0x8000),
        "a slot on the table": with_place("ota_1", 0x0, 0x100000),
        "nvs on the bootloader": with_place("nvs", 0x3000, 0x4000),
        "a slot that wraps": with_place("ota_1", 0x210000, 0xFFFF0000),
        "a slot beside 64 KiB": with_place("ota_1", 0x211000, 0x100000),
        "another partition beside 4 KiB": (*guide, Partition("own", 0x40, 1, 0x310400, 0x1000)),
        "slots that overlap": with_place("ota_1", 0x200000, 0x100000),
        "otadata for one entry": with_place("otadata", 0xD000, 0x1000),
        "otadata in the next partition": with_place("otadata", 0xD000, 0x3000),
        "read-only otadata": with_place("otadata", 0xD000, 0x2000, 2),
        "two otadata": (*guide, Partition("more", 1, 0, 0x310000, 0x2000)),
    }


@pytest.mark.parametrize("name", bad_tables())
def test_a_table_that_could_cost_the_board_is_refused(name: str) -> None:
    """As ESP-IDF's tool refuses it; nothing is written, and the words say which partition."""
    flash = make_flash("guide", app=OLD.data)
    flash[0x8000:0x8C00] = encode_table(bad_tables()[name])
    _, made = MemoryBoard(flash).plan(NEW, "1.1.0")
    assert (made.action, made.code, made.steps) == ("refuse", "partition-table-invalid", ())


@pytest.mark.parametrize(("first", "second"), [(0x8000, 0x9000), (0x8000, 0x10000)])
def test_a_table_left_over_from_another_build_stops_the_update(first: int, second: int) -> None:
    """Which one the bootloader reads is in the bootloader alone, so neither is trusted."""
    board = elsewhere(second)
    board.data[first : first + 0xC00] = encode_table(layout_at(first).partitions)
    before = bytes(board.data)
    _, made = board.plan(NEW, "1.1.0")
    assert made.code == "partition-table-invalid"
    assert bytes(board.data) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [(0x10000, 0x10000), (0x10000, 0x8000), (0x8000, 0x10000), (0x9000, 0xB000)],
)
def test_a_whole_flash_ends_the_old_table_first_wherever_it_is(before: int, after: int) -> None:
    """From the first operation on, the old bootloader finds no table until the new one is whole;
    the keys arrive."""
    flash = MemoryFlash(elsewhere(before).data)
    keys = dict(MemoryBoard(flash.data, table_offset=before).nvs().items)
    write(flash, prepare(flash, merged_at(after), keep=True))
    assert {op.offset for op in flash.trace[: len({0x8000, before, after})]} == {
        *(0x8000, before, after)
    }
    new = MemoryBoard(bytearray(flash.data), table_offset=after)
    assert dict(new.nvs().items) == keys
    assert new.boot().slot == "ota_0"
    for cut_at in range(3, len(flash.trace), 7):
        cut = MemoryFlash(elsewhere(before).data, cut_at=cut_at)
        with pytest.raises(PowerCut):
            write(cut, prepare(cut, merged_at(after), keep=True))
        for place in {before, after}:
            assert boot(bytearray(cut.data), table_offset=place).slot is None


def test_a_whole_flash_ends_a_table_that_may_not_be_in_use() -> None:
    """With two tables on the board nothing can be kept, and none of them may boot meanwhile."""
    board = elsewhere(0x10000)
    board.data[0x8000:0x8C00] = encode_table(layout_at(0x8000).partitions)
    flash = MemoryFlash(board.data)
    with pytest.raises(OtaError, match="at 0x8000 and another one at 0x10000"):
        prepare(flash, merged_at(0x8000), keep=True)
    # Not a table that would be trusted, but one that the bootloader takes.
    more = (*layout_at(0x20000).partitions, Partition("own", 0x40, 1, 0x200400, 0x100))
    board.data[0x20000:0x20C00] = encode_table(more)
    flash = MemoryFlash(board.data)
    write(flash, prepare(flash, merged_at(0x8000), keep=False))
    assert {op.offset for op in flash.trace[:3]} == {0x8000, 0x10000, 0x20000}
    assert boots(flash.data) == "ota_0"
