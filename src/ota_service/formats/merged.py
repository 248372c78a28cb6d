# SPDX-License-Identifier: GPL-3.0-or-later
"""A Merged Binary: the whole flash in one file, and the apps in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ota_service.errors import OtaError
from ota_service.formats._recognise import find_partition_table
from ota_service.formats.chips import chip_name
from ota_service.formats.image import AppImage, parse_app_image
from ota_service.formats.partitions import Partition, PartitionTable, parse_partition_table

__all__ = ["MergedBinary", "find_partition_table", "parse_merged"]


@dataclass(frozen=True, slots=True)
class MergedBinary:
    """What a Merged Binary holds.

    chip: the name as esptool spells it. Offsets are flash addresses.
    apps: the app partitions that the file covers and that are not blank, each with its image,
    or with the error that parsing it gave.
    """

    chip: str
    bootloader_offset: int
    table_offset: int
    table: PartitionTable
    apps: tuple[tuple[Partition, AppImage | OtaError], ...]


def parse_merged(data: bytes) -> MergedBinary:
    """The Merged Binary in `data`, which is the flash from its first byte.

    Raises `OtaError`: "not-an-image" where it is none, "partition-table-invalid" where its
    table is damaged. Damaged apps do not raise: they are listed with their error.
    """
    found = find_partition_table(data)
    if found is None:
        raise OtaError(
            "not-an-image",
            "The file is not a Merged Binary.",
            remedy="Name a Merged Binary: `make build-esp32-bin` makes one.",
        )
    bootloader_offset, table_offset = found
    table = parse_partition_table(data[table_offset:], table_offset=table_offset)
    apps: list[tuple[Partition, AppImage | OtaError]] = []
    for part in table.partitions:
        content = data[part.offset : part.end]
        if not part.is_app or not content.strip(b"\xff"):
            continue
        try:
            apps.append((part, parse_app_image(content, trailing=True)))
        except OtaError as error:
            apps.append((part, error))
    chip_id = struct.unpack_from("<H", data, bootloader_offset + 12)[0]
    return MergedBinary(chip_name(chip_id), bootloader_offset, table_offset, table, tuple(apps))
