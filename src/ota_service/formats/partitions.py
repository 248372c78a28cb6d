# SPDX-License-Identifier: GPL-3.0-or-later
"""The partition table of a board: where its slots, otadata and NVS are.

Format: ESP-IDF, "Partition Tables" (API guides) and `esp_flash_partitions.h`. What is refused is
what the bootloader refuses (`flash_partitions.c`) and what ESP-IDF's own table tool refuses to
build in each version from 4.4 to 6.0: with another table than that, a write could hit the
bootloader, the table or a neighbour. What only some versions refuse (the size of an app or of an
NVS, names that are used twice) is on boards that work, so it is accepted.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

from ota_service.errors import OtaError
from ota_service.formats.text import field_text

TABLE_OFFSET = 0x8000
"""Where the table is by default (CONFIG_PARTITION_TABLE_OFFSET), bytes from flash start."""
TABLE_BYTES = 0xC00
"""ESP_PARTITION_TABLE_MAX_LEN: the table's longest form, its end marker included."""
ENTRY_BYTES = 32
MAX_ENTRIES = TABLE_BYTES // ENTRY_BYTES

MAGIC = b"\xaa\x50"
MD5_MAGIC = b"\xeb\xeb"

TYPE_APP, TYPE_DATA, TYPE_BOOTLOADER, TYPE_TABLE = 0, 1, 2, 3
SUBTYPE_OTA_0 = 0x10
OTADATA_BYTES = 0x2000
_FLAG_ENCRYPTED, _FLAG_READ_ONLY = 1, 2
SECTOR_BYTES = 0x1000
APP_ALIGN_BYTES = 0x10000

TYPE_NAMES = {
    TYPE_APP: "app",
    TYPE_DATA: "data",
    TYPE_BOOTLOADER: "bootloader",
    TYPE_TABLE: "partition_table",
}
# Names as ESP-IDF's table tool spells them in its CSV files.
SUBTYPE_NAMES = {
    TYPE_APP: {0x00: "factory", 0x20: "test", 0x30: "tee_0", 0x31: "tee_1"}
    | {SUBTYPE_OTA_0 + index: f"ota_{index}" for index in range(16)},
    TYPE_DATA: {
        0x00: "ota",
        0x01: "phy",
        0x02: "nvs",
        0x03: "coredump",
        0x04: "nvs_keys",
        0x05: "efuse",
        0x06: "undefined",
        0x80: "esphttpd",
        0x81: "fat",
        0x82: "spiffs",
        0x83: "littlefs",
        0x90: "tee_ota",
    },
    TYPE_BOOTLOADER: {0x00: "primary", 0x01: "ota", 0x02: "recovery"},
    TYPE_TABLE: {0x00: "primary", 0x01: "ota"},
}


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of the table. `offset` is a flash address; sizes in bytes.

    shared_label: another partition of its table has this label too (the firmware never asks).
    """

    label: str
    type: int
    subtype: int
    offset: int
    size_bytes: int
    flags: int = 0
    shared_label: bool = False

    @property
    def name(self) -> str:
        """Its label, with its place ("app@0x110000") where the label alone does not say which."""
        return f"{self.label}@{self.offset:#x}" if self.shared_label else self.label

    @property
    def end(self) -> int:
        """The flash address just behind the partition."""
        return self.offset + self.size_bytes

    @property
    def whole_bytes(self) -> int:
        """Its size in whole sectors: what is behind them is none of the firmware's NVS."""
        return self.size_bytes // SECTOR_BYTES * SECTOR_BYTES

    @property
    def encrypted(self) -> bool:
        """Whether it is read through flash encryption."""
        return bool(self.flags & _FLAG_ENCRYPTED)

    @property
    def read_only(self) -> bool:
        """Whether the firmware never writes there."""
        return bool(self.flags & _FLAG_READ_ONLY)

    @property
    def align_bytes(self) -> int:
        """What its offset is a multiple of."""
        return APP_ALIGN_BYTES if self.type == TYPE_APP else SECTOR_BYTES

    @property
    def is_app(self) -> bool:
        """Whether an App Image belongs there."""
        return self.type == TYPE_APP

    @property
    def ota_index(self) -> int | None:
        """N for ota_N (0 to 15), None for every other partition."""
        if self.type == TYPE_APP and SUBTYPE_OTA_0 <= self.subtype < SUBTYPE_OTA_0 + 16:
            return self.subtype - SUBTYPE_OTA_0
        return None

    @property
    def kind(self) -> str:
        """Type and subtype for people: "app/ota_0", "data/nvs", "0x40/0x01"."""
        kind = TYPE_NAMES.get(self.type, f"{self.type:#04x}")
        subtype = SUBTYPE_NAMES.get(self.type, {}).get(self.subtype, f"{self.subtype:#04x}")
        return f"{kind}/{subtype}"


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A whole partition table, in the order of its entries. offset: its own flash address."""

    partitions: tuple[Partition, ...]
    has_md5: bool
    offset: int = TABLE_OFFSET

    def _first(self, kind: str) -> Partition | None:
        return next((part for part in self.partitions if part.kind == kind), None)

    @property
    def ota_slots(self) -> tuple[Partition, ...]:
        """The OTA slots, ordered by their index."""
        slots = [part for part in self.partitions if part.ota_index is not None]
        return tuple(sorted(slots, key=lambda part: part.subtype))

    @property
    def factory(self) -> Partition | None:
        """The factory app's partition."""
        return self._first("app/factory")

    @property
    def test_apps(self) -> list[Partition]:
        """The test app that a bootloader starts where no other one boots: of several the last."""
        return [part for part in self.partitions if part.kind == "app/test"][-1:]

    @property
    def otadata(self) -> Partition | None:
        """The partition that says which slot boots."""
        return self._first("data/ota")

    @property
    def nvs(self) -> Partition | None:
        """The default NVS partition, the one with the label "nvs" (`NVS_DEFAULT_PART_NAME`)."""
        return next((store for store in self.nvs_stores if store.label == "nvs"), None)

    @property
    def nvs_stores(self) -> tuple[Partition, ...]:
        """All NVS partitions, in the order in which the version is looked for: the default one,
        then the table's order."""
        stores = [part for part in self.partitions if part.kind == "data/nvs"]
        default = next((store for store in stores if store.label == "nvs"), None)
        return tuple(sorted(stores, key=lambda store: store is not default))

    @property
    def end(self) -> int:
        """The flash address behind the last partition; 0 for a table without partitions."""
        return max((part.end for part in self.partitions), default=0)

    def by_label(self, label: str) -> Partition | None:
        """The first partition with this label, as the firmware finds it."""
        return next((part for part in self.partitions if part.label == label), None)


def _invalid(message: str) -> OtaError:
    return OtaError("partition-table-invalid", message)


def parse_partition_table(
    data: bytes, *, flash_bytes: int | None = None, table_offset: int | None = TABLE_OFFSET
) -> PartitionTable:
    """The table in `data`, which begins at its first entry; bytes behind its end are ignored.

    data: up to 0xC00 bytes count. flash_bytes: the size of the board's flash, where it is known.
    table_offset: where the table stands in flash; None: where its own entry says, else 0x8000.
    Raises `OtaError`: "partition-table-invalid" for a blank or damaged table, "flash-size" for a
    partition behind the end of the flash. Tables without MD5 (built before ESP-IDF v3.0, or with
    it disabled) are accepted.
    """
    data = bytes(data[:TABLE_BYTES])
    if not data.strip(b"\xff"):
        raise _invalid("The partition table is blank.")
    partitions, has_md5 = _entries(data)
    if not partitions:
        raise _invalid("The partition table has no partitions.")
    if table_offset is None:
        own = (part.offset for part in partitions if part.kind == "partition_table/primary")
        table_offset = next(own, TABLE_OFFSET)
    check_partitions(partitions, table_offset)
    times = Counter(part.label for part in partitions)
    told_apart = (replace(part, shared_label=times[part.label] > 1) for part in partitions)
    table = PartitionTable(tuple(told_apart), has_md5, table_offset)
    require_flash(table, flash_bytes)
    return table


def _entries(data: bytes) -> tuple[list[Partition], bool]:
    """The entries up to the table's end, and whether its MD5 is there."""
    partitions: list[Partition] = []
    has_md5 = False
    for index in range(MAX_ENTRIES):
        start = index * ENTRY_BYTES
        entry = data[start : start + ENTRY_BYTES]
        if len(entry) < ENTRY_BYTES:
            raise _invalid(f"The partition table is cut off after {len(partitions)} partitions.")
        if entry[:2] == MD5_MAGIC and not has_md5:
            # The hash is no secret: it only tells a damaged table.
            if hashlib.md5(data[:start], usedforsecurity=False).digest() != entry[16:]:
                raise _invalid("The partition table's MD5 does not match its contents.")
            has_md5 = True
        elif entry[:4] == b"\xff\xff\xff\xff":
            return partitions, has_md5
        elif entry[:2] == MAGIC and not has_md5:
            kind, subtype, offset, size = struct.unpack_from("<BBII", entry, 2)
            label, (flags,) = field_text(entry[12:28]), struct.unpack_from("<I", entry, 28)
            partitions.append(Partition(label, kind, subtype, offset, size, flags))
        else:
            raise _invalid(
                f"Entry {index} of the partition table begins with {entry[:2].hex(' ').upper()}, "
                "which is neither a partition nor the end of the table."
            )
    raise _invalid(f"The partition table has no end: more than {MAX_ENTRIES - 1} entries.")


def require_flash(table: PartitionTable, flash_bytes: int | None) -> None:
    """Raise `OtaError` "flash-size" where a partition is behind the end of a flash of that size."""
    for part in table.partitions:
        if flash_bytes is not None and part.end > flash_bytes:
            raise OtaError(
                "flash-size",
                f"The partition {part.label!r} ends at {part.end:#x}, behind the end of the "
                f"board's flash ({flash_bytes:#x}).",
            )


def check_partitions(partitions: list[Partition], table_offset: int) -> None:
    """Raise where a write into one of these could hit the bootloader, the table or another one.

    Raises `OtaError`: "partition-table-invalid".
    """
    for part in partitions:
        problem = _problem(part, table_offset)
        if problem:
            raise _invalid(f"The partition {part.label!r} {problem}.")
    by_place = sorted(partitions, key=lambda part: part.offset)
    for before, after in pairwise(by_place):
        if after.offset < before.end:
            raise _invalid(f"The partitions {before.label!r} and {after.label!r} overlap.")
    otadata = [part for part in partitions if part.kind == "data/ota"]
    if len(otadata) > 1:
        raise _invalid(f"The partition table has {len(otadata)} partitions {otadata[0].kind}.")
    if otadata and otadata[0].size_bytes != OTADATA_BYTES:
        raise _invalid(
            f"The otadata partition has {otadata[0].size_bytes:#x} bytes, not {OTADATA_BYTES:#x}."
        )


def _problem(part: Partition, table_offset: int) -> str:
    """What is wrong with a partition by itself; "": nothing."""
    if part.is_app and not part.size_bytes:
        return "has no size"
    if part.end > 1 << 32:
        return "ends behind 4 GiB"
    if part.offset % part.align_bytes:
        return f"begins at {part.offset:#x}, which is no multiple of {part.align_bytes:#x}"
    if part.kind in ("data/ota", "data/coredump") and part.read_only:
        return f"({part.kind}) cannot be read-only"
    if part.offset < table_offset + SECTOR_BYTES and not _has_its_place(part, table_offset):
        return (
            f"at {part.offset:#x} overlaps the partition table or the bootloader, which end at "
            f"{table_offset + SECTOR_BYTES:#x}"
        )
    return ""


def _has_its_place(part: Partition, table_offset: int) -> bool:
    """Whether a partition in front of all others is the bootloader's or the table's own."""
    if part.kind == "bootloader/primary":
        return part.end <= table_offset
    own = part.kind == "partition_table/primary"
    return own and (part.offset, part.size_bytes) == (table_offset, SECTOR_BYTES)


def require_ota(table: PartitionTable) -> None:
    """Raise unless the board can be updated between two OTA slots.

    Raises `OtaError`: "no-ota-slots" without otadata or with fewer than two OTA slots;
    "partition-table-invalid" where the bootloader would count the slots otherwise than the
    firmware does: an index missing or twice (`bootloader_utility.c` counts the slots and
    indexes 0 to count - 1), two factory partitions.
    """
    slots = table.ota_slots
    if len(slots) < 2 or table.otadata is None:
        if table.otadata is None:
            why = "no otadata partition"
        elif slots and table.factory is not None:
            # ota_0 could be written while factory runs, but never again afterwards.
            why = "one OTA slot only beside its factory app"
        else:
            why = f"{len(slots)} of the two OTA slots needed"
        raise OtaError("no-ota-slots", f"The board's partition table has {why}.")
    indices = [part.ota_index for part in slots]
    if indices != list(range(len(slots))):
        names = ", ".join(part.kind.split("/")[1] for part in slots)
        raise _invalid(f"The OTA slots are not numbered from ota_0 without gaps: {names}.")
    factories = sum(part.kind == "app/factory" for part in table.partitions)
    if factories > 1:
        raise _invalid(f"The partition table has {factories} partitions app/factory.")
