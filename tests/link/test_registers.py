# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that go out together: fewer waits on a slow bridge, and none lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim.process import SimBoard, SimProcess
from ota_service.link import registers
from ota_service.link.link import EspLink
from tests.link.recorded import READ_REG, WRITE_REG, Recorded, recorded

PLACE = 0x300000
SLOW = {"timed": True, "bridge_latency_ms": 16.0}
FAST = {"timed": True, "bridge_latency_ms": 1.0}

pytestmark = pytest.mark.slow


def _changes(notes: Recorded, link: EspLink) -> list[tuple[int, ...]]:
    """What an erase and a program send, call by call."""
    notes.clear()
    link.erase(PLACE, 0x1000)
    link.program(PLACE, bytes(range(1, 9)))
    return [call.commands for call in notes.calls if {WRITE_REG, READ_REG} & set(call.commands)]


def test_on_a_slow_bridge_registers_are_looked_at_together(tmp_path: Path) -> None:
    """Two waits for what is prepared and looked at, one for the start and the flash's status."""
    board = SimBoard("guide", config=SLOW)
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        control = sim.boards[0].control
        control.write_flash(PLACE, b"\0" * 0x1000)
        link = EspLink.connect(notes.port, baud=921_600)
        calls = _changes(notes, link)
        assert calls[:2] == [(WRITE_REG, READ_REG, READ_REG), (READ_REG, READ_REG)]
        assert calls[2] == (WRITE_REG, READ_REG)
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


@pytest.mark.parametrize("lost", ["all", "every third"])
def test_requests_that_get_no_answer_are_tried_smaller_then_singly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Without gaps they are lost: the link holds, no value is wrong, and nothing is done twice that
    is not done once right."""
    if lost == "all":
        monkeypatch.setattr(registers, "GAP", b"")
    monkeypatch.setattr(registers, "TOGETHER_MARGIN_S", -1.0)
    board = SimBoard("guide", config=SLOW)
    with SimProcess(tmp_path, [board]) as sim, recorded(sim.boards[0]) as notes:
        control = sim.boards[0].control
        control.write_flash(PLACE, b"\0" * 0x1000)
        count = [0]

        def damage(data: bytes) -> bytes:
            if lost == "all" or registers.GAP not in data:
                return data
            count[0] += 1
            return data[: len(data) // 2] if count[0] % 3 == 0 else data

        notes.damage = damage
        link = EspLink.connect(notes.port, baud=115_200)
        most = max(map(len, _changes(notes, link)))
        assert most == 1 or lost != "all"
        for at in range(3):
            link.program(PLACE + 0x100 * (at + 1), bytes(range(at + 1, 60)))
        assert control.read_flash(PLACE, 9) == bytes(range(1, 9)) + b"\xff"
        for at in range(3):
            found = control.read_flash(PLACE + 0x100 * (at + 1), 61)
            assert found == bytes(range(at + 1, 60)).ljust(61, b"\xff")
        assert {len(commands) for commands in _changes(notes, link)} == {1}
        assert link._spi._registers._groups == [1]
        link.restart()
