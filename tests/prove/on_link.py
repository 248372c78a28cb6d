# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done over the real link: recording sessions, and recovering some of the cut boards."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ota_service.update.facts import BoardFacts
from tests.prove.board import Notes, Op
from tests.prove.cells import Cells
from tests.prove.cuts import OWN, Cut, Detail, cuts
from tests.prove.flows import Case, recover
from tests.prove.judge import Problem
from tests.prove.link import Boards, RealBoard
from tests.prove.prover import Failure, Recording, Tally, kind_of
from tests.prove.suite import Trial

SLOT_CUTS_EACH = 3
FEW = 6


@dataclass(frozen=True)
class Recovery:
    """One cut board that is to be recovered over the link."""

    case: Case
    cut: Cut


def record(boards: Boards, cases: Sequence[Case]) -> Iterator[Recording | Failure]:
    """Each case's session over the link; a failure where it did not come to its end."""
    yield from boards.each(_record, cases)


def _record(board: RealBoard, case: Case) -> Recording | Failure:
    board.load(case.flash(), case.start.bootloader)
    facts = BoardFacts() if case.start.first_contact else case.facts()
    try:
        outcome, ops = board.record(case.job(), Notes(facts))
    except Exception as error:
        return _failed(case, f"{type(error).__name__}: {error}", board)
    ends = {"update": "up_to_date", "plain-image": "up_to_date", "switch": "up_to_date"}
    ends |= {"record": "up_to_date", "correct": "rolled_back", "back": "rolled_back"}
    ends |= {"pending": "awaiting_confirmation", "shy": "rolled_back", "go-back": "rolled_back"}
    ends |= {"take-back": "rolled_back"}
    ends |= {"stage": "staged", "activate": "up_to_date"}
    # Where an entry shows rollback, the app is waited for.
    waits = case.flow in ("update", "plain-image", "switch", "activate") and (
        outcome.end == "awaiting_confirmation"
    )
    if outcome.end != ends[case.flow] and not waits:
        return _failed(case, f"ended {outcome.end}: {outcome.error}", board)
    return Recording(case, tuple(ops))


def _failed(case: Case, text: str, board: RealBoard) -> Failure:
    return Failure("recording", case.name, Problem("converge", text))


def recoveries(trial: Trial, ops: Sequence[Op]) -> list[Recovery]:
    """The cuts of a trial that are recovered over the link: each operation of otadata and NVS
    whole and torn once, and a fixed sample of those in a slot; a few of all where it is a small
    trial."""
    if not trial.on_link:
        return []
    case = trial.case
    made = cuts(
        case.flash(), ops, case.start.plan, Detail(tears=1, ends=2, body=30),
        from_phase=case.cut_from(), seed=f"{case.name}/link",
    )  # fmt: skip
    rng = random.Random(case.name)
    seen: set[bytes] = set()
    slot: list[Recovery] = []
    rest: list[Recovery] = []
    for cut in made:
        if (key := cut.cells.key()) not in seen:
            seen.add(key)
            (slot if cut.region == "slot" else rest).append(Recovery(case, cut))
    slot = rng.sample(slot, min(SLOT_CUTS_EACH, len(slot)))
    if trial.on_link == 1:
        rest = rng.sample(rest, min(FEW, len(rest)))
        slot = slot[:1]
    return [*rest, *slot]


def recover_all(boards: Boards, some: Sequence[Recovery]) -> Iterator[Tally]:
    """Bring each cut board to its target over the link; what was found."""
    yield from boards.each(_recover, some)


def _recover(board: RealBoard, one: Recovery) -> Tally:
    case, cut = one.case, one.cut
    board.load(cut.cells.whole(), case.start.bootloader)
    problems = recover(case, board, case.facts(interrupted=True), own=cut.region == OWN)
    judge = case.judge(case.flash())
    problems += judge.nvs(board.cells, board.rules, any_tag=True)
    tally = Tally()
    kind = kind_of(case, cut)
    tally.add(kind, "link")
    if problems:
        said = [replace(p, text=f"over the link: {p.text}") for p in problems]
        tally.fail(kind, f"{case.name}@{cut.name}", said, Cells(cut.cells.whole()))
    return tally
