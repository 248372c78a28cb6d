# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a Merged Binary together: every part checked, nothing overlapping, all of it in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ota_service.errors import OtaError
from ota_service.formats.bootloader import Bootloader, parse_bootloader, with_flash_bytes
from ota_service.formats.image import AppImage, parse_app_image
from ota_service.formats.nvs import parse_nvs
from ota_service.formats.otadata import boots_after
from ota_service.formats.partitions import (
    OTADATA_BYTES,
    SECTOR_BYTES,
    TABLE_OFFSET,
    Partition,
    PartitionTable,
    parse_partition_table,
)
from ota_service.formats.table_places import require_place


@dataclass(frozen=True, slots=True)
class Region:
    """One part of the result. room_bytes: what it may take at most; data is shown nowhere."""

    name: str
    offset: int
    size_bytes: int
    room_bytes: int
    what: str


@dataclass(frozen=True, slots=True)
class Merged:
    """A Merged Binary and what is in it, in the order of the flash.

    booted: the partition that a board starts after it was written.
    """

    data: bytes
    bootloader: Bootloader
    table: PartitionTable
    table_offset: int
    flash_bytes: int
    booted: Partition
    regions: tuple[Region, ...]


def merge(
    *,
    bootloader: bytes,
    table: bytes,
    app: bytes,
    contents: Mapping[str, bytes] | None = None,
    table_offset: int = TABLE_OFFSET,
    flash_bytes: int | None = None,
) -> Merged:
    """The flash from its first byte to the last region that holds something.

    table: in its binary form. app: goes to the partition that blank otadata starts. contents:
    label (or name, where two share one) -> data of further partitions. flash_bytes: the board's
    flash; None: what the bootloader was built for. Identical input gives identical bytes.
    Raises OtaError: what the readers raise for each input, "wrong-chip", "flash-size",
    "image-too-large", and "config-invalid" for a label that does not exist.
    """
    loader = parse_bootloader(bootloader)
    bootloader = _unpadded(bootloader, loader.size_bytes)
    offset = loader.offset
    if offset is None:
        raise OtaError(
            "wrong-chip", f"It is not known where {loader.chip} has its bootloader in flash."
        )
    require_place(table_offset)
    parts = parse_partition_table(table, table_offset=table_offset)
    flash_bytes = _flash_bytes(flash_bytes or loader.flash_bytes, parts)
    bootloader = with_flash_bytes(bootloader, flash_bytes)
    blank_otadata = b"\xff" * OTADATA_BYTES
    booted = boots_after(blank_otadata, parts)
    if booted is None:
        raise OtaError(
            "partition-table-invalid",
            "The partition table has no app partition.",
            remedy="Use a partition table with a factory app or OTA slots.",
        )
    filled = {booted: _unpadded(app, parse_app_image(app).total_bytes)}
    for label, data in (contents or {}).items():
        filled[_free(parts, label, filled)] = data
    placed: list[tuple[Region, bytes]] = []

    def place(name: str, at: int, room_bytes: int, what: str, data: bytes) -> None:
        placed.append((Region(name, at, len(data), room_bytes, what), data))

    place("bootloader", offset, table_offset - offset, _loader(loader), bootloader)
    count = f"{len(parts.partitions)} partitions"
    place("partition table", table_offset, SECTOR_BYTES, count, table)
    for part in parts.partitions:
        if part is parts.otadata:
            what, data = "blank: starts " + booted.name, b"\xff" * part.size_bytes
        elif part in filled:
            what, data = _contents(part, filled[part], loader), filled[part]
        else:
            continue
        place(part.name, part.offset, part.size_bytes, what, data)
    placed.sort(key=lambda pair: pair[0].offset)
    regions = tuple(region for region, _ in placed)
    return Merged(_join(placed), loader, parts, table_offset, flash_bytes, booted, regions)


def _flash_bytes(flash_bytes: int | None, table: PartitionTable) -> int:
    """The size of the flash, if it is known and has room for the table's partitions."""
    if flash_bytes is None:
        raise OtaError(
            "flash-size",
            "The bootloader's header does not say for which flash size it was built.",
            remedy="Give the flash size.",
        )
    if table.end > flash_bytes:
        size = f"{flash_bytes:#x} bytes" if flash_bytes % (1 << 20) else f"{flash_bytes >> 20} MB"
        raise OtaError(
            "flash-size",
            f"The partition table ends at {table.end:#x}, behind the end of a flash of {size}.",
            remedy="Give the board's flash size if it is larger (--flash-size, FLASH_SIZE), or "
            "use a smaller partition table.",
        )
    return flash_bytes


def _free(table: PartitionTable, name: str, filled: Mapping[Partition, bytes]) -> Partition:
    """The partition of this name, which has no contents yet; of several with it as their label the
    first."""
    exact = (part for part in table.partitions if part.name == name)
    part = next(exact, None) or table.by_label(name)
    if part is None:
        known = ", ".join(part.name for part in table.partitions)
        raise OtaError(
            "config-invalid",
            f"The partition table has no partition {name!r}; it has {known}.",
            remedy="Name one of them.",
        )
    if part in filled:
        raise OtaError(
            "config-invalid",
            f"The partition {name!r} gets the app; it was given other contents as well.",
            remedy="Leave one of the two out.",
        )
    return part


def _unpadded(data: bytes, size_bytes: int) -> bytes:
    """The image of `size_bytes` without the padding behind it; with what else stands there."""
    return data if data[size_bytes:].strip(b"\xff\0") else data[:size_bytes]


def _contents(part: Partition, data: bytes, loader: Bootloader) -> str:
    """What is put into a partition, checked as far as its kind is known."""
    if part.is_app:
        return _app(part, data, loader)
    if len(data) > part.size_bytes:
        raise OtaError(
            "image-too-large",
            f"The contents of {part.name!r} have {len(data):,} bytes, the partition "
            f"{part.size_bytes:,}.",
            remedy="Make the contents smaller, or the partition larger.",
        )
    if part.kind == "data/nvs":
        if len(data) != part.whole_bytes:
            raise OtaError(
                "nvs-invalid",
                f"The NVS has {len(data):#x} bytes, its partition {part.whole_bytes:#x}.",
                remedy="Make the NVS in the size of its partition.",
            )
        return f"{len(parse_nvs(data).keys())} keys"
    return f"{len(data):,} bytes"


def _app(part: Partition, data: bytes, loader: Bootloader) -> str:
    image = parse_app_image(data)
    if image.chip_id != loader.chip_id:
        raise OtaError(
            "wrong-chip",
            f"The app is for {image.chip}, the bootloader for {loader.chip}.",
            remedy="Use a bootloader and an app of the same project.",
        )
    if image.total_bytes > part.size_bytes:
        raise OtaError(
            "image-too-large",
            f"The app has {image.total_bytes:,} bytes, the partition {part.name!r} "
            f"{part.size_bytes:,}.",
            remedy="Make the app smaller, or use a partition table with larger slots.",
        )
    return describe_app(image)


def describe_app(image: AppImage) -> str:
    """An app in one line."""
    about = image.descriptor
    idf = f", ESP-IDF {about.idf_version}" if about.idf_version else ""
    return f"{about.project} {about.version}{idf}"


def _loader(loader: Bootloader) -> str:
    idf = f", ESP-IDF {loader.idf_version}" if loader.idf_version else ""
    return f"for {loader.chip}{idf}"


def _join(placed: list[tuple[Region, bytes]]) -> bytes:
    """All of it in whole sectors, with FF between."""
    result = bytearray()
    before = ""
    for region, data in placed:
        if region.offset < len(result):
            raise OtaError(
                "image-too-large",
                f"{before} ends at {len(result):#x}, behind the beginning of {region.name} at "
                f"{region.offset:#x}.",
                remedy="Use a smaller one, or another partition table.",
            )
        result = result.ljust(region.offset, b"\xff") + data
        before = region.name
    return bytes(result + b"\xff" * (-len(result) % SECTOR_BYTES))
