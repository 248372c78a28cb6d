# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of a run for the boards that have the service's own target, which may be a manifest.

A plain App Image is the usual case: its boards are asked at once, and wait for it themselves. Where
a manifest arrives in its place, or was kept from before, each board gets the target of its image,
and the orders go out step by step. What each board answers is noted by the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ota_service.errors import OtaError
from ota_service.firmware.check import IsManifest, ManifestFile
from ota_service.firmware.failures import GaveUp
from ota_service.firmware.manifest import Block
from ota_service.firmware.target import Target
from ota_service.fleet import groups, policy
from ota_service.fleet.assignment import Assignment, Course, expected_s
from ota_service.fleet.board import heard
from ota_service.fleet.orders import SWITCHES, Order, Purpose
from ota_service.fleet.sight import Sight

if TYPE_CHECKING:
    from ota_service.fleet.board import Board
    from ota_service.fleet.run import Run

Pair = tuple[Order, "Board"]
Pairs = Sequence[Pair]

BY_MANIFEST: frozenset[Purpose] = frozenset({"update", "stage", "activate", "plan", "verify"})
"""What is asked of boards for the sake of the target's image."""
_HISTORY = 20
"""Runs that are looked through for how long something takes."""


def concerns(run: Run, board: Board) -> bool:
    """Whether a run may find a manifest for this board."""
    return run.purpose in BY_MANIFEST and not board.shown.is_pinned


async def go(run: Run, pairs: Pairs) -> None:
    """Ask the boards; boards that are not there are answered whatever the download does."""
    here = [pair for pair in pairs if pair[0].place.kind == "here"]
    away = [run.ask(*pair) for pair in pairs if pair not in here]
    await asyncio.gather(_here(run, here), *away)


async def _here(run: Run, pairs: Pairs) -> None:
    if not pairs:
        return
    base = run.engine.settings.target
    try:
        found = await run.unless_cancelled(_known(run, base, pairs))
        if found is None:
            _require_current(run, base)
            if any(order.target.key != board.target.key for order, board in pairs):
                pairs = await run.prepare({board: order.place for order, board in pairs})
            answers = await asyncio.gather(*(run.ask(*pair) for pair in pairs))
            errors = [answer.error for answer in answers]
            found = next((one.found for one in errors if isinstance(one, IsManifest)), None)
        if found is not None:
            await _by_manifest(run, base, found, pairs)
    except OtaError as error:
        await _give_up(run, pairs, error)


async def _give_up(run: Run, pairs: Pairs, why: OtaError) -> None:
    """Nothing is asked of boards that were not asked yet."""
    now = [run.orders.get(board.shown.name, (order, board)) for order, board in pairs]
    for order, board in now:
        if not order.answer.done():
            await run.give_up(order, board, why, "no-firmware")


async def _known(run: Run, target: Target, pairs: Pairs) -> ManifestFile | None:
    """The manifest, where it is one for all that is known; None: the boards ask for the image.

    What happens by itself goes by the one that was kept, without the network; what a person asks
    for, by what the url gives now. An activation goes by the one that was staged by, and asks
    nobody: what it starts was allowed when it was written.
    """
    firmwares, activates = run.engine.firmwares, run.purpose == "activate"
    kept = await firmwares.kept(target, checked=not activates)
    if kept is None:
        unasked = all(order.spared is not None for order, _ in pairs)
        if not (unasked and await firmwares.may_be_manifest(target)):
            return None
    elif activates or not run.by_person:
        return kept
    run.stage = "downloading"
    try:
        found = await firmwares.manifest(target)
    except GaveUp as error:
        if kept is not None:
            run.engine.log.warning("%s Using the manifest that it gave before.", error.message)
        return kept
    finally:
        run.stage = "going"
    if found is None and kept is not None and target.key == run.engine.settings.target.key:
        await asyncio.to_thread(firmwares.forget_kept, target)
        run.engine.roster.assignment = None
        run.engine.roster.reassign()
    return found


async def _by_manifest(run: Run, base: Target, found: ManifestFile, pairs: Pairs) -> None:
    """Each board its image, step by step."""
    manifest = found.manifest
    if manifest.binds and not run.by_person:
        pairs = [*pairs, *await _all_others(run)]
    await heard(board for _, board in pairs)  # what the journal knows of them
    _require_current(run, base)
    open_ = [pair for pair in pairs if _is_open(pair[0])]
    assignment = await _assigned(run, base, found, open_)
    run.course = Course(assignment)
    gets = ", ".join(f"{name}: {image}" for name, image in assignment.images.items())
    run.engine.log.info('manifest "%s": %s', manifest.version, gets or "no board gets anything")
    if assignment.notice is not None:
        run.engine.log.warning("%s", assignment.notice)
    fresh = await run.prepare({board: order.place for order, board in open_})
    rest = [pair for pair in pairs if pair not in open_]
    asked = await _ask(run, base, [*fresh, *rest])
    if any(_is_mistaken(*pair) for pair in asked):
        asked = await _ask_again(run, base, found, asked)
    if run.purpose == "plan":
        await _tell_more(run, asked)


async def _ask_again(run: Run, base: Target, found: ManifestFile, asked: list[Pair]) -> list[Pair]:
    """What they really run was read by now: once more, by that."""
    _require_current(run, base)
    run.course = Course(await _assigned(run, base, found, asked))
    binds = found.manifest.binds
    left = [pair for pair in asked if binds or pair[0].answer.result().error is not None]
    again = await run.prepare({board: order.place for order, board in left})
    return [pair for pair in asked if pair not in left] + await _ask(run, base, again)


async def _ask(run: Run, base: Target, pairs: Pairs) -> list[Pair]:
    """The boards for their images, step by step; those that get one."""
    assert run.course is not None
    assignment = run.course.assignment
    orders = await _by_image(run, assignment, pairs)
    await run.note_course()
    asked = [pair for some in orders.values() for pair in some]
    if run.purpose in SWITCHES:
        await _step_by_step(run, assignment.manifest.blocks(), orders)
        await _doubt(run, base, asked)
    else:
        await asyncio.gather(*(run.ask(*pair) for pair in asked))
    return asked


def _is_mistaken(order: Order, board: Board) -> bool:
    """Whether a board runs another project than the one for which it was given its image."""
    error, runs = order.answer.result().error, board.shown.running.get("project")
    return error is not None and error.code == "other-project" and order.runs not in (None, runs)


async def _assigned(run: Run, base: Target, found: ManifestFile, pairs: Pairs) -> Assignment:
    """Which board gets which image; boards of which too little is known are looked at first."""
    assignment = run.engine.roster.assign(base, found)
    unsure = [pair for pair in pairs if pair[1].shown.name in assignment.unsure]
    if not unsure:
        return assignment
    failed = await asyncio.gather(*(_look(run, *pair) for pair in unsure))
    _require_current(run, base)
    assignment = run.engine.roster.assign(base, found, looked=[board for _, board in unsure])
    for (_, board), error in zip(unsure, failed, strict=True):
        if error is not None and board.shown.name not in assignment.images:
            assignment.problems[board.shown.name] = error
    return assignment


async def _by_image(run: Run, assignment: Assignment, pairs: Pairs) -> dict[str, list[Pair]]:
    """The orders to each image's boards; a board that gets none is answered."""
    orders: dict[str, list[Pair]] = {}
    for order, board in pairs:
        name = board.shown.name
        if (image := assignment.images.get(name)) is not None:
            orders.setdefault(image, []).append((order, board))
        elif not order.answer.done():
            why = assignment.problems.get(name) or OtaError("other-project", board=name)
            board.post(partial(_without_image, why=why))
            await heard([board])
            await run.give_up(order, board, why)
    return orders


async def _doubt(run: Run, base: Target, pairs: Pairs) -> None:
    """A manifest whose images cannot be had is no good one: what follows asks for it anew."""
    answers = [order.answer.result() for order, _ in pairs]
    if any(one.end == "no-firmware" and not isinstance(one.error, GaveUp) for one in answers):
        await asyncio.to_thread(run.engine.firmwares.forget_kept, base)


def _require_current(run: Run, base: Target) -> None:
    if run.is_cancelled:
        raise OtaError("cancelled")
    if run.engine.settings.target.key != base.key:
        raise OtaError("cancelled", "Another target was configured.")


def _is_open(order: Order) -> bool:
    """Whether a board is still to be asked for its image: it was not, or for what was none."""
    if order.place.kind != "here":
        return False
    if not order.answer.done() or order.spared is not None:
        return True
    return isinstance(order.answer.result().error, IsManifest)


async def _look(run: Run, order: Order, board: Board) -> OtaError | None:
    """Find out what runs on a board of which nothing is known; why not, where that fails."""
    error: OtaError | None = None
    while not (run.is_cancelled or run.leaves_out(board)):
        look = Order("version", board.target, order.place, f"{run.trigger}, look", run.permits)
        board.order(look)
        before, error = error, (await look.answer).error
        waits = error if error is not None and error.code in policy.HINDRANCES else None
        if before is not waits:
            board.post(partial(_waits, error=waits))
        if waits is None:
            return error
        await asyncio.sleep(policy.HELD_POLL_S)
    return OtaError("cancelled")


def _waits(sight: Sight, error: OtaError | None) -> None:
    sight.about.error = error


def _without_image(sight: Sight, why: OtaError) -> None:
    """It keeps what it has, and says why."""
    if why.code == "manifest-invalid":
        sight.about.error = why
    elif why.code not in policy.WITHOUT_OUTCOME:
        sight.error(why)


async def _tell_more(run: Run, pairs: Pairs) -> None:
    """What a plan for several images says of each board: which one, and how long it will take."""
    assert run.course is not None
    journal, service = run.engine.memory.journal, run.engine.settings.service
    for order, board in pairs:
        name = board.shown.name
        reply = run.results.get(name, {})
        size = int(run.engine.firmwares.about.get(order.target.key, {}).get("size_bytes", 0))
        entries: list[Mapping[str, Any]] = []
        for words in ([name], None):  # its own before those of others
            runs = await run.engine.journaled(journal.history, service, words, _HISTORY)
            entries += [entry for one in runs for entry in one.boards.values()]
        lasts_s = expected_s(str(reply.get("action")), size, entries)
        image = {"image": run.course.assignment.images[name]}
        run.results[name] = {
            **reply, **image, **({"expected_s": lasts_s} if lasts_s is not None else {}),
        }  # fmt: skip


async def _all_others(run: Run) -> list[Pair]:
    """A robot's boards belong together: what happens by itself is for all of them."""
    if run.names is None:
        return []
    run.names = None
    places = await run.engine.roster.find(None, run.permits, probe=False, by_person=False)
    known = {board for _, board in run.orders.values()}
    more = {b: place for b, place in places.items() if b not in known and concerns(run, b)}
    pairs = await run.prepare(more)
    await asyncio.gather(*(run.ask(*pair) for pair in pairs if pair[0].place.kind != "here"))
    return pairs


# --- its steps, one after the other


async def _step_by_step(run: Run, blocks: Sequence[Block], orders: Mapping[str, Pairs]) -> None:
    """The boards of a step in parallel, and the next step when every one of them is good, until one
    is not; when this returns, each order is answered.

    orders: image -> the orders to its boards, which were asked of nobody yet.
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
