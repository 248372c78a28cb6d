# SPDX-License-Identifier: GPL-3.0-or-later
"""An image as the stub loader takes it: compressed once, in blocks, its first page left blank.

A slot that is being written must never look bootable. So the stream carries the image with its
first page (the image header's) as 0xFF, which NOR flash takes as "nothing written"; the page is
programmed last, after the digest of the rest was read back (see `carry_out`).
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ota_service.formats.flashops import PAGE_BYTES
from ota_service.link.esptool_setup import checksum
from ota_service.link.registers import frame
from ota_service.link.sparse import digest

BLOCK_BYTES = 0x4000
"""esptool's ESP32StubLoader.FLASH_WRITE_SIZE: what the stub loader takes at once."""

WINDOW_BYTES = 0x8000
"""What the stub loader inflates before it writes to flash (its inflater's window)."""

SMALLEST_BYTES = 0x2000
"""A smaller window is not worth acknowledgements of its own."""

_SPILL_BYTES = 16
"""How far a block goes beyond the byte that fills a window, in case the stub loader's inflater asks
for a few more than ours."""

BLOCK_COMMAND = 0x11
"""FLASH_DEFL_DATA (esptool's serial protocol)."""

_KEPT = 4


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the stream: its bytes, and how many bytes it inflates to.

    packet: as it goes over the wire, made once for all boards.
    """

    data: bytes
    inflated_bytes: int
    packet: bytes


@dataclass(frozen=True, slots=True)
class SlotStream:
    """An image ready for a slot.

    size_bytes: the image's length. blocks: the zlib stream of the image with a blank first
    page. head: the first page. body_md5: MD5 (hex) of everything behind the first page.
    """

    size_bytes: int
    blocks: tuple[Block, ...]
    compressed_bytes: int
    head: bytes
    body_md5: str


def make_stream(image: bytes, *, plain: bool = False) -> SlotStream:
    """Compress `image`, its first page left blank, and cut it into blocks.

    plain: it is written whole, from its first page on.
    """
    written = image if plain else b"\xff" * PAGE_BYTES + image[PAGE_BYTES:]
    compressed = zlib.compress(written, 9)
    return SlotStream(
        size_bytes=len(image),
        blocks=_blocks(compressed, block_ends(windows(compressed), len(image))),
        compressed_bytes=len(compressed),
        head=image[:PAGE_BYTES],
        body_md5=digest(image[PAGE_BYTES:]),
    )


def _blocks(compressed: bytes, cuts: Sequence[int]) -> tuple[Block, ...]:
    """The stream in blocks that end at the cuts."""
    inflate = zlib.decompressobj()
    blocks, start = [], 0
    for seq, end in enumerate(cuts):
        block = compressed[start:end]
        size_bytes = len(inflate.decompress(block))
        blocks.append(Block(block, size_bytes, _packet(block, seq)))
        start = end
    return tuple(blocks)


def windows(compressed: bytes) -> list[int]:
    """Where in the stream each window of the inflater is full."""
    inflate, left, ends = zlib.decompressobj(), compressed, []
    while left:
        inflate.decompress(left, WINDOW_BYTES)
        left = inflate.unconsumed_tail
        ends.append(len(compressed) - len(left))
    return ends


def block_ends(ends: Sequence[int], size_bytes: int) -> list[int]:
    """Where a stream that inflates to `size_bytes` is cut into blocks of up to `BLOCK_BYTES`.

    ends: where in the stream each window of the inflater is full. The stub loader writes whenever
    its window is full, and starts to erase 64 KiB behind each write while there is anything to
    erase: that is the first half of the image, in which it is slower than a fast wire. There a
    block ends with each window, so that its write begins as soon as the erase before it ends, and
    each window goes in parts, so that a part travels meanwhile. Behind that blocks are as large as
    they may be, for fewer acknowledgements.
    """
    cuts, start, last = [], 0, ends[-1]
    for end in ends[: -(-(size_bytes // 2) // WINDOW_BYTES)]:
        end += _SPILL_BYTES
        if end - start >= SMALLEST_BYTES and end < last:
            parts = max(2, -(-(end - start) // BLOCK_BYTES))
            cuts += [start + (end - start) * part // parts for part in range(1, parts + 1)]
            start = end
    return [*cuts, *range(start + BLOCK_BYTES, last, BLOCK_BYTES), last]


def _packet(data: bytes, seq: int) -> bytes:
    """A block's request in its SLIP frame."""
    body = struct.pack("<IIII", len(data), seq, 0, 0) + data
    return frame(BLOCK_COMMAND, body, checksum(data))


class StreamCache:
    """The last few streams by the image's SHA-256, so that many boards share one compression."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: OrderedDict[str, SlotStream] = OrderedDict()

    def get(self, sha256: str, image: bytes) -> SlotStream:
        """The stream of `image`; a second caller waits for the first one's work."""
        with self._lock:
            stream = self._streams.pop(sha256, None) or make_stream(image)
            self._streams[sha256] = stream
            while len(self._streams) > _KEPT:
                self._streams.popitem(last=False)
            return stream

    def drop(self, sha256: str) -> None:
        """The image is no longer needed."""
        with self._lock:
            self._streams.pop(sha256, None)


STREAMS = StreamCache()
