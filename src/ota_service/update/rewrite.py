# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes places of a flash in such an order that nothing starts before all of them are written.

The board's partition table goes first and the new one comes last. In between nothing boots, so
that no firmware runs on a half-written flash and takes a moved NVS for a damaged one; download
mode answers all the time, and the same again does the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ota_service.errors import OtaError
from ota_service.formats.flashops import SECTOR_BYTES, Erase
from ota_service.link.flash import Flash, Progress, apply_verified
from ota_service.link.stream import make_plain_stream


@dataclass(frozen=True, slots=True)
class Write:
    """Whole sectors to be written. name: what they are, for messages."""

    name: str
    offset: int
    data: bytes = field(repr=False)


class Rewrite(Protocol):
    """What is to be written. writes: in this order; table: the last one of all."""

    @property
    def writes(self) -> tuple[Write, ...]:
        """Everything but the table."""

    @property
    def table(self) -> Write:
        """The sector of the partition table."""


def total_bytes(plan: Rewrite) -> int:
    """How much is written."""
    return sum(len(write.data) for write in (*plan.writes, plan.table))


def rewrite(
    flash: Flash,
    plan: Rewrite,
    *,
    old_tables: Iterable[int],
    standing: Sequence[Write] = (),
    verifying: Callable[[], None],
    progress: Progress,
) -> None:
    """Take the old tables away, write, read back, put the new table in its place.

    old_tables: where the bootloader may find one. standing: what must be on the board, written or
    not, before the table is put in its place. verifying: called before that is looked at.
    progress: called with the bytes done; raises to stop between two blocks.
    """
    done = 0

    def so_far(at: int) -> None:
        progress(done + at)

    for offset in sorted({*old_tables, plan.table.offset}):
        apply_verified(flash, [Erase(offset, SECTOR_BYTES, "nothing starts meanwhile")])
    for write in plan.writes:
        _write(flash, write, so_far)
        done += len(write.data)
    verifying()
    for write in standing:
        _verify(flash, write)
    _write(flash, plan.table, so_far)


def _write(flash: Flash, write: Write, progress: Progress) -> None:
    flash.write_stream(write.offset, make_plain_stream(write.data), progress)
    _verify(flash, write)


def _verify(flash: Flash, write: Write) -> None:
    digest = hashlib.md5(write.data, usedforsecurity=False).hexdigest()
    if flash.md5(write.offset, len(write.data)) != digest:
        raise OtaError(
            "verify-failed",
            f"What was read back at {write.offset:#x} ({write.name}) is not what was written.",
        )
