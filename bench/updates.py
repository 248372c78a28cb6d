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
from esp32_sim.usb import USB_BAUD
from ota_service.link.stream import make_stream
from ota_service.update.session import Image

Way = Literal["ours", "first", "later", "separate", "best"]
"""ours: a session with a board that is known. first, later: the command, over a port that it has
never seen, or has updated before. The others: `scripted`."""
SCRIPTS: tuple[Way, ...] = ("best", "separate")
SIZES = {"330 kB": 330_000, "1 MiB": 1_048_576, "3.5 MiB": 3_500_000}
OTHER_CHIPS = ("esp32s2", "esp32s3", "esp32c3", "esp32c6", "esp32h2")
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
    chip: str = "esp32"
    usb: str = "bridge"


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
    image = boards.image(size, chip=cell.chip)
    data = boards.flash(cell.state, size, cell.chip)
    result = Result(cell)
    boots: list[float] = []
    for run in range(runs):
        with boards.board(data, cell.latency_ms, chip=cell.chip, usb=cell.usb) as board:
            measured = _WAYS[cell.way](cell, board, data, image)
            result.runs.append(measured)
            boots.append(boards.boot_s(board))
        what = f"{cell.image}, {cell.state}, {cell.baud}, {cell.latency_ms} ms, {cell.chip}"
        what += f", {cell.usb}, {cell.way}: run {run + 1}"
        told(f"{cell.task}, {what}: {measured.total_s:.2f} s")
    result.floor = _floor(cell, data, image, result.runs[0], min(boots))
    return result


def _ours(cell: Cell, board: RunningBoard, data: bytes, image: Image) -> Measured:
    if cell.task == "update":
        return ours.measure(board, image, cell.baud, chip=cell.chip)
    if cell.task == "version":
        return ours.measure(board, None, cell.baud, course="look")
    return ours.measure(board, boards.running(), cell.baud, version=boards.OLD)


def _first(cell: Cell, board: RunningBoard, data: bytes, image: Image) -> Measured:
    return ours.command(board, [image], cell.baud)


def _later(cell: Cell, board: RunningBoard, data: bytes, image: Image) -> Measured:
    before = boards.image(boards.RUNNING_BYTES, "1.0.5", cell.chip)
    return ours.command(board, [before, image], cell.baud)


_Script = Callable[[RunningBoard, bytes, Image, int], Measured]


def _scripted(script: _Script) -> Callable[[Cell, RunningBoard, bytes, Image], Measured]:
    def run(cell: Cell, board: RunningBoard, data: bytes, image: Image) -> Measured:
        return script(board, data, image, cell.baud)

    return run


_WAYS: dict[Way, Callable[[Cell, RunningBoard, bytes, Image], Measured]] = {
    "ours": _ours,
    "first": _first,
    "later": _later,
    "separate": _scripted(scripted.separate),
    "best": _scripted(scripted.best),
}


def _floor(
    cell: Cell, data: bytes, image: Image, measured: Measured, boot_s: float
) -> list[floor.Item]:
    baud = cell.baud if cell.usb == "bridge" else USB_BAUD
    line = floor.Line(baud, cell.latency_ms / 1000, cell.chip)
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
    for way in ("ours", "first", "later", "best"):
        yield Cell("update", "330 kB", "random", 921_600, 1, way)
    yield Cell("update", "330 kB", "random", 2_000_000, 1, "ours")
    yield Cell("version", "330 kB", "random", 921_600, 1, "ours")


def standard() -> Iterator[Cell]:
    """What docs/performance.md shows: all sizes and speeds; the ways that take long once each."""
    for image in SIZES:
        for baud in BAUDS:
            yield Cell("update", image, "random", baud, 1, "ours")
            for way in SCRIPTS:
                if baud == 921_600 or (image == "1 MiB" and way == "best"):
                    yield Cell("update", image, "random", baud, 1, way)
    for image in ("330 kB", "1 MiB"):
        for way in ("first", "later"):
            yield Cell("update", image, "random", 921_600, 1, way)
    for state in ("blank", "older"):
        yield Cell("update", "1 MiB", state, 921_600, 1, "ours")
    yield from small()
    yield from chips()


def small() -> Iterator[Cell]:
    """Where no image is sent: at both latencies."""
    for latency_ms in (1, 16):
        yield Cell("update", "1 MiB", "same", 921_600, latency_ms, "ours")
        yield Cell("version", "1 MiB", "random", 921_600, latency_ms, "ours")
        yield Cell("unchanged", "1 MiB", "random", 921_600, latency_ms, "ours")
    yield Cell("update", "1 MiB", "random", 921_600, 16, "ours")


def chips() -> Iterator[Cell]:
    """The other chips behind a bridge, and two at their own USB port."""
    attached = [(chip, "bridge") for chip in OTHER_CHIPS]
    for chip, usb in (*attached, ("esp32c3", "serial-jtag"), ("esp32s2", "otg")):
        for way in ("ours", "best"):
            yield Cell("update", "330 kB", "random", 921_600, 1, way, chip, usb)


def everything() -> Iterator[Cell]:
    """Every image, speed, state and way; hours."""
    for image in SIZES:
        for baud in BAUDS:
            for state in boards.STATES:
                for way in ("ours", "first", "later", *SCRIPTS):
                    yield Cell("update", image, state, baud, 1, way)
    yield from small()
    yield from chips()


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
