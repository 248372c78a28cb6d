# SPDX-License-Identifier: GPL-3.0-or-later
"""Flash operations as values: what an edit of otadata or NVS returns, in its order.

An edit is an ordered list of `Erase` and `Program`. Power may fail between any two of them, or
within one; the edits in this package are made so that the board survives that. Whoever carries
them out reads every operation back before the next one.

NOR rules (esp32.md, "Flash"): a program can only turn 1 bits into 0 and stays inside one page
of 256 bytes; an erase sets whole sectors of 4096 bytes to 0xFF.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SECTOR_BYTES = 0x1000
PAGE_BYTES = 0x100


@dataclass(frozen=True, slots=True)
class Erase:
    """Set `size_bytes` bytes from flash address `offset` to 0xFF; both sector-aligned."""

    offset: int
    size_bytes: int
    reason: str = ""

    def __post_init__(self) -> None:
        if self.offset % SECTOR_BYTES or self.size_bytes % SECTOR_BYTES or self.size_bytes <= 0:
            raise ValueError(f"erase of {self.size_bytes:#x} bytes at {self.offset:#x}")


@dataclass(frozen=True, slots=True)
class Program:
    """AND `data` into flash from address `offset`; never crosses a 256-byte page."""

    offset: int
    data: bytes
    reason: str = ""

    def __post_init__(self) -> None:
        end = self.offset % PAGE_BYTES + len(self.data)
        if not self.data or end > PAGE_BYTES:
            raise ValueError(f"program of {len(self.data)} bytes at {self.offset:#x}")


FlashOp = Erase | Program


def program(offset: int, data: bytes, reason: str = "") -> list[FlashOp]:
    """`data` at flash address `offset` as programs that each stay inside one page, in order."""
    ops: list[FlashOp] = []
    done = 0
    while done < len(data):
        room = PAGE_BYTES - (offset + done) % PAGE_BYTES
        ops.append(Program(offset + done, data[done : done + room], reason))
        done += room
    return ops


def apply_ops(flash: bytearray, ops: Iterable[FlashOp], base: int = 0) -> None:
    """Carry `ops` out on `flash`, whose first byte is flash address `base`, by NOR rules."""
    for op in ops:
        start = op.offset - base
        if isinstance(op, Erase):
            if start < 0 or start + op.size_bytes > len(flash):
                raise ValueError(f"erase outside of the given flash at {op.offset:#x}")
            flash[start : start + op.size_bytes] = b"\xff" * op.size_bytes
        else:
            if start < 0 or start + len(op.data) > len(flash):
                raise ValueError(f"program outside of the given flash at {op.offset:#x}")
            end = start + len(op.data)
            now = int.from_bytes(flash[start:end], "little")
            after = now & int.from_bytes(op.data, "little")
            flash[start:end] = after.to_bytes(len(op.data), "little")


class Recorder:
    """Operations collected one after the other, with the bytes as they are after them."""

    def __init__(self, data: bytes | bytearray, base: int) -> None:
        self.flash = bytearray(data)
        self.base = base
        self.ops: list[FlashOp] = []

    def add(self, ops: list[FlashOp]) -> None:
        """Carry these out as well."""
        apply_ops(self.flash, ops, self.base)
        self.ops += ops
