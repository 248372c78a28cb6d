# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated boards for tests: a process of their own, started and stopped with a `with`.

from ota_service.sim.process import SimBoard, SimProcess

@pytest.fixture
def board(tmp_path):
    with SimProcess(tmp_path, [SimBoard(layout="guide")]) as sim:
        yield sim.boards[0]

def test_reads_its_mac(board):
    subprocess.run([sys.executable, "-m", "ota_service.sim.launch_esptool",
                    "--port", board.url, "read-mac"], check=True)
    board.control.wait_for("stub")
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ota_service.sim.config import BoardConfig
from ota_service.sim.control import BoardControl
from ota_service.sim.factory import create_board, make_flash
from ota_service.sim.nvsmodel import NvsValue

START_TIMEOUT_S = 30.0


def child_environment() -> dict[str, str]:
    """The environment in which another Python finds this package, installed or not."""
    found = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in found if path)}


@dataclass(frozen=True)
class SimBoard:
    """One board to be made: its flash, and its settings.

    flash: complete contents; without it `factory.make_flash(layout, **flash_options)` makes
    them. config: fields of `BoardConfig`; times are off unless it says timed=True.
    """

    layout: str = "micro-rdk"
    flash: bytes | None = None
    version: str = "1.0.0"
    app: bytes | None = None
    slot: str | None = None
    nvs: Mapping[str, NvsValue] | None = None
    otadata: str | None = None
    flash_options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def make_flash(self, seed: int) -> bytes:
        """The contents of its flash."""
        if self.flash is not None:
            return self.flash
        return bytes(
            make_flash(
                self.layout,
                app=self.app,
                slot=self.slot,
                nvs=self.nvs,
                otadata=self.otadata,
                version=self.version,
                seed=seed,
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
        directories: list[Path] = []
        macs: list[str] = []
        for index, spec in enumerate(self._specs):
            directory = self.directory / f"board-{index + 1}"
            seed = self._seed + index
            mac = bytes((0x24, 0x0A, 0xC4, self._seed & 0xFF, 0x10, index + 1)).hex(":")
            config = dataclasses.replace(BoardConfig(mac=mac, seed=seed), **spec.config)
            if not (directory / "flash.bin").exists():
                create_board(directory, spec.make_flash(seed), config)
            directories.append(directory)
            macs.append(config.mac)
        command = [sys.executable, "-m", "ota_service.sim", "--until-stdin-closes"]
        for directory in directories:
            command += ["--board-dir", str(directory)]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        assert self._process.stdout is not None
        self.boards = []
        for directory, mac in zip(directories, macs, strict=True):
            url = self._process.stdout.readline().strip()
            if not url:
                self._process.wait(START_TIMEOUT_S)
                raise RuntimeError("the simulator did not start")
            self.boards.append(RunningBoard(url, directory, BoardControl(directory), mac))

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
