# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that go out together: fewer waits on a slow bridge, and none lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.link import registers
from ota_service.link.link import EspLink
from tests.link.recorded import READ_REG, WRITE_REG, Recorded, recorded

PLACE = 0x300000
SLOW = {"timed": True, "bridge_latency_ms": 16.0}
FAST = {"timed": True, "bridge_latency_ms": 1.0}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins like a new process."""
    monkeypatch.setattr(registers, "ALONE", set())


def _changes(notes: Recorded, link: EspLink) -> list[tuple[int, ...]]:
    """What an erase and a program send, call by call."""
    notes.clear()
    link.erase(PLACE, 0x1000)
    link.program(PLACE, bytes(range(1, 9)))
    return [call.commands for call in notes.calls if {WRITE_REG, READ_REG} & set(call.commands)]


def test_on_a_slow_bridge_registers_are_looked_at_together(tmp_path: Path) -> None:
    """One wait for what is prepared and looked at, one for the start and the flash's status."""
    board = SimBoard("guide", config=SLOW)
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        control = sim.boards[0].control
        control.write_flash(PLACE, b"\0" * 0x1000)
        link = EspLink.connect(notes.port, baud=921_600)
        calls = _changes(notes, link)
        assert calls[0] == (WRITE_REG, READ_REG, READ_REG, READ_REG, READ_REG)
        assert calls[1] == (WRITE_REG, READ_REG)
        assert len([one for one in calls if one[0] == WRITE_REG]) <= 4 + 3  # polls of the erase
        assert control.read_flash(PLACE, 9) == bytes(range(1, 9)) + b"\xff"
        link.restart()


def test_on_a_fast_bridge_they_go_one_by_one(tmp_path: Path) -> None:
    """A gap between two requests takes longer than an answer."""
    board = SimBoard("guide", config=FAST)
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        link = EspLink.connect(notes.port, baud=921_600)
        link._spi._registers.exchange_s = 0.002  # whatever this machine was busy with
        assert {len(commands) for commands in _changes(notes, link)} == {1}
        link.restart()


def test_a_loader_that_loses_requests_gets_them_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gaps they are lost: no wrong value, a lost link, and never together again."""
    monkeypatch.setattr(registers, "GAP", b"")
    monkeypatch.setattr(registers, "DEFAULT_TIMEOUT", 0.3)
    board = SimBoard("guide", config=SLOW)
    monkeypatch.setattr(registers, "TOGETHER_MARGIN_S", -1.0)
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        with pytest.raises(OtaError) as caught:
            EspLink.connect(notes.port, baud=115_200)
        assert caught.value.code == "link-lost"
        link = EspLink.connect(notes.port, baud=115_200)
        assert {len(commands) for commands in _changes(notes, link)} == {1}
        assert sim.boards[0].control.read_flash(PLACE, 8) == bytes(range(1, 9))
        link.restart()
