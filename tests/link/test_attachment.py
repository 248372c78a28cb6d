# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports that go away at a reset: where they are found again, and whom they are not taken for."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from serial import SerialException

from esp32_sim import wire
from esp32_sim.config import BoardConfig
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.link import attachment as attachment_module
from ota_service.link import esptool_setup, identify
from ota_service.link import link as link_module
from ota_service.link.at_port import at_port
from ota_service.link.attachment import attachment
from ota_service.link.link import EspLink
from ota_service.link.ownership import PORT_OWNERS
from ota_service.link.ports import PortInfo, describe, find_again, same_device
from ota_service.link.serial_port import close_port, open_port

from esptool.loader import ESPLoader  # isort: skip  (after esptool_setup)

MAC = "24:0A:C4:00:00:01"
JTAG = PortInfo("/dev/ttyACM0", None, "1-1.2:1.0", 0x303A, 0x1001, MAC)
OTG = replace(JTAG, location="1-1.2:1.1", pid=0x0002, serial_number="0")
APP = replace(JTAG, location="1-1.2", vid=0x239A, pid=0x8107, serial_number="7CDFA1")
BRIDGE = PortInfo("/dev/ttyUSB0", None, "1-1.3", 0x10C4, 0xEA60, "0001")
FTDI = PortInfo("/dev/ttyUSB0", None, "1-1.4:1.0", 0x0403, 0x6010, "FT1")
SIMULATED = replace(JTAG, device="esp32sim:///a", location=None)


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (JTAG, replace(JTAG, device="/dev/ttyACM7"), True),
        (JTAG, replace(JTAG, location="2-3:1.0"), True),
        (JTAG, replace(JTAG, serial_number="24:0A:C4:00:00:02"), False),
        (APP, OTG, True),
        (OTG, replace(OTG, location="1-1.1:1.1"), False),
        (BRIDGE, replace(BRIDGE, device="/dev/ttyUSB1"), True),
        (BRIDGE, replace(BRIDGE, location="1-1.4"), False),
        (FTDI, replace(FTDI, location="1-1.4:1.1"), False),
        (SIMULATED, replace(SIMULATED, device="esp32sim:///b"), True),
        (SIMULATED, replace(SIMULATED, serial_number="24:0A:C4:00:00:02"), False),
    ],
    ids=[
        "another-name", "another-socket", "another-board", "its-rom-instead-of-its-app",
        "another-socket-without-a-mac", "a-bridge-renamed", "the-bridge-beside",
        "a-bridge-with-two-ports", "no-socket-known", "another-board-at-its-name",
    ],
)  # fmt: skip
def test_which_device_is_the_same(before: PortInfo, now: PortInfo, same: bool) -> None:
    """By its MAC wherever both have one; else by the socket, of which a bridge may fill two."""
    assert same_device(before, now) is same


def plug(folder: Path, config: BoardConfig) -> str:
    """What a simulated board's port leaves in the file system; its url."""
    from esp32_sim.usb import identity

    wire.write_address(folder, wire.PORT_FILE, "127.0.0.1", 9, "token", usb=identity(config))
    return f"esp32sim://{folder}"


def test_two_boards_that_swap_their_names(tmp_path: Path) -> None:
    """Each is found under the other's name; a bridge, which is like all others, only at its own."""
    one = BoardConfig("esp32c3", mac="24:0a:c4:00:00:01", usb="serial-jtag")
    two = BoardConfig("esp32c3", mac="24:0a:c4:00:00:02", usb="serial-jtag")
    left, right = tmp_path / "left", tmp_path / "right"
    url = plug(left, one)
    plug(right, two)
    before = describe(url)
    assert before is not None
    assert (before.mac, before.serial_jtag, before.may_return) == (one.mac, True, True)
    assert find_again(url, before) == url
    plug(left, two)
    assert find_again(url, before) is None
    plug(right, one)
    assert find_again(url, before) == f"esp32sim://{right}"

    bridge = BoardConfig()
    plug(left, bridge)
    plug(right, bridge)
    before = describe(url)
    assert before is not None
    assert not before.may_return
    (left / wire.PORT_FILE).unlink()
    assert find_again(url, before) is None


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"usb": 3}), json.dumps({})])
def test_an_address_file_that_says_nothing_of_usb(tmp_path: Path, text: str) -> None:
    """Half of one, or an older simulator's: nothing is known of the port then."""
    (tmp_path / wire.PORT_FILE).write_text(text)
    assert describe(f"esp32sim://{tmp_path}") is None


@pytest.mark.slow
def test_the_claim_goes_with_the_port(tmp_path: Path) -> None:
    """A board that comes back after 5 s and by another name is claimed by that one, and its old
    name is free for the board that has it now."""
    config = {
        "usb": "serial-jtag", "usb_leaves_at": "every-reset", "usb_back_s": 5.1, "usb_name": "next",
    }  # fmt: skip
    with SimProcess(tmp_path, [SimBoard(chip="esp32s3", config=config)]) as sim:
        board = sim.boards[0]
        board.control.running()
        url = f"esp32sim://{tmp_path / 'next'}"
        macs: list[str] = []
        with at_port(board.url, "service A") as port:
            EspLink.connect(port, baud=921_600, identified=macs.append)
            assert (port.port, port.baudrate) == (url, 115_200)
            assert (PORT_OWNERS.owner(url), PORT_OWNERS.owner(board.url)) == ("service A", None)
        assert macs == [board.mac]
        assert PORT_OWNERS.owner(url) is None


@pytest.mark.slow
def test_a_port_that_is_away_at_the_end_of_the_process(tmp_path: Path) -> None:
    """Nobody waits for it then: not on the way to the board, nor when it was restarted."""
    config = {"usb": "serial-jtag", "usb_leaves_at": "every-reset", "usb_back_s": 60}
    with SimProcess(tmp_path, [SimBoard(chip="esp32c3", config=config)]) as sim:
        board = sim.boards[0]
        board.control.running()
        with at_port(board.url, "service A", stopped=lambda: True) as port:
            with pytest.raises(OtaError) as caught:
                EspLink.connect(port, baud=921_600)
            assert caught.value.code == "cancelled"
            board.control.plug()
            port.open()
            attachment(port).restart(port)


@pytest.mark.slow
def test_a_port_that_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a lost link, in words that say how long it was waited for."""
    monkeypatch.setattr(attachment_module, "RETURN_TIMEOUT_S", 0.2)
    config = {"usb": "serial-jtag", "usb_leaves_at": "every-reset", "usb_back_s": 60}
    with SimProcess(tmp_path, [SimBoard(chip="esp32c6", config=config)]) as sim:
        board = sim.boards[0]
        board.control.running()
        with at_port(board.url, "service A") as port:
            with pytest.raises(OtaError, match=r"was not back in 0\.2 s") as caught:
                EspLink.connect(port, baud=921_600)
            assert caught.value.code == "link-lost"
            assert attachment(port).native


def test_a_device_that_goes_while_it_is_flushed() -> None:
    """pyserial alone raises the terminal's own error then, which is no OSError."""
    esptool_setup.install()
    master, slave = os.openpty()
    port = open_port(os.ttyname(slave))
    os.close(slave)
    finder = ESPLoader(port, 115_200)
    os.close(master)
    with pytest.raises(SerialException):
        port.reset_input_buffer()
    assert not identify._in_sync(finder)
    with pytest.raises(OtaError) as caught, link_module._lost_link():
        port.reset_input_buffer()
    assert caught.value.code == "link-lost"
    close_port(port)
