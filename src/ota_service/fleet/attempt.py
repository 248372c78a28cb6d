# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to one session with a board, and the session: sensor, journal, thread, port.

Runs beside the board's task; what came of it is the table's event and a `SessionEnd`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from serial import SerialBase

from ota_service.errors import OtaError
from ota_service.firmware.expectation import Expectation
from ota_service.fleet import policy
from ota_service.fleet.around import Around
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.hooks import FlashHooks, SessionHooks
from ota_service.fleet.orders import SWITCHES, UPDATES, Fact, Order
from ota_service.fleet.policy import Event
from ota_service.fleet.robot import Stop
from ota_service.fleet.settings import Settings
from ota_service.link.at_port import at_port, require_free
from ota_service.link.link import EspLink
from ota_service.link.serial_port import ROM_BAUD
from ota_service.update import session
from ota_service.update.flash_merged import FlashJob, FlashOutcome, run_flash
from ota_service.update.session import Awaited, BootRules, Job, Outcome

Result = TypeVar("Result")


LET_GO_S = 3.0
"""How long a port may stay busy behind before_restart's yes."""
LET_GO_POLL_S = 0.1

EXECUTOR = ThreadPoolExecutor(max_workers=64, thread_name_prefix="board")
"""Sessions block; max_parallel bounds how many write at once, this only what can exist."""


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a session ended, or the way to it.

    outcome, or error, or waits_s: how long the board is left alone first. failed: attempts that
    failed so far. wrote: a flash had begun to write.
    """

    outcome: Outcome | FlashOutcome | None = None
    error: OtaError | None = None
    failed: int = 0
    waits_s: float = 0.0
    awaited: Awaited | None = None
    wrote: bool = False


class Attempt:
    """One session. failed: attempts that failed before it. hooks: to stop it by."""

    def __init__(
        self, around: Around, about: BoardState, order: Order, job: Job | FlashJob, failed: int,
        tell: Callable[[Fact], None],
    ) -> None:  # fmt: skip
        self._around = around
        self._order = order
        self._failed = failed
        self._name = about.name
        self._port = str(about.port)
        self._mac = about.mac
        self._reset = about.entry.reset if about.entry is not None else None
        self._settings = around.settings.of(about.entry)
        self._stop = Stop()
        self.hooks = SessionHooks(around, about, order, tell)
        self._job = replace(job, hears=self.hooks.heard)
        if isinstance(job, Job) and job.image is not None:
            self.hooks.brings = job.image.known
        self._flash = FlashHooks(self.hooks)

    async def run(self, after_s: float = 0) -> tuple[Event, SessionEnd]:
        """Wait, do it, and say how it ended; never raises."""
        await asyncio.sleep(after_s)
        try:
            if self._order.purpose in UPDATES:
                end = await self._go_through()
            else:
                async with self._around.slots:
                    end = await self._go_through()
        except OtaError as error:
            end = await self._failed_by(error)
        except Exception as error:
            self._around.log.exception("%s: the session failed", self._name)
            end = await self._failed_by(OtaError.unforeseen(error))
        return await self.event_of(end), end

    def stop(self, *, ending: bool = False) -> None:
        """Stop where that leaves the board bootable. ending: the process ends."""
        self.hooks.cancel.set()
        self._stop.at_all.set()
        if ending:
            self.hooks.stop.set()
            self._stop.ending.set()

    async def _go_through(self) -> SessionEnd:
        around, job, memory = self._around, self._job, self._around.memory
        await require_allowed(around, self._order)
        if self.hooks.cancelled():
            raise OtaError("cancelled")
        if isinstance(job, FlashJob):
            assert self._order.file is not None
            await around.firmwares.require_current(self._order.file)
            flash = partial(run_flash, job=job, hooks=self._flash)
            return SessionEnd(await self._at_robots_word(flash))
        looks_again = job.confirm is not None or job.back_of is not None
        awaits = await self._left_alone() if not looks_again else None
        if awaits is not None and self._order.purpose in SWITCHES:
            return awaits
        if awaits is not None:
            job = replace(job, confirm=awaits.awaited)
        outcome = await self._at_robots_word(partial(session.run, job=job, hooks=self.hooks))
        if outcome.power_failed and self.hooks.mac is not None:
            await around.journaled(memory.power_failed, self.hooks.mac)
        return SessionEnd(outcome, failed=self._failed)

    async def _left_alone(self) -> SessionEnd | None:
        """How long a board is left alone whose app has to confirm itself, if it has.

        Raises `awaiting-confirmation` for what does not change what it runs; a person's rollback
        waits no longer than that.
        """
        awaited = await self._around.journaled(self._around.memory.awaited, self._order.place.mac)
        if awaited is None:
            return None
        over = self._order.purpose == "rollback" and awaited[1] <= 0
        if self._order.purpose not in SWITCHES and not over:
            raise OtaError("awaiting-confirmation")
        return SessionEnd(failed=self._failed, awaited=awaited[0], waits_s=awaited[1])

    async def _at_robots_word(self, work: Callable[[SerialBase], Result]) -> Result:
        """A session, between what the robot is asked before and what it is told after it."""
        overridden = "not-allowed-now" in self._order.permits.override
        calls, settings = self._around.calls, self._settings
        async with calls.around(self._name, settings, self._stop, overridden=overridden):
            if settings.before_restart is not None:
                await asyncio.get_running_loop().run_in_executor(EXECUTOR, self._until_let_go)
            return await self._in_thread(work)

    def _until_let_go(self) -> None:
        """A module that was told to let go of the port may take a moment for it. In a thread."""
        end_s = time.monotonic() + LET_GO_S
        while not self.hooks.cancelled():
            try:
                require_free(self._port, self._around.owner, self._name)
                return
            except OtaError:
                if time.monotonic() > end_s:
                    return  # whoever opens it says what keeps it
            time.sleep(LET_GO_POLL_S)

    async def _in_thread(self, work: Callable[[SerialBase], Result]) -> Result:
        """Do something at the open port."""

        def call() -> Result:
            owner, name, stopped = self._around.owner, self._name, self.hooks.stopping
            with at_port(self._port, owner, name, reset=self._reset, stopped=stopped) as opened:
                return work(opened)

        return await asyncio.get_running_loop().run_in_executor(EXECUTOR, call)

    async def _failed_by(self, error: OtaError) -> SessionEnd:
        error.board = self._name
        failed = self._failed
        if error.code not in policy.HINDRANCES:
            failed = await self._count(error)
        return SessionEnd(error=error, failed=failed, wrote=self._flash.wrote)

    async def _count(self, error: OtaError) -> int:
        """How many attempts have failed by now; only those are counted for good that may have
        changed what the board runs."""
        order, memory = self._order, self._around.memory
        mac = self.hooks.mac or self._mac
        planned = self.hooks.plan is not None or order.plan is not None
        if order.purpose not in SWITCHES or mac is None or not planned:
            return self._failed + error.kind.counts
        end, key = memory.journal.end_attempt, order.target.key
        ended = await self._around.journaled(end, mac, key, succeeded=False, error=error)
        return ended.failed

    async def event_of(self, end: SessionEnd) -> Event:
        """What a session's end is to the board's task."""
        event, outcome = self._judge(end), end.outcome
        if event != "done" or not isinstance(outcome, Outcome) or outcome.found is None:
            return event
        memory, mac = self._around.memory, outcome.found.chip.mac
        board = await self._around.journaled(memory.journal.board, mac)
        if outcome.end != "up_to_date" or board is None or not board.unchecked:
            return event
        if self._settings.health_check is not None:
            return "checks"
        self.hooks.tell(lambda sight: sight.checked())
        await self._around.journaled(memory.checked, mac)
        return event

    def _judge(self, end: SessionEnd) -> Event:
        update = self._order.purpose in UPDATES
        if end.error is not None:
            if end.error.code == "awaiting-confirmation" and self._order.purpose not in SWITCHES:
                return "failed"  # nobody waits here for an app to confirm itself
            tried = update or self._order.purpose == "back"
            most = self._around.settings.max_attempts if tried else policy.READ_ATTEMPTS
            return policy.judge(end.error, failed=end.failed, max_attempts=most)
        outcome: Outcome | FlashOutcome | None = end.outcome
        if outcome is None:
            return "awaits"
        waits = isinstance(outcome, Outcome) and outcome.end == "awaiting_confirmation"
        return "awaits" if waits and self._order.purpose in SWITCHES else "done"


async def require_allowed(around: Around, order: Order) -> None:
    """At the last moment: a robot that drives must not lose its motor board.

    Raises OtaError `not-allowed-now`.
    """
    overridden = "not-allowed-now" in order.permits.override
    if not overridden and around.robot is not None and not await around.robot.may_restart():
        raise OtaError("not-allowed-now")


async def hindrance(around: Around, order: Order, about: BoardState) -> OtaError | None:
    """What keeps a session from being begun, by the sensor and the port's owners; opens nothing.

    Where the robot has a say of its own, the session asks it, and the port may be let go of then.
    """
    port, board = str(about.port), about.name
    try:
        await require_allowed(around, order)
        if around.settings.of(about.entry).before_restart is None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(EXECUTOR, partial(require_free, port, around.owner, board))
    except OtaError as error:
        error.board = board
        return error
    except Exception as error:
        around.log.exception("%s: it could not be asked whether its port is free", board)
        return OtaError.unforeseen(error, board=board)
    return None


class _Found(Exception):
    """A chip has said its MAC: that was all to be known."""


def mac_at(port: str, owner: str) -> str | None:
    """The MAC of the chip behind a port, None where no ESP32 answers. Restarts it."""
    found: list[str] = []

    def identified(mac: str) -> None:
        found.append(mac)
        raise _Found

    try:
        with at_port(port, owner) as opened:
            EspLink.connect(opened, baud=ROM_BAUD, attempts=1, identified=identified)
    except (OtaError, _Found):
        pass  # whatever is there, it is not the board
    return found[0] if found else None


def boot_rules(settings: Settings) -> BootRules:
    """The configuration's boot_* attributes; boot_expect was checked when it was configured."""
    expect = settings.boot_expect
    return BootRules(
        settings.boot_timeout_s,
        settings.boot_stable_s,
        Expectation(expect).found_in if expect else None,
        settings.boot_restarts,
    )


def after_waiting(job: Job, outcome: Outcome) -> Job:
    """What to do when a board that awaited confirmation had its time."""
    if job.confirm is not None or outcome.plan is None or outcome.plan.action == "refuse":
        return replace(job, rearm=False)
    assert outcome.slot is not None
    slot, before = outcome.slot.name, outcome.previous_version
    awaited = Awaited(slot, before, outcome.power_failed, outcome.version or "")
    return replace(job, confirm=awaited)
