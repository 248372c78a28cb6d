# SPDX-License-Identifier: GPL-3.0-or-later
"""DTR and RTS decide between download mode and the app, as on a board with two transistors."""

from __future__ import annotations

import time
from typing import Any

import pytest

from esp32_sim.urlhandler import protocol_esp32sim
from tests.sim.conftest import OpenPort, StartBoard


class Clock:
    """The host's clock as the port tells it the board with each change of a line.

    Time passes where a test lets it, so that what the reset circuit makes of a sequence does not
    depend on how busy the machine is. It is ahead of the board's, which so knows all changes of
    a sequence before it acts on the first.
    """

    AHEAD_S = 0.5

    def __init__(self) -> None:
        self.slept_s = 0.0
        self.started_s: float | None = None

    def monotonic(self) -> float:
        """What `time.monotonic` would say."""
        if self.started_s is None:
            self.started_s = time.monotonic() + self.AHEAD_S
        return self.started_s + self.slept_s

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`."""
        self.slept_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of line changes."""
    made = Clock()
    monkeypatch.setattr(protocol_esp32sim, "line_time_s", made.monotonic)
    return made


def enter_download_mode(port: Any, clock: Clock) -> None:
    """esptool's sequence, line by line."""
    port.dtr = False
    port.rts = True
    clock.sleep(0.1)
    port.dtr = True
    port.rts = False
    clock.sleep(0.05)
    port.dtr = False


@pytest.mark.slow
def test_download_mode_and_back(start: StartBoard, open_port: OpenPort, clock: Clock) -> None:
    """The ROM says that it waits; RTS alone brings the app back, and its log."""
    board = start(version="5.0.0")
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    enter_download_mode(port, clock)
    event = board.control.wait_for("download", since=since)
    assert b"waiting for download" in port.read_until(b"download\r\n")
    assert board.control.state()["state"] == "download"
    port.rts = True
    clock.sleep(0.1)
    port.rts = False
    board.control.wait_for("app", since=event["number"])
    log = port.read_until(b"Calling app_main()")
    assert b"rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)" in log
    assert b"Loaded app from partition at offset 0x20000" in log
    assert b"Project name:     micro-rdk-server" in log
    assert b"App version:      5.0.0" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("en_rise_s", "outcome"), [(0.0, "app"), (0.025, "download"), (0.075, "app")]
)
def test_the_reset_delay_decides(
    start: StartBoard, open_port: OpenPort, clock: Clock, en_rise_s: float, outcome: str
) -> None:
    """Without delay EN has risen before IO0 falls; with too much IO0 is released before."""
    board = start(config={"en_rise_s": en_rise_s})
    board.control.wait_for("app")
    port = open_port(board.url)
    since = board.control.state()["events"]
    enter_download_mode(port, clock)
    assert board.control.wait_for(outcome, since=since)


def test_without_reset_lines(start: StartBoard, open_port: OpenPort, clock: Clock) -> None:
    """A UART header without DTR and RTS: buttons alone lead into download mode and out of it."""
    board = start(config={"reset_lines": False})
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    enter_download_mode(port, clock)
    assert board.control.events(since=since)[-1]["event"] == "opened"
    board.control.reset(boot_button=True)
    board.control.wait_for("download", since=since)
    port.rts = True
    port.rts = False
    port.flush()
    assert board.control.state()["state"] == "download"
    board.control.reset()
    board.control.wait_for("app", since=since)


@pytest.mark.slow
def test_both_lines_at_once(start: StartBoard, open_port: OpenPort, clock: Clock) -> None:
    """The tight sequence, which sets both lines in one call, enters download mode, too."""
    board = start()
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    port.set_lines(dtr=True, rts=True)
    port.set_lines(dtr=False, rts=True)
    clock.sleep(0.05)
    port.set_lines(dtr=True, rts=False)
    clock.sleep(0.05)
    port.set_lines(dtr=False, rts=False)
    board.control.wait_for("download", since=since)


def test_closing_releases_the_board(start: StartBoard, open_port: OpenPort) -> None:
    """A port that is closed while it holds the board in reset lets it boot."""
    board = start()
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    port.rts = True
    port.flush()
    assert board.control.state()["state"] == "reset"
    port.close()
    board.control.wait_for("app", since=since)


def test_held_in_reset(start: StartBoard, open_port: OpenPort) -> None:
    """EN low: nothing runs, nothing is printed."""
    board = start()
    board.control.wait_for("app")
    port = open_port(board.url, timeout=0.3)
    port.rts = True
    port.flush()
    port.reset_input_buffer()
    assert port.read(1) == b""
