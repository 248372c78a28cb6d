# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards are restarted only when the robot allows it; the fleet driven in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import build_app
from esp32_sim.process import SimProcess
from ota_service.firmware.target import Target
from ota_service.fleet.service import FleetService, UnknownBoard, shutdown
from ota_service.fleet.settings import BoardEntry, NoSuchResource, RobotCall, Settings
from tests.support.firmware_server import FirmwareServer

pytestmark = pytest.mark.slow


def settings(folder: Path, url: str, port: str, **options: Any) -> Settings:
    """A service with one board."""
    return Settings(
        service="OTA",
        target=Target(url, "1.1.0"),
        boards=(BoardEntry("a", port=port),),
        boot_timeout_s=4,
        boot_stable_s=1,
        state_dir=folder / "state",
        cache_dir=folder / "cache",
        **options,
    )


async def until(
    service: FleetService, condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """The first status that fulfils `condition`."""
    async with asyncio.timeout(60):
        while True:
            status = service.status()
            if condition(status):
                return status
            await asyncio.sleep(0.05)  # the status has no event to await


async def test_a_run_waits_until_the_sensor_allows_it_or_is_overridden(tmp_path: Path) -> None:
    """No port is opened while the answer is no; it is no attempt, and the run goes on by itself."""
    allowed = asyncio.Event()

    class Sensor:
        async def may_restart(self) -> bool:
            return allowed.is_set()

        async def ask(self, call: RobotCall) -> Mapping[str, Any]:
            raise NoSuchResource(call.resource)

    with SimProcess(tmp_path / "boards", 1) as sim:
        async with FirmwareServer.start() as server:
            url = server.put("/x.bin", build_app(version="1.1.0", size_bytes=60_000))
            wanted = settings(tmp_path, url, sim.boards[0].url)
            service = await FleetService.open(wanted, robot=Sensor())
            try:
                status = await until(
                    service,
                    lambda s: s["boards"]["a"].get("error", {}).get("code") == "not-allowed-now",
                )
                assert status["state"] == "updating"
                assert status["boards"]["a"]["phase"] == "waiting"
                assert "attempts" not in status["boards"]["a"]
                assert status["target"]["project"] == "micro-rdk-server"  # downloaded and checked
                assert sim.boards[0].control.counters().get("opened", 0) == 0
                allowed.set()
                status = await until(service, lambda s: s["run"]["outcome"] != "running")
                assert status["boards"]["a"]["state"] == "up_to_date"
                allowed.clear()
                opened = sim.boards[0].control.counters()["opened"]
                await service.command("update", {"force": True, "wait_s": 0.3})
                status = await until(service, lambda s: s["boards"]["a"].get("error"))
                assert status["boards"]["a"]["error"]["code"] == "not-allowed-now"
                assert sim.boards[0].control.counters()["opened"] == opened
                asked = {"override": ["not-allowed-now"], "wait_s": 60}
                overridden = await service.command("update", asked)
                assert overridden["run"]["outcome"] == "succeeded"
                assert service.status()["state"] == "idle"  # the run that waited went on as well
                with pytest.raises(UnknownBoard, match="the boards are: a"):
                    await service.command("update", {"boards": ["b"]})
            finally:
                await shutdown()


async def test_close_is_idempotent_and_a_second_shutdown_does_no_harm(tmp_path: Path) -> None:
    """viam-server may call both more than once."""
    with SimProcess(tmp_path / "boards", 1) as sim:
        async with FirmwareServer.start() as server:
            url = server.put("/x.bin", build_app(version="1.1.0", size_bytes=60_000))
            service = await FleetService.open(settings(tmp_path, url, sim.boards[0].url))
            await service.close()
            await service.close()
            await shutdown()
            await shutdown()
            assert sim.boards[0].control.running()["version"] == "1.0.0"
