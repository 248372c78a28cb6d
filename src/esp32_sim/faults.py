# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with a board and its cable, switched on and off by a test."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any


@dataclass
class LineFaults:
    """Rates per byte, 0 to 1, for one direction of the wire."""

    lose: float = 0.0
    double: float = 0.0
    change: float = 0.0

    def active(self) -> bool:
        """Whether any rate is above zero."""
        return bool(self.lose or self.double or self.change)

    def apply(self, data: bytes, rng: random.Random) -> bytes:
        """What arrives of `data`."""
        out = bytearray()
        for byte in data:
            if self.lose and rng.random() < self.lose:
                continue
            if self.change and rng.random() < self.change:
                byte ^= 1 << rng.randrange(8)
            out.append(byte)
            if self.double and rng.random() < self.double:
                out.append(byte)
        return bytes(out)


@dataclass
class Faults:
    """All faults of one board; the defaults are a board without any.

    stuck_in_download: whatever IO0 says. no_answer: the board's transmit line is dead.
    garbage: what it sends is noise. to_board, from_board: the wire's quality.
    """

    stuck_in_download: bool = False
    no_answer: bool = False
    garbage: bool = False
    to_board: LineFaults = dataclasses.field(default_factory=LineFaults)
    from_board: LineFaults = dataclasses.field(default_factory=LineFaults)

    def update(self, values: dict[str, Any]) -> None:
        """Set some fields, as the control channel names them; raises ValueError."""
        for name, value in values.items():
            if name in ("to_board", "from_board"):
                setattr(self, name, LineFaults(**value))
            elif name in ("stuck_in_download", "no_answer", "garbage"):
                setattr(self, name, bool(value))
            else:
                raise ValueError(f"no fault is called {name!r}")


def noise(size: int, rng: random.Random) -> bytes:
    """What a receiver makes of bytes at another baud: as many wrong ones."""
    return rng.randbytes(size)
