# SPDX-License-Identifier: GPL-3.0-or-later
"""The partition table's parser against Espressif's own table code, and against any bytes."""

from __future__ import annotations

import hashlib
import struct

import pytest
from esp_idf_defs.partitions import PartitionTable as Judge
from hypothesis import given
from hypothesis import strategies as st

from ota_service.errors import OtaError
from ota_service.formats.partitions import (
    PartitionTable,
    parse_partition_table,
    require_ota,
)
from tests.formats import tables
from tests.formats.outcomes import outcome


def entry(
    kind: int, subtype: int, offset: int, size: int, label: bytes = b"x", flags: int = 0
) -> bytes:
    """One table entry of 32 bytes."""
    return struct.pack("<2sBBII16sI", b"\xaa\x50", kind, subtype, offset, size, label, flags)


def with_md5(entries: bytes) -> bytes:
    """`entries` with MD5 entry and filling, 0xC00 bytes."""
    md5 = b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(entries).digest()
    return (entries + md5).ljust(0xC00, b"\xff")


def code_of(data: bytes, **options: int) -> str:
    """The code of the error that parsing `data` raises."""
    with pytest.raises(OtaError) as caught:
        parse_partition_table(data, **options)
    return caught.value.code


@pytest.mark.parametrize("name", tables.ALL)
def test_field_tables_are_read_as_espressif_reads_them(name: str) -> None:
    """The tables of esp32.md give the same partitions as Espressif's own parser."""
    data = tables.table_bytes(tables.ALL[name])
    ours = parse_partition_table(data, flash_bytes=8 << 20)
    theirs = Judge.from_binary(data)
    assert [
        (p.label, p.type, p.subtype, p.offset, p.size_bytes, p.encrypted, p.read_only)
        for p in ours.partitions
    ] == [(p.name, p.type, p.subtype, p.offset, p.size, p.encrypted, p.readonly) for p in theirs]
    assert ours.has_md5


def test_what_a_table_tells() -> None:
    """Slots, factory, otadata, NVS, end and kinds of the OTA guide's table."""
    table = parse_partition_table(tables.table_bytes(tables.OTA_GUIDE))
    assert [p.offset for p in table.ota_slots] == [0x110000, 0x210000]
    found = (table.factory, table.otadata, table.nvs)
    assert [part and part.offset for part in found] == [0x10000, 0xD000, 0x9000]
    assert table.end == 0x310000
    assert [p.kind for p in table.partitions] == [
        "data/nvs",
        "data/ota",
        "data/phy",
        "app/factory",
        "app/ota_0",
        "app/ota_1",
    ]
    assert table.by_label("ota_1") == table.ota_slots[1]
    assert table.by_label("none") is None
    assert [p.ota_index for p in table.partitions] == [None, None, None, None, 0, 1]


def test_slots_are_ordered_by_index_not_by_place() -> None:
    """A table whose ota_1 stands before ota_0 still has ota_0 as its first slot."""
    data = with_md5(
        entry(1, 0, 0xD000, 0x2000)
        + entry(0, 0x11, 0x10000, 0x10000)
        + entry(0, 0x10, 0x20000, 0x10000)
    )
    table = parse_partition_table(data)
    assert [p.offset for p in table.ota_slots] == [0x20000, 0x10000]
    require_ota(table)


def test_only_the_default_nvs_partition_counts() -> None:
    """An NVS partition with another label is not the one that the firmware opens by default."""
    data = with_md5(
        entry(1, 2, 0x9000, 0x3000, b"other") + entry(1, 2, 0xC000, 0x3000, b"nvs", flags=3)
    )
    nvs = parse_partition_table(data).nvs
    assert nvs is not None
    assert nvs.offset == 0xC000
    assert nvs.read_only
    assert nvs.encrypted


def test_a_table_without_md5_is_accepted() -> None:
    """Tables from before ESP-IDF v3.0 have no MD5 entry."""
    table = parse_partition_table(entry(1, 2, 0x9000, 0x3000).ljust(0xC00, b"\xff"))
    assert not table.has_md5


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "blank"),
        (b"\xff" * 0xC00, "blank"),
        (b"\0" * 0xC00, "begins with 00 00"),
        (with_md5(b""), "no partitions"),
        (with_md5(entry(1, 2, 0x9000, 0x3000))[:32], "cut off"),
        (with_md5(entry(1, 2, 0x9000, 0x3000))[:80], "cut off"),
        (with_md5(entry(0, 0, 0x8800, 0x3000)), "multiple"),
        (with_md5(entry(0, 0, 0x19000, 0x10000)), "multiple"),
        (with_md5(entry(1, 2, 0x9100, 0x3000)), "multiple"),
        (with_md5(entry(1, 2, 0x7000, 0x3000)), "overlaps the partition table"),
        (with_md5(entry(1, 2, 0x8000, 0x3000)), "overlaps the partition table"),
        (with_md5(entry(1, 2, 0x9000, 0x3000) + entry(1, 1, 0xB000, 0x1000)), "overlap"),
        (with_md5(entry(0, 0x11, 0x10000, 0)), "no size"),
        (with_md5(entry(1, 2, 0xFFFFF000, 0x2000)), "4 GiB"),
        (with_md5(entry(0, 0x11, 0x0, 0x100000)), "overlaps the partition table or the boot"),
        (with_md5(entry(0, 0x10, 0x10000, 0xFFFF0001)), "4 GiB"),
        (with_md5(entry(0x40, 1, 0x100400, 0x1000)), "multiple of 0x1000"),
        (with_md5(entry(0x40, 1, 0x7000, 0x1000)), "overlaps the partition table or the boot"),
        (with_md5(entry(1, 0, 0x9000, 0x1000)), "0x1000 bytes, not 0x2000"),
        (with_md5(entry(1, 0, 0x9000, 0x3000)), "0x3000 bytes, not 0x2000"),
        (with_md5(entry(1, 0, 0x9000, 0x2000, flags=2)), "read-only"),
        (with_md5(entry(1, 3, 0x9000, 0x2000, flags=2)), "read-only"),
        (with_md5(entry(1, 0, 0x9000, 0x2000) + entry(1, 0, 0xB000, 0x2000)), "2 partitions"),
        (with_md5(entry(2, 0, 0x1000, 0x7001)), "overlaps the partition table or the boot"),
        (with_md5(entry(3, 0, 0x7000, 0x1000)), "overlaps the partition table or the boot"),
        (with_md5(entry(2, 1, 0x1000, 0x1000)), "overlaps the partition table or the boot"),
        (with_md5(entry(1, 2, 0x9000, 0x3000)).replace(b"\xeb\xeb", b"\xeb\xea"), "EB EA"),
    ],
)
def test_damaged_tables_are_refused(data: bytes, why: str) -> None:
    """Each damage gives partition-table-invalid, with its reason in the message."""
    with pytest.raises(OtaError, match=why) as caught:
        parse_partition_table(data)
    assert caught.value.code == "partition-table-invalid"


@pytest.mark.parametrize(
    "entries",
    [
        entry(0, 0, 0x10000, 0x124F80) + entry(1, 0x82, 0x135000, 0x100),  # any size
        entry(1, 2, 0x9000, 0x1000, b"nvs") + entry(0, 0, 0x10000, 0x10000),  # of one page
        entry(1, 6, 0x9000, 0x1000) + entry(1, 6, 0xA000, 0x1000),  # of one name
        entry(1, 0x81, 0x20000, 0x1000) + entry(1, 2, 0x9000, 0x3000),  # in another order
        entry(1, 0x90, 0x9000, 0x1000) + entry(1, 0x90, 0xA000, 0x1000),  # now TEE otadata's
        entry(1, 0x81, 0x9000, 0),
        entry(0xFF, 0xFF, 0x9000, 0x1000, flags=0x80000000),
        entry(2, 0, 0x1000, 0x7000) + entry(3, 0, 0x8000, 0x1000) + entry(1, 2, 0x9000, 0x3000),
    ],
)
def test_tables_of_working_boards_are_accepted(entries: bytes) -> None:
    """What some version of ESP-IDF builds and what can cost no board anything."""
    assert parse_partition_table(with_md5(entries)).partitions


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [(0, 0), (0, 0x10), (0, 0x11), (1, 0), (1, 2), (1, 3), (0x40, 1), (2, 0)]
            ),
            st.integers(0, 0x30).map(lambda n: n * 0x1000) | st.integers(0, 0xFFFFFFFF),
            st.integers(0, 0x30).map(lambda n: n * 0x1000) | st.integers(0, 0xFFFFFFFF),
            st.sampled_from([0, 1, 2]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0x8000, 0x9000, 0x20000]),
)
def test_no_accepted_table_reaches_another_place(
    rows: list[tuple[tuple[int, int], int, int, int]], table_offset: int
) -> None:
    """No byte of a partition is the bootloader's, the table's or another partition's."""
    data = with_md5(b"".join(entry(*kind, at, size, flags=flags) for kind, at, size, flags in rows))
    table = outcome(parse_partition_table, data, table_offset=table_offset)
    if isinstance(table, OtaError):
        assert table.code == "partition-table-invalid"
        return
    taken = table_offset + 0x1000
    for kind, at, size, flags in sorted(rows, key=lambda row: (row[1], row[2])):
        if kind == (2, 0) and at < table_offset:
            assert at + size <= table_offset
            continue
        assert taken <= at <= at + size <= 1 << 32
        assert at % (0x10000 if kind[0] == 0 else 0x1000) == 0
        assert kind != (1, 0) or (size, flags & 2) == (0x2000, 0)
        taken = at + size
    assert sum(kind == (1, 0) for kind, *_ in rows) <= 1


def test_a_tables_own_entry_tells_its_place() -> None:
    """For a file, of which nobody says for which place it is."""
    data = with_md5(entry(2, 0, 0x2000, 0xE000) + entry(3, 0, 0x10000, 0x1000))
    assert parse_partition_table(data, table_offset=None).offset == 0x10000
    with pytest.raises(OtaError):
        parse_partition_table(data)


def test_ninety_six_entries_have_no_end() -> None:
    """95 partitions without MD5 fit; a table without room for its end marker is refused."""
    entries = b"".join(entry(1, 6, 0x10000 + i * 0x1000, 0x1000) for i in range(96))
    assert len(parse_partition_table(entries[: 95 * 32] + b"\xff" * 32).partitions) == 95
    assert code_of(entries) == "partition-table-invalid"


def test_beyond_the_flash() -> None:
    """An 8 MB table on a 4 MB board is a matter of the flash's size."""
    data = tables.table_bytes(tables.AS_SHIPPED)
    assert code_of(data, flash_bytes=4 << 20) == "flash-size"
    assert parse_partition_table(data, flash_bytes=8 << 20).end == 8 << 20


def slots(*subtypes: int, otadata: int = 0x2000, factory: int = 0) -> PartitionTable:
    """A table with otadata of that size (0: none), app partitions, and factory partitions."""
    data = entry(1, 0, 0x9000, otadata) if otadata else b""
    for index, subtype in enumerate(list(subtypes) + [0] * factory):
        data += entry(0, subtype, 0x10000 * (index + 1), 0x10000)
    return parse_partition_table(with_md5(data))


@pytest.mark.parametrize(
    ("table", "code"),
    [
        (slots(0x10, otadata=0), "no-ota-slots"),
        (slots(0x10, 0x11, otadata=0), "no-ota-slots"),
        (slots(0x10), "no-ota-slots"),
        (slots(0x10, factory=1), "no-ota-slots"),
        (slots(factory=1), "no-ota-slots"),
        (slots(0x10, 0x12), "partition-table-invalid"),
        (slots(0x11, 0x12), "partition-table-invalid"),
        (slots(0x10, 0x10), "partition-table-invalid"),
        (slots(0x10, 0x11, 0x11), "partition-table-invalid"),
        (slots(0x10, 0x11, factory=2), "partition-table-invalid"),
    ],
)
def test_tables_that_cannot_be_updated(table: PartitionTable, code: str) -> None:
    """A table without two well-numbered slots and otadata is refused before anything is read."""
    with pytest.raises(OtaError) as caught:
        require_ota(table)
    assert caught.value.code == code


def test_tables_that_can_be_updated() -> None:
    """Two to sixteen slots, with and without factory."""
    for count in range(2, 17):
        for factory in (0, 1):
            require_ota(slots(*range(0x10, 0x10 + count), factory=factory))


@given(st.binary(max_size=0xD00) | st.binary(max_size=300).map(lambda tail: b"\xaa\x50" + tail))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes, the parser gives a table or a documented error."""
    table = outcome(parse_partition_table, data, flash_bytes=4 << 20)
    if isinstance(table, OtaError):
        assert table.code in ("partition-table-invalid", "flash-size")
        return
    assert table.end <= 4 << 20
    refused = outcome(require_ota, table)
    if refused is not None:
        assert refused.code in ("partition-table-invalid", "no-ota-slots")


@given(
    st.sampled_from(sorted(tables.ALL)),
    st.lists(st.tuples(st.integers(0, 0x120), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_changed_bytes_never_pass_unnoticed(name: str, changes: list[tuple[int, int]]) -> None:
    """Changing bytes of a table with MD5 either changes nothing or is refused."""
    whole = tables.table_bytes(tables.ALL[name])
    data = bytearray(whole)
    for place, value in changes:
        data[place] = value
    table = outcome(parse_partition_table, bytes(data))
    if isinstance(table, OtaError):
        assert table.code == "partition-table-invalid"
    else:
        assert table == parse_partition_table(whole)
