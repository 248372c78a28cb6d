# SPDX-License-Identifier: GPL-3.0-or-later
"""One board's task: the only writer of what is known of the board, and the only way to it.

Orders, facts from sessions and the ends of waits arrive in its inbox, one after the other. What
each means stands in `policy.BOARD`; the methods here carry the table's actions out. A session
runs in a thread beside the task, so that the inbox is read at all times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware.check import IsManifest
from ota_service.firmware.target import Target
from ota_service.fleet import endings, policy
from ota_service.fleet.around import Around
from ota_service.fleet.attempt import Attempt, SessionEnd, after_waiting, boot_rules, hindrance
from ota_service.fleet.board_state import BoardState, StartLog, staged_dict
from ota_service.fleet.firmwares import Fetched, LetGo
from ota_service.fleet.journal_rows import BoardRecord, FirmwareRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.orders import (
    READS,
    SWITCHES,
    UPDATES,
    Answer,
    End,
    Fact,
    Message,
    Order,
    Purpose,
    last_reply,
)
from ota_service.fleet.places import is_fresh
from ota_service.fleet.policy import BOARD, Event, State, Verdict
from ota_service.fleet.robot import Said
from ota_service.fleet.settings import BoardEntry
from ota_service.fleet.sight import Sight
from ota_service.fleet.turns import Ask
from ota_service.link.link import bauds_to_try, looks_like_speed
from ota_service.update.flash_merged import FlashJob
from ota_service.update.plan import Course
from ota_service.update.session import Image, Job, Outcome

_RANKS: dict[Purpose, int] = {
    **dict.fromkeys(("flash", "rollback", "back"), 0),
    **dict.fromkeys(READS, 1),
    **dict.fromkeys(UPDATES, 2),
}
"""What is taken first of the orders that waited for a session's end."""
_COURSES: dict[Purpose, Course] = {
    **dict.fromkeys(("version", "verify"), "look"),
    **{purpose: purpose for purpose in ("plan", "stage", "activate", "rollback", "log")},
}
_EVENTS: dict[Purpose, Event] = {
    **dict.fromkeys(("version", "verify", "log"), "read"),
    **dict.fromkeys(UPDATES, "update"),
    **{purpose: purpose for purpose in ("plan", "rollback", "back", "flash")},
}


HEARD_S = 1.0
"""How long tasks of boards are waited for, which take milliseconds."""


@dataclass(frozen=True, slots=True)
class _Recalled:
    """What waits on the board to be activated, as the journal has it; sha256 "": that is for the
    board to say. proven: a board was seen running it well."""

    sha256: str
    proven: bool


_STOPS = ("stopped", "check-unanswered")
"""Codes with which a firmware is given to no further board, for good or in this run."""


class Board:
    """One board, from its first sight until its service ends or lists it no more.

    target: what the configuration says. shown: what is known of it. state: the table's. left_s:
    when its last session ended, in the event loop's time. quiet: set while nothing is asked of it.
    """

    def __init__(self, name: str, entry: BoardEntry | None, target: Target, around: Around) -> None:
        self.target = target
        self.shown = BoardState(name, entry)
        self.state: State = "rest"
        self.left_s = float("-inf")
        self.quiet = asyncio.Event()
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Message | Fact] = asyncio.Queue()
        self._sight = Sight(self.shown, target, around)
        # An update that is under way, whatever it waits for; a rollback, way back or flash; looks,
        # all for the same; what waits for a session's end; and for the plan of the update.
        self._update: Order | None = None
        self._exclusive: Order | None = None
        self._looks: list[Order] = []
        self._line: list[Order] = []
        self._plan_waiters: list[Order] = []
        # What the update holds: its wait, its firmware, its next session, why it is to stop, and
        # what its session came to that the robot is asked about.
        self._token: object = object()
        self._timer: asyncio.TimerHandle | None = None
        self._let_go: LetGo | None = None
        self._wish_token: object = object()
        self._fetched: Fetched | _Recalled | OtaError | None = None
        self._job: Job | None = None
        self._why: OtaError | None = None
        self._tested: SessionEnd | None = None
        self._attempt: Attempt | None = None
        self._task = around.spawn(self._live())

    # --- what may be called from outside

    def order(self, order: Order) -> None:
        """Ask for something; `order.answer` will have what came of it."""
        if self._task.done():
            why = OtaError("cancelled", "The board is no longer listed.", board=self.shown.name)
            order.refuse(why, "cancelled")
        else:
            self.post(Message("update", order))

    def post(self, message: Message | Fact) -> None:
        """Bring something to the task. In the event loop."""
        self.quiet.clear()
        self._inbox.put_nowait(message)

    def from_thread(self, fact: Fact) -> None:
        """As `post`, from any thread."""
        self._loop.call_soon_threadsafe(self.post, fact)

    def recall(self, memory: Memory, record: BoardRecord) -> None:
        """Show what the journal has of it. In a thread."""
        mac, key = record.mac, self.target.key
        tried = memory.journal.attempt(mac, key)
        held = policy.spared(tried, by_person=True, as_last_read=False, board=self.shown.name)
        remember = partial(
            Sight.remember, record=record, running=memory.running(record), held=held,
            staged=memory.staged(mac, self.target), back=memory.back(mac), failed=tried.failed,
        )  # fmt: skip
        self.from_thread(remember)

    def tell(self, event: Event, token: object | None = None, value: Any = None) -> None:
        """As `post`, for whoever knows of no messages."""
        self.post(Message(event, value=value, token=token))

    def heard(self) -> asyncio.Future[None]:
        """Done when everything that was posted by now has been taken in."""
        done: asyncio.Future[None] = self._loop.create_future()
        self.post(lambda _: done.set_result(None) if not done.done() else None)
        return done

    def answers_to(self, word: str) -> bool:
        """Whether a person who says `word` (name, MAC or port) means this board."""
        about = self.shown
        return word in (about.name, about.port) or (
            about.known_mac is not None and word.lower().replace("-", ":") == about.known_mac
        )

    async def retire(self) -> None:
        """It is listed no more: stop where it boots, and end."""
        self.tell("retarget")
        while not self.quiet.is_set():
            await self.quiet.wait()
        self._task.cancel()

    @property
    def free(self) -> bool:
        """Whether nothing is asked of it."""
        return self.state == "rest" and self._update is None and not self._line

    @property
    def is_good(self) -> bool:
        """Whether others may follow it: canary, steps, groups and rollouts wait for that."""
        return policy.is_good(self.shown, self._around.firmwares.project(self.target))

    @property
    def runs_another(self) -> str | None:
        """What is said of it where it has the target's version, and runs another program."""
        return policy.runs_another(self.shown, self._around.firmwares.project(self.target))

    @property
    def _under_way(self) -> Order:
        """The update that the table says there is."""
        assert self._update is not None
        return self._update

    # --- the task

    async def _live(self) -> None:
        while True:
            message = await self._inbox.get()
            try:
                if isinstance(message, Message):
                    await self._take(message)
                else:
                    self._learn(message)
            except Exception as error:
                self._around.log.exception("%s: its task failed", self.shown.name)
                self._break(error)
            if self.free and self._inbox.empty():
                self.quiet.set()

    async def _take(self, message: Message) -> None:
        event = message.event if message.order is None else self._event(message.order)
        if message.token is self._wish_token:
            self._fetched = message.value
        if message.token is not None and message.token is not self._token:
            return  # of a wait that is over
        await self._step(replace(message, event=event))

    async def _step(self, message: Message) -> None:
        row = BOARD[self.state, message.event]
        if row.state is not None:
            self.state = row.state
        await getattr(self, f"_{row.action}")(message)

    def _event(self, order: Order) -> Event:
        """What an order is to this board now."""
        if order.place.kind != "here" or order.spared is not None:
            return "known"
        update = self._update
        if order.purpose in UPDATES and update is not None:
            same = (update.target.key, update.whole) == (order.target.key, order.whole)
            purposes = update.purpose, order.purpose
            return policy.meets(update.permits, order.permits, same_target=same, purposes=purposes)
        return _EVENTS[order.purpose]

    async def _next(self) -> None:
        """After a session, or an update: what waited for it is taken as if it arrived now."""
        line, self._line = sorted(self._line, key=lambda order: _RANKS[order.purpose]), []
        updates_only = all(order.purpose in UPDATES for order in line)
        if self.state == "rest" and self._update is not None and updates_only:
            later = self._update.not_before_s > self._loop.time()
            await self._step(Message("later" if later else "update"))
        for order in line:
            await self._take(Message("update", order))

    def _break(self, error: Exception) -> None:
        """Something that nobody foresaw: everybody gets an answer, and the board goes on."""
        told = OtaError.unforeseen(error, board=self.shown.name)
        orders = [*self._looks, *self._line, *self._plan_waiters]
        orders += [order for order in (self._update, self._exclusive) if order is not None]
        self._give_up(self._update, "neutral")
        self._looks, self._line, self._plan_waiters = [], [], []
        self._update = self._exclusive = None
        self.state = "rest"
        if self._attempt is not None:
            self._attempt.stop()
            self.state = "stopping"
        self._sight.error(told)
        for order in orders:
            order.refuse(told)

    def _learn(self, fact: Fact) -> None:
        fact(self._sight)
        update = self._update
        if self._plan_waiters and update is not None and update.plan is not None:
            waiters, self._plan_waiters = self._plan_waiters, []
            for order in waiters:
                order.give(Answer("done", reply=dict(update.plan.to_dict())))

    # --- waits and sessions

    def _wait(self, seconds: float | None = None) -> object:
        """Begin a wait, which ends all others; its token. seconds: until the event `time`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        token = self._token = object()
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self.tell, "time", token)
        return token

    def _start(self, order: Order, job: Job | FlashJob, failed: int, after_s: float = 0) -> None:
        """Begin a session beside the task; its end will be in the inbox."""
        self._wait()
        self.shown.phase = "waiting"
        self._sight.at_work = order
        self.shown.log = StartLog()
        attempt = Attempt(self._around, self.shown, order, job, failed, self.from_thread)
        self._attempt = attempt

        async def go() -> None:
            try:
                event, end = await attempt.run(after_s)
            except Exception as error:  # as at the end of a service: the board goes on all the same
                told = OtaError.unforeseen(error)
                event, end = "failed", SessionEnd(error=told, failed=failed)
            self.tell(event, value=end)

        self._around.spawn(go())

    def _over(self) -> None:
        """A session is over, or the robot's answer is there."""
        if self._attempt is not None or self._tested is not None:
            self._attempt = None
            self._sight.phase(None, time.monotonic())
            self._sight.at_work = None
            self.shown.log.over = True
            self.left_s = self._loop.time()

    def _new_job(self, order: Order) -> Job:
        """What a session does with the board."""
        entry = self.shown.entry
        settings = self._around.settings.of(entry)
        image = self._image(order)
        return Job(
            self.shown.name,
            version=order.target.version,
            image=image,
            known=self._around.firmwares.known(order.target.key if image is not None else ""),
            baud=settings.baud,
            boot=boot_rules(settings),
            force=order.permits.force,
            adopted=entry is not None
            or settings.adopt
            or "other-project" in order.permits.override,
            rescue=order.permits.rescue,
            host_store=settings.version_store == "host",
            whole=order.whole,
            course=_COURSES.get(order.purpose, "update"),
            log=self._around.log,
        )

    def _image(self, order: Order) -> Image | None:
        """What an order has to write, or to hold against the board."""
        if order is self._update and isinstance(self._fetched, Fetched):
            return self._fetched.image
        return order.image

    def _flash_job(self, order: Order) -> FlashJob:
        settings, file = self._around.settings.of(self.shown.entry), order.file
        assert file is not None
        return FlashJob(
            self.shown.name,
            file.file,
            keep_nvs=file.keep_nvs,
            state_dir=settings.state_dir,
            confirm=file.confirm,
            baud=settings.baud,
            boot=boot_rules(settings),
        )

    # --- actions: orders that need no session

    async def _nothing(self, message: Message) -> None:
        """The table says so."""

    async def _line_up(self, message: Message) -> None:
        self._line.append(_order(message))

    async def _join(self, message: Message) -> None:
        order, update = _order(message), self._update
        if order.purpose not in UPDATES:
            await self._answer_known(message)
        elif update is not None:
            if message.event == "wider":
                update.purpose = order.purpose
            update.permits |= order.permits
            update.followers += [order, *order.followers]

    async def _answer_known(self, message: Message) -> None:
        """The board is not there, or the journal answers for it."""
        order, about = _order(message), self.shown
        spared = order.spared if order.place.kind == "here" else None
        error = spared.error if spared is not None else order.place.error
        if self.state == "rest":
            self._meet(order)
            if spared is not None:
                about.attempts, about.state, about.error = order.failed, spared.state, error
        if error is not None:
            order.report["error"] = error.to_dict()
        order.report["outcome"] = about.state
        if spared is not None:
            order.report["reason"] = "as last read" if error is None else "held"
            order.give(Answer("done" if error is None else "error", error))
            return
        if error is not None and order.purpose in UPDATES:
            self._sight.log(logging.WARNING, "%s", error.message)
        order.refuse(error or OtaError("no-board", board=about.name))

    async def _answer_last(self, message: Message) -> None:
        order, about = _order(message), self.shown
        why_not = "check-unanswered" if self.state == "checking" else "awaiting-confirmation"
        error = about.error or OtaError(why_not, board=about.name)
        plan = self._update.plan if self._update is not None else None
        order.give(Answer("error", error, last_reply(order.purpose, about, error, plan)))

    async def _answer_plan(self, message: Message) -> None:
        order, update = _order(message), self._update
        if update is not None and update.plan is not None:
            order.give(Answer("done", reply=dict(update.plan.to_dict())))
        else:
            self._plan_waiters.append(order)

    async def _refuse_rollback(self, message: Message) -> None:
        _order(message).refuse(OtaError("awaiting-confirmation", board=self.shown.name))

    async def _release(self, message: Message) -> None:
        if self.state == "rest":
            self._sight.released()
        message.value.set_result(None)

    async def _retarget(self, message: Message) -> None:
        """Another target is this board's from now on; None: it is no longer listed."""
        target: Target | None = message.value
        line, self._line = self._line, []
        for order in line:
            if order.purpose in UPDATES and (target is None or order.target.key != target.key):
                order.give(Answer("cancelled", _reason(message)))
            else:
                self._line.append(order)
        if target is not None:
            self._sight.retarget(target)

    async def _show_gone(self, message: Message) -> None:
        self._sight.gone(message.value)

    async def _show_came(self, message: Message) -> None:
        self._sight.place(message.value)

    # --- actions: an update's way

    async def _fetch(self, message: Message) -> None:
        """The firmware first; also where an update goes on behind a look."""
        if message.order is not None:
            self._begin(message.order)
        update = self._under_way
        self._wait()
        if self._let_go is None:
            token = self._wish_token = object()
            self._fetched = None
            arrived = partial(self._arrived, token)
            activates = update.purpose == "activate"
            want = self._recall_staged if activates else self._around.firmwares.want
            self._let_go = want(update.target, arrived)
        self._token = self._wish_token
        if self._fetched is not None:
            self._arrived(self._wish_token, self._fetched)

    def _meet(self, order: Order) -> None:
        """It begins: the state of before is kept, and the board is where the order says."""
        self._sight.before = self.shown.state
        self._sight.place(order.place)

    def _begin(self, order: Order) -> None:
        self._update, self._why = order, None
        self._meet(order)
        self.shown.attempts = order.failed
        order.report["attempted"] = order.target.version
        order.began_s = self._loop.time()

    def _recall_staged(
        self, target: Target, arrived: Callable[[_Recalled | OtaError], None]
    ) -> LetGo:
        """What waits on the board to be activated, as the journal has it: no port is opened where
        nothing does. Where it is not known which board that is, it is looked at."""
        around, mac = self._around, self._under_way.place.mac

        def recall() -> _Recalled:
            if mac is None:
                return _Recalled("", proven=False)
            memory = around.memory
            staged = memory.require_staged(mac, target)
            proven = memory.journal.get(FirmwareRecord, sha256=staged.sha256) is not None
            return _Recalled(staged.sha256, proven)

        async def ask() -> None:
            try:
                arrived(await around.journaled(recall))
            except OtaError as error:
                error.board = self.shown.name
                arrived(error)

        task = around.spawn(ask())

        def let_go() -> None:
            task.cancel()

        return let_go

    def _arrived(self, token: object, got: Fetched | _Recalled | OtaError) -> None:
        self.tell("no-firmware" if isinstance(got, OtaError) else "firmware", token, got)

    async def _without_firmware(self, message: Message) -> None:
        error, about, update = message.value, self.shown, self._under_way
        awaited = await self._around.journaled(self._around.memory.awaited, update.place.mac)
        # What was begun ends, and its way back needs no firmware.
        if awaited is not None and update.purpose in SWITCHES:
            self._job, self.state = self._new_job(update), "confirming"
            end = SessionEnd(failed=update.failed, awaited=awaited[0], waits_s=awaited[1])
            await self._leave_alone(Message("awaits", value=end))
            return
        if about.version is not None and about.version != update.target.version:
            about.state = "outdated"
        own = update.purpose == "activate"
        if own and error.code == "not-staged" and about.state == "up_to_date":
            update.report |= {"action": "none", "reason": "up to date"}
            await self._end(Answer("done"), "neutral")
            return
        update.report["error"] = error.to_dict()
        if about.is_pinned or (own and about.state != "up_to_date"):
            about.error = error  # its own firmware concerns this board
        await self._end(Answer("error" if own else "no-firmware", error), "neutral")

    async def _ask_turn(self, message: Message) -> None:
        if message.order is not None:
            await self._join(message)
        update, fetched = self._under_way, self._fetched
        # A look at what was begun: nothing is written anew.
        if not isinstance(fetched, Fetched | _Recalled):
            self.state = "updating"
            await self._carry_out(message)
            return
        if isinstance(fetched, Fetched) and await self._is_staged(update, fetched.image):
            self.state = "rest"
            await self._end(Answer("done"), "neutral")
            return
        self.shown.phase = "waiting"
        ask = Ask(
            self,
            update.target.key,
            fetched.image.sha256 if isinstance(fetched, Fetched) else fetched.sha256,
            fetched.proven,
            overrides="stopped" in update.permits.override,
            aside=update.whole or update.purpose == "stage",
            token=self._wait(),
        )
        self._around.turns.leave(self)
        self._around.turns.ask(ask)

    async def _is_staged(self, update: Order, image: Image) -> bool:
        """Whether a stage has nothing to do: this very image waits on the board, which was seen
        since its port is there. A group's is proven anew."""
        if update.purpose != "stage" or update.whole:
            return False
        memory, mac, around = self._around.memory, update.place.mac, self._around
        if mac is None:
            return False
        staged = await around.journaled(memory.staged, mac, update.target)
        record = await around.journaled(memory.journal.board, mac)
        if staged is None or staged.stale or staged.sha256 != image.sha256:
            return False
        if record is None or not is_fresh(update.place, record.seen_at):
            return False
        self._sight.staged(staged)
        update.report |= {"reason": "as last staged", "staged": staged_dict(staged)}
        return True

    async def _carry_out(self, message: Message) -> None:
        update = self._under_way
        now, fetched = self._new_job(update), self._fetched
        looks = self._job is not None and self._job.confirm is not None
        outdated = self._around.firmwares.outdated
        if isinstance(fetched, Fetched) and not looks and await outdated(update.target, fetched):
            await self._fetch_anew(update)
            return
        if isinstance(fetched, Fetched) and fetched.allowed_by:
            update.report["allowed_by"] = list(fetched.allowed_by)
        # What was learned on the way stays; what is permitted and configured by now counts.
        job = self._job or now
        slow = min(job.baud, now.baud)
        self._job = replace(now, baud=slow, rearm=job.rearm, confirm=job.confirm)
        self.shown.state = "updating"
        self._start(update, self._job, update.failed)

    async def _fetch_anew(self, update: Order) -> None:
        """The host's policy of trust has changed: what was fetched under another one is not
        written."""
        self._around.turns.ended(self, update.target.key, None)
        if self._let_go is not None:
            self._let_go()
            self._let_go = None
        self.state, self.shown.state, self.shown.error = "fetching", self._sight.before, None
        await self._fetch(Message("update"))

    async def _hold(self, message: Message) -> None:
        """Sensor, robot or port said no: ask again, and let others go meanwhile."""
        update, error, pause_s = self._under_way, message.value, policy.HELD_POLL_S
        if isinstance(error, SessionEnd):
            self._over()
            self.shown.state = "updating"
            error, before, pause_s = error.error, self.shown.error, self._robot_poll_s()
            # A robot's no may have other words each time.
            if error is not None and (before is None or before.code != error.code):
                self._sight.log(logging.INFO, "it waits: %s", error.message)
        self.shown.error, self.shown.phase = error, "waiting"
        self._around.turns.ended(self, update.target.key, None)
        self._wait(pause_s)
        await self._next()

    def _robot_poll_s(self) -> float:
        """How long to wait for another session that was hindered: the robot may have a say."""
        asked = self._around.settings.of(self.shown.entry).before_restart is not None
        return policy.ROBOT_POLL_S if asked else policy.HELD_POLL_S

    async def _ask(self, message: Message) -> None:
        """Whether it may go on, without opening the port."""
        update, token = self._under_way, self._wait()
        found = hindrance(self._around, update, self.shown)

        async def ask() -> None:
            error = await found
            self.tell("free" if error is None else "hindered", token, error)

        self._around.spawn(ask())

    async def _pause(self, message: Message) -> None:
        """Later and slower; also where it goes on pausing behind a look."""
        update, end, about = self._under_way, message.value, self.shown
        if isinstance(end, SessionEnd) and end.error is not None and self._job is not None:
            self._over()
            update.failed = about.attempts = end.failed
            about.error = end.error
            same = about.version == update.target.version
            about.state = "unknown" if same else "outdated"
            pause_s = policy.retry_pause_s(end.failed)
            update.not_before_s = self._loop.time() + pause_s
            text = "%s; trying again in %g s"
            self._sight.log(logging.WARNING, text, end.error.message, pause_s)
            self._job = _slower(self._job, end.error)
            self._around.turns.leave(self)
        self._wait(max(0.0, update.not_before_s - self._loop.time()))
        await self._next()

    async def _leave_alone(self, message: Message) -> None:
        """A board that may be in PENDING_VERIFY is not reset until its app had its time."""
        end, about = message.value, self.shown
        assert self._job is not None
        self._over()
        if isinstance(end.outcome, Outcome):
            self._job = after_waiting(self._job, end.outcome)
            seconds = self._around.settings.confirm_timeout_s
            self._sight.judged(False)
            self._sight.version(end.outcome.version)
        else:
            self._job, seconds = replace(self._job, confirm=end.awaited), end.waits_s
        about.state, about.phase = "awaiting_confirmation", "waiting"
        about.error = OtaError("awaiting-confirmation", board=about.name)
        text = "left alone for %.0f s, so that its app can confirm itself"
        self._sight.log(logging.INFO, text, seconds)
        self._around.turns.leave(self)
        self._wait(seconds)
        await self._next()

    # --- actions: the robot's word on what runs now

    async def _check(self, message: Message) -> None:
        """The robot is asked again and again whether what runs now works."""
        end, about, update = message.value, self.shown, self._under_way
        if self._concerns(update) != update.target.key:
            self.state = "rest"  # what is to be judged is replaced at once
            await self._finish(message)
            return
        self._over()
        # For the next process, too, where this one dies meanwhile.
        await self._conclude(update, end.outcome, update.target.key)
        self._tested = end
        about.state, about.error, about.unchecked = "updating", None, True
        self._sight.at_work = update
        self._sight.phase("checking", time.monotonic())
        self._around.turns.leave(self)
        self._around.spawn(self._until_checked(self._wait()))
        await self._next()

    async def _until_checked(self, token: object) -> None:
        """Until the robot says something, or its time is over; then the table's event."""
        around, entry, said = self._around, self.shown.entry, Said("yes")
        await around.calls.given_back(around.settings.of(entry).after_restart)
        began_s = self._loop.time()
        event: Event = "passed"
        while token is self._token:
            call = around.settings.of(entry).health_check  # as it is configured by now
            if call is None:
                break
            left_s = began_s + call.timeout_s - self._loop.time()
            answer = await self._answer(around.calls.ask(call, max(0.1, left_s)), token)
            if answer is None:
                continue
            said = answer
            if said.answer != "none" or left_s <= policy.ROBOT_POLL_S:
                event = policy.word_on(said.answer, call.on_no_answer)
                break
            await asyncio.sleep(policy.ROBOT_POLL_S)
        self.tell(event, token, said)

    async def _answer(self, asking: Coroutine[Any, Any, Said], token: object) -> Said | None:
        """A reply may take all the time that there is; None: another is to be asked by now, since
        the machine was configured anew, or nobody."""
        task, robot = asyncio.ensure_future(asking), self._around.robot
        try:
            while not task.done() and token is self._token and robot is self._around.robot:
                await asyncio.wait({task}, timeout=policy.ROBOT_POLL_S)
            return task.result() if task.done() else None
        finally:
            task.cancel()

    async def _pass_check(self, message: Message) -> None:
        """The robot says that it works."""
        self._sight.log(logging.INFO, "the robot's health check has passed")
        await self._checked()
        await self._finish(replace(message, value=self._tested))

    async def _checked(self) -> None:
        """The robot's word is no longer waited for."""
        self.shown.unchecked = False
        if self.shown.mac is not None:
            await self._around.journaled(self._around.memory.checked, self.shown.mac)

    async def _leave_unchecked(self, message: Message) -> None:
        """Nobody answered: the new firmware stays, and is not good."""
        end, said = self._tested, message.value
        assert end is not None
        assert isinstance(end.outcome, Outcome)
        outcome = replace(end.outcome, error=_unanswered(self.shown.name, said.words))
        await self._finish(replace(message, value=replace(end, outcome=outcome)))

    # --- actions: an update's end

    async def _set_aside(self, message: Message) -> None:
        await endings.set_aside(self._sight, self._around, self._under_way, message.value.error)
        await self._finish(message)

    async def _finish(self, message: Message) -> None:
        """The outcome of an update stands."""
        update, end, about = self._update, message.value, self.shown
        if update is None:
            await self._reply(message)
            return
        self._over()
        self._exclusive = None  # its own way back
        about.attempts = end.failed
        of = self._concerns(update)
        same = of == update.target.key
        of_image = same and (update.plan is None or update.plan.of_image)
        if end.outcome is not None:
            of_image = same and end.outcome.of_image
            if self._tested is None:
                error = await self._conclude(update, end.outcome, of)
            else:  # noted when the robot began to be asked
                about.state, about.error = "up_to_date", end.outcome.error
                error = about.error
            if not same and end.outcome.end in ("up_to_date", "rolled_back"):
                about.state, about.error, error = "unknown", None, self._why
                if error is None:
                    await self._start_over(update)
                    return
        else:
            error = end.error
            self._sight.error(error)
        await self._end_as(message, error, of_image=of_image)

    async def _conclude(self, update: Order, outcome: Outcome, of: str) -> OtaError | None:
        """What a session came to, into the journal and what is shown. of: the key of the target
        that it was about."""
        fetched, sight, around = self._fetched, self._sight, self._around
        image = fetched.image if isinstance(fetched, Fetched) else None
        if update.purpose == "stage":
            assert image is not None
            return await endings.staged(sight, around, update, outcome, image)
        firmware = image or self.shown.staged if of == update.target.key else None
        return await endings.updated(sight, around, update, outcome, firmware, of)

    async def _end_as(self, message: Message, error: OtaError | None, *, of_image: bool) -> None:
        update, about = self._under_way, self.shown
        if message.event == "used-up":
            about.state = "set_aside"
        if self._why is not None and about.state == "up_to_date":
            update.report["cancel"] = "too late to cancel"
        verdict = policy.verdict(self.is_good, error, of_image=of_image)
        if about.unchecked and about.state == "up_to_date":
            update.report["unchecked"] = True
        ended: End = "done" if error is None else "error"
        if error is not None:
            update.report["error"] = error.to_dict()
            if error is self._why or message.event == "cancelled":
                ended = "stopped" if error.code == "stopped" else "cancelled"
        await self._end(Answer(ended, error), verdict)

    def _concerns(self, update: Order) -> str:
        """The key of the target that its session was about: perhaps the one before."""
        awaited = self._job.confirm if self._job is not None else None
        return awaited.target if awaited is not None and awaited.target else update.target.key

    async def _start_over(self, update: Order) -> None:
        """What the board was left alone for was of the target before; now for this one."""
        self._update = None
        self._give_up(update, "neutral")
        for name in ("from", "to", "confirmed", "notice", "boot_log"):
            update.report.pop(name, None)
        self._line.append(update)
        await self._next()

    async def _drop(self, message: Message) -> None:
        """An update goes no further."""
        update, end, about = self._update, message.value, self.shown
        if update is not None and self._exclusive is not None:
            self._exclusive = None  # its own way back
        if update is None or self._looks:
            if not isinstance(end, SessionEnd):
                message = replace(message, value=SessionEnd(error=_reason(message)))
            await self._reply(message)
            return
        why = self._why or _reason(message)
        told = why
        if isinstance(end, SessionEnd):
            self._over()
            told = end.error if end.error and end.error.code != "cancelled" else why
        if self._tested is not None:
            self._over()
            about.state = "up_to_date"
            about.error = _unanswered(about.name, "it was not asked to the end")
            update.report["unchecked"] = True
        elif message.event == "awaits" or about.state == "awaiting_confirmation":
            about.state = "awaiting_confirmation"
            about.error = OtaError("awaiting-confirmation", board=about.name)
        else:
            self._sight.error(told)
        await self._void_line(message)
        update.report["error"] = told.to_dict()
        ended: End = "stopped" if why.code in _STOPS else "cancelled"
        await self._end(Answer(ended, why), "neutral")

    async def _end(self, answer: Answer, verdict: Verdict) -> None:
        update = self._under_way
        self._update = None
        self._give_up(update, verdict)
        update.report["outcome"] = "stopped" if answer.end == "stopped" else self.shown.state
        self._log_end(update, answer)
        await self._look_back()
        self._hold_against_target(update)
        self._line += self._plan_waiters
        self._plan_waiters = []
        update.give(answer)
        await self._next()

    def _give_up(self, update: Order | None, verdict: Verdict) -> None:
        """End what an update held: its wait, its turn, its firmware."""
        self._wait()
        self._job = self._why = self._tested = None
        self.shown.phase = self.shown.progress = None
        if update is not None:
            self._around.turns.ended(self, update.target.key, verdict)
        if self._let_go is not None:
            self._let_go()
        self._let_go = self._fetched = None

    def _log_end(self, update: Order, answer: Answer) -> None:
        """One line: what came of it, from what to what, how long it took, confirmed or why not."""
        about, report = self.shown, update.report
        if isinstance(answer.error, IsManifest) and not about.is_pinned:
            return  # it is no end: the run goes on by the manifest
        if answer.end == "no-firmware" and not about.is_pinned:
            return  # it is the run's, which says it once
        words = report["outcome"].replace("_", " ")
        if "staged" in report:
            words += ', "{version}" is staged in {slot}'.format_map(report["staged"])
        if "to" in report:
            tags = [report.get("from", ""), report["to"]]
            if about.state == "rolled_back" and report.get("attempted") not in tags:
                tags.insert(1, report["attempted"])  # what was tried, and taken back
            words += ", " + " -> ".join(f'"{tag}"' for tag in tags)
        if about.state == "up_to_date" and about.confirmed is not None:
            words += ", confirmed" if about.confirmed else f"; {about.notice}"
        level, error = logging.INFO, answer.error
        if error is not None:
            level = logging.WARNING if answer.end == "error" else logging.INFO
            words += f": {error.message} {error.remedy} [{error.code}]"
        self._sight.log(level, "%s, after %.1f s", words, self._loop.time() - update.began_s)

    async def _stop_session(self, message: Message) -> None:
        """The session stops at the next place where that leaves the board bootable."""
        if self._attempt is not None:
            self._attempt.stop(ending=message.event == "end")
        if self._looks:
            self._drop_waiting(_reason(message))
        self._why = self._why or _reason(message)
        await self._void_line(message)

    async def _stop_line(self, message: Message) -> None:
        """A flash makes an update void that a session has."""
        await self._stop_session(message)
        await self._line_up(message)

    async def _drop_line(self, message: Message) -> None:
        if self._looks:
            self._drop_waiting(_reason(message))
        await self._void_line(message)

    def _drop_waiting(self, why: OtaError) -> None:
        """An update that waits while another session has, or gets, the board is void."""
        update, self._update = self._update, None
        about = self.shown
        if about.state == "updating":
            wanted, before = self._sight.target.version, self._sight.before
            about.state = policy.shown_when_dropped(before, about.version, wanted)
        if self._tested is not None:
            about.state = "up_to_date"
        if update is not None:
            self._give_up(update, "neutral")
            update.report |= {"outcome": self.shown.state, "error": why.to_dict()}
            update.give(Answer("cancelled", why))

    async def _void_line(self, message: Message) -> None:
        """What is void of what waits in line: with a cancel, updates and flashes; with the end,
        everything; with another target, updates to the old one."""
        if message.event == "retarget":
            await self._retarget(message)
        if message.event not in ("cancel", "end"):
            return
        line, self._line, why = self._line, [], _reason(message)
        for order in line:
            if order.purpose in READS and message.event == "cancel":
                self._line.append(order)
            else:
                order.refuse(why, "cancelled")

    # --- actions: looks, rollback and flash

    async def _look(self, message: Message) -> None:
        order = _order(message)
        if self._looks:
            same = order.asks_as(self._looks[0])
            (self._looks if same else self._line).append(order)
            return
        self._around.turns.leave(self)
        self._looks = [order]
        if self._update is None:
            self._meet(order)
        self._start(order, self._new_job(order), 0)

    async def _go_on(self, message: Message) -> None:
        """Once more, slower."""
        end: SessionEnd = message.value
        self._over()
        order = self._looks[0]
        job = _slower(self._new_job(order), end.error)
        self._start(order, job, end.failed, policy.retry_pause_s(end.failed))

    async def _rewrite(self, message: Message) -> None:
        """Rollback or flash; an update that waits is void with what it was made for."""
        order = self._exclusive = _order(message)
        self._drop_waiting(_reason(message))
        self._meet(order)
        if order.file is not None and order.file.file.allowed_by:
            order.report["allowed_by"] = list(order.file.file.allowed_by)
        job = self._new_job(order) if order.file is None else self._flash_job(order)
        self._start(order, job, 0)

    async def _take_back(self, message: Message) -> None:
        """What an update brought is taken back, as often as it takes; an update that waits is
        void."""
        if message.event == "refused":
            await self._begin_way_back(message.value)
        elif message.order is not None:
            order = self._exclusive = message.order
            self._drop_waiting(_reason(message))
            self._meet(order)
            mac, key = self.shown.mac or order.place.mac, order.target.key
            known = await self._around.journaled(self._around.memory.brought, mac, key)
            order.brought = order.brought or known
            self._job = replace(self._new_job(order), back_of=order.brought)
        back, job = self._exclusive, self._job
        assert back is not None
        assert job is not None
        if job.back_of is None:
            error = OtaError(
                "changed-elsewhere",
                "Nothing that this target brought to the board is known, so nothing is taken back.",
                board=self.shown.name,
            )
            self.tell("failed", value=SessionEnd(error=error))
            return
        self.shown.state = "updating"
        self._start(back, job, back.failed)

    async def _begin_way_back(self, said: Said) -> None:
        """The robot does not say yes to what its update brought; the update ends with it."""
        update = self._under_way
        memory, mac = self._around.memory, self.shown.mac
        brought = await self._around.journaled(memory.brought, mac, update.target.key)
        code, why = "check-failed", f"The robot's health check said no: {said.words}"
        if said.answer == "none":
            code, why = (
                "check-unanswered",
                f"Nobody answered the robot's health check: {said.words}",
            )
        self._sight.log(logging.WARNING, "%s; going back", why)
        self._over()
        self._tested = None
        self._exclusive = back = Order("back", update.target, update.place, update.why)
        back.permits, back.report = update.permits, update.report
        if brought is not None:
            back.brought = replace(brought, code=code, why=why)
        self._job = replace(self._new_job(back), back_of=back.brought)

    async def _finish_way_back(self, message: Message, back: Order) -> None:
        """The way back of an update that the robot has refused is over, and the update with it."""
        end: SessionEnd = message.value
        if end.error is not None and back.brought is not None and end.error.code != "cancelled":
            words = f"{back.brought.why}; and it is not taken back: {end.error.message}"
            error = OtaError(back.brought.code, words, board=self.shown.name)
            error.remedy = end.error.remedy
            message = replace(message, value=replace(end, error=error))
        await self._finish(replace(message, event="failed" if end.error else "done"))

    async def _owe(self, message: Message) -> None:
        """A way back has to wait: for the sensor, a busy port, or after a failure."""
        end: SessionEnd = message.value
        order, error = self._exclusive, end.error
        assert order is not None
        self._over()
        self.shown.error, self.shown.phase = error, "waiting"
        self._sight.log(logging.INFO, "its way back waits: %s", error.message if error else "")
        if self._job is not None:
            self._job = _slower(self._job, error)
        again = message.event == "again"
        order.failed = end.failed
        self._wait(policy.retry_pause_s(end.failed) if again else self._robot_poll_s())
        await self._next()

    async def _reply(self, message: Message) -> None:
        """Answer a look, a rollback, a way back or a flash."""
        end: SessionEnd = message.value
        self._over()
        self.shown.phase = None
        self._why = None
        order, self._exclusive = self._exclusive, None
        if order is not None and order.purpose == "back" and self._update is not None:
            await self._finish_way_back(message, order)
            return
        looks, self._looks = self._looks, []
        sight, around = self._sight, self._around
        if order is not None and order.purpose == "flash":
            answer = await endings.flashed(sight, around, order, end)
        elif order is not None:
            if order.purpose == "back":
                self._give_up(None, "neutral")
            answer = await endings.went_back(sight, around, order, end)
        elif looks:
            answer = endings.looked(sight, around, looks, end, alone=self._update is None)
        else:  # its orders were answered when the task failed
            answer = Answer("error", end.error)
        for one in [order] if order is not None else looks:
            if answer.error is not None:
                one.report["error"] = answer.error.to_dict()
            one.report["outcome"] = self.shown.state
            self._hold_against_target(one)
        await self._look_back()
        for one in [order] if order is not None else looks:
            one.give(answer)
        await self._next()

    async def _look_back(self) -> None:
        """Where a rollback would lead by now."""
        if self.shown.mac is not None:
            known = partial(self._around.memory.back, self.shown.mac)
            self.shown.back = await self._around.journaled(known)

    def _hold_against_target(self, order: Order) -> None:
        """Another target may have come meanwhile."""
        if order.target.key != self._sight.target.key:
            self._sight.retarget(self._sight.target)


async def heard(boards: Iterable[Board]) -> None:
    """They have taken in what was posted; one that is listed no more never does."""
    waits = [board.heard() for board in boards]
    if waits:
        await asyncio.wait(waits, timeout=HEARD_S)


def _order(message: Message) -> Order:
    """The order of a message whose action needs one."""
    assert message.order is not None
    return message.order


def _unanswered(board: str, words: str) -> OtaError:
    """That the robot has not said whether what runs on a board works."""
    message = f"The robot's health check was not answered ({words})."
    return OtaError("check-unanswered", message, board=board)


def _slower(job: Job, error: OtaError | None) -> Job:
    """The same at the next speed below the one that was used, where that may help; the next update
    begins anew."""
    if error is None or not looks_like_speed(error):
        return job
    speeds = bauds_to_try(error.baud or job.baud)
    return replace(job, baud=speeds[1] if len(speeds) > 1 else speeds[0])


def _reason(message: Message) -> OtaError:
    """Why an update goes no further."""
    if message.event == "stopped" and isinstance(message.value, OtaError):
        return message.value
    texts = {
        "retarget": "Another target was configured.",
        "end": "The service ends; its next start looks at the board and goes on.",
        "flash": "The whole flash is about to be written instead.",
        "rollback": "The board is rolled back instead, as a person asked.",
        "back": "What was brought to its group is taken back instead.",
    }
    return OtaError("cancelled", texts.get(message.event, ""))
