# SPDX-License-Identifier: GPL-3.0-or-later
"""SPI commands over a line that changes bits of register writes: none starts by mistake.

The controller and the flash behind it are the simulated board's; there is no line in between
but the one that the test breaks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from esp32_sim.chip import Registers
from esp32_sim.config import BoardConfig
from esp32_sim.flash import NorFlash
from ota_service.link.spi import PAGE_PROGRAM, SECTOR_ERASE, NotTakenError, SpiBus

from esptool.targets.esp32 import ESP32ROM  # isort: skip
from esptool.util import FatalError  # isort: skip

Change = Callable[[int, int, int], int]
"""(number of the register write, register, value) -> the value that arrives."""


class Chip(ESP32ROM):  # type: ignore[misc]  # esptool is not typed
    """The simulated registers, behind esptool's own register calls."""

    def __init__(self, flash: NorFlash) -> None:
        self.registers = Registers(BoardConfig(), flash)
        self.registers.spi_attached = True
        self.change: Change = lambda number, register, value: value
        self.writes = 0
        self.busy_answers = 0
        self._port = SimpleNamespace(baudrate=115200, name="none")  # too slow to send ahead

    def read_reg(self, address: int, timeout: float = 3) -> int:
        if address == self.SPI_REG_BASE + self.SPI_W0_OFFS and self.busy_answers:
            self.busy_answers -= 1
            return 1
        return self.registers.read(address)

    def check_command(self, _: str, command: int, packet: bytes = b"", *more: Any) -> None:
        assert command == self.ESP_CMDS["WRITE_REG"]
        for register, value, mask, _ in struct.iter_unpack("<IIII", packet):
            arrived = self.change(self.writes, register, value)
            self.writes += 1
            self.registers.write(register, arrived & mask)


@pytest.fixture
def chip() -> Chip:
    """A chip whose flash holds zeros in its second sector and is blank elsewhere."""
    cells = bytearray(b"\xff" * (1 << 20))
    cells[0x1000:0x2000] = bytes(0x1000)
    return Chip(NorFlash(cells))


def cells(chip: Chip) -> bytes:
    """All of its flash."""
    return bytes(chip.registers._flash.read(0, 1 << 20))


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize(("opcode", "data"), [(PAGE_PROGRAM, b"abcd" * 8), (SECTOR_ERASE, b"")])
def test_a_bit_that_was_changed_in_any_register_does_nothing_elsewhere(
    chip: Chip, opcode: int, data: bytes, proven: bool
) -> None:
    """Each bit of each register write of one command, changed: it is done right or not at all."""
    at = 0x2000 if data else 0x1000
    before = cells(chip)
    SpiBus(chip).change(opcode, at, data, proven)
    right, count = cells(chip), chip.writes
    assert right != before
    refused = 0
    for number in range(count):
        for bit in range(0, 32, 3):
            fresh = Chip(NorFlash(bytearray(before)))
            bus = SpiBus(fresh)
            looked_at_all = not proven
            start = fresh.writes
            register = 0

            def change(
                n: int, at: int, value: int, wanted: int = start + number, mask: int = 1 << bit
            ) -> int:
                nonlocal register
                if n == wanted:
                    register = at
                return value ^ mask if n == wanted else value

            fresh.change = change
            try:
                bus.change(opcode, at, data, proven)
            except FatalError as error:
                refused += isinstance(error, NotTakenError)
            if looked_at_all or register in (bus._addr, bus._usr2):
                assert cells(fresh) in (before, right), (number, bit, hex(register))
    assert refused


def test_a_busy_flash_is_waited_for(chip: Chip) -> None:
    """An erase is done when the flash says so, not when its command was sent."""
    bus = SpiBus(chip)
    chip.busy_answers = 3
    bus.change(SECTOR_ERASE, 0x1000, b"", True)
    assert chip.busy_answers == 0
