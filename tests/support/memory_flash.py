# SPDX-License-Identifier: GPL-3.0-or-later
"""A flash in memory, by NOR rules: implements the product's `Flash`, and can lose its power."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

from ota_service.formats.flashops import (
    PAGE_BYTES,
    SECTOR_BYTES,
    Erase,
    FlashOp,
    Program,
    apply_ops,
)
from ota_service.link.flash import Progress
from ota_service.link.sparse import Region
from ota_service.link.stream import SlotStream


class PowerCut(Exception):
    """Raised by `MemoryFlash` in place of the operation at which its power was to fail."""


class MemoryFlash:
    """A flash in memory, by NOR rules: implements `Flash`.

    data: the whole flash from address 0. trace: the operations done, in order.
    cut_at: the number of operations after which power fails (`PowerCut`); None: never.
    """

    def __init__(self, data: bytes | bytearray, *, cut_at: int | None = None) -> None:
        self.data = bytearray(data)
        self.trace: list[FlashOp] = []
        self.cut_at = cut_at

    def read(self, offset: int, size_bytes: int) -> bytes:
        """The bytes at `offset`; raises ValueError beyond the end."""
        self._check(offset, size_bytes)
        return bytes(self.data[offset : offset + size_bytes])

    def prefetch(self, regions: Sequence[Region]) -> None:
        """Nothing to do: all of it is at hand."""

    def md5(self, offset: int, size_bytes: int) -> str:
        """The MD5 of a region as hex."""
        return hashlib.md5(self.read(offset, size_bytes)).hexdigest()

    def erase(self, offset: int, size_bytes: int) -> None:
        """Erase sector by sector, each an operation of its own."""
        self._check(offset, size_bytes)
        for at in range(offset, offset + size_bytes, SECTOR_BYTES):
            self._do(Erase(at, SECTOR_BYTES))

    def program(self, offset: int, data: bytes) -> None:
        """Program one page; raises ValueError where it would wrap."""
        self._check(offset, len(data))
        self._do(Program(offset, data))

    def write_stream(self, offset: int, stream: SlotStream, progress: Progress) -> None:
        """As the stub loader: erase all sectors first, then program page by page."""
        data = zlib.decompress(b"".join(block.data for block in stream.blocks))
        if len(data) != stream.size_bytes:
            raise ValueError(f"{len(data)} bytes came out of a stream for {stream.size_bytes}")
        self.erase(offset, -(-len(data) // SECTOR_BYTES) * SECTOR_BYTES)
        for at in range(0, len(data), PAGE_BYTES):
            progress(at)
            page = data[at : at + PAGE_BYTES]
            if page.strip(b"\xff"):
                self._do(Program(offset + at, page))
        progress(len(data))

    def _do(self, op: FlashOp) -> None:
        if self.cut_at is not None and len(self.trace) >= self.cut_at:
            raise PowerCut
        apply_ops(self.data, [op])
        self.trace.append(op)

    def _check(self, offset: int, size_bytes: int) -> None:
        if offset < 0 or offset + size_bytes > len(self.data):
            raise ValueError(f"{size_bytes} bytes at {offset:#x} are beyond the flash")
