# SPDX-License-Identifier: GPL-3.0-or-later
"""The url handler is a serial port: what opens, reads and writes a tty can use it."""

from __future__ import annotations

import errno
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import serial

from tests.sim.conftest import OpenPort, StartBoard


def test_missing_board(open_port: OpenPort, tmp_path: Path) -> None:
    """A directory without a running board is a port that does not exist."""
    with pytest.raises(serial.SerialException, match="Errno 2") as caught:
        open_port(f"esp32sim://{tmp_path}")
    assert caught.value.errno == errno.ENOENT


def test_killed_process_is_a_missing_port(start: StartBoard, open_port: OpenPort) -> None:
    """A stale address file does not make a port exist."""
    board = start()
    stale = (board.dir / "port.json").read_text()
    board.control.unplug()
    (board.dir / "port.json").write_text(stale)
    with pytest.raises(serial.SerialException, match="Errno 2"):
        open_port(board.url)


def test_second_open_is_refused(start: StartBoard, open_port: OpenPort) -> None:
    """One client at a time; the first one closed, the port opens again."""
    board = start()
    first = open_port(board.url)
    with pytest.raises(serial.SerialException, match="busy") as caught:
        open_port(board.url)
    assert caught.value.errno == errno.EBUSY
    first.close()
    board.control.wait_for("closed")
    assert open_port(board.url).is_open


def test_unplugged_while_open(start: StartBoard, open_port: OpenPort) -> None:
    """Reads and writes fail as with a USB device that is gone; plugged in, it opens again."""
    board = start()
    port = open_port(board.url)
    board.control.wait_for("app")
    port.reset_input_buffer()
    board.control.unplug()
    with pytest.raises(serial.SerialException):
        all(iter(partial(port.read, 1000), b""))  # what it said before may still be there
    with pytest.raises(serial.SerialException):
        port.write(b"x")
    port.close()
    with pytest.raises(serial.SerialException, match="Errno 2"):
        open_port(board.url)
    board.control.plug()
    assert open_port(board.url).is_open


def test_plugged_in_elsewhere(start: StartBoard, open_port: OpenPort, tmp_path: Path) -> None:
    """The same board can come back under another name; the old one stays gone."""
    board = start()
    board.control.unplug()
    url = board.control.plug(tmp_path / "other")
    assert url != board.url
    assert open_port(url).is_open
    with pytest.raises(serial.SerialException, match="Errno 2"):
        open_port(board.url)


def test_lines_before_open_take_effect_at_open(start: StartBoard, open_port: OpenPort) -> None:
    """With both lines released beforehand, opening and closing do not disturb the app."""
    board = start()
    board.control.wait_for("app")
    resets = board.control.counters()["reset"]
    port = open_port(board.url)
    port.close()
    assert board.control.wait_for("opened")["lines"] == 0
    board.control.wait_for("closed")
    assert board.control.counters()["reset"] == resets


def test_pyserials_default_raises_both_lines(start: StartBoard, open_port: OpenPort) -> None:
    """Both asserted pull nothing; then lowering DTR first holds the board in reset."""
    board = start()
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url, dtr=True, rts=True)
    assert board.control.wait_for("opened")["lines"] == 3
    assert board.control.state()["state"] == "app"
    port.dtr = False
    port.flush()
    assert board.control.state()["state"] == "reset"
    port.rts = False
    board.control.wait_for("app", since=since)


def test_a_board_that_resets_on_open(start: StartBoard, open_port: OpenPort) -> None:
    """Where the driver moves the lines one by one, opening alone restarts the app."""
    board = start(config={"resets_on_open": True})
    since = board.control.wait_for("app")["number"]
    open_port(board.url)
    board.control.wait_for("app", since=since)


def test_read_timeout_and_in_waiting(start: StartBoard, open_port: OpenPort) -> None:
    """A read without data ends at its timeout, a non-blocking one at once."""
    board = start()
    board.control.wait_for("app")
    port = open_port(board.url, timeout=0.2)
    began = time.monotonic()
    assert port.read(10) == b""
    assert time.monotonic() - began > 0.19
    port.timeout = 0
    assert port.read(10) == b""
    assert port.in_waiting == 0


def test_cancel_read(start: StartBoard, open_port: OpenPort) -> None:
    """A read without timeout in another thread returns when it is cancelled."""
    board = start()
    board.control.wait_for("app")
    port = open_port(board.url, timeout=None)
    result: list[Any] = []
    reader = threading.Thread(target=lambda: result.append(port.read(1)))
    reader.start()
    port.cancel_read()
    reader.join(5)
    assert result == [b""]


def test_reset_input_buffer(start: StartBoard, open_port: OpenPort) -> None:
    """What has arrived before is forgotten."""
    board = start()
    port = open_port(board.url)
    since = board.control.state()["events"]
    board.control.reset()
    board.control.wait_for("app", since=since)
    assert port.in_waiting > 0
    port.reset_input_buffer()
    assert port.in_waiting == 0


def test_another_baud_is_garbage(start: StartBoard, open_port: OpenPort) -> None:
    """The boot log at the wrong baud is noise; at 115200 it is text."""
    board = start()
    port = open_port(board.url, baudrate=921600)
    since = board.control.state()["events"]
    board.control.reset()
    number = board.control.wait_for("app", since=since)["number"]
    assert b"boot" not in port.read(port.in_waiting)
    port.baudrate = 115200
    board.control.reset()
    board.control.wait_for("app", since=number)
    port.timeout = 30  # it has been sent, and may be on its way
    loaded = b"Loaded app from partition at offset"
    assert port.read_until(loaded).endswith(loaded)
