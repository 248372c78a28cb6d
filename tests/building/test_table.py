# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables from CSV: the shipped ones, ESP-IDF's forms, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from esp_idf_defs.partitions import PartitionTable as Judge
from hypothesis import given
from hypothesis import strategies as st

from ota_service.building.tables import load_table, shipped_tables
from ota_service.errors import OtaError
from ota_service.formats.build_table import encode_table, table_from_csv, table_to_csv
from ota_service.formats.partitions import Partition, parse_partition_table
from ota_service.sim.layouts import LAYOUTS
from ota_service.sim.layouts import encode_table as simulators_encoding

SHIPPED = {"ota-guide": "guide", "micro-rdk": "micro-rdk", "micro-rdk-8mb": "micro-rdk-8mb"}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_tables_are_those_of_the_field(name: str) -> None:
    """Byte for byte what the simulator, which shares no code with it, has for them."""
    assert load_table(name) == simulators_encoding(LAYOUTS[SHIPPED[name]].partitions)


def test_all_shipped_tables_are_known() -> None:
    """No file is shipped that no test looks at."""
    assert shipped_tables() == sorted(SHIPPED)


def test_another_reader_agrees() -> None:
    """esp-idf-defs checks the MD5 and reads the same places."""
    judged = Judge.from_binary(load_table("ota-guide"))
    assert [(entry.name, entry.offset, entry.size) for entry in judged] == [
        (part.label, part.offset, part.size_bytes)
        for part in parse_partition_table(load_table("ota-guide")).partitions
    ]


def test_offsets_that_are_left_out_follow_and_are_aligned() -> None:
    """As ESP-IDF's own tool places them: apps at 64 KiB, data at 4 KiB."""
    data = table_from_csv(
        "# Name, Type, SubType, Offset, Size, Flags\n"
        "nvs,      data, nvs,     ,        0x6000,\n"
        "phy_init, data, phy,     ,        0x1000,\n"
        "factory,  app,  factory, ,        1M,\n"
        "storage,  data, spiffs,  ,        -0x400000, encrypted:readonly\n"
        "own,      0x40, 0x01,    0x400000, 4K, # a comment\n"
    )
    parts = parse_partition_table(data).partitions
    assert [(p.label, p.offset, p.size_bytes) for p in parts] == [
        ("nvs", 0x9000, 0x6000),
        ("phy_init", 0xF000, 0x1000),
        ("factory", 0x10000, 0x100000),
        ("storage", 0x110000, 0x2F0000),  # up to the address given
        ("own", 0x400000, 0x1000),
    ]
    assert parts[3].encrypted
    assert parts[3].read_only
    assert parts[4].kind == "0x40/0x01"


def test_the_chips_own_partitions_get_their_places() -> None:
    """bootloader/primary and partition_table/primary may leave both out."""
    data = table_from_csv(
        "boot, bootloader, primary, , ,\ntable, partition_table, primary, , ,\n"
        "nvs, data, nvs, , 0x4000,\napp, app, factory, , 1M",
        table_offset=0x10000,
        bootloader_offset=0x2000,
    )
    parts = parse_partition_table(data, table_offset=0x10000).partitions
    assert [(p.offset, p.size_bytes) for p in parts[:3]] == [
        (0x2000, 0xE000),
        (0x10000, 0x1000),
        (0x11000, 0x4000),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no partition"),
        ("# nothing\n\n", "no partition"),
        ("nvs, data, nvs, 0x9000", "Line 1 has 4 fields"),
        ("nvs, date, nvs, , 0x4000", "Line 1: there is no type 'date'"),
        ("nvs, data, nvz, , 0x4000", "no subtype 'nvz'"),
        ("nvs, data, nvs, here, 0x4000", "offset 'here' is no number"),
        ("nvs, data, nvs, , 4X", "size '4X' is no number"),
        ("nvs, data, nvs, , 0x4000, secret", "no flag 'secret'"),
        ("nvs, data, nvs, , 0x2000", "at least 0x3000"),
        ("o, data, ota, , 0x1000", "exactly 0x2000"),
        ("a-name-of-17-byte, data, nvs, , 0x4000", "1 to 16 bytes"),
        ("a, app, factory, , 0x12345", "multiple of 0x1000"),
        ("a, app, factory, 0x12000, 1M", "no multiple of 0x10000"),
        ("a, app, factory, 0x10000, 1M\nb, app, ota_0, 0x100000, 1M", "overlap"),
        ("a, app, factory, , 1M\na, app, ota_0, , 1M", "a partition 'a' already"),
        ("nvs, data, nvs, 0x8000, 0x4000", "overlaps the partition table"),
        ("a, app, factory, , 0", "no size"),
        ("a, app, factory, 0xFFFF0000, 1M", "behind 4 GiB"),
        ("a, app, factory, , 1M, , more", "more than six"),
        ("a, 0xFF, 0, , 1M", "0 to 0xFE"),
        *[("".join(f"p{n}, data, fat, , 4K\n" for n in range(95)), "95 partitions")],
    ],
)
def test_what_makes_no_table_is_refused_and_says_where(text: str, words: str) -> None:
    """With the line, and with a remedy for the file, not for a board."""
    with pytest.raises(OtaError, match=words) as caught:
        table_from_csv(text)
    assert caught.value.code == "partition-table-invalid"


@given(st.text(alphabet='nvs,data0x9K\n#" -ü', max_size=60))
def test_any_text_is_a_table_or_refused(text: str) -> None:
    """Nothing that a file may hold ends in another exception."""
    try:
        table_from_csv(text)
    except OtaError as error:
        assert error.message


def test_a_table_survives_its_csv_form() -> None:
    """What `inspect` shows can be built again."""
    for name in SHIPPED:
        table = parse_partition_table(load_table(name))
        assert table_from_csv(table_to_csv(table)) == load_table(name)


def test_tables_are_loaded_in_both_forms(tmp_path: Path) -> None:
    """A build has both; what is neither is named."""
    binary, text, other = (tmp_path / name for name in ("t.bin", "t.csv", "x"))
    binary.write_bytes(load_table("ota-guide").rstrip(b"\xff") + b"\xff" * 32)
    assert load_table(str(binary)) == load_table("ota-guide")
    text.write_text("\ufeff" + table_to_csv(parse_partition_table(load_table("micro-rdk"))))
    assert load_table(str(text)) == load_table("micro-rdk")
    other.write_bytes(b"\xe9\xff\x00\x80")
    with pytest.raises(OtaError, match="neither"):
        load_table(str(other))
    broken = bytearray(load_table("ota-guide"))
    broken[40] ^= 1
    binary.write_bytes(broken)
    with pytest.raises(OtaError, match="MD5") as caught:
        load_table(str(binary))
    assert caught.value.remedy == "Build the table again."


def test_a_table_has_a_longest_form() -> None:
    """94 entries, the MD5 and the end."""
    parts = [Partition(f"p{n}", 1, 0x81, 0x9000 + n * 0x1000, 0x1000) for n in range(94)]
    assert len(parse_partition_table(encode_table(parts)).partitions) == 94
