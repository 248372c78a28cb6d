# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards that are not ours, where a person names that as what is overridden."""

from __future__ import annotations

from pathlib import Path

import pytest

from ota_service.board.ports import PortInfo
from ota_service.firmware.target import Target
from ota_service.fleet.core import Core
from ota_service.fleet.hooks import BoardWork
from ota_service.fleet.journal import open_journal
from ota_service.fleet.memory import Memory
from ota_service.fleet.places import place_found
from ota_service.fleet.run import Run
from ota_service.fleet.settings import BoardEntry, Override, Settings

INFO = PortInfo("/dev/ttyACM0", location="1-1.2", vid=0x303A, pid=0x1001, serial_number="x")


def test_a_port_that_was_found_not_to_be_ours_is_opened_when_a_person_says_so(
    tmp_path: Path,
) -> None:
    """It stays marked: by itself nothing opens it before `release`."""
    journal = open_journal(tmp_path)
    memory = Memory(journal, "OTA")
    journal.mark_not_ours("1-1.2", "another project")
    (left,) = place_found([INFO], memory, by_person=True, taken={})
    assert (left.kind, left.error.code if left.error else None) == ("not_ours", "other-project")
    (opened,) = place_found([INFO], memory, by_person=True, taken={}, other_project=True)
    assert opened.kind == "here"
    (left,) = place_found([INFO], memory, by_person=False, taken={})
    assert left.kind == "not_ours"
    journal.close()


@pytest.mark.parametrize(
    ("force", "override", "listed", "adopted"),
    [
        (False, frozenset[Override](), False, False),
        (True, frozenset[Override](), False, False),
        (False, frozenset[Override]({"stopped", "not-allowed-now"}), False, False),
        (False, frozenset[Override]({"other-project"}), False, True),
        (False, frozenset[Override](), True, True),
    ],
)
def test_another_projects_board_is_taken_by_its_own_name_only(
    force: bool, override: frozenset[Override], listed: bool, adopted: bool
) -> None:
    """Force is for equal versions, and the other overrides are for other things."""
    core = Core(Settings("OTA", Target("http://127.0.0.1/a", "1")))
    (place,) = place_found([INFO], _Nothing(), by_person=True, taken={})  # type: ignore[arg-type]
    board = core._show_place(place)
    board.entry = BoardEntry("a", port="/dev/x") if listed else None
    run = Run(core, "command", force=force, override=override)
    work = BoardWork(board, place, core.settings.target)
    assert core.job(work, None, run).adopted is adopted


class _Nothing:
    """A memory of nothing."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: None
