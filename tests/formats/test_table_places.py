# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding the partition table where it is not at 0x8000."""

from __future__ import annotations

import pytest

from ota_service.errors import OtaError
from ota_service.formats.table_places import find_table, require_only
from tests.formats.test_partitions import entry, with_md5


def flash_with(*places: int, blank: bool = True) -> bytearray:
    """A flash with a table at each of `places`, each with a factory app behind it."""
    data = bytearray((b"\xff" if blank else b"\xaa\x50\xe9\x03") * (0x200000 >> 2 * (not blank)))
    for at in places:
        table = with_md5(
            entry(1, 2, at + 0x1000, 0x3000, b"nvs") + entry(0, 0, 0x30000, 0x100000, b"factory")
        )
        data[at : at + 0xC00] = table
    return data


class Reads:
    """Reads a flash and counts what it sends."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.sent = data, 0

    def __call__(self, at: int, size: int) -> bytes:
        self.sent += size
        return bytes(self.data[at : at + size])


@pytest.mark.parametrize("at", range(0x8000, 0x21000, 0x1000))
def test_a_table_is_found_wherever_builds_put_it(at: int) -> None:
    """From 0x8000 to 0x20000; each place costs one entry, the table itself its 0xC00 bytes."""
    read = Reads(flash_with(at))
    table = find_table(read, flash_bytes=0x200000)
    assert table.offset == at
    assert table.partitions[0].offset == at + 0x1000
    assert read.sent <= 2 * 0xC00 + 24 * 32
    require_only(read, table)


def test_a_flash_without_a_table() -> None:
    """Neither blank flash nor one full of the table's magic has one; nor has 0x21000."""
    for data in (flash_with(), flash_with(blank=False), flash_with(0x21000), flash_with(0x7000)):
        with pytest.raises(OtaError) as caught:
            find_table(Reads(data))
        assert caught.value.code == "partition-table-invalid"


def test_a_damaged_table_is_not_replaced_by_an_older_one() -> None:
    """What stands at 0x8000 and begins like a table has to be whole."""
    data = flash_with(0x8000, 0x10000)
    data[0x8021] ^= 1
    with pytest.raises(OtaError, match="begins with AA 51") as caught:
        find_table(Reads(data))
    assert caught.value.code == "partition-table-invalid"


def test_a_table_elsewhere_has_to_fit_the_flash() -> None:
    """As at 0x8000."""
    with pytest.raises(OtaError) as caught:
        find_table(Reads(flash_with(0x9000)), flash_bytes=0x100000)
    assert caught.value.code == "flash-size"


def test_two_tables_cannot_both_be_meant() -> None:
    """One is a leftover, and it cannot be told which; a copy inside an app is data of that app."""
    for places in ((0x8000, 0x10000), (0x9000, 0x20000), (0x8000, 0x9000)):
        read = Reads(flash_with(*places))
        with pytest.raises(OtaError, match=f"{places[0]:#x} and another one at {places[1]:#x}"):
            require_only(read, find_table(read))
    data = flash_with(0x8000, 0x14000)
    table = with_md5(entry(0, 0, 0x10000, 0x100000, b"factory"))
    data[0x8000:0x8C00] = table
    data[0x10000] = 0xE9
    require_only(Reads(data), find_table(Reads(data)))
    data[0x10000] = 0xFF
    with pytest.raises(OtaError):
        require_only(Reads(data), find_table(Reads(data)))


def test_blank_places_need_not_be_read() -> None:
    """One look at a gap tells that no table is in it; a gap that is not blank is searched."""
    asked: list[tuple[int, int]] = []
    data = flash_with(0x9000)
    data[0x11000] = 0

    def blank(at: int, size: int) -> bool:
        asked.append((at, size))
        return not data[at : at + size].strip(b"\xff")

    read = Reads(data)
    table = find_table(read)
    read.sent = 0
    require_only(read, table, blank)
    assert asked == [(0xD000, 0x21000 - 0xD000)]
    assert read.sent == (3 + 20) * 32
    data[0x11000] = 0xFF
    read.sent = 0
    require_only(read, table, blank)
    assert read.sent == 3 * 32
    data[0x1F000:0x1FC00] = flash_with(0x1F000)[0x1F000:0x1FC00]
    with pytest.raises(OtaError, match="0x1f000"):
        require_only(read, table, blank)
