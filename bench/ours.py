# SPDX-License-Identifier: GPL-3.0-or-later
"""One session of ours with a board, by phases: the same code that the service runs; and the command
as people call it, from its cold start on.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from bench import boards
from esp32_sim.process import RunningBoard, child_environment
from ota_service.link.serial_port import close_port, open_port
from ota_service.update import session
from ota_service.update.facts import BoardFacts, SlotFact, Staged
from ota_service.update.inspect import Inspection
from ota_service.update.plan import Course, Plan
from ota_service.update.session import BootRules, Image, Job, Phase

STABLE_S = 0.5


@dataclass
class Measured:
    """One measured way: seconds in all and by phase, and the flash operations of each phase."""

    total_s: float
    phases: dict[str, float] = field(default_factory=dict)
    ops: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: list[tuple[str, int]] = field(default_factory=list)
    """Erases and programs of otadata and NVS: (kind, size_bytes)."""


class _Notes:
    """Hooks that take the time."""

    def __init__(self, facts: BoardFacts) -> None:
        self._facts = facts
        self.begun: list[tuple[float, str]] = []

    def identified(self, mac: str) -> BoardFacts:
        return self._facts

    def inspected(self, found: Inspection) -> None:
        pass

    def planned(self, made: Plan) -> None:
        pass

    def phase(self, name: Phase) -> None:
        self.begun.append((time.monotonic(), name))

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        pass

    def restarting(self, reason: str) -> None:
        pass

    def cancelled(self) -> bool:
        return False

    def stopping(self) -> bool:
        return False


def facts(running: Image, spare: Image | None = None) -> BoardFacts:
    """What the journal has of a board that was updated before."""
    slots = {"ota_0": SlotFact(len(running.data), running.md5, boards.OLD)}
    if spare is not None:
        slots["ota_1"] = SlotFact(len(spare.data), spare.md5, boards.NEW)
    return BoardFacts(slots, last_slot="ota_0")


def staged(image: Image) -> Staged:
    """What the journal has of a board that was staged with an image."""
    known = image.known
    return Staged(
        "", boards.NEW, "ota_1", known.size_bytes, image.sha256, known.md5, known.staged_md5,
        known.head[:288], datetime.now(UTC),
    )  # fmt: skip


def measure(
    board: RunningBoard, image: Image | None, baud: int, *, version: str = boards.NEW,
    course: Course = "update", url: str | None = None, chip: str = "esp32",
) -> Measured:  # fmt: skip
    """One session; `boot_stable_s` is taken off, for it is waiting by choice."""
    job = Job(
        "a",
        version=version,
        image=image,
        baud=baud,
        boot=BootRules(20, STABLE_S),
        course=course,
    )
    known = facts(boards.running(chip))
    if course == "activate" and image is not None:
        job, known = replace(job, image=None), replace(known, staged=staged(image))
    notes = _Notes(known)
    board.control.start_trace()
    begun_s = time.monotonic()
    port = open_port(url or board.url)
    try:
        outcome = session.run(port, job, notes)
        ended_s = time.monotonic()
    finally:
        close_port(port)
    if outcome.end not in ("up_to_date", "read", "staged"):
        raise RuntimeError(f"the update ended {outcome.end}: {outcome.error}")
    watched = outcome.confirmed is not None
    marks = [*notes.begun, (ended_s, "")]
    phases: dict[str, float] = {}
    for (at, name), (end, _) in pairwise(marks):
        phases[name] = phases.get(name, 0.0) + end - at
    wait_s = STABLE_S if watched else 0.0
    if watched:
        phases["booting"] -= STABLE_S
    ops, settings = _ops(board.control.stop_trace(), bool(image))
    return Measured(ended_s - begun_s - wait_s, phases, ops, settings)


def _ops(
    trace: list[dict[str, object]], written: bool
) -> tuple[dict[str, dict[str, int]], list[tuple[str, int]]]:
    """Flash operations by place."""
    names = {boards.place(label): label for label in ("otadata", "nvs", "ota_0", "ota_1")}
    counted: dict[str, dict[str, int]] = {}
    settings: list[tuple[str, int]] = []
    for op in trace:
        if op["who"] != "loader":
            continue
        address, size = int(str(op["address"])), int(str(op["size"]))
        label = next(
            (name for (at, room), name in names.items() if at <= address < at + room), "other"
        )
        kind = str(op["kind"])
        named = f"erase {size // 1024} KiB" if kind == "erase" else "program"
        of = counted.setdefault(label, {})
        of[named] = of.get(named, 0) + 1
        if label in ("otadata", "nvs"):
            settings.append((kind, size))
    return counted, settings


def command(board: RunningBoard, images: Sequence[Image], baud: int) -> Measured:
    """`esp32-ota update`, once for each image, over a port that it has never seen; the last one
    counts, without the seconds for which it watches by choice."""
    with tempfile.TemporaryDirectory() as folder:
        for image in images:
            file = Path(folder, "app.bin")
            file.write_bytes(image.data)
            begun_s = time.monotonic()
            call = ["update", board.url, "--file", str(file), "--baud", str(baud)]
            call += ["--state-dir", folder, "--boot-stable-s", str(STABLE_S)]
            done = subprocess.run(
                [sys.executable, "-m", "ota_service.cli.main", *call],
                capture_output=True, text=True, env=child_environment(), check=False,
            )  # fmt: skip
            total_s = time.monotonic() - begun_s - STABLE_S
            if done.returncode:
                raise RuntimeError(f"the command failed: {done.stdout}{done.stderr}")
    return Measured(total_s)
