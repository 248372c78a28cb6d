# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that writes a Merged Binary to one board: the verb `flash`.

It is a run like the others: a task of its own that outlives the command and the resource, one
entry in the history, progress in the status. It starts only by a person's command.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ota_service.board.chip import ChipInfo
from ota_service.board.flash_merged import FlashJob, FlashOutcome, FlashPhase, run_flash
from ota_service.board.flash_plan import Before, FlashPlan, MergedFile, check_merged
from ota_service.board.ownership import PORT_OWNERS
from ota_service.board.ports import require_exists
from ota_service.board.rewrite import total_bytes
from ota_service.board.serial_port import close_port, open_port
from ota_service.errors import OtaError
from ota_service.firmware.urls import redact_url
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.hooks import BoardWork, SessionHooks
from ota_service.fleet.run import Run
from ota_service.fleet.sessions import EXECUTOR, boot_rules

if TYPE_CHECKING:
    from ota_service.fleet.core import Core

LOGGER = logging.getLogger("ota_service.fleet")

MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class FlashOrder:
    """What a person asked for. path or url: where the Merged Binary is; confirm: the MAC."""

    board: str
    confirm: str
    path: Path | None = None
    url: str | None = None
    keep_nvs: bool = False

    @property
    def shown(self) -> str:
        """Where the file is, without secrets."""
        return redact_url(self.url) if self.url is not None else str(self.path)

    def __repr__(self) -> str:
        return f"FlashOrder({self.board!r}, {self.shown!r}, keep_nvs={self.keep_nvs})"


@dataclass(eq=False)
class FlashRun(Run):
    """The run of one order. results: the board's name -> what came of it."""

    order: FlashOrder | None = None

    async def _go(self) -> None:
        core, order = self.core, self.order
        assert order is not None
        works = await core.place_boards(self.names, False, True, self)
        self.works = {work.board.name: work for work in works}
        if len(works) != 1:
            raise OtaError("no-board", f"flash writes one board; {len(works)} were found.")
        (work,) = works
        if work.place.kind != "here":
            self._not_here(work)
            raise work.place.error or OtaError("no-board", board=work.board.name)
        file = await self._file(order)
        self.stage = "updating"
        self._check_cancelled()
        for run in core.runs:  # an update of this board is void with what it was made for
            if run is not self and not run.done.is_set() and run.purpose == "update":
                run.cancel_boards([work.board.name])
        core.wake()
        board = work.board
        try:
            async with core.board_lock(board.name), core.slots:
                self._check_cancelled(work)
                if not await core.may_restart(board.name):
                    raise OtaError("not-allowed-now", board=board.name)
                await self._flash(work, file, order)
        except OtaError as error:
            error.board = board.name
            work.report["error"] = error.to_dict()
            LOGGER.error("%s", error)
            raise
        finally:
            board.phase = board.progress = None
            work.report |= {"ended": True, "outcome": board.state}
            await core.journaled(partial(self._journal_board, work))

    async def _file(self, order: FlashOrder) -> MergedFile:
        """The Merged Binary, checked before any port is opened."""
        if order.url is not None:
            self.stage = "downloading"
            data = await self.core.fetch(order.url)
        else:
            assert order.path is not None
            data = await asyncio.to_thread(_read, order.path)
        return await asyncio.to_thread(check_merged, data)

    async def _flash(self, work: BoardWork, file: MergedFile, order: FlashOrder) -> None:
        core, board = self.core, work.board
        settings = core.settings
        job = FlashJob(
            board.name,
            file,
            keep_nvs=order.keep_nvs,
            state_dir=settings.state_dir,
            confirm=order.confirm,
            baud=settings.baud,
            boot=boot_rules(settings),
        )
        session = SessionHooks(
            work, core.memory, confirm_timeout_s=settings.confirm_timeout_s, writes=False,
            why=self.why, max_attempts=settings.max_attempts,
        )  # fmt: skip
        hooks = _Hooks(session)
        before = board.state
        loop = asyncio.get_running_loop()
        try:
            outcome = await loop.run_in_executor(
                EXECUTOR, _run_session, str(board.port), core.owner, job, hooks
            )
        except OtaError as error:
            if hooks.wrote:
                await core.journaled(partial(core.memory.flashing, hooks.mac))
                board.set_error(error)
                board.state = "failed"
            else:
                board.state = before
            raise
        finally:
            session.end()
        await self._flashed(work, outcome)

    async def _flashed(self, work: BoardWork, outcome: FlashOutcome) -> None:
        core, board = self.core, work.board
        core.rename(board, outcome.chip.mac)
        await core.journaled(partial(core.memory.flashed, outcome))
        await core.release([board])
        shown = outcome.to_dict()
        self.results[board.name] = shown
        work.report |= {"to": outcome.version, "action": "flash"}
        if outcome.boot_log:
            work.report["boot_log"] = list(outcome.boot_log)
        board.chip, board.flash_bytes = outcome.chip.name, outcome.chip.flash_bytes
        board.version, board.version_read_at = outcome.version, utc_now()
        board.running = dict(shown["running"])
        board.confirmed = outcome.confirmed
        board.attempts = 0
        if outcome.error is not None:
            board.set_error(outcome.error)
            raise outcome.error
        board.error = None
        same = outcome.version == work.target.version
        board.state = "up_to_date" if same else "outdated"
        if not same and core.settings.auto_update:
            core.start("attached", [board.name])  # it is as if it had just been plugged in

    def _journal_start(self) -> None:
        order = self.order
        assert order is not None
        self.core.memory.journal.start_run(
            self.core.settings.service,
            self.trigger,
            {"purpose": "flash", "file": order.shown, "keep_nvs": order.keep_nvs},
            run_id=self.id,
        )


class _Hooks:
    """Implements `board.flash_merged.FlashHooks` by the hooks of a session."""

    def __init__(self, session: SessionHooks) -> None:
        self._session = session
        self.mac = ""
        self.wrote = False

    def identified(self, mac: str) -> None:
        """The chip answered: it must be the board that is meant."""
        self._session.identified(mac)
        self.mac = mac

    def planned(self, chip: ChipInfo, before: Before, plan: FlashPlan) -> None:
        """Say it before it is done."""
        board = self._session.work.board
        LOGGER.info(
            "%s: the whole flash is written (%d bytes); %s",
            board.name,
            total_bytes(plan),
            "; ".join(
                f"{part.keys} keys of {part.label} {'stay' if part.in_place else 'are moved'}"
                for part in plan.kept
            )
            or "no key of its NVS is kept",
        )

    def kept(self, folder: Path) -> None:
        """Where to find what the board had, whatever comes now."""
        name = self._session.work.board.name
        LOGGER.info("%s: what the board has is kept in %s", name, folder)

    def phase(self, name: FlashPhase) -> None:
        """A phase begins."""
        if name == "writing":
            self.wrote = True
            self._session.work.board.state = "updating"
        self._session.phase(name)

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes that were sent."""
        self._session.progress(bytes_done, bytes_total)

    def cancelled(self) -> bool:
        """Whether to stop before the first write."""
        return self._session.cancelled()

    def stopping(self) -> bool:
        """Whether the process ends."""
        return self._session.stopping()


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise OtaError("not-an-image", f"{path} has {size:,} bytes: no flash is that large.")
        return path.read_bytes()
    except OSError as error:
        raise OtaError(
            "not-an-image",
            f"{path} cannot be read: {error.strerror}.",
            remedy="Name a Merged Binary on the machine that the boards are attached to.",
        ) from None


def _run_session(port: str, owner: str, job: FlashJob, hooks: _Hooks) -> FlashOutcome:
    """In its thread: claim the port, open it, write, close it."""
    require_exists(port, job.name)
    with PORT_OWNERS.claim(port, owner, job.name):
        opened = open_port(port, board=job.name)
        try:
            return run_flash(opened, job, hooks)
        finally:
            close_port(opened)


def new_flash_run(core: Core, order: FlashOrder, names: Sequence[str]) -> FlashRun:
    """The run of an order, to be begun by the core."""
    return FlashRun(core, "command", names, "flash", order=order)
