# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports that go away at a reset: where they are found again, and whom they are not taken for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from ota_service.link.attachment import Attachment, attach, attachment
from ota_service.link.link import EspLink
from ota_service.link.ownership import PORT_OWNERS
from ota_service.link.ports import PortInfo, describe, find_again, same_device
from ota_service.link.serial_port import close_port, open_port
from ota_service.link.sparse import Seen

from esptool.loader import ESPLoader  # isort: skip  (after esptool_setup)
from esptool.util import FatalError  # isort: skip

MAC = "24:0A:C4:00:00:01"
JTAG = PortInfo("/dev/ttyACM0", None, "1-1.2:1.0", 0x303A, 0x1001, MAC)
OTG = replace(JTAG, location="1-1.2:1.1", pid=0x0002, serial_number="0")
APP = replace(JTAG, location="1-1.2", vid=0x239A, pid=0x8107, serial_number="7CDFA1")
BRIDGE = PortInfo("/dev/ttyUSB0", None, "1-1.3", 0x10C4, 0xEA60, "0001")
ESP_BRIDGE = replace(BRIDGE, vid=0x303A, pid=0x1002)
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
        (BRIDGE, replace(BRIDGE, vid=0x0403, pid=0x6001, serial_number="GPS9"), False),
        (BRIDGE, replace(BRIDGE, serial_number="0002"), False),
        (SIMULATED, replace(SIMULATED, device="esp32sim:///b"), True),
        (SIMULATED, replace(SIMULATED, serial_number="24:0A:C4:00:00:02"), False),
    ],
    ids=[
        "another-name", "another-socket", "another-board", "its-rom-instead-of-its-app",
        "another-socket-without-a-mac", "a-bridge-renamed", "the-bridge-beside",
        "a-bridge-with-two-ports", "another-bridge-in-its-socket", "another-of-its-kind",
        "no-socket-known", "another-board-at-its-name",
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
@pytest.mark.parametrize("usb", ["serial-jtag", "otg"])
def test_a_port_that_is_away_at_the_end_of_the_process(tmp_path: Path, usb: str) -> None:
    """It is waited for as long as the end may take, so that its board is not left in download
    mode."""
    config = {"usb": usb, "usb_leaves_at": "every-reset", "usb_back_s": 0.6}
    with SimProcess(tmp_path, [SimBoard(chip="esp32s3", config=config)]) as sim:
        board = sim.boards[0]
        board.control.running()
        with at_port(board.url, "service A", stopped=lambda: True) as port:
            with pytest.raises(OtaError) as caught:
                EspLink.connect(port, baud=921_600)
            assert caught.value.code == "cancelled"
        board.control.running()


class Port:
    """A port in memory, whose device may be dead, and goes at the reset of that number."""

    port = name = "/dev/none"
    timeout = baudrate = 0.0
    is_open = True

    def __init__(self, *, dead: bool = False, leaves: bool = False, answers: bool = False) -> None:
        self.dead, self.leaves, self.answers = dead, leaves, answers
        self.dtr, self.resets = False, 0
        self.coming = b""

    @property
    def in_waiting(self) -> int:
        """A device that has gone raises here first."""
        if self.dead or not self.is_open:
            raise SerialException("gone")
        return len(self.coming)

    def setRTS(self, state: bool) -> None:
        """The reset ends where it is let go."""
        _ = self.in_waiting
        self.resets += not state
        if self.leaves and not state:
            self.dead = True
            raise SerialException("gone")

    def setDTR(self, state: bool) -> None:
        """Without effect."""

    def write(self, data: bytes) -> None:
        """A question."""
        self.coming = b"\xc0\x01\x08" * self.answers

    def read(self, size_bytes: int) -> bytes:
        """What was answered."""
        data, self.coming = self.coming, b""
        return data

    def reset_input_buffer(self) -> None:
        """As of any port."""
        _ = self.in_waiting

    def close(self) -> None:
        """It is opened again by the test's attachment."""


class Returns(Attachment):
    """Of a port that comes back at once."""

    may_return = property(lambda self: True)

    def _opened(self, port: Any) -> bool:
        port.is_open, port.dead, port.leaves = True, False, False
        return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("port", "resets"),
    [
        (Port(), 1),
        (Port(dead=True), 1),
        (Port(leaves=True), 1),
        (Port(leaves=True, answers=True), 2),
    ],
    ids=["there", "dead", "goes-with-the-reset", "went-without-one"],
)
def test_out_of_download_mode_by_whatever_is_left(
    monkeypatch: pytest.MonkeyPatch, port: Port, resets: int
) -> None:
    """One reset that reaches the board, and no second one: that would cost an app that waits for
    confirmation its time."""
    monkeypatch.setattr(link_module, "ASKED_TIMEOUT_S", 0.01)
    attach(port, Returns("/dev/none"))
    assert link_module.leave_download_mode(port)
    assert port.resets == resets


def link_on(port: Port, hard_reset: Callable[[], None]) -> EspLink:
    """A link whose restart is esptool's."""
    link = EspLink.__new__(EspLink)
    link._port, link._esp = port, SimpleNamespace(hard_reset=hard_reset)
    link._seen, link._expected, link.baud = Seen(), {}, 115_200
    port.baudrate = 115_200
    attach(port, Returns("/dev/none"))
    return link


def test_a_stub_loader_that_does_not_answer_is_reset_by_the_lines() -> None:
    """esptool asks an S2 or S3 on USB-OTG first how it may be reset."""

    def asks() -> None:
        raise FatalError("No serial data received")

    port = Port()
    link = link_on(port, asks)
    link.restart()
    assert (port.resets, link.running) == (1, True)


def test_a_restart_over_a_dead_port_is_done_when_that_is_back() -> None:
    """The link is lost all the same, and the board not in download mode."""
    port = Port(dead=True)
    link = link_on(port, lambda: None)
    with pytest.raises(OtaError) as caught:
        link.restart()
    assert (caught.value.code, port.resets, link.running) == ("link-lost", 1, True)


@pytest.mark.parametrize(
    ("info", "ways"), [(APP, 1), (JTAG, 1), (OTG, 2), (BRIDGE, None), (ESP_BRIDGE, None)]
)
def test_by_what_a_port_is_reset(info: PortInfo, ways: int | None) -> None:
    """esptool opens a port that went with its reset again by its old name, which is left to it only
    for bridges; a slow reset pin is waited for at the second try."""
    at = Attachment("/dev/none")
    at.info = info
    found = at.resets(Port())
    assert (found if found is None else len(found)) == ways
    assert (at.native, at.may_return) == (info.vid == 0x303A and ways is not None, ways is not None)


def test_the_boot_pin_is_held_longer_at_the_second_try() -> None:
    """By whatever resets the board."""
    held: list[float] = []
    by = SimpleNamespace(into_download=lambda port, held_s: held.append(held_s))
    for way in Attachment("/dev/none", by).resets(Port()) or ():
        way()
    assert held == [0.05, 0.55]


def test_a_port_that_is_gone_again_when_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays what it was known to be."""
    at = Attachment("/dev/none")
    at.info = JTAG
    monkeypatch.setattr(attachment_module, "find_again", lambda *_: "/dev/none")
    monkeypatch.setattr(attachment_module, "reopen_port", lambda *_: None)
    assert at._opened(Port())
    assert at.may_return


def test_a_port_is_closed_whatever_its_last_look_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyserial lets a ValueError out as well."""

    def raises(*_: Any) -> None:
        raise ValueError

    master, slave = os.openpty()
    monkeypatch.setattr(Attachment, "settle", raises)
    with pytest.raises(ValueError), at_port(os.ttyname(slave), "test") as port:  # noqa: PT011
        pass
    assert not port.is_open
    os.close(master)
    os.close(slave)


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
