# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds out which chip answers in download mode, and what its fuses say, in few exchanges.

esptool asks every chip for its security info first; the ESP32's ROM has no such command, and
each of the two attempts waits 0.2 s (esptool 5.6.0, `cmds.detect_chip`). Its magic register says
the same at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ota_service.board import esptool_setup  # noqa: F401  (before esptool)
from ota_service.board.chip import ChipInfo

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.loader import DEFAULT_TIMEOUT, ESPLoader  # isort: skip
from esptool.targets.esp32 import ESP32ROM  # isort: skip
from esptool.util import FatalError, flash_size_bytes  # isort: skip

if TYPE_CHECKING:
    from serial import SerialBase

Read = TypeVar("Read")

_MAC_WORDS = (2, 1)
"""Words of the ESP32's eFuse block 0: CRC-8 and the MAC's first two bytes, then its other four
(ESP32 TRM, "eFuse controller")."""


def twice(read: Callable[[], Read]) -> Read:
    """What `read` says two times alike: registers come without a checksum, and a byte changed on
    the wire must not make another board, or an encrypted one, of this one."""
    first = read()
    if read() != first:
        raise FatalError("the chip's answers differ")
    return first


def detect(port: SerialBase, rom_baud: int, attempts: int) -> Any:
    """Reset into download mode and synchronise; esptool's object for the chip's ROM loader."""
    finder = ESPLoader(port, rom_baud)
    finder.connect("default-reset", attempts, detecting=True, warnings=False)
    if _magic(finder) != ESP32ROM.MAGIC_VALUE or finder.sync_stub_detected:
        return cmds.detect_chip(port, rom_baud, "no-reset", False, attempts)
    esp = ESP32ROM(port, rom_baud)
    esp._post_connect()
    return esp


def _magic(finder: Any) -> int | None:
    try:
        return int(finder.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR))
    except FatalError:  # chips in secure download mode do not know the command
        return None


def read_mac(esp: Any) -> str:
    """The chip's MAC, checked by the CRC beside it in the fuses, or else read twice alike."""
    if isinstance(esp, ESP32ROM):
        high, low = (esp.read_efuse(word) for word in _MAC_WORDS)
        mac = bytes((high >> 8 & 0xFF, high & 0xFF)) + int(low).to_bytes(4, "big")
        if mac_crc(mac) == high >> 16 & 0xFF:
            return mac.hex(":")
    return twice(lambda: _mac(esp))


def mac_crc(mac: bytes) -> int:
    """CRC-8 as in the fuses: polynomial x^8 + x^5 + x^4 + 1 reflected, from 0 (ESP-IDF,
    `esp_rom_efuse_mac_address_crc8`)."""
    crc = 0
    for byte in mac:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8C if crc & 1 else 0)
    return crc


def _mac(esp: Any) -> str:
    mac = esp.read_mac("BASE_MAC")
    if mac is None:
        raise FatalError("the chip has no MAC address in its fuses")
    return ":".join(f"{byte:02x}" for byte in mac)


def chip_info(esp: Any, mac: str) -> ChipInfo:
    """What the fuses and the flash chip's id say, twice alike."""
    size = cmds.detect_flash_size(esp)
    revision, encrypted, secure_boot = twice(lambda: _fuses(_Words(esp, isinstance(esp, ESP32ROM))))
    return ChipInfo(
        name=esp.CHIP_NAME,
        chip_id=int(esp.IMAGE_CHIP_ID),
        mac=mac,
        revision=revision,
        flash_bytes=flash_size_bytes(size) if size else None,
        flash_encrypted=encrypted,
        secure_boot=secure_boot,
    )


class _Words:
    """A chip whose registers are read once each for one round of questions.

    esptool's functions read the same fuse words again and again.
    """

    def __init__(self, esp: Any, remember: bool) -> None:
        self._esp = esp
        self._read: dict[int, int] | None = {} if remember else None

    def __enter__(self) -> Any:
        if self._read is not None:
            self._esp.read_reg = self._once
        return self._esp

    def __exit__(self, *_: object) -> None:
        if self._read is not None:
            del self._esp.read_reg

    def _once(self, address: int, timeout: float = DEFAULT_TIMEOUT) -> int:
        assert self._read is not None
        if address not in self._read:
            self._read[address] = int(type(self._esp).read_reg(self._esp, address, timeout))
        return self._read[address]


def _fuses(words: _Words) -> tuple[int, bool, bool]:
    with words as esp:
        return (
            int(esp.get_chip_revision()),
            bool(esp.get_flash_encryption_enabled()),
            bool(esp.get_secure_boot_enabled()),
        )
