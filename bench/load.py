# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures the module as a process: its start, at rest, and with many boards at once."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from esp32_sim.process import SimBoard
from tests.support.module_client import IDLE_ATTRIBUTES, ModuleProcess
from tests.support.rig import NAME, Rig

BAUD = 921_600
SIZE_BYTES = 1_048_576
STABLE_S = 1.0
IDLE_S = 20.0
STARTS = 5
REST_CALLS = 200
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figures:
    """What was measured. Seconds, MiB, per cent of a core."""

    start_to_ready_s: float
    idle_cpu_percent: float
    idle_mib: float
    one_board_s: float
    one_board_mib: float
    eight_boards_s: float
    eight_boards_cpu_s: float
    many_boards: int
    many_boards_s: float
    many_boards_mib: float
    many_boards_cpu_s: float
    status_p50_ms: float
    status_p99_ms: float
    status_calls: int
    status_at_rest_p50_ms: float
    status_at_rest_p99_ms: float


def _rss_mib(pid: int, field: str = "VmRSS") -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def _start_s(folder: Path) -> float:
    began_s = time.monotonic()
    async with ModuleProcess.start(folder):
        return time.monotonic() - began_s


async def _idle(folder: Path) -> tuple[float, float]:
    async with ModuleProcess.start(folder) as module:
        await module.add(NAME, IDLE_ATTRIBUTES)
        await asyncio.sleep(2)  # what the start still has to do
        pid = module.process.pid
        before = _cpu_s(pid)
        await asyncio.sleep(IDLE_S)
        return (_cpu_s(pid) - before) / IDLE_S * 100, _rss_mib(pid)


@dataclass(frozen=True)
class _Many:
    seconds: float
    peak_mib: float
    cpu_s: float
    status_s: list[float]
    rest_s: list[float]


async def _boards(folder: Path, count: int) -> _Many:
    """Update `count` timed boards at once; status is asked for all the time meanwhile."""
    spec = SimBoard("micro-rdk", config={"timed": True})
    async with Rig.start(folder, [spec] * count) as rig:
        rig.names = [f"board-{number}" for number in range(count)]
        pid = rig.module.process.pid
        url = rig.serve("1.1.0", size_bytes=SIZE_BYTES)
        cpu_s, begun_s = _cpu_s(pid), time.monotonic()
        asked: list[float] = []
        rest: list[float] = []
        await rig.configure(
            url=url, version="1.1.0", baud=BAUD, max_parallel=count, canary=False,
            boot_timeout_s=20, boot_stable_s=STABLE_S,
        )  # fmt: skip
        while True:
            at = time.monotonic()
            status = await rig.module.status(NAME)
            if _all_written(status):
                asked.append(time.monotonic() - at)
            if status.get("run", {}).get("outcome", "running") != "running":
                break
            await asyncio.sleep(0.02)
        seconds = time.monotonic() - begun_s - STABLE_S
        used_s = _cpu_s(pid) - cpu_s
        for _ in range(REST_CALLS):
            at = time.monotonic()
            await rig.module.status(NAME)
            rest.append(time.monotonic() - at)
        states = [board["state"] for board in status["boards"].values()]
        if states != ["up_to_date"] * count:
            raise RuntimeError(f"not all boards were updated: {status['boards']}")
        return _Many(seconds, _rss_mib(pid, "VmHWM"), used_s, asked, rest)


def _all_written(status: dict[str, Any]) -> bool:
    """Whether every board is being written at this moment."""
    return all(board.get("phase") == "writing" for board in status["boards"].values())


def _part(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


async def _measure(many: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        starts = [await _start_s(folder / f"start{i}") for i in range(STARTS)]
        cpu, idle_mib = await _idle(folder / "idle")
        one = await _boards(folder / "one", 1)
        eight = await _boards(folder / "eight", 8)
        crowd = await _boards(folder / "many", many)
    return Figures(
        start_to_ready_s=_part(starts, 0.5),
        idle_cpu_percent=cpu,
        idle_mib=idle_mib,
        one_board_s=one.seconds,
        one_board_mib=one.peak_mib,
        eight_boards_s=eight.seconds,
        eight_boards_cpu_s=eight.cpu_s,
        many_boards=many,
        many_boards_s=crowd.seconds,
        many_boards_mib=crowd.peak_mib,
        many_boards_cpu_s=crowd.cpu_s,
        status_p50_ms=_part(crowd.status_s, 0.5) * 1000,
        status_p99_ms=_part(crowd.status_s, 0.99) * 1000,
        status_calls=len(crowd.status_s),
        status_at_rest_p50_ms=_part(crowd.rest_s, 0.5) * 1000,
        status_at_rest_p99_ms=_part(crowd.rest_s, 0.99) * 1000,
    )


def measure(many: int = 32) -> Figures:
    """All of it; about two minutes."""
    return asyncio.run(_measure(many))


def table(found: Figures) -> Table:
    """Beside what is wanted."""
    made = Table(title=f"The module's process ({SIZE_BYTES / 2**20:g} MiB image, {BAUD} baud)",
                 title_justify="left")  # fmt: skip
    made.add_column("")
    made.add_column("measured", justify="right")
    made.add_column("wanted", justify="right")
    eight = found.eight_boards_s / found.one_board_s
    more = found.many_boards_mib - found.one_board_mib
    n = found.many_boards
    rows = [
        ("start to Ready", f"{found.start_to_ready_s:.2f} s", "< 2 s"),
        ("idle, of one core", f"{found.idle_cpu_percent:.2f} %", "< 0.5 %"),
        ("idle, memory", f"{found.idle_mib:.0f} MiB", "< 120 MB"),
        ("1 board", f"{found.one_board_s:.2f} s", ""),
        ("8 boards at once", f"{found.eight_boards_s:.2f} s ({eight:.2f} x one)", "<= 1.25 x one"),
        ("8 boards, CPU of the module", f"{found.eight_boards_cpu_s:.2f} s", ""),
        (f"{n} boards at once", f"{found.many_boards_s:.2f} s", ""),
        (f"{n} boards, CPU of the module", f"{found.many_boards_cpu_s:.2f} s", ""),
        (f"{n} boards, memory more than one's", f"{more:.0f} MiB", "<= 250 MB"),
        (f"status while {n} are written, median", f"{found.status_p50_ms:.1f} ms", ""),
        (f"status while {n} are written, p99", f"{found.status_p99_ms:.1f} ms", "< 20 ms"),
        (f"status of {n} boards at rest, median", f"{found.status_at_rest_p50_ms:.1f} ms", ""),
    ]
    for row in rows:
        made.add_row(*row)
    return made


def to_json(found: Figures) -> dict[str, Any]:
    """For bench/results."""
    return asdict(found)
