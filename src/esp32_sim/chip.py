# SPDX-License-Identifier: GPL-3.0-or-later
"""The ESP32's registers as far as a loader's client touches them: eFuses, UART, SPI flash.

Addresses and bits: ESP32 Technical Reference Manual, and esptool's targets/esp32.py for the
ones that esptool reads. Every other register reads 0 and ignores writes.
"""

from __future__ import annotations

from esp32_sim.config import BoardConfig
from esp32_sim.core import Core
from esp32_sim.flash import SR1_BUSY, SR1_WEL, NorFlash

CHIP_MAGIC_ADDRESS = 0x40001000
CHIP_MAGIC = 0x00F01D83
UART_CLKDIV = 0x3FF40014
GPIO_STRAP = 0x3FF44038
APB_CTL_DATE = 0x3FF6607C
EFUSE_BASE = 0x3FF5A000
RTC_CALI_CFG1 = 0x3FF5F06C
SPI1_BASE = 0x3FF42000

XTAL_HZ = 40_000_000
# The ROM measures the crystal against its 8 MHz oscillator; these two multiply to 40 MHz in
# the formula that esptool takes from the ROM: cali * 15625 * ck8m / 40.
CALI_VALUE = 640
CK8M_FREQ = 160

SPI_CMD = SPI1_BASE + 0x00
SPI_ADDR = SPI1_BASE + 0x04
SPI_USER = SPI1_BASE + 0x1C
SPI_USER1 = SPI1_BASE + 0x20
SPI_USER2 = SPI1_BASE + 0x24
SPI_MOSI_DLEN = SPI1_BASE + 0x28
SPI_MISO_DLEN = SPI1_BASE + 0x2C
SPI_W0 = SPI1_BASE + 0x80
SPI_W_COUNT = 16

CMD_USR = 1 << 18
USER_COMMAND = 1 << 31
USER_ADDR = 1 << 30
USER_MISO = 1 << 28
USER_MOSI = 1 << 27

# BLK3 word 4 (EFUSE_BLK3_RDATA4): a bit for each secure version (esp_efuse_table.csv).
SECURE_VERSION_WORD = 34

# Strapping pins as sampled at reset: the value that the ROM prints after "boot:".
STRAP_NORMAL = 0x13
STRAP_DOWNLOAD = 0x03

SFDP_HEADER = b"SFDP\x05\x01\x00\xff"


def mac_crc(mac: bytes) -> int:
    """CRC-8 over the MAC as the eFuse holds it (reflected polynomial 0x8C, start 0)."""
    crc = 0
    for byte in mac:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x8C if crc & 1 else crc >> 1
    return crc


def efuse_words(config: BoardConfig) -> dict[int, int]:
    """eFuses as the read registers show them, word number (esptool's read_efuse) to value."""
    mac = config.mac_bytes()
    major, minor = config.revision
    word3 = (config.package & 7) << 9 | (config.package >> 3 & 1) << 2 | 1 << 13
    word3 |= (1 << 15) if major >= 1 else 0
    word5 = (minor & 3) << 24 | ((1 << 20) if major >= 2 else 0)
    if config.flash_crypt_cnt:
        word5 |= 0xF << 28
    word6 = (1 << 4 if config.secure_boot_v1 else 0) | (1 << 5 if config.secure_boot_v2 else 0)
    word6 |= 1 << 7 if config.download_encrypt_disabled else 0
    return {
        # With flash encryption in use its key is read-protected (bit 16), as the bootloader
        # leaves it.
        0: (config.flash_crypt_cnt & 0x7F) << 20 | ((1 << 16) if config.flash_crypt_cnt else 0),
        1: int.from_bytes(mac[2:], "big"),
        2: int.from_bytes(mac[:2], "big") | mac_crc(mac) << 16,
        3: word3,
        4: CK8M_FREQ,
        5: word5,
        6: word6,
        SECURE_VERSION_WORD: (1 << config.secure_version) - 1,
    }


def cali_value(config: BoardConfig) -> int:
    """What the ROM counted of the crystal."""
    return round(CALI_VALUE * config.crystal_estimate)


class Registers:
    """Memory-mapped registers, as READ_REG and WRITE_REG reach them.

    `core` is the processor that runs at present; its time decides whether the flash is busy.
    """

    def __init__(self, config: BoardConfig, flash: NorFlash) -> None:
        self._flash = flash
        self.core: Core | None = None
        self.efuses = efuse_words(config)
        self.major_revision = config.revision[0]
        self.cali_value = cali_value(config)
        self.baud = 115200
        self.strap = STRAP_NORMAL
        self.spi_attached = False
        self._spi: dict[int, int] = {}

    def set_config(self, config: BoardConfig) -> None:
        """Another MAC or other eFuses, as if another board had been plugged in."""
        self.efuses = efuse_words(config)
        self.major_revision = config.revision[0]
        self.cali_value = cali_value(config)

    @property
    def crystal_estimate(self) -> float:
        """What the ROM takes the crystal for, as a part of what it is."""
        return self.cali_value / CALI_VALUE

    def reset(self) -> None:
        """What a chip reset does to the registers."""
        self._spi.clear()
        self.spi_attached = False
        self._flash.write_enabled = False

    def read(self, address: int) -> int:
        """The 32-bit value at `address`."""
        if address == CHIP_MAGIC_ADDRESS:
            return CHIP_MAGIC
        if EFUSE_BASE <= address <= EFUSE_BASE + SECURE_VERSION_WORD * 4:
            return self.efuses.get((address - EFUSE_BASE) // 4, 0)
        if address == UART_CLKDIV:
            whole, sixteenths = divmod(XTAL_HZ * 16 // self.baud, 16)
            return whole | sixteenths << 20
        if address == APB_CTL_DATE:
            # Bit 31 is the third bit of the chip's revision (eFuse has the other two).
            return (1 << 31 if self.major_revision >= 3 else 0) | 0x16042000
        if address == RTC_CALI_CFG1:
            return self.cali_value << 7
        if address == GPIO_STRAP:
            return self.strap
        if SPI1_BASE <= address < SPI1_BASE + 0x100:
            return self._spi.get(address, 0)
        return 0

    def write(self, address: int, value: int) -> None:
        """Write; the command register of SPI1 executes."""
        if not SPI1_BASE <= address < SPI1_BASE + 0x100:
            return
        if address == SPI_CMD:
            if value & CMD_USR:
                self._execute()
            return
        self._spi[address] = value & 0xFFFFFFFF

    # --- the SPI controller in "user" mode

    def _execute(self) -> None:
        user = self._spi.get(SPI_USER, 0)
        command = self._spi.get(SPI_USER2, 0) & 0xFF if user & USER_COMMAND else 0
        address_bits = (self._spi.get(SPI_USER1, 0) >> 26) + 1 if user & USER_ADDR else 0
        address: int | None = None
        if address_bits:
            address = self._spi.get(SPI_ADDR, 0) >> (32 - min(address_bits, 32))
        sent = b""
        if user & USER_MOSI:
            bits = self._spi.get(SPI_MOSI_DLEN, 0) + 1
            words = b"".join(
                self._spi.get(SPI_W0 + 4 * i, 0).to_bytes(4, "little") for i in range(SPI_W_COUNT)
            )
            sent = words[: bits // 8]
        reply_bytes = 0
        if user & USER_MISO:
            bits = self._spi.get(SPI_MISO_DLEN, 0) + 8
            reply_bytes = min(bits // 8, 4 * SPI_W_COUNT)
        reply = b"\x00" * reply_bytes
        if self.spi_attached:
            reply = self._flash_command(command, address, sent, reply_bytes)
        for i in range(0, len(reply), 4):
            word = SPI_W0 + i
            part = reply[i : i + 4]
            if len(part) < 4:
                part += self._spi.get(word, 0).to_bytes(4, "little")[len(part) :]
            self._spi[word] = int.from_bytes(part, "little")

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
