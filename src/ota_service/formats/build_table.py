# SPDX-License-Identifier: GPL-3.0-or-later
"""A partition table from its CSV form, as ESP-IDF's projects have it, and as bytes for flash.

Form: ESP-IDF, "Partition Tables" (API guides), "Creating Custom Tables". The bytes are those that
ESP-IDF's own table tool builds, from 4.4 to 6.0, and what it refuses is refused. Where its
versions differ the newest one counts, but not against files that came with an older one: there
an app's size need be no multiple of 0x1000, and an NVS partition may be small.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import replace

from ota_service.errors import OtaError
from ota_service.formats.partitions import (
    MAGIC,
    MAX_ENTRIES,
    MD5_MAGIC,
    OTADATA_BYTES,
    SECTOR_BYTES,
    SUBTYPE_NAMES,
    TABLE_BYTES,
    TABLE_OFFSET,
    TYPE_APP,
    TYPE_BOOTLOADER,
    TYPE_NAMES,
    TYPE_TABLE,
    Partition,
    check_partitions,
)

MIN_NVS_BYTES = 0x3000
"""NVS_RW_MIN_PARTITION_SIZE of ESP-IDF's partition tool."""

_FLAGS = {"encrypted": 1, "readonly": 2}
_VARIABLE = re.compile(r"\$\w+|\$\{\w+\}")  # the table tool takes them from its environment
_UNITS = {"k": 1 << 10, "m": 1 << 20}
_TYPES = {name: number for number, name in TYPE_NAMES.items()}
_PRIMARY, _RECOVERY, _UNDEFINED = 0x00, 0x02, 0x06
_REMEDY = "Correct the CSV file of the partition table."


class _Fault(ValueError):
    """What is wrong with a line, as a sentence."""


def table_from_csv(
    text: str, *, table_offset: int = TABLE_OFFSET, bootloader_offset: int = 0x1000
) -> bytes:
    """The table of 0xC00 bytes, with its MD5, that `text` describes.

    table_offset: where the table will stand; partitions without an offset follow it.
    bootloader_offset: where the chip has its bootloader.
    Raises OtaError "partition-table-invalid", which names the line.
    """
    parts: list[Partition] = []
    end = table_offset + SECTOR_BYTES
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        try:
            part, offset = _row(line.strip(), table_offset, bootloader_offset)
            parts.append(_placed(part, offset, end, parts))
        except _Fault as fault:
            raise _wrong(f"Line {number}: {fault}") from None
        if not _is_own(part):
            end = parts[-1].end
    if not parts:
        raise _wrong("The CSV file has no partition.")
    try:
        check_partitions(parts, table_offset)
    except OtaError as error:
        raise _wrong(error.message) from None
    return encode_table(parts)


def encode_table(parts: list[Partition] | tuple[Partition, ...]) -> bytes:
    """The table as it stands in flash: entries, MD5, FF up to 0xC00 bytes.

    Names are cut to 16 bytes.
    """
    if len(parts) > MAX_ENTRIES - 2:
        raise _wrong(f"{len(parts)} partitions; a table has room for {MAX_ENTRIES - 2}.")
    entry = struct.Struct("<2sBBII16sI").pack
    entries = b"".join(
        entry(MAGIC, p.type, p.subtype, p.offset, p.size_bytes, p.label.encode(), p.flags)
        for p in parts
    )
    digest = hashlib.md5(entries, usedforsecurity=False).digest()
    return (entries + MD5_MAGIC + b"\xff" * 14 + digest).ljust(TABLE_BYTES, b"\xff")


def _wrong(message: str) -> OtaError:
    return OtaError("partition-table-invalid", message, remedy=_REMEDY)


def _is_own(part: Partition) -> bool:
    """Whether it is where the bootloader or the table itself is."""
    return part.kind in ("bootloader/primary", "partition_table/primary")


def _placed(part: Partition, offset: int | None, end: int, before: list[Partition]) -> Partition:
    """The partition in its place. end: of those before it."""
    if offset is None:
        part = replace(part, offset=-(-end // part.align_bytes) * part.align_bytes)
    elif offset < end and not _is_own(part):
        if before:
            raise _Fault(
                f"the partition {part.label!r} begins at {part.offset:#x}, and the one before it "
                f"ends at {end:#x}: they overlap, or are not in the order of the flash."
            )
        raise _Fault(
            f"the partition {part.label!r} at {part.offset:#x} overlaps the partition table or "
            f"the bootloader, which end at {end:#x}."
        )
    if part.size_bytes < 0:
        part = replace(part, size_bytes=-part.size_bytes - part.offset)
    _check(part, before)
    return part


def _row(line: str, table_offset: int, bootloader_offset: int) -> tuple[Partition, int | None]:
    """One line's partition and its offset. None: behind the one before; a size below 0: up to
    that address."""
    if (variable := _VARIABLE.search(line)) is not None:
        raise _Fault(f"write out the value of the variable {variable[0]}.")
    fields = [field.strip() for field in line.split(",")]
    label, kind_name, subtype_name, offset_text, size_text, flags_text = (fields + [""] * 5)[:6]
    if not kind_name:
        raise _Fault("it has no type; a partition has name, type, subtype, size.")
    kind = _named("type", kind_name, _TYPES)
    subtype = _subtype(kind, subtype_name)
    if (kind, subtype) == (TYPE_BOOTLOADER, _RECOVERY):
        raise _Fault(
            "a recovery bootloader has its place from the project's "
            "configuration, which is not known here."
        )
    # Of these, offset and size follow from the chip and the table, whatever stands there ("N/A").
    own_offset, own_size = {
        TYPE_BOOTLOADER: (bootloader_offset, table_offset - bootloader_offset),
        TYPE_TABLE: (table_offset, SECTOR_BYTES),
    }.get(kind, (None, None))
    offset = own_offset if subtype == _PRIMARY else None
    if offset is None and offset_text:
        offset = _number("offset", offset_text)
    size_bytes = _number("size", size_text) if own_size is None else own_size
    flags = 0
    for name in filter(None, flags_text.split(":")):
        if name not in _FLAGS:
            raise _Fault(f"there is no flag {name!r}; flags: {', '.join(_FLAGS)}.")
        flags |= _FLAGS[name]
    if "\0" in label:
        raise _Fault(f"the name {label!r} has a byte 0, where it would end.")
    return Partition(label, kind, subtype, offset or 0, size_bytes, flags), offset


def _subtype(kind: int, text: str) -> int:
    if text:
        names = {name: n for n, name in SUBTYPE_NAMES.get(kind, {}).items()}
        return _named("subtype", text, names)
    if kind == TYPE_APP:
        raise _Fault("an app has a subtype, such as factory or ota_0.")
    return _UNDEFINED


def _named(what: str, text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    value = _value(text)
    if value is None:
        known = ", ".join(list(names)[:8]) or "a number"
        raise _Fault(f"there is no {what} {text!r}; possible: {known}, ...")
    if not 0 <= value <= 0xFF:
        raise _Fault(f"a {what} is a number from 0 to 0xFF, not {text}.")
    return value


def _number(what: str, text: str) -> int:
    if not text:
        raise _Fault(f"it has no {what}.")
    value = _value(text)
    if value is None:
        raise _Fault(f"the {what} {text!r} is no number, such as 0x10000, 64K or 1M.")
    return value


def _value(text: str) -> int | None:
    """A number as the table tool takes it: in Python's own forms, with any number of units."""
    unit = _UNITS.get(text[-1:].lower())
    if unit is not None:
        value = _value(text[:-1])
        return None if value is None else value * unit
    # Longer than any number that has a use here: Python refuses to convert very long ones.
    try:
        return int(text, 0) if len(text) <= 100 else None
    except ValueError:
        return None


def _check(part: Partition, before: list[Partition]) -> None:
    """What only a file can have wrong, or what ESP-IDF's own tool refuses in a file."""
    if part.offset < 0 or part.size_bytes < 0:
        raise _Fault(f"the partition {part.label!r} would end before it begins.")
    if part.end > 1 << 32 or part.size_bytes >> 32:
        raise _Fault(f"the partition {part.label!r} ends behind 4 GiB.")
    if any(other.label == part.label for other in before):
        raise _Fault(f"there is a partition {part.label!r} already.")
    if part.kind == "data/tee_ota":
        if part.size_bytes != OTADATA_BYTES:
            raise _Fault(f"{part.kind} has {OTADATA_BYTES:#x} bytes.")
        if any(part.kind == other.kind for other in before):
            raise _Fault(f"there is a partition {part.kind} already.")
    # The size only of the partition that every firmware opens: examples have small ones besides.
    default_nvs = (part.kind, part.label) == ("data/nvs", "nvs")
    if default_nvs and part.size_bytes < MIN_NVS_BYTES and not part.read_only:
        raise _Fault(f"an NVS partition has at least {MIN_NVS_BYTES:#x} bytes, or is readonly.")
