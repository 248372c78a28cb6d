# SPDX-License-Identifier: GPL-3.0-or-later
"""What one service is, beyond its configured instances: boards, firmware, runs.

Viam removes and adds an instance at every change of an attribute, so everything that an update
needs lives here, by the service's name, and outlasts the instance for a grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ota_service.board.ownership import SERVICE_CLAIMS
from ota_service.board.ports import PortInfo, canonical, describe, list_ports
from ota_service.board.session import Awaited, Image, Job, Outcome
from ota_service.errors import OtaError
from ota_service.firmware.check import Firmware
from ota_service.firmware.download import GaveUp
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from ota_service.fleet.board_state import BoardState, Progress
from ota_service.fleet.hooks import BoardWork
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.memory import Memory
from ota_service.fleet.places import Place, place_entry, place_found, stands_in
from ota_service.fleet.run import Purpose, Run, Trigger
from ota_service.fleet.sessions import EXECUTOR, boot_rules, mac_at
from ota_service.fleet.settings import BoardEntry, Override, Settings

LOGGER = logging.getLogger("ota_service.fleet")

POLL_S = 1.0
SETTLE_S = 3.0
"""How long after a session a port may come and go by the board's own restart."""

STATE_BUSY_RETRY_S = 2.0
SAVE_RETRY_S = 5.0
DOWNLOAD_PAUSES_S = (30.0, 60.0, 120.0, 300.0, 600.0)
"""Before a download that was given up is tried again: a machine may start before its network."""
MERGED_BYTES = 16 << 20
"""A Merged Binary may be as large as a flash, whatever the limit for App Images is."""
STOP_LIMIT_S = 8.0
"""Boards in the middle of a slot write are back in their old firmware before that."""

Result = TypeVar("Result")
RestartAllowed = Callable[[], Awaitable[bool]]


def effective_target(settings: Settings, entry: BoardEntry | None) -> Target:
    """A board's own target where it is pinned, else the service's."""
    if entry is None:
        return settings.target
    return settings.target.pinned(url=entry.url, version=entry.version, sha256=entry.sha256)


def _is_wrong(board: BoardState) -> bool:
    return board.error is not None and board.error.code == "wrong-board"


class Core:
    """One service's state. Lives in the event loop; what blocks goes through `journaled`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.owner = f"service {settings.service}"
        self.boards: dict[str, BoardState] = {}
        self.runs: list[Run] = []
        self.last_run: Run | None = None
        self.error: OtaError | None = None
        self.download: Progress | None = None
        self.images: dict[str, Image] = {}
        self.notices: dict[str, str] = {}
        self._failed_downloads = 0
        self.closing = False
        self.slots = asyncio.Semaphore(settings.max_parallel)
        self.restart_allowed: RestartAllowed | None = None
        self.handle: object | None = None
        self._memory: Memory | None = None
        self._ready = asyncio.Event()
        self._locks: dict[str, asyncio.Lock] = {}
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._save_at_s = 0.0
        self._supply = Supply(settings.cache_dir)

    # --- its life

    async def open(self, settings: Settings) -> None:
        """Claim the boards and open the journal. Raises OtaError `config-invalid`."""
        self._claim(settings)
        try:
            self._use(await asyncio.to_thread(open_journal, settings.state_dir))
        except OtaError as error:
            if error.code != "state-busy":
                SERVICE_CLAIMS.release(settings.service)
                raise
            # A module that is being restarted may overlap with its old process for seconds.
            self.error = error
            LOGGER.error("%s", error)
            self.spawn(self._open_later(settings))
        self.spawn(self._watch_ports())

    async def _open_later(self, settings: Settings) -> None:
        while self._memory is None and not self.closing:
            await asyncio.sleep(STATE_BUSY_RETRY_S)
            with contextlib.suppress(OtaError):
                self._use(await asyncio.to_thread(open_journal, settings.state_dir))
                self.error = None

    def _use(self, journal: Journal) -> None:
        if journal.warning:
            LOGGER.warning("%s", journal.warning)
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

    async def may_restart(self, name: str) -> bool:
        """Whether a board may be restarted now: the sensor of `allow_restart` says so, or a person
        whose update waits for this board overrides it, also for the run that has it before."""
        if self.restart_allowed is None or any(
            "not-allowed-now" in run.override and (run.names is None or name in run.names)
            for run in self.runs
            if not run.done.is_set()
        ):
            return True
        return await self.restart_allowed()

    async def allow_again(self) -> None:
        """A person overrides it: a target that was stopped for all is tried again."""
        await self.journaled(partial(self.memory.journal.unstop_target, self.settings.service))

    def stop_target(self, reason: str) -> None:
        """Start nothing more with this target by itself, also after a restart."""
        journal = self.memory.journal
        self.spawn(self.journaled(partial(journal.stop_target, self.settings.service, reason)))

    async def stopped(self) -> OtaError | None:
        """Why nothing is started with this target by itself, if so."""
        journal = self.memory.journal
        record = await self.journaled(partial(journal.target, self.settings.service))
        if record is None or record.stopped is None:
            return None
        return OtaError("stopped", record.stopped)

    def spawn(self, work: Awaitable[Any]) -> None:
        """A task of the service's own, kept until it is over."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Stop everything, with boards in a firmware that boots."""
        self.closing = True
        active = [run for run in self.runs if not run.done.is_set()]
        for run in active:
            run.stop()
        self.wake()
        if active:
            waits = [asyncio.ensure_future(run.done.wait()) for run in active]
            await asyncio.wait(waits, timeout=STOP_LIMIT_S)
            for wait in waits:
                wait.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        SERVICE_CLAIMS.release(self.settings.service)
        self._supply.close()
        if self._memory is not None:
            journal, self._memory = self._memory.journal, None
            await asyncio.to_thread(journal.close)

    async def configure(self, settings: Settings, *, first: bool) -> None:
        """Take a configuration over, and start what follows from it by itself."""
        before = self.settings
        if not first:
            self._claim(settings)
        changed = self._adopt(settings, before, first)
        self.spawn(self._follow_configuration(before, changed, first))

    def _claim(self, settings: Settings) -> None:
        keys = set()
        for entry in settings.boards or ():
            keys |= {key for key in (entry.mac,) if key is not None}
            keys |= {canonical(entry.port)} if entry.port is not None else set()
        SERVICE_CLAIMS.claim(settings.service, keys)

    def _adopt(self, settings: Settings, before: Settings, first: bool) -> list[str]:
        """Take the settings; returns the boards that are new or have another target now."""
        old = {} if first else dict(self.boards)
        self.settings = settings
        if settings.max_parallel != before.max_parallel:
            self.slots = asyncio.Semaphore(settings.max_parallel)
        if settings.boards is None:
            kept = {name: board for name, board in old.items() if board.entry is None}
            self.boards = kept
            same = effective_target(before, None).key == settings.target.key
            return [] if same and not first else list(kept)
        changed = []
        self.boards = {}
        for entry in settings.boards:
            board = old.get(entry.name)
            where = (entry.mac, entry.port)
            if board is None or board.entry is None or where != (board.entry.mac, board.entry.port):
                board = BoardState(entry.name)
                changed.append(entry.name)
            elif effective_target(before, board.entry).key != effective_target(settings, entry).key:
                changed.append(entry.name)
            board.entry = entry
            self.boards[entry.name] = board
        return changed

    async def _follow_configuration(
        self, before: Settings, changed: Sequence[str], first: bool
    ) -> None:
        settings = self.settings
        await self._ready.wait()
        service, key = settings.service, self._targets_key(settings)
        journal = self.memory.journal
        new_target = await asyncio.to_thread(journal.set_target, service, key)
        if first:
            await asyncio.to_thread(self._remember_boards)
            interrupted = await asyncio.to_thread(journal.interrupted_runs, service)
            for run in interrupted:
                await asyncio.to_thread(journal.take_up, run.id)
            resumed = any(run.target.get("purpose") is None for run in interrupted)
            if settings.auto_update and (settings.check_on_start or new_target or resumed):
                self.start("resumed" if resumed and not new_target else "configured")
            elif settings.boards is not None:
                await self.place_boards(None, False, False, None)
            return
        names = set(changed)
        if settings.auto_update and not before.auto_update:
            names |= {b.name for b in self.boards.values() if b.state in ("outdated", "unknown")}
        self._redirect()
        if not settings.auto_update:
            return
        if settings.boards is None and new_target:
            self.start("configured")
        elif names:
            self.start("configured", sorted(names))

    def _redirect(self) -> None:
        """Boards that are on their way to a target that is no longer theirs stop before the
        switch; those behind it finish first."""
        for run in self.runs:
            for work in run.works.values():
                board = self.boards.get(work.board.name)
                gone = board is not work.board
                target = effective_target(self.settings, work.board.entry)
                if gone or target.key != work.target.key:
                    work.cancel.set()
        self.wake()

    @staticmethod
    def _targets_key(settings: Settings) -> str:
        keys = [settings.target.key]
        keys += [effective_target(settings, entry).key for entry in settings.boards or ()]
        return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:32]

    def _remember_boards(self) -> None:
        """Show from the start what the journal has of the boards."""
        for board in self.boards.values():
            entry = board.entry
            mac = entry.mac if entry is not None else None
            record = self.memory.board(mac) if mac else self.memory.board_named(board.name)
            if record is None:
                continue
            board.mac, board.chip, board.flash_bytes = record.mac, record.chip, record.flash_bytes
            board.version, board.version_read_at = record.version, record.version_read_at
            board.confirmed = record.confirmed
            shown = {"slot": record.slot, "project": record.project}
            shown["app_version"] = record.app_version
            board.running = {key: value for key, value in shown.items() if value is not None}
            target = effective_target(self.settings, entry)
            if record.version is None:
                continue
            if record.version != target.version:
                board.state = "outdated"
            elif self.memory.is_as_read(record):
                board.state = "up_to_date"

    # --- runs

    def start(
        self,
        trigger: Trigger,
        names: Sequence[str] | None = None,
        *,
        purpose: Purpose = "update",
        force: bool = False,
        override: frozenset[Override] = frozenset(),
        rescue: str | None = None,
        probe: bool = False,
    ) -> Run:
        """Begin a run; boards that another run holds wait for it."""
        return self.begin(Run(self, trigger, names, purpose, force, override, rescue, probe))

    def begin(self, run: Run) -> Run:
        """Let a run go on behind."""
        self.runs = [other for other in self.runs if not other.done.is_set()]
        self.runs.append(run)
        if run.purpose == "update":
            self.last_run = run
            self.error = None
        self.spawn(self._go(run))
        return run

    async def _go(self, run: Run) -> None:
        await self._ready.wait()
        if run.trigger != "command" and (stopped := await self.stopped()) is not None:
            run.refuse(stopped)
        await run.go()
        if run.purpose == "update":
            if run.error is not None:
                self.error = run.error
            self.spawn(self._download_again(run))

    async def _download_again(self, run: Run) -> None:
        """A download that failed by what may pass is tried again by itself, later and later."""
        if not any(isinstance(error, GaveUp) for error in run.images.values()):
            self._failed_downloads = 0
            return
        key = self._targets_key(self.settings)
        pause_s = DOWNLOAD_PAUSES_S[min(self._failed_downloads, len(DOWNLOAD_PAUSES_S) - 1)]
        self._failed_downloads += 1
        if not self.settings.auto_update or self.closing:
            return
        LOGGER.info("the download is tried again in %g s", pause_s)
        await asyncio.sleep(pause_s)
        same = self.last_run is run and key == self._targets_key(self.settings)
        if same and self.settings.auto_update and not self.closing:
            self.start("resumed", run.names)

    def holder(self, name: str, asking: Run) -> BoardWork | None:
        """The work of an update that has this board now."""
        for run in self.runs:
            if run is asking or run.purpose != "update" or run.done.is_set():
                continue
            work = run.works.get(name)
            if work is not None and not work.report.get("ended"):
                return work
        return None

    def joinable(
        self,
        names: Sequence[str] | None,
        *,
        force: bool,
        override: frozenset[Override],
        rescue: str | None,
    ) -> Run | None:
        """A run in progress that does what is asked for already."""
        for run in self.runs:
            if run.stage == "done" or run.purpose != "update" or (force and not run.force):
                continue
            if not override <= run.override or rescue not in (None, run.rescue):
                continue
            asked = [w for name, w in run.works.items() if names is None or name in names]
            if asked and all(work.report.get("ended") for work in asked):
                continue  # it has nothing left to do for these boards
            if any(work.cancel.is_set() for work in run.works.values()):
                continue
            if any(
                effective_target(self.settings, work.board.entry).key != work.target.key
                for work in run.works.values()
            ):
                continue
            if run.names is None or (names is not None and set(names) <= set(run.names)):
                return run
        return None

    async def release(self, boards: Sequence[BoardState]) -> int:
        """Let boards that were set aside, rolled back, wrong or not ours be taken up again."""
        keys: list[str] = []
        for board in boards:
            entry = board.entry
            named = [board.mac, board.name, board.port, entry.port if entry else None]
            keys += [key for key in named if key is not None]
            info = await self.journaled(partial(describe, board.port)) if board.port else None
            if info is not None:
                keys.append(info.place)
            if entry is not None and entry.port is not None and _is_wrong(board):
                # What was learned of the port goes, or its new USB device stays the wrong one.
                await self.journaled(partial(self.memory.journal.forget_port, entry.port))
        freed = await self.journaled(partial(self.memory.release, keys))
        for board in boards:
            if board.state in ("set_aside", "rolled_back", "failed", "unrecognised"):
                board.error = None
                board.attempts = 0
                target = effective_target(self.settings, board.entry)
                # With the configured version stored it would not have come to this: what was
                # read was changed since, or is not what runs.
                known = board.version not in (None, target.version)
                board.state = "outdated" if known else "unknown"
        return freed

    async def pause(self, seconds: float, work: BoardWork) -> None:
        """Wait, unless the board is cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        while not (work.cancel.is_set() or work.stop.is_set()):
            left_s = until_s - loop.time()
            if left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), left_s)

    def wake(self) -> None:
        """Let boards that wait look whether they were cancelled."""
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    def board_lock(self, name: str) -> asyncio.Lock:
        """Held by the one session of a board."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def journaled(self, call: Callable[[], Result]) -> Result:
        """Something that blocks for as long as a disk takes, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(EXECUTOR, call)

    # --- boards

    async def place_boards(
        self, names: Sequence[str] | None, probe: bool, by_person: bool, run: Run | None
    ) -> list[BoardWork]:
        """Find where the boards are, and show it; opens no port."""
        settings, memory = self.settings, self.memory

        def find() -> list[Place]:
            infos = list_ports()
            if settings.boards is not None:
                return [place_entry(entry, infos, memory) for entry in settings.boards]
            taken = {
                info.device: owner
                for info in infos
                if (owner := SERVICE_CLAIMS.owner(info.device)) not in (None, settings.service)
            }
            meant = run is not None and "other-project" in run.override
            return place_found(
                infos, memory, by_person=by_person, taken=taken, probe=probe, other_project=meant
            )

        places = await self.journaled(find)
        works = []
        for place in places:
            board = self._show_place(place)
            if names is not None and not any(board.answers_to(name) for name in names):
                continue
            works.append(BoardWork(board, place, effective_target(settings, board.entry)))
        if settings.boards is None:
            here = {place.port for place in places}
            for board in self.boards.values():
                if board.port not in here:
                    board.set_error(
                        OtaError("port-missing", "The board is not attached.", board=board.name)
                    )
        return works

    async def probe(self, run: Run, works: Sequence[BoardWork]) -> None:
        """Look for boards known by their MAC on ports that nothing but a person's word opens."""
        lost = {
            entry.mac: work
            for work in works
            if (entry := work.board.entry) is not None
            and entry.mac is not None
            and work.place.kind == "absent"
        }
        if not lost:
            return
        used = {canonical(b.port) for b in self.boards.values() if b.port is not None}

        def candidates() -> list[PortInfo]:
            return [
                info
                for info in list_ports()
                if info.device not in used and SERVICE_CLAIMS.owner(info.device) is None
            ]

        for info in await self.journaled(candidates):
            mac = await self.journaled(partial(mac_at, info.device, self.owner))
            work = lost.get(mac) if mac is not None else None
            if work is None or mac is None:
                continue
            work.place = Place(work.board.name, "here", info.device, info, mac)
            work.board.port, work.board.state, work.board.error = info.device, "unknown", None
            LOGGER.info("%s: found at %s by probing", work.board.name, info.device)

    def _show_place(self, place: Place) -> BoardState:
        board = self.boards.get(place.name)
        if board is None:
            board = next(
                (b for b in self.boards.values() if b.entry is None and b.port == place.port), None
            )
        if board is None:
            board = self.boards[place.name] = BoardState(place.name)
        if place.port is not None:
            board.port = place.port
        if place.mac is not None:
            board.mac = place.mac
        if self.board_lock(board.name).locked():
            return board  # a session has it: what it shows is newer
        if place.kind == "absent":
            board.error = place.error
            board.state = "absent"
        elif place.kind == "candidate":
            board.state = "candidate"
        elif place.error is not None:
            board.set_error(place.error)
        elif board.state in ("absent", "candidate"):
            board.state = "unknown"
            board.error = None
        return board

    def rename(self, board: BoardState, mac: str) -> None:
        """A board that is not in `boards` goes by its MAC once that is known."""
        if board.entry is not None or board.name == mac:
            return
        self.boards.pop(board.name, None)
        board.name = mac
        self.boards[mac] = board

    def stands_in(self, work: BoardWork) -> bool:
        """Whether the journal's entry stands in for reading the board."""
        return stands_in(work.place, self.memory, work.target.version)

    async def _watch_ports(self) -> None:
        """Boards that are plugged in are taken up; polling opens no port."""
        while not self.closing:
            await asyncio.sleep(POLL_S)
            if self._memory is None:
                continue
            try:
                await self._poll()
                await self._save_journal()
            except OtaError as error:
                LOGGER.debug("%s", error)
            except Exception:
                # Boards that are plugged in later must be found all the same.
                LOGGER.exception("looking at the ports failed")

    async def _save_journal(self) -> None:
        """Bring to the disk what it had no room for, without waiting for the next update."""
        loop, journal = asyncio.get_running_loop(), self.memory.journal
        if journal.problem is None or loop.time() < self._save_at_s:
            return
        self._save_at_s = loop.time() + SAVE_RETRY_S
        await self.journaled(journal.retry)
        if self.journal_problem is None:
            LOGGER.info("the journal is on the disk again")

    async def _poll(self) -> None:
        """One look at what is plugged in; boards that a session has are left out.

        A port on native USB vanishes and comes back when its board is restarted, also just
        after a session: that is neither a board that went nor one that came.
        """
        settings, memory = self.settings, self.memory

        def find() -> list[Place]:
            infos = list_ports()
            if settings.boards is not None:
                return [place_entry(entry, infos, memory) for entry in settings.boards]
            return place_found(infos, memory, by_person=False, taken={})

        places = await self.journaled(find)
        if settings is not self.settings:
            return  # configured meanwhile
        back = [place for place in places if self._came_or_went(place)]
        if settings.boards is None:
            here = {place.port for place in places}
            for board in self._at_rest():
                if board.state != "absent" and board.port is not None and board.port not in here:
                    self._went(board, OtaError("port-missing", board=board.name))
        names = [place.name if settings.boards is not None else str(place.port) for place in back]
        if names and settings.auto_update and not self._covered(names):
            LOGGER.info("plugged in: %s", ", ".join(names))
            self.start("attached", names)

    def _came_or_went(self, place: Place) -> bool:
        """Show a board that was unplugged as absent; whether a board has come."""
        board = self.boards.get(place.name)
        if board is None and self.settings.boards is None:
            board = next((b for b in self.boards.values() if b.port == place.port), None)
            if board is None:
                return place.kind in ("here", "candidate")
        if board is None or board not in self._at_rest():
            return False
        if place.kind == "absent" and board.state != "absent":
            self._went(board, place.error)
        elif place.kind == "here" and board.state == "absent":
            board.state, board.error = "unknown", None
            return True
        return False

    def _went(self, board: BoardState, error: OtaError | None) -> None:
        LOGGER.info("%s: unplugged", board.name)
        board.state, board.error = "absent", error

    def _at_rest(self) -> list[BoardState]:
        """Boards that no session has, nor had a moment ago."""
        now_s = time.monotonic()
        held = {name for run in self.runs if not run.done.is_set() for name in run.unfinished}
        return [
            board
            for board in self.boards.values()
            if board.name not in held and now_s - board.left_s > SETTLE_S
        ]

    def _covered(self, names: Sequence[str] | None) -> bool:
        """Whether a run that is still looking for its boards will find these."""
        return any(
            run.stage == "checking" and (run.names is None or set(names or ()) <= set(run.names))
            for run in self.runs
            if not run.done.is_set()
        )

    # --- firmware and jobs

    async def image(self, target: Target) -> Image:
        """The checked App Image of a target. Raises OtaError."""
        with self._downloading() as progress:
            firmware = await self._supply.get(
                target,
                ca_file=self.settings.ca_file,
                max_image_bytes=self.settings.max_image_bytes,
                progress=progress,
            )
        made = Image(firmware.data, firmware.sha256, firmware.md5, firmware.image)
        self._notice(target, firmware)
        self.images[target.key] = made
        return made

    async def fetch(self, url: str) -> bytes:
        """A file of whatever kind, unchecked. Raises OtaError."""
        with self._downloading() as progress:
            return await self._supply.fetch(
                url,
                ca_file=self.settings.ca_file,
                max_bytes=max(self.settings.max_image_bytes, MERGED_BYTES),
                progress=progress,
            )

    @contextlib.contextmanager
    def _downloading(self) -> Iterator[Callable[[int, int | None], None]]:
        """Show a download's progress in the status."""
        shown = self.download = Progress()

        def progress(done: int, total: int | None) -> None:
            shown.bytes_done = done
            shown.bytes_total = total or 0

        try:
            yield progress
        finally:
            if self.download is shown:
                self.download = None

    def _notice(self, target: Target, firmware: Firmware) -> None:
        """A file that changed under its version: boards that hold that version do not get it."""
        before = firmware.changed_from
        if before is None:
            self.notices.pop(target.key, None)
            return
        text = (
            f"The url gave another file under this version before (SHA-256 {before[:16]}..., now "
            f"{firmware.sha256[:16]}...). Boards that hold the version already keep what they "
            "have: publish the file under a new version, or call update with force."
        )
        if self.notices.get(target.key) != text:
            LOGGER.warning("%s, version %s: %s", target.shown_url, target.version, text)
        self.notices[target.key] = text

    def job(self, work: BoardWork, image: Image | None, run: Run) -> Job:
        """What a session of a run does with a board."""
        settings, purpose = self.settings, run.purpose
        known = tuple(other.known for other in self.images.values() if other is not image)
        return Job(
            work.board.name,
            version=work.target.version,
            image=image,
            known=known,
            baud=settings.baud,
            boot=boot_rules(settings),
            force=run.force,
            adopted=work.board.entry is not None
            or settings.adopt
            or "other-project" in run.override,
            rescue=run.rescue,
            read_only=purpose in ("version", "verify"),
            go_back=purpose == "rollback",
            dry_run=purpose == "plan",
        )

    @staticmethod
    def confirming(job: Job, awaited: Awaited) -> Job:
        """The look at a board whose app had time to confirm itself."""
        return replace(job, confirm=awaited)

    @staticmethod
    def slower(job: Job, baud: int) -> Job:
        """The same at another speed."""
        return replace(job, baud=baud)

    @staticmethod
    def after_waiting(job: Job, outcome: Outcome) -> Job:
        """What to do when a board that awaited confirmation had its time."""
        if job.confirm is not None or outcome.plan is None or outcome.plan.action == "refuse":
            return replace(job, rearm=False)
        assert outcome.slot is not None
        slot, before = outcome.slot.name, outcome.previous_version
        return replace(job, confirm=Awaited(slot, before, outcome.power_failed))

    @staticmethod
    def running_of(outcome: Outcome, image: Image | None) -> dict[str, str]:
        """What runs after a session, as the status shows it."""
        slot, found = outcome.slot, outcome.found
        assert slot is not None
        about = None
        wrote = outcome.plan is not None and outcome.plan.action in ("write", "switch")
        on_it = outcome.end in ("up_to_date", "awaiting_confirmation", "unjudged")
        if image is not None and on_it and wrote:
            about = image.parsed.descriptor
        elif found is not None and (app := found.app(slot)) is not None:
            about = app.descriptor
        shown = {"slot": slot.name}
        if about is not None:
            shown |= {"project": about.project, "app_version": about.version}
        return shown
