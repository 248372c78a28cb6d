# SPDX-License-Identifier: GPL-3.0-or-later
"""The sensor beside the service: its readings, its `safe`, and the ways to its service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from grpclib import GRPCError
from viam.components.sensor import Sensor
from viam.services.generic import Generic

from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.fleet.board_state import State
from ota_service.module.sensor import OtaSensor, readings_of
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SENSOR, SERVICE, Machine, eventually
from tests.support.module_client import IDLE_ATTRIBUTES as IDLE
from tests.support.rig import BOOT, PROJECT

STATUS: dict[str, Any] = {
    "ok": True,
    "state": "updating",
    "target": {"url": "http://x/app.bin", "version": "1.2.3"},
    "boards": {
        "kitchen": {"state": "up_to_date", "version": "1.2.3", "good": True},
        "24:0a:c4:00:00:01": {
            "state": "updating",
            "phase": "writing",
            "version": "1.2.2",
            "progress": {"bytes_done": 1, "bytes_total": 4, "percent": 25.0},
        },
        "cellar": {"state": "updating", "phase": "booting", "version": "1.2.2"},
        "roof": {"state": "failed", "error": {"code": "no-answer", "message": "..."}},
        "lidar": {"state": "candidate", "good": False},
    },
    "run": {"id": "x", "outcome": "running"},
}


def only(**board: Any) -> dict[str, Any]:
    """The readings of a service that has one board."""
    return readings_of({"boards": {"a": board}})


def test_the_readings_of_a_status() -> None:
    """Counts, progress, last error and each board, flat, under keys that anything can store."""
    readings = readings_of(STATUS)
    assert readings["state"] == "updating"
    assert readings["target_version"] == "1.2.3"
    assert readings["run_outcome"] == "running"
    assert readings["last_error_code"] == "no-answer"
    assert readings["boards_total"] == 5
    assert readings["boards_not_good"] == 3, "a candidate is nobody's board"
    assert readings["boards_updating"] == 2
    assert readings["boards_up_to_date"] == 1
    assert readings["boards_failed"] == 1
    assert readings["boards_absent"] == 0
    assert readings["percent"] == 62.5
    assert readings["safe"] is False
    assert readings["version_kitchen"] == "1.2.3"
    assert readings["version_24_0a_c4_00_00_01"] == "1.2.2"
    assert readings["state_cellar"] == "updating"
    assert readings["version_roof"] == ""
    assert all(type(value) in (str, int, float, bool) for value in readings.values())
    assert all(key.replace("_", "").isalnum() and key.isascii() for key in readings)


def test_the_keys_do_not_depend_on_what_happens() -> None:
    """A table of captured data keeps its columns; only boards add some."""
    busy, idle = readings_of(STATUS), readings_of({"state": "idle", "boards": {}})
    boards = {key for key in busy if key.startswith(("version_", "state_"))}
    assert busy.keys() - boards == idle.keys()
    assert {f"boards_{state}" for state in get_args(State)} < idle.keys()
    assert (idle["percent"], idle["safe"], idle["last_error_code"]) == (100.0, True, "")


def test_names_that_become_alike_stay_apart() -> None:
    """Two boards must not share a column."""
    readings = readings_of(
        {"boards": {n: {"state": "absent", "version": n} for n in ("a b", "a-b", "ü", "a_b_2")}}
    )
    versions = [key for key in readings if key.startswith("version_")]
    assert len(versions) == 4
    assert {readings[key] for key in versions} == {"a b", "a-b", "ü", "a_b_2"}


@pytest.mark.parametrize(
    ("board", "safe"),
    [
        ({"state": "updating", "phase": "connecting"}, False),
        ({"state": "updating", "phase": "writing"}, False),
        ({"state": "updating", "phase": "booting"}, False),
        ({"state": "updating"}, False),
        # It has its turn next.
        ({"state": "updating", "phase": "waiting"}, False),
        ({"state": "rolled_back", "phase": "rolling_back"}, False),
        # The way to a configuration that ends the waiting must not be barred by it.
        ({"state": "updating", "phase": "waiting", "error": {"code": "not-allowed-now"}}, True),
        ({"state": "updating", "phase": "waiting", "error": {"code": "port-busy"}}, True),
        ({"state": "updating", "phase": "connecting", "error": {"code": "port-busy"}}, False),
        ({"state": "awaiting_confirmation", "phase": "waiting"}, True),
        ({"state": "failed", "error": {"code": "link-lost"}}, True),
        ({"state": "outdated", "phase": "inspecting"}, True),
    ],
)
def test_safe_is_false_while_a_board_is_being_written(board: dict[str, Any], safe: bool) -> None:
    """Also while its start is watched, but not while it waits for somebody else."""
    assert only(**board)["safe"] is safe


@pytest.mark.slow
async def test_the_service_is_a_dependency_by_its_short_name(tmp_path: Path) -> None:
    """Viam then builds it first; faults are told in our words."""
    async with Machine.start(tmp_path) as machine:
        for given in ("OTA", "rdk:service:generic/OTA"):
            assert await machine.validate(SENSOR, "ota", {"service": given}) == (["OTA"], [])
        for attributes, text in (
            ({}, 'service: is missing; fill in the name of the OTA service, such as "OTA"'),
            ({"service": ""}, "service: is empty"),
            ({"service": 3}, "service: must be text"),
            ({"service": "OTA", "servce": 1}, "servce: is no attribute here; did you mean service"),
        ):
            with pytest.raises(GRPCError, match=text) as caught:
                await machine.validate(SENSOR, "ota", attributes)
            assert "config-invalid" in (caught.value.message or "")


@pytest.mark.slow
@pytest.mark.parametrize("parent", [True, False], ids=["parent", "no parent"])
async def test_it_reads_its_service_through_changes(tmp_path: Path, parent: bool) -> None:
    """With a machine around the module and without; also after the service was made anew."""
    async with Machine.start(tmp_path, parent=parent) as machine:
        await machine.add(SERVICE, "OTA", IDLE)
        await machine.add(SENSOR, "ota", {"service": "OTA"})
        # viam-server, data capture and a person ask independently of each other.
        answers = await asyncio.gather(*(machine.sensor("ota").get_readings() for _ in range(20)))
        readings = answers[0]
        assert all(answer == readings for answer in answers)
        assert readings["state"] == "idle"
        assert readings["target_version"] == IDLE["version"]
        assert readings["safe"] is True
        await machine.remove(SERVICE, "OTA")
        await machine.add(SERVICE, "OTA", IDLE | {"version": "2"})
        assert (await machine.sensor("ota").get_readings())["target_version"] == "2"
        if parent:
            async with machine.client() as robot:
                seen = await Sensor.from_robot(robot, "ota").get_readings()
                assert seen["target_version"] == "2"
                assert seen["boards_total"] == 0


class Elsewhere(Generic):
    """An OTA service of a remote machine, as a dependency hands it over."""

    async def do_command(self, command: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        return {}

    async def get_status(self, **_: Any) -> Mapping[str, Any]:
        return STATUS


async def test_a_service_elsewhere_is_asked_as_a_dependency() -> None:
    """A remote machine's service is not in this process."""
    sensor = OtaSensor("ota", "far:OTA", Elsewhere("far:OTA"))
    assert await sensor.get_readings() == readings_of(STATUS)
    assert await sensor.get_status() == readings_of(STATUS)


async def test_without_a_service_there_are_no_readings() -> None:
    """Made-up ones would be stored as if they were true."""
    with pytest.raises(OtaError, match='no OTA service "OTA"'):
        await OtaSensor("ota", "OTA").get_readings()


@pytest.mark.slow
async def test_the_readings_follow_an_update(tmp_path: Path) -> None:
    """`safe` is false from the first byte until the new app was seen to run, true before and
    after, and stays false while a removed service still has the board."""
    new = build_app(PROJECT, "1.1.0", size_bytes=400_000)
    with SimProcess(tmp_path / "boards", [SimBoard("guide", config={"timed": True})]) as sim:
        async with FirmwareServer.start() as server, Machine.start(tmp_path / "m") as machine:
            attributes = {
                **BOOT,
                "url": server.put("/app.bin", new),
                "version": "1.1.0",
                "boards": [{"name": "a", "port": sim.boards[0].url}],
            }
            await machine.add(SERVICE, "OTA", {**attributes, "auto_update": False})
            await machine.add(SENSOR, "ota", {"service": "OTA"})
            read = machine.sensor("ota").get_readings
            assert (await read())["safe"] is True
            await machine.service("OTA").do_command({"command": "update"})
            seen = await eventually(read, lambda r: 0 < r["percent"] < 100)
            assert seen["safe"] is False
            assert seen["boards_updating"] == 1
            # Removed and, within the grace, added again: the run goes on all the while.
            await machine.remove(SERVICE, "OTA")
            assert (await read())["safe"] is False
            await machine.add(SERVICE, "OTA", {**attributes, "auto_update": False})
            await eventually(read, lambda r: r["safe"], timeout_s=60)
            # The board's end is told first, the run's a moment later.
            seen = await eventually(read, lambda r: r["run_outcome"] != "running")
            assert seen["safe"] is True
            assert seen["version_a"] == "1.1.0", seen
            assert seen["run_outcome"] == "succeeded"
            assert seen["boards_up_to_date"] == 1
            assert seen["percent"] == 100
