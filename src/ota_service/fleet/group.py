# SPDX-License-Identifier: GPL-3.0-or-later
"""A group of boards that goes forward or back as a whole: carries `group_policy.GROUP` out.

It asks its members for one thing after the other, as a run does: `stage`, `activate`, `back`. What
the next start has to know stands in the journal before the first board is switched, and before the
first one goes back: the group as `GroupRecord`, and each member that may have been switched as
`BroughtRecord`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast, get_args

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import group_policy, policy
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.group_policy import GROUP, Event, Fate, Phase, State
from ota_service.fleet.journal_rows import BroughtRecord, GroupPhase, GroupRecord
from ota_service.fleet.orders import Answer, End, Order, Purpose
from ota_service.fleet.places import Place
from ota_service.fleet.policy import Permits
from ota_service.fleet.settings import Override
from ota_service.update.session import Image

if TYPE_CHECKING:
    from ota_service.fleet.assignment import Course
    from ota_service.fleet.board import Board
    from ota_service.fleet.engine import Engine
    from ota_service.fleet.run import Run

POLL_S = 0.25
"""How often is looked whether a run was cancelled, and how far the members are."""
LOOK_S = 1.0
"""How often is looked whether a lost member is there again."""
NO_MATTER: frozenset[Override] = frozenset({"not-allowed-now"})
"""What a way back does not wait for without end: the robot's no."""


@dataclass(eq=False)
class Member:
    """A board of a group. order: the run's; its report has all that is done to the board.

    board None: the service has it no more. step: of the block, from 0. before: it was good before
    the run, and is not touched. switch: what is asked of it in its step. fate, error: what came of
    that, or of its staging. end: of that. lost: it was asked, and may be reached again. owed: why
    it could not be taken back.
    """

    name: str
    image: str
    board: Board | None
    order: Order
    step: int = 0
    mac: str | None = None
    before: bool = False
    switch: Purpose = "activate"
    fate: Fate | None = None
    error: OtaError | None = None
    end: End = "error"
    lost: bool = False
    owed: OtaError | None = None

    @property
    def waits(self) -> bool:
        """Whether it is on its way, and somebody has to let it, or bring it back."""
        held = self.board is not None and self.board.state == "held"
        return self.fate is None and (self.lost or held)


@dataclass(eq=False)
class Group:
    """One group of one run.

    id: in the journal. members: those of its boards that are asked, in the order of their steps.
    names: of its boards. stops: keys of the targets that no board gets any more where a firmware of
    the group fails. state: the table's. why: it goes no further, or back. unused: its images that
    no board gets. others: of the block, with their steps: of none of these groups, or of another
    one.
    """

    run: Run
    id: str
    members: list[Member]
    names: Sequence[str]
    stops: tuple[str, ...] = ()
    state: State = "staging"
    why: OtaError | None = None
    unused: Sequence[str] = ()
    others: Sequence[Member] = ()
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _turned: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def engine(self) -> Engine:
        """The service."""
        return self.run.engine

    @property
    def course(self) -> Course:
        """Where the run stands in the manifest."""
        assert self.run.course is not None
        return self.run.course

    @property
    def base(self) -> Target:
        """The service's target, which is the manifest."""
        return self.course.assignment.base

    @property
    def boards(self) -> set[Board]:
        """Those of its members that the service has."""
        return {member.board for member in self.members if member.board is not None}

    @property
    def named(self) -> str:
        """Its boards, as messages have them."""
        return ", ".join(self.names)

    @property
    def names_now(self) -> frozenset[str]:
        """All that its boards are called, or were when it began."""
        return frozenset({*self.names, *(board.shown.name for board in self.boards)})

    @property
    def _todo(self) -> list[Member]:
        return [member for member in self.members if not member.before]

    @property
    def _is_cancelled(self) -> bool:
        """Whether somebody cancelled all of it, or the part of one of its boards."""
        leaves_out = self.run.leaves_out
        return self.run.is_cancelled or any(m.board and leaves_out(m.board) for m in self._todo)

    async def _take(self, event: Event) -> str:
        """The state that the table says, shown and noted; the action is the caller's."""
        row = GROUP[self.state, event]
        if row.state is None:
            return row.action
        self.state = row.state
        self.engine.log.info("group of %s: %s", self.named, self.state.replace("_", " "))
        await self._show()
        return row.action

    async def _show(self) -> None:
        if self.state in get_args(Phase):
            self.course.phase = cast(Phase, self.state)
        elif self.state == "final" and self.course.phase == "staging":  # nothing was to be switched
            self.course.phase = None
        else:
            return
        await self.run.note_course()

    # --- staging

    async def complete(self) -> bool:
        """Whether every member is there to be switched; else nothing begins."""
        errors = {member.name: await self._why_not(member) for member in self.members}
        asked = {member.name for member in self.members}
        others = {n: await self._away(n) for n in self.names if n not in asked}
        if not self._todo:
            await self._act(await self._take("good"), {})
            return True
        found = [error for error in (*errors.values(), *others.values()) if error is not None]
        first = next((error for error in found if error.code in ("cancelled", "stopped")), None)
        each = [f"{n}: {e.message}" for n, e in {**errors, **others}.items() if e is not None]
        each += [f"no board gets {image}" for image in self.unused]
        self.why = first or (_incomplete(self.named, each) if each else None)
        if self.why is not None:
            await self._take("retarget" if self.why.code == "cancelled" else "unstaged")
            return False
        await self._show()
        return True

    async def _why_not(self, member: Member) -> OtaError | None:
        """Why a member is not to be switched; one that the journal answers for is good."""
        order, board = member.order, member.board
        assert board is not None
        if board.target.key != order.target.key:
            return OtaError("cancelled", "Another target was configured.")
        here = order.place.kind == "here"
        if here and not order.answer.done() and order.spared is not None:
            board.order(order)
            await order.answer
        if order.answer.done():
            member.before = _good(member)
            return order.answer.result().error or _another(board)
        if not here:
            return order.place.error or OtaError("no-board", board=member.name)
        if "stopped" in order.permits.override:
            return None
        turns = self.engine.turns
        return turns.stopped(order.target.key) or turns.stopped(self.base.key)

    async def _away(self, name: str) -> OtaError | None:
        """What is wrong with a board of the group that this run does not ask; None: it is good."""
        board = self.engine.boards.get(name)
        if board is None:
            return OtaError("no-board", "It is not listed any more.")
        place = await self._find(board)
        if place.kind != "here":
            return place.error or OtaError("no-board")
        if board.is_good:
            return None
        return board.shown.error or _another(board) or OtaError("no-board", "It was not named.")

    async def stage(self) -> bool:
        """Have every member staged, its switch and its way back proven; whether they all are."""
        todo = self._todo
        if self.run.purpose == "activate":
            found = await asyncio.gather(*map(self._recall, todo))
        else:
            async with AsyncExitStack() as stack:
                found = await self._look_ahead(todo, stack)
                if not any(found):
                    found = await asyncio.gather(*map(self._staged, todo))
        for member, error in zip(todo, found, strict=True):
            member.mac = member.board.shown.mac if member.board is not None else None
            member.error = error
        event = self._unstaged()
        if event is not None:
            await self._take(event)
        return event is None

    def _unstaged(self) -> Event | None:
        """What has become of the staging; None: every member is staged."""
        if self.engine.closing or self._is_cancelled:
            self.why = OtaError("cancelled")
            return "end" if self.engine.closing else "cancel"
        failed = {m: m.error for m in self._todo if m.error is not None}
        if not failed:
            return None
        errors = list(failed.values())
        first = next((error for error in errors if error.code != "cancelled"), errors[0])
        for_all = {member.end for member in failed} == {"no-firmware"}
        if for_all or first.code in ("cancelled", "stopped"):
            self.why = first
        else:
            each = [f"{member.name}: {error.message}" for member, error in failed.items()]
            self.why = _incomplete(self.named, each)
        return "cancel" if first.code == "cancelled" else "unstaged"

    async def _look_ahead(
        self, todo: Sequence[Member], stack: AsyncExitStack
    ) -> list[OtaError | None]:
        """Whether an image raises its board's secure version, from which there may be no way back:
        that is to be known before anything is written. stack: keeps the images."""

        async def look(member: Member) -> OtaError | None:
            try:
                had = self.engine.firmwares.had(member.order.target)
                fetched = await self.run.unless_cancelled(stack.enter_async_context(had))
            except OtaError as error:
                return error if error.code == "cancelled" else None  # its staging says so
            if not fetched.image.descriptor.secure_version:
                return None
            answer = await self._ask(member, "plan", fetched.image)
            code, words = (str(answer.reply.get(key, "")) for key in ("code", "reason"))
            return OtaError(code, words, board=member.name) if code == "secure-version" else None

        return list(await asyncio.gather(*map(look, todo)))

    async def _staged(self, member: Member) -> OtaError | None:
        answer = await self._ask(member, "stage")
        if answer.end != "done":
            member.end = answer.end
            return answer.error or OtaError("cancelled", board=member.name)
        if "staged" not in member.order.report:
            # It runs the target's firmware already: if need be its start is watched.
            member.before, member.switch = _good(member), "update"
            return _another(member.board) if member.board is not None else None
        return None

    async def _recall(self, member: Member) -> OtaError | None:
        """Of an activation: what was staged and proven before."""
        order, memory = member.order, self.engine.memory
        try:
            await self.engine.journaled(memory.require_staged, order.place.mac, order.target)
        except OtaError as error:
            member.before = member.board is not None and member.board.is_good
            return None if member.before else error
        return None

    async def begin(self) -> bool:
        """From here on the journal says that it is switched; whether it does."""
        if self.state == "staging" and not self._todo:
            await self._act(await self._take("good"), {})
        if self.state == "final":
            return True
        await self._note("switching", self._anew)
        problem = self.engine.journal_problem
        if problem is None:
            await self._take("staged")
            return True
        # A switch that the next start might know nothing of could leave the group half.
        await self._note(None)
        await self.fail(problem)
        return False

    # --- forward

    def has(self, step: int) -> bool:
        """Whether it is to be switched in a step."""
        return self.state in group_policy.FORWARD and any(m.step == step for m in self._todo)

    async def switch(self, step: int) -> OtaError | None:
        """Activate the members of a step; why it goes no further, None where they are good.

        The group has gone back where it goes no further, or the process ends.
        """
        asked = [member for member in self._todo if member.step == step]
        more = any(member.step > step for member in self._todo)
        tasks = {m: self._spawn(m, self._forward) for m in asked if m.fate is None}
        event = await self._watch(asked, tasks.values(), more=more)
        if self.engine.closing or event is None:
            await self._take("end")
            await asyncio.gather(*tasks.values())
            return OtaError("cancelled")
        await self._act(await self._take(event), tasks)
        return self.why

    async def _watch(
        self, asked: Sequence[Member], tasks: Collection[asyncio.Task[None]], *, more: bool
    ) -> Event | None:
        """What becomes of those that were asked; None: the process ends."""
        event: Event | None = None
        held_s, now_s = 0.0, self._now_s
        while event is None and not self.engine.closing:
            if pending := [task for task in tasks if not task.done()]:
                await asyncio.wait(pending, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            else:  # whatever became of them, the event loop is not kept
                await asyncio.sleep(0)
            event, before_s, now_s = self._event(asked, more=more), now_s, self._now_s
            waits = [member for member in asked if member.waits]
            half = await self._half() if event is None and waits else []
            await self._show_half(half)
            held = [member for member in waits if not member.lost]
            if half and held:
                held_s += now_s - before_s
                event = self._held_up(held[0], held_s)
            over = not more and event not in ("failed", "cancel")
            if self.state == "switching" and over and all(map(_past_switch, asked)):
                await self._take("switched")
        return event

    def _event(self, asked: Sequence[Member], *, more: bool) -> Event | None:
        """What has become of those that were asked, or who cancelled it."""
        if self._is_cancelled:
            self.why = OtaError("cancelled")
            return "cancel"
        event = group_policy.event_of([member.fate for member in asked], more=more)
        if event in ("failed", "cancel", "unanswered"):
            first = min(asked, key=lambda member: group_policy.blame(member.fate))
            error = first.error or OtaError("cancelled")
            self.why = OtaError(error.code, error.message, board=first.name)
        return event

    async def _half(self) -> list[Member]:
        """Those that have been switched, where some have not."""
        todo = [member for member in self._todo if member.switch == "activate"]
        switched = [member for member in todo if await self._brought(member)]
        return switched if len(switched) < len(todo) else []

    async def _show_half(self, members: Sequence[Member]) -> None:
        """These have the new firmware, and others do not, and somebody has to do something."""
        course, ours = self.course, {member.name for member in self.members}
        half = [name for name in course.half if name not in ours]  # of another group
        half += [member.name for member in members]
        if half != course.half:
            course.half = half
            await self.run.note_course()

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _held_up(self, member: Member, held_s: float) -> Event | None:
        """The robot, or whoever has its port, does not let a member be switched, and others are."""
        error = member.board.shown.error if member.board is not None else None
        error = error or OtaError("not-allowed-now")
        if held_s <= POLL_S:
            text = "the group of %s is half switched, and %s has to wait: %s"
            self.engine.log.warning(text, self.named, member.name, error.message)
        if held_s < group_policy.LOST_S:
            return None
        self.why = OtaError(error.code, error.message, board=member.name)
        return "failed"

    async def fail(self, why: OtaError) -> None:
        """Something outside of it ends the block that it is in the middle of: it goes back."""
        self.why = self.why or why
        event: Event = "cancel" if why.code == "cancelled" else "failed"
        if self.state in group_policy.FORWARD and not self.engine.closing:
            await self._act(await self._take(event), {})
        elif self.state == "staging":
            await self._take("cancel" if event == "cancel" else "unstaged")

    async def _act(self, action: str, tasks: Mapping[Member, asyncio.Task[None]]) -> None:
        if action == "clear":
            await self._note(None, self._supersede)
        if action == "turn_round":
            await self._turn_round(tasks)
            await self.go_back()

    def _spawn(
        self, member: Member, part: Callable[[Member], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        """A member's part on the way forward or back. What nobody foresaw there is that member's
        error, and keeps no other one."""

        async def go() -> None:
            try:
                await part(member)
            except Exception as error:
                self.engine.log.exception("%s: its part in its group failed", member.name)
                member.fate = "refused"
                member.error = member.owed = OtaError.unforeseen(error, board=member.name)

        return self.engine.spawn(go())

    async def _forward(self, member: Member) -> None:
        """Activate a member, as often as it takes while it may be lost."""
        failed, lost_at_s = 0, None
        while True:
            answer = await self._ask(member, await self._how(member))
            stopped = answer.end == "cancelled" or "cancel" in member.order.report
            member.error = answer.error
            fate = group_policy.fate(_good(member), answer.error, cancelled=stopped)
            lost_at_s, failed = lost_at_s or self._now_s, failed + 1
            left_s = lost_at_s + group_policy.LOST_S - self._now_s
            member.lost = fate == "lost" and member.board is not None
            pause_s = policy.retry_pause_s(failed)
            if not (member.lost and await self._appears(member, left_s, pause_s)):
                member.fate = fate
                return
            member.lost = False

    async def _appears(self, member: Member, left_s: float, pause_s: float) -> bool:
        """Whether a lost member is there to be asked again, in its time and after a pause."""
        until_s, not_before_s = self._now_s + left_s, self._now_s + pause_s
        while self._now_s < until_s and not (self._turned.is_set() or self.engine.closing):
            if self._now_s >= not_before_s and (await self._place(member)).kind == "here":
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def go_on(self) -> None:
        """Forward from where another process was."""
        for step in sorted({member.step for member in self.members}):
            new = any(one.step == step and one.fate is None for one in self._todo)
            why = await self._out_of_turn(step) if new else None
            if why is not None:
                await self.fail(why)
                return
            if self.has(step) and await self.switch(step) is not None:
                return

    async def _out_of_turn(self, step: int) -> OtaError | None:
        """Why it is not a step's turn: a board of a step before that is of another group, which is
        waited for, or of none, which the process before was to bring to its firmware."""
        for other in (one for one in self.others if one.step < step):
            while not await self.engine.journaled(self._is_good, other):
                if self.engine.closing or self._is_cancelled:
                    return OtaError("cancelled")
                if not self.engine.groups.has(other.name):
                    why = f"{other.name} comes before, and is not good yet."
                    return OtaError("manifest-incomplete", why, board=other.name)
                await asyncio.sleep(POLL_S)
        return None

    # --- back

    async def pay(self) -> None:
        """Members that could not be reached go back, as far as they can be by now, and as far as
        the target is still the service's."""
        if self.base.key == self.engine.settings.target.key:
            await self._take("came")
            await self.go_back()
            return
        await self._take("void")
        for member in self._todo:
            if await self._brought(member):
                member.owed = OtaError(
                    "changed-elsewhere",
                    f"It was to be taken back from {member.order.target.version}, and another "
                    "target was configured meanwhile.",
                    board=member.name,
                )
                self.engine.log.warning("%s", member.owed)
        await self._show_half([])
        await self._note(None, partial(self._none_brought, self._todo))

    def _anew(self) -> None:
        """What is known of those that are to be switched is of an earlier time. In a thread."""
        self._supersede()
        self._none_brought([one for one in self._todo if one.switch == "activate"])

    def _supersede(self) -> None:
        """A way back that an earlier run owes to a member is void: it would leave them half. In a
        thread."""
        journal, service = self.engine.memory.journal, self.engine.settings.service
        macs = {member.mac or (member.board and member.board.shown.mac) for member in self.members}
        for record in journal.all(GroupRecord, service=service):
            owed = {entry["mac"] for entry in record.data["members"]}
            if record.id != self.id and not owed.isdisjoint(macs):
                journal.drop(GroupRecord, service=service, id=record.id)

    def _none_brought(self, members: Sequence[Member]) -> None:
        """There is nothing to take back, as far as the journal knows. In a thread."""
        for member in members:
            self.engine.memory.journal.drop(BroughtRecord, mac=member.mac)

    async def _turn_round(self, tasks: Mapping[Member, asyncio.Task[None]]) -> None:
        """The journal first; then whoever is on the way stops where it boots, or finishes."""
        await self._note("going_back")
        self._turned.set()
        for member, task in tasks.items():
            if not task.done() and member.board is not None:
                member.board.tell("cancel")
        await asyncio.gather(*tasks.values())

    async def go_back(self) -> None:
        """Every member that may have been switched goes back, the last one first.

        One that has to wait (for the robot's word, or a busy port) holds no other one up.
        """
        tasks = []
        for member in reversed(self._todo):
            if await self._brought(member):
                tasks.append(task := self._spawn(member, self._back))
                while not task.done() and not (member.board and member.board.state == "owing"):
                    await asyncio.wait([task], timeout=POLL_S)
        await asyncio.gather(*tasks)
        if self.engine.closing:
            await self._take("end")
            return
        owed = [member for member in self._todo if await self._brought(member)]
        await self._show_half(owed)
        await self._take("owed" if owed else "back")
        await self._note("owing" if owed else None, self._stop, owed)
        error = self.error
        if error is not None and error.code != "cancelled":
            self.course.back = True
        if error is not None and error.code == "stopped":
            self.engine.stop_all(self.stops, error)

    async def _brought(self, member: Member) -> bool:
        """Whether there may be something to take back."""
        memory, key = self.engine.memory, member.order.target.key
        return await self.engine.journaled(memory.brought, member.mac, key) is not None

    async def _back(self, member: Member) -> None:
        member.owed = None
        answer = await self._ask(member, "back")
        way = group_policy.way_back(answer.error)
        if way == "back":
            return
        member.owed = answer.error
        if way == "void":
            message = answer.error.message if answer.error is not None else ""
            self.engine.log.warning("%s: not taken back with its group: %s", member.name, message)
            journal = self.engine.memory.journal
            await self.engine.journaled(journal.drop, BroughtRecord, mac=member.mac)

    # --- what it asks

    async def _place(self, member: Member) -> Place:
        """Where a member is now; it is the board that it was, if it is anywhere."""
        if member.board is None:
            error = OtaError("no-board", f"{member.name} is not listed any more.")
            return Place(member.name, "absent", error=error)
        place = await self._find(member.board)
        if place.kind == "here" and place.mac is None:
            place = replace(place, mac=member.mac)
        if place.mac is not None and member.mac not in (None, place.mac):
            why = f"The board at {place.port} is {place.mac}, not {member.mac}."
            place = Place(member.name, "wrong_board", error=OtaError("wrong-board", why))
        return place

    async def _find(self, board: Board) -> Place:
        name = board.shown.name  # by now
        found = await self.engine.roster.find(
            [name], Permits(), probe=False, by_person=self.run.by_person
        )
        if board in self.engine.roster.retired:  # it is let go of when the group has ended
            return Place(name, "here", board.shown.port, mac=board.shown.mac)
        return found.get(board, Place(name, "absent", error=OtaError("no-board", board=name)))

    async def _ask(self, member: Member, purpose: Purpose, image: Image | None = None) -> Answer:
        """One thing of one member."""
        of, board = member.order, member.board
        if self.state == "staging" and board is not None and board.target.key != of.target.key:
            return Answer("cancelled", OtaError("cancelled", "Another target was configured."))
        of.place = await self._place(member)
        if self.engine.closing:  # no board that is at rest is begun with
            return Answer("cancelled", OtaError("cancelled"))
        for name in ("error", "unchecked", *(() if purpose == "stage" else ("staged",))):
            of.report.pop(name, None)
        order = Order(
            purpose, of.target, of.place, f"{of.why}, {purpose} of a group", of.permits,
            failed=of.failed, runs=of.runs, report=of.report, image=image, whole=True,
        )  # fmt: skip
        if board is None:
            return Answer("error", of.place.error)
        board.order(order)
        timer = None
        if purpose == "back":  # a robot that is half is worse than one that is stopped
            loop, permits = asyncio.get_running_loop(), Permits(override=NO_MATTER)
            timer = loop.call_later(group_policy.LOST_S, order.permit, permits)
        try:
            return await order.answer
        finally:
            if timer is not None:
                timer.cancel()

    # --- the journal

    def _entry(self, member: Member) -> dict[str, Any]:
        target = member.order.target
        return {
            "name": member.name, "image": member.image, "mac": member.mac, "step": member.step,
            "key": target.key, "url": target.shown_url, "version": target.version,
            "sha256": target.sha256, "switch": member.switch,
        }  # fmt: skip

    async def _note(
        self, phase: GroupPhase | None, too: Callable[[], None] = lambda: None,
        of: Sequence[Member] = (),
    ) -> None:  # fmt: skip
        """In the journal: what the next start does (None: nothing), and what goes with it; all or
        nothing. of: of these members alone."""
        for other in self.others:
            other.mac = other.board.shown.mac if other.board is not None else other.mac
        why = {**self.why.to_dict(), "board": self.why.board} if self.why is not None else None
        data = {
            "members": [self._entry(member) for member in of or self._todo],
            "others": [self._entry(member) for member in self.others],
            "names": list(self.names),
            "stops": list(self.stops),
            "course": self.course.to_dict(),
            "why": why,
        }
        journal, service = self.engine.memory.journal, self.engine.settings.service

        def note() -> None:
            if phase is None:
                journal.drop(GroupRecord, service=service, id=self.id)
            else:
                key, version = self.base.key, self.base.version
                journal.put(GroupRecord(service, self.id, key, version, phase, utc_now(), data))
            too()

        await self.engine.journaled(journal.whole, note)

    def _stop(self) -> None:
        """No board gets these firmwares any more, where one has failed. In a thread."""
        error, journal = self.error, self.engine.memory.journal
        if error is not None and error.code == "stopped":
            for key in self.stops:
                journal.stop(self.engine.settings.service, key, error.message)

    async def recall(self, why: Mapping[str, str] | None) -> None:
        """What the journal has of it and of its members, in another process."""
        if why:
            self.why = OtaError(why["code"], why["message"], board=why.get("board"))
        for member in self.members:
            await self.engine.journaled(self._recall_fate, member)
        await self._show()

    async def _how(self, member: Member) -> Purpose:
        """What is asked of a member to be switched: one that was started waits for no activation
        any more, and has to be seen to run."""
        memory, target, mac = self.engine.memory, member.order.target, member.mac

        def started() -> bool:
            staged = memory.staged(mac, target)
            waits = staged is not None and not staged.stale
            return not waits and mac is not None and memory.brought(mac, target.key) is not None

        return "update" if await self.engine.journaled(started) else member.switch

    def _recall_fate(self, member: Member) -> None:
        """In a thread."""
        memory, key = self.engine.memory, member.order.target.key
        if member.mac is None:
            return
        attempt = memory.journal.attempt(member.mac, key)
        brought = memory.journal.get(BroughtRecord, mac=member.mac, target=key)
        if attempt.state == "rolled_back" and attempt.code in policy.EVIDENCE:
            member.fate = "bad"
            member.error = OtaError(attempt.code, attempt.message or "", board=member.name)
        elif brought is not None and self._is_good(member):
            member.fate = "good"

    def _is_good(self, member: Member) -> bool:
        """As far as the journal knows. In a thread."""
        journal, target = self.engine.memory.journal, member.order.target
        record = journal.board(member.mac) if member.mac is not None else None
        if record is None or not journal.attempt(record.mac, target.key).ended_well:
            return False
        seen = record.confirmed is not None and not record.unchecked
        return seen and record.version == target.version

    # --- what came of it

    @property
    def error(self) -> OtaError | None:
        """Why it has not come to its new firmware, or is not known to be well there."""
        if self.state == "final" or self.why is None:
            return None
        why = self.why
        if self.state in ("not_begun", "kept") or why.code in ("cancelled", "stopped"):
            return why
        owed = [f"{m.name} ({m.owed.message})" for m in self.members if m.owed is not None]
        what = f"{why.board}: {why.message} So its group ({self.named}) went back."
        if owed:
            what += f" Not taken back: {', '.join(owed)}."
        if why.code in policy.EVIDENCE:
            return OtaError("stopped", f"stopped: {what}")
        return OtaError(why.code, what)

    async def settle(self) -> None:
        """Answer the orders of the run, but for those that nothing was asked of."""
        for member in self.members:
            order, board = member.order, member.board
            unasked = self.state == "not_begun" and member.error is None
            if board is None or order.answer.done() or unasked:
                continue
            answer = self._answer(member)
            if answer.error is not None:
                order.report["error"] = answer.error.to_dict()
            # What its last session came to: by now it may be held against another target.
            order.report.setdefault("outcome", board.shown.state)
            order.give(answer)
            await self.run.note(order, board, answer)

    def _answer(self, member: Member) -> Answer:
        error = self.error
        if self.engine.closing:
            return Answer("cancelled", OtaError("cancelled"))
        if member.before or self.state == "final":
            return Answer("done")
        if self.state == "kept":
            return Answer("done" if member.error is None else "error", member.error)
        own = member.owed or (member.error if member.fate == "bad" else None)
        if own is not None:
            return Answer("error", own)
        if error is None or error.code == "cancelled":
            return Answer("cancelled", error or OtaError("cancelled"))
        if self.state == "not_begun" and member.error is not None:
            return Answer(member.end, member.error)
        return Answer("stopped", error)


# --- what is known of a member


def _good(member: Member) -> bool:
    """Whether its last session left it good on the target."""
    report, board = member.order.report, member.board
    seen = board is not None and board.shown.confirmed is not None and not board.runs_another
    return seen and report.get("outcome") == "up_to_date" and "unchecked" not in report


def _another(board: Board) -> OtaError | None:
    """What is said of a member that nothing is brought to, since its version says that it has it:
    another program runs there."""
    words = board.runs_another
    if words is None:
        return None
    remedy = "Call update with force for the boards of the group."
    return OtaError("other-project", words, board=board.shown.name, remedy=remedy)


def _past_switch(member: Member) -> bool:
    """Whether all that is left is to see that it is good."""
    board = member.board
    waits = board is not None and (
        board.state in ("confirming", "checking") or board.shown.phase in ("booting", "checking")
    )
    return member.fate is not None or waits


def _incomplete(members: str, missing: Sequence[str]) -> OtaError:
    return OtaError(
        "manifest-incomplete",
        f"The boards {members} go together, and not all of them can: "
        f"{'; '.join(missing).removesuffix('.')}. Nothing was switched.",
    )
