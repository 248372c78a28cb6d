# SPDX-License-Identifier: GPL-3.0-or-later
"""What one service is, beyond its configured instances: its boards, their firmware, its runs.

Viam removes and adds an instance at every change of an attribute, so everything that an update
needs lives here, by the service's name, and outlasts the instance for a grace. Lives in the event
loop; what blocks goes through `journaled` or a thread. `end` ends all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.failures import GaveUp, NotThere
from ota_service.firmware.target import Target
from ota_service.firmware.urls import is_path
from ota_service.fleet import policy
from ota_service.fleet.around import Given, Log, Result
from ota_service.fleet.board import Board, heard
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.firmwares import Firmwares
from ota_service.fleet.groups import Groups, members_of
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.journal_rows import FirmwareRecord, GroupRecord, PortRecord, StopRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.orders import UPDATES, Purpose
from ota_service.fleet.places import Place
from ota_service.fleet.robot import Calls, Robot
from ota_service.fleet.roster import Roster, effective_target
from ota_service.fleet.run import Run
from ota_service.fleet.settings import Settings
from ota_service.fleet.sight import Sight
from ota_service.fleet.turns import Turns
from ota_service.link.ownership import SERVICE_CLAIMS, rewrite_mark
from ota_service.link.ports import canonical, describe

POLL_S = 1.0
SETTLE_S = 3.0
"""How long after a session a port may come and go by the board's own restart."""

STATE_BUSY_RETRY_S = 2.0
SAVE_RETRY_S = 5.0
STOP_LIMIT_S = 8.5
"""Boards in the middle of a slot write are back in their old firmware before that."""

_JOURNAL = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
"""A thread of its own: sessions that fill all others must not hold the journal up."""


def _open(settings: Settings) -> Journal:
    return open_journal(settings.state_dir, shared=settings.shares_state)


async def _opened(settings: Settings) -> Journal:
    """The journal, opened in a thread. Where nobody waits for it any more it is closed again."""
    opening = asyncio.ensure_future(asyncio.to_thread(_open, settings))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _close_unused(opening: asyncio.Future[Journal]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        _JOURNAL.submit(opening.result().close)


def _boards(count: int) -> str:
    return f"{count} board{'' if count == 1 else 's'}"


class _Named(logging.LoggerAdapter[logging.Logger]):
    """Puts the service's name before each line."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"{(self.extra or {})['service']}: {msg}", kwargs


@dataclass(eq=False)
class _Unfetched:
    """A firmware that could not be had for now, why, and the boards that wait for it."""

    error: GaveUp
    boards: set[Board]


class Engine:
    """One service. Implements `board.Around`."""

    def __init__(self, settings: Settings, logger: logging.Logger) -> None:
        self.settings = settings
        self.owner = f"service {settings.service}"
        self.log: Log = _Named(logger, {"service": settings.service})
        self.groups = Groups()
        self.roster = Roster(self, self.groups)
        self.runs: list[Run] = []
        self.last_run: Run | None = None
        self.error: OtaError | None = None
        self.closing = False
        self.trust: Mapping[str, Any] | None = None
        self.slots = asyncio.Semaphore(settings.max_parallel)
        self.turns = Turns(settings.max_parallel, settings.canary, self._crowd, self._on_stop)
        self.firmwares = Firmwares(settings, self.log, self._proven)
        self.robot: Robot | None = None
        self.calls = Calls(self)
        self.handle: object | None = None
        self._memory: Memory | None = None
        self._ready = asyncio.Event()
        self._unfetched: dict[str, _Unfetched] = {}
        self._looking: set[str] = set()
        self.groups.orphans = set() if settings.shares_state else None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._save_at_s = 0.0

    @property
    def boards(self) -> dict[str, Board]:
        """Its boards by their names."""
        return self.roster.boards

    # --- its life

    async def open(self) -> None:
        """Claim the boards and open the journal. Raises OtaError `config-invalid`; then `end` is
        for what was begun."""
        self._claim(self.settings)
        try:
            self._use(await _opened(self.settings))
        except OtaError as error:
            if error.code != "state-busy":
                raise
            # A module that is being restarted may overlap with its old process for seconds.
            error.remedy = (
                "It is tried again by itself; after a crash that takes seconds. Where the process "
                "named goes on, stop it, or use a state folder of your own (state_dir)."
            )
            self.error = error
            self.log.warning("%s %s", error.message, error.remedy)
            self.spawn(self._open_later())
        await self._look_at_trust()
        self.spawn(self._watch_ports())
        self.spawn(self._watch_trust())

    async def _look_at_trust(self) -> None:
        """What the status shows of this host's policy: in a thread, many files may belong to it."""
        self.trust = None if self.settings.trusting else await asyncio.to_thread(trust.shown)

    async def _watch_trust(self) -> None:
        while not self.closing:
            await asyncio.sleep(POLL_S)
            await self._look_at_trust()

    async def _open_later(self) -> None:
        while self._memory is None and not self.closing:
            await asyncio.sleep(STATE_BUSY_RETRY_S)
            with contextlib.suppress(OtaError):
                self._use(await _opened(self.settings))
                self.error = None
                self.log.info("it has the state folder now, and goes on")

    def _use(self, journal: Journal) -> None:
        if journal.warning:
            self.log.warning("%s", journal.warning)
        self._memory = Memory(journal, self.settings.service)
        self._ready.set()

    @property
    def memory(self) -> Memory:
        """The journal. Raises OtaError `state-busy` while another process has it."""
        if self._memory is None:
            raise self.error or OtaError("state-busy")
        return self._memory

    @property
    def journal_problem(self) -> OtaError | None:
        """Why the journal is kept in memory alone for now, if it is."""
        return self._memory.journal.problem if self._memory is not None else None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the service's own, kept until it is over; a failure of it is in the log."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("a background task failed", exc_info=error)
            self.error = OtaError.unforeseen(error)

    async def journaled(
        self, call: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Something that blocks for as long as a disk takes, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_JOURNAL, partial(call, *args, **kwargs))

    async def end(self) -> None:
        """End everything, with boards in a firmware that boots: sessions, tasks, claims, files."""
        self.closing = True
        active = [run for run in self.runs if not run.done.is_set()]
        for run in active:
            run.interrupted = True
            run.cancel()
        boards = [*self.boards.values(), *self.roster.retired]
        for board in boards:
            board.tell("end")
        waits = [asyncio.ensure_future(run.done.wait()) for run in active]
        waits += [asyncio.ensure_future(board.quiet.wait()) for board in boards]
        if waits:
            self.log.info("the service ends")
            await asyncio.wait(waits, timeout=STOP_LIMIT_S)
        for task in (*waits, *self._tasks):
            task.cancel()
        await asyncio.gather(*waits, *self._tasks, return_exceptions=True)
        SERVICE_CLAIMS.release(self)
        await self.firmwares.close()
        if self._memory is not None:
            journal, self._memory = self._memory.journal, None
            await self.journaled(journal.close)

    # --- configuration

    async def configure(self, settings: Settings, *, first: bool) -> None:
        """Take a configuration over, and start what follows from it by itself."""
        before = self.settings
        if not first:
            self._claim(settings)
        if settings.max_parallel != before.max_parallel:
            self.slots = asyncio.Semaphore(settings.max_parallel)
        self.settings = self.firmwares.settings = settings
        self.turns.limit, self.turns.canary = settings.max_parallel, settings.canary
        changed = self.roster.adopt(settings)
        self.turns.keep(self.roster.keys)
        self.firmwares.keep(self.roster.keys)
        if (settings.target.key, settings.boards) != (before.target.key, before.boards):
            self._forget_errors()
        await heard(self.boards.values())  # no board shows what it was to the target before
        self.spawn(self._follow_configuration(before, changed, first))

    def _forget_errors(self) -> None:
        """What went wrong was about another configuration, unless a firmware is stopped."""
        run, stopped = self.last_run, any(map(self.turns.stopped, self.roster.keys))
        if self._memory is None or stopped:
            return
        self.error = None
        if run is not None and run.done.is_set():
            run.error = None

    def _claim(self, settings: Settings) -> None:
        keys: dict[str, str] = {}
        for entry in settings.boards or ():
            named = [entry.mac, canonical(entry.port) if entry.port is not None else None]
            keys |= {key: entry.name for key in named if key is not None}
        SERVICE_CLAIMS.claim(self, self.settings.service, keys)

    async def _follow_configuration(
        self, before: Settings, changed: Sequence[str], first: bool
    ) -> None:
        settings = self.settings
        await self._ready.wait()
        service, journal = settings.service, self.memory.journal
        together = self._targets_key(settings)
        new_target = await self.journaled(journal.set_target, service, together)
        await self._recall_manifest(settings)
        keys = self.roster.keys
        stops = await self.journaled(journal.stops, service, keys)
        for key, why in stops.items():
            self.turns.note_stopped(key, why)
        if first:
            try:
                await self._begin(settings, new_target)
            finally:
                self.groups.known.set()
            return
        if not settings.auto_update:
            if changed or new_target or before.auto_update:
                await self._wait_for_a_person(settings)
            return
        names = set(changed)
        if not before.auto_update:
            names |= {n for n, b in self.boards.items() if b.shown.state in ("outdated", "unknown")}
        if settings.boards is None and new_target:
            self.start(Run(self, "configured"))
        elif names:
            self.start(Run(self, "configured", sorted(names)))

    async def _begin(self, settings: Settings, new_target: bool) -> None:
        """The first configuration of this process: what was known and what was interrupted."""
        journal = self.memory.journal
        await asyncio.to_thread(self._let_go, settings)
        await self.journaled(self._remember_boards)
        if self.boards:
            await heard(self.boards.values())
            if self.roster.reassign() is not None:  # some have another target now
                await self.journaled(self._remember_boards)
                await heard(self.boards.values())
        await self.calls.owed()
        await self._resume_groups()
        interrupted = await self.journaled(journal.take_up, settings.service)
        resumed = any(run.target.get("purpose") in (None, "activate") for run in interrupted)
        if settings.auto_update and (settings.check_on_start or new_target or resumed):
            self.start(Run(self, "resumed" if resumed and not new_target else "configured"))
        elif settings.auto_update:
            await self._seen(first=True)
        else:
            await self._wait_for_a_person(settings)

    async def _wait_for_a_person(self, settings: Settings) -> None:
        """Nothing happens by itself: say so, and show what is known without a run."""
        count, version = len(settings.boards or ()), settings.target.version
        boards = "boards as they are found" if settings.boards is None else _boards(count)
        text = '%s, target "%s"; auto_update is off: waits for the command "update"'
        self.log.info(text, boards, version)
        await self._seen(first=True)

    async def _resume_groups(self) -> None:
        """Take up, at the start, the groups that were left in the middle of their switch, or on
        their way back."""
        records = await self._groups_left()
        if self.settings.shares_state and records:  # others may be in the middle of their own
            self.groups.orphans = {record.id for record in records if self.memory.journal.alone}
            places = await asyncio.to_thread(self.roster.places, policy.Permits())
            boards = [board.shown.mac for board in self.boards.values()]
            records = self.groups.ours(records, {*boards, *(place.mac for place in places)})
        for record in records:
            self._resume_group(record, at_once=True)

    async def _resume_groups_of(
        self, here: Collection[str | None], came: Collection[str | None]
    ) -> None:
        """What is left is tried again later and later while one of its boards is there. here:
        their MACs; came: of those that have just appeared, for which it is tried at once."""
        if not (came or self.groups.left):
            return
        for record in self.groups.ours(await self._groups_left(), here):
            macs = members_of(record).keys()
            if not macs.isdisjoint(here):
                self._resume_group(record, at_once=not macs.isdisjoint(came))

    async def _groups_left(self) -> list[GroupRecord]:
        find = partial(self.memory.journal.all, GroupRecord, service=self.settings.service)
        records = await self.journaled(find)
        self.groups.forget_all_but({record.id for record in records})
        return records

    def _resume_group(self, record: GroupRecord, *, at_once: bool) -> None:
        if self.groups.due(record, at_once=at_once):
            names = list(members_of(record).values())
            self.start(Run(self, "resumed", names, resumes=record))

    async def _recall_manifest(self, settings: Settings) -> None:
        """Show the boards against the images that they are to have, without asking its server."""
        if self.roster.assignment is None:
            found = await self.firmwares.kept(settings.target, checked=False)
            if found is not None and settings is self.settings:
                self.roster.assign(settings.target, found)

    def _let_go(self, settings: Settings) -> None:
        """A process that was killed may have left a board in reset."""
        for entry in settings.boards or ():
            if entry.reset is not None:
                try:
                    with entry.reset.held():
                        pass
                except OtaError as error:
                    self.log.warning("%s: %s", entry.name, error.message)

    def _targets_key(self, settings: Settings) -> str:
        keys = [settings.target.key]
        keys += [effective_target(settings, entry).key for entry in settings.boards or ()]
        return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:32]

    def _remember_boards(self) -> None:
        """Show from the start what the journal has of the boards. In a thread."""
        memory = self.memory
        for board in list(self.boards.values()):
            entry = board.shown.entry
            mac = entry.mac if entry is not None else None
            port = entry.port if entry is not None else None
            record = (
                memory.journal.board(mac) if mac else memory.board_named(board.shown.name, port)
            )
            if record is not None:
                board.recall(memory, record)

    # --- runs

    def start(self, run: Run) -> Run:
        """Let a run go on behind."""
        target = self.settings.target
        if not run.about:
            run.about = {
                "url": target.shown_url,
                "version": target.version,
                "sha256": target.sha256,
                "purpose": run.purpose if run.purpose != "update" else None,
                "no_trust": self.settings.trusting or None,
            }
        self.runs = [other for other in self.runs if not other.done.is_set()]
        self.runs.append(run)
        if run.purpose in UPDATES:
            self.turns.resume()
            self.last_run = run
            self.error = None
        self.spawn(self._go(run))
        return run

    async def _go(self, run: Run) -> None:
        await self._ready.wait()
        try:
            await run.go()
        finally:
            if run.resumes is not None:
                self.groups.over(run.resumes)
        if run.purpose == "flash":
            await self._after_flash(run)
        if run.purpose not in UPDATES:
            return
        if run.error is not None:
            self.error = run.error
        self._log_end(run)
        if run.purpose == "update":
            self._fetch_again(run)

    def _log_end(self, run: Run) -> None:
        """What is wrong, unless its boards have said so; and how many of them have come to it."""
        error = run.error
        if error is not None and not run.told_by_boards:
            self.log.error("%s %s [%s]", error.message, error.remedy, error.code)
        (done, count), well = run.tally, run.outcome in ("succeeded", "cancelled")
        now = "staged" if run.purpose == "stage" else "up to date"
        words = f"{done} of {_boards(count)} {now}" if count else "no board was updated"
        if run.outcome == "cancelled":
            words += ", cancelled"
        if not well:
            words += f"; for more: esp32-ota remote history --id {run.id}"
        self.log.log(logging.INFO if well else logging.WARNING, "%s", words)

    async def _after_flash(self, run: Run) -> None:
        """It is as if the board had just been plugged in."""
        for order, board in run.orders.values():
            if "to" in order.report:
                await self._free([board])
                outdated = board.shown.state == "outdated"
                if outdated and self.settings.auto_update and not self.closing:
                    self.start(Run(self, "attached", [board.shown.name]))

    def _fetch_again(self, run: Run) -> None:
        """A firmware that could not be had for now is asked for again, later and later."""
        for order, board in run.orders.values():
            if not order.answer.done():
                continue  # the run ended before it was asked of anybody
            answer, key = order.answer.result(), order.target.key
            waits = self._unfetched.get(key)
            if answer.end != "no-firmware" or not isinstance(answer.error, GaveUp):
                if waits is not None:
                    waits.boards.discard(board)
            elif waits is not None:
                waits.error = answer.error
                waits.boards.add(board)
            elif self.settings.auto_update and not self.closing:
                self._unfetched[key] = _Unfetched(answer.error, {board})
                self.spawn(self._fetch_later(key))

    async def _fetch_later(self, key: str) -> None:
        """What is not published yet is looked for without a run, nor a further line in the log."""
        waits, failed, told = self._unfetched[key], 0, ""
        try:
            while True:
                failed += 1
                missing = isinstance(waits.error, NotThere)
                pause_s = policy.download_pause_s(failed, missing=missing)
                if not (missing and told == waits.error.code):
                    self.log.info("the download is tried again in %g s", pause_s)
                told = waits.error.code
                await asyncio.sleep(pause_s)
                # As it is by now: the same target may be had with another token.
                boards = [
                    board
                    for board in self.boards.values()
                    if board in waits.boards and board.target.key == key
                ]
                if not boards or self.closing or not self.settings.auto_update:
                    return
                if missing and await self._still_missing(boards[0].target):
                    continue
                run = self.start(Run(self, "resumed", [board.shown.name for board in boards]))
                await run.done.wait()
                if not waits.boards:
                    return
        finally:
            del self._unfetched[key]

    async def _still_missing(self, target: Target) -> bool:
        try:
            async with self.firmwares.had(target):
                return False  # the run finds it in the cache
        except NotThere:
            return True
        except OtaError:
            return False  # the run says what it is now

    def running(
        self, names: Sequence[str] | None, permits: policy.Permits, purpose: Purpose
    ) -> Run | None:
        """A run in progress that does what is asked for already."""
        return next((run for run in self.runs if run.covers(names, permits, purpose)), None)

    def cancel(self, names: Sequence[str] | None) -> bool:
        """Stop updates and flashes where that leaves every board bootable; whether there were
        any."""
        active = [
            run for run in self.runs if run.purpose in (*UPDATES, "flash") and not run.done.is_set()
        ]
        for run in active:
            run.cancel(names)
        for name, board in self.boards.items():
            if names is None or name in names:
                board.tell("cancel")
        return bool(active)

    # --- a firmware that is stopped

    def _crowd(self, key: str) -> int:
        """How many boards that are there have a target, those that are held among them."""
        away = ("absent", "candidate", "unsupported", "unrecognised")
        return sum(
            board.target.key == key and board.shown.state not in away
            for board in self.boards.values()
        )

    async def _proven(self, sha256: str) -> bool:
        journal = self.memory.journal
        return await self.journaled(journal.get, FirmwareRecord, sha256=sha256) is not None

    def _on_stop(self, key: str, why: OtaError) -> None:
        """Start nothing more with this target by itself, also after a restart."""
        self.log.error("%s", why)
        journal, service = self.memory.journal, self.settings.service
        self.spawn(self.journaled(journal.stop, service, key, why.message))
        self._tell_stopped({key}, why)

    def stop_all(self, keys: Collection[str], why: OtaError) -> None:
        """A group went back from these targets, as the journal has it: no board gets them."""
        for key in keys:
            self.turns.note_stopped(key, why.message)
        self._tell_stopped(keys, why)

    def _tell_stopped(self, keys: Collection[str], why: OtaError) -> None:
        self.error = why
        for board in self.boards.values():
            if board.target.key in keys:
                board.tell("stopped", value=why)
        for run in self.runs:
            if any(order.target.key in keys for order, _ in run.orders.values()):
                run.error = run.error or why

    def stopped(self, names: Sequence[str] | None) -> OtaError | None:
        """Why none of these boards may get its firmware, if so."""
        boards = [b for n, b in self.boards.items() if names is None or n in names]
        targets = {b.target.key for b in boards} or {self.settings.target.key}
        stops = [self.turns.stopped(key) for key in targets]
        return stops[0] if all(stops) else None

    async def lift(self) -> None:
        """Let stopped firmwares be tried again; nothing else."""
        self.turns.lift()
        if self.error is not None and self.error.code == "stopped":
            self.error = None
        run = self.last_run
        if run is not None and run.error is not None and run.error.code == "stopped":
            run.error = None
        await self.journaled(self.memory.journal.drop, StopRecord, service=self.settings.service)

    async def release(self, boards: Sequence[Board]) -> None:
        """Let boards that were set aside, rolled back, wrong or not ours be taken up again."""
        await self._free(boards)
        loop = asyncio.get_running_loop()
        done: list[asyncio.Future[None]] = [loop.create_future() for _ in boards]
        for board, answer in zip(boards, done, strict=True):
            board.tell("release", value=answer)
        await asyncio.gather(*done)

    async def _free(self, boards: Sequence[Board]) -> None:
        journal = self.memory.journal

        def free() -> None:
            for board in boards:
                about, entry = board.shown, board.shown.entry
                port = entry.port if entry is not None else None
                if port and about.error is not None and about.error.code in policy.NOT_THE_BOARD:
                    # What was learned of it goes, or its new USB device stays the wrong one.
                    journal.drop(PortRecord, port=port)
                info = describe(about.port) if about.port else None
                place = info.place if info is not None else None
                named = {about.mac, about.name, about.port, port, place}
                journal.release(*(name for name in named if name is not None))

        await self.journaled(free)

    async def look_around(self) -> None:
        """See now what is plugged in, and have all boards show it; opens no port."""
        await self._seen(first=True)
        await self.journaled(lambda: None)  # what another look has asked of it is there, too
        await heard(self.boards.values())

    async def forget_ports(self) -> None:
        """Take whatever is behind the configured ports for the right board."""
        for entry in self.settings.boards or ():
            if entry.port is not None:
                await self.journaled(self.memory.journal.drop, PortRecord, port=entry.port)

    def renamed(self, about: BoardState, mac: str) -> None:
        """A board that is not in `boards` goes by its MAC once that is known."""
        self.roster.renamed(about, mac)

    # --- boards that come and go

    async def _watch_ports(self) -> None:
        """Boards that are plugged in are taken up; polling opens no port."""
        while not self.closing:
            await asyncio.sleep(POLL_S)
            if self._memory is None:
                continue
            try:
                for target in self.firmwares.expiring():
                    self.spawn(self.firmwares.look_at_metadata(target))
                self._look_for_rewritten()
                await self._poll()
                self._look_at_files()
                await self._save_journal()
            except OtaError as error:
                self.log.debug("%s", error)
            except Exception:
                # Boards that are plugged in later must be found all the same.
                self.log.exception("looking at the ports failed")

    def _look_for_rewritten(self) -> None:
        """Show that nothing is known of boards that another program has flashed or restored. (The
        journal forgets by itself what it is asked for.)"""
        for board in filter(lambda board: board.free, self.boards.values()):
            mac, version = board.shown.mac, board.shown.version
            mark = rewrite_mark(mac) if mac is not None and version is not None else None
            if mark not in (None, board.shown.rewritten):  # by no clock: that may jump
                board.post(partial(Sight.rewritten, mark=mark))

    def _look_at_files(self) -> None:
        """A file on this machine may change under its version; that starts nothing. A path that
        gives no answer (a network folder) keeps nobody but itself."""
        targets = {board.target for board in self.boards.values()} | {self.settings.target}
        for target in targets:
            if is_path(target.url) and target.url not in self._looking:
                self._looking.add(target.url)
                self.spawn(self._look_at_file(target))

    async def _look_at_file(self, target: Target) -> None:
        try:
            await self.firmwares.look_at_file(target)
        finally:
            self._looking.discard(target.url)

    async def _save_journal(self) -> None:
        """Bring to the disk what it had no room for, without waiting for the next update."""
        loop, journal = asyncio.get_running_loop(), self.memory.journal
        if journal.problem is None or loop.time() < self._save_at_s:
            return
        self._save_at_s = loop.time() + SAVE_RETRY_S
        await self.journaled(journal.retry)
        if self.journal_problem is None:
            self.log.info("the journal is on the disk again")

    async def _poll(self) -> None:
        """Take up what has come."""
        settings = self.settings
        places, came = await self._seen()
        here = {place.mac for place in places if place.kind == "here"}
        await self._resume_groups_of(here, {place.mac for place in came})
        listed = settings.boards is not None
        names = [place.name if listed else str(place.port) for place in came]
        if names and settings.auto_update and not self._covered(names):
            self.log.info("plugged in: %s", ", ".join(names))
            self.start(Run(self, "attached", names))

    async def _seen(self, *, first: bool = False) -> tuple[list[Place], list[Place]]:
        """One look at what is plugged in, which all boards show but those that a session has: where
        boards are, and those of them that have come.

        A port on native USB vanishes and comes back when its board is restarted, also just
        after a session: that is neither a board that went nor one that came.
        """
        settings = self.settings
        places = await asyncio.to_thread(self.roster.places, policy.Permits())
        if settings is not self.settings:
            return [], []  # configured meanwhile
        if settings.boards is None:
            if not settings.auto_update:
                await self._show_found(places)
            self._show_gone({self.roster.of(place) for place in places})
        return places, [place for place in places if self._came_or_went(place, first=first)]

    async def _show_found(self, places: Iterable[Place]) -> None:
        """What no run takes up is seen all the same, with what the journal has of it."""
        fresh = [(self.roster.take(p), p) for p in places if self.roster.of(p) is None]

        def remember() -> None:
            for board, place in fresh:
                record = self.memory.journal.board(place.mac) if place.mac is not None else None
                if record is not None:
                    board.recall(self.memory, record)

        if fresh:
            await self.journaled(remember)
        for board, place in fresh:
            board.tell("came", value=place)

    def _show_gone(self, here: Collection[Board | None]) -> None:
        """Boards that were found by themselves, and are at none of the ports any more."""
        for board in self.boards.values():
            about = board.shown
            if self._at_rest(board) and about.state != "absent" and board not in here:
                board.tell("gone", value=OtaError("port-missing", board=about.name))

    def _came_or_went(self, place: Place, *, first: bool) -> bool:
        """Show a board that was unplugged as absent; whether a board has come."""
        board = self.roster.of(place)
        if board is None:
            return self.settings.boards is None and place.kind in ("here", "candidate")
        if not self._at_rest(board):
            return False
        absent = board.shown.state == "absent"
        if place.kind == "absent" and not absent:
            board.tell("gone", value=place.error)
        elif place.kind in ("here", "candidate") and (absent or first):
            board.tell("came", value=place)
            return True
        elif first and place.error is not None:
            board.tell("gone", value=place.error)
        return False

    @staticmethod
    def _at_rest(board: Board) -> bool:
        """Whether no session has a board, nor had a moment ago."""
        return board.free and asyncio.get_running_loop().time() - board.left_s > SETTLE_S

    def _covered(self, names: Sequence[str]) -> bool:
        """Whether a run that is still looking for its boards will find these."""
        return any(
            run.stage == "checking" and (run.names is None or set(names) <= set(run.names))
            for run in self.runs
            if not run.done.is_set()
        ) or self.groups.of(names)
