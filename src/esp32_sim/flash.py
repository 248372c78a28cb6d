# SPDX-License-Identifier: GPL-3.0-or-later
"""NOR flash: what a 25Q-series chip does with program and erase, operation by operation.

Rules (esp32.md, Winbond W25Q64 data sheet): programming only clears bits and stays inside one
256-byte page; erasing sets a whole sector or block to 0xFF; protected places ignore both in
silence. Every operation has a number, so that power can be cut at any of them, and within.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PAGE_BYTES = 256
SECTOR_BYTES = 4096
BLOCK_BYTES = 65536

# Status register 1 (W25Q64 data sheet): bits that WRSR can change, and their meaning.
SR1_BUSY = 0x01
SR1_WEL = 0x02
SR1_BP_SHIFT = 2
SR1_BP_MASK = 0x1C
SR1_TOP_BOTTOM = 0x20
SR1_SRP0 = 0x80
SR1_WRITABLE = 0xFC

CutMode = Literal["before", "whole", "torn", "torn-prefix", "torn-bits"]
Who = Literal["loader", "bootloader", "app", "host"]


class PowerLossError(Exception):
    """Raised inside the chip when a flash operation met the requested power cut."""


@dataclass(frozen=True, slots=True)
class FlashOp:
    """One operation that reached the flash.

    data is what was sent (programs only), not what the cells hold afterwards.
    outcome: done, torn (power lost within), cut (power lost before), ignored (protected or
    told to ignore).
    """

    number: int
    kind: Literal["program", "erase"]
    address: int
    size: int
    data: bytes
    who: Who
    outcome: str

    def to_json(self) -> dict[str, Any]:
        """As the control channel carries it, data in hex."""
        return {
            "number": self.number,
            "kind": self.kind,
            "address": self.address,
            "size": self.size,
            "data": self.data.hex(),
            "who": self.who,
            "outcome": self.outcome,
        }


class NorFlash:
    """A flash chip over any mutable buffer: a bytearray, or a file (see `open_file`).

    The size of the buffer is the size of the chip, 1 to 32 MiB, a power of two.
    """

    def __init__(self, cells: bytearray | mmap.mmap, *, seed: int = 0) -> None:
        size = len(cells)
        if size & (size - 1) or not 1 << 20 <= size <= 1 << 25:
            raise ValueError(f"a flash of {size} bytes does not exist: 1, 2, 4, 8, 16 or 32 MiB")
        self._cells = cells
        self.size = size
        self.status1 = 0
        self.status2 = 0
        self.write_enabled = False
        self.status_locked = False
        self.ignore_program = False
        self.op_count = 0
        self.program_count = 0
        self.erase_count = 0
        self.tracing = False
        self.trace: list[FlashOp] = []
        self.on_op: Callable[[FlashOp], None] | None = None
        self._cut_at: int | None = None
        self._cut_mode: CutMode = "whole"
        self._random = random.Random(seed)

    @classmethod
    def open_file(cls, path: Path, *, seed: int = 0) -> NorFlash:
        """The chip whose cells are a file: what is programmed survives a killed process."""
        with path.open("r+b") as file:
            return cls(mmap.mmap(file.fileno(), 0), seed=seed)

    def close(self) -> None:
        """Let go of the file."""
        if isinstance(self._cells, mmap.mmap):
            with contextlib.suppress(ValueError):
                self._cells.flush()
                self._cells.close()

    # --- reading

    @property
    def jedec_id(self) -> bytes:
        """Manufacturer, memory type, log2 of the size: as a Winbond 25Q answers 0x9F."""
        return bytes((0xEF, 0x40, self.size.bit_length() - 1))

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes; addresses wrap at the end of the chip, as on silicon."""
        address %= self.size
        data = bytes(self._cells[address : address + size])
        if len(data) < size:
            data += self.read(0, size - len(data))
        return data

    # --- changing

    def cut_power_at(self, op_from_now: int, mode: CutMode = "whole") -> None:
        """Lose power at the k-th operation from now (1 = the next one).

        before: it does not happen. whole: it happens, then power is lost. torn-prefix: the
        first bytes of a program (the first part of an erase). torn-bits: a random subset of
        its bits. torn: one of the two.
        """
        if op_from_now < 1:
            raise ValueError("operations are counted from 1")
        self._cut_at = self.op_count + op_from_now
        self._cut_mode = mode

    def cancel_cut(self) -> None:
        """Forget a cut that has not happened yet."""
        self._cut_at = None

    def program(self, address: int, data: bytes, who: Who) -> int:
        """Program any length, page by page; returns the number of operations."""
        count = 0
        at = 0
        while at < len(data):
            step = PAGE_BYTES - (address + at) % PAGE_BYTES
            self.program_page(address + at, data[at : at + step], who)
            at += step
            count += 1
        return count

    def program_page(self, address: int, data: bytes, who: Who) -> None:
        """One page program command; what leaves the page wraps to the page's start.

        More than 256 bytes: only the last 256 count (W25Q64 data sheet, 8.2.13).
        """
        page = address % self.size & ~(PAGE_BYTES - 1)
        offset = address % PAGE_BYTES
        if len(data) > PAGE_BYTES:
            offset = (offset + len(data) - PAGE_BYTES) % PAGE_BYTES
            data = data[-PAGE_BYTES:]
        head = data[: PAGE_BYTES - offset]
        tail = data[len(head) :]
        outcome = self._begin(self.is_protected(page) or self.ignore_program)
        if outcome == "torn":
            head, tail = self._tear_program(head, tail)
        if outcome in ("done", "torn", "whole"):
            self._clear_bits(page + offset, head)
            if tail:
                self._clear_bits(page, tail)
        self.program_count += 1
        self._end("program", page + offset, len(data), data, who, outcome)

    def erase(self, address: int, size: int, who: Who) -> None:
        """Erase the sector (4096) or block (65536) that holds `address`."""
        if size not in (SECTOR_BYTES, BLOCK_BYTES):
            raise ValueError(f"no erase command for {size} bytes")
        start = address % self.size & ~(size - 1)
        protected = any(self.is_protected(at) for at in range(start, start + size, SECTOR_BYTES))
        outcome = self._begin(protected)
        if outcome in ("done", "whole"):
            self._cells[start : start + size] = b"\xff" * size
        elif outcome == "torn":
            self._tear_erase(start, size)
        self.erase_count += 1
        self._end("erase", start, size, b"", who, outcome)

    def erase_range(self, address: int, size: int, who: Who) -> None:
        """Erase whole sectors, in 64 KiB blocks where they fit."""
        end = address + size
        while address < end:
            step = next_erase_bytes(address, end - address)
            self.erase(address, step, who)
            address += step

    def load(self, data: bytes) -> None:
        """Replace the contents as a factory programmer would; no operation, no rules."""
        if len(data) != self.size:
            raise ValueError(f"{len(data)} bytes do not fill a flash of {self.size}")
        self._cells[0 : self.size] = data

    def poke(self, address: int, data: bytes) -> None:
        """Overwrite bytes from outside, for a test's set-up; no operation, no rules."""
        self._cells[address : address + len(data)] = data

    # --- protection

    def is_protected(self, address: int) -> bool:
        """Whether the block-protect bits of status register 1 cover `address`."""
        level = (self.status1 & SR1_BP_MASK) >> SR1_BP_SHIFT
        if level == 0:
            return False
        covered = self.size >> (7 - level)
        if self.status1 & SR1_TOP_BOTTOM:
            return address % self.size < covered
        return address % self.size >= self.size - covered

    def write_status1(self, value: int) -> None:
        """WRSR; without effect where the status register is locked by the WP pin."""
        if not self.status_locked:
            self.status1 = value & SR1_WRITABLE

    # --- how one operation goes

    def _begin(self, ignored: bool) -> str:
        self.op_count += 1
        if self._cut_at is not None and self.op_count >= self._cut_at:
            if self._cut_mode == "before" or ignored:
                return "cut"
            return "whole" if self._cut_mode == "whole" else "torn"
        return "ignored" if ignored else "done"

    def _end(
        self,
        kind: Literal["program", "erase"],
        address: int,
        size: int,
        data: bytes,
        who: Who,
        outcome: str,
    ) -> None:
        lost = outcome in ("cut", "whole", "torn")
        if self.tracing or self.on_op is not None:
            shown = "done" if outcome == "whole" else outcome
            op = FlashOp(self.op_count, kind, address, size, data, who, shown)
            if self.tracing:
                self.trace.append(op)
            if self.on_op is not None:
                self.on_op(op)
        if lost:
            self._cut_at = None
            raise PowerLossError(f"power lost at flash operation {self.op_count}")

    def _clear_bits(self, address: int, data: bytes) -> None:
        size = len(data)
        old = int.from_bytes(self._cells[address : address + size], "big")
        new = old & int.from_bytes(data, "big")
        self._cells[address : address + size] = new.to_bytes(size, "big")

    def _torn_kind(self) -> CutMode:
        if self._cut_mode != "torn":
            return self._cut_mode
        return self._random.choice(("torn-prefix", "torn-bits"))

    def _tear_program(self, head: bytes, tail: bytes) -> tuple[bytes, bytes]:
        data = head + tail
        if self._torn_kind() == "torn-prefix":
            kept = self._random.randrange(len(data)) if data else 0
            data = data[:kept] + b"\xff" * (len(data) - kept)
        else:
            data = bytes(byte | self._random.getrandbits(8) for byte in data)
        return data[: len(head)], data[len(head) :]

    def _tear_erase(self, start: int, size: int) -> None:
        if self._torn_kind() == "torn-prefix":
            half = self._random.randrange(1, size // PAGE_BYTES) * PAGE_BYTES
            self._cells[start : start + half] = b"\xff" * half
            return
        old = int.from_bytes(self._cells[start : start + size], "big")
        new = old | self._random.getrandbits(size * 8)
        self._cells[start : start + size] = new.to_bytes(size, "big")


def next_erase_bytes(address: int, remaining: int) -> int:
    """The erase that the ROM and the stub choose: a block where one fits, else a sector."""
    if address % BLOCK_BYTES == 0 and remaining >= BLOCK_BYTES:
        return BLOCK_BYTES
    return SECTOR_BYTES


def create_file(path: Path, data: bytes) -> None:
    """Write a flash file with mode 600: it holds a board's secrets."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
