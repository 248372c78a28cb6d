# SPDX-License-Identifier: GPL-3.0-or-later
"""eFuses and revision registers, read with esptool's own decoding."""

from __future__ import annotations

from typing import Any

import pytest
from esptool.targets.esp32 import ESP32ROM

from esp32_sim.chip import Registers
from esp32_sim.config import BoardConfig
from esp32_sim.flash import NorFlash


def esptool_on(config: BoardConfig) -> Any:
    """esptool's object for an ESP32 whose registers are ours, without a wire between them."""
    registers = Registers(config, NorFlash(bytearray(1 << 20)))
    esp = ESP32ROM.__new__(ESP32ROM)
    esp.read_reg = registers.read
    return esp


@pytest.mark.parametrize(
    ("config", "encrypted", "secure_boot"),
    [
        ({}, False, False),
        ({"flash_crypt_cnt": 1}, True, False),
        ({"flash_crypt_cnt": 3}, False, False),
        ({"flash_crypt_cnt": 7}, True, False),
        ({"secure_boot_v1": True}, False, True),
        ({"secure_boot_v2": True}, False, True),
        # Secure boot v2 exists from revision 3 on; before, the bit means nothing.
        ({"secure_boot_v2": True, "revision": (1, 0)}, False, False),
    ],
)
def test_efuses(config: dict[str, Any], encrypted: bool, secure_boot: bool) -> None:
    """eFuse words say what the board was created with."""
    esp = esptool_on(BoardConfig(**config))
    assert esp.get_flash_encryption_enabled() is encrypted
    assert bool(esp.get_secure_boot_enabled()) is secure_boot
    assert bool(esp.get_secure_boot_v1_enabled()) is config.get("secure_boot_v1", False)


@pytest.mark.parametrize("revision", [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1)])
def test_revision(revision: tuple[int, int]) -> None:
    """All chip revisions are readable where esptool looks for them."""
    esp = esptool_on(BoardConfig(revision=revision))
    assert esp.get_chip_revision() == revision[0] * 100 + revision[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # espefuse uses an old click name
def test_mac_and_its_crc() -> None:
    """The MAC stands where esptool reads it, with the CRC byte that espefuse expects."""
    config = BoardConfig(mac="24:0a:c4:12:34:56")
    assert bytes(esptool_on(config).read_mac()).hex(":") == config.mac
    from espefuse.efuse.esp32.fields import EfuseMacField  # type: ignore[import-untyped]

    word2 = esptool_on(config).read_efuse(2)
    assert word2 >> 16 & 0xFF == EfuseMacField.calc_crc(config.mac_bytes())


def test_secure_version() -> None:
    """A bit of eFuse block 3 for each, where ESP-IDF's bootloader counts them."""
    word = 0x3FF5A088
    assert esptool_on(BoardConfig()).read_reg(word) == 0
    assert esptool_on(BoardConfig(secure_version=5)).read_reg(word).bit_count() == 5


def test_crystal() -> None:
    """The ROM's calibration registers give 40 MHz, so baud rates need no correction."""
    assert esptool_on(BoardConfig()).get_rom_cal_crystal_freq() == 40_000_000
