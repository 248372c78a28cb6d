# SPDX-License-Identifier: GPL-3.0-or-later
"""A board on a header, whose EN and boot pin are wired to GPIO lines, through the module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esp32_sim.process import SimBoard, SimProcess
from tests.support.firmware_server import FirmwareServer
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig
from tests.support.wired import EN, IO0, STAND_IN, pulled, wire

pytestmark = pytest.mark.slow


async def test_a_board_that_was_left_in_reset_is_freed_and_updated(tmp_path: Path) -> None:
    """At the module's start, before anything is asked of it; then it is updated by its pins."""
    spec = SimBoard("guide", config={"reset_lines": False})
    with SimProcess(tmp_path / "boards", [spec]) as sim:
        board, chip = sim.boards[0], tmp_path / "gpiochip0"
        pins = wire(chip, board)
        # As a process leaves it that was killed while EN was low.
        low = {"direction": 3, "value": 0, "pid": 0}
        (chip / "lines.json").write_text(json.dumps({str(EN): low, str(IO0): low}))
        board.control.pull(en=True, io0=True)
        since = board.control.wait_for("power-on")["number"]
        async with (
            FirmwareServer.start() as server,
            ModuleProcess.start(tmp_path / "machine", env={"PYTHONPATH": STAND_IN}) as module,
        ):
            rig = Rig(tmp_path, sim, server, module, ["a"])
            reset = {"gpiochip": pins.gpiochip, "pins": {"en": EN, "boot": IO0}}
            url, own = rig.serve("1.1.0"), {"a": {"reset": reset}}
            await rig.configure(url=url, version="1.1.0", pins=own, auto_update=False)
            board.control.wait_for("app", since=since)
            assert board.control.counters().get("opened", 0) == 0
            assert pulled(chip) == {EN: False, IO0: False}

            await module.command(NAME, {"command": "update"})
            status = await rig.settled("1.1.0")
            assert status["boards"]["a"]["state"] == "up_to_date", status
            assert board.control.running()["version"] == "1.1.0"
            assert pulled(chip) == {EN: False, IO0: False}
