# SPDX-License-Identifier: GPL-3.0-or-later
"""Built images and tables hold for esptool's and Espressif's own readers."""

from __future__ import annotations

import zlib

import pytest
from esp_idf_defs.app_description import AppDescription
from esp_idf_defs.partitions import PartitionTable
from esptool.bin_image import LoadFirmwareImage

from esp32_sim.chips import ESP32
from esp32_sim.flash import NorFlash
from esp32_sim.imagecheck import bootloader_problem, verify_app
from esp32_sim.images import (
    Behaviour,
    build_app,
    build_bootloader,
    find_behaviour,
    read_descriptor,
)
from esp32_sim.layouts import LAYOUTS, encode_table

SIZES = [2976, 20_000, 66_000, 70_000, 100_000, 300_000, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
def test_esptool_reads_the_image(size: int) -> None:
    """Checksum, digest, segments, entry: as esptool calculates them."""
    image = build_app("robot", "1.2.3", size_bytes=size)
    loaded = LoadFirmwareImage("esp32", image)
    assert loaded.checksum == loaded.calculate_checksum()
    assert loaded.stored_digest == loaded.calc_digest
    assert 2 <= len(loaded.segments) <= 16
    assert any(s.addr <= loaded.entrypoint < s.addr + len(s.data) for s in loaded.segments)
    for segment in loaded.segments:
        if loaded.is_flash_addr(segment.addr):
            assert (segment.file_offs + 8) % 0x10000 == segment.addr % 0x10000
    assert abs(len(image) - size) <= 40
    code = [s for s in loaded.segments if 0x400D0000 <= s.addr < 0x40400000]
    assert bool(code) is (size >= 70_000)


@pytest.mark.parametrize("size", SIZES[1:])
def test_compresses_like_real_firmware(size: int) -> None:
    """0.54 to 0.60 with zlib, level 9, as esptool packs it."""
    image = build_app(size_bytes=size)
    assert 0.54 <= len(zlib.compress(image, 9)) / len(image) <= 0.60


def test_espressifs_reader_finds_the_descriptor() -> None:
    """Project, version, hash: where esp-idf-defs reads them."""
    image = build_app("robot", "1.2.3", secure_version=7)
    found = AppDescription.from_bytes(image[32 : 32 + 256])
    ours = read_descriptor(image)
    assert ours is not None
    assert (found.project_name, found.version, found.secure_version) == ("robot", "1.2.3", 7)
    assert (ours.project, ours.version, ours.secure_version) == ("robot", "1.2.3", 7)


def test_same_arguments_same_bytes() -> None:
    """Deterministic, and different for another version or seed."""
    assert build_app(version="1") == build_app(version="1")
    assert (
        len({build_app(version="1"), build_app(version="2"), build_app(version="1", seed=1)}) == 3
    )


def test_behaviour_survives() -> None:
    """What goes into an image comes out of it; other firmware has none."""
    behaviour = Behaviour(
        ending="panic", ending_after_s=2.5, say="it's ready", confirm_after_s=None
    )
    for size in SIZES:
        assert find_behaviour(build_app(size_bytes=size, behaviour=behaviour)) == behaviour
    assert find_behaviour(build_bootloader()) is None


@pytest.mark.parametrize("size", SIZES)
def test_the_bootloader_accepts_it(size: int) -> None:
    """With and without an appended digest."""
    for hashed in (True, False):
        flash = NorFlash(bytearray(b"\xff" * (4 << 20)))
        image = build_app(size_bytes=size, hash_appended=hashed)
        flash.poke(0x20000, image)
        assert verify_app(flash, 0x20000, 0x200000).size == len(image)


def test_bootloader_image() -> None:
    """Valid to esptool and to the ROM, and without an app descriptor."""
    image = build_bootloader()
    loaded = LoadFirmwareImage("esp32", image)
    assert loaded.checksum == loaded.calculate_checksum()
    assert loaded.stored_digest == loaded.calc_digest
    assert read_descriptor(image) is None
    assert image[32] == 0x50
    flash = NorFlash(bytearray(b"\xff" * (1 << 20)))
    flash.poke(0x1000, image)
    assert bootloader_problem(flash, ESP32) is None


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_partition_tables(name: str) -> None:
    """Espressif's reader sees the same partitions, verifies the MD5, and finds no overlap."""
    layout = LAYOUTS[name]
    table = PartitionTable.from_binary(encode_table(layout.partitions))
    table.verify()
    assert [(p.name, p.type, p.subtype, p.offset, p.size) for p in table] == [
        (p.label, p.type, p.subtype, p.offset, p.size) for p in layout.partitions
    ]
    assert max(p.end for p in layout.partitions) <= layout.flash_bytes
