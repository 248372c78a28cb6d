# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures updates of one board: ours, scripts, and the floor, cell by cell of a matrix."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench import boards, floor, ours, scripted
from bench.boards import State
from bench.floor import Item
from bench.ours import Measured
from esp32_sim.process import RunningBoard
from ota_service.link.stream import make_stream
from ota_service.update.session import Image

Way = Literal["ours", "separate", "best", "idftool"]
WAYS: tuple[Way, ...] = ("ours", "best", "separate", "idftool")
SIZES = {"300 kB": 300_000, "1 MiB": 1_048_576, "3.5 MiB": 3_500_000}
BAUDS = (115_200, 460_800, 921_600, 2_000_000)

Task = Literal["update", "version", "unchanged"]
"""update: to the new firmware. version: read what is stored. unchanged: find it up to date."""


@dataclass(frozen=True)
class Cell:
    """One thing that is measured."""

    task: Task
    image: str
    state: State
    baud: int
    latency_ms: int
    way: Way
    known_line: bool = True


@dataclass
class Result:
    """One cell's runs, and the floor for it."""

    cell: Cell
    runs: list[Measured] = field(default_factory=list)
    floor: list[Item] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """The runs' median."""
        return statistics.median(run.total_s for run in self.runs)

    @property
    def spread_s(self) -> float:
        """The slowest run minus the fastest."""
        times = [run.total_s for run in self.runs]
        return max(times) - min(times)

    @property
    def floor_s(self) -> float:
        """The floor's sum."""
        return floor.total(self.floor)

    @property
    def ratio(self) -> float:
        """Of the median to the floor."""
        return self.median_s / self.floor_s

    def phase_s(self, name: str) -> float:
        """A phase's median."""
        return statistics.median(run.phases.get(name, 0.0) for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """For bench/results."""
        return {
            **asdict(self.cell),
            "median_s": round(self.median_s, 3),
            "spread_s": round(self.spread_s, 3),
            "floor_s": round(self.floor_s, 3),
            "ratio_to_floor": round(self.ratio, 3),
            "floor": {item.name: round(item.seconds, 4) for item in self.floor},
            "runs": [
                {
                    "total_s": round(run.total_s, 3),
                    "phases": {name: round(s, 3) for name, s in run.phases.items()},
                    "flash_operations": run.ops,
                }
                for run in self.runs
            ],
        }


def measure(cell: Cell, runs: int, told: Callable[[str], None]) -> Result:
    """Run one cell several times, each on a fresh board."""
    size = SIZES[cell.image]
    image = boards.image(size)
    data = boards.flash(cell.state, size)
    result = Result(cell)
    boots: list[float] = []
    for run in range(runs):
        with boards.board(data, cell.latency_ms) as board:
            measured = _WAYS[cell.way](cell, board, data, image)
            result.runs.append(measured)
            boots.append(boards.boot_s(board))
        told(f"{cell.task}, {cell.image}, {cell.state}, {cell.baud}, {cell.latency_ms} ms, "
             f"{cell.way}: run {run + 1}: {measured.total_s:.2f} s")  # fmt: skip
    result.floor = _floor(cell, data, image, result.runs[0], min(boots))
    return result


def _ours(cell: Cell, board: RunningBoard, data: bytes, image: Image) -> Measured:
    if cell.task == "update":
        return ours.measure(board, image, cell.baud, known_line=cell.known_line)
    if cell.task == "version":
        return ours.measure(board, None, cell.baud, read_only=True)
    return ours.measure(board, boards.running(), cell.baud, version=boards.OLD)


_Script = Callable[[RunningBoard, bytes, Image, int], Measured]


def _scripted(script: _Script) -> Callable[[Cell, RunningBoard, bytes, Image], Measured]:
    def run(cell: Cell, board: RunningBoard, data: bytes, image: Image) -> Measured:
        return script(board, data, image, cell.baud)

    return run


_WAYS: dict[Way, Callable[[Cell, RunningBoard, bytes, Image], Measured]] = {
    "ours": _ours,
    "separate": _scripted(scripted.separate),
    "best": _scripted(scripted.best),
    "idftool": _scripted(scripted.idftool),
}


def _floor(
    cell: Cell, data: bytes, image: Image, measured: Measured, boot_s: float
) -> list[floor.Item]:
    line = floor.Line(cell.baud, cell.latency_ms / 1000)
    ends = floor.leave(boot_s)
    if cell.task == "version":
        # Nobody waits for the boot of a board whose version was read.
        ends = ends[:1]
    if cell.task == "update" and cell.state != "same":
        stream = make_stream(image.data)
        sent = floor.image(line, stream.compressed_bytes, stream.size_bytes)
        return [*floor.connect(line), *sent, *ends]
    slots = [boards.RUNNING_BYTES]
    if cell.task == "update":
        slots.append(len(image.data))
    looked = floor.look(line, boards.contents(data, slots))
    changed = floor.changes(line, measured.settings) if measured.settings else []
    if not changed and cell.task == "unchanged":
        ends = ends[:1]
    return [*floor.connect(line), *looked, *changed, *ends]


def quick() -> Iterator[Cell]:
    """One image, two speeds."""
    for baud in (921_600, 2_000_000):
        yield Cell("update", "300 kB", "random", baud, 1, "ours")
        yield Cell("update", "300 kB", "random", baud, 1, "best")
    yield Cell("update", "300 kB", "same", 921_600, 1, "ours")
    yield Cell("version", "300 kB", "random", 921_600, 1, "ours")


def standard() -> Iterator[Cell]:
    """What docs/performance.md shows: all sizes and speeds; the ways that take long once each."""
    for image in SIZES:
        for baud in BAUDS:
            yield Cell("update", image, "random", baud, 1, "ours")
            for way in WAYS[1:]:
                if baud == 921_600 or (image == "1 MiB" and way == "best"):
                    yield Cell("update", image, "random", baud, 1, way)
    for state in ("blank", "older"):
        yield Cell("update", "1 MiB", state, 921_600, 1, "ours")
    yield from small()


def small() -> Iterator[Cell]:
    """Where no image is sent: at both latencies."""
    for latency_ms in (1, 16):
        yield Cell("update", "1 MiB", "same", 921_600, latency_ms, "ours")
        yield Cell("version", "1 MiB", "random", 921_600, latency_ms, "ours")
        yield Cell("unchanged", "1 MiB", "random", 921_600, latency_ms, "ours")
    yield Cell("update", "1 MiB", "random", 921_600, 16, "ours")
    for image in ("1 MiB", "3.5 MiB"):
        yield Cell("update", image, "random", 921_600, 1, "ours", known_line=False)


def everything() -> Iterator[Cell]:
    """Every image, speed, state and way; hours."""
    for image in SIZES:
        for baud in BAUDS:
            for state in boards.STATES:
                for way in WAYS:
                    yield Cell("update", image, state, baud, 1, way)
    yield from small()


def repeats(cell: Cell, runs: int) -> int:
    """How often: what takes minutes at a speed that leaves no room for noise, once."""
    return 1 if cell.baud == 115_200 and cell.state != "same" else runs


def select(cells: Sequence[Cell], **only: str | None) -> list[Cell]:
    """The cells whose fields are among the comma-separated values given."""
    kept = []
    for cell in cells:
        if all(
            values is None or str(getattr(cell, name)) in values.split(",")
            for name, values in only.items()
        ):
            kept.append(cell)
    return kept
