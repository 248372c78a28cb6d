# SPDX-License-Identifier: GPL-3.0-or-later
"""The states in which a cut of power can leave the one flash operation that it met.

A program has cleared a part of its bits: those of its first or last bytes, or any. An erase has
set a part of its sector's bits: its first or last part, or any; and many chips program a sector
to zero before they erase it, so that everything may be gone and nothing blank.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from ota_service.formats.flashops import SECTOR_BYTES, Erase, FlashOp
from tests.prove.cells import Cells, both

PROGRAM_TEARS = ("first", "half", "last", "tail", "one", "few", "some", "most", "all-but-one")
ERASE_TEARS = ("front", "half", "back", "rest", "few", "some", "most", "zeros", "zeros-some")
_SHARES = {"few": 0.03, "some": 0.5, "most": 0.97}


def tears_of(op: FlashOp) -> tuple[str, ...]:
    """The names of the ways in which an operation can be torn."""
    return ERASE_TEARS if isinstance(op, Erase) else PROGRAM_TEARS


def torn(cells: Cells, op: FlashOp, how: str, rng: random.Random) -> Iterator[Cells]:
    """The flash with `op` torn in the way `how`; nothing where that is the whole or nothing.

    A torn erase of a block tears the sector in its middle: those before it are erased.
    """
    result = cells.copy()
    if isinstance(op, Erase):
        sectors = op.size_bytes // SECTOR_BYTES
        at = op.offset + sectors // 2 * SECTOR_BYTES
        if at > op.offset:
            result.apply(Erase(op.offset, at - op.offset))
        before, after = cells.read(at, SECTOR_BYTES), b"\xff" * SECTOR_BYTES
        data = _torn_erase(before, after, how, rng)
    else:
        at = op.offset
        before = cells.read(at, len(op.data))
        after = both(before, op.data)
        data = _torn_program(before, after, how, rng)
    if data is not None and data not in (before, after):
        result.write(at, data)
        yield result


def _torn_program(before: bytes, after: bytes, how: str, rng: random.Random) -> bytes | None:
    size = len(before)
    lengths = {"first": min(4, size // 2), "half": size // 2, "last": size - 1}
    if how in lengths:
        cut = lengths[how]
        return after[:cut] + before[cut:]
    if how == "tail":
        return before[: size // 2] + after[size // 2 :]
    return _mixed(before, after, how, rng)


def _torn_erase(before: bytes, after: bytes, how: str, rng: random.Random) -> bytes | None:
    size = len(before)
    cuts = {"front": 32, "half": size // 2, "back": size - 32}
    if how in cuts:
        cut = cuts[how]
        return after[:cut] + before[cut:]
    if how == "rest":
        return before[:32] + after[32:]
    if how == "zeros":
        return bytes(size)
    if how == "zeros-some":
        return _mixed(bytes(size), after, "some", rng)
    return _mixed(before, after, how, rng)


def _mixed(before: bytes, after: bytes, how: str, rng: random.Random) -> bytes:
    """Some of the bits that differ are `after`'s already."""
    size = len(before)
    old, new = int.from_bytes(before, "big"), int.from_bytes(after, "big")
    differ = old ^ new
    if how in ("one", "all-but-one"):
        if not differ:
            return before
        single = _pick_bit(differ, rng)
        mask = single if how == "one" else differ ^ single
    else:
        mask = _random_bits(size * 8, _SHARES[how], rng) & differ
    return (old ^ mask).to_bytes(size, "big")


def _pick_bit(bits: int, rng: random.Random) -> int:
    places = [i for i in range(bits.bit_length()) if bits >> i & 1]
    return 1 << rng.choice(places)


def _random_bits(count: int, share: float, rng: random.Random) -> int:
    """`count` bits, about 1/32, 1/2 or 31/32 of them set: AND and OR of fair ones."""
    bits = rng.getrandbits(count)
    if share == 0.5:
        return bits
    for _ in range(4):
        more = rng.getrandbits(count)
        bits = bits & more if share < 0.5 else bits | more
    return bits
