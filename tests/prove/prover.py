# SPDX-License-Identifier: GPL-3.0-or-later
"""Cuts recorded sessions wherever they can be cut, judges what is left, and recovers it."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ota_service.formats import nvs
from ota_service.update.facts import BoardFacts
from tests.prove import nvs_init
from tests.prove.board import Link, Notes, Op, quiet
from tests.prove.cells import Cells
from tests.prove.cuts import OWN, Cut, Detail, cuts
from tests.prove.flows import Case, recover, retarget
from tests.prove.images import NEXT, Firmware
from tests.prove.judge import Judge, Problem

COLUMNS = ("cases", "cuts", "judged", "memory", "link", "lost", "keys", "converge")


@dataclass(frozen=True)
class Failure:
    """What was found, and where: `case` with the cut's name repeats it."""

    kind: str
    case: str
    problem: Problem
    image: bytes | None = field(default=None, repr=False)


@dataclass
class Tally:
    """Numbers by kind of cut and column, and the failures."""

    numbers: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, kind: str, column: str, count: int = 1) -> None:
        """Count."""
        self.numbers[kind, column] += count

    def merge(self, other: Tally) -> None:
        """Add what another process has found."""
        self.numbers.update(other.numbers)
        self.failures += other.failures

    def fail(self, kind: str, case: str, problems: Sequence[Problem], cells: Cells) -> None:
        """Count each kind of problem once for this cut; keep the first as an example."""
        for column in {problem.kind for problem in problems}:
            first = next(p for p in problems if p.kind == column)
            self.add(kind, column)
            keep = sum(f.problem.kind == column and f.kind == kind for f in self.failures) < 3
            if keep:
                image = zlib.compress(cells.whole(), 1)
                self.failures.append(Failure(kind, case, first, image))

    def total(self, column: str) -> int:
        """The sum over all kinds."""
        return sum(count for (_, name), count in self.numbers.items() if name == column)


@dataclass(frozen=True)
class Depth:
    """How much is done with each case.

    detail: which cuts. journals: every image is recovered with the journal and without; else
    only those between two operations are recovered without. others: those are also brought to
    other targets, and recovered without the journal. twice: of so many images one has
    its recovery cut again.
    """

    detail: Detail = field(default_factory=Detail)
    journals: bool = True
    others: bool = True
    twice: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Recording:
    """A case and the operations of its session."""

    case: Case
    ops: tuple[Op, ...]


def record_in_memory(case: Case) -> Recording:
    """The operations of a case's session with a board in memory."""
    link = Link(Cells(case.flash()), case.start.bootloader)
    facts = BoardFacts() if case.start.first_contact else case.facts()
    with quiet():
        outcome = link.session(case.job(), Notes(facts))
        if outcome.end == "awaiting_confirmation":
            link.time_passes()
    return Recording(case, tuple(link.ops))


@contextmanager
def edits_remembered() -> Iterator[None]:
    """Plan each change of NVS once: it depends on nothing but its arguments, its own proof takes
    most of the time, and boards that were cut elsewhere have the same NVS."""
    right = nvs.set_string
    nvs.set_string = lru_cache(maxsize=4000)(right)
    try:
        yield
    finally:
        nvs.set_string = right


def prove_alike(some: Sequence[tuple[Recording, Depth]]) -> Tally:
    """`prove` for cases that begin with the same NVS: most of what is computed serves them all."""
    tally = Tally()
    with edits_remembered():
        for recording, depth in some:
            tally.merge(prove(recording, depth))
    nvs_init.forget()
    return tally


def kind_of(case: Case, cut: Cut) -> str:
    """The row of the table that a cut belongs to."""
    flow = "update" if case.flow == "plain-image" else case.flow
    return f"{flow}: {cut.region}"


def prove(recording: Recording, depth: Depth, only: str | None = None) -> Tally:
    """Cut one recorded session everywhere, judge every image, and recover it in memory.

    only: the name of the single cut to look at.
    """
    tally = Tally()
    case = recording.case
    flash = case.flash()
    judge = case.judge(flash)
    seen: set[bytes] = set()
    kinds: set[str] = set()
    rng = random.Random(f"{case.name}/{depth.seed}")
    made = cuts(
        flash, recording.ops, case.start.plan, depth.detail,
        from_phase=case.cut_from(), seed=f"{case.name}/{depth.seed}",
    )  # fmt: skip
    with quiet():
        for cut in made:
            kind = kind_of(case, cut)
            kinds.add(kind)
            tally.add(kind, "cuts")
            if only is not None and cut.name != only:
                continue
            key = cut.cells.key()
            if key in seen:
                continue
            seen.add(key)
            name = f"{case.name}@{cut.name}"
            _one(tally, kind, name, case, judge, cut, depth, rng)
    for kind in kinds:
        tally.add(kind, "cases")
    return tally


def _one(
    tally: Tally, kind: str, name: str, case: Case, judge: Judge, cut: Cut, depth: Depth,
    rng: random.Random,
) -> None:  # fmt: skip
    """One image: judged, recovered from what may have become of it, and cut again."""
    cells, own = cut.cells, cut.region == OWN
    between = cut.how == "before"
    tally.add(kind, "judged")
    problems = judge.problems(cells, own=own, rules=cut.rules)
    journal, others = case.facts(interrupted=True), between and depth.others
    for variant, board, facts in _variants(case, cut, journal, depth.journals or others):
        tally.add(kind, "memory")
        found = recover(case, board, facts, own=own)
        found += judge.nvs(board.cells, board.rules, any_tag=True)
        problems += [replace(p, text=f"{variant}: {p.text}") for p in found]
    if others and not own and case.flow not in ("pending", "shy", "take-back"):
        for words, firmware, facts in _targets(case):
            tally.add(kind, "memory")
            board = Link(cells.copy(), case.start.bootloader, cut.rules)
            found = retarget(case, board, facts, firmware)
            found += judge.nvs(board.cells, board.rules, any_tag=True)
            problems += [replace(p, text=f"{words}: {p.text}") for p in found]
    if problems:
        tally.fail(kind, name, problems, cells)
    if depth.twice and rng.randrange(depth.twice) == 0:
        _again(tally, name, case, judge, cut, depth, rng)


def _variants(
    case: Case, cut: Cut, journal: BoardFacts, forgotten: bool
) -> Iterable[tuple[str, Link, BoardFacts]]:
    """The board as it was left; after it ran once; and as somebody meets it who knows nothing."""

    def board() -> Link:
        return Link(cut.cells.copy(), case.start.bootloader, cut.rules)

    yield "left so", board(), journal
    ran = board()
    ran.restart()
    ran.time_passes()
    if ran.ops or ran.nvs_erased:
        yield "after a start", ran, journal
    if forgotten:
        yield "journal lost", board(), BoardFacts()


def _targets(case: Case) -> Iterable[tuple[str, Firmware, BoardFacts]]:
    """What may be wanted of the board after its interrupted update, instead of that one."""
    known = replace(case.facts(interrupted=True), unwatched=False, interrupted=True)
    yield "another target", NEXT, known
    if case.old_tag and case.old.described:
        old = replace(case.old, tag=case.old_tag)
        yield "the old target", old, known
        yield "the old target, journal lost", old, BoardFacts()


def _again(
    tally: Tally, name: str, case: Case, judge: Judge, first: Cut, depth: Depth,
    rng: random.Random,
) -> None:  # fmt: skip
    """Two cuts in a row: the recovery of a cut board is cut."""
    kind = "during recovery"
    link = Link(first.cells.copy(), case.start.bootloader, first.rules)
    journal = case.facts(interrupted=True)
    flash = first.cells.whole()
    try:
        link.session(case.job(), Notes(journal))
    except Exception:
        return  # counted where it was recovered without a cut
    tally.add(kind, "cases")
    own = True  # a first cut may have left the old firmware with any version
    detail = replace(depth.detail, tears=2, ends=2, body=60)
    seen = {Cells(flash).key()}
    for cut in cuts(flash, link.ops, case.start.plan, detail, seed=f"{name}/{depth.seed}"):
        tally.add(kind, "cuts")
        if (key := cut.cells.key()) in seen:
            continue
        seen.add(key)
        tally.add(kind, "judged")
        rules = tuple(one for one in cut.rules if one in first.rules)
        problems = judge.problems(cut.cells, own=own or cut.region == OWN, rules=rules)
        board = Link(cut.cells.copy(), case.start.bootloader, rules)
        tally.add(kind, "memory")
        problems += recover(case, board, journal, own=cut.region == OWN)
        problems += judge.nvs(board.cells, board.rules, any_tag=True)
        if problems:
            tally.fail(kind, f"{name}+{cut.name}", problems, cut.cells)
