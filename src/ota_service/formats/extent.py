# SPDX-License-Identifier: GPL-3.0-or-later
"""How long an image in a slot is, from a few small reads instead of the whole slot."""

from __future__ import annotations

import struct
from collections.abc import Callable

HEADER_BYTES = 24
SEGMENT_HEADER_BYTES = 8
MAX_SEGMENTS = 16
MAGIC = 0xE9
SHA256_BYTES = 32
_HASH_APPENDED_AT = 23


def image_length(read: Callable[[int, int], bytes], limit_bytes: int) -> int | None:
    """The image's length in bytes, with its checksum and appended digest; None where none is.

    read: (offset from the image's start, size) -> bytes. limit_bytes: the slot's size.
    A length proves nothing about the content. Source: esp32.md, "App Image".
    """
    if limit_bytes < HEADER_BYTES:
        return None
    header = read(0, HEADER_BYTES)
    segments = header[1]
    if header[0] != MAGIC or not 1 <= segments <= MAX_SEGMENTS:
        return None
    at = HEADER_BYTES
    for _ in range(segments):
        if at + SEGMENT_HEADER_BYTES > limit_bytes:
            return None
        _, size_bytes = struct.unpack("<II", read(at, SEGMENT_HEADER_BYTES))
        at += SEGMENT_HEADER_BYTES + size_bytes
        if at >= limit_bytes:
            return None
    at = (at // 16 + 1) * 16  # padding to 15 mod 16, then the checksum byte
    if header[_HASH_APPENDED_AT]:  # any value, as the bootloader reads it
        at += SHA256_BYTES
    return at if at <= limit_bytes else None
