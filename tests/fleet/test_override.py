# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards that are not ours, where a person names that as what is overridden."""

from __future__ import annotations

from pathlib import Path

import pytest

from ota_service.fleet.board import Board
from ota_service.fleet.journal import open_journal
from ota_service.fleet.memory import Memory
from ota_service.fleet.places import place_found
from ota_service.fleet.settings import BoardEntry, Override
from ota_service.link.ports import PortInfo
from tests.fleet.conftest import TARGET, AtDesk, Desk

INFO = PortInfo("/dev/ttyACM0", location="1-1.2", vid=0x303A, pid=0x1001, serial_number="x")


def test_a_port_that_was_found_not_to_be_ours_is_opened_when_a_person_says_so(
    tmp_path: Path,
) -> None:
    """It stays marked: by itself nothing opens it before `release`."""
    journal = open_journal(tmp_path)
    memory = Memory(journal, "OTA")
    memory.mark_not_ours(INFO, "another project", None)
    (left,) = place_found([INFO], memory, by_person=True)
    assert (left.kind, left.error.code if left.error else None) == ("not_ours", "other-project")
    (opened,) = place_found([INFO], memory, by_person=True, other_project=True)
    assert opened.kind == "here"
    (left,) = place_found([INFO], memory, by_person=False)
    assert left.kind == "not_ours"
    journal.close()


@pytest.mark.parametrize(
    ("force", "override", "listed", "adopted"),
    [
        (False, (), False, False),
        (True, (), False, False),
        (False, ("stopped", "not-allowed-now"), False, False),
        (False, ("other-project",), False, True),
        (False, (), True, True),
    ],
)
def test_another_projects_board_is_taken_by_its_own_name_only(
    at_desk: AtDesk, force: bool, override: tuple[Override, ...], listed: bool, adopted: bool
) -> None:
    """Force is for equal versions, and the other overrides are for other things."""

    async def test(desk: Desk) -> None:
        entry = BoardEntry("a", port="/dev/x") if listed else None
        board = Board("a", entry, TARGET, desk)
        order = desk.order(force=force, override=override)
        assert board._new_job(order).adopted is adopted

    at_desk(test)
