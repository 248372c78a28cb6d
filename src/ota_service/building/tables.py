# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables by name or from a file, in either of their forms."""

from __future__ import annotations

import codecs
from importlib.resources import files
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware.files import TEXT_BYTES, read_file
from ota_service.formats.build_table import table_from_csv
from ota_service.formats.partitions import (
    MAGIC,
    TABLE_BYTES,
    TABLE_OFFSET,
    parse_partition_table,
)
from ota_service.formats.table_places import require_place

_FOLDER = "partitions"
# The name of the same table where boards are simulated.
_ALIASES = {"guide": "ota-guide"}


def shipped_tables() -> list[str]:
    """The names of the tables that come with this package."""
    found = files("ota_service").joinpath(_FOLDER).iterdir()
    return sorted(Path(entry.name).stem for entry in found if entry.name.endswith(".csv"))


def load_table(
    source: str, *, table_offset: int = TABLE_OFFSET, bootloader_offset: int = 0x1000
) -> bytes:
    """The table in its binary form: of a shipped table's name, a CSV file, or a binary one.

    Raises OtaError "partition-table-invalid", "config-invalid" for a place that no table has, and
    "file-access".
    """
    require_place(table_offset)
    source = _ALIASES.get(source, source)
    if source in shipped_tables():
        entry = files("ota_service").joinpath(_FOLDER, f"{source}.csv")
        return table_from_csv(entry.read_text(encoding="utf-8"), table_offset=table_offset)
    try:
        data = read_file(source, TEXT_BYTES)
    except OtaError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise OtaError(
            "partition-table-invalid",
            f"{source}: No such file, and no partition table that comes with this program.",
            remedy=f"Name a file, or one of {', '.join(shipped_tables())}.",
        ) from None
    if data.startswith(MAGIC):
        try:
            parse_partition_table(data, table_offset=table_offset)
        except OtaError as error:
            raise OtaError(
                error.code, f"{source}: {error.message}", remedy="Build the table again."
            ) from None
        return data[:TABLE_BYTES].ljust(TABLE_BYTES, b"\xff")
    try:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise OtaError(
            "partition-table-invalid",
            f"{source} is neither a partition table nor the CSV file of one.",
            remedy=f"Name such a file, or one of {', '.join(shipped_tables())}.",
        ) from None
    return table_from_csv(text, table_offset=table_offset, bootloader_offset=bootloader_offset)
