# SPDX-License-Identifier: GPL-3.0-or-later
"""The chip's processor as the loaders and the app see it: its time, its UART, its flash.

The processor's time runs in the event loop's seconds. It may be ahead of the loop by a few
milliseconds: work is done at once, and only its answer waits for the time at which the chip
would have given it. So deadlines are exact and never add up scheduling delays.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields

from esp32_sim import slip
from esp32_sim.flash import (
    BLOCK_BYTES,
    PAGE_BYTES,
    SECTOR_BYTES,
    NorFlash,
    Who,
    next_erase_bytes,
)
from esp32_sim.receivers import Receiver, RomReceiver

# How far the processor may run ahead of the event loop before it waits.
AHEAD_S = 0.003
# What a loader reaches by the flash's commands with 3-byte addresses.
SHORT_REACH_BYTES = 1 << 24
# So many writes are remembered for a receiver that is attached while they are on the wire.
UNDERWAY = 8


@dataclass(frozen=True, slots=True)
class Times:
    """How long things take, in seconds; all zero for a board without times.

    Flash: 25Q64 data sheets (esp32.md, "Flash"). Commands: measured on ESP32 boards with
    esptool's stub (esp32.md, "Talking to the chip"). stub_start_s: the stub's own wait before it
    receives and greets (espressif/esp-flasher-stub, main.c).
    """

    timed: bool = True
    page_program_s: float = 0.0005
    sector_erase_s: float = 0.045
    block_erase_s: float = 0.175
    command_s: float = 0.00005
    block_s: float = 0.002
    md5_call_s: float = 0.002
    md5_s_per_mib: float = 0.025
    read_s_per_mib: float = 0.1
    boot_s: float = 0.06
    stub_start_s: float = 0.01
    latency_s: float = 0.001
    erase_factor: float = 1.0

    @classmethod
    def off(cls) -> Times:
        """Everything at once."""
        return cls(False, *([0.0] * (len(fields(cls)) - 1)))

    def wire_s(self, size_bytes: int, baud: int) -> float:
        """8N1: ten bits a byte."""
        return size_bytes * 10 / baud if self.timed else 0.0

    def flash_s(self, kind: str, size_bytes: int) -> float:
        """One flash operation."""
        if kind == "program":
            return self.page_program_s
        usual_s = self.block_erase_s if size_bytes == BLOCK_BYTES else self.sector_erase_s
        return usual_s * self.erase_factor


class Core:
    """One power-up of the processor: made at reset, thrown away at the next one."""

    def __init__(
        self,
        flash: NorFlash,
        times: Times,
        send: Callable[[bytes, float], float],
        set_baud: Callable[[int], None],
    ) -> None:
        """Make one; send(data, at_s) returns when the last byte is in the UART's FIFO."""
        self.flash = flash
        self.times = times
        self._send = send
        self.set_baud = set_baud
        self._loop = asyncio.get_running_loop()
        self.time_s = self._loop.time()
        self.flash_ready_s = 0.0
        self.reach_bytes = SHORT_REACH_BYTES
        self._unknown_until_s = 0.0
        self._receiver: Receiver = RomReceiver()
        self._underway: deque[tuple[bytes, float, float]] = deque(maxlen=UNDERWAY)
        self._arrived = asyncio.Event()

    # --- time

    def spend(self, seconds: float) -> None:
        """The processor is busy for so long."""
        self.time_s += seconds

    async def settle(self) -> None:
        """Wait until the event loop has nearly reached the processor's time."""
        ahead = self.time_s - self._loop.time()
        if ahead > AHEAD_S:
            await asyncio.sleep(ahead)

    def catch_up(self) -> None:
        """The processor was idle until now."""
        self.time_s = max(self.time_s, self._loop.time())

    async def sleep(self, seconds: float) -> None:
        """Idle for so long, in real time."""
        self.time_s = max(self.time_s, self._loop.time()) + seconds
        delay = self.time_s - self._loop.time()
        await asyncio.sleep(max(0.0, delay))

    # --- the UART

    def receive(self, data: bytes, arrival_s: float, byte_s: float = 0.0) -> None:
        """Bytes, one every `byte_s`, whose last one arrives at `arrival_s`."""
        self._underway.append((data, arrival_s, byte_s))
        self._receiver.add(data, arrival_s, byte_s)
        self._arrived.set()

    def attach(self, receiver: Receiver) -> None:
        """From now on another program's receiver gets what arrives."""
        self._receiver = receiver
        for data, arrival_s, byte_s in self._underway:
            if arrival_s > self.time_s:
                receiver.add(data, arrival_s, byte_s)

    async def frame(self) -> bytes:
        """The next SLIP frame's contents; the processor's time becomes its arrival."""
        while (found := self._receiver.take(self.time_s, self._loop.time())) is None:
            self._arrived.clear()
            due_s = self._receiver.due_s
            due = self._loop.call_at(due_s, self._arrived.set) if due_s is not None else None
            try:
                await self._arrived.wait()
            finally:
                if due is not None:
                    due.cancel()
        arrival_s, frame = found
        self.time_s = max(self.time_s, arrival_s)
        await self.settle()
        return frame

    def send_frame(self, payload: bytes) -> None:
        """Send one SLIP frame."""
        self._transmit(slip.encode(payload))

    def print(self, text: str) -> None:
        """Write text to the console."""
        self._transmit(text.encode("utf-8", "replace"))

    def _transmit(self, data: bytes) -> None:
        """Hand bytes to the UART; the processor waits for what its FIFO does not hold."""
        self.time_s = max(self.time_s, self._send(data, self.time_s))

    # --- the flash, as code on the chip uses it

    def reach(self, address: int) -> int:
        """Where in the flash a command ends up: what its address cannot express is lost."""
        return address % self.reach_bytes

    def wait_flash(self) -> None:
        """Wait until the flash's last operation is over."""
        self.time_s = max(self.time_s, self.flash_ready_s)

    def occupy_flash(self, kind: str, size_bytes: int, *, known: bool = True) -> None:
        """The flash works on an operation from now on.

        known: to the code on the chip, which did not start it where the host did, by registers.
        """
        self.flash_ready_s = self.time_s + self.times.flash_s(kind, size_bytes)
        if not known:
            self._unknown_until_s = self.flash_ready_s

    def read_flash(self, address: int, size_bytes: int, s_per_mib: float) -> bytes:
        """Read as code on the chip does; it waits for operations that it started itself.

        While the flash works on another one it ignores reads, and the line floats: all ones.
        """
        if self.time_s >= self._unknown_until_s:
            self.wait_flash()
            self.spend(s_per_mib * size_bytes / (1 << 20))
            return self.flash.read(self.reach(address), size_bytes)
        data = bytearray()
        for at in range(address, address + size_bytes, SECTOR_BYTES):
            size = min(SECTOR_BYTES, address + size_bytes - at)
            ignored = self.time_s < self._unknown_until_s
            data += b"\xff" * size if ignored else self.flash.read(self.reach(at), size)
            self.spend(s_per_mib * size / (1 << 20))
        return bytes(data)

    def flash_is_busy(self) -> bool:
        """Whether an erase or a program still runs."""
        return self.time_s < self.flash_ready_s

    def start_erase(self, address: int, size_bytes: int, who: Who) -> None:
        """Begin to erase one sector or block; the flash is busy afterwards."""
        self.wait_flash()
        self.flash.write_enabled = False
        self.flash.erase(self.reach(address), size_bytes, who)
        self.occupy_flash("erase", size_bytes)

    async def erase_range(self, address: int, size_bytes: int, who: Who) -> None:
        """Erase whole sectors and wait for the end."""
        end = address + size_bytes
        while address < end:
            step = next_erase_bytes(address, end - address)
            self.start_erase(address, step, who)
            self.wait_flash()
            await self.settle()
            address += step

    async def program(self, address: int, data: bytes, who: Who) -> None:
        """Program any length page by page and wait for the end."""
        at = 0
        self.flash.write_enabled = False
        while at < len(data):
            step = PAGE_BYTES - (address + at) % PAGE_BYTES
            self.wait_flash()
            self.flash.program_page(self.reach(address + at), data[at : at + step], who)
            self.occupy_flash("program", step)
            at += step
            if self.times.timed and self.flash_ready_s - self._loop.time() > 0.02:
                self.wait_flash()
                await self.settle()
        self.wait_flash()


def sector_span(address: int, size_bytes: int) -> tuple[int, int]:
    """(start, size) of the whole sectors that hold a range."""
    start = address & ~(SECTOR_BYTES - 1)
    end = -(-(address + size_bytes) // SECTOR_BYTES) * SECTOR_BYTES
    return start, end - start
