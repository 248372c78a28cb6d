# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for libgpiod's Python package, version 2, whose lines are wired to simulated boards.

A GPIO chip is a folder with `wiring.json`: {"17": [FOLDER_OF_A_BOARD, "en"], ..}. What its lines
are is kept in `lines.json`, so that it outlasts whoever has driven them, as with many GPIO
controllers. Each change is a line of `edges.txt`. GPIOD_DIES_AT=n: the process is killed behind
the n-th change of a value.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp32_sim.control import BoardControl

from . import line
from .line import Direction, Drive, Value

__all__ = ["Chip", "LineSettings", "line", "request_lines"]

_changes = 0


@dataclass(frozen=True)
class LineSettings:
    """As there."""

    direction: Direction = Direction.AS_IS
    drive: Drive = Drive.PUSH_PULL
    output_value: Value = Value.INACTIVE


@dataclass(frozen=True)
class LineInfo:
    """As there; the part that is used."""

    used: bool
    direction: Direction


class Chip:
    """As there."""

    def __init__(self, path: str) -> None:
        self.folder = Path(path)
        if not (self.folder / "wiring.json").exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def __enter__(self) -> Chip:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_line_info(self, offset: int) -> LineInfo:
        """As there."""
        state = _state(self.folder)[str(offset)]
        return LineInfo(_alive(state["pid"]), Direction(state["direction"]))


class LineRequest:
    """As there, of one line."""

    def __init__(self, folder: Path, offset: int, settings: LineSettings) -> None:
        self._folder, self._offset = folder, offset
        state = _state(folder)[str(offset)]
        if _alive(state["pid"]):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        state["pid"] = os.getpid()
        if settings.direction is Direction.OUTPUT:
            assert settings.drive is Drive.OPEN_DRAIN, "a board's pin would be driven high"
            state |= {"direction": Direction.OUTPUT.value, "value": settings.output_value.value}
        _put(folder, offset, state)

    def get_value(self, offset: int) -> Value:
        """As there."""
        state = _state(self._folder)[str(offset)]
        return Value(state["value"])

    def set_value(self, offset: int, value: Value) -> None:
        """As there."""
        global _changes
        assert offset == self._offset
        state = _state(self._folder)[str(offset)]
        assert state["pid"] == os.getpid(), "the line was given up"
        if state["value"] == value.value:
            return
        _put(self._folder, offset, state | {"value": value.value})
        _changes += 1
        if os.environ.get("GPIOD_DIES_AT") == str(_changes):
            os.kill(os.getpid(), signal.SIGKILL)

    def release(self) -> None:
        """As there."""
        state = _state(self._folder)[str(self._offset)]
        _put(self._folder, self._offset, state | {"pid": 0})


def request_lines(path: str, *, consumer: str, config: Mapping[int, LineSettings]) -> LineRequest:
    """As there, for one line."""
    assert consumer
    ((offset, settings),) = config.items()
    return LineRequest(Chip(path).folder, offset, settings)


def _alive(pid: int) -> bool:
    return pid != 0 and Path(f"/proc/{pid}").exists() and not _zombie(pid)


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _state(folder: Path) -> dict[str, dict[str, Any]]:
    wiring = json.loads((folder / "wiring.json").read_text())
    blank = {"direction": Direction.INPUT.value, "value": Value.ACTIVE.value, "pid": 0}
    known = {}
    if (folder / "lines.json").exists():
        known = json.loads((folder / "lines.json").read_text())
    return {offset: known.get(offset, blank) for offset in wiring}


def _put(folder: Path, offset: int, state: dict[str, Any]) -> None:
    lines = _state(folder)
    before, lines[str(offset)] = lines[str(offset)], state
    (folder / "lines.json").write_text(json.dumps(lines))
    if before["value"] != state["value"]:
        with (folder / "edges.txt").open("a") as edges:
            edges.write(f"{time.monotonic()} {offset} {state['value']}\n")
    apply(folder)


def apply(folder: Path) -> None:
    """Let the boards have what the lines are."""
    wiring = json.loads((folder / "wiring.json").read_text())
    lines = _state(folder)
    low: dict[str, dict[str, bool]] = {}
    for number, (board, pin) in wiring.items():
        one = lines[number]
        pulled = one["direction"] == Direction.OUTPUT.value and one["value"] == 0
        low.setdefault(board, {})[pin] = pulled
    for board, pins in low.items():
        BoardControl(board).pull(**pins)
