# SPDX-License-Identifier: GPL-3.0-or-later
"""A GPIO chip whose lines 17 and 18 are wired to a simulated board (`gpiod_stand_in`)."""

from __future__ import annotations

import json
from pathlib import Path

from esp32_sim.process import RunningBoard
from ota_service.link.resets import ResetPins

STAND_IN = str(Path(__file__).parent / "gpiod_stand_in")
EN, IO0 = 17, 18


def wire(chip: Path, board: RunningBoard) -> ResetPins:
    """Make the chip."""
    chip.mkdir()
    wiring = {str(EN): [str(board.dir), "en"], str(IO0): [str(board.dir), "io0"]}
    (chip / "wiring.json").write_text(json.dumps(wiring))
    return ResetPins(str(chip), EN, IO0)


def pulled(chip: Path) -> dict[int, bool]:
    """Which lines are driven low."""
    lines = json.loads((chip / "lines.json").read_text())
    return {int(pin): one["direction"] == 3 and one["value"] == 0 for pin, one in lines.items()}


def edges(chip: Path) -> list[tuple[int, bool]]:
    """Each change of a line: which, and whether it is low from then on."""
    told = [line.split() for line in (chip / "edges.txt").read_text().splitlines()]
    return [(int(pin), value == "0") for _, pin, value in told]
