# SPDX-License-Identifier: GPL-3.0-or-later
"""A slot that is erased from here while the image travels: nothing twice, nothing left out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp32_sim.control import BoardControl
from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.formats.flashops import PAGE_BYTES
from ota_service.link import link as link_module
from ota_service.link import registers
from ota_service.link.link import EspLink
from ota_service.link.stream import BLOCK_BYTES, ahead_cuts, ahead_pays, make_stream, windows
from tests.link.recorded import DEFL_DATA, MEM_DATA, WRITE_REG, Recorded, recorded

SLOT = 0x110000


@pytest.fixture(autouse=True)
def _whatever_this_machine_is_busy_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that took long here says nothing of a bridge. And small images will do."""
    monkeypatch.setattr(link_module, "AHEAD_BELOW_S", 10.0)
    monkeypatch.setattr(link_module, "ahead_pays", lambda stream, _: bool(stream.ahead))
    monkeypatch.setattr(registers, "ALONE", set())
    monkeypatch.setattr(link_module, "ALONE", registers.ALONE)


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
        assert link._erases_ahead(SLOT, stream)
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


@pytest.mark.slow
@pytest.mark.parametrize("size_bytes", [200_000, 262_144, 400_000])
def test_every_block_is_erased_once(tmp_path: Path, size_bytes: int) -> None:
    """Whole blocks by us, the rest behind them by the stub loader, sector by sector."""
    image = build_app("p", "1", size_bytes=size_bytes)
    dirty = bytes(len(image) + 0x1000)
    assert len(image) == size_bytes
    blocks, rest = divmod(size_bytes, 0x10000)
    wanted = [ERASE_64K] * blocks + [ERASE_4K] * -(-rest // 0x1000)
    assert _write(tmp_path, image, dirty) == wanted


@pytest.mark.slow
def test_an_erase_that_takes_longer_than_usual_does_no_harm(tmp_path: Path) -> None:
    """A worn chip: four times as slow as its data sheet says. What is written is right."""
    image = build_app("p", "1", size_bytes=262_144)
    erases = _write(tmp_path, image, bytes(len(image)), timed=True, erase_factor=4.0)
    assert erases == [ERASE_64K] * 4


BAUDS = (115_200, 460_800, 921_600, 2_000_000)


def test_it_pays_where_wire_and_flash_take_about_as_long() -> None:
    """A slow wire never waits for the flash, with a fast one the flash is the limit, and a small
    image does not make up for the first erase."""
    stream = make_stream(build_app("p", "1", size_bytes=1 << 20))
    assert [baud for baud in BAUDS if ahead_pays(stream, baud)] == [921_600]
    small = make_stream(build_app("p", "1", size_bytes=300_000))
    assert small.ahead
    assert not any(ahead_pays(small, baud) for baud in BAUDS)


@settings(max_examples=60)
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


# --- when something goes wrong on the way


@contextmanager
def _linked(tmp_path: Path, **config: Any) -> Iterator[tuple[EspLink, Recorded, BoardControl]]:
    """A link to a board whose slot is dirty."""
    with (
        SimProcess(tmp_path, [SimBoard("guide", config=config)]) as sim,
        recorded(sim.boards[0]) as notes,
    ):
        control = sim.boards[0].control
        control.write_flash(SLOT, bytes(len(IMAGE)))
        link = EspLink.connect(notes.port, baud=921_600)
        yield link, notes, control
        link.restart()


IMAGE = build_app("p", "1", size_bytes=262_144)
STREAM = make_stream(IMAGE)


def _is_right(link: EspLink, control: BoardControl) -> bool:
    body = SLOT + PAGE_BYTES, len(IMAGE) - PAGE_BYTES
    assert control.read_flash(SLOT, len(IMAGE)) == _written(IMAGE)
    return link.md5(*body) == STREAM.body_md5


def _count(notes: Recorded) -> int:
    """How many blocks went out together with the start of an erase."""
    return sum(call.commands == (WRITE_REG, DEFL_DATA) for call in notes.calls)


@pytest.mark.slow
def test_a_block_that_is_lost_behind_an_erase_ends_that_way_of_erasing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a gap the stub loader loses it. It is sent once more, and the port is remembered."""
    monkeypatch.setattr(registers, "GAP", b"")
    monkeypatch.setattr(link_module, "DEFAULT_TIMEOUT", 0.4)
    monkeypatch.setattr("esptool.cmds._get_flash_defl_block_timeout", lambda *_: 0.4)
    with _linked(tmp_path, timed=True) as (link, notes, control):
        assert link._erases_ahead(SLOT, STREAM)
        link.write_stream(SLOT, STREAM, lambda _: None)
        assert _count(notes) == 1
        assert _is_right(link, control)
        assert link.carried_baud == 0
        assert not link._erases_ahead(SLOT, STREAM)


@pytest.mark.slow
def test_a_register_that_reads_wrong_starts_no_erase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block goes alone, and what is left to erase is the stub loader's."""
    with _linked(tmp_path) as (link, notes, control):
        real = registers.Registers.read
        wrong = iter([0x1000])

        def read(self: registers.Registers, register: int) -> int:
            value = real(self, register)
            return value ^ next(wrong, 0) if value == (SLOT + 0x10000) << 8 else value

        monkeypatch.setattr(registers.Registers, "read", read)
        link.write_stream(SLOT, STREAM, lambda _: None)
        assert next(wrong, None) is None, "the fault was not injected"
        assert _count(notes) == 0
        assert _is_right(link, control)


@pytest.mark.slow
def test_a_block_that_was_damaged_is_repeated_and_the_line_not_believed(tmp_path: Path) -> None:
    """By its checksum. The speed is not taken for one that carries an image without errors."""
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
        assert link.carried_baud == 0


@pytest.mark.slow
def test_a_digest_that_is_wrong_takes_a_speed_its_proof(tmp_path: Path) -> None:
    """Whatever the blocks' checksums said."""
    with _linked(tmp_path) as (link, _, control):
        link.write_stream(SLOT, STREAM, lambda _: None)
        assert link.carried_baud is None
        control.write_flash(SLOT + 0x1000, b"\0")
        assert link.md5(SLOT + PAGE_BYTES, len(IMAGE) - PAGE_BYTES) != STREAM.body_md5
        assert link.carried_baud == 0


@pytest.mark.slow
def test_a_stop_between_two_blocks_leaves_the_stub_loader_in_sync(tmp_path: Path) -> None:
    """Wherever it comes: the link goes on to work."""
    for at in range(6):
        (tmp_path / str(at)).mkdir()
        with _linked(tmp_path / str(at)) as (link, _, _control):
            seen: list[int] = []

            def stop(done: int, seen: list[int] = seen, at: int = at) -> None:
                seen.append(done)
                if len(seen) > at:
                    raise OtaError("cancelled")

            with pytest.raises(OtaError):
                link.write_stream(SLOT, STREAM, stop)
            assert link.read(0x8000, 2) == b"\xaa\x50"
            link.erase(0x300000, 0x1000)


@pytest.mark.slow
def test_a_second_connect_knows_what_the_first_one_knew(tmp_path: Path) -> None:
    """After a look at what boots, nothing has to be proven again."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, recorded(sim.boards[0]) as notes:
        link = EspLink.connect(notes.port, baud=921_600, identified=lambda _: 921_600)
        link.restart()
        notes.clear()
        link.reconnect()
        assert notes.bauds_of(MEM_DATA) == {921_600}
        link.restart()


@pytest.mark.slow
def test_a_second_connect_that_has_to_go_slower_takes_a_speed_its_proof(tmp_path: Path) -> None:
    """As a first one does."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, recorded(sim.boards[0]) as notes:
        link = EspLink.connect(notes.port, baud=921_600)
        link.restart()
        sim.boards[0].control.configure(max_baud=460_800)
        link.reconnect()
        assert (link.baud, link.carried_baud) == (460_800, 0)
        link.restart()
