# SPDX-License-Identifier: GPL-3.0-or-later
"""The robot's own word, over real gRPC: a module that has a board's port, and says what it thinks.

Its resource is the machine's, so our module reaches it as it would through viam-server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
from viam.components.generic import Generic
from viam.components.sensor import Sensor

from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.link.ownership import PORT_OWNERS
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SERVICE, Machine, eventually
from tests.support.rig import PROJECT

pytestmark = pytest.mark.slow

BOOT = {"boot_timeout_s": 4, "boot_stable_s": 0.3}
CALLS: dict[str, Any] = {
    "before_restart": {
        "resource": "arm",
        "command": {"do": "release"},
        "expect": {"port": {"free": True}, "joints": 6},
    },
    "after_restart": {"resource": "rdk:component:generic/arm", "command": {"do": "take"}},
    "health_check": {
        "resource": "arm",
        "command": {"do": "health"},
        "expect": {"healthy": True},
        "timeout_s": 2,
    },
}


class Arm(Generic):
    """A module's resource that drives a board: it has the port, and lets go of it when it is told
    to and may. health: its reply, or what it raises. silent: it hears, and never replies."""

    def __init__(self, port: str, health: Any = None) -> None:
        super().__init__("arm")
        self.port = port
        self.may_release = self.silent = False
        self.health: Any = {"healthy": True} if health is None else health
        self.heard: list[str] = []
        self.released = asyncio.Event()
        self.holds = ExitStack()
        self.take()

    def take(self) -> None:
        """It has the port from now on."""
        self.holds.enter_context(PORT_OWNERS.claim(self.port, "arm"))

    async def do_command(self, command: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        """Release the port, take it again, or say how it is."""
        what = str(command["do"])
        self.heard.append(what)
        if what == "release":
            self.released.set()
            if self.silent:
                await asyncio.Event().wait()
            if self.may_release:
                self.holds.close()
            return {"port": {"free": self.may_release, "at": self.port}, "joints": 6}
        if what == "take":
            self.take()
            return {}
        if isinstance(self.health, Exception):
            raise self.health
        return dict(self.health)


class Desk:
    """A machine with one board whose arm is the machine's, and a server of firmware."""

    def __init__(self, machine: Machine, server: FirmwareServer, arm: Arm) -> None:
        self.machine = machine
        self.server = server
        self.arm = arm
        self.before = ""

    async def configure(self, version: str, **attributes: Any) -> None:
        """Add the service, or change its attributes."""
        app = build_app(PROJECT, version, size_bytes=60_000)
        url = self.server.put(f"/{version}.bin", app)
        board = {"name": "a", "port": self.arm.port}
        wanted = {"url": url, "version": version, "boards": [board], **BOOT, **CALLS, **attributes}
        if any(name.name == "OTA" for name in self.machine._server.resources):
            run = (await self.status())["run"]
            self.before = run["id"] if run["outcome"] != "running" else ""
            await self.machine.remove(SERVICE, "OTA")
        await self.machine.add(SERVICE, "OTA", wanted)

    async def status(self) -> dict[str, Any]:
        """What the service shows."""
        return dict(await self.machine.service("OTA").get_status())

    async def until(self, condition: Any) -> dict[str, Any]:
        """The first status that fulfils a condition."""
        return dict(await eventually(self.status, condition, timeout_s=60))

    async def ended(self, version: str) -> dict[str, Any]:
        """The status when the run for a version is over."""

        def over(status: dict[str, Any]) -> bool:
            run = status.get("run", {"outcome": "running"})
            mine = status["target"]["version"] == version and run.get("id") != self.before
            return bool(mine and run["outcome"] != "running")

        return await self.until(over)


@asynccontextmanager
async def desk(folder: Path, health: Any = None) -> AsyncIterator[Desk]:
    """All of it, until the test ends."""
    with SimProcess(folder / "boards", [SimBoard("guide")]) as sim:
        arm = Arm(sim.boards[0].url, health)
        with arm.holds:
            async with FirmwareServer.start() as server, Machine.start(folder / "m") as machine:
                machine.have(arm)
                yield Desk(machine, server, arm)


def code_of(status: dict[str, Any]) -> str:
    """Of the board's error; "" where it has none."""
    return str(status["boards"]["a"].get("error", {}).get("code", ""))


async def test_a_module_that_has_the_port_lets_go_of_it_and_gets_it_back(tmp_path: Path) -> None:
    """Its no is waited for, and no attempt; every session is between a release and a take; a no to
    the new firmware takes it back with the reply's words."""
    async with desk(tmp_path) as at:
        arm = at.arm
        await at.configure("1.1.0")
        waits = await at.until(lambda status: code_of(status) == "not-allowed-now")
        assert '"free": false' in waits["boards"]["a"]["error"]["message"]
        assert "attempts" not in waits["boards"]["a"]
        assert "take" not in arm.heard  # who says no has done nothing
        arm.may_release = True
        board = (await at.ended("1.1.0"))["boards"]["a"]
        assert (board["state"], board["good"], board["version"]) == ("up_to_date", True, "1.1.0")
        assert arm.heard[-3:] == ["release", "take", "health"]
        service = at.machine.service("OTA")
        for asked in ({"command": "version"}, {"command": "update", "dry_run": True}):
            arm.heard.clear()
            reply = await service.do_command(asked)
            assert "error" not in reply.get("boards", reply.get("plan"))["a"], reply
            assert arm.heard == ["release", "take"]

        # The arm is built anew by the very change of configuration that starts the update.
        arm.holds.close()
        await at.machine.lose(arm)
        at.arm = arm = Arm(arm.port, {"healthy": False, "why": "a wheel is stuck"})
        arm.may_release = True
        with arm.holds:
            at.machine.have(arm)
            await at.configure("1.2.0")
            status = await at.ended("1.2.0")
            board = status["boards"]["a"]
            assert (board["state"], board["version"], board["good"]) == (
                "rolled_back",
                "1.1.0",
                False,
            )
            assert code_of(status) == "check-failed"
            assert "a wheel is stuck" in board["error"]["message"]
            assert status["run"]["outcome"] == "failed"
            assert arm.heard == ["release", "take", "health", "release", "take"]
            history = await service.do_command({"command": "history", "limit": 1})
            entry = history["runs"][0]["boards"]["a"]
            assert (entry["from"], entry["to"]) == ("1.1.0", "1.1.0")
            assert entry["error"]["code"] == "check-failed"
            assert "checking" in entry["phases"]


async def test_nobody_answers_the_health_check(tmp_path: Path) -> None:
    """The new firmware stays, and is not good; the next run asks again."""
    async with desk(tmp_path, RuntimeError("not ready")) as at:
        at.arm.may_release = True
        await at.configure("1.1.0")
        status = await at.ended("1.1.0")
        board = status["boards"]["a"]
        assert (board["state"], board["version"], board["good"]) == ("up_to_date", "1.1.0", False)
        assert code_of(status) == "check-unanswered"
        assert "not ready" in board["error"]["message"]
        assert status["run"]["outcome"] == "failed"
        at.arm.health = {"healthy": True}
        service = at.machine.service("OTA")
        reply = await service.do_command({"command": "update", "wait_s": 60})
        assert reply["run"]["outcome"] == "succeeded"
        board = (await at.status())["boards"]["a"]
        assert (board["good"], "error" in board) == (True, False)


@pytest.mark.parametrize("ends", ["killed", "told", "checking"])
async def test_what_is_owed_is_paid(tmp_path: Path, ends: str) -> None:
    """Of a process that is told to end at once, of a killed one by the next; which also asks about
    the firmware that the killed one was about to ask about."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        arm = Arm(sim.boards[0].url)
        with arm.holds:
            arm.may_release, arm.silent = True, ends == "killed"
            arm.health = RuntimeError("not ready") if ends == "checking" else arm.health
            async with FirmwareServer.start() as server:
                async with Machine.start(tmp_path / "m") as machine:
                    machine.have(arm)
                    at = Desk(machine, server, arm)
                    check = CALLS["health_check"] | {"timeout_s": 100}
                    await at.configure("1.1.0", health_check=check)
                    await asyncio.wait_for(arm.released.wait(), 30)
                    if ends == "checking":
                        await at.until(lambda s: s["boards"]["a"].get("phase") == "checking")
                        await machine.module.kill()
                    elif ends == "killed":
                        await machine.module.kill()
                        assert arm.heard == ["release"]
                    else:
                        await machine.module.terminate(timeout_s=10)
                        assert arm.heard == ["release", "take"]
                        return
                arm.silent, arm.health = False, {"healthy": True}
                arm.heard.clear()
                async with Machine.start(tmp_path / "m") as machine:
                    machine.have(arm)
                    at = Desk(machine, server, arm)
                    await at.configure("1.1.0")
                    board = (await at.ended("1.1.0"))["boards"]["a"]
                    assert (board["state"], board["good"]) == ("up_to_date", True)
                    # What is owed is called until it is answered, or paid by the session.
                    heard = list(dropwhile(lambda word: word == "take", arm.heard))
                    assert heard == ["release", "take", "health"]
                    assert ends == "killed" or heard == arm.heard


class Door(Sensor):
    """It is shut."""

    async def get_readings(self, **_: Any) -> Mapping[str, Any]:
        """It allows it."""
        return {"shut": True}


async def test_a_dead_sensor_allows_nothing_and_takes_nothing_away(tmp_path: Path) -> None:
    """The service is there without it; where Viam builds it later, and adds the service anew with
    it, the run goes on."""
    async with desk(tmp_path) as at:
        at.arm.may_release = True
        allow = {"sensor": "door", "key": "shut"}
        await at.configure("1.1.0", allow_restart=allow)
        await at.until(lambda status: code_of(status) == "not-allowed-now")
        assert at.arm.heard == []
        at.machine.have(Door("door"))
        await at.configure("1.1.0", allow_restart=allow)
        board = (await at.ended("1.1.0"))["boards"]["a"]
        assert (board["state"], board["good"]) == ("up_to_date", True)


async def test_an_activation_is_judged_as_an_update(tmp_path: Path) -> None:
    """Staging asks the robot for its port, too, and not about a firmware that does not run yet."""
    async with desk(tmp_path) as at:
        at.arm.may_release = True
        await at.configure("1.1.0", auto_update=False)
        service = at.machine.service("OTA")
        reply = await service.do_command({"command": "stage", "wait_s": 60})
        assert reply["run"]["outcome"] == "succeeded", reply
        assert at.arm.heard == ["release", "take"]
        reply = await service.do_command({"command": "activate", "wait_s": 60})
        assert reply["run"]["outcome"] == "succeeded", reply
        assert at.arm.heard[2:] == ["release", "take", "health"]
        board = (await at.status())["boards"]["a"]
        assert (board["state"], board["good"], board["version"]) == ("up_to_date", True, "1.1.0")
        at.arm.health = {"healthy": False}
        await at.configure("1.2.0", auto_update=False)
        await service.do_command({"command": "stage", "wait_s": 60})
        reply = await service.do_command({"command": "activate", "wait_s": 60})
        assert reply["run"]["outcome"] == "failed"
        board = (await at.status())["boards"]["a"]
        assert (board["state"], board["version"]) == ("rolled_back", "1.1.0")
        assert board["error"]["code"] == "check-failed"
