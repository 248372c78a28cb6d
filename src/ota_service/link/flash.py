# SPDX-License-Identifier: GPL-3.0-or-later
"""What the steps of an update need of a board's flash, whatever is behind it.

`Flash` is the protocol; the link to a real board implements it, and so does `MemoryFlash`,
which enforces NOR rules on bytes in memory and records what was done, so that the same planner
and the same steps can be run, cut and repeated without a board.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from ota_service.errors import OtaError
from ota_service.formats.flashops import (
    PAGE_BYTES,
    SECTOR_BYTES,
    Erase,
    FlashOp,
    Program,
    apply_ops,
)

if TYPE_CHECKING:
    from ota_service.link.sparse import Region
    from ota_service.link.stream import SlotStream

Progress = Callable[[int], None]
"""Called with the uncompressed bytes written so far; raises to stop between two blocks."""


class Flash(Protocol):
    """A board's flash. Addresses and sizes are bytes; every call blocks.

    Raises OtaError `link-lost` where the board stops answering.
    """

    def read(self, offset: int, size_bytes: int) -> bytes:
        """The bytes at `offset`."""

    def prefetch(self, regions: Sequence[Region]) -> None:
        """Have these regions ready for `read`, by fewer bytes where they are mostly blank."""

    def md5(self, offset: int, size_bytes: int) -> str:
        """The MD5 of a region as 32 lower-case hex digits, computed by the board."""

    def erase(self, offset: int, size_bytes: int) -> None:
        """Set whole sectors to 0xFF."""

    def program(self, offset: int, data: bytes) -> None:
        """AND `data` into one page, without an erase."""

    def write_stream(self, offset: int, stream: SlotStream, progress: Progress) -> None:
        """Erase the sectors that the stream covers, and write it at `offset`.

        Returns when the last byte is in flash.
        """


def apply_verified(flash: Flash, ops: Iterable[FlashOp]) -> None:
    """Carry `ops` out in their order; each is read back before the next one begins.

    Raises OtaError `flash-protected` where the flash did not take an operation: protected chips
    ignore commands in silence (esp32.md, "Talking to the chip").
    """
    for op in ops:
        if isinstance(op, Erase):
            flash.erase(op.offset, op.size_bytes)
            if flash.md5(op.offset, op.size_bytes) != _md5(b"\xff" * op.size_bytes):
                raise OtaError(
                    "flash-protected",
                    f"The flash did not erase {op.size_bytes} bytes at {op.offset:#x}.",
                )
        else:
            program_verified(flash, op)


def program_verified(flash: Flash, op: Program) -> None:
    """Program one page and read it back.

    Raises OtaError `flash-protected` where the flash took nothing of it, `verify-failed` where
    it took something else: then the bytes were changed on their way.
    """
    before = flash.read(op.offset, len(op.data))
    wanted = bytes(a & b for a, b in zip(before, op.data, strict=True))
    if before == wanted:
        return  # already so: nothing to do, and a page saved from wear
    flash.program(op.offset, op.data)
    if flash.md5(op.offset, len(op.data)) == _md5(wanted):
        return
    after = flash.read(op.offset, len(op.data))
    if after == wanted:
        return
    if after == before:
        raise OtaError(
            "flash-protected",
            f"The flash did not take {len(op.data)} bytes programmed at {op.offset:#x}.",
        )
    raise OtaError(
        "verify-failed",
        f"{len(op.data)} bytes programmed at {op.offset:#x} are not what was sent.",
    )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


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
        return _md5(self.read(offset, size_bytes))

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
