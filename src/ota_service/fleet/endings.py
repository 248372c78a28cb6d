# SPDX-License-Identifier: GPL-3.0-or-later
"""What sessions came to: into the journal, into what the board shows, into an answer.

Belongs to the board's task (`board.Board`): nobody else calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from ota_service.errors import OtaError
from ota_service.fleet import policy
from ota_service.fleet.around import Around
from ota_service.fleet.attempt import SessionEnd
from ota_service.fleet.board_state import iso, staged_dict, utc_now
from ota_service.fleet.memory import By, Memory, runs_by_now
from ota_service.fleet.orders import Answer, Order, Purpose, last_reply, refusal
from ota_service.fleet.sight import Sight, running_of
from ota_service.update.facts import Staged
from ota_service.update.flash_merged import FlashOutcome
from ota_service.update.session import Image, Outcome


async def updated(
    sight: Sight,
    around: Around,
    order: Order,
    outcome: Outcome,
    image: Image | Staged | None,
    target: str,
) -> OtaError | None:
    """An update's session had an outcome; the error, where that is one. target: whose it is."""
    error = outcome.error
    if outcome.found is not None:
        around.renamed(sight.about, outcome.found.chip.mac)
    sight.version(outcome.version)
    if outcome.version is not None:
        order.report["to"] = outcome.version
    _keep_start(order, outcome)
    if error is not None:
        error.board = sight.about.name
    if outcome.end == "refused":
        assert error is not None
        await _refused(sight, around, order, error)
    else:
        note = partial(_noted, around.memory, target, outcome, image)
        await around.journaled(around.memory.journal.whole, note)
        _show(sight, outcome, image)
        waits, made = sight.about.staged, outcome.plan
        if waits is not None and made is not None and made.slot is not None:
            sight.staged(None if waits.slot == made.slot.name else waits)
    return error


async def staged(
    sight: Sight, around: Around, order: Order, outcome: Outcome, image: Image
) -> OtaError | None:
    """A stage's session had an outcome; the error, where that is one. The board is what it was."""
    about, memory, found, made = sight.about, around.memory, outcome.found, outcome.plan
    assert found is not None
    assert made is not None
    around.renamed(about, found.chip.mac)
    error = outcome.error
    if error is not None:
        error.board = about.name
    if outcome.end == "refused":
        assert error is not None
        await _refused(sight, around, order, error)
        return error
    before = "unknown" if sight.before == "failed" else sight.before
    about.error, tag = None, found.version if found.has_version else None
    about.state = policy.shown_after_read(before, tag, sight.target.version, found.problem)
    about.running = running_of(outcome.slot, runs_by_now(outcome, None)) or about.running
    if made.slot is not None:
        mac, slot = found.chip.mac, made.slot.name
        now = await around.journaled(memory.stage, mac, slot, image, order.target)
        sight.staged(now)
        order.report["staged"] = staged_dict(now)
    if error is not None:
        sight.error(error)
    return error


def _noted(memory: Memory, target: str, outcome: Outcome, image: Image | Staged | None) -> None:
    """In the journal, all of it or nothing; in a thread."""
    if outcome.found is not None and outcome.plan is not None and outcome.plan.slot is not None:
        memory.activated(outcome.found.chip.mac, outcome.plan.slot.name)
    if outcome.end == "up_to_date":
        memory.succeeded(outcome, image, target)
    elif outcome.end == "unjudged":
        memory.unjudged(outcome, image, target)
    else:
        assert outcome.found is not None
        if outcome.error is not None and outcome.error.code in policy.EVIDENCE:
            memory.brought_failed(outcome.found.chip.mac, target)
        memory.rolled_back(outcome, target)


def _show(sight: Sight, outcome: Outcome, image: Image | Staged | None) -> None:
    """What an update came to that was not refused."""
    about = sight.about
    about.error = outcome.error
    about.running = running_of(outcome.slot, runs_by_now(outcome, image)) or about.running
    about.unchecked = about.unchecked and outcome.end == "up_to_date"
    if outcome.end == "up_to_date":
        if outcome.confirmed is not None:
            sight.judged(outcome.confirmed, outcome.notice)
        about.state, about.attempts = "up_to_date", 0
        return
    sight.judged(outcome.confirmed, outcome.notice)
    if outcome.end == "unjudged":
        assert outcome.error is not None
        sight.error(outcome.error)
        about.running = {} if outcome.error.code == "no-reset" else about.running
    else:
        about.state = "failed" if outcome.end == "failed" else "rolled_back"
        about.attempts += 1


async def _refused(sight: Sight, around: Around, order: Order, error: OtaError) -> None:
    sight.error(error)
    info, about = order.place.info, sight.about
    if error.code == "other-project" and about.entry is None and info is not None:
        await around.journaled(around.memory.mark_not_ours, info, error.message, about.mac)


async def set_aside(sight: Sight, around: Around, order: Order, error: OtaError) -> None:
    """The attempts are used up."""
    key = sight.about.mac or sight.about.name
    note = around.memory.journal.set_attempt_state
    await around.journaled(note, key, order.target.key, "set_aside", error)
    sight.about.state = "set_aside"


def looked(
    sight: Sight, around: Around, looks: Sequence[Order], end: SessionEnd, *, alone: bool
) -> Answer:
    """A look at a board ended. alone: no update waits behind it."""
    about, purpose = sight.about, looks[0].purpose
    if end.error is not None:
        if end.error.code in (*policy.HINDRANCES, "awaiting-confirmation"):
            return Answer("error", end.error, last_reply(purpose, about, end.error, None))
        return Answer("error", end.error, refusal(purpose, end.error))
    outcome = end.outcome
    assert isinstance(outcome, Outcome)
    found = outcome.found
    assert found is not None
    around.renamed(about, found.chip.mac)
    if alone:
        tag = found.version if found.has_version else None
        about.state = policy.shown_after_read(
            sight.before, tag, sight.target.version, found.problem
        )
        if about.state != sight.before:
            about.error = found.problem if about.state == "unsupported" else None
    for order in looks:
        _keep_start(order, outcome)
    reply, error = _read_reply(purpose, outcome)
    return Answer("done" if error is None else "error", error, reply)


def _read_reply(purpose: str, outcome: Outcome) -> tuple[dict[str, Any], OtaError | None]:
    """The reply of a look at a board, and the error where it did not find what was asked."""
    if purpose == "plan":
        assert outcome.plan is not None
        return dict(outcome.plan.to_dict()), None
    if purpose == "log":
        return {"verdict": outcome.notice}, None
    found = outcome.found
    assert found is not None
    if purpose == "version" and found.has_version:
        return {"version": found.version, "version_read_at": iso(utc_now())}, None
    if purpose == "verify" and found.running.partition is not None:
        return {"matches": found.holds(found.running.partition)}, None
    problem = found.problem or found.running.why or OtaError("otadata-invalid")
    return {"error": problem.to_dict()}, problem


_BACK: dict[Purpose, tuple[By, str, str, str]] = {
    "rollback": ("person", "a person", "rolled back by a person", "no rollback"),
    "back": ("group", "its group", "taken back", "it was not taken back"),
}
"""Whose word a way back is: for the journal, and in words; and what is said of it."""


async def went_back(sight: Sight, around: Around, order: Order, end: SessionEnd) -> Answer:
    """A board went back. A person's rollback holds it until its target changes, or `release`; a
    way back with its group holds nothing."""
    about, memory, key = sight.about, around.memory, order.target.key
    grouped = order.purpose == "back"
    by, who, done, not_done = _BACK[order.purpose]
    if end.error is not None:
        if grouped:
            about.state, about.error = sight.before, end.error
        sight.log(logging.WARNING, "%s: %s", not_done, end.error.message)
        return Answer("error", end.error, refusal(order.purpose, end.error))
    outcome = end.outcome
    assert isinstance(outcome, Outcome)
    assert outcome.found is not None
    assert outcome.slot is not None
    mac, slot, error = outcome.found.chip.mac, outcome.slot.name, outcome.error
    fact = (await around.journaled(memory.facts, mac, order.target)).slots.get(slot)
    note = partial(memory.rolled_back, outcome, key, by=by if error is None else "itself")
    await around.journaled(memory.journal.whole, note)
    around.renamed(about, mac)
    sight.version(outcome.version)
    sight.judged(outcome.confirmed, outcome.notice)
    about.running = running_of(outcome.slot, runs_by_now(outcome, None)) or about.running
    about.unchecked, about.error = False, error
    about.state = "rolled_back" if outcome.end == "rolled_back" else "failed"
    reply: dict[str, Any] = {"slot": slot, "version": outcome.version or ""}
    if not grouped:
        known = fact is not None and fact.version is not None
        reply["version_from"] = "journal" if known else "descriptor"
    elif error is None:
        about.state = policy.shown_when_released(about.version, sight.target.version)
    order.report |= {"to": outcome.version, "slot": slot, "by": who}
    _keep_start(order, outcome)
    if error is not None:
        error.board = about.name
        sight.log(logging.WARNING, "%s: %s", not_done, error.message)
        return Answer("error", error, reply | {"error": error.to_dict()})
    sight.log(logging.INFO, '%s to "%s" in %s', done, outcome.version, slot)
    return Answer("done", reply=reply)


async def flashed(sight: Sight, around: Around, order: Order, end: SessionEnd) -> Answer:
    """A writing of a Merged Binary ended."""
    about, memory = sight.about, around.memory
    if end.error is not None:
        about.state = sight.before
        if end.wrote:
            sight.error(end.error)
            about.state = "failed"
            about.version = about.version_read_at = None
        sight.log(logging.ERROR, "%s %s", end.error.message, end.error.remedy)
        return Answer("error", end.error, refusal("flash", end.error))
    outcome = end.outcome
    assert isinstance(outcome, FlashOutcome)
    around.renamed(about, outcome.chip.mac)
    await around.journaled(memory.flashed, outcome)
    order.report |= {"to": outcome.version, "action": "flash"}
    _keep_start(order, outcome)
    sight.version(outcome.version)
    reply = outcome.to_dict()
    about.running = dict(reply["running"])
    sight.judged(outcome.confirmed, outcome.notice)
    about.attempts, about.error, about.unchecked = 0, None, False
    if outcome.error is not None:
        sight.error(outcome.error)
        return Answer("error", outcome.error, reply)
    about.state = "up_to_date" if outcome.version == sight.target.version else "outdated"
    return Answer("done", reply=reply)


def _keep_start(order: Order, outcome: Outcome | FlashOutcome) -> None:
    """What a watched start has shown, for the history; of a way back only its log."""
    seen: dict[str, Any] = {"boot_log": list(outcome.boot_log)}
    if isinstance(outcome, FlashOutcome) or outcome.end == "up_to_date":
        seen |= {"confirmed": outcome.confirmed, "notice": outcome.notice}
    order.report |= {name: value for name, value in seen.items() if value not in (None, "", [])}
