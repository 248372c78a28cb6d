# SPDX-License-Identifier: GPL-3.0-or-later
"""SPI commands over a line that changes bits of register writes: none starts by mistake.

The controller and the flash behind it are the simulated board's; there is no line in between
but the one that the test breaks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esp32_sim.chip import Registers
from esp32_sim.config import BoardConfig
from esp32_sim.flash import NorFlash
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.link.link import EspLink
from ota_service.link.spi import PAGE_PROGRAM, SECTOR_ERASE, NotTakenError, SpiBus
from ota_service.link.stream import make_stream
from tests.link.recorded import recorded

from esptool.targets.esp32 import ESP32ROM  # isort: skip
from esptool.targets.esp32s3 import ESP32S3ROM  # isort: skip
from esptool.util import FatalError  # isort: skip

Change = Callable[[int, int, int], int]
"""(number of the register write, register, value) -> the value that arrives."""


class Chip(ESP32ROM):  # type: ignore[misc]  # esptool is not typed
    """The simulated registers, behind esptool's own register calls."""

    def __init__(self, flash: NorFlash, name: str = "esp32") -> None:
        if name == "esp32s3":
            for fact in ("SPI_REG_BASE", "SPI_USR_OFFS", "SPI_USR1_OFFS", "SPI_USR2_OFFS",
                         "SPI_W0_OFFS", "SPI_MOSI_DLEN_OFFS", "SPI_MISO_DLEN_OFFS",
                         "SPI_ADDR_REG_MSB"):  # fmt: skip
                setattr(self, fact, getattr(ESP32S3ROM, fact))
        self.registers = Registers(BoardConfig(chip=name), flash)
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


@pytest.mark.slow
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


WIDE = 0x1310000


@pytest.mark.parametrize("msb", [True, False])
@pytest.mark.parametrize("proven", [False, True])
def test_above_16_mib_addresses_have_4_bytes(msb: bool, proven: bool) -> None:
    """A command with 3 would hit the place modulo 16 MiB."""
    flash = NorFlash(bytearray(b"\xff" * (32 << 20)))
    chip = Chip(flash, "esp32" if msb else "esp32s3")
    bus = SpiBus(chip)
    for at in (WIDE, WIDE & 0xFFFFFF):
        bus.change(PAGE_PROGRAM, at, b"abcd" * 8, proven)
        bus.program_page(at + 0x100, bytes(200))
        assert flash.read(at, 33) == b"abcd" * 8 + b"\xff"
        assert flash.read(at + 0x100, 201) == bytes(200) + b"\xff"
        if at == WIDE:
            assert flash.read(WIDE & 0xFFFFFF, 0x1000) == b"\xff" * 0x1000
    bus.change(SECTOR_ERASE, WIDE, b"", proven)
    assert flash.read(WIDE, 0x1000) == b"\xff" * 0x1000
    assert flash.read(WIDE & 0xFFFFFF, 4) == b"abcd"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reached"), [("esp32s3", True), ("esp32c3", False)])
def test_a_place_that_the_stub_loader_does_not_reach_is_refused(
    tmp_path: Path, name: str, reached: bool
) -> None:
    """Nothing is read or written modulo 16 MiB; the S3's stub loader has the commands for it."""
    board = SimBoard("guide", config={"chip": name}, flash_options={"flash_bytes": 32 << 20})
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        control = sim.boards[0].control
        control.write_flash(WIDE, bytes(0x1000))
        link = EspLink.connect(notes.port, baud=921_600)
        link.read(0x8000, 16)
        control.start_trace()
        for change in (
            lambda: link.erase(WIDE, 0x1000),
            lambda: link.program(WIDE, b"here"),
            lambda: link.write_stream(WIDE, make_stream(b"here" * 25, plain=True), lambda _: None),
            lambda: link.md5(WIDE, 16),
            lambda: link.read(WIDE, 16),
        ):
            if reached:
                change()
                continue
            with pytest.raises(OtaError) as caught:
                change()
            assert caught.value.code == "flash-size"
        ops = control.stop_trace()
        assert bool(ops) is reached
        assert all(op["address"] >= WIDE for op in ops)
        if reached:
            assert control.read_flash(WIDE, 101) == b"here" * 25 + b"\xff"
            assert link.read(WIDE, 4) == b"here"
        link.restart()


def test_the_controller_is_left_as_it_was(chip: Chip) -> None:
    """The ROM's flash functions, which the stub loader calls, rely on what was set up."""
    places = [chip.SPI_REG_BASE + at for at in (chip.SPI_USR_OFFS, chip.SPI_USR1_OFFS)]
    chip.registers.write(places[1], 0x5C000007)
    before = [chip.registers.read(place) for place in places]
    SpiBus(chip).change(PAGE_PROGRAM, 0x100, b"abcd", proven=False)
    assert [chip.registers.read(place) for place in places] == before
