# SPDX-License-Identifier: GPL-3.0-or-later
"""A desk for one board's task: scripted sessions, a real journal, a clock that jumps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import board as board_module
from ota_service.fleet.around import Given
from ota_service.fleet.attempt import Attempt, SessionEnd, require_allowed
from ota_service.fleet.board import Board
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.firmwares import Fetched
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.memory import Memory
from ota_service.fleet.orders import Answer, FlashFile, Order, Purpose
from ota_service.fleet.places import Place
from ota_service.fleet.policy import Event, Permits
from ota_service.fleet.robot import Calls, Robot
from ota_service.fleet.settings import BoardEntry, NoSuchResource, RobotCall, Settings
from ota_service.fleet.turns import Turns
from ota_service.formats.image import parse_app_image
from ota_service.update.session import Image
from tests.support.simulated_time import SimulatedLoop

Result = TypeVar("Result")
TARGET = Target("http://127.0.0.1:9/x.bin", "2")
OTHER = Target("http://127.0.0.1:9/y.bin", "3")
PORT = "/dev/null"
AtDesk = Callable[[Callable[["Desk"], Awaitable[None]]], None]


class Shelf:
    """Firmware that arrives when the test says so."""

    def __init__(self) -> None:
        self.about: dict[str, dict[str, Any]] = {}
        self.waiting: list[Callable[[Fetched | OtaError], None]] = []
        self.at_once: Fetched | OtaError | None = None

    def want(
        self, target: Target, arrived: Callable[[Fetched | OtaError], None]
    ) -> Callable[[], None]:
        """As `Firmwares.want`."""
        self.waiting.append(arrived)
        if self.at_once is not None:
            asyncio.get_running_loop().call_soon(arrived, self.at_once)
        return lambda: self.waiting.remove(arrived)

    def project(self, target: Target) -> str | None:
        """As `about` has it."""
        project: str | None = self.about.get(target.key, {}).get("project")
        return project

    async def outdated(self, target: Target, fetched: Fetched) -> bool:
        """It never is."""
        return False

    async def require_current(self, file: FlashFile) -> None:
        """It is."""

    def known(self, other_than: str) -> tuple[()]:
        """Nothing."""
        return ()


class Desk:
    """Implements `Around` for scripted sessions.

    script: how the sessions end, one after the other: an error, an outcome's end, or a future
    that a test sets. begun: what each was for.
    """

    def __init__(self, folder: Path) -> None:
        self.settings = Settings("OTA", TARGET, state_dir=folder, confirm_timeout_s=120.0)
        self.owner = "service OTA"
        self.log = logging.LoggerAdapter(logging.getLogger("ota_service.fleet"))
        self.firmwares: Any = Shelf()
        self.turns = Turns(8, True, lambda _: 1, lambda key, why: None)
        self.slots = asyncio.Semaphore(8)
        self.robot: Robot | None = self
        self.calls = Calls(self)
        self.journal: Journal = open_journal(folder)
        self.memory = Memory(self.journal, "OTA")
        self.script: list[Any] = []
        self.begun: list[Purpose] = []
        self.attempts: list[Attempt] = []
        self.allowed = True
        self.tasks: set[asyncio.Task[Any]] = set()
        data = build_app(version="2", size_bytes=60_000)
        self.fetched = Fetched(Image(data, "0" * 64, "0" * 32, parse_app_image(data)), True)
        self.firmwares.at_once = self.fetched

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        return task

    async def journaled(
        self, call: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """At once: this loop knows no threads."""
        return call(*args, **kwargs)

    async def may_restart(self) -> bool:
        """As the test says."""
        return self.allowed

    async def ask(self, call: RobotCall) -> Mapping[str, Any]:
        """It has nobody to ask."""
        raise NoSuchResource(call.resource)

    def renamed(self, about: BoardState, mac: str) -> None:
        """Boards keep their names."""

    def board(self, target: Target = TARGET) -> Board:
        """A board that is listed by its port."""
        return Board("a", BoardEntry("a", port=PORT), target, self)

    def order(self, purpose: Purpose = "update", **options: Any) -> Order:
        """An order to the board, which is there."""
        permits = Permits(options.pop("force", False), frozenset(options.pop("override", ())), None)
        place = options.pop("place", Place("a", "here", PORT))
        return Order(purpose, options.pop("target", TARGET), place, "test", permits, **options)

    async def give(self, board: Board, order: Order, *, within_s: float = 600.0) -> Answer:
        """Order, and the answer."""
        board.order(order)
        async with asyncio.timeout(within_s):
            return await order.answer

    async def until(self, condition: Callable[[], object], *, within_s: float = 600.0) -> None:
        """Let time pass until something is so."""
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """End the board's task."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.journal.close()


@pytest.fixture
def at_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AtDesk:
    """Runs a test's coroutine with a desk, in simulated time."""

    async def scripted(attempt: Attempt, after_s: float = 0) -> tuple[Event, SessionEnd]:
        await asyncio.sleep(after_s)
        desk: Any = attempt._around
        desk.begun.append(attempt._order.purpose)
        desk.attempts.append(attempt)
        end = await _end_of(attempt, desk.script.pop(0))
        return await attempt.event_of(end), end

    async def asked(around: Any, order: Order, about: BoardState) -> OtaError | None:
        try:
            await require_allowed(around, order)
        except OtaError as error:
            return error
        return None

    monkeypatch.setattr(Attempt, "run", scripted)
    monkeypatch.setattr(board_module, "hindrance", asked)

    def run(test: Callable[[Desk], Awaitable[None]]) -> None:
        async def main() -> None:
            desk = Desk(tmp_path)
            try:
                await test(desk)
            finally:
                await desk.end()

        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(main())

    return run


async def _end_of(attempt: Attempt, step: Any) -> SessionEnd:
    """What a step of the script means for the session."""
    order = attempt._order
    try:
        await require_allowed(attempt._around, order)
    except OtaError as error:
        return await attempt._failed_by(error)
    while isinstance(step, asyncio.Future):
        while not step.done():
            if attempt.hooks.cancelled():
                return await attempt._failed_by(OtaError("cancelled"))
            await asyncio.sleep(0.1)
        step = step.result()
    if isinstance(step, str):
        step = OtaError(step)
    if isinstance(step, OtaError):
        return await attempt._failed_by(step)
    attempt.hooks.tell(lambda sight: sight.seen(step.found))
    await asyncio.sleep(0)
    return SessionEnd(step, failed=attempt._failed)
