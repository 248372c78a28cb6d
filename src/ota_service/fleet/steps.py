# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest's steps, one after the other: the boards of a step in parallel, and the next step when
every one of them is good.

What a run knows of its manifest is its `Course`; what each board answers is noted by the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ota_service.errors import OtaError
from ota_service.firmware.manifest import Block, Manifest
from ota_service.firmware.target import Target
from ota_service.fleet import groups, policy
from ota_service.fleet.assignment import Assignment
from ota_service.fleet.board import heard
from ota_service.fleet.group_policy import Phase
from ota_service.fleet.orders import Order
from ota_service.fleet.sight import Sight

if TYPE_CHECKING:
    from ota_service.fleet.board import Board
    from ota_service.fleet.run import Run

Pair = tuple[Order, "Board"]
Pairs = Sequence[Pair]


@dataclass
class Course:
    """Where a run stands in its manifest. step: from 1 on; phase: of a group's way, as far as it
    has come. half: boards that have the new firmware while others of their group have not, where
    that waits for something. back: a group failed, and went back."""

    assignment: Assignment
    step: int = 1
    phase: Phase | None = None
    half: list[str] = field(default_factory=list)
    back: bool = False

    @classmethod
    def recalled(cls, shown: Mapping[str, Any], base: Target) -> Course:
        """As the journal has it shown, of a process that ended: to be shown on."""
        steps = [list(step) for step in shown["steps"]]
        unknown = {"url": "unknown", "sha256": "0" * 64}
        images = {image: unknown for step in steps for image in step}
        made = {"format": 1, "version": shown["version"], "images": images, "order": steps}
        assignment = Assignment(base, "", Manifest.checked(made), dict(shown["boards"]))
        half = list(shown.get("half", ()))
        return cls(assignment, int(shown["step"]), shown.get("phase"), half)

    def at(self, step: Sequence[str]) -> None:
        """A step begins."""
        self.step = self.assignment.manifest.steps.index(tuple(step)) + 1

    def to_dict(self) -> dict[str, Any]:
        """As in the status and the history."""
        manifest = self.assignment.manifest
        shown = {
            "version": manifest.version,
            "phase": self.phase,
            "step": self.step,
            "steps": [list(step) for step in manifest.steps],
            "boards": dict(self.assignment.images),
            "half": self.half or None,
            "notice": self.assignment.notice,
        }
        return {key: value for key, value in shown.items() if value is not None}


async def go(run: Run, blocks: Sequence[Block], orders: Mapping[str, Pairs]) -> None:
    """Block after block, until one is not good; when this returns, each order is answered.

    orders: image -> the orders to its boards, which were asked of nobody yet; `run.course` is this
    manifest's.
    """
    alone = partial(_alone, run)
    for number, block in enumerate(blocks):
        if block.groups:
            why = await groups.go(run, block, orders, alone)
        else:
            (step,) = block.steps
            why = await alone(step, _of(step, orders))
        if why is not None:
            left = chain.from_iterable(one.steps for one in blocks[number:])
            await _leave_out(run, [pair for step in left for pair in _of(step, orders)], why)
            return


async def _alone(run: Run, step: Sequence[str], pairs: Pairs) -> OtaError | None:
    """The boards of a step that are in no group; why what follows is not begun."""
    if not pairs:
        return None
    assert run.course is not None
    run.course.at(step)
    await run.note_course()
    await run.renew([pair for pair in pairs if not pair[0].answer.done()])
    await asyncio.gather(*(run.ask(order, board) for order, board in pairs))
    return _why_not_further(run, pairs)


def _why_not_further(run: Run, pairs: Pairs) -> OtaError | None:
    """Why what follows these boards is not begun; None where every one of them is good."""
    assert run.course is not None
    if run.engine.settings.target.key != run.course.assignment.base.key:
        return OtaError("cancelled", "Another target was configured.")
    if run.is_cancelled:
        return OtaError("cancelled")
    ours = [pair for pair in pairs if _is_ours(run, pair[1])]
    if any(order.answer.result().end == "cancelled" for order, _ in ours):
        return OtaError("cancelled")
    bad = {board.shown.name: _words(board) for _, board in ours if not board.is_good}
    if not bad:
        return None
    images = run.course.assignment.images
    named = ", ".join(f"{name} ({images.get(name, '?')}): {words}" for name, words in bad.items())
    text = f"Step {run.course.step} of the manifest is not good, so this one was not begun: {named}"
    return OtaError("manifest-incomplete", f"{text}.")


def _is_ours(run: Run, board: Board) -> bool:
    """Whether it is one of the manifest's still: it may be pinned or listed no more by now."""
    return run.engine.boards.get(board.shown.name) is board and not board.shown.is_pinned


def _words(board: Board) -> str:
    """Why a board is not good."""
    state = board.shown.state.replace("_", " ")
    if board.shown.state != "up_to_date":
        return state
    return board.runs_another or f"{state}, and no start of it was watched"


async def _leave_out(run: Run, pairs: Pairs, why: OtaError) -> None:
    """Answer what is not begun any more; boards that it is the target of say so."""
    for order, board in pairs:
        if order.answer.done():
            continue
        if why.code != "cancelled" and board.target.key == order.target.key:
            board.post(partial(_left_out, why=why))
            await heard([board])
        await run.give_up(order, board, why)


def _left_out(sight: Sight, why: OtaError) -> None:
    about = sight.about
    if about.state in ("unknown", "outdated"):
        about.state = policy.shown_when_dropped(about.state, about.version, sight.target.version)
        about.error = why if about.state == "outdated" else about.error


def _of(step: Sequence[str], orders: Mapping[str, Pairs]) -> Pairs:
    return [pair for image in step for pair in orders.get(image, ())]
