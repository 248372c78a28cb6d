# SPDX-License-Identifier: GPL-3.0-or-later
"""How an image is cut for the stub loader: nothing is lost, and windows end where blocks end."""

from __future__ import annotations

import random
import struct
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp32_sim.images import build_app
from ota_service.link.stream import (
    BLOCK_BYTES,
    WINDOW_BYTES,
    SlotStream,
    block_ends,
    make_stream,
    windows,
)

PAGE = 256


def stuff(size_bytes: int, filler: float, seed: int) -> bytes:
    """Random bytes and repetitions, `filler` of them."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size_bytes:
        piece = rng.randbytes(rng.randint(1, 400))
        out += bytes([rng.randrange(256)]) * len(piece) if rng.random() < filler else piece
    return bytes(out[:size_bytes])


def whole(stream: SlotStream) -> bytes:
    """What the blocks inflate to."""
    return zlib.decompress(b"".join(block.data for block in stream.blocks))


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.integers(PAGE, 300_000), st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), st.integers(0, 1 << 30)
)
def test_blocks_are_the_whole_image_and_never_too_large(
    size_bytes: int, filler: float, seed: int
) -> None:
    """In their order, each with its own bytes and how far they inflate."""
    image = stuff(size_bytes, filler, seed)
    plain, stream = make_stream(image, plain=True), make_stream(image)
    assert whole(plain) == image
    assert whole(stream) == b"\xff" * PAGE + image[PAGE:]
    assert stream.head == image[:PAGE]
    for made in (plain, stream):
        assert all(0 < len(block.data) <= BLOCK_BYTES for block in made.blocks)
        assert sum(block.inflated_bytes for block in made.blocks) == size_bytes
        for seq, block in enumerate(made.blocks):
            frame = block.packet[1:-1].replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")
            assert frame[24:] == block.data
            assert struct.unpack_from("<II", frame, 8) == (len(block.data), seq)


def test_in_the_first_half_a_block_fills_each_window() -> None:
    """And not the one before it, so that something travels while the window before is written."""
    image = build_app(size_bytes=1 << 20)
    compressed = zlib.compress(image, 9)
    ends = block_ends(windows(compressed), len(image))
    filled = []
    for start, end in pairwise([0, *ends]):
        before = len(zlib.decompressobj().decompress(compressed[:start])) // WINDOW_BYTES
        after = len(zlib.decompressobj().decompress(compressed[:end])) // WINDOW_BYTES
        filled.append(after - before)
    half = filled[: 2 * 16]
    assert half == [0, 1] * 16
    assert ends[-1] - ends[-2] <= BLOCK_BYTES
    behind = [end - start for start, end in pairwise(ends[32:])]
    assert set(behind[:-1]) == {BLOCK_BYTES}


@pytest.mark.parametrize("image", [b"\xff" * (1 << 20), bytes(1 << 20)], ids=["blank", "zeros"])
def test_what_compresses_to_nothing_goes_in_one_block(image: bytes) -> None:
    """Windows of a few bytes are not worth acknowledgements of their own."""
    assert len(make_stream(image, plain=True).blocks) == 1
