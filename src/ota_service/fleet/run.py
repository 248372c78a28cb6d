# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: boards brought to their targets, in parallel, each by a session in a thread.

A run lives in a task of its own: it outlives the command that started it and the resource that
was configured. One failing board never stops another.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ota_service.board.link import bauds_to_try
from ota_service.board.ports import require_exists
from ota_service.board.session import Awaited, Image, Job, Outcome
from ota_service.errors import OtaError
from ota_service.fleet.board_state import iso, utc_now
from ota_service.fleet.hooks import BoardWork, SessionHooks
from ota_service.fleet.sessions import EXECUTOR, run_session
from ota_service.fleet.settings import Override

if TYPE_CHECKING:
    from ota_service.fleet.core import Core

LOGGER = logging.getLogger("ota_service.fleet")

Trigger = Literal["configured", "command", "attached", "resumed"]
RunOutcome = Literal["running", "succeeded", "partly", "failed", "cancelled"]
Purpose = Literal["update", "plan", "version", "verify", "rollback", "flash"]
READS = ("plan", "version", "verify")
"""Purposes that write nothing."""

BUSY_POLL_S = 1.0
PLAN_POLL_S = 0.1
RETRY_PAUSES_S = (1.0, 5.0, 20.0, 60.0)
CANARY_ABOVE = 3
STOP_FROM_BOARDS = 4


@dataclass(slots=True, eq=False)
class Run:
    """A run and its boards.

    names: the boards asked for; None: all. purpose: "update", or a read that writes nothing.
    force: although the version is equal. override: what is overridden. rescue: the MAC of the one
    board, on which nothing boots. results: for reads, by board name.
    """

    core: Core
    trigger: Trigger
    names: Sequence[str] | None = None
    purpose: Purpose = "update"
    force: bool = False
    override: frozenset[Override] = frozenset()
    rescue: str | None = None
    probe: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started_at: datetime = field(default_factory=utc_now)
    finished_at: datetime | None = None
    outcome: RunOutcome = "running"
    error: OtaError | None = None
    stage: Literal["checking", "downloading", "updating", "done"] = "checking"
    works: dict[str, BoardWork] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    images: dict[str, Image | OtaError] = field(default_factory=dict)
    _cancelled: OtaError | None = None
    _stopped: OtaError | None = None
    _stopping: bool = False

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
        return out

    @property
    def reply(self) -> dict[str, Any]:
        """What a read replies, under its key; empty for an update."""
        if self.purpose == "update" or not self.results:
            return {}
        return {"plan" if self.purpose == "plan" else "boards": dict(self.results)}

    @property
    def unfinished(self) -> list[str]:
        """The boards that it still has to do with."""
        if self.stage == "checking":
            return list(self.names) if self.names is not None else list(self.core.boards)
        return [w.board.name for w in self.works.values() if not w.report.get("ended")]

    @property
    def idle(self) -> bool:
        """Whether nothing goes on: it is over, or all its boards pause before a retry."""
        if self.stage == "done":
            return True
        works = [work for work in self.works.values() if not work.report.get("ended")]
        return self.stage == "updating" and bool(works) and all(w.pausing for w in works)

    def cancel(self, why: OtaError | None = None) -> None:
        """Stop where that leaves every board bootable; boards behind the switch finish."""
        self._cancelled = why or OtaError("cancelled")
        for work in self.works.values():
            work.cancel.set()
        self.core.wake()

    def cancel_boards(self, names: Sequence[str] | None) -> None:
        """As `cancel`, for some boards; with None, or all of them, for the whole run."""
        if names is None or set(self.works) <= set(names):
            self.cancel()
            return
        for name in names:
            if name in self.works:
                self.works[name].cancel.set()

    def refuse(self, why: OtaError) -> None:
        """Look where the boards are, but take none up."""
        self._cancelled = self._stopped = why

    def stop(self) -> None:
        """The process ends: also stop watching boots."""
        self._stopping = True
        self.cancel()
        for work in self.works.values():
            work.stop.set()

    async def go(self) -> None:
        """The whole run; never raises."""
        core = self.core
        try:
            await core.journaled(self._journal_start)
            await self._go()
        except OtaError as error:
            self._fail(error)
        except Exception as error:
            LOGGER.exception("run %s failed", self.id)
            self._fail(OtaError("internal", f"{type(error).__name__}: {error}"))
        finally:
            self.finished_at = utc_now()
            self.stage = "done"
            if self.outcome == "running":
                self.outcome = self._judge()
            try:
                await core.journaled(self._journal_end)
            except Exception:
                LOGGER.exception("run %s: its end could not be noted", self.id)
            self.done.set()
            if self.purpose == "update":
                LOGGER.info("run %s: %s", self.id, self.outcome)

    def _fail(self, error: OtaError) -> None:
        self.outcome = "cancelled" if error.code == "cancelled" else "failed"
        self.error = error

    async def _go(self) -> None:
        core = self.core
        self.works = {
            work.board.name: work
            for work in await core.place_boards(self.names, self.probe, self.by_person, self)
        }
        if self.probe:
            await core.probe(self, list(self.works.values()))
        todo = [work for work in self.works.values() if work.place.kind == "here"]
        for work in self.works.values():
            if work not in todo:
                self._not_here(work)
        if self.purpose == "update":
            todo = [work for work in todo if not await core.journaled(partial(self._spared, work))]
        if not todo:
            if self.purpose == "update" and all(
                work.board.state in ("absent", "candidate") for work in self.works.values()
            ):
                self._fail(self._nobody())
            return
        if self.purpose in ("update", "plan", "verify"):
            await self._download({work.target.key: work for work in todo})
        self.stage = "updating"
        self._check_cancelled()
        groups: dict[str, list[BoardWork]] = {}
        for work in todo:
            groups.setdefault(work.target.key, []).append(work)
        await asyncio.gather(*(self._group(key, works) for key, works in groups.items()))

    async def _group(self, key: str, works: list[BoardWork]) -> None:
        """The boards of one target: with a canary first, where nobody has run it yet."""
        image = self.images.get(key)
        rest = list(works)
        if self.purpose == "update" and isinstance(image, Image) and self.core.settings.canary:
            known = await self.core.journaled(
                partial(self.core.memory.journal.firmware_confirmed, image.sha256)
            )
            while not known and len(works) > CANARY_ABOVE and rest:
                canary = rest.pop(0)
                LOGGER.info("%s: goes first, %d wait for it", canary.board.name, len(rest))
                await self._board(canary)
                if canary.board.state == "up_to_date":
                    break
                if _failed_to_boot(canary):
                    self._stop_group(works, rest)
                    return
                # It failed by its link or itself, which says nothing of the firmware.

        async def one(work: BoardWork) -> None:
            await self._board(work)
            if self.purpose == "update":
                self._watch_failures(works)

        await asyncio.gather(*(one(work) for work in rest))

    def _watch_failures(self, works: list[BoardWork]) -> None:
        """One bad release must not take a whole robot down."""
        ended = [w for w in works if w.report.get("ended") and w.report.get("reason") != "held"]
        bad = sum(_failed_to_boot(work) for work in ended)
        if len(ended) >= STOP_FROM_BOARDS and bad * 2 > len(ended):
            self._stop_group(works, [w for w in works if not w.report.get("ended")])

    def _stop_group(self, works: list[BoardWork], rest: list[BoardWork]) -> None:
        ended = [work for work in works if work.report.get("ended")]
        bad = sum(_failed_to_boot(work) for work in ended)
        if self._stopped is None:
            self._stopped = OtaError(
                "stopped", f"stopped: {bad} of {len(ended)} boards failed to boot this firmware"
            )
            self.error = self._stopped
            LOGGER.error("%s", self._stopped)
            self.core.stop_target(self._stopped.message)
        for work in rest:
            work.cancel.set()
            if "phases" not in work.report:
                work.report |= {"ended": True, "outcome": "stopped"}
                work.board.phase = None
                if work.board.version != work.target.version:
                    work.board.state = "outdated"
        self.core.wake()

    @property
    def by_person(self) -> bool:
        """Whether a person asked for it, who may have ports opened that nothing else opens."""
        return self.trigger == "command"

    @property
    def why(self) -> str:
        """Why boards are restarted, for the log: what started the run, and what it is for."""
        return f"{self.trigger}, {self.purpose}" if self.purpose != "update" else self.trigger

    def _nobody(self) -> OtaError:
        candidates = [w.board.port for w in self.works.values() if w.board.state == "candidate"]
        if candidates:
            return OtaError(
                "no-board",
                f"No board is known yet; {', '.join(map(str, candidates))} may have one.",
                remedy="Call update once by hand, or list the boards in boards.",
            )
        return OtaError("no-board")

    def _not_here(self, work: BoardWork) -> None:
        place, board = work.place, work.board
        work.report |= {"ended": True, "outcome": board.state}
        error = place.error
        if error is not None:
            work.report["error"] = error.to_dict()
            refused = {"action": "refuse", "reason": error.message, "code": error.code}
            if self.purpose == "plan":
                self.results[board.name] = refused
            elif self.purpose != "update":
                self.results[board.name] = {"error": error.to_dict()}

    def _spared(self, work: BoardWork) -> bool:
        """Whether a board needs no session: held by an earlier failure, or known to be right."""
        core, board, target = self.core, work.board, work.target
        mac = work.place.mac
        if mac is None:
            return False
        record = core.memory.attempt(mac, target.key)
        board.attempts = record.failed
        if record.state in ("rolled_back", "set_aside", "held"):
            board.state = "set_aside" if record.state == "set_aside" else "rolled_back"
            code = record.code or "boot-failed"
            board.error = OtaError(
                code,
                record.message or "",
                board=board.name,
                remedy="Configure a new version, or call release for this board to try again.",
            )
            work.report |= {"ended": True, "outcome": board.state, "reason": "held"}
            return True
        tried = record.failed > 0 or record.unjudged
        if not self.by_person and not tried and core.stands_in(work):
            board.state = "up_to_date"
            board.error = None
            work.report |= {"ended": True, "outcome": board.state, "reason": "as last read"}
            return True
        return False

    # --- the firmware

    async def _download(self, by_target: dict[str, BoardWork]) -> None:
        self.stage = "downloading"

        async def one(key: str, work: BoardWork) -> None:
            try:
                self.images[key] = await self.core.image(work.target)
            except OtaError as error:
                self.images[key] = error
                if work.target.key == self.core.settings.target.key:
                    self.error = error
                LOGGER.error("%s [%s]", error.message, error.code)

        await asyncio.gather(*(one(key, work) for key, work in by_target.items()))

    # --- one board

    async def _board(self, work: BoardWork) -> None:
        board = work.board
        try:
            if self.purpose == "plan" and await self._plan_of_holder(work):
                return
            async with self.core.board_lock(board.name):
                await self._attempts(work)
        except OtaError as error:
            error.board = board.name
            work.report["error"] = error.to_dict()
            self._show_error(work, error)
            LOGGER.error("%s", error)
        except Exception as error:
            LOGGER.exception("%s: the session failed", board.name)
            board.set_error(OtaError("internal", f"{type(error).__name__}: {error}"))
        finally:
            board.phase = board.progress = None
            board.left_s = time.monotonic()
            work.report |= {"ended": True, "outcome": board.state}
            await self.core.journaled(partial(self._journal_board, work))

    async def _plan_of_holder(self, work: BoardWork) -> bool:
        """Where a run holds the board, its plan is the reply: the board is not looked at twice."""
        name = work.board.name
        while (holder := self.core.holder(name, self)) is not None:
            if holder.plan is not None:
                self.results[name] = dict(holder.plan.to_dict())
                return True
            await self.core.pause(PLAN_POLL_S, work)
            self._check_cancelled(work)
        return False

    def _show_error(self, work: BoardWork, error: OtaError) -> None:
        """A read's error is its reply; it says nothing of the board's update."""
        if self.purpose == "update":
            work.board.set_error(error)
            if work.set_aside:
                work.board.state = "set_aside"
        elif self.purpose == "plan":
            refused = {"action": "refuse", "reason": error.message, "code": error.code}
            self.results[work.board.name] = refused
        else:
            self.results[work.board.name] = {"error": error.to_dict()}

    async def _attempts(self, work: BoardWork) -> None:
        """Session after session, until the board's outcome stands."""
        core, board = self.core, work.board
        image = self.images.get(work.target.key)
        if isinstance(image, OtaError):
            if self.purpose != "update":
                raise image
            self._without_firmware(work, image)
            return
        work.project = image.parsed.descriptor.project if image is not None else ""
        job = core.job(work, image, self)
        known = await core.journaled(partial(core.memory.journal.fallback_baud, str(board.port)))
        if known is not None and known < job.baud:
            job = core.slower(job, known)  # what the port fell back to; `release` forgets it
        if (awaited := await core.journaled(partial(self._awaited, work))) is not None:
            if self.purpose != "update":
                raise OtaError("awaiting-confirmation", board=board.name)
            await self._leave_alone(work, awaited[1])
            job = core.confirming(job, awaited[0])
        failed = board.attempts
        while True:
            try:
                outcome = await self._session(work, job)
            except OtaError as error:
                failed, job = await self._failed(work, job, error, failed)
                continue
            if outcome.end != "awaiting_confirmation" or self.purpose != "update":
                await core.journaled(partial(self._ended, work, image, outcome))
                return
            board.state = "awaiting_confirmation"
            board.confirmed = False
            board.error = OtaError("awaiting-confirmation", board=board.name)
            await self._leave_alone(work, core.settings.confirm_timeout_s)
            job = core.after_waiting(job, outcome)

    def _without_firmware(self, work: BoardWork, error: OtaError) -> None:
        board = work.board
        work.report["error"] = error.to_dict()
        if board.version is not None and board.version != work.target.version:
            board.state = "outdated"
        if work.target.key != self.core.settings.target.key:
            board.error = error  # a pinned board's own firmware concerns that board

    def _awaited(self, work: BoardWork) -> tuple[Awaited, float] | None:
        mac = work.place.mac
        record = self.core.memory.journal.pending(mac) if mac is not None else None
        if record is None:
            return None
        left_s = (record.until - utc_now()).total_seconds()
        return Awaited(record.slot, record.previous_version), max(0.0, left_s)

    async def _leave_alone(self, work: BoardWork, seconds: float) -> None:
        """A board that may be in PENDING_VERIFY is not reset until its app had its time."""
        work.board.state = "awaiting_confirmation"
        work.board.phase = "waiting"
        await self.core.pause(seconds, work)
        if self._stopping or work.cancel.is_set():
            raise OtaError("awaiting-confirmation", board=work.board.name)

    async def _session(self, work: BoardWork, job: Job) -> Outcome:
        core, board = self.core, work.board
        board.phase = "waiting"
        if self.purpose == "update":
            board.state = "updating"
        async with core.slots:
            self._check_cancelled(work)
            # At the last moment: a robot that drives must not lose its motor board.
            if not await core.may_restart(board.name):
                raise OtaError("not-allowed-now", board=board.name)
            hooks = SessionHooks(
                work,
                core.memory,
                confirm_timeout_s=core.settings.confirm_timeout_s,
                writes=self.purpose == "update",
                why=self.why,
                max_attempts=core.settings.max_attempts,
            )
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(
                    EXECUTOR, run_session, str(board.port), core.owner, job, hooks
                )
            finally:
                hooks.end()

    async def _failed(
        self, work: BoardWork, job: Job, error: OtaError, failed: int
    ) -> tuple[int, Job]:
        """What a failed session means: wait, try again, or give up (raises)."""
        core, board = self.core, work.board
        error.board = board.name
        if error.code in ("port-busy", "not-allowed-now"):
            if self.purpose != "update":
                raise error  # a reply is waited for; a run waits by itself
            board.error = error
            board.phase = "waiting"
            await core.pause(BUSY_POLL_S, work)
            self._check_cancelled(work)
            return failed, job
        mac = board.mac
        if mac is not None and error.code in ("link-lost", "no-answer"):
            await core.journaled(
                partial(core.memory.journal.record_carried, mac, str(board.port), 0)
            )
        if self.purpose == "update" and mac is not None and work.plan is not None:
            record = await core.journaled(
                partial(
                    core.memory.journal.end_attempt,
                    mac,
                    work.target.key,
                    succeeded=False,
                    code=error.code,
                    message=error.message,
                )
            )
            failed = record.failed
        elif error.kind.counts:
            failed += 1
        board.attempts = failed
        if not error.kind.counts and not error.kind.transient:
            raise error
        if error.code == "changed-elsewhere":
            await core.journaled(partial(self._set_aside, work, error))
            raise error
        if failed >= core.settings.max_attempts and self.purpose == "update":
            await core.journaled(partial(self._set_aside, work, error))
            raise error
        if not error.kind.transient or (self.purpose != "update" and failed > 1):
            raise error
        board.error = error
        board.state = "outdated" if self.purpose == "update" else board.state
        LOGGER.warning("%s: %s; trying again", board.name, error.message)
        work.pausing = True
        try:
            await core.pause(RETRY_PAUSES_S[min(failed, len(RETRY_PAUSES_S)) - 1], work)
        finally:
            work.pausing = False
        self._check_cancelled(work)
        require_exists(str(board.port), board.name)
        slower = bauds_to_try(job.baud)
        return failed, core.slower(job, slower[1] if len(slower) > 1 else slower[0])

    def _set_aside(self, work: BoardWork, error: OtaError) -> None:
        work.set_aside = True
        key = work.board.mac or work.board.name
        self.core.memory.journal.set_attempt_state(
            key, work.target.key, "set_aside", code=error.code, message=error.message
        )

    def _check_cancelled(self, work: BoardWork | None = None) -> None:
        if self._cancelled is not None:
            raise self._cancelled
        if work is not None and work.cancel.is_set():
            raise self._stopped or OtaError("cancelled", board=work.board.name)

    # --- how it ended; called in threads

    def _ended(self, work: BoardWork, image: Image | None, outcome: Outcome) -> None:
        core, board = self.core, work.board
        if outcome.found is not None:
            core.rename(board, outcome.found.chip.mac)
        if outcome.baud is not None and outcome.baud < core.settings.baud:
            core.memory.journal.record_baud(str(board.port), outcome.baud)
        if self.purpose in READS:
            self._read(work, outcome)
            return
        if self.purpose == "rollback":
            self._went_back(work, outcome)
            return
        if outcome.error is not None:
            outcome.error.board = board.name
        board.error = outcome.error
        if outcome.version is not None:
            board.version = outcome.version
            board.version_read_at = utc_now()
            work.report["to"] = outcome.version
        if outcome.boot_log:
            work.report["boot_log"] = list(outcome.boot_log)
        if outcome.end == "refused":
            assert outcome.error is not None
            self._refused(work, outcome.error)
            return
        board.confirmed = outcome.confirmed if outcome.confirmed is not None else board.confirmed
        if outcome.end == "up_to_date":
            core.memory.succeeded(outcome, image, work.target.key)
            board.state = "up_to_date"
            board.attempts = 0
        elif outcome.end in ("rolled_back", "failed"):
            core.memory.rolled_back(outcome, work.target.key)
            board.confirmed = None
            board.state = outcome.end
            board.attempts += 1
        elif outcome.end == "unjudged":
            assert outcome.error is not None
            core.memory.unjudged(outcome, outcome.error, work.target.key)
            board.confirmed = None
            board.set_error(outcome.error)
        if outcome.slot is not None:
            board.running = core.running_of(outcome, image)
        if outcome.error is not None and outcome.error.code == "no-reset":
            board.running = {}
        if outcome.error is not None:
            work.report["error"] = outcome.error.to_dict()
            LOGGER.error("%s", outcome.error)

    def _refused(self, work: BoardWork, error: OtaError) -> None:
        board = work.board
        board.set_error(error)
        work.report["error"] = error.to_dict()
        LOGGER.warning("%s", error)
        info = work.place.info
        if error.code == "other-project" and board.entry is None and info is not None:
            self.core.memory.journal.mark_not_ours(info.place, error.message, board.mac)

    def _went_back(self, work: BoardWork, outcome: Outcome) -> None:
        """A person's rollback: the board is held until its target changes, or `release`."""
        core, board, found = self.core, work.board, outcome.found
        assert found is not None
        assert outcome.slot is not None
        mac, name = found.chip.mac, outcome.slot.name
        fact = core.memory.facts(mac, work.target.key).slots.get(name)
        known = fact is not None and fact.version is not None
        core.memory.rolled_back(outcome, work.target.key, held=outcome.error is None)
        board.state = "rolled_back" if outcome.end == "rolled_back" else "failed"
        board.version, board.version_read_at = outcome.version, utc_now()
        board.confirmed = outcome.confirmed
        board.running = core.running_of(outcome, None)
        board.error = outcome.error
        reply: dict[str, Any] = {
            "slot": name,
            "version": outcome.version or "",
            "version_from": "journal" if known else "descriptor",
        }
        if outcome.error is not None:
            outcome.error.board = board.name
            reply["error"] = outcome.error.to_dict()
        work.report |= {"to": outcome.version, "slot": name}
        self.results[board.name] = reply

    def _read(self, work: BoardWork, outcome: Outcome) -> None:
        name = work.board.name
        if self.purpose == "plan":
            assert outcome.plan is not None
            self.results[name] = dict(outcome.plan.to_dict())
            return
        found = outcome.found
        assert found is not None
        if self.purpose == "version" and found.nvs is not None:
            self.results[name] = {"version": found.version, "version_read_at": iso(utc_now())}
        elif self.purpose == "verify" and found.running.partition is not None:
            self.results[name] = {"matches": found.holds(found.running.partition)}
        else:
            problem = found.problem or found.running.why or OtaError("otadata-invalid")
            self.results[name] = {"error": problem.to_dict()}

    def _judge(self) -> RunOutcome:
        if self._cancelled is not None and self._cancelled.code == "cancelled":
            return "cancelled"
        if self.purpose != "update":
            return "succeeded" if self.results else "failed"
        states = [
            work.board.state
            for work in self.works.values()
            if work.board.state not in ("candidate", "unrecognised") or work.board.entry is not None
        ]
        good = sum(state == "up_to_date" for state in states)
        if good == len(states) and states:
            return "succeeded"
        return "partly" if good else "failed"

    # --- the journal; called in threads

    def _journal_start(self) -> None:
        target = self.core.settings.target
        self.core.memory.journal.start_run(
            self.core.settings.service,
            self.trigger,
            {
                "url": target.shown_url,
                "version": target.version,
                "sha256": target.sha256,
                "purpose": self.purpose if self.purpose != "update" else None,
            },
            run_id=self.id,
        )

    def _journal_board(self, work: BoardWork) -> None:
        report = {key: value for key, value in work.report.items() if key != "ended"}
        report["port"] = work.board.port
        self.core.memory.journal.update_run_board(self.id, work.board.name, report)

    def _journal_end(self) -> None:
        for work in self.works.values():
            if work.place.kind != "here" or "phases" not in work.report:
                self._journal_board(work)
        self.core.memory.journal.finish_run(
            self.id,
            self.outcome,
            error=self.error.to_dict() if self.error is not None else None,
            result=self.reply or None,
            interrupted=self._stopping and self.purpose == "update",
        )


def _failed_to_boot(work: BoardWork) -> bool:
    error = work.report.get("error")
    return isinstance(error, dict) and error.get("code") == "boot-failed"
