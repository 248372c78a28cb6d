# SPDX-License-Identifier: GPL-3.0-or-later
"""Where NVS lives: a bytearray that remembers its writes, or the flash of a running board."""

from __future__ import annotations

from dataclasses import dataclass

from esp32_sim.flash import NorFlash, Who
from esp32_sim.nvsformat import SECTOR


@dataclass(frozen=True, slots=True)
class Write:
    """One write of the firmware: offset in the partition; data is empty for a sector erase."""

    offset: int
    data: bytes


class MemoryRegion:
    """A partition in a bytearray, under NOR rules; remembers every write."""

    def __init__(self, cells: bytearray) -> None:
        self.cells = cells
        self.writes: list[Write] = []

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.cells)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes as they stand."""
        return bytes(self.cells[offset : offset + size])

    def program(self, offset: int, data: bytes) -> None:
        """Clear bits."""
        old = int.from_bytes(self.cells[offset : offset + len(data)], "big")
        new = old & int.from_bytes(data, "big")
        self.cells[offset : offset + len(data)] = new.to_bytes(len(data), "big")
        self.writes.append(Write(offset, bytes(data)))

    def erase_sector(self, offset: int) -> None:
        """Set 4 KiB to 0xFF."""
        self.cells[offset : offset + SECTOR] = b"\xff" * SECTOR
        self.writes.append(Write(offset, b""))


class FlashRegion:
    """A partition of a board's flash."""

    def __init__(self, flash: NorFlash, base: int, size: int, who: Who = "app") -> None:
        self._flash = flash
        self._base = base
        self._size = size
        self._who: Who = who

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        """Bytes as they stand."""
        return self._flash.read(self._base + offset, size)

    def program(self, offset: int, data: bytes) -> None:
        """Clear bits, one page program after the other."""
        self._flash.program(self._base + offset, data, self._who)

    def erase_sector(self, offset: int) -> None:
        """Set 4 KiB to 0xFF."""
        self._flash.erase(self._base + offset, SECTOR, self._who)
