# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables: the ones that exist in the field, as values and as bytes.

Source: esp32.md, "Partition tables that exist in the field"; the binary format is ESP-IDF's
(components/partition_table/gen_esp32part.py).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

TABLE_OFFSET = 0x8000
TABLE_BYTES = 0xC00
ENTRY = struct.Struct("<2sBBII16sI")
ENTRY_MAGIC = b"\xaa\x50"
MD5_MAGIC = b"\xeb\xeb" + b"\xff" * 14

TYPE_APP = 0x00
TYPE_DATA = 0x01
APP_FACTORY = 0x00
APP_OTA_0 = 0x10
APP_TEST = 0x20
DATA_OTA = 0x00
DATA_PHY = 0x01
DATA_NVS = 0x02
DATA_COREDUMP = 0x03
DATA_NVS_KEYS = 0x04
FLAG_READ_ONLY = 2


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of a partition table; offset and size in bytes."""

    label: str
    type: int
    subtype: int
    offset: int
    size: int
    flags: int = 0

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.offset + self.size


def encode_table(partitions: tuple[Partition, ...]) -> bytes:
    """The table as it stands at 0x8000: entries, MD5 entry, 0xFF up to 0xC00 bytes."""
    entries = b"".join(
        ENTRY.pack(ENTRY_MAGIC, p.type, p.subtype, p.offset, p.size, p.label.encode(), p.flags)
        for p in partitions
    )
    table = entries + MD5_MAGIC + hashlib.md5(entries).digest()
    return table.ljust(TABLE_BYTES, b"\xff")


@dataclass(frozen=True)
class Layout:
    """A partition table and the flash that it is made for."""

    name: str
    flash_bytes: int
    partitions: tuple[Partition, ...]

    def find(self, label: str) -> Partition:
        """The partition of that label; raises KeyError."""
        for partition in self.partitions:
            if partition.label == label:
                return partition
        raise KeyError(label)

    def slots(self) -> tuple[Partition, ...]:
        """The OTA slots, in order."""
        return tuple(
            sorted(
                (
                    p
                    for p in self.partitions
                    if p.type == TYPE_APP and p.subtype & 0xF0 == APP_OTA_0
                ),
                key=lambda p: p.subtype,
            )
        )

    def first_app(self) -> Partition:
        """What a freshly flashed board boots: factory, else ota_0."""
        for partition in self.partitions:
            if (partition.type, partition.subtype) == (TYPE_APP, APP_FACTORY):
                return partition
        return self.slots()[0]


_MIB = 1 << 20

GUIDE = Layout(
    "guide",
    8 * _MIB,
    (
        Partition("nvs", TYPE_DATA, DATA_NVS, 0x9000, 0x4000),
        Partition("otadata", TYPE_DATA, DATA_OTA, 0xD000, 0x2000),
        Partition("phy_init", TYPE_DATA, DATA_PHY, 0xF000, 0x1000),
        Partition("factory", TYPE_APP, APP_FACTORY, 0x10000, 0x100000),
        Partition("ota_0", TYPE_APP, APP_OTA_0, 0x110000, 0x100000),
        Partition("ota_1", TYPE_APP, APP_OTA_0 + 1, 0x210000, 0x100000),
    ),
)
MICRO_RDK = Layout(
    "micro-rdk",
    8 * _MIB,
    (
        Partition("nvs", TYPE_DATA, DATA_NVS, 0x9000, 0x6000),
        Partition("otadata", TYPE_DATA, DATA_OTA, 0xF000, 0x2000),
        Partition("phy_init", TYPE_DATA, DATA_PHY, 0x11000, 0x1000),
        Partition("ota_0", TYPE_APP, APP_OTA_0, 0x20000, 0x377000),
        Partition("ota_1", TYPE_APP, APP_OTA_0 + 1, 0x3A0000, 0x377000),
    ),
)
MICRO_RDK_8MB = Layout(
    "micro-rdk-8mb",
    8 * _MIB,
    (
        Partition("phy_init", TYPE_DATA, DATA_PHY, 0x9000, 0x1000),
        Partition("otadata", TYPE_DATA, DATA_OTA, 0xA000, 0x2000),
        Partition("nvs", TYPE_DATA, DATA_NVS, 0xC000, 0x14000),
        Partition("ota_0", TYPE_APP, APP_OTA_0, 0x20000, 0x3E0000),
        Partition("ota_1", TYPE_APP, APP_OTA_0 + 1, 0x400000, 0x3E0000),
        Partition("coredump", TYPE_DATA, DATA_COREDUMP, 0x7E0000, 0x20000),
    ),
)
NO_OTA = Layout(
    "no-ota",
    4 * _MIB,
    (
        Partition("nvs", TYPE_DATA, DATA_NVS, 0x9000, 0x6000),
        Partition("phy_init", TYPE_DATA, DATA_PHY, 0xF000, 0x1000),
        Partition("factory", TYPE_APP, APP_FACTORY, 0x10000, 0x180000),
    ),
)

LAYOUTS = {layout.name: layout for layout in (GUIDE, MICRO_RDK, MICRO_RDK_8MB, NO_OTA)}
LAYOUT_ALIASES = {"ota-guide": "guide"}
"""Further names: that of the same table where Merged Binaries are built."""
LAYOUT_NAMES = tuple(sorted({*LAYOUTS, *LAYOUT_ALIASES}))
OTA_LAYOUTS = tuple(layout.name for layout in LAYOUTS.values() if layout.slots())


def layout_of(name: str) -> Layout:
    """The layout of a name. Raises ValueError, naming those that exist."""
    found = LAYOUTS.get(LAYOUT_ALIASES.get(name, name))
    if found is None:
        raise ValueError(f"there is no layout {name!r}; there are {', '.join(LAYOUT_NAMES)}")
    return found
