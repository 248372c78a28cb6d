# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of NVS put together from items, as tests want them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.formats import images
from tests.formats.nvs_firmware import ACTIVE, DATA, FULL, IDX, SZ, item
from tests.formats.nvs_page import crc
from tests.formats.nvs_proofs import KEY, NS

BLANK = b"\xff" * 0x1000
NAMESPACE = item(0, 0x01, NS, b"\x01")


def page(items: Sequence[bytes], state: int, seq: int, tail: bytes = b"") -> bytes:
    """A page with these items; tail: bytes behind them of which the bitmap knows nothing."""
    body = seq.to_bytes(4, "little") + b"\xfe" + b"\xff" * 19
    entries = b"".join(items)
    bitmap = bytearray(b"\xff" * 32)
    for index in range(len(entries) // 32):
        bitmap[index // 4] &= ~(1 << index % 4 * 2)
    assert len(entries) <= 126 * 32
    head = state.to_bytes(4, "little") + body + crc(body).to_bytes(4, "little")
    return (head + bytes(bitmap) + entries + tail)[:0x1000].ljust(0x1000, b"\xff")


def text(key: bytes, size: int) -> bytes:
    """A string of VIAM_NS that fills `size` entries."""
    return item(1, SZ, key, b"t" * (size * 32 - 33) + b"\0")


def part(key: bytes, chunk: int, entries: int) -> bytes:
    """A part of a blob of VIAM_NS that fills so many entries."""
    return item(1, DATA, key, images.noise(entries * 32 - 32), chunk)


def blob_index(key: bytes, first: int, parts: Sequence[bytes]) -> bytes:
    """The index of a blob of these parts."""
    size = sum(int.from_bytes(one[24:26], "little") for one in parts)
    value = size.to_bytes(4, "little") + bytes([len(parts), first]) + b"\xff\xff"
    return item(1, IDX, key, value)


VERSION = item(1, SZ, KEY, b"1.0.0\0")


def stuck(size: int) -> bytes:
    """No page of it can be moved without risk: the emptiest one ends in a part of a blob behind an
    earlier one, and the others are full."""
    parts = [part(b"ROBOT_CONFIG", 0, 20), part(b"ROBOT_CONFIG", 1, 30)]
    first = [NAMESPACE, VERSION, text(b"WIFI_SSID", 60), blob_index(b"ROBOT_CONFIG", 0, parts)]
    full = [b"ROBOT_ID", *(b"note%d" % i for i in range(size // 0x1000 - 3))]
    pages = [
        page([text(key, 100), text(key + b"2", 26)], FULL, 5 + i) for i, key in enumerate(full)
    ]
    pages[-1] = page([text(full[-1], 126)], ACTIVE, 4 + len(full))
    return page([*first, *parts], FULL, 3) + b"".join(pages) + BLANK
