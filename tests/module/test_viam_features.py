# SPDX-License-Identifier: GPL-3.0-or-later
"""What viam-server does with the service beside configuring it: docs/machine.md, carried out.

The examples of the documentation are taken from its pages, so what is proven is what is copied.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from grpclib import GRPCError
from viam.proto.app.robot import ComponentConfig
from viam.utils import dict_to_struct

from esp32_sim.images import build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.link.ports import PortInfo
from ota_service.module.config import parse_config
from ota_service.module.discovery import OtaDiscovery
from ota_service.module.findings import Finding, configurations, report_of
from ota_service.module.sensor import OtaSensor, readings_of
from ota_service.module.verbs import parse_command
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SENSOR, SERVICE, Machine, eventually
from tests.support.module_client import IDLE_ATTRIBUTES as IDLE
from tests.support.rig import BOOT, PROJECT

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("machine.md", "ota_sensor.md", "ota_discovery.md")


def blocks(page: str) -> list[dict[str, Any]]:
    """The JSON blocks of a page; one that is no JSON fails here."""
    found = re.findall(r"```json\n(.*?)```", (DOCS / page).read_text(), re.S)
    return [json.loads(block) for block in found]


def one(found: list[Any]) -> Any:
    """The only one."""
    (item,) = found
    return item


def capture_methods(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """What the data manager captures of a resource."""
    return [
        method
        for config in resource.get("service_configs", [])
        if config["type"] == "data_manager"
        for method in config["attributes"]["capture_methods"]
    ]


# --- the pages


@pytest.mark.parametrize("page", PAGES)
def test_the_resources_in_the_pages_are_valid(page: str) -> None:
    """Each with its own model's check, its API, and nothing that depends on what is not there."""
    checks = {
        "rdk:generic:ota_sensor": ("rdk:component:sensor", OtaSensor.validate_config),
        "rdk:generic:ota_discovery": ("rdk:service:discovery", OtaDiscovery.validate_config),
    }
    seen = 0
    for block in blocks(page):
        for resource in [*block.get("services", []), *block.get("components", [])]:
            attributes = resource["attributes"]
            if resource["model"] == "rdk:generic:ota_service":
                assert resource["api"] == "rdk:service:generic"
                parse_config(attributes)
            elif resource["model"] in checks:
                api, check = checks[resource["model"]]
                assert resource["api"] == api
                check(ComponentConfig(attributes=dict_to_struct(attributes)))
            else:
                assert resource["model"] == "rdk:builtin:builtin"
            seen += 1
    assert seen


def test_the_sensors_readings_are_documented() -> None:
    """All of them, and the example shows none that does not exist."""
    page = (DOCS / "ota_sensor.md").read_text()
    readings = readings_of({})
    for name in readings:
        assert f"`{name}`" in page, name
    example = one([block for block in blocks("ota_sensor.md") if "safe" in block])
    others = {"version_kitchen", "state_kitchen", "version_cellar", "state_cellar"}
    assert example.keys() - others <= readings.keys()


def test_the_discovered_example_is_what_discovery_makes() -> None:
    """Its keys, and that it lacks nothing but a firmware."""
    example = one([block for block in blocks("ota_discovery.md") if "url" in block])
    finding = Finding("/dev/ttyUSB0", listed=True, mac="24:0a:c4:12:34:56", chip="ESP32")
    ((_, made),) = configurations([finding])
    assert example.keys() == made.keys()
    assert example["boards"][0].keys() == made["boards"][0].keys()
    assert example["boards"][0]["name"] == made["boards"][0]["name"]
    assert (example["url"], example["version"]) == (made["url"], made["version"]) == ("", "")
    parse_config(example | {"url": "http://x/app.bin", "version": "1"})


def test_the_reply_of_discover_is_what_discovery_makes() -> None:
    """The command is taken, and each port of the example can be said of a port."""
    found = blocks("ota_discovery.md")
    command, reply = (block for block in found if block.keys() & {"ok", "command"})
    assert command == {"command": "discover", "probe": True}
    vids = {"bridge": 0x10C4, "native": 0x303A}
    for device, shown in reply["ports"].items():
        info = PortInfo(
            device,
            by_path=shown.get("by_path"),
            vid=vids[shown["kind"]],
            serial_number=shown.get("usb_serial_number"),
        )
        facts = {key: value for key, value in shown.items() if hasattr(Finding, key)}
        facts = {key: value for key, value in facts.items() if key != "kind"}
        error = shown.get("error")
        problem = OtaError(error["code"]) if error else None
        made = report_of(Finding(device, info, problem=problem, **facts))
        assert made.keys() == shown.keys(), device
        assert {key: value for key, value in made.items() if key != "error"} == {
            key: value for key, value in shown.items() if key != "error"
        }


def test_the_fragment_is_valid_with_its_variables() -> None:
    """docs/fleets.md: what a machine gets when the variables of its group are put in."""
    fragment, use = blocks("fleets.md")
    (values,) = (each["variables"] for each in use["fragments"])

    def filled(value: Any) -> Any:
        return values[value["$variable"]["name"]] if isinstance(value, dict) else value

    (service,) = fragment["services"]
    given = {name: filled(value) for name, value in service["attributes"].items()}
    assert set(values.values()) <= set(given.values())
    assert parse_config(given).version == values["firmware_version"]


# --- what viam-server calls


@pytest.mark.slow
async def test_captured_status_is_one_reply_that_can_be_stored(tmp_path: Path) -> None:
    """The data manager sends docommand_input as it stands, again and again."""
    block = one(
        [b for b in blocks("machine.md") if any(map(capture_methods, b.get("services", [])))]
    )
    ota, data = block["services"]
    method = one(capture_methods(ota))
    assert method["method"] == "DoCommand"
    assert data["depends_on"] == [ota["name"]]
    async with Machine.start(tmp_path) as machine:
        await machine.add(SERVICE, ota["name"], ota["attributes"] | {"auto_update": False})
        command = method["additional_params"]["docommand_input"]
        service = machine.service(ota["name"])
        for _ in range(200):  # the board is looked for behind the configuration
            first = await service.do_command(command)
            if dict(first["boards"])["kitchen"]["state"] == "absent":
                break
            await asyncio.sleep(0.05)  # a status has no event to await
        replies = [await service.do_command(command) for _ in range(3)]
    assert replies[0] == replies[1] == replies[2]
    boards: Any = replies[0]["boards"]
    assert boards.keys() == {"kitchen"}
    stored = Struct()
    stored.update({"docommand_output": dict(replies[0])})
    assert stored.ByteSize() < 10_000


@pytest.mark.slow
async def test_captured_readings_are_flat_and_allow_maintenance(tmp_path: Path) -> None:
    """Through the machine, as the data manager reads them; the sensor depends on the service.

    viam-server lets no maintenance through where the key is missing or no boolean, and everything
    where the sensor is not named in full.
    """
    block = one(
        [b for b in blocks("machine.md") if any(map(capture_methods, b.get("components", [])))]
    )
    sensor = one(block["components"])
    assert one(capture_methods(sensor))["method"] == "Readings"
    async with Machine.start(tmp_path) as machine:
        required, _ = await machine.validate(SENSOR, sensor["name"], sensor["attributes"])
        assert required == ["OTA"]
        await machine.add(SERVICE, "OTA", IDLE)
        await machine.add(SENSOR, sensor["name"], sensor["attributes"])
        readings = await machine.sensor(sensor["name"]).get_readings()
        assert readings
        assert all(isinstance(value, str | float | bool) for value in readings.values())
        block = one([block for block in blocks("machine.md") if "maintenance" in block])
        sensor, maintenance = one(block["components"]), block["maintenance"]
        assert maintenance["sensor_name"] == f"{sensor['api']}/{sensor['name']}"
        await machine.add(SENSOR, "safe", sensor["attributes"])
        readings = await machine.sensor("safe").get_readings(timeout=5.0)
        assert readings[maintenance["maintenance_allowed_key"]] is True


@pytest.mark.slow
async def test_the_nightly_job_updates_what_auto_update_left_alone(tmp_path: Path) -> None:
    """Its command starts a run that outlives the call, and a second night writes nothing."""
    block = one([block for block in blocks("machine.md") if "jobs" in block])
    ota, job = one(block["services"]), one(block["jobs"])
    assert (job["resource"], job["method"]) == (ota["name"], "DoCommand")
    assert parse_command(job["command"])[0] == "update"
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        async with FirmwareServer.start() as server, Machine.start(tmp_path / "m") as machine:
            attributes = ota["attributes"] | BOOT
            attributes["url"] = server.put("/app.bin", build_app(PROJECT, "1.2.3"))
            attributes["boards"] = [{"name": "kitchen", "port": sim.boards[0].url}]
            await machine.add(SERVICE, ota["name"], attributes)
            service = machine.service(ota["name"])
            before: Any = await service.get_status()
            assert "run" not in before
            assert sim.boards[0].control.counters().get("opened", 0) == 0
            reply: Any = await service.do_command(job["command"])
            assert reply["run"]["outcome"] == "running"
            status: Any = await eventually(
                service.get_status, lambda s: s["run"]["outcome"] != "running"
            )
            assert status["boards"]["kitchen"]["version"] == "1.2.3"
            sim.boards[0].control.start_trace()
            again: Any = await service.do_command(job["command"])
            assert again["run"]["id"] != reply["run"]["id"]
            await eventually(service.get_status, lambda s: s["run"]["outcome"] == "succeeded")
            trace = sim.boards[0].control.stop_trace()
            assert [op for op in trace if op["who"] == "loader"] == []


@pytest.mark.slow
async def test_two_services_update_their_own_boards_side_by_side(tmp_path: Path) -> None:
    """Each its own firmware and version; neither touches the other's board."""
    block = one(
        [
            b
            for b in blocks("machine.md")
            if len(b.get("services", [])) == 2 and not any(map(capture_methods, b["services"]))
        ]
    )
    with SimProcess(tmp_path / "boards", [SimBoard("guide"), SimBoard("micro-rdk")]) as sim:
        async with FirmwareServer.start() as server, Machine.start(tmp_path / "m") as machine:
            for resource, board in zip(block["services"], sim.boards, strict=True):
                attributes = resource["attributes"] | BOOT
                version = attributes["version"]
                attributes["url"] = server.put(f"/{version}.bin", build_app(PROJECT, version))
                attributes["boards"] = [{"name": "it", "port": board.url}]
                await machine.add(SERVICE, resource["name"], attributes)
            for resource, board in zip(block["services"], sim.boards, strict=True):
                status: Any = await eventually(
                    machine.service(resource["name"]).get_status,
                    lambda s: s.get("run", {}).get("outcome", "running") != "running",
                )
                assert status["run"]["outcome"] == "succeeded"
                assert status["boards"].keys() == {"it"}
                assert status["boards"]["it"]["mac"] == board.mac
                version = resource["attributes"]["version"]
                assert status["boards"]["it"]["version"] == version
                assert board.control.running()["version"] == version
                assert board.control.counters()["opened"] == 1


@pytest.mark.slow
async def test_two_services_that_claim_one_board(tmp_path: Path) -> None:
    """The second is not added, in words that name both; the first goes on."""
    places = {"mac": "24:0a:c4:00:00:01", "port": "/dev/serial/by-path/none"}
    async with Machine.start(tmp_path) as machine:
        for key, where in places.items():
            first, second = f"OTA-{key}-1", f"OTA-{key}-2"
            boards = {"boards": [{"name": "a", key: where}]}
            await machine.add(SERVICE, first, IDLE | boards)
            boards = {"boards": [{"name": "b", key: where}]}
            with pytest.raises(GRPCError) as caught:
                await machine.add(SERVICE, second, IDLE | boards)
            text = caught.value.message or ""
            assert f"The board {where} is claimed by two services, {first} and {second}." in text
            assert "config-invalid" in text
            status: Any = await machine.service(first).get_status()
            assert status["boards"].keys() == {"a"}
            # Once the first one gives it up for good, the second may have it.
            await machine.remove(SERVICE, first)
            await machine.add(SERVICE, first, IDLE)
            await machine.add(SERVICE, second, IDLE | boards)
