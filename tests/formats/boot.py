# SPDX-License-Identifier: GPL-3.0-or-later
"""A second-stage bootloader's choice of slot, written for the tests from esp-idf's sources.

It shares nothing with `ota_service.formats.otadata`: one wrong belief must not pass on both
sides.
"""

from __future__ import annotations

import binascii
from collections.abc import Collection


def choose(data: bytes, slots: int, factory: bool, bootable: Collection[int]) -> int | None:
    """The slot that boots: 0 and up, -1 for factory, None where nothing boots.

    bootable: the slots whose image passes the bootloader's checks, -1 for factory.
    """
    candidates: list[tuple[int, int]] = []
    for sector in (0, 1):
        raw = data[sector * 4096 : sector * 4096 + 32]
        seq, state, crc = (int.from_bytes(raw[i : i + 4], "little") for i in (0, 24, 28))
        if seq == 0xFFFFFFFF or state in (3, 4):
            continue
        if crc == binascii.crc32(raw[:4], 0xFFFFFFFF):
            candidates.append((seq, -sector))
    start = -1 if factory else 0
    if candidates:
        start = int((max(candidates)[0] - 1) % 2**32) % slots
    index: int
    for index in (*range(start, -2, -1), *range(start + 1, slots)):
        if index in bootable and (index >= 0 or factory):
            return index
    return None


def entry(seq: int, state: int, good: bool = True) -> bytes:
    """A sector with an entry; without `good` its CRC is wrong in one bit."""
    crc = binascii.crc32(seq.to_bytes(4, "little"), 0xFFFFFFFF) ^ (not good)
    raw = seq.to_bytes(4, "little") + b"\xff" * 20 + state.to_bytes(4, "little")
    return (raw + crc.to_bytes(4, "little")).ljust(4096, b"\xff")
