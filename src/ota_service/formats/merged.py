# SPDX-License-Identifier: GPL-3.0-or-later
"""A Merged Binary: the whole flash in one file, and everything in it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

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
from ota_service.formats.recognise import (
    cut_merged_start,
    find_partition_table,
    has_descriptor,
    is_esp8266,
    is_image_header,
    name_of,
)

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
            f"The file is {_other(data)}, not a Merged Binary.",
            remedy="Name a Merged Binary: `esp32-ota image merge` makes one.",
        )
    bootloader_offset, table_offset = found
    table = parse_partition_table(data[table_offset:], table_offset=table_offset)
    loader: Bootloader | OtaError
    try:
        loader = parse_bootloader(data[bootloader_offset:table_offset], trailing=True)
    except OtaError as error:
        loader = error
    chip_id = struct.unpack_from("<H", data, bootloader_offset + 12)[0]
    at = len(data) if table.otadata is None else table.otadata.offset
    selection = data[at : at + OTADATA_BYTES].ljust(OTADATA_BYTES, b"\xff")
    return MergedBinary(
        chip_id=chip_id,
        chip=chip_name(chip_id),
        bootloader_offset=bootloader_offset,
        table_offset=table_offset,
        table=table,
        bootloader=loader,
        otadata=None if table.otadata is None else parse_otadata(selection),
        booted=boots_after(selection, table),
        apps=_held(data, table, lambda part: part.is_app, partial(parse_app_image, trailing=True)),
        nvs=_held(data, table, lambda part: part.kind == "data/nvs", parse_nvs),
    )


def _other(data: bytes) -> str:
    """What a file is that is no Merged Binary, as far as its beginning says."""
    if has_descriptor(data):
        return "an App Image: an update writes it to a slot"
    image = "an image without a partition table behind it"
    if is_esp8266(data):
        image = "firmware for the ESP8266"
    return name_of(data) or (image if is_image_header(data, 0) else "something else")


Content = TypeVar("Content")


def _held(
    data: bytes,
    table: PartitionTable,
    wanted: Callable[[Partition], bool],
    read: Callable[[bytes], Content],
) -> tuple[tuple[Partition, Content | OtaError], ...]:
    """What the wanted partitions hold that are not blank, or the error that reading it gave."""
    found: list[tuple[Partition, Content | OtaError]] = []
    for part in filter(wanted, table.partitions):
        size = part.size_bytes if part.is_app else part.whole_bytes
        content = data[part.offset : part.offset + size]
        if content.strip(b"\xff"):
            try:
                found.append((part, read(content if part.is_app else content.ljust(size, b"\xff"))))
            except OtaError as error:
                found.append((part, error))
    return tuple(found)
