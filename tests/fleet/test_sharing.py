# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands at a terminal beside each other, and beside a service, with one state folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.firmware.target import Target
from ota_service.fleet.service import FleetService, shutdown
from ota_service.fleet.settings import Settings
from tests.support.command import ended, environment, printed, run_command, start_command
from tests.support.rig import PROJECT

QUICK = ("--boot-timeout", "4", "--boot-stable", "0.5")
TIMED = {"timed": True}


def image(folder: Path) -> str:
    """An App Image in a file; boards with true times take seconds for it."""
    path = folder / "app.bin"
    path.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=700_000))
    return str(path)


@pytest.mark.slow
async def test_two_commands_update_two_boards_at_once(tmp_path: Path) -> None:
    """Neither meets `state-busy`, and what each has learned is there for the next one."""
    app, env = image(tmp_path), environment(tmp_path)
    with SimProcess(tmp_path / "boards", [SimBoard("guide"), SimBoard("guide")]) as sim:
        words = [("update", board.url, "--file", app, *QUICK, "--json") for board in sim.boards]
        done = await asyncio.gather(*(run_command(*one, env=env) for one in words))
        assert [one.code for one in done] == [0, 0], done
        assert {board.control.running()["version"] for board in sim.boards} == {"1.1.0"}
        for one, name in zip(words, ("board-1", "board-2"), strict=True):
            again = await run_command(*one, env=env)
            assert json.loads(again.out)["boards"][name]["action"] == "none"


@pytest.mark.slow
async def test_a_second_command_for_a_board_is_told_who_has_its_port(tmp_path: Path) -> None:
    """While the first one writes, another board is updated all the same."""
    app, env = image(tmp_path), environment(tmp_path)
    with SimProcess(tmp_path / "boards", [SimBoard("guide", config=TIMED), SimBoard("guide")]) as s:
        one, two = s.boards
        slow = ("--baud", "115200")  # a minute, in which the others are done
        first = await start_command("update", one.url, "--file", app, *slow, *QUICK, env=env)
        await printed(first, b"writing 0 %")
        plan = await run_command("update", one.url, "--file", app, "--dry-run", "--json", env=env)
        told = json.loads(plan.out)["plan"]["board-1"]
        assert (told["action"], told["code"]) == ("refuse", "port-busy")
        assert f"pid {first.pid} " in told["reason"]
        done = await run_command("update", two.url, "--file", app, *QUICK, env=env)
        assert done.code == 0, done
        assert first.returncode is None
        first.send_signal(signal.SIGINT)
        assert "The board is left bootable" in (await ended(first, limit_s=30)).out


@pytest.mark.slow
async def test_a_command_beside_a_service_is_told_its_name(tmp_path: Path) -> None:
    """And the service, while a command is at work (tests/journal has that way round)."""
    settings = Settings(
        "OTA",
        Target("http://127.0.0.1:9/x.bin", "1"),
        boards=(),
        state_dir=tmp_path / "state" / "ota-service",
        cache_dir=tmp_path / "cache",
    )
    await FleetService.open(settings)
    try:
        done = await run_command(
            *("update", "/dev/null", "--file", image(tmp_path)), env=environment(tmp_path)
        )
        assert done.code == 1
        assert "[state-busy]" in done.err
        assert f"pid {os.getpid()} " in done.err
    finally:
        await shutdown()
