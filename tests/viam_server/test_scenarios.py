# SPDX-License-Identifier: GPL-3.0-or-later
"""What the other tests prove over the module's socket, once more under a real viam-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from viam.components.sensor import Sensor
from viam.services.discovery import Discovery

from esp32_sim.images import build_app
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.module.config import parse_config
from ota_service.module.plain import from_struct
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import eventually
from tests.support.rig import BOOT, PROJECT
from tests.viam_server.server import DISCOVERY, SENSOR, SERVICE, ViamServer

# Some seconds of writing at the usual speed, to do something in the middle of.
LONG_BYTES = 600_000


@pytest.fixture
async def firmware() -> AsyncIterator[FirmwareServer]:
    """A server of App Images."""
    async with FirmwareServer.start() as server:
        yield server


def serve(firmware: FirmwareServer, version: str, size_bytes: int = 100_000) -> dict[str, Any]:
    """url and version of an App Image that is served."""
    image = build_app(PROJECT, version, size_bytes=size_bytes)
    return {"url": firmware.put(f"/{version}.bin", image), "version": version}


def service(board: RunningBoard, *, name: str = "OTA", **attributes: Any) -> dict[str, Any]:
    """A service with one board, "a"."""
    boards = [{"name": "a", "port": board.url}]
    return {"name": name, **SERVICE, "attributes": {"boards": boards, **BOOT, **attributes}}


def holds(version: str) -> Any:
    """Whether board "a" is up to date with a version."""
    return lambda status: (
        status["boards"]["a"]["state"] == "up_to_date"
        and status["boards"]["a"]["version"] == version
    )


def writes(status: Any) -> bool:
    """Whether board "a" is in the middle of a write."""
    percent: float = status["boards"]["a"].get("progress", {}).get("percent", 0)
    return 5 < percent < 80


async def app_version(board: RunningBoard, timeout_s: float = 15.0) -> str:
    """The version of the app that runs on a board, waited for."""

    async def app() -> dict[str, Any]:
        state = await asyncio.to_thread(board.control.state)
        return dict(state["app"])

    return str((await eventually(app, bool, timeout_s=timeout_s))["version"])


@pytest.mark.parametrize("tcp", [False, True], ids=["unix socket", "tcp"])
async def test_the_plain_configuration(tmp_path: Path, firmware: FirmwareServer, tcp: bool) -> None:
    """A bare "model": "ota_service" is found, updates its board, and answers commands."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        plain = service(sim.boards[0], **serve(firmware, "1.1.0"))
        for key in SERVICE:
            del plain[key]
        plain |= {"namespace": "rdk", "type": "generic", "model": "ota_service"}
        module = {"tcp_mode": tcp}
        async with ViamServer.start(tmp_path / "m", services=[plain], module=module) as server:
            await server.wait_status(holds("1.1.0"))
            reply = await server.command("version")
            assert reply["boards"]["a"]["version"] == "1.1.0"
            assert await app_version(sim.boards[0]) == "1.1.0"


async def test_a_new_version_in_the_configuration(tmp_path: Path, firmware: FirmwareServer) -> None:
    """The file changes, the board follows."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        board = sim.boards[0]
        first = service(board, **serve(firmware, "1.1.0"))
        async with ViamServer.start(tmp_path / "m", services=[first]) as server:
            await server.wait_status(holds("1.1.0"))
            server.configure(services=[service(board, **serve(firmware, "1.2.0"))])
            await server.wait_status(holds("1.2.0"))
            assert await app_version(board) == "1.2.0"


async def test_a_change_in_the_middle_of_a_write_joins_the_run(
    tmp_path: Path, firmware: FirmwareServer
) -> None:
    """Same target: viam-server makes the resource anew, the board notices nothing."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide", config={"timed": True})]) as sim:
        board, target = sim.boards[0], serve(firmware, "1.1.0", LONG_BYTES)
        before = service(board, **target)
        async with ViamServer.start(tmp_path / "m", services=[before]) as server:
            run = (await server.wait_status(writes))["run"]["id"]
            server.configure(services=[service(board, **target, max_parallel=2)])
            status = await server.wait_status(holds("1.1.0"))
            assert status["run"]["id"] == run
            assert board.control.counters()["opened"] == 1


async def test_companions(tmp_path: Path, firmware: FirmwareServer) -> None:
    """The sensor reaches its service through viam-server's order of things; discovery finds a
    free board, whose configuration lacks nothing but a firmware."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide"), SimBoard("micro-rdk")]) as sim:
        ports = [board.url for board in sim.boards]
        config = {
            "components": [{"name": "state", **SENSOR, "attributes": {"service": "OTA"}}],
            "services": [
                service(sim.boards[0], **serve(firmware, "1.1.0")),
                {"name": "find", **DISCOVERY, "attributes": {"ports": ports}},
            ],
        }
        async with ViamServer.start(tmp_path / "m", **config) as server:
            await server.wait_status(holds("1.1.0"))
            async with server.client() as robot:
                readings = await Sensor.from_robot(robot, "state").get_readings()
                find = Discovery.from_robot(robot, "find")
                found = await find.discover_resources(extra={"probe": True}, timeout=60)
            assert readings["safe"] is True
            assert readings["version_a"] == "1.1.0"
            assert readings["boards_up_to_date"] == 1
            free, ours = (from_struct(item.attributes) for item in found)
            assert [board["port"] for board in free["boards"]] == [ports[1]]
            assert [board["port"] for board in ours["boards"]] == [ports[0]]
            parse_config(free | serve(firmware, "1.1.0"))


async def test_maintenance_holds_changes_back(tmp_path: Path, firmware: FirmwareServer) -> None:
    """A new target waits until the board that is being written is done."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide", config={"timed": True})]) as sim:
        board = sim.boards[0]
        rest: dict[str, Any] = {
            "components": [{"name": "state", **SENSOR, "attributes": {"service": "OTA"}}],
            "maintenance": {
                "sensor_name": "rdk:component:sensor/state",
                "maintenance_allowed_key": "safe",
            },
        }
        old = service(board, **serve(firmware, "1.1.0", LONG_BYTES))
        new = service(board, **serve(firmware, "1.2.0"))
        async with ViamServer.start(tmp_path / "m", services=[old], **rest) as server:
            await server.wait_status(writes)
            server.configure(services=[new], **rest)
            status = await server.wait_status(lambda s: s["run"]["outcome"] != "running")
            assert status["target"]["version"] == "1.1.0"
            assert status["boards"]["a"]["version"] == "1.1.0"
            # A file is looked at when it changes, so what was held back is offered once more.
            server.configure(services=[new], **rest)
            await server.wait_status(holds("1.2.0"))


async def test_two_services_that_claim_one_board(tmp_path: Path, firmware: FirmwareServer) -> None:
    """The machine's status names both; one of them has the board and updates it."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        target = serve(firmware, "1.1.0")
        services = [service(sim.boards[0], name=name, **target) for name in ("OTA", "OTA2")]
        services[1]["depends_on"] = ["OTA"]  # so that it is clear which one comes first
        async with ViamServer.start(tmp_path / "m", services=services) as server:
            await server.wait_status(holds("1.1.0"))

            async def error() -> str:
                async with server.client() as robot:
                    machine = await robot.get_machine_status()
                return next(
                    (item.error for item in machine.resources if item.name.name == "OTA2"), ""
                )

            text = await eventually(error, lambda error: "claimed by two services" in error)
            assert "OTA and OTA2" in text


async def test_a_job_updates(tmp_path: Path, firmware: FirmwareServer) -> None:
    """With auto_update off, only the job's command does."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        target = serve(firmware, "1.1.0")
        config = {
            "services": [service(sim.boards[0], **target, auto_update=False)],
            "jobs": [
                {
                    "name": "nightly",
                    "schedule": "3s",
                    "resource": "OTA",
                    "method": "DoCommand",
                    "command": {"command": "update"},
                }
            ],
        }
        async with ViamServer.start(tmp_path / "m", **config) as server:
            status = await server.wait_status(holds("1.1.0"))
            assert status["run"]["trigger"] == "command"


async def test_data_capture(tmp_path: Path, firmware: FirmwareServer) -> None:
    """The status and the readings arrive in the data manager's files."""
    captured = tmp_path / "captured"

    def capture(method: str, **more: Any) -> list[dict[str, Any]]:
        methods = [{"method": method, "capture_frequency_hz": 5, **more}]
        return [{"type": "data_manager", "attributes": {"capture_methods": methods}}]

    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        ota = service(sim.boards[0], **serve(firmware, "1.1.0"))
        ota["service_configs"] = capture(
            "DoCommand", additional_params={"docommand_input": {"command": "status"}}
        )
        config = {
            "components": [
                {
                    "name": "state",
                    **SENSOR,
                    "attributes": {"service": "OTA"},
                    "service_configs": capture("Readings"),
                }
            ],
            "services": [
                ota,
                {
                    "name": "data",
                    "api": "rdk:service:data_manager",
                    "model": "rdk:builtin:builtin",
                    "attributes": {"capture_dir": str(captured), "sync_disabled": True},
                    "depends_on": ["OTA"],
                },
            ],
        }
        async with ViamServer.start(tmp_path / "m", **config) as server:
            await server.wait_status(holds("1.1.0"))

            async def stored() -> bytes:
                files = [file for file in captured.rglob("*") if file.is_file()]
                return b"".join(file.read_bytes() for file in files)

            await eventually(
                stored, lambda data: b"version_read_at" in data and b"boards_up_to_date" in data
            )


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "crash of the module"])
async def test_an_end_in_the_middle_of_a_write(
    tmp_path: Path, firmware: FirmwareServer, how: str
) -> None:
    """Asked to stop, the board runs its old firmware again; whatever the end, the next start
    brings the update to its end."""
    with SimProcess(tmp_path / "boards", [SimBoard("guide", config={"timed": True})]) as sim:
        board = sim.boards[0]
        config = {"services": [service(board, **serve(firmware, "1.1.0", LONG_BYTES))]}
        async with ViamServer.start(tmp_path / "m", **config) as server:
            await server.wait_status(writes)
            if how == "crash of the module":
                server.kill_module()
            elif how == "SIGKILL":
                await server.kill()
                await server.run()
            else:
                await server.terminate()
                assert await app_version(board) == "1.0.0"
                await server.run()
            status = await server.wait_status(holds("1.1.0"))
            assert status["run"]["trigger"] in ("resumed", "configured")
            assert await app_version(board) == "1.1.0"
