# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening a simulated board's port: its lines, its owner, and its going away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from esp32_sim.process import RunningBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.link import ports
from ota_service.link.serial_port import close_port, open_port


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBoard]:
    """One running board for the tests of this file."""
    with SimProcess(tmp_path_factory.mktemp("sim"), 1) as sim:
        sim.boards[0].control.wait_for("app")
        yield sim.boards[0]


def resets(board: RunningBoard) -> int:
    """How often the board was reset so far."""
    return board.control.counters().get("reset", 0)


def test_opening_and_closing_do_not_restart_the_board(board: RunningBoard) -> None:
    """Looking at a port twice leaves the app running; the lines work all the same."""
    before = resets(board)
    for _ in range(2):
        opened = open_port(board.url)
        assert not opened.dtr
        assert not opened.rts
        close_port(opened)
    assert resets(board) == before
    opened = open_port(board.url, timeout_s=5)
    since = board.control.events()[-1]["number"]
    opened.rts = True
    opened.rts = False
    board.control.wait_for("app", since=since)
    assert resets(board) == before + 1
    assert b"rst:0x1" in opened.read_until(b"rst:0x1")
    close_port(opened)


def test_a_second_open_names_the_process(board: RunningBoard) -> None:
    """The board's one client is named by its process id."""
    opened = open_port(board.url)
    try:
        with pytest.raises(OtaError, match=f"pid {os.getpid()} ") as caught:
            open_port(board.url, board="left")
        assert (caught.value.code, caught.value.board) == ("port-busy", "left")
    finally:
        close_port(opened)


def test_unplugged_and_plugged(board: RunningBoard) -> None:
    """A board that is unplugged is lost to its client, then missing, and comes back."""
    opened = open_port(board.url, timeout_s=5)
    board.control.unplug()
    with pytest.raises(serial.SerialException):
        opened.read(1 << 20)  # more than the board may have printed before it went
    close_port(opened)
    assert not ports.exists(board.url)
    with pytest.raises(OtaError, match="does not exist") as missing:
        open_port(board.url)
    assert missing.value.code == "port-missing"
    board.control.plug()
    assert ports.exists(board.url)
    close_port(open_port(board.url))


def test_an_address_file_that_was_left_behind(tmp_path: Path) -> None:
    """A board whose process was killed looks as if it were there; opening says that it is not."""
    with SimProcess(tmp_path, 1) as sim:
        url = sim.boards[0].url
        sim.kill()
        assert ports.exists(url)
        with pytest.raises(OtaError) as caught:
            open_port(url)
        assert caught.value.code == "port-missing"
