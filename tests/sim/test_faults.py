# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults on demand, and what the control channel sees of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serial
from esptool.util import FatalError

from esp32_sim.control import ControlError
from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from tests.sim.conftest import OpenPort, StartBoard

pytestmark = pytest.mark.slow

Connect = Callable[..., Any]


def test_power_cut_in_the_middle_of_a_write(start: StartBoard, connect: Connect) -> None:
    """At the chosen operation everything stops: the flash has what was written before, no more."""
    board = start(layout="guide")
    board.control.write_flash(0x310000, b"\x5a" * 4096)
    esp = connect(board)
    data = bytes(4096)
    board.control.start_trace()
    board.control.cut_power_at(4)
    esp.flash_begin(4096, 0x310000)
    esp.flash_block(data, 0)
    board.control.wait_for("power-cut")
    assert board.control.state()["state"] == "off"
    # The erase is the first operation, so three pages of 256 bytes follow.
    assert board.control.read_flash(0x310000, 1024) == bytes(768) + b"\xff" * 256
    ops = board.control.stop_trace()
    assert [(op["kind"], op["address"], op["who"]) for op in ops] == [
        ("erase", 0x310000, "loader"),
        ("program", 0x310000, "loader"),
        ("program", 0x310100, "loader"),
        ("program", 0x310200, "loader"),
    ]
    assert bytes.fromhex(ops[1]["data"]) == bytes(256)
    with pytest.raises(FatalError):
        esp.command(esp.ESP_CMDS["READ_REG"], b"\x00\x10\x00\x40", timeout=0.2)
    since = board.control.state()["events"]
    board.control.power_on()
    board.control.wait_for("app", since=since)


def test_power_cut_of_the_bootloader(start: StartBoard) -> None:
    """The bootloader's own otadata write can be cut as well; the next boot goes on."""
    board = start(layout="micro-rdk", config={"boots_at_start": False})
    board.control.cut_power_at(2, "torn")
    board.control.power_on()
    board.control.wait_for("power-cut")
    board.control.power_on()
    assert board.control.wait_for("app")["slot"] == "ota_0"
    assert board.control.state()["flash_ops_by"] == {"bootloader": 2}


def test_killed_process_keeps_the_flash(tmp_path: Path, connect: Connect) -> None:
    """SIGKILL in the middle: started again, the board has what was written until then."""
    sim = SimProcess(tmp_path, [SimBoard(layout="guide")])
    sim.start()
    try:
        esp = connect(sim.boards[0])
        esp.flash_begin(4096, 0x310000)
        esp.flash_block(b"\x5a" * 4096, 0)
        esp.read_reg(0x40001000)
        sim.kill()
        with pytest.raises(serial.SerialException):
            esp.read_reg(0x40001000)
        sim.start()
        assert sim.boards[0].control.read_flash(0x310000, 4096) == b"\x5a" * 4096
    finally:
        sim.stop()


@pytest.mark.parametrize("fault", ["no_answer", "garbage", "stuck_in_download"])
def test_board_that_does_not_answer_well(start: StartBoard, connect: Connect, fault: str) -> None:
    """No answer and noise make a connect fail; a stuck board connects, and never boots."""
    from esptool import cmds

    from esp32_sim.launch_esptool import configure_esptool, install_handler

    install_handler()
    configure_esptool()
    board = start()
    board.control.wait_for("app")
    board.control.set_faults(**{fault: True})
    if fault != "stuck_in_download":
        with pytest.raises(FatalError):
            cmds.detect_chip(board.url, connect_attempts=1)
        return
    since = board.control.state()["events"]
    board.control.reset()
    board.control.wait_for("download", since=since)
    esp = connect(board)
    since = board.control.state()["events"]
    esp.hard_reset()
    board.control.wait_for("download", since=since)
    board.control.set_faults(stuck_in_download=False)
    board.control.reset()
    board.control.wait_for("app", since=since)


def test_another_mac(start: StartBoard, connect: Connect) -> None:
    """The same port can turn out to be another board."""
    board = start()
    board.control.configure(mac="24:0a:c4:de:ad:01")
    assert bytes(connect(board, stub=False).read_mac()).hex(":") == "24:0a:c4:de:ad:01"


def test_lost_bytes(start: StartBoard, connect: Connect) -> None:
    """With bytes lost on the way, a long exchange does not go through unnoticed."""
    board = start(layout="guide")
    esp = connect(board)

    def read_often() -> None:
        for _ in range(50):
            esp.command(esp.ESP_CMDS["READ_REG"], b"\x00\x10\x00\x40", timeout=0.1)

    read_often()
    board.control.set_faults(to_board={"lose": 0.01})
    with pytest.raises(FatalError):
        read_often()


def test_changed_bytes_are_noticed(start: StartBoard, connect: Connect) -> None:
    """A wrong bit in a block fails its checksum; the flash never gets it."""
    board = start(layout="guide")
    esp = connect(board)
    image = build_app(size_bytes=16384 + 64)[:16384]
    esp.flash_begin(16384, 0x310000)
    board.control.set_faults(to_board={"change": 0.001})
    with pytest.raises(FatalError):
        esp.flash_block(image, 0, timeout=0.2)
    assert board.control.read_flash(0x310000, 16384) == b"\xff" * 16384


def test_noise_from_the_board_is_noticed(start: StartBoard, connect: Connect) -> None:
    """Bytes doubled on the way back break the frames or the digest of what is read."""
    board = start(layout="guide")
    esp = connect(board)
    board.control.set_faults(from_board={"double": 0.001})
    with pytest.raises(FatalError):
        esp.read_flash(0x10000, 16384)


def test_wire_with_a_highest_speed(start: StartBoard, connect: Connect) -> None:
    """Above max_baud nothing gets through, although both sides agree."""
    board = start(config={"max_baud": 460800})
    esp = connect(board)
    esp.change_baud(460800)
    esp.read_reg(0x40001000)
    esp.change_baud(921600)
    with pytest.raises(FatalError):
        esp.command(esp.ESP_CMDS["READ_REG"], b"\x00\x10\x00\x40", timeout=0.1)


def test_protected_flash(start: StartBoard, connect: Connect) -> None:
    """The stub writes, nothing happens, and only reading back tells."""
    board = start(layout="guide")
    board.control.protect_flash()
    esp = connect(board)
    assert esp.read_status(1) & 0x1C == 0x1C
    before = board.control.read_flash(0x10000, 4096)
    esp.flash_begin(4096, 0x10000)
    esp.flash_block(bytes(4096), 0)
    esp.read_reg(0x40001000)
    assert board.control.read_flash(0x10000, 4096) == before


def test_unlocked_protection_is_cleared_by_the_stub(start: StartBoard, connect: Connect) -> None:
    """The stub clears block-protect bits at its start where the chip lets it."""
    board = start(layout="guide")
    board.control.protect_flash(locked=False)
    assert connect(board).read_status(1) & 0x1C == 0


def test_flash_that_ignores_program(start: StartBoard, connect: Connect) -> None:
    """Erase works, program does not, no error is told."""
    board = start(layout="guide")
    board.control.ignore_program()
    esp = connect(board)
    esp.flash_begin(4096, 0x10000)
    esp.flash_block(bytes(4096), 0)
    esp.read_reg(0x40001000)
    assert board.control.read_flash(0x10000, 4096) == b"\xff" * 4096


def test_unplugged_without_power(start: StartBoard, open_port: OpenPort) -> None:
    """A bus-powered board is off while unplugged, and boots when plugged in."""
    board = start()
    since = board.control.wait_for("app")["number"]
    board.control.unplug(keep_power=False)
    assert board.control.state()["state"] == "off"
    board.control.plug()
    board.control.wait_for("app", since=since)


def test_waiting_ends_at_its_timeout(start: StartBoard) -> None:
    """What does not happen is an error, not a hang."""
    board = start()
    with pytest.raises(ControlError, match="no event panic"):
        board.control.wait_for("panic", timeout_s=0.1)
    with pytest.raises(ControlError, match="no fault is called"):
        board.control.set_faults(nonsense=True)
    with pytest.raises(ControlError, match="no cut is called"):
        board.control.cut_power_at(1, "sideways")  # type: ignore[arg-type]
