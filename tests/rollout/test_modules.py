# SPDX-License-Identifier: GPL-3.0-or-later
"""The command in a process of its own, our real modules on simulated boards as the machines."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from tests.rollout.fakeapp import Call, FakeApp, Moment
from tests.rollout.machines import NAME, RealMachine
from tests.support.command import ended, environment, run_command, start_command
from tests.support.firmware_server import FirmwareServer
from tests.support.rig import BOOT, PROJECT

pytestmark = pytest.mark.slow
NAMES = ("m0", "m1", "m2", "m3")


def image(version: str, **behaviour: Any) -> bytes:
    """An App Image whose app says that it is `version`."""
    return build_app(PROJECT, version, size_bytes=40_000, behaviour=Behaviour(**behaviour))


async def test_waves_a_kill_a_bad_release_and_back(tmp_path: Path) -> None:
    """Three waves of 1, 2 and 1 machines, the tool killed after its second write; then a release
    that panics, which stays on the first machine, whose board went back; then undone."""
    async with AsyncExitStack() as stack:
        sim = stack.enter_context(
            SimProcess(tmp_path / "boards", [SimBoard("guide") for _ in NAMES])
        )
        server = await stack.enter_async_context(FirmwareServer.start())
        app = await stack.enter_async_context(FakeApp.start())
        site = app.location("site")
        fragment = app.fragment("esp32", {"services": [_service()]})
        old, new, bad = (
            server.put("/old.bin", image("1.0.0")),
            server.put("/new.bin", image("1.1.0")),
            server.put("/bad.bin", image("6.6.6", ending="panic", ending_after_s=0.1)),
        )
        machines = await asyncio.gather(
            *(
                stack.enter_async_context(
                    RealMachine.start(
                        app, site, name, _part(fragment.id, old, board.url), tmp_path / name
                    )
                )
                for name, board in zip(NAMES, sim.boards, strict=True)
            )
        )
        texts = [machine.machine.part.text for machine in machines]
        for machine in machines:
            await machine.settled("1.0.0")

        env = environment(tmp_path, **app.environment())
        plan = _plan(app, tmp_path / "new.json", new, "1.1.0")
        first = await start_command("rollout", "start", str(plan), env=env)

        def kill(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and call.nth == 2 and moment == "done":
                first.kill()

        stop = app.listen(kill)
        assert (await ended(first)).code == -9
        stop()
        # Those of one wave are written side by side.
        assert len(app.written) in (2, 3)
        done = await run_command("rollout", "start", str(plan), env=env, limit_s=120)
        assert done.code == 0, done
        assert [await _version(machine) for machine in machines] == ["1.1.0"] * 4
        assert len(app.written) == len(set(app.written)) == 4

        after = [machine.machine.part.text for machine in machines]
        plan = _plan(app, tmp_path / "bad.json", bad, "6.6.6")
        done = await run_command("rollout", "start", str(plan), env=env, limit_s=120)
        assert done.code == 1, done
        (hit,) = [machine for machine in machines if machine.machine.part.id in app.written[4:]]
        others = [machine for machine in machines if machine is not hit]
        assert [each.machine.part.text for each in others] == [
            text for machine, text in zip(machines, after, strict=True) if machine is not hit
        ]
        told = done.out + done.err
        assert hit.machine.name in told
        assert "Guru Meditation" in told or "abort()" in told
        assert [await _version(machine) for machine in machines] == ["1.1.0"] * 4

        done = await run_command("rollout", "undo", str(plan), env=env)
        assert done.code == 0, done
        assert [machine.machine.part.text for machine in machines] == after
        done = await run_command("rollout", "undo", str(tmp_path / "new.json"), env=env)
        assert done.code == 0, done
        assert [machine.machine.part.text for machine in machines] == texts


def _service() -> dict[str, Any]:
    return {
        "name": NAME,
        "api": "rdk:service:generic",
        "model": "rdk:generic:ota_service",
        "attributes": {
            "url": {"$variable": {"name": "url"}},
            "version": {"$variable": {"name": "version"}},
            "boards": [],
            **BOOT,
        },
    }


def _part(fragment_id: str, url: str, port: str) -> dict[str, Any]:
    """What a machine has of its own: the fragment's variables, and its boards."""
    boards = [{"name": "a", "port": port}]
    return {
        "fragments": [{"id": fragment_id, "variables": {"url": url, "version": "1.0.0"}}],
        "fragment_mods": [
            {
                "fragment_id": fragment_id,
                "mods": [{"$set": {f"services.{NAME}.attributes.boards": boards}}],
            }
        ],
    }


def _plan(app: FakeApp, file: Path, url: str, version: str) -> Path:
    file.write_text(
        json.dumps(
            {
                "select": {"fragment": next(iter(app.fragments))},
                "service": NAME,
                "target": {"url": url, "version": version},
                "waves": [1, 2, "100%"],
                "soak": "0s",
                "max_failed": 0,
                "mode": "variables",
            }
        )
    )
    return file


async def _version(machine: RealMachine) -> Any:
    status = await machine.settled()
    return status["boards"]["a"]["version"]
