# SPDX-License-Identifier: GPL-3.0-or-later
"""One board behind a port: looked at, planned for, updated, rolled back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Unpack

from ota_service.api.engine import BoardReport, Engine, Options, Order
from ota_service.api.load import Source, load_firmware
from ota_service.firmware.check import Firmware
from ota_service.link.at_port import at_port
from ota_service.link.resets import ResetWay
from ota_service.update import session
from ota_service.update.facts import BoardFacts
from ota_service.update.inspect import Inspection
from ota_service.update.plan import Plan

OWNER = "esp32-ota"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an update is. phase: "connecting", "inspecting", "writing", "verifying",
    "switching", "recording", "booting", ..; bytes: of the image, while it is written."""

    phase: str
    bytes_done: int = 0
    bytes_total: int = 0


OnProgress = Callable[[Progress], None]


async def inspect_board(
    port: str,
    *,
    baud: int = 921_600,
    reset: ResetWay | None = None,
    on_progress: OnProgress | None = None,
) -> Inspection:
    """What is on the board at a port: chip, partition table, otadata, slots with their apps, NVS.

    port: a device, `rfc2217://host:port`, or a simulated board's url. baud: the highest speed;
    falls back by itself. reset: as in `Engine`. on_progress: called in the event loop. The board
    is restarted, into its firmware at the end; nothing is written. What keeps it from being
    updated is the inspection's `problem`. Raises OtaError where it cannot be reached:
    `port-missing`, `port-busy`, `no-answer`, .. Cancelling the task leaves the board in its
    firmware.
    """
    job = session.Job(port, course="look", baud=baud)
    found = (await _look(port, job, on_progress, reset)).found
    assert found is not None, "a session that only reads has always looked"
    return found


async def plan_update(
    port: str,
    firmware: Source,
    version: str | None = None,
    *,
    force: bool = False,
    baud: int = 921_600,
    on_progress: OnProgress | None = None,
) -> Plan:
    """What an update would do with the board at a port, step by step, and why.

    As the board alone shows it, without what the journal knows of it. A board that cannot be
    updated gets a plan with the action "refuse". Arguments as for `update_board` and
    `inspect_board`; raises OtaError as that one, and for what is wrong with the firmware.
    """
    loaded = firmware if isinstance(firmware, Firmware) else await load_firmware(firmware)
    job = session.Job(
        port,
        version or loaded.image.descriptor.version,
        session.Image(loaded.data, loaded.sha256, loaded.md5, loaded.image),
        baud=baud,
        force=force,
        course="plan",
    )
    made = (await _look(port, job, on_progress)).plan
    assert made is not None, "a session with an image has always planned"
    return made


async def update_board(
    port: str,
    firmware: Source,
    version: str | None = None,
    *,
    sha256: str | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> BoardReport:
    """Bring the board at a port to a firmware, watch it start, and take back what does not.

    firmware: from `load_firmware`, or the path or address of an App Image. version: the tag to
    store in the board's NVS, by default the one in the image's app descriptor. Where the board
    holds it already nothing is written, unless `force`. Other arguments as for `Engine`, which
    this opens for the one board. Raises the OtaError of an update that did not succeed, such as
    `boot-failed` when the board is back in its old firmware. Cancelling the task stops where that
    leaves the board bootable.
    """
    async with Engine([port], **options) as engine:
        order = engine.update(firmware, version, sha256=sha256, force=force)
        return await _only(order, on_progress)


async def roll_back_board(
    port: str,
    *,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> BoardReport:
    """Go back to the firmware in the board's other slot, with its version, and watch it start.

    Arguments and errors as for `update_board`.
    """
    async with Engine([port], **options) as engine:
        return await _only(engine.roll_back(), on_progress)


# --- inside


async def _only(order: Order, on_progress: OnProgress | None) -> BoardReport:
    """The report of an order for one board; raises its error."""
    told = None
    try:
        async for status in order:
            for board in status["boards"].values():
                at = board.get("progress", {})
                now = Progress(
                    board.get("phase", ""), at.get("bytes_done", 0), at.get("bytes_total", 0)
                )
                if on_progress is not None and now.phase and now != told:
                    told = now
                    on_progress(now)
        (report,) = (await order).require().boards.values()
        return report
    except asyncio.CancelledError:
        order.cancel()
        await order.ended()
        raise


@dataclass(eq=False)
class _Hooks:
    """Implements `session.Hooks` for a look: nothing is known beforehand, nothing is kept."""

    told: OnProgress
    stopped: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def identified(self, mac: str) -> BoardFacts:
        return BoardFacts()

    def phase(self, name: session.Phase) -> None:
        self.loop.call_soon_threadsafe(self.told, Progress(name))

    def cancelled(self) -> bool:
        return self.stopped

    def stopping(self) -> bool:
        return False

    def inspected(self, found: Inspection) -> None: ...

    def planned(self, made: Plan) -> None: ...

    def progress(self, bytes_done: int, bytes_total: int) -> None: ...

    def restarting(self, reason: str) -> None: ...


async def _look(
    port: str, job: session.Job, on_progress: OnProgress | None, reset: ResetWay | None = None
) -> session.Outcome:
    """A session that writes nothing, in a thread; ends with it, also when it is cancelled."""
    hooks = _Hooks(on_progress or (lambda progress: None))

    def visit() -> session.Outcome:
        with at_port(port, OWNER, reset=reset) as opened:
            return session.run(opened, job, hooks)

    task = asyncio.ensure_future(asyncio.to_thread(visit))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        hooks.stopped = True
        await asyncio.wait({task})
        task.exception()  # that it was stopped is no news
        raise
