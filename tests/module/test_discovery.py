# SPDX-License-Identifier: GPL-3.0-or-later
"""Discovery beside the service: what it reports, what it opens, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError
from viam.proto.app.robot import ComponentConfig
from viam.services.discovery import DiscoveryClient

from esp32_sim.factory import make_flash
from esp32_sim.images import build_app
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import service
from ota_service.fleet.directory import remember
from ota_service.fleet.journal import open_journal
from ota_service.fleet.memory import Memory
from ota_service.fleet.settings import Settings
from ota_service.link.ownership import PORT_OWNERS, SERVICE_CLAIMS
from ota_service.link.ports import PortInfo
from ota_service.module import discovery
from ota_service.module.config import parse_config
from ota_service.module.discovery import OtaDiscovery
from ota_service.module.findings import Finding, configurations, report_of
from ota_service.module.plain import from_struct
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import DISCOVERY, SERVICE, Machine, eventually
from tests.support.memory_board import MemoryBoard
from tests.support.rig import BOOT, PROJECT

PROBE: Any = {"command": "discover", "probe": True}
FIRMWARE = {"url": "http://10.0.0.5:3001/app.bin", "version": "1.2.3"}

NATIVE = PortInfo(
    "/dev/ttyACM0",
    by_path="/dev/serial/by-path/pci-0-usb-0:1:1.0",
    location="1-1:1.0",
    vid=0x303A,
    pid=0x1001,
    serial_number="34:85:18:00:00:AA",
)
BRIDGE = PortInfo(
    "/dev/ttyUSB0",
    by_path="/dev/serial/by-path/pci-0-usb-0:2:1.0-port0",
    location="1-2",
    vid=0x10C4,
    pid=0xEA60,
    serial_number="0001",
)
UART = PortInfo("/dev/ttyS0")


def attributes_of(config: ComponentConfig) -> dict[str, Any]:
    """The attributes of a discovered configuration, which is for the service."""
    assert config.api == "rdk:service:generic"
    assert config.model == "rdk:generic:ota_service"
    return from_struct(config.attributes)


# --- from findings to configurations


def test_a_board_on_its_own_usb_is_named_by_its_mac() -> None:
    """It is found wherever it is plugged in."""
    made = configurations([Finding(NATIVE.device, NATIVE, mac=NATIVE.mac)])
    assert made == [
        (
            "OTA",
            {
                "url": "",
                "version": "",
                "boards": [
                    {
                        "name": "esp32-0000aa",
                        "mac": "34:85:18:00:00:aa",
                        "note": "34:85:18:00:00:aa",
                    }
                ],
            },
        )
    ]


def test_a_bridge_is_named_by_its_socket_and_apart_from_what_is_certain() -> None:
    """A lidar may be behind it: a person must look before adding it. A UART is no candidate."""
    made = dict(
        configurations(
            [
                Finding(UART.device, UART),
                Finding(NATIVE.device, NATIVE, mac=NATIVE.mac),
                Finding(BRIDGE.device, BRIDGE),
            ]
        )
    )
    assert list(made) == ["OTA", "OTA-unprobed"]
    assert len(made["OTA"]["boards"]) == 1
    (board,) = made["OTA-unprobed"]["boards"]
    assert (board["name"], board["port"]) == ("board-1", BRIDGE.by_path)
    assert "perhaps an ESP32 behind a CP210x bridge" in board["note"]


def test_a_probed_bridge_is_certain_and_keeps_its_socket() -> None:
    """The MAC of a board behind a bridge cannot be looked for; its socket can."""
    probed = Finding(
        BRIDGE.device,
        BRIDGE,
        probed=True,
        mac="24:0a:c4:00:00:01",
        chip="ESP32-S3",
        version="",
        project="micro-rdk-server",
        app_version="0.4.1",
        ota_slots=2,
    )
    ((name, attributes),) = configurations([probed], {"OTA", "OTA-2"})
    assert name == "OTA-3"
    assert attributes["boards"] == [
        {
            "name": "esp32-s3-000001",
            "port": BRIDGE.by_path,
            "note": "ESP32-S3 24:0a:c4:00:00:01, no version stored, micro-rdk-server 0.4.1, "
            "2 OTA slots",
        }
    ]


def test_what_cannot_be_updated_is_left_out() -> None:
    """A configuration must be ready; the reply of discover has the reason."""
    error = OtaError("no-ota-slots")
    finding = Finding(BRIDGE.device, BRIDGE, probed=True, mac="24:0a:c4:00:00:01", problem=error)
    assert configurations([finding]) == []
    assert report_of(finding)["error"]["code"] == "no-ota-slots"
    assert "[no-ota-slots]" in finding.in_words


def test_names_stay_apart() -> None:
    """Boards whose MACs end alike."""
    found = [
        Finding(f"/dev/ttyUSB{n}", BRIDGE, mac=mac)
        for n, mac in enumerate(("24:0a:c4:00:00:01", "34:85:18:00:00:01"))
    ]
    ((_, attributes),) = configurations(found)
    assert [board["name"] for board in attributes["boards"]] == ["esp32-000001", "esp32-000001-2"]


def test_a_service_is_shown_without_its_secrets_and_without_half_a_url() -> None:
    """A url with *** in it would be copied as it stands."""
    for url, shown in (("http://***@x/app.bin", ""), ("http://x/app.bin", "http://x/app.bin")):
        status = {"target": {"url": url, "version": "1.2.3"}}
        finding = Finding("/dev/a", service="OTA", board="a", state="up_to_date", status=status)
        ((name, attributes),) = configurations([finding], {"OTA"})
        assert (name, attributes["url"], attributes["version"]) == ("OTA", shown, "1.2.3")


# --- what is known of closed ports


def attached(folder: Path, *infos: PortInfo) -> list[PortInfo]:
    """The same ports with devices that exist: files, which nothing here opens."""
    found = []
    for info in infos:
        path = folder / Path(info.device).name
        path.touch()
        found.append(replace(info, device=str(path)))
    return found


@pytest.fixture
def usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PortInfo]:
    """A native port, a bridge and a UART, as the system would list them."""
    infos = attached(tmp_path, NATIVE, BRIDGE, UART)
    monkeypatch.setattr(discovery, "list_ports", lambda: infos)
    return infos


async def test_usb_ports_by_their_descriptors(usb: list[PortInfo]) -> None:
    """Certain boards, and candidates; the UART is reported, and never opened."""
    finder = OtaDiscovery("find")
    made = [(c.name, attributes_of(c)["boards"]) for c in await finder.discover_resources()]
    assert [(name, [board.get("mac", board.get("port")) for board in boards]) for name, boards in
            made] == [("OTA", [NATIVE.mac]), ("OTA-unprobed", [BRIDGE.by_path])]  # fmt: skip
    native, bridge, uart = await finder.find(probe=False)
    assert (native.may_be_probed, bridge.may_be_probed, uart.may_be_probed) == (True, True, False)


async def test_what_another_service_is_configured_with_is_its_own(usb: list[PortInfo]) -> None:
    """Also before it has opened anything; a candidate of a service belongs to nobody yet."""
    native, bridge, _ = usb
    candidate = {"state": "candidate", "port": bridge.device}
    services = {"AUTO": {"boards": {bridge.device: candidate}}}
    assert native.mac is not None
    owner = object()
    SERVICE_CLAIMS.claim(owner, "OTHER", {native.mac: "x"})
    try:
        found = discovery._look([], services, None, "discovery x")
    finally:
        SERVICE_CLAIMS.release(owner)
    assert [item.service for item in found] == ["OTHER", None, None]
    assert [item.may_be_probed for item in found] == [False, True, False]


async def test_a_board_that_was_seen_before_is_certain_without_a_probe(
    tmp_path: Path, usb: list[PortInfo]
) -> None:
    """A service's journal knows the bridge, and what was read of the board; one that is being
    left alone to confirm its firmware is not probed."""
    settings = Settings(
        "OTA", Target("http://127.0.0.1:9/app.bin", "1"), boards=(), auto_update=False,
        state_dir=tmp_path / "state", cache_dir=tmp_path / "cache",
    )  # fmt: skip
    _, bridge, _ = usb
    seen = MemoryBoard(make_flash("guide", version="1.0.0")).look()
    finder = OtaDiscovery("find")
    await service.FleetService.open(settings)
    try:
        remember(tmp_path / "elsewhere", bridge.device, bridge, seen)
        _, known, _ = await finder.find(probe=False)
        assert known.is_board
        assert (known.mac, known.version, known.chip) == (seen.chip.mac, "1.0.0", "ESP32")
        journal = open_journal(settings.state_dir)
        Memory(journal, "OTA").awaits(
            seen.chip.mac, "x" * 64, version="1.1.0", slot="ota_1", seconds=60,
            previous_version=None,
        )  # fmt: skip
        journal.close()
        _, waiting, _ = await finder.find(probe=True)
        assert waiting.problem is not None
        assert waiting.problem.code == "awaiting-confirmation"
        assert not waiting.may_be_probed
    finally:
        await service.shutdown()


# --- configuration and commands


@pytest.mark.slow
async def test_faults_are_told_in_our_words(tmp_path: Path) -> None:
    """In the configuration, in extra, and in commands."""
    async with Machine.start(tmp_path) as machine:
        assert await machine.validate(DISCOVERY, "find", {}) == ([], [])
        for attributes, text in (
            ({"ports": "x"}, "ports: must be a list of ports"),
            ({"ports": ["ttyUSB0"]}, "ports: must be a device.*s whole path"),
            ({"prots": []}, "prots: is no attribute here; did you mean ports"),
        ):
            with pytest.raises(GRPCError, match=text):
                await machine.validate(DISCOVERY, "find", attributes)
        await machine.add(DISCOVERY, "find", {})
        client = machine.discovery("find")
        with pytest.raises(GRPCError, match="probe: must be true or false"):
            await client.discover_resources(extra={"probe": "yes"})
        commands: list[tuple[Any, str]] = [
            ({"command": "look"}, "only one command here"),
            ({"command": "discover", "prob": True}, "no argument prob"),
        ]
        for command, text in commands:
            with pytest.raises(GRPCError, match=text):
                await client.do_command(command)


# --- with boards


@pytest.fixture
async def boards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[RunningBoard]]:
    """One board with OTA slots, and one whose table has none."""
    monkeypatch.setenv("VIAM_HOME", str(tmp_path / "viam"))  # what is found is noted there
    specs = [SimBoard("guide", version="1.0.0"), SimBoard("no-ota")]
    with SimProcess(tmp_path / "boards", specs) as sim:
        yield sim.boards


def opened(board: RunningBoard) -> int:
    """How often a board's port was opened."""
    return board.control.counters().get("opened", 0)


async def running(board: RunningBoard) -> str:
    """The version of the app that runs on a board, waited for."""

    async def version() -> str:
        state = await asyncio.to_thread(board.control.state)
        return str((state["app"] or {}).get("version", ""))

    return str(await eventually(version, bool))


def ports(boards: list[RunningBoard]) -> dict[str, Any]:
    """The attributes of a discovery that looks at these boards."""
    return {"ports": [board.url for board in boards]}


@pytest.mark.slow
async def test_nothing_is_opened_without_probe(tmp_path: Path, boards: list[RunningBoard]) -> None:
    """Opening a port can restart what is behind it; what is replied only lacks a firmware."""
    async with Machine.start(tmp_path / "m") as machine:
        await machine.add(DISCOVERY, "find", ports(boards))
        for extra in (None, {}, {"probe": False}):
            (config,) = await machine.discovery("find").discover_resources(extra=extra)
            assert config.name == "OTA"
            attributes = attributes_of(config)
            assert [board["port"] for board in attributes["boards"]] == [b.url for b in boards]
            with pytest.raises(OtaError, match=r"url: is empty; fill in.*version: is empty"):
                parse_config(attributes)
            parse_config(attributes | FIRMWARE)
    assert [opened(board) for board in boards] == [0, 0]


@pytest.mark.slow
async def test_a_probe_tells_what_is_on_the_boards_and_changes_nothing(
    tmp_path: Path, boards: list[RunningBoard]
) -> None:
    """Through the machine, as the app asks; the boards run on as they were."""
    flash = [(board.dir / "flash.bin").read_bytes() for board in boards]
    # Without a parent its log goes to where the test can read it.
    async with Machine.start(tmp_path / "m", parent=False) as machine:
        await machine.add(DISCOVERY, "find", ports(boards))
        async with machine.client() as robot:
            client = DiscoveryClient.from_robot(robot, "find")
            (config,) = await client.discover_resources(extra={"probe": True})
        (board,) = attributes_of(config)["boards"]
        assert board["port"] == boards[0].url
        assert board["name"] == "esp32-" + boards[0].mac.replace(":", "")[-6:]
        assert board["note"] == (
            f"ESP32 {boards[0].mac}, version 1.0.0, {PROJECT} 1.0.0, 2 OTA slots"
        )
        reply: Any = await machine.discovery("find").do_command(PROBE)
        first, second = (reply["ports"][board.url] for board in boards)
        assert first == {
            "kind": "listed",
            "probed": True,
            "chip": "ESP32",
            "mac": boards[0].mac,
            "version": "1.0.0",
            "project": PROJECT,
            "app_version": "1.0.0",
            "ota_slots": 2.0,
            "usb_serial_number": "0001",  # of its bridge, as of many of that kind
        }
        assert (second["mac"], second["ota_slots"]) == (boards[1].mac, 0)
        assert second["error"]["code"] == "no-ota-slots"
        assert f"{boards[0].url}: restarted" in machine.module.log
    assert [await running(board) for board in boards] == ["1.0.0", "1.0.0"]
    assert [(board.dir / "flash.bin").read_bytes() for board in boards] == flash


@pytest.mark.slow
async def test_a_board_that_does_not_answer_hides_no_other(
    tmp_path: Path, boards: list[RunningBoard]
) -> None:
    """Nor does a port that is gone, or a url where nothing listens."""
    boards[1].control.set_faults(no_answer=True)
    finder = OtaDiscovery("find", [boards[1].url, "/dev/none", boards[0].url, "socket://[::1]:9"])
    found = {item.port: item for item in await finder.find(probe=True) if item.listed}
    assert found[boards[0].url].ota_slots == 2
    codes = {port: item.problem.code for port, item in found.items() if item.problem is not None}
    assert codes == {
        boards[1].url: "no-answer",
        "/dev/none": "port-missing",
        "socket://[::1]:9": "no-answer",
    }


async def test_a_port_that_is_held_is_not_opened(boards: list[RunningBoard]) -> None:
    """Whoever holds it is named."""
    finder = OtaDiscovery("find", [boards[0].url])
    with PORT_OWNERS.claim(boards[0].url, "service OTHER"):
        (found,) = [item for item in await finder.find(probe=True) if item.listed]
    assert found.problem is not None
    assert found.problem.code == "port-busy"
    assert "service OTHER" in found.problem.message
    assert not found.probed
    assert opened(boards[0]) == 0


@pytest.mark.slow
async def test_two_probes_at_once_take_turns(boards: list[RunningBoard]) -> None:
    """Neither finds the ports busy because of the other."""
    finder = OtaDiscovery("find", [boards[0].url])
    for found in await asyncio.gather(finder.find(probe=True), finder.find(probe=True)):
        assert [item.ota_slots for item in found if item.listed] == [2]


@pytest.mark.slow
async def test_a_caller_that_goes_away_leaves_the_board_running(
    boards: list[RunningBoard],
) -> None:
    """The look ends by itself, and lets go of the port."""
    finder = OtaDiscovery("find", [boards[0].url])
    looking = asyncio.create_task(finder.find(probe=True))
    await asyncio.to_thread(boards[0].control.wait_for, "stub")
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    await asyncio.to_thread(boards[0].control.wait_for, "closed")
    assert await running(boards[0]) == "1.0.0"

    async def owner() -> str | None:
        return PORT_OWNERS.owner(boards[0].url)

    await eventually(owner, lambda name: name is None)


@pytest.mark.slow
async def test_boards_of_a_service_are_reported_and_not_touched(
    tmp_path: Path, boards: list[RunningBoard]
) -> None:
    """While it writes them, and afterwards; a free board beside them is found all the same."""
    new = build_app(PROJECT, "1.1.0", size_bytes=400_000)
    boards[0].control.configure(timed=True)
    async with FirmwareServer.start() as server, Machine.start(tmp_path / "m") as machine:
        await machine.add(DISCOVERY, "find", ports(boards))
        attributes = {
            **BOOT,
            "url": server.put("/app.bin", new),
            "version": "1.1.0",
            "boards": [{"name": "kitchen", "port": boards[0].url}],
        }
        await machine.add(SERVICE, "OTA", attributes)
        ota = machine.service("OTA")

        def writes(status: Any) -> bool:
            return bool(status["boards"]["kitchen"].get("progress", {}).get("percent", 0) > 5)

        await eventually(ota.get_status, writes)
        client = machine.discovery("find")
        reply: Any = await client.do_command(PROBE)
        seen = reply["ports"]
        assert seen[boards[0].url]["state"] == "updating"
        assert seen[boards[0].url]["probed"] is False
        assert seen[boards[1].url]["probed"] is True
        status: Any = await eventually(
            ota.get_status, lambda status: status["run"]["outcome"] != "running"
        )
        assert status["run"]["outcome"] == "succeeded"
        assert opened(boards[0]) == 1
        (config,) = await client.discover_resources(extra={"probe": True})
        assert opened(boards[0]) == 1
        assert config.name == "OTA"
        found = attributes_of(config)
        (board,) = found["boards"]
        assert (board["name"], board["port"]) == ("kitchen", boards[0].url)
        assert board["note"].startswith(
            f"in service OTA, up_to_date, ESP32 {boards[0].mac}, version 1.1.0"
        )
        assert (found["url"], found["version"]) == (attributes["url"], "1.1.0")
        parse_config(found)


def test_a_probed_bridge_is_known_from_then_on(tmp_path: Path) -> None:
    """By the contract, as after a person's update: the service may open it by itself."""
    found = MemoryBoard(make_flash("guide", version="1.0.0")).look()
    remember(tmp_path, BRIDGE.device, BRIDGE, found)
    with open_journal(tmp_path) as journal:
        bridge = Memory(journal, "OTA").is_our_bridge(BRIDGE)
        board = Memory(journal, "OTA").board_at(BRIDGE)
    assert bridge
    assert board is not None
    assert board.mac == found.chip.mac
    assert (board.version, board.port) == ("1.0.0", BRIDGE.device)
