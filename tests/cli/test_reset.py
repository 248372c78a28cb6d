# SPDX-License-Identifier: GPL-3.0-or-later
"""`--reset` of the command, for boards whose port has no DTR and RTS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from tests.support.command import ended, environment, here, run_command, start_command
from tests.support.wired import STAND_IN, wire

BOARD = SimBoard("guide", config={"reset_lines": False})


@pytest.mark.parametrize(
    "given", ["", "byhand", "17,18", "gpiochip0", "gpiochip0:en=17", "gpiochip0:en=17,boot=17"]
)
def test_what_resets_nothing_is_refused(given: str) -> None:
    """As wrong usage, with both forms."""
    done = here("inspect", "/dev/null", "--reset", given)
    assert done.code == 2
    assert "by-hand" in done.err
    assert "gpiochip0:en=17,boot=18" in done.err


@pytest.mark.slow
async def test_a_board_is_updated_by_pins(tmp_path: Path) -> None:
    """From the command on."""
    firmware = tmp_path / "app.bin"
    firmware.write_bytes(build_app(version="2.0.0", size_bytes=30_000))
    with SimProcess(tmp_path / "boards", [BOARD]) as sim:
        board = sim.boards[0]
        board.control.running()
        pins = wire(tmp_path / "gpiochip0", board)
        env = environment(tmp_path)
        env["PYTHONPATH"] += f"{os.pathsep}{STAND_IN}"
        reset = ("--reset", f"{pins.gpiochip}:en={pins.en},boot={pins.boot}")
        start = ("--boot-stable", "0.5")
        done = await run_command(
            "update", board.url, "--file", str(firmware), *reset, *start, env=env
        )
        assert done.code == 0, done.err + done.out
        assert board.control.running()["version"] == "2.0.0"
        (tmp_path / "gpiod.py").write_text("raise ImportError")
        env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
        done = await run_command("inspect", board.url, *reset, env=env)
        assert done.code == 1
        assert "gpiod, version 2, is not installed" in done.err
        assert done.err.splitlines()[-1].endswith("[no-reset]")


@pytest.mark.slow
async def test_a_board_is_inspected_by_hand(tmp_path: Path) -> None:
    """The person is told on stderr what to press."""
    with SimProcess(tmp_path / "boards", [BOARD]) as sim:
        board = sim.boards[0]
        board.control.running()
        process = await start_command(
            "inspect", board.url, "--reset", "by-hand", "--json", env=environment(tmp_path)
        )
        assert process.stderr is not None
        told = []
        while line := (await process.stderr.readline()).decode():
            if "press and let go RESET" in line:
                told.append(line)
                board.control.reset(boot_button="hold BOOT" in line)
        done = await ended(process)
        assert done.code == 0, told
        assert board.mac in done.out
        assert [("hold BOOT" in line) for line in told] == [True, False, True, False]
        assert board.control.running()["version"] == "1.0.0"
