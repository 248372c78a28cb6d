# SPDX-License-Identifier: GPL-3.0-or-later
"""A run: orders to boards that belong together, with one entry in the history.

It decides nothing: each board's task answers its order, and the answers make the outcome. It lives
in a task of its own, so it outlives the command that started it and the instance of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ota_service.errors import OtaError
from ota_service.firmware.check import IsManifest
from ota_service.firmware.target import Target
from ota_service.fleet import groups, manifests
from ota_service.fleet.assignment import Course
from ota_service.fleet.board_state import iso, utc_now
from ota_service.fleet.journal_rows import GroupRecord
from ota_service.fleet.manifests import Pair
from ota_service.fleet.orders import (
    READS,
    SWITCHES,
    UPDATES,
    Answer,
    End,
    FlashFile,
    Order,
    Purpose,
    Trigger,
    refusal,
)
from ota_service.fleet.places import Place, stands_in
from ota_service.fleet.policy import Permits, Spared, spared
from ota_service.fleet.robot import unless

if TYPE_CHECKING:
    from ota_service.fleet.board import Board
    from ota_service.fleet.engine import Engine

RunOutcome = Literal["running", "succeeded", "partly", "failed", "cancelled"]

Result = TypeVar("Result")


@dataclass(eq=False)
class Run:
    """A run and its orders.

    names: the boards asked for; None: all. file: gets what `flash` writes. orders: by the name
    that the board had. results: what reads, rollback and flash reply, by name. course: where it
    stands in the manifest, where the service's target is one. resumes: the group that a process
    before has left in the middle.
    """

    engine: Engine
    trigger: Trigger
    names: Sequence[str] | None = None
    purpose: Purpose = "update"
    permits: Permits = field(default_factory=Permits)
    probe: bool = False
    file: Callable[[], Awaitable[FlashFile]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started_at: datetime = field(default_factory=utc_now)
    finished_at: datetime | None = None
    outcome: RunOutcome = "running"
    error: OtaError | None = None
    stage: Literal["checking", "downloading", "going", "done"] = "checking"
    orders: dict[str, tuple[Order, Board]] = field(default_factory=dict)
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: bool = False
    course: Course | None = None
    resumes: GroupRecord | None = None
    _cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _left_out: set[str] = field(default_factory=set)

    def to_dict(self) -> dict[str, Any]:
        """As in the status."""
        out: dict[str, Any] = {
            "id": self.id,
            "trigger": self.trigger,
            "started_at": iso(self.started_at),
            "outcome": self.outcome,
        }
        if self.finished_at is not None:
            out["finished_at"] = iso(self.finished_at)
        if self.course is not None:
            out["manifest"] = self.course.to_dict()
        return out

    @property
    def by_person(self) -> bool:
        """Whether a person asked for it, who may have ports opened that nothing else opens."""
        return self.trigger == "command"

    @property
    def reply(self) -> dict[str, Any]:
        """What a read replies, under its key; empty for an update."""
        if self.purpose in UPDATES or not self.results:
            return {}
        reply: dict[str, Any] = {"plan" if self.purpose == "plan" else "boards": dict(self.results)}
        if self.purpose == "plan" and self.course is not None:
            reply["steps"] = self.course.to_dict()["steps"]
        return reply

    def boards_now(self) -> dict[str, dict[str, Any]]:
        """What the history shows of its boards, as it stands."""
        shown = {}
        for order, board in self.orders.values():
            entry = {**order.report, "port": board.shown.port}
            if not order.answer.done():
                entry["outcome"] = board.shown.state
            shown[board.shown.name] = entry
        return shown

    def covers(self, names: Sequence[str] | None, permits: Permits, purpose: Purpose) -> bool:
        """Whether it is still doing, for each of these boards, all that is asked for."""
        over = self.done.is_set() or self._cancelled.is_set()
        over = over or bool(self._left_out and (names is None or self._left_out & set(names)))
        does_it = purpose == self.purpose or (purpose, self.purpose) == ("stage", "update")
        if not does_it or over or self.permits | permits != self.permits:
            return False
        if self.names is not None and (names is None or not set(names) <= set(self.names)):
            return False
        return self.stage == "checking" or self._is_at(names)

    def awaits(self, board: Board) -> bool:
        """Whether a board's part in it is still to come, or goes on."""
        parts = [order for order, asked in self.orders.values() if asked is board]
        if self.done.is_set() or parts or self.stage != "checking":
            return any(not order.answer.done() for order in parts) and not self.done.is_set()
        return self.names is None or board.shown.name in self.names

    def _is_at(self, names: Sequence[str] | None) -> bool:
        """Whether any of these boards is still to be answered, and none for what is over."""
        asked = [
            (order, board)
            for order, board in self.orders.values()
            if names is None or board.shown.name in names
        ]
        void = any(b.state == "stopping" or o.target.key != b.target.key for o, b in asked)
        return not void and any(not order.answer.done() for order, _ in asked)

    def cancel(self, names: Sequence[str] | None = None) -> None:
        """What was not asked of any board yet is not asked any more; names: of these boards."""
        if names is None or (self.names is not None and set(self.names) <= set(names)):
            self._cancelled.set()
        else:
            self._left_out |= set(names)

    @property
    def is_cancelled(self) -> bool:
        """Whether nothing more is asked of any board."""
        return self._cancelled.is_set()

    @property
    def tally(self) -> tuple[int, int]:
        """How many of its boards have come to what was asked for, and of how many."""
        counted = [order for order, board in self.orders.values() if self._counts(board)]
        return sum(map(self._is_good, counted)), len(counted)

    @property
    def told_by_boards(self) -> bool:
        """Whether nobody was there, and the boards that were asked have said so themselves."""
        places = [order.place for order, _ in self.orders.values()]
        nobody = self.error is not None and self.error.code == "no-board"
        return nobody and any(place.error is not None for place in places)

    async def go(self) -> None:
        """The whole run; never raises."""
        try:
            journal, service = self.engine.memory.journal, self.engine.settings.service
            about = dict(self.about)
            await self.engine.journaled(journal.start_run, self.id, service, self.trigger, about)
            await self._go()
        except OtaError as error:
            self.error = error
            self.outcome = "cancelled" if error.code == "cancelled" else "failed"
        except Exception as error:
            self.engine.log.exception("run %s failed", self.id)
            self.error = OtaError.unforeseen(error)
            self.outcome = "failed"
        finally:
            self.finished_at = utc_now()
            self.stage = "done"
            if self.outcome == "running":
                self.outcome = self._judge()
            try:
                await self._journal_end()
            except Exception:
                self.engine.log.exception("run %s: its end could not be noted", self.id)
            self.done.set()

    async def _go(self) -> None:
        if self.resumes is not None:
            self.stage = "going"
            base = Target.noted(self.resumes.target, "", self.resumes.version, None)
            self.course = Course.recalled(self.resumes.data["course"], base)
            await groups.resume(self, self.resumes)
            return
        if self.purpose not in READS:  # a group that is in the middle of its switch first ends
            await self.unless_cancelled(self.engine.groups.free(self.names))
        found = await self.engine.roster.find(
            self.names, self.permits, probe=self.probe, by_person=self.by_person
        )
        pairs = await self.prepare(found)
        if self.file is not None:
            await self._have_file(list(found.values()), self.file)
        if self.is_cancelled:
            raise OtaError("cancelled")
        self.stage = "going"
        ours = [pair for pair in pairs if manifests.concerns(self, pair[1])]
        others = [self.ask(*pair) for pair in pairs if pair not in ours]
        await asyncio.gather(manifests.go(self, ours), *others)
        places = [order.place for order, _ in self.orders.values()]
        nobody = all(place.kind in ("absent", "candidate") for place in places)
        if self.purpose in UPDATES and nobody:
            raise _nobody(places)

    async def prepare(self, found: Mapping[Board, Place]) -> list[Pair]:
        """Orders to boards, which are theirs in the run from now on, asked of nobody yet."""
        why = f"{self.trigger}, {self.purpose}" if self.purpose != "update" else self.trigger
        known = await self.engine.journaled(self._recall, found)
        pairs = []
        for (board, place), (failed, why_not) in zip(found.items(), known, strict=True):
            name, course = board.shown.name, self.course
            order = Order(
                self.purpose, board.target, place, why, self.permits, failed=failed, spared=why_not,
                runs=course.assignment.rests_on(name) if course is not None else None,
            )  # fmt: skip
            self.orders[board.shown.name] = pair = (order, board)
            pairs.append(pair)
        return pairs

    async def renew(self, pairs: Sequence[Pair]) -> None:
        """What is known by now of boards that were not asked yet: where they are, and why they need
        no session."""
        names = [board.shown.name for _, board in pairs]
        places = await self.engine.roster.find(
            names, self.permits, probe=False, by_person=self.by_person
        )
        # What was found by probing is not known to be there by anything else yet.
        found = {
            board: order.place if self.probe else places.get(board, order.place)
            for order, board in pairs
        }
        known = await self.engine.journaled(self._recall, found)
        for (order, board), (failed, why_not) in zip(pairs, known, strict=True):
            order.place, order.failed, order.spared = found[board], failed, why_not

    def _recall(self, found: Mapping[Board, Place]) -> list[tuple[int, Spared | None]]:
        """How often each board failed with its target, and why it needs no session. In a thread."""
        known: list[tuple[int, Spared | None]] = []
        memory = self.engine.memory
        for board, place in found.items():
            if place.mac is None:
                known.append((0, None))
                continue
            seen = memory.journal.board(place.mac)
            if board.shown.mac is None and seen is not None:
                board.recall(memory, seen)
            record = memory.journal.attempt(place.mac, board.target.key)
            as_last_read = stands_in(place, memory, board.target.version)
            if self.course is not None and self.course.assignment.manifest.binds:
                as_last_read = as_last_read and board.shown.confirmed is not None
            # A stage is what a job asks for each night: it restarts no board for nothing.
            reads = self.by_person and self.purpose != "stage"
            why_not = spared(
                record, by_person=reads, as_last_read=as_last_read, board=board.shown.name
            )
            held = why_not is not None and why_not.error is not None
            asked = self.purpose in UPDATES or (self.purpose == "plan" and held)
            known.append((record.failed, why_not if asked else None))
        return known

    async def _have_file(
        self, found: Sequence[Place], file: Callable[[], Awaitable[FlashFile]]
    ) -> None:
        """The Merged Binary, checked before any port is opened."""
        if len(found) != 1:
            raise OtaError("no-board", f"flash writes one board; {len(found)} were found.")
        if found[0].kind != "here":
            raise found[0].error or OtaError("no-board")
        self.stage = "downloading"
        ((order, _),) = self.orders.values()
        order.file = await self.unless_cancelled(file())

    async def unless_cancelled(self, work: Awaitable[Result]) -> Result:
        """What comes of it. Raises OtaError `cancelled` as soon as nobody wants it any more."""
        return await unless(self._cancelled, work)

    async def ask(self, order: Order, board: Board) -> Answer:
        """One board's part: ask, await the answer, note it; but for a manifest that was found in
        the place of an image: that is no answer yet."""
        if order.answer.done():
            return order.answer.result()
        try:
            if self.purpose in manifests.BY_MANIFEST and board.target.key != order.target.key:
                raise OtaError("cancelled", "Another target was configured.")
            if self.leaves_out(board):
                raise OtaError("cancelled")
            answer = await self._answer(order, board)
        except OtaError as error:
            answer = _refuse(order, board, error)
        if not isinstance(answer.error, IsManifest) or not manifests.concerns(self, board):
            await self.note(order, board, answer)
        return answer

    async def give_up(self, order: Order, board: Board, why: OtaError, end: End = "error") -> None:
        """One board's part, where nothing is asked of it after all."""
        await self.note(order, board, _refuse(order, board, why, end))

    async def note(self, order: Order, board: Board, answer: Answer) -> None:
        """One board's part has been answered."""
        order.image = order.file = None
        if self.purpose not in UPDATES:
            self.results[board.shown.name] = answer.reply
        if self._concerns_all(order, answer):
            self.error = answer.error
        if self.by_person and order.report.get("reason") == "held" and answer.error is not None:
            name, why = board.shown.name, answer.error
            text = "%s: held: %s %s [%s]"
            self.engine.log.warning(text, name, _said(why), why.remedy, why.code)
        report = {**order.report, "port": board.shown.port}
        with contextlib.suppress(OtaError):
            note = self.engine.memory.journal.update_run_board
            await self.engine.journaled(note, self.id, board.shown.name, report)

    async def note_course(self) -> None:
        """Where it stands in its manifest, for the history."""
        assert self.course is not None
        about = {**self.about, "manifest": self.course.to_dict()}
        with contextlib.suppress(OtaError):
            journal = self.engine.memory.journal
            await self.engine.journaled(journal.update_run_target, self.id, about)

    def leaves_out(self, board: Board) -> bool:
        """Whether somebody cancelled this board's part before it was asked."""
        return board.shown.name in self._left_out

    async def _answer(self, order: Order, board: Board) -> Answer:
        here = order.place.kind == "here"
        stopped = self.engine.turns.stopped(order.target.key)
        if "stopped" in self.permits.override:
            stopped = None
        if self.purpose == "plan":
            held, order.spared = order.spared, None
            why = held.error if held is not None else stopped
            if here and board.free and why is not None:  # as an update would be answered
                reply = {**refusal("plan", why), "reason": f"{_said(why)} {why.remedy}"}
                answer = Answer("error", why, reply)
                order.give(answer)
                return answer
        if self.purpose in ("plan", "verify") and here:
            async with self.engine.firmwares.had(order.target) as fetched:
                order.image = fetched.image
                board.order(order)
                return await order.answer
        if self.purpose in UPDATES and here and stopped is not None and order.spared is None:
            order.report["outcome"] = "stopped"
            order.give(Answer("stopped", stopped))
        else:
            board.order(order)
        return await order.answer

    def _concerns_all(self, order: Order, answer: Answer) -> bool:
        """Whether an answer's error is the run's: the firmware for all, its stop, or a flash's."""
        if answer.end == "no-firmware":
            return order.target.key in self.engine.roster.service_keys
        return answer.end == "stopped" or (self.purpose == "flash" and answer.error is not None)

    def _judge(self) -> RunOutcome:
        counted = [pair for pair in self.orders.values() if self._counts(pair[1])]
        ends = [order.answer.result().end for order, _ in counted if not self._is_good(order)]
        if self.course is not None and self.course.back:
            return "failed"
        if counted and not ends:
            return "succeeded"
        if counted and set(ends) == {"cancelled"}:
            return "cancelled"
        return "partly" if len(ends) < len(counted) else "failed"

    def _counts(self, board: Board) -> bool:
        """Whether a board that was found by itself is one of ours."""
        stranger = board.shown.state in ("candidate", "unrecognised")
        return self.purpose not in UPDATES or board.shown.entry is not None or not stranger

    def _is_good(self, order: Order) -> bool:
        if order.report.get("outcome") == "up_to_date":
            return "unchecked" not in order.report
        done = order.answer.done() and order.answer.result().end == "done"
        return self.purpose not in SWITCHES and done

    async def _journal_end(self) -> None:
        await self.engine.journaled(
            self.engine.memory.journal.finish_run,
            self.id,
            self.outcome,
            error=self.error.to_dict() if self.error is not None else None,
            result=self.reply or None,
            interrupted=self.interrupted and self.purpose in SWITCHES,
        )


def _refuse(order: Order, board: Board, why: OtaError, end: End = "error") -> Answer:
    order.report |= {"error": why.to_dict(), "outcome": board.shown.state}
    return order.refuse(why, "cancelled" if why.code == "cancelled" else end)


def _said(error: OtaError) -> str:
    """Its message as a sentence: what was noted of a person's word is none."""
    return f"{error.message.rstrip('.')}."


def _nobody(found: Iterable[Place]) -> OtaError:
    candidates = [str(place.port) for place in found if place.kind == "candidate"]
    if candidates:
        return OtaError(
            "no-board",
            f"No board is known yet; {', '.join(candidates)} may have one.",
            remedy="Call update once by hand, or list the boards in boards.",
        )
    return OtaError("no-board")
