# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's front: what a configured service asks of it, verb by verb.

A `FleetService` is a handle of one instance. What it stands for, the `Core`, is found by the
service's name and outlasts the instance for a grace, so that a changed attribute (remove, then
add) joins or redirects the run that goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from ota_service.errors import OtaError
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.core import Core, effective_target
from ota_service.fleet.flash_run import FlashOrder, new_flash_run
from ota_service.fleet.run import Purpose, Run
from ota_service.fleet.settings import Override, Settings
from ota_service.fleet.status import status_of

GRACE_S = 5.0
"""How long a run goes on after its service was removed (design.md, item 6)."""

DEFAULT_WAIT_S = 30.0
_WORD_MAX_CHARS = 200
"""How much of a word that names no board is quoted: a command may have 32 MiB."""

RestartAllowed = Callable[[], Awaitable[bool]]


class _Asked(TypedDict):
    """What a person's update asks for beyond its boards."""

    force: bool
    override: frozenset[Override]
    rescue: str | None


_cores: dict[str, Core] = {}
_graces: dict[str, asyncio.TimerHandle] = {}
_ending: set[asyncio.Task[None]] = set()
_leaving: set[Core] = set()


class UnknownBoard(ValueError):
    """A command that names a board which the service does not have."""


class FleetService:
    """One configured instance of a service."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._closed = False

    @classmethod
    async def open(
        cls, settings: Settings, *, restart_allowed: RestartAllowed | None = None
    ) -> FleetService:
        """Take a configuration over; what follows from it goes on behind.

        Raises OtaError `config-invalid` where another service has one of the boards, or where
        the services of this process name different state folders.
        """
        grace = _graces.pop(settings.service, None)
        if grace is not None:
            grace.cancel()
        core = _cores.get(settings.service)
        same_folders = core is not None and (
            core.settings.state_dir == settings.state_dir
            and core.settings.cache_dir == settings.cache_dir
        )
        if core is not None and not same_folders:
            await _end(core)
            core = None
        first = core is None
        if core is None:
            core = Core(settings)
            await core.open(settings)
            _cores[settings.service] = core
        core.restart_allowed = restart_allowed
        await core.configure(settings, first=first)
        service = cls(core)
        core.handle = service
        return service

    def status(self) -> dict[str, Any]:
        """Everything known, at once."""
        return status_of(self._core)

    async def command(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Carry a verb out. Raises OtaError, and ValueError for what cannot be meant."""
        match verb:
            case "status":
                return self.status()
            case "update":
                return await self._update(**arguments)
            case "version" | "verify" | "rollback":
                return await self._read_boards(verb, **arguments)
            case "flash":
                return await self._flash(**arguments)
            case "cancel":
                return self._cancel(**arguments)
            case "release":
                return await self._release(**arguments)
            case "history":
                return await self._history(**arguments)
        raise ValueError(f"there is no verb {verb}")

    async def close(self) -> None:
        """Let go: the run goes on for the grace. Idempotent; returns at once."""
        core = self._core
        if self._closed or core.handle is not self:
            return
        self._closed = True
        core.handle = None
        name = core.settings.service

        def over() -> None:
            _graces.pop(name, None)
            task = asyncio.ensure_future(_end(core))
            _ending.add(task)
            task.add_done_callback(_ending.discard)

        _graces[name] = asyncio.get_running_loop().call_later(GRACE_S, over)

    # --- verbs

    async def _update(
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
        core = self._core
        _ = core.memory  # another process may have it: say so now
        names = self._names(boards)
        asked: _Asked = {"force": force, "override": frozenset(override), "rescue": None}
        if rescue:
            assert confirm is not None  # the verb's arguments are checked
            self._one_board(names or [], "rescue", confirm)
            asked["rescue"] = confirm
        if dry_run:
            run = core.start("command", names, purpose="plan", probe=probe, **asked)
            return await self._read(run, "plan", DEFAULT_WAIT_S if wait_s is None else wait_s)
        if "stopped" in override:
            await core.allow_again()
        elif (stopped := await core.stopped()) is not None:
            raise stopped
        joined = core.joinable(names, **asked)
        run = joined or core.start("command", names, probe=probe, **asked)
        if wait_s:
            await _wait(run, wait_s)
        return {"ok": True, "run": run.to_dict(), "joined": joined is not None}

    async def _read_boards(
        self,
        purpose: Purpose,
        boards: Sequence[str] | None = None,
        wait_s: float = DEFAULT_WAIT_S,
    ) -> dict[str, Any]:
        _ = self._core.memory
        run = self._core.start("command", self._names(boards), purpose=purpose)
        return await self._read(run, "boards", wait_s)

    async def _flash(
        self,
        board: str,
        confirm: str,
        path: str | None = None,
        url: str | None = None,
        keep_nvs: bool = False,
        wait_s: float = DEFAULT_WAIT_S,
    ) -> dict[str, Any]:
        """Write a Merged Binary to one board; the file is checked before any port is opened."""
        core = self._core
        _ = core.memory
        names = self._names([board]) or []
        known = self._one_board(names, "flash", confirm)
        order = FlashOrder(
            known.name, confirm, Path(path) if path is not None else None, url, keep_nvs
        )
        run = core.begin(new_flash_run(core, order, names))
        if await _wait(run, wait_s) and run.error is not None:
            raise run.error
        return {"ok": True, "run": run.to_dict(), "boards": dict(run.results)}

    def _one_board(self, names: Sequence[str], verb: str, confirm: str) -> BoardState:
        """The one board that is meant. Raises OtaError `wrong-board` where its MAC, as far as it
        is known by now, is not the one that was confirmed."""
        if len(names) != 1:
            meant = ", ".join(names) or "none"
            raise UnknownBoard(f"{verb} is for one board; the boards named are: {meant}")
        known = self._core.boards[names[0]]
        mac = known.mac or (known.entry.mac if known.entry is not None else None)
        if mac is not None and mac != confirm:
            raise OtaError(
                "wrong-board",
                f"The board {known.name} is {mac}, and {confirm} was confirmed.",
                remedy="Confirm the MAC of the board that is to be written.",
            )
        return known

    def _cancel(self, boards: Sequence[str] | None = None) -> dict[str, Any]:
        core = self._core
        names = self._names(boards)
        runs = [
            run for run in core.runs if run.purpose in ("update", "flash") and not run.done.is_set()
        ]
        for run in runs:
            run.cancel_boards(names)
        core.wake()
        reply: dict[str, Any] = {"ok": True, "cancelled": bool(runs)}
        if core.last_run is not None:
            reply["run"] = core.last_run.to_dict()
        return reply

    async def _release(self, boards: Sequence[str] | None = None) -> dict[str, Any]:
        core = self._core
        names = self._names(boards)
        chosen = [b for b in core.boards.values() if names is None or b.name in names]
        await core.release(chosen)
        return {"ok": True, "released": [board.name for board in chosen]}

    async def _history(self, board: str | None = None, limit: int = 20) -> dict[str, Any]:
        core = self._core
        journal = core.memory.journal
        service = core.settings.service
        runs = await core.journaled(partial(journal.history, service, board, limit))
        return {"ok": True, "runs": [run.to_dict() for run in runs]}

    async def _read(self, run: Run, key: str, wait_s: float) -> dict[str, Any]:
        """The reply of a read, or its run's id where it takes longer."""
        over = await _wait(run, wait_s)
        if over and run.error is not None and not run.results:
            raise run.error
        return {"ok": True, "run": run.to_dict(), key: dict(run.results)}

    def _names(self, words: Sequence[str] | None) -> list[str] | None:
        """Boards by name, MAC or port; None: all. Raises UnknownBoard naming what exists."""
        if words is None:
            return None
        names = []
        for word in words:
            found = [board for board in self._core.boards.values() if board.answers_to(word)]
            if not found:
                known = ", ".join(sorted(self._core.boards)) or "none yet"
                named = word if len(word) <= _WORD_MAX_CHARS else f"{word[:_WORD_MAX_CHARS]}..."
                raise UnknownBoard(f'there is no board "{named}"; the boards are: {known}')
            names += [board.name for board in found if board.name not in names]
        return names


async def _wait(run: Run, wait_s: float) -> bool:
    """Whether the run ended within the time; the run itself goes on in any case."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(run.done.wait()), wait_s)
    return run.done.is_set()


async def _end(core: Core) -> None:
    if _cores.get(core.settings.service) is core:
        del _cores[core.settings.service]
    _leaving.add(core)
    try:
        await core.end()
    finally:
        _leaving.discard(core)


def cores() -> list[Core]:
    """The services of this process, also in their grace and, first, those that are ending."""
    return [*_leaving, *_cores.values()]


async def shutdown() -> None:
    """The process is asked to stop: boards in the middle of a write are back in their old
    firmware when this returns, without any grace. Idempotent."""
    for grace in _graces.values():
        grace.cancel()
    _graces.clear()
    cores = list(_cores.values())
    _cores.clear()
    await asyncio.gather(*(core.end() for core in cores), *list(_ending), return_exceptions=True)


__all__ = ["FleetService", "UnknownBoard", "cores", "effective_target", "shutdown"]
