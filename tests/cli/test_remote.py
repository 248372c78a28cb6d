# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota remote` through a machine's robot server, against the real module and boards."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from tests.support.command import Done, environment, run_command
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SERVICE, Machine
from tests.support.rig import BOOT, PROJECT


class Desk:
    """A person's terminal, and the machine that it talks to."""

    def __init__(self, machine: Machine, sim: SimProcess) -> None:
        self.machine = machine
        self.sim = sim

    async def run(self, verb: str, *arguments: str) -> Done:
        """`esp32-ota remote VERB --address ... ARGUMENTS`."""
        address = self.machine.address
        return await run_command(
            "remote", verb, "--address", address, *arguments, env=environment()
        )

    async def json(self, verb: str, *arguments: str) -> Any:
        """The same with --json, which must end well."""
        done = await self.run(verb, *arguments, "--json")
        assert done.code == 0, done
        return json.loads(done.out)


@asynccontextmanager
async def desk(folder: Path, boards: int = 2, **attributes: Any) -> AsyncIterator[Desk]:
    """Boards a, b, ... at 1.0.0, and a service that would bring them to 1.1.0 on command."""
    image = build_app(PROJECT, "1.1.0", size_bytes=100_000)
    bad = build_app(PROJECT, "1.2.0", size_bytes=100_000, behaviour=Behaviour(
        ending="panic", ending_after_s=0.2))  # fmt: skip
    with SimProcess(folder / "boards", [SimBoard("guide")] * boards) as sim:
        async with FirmwareServer.start() as server, Machine.start(folder, tcp=True) as machine:
            url = server.put("/app.bin", image)
            named: list[dict[str, Any]] = [
                {"name": chr(ord("a") + n), "port": board.url} for n, board in enumerate(sim.boards)
            ]
            if attributes.pop("one_bad", False):
                named[-1] |= {"url": server.put("/bad.bin", bad), "version": "1.2.0"}
            config = {"url": url, "version": "1.1.0", "boards": named, "auto_update": False}
            await machine.add(SERVICE, "OTA", {**config, **BOOT, **attributes})
            yield Desk(machine, sim)


@pytest.mark.slow
async def test_the_life_of_two_boards_from_a_terminal(tmp_path: Path) -> None:
    """Dry run, update, status, version, verify, watch, rollback, release, history, cancel."""
    async with desk(tmp_path) as here:
        plan = await here.json("update", "--dry-run")
        assert {name: step["action"] for name, step in plan["plan"].items()} == {
            "a": "write",
            "b": "write",
        }
        done = await here.run("update", "a")
        assert done.code == 0, done
        assert done.out.splitlines()[-3].split() == ["board", "from", "to", "outcome", "seconds"]
        row = done.out.splitlines()[-2].split()
        assert row[:5] == ["a", "1.0.0", "1.1.0", "up", "to"]
        assert float(row[-1]) > 0
        assert "\x1b" not in done.out

        status = await here.json("status")
        assert status["boards"]["a"]["version"] == "1.1.0"
        assert type(status["boards"]["a"]["flash_bytes"]) is int
        shown = (await here.run("status")).out
        assert "up to date" in shown
        assert "1.1.0" in shown
        run = await here.json("watch")
        assert (run["outcome"], list(run["boards"])) == ("succeeded", ["a"])

        assert (await here.json("version", "a"))["boards"]["a"]["version"] == "1.1.0"
        assert "runs it" in (await here.run("verify", "a")).out
        both = await here.run("verify")
        assert both.code == 1
        assert "runs another" in both.out

        back = await here.json("rollback", "a")
        assert back["boards"]["a"]["version"] == "1.0.0"
        held = await here.run("update", "a")
        assert held.code == 1
        assert "rolled back" in held.out
        assert "Released: a." in (await here.run("release", "a")).out
        assert "Nothing was in progress" in (await here.run("cancel")).out

        staged = await here.run("stage", "b")
        assert staged.code == 0, staged
        assert "1.1.0 staged" in staged.out
        assert "outdated (1.1.0 staged)" in (await here.run("status")).out
        activated = await here.json("activate", "b")
        assert activated["boards"]["b"]["outcome"] == "up_to_date"
        nothing = await here.run("activate", "b")
        assert nothing.code == 0  # it is up to date
        assert "not-staged" not in nothing.out
        assert "error" not in (await here.json("status"))["boards"]["b"]

        runs = (await here.json("history", "--limit", "50"))["runs"]
        purposes = [run["target"].get("purpose", "update") for run in runs]
        assert purposes[::-1][:3] == ["plan", "update", "version"]
        table = (await here.run("history", "--limit", "3")).out.splitlines()
        assert len(table) == 4
        assert runs[0]["id"] in table[1]
        one = await here.run("history", "--id", runs[-2]["id"])
        assert "1.0.0  1.1.0" in one.out


@pytest.mark.slow
async def test_a_board_that_fails_is_told_with_its_remedy(tmp_path: Path) -> None:
    """The others' success stands; the exit code is 1."""
    async with desk(tmp_path, one_bad=True) as here:
        done = await here.run("update")
        assert done.code == 1
        assert "a      1.0.0  1.1.0  up to date" in done.out
        assert "rolled back" in done.out
        assert "configure a new version. [boot-failed]" in " ".join(done.out.split())
        assert "[boot-failed]" in done.out
        assert done.out.splitlines()[-1] == "The run succeeded in part."


@pytest.mark.slow
async def test_what_is_asked_wrongly_is_answered_in_one_line(tmp_path: Path) -> None:
    """Boards, services and addresses that do not exist; the words say what does."""
    async with desk(tmp_path, boards=1) as here:
        unknown, service, history = await asyncio.gather(
            here.run("update", "nobody"),
            here.run("status", "--name", "NOPE"),
            here.run("history", "--id", "nope"),
        )
        assert (unknown.code, unknown.err.splitlines()[-1]) == (
            1,
            'Error: there is no board "nobody"; the boards are: a [refused]',
        )
        assert service.code == 1
        assert "its generic services are OTA" in service.err
        assert history.code == 1
        assert "has no run nope" in history.err
    nobody = await run_command("remote", "status", "--address", here.machine.address)
    assert nobody.code == 1
    assert nobody.err.startswith(f"Error: {here.machine.address} cannot be reached")
    assert nobody.err.rstrip().endswith("[unreachable]")
    assert len(nobody.err.splitlines()) == 1


@pytest.mark.slow
async def test_a_key_is_whole_and_comes_from_the_environment() -> None:
    """Half a key, and a key in place of its id, are wrong usage; the help warns of the command
    line."""
    half, swapped, missing, help_ = await asyncio.gather(
        run_command("remote", "status", "--address", "a:1", env=environment(VIAM_API_KEY="k")),
        run_command(
            *("remote", "status", "--address", "a:1"),
            env=environment(VIAM_API_KEY=str(uuid.uuid4()), VIAM_API_KEY_ID="s3cret"),
        ),
        run_command("remote", "status"),
        run_command("remote", "--help"),
    )
    assert half.code == swapped.code == missing.code == 2
    assert "needs both" in half.err
    assert "no UUID" in swapped.err
    assert "s3cret" not in swapped.err
    assert "--address" in missing.err
    assert "Do not write them on the command" in " ".join(help_.out.split())


@pytest.mark.slow
async def test_eight_boards_at_once_end_with_a_line_each(tmp_path: Path) -> None:
    """A fleet's update is one table."""
    async with desk(tmp_path, boards=8, canary=False) as here:
        done = await here.run("update")
        assert done.code == 0, done
        rows = done.out.splitlines()[-9:-1]
        assert [row.split()[0] for row in rows] == list("abcdefgh")
        assert all("up to date" in row for row in rows)
