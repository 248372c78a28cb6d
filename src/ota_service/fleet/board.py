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
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from ota_service.board.at_port import require_free
from ota_service.board.flash_merged import FlashJob, FlashOutcome
from ota_service.board.link import bauds_to_try
from ota_service.board.ownership import SERVICE_CLAIMS
from ota_service.board.session import Job, Outcome
from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import policy
from ota_service.fleet.board_state import BoardState, Progress, utc_now
from ota_service.fleet.firmwares import Fetched, Firmwares, Wish
from ota_service.fleet.hooks import Briefing, FlashHooks, SessionHooks
from ota_service.fleet.journal_rows import BoardRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.orders import (
    READS,
    Adopted,
    Answer,
    End,
    Fact,
    FlashPlanned,
    Identified,
    Message,
    Order,
    PhaseBegan,
    Planned,
    Progressed,
    Purpose,
    Remembered,
    Restarted,
    Seen,
    Warned,
)
from ota_service.fleet.places import Place
from ota_service.fleet.policy import BOARD, Event, State
from ota_service.fleet.replies import BOOT_LOG_LINES, last_reply, read_reply, refusal, running_of
from ota_service.fleet.sessions import (
    EXECUTOR,
    SessionEnd,
    after_waiting,
    boot_rules,
    run_flash_session,
    run_session,
)
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.fleet.turns import Ask, Turns

_STEP_PERCENT = 25
_LONG_PHASES = frozenset({"writing", "booting", "rolling_back"})
"""Phases that last, whose beginning is worth a line."""
_RANKS = {"flash": 0, "rollback": 0, "plan": 1, "version": 1, "verify": 1, "update": 2}
"""What is taken first of the orders that waited for a session's end."""
_EVENTS: dict[Purpose, Event] = {
    "update": "update",
    "plan": "plan",
    "version": "read",
    "verify": "read",
    "rollback": "rollback",
    "flash": "flash",
}

Result = TypeVar("Result")


class Around(Protocol):
    """What a board's task needs of its service.

    owner: who claims its port ("service OTA"). slots: for sessions that are no updates.
    """

    settings: Settings
    owner: str
    log: logging.LoggerAdapter[logging.Logger]
    firmwares: Firmwares
    turns: Turns
    slots: asyncio.Semaphore

    @property
    def memory(self) -> Memory:
        """The journal. Raises OtaError `state-busy`."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task until it ends, or the service does."""

    def journaled(self, call: Callable[[], Result]) -> Awaitable[Result]:
        """Something that blocks for as long as a disk takes, in a thread."""

    async def may_restart(self) -> bool:
        """Whether boards may be restarted now."""

    def renamed(self, board: Board, mac: str) -> None:
        """A board that is not in `boards` goes by its MAC now."""


class Board:
    """One board, from its first sight until its service ends or lists it no more."""

    def __init__(self, name: str, entry: BoardEntry | None, target: Target, around: Around) -> None:
        self.shown = BoardState(name, entry)
        self.target = target
        self.state: State = "rest"
        self.left_s = float("-inf")
        self.quiet = asyncio.Event()
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Message | Fact] = asyncio.Queue()
        self._standing: Order | None = None
        self._exclusive: Order | None = None
        self._looks: list[Order] = []
        self._line: list[Order] = []
        self._plan_waiters: list[Order] = []
        self._wish: Wish | None = None
        self._fetched: Fetched | OtaError | None = None
        self._hooks: SessionHooks | None = None
        self._job: Job | None = None
        self._why: OtaError | None = None
        self._before = self.shown.state
        self._token: object = object()
        self._wish_token: object = object()
        self._timer: asyncio.TimerHandle | None = None
        self._tries = 0
        self._phase_began_s = 0.0
        self._logged_percent = 0
        self._task = around.spawn(self._live())

    # --- what may be called from outside

    def order(self, order: Order) -> Order:
        """Ask for something; `order.answer` will have what came of it."""
        self.post(Message("update", order))
        return order

    def post(self, message: Message | Fact) -> None:
        """Bring something to the task. In the event loop."""
        self.quiet.clear()
        self._inbox.put_nowait(message)

    def from_thread(self, fact: Fact) -> None:
        """As `post`, from any thread."""
        self._loop.call_soon_threadsafe(self._inbox.put_nowait, fact)

    def tell(self, event: Event, token: object | None, value: Any) -> None:
        """As `post`, for whoever knows of no messages."""
        self.post(Message(event, value=value, token=token))

    def answers_to(self, word: str) -> bool:
        """Whether a person who says `word` (name, MAC or port) means this board."""
        about = self.shown
        if word in (about.name, about.port):
            return True
        mac = about.mac or (about.entry.mac if about.entry is not None else None)
        return mac is not None and word.lower().replace("-", ":") == mac

    async def retire(self) -> None:
        """It is listed no more: stop where it boots, and end."""
        self.tell("retarget", None, None)
        await self.quiet.wait()
        self._task.cancel()

    @property
    def free(self) -> bool:
        """Whether nothing is asked of it."""
        return self.state == "rest" and self._standing is None and not self._line

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
                self._log(logging.ERROR, "its task failed", exc_info=True)
                self._break(error)
            if self.free and self._inbox.empty():
                self.quiet.set()

    async def _take(self, message: Message) -> None:
        event = message.event if message.order is None else self._event(message.order)
        if event in ("firmware", "no-firmware") and message.token is self._wish_token:
            self._fetched = message.value
        if message.token is not None and message.token is not self._token:
            return  # of a wait that is over
        row = BOARD[self.state, event]
        if row.state is not None:
            self.state = row.state
        await getattr(self, f"_{row.action}")(replace(message, event=event))

    def _event(self, order: Order) -> Event:
        """What an order is to this board now."""
        if order.place.kind != "here":
            return "missing"
        if order.spared is not None:
            return "spared"
        if order.purpose == "update":
            standing = self._standing
            if standing is None:
                return "update"
            same = standing.target.key == order.target.key
            return policy.meets(standing.permits, order.permits, same_target=same)
        return _EVENTS[order.purpose]

    async def _next(self) -> None:
        """After a session, or an update: what waited for it is taken as if it arrived now."""
        line, self._line = sorted(self._line, key=lambda order: _RANKS[order.purpose]), []
        updates_only = all(order.purpose == "update" for order in line)
        if self.state == "rest" and self._standing is not None and updates_only:
            later = self._standing.not_before_s > self._loop.time()
            row = BOARD["rest", "later" if later else "update"]
            assert row.state is not None
            self.state = row.state
            await getattr(self, f"_{row.action}")(Message("later" if later else "update"))
        for order in line:
            await self._take(Message("update", order))

    def _break(self, error: Exception) -> None:
        """Something that nobody foresaw: everybody gets an answer, and the board goes on."""
        told = OtaError("internal", f"{type(error).__name__}: {error}", board=self.shown.name)
        orders = [*self._looks, *self._line, *self._plan_waiters]
        orders += [order for order in (self._standing, self._exclusive) if order is not None]
        self._looks, self._line, self._plan_waiters = [], [], []
        if self._hooks is not None:
            self._hooks.cancel.set()
            self.state = "stopping"
        else:
            self.state = "rest"
        self._leave(None)
        self._standing = self._exclusive = None
        self._show_error(told)
        for order in orders:
            order.give(Answer("error", told))

    # --- waits and sessions

    def _wait(self, seconds: float | None = None) -> object:
        """Begin a wait, which ends all others; its token. seconds: until the event `time`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        token = self._token = object()
        if seconds is not None:
            over = Message("time", token=token)
            self._timer = self._loop.call_later(seconds, self.post, over)
        return token

    def _start(self, order: Order, job: Job | FlashJob, *, failed: int, after_s: float = 0) -> None:
        """Begin a session beside the task; its end will be in the inbox."""
        self._wait()
        about, settings = self.shown, self._around.settings
        briefing = Briefing(
            owner=self._around,
            name=about.name,
            entry=about.entry,
            port=str(about.port),
            info=order.place.info,
            target=order.target.key,
            version=order.target.version,
            writes=order.purpose == "update",
            confirm_timeout_s=settings.confirm_timeout_s,
            max_attempts=settings.max_attempts,
        )
        self._hooks = hooks = SessionHooks(briefing, self._around.memory, self.from_thread)
        about.phase = "waiting"

        async def go() -> None:
            if after_s:
                await asyncio.sleep(after_s)
            end = await self._session(order, job, hooks, failed)
            self.post(Message(self._judge(order, end), value=end))

        self._around.spawn(go())

    async def _session(
        self, order: Order, job: Job | FlashJob, hooks: SessionHooks, failed: int
    ) -> SessionEnd:
        """The way to a session, and the session; never raises."""
        flash = FlashHooks(hooks)
        try:
            if order.purpose == "update":
                return await self._go_through(order, job, hooks, flash, failed)
            async with self._around.slots:
                return await self._go_through(order, job, hooks, flash, failed)
        except OtaError as error:
            error.board = self.shown.name
            failed = await self._count(order, hooks, error, failed)
            return SessionEnd(error=error, failed=failed, wrote=flash.wrote)
        except Exception as error:
            self._log(logging.ERROR, "the session failed", exc_info=True)
            told = OtaError("internal", f"{type(error).__name__}: {error}", board=self.shown.name)
            failed = await self._count(order, hooks, told, failed)
            return SessionEnd(error=told, failed=failed, wrote=flash.wrote)

    async def _go_through(
        self, order: Order, job: Job | FlashJob, hooks: SessionHooks, flash: FlashHooks,
        failed: int,
    ) -> SessionEnd:  # fmt: skip
        around, port = self._around, str(self.shown.port)
        await self._require_allowed(order)
        if hooks.cancelled():
            raise OtaError("cancelled")
        if isinstance(job, FlashJob):
            call: partial[Any] = partial(run_flash_session, port, around.owner, job, flash)
            return SessionEnd(await self._loop.run_in_executor(EXECUTOR, call))
        if job.confirm is None:
            awaited = await around.journaled(partial(around.memory.awaited, order.place.mac))
            if awaited is not None and order.purpose == "update":
                return SessionEnd(failed=failed, awaited=awaited[0], waits_s=awaited[1])
            if awaited is not None:
                raise OtaError("awaiting-confirmation")
        known = await around.journaled(partial(around.memory.journal.fallback_baud, port))
        if known is not None and known < job.baud and not order.permits.force:
            job = replace(job, baud=known)  # what the port fell back to; `force` tries again
        call = partial(run_session, port, around.owner, job, hooks)
        outcome: Outcome = await self._loop.run_in_executor(EXECUTOR, call)
        if outcome.baud is not None and (
            outcome.baud < around.settings.baud or order.permits.force
        ):
            note = partial(around.memory.journal.record_baud, port, outcome.baud)
            await around.journaled(note)
        return SessionEnd(outcome, failed=failed)

    async def _require_allowed(self, order: Order) -> None:
        """At the last moment: a robot that drives must not lose its motor board."""
        overridden = "not-allowed-now" in order.permits.override
        if not overridden and not await self._around.may_restart():
            raise OtaError("not-allowed-now")

    async def _count(self, order: Order, hooks: SessionHooks, error: OtaError, failed: int) -> int:
        """How many attempts have failed by now; only an update's are counted for good."""
        if error.code in policy.HINDRANCES:
            return failed
        around, mac = self._around, hooks.mac
        journal = around.memory.journal
        if mac is not None and error.code in ("link-lost", "no-answer"):
            await around.journaled(partial(journal.record_carried, mac, str(self.shown.port), 0))
        planned = hooks.plan is not None or order.plan is not None
        if order.purpose == "update" and mac is not None and planned:
            ended = await around.journaled(
                partial(
                    journal.end_attempt,
                    mac,
                    order.target.key,
                    succeeded=False,
                    code=error.code,
                    message=error.message,
                )
            )
            return ended.failed
        return failed + error.kind.counts

    def _judge(self, order: Order, end: SessionEnd) -> Event:
        if end.error is not None:
            settings, update = self._around.settings, order.purpose == "update"
            most = settings.max_attempts if update else policy.READ_ATTEMPTS
            return policy.judge(end.error, failed=end.failed, max_attempts=most)
        outcome = end.outcome
        if outcome is None:
            return "awaits"
        waits = isinstance(outcome, Outcome) and outcome.end == "awaiting_confirmation"
        return "awaits" if waits and order.purpose == "update" else "done"

    # --- facts

    def _learn(self, fact: Fact) -> None:
        about = self.shown
        match fact:
            case PhaseBegan(name, at_s):
                self._learn_phase(name, at_s)
            case Identified(mac):
                about.mac = mac
                self._report("mac", mac)
            case Seen(found):
                about.chip, about.flash_bytes = found.chip.name, found.chip.flash_bytes
                if found.nvs is not None:
                    about.version, about.version_read_at = found.version, utc_now()
                    for order in self._at_work():
                        order.report.setdefault("from", found.version)
                about.running = running_of(found, found.running.partition) or about.running
            case Planned(plan, writes):
                self._learn_plan(plan, writes)
            case FlashPlanned(chip, total_bytes, kept):
                about.chip, about.flash_bytes = chip.name, chip.flash_bytes
                self._log(
                    logging.INFO, "the whole flash is written (%d bytes); %s", total_bytes, kept
                )
            case Progressed(done, total):
                self._learn_progress(done, total)
            case Restarted(reason):
                for order in self._at_work():
                    order.report.setdefault("restarts", []).append(reason)
                    self._log(logging.DEBUG, "restarted %s (%s)", reason, order.why)
            case Remembered(record, as_read):
                self._remember(record, as_read)
            case Adopted(name, entry):
                about.name, about.entry = name, entry
            case Warned(error):
                about.error = error
                self._log(logging.WARNING, "%s", error.message)

    def _remember(self, record: BoardRecord, as_read: bool) -> None:
        """Show from the start what the journal has of the board."""
        about = self.shown
        about.mac, about.chip, about.flash_bytes = record.mac, record.chip, record.flash_bytes
        about.version, about.version_read_at = record.version, record.version_read_at
        about.confirmed = record.confirmed
        shown = {"slot": record.slot, "project": record.project, "app_version": record.app_version}
        about.running = {key: value for key, value in shown.items() if value is not None}
        if record.version is not None and record.version != self.target.version:
            about.state = "outdated"
        elif record.version is not None and as_read:
            about.state = "up_to_date"

    def _at_work(self) -> list[Order]:
        """The orders whose session this is."""
        if self.state == "reading" or self._looks:
            return self._looks[:1]
        if self._exclusive is not None:
            return [self._exclusive]
        return [self._standing] if self._standing is not None else []

    def _report(self, key: str, value: Any) -> None:
        for order in self._at_work():
            order.report[key] = value

    def _learn_phase(self, name: str | None, at_s: float) -> None:
        about = self.shown
        if about.phase not in (None, "waiting"):
            for order in self._at_work():
                phases = order.report.setdefault("phases", {})
                spent_s = phases.get(about.phase, 0.0) + at_s - self._phase_began_s
                phases[about.phase] = round(spent_s, 3)
        self._phase_began_s = at_s
        about.phase = name
        if name in ("writing", "booting"):
            about.progress, self._logged_percent = None, 0
            if self._exclusive is not None and self.state == "rewriting":
                about.state = "updating"
        if name is not None:
            level = logging.INFO if name in _LONG_PHASES else logging.DEBUG
            self._log(level, "%s", name.replace("_", " "))

    def _learn_plan(self, plan: Any, writes: bool) -> None:
        standing = self._standing
        if not writes or standing is None:
            return
        standing.plan = plan
        standing.report |= {"action": plan.action, "reason": plan.reason}
        self._log(logging.INFO, "%s (%s)", plan.action, plan.reason)
        if plan.action in ("write", "switch"):
            self._say_replaced(standing)
        waiters, self._plan_waiters = self._plan_waiters, []
        for order in waiters:
            order.give(Answer("done", reply=dict(plan.to_dict())))

    def _say_replaced(self, order: Order) -> None:
        """Whoever named the board consented to another project's firmware; it is said anyway."""
        before, name = self.shown.running.get("project"), self.shown.name
        after = self._around.firmwares.about.get(order.target.key, {}).get("project")
        if before and after and before != after:
            self._log(
                logging.WARNING, 'the project "%s" is replaced by "%s"', before, after,
                extra={"replaced": (name, before, after)},
            )  # fmt: skip

    def _learn_progress(self, done: int, total: int) -> None:
        about = self.shown
        if about.progress is None:
            about.progress = Progress(bytes_total=total)
        about.progress.bytes_done = done
        self._report("bytes", done)
        percent = done * 100 // total if total else 0
        if percent >= self._logged_percent + _STEP_PERCENT:
            self._logged_percent = percent - percent % _STEP_PERCENT
            self._log(logging.INFO, "%d %% written", self._logged_percent)

    def _log(self, level: int, text: str, *values: object, **options: Any) -> None:
        self._around.log.log(level, f"%s: {text}", self.shown.name, *values, **options)

    # --- what the board shows

    def _show_error(self, error: OtaError) -> None:
        """What went wrong, under the state that belongs to its code."""
        about = self.shown
        about.error = error
        about.state = policy.shown_for(error)
        if error.code in policy.WITHOUT_OUTCOME:
            wanted = self.target.version
            about.state = policy.shown_when_dropped(self._before, about.version, wanted)
        about.phase = about.progress = None

    def _show_place(self, place: Place) -> None:
        about = self.shown
        about.port = place.port or about.port
        about.mac = place.mac or about.mac
        if place.kind == "here" and about.state in ("absent", "candidate"):
            about.state, about.error = "unknown", None

    # --- actions: orders

    async def _nothing(self, message: Message) -> None:
        pass

    async def _line_up(self, message: Message) -> None:
        assert message.order is not None
        self._line.append(message.order)

    async def _join(self, message: Message) -> None:
        order, standing = message.order, self._standing
        assert order is not None
        if order.purpose != "update":
            await self._answer_missing(message)
        elif standing is not None:
            standing.permits |= order.permits
            standing.followers += [order, *order.followers]

    async def _answer_missing(self, message: Message) -> None:
        order, about = message.order, self.shown
        assert order is not None
        place = order.place
        error = place.error or OtaError("no-board", board=about.name)
        if self.state == "rest":
            self._show_place(place)
            if place.kind == "candidate":
                about.state = "candidate"
            elif place.error is not None:
                self._before = about.state
                self._show_error(place.error)
                about.state = "absent" if place.kind == "absent" else about.state
        if place.error is not None:
            order.report["error"] = place.error.to_dict()
            if order.purpose == "update":
                self._log(logging.WARNING, "%s", place.error.message)
        order.report["outcome"] = about.state
        order.give(Answer("error", error, refusal(order.purpose, error)))

    async def _answer_spared(self, message: Message) -> None:
        order = message.order
        assert order is not None
        assert order.spared is not None
        about, spared = self.shown, order.spared
        if self.state == "rest":
            self._show_place(order.place)
            about.attempts = order.failed
            about.state, about.error = spared.state, spared.error
        order.report |= {"reason": "as last read" if spared.error is None else "held"}
        order.report["outcome"] = about.state
        order.give(Answer("done" if spared.error is None else "error", spared.error))

    async def _answer_last(self, message: Message) -> None:
        order = message.order
        assert order is not None
        error = self.shown.error or OtaError("awaiting-confirmation", board=self.shown.name)
        plan = self._standing.plan if self._standing is not None else None
        reply = last_reply(order.purpose, self.shown, error, plan)
        order.give(Answer("error", error, reply))

    async def _answer_plan(self, message: Message) -> None:
        order, standing = message.order, self._standing
        assert order is not None
        if standing is not None and standing.plan is not None:
            order.give(Answer("done", reply=dict(standing.plan.to_dict())))
        else:
            self._plan_waiters.append(order)

    async def _refuse_rollback(self, message: Message) -> None:
        assert message.order is not None
        error = OtaError("awaiting-confirmation", board=self.shown.name)
        message.order.give(Answer("error", error, refusal("rollback", error)))

    async def _release(self, message: Message) -> None:
        about = self.shown
        if about.state in ("set_aside", "rolled_back", "failed", "unrecognised"):
            about.error, about.attempts = None, 0
            about.state = policy.shown_when_released(about.version, self.target.version)

    async def _retarget(self, message: Message) -> None:
        """Another target is this board's from now on; None: it is no longer listed."""
        about, target = self.shown, message.value
        line, self._line = self._line, []
        for order in line:
            if order.purpose == "update" and (target is None or order.target.key != target.key):
                order.give(Answer("cancelled", _reason(message)))
            else:
                self._line.append(order)
        if target is None:
            return
        self.target = target
        wrong = about.error is not None and about.error.code in policy.NOT_THE_BOARD
        if self.state == "rest" and not wrong:
            before = about.state
            about.state = policy.shown_when_retargeted(before, about.version, target.version)
            about.error = about.error if about.state == before else None

    async def _show_gone(self, message: Message) -> None:
        """Its port is not there, or it is not the board's."""
        error: OtaError = message.value
        self._log(logging.INFO, "%s", error.message)
        self.shown.state, self.shown.error = policy.shown_for(error), error
        self._give_up_claim()

    def _give_up_claim(self) -> None:
        """The MAC of a board that is not there may be another's, which was one with it before."""
        about = self.shown
        if about.mac is not None and (about.entry is None or about.entry.mac != about.mac):
            SERVICE_CLAIMS.drop(self._around, about.mac)

    async def _show_came(self, message: Message) -> None:
        self._show_place(message.value)

    # --- actions: an update's way

    async def _fetch(self, message: Message) -> None:
        """The firmware first; also where an update goes on behind a look."""
        order = message.order
        if order is not None:
            self._standing = order
            self._why = None
            self._before = self.shown.state
            self._show_place(order.place)
            self.shown.attempts = order.failed
            order.report |= {"attempted": order.target.version}
            order.began_s = self._loop.time()
        standing = self._standing
        assert standing is not None
        self._wait()
        self._token = self._wish_token
        if self._wish is None:
            self._token = token = self._wish_token = object()
            self._fetched = None
            self._wish = self._around.firmwares.want(
                standing.target, lambda got: self._arrived(got, token)
            )
        elif self._fetched is not None:
            self._arrived(self._fetched, self._wish_token)

    def _arrived(self, got: Fetched | OtaError, token: object) -> None:
        event: Event = "firmware" if isinstance(got, Fetched) else "no-firmware"
        self.post(Message(event, value=got, token=token))

    async def _without_firmware(self, message: Message) -> None:
        error, about, order = message.value, self.shown, self._standing
        assert order is not None
        order.report["error"] = error.to_dict()
        if about.version is not None and about.version != order.target.version:
            about.state = "outdated"
        if about.entry is not None and about.entry.is_pinned:
            about.error = error  # its own firmware concerns this board
        await self._end_update(Answer("no-firmware", error), None)

    async def _ask_turn(self, message: Message) -> None:
        if message.order is not None:
            await self._join(message)
        order, fetched = self._standing, self._fetched
        assert order is not None
        assert isinstance(fetched, Fetched)
        self.shown.phase = "waiting"
        overrides = "stopped" in order.permits.override
        ask = Ask(self, order.target.key, fetched.proven, overrides, self._wait())
        self._around.turns.ask(ask)

    async def _carry_out(self, message: Message) -> None:
        order = self._standing
        assert order is not None
        if self._job is None:
            self._job = self._new_job(order)
        # What was permitted meanwhile, by an order that joined, counts as well.
        self._job = replace(self._job, force=order.permits.force)
        self.shown.state = "updating"
        self._start(order, self._job, failed=order.failed)

    def _new_job(self, order: Order) -> Job:
        """What a session does with the board."""
        settings, fetched = self._around.settings, self._fetched
        image = fetched.image if isinstance(fetched, Fetched) else order.image
        purpose, permits, entry = order.purpose, order.permits, self.shown.entry
        return Job(
            self.shown.name,
            version=order.target.version,
            image=image if purpose != "version" else None,
            known=self._around.firmwares.known(order.target.key if image is not None else ""),
            baud=settings.baud,
            boot=boot_rules(settings.boot_timeout_s, settings.boot_stable_s, settings.boot_expect),
            force=permits.force,
            adopted=entry is not None or settings.adopt or "other-project" in permits.override,
            read_only=purpose in ("version", "verify"),
            go_back=purpose == "rollback",
            dry_run=purpose == "plan",
        )

    async def _hold(self, message: Message) -> None:
        """Sensor or port said no: ask again, and let others go meanwhile."""
        order, error = self._standing, message.value
        assert order is not None
        if isinstance(error, SessionEnd):
            error = error.error
            self._over()
            self.shown.state = "updating"
        self.shown.error, self.shown.phase = error, "waiting"
        self._around.turns.ended(self, order.target.key, None)
        self._wait(policy.HELD_POLL_S)
        await self._next()

    async def _ask(self, message: Message) -> None:
        """Whether it may go on, without opening the port."""
        order, token = self._standing, self._wait()
        assert order is not None
        port, name, owner = str(self.shown.port), self.shown.name, self._around.owner

        async def ask() -> None:
            event: Event = "free"
            told: OtaError | None = None
            try:
                await self._require_allowed(order)
                await self._loop.run_in_executor(EXECUTOR, partial(require_free, port, owner, name))
            except OtaError as error:
                error.board = name
                event, told = "hindered", error
            self.post(Message(event, value=told, token=token))

        self._around.spawn(ask())

    async def _pause(self, message: Message) -> None:
        """Later and slower; also where it goes on pausing behind a look."""
        order, end = self._standing, message.value
        assert order is not None
        if isinstance(end, SessionEnd) and end.error is not None:
            self._over()
            about, error = self.shown, end.error
            order.failed = about.attempts = end.failed
            about.error = error
            same = about.version == order.target.version
            about.state = "unknown" if same else "outdated"
            self._around.turns.leave(self)
            pause_s = policy.retry_pause_s(end.failed)
            order.not_before_s = self._loop.time() + pause_s
            self._log(logging.WARNING, "%s; trying again in %g s", error.message, pause_s)
            assert self._job is not None
            self._job = slower(self._job)
        self._wait(max(0.0, order.not_before_s - self._loop.time()))
        await self._next()

    async def _leave_alone(self, message: Message) -> None:
        """A board that may be in PENDING_VERIFY is not reset until its app had its time."""
        end, about, settings = message.value, self.shown, self._around.settings
        assert self._job is not None
        self._over()
        if isinstance(end.outcome, Outcome):
            self._job = after_waiting(self._job, end.outcome)
            seconds = settings.confirm_timeout_s
            about.confirmed = False
            self._show_version(end.outcome.version)
        else:
            self._job, seconds = replace(self._job, confirm=end.awaited), end.waits_s
        about.state, about.phase = "awaiting_confirmation", "waiting"
        about.error = OtaError("awaiting-confirmation", board=about.name)
        self._log(logging.INFO, "left alone for %.0f s, so that its app can confirm", seconds)
        self._around.turns.leave(self)
        self._wait(seconds)
        await self._next()

    # --- actions: its end

    def _over(self) -> None:
        """A session is over."""
        self._learn_phase(None, time.monotonic())
        self.shown.progress = None
        self._hooks = None
        self.left_s = self._loop.time()

    async def _set_aside(self, message: Message) -> None:
        order, end = self._standing, message.value
        assert order is not None
        error = end.error
        key = self.shown.mac or self.shown.name
        await self._around.journaled(
            partial(
                self._around.memory.journal.set_attempt_state,
                key,
                order.target.key,
                "set_aside",
                code=error.code,
                message=error.message,
            )
        )
        await self._finish(message)
        self.shown.state = "set_aside"

    async def _finish(self, message: Message) -> None:
        """The outcome of an update stands."""
        order, end = self._standing, message.value
        self._over()
        if order is None:  # its order was answered when the task failed
            await self._reply(message)
            return
        about = self.shown
        about.attempts = end.failed
        if end.outcome is not None:
            error = await self._show_outcome(order, end.outcome)
        else:
            error = end.error
            self._show_error(error)
        if message.event == "used-up":
            about.state = "set_aside"
        if self._why is not None and message.event == "done" and about.state == "up_to_date":
            order.report["cancel"] = "too late"
        if error is not None:
            order.report["error"] = error.to_dict()
        ended: End = "done" if error is None else "error"
        if message.event == "cancelled":
            ended = "cancelled"
        await self._end_update(Answer(ended, error), policy.verdict(about.state, error))

    async def _drop(self, message: Message) -> None:
        """An update that goes no further."""
        order, end = self._standing, message.value
        if isinstance(end, SessionEnd):
            self._over()
        if order is None:
            await self._reply(message)
            return
        why = self._why or _reason(message)
        about = self.shown
        told = end.error if isinstance(end, SessionEnd) and end.error is not None else why
        if message.event == "awaits" or about.state == "awaiting_confirmation":
            about.state = "awaiting_confirmation"
            about.error = OtaError("awaiting-confirmation", board=about.name)
        else:
            told = why if told.code == "cancelled" else told
            self._show_error(told)
        if message.event in ("cancel", "end"):
            self._clear_line(why, ends=message.event == "end")
        if message.event == "retarget":
            await self._retarget(message)
        order.report["error"] = told.to_dict()
        await self._end_update(
            Answer("stopped" if why.code == "stopped" else "cancelled", why), "neutral"
        )

    async def _end_update(self, answer: Answer, verdict: policy.Verdict | None) -> None:
        order, about = self._standing, self.shown
        assert order is not None
        self._standing = None
        self._leave(order, verdict)
        stopped = answer.end == "stopped"
        order.report["outcome"] = "stopped" if stopped else about.state
        self._log_end(order, answer)
        self._line += self._plan_waiters
        self._plan_waiters = []
        order.give(answer)
        await self._next()

    def _leave(self, order: Order | None, verdict: policy.Verdict | None = None) -> None:
        """Give up what an update held: its wait, its turn, its firmware."""
        self._wait()
        self._job = self._why = None
        about = self.shown
        about.phase = about.progress = None
        if order is not None and verdict is not None:
            self._around.turns.ended(self, order.target.key, verdict)
        self._around.turns.leave(self)
        if self._wish is not None:
            self._wish.let_go()
        self._wish = self._fetched = None

    def _log_end(self, order: Order, answer: Answer) -> None:
        about, report = self.shown, order.report
        took_s = self._loop.time() - order.began_s
        words = report["outcome"].replace("_", " ")
        if report.get("to") is not None:
            words += f', "{report.get("from", "")}" -> "{report["to"]}"'
        if about.confirmed is not None and about.state == "up_to_date":
            words += ", confirmed" if about.confirmed else ", not confirmed: its log shows nothing"
        level = logging.INFO
        if answer.error is not None:
            level = logging.WARNING if answer.end == "error" else logging.INFO
            words += f": {answer.error.message} {answer.error.remedy} [{answer.error.code}]"
        self._log(level, "%s, after %.1f s", words, took_s)

    async def _stop_session(self, message: Message) -> None:
        """The session stops at the next place where that leaves the board bootable."""
        hooks = self._hooks
        if hooks is not None:
            hooks.cancel.set()
            if message.event == "end":
                hooks.stop.set()
        if self._looks:
            self._drop_standing(_reason(message))
        if self._standing is not None and message.event != "flash":
            self._why = self._why or _reason(message)
        if message.event == "retarget":
            await self._retarget(message)
        if message.event in ("cancel", "end"):
            self._clear_line(_reason(message), ends=message.event == "end")

    async def _stop_line(self, message: Message) -> None:
        """A flash makes an update void that a session has."""
        self._why = OtaError("cancelled", "The whole flash is about to be written instead.")
        await self._line_up(message)
        await self._stop_session(message)

    async def _drop_line(self, message: Message) -> None:
        self._clear_line(_reason(message))
        if self._looks:
            self._drop_standing(_reason(message))

    def _drop_standing(self, why: OtaError) -> None:
        """An update that waits while another session has, or gets, the board is void."""
        standing, self._standing = self._standing, None
        if standing is not None:
            self._leave(standing, "neutral")
            standing.report["outcome"] = self.shown.state
            standing.give(Answer("cancelled", why))

    def _clear_line(self, why: OtaError, *, ends: bool = False) -> None:
        """Cancel what waits in line; looks are answered all the same, unless the process ends."""
        line, self._line = self._line, []
        for order in line:
            if order.purpose in READS and not ends:
                self._line.append(order)
            else:
                order.give(Answer("cancelled", why, refusal(order.purpose, why)))

    async def _show_outcome(self, order: Order, outcome: Outcome) -> OtaError | None:
        """What an update's session found at its end; the error, if it is one."""
        about, around = self.shown, self._around
        error = outcome.error
        if outcome.found is not None:
            around.renamed(self, outcome.found.chip.mac)
        self._show_version(outcome.version)
        if outcome.version is not None:
            order.report["to"] = outcome.version
        if outcome.boot_log:
            order.report["boot_log"] = list(outcome.boot_log[-BOOT_LOG_LINES:])
        if error is not None:
            error.board = about.name
        about.error = error
        if outcome.end == "refused":
            assert error is not None
            self._show_error(error)
            info = order.place.info
            if error.code == "other-project" and about.entry is None and info is not None:
                note = partial(
                    around.memory.journal.mark_not_ours, info.place, error.message, about.mac
                )
                await around.journaled(note)
            return error
        fetched = self._fetched
        image = fetched.image if isinstance(fetched, Fetched) else None
        about.confirmed = outcome.confirmed if outcome.confirmed is not None else about.confirmed
        if outcome.end == "up_to_date":
            await around.journaled(
                partial(around.memory.succeeded, outcome, image, order.target.key)
            )
            about.state, about.attempts = "up_to_date", 0
        elif outcome.end in ("rolled_back", "failed"):
            await around.journaled(partial(around.memory.rolled_back, outcome, order.target.key))
            about.confirmed, about.state = None, outcome.end
            about.attempts += 1
        wrote = outcome.plan is not None and outcome.plan.action in ("write", "switch")
        new = image if wrote and outcome.end == "up_to_date" else None
        about.running = running_of(outcome.found, outcome.slot, new) or about.running
        return error

    def _show_version(self, version: str | None) -> None:
        if version is not None:
            self.shown.version, self.shown.version_read_at = version, utc_now()

    # --- actions: looks, rollback and flash

    async def _look(self, message: Message) -> None:
        order = message.order
        assert order is not None
        if self._looks:
            same = self._looks[0].purpose == order.purpose
            (self._looks if same else self._line).append(order)
            return
        self._around.turns.leave(self)
        self._looks, self._tries = [order], 0
        self._before_look()
        self._start(order, self._look_job(order), failed=0)

    def _before_look(self) -> None:
        if self._standing is None:
            self._before = self.shown.state

    def _look_job(self, order: Order) -> Job:
        fetched, self._fetched = self._fetched, None
        try:
            return self._new_job(order)
        finally:
            self._fetched = fetched

    async def _go_on(self, message: Message) -> None:
        """Once more, slower."""
        end: SessionEnd = message.value
        order = self._looks[0]
        self._over()
        job = slower(self._look_job(order))
        self._start(order, job, failed=end.failed, after_s=policy.retry_pause_s(end.failed))

    async def _rewrite(self, message: Message) -> None:
        """Rollback or flash; an update that waits is void with what it was made for."""
        order, about = message.order, self.shown
        assert order is not None
        self._drop_standing(OtaError("cancelled", board=about.name))
        self._exclusive = order
        self._before = about.state
        self._show_place(order.place)
        order.began_s = self._loop.time()
        job: Job | FlashJob = self._new_job(order) if order.file is None else self._flash_job(order)
        self._start(order, job, failed=0)

    def _flash_job(self, order: Order) -> FlashJob:
        settings, file = self._around.settings, order.file
        assert file is not None
        return FlashJob(
            self.shown.name,
            file.file,
            keep_nvs=file.keep_nvs,
            state_dir=settings.state_dir,
            confirm=file.confirm,
            baud=settings.baud,
            boot=boot_rules(settings.boot_timeout_s, settings.boot_stable_s, settings.boot_expect),
        )

    async def _reply(self, message: Message) -> None:
        """Answer a look, a rollback or a flash."""
        end: SessionEnd = message.value
        if self._hooks is not None:
            self._over()
        order, self._exclusive = self._exclusive, None
        looks, self._looks = self._looks, []
        if order is not None and order.purpose == "flash":
            answer = await self._flashed(order, end)
        elif order is not None:
            answer = await self._went_back(order, end)
        else:
            answer = self._looked(looks, end)
        for one in [order] if order is not None else looks:
            if answer.error is not None:
                one.report["error"] = answer.error.to_dict()
            one.report["outcome"] = self.shown.state
            one.give(answer)
        self._why = None
        await self._next()

    def _looked(self, looks: list[Order], end: SessionEnd) -> Answer:
        about = self.shown
        if not looks:
            return Answer("done")
        purpose = looks[0].purpose
        if end.error is not None:
            held = end.error.code in (*policy.HINDRANCES, "awaiting-confirmation")
            error = end.error
            if held:
                return Answer("error", error, last_reply(purpose, about, error, None))
            return Answer("error", error, refusal(purpose, error))
        outcome = end.outcome
        assert isinstance(outcome, Outcome)
        found = outcome.found
        assert found is not None
        self._around.renamed(self, found.chip.mac)
        if self._standing is None:
            tag = found.version if found.nvs is not None else None
            wanted = self.target.version
            about.state = policy.shown_after_read(self._before, tag, wanted, found.problem)
            if about.state != self._before:
                about.error = found.problem if about.state == "unsupported" else None
        reply, error = read_reply(purpose, outcome)
        return Answer("done" if error is None else "error", error, reply)

    async def _went_back(self, order: Order, end: SessionEnd) -> Answer:
        """A person's rollback: the board is held until its target changes, or `release`."""
        about, around = self.shown, self._around
        if end.error is not None:
            self._log(logging.WARNING, "no rollback: %s", end.error.message)
            return Answer("error", end.error, refusal("rollback", end.error))
        outcome = end.outcome
        assert isinstance(outcome, Outcome)
        assert outcome.found is not None
        assert outcome.slot is not None
        mac, label = outcome.found.chip.mac, outcome.slot.label
        memory, key, error = around.memory, order.target.key, outcome.error
        fact = (await around.journaled(partial(memory.facts, mac, key))).slots.get(label)
        await around.journaled(partial(memory.rolled_back, outcome, key, held=error is None))
        around.renamed(self, mac)
        about.state = "rolled_back" if outcome.end == "rolled_back" else "failed"
        self._show_version(outcome.version)
        about.confirmed, about.error = outcome.confirmed, error
        about.running = running_of(outcome.found, outcome.slot) or about.running
        reply: dict[str, Any] = {
            "slot": label,
            "version": outcome.version or "",
            "version_from": "journal" if fact and fact.version is not None else "descriptor",
        }
        if error is not None:
            error.board = about.name
            reply["error"] = error.to_dict()
        order.report |= {"to": outcome.version, "slot": label, "by": "a person"}
        if outcome.boot_log:
            order.report["boot_log"] = list(outcome.boot_log[-BOOT_LOG_LINES:])
        self._log(logging.INFO, 'rolled back by a person to "%s" in %s', outcome.version, label)
        return Answer("done" if error is None else "error", error, reply)

    async def _flashed(self, order: Order, end: SessionEnd) -> Answer:
        about, around = self.shown, self._around
        if end.error is not None:
            if end.wrote and about.mac is not None:
                await around.journaled(partial(around.memory.flashing, about.mac))
                self._show_error(end.error)
                about.state = "failed"
            else:
                about.state = self._before
            self._log(logging.ERROR, "%s", end.error)
            return Answer("error", end.error, refusal("flash", end.error))
        outcome = end.outcome
        assert isinstance(outcome, FlashOutcome)
        reply = outcome.to_dict()
        around.renamed(self, outcome.chip.mac)
        await around.journaled(partial(around.memory.flashed, outcome))
        order.report |= {"to": outcome.version, "action": "flash"}
        if outcome.boot_log:
            order.report["boot_log"] = list(outcome.boot_log[-BOOT_LOG_LINES:])
        self._show_version(outcome.version)
        about.running, about.confirmed = dict(reply["running"]), outcome.confirmed
        about.attempts, about.error = 0, outcome.error
        if outcome.error is not None:
            self._show_error(outcome.error)
            return Answer("error", outcome.error, reply)
        same = outcome.version == self.target.version
        about.state = "up_to_date" if same else "outdated"
        return Answer("done", reply=reply)


def slower(job: Job) -> Job:
    """The same at the next lower speed."""
    speeds = bauds_to_try(job.baud)
    return replace(job, baud=speeds[1] if len(speeds) > 1 else speeds[0])


def _reason(message: Message) -> OtaError:
    """Why an update goes no further."""
    if message.event == "stopped" and isinstance(message.value, OtaError):
        return message.value
    if message.event == "retarget":
        return OtaError("cancelled", "Another target was configured.")
    if message.event == "end":
        return OtaError(
            "cancelled",
            "The service ends.",
            remedy="The next start of the module looks at the board and goes on.",
        )
    return OtaError("cancelled")
