# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated boards for tests: a process of their own, started and stopped with a `with`.

from esp32_sim.process import SimBoard, SimProcess

@pytest.fixture
def board(tmp_path):
    with SimProcess(tmp_path, [SimBoard(layout="guide")]) as sim:
        yield sim.boards[0]

def test_reads_its_mac(board):
    subprocess.run([sys.executable, "-m", "esp32_sim.launch_esptool",
                    "--port", board.url, "read-mac"], check=True)
    board.control.wait_for("stub")
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from esp32_sim.chips import ESP32
from esp32_sim.config import FLASH_FILE, BoardConfig
from esp32_sim.control import BoardControl
from esp32_sim.factory import create_board, make_flash
from esp32_sim.layouts import TABLE_OFFSET, Layout, Partition
from esp32_sim.nvsmodel import NvsValue

START_TIMEOUT_S = 30.0


def child_environment() -> dict[str, str]:
    """The environment in which another Python finds this package, installed or not."""
    found = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in found if path)}


@dataclass(frozen=True)
class SimBoard:
    """One board to be made: its flash, and its settings.

    chip: its name, such as "esp32c3" (`chips.CHIPS`); an `app` has to be built for it. flash:
    complete contents; without it `factory.make_flash(layout, **flash_options)` makes them.
    config: fields of `BoardConfig`; times are off unless it says timed=True.
    """

    layout: str | Layout = "micro-rdk"
    chip: str = ESP32.name
    flash: bytes | None = None
    version: str = "1.0.0"
    app: bytes | None = None
    slot: str | Partition | None = None
    nvs: Mapping[str, NvsValue] | None = None
    otadata: str | None = None
    flash_options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def make_flash(self, seed: int) -> bytes:
        """The contents of its flash."""
        if self.flash is not None:
            return self.flash
        table_offset = self.config.get("table_offset", TABLE_OFFSET)
        return bytes(
            make_flash(
                self.layout,
                app=self.app,
                slot=self.slot,
                nvs=self.nvs,
                otadata=self.otadata,
                version=self.version,
                seed=seed,
                table_offset=table_offset,
                chip=self.chip,
                nvs_key=self.config.get("nvs_key", ""),
                **self.flash_options,
            )
        )


@dataclass(frozen=True)
class RunningBoard:
    """A board of a running process: url for pyserial, directory, control channel."""

    url: str
    dir: Path
    control: BoardControl
    mac: str


class SimProcess:
    """A context manager: boards run inside `with`, in one process; killed at its end.

    Boards that already have files under `directory` keep them, so that leaving and entering
    again with the same directory is a power cycle of everything.
    """

    def __init__(
        self, directory: Path, boards: Sequence[SimBoard] | int = 1, *, seed: int = 0
    ) -> None:
        self.directory = Path(os.path.abspath(directory))
        self._specs = [SimBoard()] * boards if isinstance(boards, int) else list(boards)
        self._seed = seed
        self._process: subprocess.Popen[str] | None = None
        self.boards: list[RunningBoard] = []

    def __enter__(self) -> SimProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Make the boards that do not exist yet, start the process, wait for the urls."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "esp32_sim", "--boards-from-stdin"],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        self.boards = []
        for spec in self._specs:
            self._start_board(spec)

    def add(self, spec: SimBoard) -> RunningBoard:
        """One more board in the running process."""
        self._specs.append(spec)
        return self._start_board(spec)

    def _start_board(self, spec: SimBoard) -> RunningBoard:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        index = len(self.boards)
        seed = self._seed + index
        directory = self.directory / f"board-{index + 1}"
        number = (self._seed & 0xFF) << 16 | 0x1000 + index + 1
        mac = (b"\x24\x0a\xc4" + number.to_bytes(3, "big")).hex(":")
        config = BoardConfig(**{"chip": spec.chip, "mac": mac, "seed": seed, **spec.config})
        if not (directory / FLASH_FILE).exists():
            create_board(directory, spec.make_flash(seed), config)
        process.stdin.write(f"{directory}\n")
        process.stdin.flush()
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the simulator ended with code {process.wait(START_TIMEOUT_S)}")
        board = RunningBoard(url, directory, BoardControl(directory), config.mac)
        self.boards.append(board)
        return board

    def stop(self) -> None:
        """End the process in good order."""
        if self._process is not None:
            self._process.terminate()
            self._wait()

    def kill(self) -> None:
        """End the process as a crash would; the flash files keep their state."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None
