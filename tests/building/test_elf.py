# SPDX-License-Identifier: GPL-3.0-or-later
"""App Images from ELF files, for every chip that esptool knows."""

from __future__ import annotations

import hashlib

import pytest

from ota_service.building.elf import CHIPS, app_image, candidates
from ota_service.errors import OtaError
from ota_service.formats.image import parse_app_image
from tests.support.elf import PLACES, RISCV, XTENSA, app_elf, write_elf


def test_every_chip_of_esptool_has_an_example() -> None:
    """A chip that a later esptool brings must be tried before it is promised."""
    assert set(CHIPS) == set(PLACES)


@pytest.mark.parametrize("chip", CHIPS)
def test_an_elf_becomes_a_whole_app_image(chip: str) -> None:
    """Accepted by our reader, for that chip, with the ELF's digest, and the same each time."""
    elf = app_elf(chip)
    assert chip in candidates(elf)
    data = app_image(elf, chip=chip)
    image = parse_app_image(data)
    assert image.chip.lower().replace("-", "") == chip
    assert (image.descriptor.project, image.descriptor.version) == ("demo", "1.2.3")
    assert image.descriptor.elf_sha256 == hashlib.sha256(elf).digest()
    assert image.hash_appended
    assert app_image(elf, chip=chip) == data


@pytest.mark.parametrize("chip", ["esp32", "esp32s2", "esp32s3", "esp32e22"])
def test_the_chip_is_told_where_its_addresses_are_its_own(chip: str) -> None:
    """Nobody has to name the chip that this is made for."""
    elf = app_elf(chip)
    assert app_image(elf) == app_image(elf, chip=chip)


def test_a_chip_that_cannot_be_told_is_asked_for() -> None:
    """C6, H2 and others share their addresses: guessing would make an image that never boots."""
    with pytest.raises(OtaError, match="esp32c6, esp32c61") as caught:
        app_image(app_elf("esp32c6"))
    assert caught.value.code == "wrong-chip"
    assert "CHIP=" in caught.value.remedy


def test_revisions_and_flash_settings_reach_the_header() -> None:
    """The bootloader looks at the former."""
    image = parse_app_image(app_image(app_elf(), min_revision=300, max_revision=399))
    assert (image.min_revision, image.max_revision) == (300, 399)
    data = app_image(app_elf("esp32c3"), chip="esp32c3", min_revision=3, flash_size="8MB")
    assert data[14] == 3  # the old field: on this chip the minor revision
    assert data[3] >> 4 == 3
    assert app_image(app_elf(), flash_mode="qio")[2] == 0


@pytest.mark.parametrize(
    ("elf", "code", "words"),
    [
        (b"\xe9\x01 no ELF", "not-an-image", "not an ELF"),
        (b"\x7fELF\x01\x01\x01" + bytes(11) + b"\x3e\x00", "not-an-image", "no ESP32 chip"),
        (app_elf()[:60], "not-an-image", "esptool cannot use"),
        (write_elf(XTENSA, 0, []), "not-an-image", "no program"),
        (
            write_elf(RISCV, 0x80000000, [(".text", 0x80000000, bytes(64))]),
            "wrong-chip",
            "fits no chip",
        ),
    ],
)
def test_what_is_no_program_for_these_chips_is_refused(elf: bytes, code: str, words: str) -> None:
    """In words, whatever esptool's own code does with it."""
    with pytest.raises(OtaError, match=words) as caught:
        app_image(elf)
    assert caught.value.code == code


def test_an_app_without_a_descriptor_is_converted_and_then_not_taken() -> None:
    """It could run, but nothing could be told of it, so no update takes it."""
    data = app_image(app_elf(described=False))
    with pytest.raises(OtaError) as caught:
        parse_app_image(data)
    assert caught.value.code == "no-app-descriptor"


def test_unknown_settings_name_what_exists() -> None:
    """Typing errors."""
    with pytest.raises(OtaError) as caught:
        app_image(app_elf(), chip="esp33")
    assert "esp32s3" in caught.value.remedy
    with pytest.raises(OtaError) as caught:
        app_image(app_elf(), flash_size="3MB")
    assert "8MB" in caught.value.remedy
