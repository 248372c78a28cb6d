# SPDX-License-Identifier: GPL-3.0-or-later
"""Merged Binaries: what is put where, what is refused, and that a board starts them."""

from __future__ import annotations

import hashlib
import random
import zlib
from typing import Any

import pytest

from esp32_sim.factory import build_nvs, default_nvs, make_flash
from esp32_sim.images import assemble, build_app, build_bootloader, filler
from esp32_sim.layouts import LAYOUTS, Partition, encode_table
from ota_service.building.tables import load_table
from ota_service.cli.contents import report
from ota_service.errors import OtaError
from ota_service.formats.bootloader import (
    header_flash_bytes,
    parse_bootloader,
    with_flash_bytes,
)
from ota_service.formats.image import parse_app_image
from ota_service.formats.merge import Merged, merge
from ota_service.formats.merged import parse_merged, whole_flash
from ota_service.update.flash_plan import check_merged

APP = build_app("demo", "1.0", size_bytes=100_000)
LOADER = build_bootloader()
GUIDE = load_table("ota-guide")


def build(**changes: Any) -> Merged:
    """A Merged Binary of the parts above, some of them changed."""
    return merge(**{"bootloader": LOADER, "table": GUIDE, "app": APP, **changes})


def refused(**changes: Any) -> OtaError:
    """The error that building it ends in."""
    with pytest.raises(OtaError) as caught:
        build(**changes)
    return caught.value


def test_every_part_stands_in_its_place() -> None:
    """Blank between them, otadata blank, the app in the factory partition."""
    made = build()
    data = made.data
    assert data[:0x1000] == b"\xff" * 0x1000
    assert data[0x1000 : 0x1000 + len(LOADER)] == LOADER
    assert data[0x8000:0x8C00] == GUIDE
    assert data[0x9000:0x10000] == b"\xff" * 0x7000
    assert data[0x10000 : 0x10000 + len(APP)] == APP
    assert len(data) % 0x1000 == 0
    assert made.booted.label == "factory"
    assert [region.name for region in made.regions] == [
        *("bootloader", "partition table", "otadata", "factory")
    ]


def test_without_a_factory_partition_the_app_goes_to_ota_0() -> None:
    """As the bootloader reads blank otadata."""
    made = build(table=load_table("micro-rdk-8mb"))
    assert made.booted.label == "ota_0"
    assert made.data[0x20000 : 0x20000 + len(APP)] == APP


def test_contents_go_by_place_where_two_partitions_have_one_label() -> None:
    """The app into the first slot alone, and others by label and place."""
    table = encode_table(
        (
            Partition("app", 1, 2, 0x9000, 0x4000),
            Partition("otadata", 1, 0, 0xD000, 0x2000),
            Partition("app", 0, 0x10, 0x10000, 0x100000),
            Partition("app", 0, 0x11, 0x110000, 0x100000),
        )
    )
    made = build(table=table)
    assert made.booted.name == "app@0x10000"
    assert made.data[0x10000 : 0x10000 + len(APP)] == APP
    assert not made.data[0x9000:0xD000].strip(b"\xff")
    assert len(made.data) < 0x110000
    nvs = build_nvs(0x4000, default_nvs())
    made = build(table=table, contents={"app@0x110000": APP, "app": nvs})
    assert made.data[0x9000:0xD000] == nvs
    assert made.data[0x110000 : 0x110000 + len(APP)] == APP
    with pytest.raises(OtaError, match="gets the app"):
        build(table=table, contents={"app@0x10000": APP})


def test_our_reader_finds_what_was_put_in() -> None:
    """Chip, table, app, keys; and nothing is wrong with it."""
    keys = default_nvs(version="0.9")
    nvs = build_nvs(0x4000, keys)
    read = parse_merged(build(contents={"nvs": nvs}).data)
    assert read.problems == []
    assert (read.chip, read.bootloader_offset, read.table_offset) == ("ESP32", 0x1000, 0x8000)
    assert read.booted is not None
    assert read.app_of(read.booted) == parse_app_image(APP)
    ((part, found),) = read.nvs
    assert part.label == "nvs"
    assert not isinstance(found, OtaError)
    assert found.get_string("VIAM_NS", "OTA_VERSION") == "0.9"


def test_identical_input_gives_identical_bytes() -> None:
    """Nothing of the time or the machine is in it; padding behind the images is not either."""
    assert build().data == build(app=APP + b"\xff" * 100, bootloader=LOADER + b"\xff" * 9).data


@pytest.mark.parametrize("start", [0x1000])
def test_a_file_that_begins_at_its_bootloader_is_read_too(start: int) -> None:
    """esptool and some projects leave the empty beginning out."""
    data = build().data
    assert whole_flash(data) == data
    assert whole_flash(data[start:]) == data
    assert parse_merged(data[start:]) == parse_merged(data)


def test_another_flash_size_is_written_into_the_bootloader() -> None:
    """With its digest made anew, or the chip's ROM would not start it."""
    made = build(flash_bytes=16 << 20)
    loader = parse_bootloader(made.data[0x1000:0x8000], trailing=True)
    assert loader.flash_bytes == 16 << 20
    assert loader.hash_appended
    assert with_flash_bytes(LOADER, 8 << 20) == LOADER
    without = bytearray(LOADER[:-32])
    without[23] = 0
    changed = with_flash_bytes(bytes(without), 4 << 20)
    assert [n for n in range(len(without)) if without[n] != changed[n]] == [3]


def test_the_flash_size_of_a_bootloader_is_told_from_its_first_bytes() -> None:
    """As the bootloader itself takes it: 2 MB for a code that it does not know."""
    sizes = [header_flash_bytes(build_bootloader(flash_size_code=code)[:4]) for code in range(16)]
    assert sizes == [1 << 20 + code for code in range(8)] + [2 << 20] * 8
    assert header_flash_bytes(LOADER[:3]) is None
    assert header_flash_bytes(b"\xff" * 16) is None


@pytest.mark.parametrize("code", [1, 15])
def test_a_file_whose_bootloader_finds_too_small_a_flash_is_not_written(code: int) -> None:
    """It would print `partition 5 invalid` and restart for ever; inspection says so as well."""
    data = bytearray(build().data)
    loader = build_bootloader(flash_size_code=code)
    data[0x1000 : 0x1000 + len(loader)] = loader
    with pytest.raises(OtaError, match="would not start") as caught:
        check_merged(bytes(data))
    assert caught.value.code == "flash-size"
    found = report(bytes(data))
    assert not found["ok"]
    assert "flash of 0x200000 bytes" in found["problems"][0]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"flash_bytes": 2 << 20}, "flash-size", "2 MB"),
        ({"bootloader": build_bootloader(flash_size_code=1)}, "flash-size", "2 MB"),
        ({"bootloader": build_bootloader(flash_size_code=15)}, "flash-size", "does not say"),
        ({"bootloader": APP}, "not-an-image", "app descriptor"),
        ({"bootloader": b"\x7fELF"}, "not-an-image", "ELF"),
        ({"bootloader": LOADER[:-40]}, "image-corrupt", "bootloader is damaged"),
        ({"bootloader": LOADER + b"more"}, "image-corrupt", "something else"),
        ({"app": LOADER}, "bootloader-image", ""),
        ({"app": APP[:-1]}, "image-corrupt", "ends at"),
        ({"app": build_app(size_bytes=1_200_000)}, "image-too-large", "factory"),
        ({"app": build_app(chip_id=9, size_bytes=50_000)}, "wrong-chip", "ESP32-S3"),
        ({"table": b"\xff" * 0xC00}, "partition-table-invalid", "blank"),
        ({"table_offset": 0x8800}, "config-invalid", "0x8800"),
        ({"table_offset": 0x10000}, "partition-table-invalid", "nvs"),
        ({"contents": {"nowhere": b"x"}}, "config-invalid", "nowhere"),
        ({"contents": {"factory": APP}}, "config-invalid", "gets the app"),
        ({"contents": {"phy_init": b"x" * 0x1001}}, "image-too-large", "phy_init"),
        ({"contents": {"nvs": b"\xff" * 0x3000}}, "nvs-invalid", "0x3000"),
        ({"contents": {"ota_0": b"no app"}}, "not-an-image", ""),
    ],
)
def test_what_would_not_start_is_refused(changes: dict[str, Any], code: str, words: str) -> None:
    """Before a board has it."""
    error = refused(**changes)
    assert error.code == code
    assert words in error.message


def test_a_bootloader_that_reaches_into_the_table_is_refused() -> None:
    """Overlap: a bootloader of the log level debug on a table at the usual place."""
    rng = random.Random(1)
    big = assemble(
        [(0x3FFF0030, filler(12_000, rng)), (0x40078000, filler(20_000, rng))], 0x40078004
    )
    error = refused(bootloader=big)
    assert error.code == "image-too-large"
    assert "bootloader ends at" in error.message
    assert "partition table at 0x8000" in error.message


def test_damage_is_listed_with_its_place() -> None:
    """A damaged app, bootloader or NVS, and a slot to be started that is empty."""
    nvs = build_nvs(0x4000, default_nvs())
    good = bytearray(build(contents={"nvs": nvs}).data)
    broken = bytearray(good)
    broken[0x10000 + 5000] ^= 1
    assert "factory at 0x10000" in parse_merged(bytes(broken)).problems[0]
    broken = bytearray(good)
    broken[0x1000 + 5000] ^= 1
    assert "at 0x1000: The bootloader is damaged" in parse_merged(bytes(broken)).problems[0]
    broken = good[:0x10000]
    assert parse_merged(bytes(broken)).problems == ["factory is to be started, but holds no app"]
    broken = bytearray(good)
    broken[0x9008] = 0x10
    broken[0x901C:0x9020] = _page_crc(bytes(broken[0x9000:0xA000]))
    assert "nvs at 0x9000" in parse_merged(bytes(broken)).problems[0]


def _page_crc(page: bytes) -> bytes:
    return zlib.crc32(page[4:28], 0xFFFFFFFF).to_bytes(4, "little")


def test_a_whole_flash_of_a_board_is_a_merged_binary() -> None:
    """A backup that was read from a board, with otadata that names a slot."""
    flash = bytes(make_flash("micro-rdk", app=APP, slot="ota_1"))
    read = parse_merged(flash)
    assert read.problems == []
    assert read.booted is not None
    assert read.booted.label == "ota_1"
    assert len(flash) == LAYOUTS["micro-rdk"].flash_bytes
    assert hashlib.sha256(flash).digest() == hashlib.sha256(whole_flash(flash)).digest()
