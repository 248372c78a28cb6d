# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures for how long a board has no app: in an update, in its two parts, and when scripted.

By what the board itself notes: from the reset that ends its app to the first lines of the next one.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import boards, ours, scripted
from bench.boards import State
from esp32_sim.process import RunningBoard, SimBoard
from ota_service.update.session import Image
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

BAUD = 921_600
SIZE_BYTES = 1_048_576
CROWDS = (1, 8, 32)
STABLE_S = 1.0

_Way = Callable[[RunningBoard, bytes, Image], object]
_WAYS: dict[str, tuple[State, _Way]] = {
    "update": ("random", lambda board, _, image: ours.measure(board, image, BAUD)),
    "stage": ("random", lambda board, _, image: ours.measure(board, image, BAUD, course="stage")),
    "activate": (
        "staged",
        lambda board, _, image: ours.measure(board, image, BAUD, course="activate"),
    ),
    "best script": ("random", lambda board, data, image: scripted.best(board, data, image, BAUD)),
    "separate calls": (
        "random",
        lambda board, data, image: scripted.separate(board, data, image, BAUD),
    ),
}


@dataclass(frozen=True)
class Figures:
    """Seconds. one: of one board, by way, each run. crowd: by how many boards were activated at
    once, from the first one's reset to the last one's new app."""

    one: dict[str, list[float]]
    crowd: dict[int, list[float]]


def without_app_s(events: Sequence[dict[str, Any]]) -> float:
    """For how long no app ran, by a board's events; one that restarts it twice counts twice."""
    total_s, since_s = 0.0, None
    for event in events:
        if event["event"] == "reset" and since_s is None:
            since_s = event["time_s"]
        elif event["event"] == "app" and since_s is not None:
            total_s, since_s = total_s + event["time_s"] - since_s, None
    return total_s


def has_app(events: Sequence[dict[str, Any]]) -> bool:
    """Whether an app has started since the last reset."""
    told = [event["event"] for event in events if event["event"] in ("reset", "app")]
    return told[-1:] == ["app"]


def _one(way: str) -> float:
    state, carry_out = _WAYS[way]
    image, data = boards.image(SIZE_BYTES), boards.flash(state, SIZE_BYTES)
    with boards.board(data, 1) as board:
        before = board.control.state()["events"]
        carry_out(board, data, image)
        # A stage goes when the board has left download mode: its old app starts a moment later.
        while not has_app(events := board.control.events(before)):
            time.sleep(0.05)
        return without_app_s(events)


async def _crowd_s(folder: Path, count: int) -> float:
    """Stage so many boards, and activate them at once."""
    async with Rig.start(folder, [SimBoard(boards.LAYOUT, config={"timed": True})] * count) as rig:
        rig.names = [f"board-{number}" for number in range(count)]
        await rig.configure(
            url=rig.serve("1.1.0", size_bytes=SIZE_BYTES), version="1.1.0", baud=BAUD,
            max_parallel=count, canary=False, auto_update=False, boot_timeout_s=20,
            boot_stable_s=STABLE_S,
        )  # fmt: skip
        await _done(rig.module, "stage")
        controls = [board.control for board in rig.sim.boards]
        before = [control.state()["events"] for control in controls]
        await _done(rig.module, "activate")
        noted = [control.events(n) for control, n in zip(controls, before, strict=True)]
    began_s = [next(e["time_s"] for e in events if e["event"] == "reset") for events in noted]
    ended_s = [
        next(e["time_s"] for e in events if e["event"] == "app" and e["version"] == "1.1.0")
        for events in noted
    ]
    return float(max(ended_s) - min(began_s))


async def _done(module: ModuleProcess, verb: str) -> None:
    reply = await module.command(NAME, {"command": verb, "wait_s": 600})
    if reply["run"]["outcome"] != "succeeded":
        raise RuntimeError(f"{verb} did not succeed: {reply}")


def measure(runs: int, crowds: Sequence[int] = CROWDS) -> Figures:
    """Each way several times, each on a fresh board."""
    one = {way: [_one(way) for _ in range(runs)] for way in _WAYS}
    crowd: dict[int, list[float]] = {}
    for count in crowds:
        for _ in range(runs):
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                seconds = asyncio.run(_crowd_s(Path(folder), count))
            crowd.setdefault(count, []).append(seconds)
    return Figures(one, crowd)


def table(found: Figures) -> Table:
    """Beside an update, the best script, and one board."""
    title = f"Without an app ({SIZE_BYTES / 2**20:g} MiB image, {BAUD} baud)"
    made = Table(title=title, title_justify="left")
    made.add_column("")
    for name in ("seconds (median)", "of an update", "of the best script"):
        made.add_column(name, justify="right")
    median = {way: statistics.median(seconds) for way, seconds in found.one.items()}
    for way, seconds in median.items():
        ratios = [f"{seconds / median[other]:.2f}" for other in ("update", "best script")]
        made.add_row(way, f"{seconds:.2f}", *ratios)
    alone = statistics.median(found.crowd[min(found.crowd)]) if found.crowd else 0.0
    for count, runs in found.crowd.items():
        seconds = statistics.median(runs)
        words = f"{count} activated at once, first to last ({seconds / alone:.2f} x one)"
        made.add_row(words, f"{seconds:.2f}", "", "")
    return made


def to_json(found: Figures) -> dict[str, Any]:
    """For bench/results."""
    return asdict(found)
