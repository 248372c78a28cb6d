# SPDX-License-Identifier: GPL-3.0-or-later
"""The stub loader is sent at a high speed where the line is known to hold it, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.fleet.memory import Memory
from ota_service.link import start_stub
from ota_service.link.link import EspLink
from tests.faults.desk import Desk
from tests.link.recorded import DEFL_DATA, MEM_DATA, Recorded, recorded

FAST, ROM = 921_600, 115_200

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins like a new process."""
    monkeypatch.setattr(start_stub, "SLOW_STARTS", set())
    monkeypatch.setattr(start_stub, "AT_ROM_BAUD", set())


def _connect(notes: Recorded, carried_baud: int | None, baud: int = FAST) -> EspLink:
    """A link that works, from a port of which `carried_baud` is known."""
    notes.clear()
    link = EspLink.connect(notes.port, baud=baud, identified=lambda _: carried_baud)
    assert link.read(0x8000, 2) == b"\xaa\x50"
    return link


@pytest.mark.parametrize("rom_reports_baud", [True, False])
def test_a_line_that_carried_an_image_takes_the_stub_loader_at_that_speed(
    tmp_path: Path, rom_reports_baud: bool
) -> None:
    """Whichever speed the stub loader then starts at; without that knowledge, at the ROM's."""
    board = SimBoard("guide", config={"rom_reports_baud": rom_reports_baud})
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        for carried, sent_at in ((None, ROM), (FAST, FAST), (FAST, FAST), (460_800, 460_800)):
            link = _connect(notes, carried)
            assert notes.bauds_of(MEM_DATA) == {sent_at}
            assert notes.port.baudrate == link.baud == FAST
            link.restart()


@pytest.mark.parametrize(("estimate", "sent_at"), [(1.01, FAST), (0.99, FAST), (1.05, ROM)])
@pytest.mark.parametrize("rom_reports_baud", [True, False])
def test_a_rom_that_mistakes_its_crystal(
    tmp_path: Path, estimate: float, sent_at: int, rom_reports_baud: bool
) -> None:
    """A little: it is asked for a speed that comes out right. By more: at the ROM's first speed."""
    config = {"crystal_estimate": estimate, "rom_reports_baud": rom_reports_baud}
    with (
        SimProcess(tmp_path, [SimBoard("guide", config=config)]) as sim,
        recorded(sim.boards[0]) as notes,
    ):
        link = _connect(notes, FAST)
        assert notes.bauds_of(MEM_DATA) == {sent_at}
        assert notes.port.baudrate == link.baud == FAST
        link.restart()


def test_a_speed_that_does_not_hold_any_more_costs_one_attempt(tmp_path: Path) -> None:
    """Another cable: the board is reset, started at the ROM's speed, and so from then on."""
    board = SimBoard("guide", config={"max_baud": 460_800})
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        link = _connect(notes, FAST)
        assert link.baud == 460_800
        assert notes.bauds_of(MEM_DATA) == {ROM}  # the ROM answered nothing at the high speed
        assert link.carried_baud == 0
        link.restart()
        link = _connect(notes, FAST, 460_800)
        assert notes.bauds_of(MEM_DATA) == {ROM}
        link.restart()


def test_a_board_that_is_not_the_one_that_is_meant_is_not_started(tmp_path: Path) -> None:
    """Its MAC is read at the ROM's speed, before anything is sent."""

    def wrong(mac: str) -> int | None:
        raise OtaError("wrong-board", mac)

    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, recorded(sim.boards[0]) as notes:
        with pytest.raises(OtaError) as caught:
            EspLink.connect(notes.port, baud=FAST, identified=wrong)
        assert caught.value.code == "wrong-board"
        assert {call.baud for call in notes.calls} == {ROM}
        assert notes.bauds_of(MEM_DATA) == set()


# --- what the service remembers


async def _line(desk: Desk) -> int | None:
    assert desk.service is not None
    memory: Memory = desk.service._engine.memory
    return memory.carried_baud(desk.board().mac, desk.board().url) or None


async def test_an_update_without_an_error_proves_the_line(tmp_path: Path) -> None:
    """Known from then on, also by the next process; forgotten when the link is lost."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        await desk.configure(url=desk.serve("1.0.0"), version="1.0.0", auto_update=False)
        assert await _line(desk) is None
        await desk.updated("1.1.0", url=desk.serve("1.1.0", size_bytes=200_000))
        assert await _line(desk) == FAST
        before = desk.run_id()
        desk.board().control.set_faults(no_answer=True)
        await desk.command("update")
        status = await desk.next_run(before)
        assert status["boards"]["a"]["error"]["code"] == "no-answer"
        assert await _line(desk) is None


async def test_a_small_image_proves_nothing(tmp_path: Path) -> None:
    """Less than 64 KiB over the wire say too little of a line."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        status = await desk.updated("1.1.0")
        assert status["boards"]["a"]["state"] == "up_to_date"
        assert await _line(desk) is None


def test_commands_are_told_apart(tmp_path: Path) -> None:
    """The recorder would notice: nothing of an image is sent where none is written."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, recorded(sim.boards[0]) as notes:
        _connect(notes, None).restart()
        assert notes.bauds_of(MEM_DATA)
        assert not notes.bauds_of(DEFL_DATA)
