# SPDX-License-Identifier: GPL-3.0-or-later
"""An image on its way into a slot: damaged blocks, stops between two of them, what is proven."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esp32_sim.control import BoardControl
from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.formats.flashops import PAGE_BYTES
from ota_service.link.link import EspLink
from ota_service.link.stream import make_stream
from tests.link.recorded import DEFL_DATA, Recorded, recorded

SLOT = 0x110000
IMAGE = build_app("p", "1", size_bytes=262_144)
STREAM = make_stream(IMAGE)

pytestmark = pytest.mark.slow


@contextmanager
def _linked(tmp_path: Path) -> Iterator[tuple[EspLink, Recorded, BoardControl]]:
    """A link to a board whose slot is dirty."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, recorded(sim.boards[0]) as notes:
        control = sim.boards[0].control
        control.write_flash(SLOT, bytes(len(IMAGE)))
        link = EspLink.connect(notes.port, baud=921_600)
        yield link, notes, control
        link.restart()


def _is_right(link: EspLink, control: BoardControl) -> bool:
    body = SLOT + PAGE_BYTES, len(IMAGE) - PAGE_BYTES
    assert control.read_flash(SLOT, len(IMAGE)) == b"\xff" * PAGE_BYTES + IMAGE[PAGE_BYTES:]
    return link.md5(*body) == STREAM.body_md5


def test_a_block_that_was_damaged_is_repeated_and_the_line_not_believed(tmp_path: Path) -> None:
    """By its checksum. Registers are all looked at, then, as before any image."""
    with _linked(tmp_path) as (link, notes, control):
        left = [6]

        def damage(data: bytes) -> bytes:
            if data[2:3] == bytes([DEFL_DATA]) and len(data) > 100:
                left[0] -= 1
                if not left[0]:
                    return data[:60] + bytes([data[60] ^ 1]) + data[61:]
            return data

        notes.damage = damage
        link.write_stream(SLOT, STREAM, lambda _: None)
        assert left[0] < 0
        assert _is_right(link, control)
        assert not link._proven


def test_an_image_whose_digest_is_right_proves_the_line(tmp_path: Path) -> None:
    """And a wrong one takes that back."""
    with _linked(tmp_path) as (link, _, control):
        link.write_stream(SLOT, STREAM, lambda _: None)
        assert not link._proven
        assert _is_right(link, control)
        assert vars(link)["_proven"]
        control.write_flash(SLOT + 0x1000, b"\0")
        assert link.md5(SLOT + PAGE_BYTES, len(IMAGE) - PAGE_BYTES) != STREAM.body_md5
        assert not link._proven


def test_a_stop_between_two_blocks_leaves_the_stub_loader_in_sync(tmp_path: Path) -> None:
    """Wherever it comes: the link goes on to work."""
    with _linked(tmp_path) as (link, _, _control):
        for at in range(4):
            seen: list[int] = []

            def stop(done: int, seen: list[int] = seen, at: int = at) -> None:
                seen.append(done)
                if len(seen) > at:
                    raise OtaError("cancelled")

            with pytest.raises(OtaError):
                link.write_stream(SLOT, STREAM, stop)
            link._forget()
            assert link.read(0x8000, 2) == b"\xaa\x50"
            link.erase(0x300000, 0x1000)
