# SPDX-License-Identifier: GPL-3.0-or-later
"""A chip's registers as far as a loader's client touches them: eFuses, UART, SPI flash, watchdog.

Where they are: `chips`. Bits: ESP32 Technical Reference Manual; the newer chips have the same.
Every other register reads 0 and ignores writes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from esp32_sim.chips import CHIP_MAGIC_ADDRESS, WATCHDOG_KEY, Chip
from esp32_sim.config import BoardConfig
from esp32_sim.core import Core
from esp32_sim.flash import SR1_BUSY, SR1_WEL, NorFlash

XTAL_HZ = 40_000_000
# What the ROM counts of a crystal of 40 MHz.
CALI_VALUE = 640
# The watchdog counts the slow clock, here at its usual frequency.
SLOW_CLOCK_HZ = 136_000

SPI_W_COUNT = 16
CMD_USR = 1 << 18
USER_COMMAND = 1 << 31
USER_ADDR = 1 << 30
USER_MISO = 1 << 28
USER_MOSI = 1 << 27
WATCHDOG_ON = 1 << 31

# Flash commands with an address, and how many bits of it they take (W25Q256 data sheet); what
# they are without their 4-byte form.
ADDRESS_BITS = {0x5A: 24, 0x03: 24, 0x02: 24, 0x20: 24, 0xD8: 24} | {
    0x13: 32, 0x12: 32, 0x21: 32, 0xDC: 32,
}  # fmt: skip
SHORT_FORM = {0x13: 0x03, 0x12: 0x02, 0x21: 0x20, 0xDC: 0xD8}

SFDP_HEADER = b"SFDP\x05\x01\x00\xff"

# An encrypted flash's key, where a board does not say what its key blocks are for.
PURPOSE_XTS_AES_128 = 4
# The digests of up to three keys for secure boot.
PURPOSE_BOOT_DIGEST = (9, 10, 11)
# That of the key from which those of an encrypted NVS are derived (ESP-IDF, "HMAC peripheral").
PURPOSE_HMAC_UP = 8
KEY_BLOCKS = 6


def mac_crc(mac: bytes) -> int:
    """CRC-8 over the MAC as the eFuse holds it (reflected polynomial 0x8C, start 0)."""
    crc = 0
    for byte in mac:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x8C if crc & 1 else crc >> 1
    return crc


def key_purposes(config: BoardConfig) -> tuple[int, ...]:
    """What the key blocks are for, one number each."""
    given = config.key_purposes
    if not given:
        given = PURPOSE_BOOT_DIGEST[: len(config.secure_boot_keys)]
        given += (PURPOSE_XTS_AES_128,) if config.flash_crypt_cnt else ()
        given += (PURPOSE_HMAC_UP,) if config.nvs_key else ()
    return (*given, *([0] * (KEY_BLOCKS - len(given))))


def register_values(config: BoardConfig) -> dict[int, int]:
    """Registers that only a board's settings decide, address to value."""
    chip = config.chip_facts
    mac = config.mac_bytes()
    major, minor = config.revision
    block_major, block_minor = config.block_revision
    encrypted = bool(config.flash_crypt_cnt)
    contents = {
        "mac": int.from_bytes(mac, "big"),
        "mac_crc": mac_crc(mac),
        "package": config.package,
        "major": major,
        "minor": minor,
        **{f"major_from_{number}": int(major >= number) for number in (1, 2, 3)},
        "block_major": block_major,
        "block_minor": block_minor,
        "flash_crypt_cnt": config.flash_crypt_cnt,
        "encrypted": int(encrypted),
        "crypt_config": 0xF if encrypted else 0,
        "secure_boot_v1": int(config.secure_boot_v1),
        "secure_boot_v2": int(config.secure_boot_v2),
        "secure_download": int(config.secure_download),
        "download_disabled": int(config.download_disabled),
        "download_encrypt_disabled": int(config.download_encrypt_disabled),
        "secure_version": (1 << config.secure_version) - 1,
        "crystal": round(CALI_VALUE * config.crystal_estimate),
        "secure_boot_revoked": sum(1 << number for number in config.secure_boot_revoked),
        "secure_boot_aggressive": int(config.secure_boot_aggressive),
        **{f"key_purpose_{i}": number for i, number in enumerate(key_purposes(config))},
        **{f"key_{i}": key for i, key in enumerate(_keys(config))},
    }
    values = {CHIP_MAGIC_ADDRESS: chip.magic, **chip.fixed}
    for name, pieces in chip.fields.items():
        left = contents[name]
        for piece in pieces:
            part = left & (1 << piece.size) - 1
            values[piece.address] = values.get(piece.address, 0) | part << piece.at
            left >>= piece.size
    return values


def _keys(config: BoardConfig) -> list[int]:
    """What the key blocks hold, as far as it is told: digests of keys for secure boot."""
    digests = [int.from_bytes(bytes.fromhex(text), "little") for text in config.secure_boot_keys]
    if config.chip_facts.id == 0:  # one block, and no purposes
        return digests[:1] or [0]
    found = dict(zip(PURPOSE_BOOT_DIGEST, digests, strict=False))
    return [found.get(purpose, 0) for purpose in key_purposes(config)]


def security_info(config: BoardConfig) -> bytes:
    """What GET_SECURITY_INFO replies (esptool, loader.py); empty where the chip has none."""
    chip = config.chip_facts
    flags = int(config.secure_boot_v2) | int(config.secure_download) << 2
    purposes = bytes((*key_purposes(config), 0))
    info = struct.pack("<IB7sII", flags, config.flash_crypt_cnt, purposes, chip.id, 0)
    return info[: chip.security_info_bytes]


class Registers:
    """Memory-mapped registers, as READ_REG and WRITE_REG reach them.

    `core` is the processor that runs at present; its time decides whether the flash is busy.
    `on_watchdog` is called with the seconds until the watchdog resets the chip.
    """

    def __init__(self, config: BoardConfig, flash: NorFlash) -> None:
        self._flash = flash
        self.core: Core | None = None
        self.on_watchdog: Callable[[float], None] | None = None
        self.baud = 115200
        self.strap = config.chip_facts.rom.normal
        self.spi_attached = False
        self.forced_download = False
        self._spi: dict[int, int] = {}
        self._watchdog: dict[int, int] = {}
        self.stub_hook = 0
        self.set_config(config)

    def set_config(self, config: BoardConfig) -> None:
        """Another MAC or other eFuses, as if another board had been plugged in."""
        self.config = config
        self.chip: Chip = config.chip_facts
        self.spi = self.chip.spi
        self.values = register_values(config)

    def reset(self) -> None:
        """What a chip reset does to the registers."""
        self._spi.clear()
        self._watchdog.clear()
        self.spi_attached = False
        self.stub_hook = 0
        self._flash.write_enabled = False

    def read(self, address: int) -> int:
        """The 32-bit value at `address`."""
        chip = self.chip
        if address == chip.uart_clkdiv:
            whole, sixteenths = divmod(XTAL_HZ * 16 // self.baud, 16)
            return whole | sixteenths << 20
        if address == chip.strap:
            return self.strap
        if address == chip.force_download:
            return int(self.forced_download)
        if address == chip.stub_hook:
            return self.stub_hook
        return self.values.get(address, self._spi.get(address, 0))

    def write(self, address: int, value: int) -> None:
        """Write; the command register of SPI1 executes, the watchdog's starts it."""
        chip = self.chip
        if address == self.spi.cmd:
            if value & CMD_USR:
                self._execute()
        elif self.spi.base < address < self.spi.base + 0x100:
            self._spi[address] = value & 0xFFFFFFFF
        elif address == chip.force_download:
            self.forced_download = bool(value & 1)
        elif address == chip.stub_hook:
            self.stub_hook = value
        elif chip.watchdog is not None:
            self._write_watchdog(address, value)

    def _write_watchdog(self, address: int, value: int) -> None:
        """Its registers ignore writes until they are unlocked."""
        watchdog = self.chip.watchdog
        assert watchdog is not None
        if address == watchdog.protect:
            self._watchdog[address] = value
        elif self._watchdog.get(watchdog.protect) == WATCHDOG_KEY:
            self._watchdog[address] = value
            if address == watchdog.config0 and value & WATCHDOG_ON and self.on_watchdog:
                self.on_watchdog(self._watchdog.get(watchdog.config1, 0) / SLOW_CLOCK_HZ)

    # --- the SPI controller in "user" mode

    def _execute(self) -> None:
        at = self.spi
        user = self._spi.get(at.user, 0)
        command = self._spi.get(at.user2, 0) & 0xFF if user & USER_COMMAND else 0
        sent = b""
        if user & USER_MOSI:
            bits = self._spi.get(at.mosi_dlen, 0) + 1
            words = b"".join(
                self._spi.get(at.w0 + 4 * i, 0).to_bytes(4, "little") for i in range(SPI_W_COUNT)
            )
            sent = words[: bits // 8]
        address: int | None = None
        if user & USER_ADDR:
            address, sent = self._address(command, sent)
        reply_bytes = 0
        if user & USER_MISO:
            bits = self._spi.get(at.miso_dlen, 0) + 8
            reply_bytes = min(bits // 8, 4 * SPI_W_COUNT)
        reply = b"\x00" * reply_bytes
        if self.spi_attached:
            reply = self._flash_command(
                SHORT_FORM.get(command, command), address, sent, reply_bytes
            )
        for i in range(0, len(reply), 4):
            word = at.w0 + i
            part = reply[i : i + 4]
            if len(part) < 4:
                part += self._spi.get(word, 0).to_bytes(4, "little")[len(part) :]
            self._spi[word] = int.from_bytes(part, "little")

    def _address(self, command: int, sent: bytes) -> tuple[int, bytes]:
        """The address that the flash takes, and its data.

        It counts bits by the command: those that are too many are data to it, and those that are
        missing come out of what follows.
        """
        bits = min((self._spi.get(self.spi.user1, 0) >> 26) + 1, 32)
        value = self._spi.get(self.spi.addr, 0)
        value = value >> 32 - bits if self.spi.address_msb else value & (1 << bits) - 1
        size = bits // 8
        wire = value.to_bytes(4, "big")[4 - size :] + sent
        taken = ADDRESS_BITS.get(command, bits) // 8
        return int.from_bytes(wire[:taken].ljust(taken, b"\xff"), "big"), wire[taken:]

    def _flash_command(self, command: int, address: int | None, sent: bytes, size: int) -> bytes:
        flash = self._flash
        busy = self.core is not None and self.core.flash_is_busy()
        if command == 0x05:
            status = flash.status1 | (SR1_WEL if flash.write_enabled else 0)
            return bytes((status | (SR1_BUSY if busy else 0),)) * size
        if busy:
            return b"\xff" * size
        if command == 0x9F:
            return (flash.jedec_id + b"\xff" * size)[:size]
        if command == 0x35:
            return bytes((flash.status2,)) * size
        if command == 0x15:
            return b"\x00" * size
        if command == 0x5A and address is not None:
            return (SFDP_HEADER + b"\xff" * 256)[address : address + size].ljust(size, b"\xff")
        if command == 0x03 and address is not None:
            return flash.read(address, size)
        if command in (0x06, 0x50):
            flash.write_enabled = True
        elif command == 0x04:
            flash.write_enabled = False
        elif flash.write_enabled and command in (0x01, 0x31, 0x02, 0x20, 0xD8):
            flash.write_enabled = False
            self._change(command, address, sent)
        return b"\xff" * size

    def _change(self, command: int, address: int | None, sent: bytes) -> None:
        flash = self._flash
        if command == 0x01 and sent:
            flash.write_status1(sent[0])
            if len(sent) > 1 and not flash.status_locked:
                flash.status2 = sent[1]
        elif command == 0x31 and sent and not flash.status_locked:
            flash.status2 = sent[0]
        elif address is None:
            return
        elif command == 0x02 and sent:
            flash.program_page(address, sent, "loader")
            self._occupy("program", len(sent))
        elif command in (0x20, 0xD8):
            size = 4096 if command == 0x20 else 65536
            flash.erase(address, size, "loader")
            self._occupy("erase", size)

    def _occupy(self, kind: str, size: int) -> None:
        if self.core is not None:
            self.core.occupy_flash(kind, size, known=False)
