# SPDX-License-Identifier: GPL-3.0-or-later
"""A board's port that notes what is written to it, and at which speed, and may damage it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serial import SerialBase

from esp32_sim.process import RunningBoard
from ota_service.link.serial_port import close_port, open_port

MEM_DATA, WRITE_REG, READ_REG, DEFL_DATA = 0x07, 0x09, 0x0A, 0x11


@dataclass(frozen=True)
class Written:
    """One call of `write`: the speed, and the commands of the requests in it."""

    baud: int
    commands: tuple[int, ...]


@dataclass
class Recorded:
    """A port, and what was written to it. damage: what a write becomes on its way."""

    port: SerialBase
    calls: list[Written] = field(default_factory=list)
    damage: Callable[[bytes], bytes] = bytes

    def bauds_of(self, command: int) -> set[int]:
        """At which speeds a command was sent."""
        return {call.baud for call in self.calls if command in call.commands}

    def clear(self) -> None:
        """Forget what was written so far."""
        self.calls.clear()


@contextmanager
def recorded(board: RunningBoard) -> Iterator[Recorded]:
    """Open a board's port; everything that is written goes on to the board as it is."""
    port = open_port(board.url)
    notes = Recorded(port)
    write = port.write

    def noted(data: Any) -> int | None:
        frames = [frame for frame in bytes(data).strip(b"\0").split(b"\xc0") if frame.strip(b"\0")]
        notes.calls.append(Written(port.baudrate, tuple(frame[1] for frame in frames)))
        written: int | None = write(notes.damage(bytes(data)))
        return written

    port.write = noted
    try:
        yield notes
    finally:
        close_port(port)
