# SPDX-License-Identifier: GPL-3.0-or-later
"""Power that fails while a session changes the flash by a chip's own registers, on each chip.

What becomes of a flash does not depend on the chip, and is tried in memory from every start. Here
the session itself is cut, over the link, at its operations of otadata and NVS and around a slot's
first page, which all go through the SPI controller's registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from esp32_sim.bootmodel import boot
from esp32_sim.chips import CHIP_NAMES, CHIPS
from esp32_sim.factory import make_flash
from esp32_sim.layouts import LAYOUTS
from ota_service.errors import OtaError
from ota_service.update.session import Job
from tests.prove.board import BOOT, Notes, Op, known_facts, update
from tests.prove.bootloader import Bootloader
from tests.prove.cells import Cells
from tests.prove.images import Firmware, of_chip
from tests.prove.judge import Problem, region_of, stored
from tests.prove.link import Boards, RealBoard
from tests.prove.nvs_init import Key, Value, nvs_of
from tests.prove.prover import Tally

LAYOUT = LAYOUTS["guide"]
RUNS, SPARE = "ota_0", LAYOUT.find("ota_1")
MODES = ("torn", "whole")
FIRST_PAGE = 0x100
BACK_S = 0.1


@dataclass(frozen=True)
class ChipCut:
    """A session on a chip loses its power at its operation number `at`, from 1 on.

    usb, leaves: how the board is attached, and when its own port leaves the bus.
    """

    chip: str
    at: int
    mode: str
    usb: str = "bridge"
    leaves: str = "hard-resets"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.chip}/{self.usb}/{self.leaves}@{self.at}:{self.mode}"

    @property
    def kind(self) -> str:
        """Its row in the table."""
        title = CHIPS[self.chip].title
        return f"registers: {title}" if self.usb == "bridge" else f"own USB: {title}, {self.usb}"

    @property
    def config(self) -> dict[str, Any]:
        """What the board is to be configured with."""
        return {"usb": self.usb, "usb_leaves_at": self.leaves, "usb_back_s": BACK_S}


@cache
def contents(chip: str) -> bytes:
    """A board whose old firmware runs, with a robot's keys in NVS."""
    old, _ = of_chip(chip)
    return bytes(make_flash(LAYOUT, app=old.data, slot=RUNS, version=old.tag, chip=chip))


def notes_of(chip: str) -> Notes:
    """What the journal knows of it."""
    old, _ = of_chip(chip)
    return Notes(known_facts(LAYOUT, RUNS, old, old.tag))


def trace(board: RealBoard, chip: str) -> list[Op]:
    """A session's operations that nothing disturbs."""
    _, new = of_chip(chip)
    board.load(contents(chip), Bootloader())
    job = Job("board", version=new.tag, image=new.image, boot=BOOT)
    outcome, ops = board.record(job, notes_of(chip))
    if outcome.end != "up_to_date":
        raise AssertionError(f"{chip}: ended {outcome.end}: {outcome.error}")
    return ops


def cuts_of(chip: str, ops: Sequence[Op], *, quick: bool) -> list[ChipCut]:
    """Its operations by registers, whole and torn; quick: one of otadata or of NVS, torn.
    Those two also over each of the chip's own USB ports, as it leaves the bus or stays."""
    body = range(SPARE.offset + FIRST_PAGE, SPARE.end)
    store = LAYOUT.find("nvs")
    by_register = [
        (at, store.offset <= op.op.offset < store.end)
        for at, op in enumerate(ops, 1)
        if op.who == "loader" and op.op.offset not in body
    ]
    last = {nvs: at for at, nvs in by_register}.values()
    if quick:
        each = sorted(last)
        return [ChipCut(chip, each[list(CHIPS).index(chip) % len(each)], MODES[0])]
    return [
        *(ChipCut(chip, at, mode) for at, _ in by_register for mode in MODES),
        *(
            ChipCut(chip, at, MODES[0], usb, leaves)
            for at in last
            for usb in CHIPS[chip].usb
            for leaves in ("hard-resets", "every-reset")
        ),
    ]


def cut(board: RealBoard, one: ChipCut) -> Tally:
    """Cut a session, judge what is left, and bring the board to its target."""
    old, new = of_chip(one.chip)
    before = nvs_of(region_of(Cells(contents(one.chip)), LAYOUT)).others
    board.load(contents(one.chip), Bootloader(), **one.config)
    board.control.cut_power_at(one.at, one.mode)  # type: ignore[arg-type]
    problems: list[Problem] = []
    job = Job("board", version=new.tag, image=new.image, boot=BOOT)
    try:
        outcome = board.session(job, notes_of(one.chip))
        problems.append(Problem("converge", f"without power it ended {outcome.end}"))
    except OtaError as error:
        if error.code != "link-lost":
            problems.append(Problem("converge", f"without power it ended {error}"))
    left = board.cells
    problems += _judge(one.chip, left, (old, new), before)
    since = board.control.state()["events"]
    board.control.power_on()
    board.control.wait_for("app", since=since)
    board.plugged()
    try:
        outcome = update(board, new, notes_of(one.chip))
        if outcome.end != "up_to_date":
            problems.append(Problem("converge", f"ended {outcome.end}: {outcome.error}"))
    except OtaError as error:
        problems.append(Problem("converge", str(error)))
    problems += _judge(one.chip, board.cells, (new,), before)
    if (have := stored(board.cells, LAYOUT)) != new.tag:
        problems.append(Problem("converge", f"stored {have!r} instead of {new.tag!r}"))
    tally = Tally()
    tally.add(one.kind, "cuts")
    tally.add(one.kind, "link")
    tally.fail(one.kind, one.name, problems, left)
    return tally


def _judge(
    chip: str, cells: Cells, boots: Sequence[Firmware], before: Mapping[Key, Value]
) -> list[Problem]:
    found = []
    copy = bytearray(cells.whole())
    result = boot(copy, chip=CHIPS[chip], revision=9999)
    data = b""
    if result.image is not None:
        data = bytes(copy[result.image.offset : result.image.offset + result.image.size])
    if data not in [firmware.data for firmware in boots]:
        found.append(Problem("lost", f"boots {result.slot or 'nothing'}: {result.error}"))
    now = nvs_of(region_of(cells, LAYOUT))
    if now.error is not None or now.others != before:
        found.append(Problem("keys", now.error or "keys are not what they were"))
    return found


def prove_chips(folder: Path, each: int, *, quick: bool) -> Iterator[Tally]:
    """Each chip's cuts; each: so many boards of a chip at once."""
    with Boards(folder, each, chips=CHIP_NAMES, seed=2) as boards:
        traces = list(boards.each(trace, CHIP_NAMES, str))
        some = [
            one
            for chip, ops in zip(CHIP_NAMES, traces, strict=True)
            for one in cuts_of(chip, ops, quick=quick)
        ]
        yield from boards.each(cut, some, lambda one: one.chip)
