# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables from CSV: the shipped ones, ESP-IDF's forms, and what is refused."""

from __future__ import annotations

import hashlib
import struct
from importlib.resources import files
from pathlib import Path

import pytest
from esp_idf_defs.partitions import PartitionTable as Judge
from hypothesis import given
from hypothesis import strategies as st

from esp32_sim.layouts import LAYOUTS
from esp32_sim.layouts import encode_table as simulators_encoding
from ota_service.building.tables import load_table, shipped_tables
from ota_service.errors import OtaError
from ota_service.formats.build_table import encode_table, table_from_csv
from ota_service.formats.partitions import Partition, parse_partition_table

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
        "own,      0x40, 0x01,    0x400000, 4K,, # a seventh field is nobody's\n"
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
        ("nvs, data, nvs, 0x9000", "Line 1: it has no size"),
        ("nvs", "Line 1: it has no type"),
        ("nvs, date, nvs, , 0x4000", "Line 1: there is no type 'date'"),
        ("nvs, data, nvz, , 0x4000", "no subtype 'nvz'"),
        ("a, app, , , 1M", "an app has a subtype"),
        ("nvs, data, nvs, here, 0x4000", "offset 'here' is no number"),
        ("nvs, data, nvs, N/A, 0x4000", "offset 'N/A' is no number"),
        ("nvs, data, nvs, 010, 0x4000", "offset '010' is no number"),
        ("nvs, data, nvs, , 4X", "size '4X' is no number"),
        ("nvs, data, nvs, , K", "size 'K' is no number"),
        ("nvs, data, nvs, , 0x4000, secret", "no flag 'secret'"),
        ("nvs, data, nvs, , 0x4000, # a comment", "no flag '# a comment'"),
        ("nvs, data, nvs, , 0x2000", "at least 0x3000"),
        ("o, data, ota, , 0x1000", "0x1000 bytes, not 0x2000"),
        ("o, data, ota, , 8K\np, data, ota, , 8K", "2 partitions data/ota"),
        ("o, data, ota, , 8K, readonly", "cannot be read-only"),
        ("c, data, coredump, , 64K, readonly", "cannot be read-only"),
        ("r, bootloader, recovery, N/A, N/A", "recovery bootloader has its place"),
        ("t, data, tee_ota, , 4K", "data/tee_ota has 0x2000 bytes"),
        ("t, data, tee_ota, , 8K\nu, data, 0x90, , 8K", "Line 2: .* data/tee_ota already"),
        ("\0, data, nvs, , 0x4000", "a byte 0"),
        ("a\0b, data, nvs, , 0x4000", "a byte 0"),
        ("$NAME, data, nvs, , 0x4000", "the variable \\$NAME"),
        ("a, app, factory, 0x12000, 1M", "no multiple of 0x10000"),
        ("a, 0x40, 1, 0x100400, 4K", "no multiple of 0x1000"),
        ("a, app, factory, 0x10000, 1M\nb, app, ota_0, 0x100000, 1M", "overlap"),
        ("a, app, ota_0, 0x110000, 1M\nb, app, factory, 0x10000, 1M", "the order of the flash"),
        ("a, app, factory, , 1M\na, app, ota_0, , 1M", "a partition 'a' already"),
        ("nvs, data, nvs, 0x8000, 0x4000", "overlaps the partition table"),
        ("nvs, data, nvs, 0x0, 0x6000", "overlaps the partition table or the bootloader"),
        ("a, app, factory, , 1M\nb, data, fat, , -0x9000", "end before it begins"),
        ("a, app, factory, , 0", "no size"),
        ("a, app, factory, 0xFFFF0000, 1M", "behind 4 GiB"),
        ("a, data, fat, , 0x100000000", "behind 4 GiB"),
        ("a, data, fat, , -0x200000000", "behind 4 GiB"),
        ("a, 0x100, 0, , 1M", "0 to 0xFF"),
        ("a, data, -1, , 1M", "0 to 0xFF"),
        *[("".join(f"p{n}, data, fat, , 4K\n" for n in range(95)), "95 partitions")],
    ],
)
def test_what_makes_no_table_is_refused_and_says_where(text: str, words: str) -> None:
    """With the line, and with a remedy for the file, not for a board."""
    with pytest.raises(OtaError, match=words) as caught:
        table_from_csv(text)
    assert caught.value.code == "partition-table-invalid"


# Label, type, subtype, offset, size and flags as they stand in the table's entry, worked out by
# hand from ESP-IDF's documentation of the CSV form.
ROWS = {
    "storage,data,,,0x3F000": ("storage", 1, 6, 0x9000, 0x3F000, 0),
    "storage,data,0xff,,0x1000,encrypted": ("storage", 1, 0xFF, 0x9000, 0x1000, 1),
    "esp_secure_cert,0x3F,,,0x2000": ("esp_secure_cert", 0x3F, 6, 0x9000, 0x2000, 0),
    "own,0xFF,0xFF,,1m": ("own", 0xFF, 0xFF, 0x9000, 0x100000, 0),
    "tee_0,app,tee_0,,192k": ("tee_0", 0, 0x30, 0x10000, 0x30000, 0),
    "tee_1,APP,Tee_1,64K,192K": ("tee_1", 0, 0x31, 0x10000, 0x30000, 0),
    "t,data,tee_ota,,8K,": ("t", 1, 0x90, 0x9000, 0x2000, 0),
    "boot,bootloader,primary,N/A,N/A,": ("boot", 2, 0, 0x1000, 0x7000, 0),
    "boot,bootloader,primary": ("boot", 2, 0, 0x1000, 0x7000, 0),
    "boot,bootloader,ota,,N/A": ("boot", 2, 1, 0x9000, 0x7000, 0),
    "table,partition_table,primary,N/A,N/A,": ("table", 3, 0, 0x8000, 0x1000, 0),
    "old,app,factory,,0x124f80": ("old", 0, 0, 0x10000, 0x124F80, 0),
    "custom,data,nvs,,0x1000": ("custom", 1, 2, 0x9000, 0x1000, 0),
    "nvs,data,nvs,,0x1000,readonly": ("nvs", 1, 2, 0x9000, 0x1000, 2),
    "nothing,data,fat,,0": ("nothing", 1, 0x81, 0x9000, 0, 0),
    "a-name-of-17-byte,data,fat,,4K": ("a-name-of-17-byt", 1, 0x81, 0x9000, 0x1000, 0),
    ",data,fat,,4K": ("", 1, 0x81, 0x9000, 0x1000, 0),
    "a,data,fat,0b1010_0000_0000_0000,4 K,:encrypted:": ("a", 1, 0x81, 0xA000, 0x1000, 1),
}


@pytest.mark.parametrize("text", ROWS)
def test_every_form_of_a_line(text: str) -> None:
    """As ESP-IDF's table tool builds it, from the entry's first byte to its last."""
    label, *numbers = ROWS[text]
    entry = struct.pack("<2sBBII16sI", b"\xaa\x50", *numbers[:4], label.encode(), numbers[4])
    built = table_from_csv(text)
    assert built[:32] == entry
    assert built == (entry + b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(entry).digest()).ljust(
        0xC00, b"\xff"
    )
    parse_partition_table(built)


_KIND = st.sampled_from(
    [
        "app,factory",
        "app,ota_0",
        "data,ota",
        "data,nvs",
        "data,coredump",
        "data,",
        "0x40,",
        "0x40,7",
    ]
)
_PLACE = st.sampled_from(["", "0", "0x8000", "0x9000", "0x10000", "0x100400", "1M", "-1M", "4G"])
_SIZE = st.sampled_from(["", "0", "4K", "0x2000", "0x6000", "64k", "1M", "-2M", "0x100000000"])


@given(
    st.lists(st.tuples(_KIND, _PLACE, _SIZE, st.sampled_from(["", "readonly"])), max_size=5),
    st.sampled_from([0x8000, 0x9000, 0x10000]),
)
def test_no_table_is_built_that_could_cost_a_board(
    rows: list[tuple[str, str, str, str]], table_offset: int
) -> None:
    """Whatever stands in the lines, a table leaves bootloader, table and neighbours alone."""
    text = "".join(
        f"p{index},{kind},{place},{size},{flags}\n"
        for index, (kind, place, size, flags) in enumerate(rows)
    )
    try:
        data = table_from_csv(text, table_offset=table_offset)
    except OtaError as error:
        assert error.code == "partition-table-invalid"
        return
    entries = [struct.unpack_from("<BBII16xI", data, at + 2) for at in range(0, 32 * len(rows), 32)]
    free = table_offset + 0x1000
    for kind, subtype, offset, size, flags in entries:
        assert free <= offset <= offset + size <= 1 << 32
        assert offset % (0x1000, 0x10000)[kind == 0] == 0
        assert not (flags & 2 and (kind, subtype) in ((1, 0), (1, 3)))
        free = offset + size
    assert [size for kind, subtype, _, size, _ in entries if (kind, subtype) == (1, 0)] in (
        [],
        [0x2000],
    )


@given(st.text(alphabet='nvs,data0x9K\n#" -ü', max_size=60))
def test_any_text_is_a_table_or_refused(text: str) -> None:
    """Nothing that a file may hold ends in another exception."""
    try:
        table_from_csv(text)
    except OtaError as error:
        assert error.message


def test_tables_are_loaded_in_both_forms(tmp_path: Path) -> None:
    """A build has both; what is neither is named."""
    binary, text, other = (tmp_path / name for name in ("t.bin", "t.csv", "x"))
    binary.write_bytes(load_table("ota-guide").rstrip(b"\xff") + b"\xff" * 32)
    assert load_table(str(binary)) == load_table("ota-guide")
    shipped = files("ota_service") / "partitions" / "micro-rdk.csv"
    text.write_text("\ufeff" + shipped.read_text("utf-8"))
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
