# SPDX-License-Identifier: GPL-3.0-or-later
"""A partition table from its CSV form, as ESP-IDF's projects have it, and as bytes for flash.

Form: ESP-IDF, "Partition Tables" (API guides), "Creating Custom Tables". What is built is then
read by our own reader, which refuses what the bootloader refuses.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, replace

from ota_service.errors import OtaError
from ota_service.formats.partitions import (
    MAGIC,
    MAX_ENTRIES,
    MD5_MAGIC,
    OTADATA_BYTES,
    SUBTYPE_NAMES,
    SUBTYPE_NVS,
    SUBTYPE_OTA_0,
    SUBTYPE_OTADATA,
    TABLE_BYTES,
    TABLE_OFFSET,
    TYPE_APP,
    TYPE_BOOTLOADER,
    TYPE_DATA,
    TYPE_NAMES,
    TYPE_TABLE,
    Partition,
    PartitionTable,
    parse_partition_table,
)

SECTOR_BYTES = 0x1000
APP_ALIGN_BYTES = 0x10000
LABEL_BYTES = 16
MIN_NVS_BYTES = 0x3000
"""NVS_RW_MIN_PARTITION_SIZE of ESP-IDF's partition tool."""

_FLAGS = {"encrypted": 1, "readonly": 2}
_NUMBER = re.compile(r"(-?)(0x[0-9a-f]+|[0-9]+)([km]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_REMEDY = "Correct the CSV file of the partition table."


@dataclass(frozen=True, slots=True)
class _Row:
    """One line. offset None: behind the one before; size_bytes below 0: up to that address."""

    line: int
    part: Partition
    offset: int | None


def table_from_csv(
    text: str, *, table_offset: int = TABLE_OFFSET, bootloader_offset: int = 0x1000
) -> bytes:
    """The table of 0xC00 bytes, with its MD5, that `text` describes.

    table_offset: where the table will stand; partitions without an offset follow it.
    Raises OtaError "partition-table-invalid", which names the line.
    """
    rows = [
        _row(number, line, table_offset, bootloader_offset)
        for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not rows:
        raise _wrong("The CSV file has no partition.")
    parts: list[Partition] = []
    end = table_offset + SECTOR_BYTES
    for row in rows:
        part = row.part
        if row.offset is None:
            align = APP_ALIGN_BYTES if part.type == TYPE_APP else SECTOR_BYTES
            part = replace(part, offset=-(-end // align) * align)
        if part.size_bytes < 0:
            part = replace(part, size_bytes=-part.size_bytes - part.offset)
        _check(row.line, part, parts)
        parts.append(part)
        if part.type not in (TYPE_BOOTLOADER, TYPE_TABLE):
            end = part.end
    data = encode_table(parts)
    try:
        read = parse_partition_table(data, table_offset=table_offset)
    except OtaError as error:
        raise _wrong(error.message) from None
    assert read.partitions == tuple(parts)
    return data


def encode_table(parts: list[Partition] | tuple[Partition, ...]) -> bytes:
    """The table as it stands in flash: entries, MD5, FF up to 0xC00 bytes."""
    if len(parts) > MAX_ENTRIES - 2:
        raise _wrong(f"{len(parts)} partitions; a table has room for {MAX_ENTRIES - 2}.")
    entries = b"".join(
        struct.pack(
            "<2sBBII16sI",
            MAGIC,
            part.type,
            part.subtype,
            part.offset,
            part.size_bytes,
            part.label.encode(),
            part.flags,
        )
        for part in parts
    )
    digest = hashlib.md5(entries, usedforsecurity=False).digest()
    return (entries + MD5_MAGIC + b"\xff" * 14 + digest).ljust(TABLE_BYTES, b"\xff")


def table_to_csv(table: PartitionTable) -> str:
    """The table in its CSV form, for people and for `table_from_csv`."""
    lines = ["# Name, Type, SubType, Offset, Size, Flags"]
    for part in table.partitions:
        kind, subtype = part.kind.split("/")
        flags = ":".join(name for name, bit in _FLAGS.items() if part.flags & bit)
        fields = [part.label, kind, subtype, f"{part.offset:#x}", f"{part.size_bytes:#x}", flags]
        lines.append(", ".join(fields).rstrip(", "))
    return "\n".join(lines) + "\n"


def _wrong(message: str) -> OtaError:
    return OtaError("partition-table-invalid", message, remedy=_REMEDY)


def _row(number: int, line: str, table_offset: int, bootloader_offset: int) -> _Row:
    fields = [field.strip() for field in line.partition("#")[0].split(",")]
    if len(fields) < 5:
        raise _wrong(
            f"Line {number} has {len(fields)} fields; a partition has name, type, subtype, "
            "offset and size, and perhaps flags."
        )
    fields += [""] * (6 - len(fields))
    if any(fields[6:]):
        raise _wrong(f"Line {number} has more than six fields.")
    label, kind_name, subtype_name, offset_text, size_text, flags_text = fields[:6]
    kind = _named(number, "type", kind_name, {name: n for n, name in TYPE_NAMES.items()})
    names = {name: n for n, name in SUBTYPE_NAMES.get(kind, {}).items()}
    if not subtype_name and kind not in TYPE_NAMES:
        subtype_name = "0"  # as ESP-IDF's tool has it for custom types
    subtype = _named(number, "subtype", subtype_name, names)
    offset = _number(number, "offset", offset_text) if offset_text else None
    if (kind, subtype) == (TYPE_BOOTLOADER, 0):
        offset = bootloader_offset if offset is None else offset
        size_text = size_text or str(table_offset - bootloader_offset)
    elif (kind, subtype) == (TYPE_TABLE, 0):
        offset = table_offset if offset is None else offset
        size_text = size_text or str(SECTOR_BYTES)
    size_bytes = _number(number, "size", size_text)
    flags = 0
    for name in filter(None, re.split(r"[:\s]+", flags_text)):
        if name not in _FLAGS:
            raise _wrong(f"Line {number}: there is no flag {name!r}; flags: {', '.join(_FLAGS)}.")
        flags |= _FLAGS[name]
    if not label or len(label.encode()) > LABEL_BYTES:
        raise _wrong(f"Line {number}: a name has 1 to {LABEL_BYTES} bytes, not {label!r}.")
    if offset is not None and offset < 0:
        raise _wrong(f"Line {number}: an offset cannot be below 0.")
    return _Row(number, Partition(label, kind, subtype, offset or 0, size_bytes, flags), offset)


def _named(number: int, what: str, text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    value = _value(text)
    if value is None:
        known = ", ".join(list(names)[:8]) or "a number"
        raise _wrong(f"Line {number}: there is no {what} {text!r}; possible: {known}, ...")
    if not 0 <= value <= 0xFE:
        raise _wrong(f"Line {number}: a {what} is a number from 0 to 0xFE, not {text}.")
    return value


def _number(number: int, what: str, text: str) -> int:
    value = _value(text)
    if value is None:
        raise _wrong(
            f"Line {number}: the {what} {text!r} is no number, such as 0x10000, 64K or 1M."
        )
    return value


def _value(text: str) -> int | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    value = int(match[2], 16) if match[2][:2].lower() == "0x" else int(match[2])
    return value * _UNITS[match[3].lower()] * (-1 if match[1] else 1)


def _check(line: int, part: Partition, before: list[Partition]) -> None:
    """What ESP-IDF's own tool refuses to build and the bootloader would not notice."""
    if part.size_bytes <= 0:
        raise _wrong(f"Line {line}: the partition {part.label!r} has no size.")
    if part.end > 1 << 32:
        raise _wrong(f"Line {line}: the partition {part.label!r} ends behind 4 GiB.")
    if any(other.label == part.label for other in before):
        raise _wrong(f"Line {line}: there is a partition {part.label!r} already.")
    if part.type == TYPE_APP and part.size_bytes % SECTOR_BYTES:
        raise _wrong(
            f"Line {line}: the partition {part.label!r} has {part.size_bytes:#x} bytes; an app's "
            "size is a multiple of 0x1000."
        )
    if (part.type, part.subtype) == (TYPE_DATA, SUBTYPE_OTADATA):
        if part.size_bytes != OTADATA_BYTES:
            raise _wrong(f"Line {line}: an otadata partition has exactly {OTADATA_BYTES:#x} bytes.")
    elif (part.type, part.subtype) == (TYPE_DATA, SUBTYPE_NVS) and not part.read_only:
        if part.size_bytes < MIN_NVS_BYTES or part.size_bytes % SECTOR_BYTES:
            raise _wrong(
                f"Line {line}: an NVS partition has a multiple of 0x1000 bytes, at least "
                f"{MIN_NVS_BYTES:#x}."
            )
    elif part.type == TYPE_APP and part.subtype > SUBTYPE_OTA_0 + 0x10:
        raise _wrong(f"Line {line}: there is no app subtype {part.subtype:#04x}.")
