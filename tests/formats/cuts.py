# SPDX-License-Identifier: GPL-3.0-or-later
"""Every state that a cut of power can leave: between two flash operations, or within one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from ota_service.formats.flashops import Erase, FlashOp, apply_ops


def cut_states(
    data: bytes, ops: Sequence[FlashOp], base: int, seed: int = 0, torn_each: int = 4
) -> Iterator[tuple[str, bytes]]:
    """(description, bytes) after each whole prefix of `ops` and for torn forms of each operation.

    A torn program has cleared some of its bits: those of the first bytes, of the last bytes, or
    `torn_each` random subsets. A torn erase has set some bits: the sector's first or last part,
    or random subsets, from a few bits to nearly all.
    """
    rng = random.Random(seed)
    flash = bytearray(data)
    yield "before", bytes(flash)
    for index, op in enumerate(ops):
        before = bytes(flash)
        apply_ops(flash, [op], base)
        after = bytes(flash)
        size = op.size_bytes if isinstance(op, Erase) else len(op.data)
        start = op.offset - base
        places = {1, 4, 24, 28, size // 2, size - 1}
        if size > 32:
            places |= {32, 64, size - 4, size - 32}
        for length in sorted(places):
            if 0 < length < size:
                cut = start + length
                yield f"op {index} first {length}", after[:cut] + before[cut:]
                yield f"op {index} last {size - length}", before[:cut] + after[cut:]
        for turn in range(torn_each):
            share = (0.02, 0.5, 0.98)[turn % 3]
            mixed = bytearray(before)
            for place in range(start, start + size):
                changed = before[place] ^ after[place]
                if changed:
                    mask = sum(1 << bit for bit in range(8) if rng.random() < share)
                    mixed[place] ^= changed & mask
            yield f"op {index} random {share}", bytes(mixed)
        yield f"op {index} done", after


def single_bits(before: bytes, after: bytes, limit: int = 400) -> Iterator[bytes]:
    """`before` with each single bit changed that differs from `after`, and `after` with each
    single one not yet changed: the two ends of every torn operation."""
    count = 0
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        for bit in range(8):
            if (old ^ new) >> bit & 1:
                first = bytearray(before)
                first[place] ^= 1 << bit
                yield bytes(first)
                last = bytearray(after)
                last[place] ^= 1 << bit
                yield bytes(last)
                count += 1
                if count >= limit:
                    return
