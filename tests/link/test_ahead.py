# SPDX-License-Identifier: GPL-3.0-or-later
"""A slot that is erased from here while the image travels: nothing twice, nothing left out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.board.link import EspLink
from ota_service.board.stream import BLOCK_BYTES, ahead_cuts, ahead_pays, make_stream, windows
from ota_service.formats.flashops import PAGE_BYTES
from ota_service.sim.images import build_app
from ota_service.sim.process import SimBoard, SimProcess
from tests.link.recorded import recorded

SLOT = 0x110000
ERASE_64K, ERASE_4K = ("erase", 0x10000), ("erase", 0x1000)


def _written(image: bytes) -> bytes:
    return b"\xff" * PAGE_BYTES + image[PAGE_BYTES:]


def _write(tmp_path: Path, image: bytes, before: bytes, **config: Any) -> list[tuple[str, int]]:
    """Write an image into a slot; the erases, in their order. What is in the slot is checked."""
    stream = make_stream(image)
    with (
        SimProcess(tmp_path, [SimBoard("guide", config=config)]) as sim,
        recorded(sim.boards[0]) as notes,
    ):
        control = sim.boards[0].control
        control.write_flash(SLOT, before)
        link = EspLink.connect(notes.port, baud=921_600)
        assert link._erases_ahead(SLOT, stream) or config
        control.start_trace()
        link.write_stream(SLOT, stream, lambda _: None)
        ops = control.stop_trace()
        assert control.read_flash(SLOT, len(image)) == _written(image)
        assert link.md5(SLOT + PAGE_BYTES, len(image) - PAGE_BYTES) == stream.body_md5
        link.restart()
    last = max(op["address"] + op["size"] for op in ops)
    assert min(op["address"] for op in ops) >= SLOT
    assert last <= SLOT + -(-len(image) // 0x1000) * 0x1000
    return [(str(op["kind"]), int(op["size"])) for op in ops if op["kind"] == "erase"]


@pytest.mark.parametrize("size_bytes", [200_000, 262_144, 400_000])
def test_every_block_is_erased_once(tmp_path: Path, size_bytes: int) -> None:
    """Whole blocks by us, the rest behind them by the stub loader, sector by sector."""
    image = build_app("p", "1", size_bytes=size_bytes)
    dirty = bytes(len(image) + 0x1000)
    assert len(image) == size_bytes
    blocks, rest = divmod(size_bytes, 0x10000)
    wanted = [ERASE_64K] * blocks + [ERASE_4K] * -(-rest // 0x1000)
    assert _write(tmp_path, image, dirty) == wanted


def test_an_erase_that_takes_longer_than_usual_does_no_harm(tmp_path: Path) -> None:
    """A worn chip: four times as slow as its data sheet says. What is written is right."""
    image = build_app("p", "1", size_bytes=262_144)
    erases = _write(tmp_path, image, bytes(len(image)), timed=True, erase_factor=4.0)
    assert erases == [ERASE_64K] * 4


def test_it_pays_where_wire_and_flash_take_about_as_long() -> None:
    """A slow wire never waits for the flash, and with a fast one the flash always does."""
    stream = make_stream(build_app("p", "1", size_bytes=400_000))
    assert [
        baud for baud in (115_200, 460_800, 921_600, 2_000_000) if ahead_pays(stream, baud)
    ] == [921_600]
    small = make_stream(build_app("p", "1", size_bytes=100_000))
    assert not ahead_pays(small, 921_600)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(1, 60_000), st.booleans()), max_size=12),
    st.integers(0, 1 << 32),
)
def test_any_image_goes_whole(parts: list[tuple[int, int, bool]], seed: int) -> None:
    """All bytes, in blocks that the stub loader takes, each 64 KiB erased once and in time."""
    noises = random.Random(seed)
    image = b"".join(
        noises.randbytes(size) if noise else bytes([value]) * size for value, size, noise in parts
    )
    stream = make_stream(image.ljust(PAGE_BYTES, b"\0"))
    if not stream.ahead:
        return
    assert b"".join(block.data for block in stream.ahead) == b"".join(
        block.data for block in stream.blocks
    )
    assert all(0 < len(block.data) <= BLOCK_BYTES for block in stream.ahead)
    assert sum(block.inflated_bytes for block in stream.ahead) == stream.size_bytes
    erased = 0x10000
    done = 0
    for block in stream.ahead:
        if block.erases is not None:
            assert block.erases == erased
            erased += 0x10000
        done += block.inflated_bytes
        # Before a block that fills the last window of 64 KiB is worked on, the next are erased.
        assert (
            done // 0x10000 * 0x10000 < erased or erased == stream.size_bytes // 0x10000 * 0x10000
        )
    assert erased == stream.size_bytes // 0x10000 * 0x10000


def test_windows_are_where_the_inflater_is_full() -> None:
    """Two windows for 64 KiB, and one more for what is left."""
    stream = make_stream(build_app("p", "1", size_bytes=200_000))
    ends = windows(b"".join(block.data for block in stream.blocks))
    assert len(ends) == 7
    assert ends == sorted(ends)
    assert ends[-1] == stream.compressed_bytes
    assert ahead_cuts(ends, 0x1FFFF) == []
