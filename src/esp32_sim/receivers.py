# SPDX-License-Identifier: GPL-3.0-or-later
"""How a loader gets its frames out of what arrives: the interface, and the boot ROM's way."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from esp32_sim import slip


class Receiver(Protocol):
    """Takes what arrives on the wire, and gives whole frames to the loader's main loop."""

    def add(self, data: bytes, arrival_s: float, byte_s: float) -> None:
        """Bytes that follow one another every `byte_s`; the last one arrives at `arrival_s`."""

    def take(self, idle_s: float, now_s: float) -> tuple[float, bytes] | None:
        """The next frame, and when the receiver had it.

        idle_s: since when the main loop waits for it. now_s: what arrived until then is known.
        """

    @property
    def due_s(self) -> float | None:
        """When `take` may give more although nothing else arrives."""


class RomReceiver:
    """The boot ROM's, which is taken to lose nothing, however fast frames follow another."""

    def __init__(self) -> None:
        self._decoder = slip.Decoder()
        self._frames: deque[tuple[float, bytes]] = deque()

    def add(self, data: bytes, arrival_s: float, byte_s: float) -> None:
        """See `Receiver`; a frame counts as received with the last byte of its write."""
        self._frames.extend((arrival_s, frame) for frame in self._decoder.feed(data))

    def take(self, idle_s: float, now_s: float) -> tuple[float, bytes] | None:
        """See `Receiver`."""
        return self._frames.popleft() if self._frames else None

    @property
    def due_s(self) -> float | None:
        """See `Receiver`."""
        return None
