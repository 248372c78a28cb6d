# SPDX-License-Identifier: GPL-3.0-or-later
"""The stub loader is sent at a high speed where that can be done; nothing of it is remembered."""

from __future__ import annotations

import termios
from pathlib import Path

import pytest
from serial import SerialException

from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.fleet.board import _slower
from ota_service.link import start_stub
from ota_service.link.link import BAUD_LADDER, EspLink, bauds_to_try, looks_like_speed
from ota_service.update.session import Job
from tests.link.recorded import MEM_DATA, Recorded, recorded

from esptool.util import FatalError  # isort: skip

FAST, ROM = 921_600, 115_200


def _connect(notes: Recorded, baud: int = FAST) -> EspLink:
    """A link that works."""
    notes.clear()
    link = EspLink.connect(notes.port, baud=baud)
    assert link.read(0x8000, 2) == b"\xaa\x50"
    assert notes.port.baudrate == link.baud
    return link


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip", "config", "sent_at"),
    [
        ("esp32", {}, FAST),
        ("esp32", {"timed": True}, FAST),
        ("esp32c3", {"timed": True}, FAST),
        ("esp32s3", {"secure_boot_v2": True}, ROM),
        ("esp32s2", {}, ROM),
        # A ROM that mistakes its crystal is asked for a speed that comes out right; where it is
        # far off, for none.
        ("esp32", {"crystal_estimate": 1.01}, FAST),
        ("esp32", {"crystal_estimate": 0.99}, FAST),
        ("esp32", {"crystal_estimate": 1.05}, ROM),
    ],
)
def test_where_the_stub_loader_is_sent_fast(
    tmp_path: Path, chip: str, config: dict[str, object], sent_at: int
) -> None:
    """In the first session as in each later one, and at no other speed."""
    board = SimBoard("guide", config={"chip": chip, **config})
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        link = _connect(notes)
        assert link.baud == FAST
        assert notes.bauds_of(MEM_DATA) == {sent_at}
        link.restart()


def test_a_stub_loader_is_greeted_at_one_speed_only() -> None:
    """Each chip's is known; of the others none is guessed."""
    assert start_stub.GREETS_AT["ESP32"] == ROM
    assert {speed for chip, speed in start_stub.GREETS_AT.items() if chip != "ESP32"} == {None}


@pytest.mark.slow
def test_a_speed_that_does_not_hold_is_tried_by_each_session(tmp_path: Path) -> None:
    """Another cable: each begins at its highest speed, and ends at the one that holds."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, recorded(sim.boards[0]) as notes:
        sim.boards[0].control.configure(max_baud=460_800)
        link = _connect(notes)
        assert (link.baud, link.starts_fast) == (460_800, False)
        assert notes.bauds_of(MEM_DATA) == {ROM}  # the ROM answered nothing at the high speed
        link.restart()
        link.reconnect()
        assert link.baud == 460_800  # the same session knows
        link.restart()
        sim.boards[0].control.configure(max_baud=0)
        link = _connect(notes)
        assert (link.baud, notes.bauds_of(MEM_DATA)) == (FAST, {FAST})
        link.restart()


@pytest.mark.slow
def test_a_board_that_is_not_the_one_that_is_meant_is_not_started(tmp_path: Path) -> None:
    """Its MAC is read at the ROM's speed, before anything is sent."""

    def wrong(mac: str) -> None:
        raise OtaError("wrong-board", mac)

    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, recorded(sim.boards[0]) as notes:
        with pytest.raises(OtaError) as caught:
            EspLink.connect(notes.port, baud=FAST, identified=wrong)
        assert caught.value.code == "wrong-board"
        assert {call.baud for call in notes.calls} == {ROM}
        assert notes.bauds_of(MEM_DATA) == set()


@pytest.mark.parametrize(
    ("code", "cause", "slower"),
    [
        ("link-lost", FatalError("Packet content transfer stopped"), True),
        ("verify-failed", None, True),
        ("link-lost", SerialException("device disconnected"), False),
        ("link-lost", OSError("Input/output error"), False),
        ("link-lost", termios.error(5, "Input/output error"), False),
        ("no-answer", FatalError("No serial data received."), False),
        ("boot-failed", None, False),
    ],
)
def test_a_cable_that_was_pulled_is_no_speed(
    code: str, cause: Exception | None, slower: bool
) -> None:
    """Only what went wrong at a speed may be better at a lower one."""
    error = OtaError(code)
    error.__cause__ = cause
    assert looks_like_speed(error) is slower


@pytest.mark.parametrize("holds", [460_800, 230_400])
def test_each_attempt_is_slower_than_what_the_last_one_really_used(holds: int) -> None:
    """The speed that was asked for may be far above the one that the line has come down to."""
    job, used = Job("b", baud=2_000_000), []
    for _ in range(3):
        used.append(next(baud for baud in bauds_to_try(job.baud) if baud <= holds))
        error = OtaError("link-lost")
        error.baud = used[-1]
        job = _slower(job, error)
    assert used == [baud for baud in BAUD_LADDER if baud <= holds][:3] + [ROM] * (holds < 460_800)
