# SPDX-License-Identifier: GPL-3.0-or-later
"""The flash chip: NOR rules, write enable, page wrap, protection, power cuts."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim import chip
from esp32_sim.chip import Registers
from esp32_sim.chips import ESP32
from esp32_sim.config import BoardConfig
from esp32_sim.flash import NorFlash, PowerLossError, create_file

MIB = 1 << 20
SPI = ESP32.spi


@pytest.fixture
def flash() -> NorFlash:
    """An empty chip of 1 MiB."""
    return NorFlash(bytearray(b"\xff" * MIB), seed=1)


@pytest.fixture
def spi(flash: NorFlash) -> Spi:
    """The SPI controller in front of it."""
    return Spi(flash)


class Spi:
    """Runs flash commands through the registers, as a loader's client does."""

    def __init__(self, flash: NorFlash) -> None:
        self.registers = Registers(BoardConfig(), flash)
        self.registers.spi_attached = True

    def run(self, command: int, data: bytes = b"", read: int = 0, address: int = -1) -> bytes:
        """One command; the bytes read."""
        write = self.registers.write
        user = chip.USER_COMMAND
        if data:
            user |= chip.USER_MOSI
            write(SPI.mosi_dlen, len(data) * 8 - 1)
            for i in range(0, len(data), 4):
                word = data[i : i + 4].ljust(4, b"\x00")
                write(SPI.w0 + i, int.from_bytes(word, "little"))
        if read:
            user |= chip.USER_MISO
            write(SPI.miso_dlen, read * 8 - 1)
        if address >= 0:
            user |= chip.USER_ADDR
            write(SPI.user1, 23 << 26)
            write(SPI.addr, address << 8)
        write(SPI.user, user)
        write(SPI.user2, 7 << 28 | command)
        write(SPI.cmd, chip.CMD_USR)
        words = [self.registers.read(SPI.w0 + 4 * i) for i in range(16)]
        return b"".join(word.to_bytes(4, "little") for word in words)[:read]


def test_programming_only_clears_bits(flash: NorFlash) -> None:
    """A second program over the first leaves the AND of both."""
    flash.program(0x100, b"\xf0\x0f\xff", "host")
    flash.program(0x100, b"\x3c\x3c\x00", "host")
    assert flash.read(0x100, 3) == b"\x30\x0c\x00"
    flash.erase(0x100, 4096, "host")
    assert flash.read(0, 4096) == b"\xff" * 4096


def test_erase_covers_exactly_its_sector_or_block(flash: NorFlash) -> None:
    """Neighbours keep their bytes; an address within the sector erases the whole of it."""
    flash.program(0, b"\x00" * 0x30000, "host")
    flash.erase(0x1234, 4096, "host")
    assert flash.read(0xFFF, 1) == flash.read(0x2000, 1) == b"\x00"
    assert flash.read(0x1000, 4096) == b"\xff" * 4096
    flash.erase(0x1FFFF, 65536, "host")
    assert flash.read(0xFFFF, 1) == flash.read(0x20000, 1) == b"\x00"
    assert flash.read(0x10000, 65536) == b"\xff" * 65536


def test_program_is_counted_page_by_page(flash: NorFlash) -> None:
    """300 bytes from 0x1F0 touch three pages: three operations."""
    flash.tracing = True
    assert flash.program(0x1F0, b"\x00" * 300, "host") == 3
    assert [(op.address, op.size) for op in flash.trace] == [
        (0x1F0, 16),
        (0x200, 256),
        (0x300, 28),
    ]


@pytest.mark.parametrize("size", [MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB])
def test_jedec_id_tells_the_size(size: int) -> None:
    """The third byte of RDID is the size's logarithm."""
    spi = Spi(NorFlash(bytearray(size)))
    assert 1 << spi.run(0x9F, read=3)[2] == size


def test_program_needs_write_enable(spi: Spi, flash: NorFlash) -> None:
    """Without WREN the command is ignored; WREN holds for one command only."""
    spi.run(0x02, b"\x00" * 4, address=0x100)
    assert flash.read(0x100, 4) == b"\xff" * 4
    spi.run(0x06)
    assert spi.run(0x05, read=1)[0] & 2
    spi.run(0x02, b"\x00" * 4, address=0x100)
    assert flash.read(0x100, 4) == b"\x00" * 4
    assert not spi.run(0x05, read=1)[0] & 2
    spi.run(0x02, b"\x00" * 4, address=0x200)
    assert flash.read(0x200, 4) == b"\xff" * 4


def test_write_disable(spi: Spi, flash: NorFlash) -> None:
    """WRDI takes WREN back."""
    spi.run(0x06)
    spi.run(0x04)
    spi.run(0x02, b"\x00", address=0)
    assert flash.read(0, 1) == b"\xff"


def test_program_wraps_inside_its_page(spi: Spi, flash: NorFlash) -> None:
    """Bytes that leave the page's end come in at its start."""
    spi.run(0x06)
    spi.run(0x02, bytes(range(16)), address=0x1F8)
    assert flash.read(0x1F8, 8) == bytes(range(8))
    assert flash.read(0x100, 8) == bytes(range(8, 16))
    assert flash.read(0x200, 8) == b"\xff" * 8


def test_erase_commands(spi: Spi, flash: NorFlash) -> None:
    """0x20 erases a sector, 0xD8 a block, both only after WREN; 0x03 reads."""
    flash.program(0, b"\x00" * 0x20000, "host")
    spi.run(0x20, address=0x1000)
    assert spi.run(0x03, read=4, address=0x1000) == b"\x00" * 4
    spi.run(0x06)
    spi.run(0x20, address=0x1000)
    assert spi.run(0x03, read=4, address=0x1000) == b"\xff" * 4
    spi.run(0x06)
    spi.run(0xD8, address=0x10000)
    assert flash.read(0x10000, 0x10000) == b"\xff" * 0x10000


@pytest.mark.parametrize(
    ("level", "bottom", "protected", "free"),
    [
        (7, False, [0, MIB // 2, MIB - 1], []),
        (6, False, [MIB // 2, MIB - 1], [0, MIB // 2 - 1]),
        (6, True, [0, MIB // 2 - 1], [MIB // 2, MIB - 1]),
        (1, False, [MIB - MIB // 64], [MIB - MIB // 64 - 1]),
        (0, False, [], [0, MIB - 1]),
    ],
)
def test_block_protection(
    spi: Spi, flash: NorFlash, level: int, bottom: bool, protected: list[int], free: list[int]
) -> None:
    """Protected places ignore program and erase in silence; others do not."""
    spi.run(0x06)
    spi.run(0x01, bytes((level << 2 | (0x20 if bottom else 0),)))
    assert spi.run(0x05, read=1)[0] >> 2 & 7 == level
    for address in [*protected, *free]:
        spi.run(0x06)
        spi.run(0x02, b"\x00", address=address)
    assert [flash.read(a, 1) for a in protected] == [b"\xff"] * len(protected)
    assert [flash.read(a, 1) for a in free] == [b"\x00"] * len(free)
    for address in protected:
        flash.poke(address, b"\x00")
        spi.run(0x06)
        spi.run(0x20, address=address)
        assert flash.read(address, 1) == b"\x00"


def test_locked_status_register(spi: Spi, flash: NorFlash) -> None:
    """With the WP pin low the protection cannot be taken away."""
    flash.status1 = 0x1C
    flash.status_locked = True
    spi.run(0x06)
    spi.run(0x01, b"\x00")
    assert spi.run(0x05, read=1)[0] & 0x1C == 0x1C


@pytest.mark.parametrize(("mode", "expected"), [("before", b"\xff" * 8), ("whole", b"\x00" * 8)])
def test_cut_at_the_second_operation(flash: NorFlash, mode: str, expected: bytes) -> None:
    """The first operation is whole; the second happens or does not; no third."""
    flash.cut_power_at(2, mode)  # type: ignore[arg-type]
    flash.program(0, b"\x00" * 8, "host")
    with pytest.raises(PowerLossError):
        flash.program(0x100, b"\x00" * 8, "host")
    assert flash.read(0, 8) == b"\x00" * 8
    assert flash.read(0x100, 8) == expected
    flash.program(0x200, b"\x00", "host")
    assert flash.read(0x200, 1) == b"\x00"


def test_torn_program(flash: NorFlash) -> None:
    """A prefix, or a subset of the bits: never a bit cleared that was not asked for."""
    data = b"\x55" * 256
    prefixes = set()
    for page in range(20):
        flash.cut_power_at(1, "torn-prefix")
        with pytest.raises(PowerLossError):
            flash.program_page(page * 256, data, "host")
        got = flash.read(page * 256, 256)
        kept = len(got.rstrip(b"\xff"))
        assert got == data[:kept] + b"\xff" * (256 - kept)
        prefixes.add(kept)
    assert len(prefixes) > 5
    flash.cut_power_at(1, "torn-bits")
    with pytest.raises(PowerLossError):
        flash.program_page(0x8000, data, "host")
    got = flash.read(0x8000, 256)
    assert got not in (data, b"\xff" * 256)
    assert all(byte & 0x55 == 0x55 for byte in got)


@pytest.mark.parametrize("mode", ["torn-prefix", "torn-bits"])
def test_torn_erase(flash: NorFlash, mode: str) -> None:
    """Half erased: some cells are set, none is cleared."""
    flash.program(0, b"\x0f" * 4096, "host")
    flash.cut_power_at(1, mode)  # type: ignore[arg-type]
    with pytest.raises(PowerLossError):
        flash.erase(0, 4096, "host")
    got = flash.read(0, 4096)
    assert got not in (b"\x0f" * 4096, b"\xff" * 4096)
    assert all(byte & 0x0F == 0x0F for byte in got)


def test_ignoring_program_in_silence(flash: NorFlash) -> None:
    """A worn chip acknowledges and does nothing."""
    flash.ignore_program = True
    flash.program(0, b"\x00", "host")
    assert flash.read(0, 1) == b"\xff"


def test_file_keeps_what_was_programmed(tmp_path: Path) -> None:
    """Without closing anything, the file has the bytes: a killed process loses nothing."""
    path = tmp_path / "flash.bin"
    create_file(path, b"\xff" * MIB)
    flash = NorFlash.open_file(path)
    flash.program(0x1234, b"\x12\x34", "host")
    assert path.read_bytes()[0x1234:0x1236] == b"\x12\x34"
    assert path.stat().st_mode & 0o777 == 0o600
    flash.close()


def test_sizes_that_do_not_exist() -> None:
    """Chips have 1 to 32 MiB, a power of two."""
    for size in (4096, 3 * MIB, 64 * MIB):
        with pytest.raises(ValueError, match="does not exist"):
            NorFlash(bytearray(size))
