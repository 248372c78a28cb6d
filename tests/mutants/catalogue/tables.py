# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables: which one a board has, and which would let a write hit another place."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

PARTITIONS = "tests/formats/test_partitions.py"
PLACES = "tests/formats/test_table_places.py"
_PARTITIONS, _PLACES = "formats/partitions.py", "formats/table_places.py"

MUTANTS = (
    Mutant(
        "a partition may stand on the table",
        _PARTITIONS,
        "if part.offset < table_offset + SECTOR_BYTES and not",
        "if part.offset < table_offset and not",
        f"{PARTITIONS}::test_damaged_tables_are_refused",
    ),
    Mutant(
        "partitions may overlap",
        _PARTITIONS,
        "if after.offset < before.end:",
        "if after.offset < before.offset:",
        f"{PARTITIONS}::test_damaged_tables_are_refused",
    ),
    Mutant(
        "a partition may end behind 4 GiB",
        _PARTITIONS,
        "if part.end > 1 << 32:",
        "if part.end > 1 << 33:",
        f"{PARTITIONS}::test_damaged_tables_are_refused",
    ),
    Mutant(
        "two otadata partitions are allowed",
        _PARTITIONS,
        "if len(otadata) > 1:",
        "if len(otadata) > 2:",
        f"{PARTITIONS}::test_damaged_tables_are_refused",
    ),
    Mutant(
        "a read-only otadata is written",
        _PARTITIONS,
        '("data/ota", "data/coredump") and part.read_only:',
        '("data/ota", "data/coredump") and part.read_only and part.encrypted:',
        f"{PARTITIONS}::test_damaged_tables_are_refused",
    ),
    Mutant(
        "of two whole tables the first one is believed",
        _PLACES,
        "if table_at(read, offset) is not None:",
        "if table_at(read, offset) is table:",
        f"{PLACES}::test_two_tables_cannot_both_be_meant",
    ),
    Mutant(
        "an older table stands in for a damaged one",
        _PLACES,
        "if data[:2] != MAGIC:",
        "if table_at(read, TABLE_OFFSET) is None:",
        f"{PLACES}::test_a_damaged_table_is_not_replaced_by_an_older_one",
    ),
)
