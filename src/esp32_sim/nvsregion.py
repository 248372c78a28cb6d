# SPDX-License-Identifier: GPL-3.0-or-later
"""Where NVS lives: a bytearray that remembers its writes, or the flash of a running board; plain
or encrypted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from esp32_sim.flash import NorFlash, Who
from esp32_sim.nvsformat import ENTRIES_OFFSET, ENTRY_BYTES, SECTOR, Region


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


class EncryptedRegion:
    """A partition whose entries are encrypted, and nothing else of it (ESP-IDF's documentation,
    "NVS Encryption").

    ESP-IDF uses XTS-AES with an entry's place as its number; here a stream by key and place stands
    for it. What does not have the key sees noise either way.
    """

    def __init__(self, region: Region, key: str) -> None:
        self._region = region
        self._key = key.encode()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._region.size

    def read(self, offset: int, size: int) -> bytes:
        """Bytes as the firmware sees them. Blank entries are found blank (Partition::read_raw)."""
        data = bytearray(self._region.read(offset, size))
        for at in range(offset - offset % ENTRY_BYTES, offset + size, ENTRY_BYTES):
            entry = slice(max(0, at - offset), max(0, at - offset) + ENTRY_BYTES)
            if at % SECTOR >= ENTRIES_OFFSET and data[entry] != b"\xff" * ENTRY_BYTES:
                data[entry] = self._crypted(at, data[entry])
        return bytes(data)

    def program(self, offset: int, data: bytes) -> None:
        """Clear bits: of headers and states as they are, of whole entries encrypted."""
        if offset % SECTOR >= ENTRIES_OFFSET:
            parts = (data[at : at + ENTRY_BYTES] for at in range(0, len(data), ENTRY_BYTES))
            data = b"".join(
                self._crypted(offset + number * ENTRY_BYTES, part)
                for number, part in enumerate(parts)
            )
        self._region.program(offset, data)

    def erase_sector(self, offset: int) -> None:
        """Set 4 KiB to 0xFF."""
        self._region.erase_sector(offset)

    def _crypted(self, at: int, entry: bytes | bytearray) -> bytes:
        stream = hashlib.sha256(self._key + at.to_bytes(4, "little")).digest()
        return bytes(a ^ b for a, b in zip(entry, stream, strict=True))


def with_key(region: Region, key: str) -> Region:
    """The same region, encrypted where there is a key."""
    return EncryptedRegion(region, key) if key else region
