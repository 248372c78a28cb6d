# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's process ended at a random moment of an update, and started again.

As `scenarios`, but over the module's process and socket, as viam-server drives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from esp32_sim.images import Behaviour
from esp32_sim.process import SimBoard, SimProcess
from tests.faults.desk import BOOT, Shown, look, require_truth
from tests.faults.scenarios import LAYOUTS
from tests.support.firmware_server import FirmwareServer
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

STOP_LIMIT_S = 10.0
"""How long SIGTERM may take (design.md, item 6)."""

# From the configuration to the end of an update that nobody disturbs, on a busy machine.
UPDATE_S = 3.5


def boards_of(seed: int) -> list[SimBoard]:
    """One board, or two; every fourth seed has a bootloader with rollback."""
    config = {"seed": seed}
    if seed % 4 == 3:
        rollback = {**config, "rollback": True}
        return [SimBoard("micro-rdk", otadata="valid", slot="ota_1", config=rollback)]
    first = SimBoard(LAYOUTS[seed % 3], config=config)
    return [first] if seed % 4 else [first, SimBoard(LAYOUTS[(seed + 1) % 3], config=config)]


@asynccontextmanager
async def machine(folder: Path, boards: list[SimBoard]) -> AsyncIterator[Rig]:
    """Boards and a firmware server; the module is started by `life`, again and again."""
    names = [chr(ord("a") + index) for index in range(len(boards))]
    with SimProcess(folder / "boards", boards) as sim:
        async with FirmwareServer.start() as server:
            yield Rig(folder, sim, server, None, names)  # type: ignore[arg-type]


@asynccontextmanager
async def life(rig: Rig, **attributes: Any) -> AsyncIterator[ModuleProcess]:
    """One life of the module on the same machine, configured with `attributes`."""
    async with ModuleProcess.start(rig.folder / "machine") as module:
        rig.module = module
        await module.add(NAME, rig.attributes(**{**BOOT, **attributes}))
        yield module


async def killed(folder: Path, seed: int) -> str:
    """SIGTERM or SIGKILL at a random moment, perhaps once more during the recovery.

    Returns what the status said just before the end: the phase, or the state.
    """
    rng = random.Random(seed)
    async with machine(folder, boards_of(seed)) as rig:
        before = {name: await _look(rig, name) for name in rig.names}
        behaviour = Behaviour(confirm_after_s=0.3) if seed % 4 == 3 else None
        target = {
            "url": rig.serve("1.1.0", size_bytes=200_000, behaviour=behaviour),
            "version": "1.1.0",
            "confirm_timeout_s": 2,
            "max_attempts": 5,
        }
        at = ""
        for _ in range(rng.choice([1, 1, 2])):
            number = rng.choice([signal.SIGTERM, signal.SIGKILL])
            since = {name: await _state(rig, name) for name in rig.names}
            async with life(rig, **target) as module:
                await _random_moment(rig, rng)
                with contextlib.suppress(Exception):
                    shown = (await module.status(NAME))["boards"]["a"]
                    at = f"{number.name} {shown.get('phase', shown['state'])}"
                if number is signal.SIGTERM:
                    await _terminated(rig, module, since)
                else:
                    await module.kill()
        async with life(rig, **target) as module:
            status = await module.wait_status(NAME, over, timeout_s=90)
            assert status["run"]["trigger"] in ("resumed", "configured"), status["run"]
            for name in rig.names:
                board = status["boards"][name]
                assert board["state"] == "up_to_date", board
                # Without a power cycle: a board left in download mode was brought back.
                running = await _running(rig, name)
                assert running == "1.1.0", (running, board)
                await _truth(rig, name, board, before[name])
            await module.terminate()
        return at


def over(status: dict[str, Any]) -> bool:
    """Whether the run of a status has ended."""
    return bool(status.get("run", {}).get("outcome", "running") != "running")


async def _random_moment(rig: Rig, rng: random.Random) -> None:
    """Somewhere in the update: after so many of the board's events and some more, or a time."""
    control = rig.board().control
    if rng.random() < 0.5:
        await asyncio.sleep(rng.uniform(0.0, UPDATE_S))  # the moment itself is the fault
        return
    event = rng.choice(["opened", "stub", "boot", "reset"])
    since = (await asyncio.to_thread(control.state))["events"]
    with contextlib.suppress(Exception):  # it may have happened already, and never again
        await asyncio.to_thread(control.wait_for, event, since=since, timeout_s=UPDATE_S)
    await asyncio.sleep(rng.uniform(0.0, 0.6))


async def _terminated(rig: Rig, module: ModuleProcess, since: dict[str, dict[str, Any]]) -> None:
    """SIGTERM: the process ends in time, and every board runs a firmware, by itself.

    since: the boards' states before this life. A board that an earlier life was killed with in
    download mode, and that this one had no time to open, is the next life's.
    """
    begun_s = time.monotonic()
    await module.terminate(timeout_s=STOP_LIMIT_S + 5)
    took_s = time.monotonic() - begun_s
    assert took_s < STOP_LIMIT_S, f"SIGTERM took {took_s:.1f} s"
    assert "Traceback" not in module.log, module.log
    for name in rig.names:
        before, now = since[name], await _state(rig, name)
        opened = now["counters"].get("opened", 0) > before["counters"].get("opened", 0)
        if opened or before["app"]:
            running = await _running(rig, name)
            assert running in ("1.0.0", "1.1.0"), f"{running} after SIGTERM"


async def _state(rig: Rig, name: str) -> dict[str, Any]:
    return await asyncio.to_thread(rig.board(name).control.state)


async def _running(rig: Rig, name: str) -> str:
    """The version of the app that a board runs, or comes to run within some seconds."""
    control = rig.board(name).control
    for _ in range(100):
        state = await asyncio.to_thread(control.state)
        if state["app"]:
            return str(state["app"]["version"])
        await asyncio.sleep(0.05)
    return f"none: {state['state']}"


async def _look(rig: Rig, name: str) -> Shown:
    return await asyncio.to_thread(look, rig.board(name).control)


async def _truth(rig: Rig, name: str, board: dict[str, Any], before: Shown) -> None:
    await asyncio.to_thread(require_truth, rig.board(name).control, board, before, "1.1.0")
