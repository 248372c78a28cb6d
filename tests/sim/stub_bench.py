# SPDX-License-Identifier: GPL-3.0-or-later
"""A stub loader without a port: the test is the wire, and all times are the chip's own."""

from __future__ import annotations

import asyncio
import struct

from esp32_sim import loader_common as lc
from esp32_sim import slip
from esp32_sim.chip import Registers
from esp32_sim.chips import CHIP_MAGIC_ADDRESS
from esp32_sim.config import BoardConfig
from esp32_sim.core import Core, Times
from esp32_sim.flash import NorFlash
from esp32_sim.loader_stub import StubLoader

BYTE_S = 10 / 921600


def request(op: int, data: bytes, block: bytes = b"") -> bytes:
    """One request, ready for the wire."""
    header = struct.pack("<BBHI", 0, op, len(data) + len(block), lc.checksum(block))
    return slip.encode(header + data + block)


def read_reg() -> bytes:
    """A request whose answer everybody knows."""
    return slip.encode(struct.pack("<BBHII", 0, lc.READ_REG, 4, 0, CHIP_MAGIC_ADDRESS))


class Bench:
    """A stub whose wire is the test: bytes arrive when it says, answers are kept."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, bytes]] = []
        self._more = asyncio.Event()
        # Nowhere blank.
        self.flash = NorFlash(bytearray(1 << 20))
        self.core = Core(self.flash, Times(), self._send, lambda baud: None)
        self.registers = Registers(BoardConfig(), self.flash)
        self.registers.core = self.core
        self.start_s = self.core.time_s
        self.task = asyncio.create_task(StubLoader(self.core, self.registers).run())

    def _send(self, data: bytes, at_s: float) -> float:
        self.sent.append((at_s - self.start_s, slip.Decoder().feed(data)[0]))
        self._more.set()
        return at_s

    async def answers(self, count: int) -> list[tuple[float, bytes]]:
        """Wait for so many frames, the greeting among them."""
        while len(self.sent) < count:
            self._more.clear()
            await self._more.wait()
        return self.sent

    def receive(self, data: bytes, begins_s: float) -> None:
        """Bytes at 921600 from a time on."""
        self.core.receive(data, self.start_s + begins_s + len(data) * BYTE_S, BYTE_S)
