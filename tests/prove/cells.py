# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole flash that costs as little as what was changed in it.

Hundreds of thousands of cut images differ from their start in a few sectors; copying 8 MiB for
each of them would take most of the time.
"""

from __future__ import annotations

import hashlib
from typing import cast, overload

from ota_service.formats.flashops import SECTOR_BYTES, Erase, FlashOp, Program
from tests.support.memory_flash import MemoryFlash, PowerCut

BLANK = b"\xff" * SECTOR_BYTES


class Cells:
    """A flash's cells: `base`, and the sectors that differ from it. Used like a bytearray."""

    def __init__(self, base: bytes, changed: dict[int, bytes] | None = None) -> None:
        self.base = base
        self.changed = dict(changed) if changed else {}

    def copy(self) -> Cells:
        """The same contents, to be changed apart."""
        return Cells(self.base, self.changed)

    def __len__(self) -> int:
        return len(self.base)

    def sector(self, number: int) -> bytes:
        """One sector's bytes."""
        found = self.changed.get(number)
        if found is not None:
            return found
        return self.base[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, int):
            return self.sector(key // SECTOR_BYTES)[key % SECTOR_BYTES]
        start, stop, _ = key.indices(len(self.base))
        return self.read(start, stop - start)

    def __setitem__(self, key: int | slice, value: int | bytes) -> None:
        if isinstance(key, int):
            self.write(key, bytes([cast(int, value)]))
        else:
            start, stop, _ = key.indices(len(self.base))
            data = bytes(cast(bytes, value))
            if len(data) != stop - start:
                raise ValueError("a flash keeps its size")
            self.write(start, data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes as they stand."""
        first, last = offset // SECTOR_BYTES, (offset + size_bytes - 1) // SECTOR_BYTES
        if first == last:
            at = offset % SECTOR_BYTES
            return self.sector(first)[at : at + size_bytes]
        if not any(number in self.changed for number in range(first, last + 1)):
            return self.base[offset : offset + size_bytes]
        joined = b"".join(self.sector(number) for number in range(first, last + 1))
        at = offset - first * SECTOR_BYTES
        return joined[at : at + size_bytes]

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite bytes, whatever stands there."""
        done = 0
        while done < len(data):
            number, at = divmod(offset + done, SECTOR_BYTES)
            part = data[done : done + SECTOR_BYTES - at]
            now = self.sector(number)
            self.changed[number] = now[:at] + part + now[at + len(part) :]
            done += len(part)

    def apply(self, op: FlashOp) -> None:
        """Carry an operation out, by NOR rules."""
        if isinstance(op, Erase):
            for number in range(
                op.offset // SECTOR_BYTES, (op.offset + op.size_bytes) // SECTOR_BYTES
            ):
                self.changed[number] = BLANK
        else:
            self.write(op.offset, both(self.read(op.offset, len(op.data)), op.data))

    def key(self) -> bytes:
        """A digest of what differs from the base; equal ones are the same image."""
        digest = hashlib.blake2b(digest_size=16)
        for number in sorted(self.changed):
            data = self.changed[number]
            if data != self.base[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]:
                digest.update(number.to_bytes(4, "little") + data)
        return digest.digest()

    def whole(self) -> bytes:
        """The flash as bytes."""
        flash = bytearray(self.base)
        for number, data in self.changed.items():
            flash[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES] = data
        return bytes(flash)


def both(a: bytes, b: bytes) -> bytes:
    """a AND b."""
    return (int.from_bytes(a, "big") & int.from_bytes(b, "big")).to_bytes(len(a), "big")


class CellFlash(MemoryFlash):
    """`MemoryFlash` over `Cells`; its trace says who did what."""

    def __init__(self, cells: Cells, *, cut_at: int | None = None) -> None:
        self.cells = cells
        self.data = cells  # type: ignore[assignment]  # used like one
        self.trace: list[FlashOp] = []
        self.cut_at = cut_at

    def _do(self, op: FlashOp) -> None:
        if self.cut_at is not None and len(self.trace) >= self.cut_at:
            raise PowerCut
        self.cells.apply(op)
        self.trace.append(op)


__all__ = ["BLANK", "CellFlash", "Cells", "Program", "both"]
