# SPDX-License-Identifier: GPL-3.0-or-later
"""A robot in memory: a whole service, journal and all, whose boards are flashes in memory.

Everything is the product's own (the service, its boards' tasks, runs, groups, journal, sessions)
but for the wire: a session goes over a `Link` that the simulator's bootloader and NVS model judge.
The clock jumps, and nothing runs beside the event loop, so that a life of minutes takes tens of
milliseconds, and each thing that happens in it has its number: a tick. A `Fault` happens at one.

    robot = Robot(folder, {"a": Start(..), "b": Start(..)})
    robot.live(until=lambda status: status["run"]["outcome"] != "running")
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ota_service.errors import OtaError
from ota_service.fleet.attempt import Attempt
from ota_service.fleet.journal_store import Store
from ota_service.fleet.service import FleetService, shutdown
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.formats.flashops import FlashOp
from ota_service.update.session import Job, Outcome, _Session
from tests.prove.board import Link, MemorySession, MemoryStarts
from tests.prove.cells import Cells
from tests.prove.images import Firmware, named
from tests.prove.judge import region_of
from tests.prove.nvs_init import nvs_of
from tests.prove.starts import Start
from tests.support.simulated_time import SimulatedLoop

CONFIRMS_WITHIN_S = 1.0
"""How long a good app takes to confirm itself, of the clock that jumps."""

SESSION_S = 0.6
"""How long a session takes, of the same; a board with a longer name is slower."""

How = str
"""kill: the process dies. power: the member's power fails before the operation, and comes back.
unplug: it is pulled, and plugged in again after `for_s`. hang: its session never ends."""


@dataclass(frozen=True)
class Fault:
    """Something that happens at a tick, to whoever it belongs to."""

    tick: int
    how: How
    for_s: float = 0.0


class Killed(KeyboardInterrupt):
    """The process is no more."""


class _Hung(BaseException):
    """A session that goes no further, and does not end."""


@dataclass(frozen=True)
class Tick:
    """One thing that happened. who: a board, or "journal"."""

    who: str
    what: str


class RobotLink(Link):
    """A member's link, which can be cut at each operation."""

    def __init__(self, robot: Robot, name: str, cells: Cells, start: Start) -> None:
        super().__init__(cells, start.bootloader)
        number = list(robot.starts).index(name) + 1
        self.chip = replace(self.chip, mac=f"24:0a:c4:00:00:{number:02x}")
        self.robot, self.name = robot, name
        self.lost = False
        self.started_s = 0.0

    def _do(self, op: FlashOp) -> None:
        self._reached()
        self.robot.tick(self.name, f"{self.phase}: {op}")
        self._reached()
        super()._do(op)

    def _reached(self) -> None:
        if self.robot.dead:
            raise Killed
        if self.lost or not self.robot.plugged(self.name):
            raise OtaError("link-lost")

    def read(self, offset: int, size_bytes: int) -> bytes:
        """As long as it is reached."""
        self._reached()
        return super().read(offset, size_bytes)

    def md5(self, offset: int, size_bytes: int) -> str:
        """As long as it is reached."""
        self._reached()
        return super().md5(offset, size_bytes)

    def reconnect(self) -> None:
        """Into download mode; an app that had its time has confirmed itself by then."""
        self.robot.tick(self.name, f"{self.phase}: download mode")
        self._reached()
        self.app_lives()
        super().reconnect()

    def restart(self) -> None:
        """A reset, by the host."""
        self.robot.tick(self.name, f"{self.phase}: restart")
        self._reached()
        self.boots_by_itself()

    def boots_by_itself(self) -> None:
        """It has power."""
        super().restart()
        self.started_s = self.robot.now_s()

    def app_lives(self) -> None:
        """Its app confirms itself, if it has had its time."""
        if self.robot.now_s() - self.started_s > CONFIRMS_WITHIN_S:
            self.time_passes()

    def _app(self, op: FlashOp) -> None:
        self.cells.apply(op)  # nothing of ours: it is no place to cut


class RobotSession(MemorySession):
    """A session over a member's link, whatever its MAC is."""

    def __init__(self, link: RobotLink, job: Job, hooks: Any) -> None:
        _Session.__init__(self, None, job, hooks)
        self.link = link  # type: ignore[assignment]
        self.starts = MemoryStarts(link, None, job.name, job.boot, hooks, job.log)  # type: ignore[arg-type]

    def run(self) -> Outcome:
        """As `session.run`."""
        link: Any = self.link
        told = self.hooks.phase

        def phase(name: Any) -> None:
            link.phase = name
            told(name)

        self.hooks.phase = phase  # type: ignore[method-assign]
        self.hooks.phase("connecting")
        self.hooks.restarting("into download mode, to be looked at")
        link.lost = False
        link.reconnect()
        self._identified(link.chip.mac)
        return self._visit()


class InlineLoop(SimulatedLoop):
    """Does at once what would go to a thread."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """A future that is done."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass
class Robot:
    """Boards by their names, a folder for the service, and what may go wrong.

    word: what answers in the robot's name. ticks: what has happened in the last life.
    """

    folder: Path
    starts: Mapping[str, Start]
    options: dict[str, Any] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    word: Any = None
    dead: bool = False
    ticks: list[Tick] = field(default_factory=list)
    cells: dict[str, Cells] = field(default_factory=dict)
    links: dict[str, RobotLink] = field(default_factory=dict)
    returning: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    loop: InlineLoop | None = None
    _due: dict[int, Fault] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, start in self.starts.items():
            self.cells[name] = Cells(start.contents())
            self.plug(name)

    # --- what goes wrong

    def tick(self, who: str, what: str) -> None:
        """Something is about to happen; a fault comes first."""
        if self.dead:
            raise Killed
        self.ticks.append(Tick(who, what))
        fault = self._due.pop(len(self.ticks), None)
        if fault is None:
            return
        if fault.how == "kill":
            self.dead = True
            raise Killed
        if who not in self.links:
            return  # the journal has neither power nor a plug of its own
        if fault.how == "hang":
            raise _Hung
        if fault.how == "power":
            self.links[who].lost = True
            self.links[who].boots_by_itself()
        elif fault.how == "unplug":
            self.unplug(who, fault.for_s)

    def unplug(self, name: str, for_s: float = 0.0) -> None:
        """Pull a board; for_s: and plug it in again so much later."""
        self._address(name).unlink()
        self.away.add(name)
        if name in self.links:
            self.links[name].lost = True
        if for_s:
            self.returning.add(name)
            assert self.loop is not None
            self.loop.call_later(for_s, self.plug, name)

    def plug(self, name: str) -> None:
        """Plug a board in: it has power, and starts."""
        self.returning.discard(name)
        self.away.discard(name)
        self._address(name).parent.mkdir(parents=True, exist_ok=True)
        self._address(name).touch()
        if name in self.links:
            self.links[name].boots_by_itself()

    def plugged(self, name: str) -> bool:
        """Whether it is there."""
        return name not in self.away

    def _address(self, name: str) -> Path:
        return self.folder / "ports" / name / "port.json"

    def now_s(self) -> float:
        """Of the clock that jumps; it goes on from one life to the next."""
        return self.loop.time() if self.loop is not None else 0.0

    def apps_live(self) -> None:
        """Apps that have been running for long enough have confirmed themselves."""
        for name, link in self.links.items():
            if self.plugged(name):
                link.app_lives()

    # --- a life of the process

    def settings(self, **options: Any) -> Settings:
        """The service's configuration."""
        boards = tuple(
            BoardEntry(name, port=f"esp32sim://{self.folder / 'ports' / name}")
            for name in self.starts
        )
        given = {**self.options, **options}
        target = given.pop("target")
        return Settings(
            "OTA", target, boards, state_dir=self.folder / "state",
            cache_dir=self.folder / "cache", confirm_timeout_s=60.0, **given,
        )  # fmt: skip

    def live(
        self, act: Callable[[FleetService, Robot], Coroutine[Any, Any, Any]], **options: Any
    ) -> Any:
        """One life of the process, from its start to its end as by SIGTERM; what `act` returns.

        Raises Killed where a fault has killed it.
        """
        self.ticks.clear()
        self.dead = False
        self._due = {fault.tick: fault for fault in self.faults}
        with ExitStack() as stack:
            for change in _instead(self):
                stack.enter_context(change)
            loop = self.loop = InlineLoop()
            stack.callback(loop.close)
            self.links = {
                name: RobotLink(self, name, self.cells[name], start)
                for name, start in self.starts.items()
            }
            for name, link in self.links.items():
                if self.plugged(name):
                    link.boots_by_itself()

            async def main() -> Any:
                service = await FleetService.open(self.settings(**options), robot=self.word)
                try:
                    return await act(service, self)
                finally:
                    if not self.dead:
                        await shutdown()

            return loop.run_until_complete(main())

    def live_apart(
        self, act: Callable[[FleetService, Robot], Coroutine[Any, Any, Any]], **options: Any
    ) -> Any:
        """`live` in a process of its own, which a fault may really kill; None then."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - the process that dies
            os.close(reading)
            self._live_and_tell(writing, act, options)
        os.close(writing)
        with os.fdopen(reading, "rb") as told:
            said = told.read()
        os.waitpid(child, 0)
        changed, self.dead, ticks, self.away, result, error = pickle.loads(said)
        for name, cells in changed.items():
            self.cells[name].changed = cells
        self.ticks[:] = ticks
        if error is not None:
            raise AssertionError(error)
        return result

    def _live_and_tell(self, writing: int, act: Any, options: Any) -> None:
        result = error = None
        try:
            result = self.live(act, **options)
        except Killed:
            pass
        except BaseException:
            error = traceback.format_exc()
        changed = {name: cells.changed for name, cells in self.cells.items()}
        said = pickle.dumps((changed, self.dead, list(self.ticks), self.away, result, error))
        with os.fdopen(writing, "wb") as telling:
            telling.write(said)
        os._exit(0)

    # --- what the boards are, by readers that are not the product's

    def generation(self, name: str) -> tuple[str, str | None]:
        """What a board starts if it is switched on now, and the tag in its NVS."""
        start, cells = self.starts[name], self.cells[name].copy()
        result = start.bootloader.boot(cells)
        found: Firmware | None = None
        if result.image is not None:
            found = named(cells.read(result.image.offset, result.image.size))
        tag = nvs_of(region_of(cells, start.plan)).string("VIAM_NS", "OTA_VERSION")
        return (found.name if found is not None else "nothing", tag)


def _instead(robot: Robot) -> list[Any]:
    """What stands in for the wire, and what counts the journal's writes."""

    async def in_memory(attempt: Attempt, work: Any) -> Any:
        link = robot.links[Path(attempt._port.split("://", 1)[1]).name]
        if not isinstance(work, functools.partial):
            raise TypeError("a session")
        lasts_s = SESSION_S + 0.1 * len(link.name)
        await asyncio.sleep(lasts_s / 2)
        try:
            return RobotSession(link, work.keywords["job"], work.keywords["hooks"]).run()
        except _Hung:
            return await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(lasts_s / 2)  # what it told on the way arrives before its end

    right = Store._transact

    def counted(store: Store, work: Any) -> Any:
        robot.tick("journal", "before a write")
        done = right(store, work)
        robot.tick("journal", "after a write")
        return done

    return [
        patch.object(Attempt, "_in_thread", in_memory),
        patch.object(Store, "_transact", counted),
        patch("ota_service.fleet.attempt.require_free", lambda *_: None),
        patch("ota_service.fleet.roster.list_ports", list),
    ]
