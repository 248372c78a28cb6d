# SPDX-License-Identifier: GPL-3.0-or-later
"""A Merged Binary: the whole flash in one file, and everything in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ota_service.errors import OtaError
from ota_service.formats.bootloader import Bootloader, parse_bootloader
from ota_service.formats.chips import chip_name
from ota_service.formats.image import AppImage, parse_app_image
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.otadata import OtaData, boots_after, parse_otadata
from ota_service.formats.partitions import (
    OTADATA_BYTES,
    Partition,
    PartitionTable,
    parse_partition_table,
)
from ota_service.formats.recognise import cut_merged_start, find_partition_table

__all__ = ["MergedBinary", "find_partition_table", "parse_merged", "whole_flash"]


@dataclass(frozen=True, slots=True)
class MergedBinary:
    """What a Merged Binary holds.

    chip_id, chip: from the bootloader's header; the name as esptool spells it. Offsets are
    flash addresses. bootloader, apps, nvs: each as it was read, or the error that reading it
    gave. apps, nvs: the partitions that the file covers and that are not blank. otadata: None
    where the table has none. booted: the partition that the file's otadata names, or that blank
    otadata starts; None for a table without apps.
    """

    chip_id: int
    chip: str
    bootloader_offset: int
    table_offset: int
    table: PartitionTable
    bootloader: Bootloader | OtaError
    otadata: OtaData | None
    booted: Partition | None
    apps: tuple[tuple[Partition, AppImage | OtaError], ...]
    nvs: tuple[tuple[Partition, Nvs | OtaError], ...]

    @property
    def problems(self) -> list[str]:
        """Where it is damaged, in words; empty for a whole one."""
        found = []
        if isinstance(self.bootloader, OtaError):
            found.append(f"at {self.bootloader_offset:#x}: {self.bootloader.message}")
        held: list[tuple[Partition, object]] = [*self.apps, *self.nvs]
        for part, content in held:
            if isinstance(content, OtaError):
                found.append(f"{part.label} at {part.offset:#x}: {content.message}")
        if self.booted is not None and all(part != self.booted for part, _ in self.apps):
            found.append(f"{self.booted.label} is to be started, but holds no app")
        return found

    def app_of(self, part: Partition) -> AppImage | None:
        """The whole app in a partition."""
        for held, image in self.apps:
            if held == part and isinstance(image, AppImage):
                return image
        return None


def whole_flash(data: bytes) -> bytes:
    """A Merged Binary from flash address 0: one that begins at its bootloader gets FF before."""
    return b"\xff" * (cut_merged_start(data) or 0) + data


def parse_merged(data: bytes) -> MergedBinary:
    """The Merged Binary in `data`: the flash from its first byte, or from its bootloader.

    Raises `OtaError`: "not-an-image" where it is none, "partition-table-invalid" where its
    table is damaged. Other damage does not raise: it is listed.
    """
    data = whole_flash(data)
    found = find_partition_table(data)
    if found is None:
        raise OtaError(
            "not-an-image",
            "The file is not a Merged Binary.",
            remedy="Name a Merged Binary: `make build-esp32-bin` makes one.",
        )
    bootloader_offset, table_offset = found
    table = parse_partition_table(data[table_offset:], table_offset=table_offset)
    loader: Bootloader | OtaError
    try:
        loader = parse_bootloader(data[bootloader_offset:table_offset], trailing=True)
    except OtaError as error:
        loader = error
    chip_id = struct.unpack_from("<H", data, bootloader_offset + 12)[0]
    otadata = _otadata(data, table)
    selection = _otadata_bytes(data, table.otadata) if table.otadata is not None else None
    return MergedBinary(
        chip_id=chip_id,
        chip=chip_name(chip_id),
        bootloader_offset=bootloader_offset,
        table_offset=table_offset,
        table=table,
        bootloader=loader,
        otadata=otadata,
        booted=boots_after(selection or b"\xff" * OTADATA_BYTES, table),
        apps=tuple(_apps(data, table)),
        nvs=tuple(_nvs(data, table)),
    )


def _apps(data: bytes, table: PartitionTable) -> list[tuple[Partition, AppImage | OtaError]]:
    apps: list[tuple[Partition, AppImage | OtaError]] = []
    for part in table.partitions:
        content = data[part.offset : part.end]
        if not part.is_app or not content.strip(b"\xff"):
            continue
        try:
            apps.append((part, parse_app_image(content, trailing=True)))
        except OtaError as error:
            apps.append((part, error))
    return apps


def _nvs(data: bytes, table: PartitionTable) -> list[tuple[Partition, Nvs | OtaError]]:
    found: list[tuple[Partition, Nvs | OtaError]] = []
    for part in table.partitions:
        content = data[part.offset : part.offset + part.whole_bytes]
        if part.kind != "data/nvs" or not content.strip(b"\xff"):
            continue
        try:
            found.append((part, parse_nvs(content.ljust(part.whole_bytes, b"\xff"))))
        except OtaError as error:
            found.append((part, error))
    return found


def _otadata_bytes(data: bytes, part: Partition) -> bytes:
    content = data[part.offset : part.offset + OTADATA_BYTES]
    return content.ljust(OTADATA_BYTES, b"\xff")


def _otadata(data: bytes, table: PartitionTable) -> OtaData | None:
    part = table.otadata
    return parse_otadata(_otadata_bytes(data, part)) if part is not None else None
