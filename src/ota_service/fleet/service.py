# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's front: what a configured service asks of it, verb by verb.

A `FleetService` is a handle of one instance. What it stands for, the `Engine`, is found by the
service's name and outlasts the instance for a grace, so that a changed attribute (remove, then
add) joins or redirects the run that goes on. A further verb is one more method `do_VERB` here,
and its row in `module/verbs.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware.urls import redact_url
from ota_service.fleet.board import Board
from ota_service.fleet.board_state import StartLog
from ota_service.fleet.engine import Engine
from ota_service.fleet.orders import Order, Purpose
from ota_service.fleet.policy import Permits
from ota_service.fleet.robot import Robot
from ota_service.fleet.run import Run
from ota_service.fleet.settings import Override, Settings
from ota_service.fleet.status import status_of

GRACE_S = 5.0
"""How long a run goes on after its service was removed (design.md, item 6)."""

DEFAULT_WAIT_S = 30.0
FOLLOW_S = 0.1
"""How often somebody who looks on gets what a board has printed."""
_WORD_MAX_CHARS = 200
"""How much of a word that names no board is quoted: a command may have 32 MiB."""

_engines: dict[str, Engine] = {}
_graces: dict[str, asyncio.TimerHandle] = {}
_ending: dict[Engine, asyncio.Task[None]] = {}


class UnknownBoard(ValueError):
    """A command that names a board which the service does not have."""


class FleetService:
    """One configured instance of a service."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._closed = False

    @classmethod
    async def open(
        cls,
        settings: Settings,
        *,
        robot: Robot | None = None,
        logger: logging.Logger | None = None,
    ) -> FleetService:
        """Take a configuration over; what follows from it goes on behind. robot: the machine around
        it, with the resources that the configuration names.

        Raises OtaError `config-invalid` where another service has one of the boards, or where
        the services of this process name different state folders; nothing of the service is
        alive then, nor when it is cancelled.
        """
        name = settings.service
        grace = _graces.pop(name, None)
        if grace is not None:
            grace.cancel()
        engine = _engines.get(name)
        if engine is not None and (
            engine.settings.state_dir != settings.state_dir
            or engine.settings.cache_dir != settings.cache_dir
        ):
            await _end(engine)
            engine = None
        first = engine is None
        if engine is None:
            engine = Engine(settings, logger or logging.getLogger("ota_service.fleet"))
        elif logger is not None:
            engine.log.logger = logger  # the new instance's, whose level is configured
        engine.robot = robot
        try:
            if first:
                await engine.open()
                _engines[name] = engine
            await engine.configure(settings, first=first)
        except BaseException:  # also where nobody waits for it any more
            await asyncio.shield(_end(engine))
            raise
        service = cls(engine)
        engine.handle = service
        return service

    def status(self) -> dict[str, Any]:
        """Everything known, at once."""
        return status_of(self._engine)

    async def command(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Carry a verb out. Raises OtaError, and ValueError for what cannot be meant."""
        method = getattr(self, f"do_{verb}", None)
        if method is None:
            raise ValueError(f"there is no verb {verb}")
        reply: dict[str, Any] = await method(**arguments)
        return reply

    def follow(self, word: str) -> AsyncGenerator[dict[str, str], None]:
        """What a board prints in the starts that its session watches, or its last one has watched:
        {"line"} each, and {"verdict"} when nothing more is asked of it.

        Raises UnknownBoard.
        """
        return self._follow(self._engine.boards[self._one(word)])

    async def _follow(self, board: Board) -> AsyncGenerator[dict[str, str], None]:
        def is_awaited() -> bool:
            return not board.free or any(run.awaits(board) for run in self._engine.runs)

        earlier = board.shown.log if is_awaited() and board.shown.log.over else None
        log, seen = StartLog(), 0
        while True:
            awaited = is_awaited()
            if board.shown.log is not log and board.shown.log is not earlier:
                log, seen = board.shown.log, 0
            news, seen = log.behind(seen), log.count
            for heard in news:
                for line in await asyncio.to_thread(heard.shown):  # the search for secrets is slow
                    yield {"line": line}
            if not news and not awaited:
                break
            if not news:
                await asyncio.sleep(FOLLOW_S)
        yield {"verdict": "; then: ".join(log.verdicts) or "no start was watched"}

    async def close(self) -> None:
        """Let go: the run goes on for the grace. Idempotent; returns at once."""
        engine = self._engine
        if self._closed or engine.handle is not self:
            return
        self._closed = True
        engine.handle = None
        name = engine.settings.service

        def over() -> None:
            _graces.pop(name, None)
            _end(engine)

        _graces[name] = asyncio.get_running_loop().call_later(GRACE_S, over)

    # --- verbs

    async def do_status(self) -> dict[str, Any]:
        """As `status`."""
        return self.status()

    async def do_update(
        self,
        boards: Sequence[str] | None = None,
        force: bool = False,
        override: Sequence[Override] = (),
        rescue: bool = False,
        confirm: str | None = None,
        probe: bool = False,
        dry_run: bool = False,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        """Bring boards to their firmware, or reply with what would be done."""
        engine = self._engine
        _ = engine.memory  # another process may have it: say so now
        names = self._names(boards)
        if rescue:
            assert confirm is not None  # the verb's arguments are checked
            self._one_board(names or [], "rescue", confirm)
        permits = Permits(force, frozenset(override), confirm if rescue else None)
        if dry_run:
            run = engine.start(Run(engine, "command", names, "plan", permits, probe))
            return await self._read(run, "plan", DEFAULT_WAIT_S if wait_s is None else wait_s)
        return await self._begin("update", names, permits, probe, wait_s)

    async def _begin(
        self,
        purpose: Purpose,
        names: Sequence[str] | None,
        permits: Permits,
        probe: bool,
        wait_s: float | None,
    ) -> dict[str, Any]:
        engine = self._engine
        stopped = engine.stopped(names)
        if stopped is not None and "stopped" not in permits.override:
            raise OtaError("stopped", stopped.message)
        joined = None if probe else engine.running(names, permits, purpose)
        run = joined or engine.start(Run(engine, "command", names, purpose, permits, probe))
        over = await _wait(run, wait_s) if wait_s else False
        reply = {"ok": True, "run": run.to_dict(), "joined": joined is not None}
        if over and purpose != "update":
            told = {board.shown.name: _told(order) for order, board in run.orders.values()}
            reply["boards"] = {n: told[n] for n in told if names is None or n in names}
        return reply

    async def _part(
        self,
        purpose: Purpose,
        boards: Sequence[str] | None = None,
        override: Sequence[Override] = (),
        probe: bool = False,
        wait_s: float | None = None,
    ) -> dict[str, Any]:
        _ = self._engine.memory
        permits = Permits(override=frozenset(override))
        return await self._begin(purpose, self._names(boards), permits, probe, wait_s)

    do_stage = partialmethod(_part, "stage")
    """All of an update that can be done while nothing that boots changes."""
    do_activate = partialmethod(_part, "activate")
    """The rest of it, of what is staged."""

    async def _look(
        self,
        purpose: Purpose,
        boards: Sequence[str] | None = None,
        probe: bool = False,
        wait_s: float = DEFAULT_WAIT_S,
    ) -> dict[str, Any]:
        _ = self._engine.memory
        run = self._engine.start(
            Run(self._engine, "command", self._names(boards), purpose, probe=probe)
        )
        return await self._read(run, "boards", wait_s)

    do_version = partialmethod(_look, "version")
    """The tags that boards have stored."""
    do_verify = partialmethod(_look, "verify")
    """Whether boards run their target's image."""
    do_log = partialmethod(_look, "log")
    """One start of what boards run, watched: nothing is written."""
    do_rollback = partialmethod(_look, "rollback")
    """Back to the other slot's firmware."""

    async def do_flash(
        self,
        board: str,
        confirm: str,
        path: str | None = None,
        url: str | None = None,
        keep_nvs: bool = False,
        wait_s: float = DEFAULT_WAIT_S,
    ) -> dict[str, Any]:
        """Write a Merged Binary to one board; the file is checked before any port is opened."""
        engine = self._engine
        _ = engine.memory
        names = self._names([board]) or []
        self._one_board(names, "flash", confirm)
        place = Path(path) if path is not None else url
        assert place is not None
        shown = str(place) if isinstance(place, Path) else redact_url(place)
        about = {"purpose": "flash", "file": shown, "keep_nvs": keep_nvs}
        file = partial(engine.firmwares.merged, place, confirm, keep_nvs)
        run = engine.start(Run(engine, "command", names, "flash", file=file, about=about))
        if await _wait(run, wait_s) and run.error is not None:
            raise run.error
        return {"ok": True, "run": run.to_dict(), "boards": dict(run.results)}

    async def do_cancel(self, boards: Sequence[str] | None = None) -> dict[str, Any]:
        """Stop where that leaves every board bootable."""
        engine = self._engine
        reply: dict[str, Any] = {"ok": True, "cancelled": engine.cancel(self._names(boards))}
        if engine.last_run is not None:
            reply["run"] = engine.last_run.to_dict()
        return reply

    async def do_release(
        self,
        boards: Sequence[str] | None = None,
        all: bool = False,
        stopped: bool = False,
    ) -> dict[str, Any]:
        """Let boards be taken up again, or, with `stopped`, a firmware."""
        engine = self._engine
        if stopped:
            await engine.lift()
            engine.log.info("the stop of its firmware is lifted by a person")
            return {"ok": True, "released": []}
        if boards is None and not all:
            raise UnknownBoard("release needs boards, or all: true to mean every board")
        names = self._names(boards)
        chosen = [board for name, board in engine.boards.items() if names is None or name in names]
        await engine.release(chosen)
        released = [board.shown.name for board in chosen]
        engine.log.info("released by a person: %s", ", ".join(released) or "no board")
        return {"ok": True, "released": released}

    async def do_history(
        self,
        board: str | None = None,
        limit: int = 20,
        id: str | None = None,
        boot_log: bool = False,
    ) -> dict[str, Any]:
        """What runs did, newest first."""
        engine = self._engine
        journal, service = engine.memory.journal, engine.settings.service
        words = self._words(board)
        live = {run.id: run for run in engine.runs if not run.done.is_set()}
        runs = []
        found = await engine.journaled(journal.history, service, words, limit, run_id=id)
        for record in found:
            shown = record.to_dict()
            if record.id in live:
                now = live[record.id].boards_now()
                shown["boards"] = {n: b for n, b in now.items() if words is None or n in words}
            for entry in shown["boards"].values():
                if not (boot_log or id is not None):
                    entry.pop("boot_log", None)
            runs.append(shown)
        return {"ok": True, "runs": runs}

    # --- inside

    async def _read(self, run: Run, key: str, wait_s: float) -> dict[str, Any]:
        """The reply of a read, or its run's id where it takes longer."""
        over = await _wait(run, wait_s)
        if over and run.error is not None and not run.results:
            raise run.error
        return {"ok": True, "run": run.to_dict(), key: {}, **run.reply}

    def _one_board(self, names: Sequence[str], verb: str, confirm: str) -> None:
        """Require that one board is meant, and that its MAC, as far as it is known by now, is the
        one that was confirmed. Raises OtaError `wrong-board`."""
        if len(names) != 1:
            meant = ", ".join(names) or "none"
            raise UnknownBoard(f"{verb} is for one board; the boards named are: {meant}")
        known = self._engine.boards[names[0]].shown
        if known.known_mac not in (None, confirm):
            raise OtaError(
                "wrong-board",
                f"The board {known.name} is {known.known_mac}, and {confirm} was confirmed.",
                remedy="Confirm the MAC of the board that is to be written.",
            )

    def _one(self, word: str) -> str:
        names = self._names([word]) or []
        if len(names) != 1:
            raise UnknownBoard(f"{len(names)} boards answer to that; name one of them")
        return names[0]

    def _words(self, word: str | None) -> list[str] | None:
        """Everything that a board was called by, of a board that the service has."""
        if word is None:
            return None
        words = [word]
        for name in self._meant(word):
            mac = self._engine.boards[name].shown.mac
            words += [name] if mac is None else [name, mac]
        return words

    def _meant(self, word: str) -> list[str]:
        """The boards that go by a name, MAC or port."""
        boards = self._engine.boards.items()
        return [name for name, board in boards if word == name or board.answers_to(word)]

    def _names(self, words: Sequence[str] | None) -> list[str] | None:
        """Boards by name, MAC or port; None: all. Raises UnknownBoard naming what exists."""
        if words is None:
            return None
        names = []
        for word in words:
            found = self._meant(word)
            if not found:
                known = ", ".join(sorted(self._engine.boards)) or "none yet"
                named = word if len(word) <= _WORD_MAX_CHARS else f"{word[:_WORD_MAX_CHARS]}..."
                raise UnknownBoard(f'there is no board "{named}"; the boards are: {known}')
            names += [name for name in found if name not in names]
        return names


def _told(order: Order) -> dict[str, Any]:
    """What came of a part of an update, for one board."""
    kept = ("outcome", "reason", "staged", "replaces")
    told = {key: order.report[key] for key in kept if key in order.report}
    error = order.answer.result().error if order.answer.done() else None
    return told | ({"error": error.to_dict()} if error is not None else {})


async def _wait(run: Run, wait_s: float) -> bool:
    """Whether the run ended within the time; the run itself goes on in any case."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(run.done.wait()), wait_s)
    return run.done.is_set()


def _end(engine: Engine) -> asyncio.Task[None]:
    """End a service, once; the task that does it."""
    if _engines.get(engine.settings.service) is engine:
        del _engines[engine.settings.service]
    task = _ending.get(engine)
    if task is None:
        task = _ending[engine] = asyncio.ensure_future(engine.end())
        task.add_done_callback(lambda _: _ending.pop(engine, None))
    return task


def engines() -> list[Engine]:
    """The services of this process, also in their grace and, first, those that are ending."""
    return [*_ending, *_engines.values()]


async def shutdown() -> None:
    """The process is asked to stop: boards in the middle of a write are back in their old
    firmware when this returns, without any grace. Idempotent."""
    for grace in _graces.values():
        grace.cancel()
    _graces.clear()
    for engine in list(_engines.values()):
        _end(engine)
    await asyncio.gather(*_ending.values(), return_exceptions=True)


__all__ = ["FleetService", "UnknownBoard", "engines", "shutdown"]
