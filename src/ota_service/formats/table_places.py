# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in a flash the partition table is: at 0x8000, but for builds with a larger bootloader.

The place is compiled into the bootloader (CONFIG_PARTITION_TABLE_OFFSET), and nothing else tells
it; so it is looked for by what a table is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ota_service.errors import OtaError
from ota_service.formats.partitions import (
    ENTRY_BYTES,
    MAGIC,
    SECTOR_BYTES,
    TABLE_BYTES,
    TABLE_OFFSET,
    PartitionTable,
    parse_partition_table,
    require_flash,
)

TABLE_PLACES = range(TABLE_OFFSET, 0x21000, SECTOR_BYTES)
"""Where a table is looked for."""
_IMAGE_MAGIC = b"\xe9"

Read = Callable[[int, int], bytes]
"""The bytes at (flash address, size)."""


def find_table(read: Read, *, flash_bytes: int | None = None) -> PartitionTable:
    """The table of a board: at 0x8000, else the first whole one of `TABLE_PLACES`.

    Where 0x8000 begins like a table it has to be one: whatever is behind it is older. Of the
    other places only the first entry is read, and the rest where that looks like one.
    Raises `OtaError` as `parse_partition_table` does, for what is at 0x8000 if there is none.
    """
    data = read(TABLE_OFFSET, TABLE_BYTES)
    if data[:2] != MAGIC:
        for offset in TABLE_PLACES[1:]:
            if (found := table_at(read, offset)) is not None:
                require_flash(found, flash_bytes)
                return found
    return parse_partition_table(data, flash_bytes=flash_bytes)


def require_only(read: Read, table: PartitionTable) -> None:
    """Raise where a second whole table stands behind `table`.

    One of the two is a leftover, and nothing in them tells which one the bootloader was built
    for. The inside of an app is not searched: a table there is that app's data.
    Raises `OtaError`: "partition-table-invalid".
    """
    for other in _tables_behind(read, table):
        raise OtaError(
            "partition-table-invalid",
            f"The flash has a partition table at {table.offset:#x} and another one at "
            f"{other.offset:#x}, and it cannot be told which one its bootloader uses.",
        )


def _tables_behind(read: Read, table: PartitionTable) -> Iterator[PartitionTable]:
    """The whole tables at places behind `table` that no app of its slots explains."""
    for offset in TABLE_PLACES:
        if offset <= table.offset:
            continue
        part = table.containing(offset)
        app = part if part is not None and part.is_app and part.offset < offset else None
        if app is not None and read(app.offset, 1) == _IMAGE_MAGIC:
            continue
        if (other := table_at(read, offset)) is not None:
            yield other


def all_tables(read: Read) -> tuple[int, ...]:
    """The places of all whole tables, also of such as are part of an app."""
    return tuple(offset for offset in TABLE_PLACES if table_at(read, offset) is not None)


def table_at(read: Read, offset: int) -> PartitionTable | None:
    """The whole table at a place where other bytes might begin like one; None where none is."""
    if read(offset, ENTRY_BYTES)[:2] != MAGIC:
        return None
    try:
        table = parse_partition_table(read(offset, TABLE_BYTES), table_offset=offset)
    except OtaError as error:
        if error.code != "partition-table-invalid":
            raise
        return None
    return table if any(part.is_app for part in table.partitions) else None
