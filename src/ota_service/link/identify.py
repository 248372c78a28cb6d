# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds out which chip answers in download mode, and what its fuses say, in few exchanges.

esptool asks every chip for its security info first; the ESP32's ROM has no such command, and
each of the two attempts waits 0.2 s (esptool 5.6.0, `cmds.detect_chip`). Its magic register says
the same at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeVar

from ota_service.errors import OtaError
from ota_service.link import esptool_setup  # noqa: F401  (before esptool)
from ota_service.link.attachment import GONE, attachment
from ota_service.link.chip import BootKeys, ChipInfo
from ota_service.link.ports import is_socket

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.loader import ESPLoader  # isort: skip
from esptool.targets.esp32 import ESP32ROM  # isort: skip
from esptool.util import FatalError, flash_size_bytes  # isort: skip

if TYPE_CHECKING:
    from serial import SerialBase

Read = TypeVar("Read")

_MAC_WORDS = (2, 1)
"""Words of the ESP32's eFuse block 0: CRC-8 and the MAC's first two bytes, then its other four
(ESP32 TRM, "eFuse controller")."""


SECURE_VERSION = {
    "ESP32": (0x3FF5A088, 0, 32),
    "ESP32-S2": (0x3F41A03C, 11, 16),
    "ESP32-S3": (0x6000703C, 14, 16),
    "ESP32-C2": (0x60008830, 22, 4),
    "ESP32-C3": (0x6000883C, 14, 16),
    "ESP32-C5": (0x600B483C, 9, 9),
    "ESP32-C6": (0x600B083C, 14, 16),
    "ESP32-C61": (0x600B4838, 8, 16),
    "ESP32-E22": (0xC400803C, 8, 16),
    "ESP32-H2": (0x600B083C, 9, 16),
    "ESP32-H21": (0x600B403C, 9, 16),
    "ESP32-H4": (0x600B183C, 7, 16),
    "ESP32-P4": (0x5012D03C, 9, 16),
    "ESP32-S31": (0x20715040, 0, 16),
}
"""Chip -> register, lowest bit and number of bits of the fuses SECURE_VERSION (espefuse 5.6.0,
`efuse_defs/*.yaml`): each step of the secure version burns one more of them."""

_KEY_FUSES = {
    **dict.fromkeys(("ESP32-S2", "ESP32-S3", "ESP32-C3", "ESP32-C6"), ((2, 21), (3, 21))),
    **dict.fromkeys(("ESP32-H2", "ESP32-H21", "ESP32-P4", "ESP32-E22"), ((2, 21), (3, 21))),
    "ESP32-C5": ((2, 19), (3, 26)),
    "ESP32-C61": ((1, 26), (2, 27)),
    "ESP32-H4": ((1, 26), (3, 6)),
    "ESP32-S31": ((2, 24), (4, 3)),
}
"""Chip -> word and bit of SECURE_BOOT_KEY_REVOKE0, which 1 and 2 follow, and of
SECURE_BOOT_AGGRESSIVE_REVOKE, in eFuse block 0 (espefuse 5.6.0, `efuse_defs/*.yaml`)."""

_BLOCK0, _KEY_BLOCK0, _BLOCK_BYTES = 0x2C, 0x9C, 32
_S31_KEY_BLOCK0 = 0xA8
_ESP32_BLOCK2, _C2_BLOCK3 = 0x58, 0x60
"""From the eFuse controller's first register: where what blocks hold is read (espefuse 5.6.0,
`efuse/*/mem_definition.py`)."""

_Field = tuple[int, int]
BLOCK_REVISION: dict[str, tuple[_Field, _Field, _Field]] = {
    "ESP32-C2": ((0x60008844, 28), (0x60008844, 25), (0x60008830, 28)),
    "ESP32-C3": ((0x6000886C, 0), (0x60008850, 24), (0x60008840, 1)),
    "ESP32-C5": ((0x600B484C, 11), (0x600B484C, 8), (0x600B484C, 7)),
    "ESP32-C6": ((0x600B0850, 30), (0x600B0850, 27), (0x600B0840, 1)),
    "ESP32-C61": ((0x600B484C, 11), (0x600B484C, 8), (0x600B484C, 7)),
    "ESP32-H2": ((0x600B086C, 5), (0x600B086C, 2), (0x600B086C, 7)),
    "ESP32-H21": ((0x600B4050, 21), (0x600B4050, 18), (0x600B4050, 23)),
    "ESP32-H4": ((0x600B1850, 29), (0x600B1850, 26), (0x600B1850, 25)),
    "ESP32-P4": ((0x5012D04C, 11), (0x5012D04C, 8), (0x5012D04C, 7)),
    "ESP32-S2": ((0x3F41A050, 25), (0x3F41A06C, 4), (0x3F41A040, 1)),
    "ESP32-S3": ((0x6000706C, 0), (0x60007050, 24), (0x60007040, 1)),
    "ESP32-S31": ((0x2071505C, 29), (0x2071505C, 26), (0x2071505C, 25)),
}
"""Chip -> register and lowest bit of the fuses BLK_VERSION_MAJOR (2 bits), BLK_VERSION_MINOR (3)
and DISABLE_BLK_VERSION_MAJOR (espefuse 5.6.0, `efuse_defs/*.yaml`). The ESP32 has none."""


KNOWN: dict[str, ChipInfo] = {}
"""What chips answered twice alike, by their MACs, while this process runs: where one says the same
again, one reading is enough."""


def twice(read: Callable[[], Read], expected: Read | None = None) -> Read:
    """What `read` says two times alike: registers come without a checksum, and a byte changed on
    the wire must not make another board, or an encrypted one, of this one.

    expected: what was read twice alike before; once more is enough then.
    """
    first = read()
    if first != expected and read() != first:
        raise FatalError("the chip's answers differ")
    return first


RESETS = 4
"""How often a board is reset whose port goes away: a chip on USB-OTG may have to be led out of
download mode first, and an app that restarts by itself takes the port along meanwhile."""
SYNC_TRIES = 2


def detect(port: SerialBase, rom_baud: int, attempts: int) -> Any:
    """Reset into download mode and synchronise; esptool's object for the chip's ROM loader."""
    finder = ESPLoader(port, rom_baud)
    _synchronise(finder, attempts)
    if _magic(finder) != ESP32ROM.MAGIC_VALUE or finder.sync_stub_detected:
        return cmds.detect_chip(port, rom_baud, "no-reset", False, attempts)
    esp = ESP32ROM(port, rom_baud)
    esp._post_connect()
    return esp


def _synchronise(finder: Any, attempts: int) -> None:
    """A port that goes away at the reset is opened again, and the chip not reset once more."""
    port: SerialBase = finder._port
    at = attachment(port)
    for again in reversed(range(RESETS)):
        try:
            if at.by is not None and is_socket(str(port.port)):
                _reset_and_connect(finder, at.resets(port) or (), attempts)
            else:
                finder.connect("default-reset", attempts, detecting=True, warnings=False)
            return
        except GONE as error:
            if not at.may_return or not again:
                raise
            at.reopen(port, error)
        if _in_sync(finder):
            return


def _reset_and_connect(finder: Any, ways: Sequence[Callable[[], None]], attempts: int) -> None:
    """What `connect` does elsewhere: esptool resets nothing that is behind a socket."""
    error: FatalError | None = None
    for _, reset in zip(range(attempts), cycle(ways), strict=False):
        reset()
        error = finder._connect_attempt(None, "no-reset")
        if error is None:
            return
    raise FatalError(f"Failed to connect: {error}")


def _in_sync(finder: Any) -> bool:
    """Whether the chip is in download mode already. It answers at once then; an app that restarts
    by itself leaves little time for the next reset."""
    for _ in range(SYNC_TRIES):
        with contextlib.suppress(FatalError, *GONE):
            finder.flush_input()
            finder.sync()
            return True
    return False


def _magic(finder: Any) -> int | None:
    try:
        return int(finder.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR))
    except FatalError:  # chips in secure download mode do not know the command
        return None


def read_mac(esp: Any) -> str:
    """The chip's MAC, checked by the CRC beside it in the ESP32's fuses, else read twice alike.

    Which chip it is says its name: esptool's classes for other chips derive from the ESP32's,
    and the words that hold its MAC hold something else on them.
    Raises OtaError `no-identity` for a MAC of zeros or ones: every such board would be the same.
    """
    mac = _checked_mac(esp) if esp.CHIP_NAME == ESP32ROM.CHIP_NAME else None
    if mac is None:
        mac = twice(lambda: _mac(esp))
    if set(mac) in ({0x00}, {0xFF}):
        raise OtaError("no-identity", f"The board's fuses hold {mac.hex(':')} as its MAC.")
    return mac.hex(":")


def _checked_mac(esp: Any) -> bytes | None:
    """An ESP32's MAC; None where the CRC is not that of what was read."""
    high, low = (int(esp.read_efuse(word)) for word in _MAC_WORDS)
    mac = (high & 0xFFFF).to_bytes(2, "big") + low.to_bytes(4, "big")
    return mac if mac_crc(mac) == high >> 16 & 0xFF else None


def mac_crc(mac: bytes) -> int:
    """CRC-8 as in the fuses: polynomial x^8 + x^5 + x^4 + 1 reflected, from 0 (ESP-IDF,
    `esp_rom_efuse_mac_address_crc8`)."""
    crc = 0
    for byte in mac:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8C if crc & 1 else 0)
    return crc


def _mac(esp: Any) -> bytes:
    """As esptool reads it for this chip."""
    mac = esp.read_mac("BASE_MAC")
    if mac is None:
        raise FatalError("the chip has no MAC address in its fuses")
    return bytes(mac)


def chip_info(esp: Any, mac: str) -> ChipInfo:
    """What the fuses and the flash chip's id say, twice alike."""
    size = cmds.detect_flash_size(esp)
    flash_bytes = flash_size_bytes(size) if size else None
    chip = KNOWN[mac] = twice(lambda: _read_chip(esp, mac, flash_bytes), KNOWN.get(mac))
    return chip


def _read_chip(esp: Any, mac: str, flash_bytes: int | None) -> ChipInfo:
    """Each register is read once: esptool's functions read the same words again and again."""
    esp.read_reg = cache(esp.read_reg)
    try:
        secure_boot = bool(esp.get_secure_boot_enabled())
        block_revision, any_block_major = _block_revision(esp)
        return ChipInfo(
            name=esp.CHIP_NAME,
            chip_id=int(esp.IMAGE_CHIP_ID),
            mac=mac,
            revision=int(esp.get_chip_revision()),
            flash_bytes=flash_bytes,
            flash_encrypted=bool(esp.get_flash_encryption_enabled()),
            secure_boot=secure_boot,
            secure_version=_secure_version(esp),
            boot_keys=_boot_keys(esp) if secure_boot else None,
            flash_id=esp.cache.get("flash_id"),
            block_revision=block_revision,
            any_block_major=any_block_major,
        )
    finally:
        del esp.read_reg


def _block_revision(esp: Any) -> tuple[int | None, bool]:
    if esp.CHIP_NAME not in BLOCK_REVISION:
        return None, False
    major, minor, unlimited = (
        int(esp.read_reg(register)) >> lowest for register, lowest in BLOCK_REVISION[esp.CHIP_NAME]
    )
    return (major & 3) * 100 + (minor & 7), bool(unlimited & 1)


def _secure_version(esp: Any) -> int:
    """What the fuses hold for anti-rollback; 0 for a chip whose fuses are not known."""
    if esp.CHIP_NAME not in SECURE_VERSION:
        return 0
    register, lowest, bits = SECURE_VERSION[esp.CHIP_NAME]
    return (int(esp.read_reg(register)) >> lowest & (1 << bits) - 1).bit_count()


def _boot_keys(esp: Any) -> BootKeys | None:
    """What Secure Boot v2 of this chip trusts; None for version 1 and for unknown fuses."""
    if esp.get_secure_boot_v1_enabled():
        return None
    if esp.CHIP_NAME == ESP32ROM.CHIP_NAME:
        return BootKeys((_block(esp, esp.EFUSE_RD_REG_BASE + _ESP32_BLOCK2),))
    if esp.CHIP_NAME == "ESP32-C2":  # its one key block is shared with flash encryption
        return BootKeys((_block(esp, esp.EFUSE_BASE + _C2_BLOCK3)[_BLOCK_BYTES // 2 :],))
    if esp.CHIP_NAME not in _KEY_FUSES:
        return None

    def bits(word: int, lowest: int) -> int:
        return int(esp.read_reg(esp.EFUSE_BASE + _BLOCK0 + 4 * word)) >> lowest

    revoke, aggressive = _KEY_FUSES[esp.CHIP_NAME]
    revoked = bits(*revoke)
    keys: dict[bool, list[bytes]] = {False: [], True: []}
    first = esp.EFUSE_BASE + (_S31_KEY_BLOCK0 if esp.CHIP_NAME == "ESP32-S31" else _KEY_BLOCK0)
    for block in range(esp.EFUSE_MAX_KEY + 1):
        purpose = esp.KEY_PURPOSES.get(esp.get_key_block_purpose(block), "")
        if purpose.startswith("SECURE_BOOT_DIGEST"):
            digest = _block(esp, first + _BLOCK_BYTES * block)
            keys[bool(revoked >> int(purpose[-1]) & 1)].append(digest)
    return BootKeys(tuple(keys[False]), tuple(keys[True]), bool(bits(*aggressive) & 1))


def _block(esp: Any, register: int) -> bytes:
    words = (int(esp.read_reg(register + at)) for at in range(0, _BLOCK_BYTES, 4))
    return b"".join(word.to_bytes(4, "little") for word in words)
