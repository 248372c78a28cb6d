# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ROM and the stub do beyond esptool's ordinary path: errors, limits, registers."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from esptool.util import FatalError

from esp32_sim import chip
from esp32_sim.chips import CHIP_MAGIC_ADDRESS, ESP32
from esp32_sim.loader_stub import known_stubs
from tests.sim.conftest import StartBoard

pytestmark = pytest.mark.slow

Connect = Callable[..., Any]
SPI = ESP32.spi


def test_the_stub_loader_is_the_one_that_is_modelled() -> None:
    """Another one of the same protocol may receive, erase and start differently: look at its source
    (espressif/esp-flasher-stub) before this is changed with esptool's pin."""
    found = {hashlib.sha256(text).hexdigest()[:16] for text in known_stubs("esp32").values()}
    assert "fc5fb606754d152b" in found  # 1.4.1, ESP32, with esptool 5.6.0


def test_rom_knows_two_mebibytes_until_told(start: StartBoard, connect: Connect) -> None:
    """Addresses from 2 MiB on fail with error 0106 before SPI_SET_PARAMS."""
    esp = connect(start(), stub=False)
    esp.flash_md5sum(0x1FF000, 0x1000)
    with pytest.raises(FatalError, match="0106"):
        esp.flash_md5sum(0x200000, 0x1000)
    esp.flash_set_parameters(8 << 20)
    assert esp.flash_md5sum(0x200000, 0x1000) == hashlib.md5(b"\xff" * 4096).hexdigest()
    with pytest.raises(FatalError, match="0106"):
        esp.flash_begin(0x1000, 8 << 20)


@pytest.mark.slow
def test_rom_needs_the_flash_attached(start: StartBoard) -> None:
    """Before SPI_ATTACH the flash does not answer."""
    from esptool import cmds

    from esp32_sim.launch_esptool import configure_esptool, install_handler

    install_handler()
    configure_esptool()
    with cmds.detect_chip(start().url) as esp:
        assert esp.flash_id(cache=False) == 0
        with pytest.raises(FatalError, match="0106"):
            esp.flash_md5sum(0, 0x1000)
        cmds.attach_flash(esp)
        assert esp.flash_id(cache=False) == 0x1740EF


def test_stub_refuses_beyond_the_size_last_set(start: StartBoard, connect: Connect) -> None:
    """The stub starts with the chip's own size; SPI_SET_PARAMS makes it smaller."""
    esp = connect(start())
    esp.flash_md5sum((8 << 20) - 4096, 4096)
    esp.flash_set_parameters(4 << 20)
    with pytest.raises(FatalError, match="C400"):
        esp.flash_md5sum(4 << 20, 4096)
    with pytest.raises(FatalError, match="C400"):
        esp.erase_region(4 << 20, 4096)
    with pytest.raises(FatalError, match="C000"):
        esp.erase_region(0x310010, 4096)


def test_stub_erases_at_begin(start: StartBoard, connect: Connect) -> None:
    """The old contents go before the first byte of data comes."""
    board = start(layout="guide")
    board.control.write_flash(0x310000, b"\x00" * 0x1000)
    esp = connect(board)
    esp.flash_defl_begin(0x1000, 100, 0x310000)
    assert board.control.read_flash(0x310000, 0x1000) == b"\xff" * 0x1000


def test_stub_tells_a_write_error_at_the_next_command(start: StartBoard, connect: Connect) -> None:
    """A block is acknowledged before it is inflated; garbage shows up one command later."""
    esp = connect(start(layout="guide"))
    esp.flash_defl_begin(0x1000, 100, 0x310000)
    esp.flash_defl_block(b"this is not a zlib stream", 0)
    with pytest.raises(FatalError, match="C700"):
        esp.read_reg(CHIP_MAGIC_ADDRESS)
    assert esp.read_reg(CHIP_MAGIC_ADDRESS) == ESP32.magic


def test_stub_checks_the_checksum(start: StartBoard, connect: Connect) -> None:
    """A block with a wrong checksum is refused and not written."""
    board = start(layout="guide")
    esp = connect(board)
    esp.flash_begin(0x1000, 0x310000)
    data = bytes(1024)
    with pytest.raises(FatalError, match="C100"):
        esp.check_command(
            "write", esp.ESP_CMDS["FLASH_DATA"],
            struct.pack("<IIII", len(data), 0, 0, 0) + data, 0x12, timeout=3,
        )  # fmt: skip
    assert board.control.read_flash(0x310000, 1024) == b"\xff" * 1024


def test_stub_streams_of_any_length(start: StartBoard, connect: Connect) -> None:
    """Inflating ends right at, before and behind the window's 32 KiB, with random cuts."""
    board = start(layout="guide")
    esp = connect(board)
    rng = random.Random(4)
    for size in (4, 32764, 32768, 32772, 65536, 70000):
        data = rng.randbytes(size // 8) * 8
        data = data.ljust(size, b"\x55")[:size]
        packed = zlib.compress(data, 9)
        esp.flash_defl_begin(size, len(packed), 0x310000)
        seq = 0
        while packed:
            step = rng.randrange(1, 3000)
            esp.flash_defl_block(packed[:step], seq)
            packed = packed[step:]
            seq += 1
        esp.flash_defl_finish(False)
        assert board.control.read_flash(0x310000, size) == data


def test_stub_survives_a_reconnect_without_reset(start: StartBoard, connect: Connect) -> None:
    """SYNC of a running stub answers value 0, which is how esptool knows it."""
    esp = connect(start())
    esp.sync()
    assert esp.sync_stub_detected


def test_one_write_reg_packet_programs_a_page(start: StartBoard, connect: Connect) -> None:
    """WRITE_REG takes many records: write enable and a 64-byte program in one packet."""
    board = start(layout="guide")
    esp = connect(board)
    payload = bytes(range(64))
    records = [
        (SPI.user, chip.USER_COMMAND),
        (SPI.user2, 7 << 28 | 0x06),
        (SPI.cmd, chip.CMD_USR),
        (SPI.user, chip.USER_COMMAND | chip.USER_ADDR | chip.USER_MOSI),
        (SPI.user1, 23 << 26),
        (SPI.user2, 7 << 28 | 0x02),
        (SPI.addr, 0x310040 << 8),
        (SPI.mosi_dlen, 64 * 8 - 1),
        *((SPI.w0 + 4 * i, word) for i, word in enumerate(struct.unpack("<16I", payload))),
        (SPI.cmd, chip.CMD_USR),
    ]
    packet = b"".join(struct.pack("<IIII", *record, 0xFFFFFFFF, 0) for record in records)
    esp.check_command("write registers", esp.ESP_CMDS["WRITE_REG"], packet)
    assert board.control.read_flash(0x310040, 64) == payload


def test_unknown_registers_read_zero(start: StartBoard, connect: Connect) -> None:
    """Registers outside the model read 0 and ignore writes."""
    esp = connect(start())
    esp.write_reg(0x3FF44004, 0x1234)
    assert esp.read_reg(0x3FF44004) == 0


@pytest.mark.slow
def test_high_baud(start: StartBoard, connect: Connect) -> None:
    """Both sides change their baud; data still arrives; a one-sided change does not."""
    esp = connect(start())
    esp.change_baud(921600)
    assert esp.read_reg(CHIP_MAGIC_ADDRESS) == ESP32.magic
    esp._port.baudrate = 115200
    with pytest.raises(FatalError):
        esp.command(esp.ESP_CMDS["READ_REG"], struct.pack("<I", 0x40001000), timeout=0.2)


def test_code_that_is_not_the_stub_does_not_run(start: StartBoard, connect: Connect) -> None:
    """MEM_END into anything else leaves a silent chip: the upload is compared bit by bit."""
    board = start()
    esp = connect(board, stub=False)
    esp.mem_begin(16, 1, 0x1800, 0x40090000)
    esp.mem_block(bytes(16), 0)
    esp.mem_finish(0x40090000)
    assert board.control.wait_for("crashed")["entry"] == 0x40090000


def test_speed_at_which_the_stub_starts(start: StartBoard, connect: Connect) -> None:
    """115200, whatever the ROM was set to: only at that one its greeting can be read."""
    from esptool import cmds

    board = start()
    esp = connect(board, stub=False)
    esp.change_baud(460800)
    with pytest.raises(FatalError, match="Failed to start stub"):
        cmds.run_stub(esp)
    esp._port.baudrate = 115200
    esp.flush_input()
    esp.sync()
    assert esp.sync_stub_detected
    board.control.wait_for("stub")
    assert board.control.state()["baud"] == 115200
