# SPDX-License-Identifier: GPL-3.0-or-later
"""The chips that boards may have: what differs between them, as values of one table.

Sources: esptool 5.6's targets and stubs and espefuse's field tables (register addresses, eFuse
fields, security info), ESP-IDF's soc.h and rom/rtc.h (address ranges, causes of resets), its
documentation and logs of real boards (what the ROMs print), and esp32.md. The magic words are
those that esptool knew up to version 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from esp32_sim.logs import PANICS, RISCV_PANICS

ResetKind = Literal[
    "power-on", "system", "sleep", "timer-watchdog", "cpu", "brown-out", "rtc-watchdog", "usb"
]
"""What can reset a chip; each ROM has its own name for it."""

UsbKind = Literal["serial-jtag", "otg"]
"""serial-jtag: a peripheral that does nothing else. otg: a CDC port that software makes."""

CHIP_MAGIC_ADDRESS = 0x40001000
WATCHDOG_KEY = 0x50D83AA1


@dataclass(frozen=True, slots=True)
class Bits:
    """`size` bits of a register, from bit `at` on."""

    address: int
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class Spi:
    """Where SPI1, in front of the flash, has its registers.

    address_msb: whether an address stands in the upper bits of its register.
    """

    base: int
    user: int
    user1: int
    user2: int
    mosi_dlen: int
    miso_dlen: int
    w0: int
    address_msb: bool = False

    @property
    def cmd(self) -> int:
        """Starts a transfer."""
        return self.base

    @property
    def addr(self) -> int:
        """The flash address."""
        return self.base + 4


@dataclass(frozen=True, slots=True)
class Watchdog:
    """The watchdog of the chip's always-on part, with which esptool resets chips over USB."""

    config0: int
    config1: int
    protect: int


@dataclass(frozen=True)
class Rom:
    """What the ROM prints.

    banner: first of all. normal, download: the strapping pins' value and what it is called, for
    both ways to boot. saved_pc: whether resets other than at power-on add where the processor
    was. loading: from the header of the bootloader to its start. checksum_failed: behind the
    line that tells of a bootloader's wrong checksum. narrowed: the strapping pins' value where
    they leave only one interface for the download.
    """

    banner: str
    normal: int
    download: tuple[int, str]
    loading: tuple[str, ...]
    saved_pc: str = ""
    checksum_failed: str = "ets_main.c 333 "
    narrowed: int = 0x2


@dataclass(frozen=True)
class Memory:
    """Where images have their parts; mapped: ranges that the cache maps from flash.

    bootloader: the second stage's segments, address and length.
    ram: ranges that segments can be loaded into. kept: what the second stage lets no segment
    overlap, by its words, in the data bus's addresses. mirror: how far above those the instruction
    bus has the same memory. Source: ESP-IDF's soc.h, and verify_load_addresses (the stack is
    32 KiB and what is in use of it, about 1 KiB, below SOC_ROM_STACK_START; where both buses have
    the same addresses the check never comes to the loader's code).
    """

    drom: int
    irom: int
    dram: int
    iram: int
    mapped: tuple[tuple[int, int], ...]
    bootloader: tuple[tuple[int, int], ...]
    entry: int
    ram: tuple[tuple[int, int], ...]
    kept: Mapping[str, tuple[int, int]]
    mirror: int = 0
    rtc: int = 0x50000000

    def keeps_out(self, start: int, end: int) -> str:
        """Why the second stage loads nothing to [start, end); "" where it does."""
        for what, (low, high) in self.kept.items():
            if any(start - shift < high and low < end - shift for shift in (0, self.mirror)):
                return f"overlaps {what}"
        fits = any(low <= start and end <= high for low, high in self.ram)
        return "" if fits else "bad load address range"


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    name: as images and esptool's options have it; id: as images' headers have it. revision: of
    a board that says nothing else. fields: eFuses and other registers whose contents come from
    the board's settings, by what they hold (`chip.register_values`), lowest bits first. fixed:
    registers that always read the same. security_info_bytes: what GET_SECURITY_INFO gives; 0
    where ROM and stub do not know it. flash_begin_bytes: of the ROM's FLASH_BEGIN. stub_sets_baud:
    whether the stub sets its speed by itself when it starts, instead of leaving the UART as the
    ROM had it. wide_flash: whether the stub reaches flash above 16 MiB, by commands with 4-byte
    addresses. force_download: the register whose lowest bit leads into download mode at the next
    reset. unbootable: the reset that follows where the ROM finds no bootloader. checks_blocks:
    whether the bootloader looks at the eFuse blocks' revision. signature_blocks: how many of an
    image's count with secure boot. usb: its own ports.
    stub_hook: where secure boot keeps MEM_END from starting code, the word that leads the ROM's
    next READ_FLASH_SLOW to it (esptool's run_stub).
    """

    name: str
    title: str
    id: int
    magic: int
    bootloader_offset: int
    revision: tuple[int, int]
    uart_clkdiv: int
    strap: int
    spi: Spi
    fields: Mapping[str, tuple[Bits, ...]]
    rom: Rom
    memory: Memory
    resets: Mapping[ResetKind, str]
    panics: Mapping[str, tuple[str, ...]]
    fixed: Mapping[int, int] = field(default_factory=dict)
    package: int = 0
    cores: int = 1
    security_info_bytes: int = 20
    flash_begin_bytes: int = 20
    stub_sets_baud: bool = False
    wide_flash: bool = False
    watchdog: Watchdog | None = None
    force_download: int | None = None
    unbootable: ResetKind = "timer-watchdog"
    checks_blocks: bool = True
    signature_blocks: int = 3
    usb: tuple[UsbKind, ...] = ()
    stub_hook: int | None = None


def _spi(base: int, *, user: int = 0x18, w0: int = 0x58, address_msb: bool = False) -> Spi:
    first, words = base + user, base + w0
    return Spi(base, first, first + 4, first + 8, first + 12, first + 16, words, address_msb)


def _efuses(
    base: int, **fields: tuple[tuple[int, int, int, int], ...]
) -> dict[str, tuple[Bits, ...]]:
    """Fields of the eFuse controller that all but the ESP32 have: (block, word, bit, size)."""
    starts = (0x2C, 0x44, 0x5C, 0x7C, *(0x9C + 0x20 * key for key in range(6)))
    common = {
        "mac": ((1, 0, 0, 32), (1, 1, 0, 16)),
        "download_encrypt_disabled": ((0, 1, 20, 1),),
        "flash_crypt_cnt": ((0, 2, 18, 3),),
        **{f"key_purpose_{i}": ((0, 2 + (i + 6) // 8, (24 + 4 * i) % 32, 4),) for i in range(6)},
        "secure_boot_v2": ((0, 3, 20, 1),),
        "secure_boot_revoked": ((0, 2, 21, 3),),
        "secure_boot_aggressive": ((0, 3, 21, 1),),
        **{f"key_{i}": tuple((4 + i, word, 0, 32) for word in range(8)) for i in range(6)},
        "secure_download": ((0, 4, 5, 1),),
        "download_disabled": ((0, 4, 0, 1),),
        "secure_version": ((0, 4, 14, 16),),
    }
    return {
        name: tuple(Bits(base + starts[b] + 4 * word, at, size) for b, word, at, size in pieces)
        for name, pieces in {**common, **fields}.items()
    }


def _esp32_efuse(*pieces: tuple[int, int, int]) -> tuple[Bits, ...]:
    return tuple(Bits(0x3FF5A000 + 4 * word, at, size) for word, at, size in pieces)


def _resets(**names: str) -> dict[ResetKind, str]:
    kinds: tuple[tuple[ResetKind, int], ...] = (
        ("power-on", 0x1),
        ("system", 0x3),
        ("sleep", 0x5),
        ("timer-watchdog", 0x7),
        ("cpu", 0xC),
        ("brown-out", 0xF),
        ("rtc-watchdog", 0x10),
        ("usb", 0x15),
    )
    return {kind: f"{code:#x} ({names[kind.replace('-', '_')]})" for kind, code in kinds}


_RESETS_2019 = _resets(
    power_on="POWERON",
    system="RTC_SW_SYS_RST",
    sleep="DSLEEP",
    timer_watchdog="TG0WDT_SYS_RST",
    cpu="RTC_SW_CPU_RST",
    brown_out="BROWN_OUT_RST",
    rtc_watchdog="RTCWDT_RTC_RST",
    usb="USB_UART_CHIP_RESET",
)
_RESETS_2021 = {**_RESETS_2019, "brown-out": "0xf (BROWNOUT_RST)"}
_RESETS_2022 = _resets(
    power_on="POWERON",
    system="LP_SW_HPSYS",
    sleep="SLEEP_WAKEUP",
    timer_watchdog="TG0_WDT_HPSYS",
    cpu="SW_CPU",
    brown_out="LP_BOD_SYS",
    rtc_watchdog="LP_WDT_SYS",
    usb="USB_UART_HPSYS",
)


def _loading(clock_div: int, segments: tuple[tuple[int, int], ...], entry: int) -> tuple[str, ...]:
    loads = (f"load:{address:#x},len:{size:#x}" for address, size in segments)
    return "SPIWP:0xee", f"mode:DIO, clock div:{clock_div}", *loads, f"entry {entry:#x}"


ESP32 = Chip(
    name="esp32",
    title="ESP32",
    id=0,
    magic=0x00F01D83,
    bootloader_offset=0x1000,
    revision=(3, 1),
    package=1,
    cores=2,
    uart_clkdiv=0x3FF40014,
    strap=0x3FF44038,
    spi=_spi(0x3FF42000, user=0x1C, w0=0x80, address_msb=True),
    fields={
        "mac": _esp32_efuse((1, 0, 32), (2, 0, 16)),
        "mac_crc": _esp32_efuse((2, 16, 8)),
        "package": _esp32_efuse((3, 9, 3), (3, 2, 1)),
        # Bit by bit: eFuses have two, and the third is in APB_CTL_DATE (esptool).
        "major_from_1": _esp32_efuse((3, 15, 1)),
        "major_from_2": _esp32_efuse((5, 20, 1)),
        "major_from_3": (Bits(0x3FF6607C, 31, 1),),
        "minor": _esp32_efuse((5, 24, 2)),
        "flash_crypt_cnt": _esp32_efuse((0, 20, 7)),
        "download_disabled": _esp32_efuse((0, 27, 1)),
        # With flash encryption in use its key is read-protected, as the bootloader leaves it.
        "encrypted": _esp32_efuse((0, 16, 1)),
        "crypt_config": _esp32_efuse((5, 28, 4)),
        "secure_boot_v1": _esp32_efuse((6, 4, 1)),
        "secure_boot_v2": _esp32_efuse((6, 5, 1)),
        "key_0": _esp32_efuse(*((22 + word, 0, 32) for word in range(8))),
        "download_encrypt_disabled": _esp32_efuse((6, 7, 1)),
        # BLK3 word 4 (EFUSE_BLK3_RDATA4): a bit for each secure version (esp_efuse_table.csv).
        "secure_version": _esp32_efuse((34, 0, 32)),
        # RTC_CALI_CFG1: the ROM measures the crystal against its 8 MHz oscillator. With the
        # frequency in eFuse word 4 it gives 40 MHz in the formula that esptool takes from the
        # ROM: cali * 15625 * ck8m / 40.
        "crystal": (Bits(0x3FF5F06C, 7, 25),),
    },
    fixed={0x3FF5A00C: 1 << 13, 0x3FF5A010: 160, 0x3FF6607C: 0x16042000},
    security_info_bytes=0,
    flash_begin_bytes=16,
    stub_sets_baud=True,
    unbootable="rtc-watchdog",
    checks_blocks=False,
    signature_blocks=1,
    rom=Rom(
        banner="ets Jul 29 2019 12:21:46\r\n\r\n",
        normal=0x13,
        download=(0x03, "DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2)"),
        loading=("configsip: 0, SPIWP:0xee", "mode:DIO, clock div:2", "entry 0x400805e4"),
        checksum_failed="ets_main.c 371 ",
    ),
    memory=Memory(
        drom=0x3F400000,
        irom=0x400D0000,
        dram=0x3FFB0000,
        iram=0x40080000,
        mapped=((0x3F400000, 0x3F800000), (0x400D0000, 0x40400000)),
        bootloader=((0x3FFF0030, 7080), (0x40078000, 13_000), (0x40080400, 3_000)),
        entry=0x400805E4,
        ram=(
            # Behind it the instruction bus has it too, backwards, and its part above SOC_IRAM_HIGH
            # is refused.
            (0x3FFAE000, 0x3FFE0000),
            (0x3FFF5FFC, 0x40000000),
            (0x40080000, 0x400AA000),
            (0x3FF80000, 0x3FF82000),
            (0x400C0000, 0x400C2000),
            (0x50000000, 0x50002000),
        ),
        kept={
            "bootloader stack": (0x3FFDBB00, 0x3FFE3F20),
            "bootloader data": (0x3FFF0000, 0x3FFF3000),
        },
    ),
    resets=_resets(
        power_on="POWERON_RESET",
        system="SW_RESET",
        sleep="DEEPSLEEP_RESET",
        timer_watchdog="TG0WDT_SYS_RESET",
        cpu="SW_CPU_RESET",
        brown_out="RTCWDT_BROWN_OUT_RESET",
        rtc_watchdog="RTCWDT_RTC_RESET",
        usb="",
    ),
    panics=PANICS,
)

_S2_BOOTLOADER = ((0x3FFE6100, 0x1BF4), (0x4004C000, 0xC7C), (0x40050000, 0x31EC))
ESP32S2 = Chip(
    name="esp32s2",
    title="ESP32-S2",
    id=2,
    magic=0x000007C6,
    bootloader_offset=0x1000,
    revision=(1, 0),
    uart_clkdiv=0x3F400014,
    strap=0x3F404038,
    spi=_spi(0x3F402000),
    fields=_efuses(
        0x3F41A000,
        major=((1, 3, 18, 2),),
        minor=((1, 4, 4, 3), (1, 3, 20, 1)),
        package=((1, 4, 0, 4),),
        block_major=((1, 3, 25, 2),),
        block_minor=((2, 4, 4, 3),),
        download_encrypt_disabled=((0, 1, 19, 1),),
        secure_version=((0, 4, 11, 16),),
    ),
    # Without a chip id: esptool falls back to the magic register.
    security_info_bytes=12,
    stub_sets_baud=True,
    watchdog=Watchdog(0x3F408094, 0x3F408098, 0x3F4080AC),
    force_download=0x3F408128,
    usb=("otg",),
    rom=Rom(
        banner="ESP-ROM:esp32s2-rc4-20191025\r\nBuild:Oct 25 2019\r\n",
        normal=0x8,
        download=(0x0, "DOWNLOAD(USB/UART0/1/SPI)"),
        loading=_loading(1, _S2_BOOTLOADER, 0x4004C210),
        saved_pc="Saved PC:0x40051242",
    ),
    memory=Memory(
        drom=0x3F000000,
        irom=0x40080000,
        dram=0x3FFBD000,
        iram=0x40022000,
        mapped=((0x3F000000, 0x3FF80000), (0x40080000, 0x40800000)),
        bootloader=_S2_BOOTLOADER,
        entry=0x4004C210,
        ram=(
            (0x3FFB0000, 0x40000000),
            (0x40020000, 0x40070000),
            (0x3FF9E000, 0x3FFA0000),
            (0x40070000, 0x40072000),
            (0x50000000, 0x50002000),
        ),
        kept={
            "bootloader stack": (0x3FFF62EC, 0x3FFFE70C),
            "bootloader data": (0x3FFE6000, 0x3FFE8000),
            "loader IRAM": (0x3FFE0000, 0x3FFE3200),
        },
        mirror=0x70000,
    ),
    resets=_RESETS_2019,
    panics=PANICS,
)

_S3_BOOTLOADER = ((0x3FCE3808, 0x16E0), (0x403C9700, 0xC00), (0x403CC700, 0x2EB0))
ESP32S3 = Chip(
    name="esp32s3",
    title="ESP32-S3",
    id=9,
    magic=0x00000009,
    bootloader_offset=0x0,
    revision=(0, 2),
    cores=2,
    uart_clkdiv=0x60000014,
    strap=0x60004038,
    spi=_spi(0x60002000),
    fields=_efuses(
        0x60007000,
        major=((1, 5, 24, 2),),
        minor=((1, 3, 18, 3), (1, 5, 23, 1)),
        package=((1, 3, 21, 3),),
        block_major=((2, 4, 0, 2),),
        block_minor=((1, 3, 24, 3),),
    ),
    wide_flash=True,
    watchdog=Watchdog(0x60008098, 0x6000809C, 0x600080B0),
    force_download=0x6000812C,
    usb=("serial-jtag", "otg"),
    stub_hook=0x3FCEF688,
    rom=Rom(
        banner="ESP-ROM:esp32s3-20210327\r\nBuild:Mar 27 2021\r\n",
        normal=0x8,
        download=(0x0, "DOWNLOAD(USB/UART0)"),
        loading=_loading(1, _S3_BOOTLOADER, 0x403C9908),
        saved_pc="Saved PC:0x403bb1d6",
        narrowed=0x7,
    ),
    memory=Memory(
        drom=0x3C000000,
        irom=0x42000000,
        dram=0x3FC90000,
        iram=0x40374000,
        mapped=((0x3C000000, 0x3E000000), (0x42000000, 0x44000000)),
        bootloader=_S3_BOOTLOADER,
        entry=0x403C9908,
        ram=(
            (0x3FC88000, 0x3FD00000),
            (0x40370000, 0x403E0000),
            (0x600FE000, 0x60100000),
            (0x50000000, 0x50002000),
        ),
        kept={
            "bootloader stack": (0x3FCE32F0, 0x3FCEB710),
            "bootloader data": (0x3FCE3700, 0x3FCE5000),
            "loader IRAM": (0x3FCDC700, 0x3FCDF600),
        },
        mirror=0x6F0000,
    ),
    resets=_RESETS_2021,
    panics=PANICS,
)

_C3_BOOTLOADER = ((0x3FCD5820, 0x1718), (0x403CC710, 0x954), (0x403CE710, 0x2FAC))
ESP32C3 = Chip(
    name="esp32c3",
    title="ESP32-C3",
    id=5,
    magic=0x1B31506F,
    bootloader_offset=0x0,
    revision=(0, 4),
    uart_clkdiv=0x60000014,
    strap=0x60004038,
    spi=_spi(0x60002000),
    fields=_efuses(
        0x60008800,
        major=((1, 5, 24, 2),),
        minor=((1, 3, 18, 3), (1, 5, 23, 1)),
        package=((1, 3, 21, 3),),
        block_major=((2, 4, 0, 2),),
        block_minor=((1, 3, 24, 3),),
    ),
    watchdog=Watchdog(0x60008090, 0x60008094, 0x600080A8),
    usb=("serial-jtag",),
    rom=Rom(
        banner="ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n",
        normal=0xC,
        download=(0x4, "DOWNLOAD(USB/UART0/1)"),
        loading=_loading(1, _C3_BOOTLOADER, 0x403CC710),
        saved_pc="Saved PC:0x4004c0dc",
    ),
    memory=Memory(
        drom=0x3C000000,
        irom=0x42000000,
        dram=0x3FC8A000,
        iram=0x40380000,
        mapped=((0x3C000000, 0x3C800000), (0x42000000, 0x42800000)),
        bootloader=_C3_BOOTLOADER,
        entry=0x403CC710,
        ram=(
            (0x3FC80000, 0x3FCE0000),
            (0x4037C000, 0x403E0000),
            (0x50000000, 0x50002000),
        ),
        kept={
            "bootloader stack": (0x3FCD62F0, 0x3FCDE710),
            "bootloader data": (0x3FCD5710, 0x3FCD7000),
            "loader IRAM": (0x3FCCE710, 0x3FCD1700),
        },
        mirror=0x700000,
    ),
    resets=_RESETS_2021,
    panics=RISCV_PANICS,
)

_C6_BOOTLOADER = ((0x4086C410, 0xD10), (0x4086E610, 0x2DC4), (0x40875728, 0x17D8))
ESP32C6 = Chip(
    name="esp32c6",
    title="ESP32-C6",
    id=13,
    magic=0x2CE0806F,
    bootloader_offset=0x0,
    revision=(0, 1),
    uart_clkdiv=0x60000014,
    strap=0x60091038,
    spi=_spi(0x60003000),
    fields=_efuses(
        0x600B0800,
        major=((1, 3, 22, 2),),
        minor=((1, 3, 18, 4),),
        package=((1, 3, 24, 3),),
        block_major=((1, 3, 30, 2),),
        block_minor=((1, 3, 27, 3),),
    ),
    # MAC_EXT, which makes an EUI-64 of the MAC.
    fixed={0x600B0848: 0xFFFE0000},
    watchdog=Watchdog(0x600B1C00, 0x600B1C04, 0x600B1C18),
    usb=("serial-jtag",),
    rom=Rom(
        banner="ESP-ROM:esp32c6-20220919\r\nBuild:Sep 19 2022\r\n",
        normal=0xC,
        download=(0x4, "DOWNLOAD(USB/UART0/SDIO_FEI_FEO)"),
        loading=_loading(2, _C6_BOOTLOADER, 0x4086C410),
        saved_pc="Saved PC:0x4001974a",
    ),
    memory=Memory(
        drom=0x42800000,
        irom=0x42000000,
        dram=0x40810000,
        iram=0x40800000,
        mapped=((0x42000000, 0x43000000),),
        bootloader=_C6_BOOTLOADER,
        entry=0x4086C410,
        ram=(
            (0x40800000, 0x40880000),
            (0x50000000, 0x50004000),
        ),
        kept={
            "bootloader stack": (0x408761F0, 0x4087E610),
            "bootloader data": (0x40875610, 0x40877000),
        },
    ),
    resets=_RESETS_2022,
    panics=RISCV_PANICS,
)

_H2_BOOTLOADER = ((0x408460E0, 0x17AC), (0x4083CFD0, 0xDF4), (0x4083EFD0, 0x2B48))
ESP32H2 = Chip(
    name="esp32h2",
    title="ESP32-H2",
    id=16,
    magic=0xD7B73E80,
    bootloader_offset=0x0,
    revision=(0, 1),
    uart_clkdiv=0x60000014,
    strap=0x60091038,
    spi=_spi(0x60003000),
    fields=_efuses(
        0x600B0800,
        major=((1, 3, 21, 2),),
        minor=((1, 3, 18, 3),),
        package=((1, 4, 0, 3),),
        block_major=((2, 4, 5, 2),),
        block_minor=((2, 4, 2, 3),),
        secure_version=((0, 4, 9, 16),),
    ),
    fixed={0x600B0848: 0xFFFE0000},
    watchdog=Watchdog(0x600B1C00, 0x600B1C04, 0x600B1C1C),
    usb=("serial-jtag",),
    rom=Rom(
        banner="ESP-ROM:esp32h2-20221101\r\nBuild:Nov  1 2022\r\n",
        normal=0xC,
        download=(0x4, "DOWNLOAD(USB/UART0)"),
        loading=_loading(1, _H2_BOOTLOADER, 0x4083CFD0),
        saved_pc="Saved PC:0x400031b6",
    ),
    memory=Memory(
        drom=0x42800000,
        irom=0x42000000,
        dram=0x40810000,
        iram=0x40800000,
        mapped=((0x42000000, 0x43000000),),
        bootloader=_H2_BOOTLOADER,
        entry=0x4083CFD0,
        ram=(
            (0x40800000, 0x40850000),
            (0x50000000, 0x50001000),
        ),
        kept={
            "bootloader stack": (0x40846F60, 0x4084F380),
            "bootloader data": (0x40845FD0, 0x40848000),
        },
    ),
    resets=_RESETS_2022,
    panics=RISCV_PANICS,
)

CHIPS = {chip.name: chip for chip in (ESP32, ESP32S2, ESP32S3, ESP32C3, ESP32C6, ESP32H2)}
CHIP_NAMES = tuple(CHIPS)


def chip_of(name: str) -> Chip:
    """The chip of a name. Raises ValueError, naming those that exist."""
    if name not in CHIPS:
        raise ValueError(f"there is no chip {name!r}; there are {', '.join(CHIP_NAMES)}")
    return CHIPS[name]
