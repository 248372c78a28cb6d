# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image's chip id says: the chip's name, where its bootloader is, what it maps.

Source of every number: esptool 5.6.0, `esptool/targets/*.py` (IMAGE_CHIP_ID, CHIP_NAME,
BOOTLOADER_FLASH_OFFSET, IROM_MAP_*, DROM_MAP_*) and `esptool/bin_image.py` (MMU_PAGE_SIZE_CONF).
"""

from __future__ import annotations

from dataclasses import dataclass

_PAGE_64K = (0x10000,)


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip of the ESP32 family.

    bootloader_offset: flash address of the second-stage bootloader.
    mapped: address ranges [start, end) that are mapped from flash, not loaded into memory.
    mmu_page_bytes: the sizes that its flash mapping can be built with.
    """

    name: str
    bootloader_offset: int
    mapped: tuple[tuple[int, int], ...]
    mmu_page_bytes: tuple[int, ...] = _PAGE_64K

    def maps(self, address: int) -> bool:
        """Whether a segment with this load address is mapped from flash."""
        return any(start <= address < end for start, end in self.mapped)


_PAGES_C2 = (0x4000, 0x8000, 0x10000)
_PAGES_C6 = (0x2000, 0x4000, 0x8000, 0x10000)
_PAGES_S31 = (0x8000, 0x10000, 0x20000, 0x40000)

CHIP_BY_ID: dict[int, Chip] = {
    0: Chip("ESP32", 0x1000, ((0x400D0000, 0x40400000), (0x3F400000, 0x3F800000))),
    2: Chip("ESP32-S2", 0x1000, ((0x40080000, 0x40B80000), (0x3F000000, 0x3F3F0000))),
    5: Chip("ESP32-C3", 0x0, ((0x42000000, 0x42800000), (0x3C000000, 0x3C800000))),
    9: Chip("ESP32-S3", 0x0, ((0x42000000, 0x44000000), (0x3C000000, 0x3E000000))),
    12: Chip("ESP32-C2", 0x0, ((0x42000000, 0x42400000), (0x3C000000, 0x3C400000)), _PAGES_C2),
    13: Chip("ESP32-C6", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6),
    16: Chip("ESP32-H2", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6),
    18: Chip("ESP32-P4", 0x2000, ((0x40000000, 0x4C000000),)),
    20: Chip("ESP32-C61", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6),
    23: Chip("ESP32-C5", 0x2000, ((0x42000000, 0x44000000),)),
    25: Chip("ESP32-H21", 0x0, ((0x42000000, 0x43000000),), _PAGES_C6),
    28: Chip("ESP32-H4", 0x2000, ((0x42000000, 0x44000000),), _PAGES_C6),
    31: Chip("ESP32-E22", 0x0, ((0x3C000000, 0x40000000),)),
    32: Chip("ESP32-S31", 0x2000, ((0x40000000, 0x54000000),), _PAGES_S31),
}

CHIPS: dict[int, str] = {chip_id: chip.name for chip_id, chip in CHIP_BY_ID.items()}
"""Chip id of the image header -> the chip's name as esptool spells it."""


def chip_name(chip_id: int) -> str:
    """The chip's name, or "chip id N" for one that is not known."""
    return CHIPS.get(chip_id, f"chip id {chip_id}")
