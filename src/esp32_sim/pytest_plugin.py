# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated boards as a pytest fixture, for whoever asks for it (docs/python.md).

pytest_plugins = ["esp32_sim.pytest_plugin"]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from esp32_sim.control import ControlError
from esp32_sim.launch_esptool import install_handler
from esp32_sim.process import RunningBoard, SimBoard, SimProcess

__all__ = ["StartBoard", "esp32_boards"]


class StartBoard(Protocol):
    """What the fixture `esp32_boards` gives: a call starts one more board."""

    def __call__(self, **fields: Any) -> RunningBoard:
        """Start a board. fields: those of `SimBoard`. It is still booting when this returns."""


@pytest.fixture(scope="session")
def _esp32_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimProcess]:
    """One process for the boards of all tests: starting one takes longer than many a test."""
    with SimProcess(tmp_path_factory.mktemp("esp32-boards"), []) as simulator:
        yield simulator


@pytest.fixture
def esp32_boards(_esp32_simulator: SimProcess) -> Iterator[StartBoard]:
    """Start simulated ESP32 boards: `board = esp32_boards(version="1.2.2")`.

    pyserial opens `board.url` in this process. At the end of the test its boards lose power.
    """
    install_handler()
    boards: list[RunningBoard] = []

    def start(**fields: Any) -> RunningBoard:
        boards.append(_esp32_simulator.add(SimBoard(**fields)))
        return boards[-1]

    yield start
    for board in boards:
        # A test may have ended the process, or taken a board's files away.
        with contextlib.suppress(ControlError, OSError):
            board.control.power_off()
