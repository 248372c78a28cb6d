# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stub loader erases for a write: nothing before the first sector that is not blank."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from esp32_sim import chip, slip
from esp32_sim import loader_common as lc
from esp32_sim.chips import CHIP_MAGIC_ADDRESS, ESP32
from tests.sim.conftest import StartBoard
from tests.sim.stub_bench import BYTE_S, Bench, read_reg, request

Connect = Callable[..., Any]

AT = 0x310000
SPI = ESP32.spi
BLOCK_BYTES = 0x4000


def erases(board: Any) -> list[tuple[int, int]]:
    """(address, size) of the erases that were traced."""
    return [(op["address"], op["size"]) for op in board.control.trace() if op["kind"] == "erase"]


def write(esp: Any, address: int, data: bytes, *, packed: bool = False) -> None:
    """Write as esptool does, and wait until it is in flash."""
    if packed:
        stream = zlib.compress(data, 9)
        esp.flash_defl_begin(len(data), len(stream), address)
        for seq, at in enumerate(range(0, len(stream), BLOCK_BYTES)):
            esp.flash_defl_block(stream[at : at + BLOCK_BYTES], seq)
    else:
        esp.flash_begin(len(data), address)
        for seq, at in enumerate(range(0, len(data), BLOCK_BYTES)):
            esp.flash_block(data[at : at + BLOCK_BYTES], seq)
    esp.read_reg(CHIP_MAGIC_ADDRESS)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        (None, []),
        (0, [(AT, 0x10000), (AT + 0x10000, 0x1000), (AT + 0x11000, 0x1000)]),
        # One bit in the third sector: from there on all, in sectors up to the next block.
        (0x2FFF, [(AT + at, 0x1000) for at in range(0x2000, 0x12000, 0x1000)]),
        (0x10000, [(AT + 0x10000, 0x1000), (AT + 0x11000, 0x1000)]),
        (0x11000, [(AT + 0x11000, 0x1000)]),
        (0x12000, []),
    ],
)
def test_blank_sectors_are_left_out(
    start: StartBoard,
    connect: Connect,
    packed: bool,
    dirty: int | None,
    expected: list[tuple[int, int]],
) -> None:
    """Until the first dirty sector nothing is erased, from it on everything."""
    board = start(layout="guide")
    if dirty is not None:
        board.control.write_flash(AT + dirty, b"\xfe")
    esp = connect(board)
    board.control.start_trace()
    data = bytes(range(256)) * (0x12000 // 256)
    write(esp, AT, data, packed=packed)
    assert erases(board) == expected
    assert board.control.read_flash(AT, len(data)) == data


@pytest.mark.slow
def test_each_begin_looks_anew(start: StartBoard, connect: Connect) -> None:
    """A dirty sector of the write before does not count."""
    board = start(layout="guide")
    board.control.write_flash(AT, b"\x00")
    esp = connect(board)
    write(esp, AT, b"\x55" * 0x1000)
    board.control.start_trace()
    write(esp, AT + 0x1000, b"\x55" * 0x1000)
    assert erases(board) == []


ERASE_BY_REGISTERS = (
    (SPI.user, chip.USER_COMMAND),
    (SPI.user2, 7 << 28 | 0x06),
    (SPI.cmd, chip.CMD_USR),
    (SPI.user, chip.USER_COMMAND | chip.USER_ADDR),
    (SPI.user1, 23 << 26),
    (SPI.user2, 7 << 28 | 0xD8),
    (SPI.addr, 0x80000 << 8),
    (SPI.cmd, chip.CMD_USR),
)


def erase_by_registers() -> bytes:
    """Write enable, and the erase of a 64 KiB block, 175 ms; nobody waits for its end."""
    records = (struct.pack("<IIII", *record, 0xFFFFFFFF, 0) for record in ERASE_BY_REGISTERS)
    return request(lc.WRITE_REG, b"".join(records))


def begin(address: int, size: int) -> bytes:
    """FLASH_BEGIN."""
    return request(lc.FLASH_BEGIN, struct.pack("<IIII", size, 1, BLOCK_BYTES, address))


def block(data: bytes) -> bytes:
    """FLASH_DATA."""
    return request(lc.FLASH_DATA, struct.pack("<IIII", len(data), 0, 0, 0), data)


def digest(address: int, size: int) -> bytes:
    """SPI_FLASH_MD5."""
    return request(lc.SPI_FLASH_MD5, struct.pack("<IIII", address, size, 0, 0))


@pytest.mark.slow
async def test_blank_sectors_take_their_reading_time() -> None:
    """0.1 s a MiB, and 45 ms for each that is erased."""
    bench = Bench()
    bench.flash.poke(0x10000, b"\xff" * 0x3000)
    await bench.answers(1)
    bench.receive(begin(0x10000, 0x4000), 0.1)
    bench.receive(block(bytes(0x4000)), 0.2)
    bench.receive(read_reg(), 0.4)
    sent = await bench.answers(4)
    read_s = 0.1 * 0x1000 / (1 << 20)
    # The begin has passed one sector.
    assert sent[1][0] == pytest.approx(0.1 + read_s, abs=0.001)
    received_s = 0.2 + len(block(bytes(0x4000))) * BYTE_S
    written_s = received_s + 0.002 + 3 * read_s + 0.045 + 64 * 0.0005
    assert sent[3][0] == pytest.approx(written_s, abs=0.001)
    bench.task.cancel()


@pytest.mark.slow
async def test_a_busy_flash_looks_blank() -> None:
    """While an erase by registers runs elsewhere, dirty sectors pass for blank ones.

    One is looked at by the begin, the other by the write, which waits for neither.
    """
    bench = Bench()
    bench.flash.tracing = True
    await bench.answers(1)
    bench.receive(erase_by_registers(), 0.1)
    bench.receive(begin(0x10000, 0x2000), 0.12)
    bench.receive(block(b"\x55" * 0x2000), 0.14)
    bench.receive(read_reg(), 0.5)
    await bench.answers(5)
    erased = [(op.address, op.size) for op in bench.flash.trace if op.kind == "erase"]
    assert erased == [(0x80000, 0x10000)]
    # Programmed over zeros, once the flash was free.
    assert bench.flash.read(0x10000, 0x2000) == bytes(0x2000)
    bench.task.cancel()


@pytest.mark.slow
async def test_what_was_seen_dirty_waits_for_a_busy_flash() -> None:
    """Only the look at a sector is fooled: an erase starts when the flash is free."""
    bench = Bench()
    bench.flash.tracing = True
    await bench.answers(1)
    bench.receive(begin(0x11000, 0x2000), 0.1)
    # The begin's own erase is over at 0.145.
    bench.receive(erase_by_registers(), 0.2)
    bench.receive(block(b"\x55" * 0x2000), 0.22)
    bench.receive(read_reg(), 0.6)
    await bench.answers(5)
    erased = [(op.address, op.size) for op in bench.flash.trace if op.kind == "erase"]
    assert erased == [(0x11000, 0x1000), (0x80000, 0x10000), (0x12000, 0x1000)]
    assert bench.flash.read(0x11000, 0x2000) == b"\x55" * 0x2000
    bench.task.cancel()


@pytest.mark.slow
async def test_digests_and_reads_of_a_busy_flash() -> None:
    """They give all ones; once the erase is over, what stands there."""
    bench = Bench()
    await bench.answers(1)
    bench.receive(erase_by_registers(), 0.1)
    bench.receive(digest(0x10000, 0x100), 0.12)
    bench.receive(request(lc.READ_FLASH, struct.pack("<IIII", 0x10000, 0x100, 0x100, 1)), 0.14)
    bench.receive(slip.encode(struct.pack("<I", 0x100)), 0.16)
    # From 0.1 on the erase takes 0.175: this one begins in it and ends behind it.
    bench.receive(digest(0x10000, 0x80000 - 0x10000), 0.27)
    bench.receive(digest(0x10000, 0x100), 0.5)
    sent = await bench.answers(8)
    ones = b"\xff" * 0x100
    assert sent[2][1][8:-2] == hashlib.md5(ones).digest()
    assert sent[4][1] == ones
    assert sent[6][1][8:-2] not in (
        hashlib.md5(bytes(0x70000)).digest(),
        hashlib.md5(b"\xff" * 0x70000).digest(),
    )
    assert sent[7][1][8:-2] == hashlib.md5(bytes(0x100)).digest()
    bench.task.cancel()


async def test_the_stub_waits_for_its_own_erase() -> None:
    """A digest while a begin's erase runs is that of what stands there, and comes after it."""
    bench = Bench()
    await bench.answers(1)
    bench.receive(begin(0x10000, 0x10000), 0.1)
    bench.receive(digest(0x20000, 0x100), 0.12)
    sent = await bench.answers(3)
    assert sent[2][1][8:-2] == hashlib.md5(bytes(0x100)).digest()
    assert sent[2][0] == pytest.approx(0.1 + 0.175 + 0.002, abs=0.002)
    bench.task.cancel()
