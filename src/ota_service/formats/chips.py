# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image's chip id says: the chip's name, where its bootloader is, what it maps; and what
the chips' reset reasons mean.

Source of every number: esptool 5.6.0, `esptool/targets/*.py` (IMAGE_CHIP_ID, CHIP_NAME,
BOOTLOADER_FLASH_OFFSET, IROM_MAP_*, DROM_MAP_*) and `esptool/bin_image.py` (MMU_PAGE_SIZE_CONF);
of `wide_flash`: espressif/esp-stub-lib 1.4, soc_caps.h (SOC_SPI_FLASH_4B_ADDR_SUPPORTED);
of the bootloaders' places: ESP-IDF, `components/bootloader/subproject/main/ld/*`;
of the reset reasons: ESP-IDF, `components/esp_rom/*/include/*/rom/rtc.h` (RESET_REASON).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

_PAGE_64K = (0x10000,)


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip of the ESP32 family.

    bootloader_offset: flash address of the second-stage bootloader.
    mapped: address ranges [start, end) that are mapped from flash, not loaded into memory.
    mmu_page_bytes: the sizes that its flash mapping can be built with.
    loader: where bootloaders of all versions of ESP-IDF have a part of their code, and programs
    for memory have not; None where that is not known. wide_flash: whether its stub loader reaches
    what is above 16 MiB, by commands with addresses of 4 bytes.
    """

    name: str
    bootloader_offset: int
    mapped: tuple[tuple[int, int], ...]
    mmu_page_bytes: tuple[int, ...] = _PAGE_64K
    loader: tuple[int, int] | None = None
    wide_flash: bool = False

    def maps(self, address: int) -> bool:
        """Whether a segment with this load address is mapped from flash."""
        return any(start <= address < end for start, end in self.mapped)


_PAGES_C2 = (0x4000, 0x8000, 0x10000)
_PAGES_C6 = (0x2000, 0x4000, 0x8000, 0x10000)
_PAGES_S31 = (0x8000, 0x10000, 0x20000, 0x40000)

CHIP_BY_ID: dict[int, Chip] = {
    0: Chip(
        "ESP32",
        0x1000,
        ((0x400D0000, 0x40400000), (0x3F400000, 0x3F800000)),
        loader=(0x40078000, 0x40080000),
    ),
    2: Chip(
        "ESP32-S2",
        0x1000,
        ((0x40080000, 0x40B80000), (0x3F000000, 0x3F3F0000)),
        loader=(0x40048000, 0x40060000),
    ),
    5: Chip(
        "ESP32-C3",
        0x0,
        ((0x42000000, 0x42800000), (0x3C000000, 0x3C800000)),
        loader=(0x403C0000, 0x403E0000),
    ),
    9: Chip(
        "ESP32-S3",
        0x0,
        ((0x42000000, 0x44000000), (0x3C000000, 0x3E000000)),
        loader=(0x403B0000, 0x403E0000),
        wide_flash=True,
    ),
    12: Chip("ESP32-C2", 0x0, ((0x42000000, 0x42400000), (0x3C000000, 0x3C400000)), _PAGES_C2),
    13: Chip("ESP32-C6", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6, (0x40860000, 0x40880000)),
    16: Chip("ESP32-H2", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6, (0x40830000, 0x40850000)),
    18: Chip("ESP32-P4", 0x2000, ((0x40000000, 0x4C000000),), wide_flash=True),
    20: Chip("ESP32-C61", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6, wide_flash=True),
    23: Chip("ESP32-C5", 0x2000, ((0x42000000, 0x44000000),), wide_flash=True),
    25: Chip("ESP32-H21", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6),
    28: Chip("ESP32-H4", 0x2000, ((0x42000000, 0x44000000),), _PAGES_C6),
    31: Chip("ESP32-E22", 0x0, ((0x3C000000, 0x40000000),)),
    32: Chip("ESP32-S31", 0x2000, ((0x40000000, 0x54000000),), _PAGES_S31, wide_flash=True),
}


_RSA, _ECDSA = ("RSA-3072",), ("ECDSA-P-192", "ECDSA-P-256")
SIGNED_BY: dict[int, tuple[tuple[str, ...], int]] = {
    0: (_RSA, 1),
    12: (_ECDSA, 1),
    20: (_ECDSA, 3),
    **dict.fromkeys((2, 5, 9, 25, 32), (_RSA, 3)),
    **dict.fromkeys((13, 16, 31), (_RSA + _ECDSA, 3)),
    **dict.fromkeys((18, 23, 28), ((*_RSA, *_ECDSA, "ECDSA-P-384"), 3)),
}
"""Chip id -> what its Secure Boot v2 takes: schemes (`SignatureBlock.scheme`), and how many
signature blocks of an image count. Source: ESP-IDF, `soc_caps.h` (SOC_SECURE_BOOT_V2_*,
SOC_ECDSA_SUPPORT_CURVE_P384, SOC_EFUSE_SECURE_BOOT_KEY_DIGESTS), for the H4 and the E22, of which
it does not say it yet, the most; P-384 where espefuse has SECURE_BOOT_SHA384_EN as well."""


_FREE: dict[int, tuple[tuple[int, int], ...]] = {
    0: ((0x3FFAE000, 0x3FFDA000), (0x40080000, 0x400A0000), (0x3FF80000, 0x3FF82000),
        (0x400C0000, 0x400C2000), (0x50000000, 0x50002000)),
    2: ((0x3FFB0000, 0x3FFDE000), (0x40020000, 0x4004E000), (0x3FF9E000, 0x3FFA0000),
        (0x40070000, 0x40072000), (0x50000000, 0x50002000)),
    5: ((0x3FC80000, 0x3FCCE710), (0x4037C000, 0x403CE710), (0x50000000, 0x50002000)),
    9: ((0x3FC88000, 0x3FCDB700), (0x40370000, 0x403CB700), (0x600FE000, 0x60100000),
        (0x50000000, 0x50002000)),
    12: ((0x3FCA0000, 0x3FCCEB70), (0x4037C000, 0x403AEB70)),
    13: ((0x40800000, 0x4086E610), (0x50000000, 0x50004000)),
    16: ((0x40800000, 0x4083EFD0), (0x50000000, 0x50001000)),
    20: ((0x40800000, 0x4083E670),),
    23: ((0x40800000, 0x4084E5A0), (0x50000000, 0x50004000)),
}  # fmt: skip
"""Chip id -> memory to which bootloaders of all versions load segments. Source: ESP-IDF, `soc.h`
(SOC_DRAM_*, SOC_IRAM_*, SOC_RTC_*), up to the bootloader's own (iram_loader_seg of v4.4 to v5.5 in
`bootloader/subproject/main/ld/*`) or to what it keeps for its stack (`esp_image_format.c`,
verify_load_addresses: 32 KiB below the pointer, which is below SOC_ROM_STACK_START)."""


def is_free(chip_id: int, address: int, size_bytes: int) -> bool:
    """Whether every bootloader loads a segment there; True for chips of which that is not known."""
    places = _FREE.get(chip_id, ((0, 1 << 32),))
    return any(start <= address and address + size_bytes <= end for start, end in places)


def chip_name(chip_id: int) -> str:
    """The chip's name, or "chip id N" for one that is not known."""
    chip = CHIP_BY_ID.get(chip_id)
    return chip.name if chip is not None else f"chip id {chip_id}"


def plain_chip(name: str) -> str:
    """A chip's name as names are compared: "esp32s3" for "ESP32-S3", too."""
    return name.lower().replace("-", "")


class ResetCause(Enum):
    """Who brought a reset about.

    OUTSIDE: power, the EN line, USB, a debugger: not the firmware. SOFTWARE: the firmware asked
    for it, by itself or at the end of a panic. SLEEP: a planned wake from deep sleep. WATCHDOG:
    the firmware hung, or nothing was there to start.
    """

    OUTSIDE = "outside"
    SOFTWARE = "software"
    SLEEP = "sleep"
    WATCHDOG = "watchdog"


_CAUSES: dict[ResetCause, tuple[int, ...]] = {
    ResetCause.OUTSIDE: (1, 6, 10, 15, *range(19, 26)),
    ResetCause.SOFTWARE: (3, 12, 14),
    ResetCause.SLEEP: (5,),
}
"""Who brings a reset about -> its reasons, over all chips; of all others it is the watchdog.

The number decides: boot ROMs print shorter names of their own (`rst:0x1 (POWERON)`). A number
that is used for two things (6, 23) has a cause that is right for both.
"""


def reset_cause(code: int) -> ResetCause:
    """Who brought a reset with this reason about; a reason that is not known is the firmware's."""
    known = (cause for cause, reasons in _CAUSES.items() if code in reasons)
    return next(known, ResetCause.WATCHDOG)
