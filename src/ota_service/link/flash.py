# SPDX-License-Identifier: GPL-3.0-or-later
"""What the steps of an update need of a board's flash, whatever is behind it.

`Flash` is the protocol, which the link to a real board implements; over anything else that does,
the same planner and the same steps can be run, cut and repeated without a board.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase, FlashOp, Program
from ota_service.link.sparse import Region, blank_digest, digest

if TYPE_CHECKING:
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
            if flash.md5(op.offset, op.size_bytes) != blank_digest(op.size_bytes):
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
    if flash.md5(op.offset, len(op.data)) == digest(wanted):
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


_BP_MASK, _TB, _SEC = 0x1C, 0x20, 0x40


@dataclass(frozen=True, slots=True)
class Protection:
    """A flash chip's first status register, and what its block-protect bits cover (W25Q64 data
    sheet)."""

    status: int
    flash_bytes: int | None

    def covers(self, offset: int, size_bytes: int) -> bool:
        """Whether a place is protected, by the Winbond scheme that most chips follow.

        BP2..0 protect the upper (TB = 0) or lower part of the flash in powers of two of 1/64;
        what is not understood counts as covered.
        """
        level = (self.status & _BP_MASK) >> 2
        if level == 0:
            return False
        if self.status & _SEC or level == 7 or self.flash_bytes is None:
            return True
        covered = (self.flash_bytes // 64) << (level - 1)
        if self.status & _TB:
            return offset < covered
        return offset + size_bytes > self.flash_bytes - covered
