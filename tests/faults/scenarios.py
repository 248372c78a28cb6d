# SPDX-License-Identifier: GPL-3.0-or-later
"""One fault each, from a seed: what the tests run ten times and `make prove` two hundred times.

A scenario makes its boards, breaks something, holds the status against the board itself, takes
the fault away, and requires that the service then brings the board to its target. It raises
AssertionError where a promise is broken.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from esp32_sim.control import BoardControl
from esp32_sim.images import Behaviour
from esp32_sim.process import SimBoard
from ota_service.fleet.hooks import SessionHooks
from ota_service.link import registers
from ota_service.link.link import EspLink
from tests.faults.desk import CLEAN_ENDS, IMAGE_BYTES, Desk, Held

LAYOUTS = ("guide", "micro-rdk", "micro-rdk-8mb")
PHASES = (
    *("connecting", "inspecting", "writing", "verifying", "switching", "recording"),
    *("booting", "rolling_back"),
)
LARGE_BYTES = 200_000
"""Of an image that says something of a line."""
PANICS = Behaviour(ending="panic", ending_after_s=0.2)


@contextmanager
def at_phase(wanted: str, action: Callable[[], None]) -> Iterator[list[str]]:
    """Do `action` (blocking, in the session's thread) when the phase next begins.

    Yields the phases that began, so that a test can tell that its fault was injected.
    """
    original = SessionHooks.phase
    seen: list[str] = []

    def phase(self: SessionHooks, name: Any) -> None:
        original(self, name)
        if name == wanted and not seen:
            seen.append(name)
            action()

    SessionHooks.phase = phase  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        SessionHooks.phase = original  # type: ignore[method-assign]


async def heal(desk: Desk, new: str, before: Any, name: str = "a") -> None:
    """With the fault gone, the service brings the board to its target."""
    last = desk.run_id()
    await desk.command("release", boards=[name])
    if desk.run_id() == last:
        await desk.command("update")
    status = await desk.wait(
        lambda status: (
            status["boards"][name]["state"] == "up_to_date"
            or (status["run"]["id"] != last and status["run"]["outcome"] != "running")
        )
    )
    assert status["boards"][name]["state"] == "up_to_date", status["boards"][name]
    await desk.truth(before, new, name)


async def noise(folder: Path, seed: int) -> str:
    """Bytes lost, doubled or changed, in one direction or both, up to 1 in 1,000.

    With odd seeds registers are looked at together.
    Returns the state that the update ended in while the noise lasted.
    """
    rng = random.Random(seed)
    rate = 10 ** rng.uniform(-5.5, -3.0)
    kinds = rng.choice([("lose",), ("double",), ("change",), ("lose", "double", "change")])
    ways = rng.choice([("to_board",), ("from_board",), ("to_board", "from_board")])
    board = SimBoard(LAYOUTS[seed % len(LAYOUTS)], config={"seed": seed})
    async with Desk.start(folder, [board]) as desk:
        before = await desk.look()
        size_bytes = LARGE_BYTES if seed % 2 else IMAGE_BYTES
        url = desk.serve("1.1.0", size_bytes=size_bytes)
        with ExitStack() as stack:
            if seed % 2:
                # It takes the bridge for a slow one.
                stack.enter_context(mock.patch.object(registers, "TOGETHER_MARGIN_S", -1.0))
            desk.board().control.set_faults(**{way: dict.fromkeys(kinds, rate) for way in ways})
            status = await desk.updated("1.1.0", url=url, timeout_s=180)
        state: str = status["boards"]["a"]["state"]
        await desk.truth(before, "1.1.0")
        if state != "up_to_date":
            await heal(desk, "1.1.0", before)
        return state


async def unplugged(folder: Path, seed: int) -> None:
    """Unplugged in a phase (each in its turn), with or without losing power, and plugged in
    again."""
    rng = random.Random(seed)
    phase = PHASES[seed % len(PHASES)]
    power = rng.random() < 0.5
    delay_s = rng.choice([0.0, rng.uniform(0.0, 0.3)])
    bad = phase == "rolling_back"
    board = SimBoard(LAYOUTS[seed // len(PHASES) % len(LAYOUTS)], config={"seed": seed})
    async with Desk.start(folder, [board]) as desk:
        control = desk.board().control
        before = await desk.look()

        def pull() -> None:
            time.sleep(delay_s)  # somewhere within the phase
            control.unplug(keep_power=power)

        with at_phase(phase, pull) as seen:
            last = desk.run_id()
            url = desk.serve("1.1.0", behaviour=PANICS if bad else None)
            await desk.configure(url=url, version="1.1.0")
            await desk.wait(lambda _: seen)
            await asyncio.to_thread(control.wait_for, "unplugged")
            status = await desk.next_run(last)
        # The last moments of a session may need the port no more.
        done = "rolled_back" if bad else "up_to_date"
        state = status["boards"]["a"]["state"]
        assert state in ("absent", done), status["boards"]["a"]
        last = desk.run_id()
        control.plug()
        if state == "absent":
            status = await desk.next_run(last)
            assert status["run"]["trigger"] == "attached", status["run"]
        board_now = status["boards"]["a"]
        if bad:
            assert board_now["state"] in ("rolled_back", "set_aside"), board_now
            shown = await desk.look()
            assert (shown.version, shown.tag, shown.keys) == ("1.0.0", "1.0.0", before.keys)
        else:
            assert board_now["state"] == "up_to_date", board_now
            await desk.truth(before, "1.1.0")


async def life(folder: Path, pulls: int) -> list[int]:
    """A port whose cable is pulled again and again, in any phase: each update comes to its end, and
    each session begins at the highest speed. Returns the speeds of all sessions, in their order."""
    rng = random.Random(pulls)
    speeds: list[int] = []
    connect = EspLink.connect

    def noted(*arguments: Any, **named: Any) -> EspLink:
        link = connect(*arguments, **named)
        speeds.append(link.baud)
        return link

    async with Desk.start(folder, [SimBoard(LAYOUTS[0])]) as desk:
        control = desk.board().control
        before = await desk.look()
        with mock.patch.object(EspLink, "connect", noted):
            for pull in range(1, pulls + 1):
                version = f"1.1.{pull}"
                power, delay_s = rng.random() < 0.5, rng.choice([0.0, rng.uniform(0.0, 0.2)])

                def unplug(power: bool = power, delay_s: float = delay_s) -> None:
                    time.sleep(delay_s)  # somewhere within the phase
                    control.unplug(keep_power=power)

                with at_phase(rng.choice(PHASES[:-1]), unplug) as seen:
                    last = desk.run_id()
                    await desk.configure(url=desk.serve(version), version=version)
                    await desk.wait(lambda _, seen=seen: seen)  # type: ignore[misc]
                    await asyncio.to_thread(control.wait_for, "unplugged")
                    status = await desk.next_run(last)
                last = desk.run_id()
                control.plug()
                if status["boards"]["a"]["state"] == "absent":
                    status = await desk.next_run(last)
                assert status["boards"]["a"]["state"] == "up_to_date", status["boards"]["a"]
                before = await desk.truth(before, version)
            await desk.updated("2.0.0")
            await desk.truth(before, "2.0.0")
    assert set(speeds) == {921_600}, speeds
    return speeds


async def never_answers(folder: Path, seed: int) -> None:
    """A board that is silent, sends garbage, or cannot leave download mode."""
    fault = ("no_answer", "garbage", "stuck_in_download")[seed % 3]
    async with Desk.start(folder, [SimBoard(LAYOUTS[seed // 3 % 3])]) as desk:
        before = await desk.look()
        control = desk.board().control
        control.set_faults(**{fault: True})
        since = control.counters().get("opened", 0)
        status = await desk.updated("1.1.0", max_attempts=2, timeout_s=120)
        board = status["boards"]["a"]
        assert board["state"] in CLEAN_ENDS, board
        opened = control.counters()["opened"] - since
        assert opened <= 4, f"opened {opened} times for 2 attempts"
        shown = await desk.look()
        assert shown.keys == before.keys
        if fault == "stuck_in_download":  # it answers, so it was written; nobody saw it start
            assert board["error"]["code"] == "no-reset", board
        else:
            assert board["error"]["code"] == "no-answer", board
            assert shown.version == before.version
        await heal(desk, "1.1.0", before)


async def keeps_rebooting(folder: Path, seed: int) -> str:
    """A board that restarts again and again while it is updated, as one that browns out does."""
    rng = random.Random(seed)
    shortest_s = rng.choice([0.1, 0.5])
    async with Desk.start(folder, [SimBoard(LAYOUTS[seed % 3])]) as desk:
        before = await desk.look()
        control = desk.board().control
        stop = asyncio.Event()

        async def press() -> None:
            while not stop.is_set():
                await asyncio.to_thread(control.reset)
                await asyncio.sleep(
                    rng.uniform(0.1, shortest_s * 3)
                )  # the fault itself: it has a rhythm

        pressing = asyncio.create_task(press())
        try:
            status = await desk.updated("1.1.0", max_attempts=3, timeout_s=120)
        finally:
            stop.set()
            await pressing
        state: str = status["boards"]["a"]["state"]
        await desk.truth(before, "1.1.0")
        if state != "up_to_date":
            await heal(desk, "1.1.0", before)
        return state


async def leaks(folder: Path, count: int, seed: int = 0) -> int:
    """`count` failures in one process leave no port, thread or file descriptor behind.

    Returns how many failures there were; each was seen to be one.
    """
    rng = random.Random(seed)
    async with Desk.start(folder, [SimBoard("micro-rdk")]) as desk:
        control = desk.board().control
        await desk.updated("1.1.0")
        await _fail_once(desk, control, "unplug", rng, 0)  # warm up: pools, imports, caches
        held = Held.now()
        kinds = ("unplug", "unplug", "noise", "no_answer", "power")
        for index in range(count):
            await _fail_once(desk, control, kinds[index % len(kinds)], rng, index + 1)
        # A run is over a moment before its port's last thread is.
        extra: dict[str, list[str]] = {}
        for _ in range(100):
            extra = Held.now().more_than(held)
            if not extra:
                break
            await asyncio.sleep(0.02)
        assert not extra, f"left behind after {count} failures: {extra}"
        assert control.counters()["opened"] == control.counters()["closed"]
        return count


async def _fail_once(
    desk: Desk, control: BoardControl, kind: str, rng: random.Random, number: int
) -> None:
    version = f"2.{number}.0"
    last = desk.run_id()
    phase = rng.choice(PHASES[1:4])
    actions: dict[str, Callable[[], None]] = {
        "unplug": control.unplug,
        "power": control.power_off,
        "noise": lambda: control.set_faults(from_board={"change": 0.01}),
        "no_answer": lambda: control.set_faults(no_answer=True),
    }
    with at_phase("connecting" if kind == "no_answer" else phase, actions[kind]):
        await desk.configure(url=desk.serve(version), version=version, max_attempts=1)
        status = await desk.next_run(last, timeout_s=60)
    board = status["boards"]["a"]
    assert board["state"] in CLEAN_ENDS, board
    control.set_faults(no_answer=False, from_board={})
    if kind == "unplug":
        control.plug()  # with its one attempt used up the board stays set aside
    elif kind == "power":
        control.power_on()
