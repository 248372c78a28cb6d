# SPDX-License-Identifier: GPL-3.0-or-later
"""The bootloader's choice, as a table: otadata, images, rollback in; slot and writes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from esp32_sim import layouts
from esp32_sim.bootmodel import (
    ABORTED,
    INVALID,
    NEW,
    PENDING_VERIFY,
    UNDEFINED,
    VALID,
    Select,
    boot,
)
from esp32_sim.chips import chip_of
from esp32_sim.factory import make_flash
from esp32_sim.images import assemble, build_app, build_bootloader, read_descriptor
from esp32_sim.layouts import LAYOUTS, Layout, Partition, encode_table

SMALL = build_app(size_bytes=20_000)
BLANK = None


def board(
    layout: str | Layout,
    first: Select | None,
    second: Select | None,
    *,
    apps: tuple[str, ...] | None = None,
) -> bytearray:
    """A flash with these two otadata entries, and the same app in all (or these) slots."""
    layout = LAYOUTS[layout] if isinstance(layout, str) else layout
    flash = make_flash(layout, app=SMALL, nvs={}, otadata="blank")
    for partition in layout.partitions:
        if partition.type == layouts.TYPE_APP:
            here = apps is None or partition.label in apps
            data = SMALL if here else b"\xff" * len(SMALL)
            flash[partition.offset : partition.offset + len(data)] = data
    otadata = layout.find("otadata").offset
    for index, entry in enumerate((first, second)):
        if entry is not None:
            at = otadata + index * 4096
            flash[at : at + 32] = entry.encode()
    return flash


def entries(flash: bytearray, layout: str) -> list[Select]:
    """Both otadata entries of a flash."""
    at = LAYOUTS[layout].find("otadata").offset
    return [Select.parse(bytes(flash[at + i * 4096 : at + i * 4096 + 32])) for i in range(2)]


make = Select.make
BAD_CRC = dataclasses.replace(make(9), crc=0x12345678)

# layout, first entry, second entry, slot that boots
CHOICES: list[tuple[str, Select | None, Select | None, str]] = [
    ("guide", BLANK, BLANK, "factory"),
    ("guide", make(1), BLANK, "ota_0"),
    ("guide", BLANK, make(2), "ota_1"),
    ("guide", make(1), make(2), "ota_1"),
    ("guide", make(3), make(2), "ota_0"),
    ("guide", make(1), BAD_CRC, "ota_0"),
    ("guide", BAD_CRC, BAD_CRC, "factory"),
    ("guide", make(1, INVALID), make(2, ABORTED), "factory"),
    ("guide", make(1), make(2, ABORTED), "ota_0"),
    ("guide", make(1), make(2, INVALID), "ota_0"),
    ("guide", make(1, VALID), make(4, NEW), "ota_1"),
    ("guide", make(0xFFFFFFFE), make(2), "ota_1"),
    ("micro-rdk", BLANK, BLANK, "ota_0"),
    ("micro-rdk", make(1), make(2), "ota_1"),
    ("micro-rdk", make(1, ABORTED), BLANK, "ota_0"),
    ("micro-rdk", BAD_CRC, BLANK, "ota_0"),
    ("micro-rdk-8mb", make(5), make(4), "ota_0"),
]


@pytest.mark.parametrize(("layout", "first", "second", "slot"), CHOICES)
def test_choice(layout: str, first: Select | None, second: Select | None, slot: str) -> None:
    """Valid entries only, the higher sequence number wins, factory or ota_0 otherwise."""
    result = boot(board(layout, first, second))
    assert result.slot == slot
    offset = LAYOUTS[layout].find(slot).offset
    assert any(f"Loaded app from partition at offset {offset:#x}" in line for line in result.log)


@pytest.mark.parametrize(
    ("first", "second", "written"),
    [
        (BLANK, BLANK, True),
        (BAD_CRC, BLANK, False),
        (make(1, ABORTED), BLANK, False),
        (make(1), BLANK, False),
    ],
)
def test_first_boot_without_factory_writes_otadata(
    first: Select | None, second: Select | None, written: bool
) -> None:
    """Only a table without factory and an otadata never written: seq 1, VALID, sector 0."""
    flash = board("micro-rdk", first, second)
    result = boot(flash)
    assert bool(result.writes) is written
    if written:
        assert entries(flash, "micro-rdk")[0] == make(1, VALID)
        assert [op.kind for op in result.writes] == ["erase", "program"]
        assert not boot(flash).writes


def test_first_boot_with_factory_writes_nothing() -> None:
    """The factory app needs no otadata."""
    assert not boot(board("guide", BLANK, BLANK)).writes


def test_first_boot_writes_the_slot_that_really_booted() -> None:
    """Where ota_0 is not bootable, seq is that of ota_1."""
    flash = board("micro-rdk", BLANK, BLANK, apps=("ota_1",))
    assert boot(flash).slot == "ota_1"
    assert entries(flash, "micro-rdk")[0] == make(2, VALID)


# rollback on: layout, entries before, slot, states after
ROLLBACK: list[tuple[str, Select | None, Select | None, str, int, int]] = [
    ("guide", make(1, VALID), make(2, NEW), "ota_1", VALID, PENDING_VERIFY),
    ("guide", make(1, VALID), make(2, PENDING_VERIFY), "ota_0", VALID, ABORTED),
    ("guide", make(1, VALID), make(2, VALID), "ota_1", VALID, VALID),
    ("guide", make(1, UNDEFINED), make(2, UNDEFINED), "ota_1", UNDEFINED, UNDEFINED),
    ("guide", make(3, NEW), make(2, VALID), "ota_0", PENDING_VERIFY, VALID),
    ("guide", make(1, PENDING_VERIFY), make(2, PENDING_VERIFY), "factory", ABORTED, ABORTED),
    # An entry that is not the active one is aborted all the same.
    ("guide", make(1, PENDING_VERIFY), make(2, VALID), "ota_1", ABORTED, VALID),
    ("micro-rdk", make(1, VALID), make(2, PENDING_VERIFY), "ota_0", VALID, ABORTED),
]


@pytest.mark.parametrize(("layout", "first", "second", "slot", "after1", "after2"), ROLLBACK)
def test_rollback(
    layout: str, first: Select, second: Select, slot: str, after1: int, after2: int
) -> None:
    """NEW becomes PENDING_VERIFY, PENDING_VERIFY becomes ABORTED, at each pass."""
    flash = board(layout, first, second)
    assert boot(flash, rollback=True).slot == slot
    assert [entry.state for entry in entries(flash, layout)] == [after1, after2]
    assert [entry.seq for entry in entries(flash, layout)] == [first.seq, second.seq]


def test_new_app_that_does_not_confirm_is_rolled_back() -> None:
    """First boot runs it, the second one the app before."""
    flash = board("micro-rdk", make(1, VALID), make(2, NEW))
    assert boot(flash, rollback=True).slot == "ota_1"
    assert boot(flash, rollback=True).slot == "ota_0"
    assert boot(flash, rollback=True).slot == "ota_0"


def test_without_rollback_states_stay() -> None:
    """A bootloader without rollback writes no state, and boots a PENDING_VERIFY entry."""
    for state in (NEW, PENDING_VERIFY):
        result = boot(board("guide", make(1), make(2, state)))
        assert result.slot == "ota_1"
        assert not result.writes


def test_ota_counts_slots_of_any_number() -> None:
    """Slot = (seq - 1) modulo the number of slots, here three; in uint32_t, so 0 is no exception
    (bootloader_utility_get_selected_boot_partition)."""
    base = 0x20000
    layout = Layout(
        "three",
        4 << 20,
        (
            Partition("nvs", 1, 2, 0x9000, 0x6000),
            Partition("otadata", 1, 0, 0xF000, 0x2000),
            *(Partition(f"ota_{i}", 0, 0x10 + i, base + i * 0x100000, 0x100000) for i in range(3)),
        ),
    )
    for seq, slot in enumerate(("ota_0", "ota_0", "ota_1", "ota_2", "ota_0", "ota_1", "ota_2")):
        assert boot(board(layout, make(seq), BLANK)).slot == slot


# --- images that do not hold


def damage_magic(image: bytearray) -> None:
    """Blank the first byte."""
    image[0] = 0xFF


def damage_data(image: bytearray) -> None:
    """One bit in a segment: the checksum fails."""
    image[1000] ^= 1


def damage_twice(image: bytearray) -> None:
    """Two bits that cancel out in the checksum, not in the digest."""
    image[1000] ^= 1
    image[1001] ^= 1


def damage_digest(image: bytearray) -> None:
    """The digest itself."""
    image[-1] ^= 1


def damage_segment_count(image: bytearray) -> None:
    """More segments than there can be."""
    image[1] = 17


def other_chip(image: bytearray) -> None:
    """An ESP32-C3's image."""
    image[12] = 5


def newer_revision(image: bytearray) -> None:
    """Needs revision 9.9."""
    image[15:17] = (909).to_bytes(2, "little")


def odd_segment(image: bytearray) -> None:
    """A segment length that is not a multiple of 4."""
    image[28] ^= 2


def wrong_mapping(image: bytearray) -> None:
    """A mapped segment whose address does not fit its place."""
    image[25] ^= 1


DAMAGES: list[tuple[Callable[[bytearray], None], str]] = [
    (damage_magic, "invalid magic byte"),
    (damage_data, "Checksum failed"),
    (damage_twice, "Image hash failed"),
    (damage_digest, "Image hash failed"),
    (damage_segment_count, "segment count"),
    (other_chip, "mismatch chip ID"),
    (newer_revision, "Image requires chip rev"),
    (odd_segment, "invalid segment length"),
    (wrong_mapping, "doesn't match data"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_bad_image_falls_back(damage: Callable[[bytearray], None], words: str) -> None:
    """The chosen slot's image does not hold: logged, and a lower slot boots."""
    flash = board("guide", make(1), make(2))
    at = LAYOUTS["guide"].find("ota_1").offset
    image = bytearray(SMALL)
    damage(image)
    flash[at : at + len(image)] = image
    result = boot(flash)
    text = "\n".join(result.log)
    assert result.slot == "ota_0"
    assert words in text
    assert "OTA app partition slot 1 is not bootable" in text


# Where a segment goes, its length, and what esp_image_format.c says of it (verify_load_addresses;
# v4.4.8, v5.1.4 and master alike).
LOADS: list[tuple[str, int, int, str]] = [
    ("esp32", 0x3FFB0000, 0x1000, ""),
    ("esp32", 0x3FFDC000, 0x40, "overlaps bootloader stack"),
    ("esp32", 0x3FFF0000, 0x40, "overlaps bootloader data"),
    ("esp32", 0x40078000, 0x40, "bad load address range"),  # the loader's own, outside SOC_IRAM_*
    ("esp32", 0x40070000, 0x40, "bad load address range"),
    ("esp32", 0x3FFE4000, 0x40, "bad load address range"),  # 0x400BBFBC on the other bus
    ("esp32", 0x3FFF6000, 0x40, ""),
    ("esp32", 0x20000000, 0x40, "bad load address range"),
    ("esp32", 0x20000000, 0, ""),
    ("esp32", 0x0FFFFFFC, 0x40, ""),  # padding
    ("esp32", 0x3FFFFFF0, 0x40, "bad load address range"),  # out of memory's end
    ("esp32", 0x50000000, 0x40, ""),
    ("esp32", 0x400C0000, 0x40, ""),
    ("esp32c3", 0x3FCD6000, 0x40, "overlaps bootloader data"),
    ("esp32c3", 0x403D6000, 0x40, "overlaps bootloader data"),
    ("esp32c3", 0x3FCCF000, 0x40, "overlaps loader IRAM"),
    ("esp32c3", 0x403CF000, 0x40, "overlaps loader IRAM"),
    ("esp32c3", 0x40080000, 0x40, "bad load address range"),
    ("esp32c6", 0x4087D000, 0x40, "overlaps bootloader stack"),
]


@pytest.mark.parametrize(("chip", "address", "size", "words"), LOADS)
def test_no_segment_is_loaded_over_the_bootloader(
    chip: str, address: int, size: int, words: str
) -> None:
    """Nor to where no memory is; padding goes nowhere."""
    facts = chip_of(chip)
    described = build_app(size_bytes=2_000, chip=chip)[32:288] + bytes(64)
    image = assemble(
        [(facts.memory.drom + 32, described), (address, bytes(size))], 0, chip_id=facts.id
    )
    flash = make_flash("micro-rdk", app=image, chip=chip)
    result = boot(flash, chip=facts)
    assert (result.slot == "ota_0") == (not words)
    assert words in "\n".join(result.log)


def test_an_image_without_segments_boots() -> None:
    """process_segments has nothing to find fault with; the header allows up to 16."""
    flash = make_flash("micro-rdk", app=assemble([], 0))
    assert boot(flash).slot == "ota_0"


def test_block_revisions_are_read_without_a_descriptor() -> None:
    """process_segment_data takes what stands in its place; the ESP32's bootloader does not look."""
    for chip, boots in (("esp32c3", False), ("esp32", True)):
        facts = chip_of(chip)
        image = assemble([(facts.memory.drom + 32, b"\x07" * 320)], 0, chip_id=facts.id)
        result = boot(make_flash("micro-rdk", app=image, chip=chip), chip=facts)
        assert (result.slot is not None) == boots
        assert ("Image requires efuse blk rev >= v17.99" in "\n".join(result.log)) != boots


def test_image_longer_than_its_partition() -> None:
    """An image that runs over its partition's end is refused."""
    layout = LAYOUTS["guide"]
    small = dataclasses.replace(layout.find("ota_0"), size=0x4000)
    table = tuple(small if p.label == "ota_0" else p for p in layout.partitions)
    flash = board("guide", make(1), BLANK)
    flash[0x8000 : 0x8000 + 0xC00] = encode_table(table)
    result = boot(flash)
    assert result.slot == "factory"
    assert "doesn't fit in partition length" in "\n".join(result.log)


@pytest.mark.parametrize(
    ("apps", "first", "slot"),
    [
        (("factory", "ota_1"), make(1), "factory"),
        (("ota_1",), make(1), "ota_1"),
        (("ota_0",), make(2), "ota_0"),
        (("factory",), make(2), "factory"),
        (("ota_0", "ota_1"), BLANK, "ota_0"),
    ],
)
def test_fallback_order(apps: tuple[str, ...], first: Select | None, slot: str) -> None:
    """Down from the chosen slot to factory, then up."""
    assert boot(board("guide", first, BLANK, apps=apps)).slot == slot


def test_nothing_bootable() -> None:
    """No app at all: the bootloader says so."""
    result = boot(board("micro-rdk", make(1), BLANK, apps=()))
    assert result.slot is None
    assert "No bootable app partitions in the partition table" in result.log[-1]
    assert not result.writes


def test_table_with_a_wrong_md5() -> None:
    """A damaged partition table boots nothing."""
    flash = board("guide", make(1), BLANK)
    flash[0x8004] ^= 1
    result = boot(flash)
    assert result.slot is None
    assert "Failed to verify partition table" in "\n".join(result.log)


def test_table_without_an_end() -> None:
    """Neither blank entries nor anything else behind the last one."""
    flash = board("guide", make(1), BLANK)
    flash[0x8000:0x8C00] = (bytes(flash[0x8000:0x8020]) * 96)[:0xC00]
    assert boot(flash).log[-2].count("Failed to verify partition table") == 1
    assert "partition table has no terminating entry" in "\n".join(boot(flash).log)


def test_table_larger_than_the_flash_of_the_bootloaders_header() -> None:
    """A bootloader built for 2 MB over a table for 8, as ESP-IDF's prints it."""
    flash = board("micro-rdk-8mb", make(1), BLANK)
    flash[0x1000:0x9000] = (
        build_bootloader(flash_size_code=1).ljust(0x7000, b"\xff") + flash[0x8000:0x9000]
    )
    result = boot(flash)
    assert result.slot is None
    assert result.started
    text = "\n".join(result.log)
    assert (
        "flash_parts: partition 3 invalid - offset 0x20000 size 0x3e0000 "
        "exceeds flash chip size 0x200000" in text
    )
    assert "boot: Failed to verify partition table" in text
    assert "boot: load partition table error!" in text
    assert "Partition Table:" not in text


@pytest.mark.parametrize("table_offset", [0x9000, 0x10000, 0x20000])
def test_table_elsewhere(table_offset: int) -> None:
    """The bootloader looks where it was built to look, and nowhere else."""
    base = table_offset + 0x1000
    layout = Layout(
        "elsewhere",
        4 << 20,
        (
            Partition("nvs", 1, 2, base, 0x6000),
            Partition("otadata", 1, 0, base + 0x6000, 0x2000),
            Partition("ota_0", 0, 0x10, 0x40000, 0x100000),
            Partition("ota_1", 0, 0x11, 0x140000, 0x100000),
        ),
    )
    flash = make_flash(layout, app=SMALL, slot="ota_1", table_offset=table_offset)
    assert boot(flash, table_offset=table_offset).slot == "ota_1"
    assert "load partition table error!" in boot(flash).log[-1]


def test_silent_bootloader() -> None:
    """It says nothing and does the same; the ROM speaks all the same."""
    flash = board("micro-rdk", BLANK, BLANK)
    result = boot(flash, silent=True)
    assert (result.slot, result.log) == ("ota_0", ())
    assert result.writes
    failed = boot(board("micro-rdk", make(1), BLANK, apps=()), silent=True)
    assert (failed.slot, failed.log, failed.started) == (None, (), True)
    blank = boot(bytearray(b"\xff" * (1 << 20)), silent=True)
    assert (blank.log, blank.started) == (("invalid header: 0xffffffff",), False)


def test_app_without_a_descriptor() -> None:
    """The bootloader needs none."""
    plain = build_app(size_bytes=20_000, described=False)
    assert read_descriptor(plain) is None
    flash = make_flash("micro-rdk", app=plain)
    assert boot(flash).slot == "ota_0"


@pytest.mark.parametrize("sizes", [(0x80000, 0x200000), (0x200000, 0x80000)])
def test_slots_of_unequal_size_with_one_label(sizes: tuple[int, int]) -> None:
    """What an image may be depends on its own slot; labels mean nothing to the bootloader."""
    slots = (
        Partition("app", 0, 0x10, 0x20000, sizes[0]),
        Partition("app", 0, 0x11, 0x20000 + sizes[0], sizes[1]),
    )
    layout = Layout("unequal", 4 << 20, (Partition("otadata", 1, 0, 0xF000, 0x2000), *slots))
    small = min(slots, key=lambda slot: slot.size)
    large = max(slots, key=lambda slot: slot.size)
    image = build_app(size_bytes=0x90000)
    assert boot(make_flash(layout, app=image, slot=large)).offset == large.offset
    with pytest.raises(ValueError, match="do not fit"):
        make_flash(layout, app=image, slot=small)


# --- anti-rollback

# secure version in eFuse; of ota_0's and ota_1's app (None: no descriptor); entries; slot that
# boots, or None; eFuse afterwards
ANTI_ROLLBACK: list[
    tuple[int, int | None, int | None, Select | None, Select | None, str | None, int]
] = [
    (0, 0, 0, make(1, VALID), make(2, VALID), "ota_1", 0),
    (2, 2, 2, make(1, VALID), make(2, VALID), "ota_1", 2),
    # An older image is not bootable, whatever otadata says.
    (2, 2, 1, make(1, VALID), make(2, NEW), "ota_0", 2),
    (2, 1, 1, make(1, VALID), make(2, VALID), None, 2),
    (1, 1, None, make(1, VALID), make(2, VALID), "ota_0", 1),
    # The eFuses follow an image that is VALID, not one that is to prove itself.
    (1, 1, 3, make(1, VALID), make(2, VALID), "ota_1", 3),
    (1, 1, 3, make(1, VALID), make(2, NEW), "ota_1", 1),
    (0, 4, 0, BLANK, BLANK, "ota_0", 4),
    (4, 3, 4, BLANK, BLANK, "ota_1", 4),
]


@pytest.mark.parametrize(
    ("efuse", "first_app", "second_app", "first", "second", "slot", "after"), ANTI_ROLLBACK
)
def test_anti_rollback(
    efuse: int,
    first_app: int | None,
    second_app: int | None,
    first: Select | None,
    second: Select | None,
    slot: str | None,
    after: int,
) -> None:
    """Images whose secure version is lower than the eFuses' do not boot."""
    flash = board("micro-rdk", first, second)
    for label, version in (("ota_0", first_app), ("ota_1", second_app)):
        image = build_app(
            size_bytes=20_000, secure_version=version or 0, described=version is not None
        )
        at = LAYOUTS["micro-rdk"].find(label).offset
        flash[at : at + 0x8000] = image.ljust(0x8000, b"\xff")
    result = boot(flash, rollback=True, anti_rollback=True, secure_version=efuse)
    assert (result.slot, result.secure_version) == (slot, after)
    assert f"Secure version (from eFuse) = {efuse}" in "\n".join(result.log)


def test_blank_flash() -> None:
    """The ROM finds no bootloader."""
    result = boot(bytearray(b"\xff" * (1 << 20)))
    assert result.log == ("invalid header: 0xffffffff",)


def test_damaged_bootloader() -> None:
    """The ROM checks the second stage's checksum."""
    flash = board("guide", make(1), BLANK)
    flash[0x1000 + 200] ^= 1
    assert "csum err" in boot(flash).log[0]
    flash[0x1000 : 0x1000 + 100] = build_bootloader()[:100]
    assert "csum err" in boot(flash).log[0]


def test_log_shows_the_table() -> None:
    """Partition lines as ESP-IDF prints them."""
    text = "\n".join(boot(board("micro-rdk-8mb", make(1), BLANK)).log)
    assert "boot:  2 nvs              WiFi data        01 02 0000c000 00014000" in text
    assert "boot:  4 ota_1            OTA app          00 11 00400000 003e0000" in text
    assert "boot: End of partition table" in text
