# SPDX-License-Identifier: GPL-3.0-or-later
"""Power that fails while a session is going on: what replays in memory cannot show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase
from ota_service.update.session import Job
from tests.formats.nvs_pages import stuck
from tests.prove.board import BOOT, Notes, Op, Told, quiet
from tests.prove.flows import Case, recover
from tests.prove.images import LARGE
from tests.prove.judge import Judge
from tests.prove.link import Boards, RealBoard
from tests.prove.starts import Start

pytestmark = pytest.mark.slow

CASE = Case("update", Start("guide", "blank", False, "no-second-free"))


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boards]:
    """One simulator process with four boards."""
    with Boards(tmp_path_factory.mktemp("boards"), 4) as running:
        yield running


def test_power_that_fails_within_a_session_is_a_lost_link(boards: Boards) -> None:
    """Cut in the slot, in otadata and in NVS, whole and torn: the session says that the link was
    lost, the judge finds nothing wrong, and the next session comes to the target."""
    judge = CASE.judge(CASE.flash())
    total = len(next(boards.each(recorded, [CASE])))
    cuts = [
        (1, "torn"),
        (9, "whole"),
        (60, "torn"),
        *((total - k, "torn") for k in range(1, 22, 4)),
    ]

    assert _cut_each(boards, CASE.job(), cuts, judge) == []


def test_power_that_fails_while_a_slot_is_erased(boards: Boards) -> None:
    """At each of the stub loader's erases, whole and torn, and at the program behind: the old
    firmware runs, and the next session comes to its target."""
    job = Job("board", version=LARGE.tag, image=LARGE.image, boot=BOOT)
    judge = CASE.judge(CASE.flash())
    ops = next(boards.each(lambda board, _: recorded(board, CASE, job), [None]))
    slot = [op for op in ops if op.phase == "writing"]
    erases = [
        number
        for number, op in enumerate(slot, 1)
        if isinstance(op.op, Erase) and op.op.size_bytes == 0x10000
    ]
    assert len(erases) == len(LARGE.data) // 0x10000
    cuts = [(at + later, mode) for at in erases for later, mode in AROUND]
    assert _cut_each(boards, job, cuts, judge) == []


AROUND = ((0, "torn"), (0, "whole"), (1, "torn"))


def _cut_each(boards: Boards, job: Job, cuts: Sequence[tuple[int, str]], judge: Judge) -> list[str]:
    """Cut a session of `job` in each way; what the judge finds, and whether CASE is reached."""

    def cut(board: RealBoard, at: tuple[int, str]) -> list[str]:
        board.load(CASE.flash(), CASE.start.bootloader)
        board.control.cut_power_at(at[0], at[1])  # type: ignore[arg-type]
        with quiet():
            with pytest.raises(OtaError) as caught:
                board.session(job, Notes(CASE.facts()))
            assert caught.value.code == "link-lost"
            assert board.control.state()["state"] == "off"
            problems = judge.problems(board.cells)
            board.control.power_on()
            problems += recover(CASE, board, CASE.facts(interrupted=True))
        return [f"{at}: {problem.text}" for problem in problems]

    return [text for texts in boards.each(cut, cuts) for text in texts]


def recorded(board: RealBoard, case: Case, job: Job | None = None) -> list[Op]:
    """The loader's operations of a session that nothing disturbs."""
    board.load(case.flash(), case.start.bootloader)
    _, ops = board.record(job or case.job(), Notes(case.facts()))
    return [op for op in ops if op.who == "loader"]


def test_a_board_whose_nvs_cannot_be_changed_is_started_once_over_the_link(boards: Boards) -> None:
    """Its firmware has its time, and is found as it was: the board runs it again in the end."""
    flash = bytearray(CASE.flash())
    at = CASE.start.plan.find("nvs")
    flash[at.offset : at.end] = stuck(at.size)
    with boards.board() as board:
        board.load(bytes(flash), CASE.start.bootloader)
        notes = Told(CASE.facts())
        with quiet():
            outcome = board.session(CASE.job(), notes)
        board.control.wait_for("app")
        assert board.cells.read(at.offset, at.size) == stuck(at.size)
    assert (outcome.end, outcome.error and outcome.error.code) == ("refused", "nvs-invalid")
    assert notes.restarts == (
        "into download mode, to be looked at",
        "once into its firmware, so that it repairs its NVS",
    )
