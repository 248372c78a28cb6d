# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in a flash the partition table is: at 0x8000, but for builds with a larger bootloader.

The place is compiled into the bootloader (CONFIG_PARTITION_TABLE_OFFSET), and nothing else tells
it; so it is looked for by what a table is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

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
Blank = Callable[[int, int], bool]
"""Whether all of (flash address, size) is erased."""


def require_place(offset: int) -> None:
    """Raise `OtaError` "config-invalid" where no table would be looked for."""
    if offset not in TABLE_PLACES:
        raise OtaError(
            "config-invalid",
            f"No partition table is looked for at {offset:#x}.",
            remedy="Give the CONFIG_PARTITION_TABLE_OFFSET of the project's build: a multiple of "
            f"{SECTOR_BYTES:#x} from {TABLE_PLACES[0]:#x} to {TABLE_PLACES[-1]:#x}.",
        )


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


def require_only(read: Read, table: PartitionTable, blank: Blank | None = None) -> None:
    """Raise where a second whole table stands behind `table`.

    One of the two is a leftover, and nothing in them tells which one the bootloader was built
    for. The inside of an app is not searched: a table there is that app's data. blank: saves
    reading the places that no partition takes, which are mostly blank.
    Raises `OtaError`: "partition-table-invalid".
    """
    for offset in _unexplained(read, table, blank):
        if table_at(read, offset) is not None:
            raise OtaError(
                "partition-table-invalid",
                f"The flash has a partition table at {table.offset:#x} and another one at "
                f"{offset:#x}, and it cannot be told which one its bootloader uses.",
            )


def _unexplained(read: Read, table: PartitionTable, blank: Blank | None) -> Iterator[int]:
    gap: list[int] = []
    for offset in TABLE_PLACES:
        if offset <= table.offset:
            continue
        part = next((p for p in table.partitions if p.offset <= offset < p.end), None)
        if part is None:
            gap.append(offset)
        elif not part.is_app or part.offset == offset or read(part.offset, 1) != _IMAGE_MAGIC:
            yield offset
    for first, end in _runs(gap):
        if blank is None or not blank(first, end - first):
            yield from range(first, end, SECTOR_BYTES)


def _runs(offsets: list[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the regions that sectors at these offsets make up."""
    for _, run in groupby(enumerate(offsets), lambda pair: pair[1] - pair[0] * SECTOR_BYTES):
        places = [offset for _, offset in run]
        yield places[0], places[-1] + SECTOR_BYTES


def all_tables(read: Read) -> tuple[int, ...]:
    """The places of all that begins like a table, whatever it is: a bootloader might take it."""
    return tuple(offset for offset in TABLE_PLACES if read(offset, ENTRY_BYTES)[:2] == MAGIC)


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
