# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards in a process of their own, and the unchanged esptool against them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import serial

from esp32_sim import pytest_plugin
from esp32_sim.launch_esptool import configure_esptool, install_handler
from esp32_sim.process import RunningBoard, child_environment
from esp32_sim.pytest_plugin import StartBoard as StartBoard

OpenPort = Callable[..., Any]

# What other people's tests use; `start` is what it is called here.
_esp32_simulator = pytest_plugin._esp32_simulator
start = pytest_plugin.esp32_boards


@pytest.fixture
def open_port() -> Iterator[OpenPort]:
    """Open a port with both lines released; closed at the end of the test."""
    install_handler()
    with ExitStack() as stack:

        def open_it(url: str, *, dtr: bool = False, rts: bool = False, **settings: Any) -> Any:
            settings.setdefault("timeout", 2)
            settings.setdefault("baudrate", 115200)
            port = serial.serial_for_url(url, do_not_open=True, **settings)
            port.dtr = dtr
            port.rts = rts
            port.open()
            stack.callback(port.close)
            return port

        yield open_it


def run_esptool(url: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the esptool command against a board."""
    command = [sys.executable, "-m", "esp32_sim.launch_esptool", "--port", url, *arguments]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=child_environment(),
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """Connect with esptool as a library: `connect(board, stub=True)` gives its object.

    Without asking for the chip's type first, which takes 0.4 s of waiting on an ESP32.
    """
    install_handler()
    configure_esptool()
    from esptool import cmds
    from esptool.targets.esp32 import ESP32ROM

    with ExitStack() as stack:

        def connect_board(board: RunningBoard, *, stub: bool = True, kind: Any = ESP32ROM) -> Any:
            esp = kind(board.url)
            stack.callback(esp._port.close)
            esp.connect(detecting=True)
            if stub:
                esp = cmds.run_stub(esp)
            cmds.attach_flash(esp)
            return esp

        yield connect_board
