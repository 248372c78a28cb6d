# SPDX-License-Identifier: GPL-3.0-or-later
"""Several boards from a program: orders that are awaited, followed, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from esp32_sim import Behaviour, build_app
from esp32_sim.factory import make_flash
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import RunningBoard
from esp32_sim.pytest_plugin import StartBoard
from ota_service import Engine, Options, OtaError, load_firmware
from ota_service.fleet import roster
from ota_service.fleet.journal import Journal
from ota_service.fleet.journal_rows import GroupRecord, NameRecord
from ota_service.fleet.memory import Memory
from ota_service.link.ports import ESPRESSIF_VID, SERIAL_JTAG_PID, PortInfo
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import eventually

QUICK = Options(boot_timeout_s=4.0, boot_stable_s=0.5)


def image(
    folder: Path, version: str, *, behaviour: Behaviour | None = None, project: str = "thermostat"
) -> Path:
    """An App Image in a file."""
    path = folder / f"{version}.bin"
    path.write_bytes(build_app(project, version, size_bytes=80_000, behaviour=behaviour))
    return path


async def test_an_engine_that_is_cancelled_while_it_opens_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    """Neither its folder, nor that this process has one."""
    first = asyncio.ensure_future(Engine([], state_dir=tmp_path / "one").__aenter__())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(30):
        while True:
            try:
                async with Engine([], state_dir=tmp_path / "two") as engine:
                    assert engine.status()["ok"] is True
                return
            except OtaError as error:
                assert error.code == "config-invalid"  # while the first one still closes
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_boards_are_updated_read_verified_and_rolled_back(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """All together and one of them alone, each with a report a board."""
    a, b = esp32_boards(layout="guide"), esp32_boards(layout="micro-rdk")
    firmware = await load_firmware(image(tmp_path, "1.1"))
    async with Engine({"a": a.url, "b": b.url}, **QUICK) as engine:
        assert "target" not in engine.status()
        planned = await engine.plan(firmware)
        assert {name: board.action for name, board in planned.boards.items()} == {
            "a": "write",
            "b": "write",
        }
        assert planned["a"].reason
        other = {"project": "micro-rdk-server", "by": "thermostat"}
        assert [planned[name].replaces for name in "ab"] == [other, other]
        done = await engine.update(firmware)
        assert done.outcome == "succeeded"
        assert done.require() is done
        assert {name: board.version for name, board in done.boards.items()} == {
            "a": "1.1",
            "b": "1.1",
        }
        assert (done["a"].before, done["a"].outcome) == ("1.0.0", "up_to_date")
        assert done.record["boards"]["a"]["to"] == "1.1"
        json.dumps(done.record)
        json.dumps(engine.status())
        assert (await engine.version(boards=["a"]))["a"].version == "1.1"
        assert list((await engine.version(boards=[a.url])).boards) == ["a"]
        verified = await engine.verify(firmware)
        assert [verified[name].matches for name in "ab"] == [True, True]
        back = await engine.roll_back(boards=["b"])
        assert (back["b"].slot, back["b"].version) == ("ota_0", "1.0.0")
        assert (await engine.verify(firmware, boards="b"))["b"].matches is False
        held = await engine.update(firmware)
        assert (held.outcome, held["b"].outcome) == ("partly", "rolled_back")
        with pytest.raises(OtaError):
            held.require()
        assert await engine.release(boards=["b"]) == ["b"]
        assert (await engine.update(firmware))["b"].outcome == "up_to_date"
    assert [board.control.running()["version"] for board in (a, b)] == ["1.1", "1.1"]


@pytest.mark.slow
async def test_each_board_may_get_a_firmware_of_its_own(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """At the same time; nobody gets what was meant for another one."""
    a, b = esp32_boards(layout="guide"), esp32_boards(layout="micro-rdk")
    one, two = image(tmp_path, "1.1"), image(tmp_path, "2.2")
    async with Engine({"a": a.url, "b": b.url}, **QUICK) as engine:
        orders = engine.update(one, boards=["a"]), engine.update(two, "two", boards=["b"])
        first, second = await asyncio.gather(*orders)
        assert [*first.boards, *second.boards] == ["a", "b"]
        assert (first["a"].version, second["b"].version) == ("1.1", "two")
        states = {name: board["state"] for name, board in engine.status()["boards"].items()}
        assert states == {"a": "up_to_date", "b": "up_to_date"}
    assert [board.control.running()["version"] for board in (a, b)] == ["1.1", "2.2"]


@pytest.mark.slow
async def test_an_order_is_followed_and_cancelled(esp32_boards: StartBoard, tmp_path: Path) -> None:
    """Whoever follows may stop to do so; a cancelled board runs what it had."""
    board = esp32_boards(layout="guide", version="1.0.0", config={"timed": True})
    app = tmp_path / "app.bin"
    app.write_bytes(build_app("thermostat", "1.1", size_bytes=700_000))
    async with Engine([board.url], **QUICK) as engine:
        order = engine.update(app)
        async for status in order:
            (shown,) = status["boards"].values()
            if shown.get("progress", {}).get("bytes_done"):
                break
        order.cancel()
        done = await order
        assert done.outcome == "cancelled"
        with pytest.raises(OtaError, match="cancelled"):
            done.require()
        last = [status async for status in order]
        assert last[-1]["run"]["outcome"] == "cancelled"
        order.cancel()  # it is over
    assert board.control.running()["version"] == "1.0.0"


@pytest.mark.slow
async def test_an_order_goes_on_when_nobody_waits_for_it(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """A task that awaited it and was cancelled has no part in it."""
    board = esp32_boards(layout="guide")
    async with Engine({"a": board.url}, **QUICK) as engine:
        order = engine.update(image(tmp_path, "1.1"))

        async def wait() -> None:
            await order

        waiting = asyncio.ensure_future(wait())
        async for status in order:
            if status["boards"]["a"].get("phase"):
                break
        waiting.cancel()
        await asyncio.wait({waiting})
        assert (await order).outcome == "succeeded"


@pytest.mark.slow
async def test_an_engine_that_is_left_ends_its_orders(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """With the board in its firmware, and a report; what has not begun is cancelled."""
    board = esp32_boards(layout="guide", version="1.0.0", config={"timed": True})
    app = tmp_path / "app.bin"
    app.write_bytes(build_app("thermostat", "1.1", size_bytes=700_000))
    async with FirmwareServer.start() as server:
        url = server.put("/app.bin", app.read_bytes())
        gate = server.hold("/app.bin")
        async with Engine({"a": board.url}, **QUICK) as engine:
            order = engine.update(app)
            async for status in order:
                if status["boards"]["a"].get("progress", {}).get("bytes_done"):
                    break
            waits = engine.update(url)
            await server.wait_requests(1)
        gate.set()
    done = await order
    assert done.outcome in ("cancelled", "failed")
    assert done.record["boards"]["a"]["from"] == "1.0.0"
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert board.control.running()["version"] == "1.0.0"


@pytest.mark.slow
async def test_a_firmware_from_a_server_is_fetched_once_for_all(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """With its digest, and what is wrong with it is the order's error."""
    boards = [esp32_boards(layout="guide"), esp32_boards(layout="micro-rdk")]
    async with FirmwareServer.start() as server:
        url = server.put("/app.bin", image(tmp_path, "1.1").read_bytes())
        async with Engine([board.url for board in boards], **QUICK) as engine:
            wrong = await engine.update(url, "1.1", sha256="0" * 64)
            assert wrong.error is not None
            assert (wrong.outcome, wrong.error.code) == ("failed", "digest-mismatch")
            server.requests.clear()
            done = await engine.update(url, "1.1")
            assert done.outcome == "succeeded"
            assert [request.status for request in server.requests] == [200]


async def test_an_engine_is_alone_with_its_boards(esp32_boards: StartBoard) -> None:
    """Two at a time share the folder, and no board; without `async with` there is none."""
    board = esp32_boards(layout="guide")
    with pytest.raises(RuntimeError, match="async with"):
        Engine([board.url]).status()
    with pytest.raises(OtaError, match="claimed by two"):
        async with Engine([board.url]), Engine([board.url]):
            pass
    one, other = Engine([board.url]), Engine([])
    async with one, other:
        assert other.status()["boards"] == {}
    with pytest.raises(OtaError) as caught:
        Engine({"a": "gopher://x"})
    assert caught.value.code == "config-invalid"


@pytest.mark.slow
async def test_a_board_on_which_nothing_boots_is_rescued_by_its_mac(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """The right one; anything else is refused, and one that boots is left alone."""
    flash = make_flash("guide")
    for part in LAYOUTS["guide"].partitions:
        if part.type == 0:
            flash[part.offset + 0x1000] ^= 1
    board = esp32_boards(layout="guide", flash=bytes(flash))
    app = image(tmp_path, "1.1")
    async with Engine({"a": board.url}, **QUICK) as engine:
        with pytest.raises(ValueError, match="hex digits"):
            engine.update(app, rescue="x")
        left = await engine.update(app)
        assert left.outcome == "failed"
        with pytest.raises(OtaError, match="wrong-board"):
            await engine.update(app, rescue="24:0a:c4:99:99:99")
        await engine.release()
        done = await engine.update(app, rescue=board.mac.upper().replace(":", "-"))
        assert done["a"].outcome == "up_to_date"
        again = await engine.update(app, rescue=board.mac)
        error = again["a"].error
        assert error is not None
        assert error.code == "board-boots"
    assert board.control.running()["version"] == "1.1"


async def test_ports_alone_are_named_by_their_last_part(tmp_path: Path) -> None:
    """As far as that tells them apart."""
    ports = ["/dev/ttyUSB0", "rfc2217://a:1", "/dev/x/c", "/dev/y/c"]
    async with Engine(ports) as engine:
        assert list(engine.status()["boards"]) == ["ttyUSB0", "a:1", "/dev/x/c", "/dev/y/c"]
    async with Engine("/dev/ttyUSB0") as engine:
        assert list(engine.status()["boards"]) == ["ttyUSB0"]


async def test_a_board_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything is done with it."""
    async with Engine(["/dev/ttyUSB77"]) as engine:
        with pytest.raises(ValueError, match="the boards are: ttyUSB77"):
            await engine.version(boards=["nobody"])
        report = await engine.version()
        error = report["ttyUSB77"].error
        assert error is not None
        assert error.code == "port-missing"


@pytest.mark.parametrize(
    ("verb", "slip"),
    [("update", "dry_run"), ("update", "forse"), ("plan", "wait_s"), ("stage", "force")],
)
async def test_an_argument_that_there_is_not_is_refused_at_once(
    tmp_path: Path, verb: str, slip: str
) -> None:
    """And no file is read, nor a board asked, although the verb may know the name."""
    async with Engine([]) as engine:
        with pytest.raises(TypeError, match=f"no argument {slip}; it takes sha256, boards, probe"):
            getattr(engine, verb)(tmp_path / "app.bin", **{slip: True})


@pytest.mark.slow
async def test_boards_are_staged_and_activated(esp32_boards: StartBoard, tmp_path: Path) -> None:
    """In one engine, and in one that is opened later, by the same file, wherever it lies by then;
    and what is not staged."""
    board = esp32_boards(layout="micro-rdk")
    file = image(tmp_path, "1.1")
    async with Engine({"a": board.url}, **QUICK) as engine:
        assert (await engine.activate(file))["a"].error is not None
        report = (await engine.stage(file)).require()["a"]
        assert (report.outcome, report.replaces, report.before) == ("outdated", None, "1.0.0")
        assert report.staged is not None
        assert (report.staged["version"], report.staged["slot"]) == ("1.1", "ota_1")
        assert "replaces" not in report.staged
    async with Engine({"a": board.url}, **QUICK) as engine:
        other = await engine.activate(file, "1.2")
        assert other["a"].error is not None
        assert other["a"].error.code == "stage-stale"
        elsewhere = tmp_path / "elsewhere.bin"
        elsewhere.write_bytes(file.read_bytes())
        done = (await engine.activate(elsewhere)).require()["a"]
        assert (done.action, done.version, done.outcome) == ("switch", "1.1", "up_to_date")
    async with Engine({"a": board.url}, **QUICK) as engine:
        order = engine.stage(image(tmp_path, "1.2"), boards=["a"])
        staged = (await order).require()["a"].staged
        assert staged is not None
        assert staged["replaces"] == "1.0.0"
        assert (await engine.activate()).require()["a"].version == "1.2"


def attached(board: RunningBoard, **usb: Any) -> PortInfo:
    """A simulated board as a port of this machine; without `usb` on Espressif's own USB."""
    native = {"vid": ESPRESSIF_VID, "pid": SERIAL_JTAG_PID, "serial_number": board.mac}
    return PortInfo(board.url, **(usb or native))


def opened(*boards: RunningBoard) -> list[int]:
    """How often each board's port was opened."""
    return [board.control.counters().get("opened", 0) for board in boards]


@pytest.mark.slow
async def test_without_boards_it_has_those_that_are_attached(
    esp32_boards: StartBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service without `boards`: what is on Espressif's own USB, as it comes and goes; a bridge
    is opened by a probe alone, and known from then on; another project's is left alone, but for
    who names it."""
    native, bridged = esp32_boards(layout="guide"), esp32_boards(layout="micro-rdk")
    other = esp32_boards(layout="guide", app=build_app("lamp", "7", size_bytes=80_000))
    ports = [
        attached(native),
        attached(bridged, vid=0x10C4, pid=0xEA60, serial_number="0001", location="1-1.2"),
        PortInfo("/dev/ttyS0"),
    ]
    monkeypatch.setattr(roster, "list_ports", lambda: ports)
    firmware = await load_firmware(image(tmp_path, "1.1", project="micro-rdk-server"))

    async with Engine(**QUICK) as engine:
        shown = engine.status()["boards"]
        states = {native.mac: "unknown", bridged.url: "candidate"}
        assert {name: board["state"] for name, board in shown.items()} == states
        done = await engine.update(firmware)
        assert (done.outcome, done[native.mac].outcome) == ("succeeded", "up_to_date")
        assert opened(bridged) == [0]

        ports.append(attached(other))
        await engine._fleet.look_around()
        left = await engine.update(firmware, boards=[bridged.url])
        assert (left.outcome, opened(bridged, other)) == ("failed", [0, 0])
        probed = await engine.version(boards=[bridged.url], probe=True)
        assert probed[bridged.mac].version == "1.0.0"
        assert opened(other) == [0]
        everything = await engine.update(firmware)
        assert everything.outcome == "succeeded", everything.record
        assert everything[bridged.mac].outcome == "up_to_date"
        refused = everything[other.mac].error
        assert refused is not None
        assert refused.code == "other-project"

    async with Engine(**QUICK) as engine:
        states = {name: board["state"] for name, board in engine.status()["boards"].items()}
        assert states == {native.mac: "unknown", bridged.mac: "unknown", other.mac: "unrecognised"}
        assert engine.status()["boards"][native.mac]["version"] == "1.1"
        before = opened(other)
        await engine.version()
        assert opened(other) == before, "what is not ours is left alone until somebody names it"
        assert (await engine.update(firmware, boards=[other.mac]))[other.mac].version == "1.1"


async def test_what_is_attached_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the engine is open, and without any port being opened (there are none)."""
    native = PortInfo(
        "/dev/own", vid=ESPRESSIF_VID, pid=SERIAL_JTAG_PID, serial_number="24:0A:C4:12:34:56"
    )
    bridge = PortInfo("/dev/bridge", vid=0x1A86, pid=0x7523)
    ports: list[PortInfo] = []
    monkeypatch.setattr(roster, "list_ports", lambda: list(ports))
    monkeypatch.setattr("ota_service.fleet.engine.POLL_S", 0.01)
    async with Engine() as engine:

        async def seen() -> dict[str, str]:
            boards = engine.status()["boards"]
            return {name: board["state"] for name, board in boards.items()}

        assert await seen() == {}
        name = "24:0a:c4:12:34:56"
        for here, states in (
            ([bridge], {"/dev/bridge": "candidate"}),
            ([native], {"/dev/bridge": "absent", name: "unknown"}),
            ([native, bridge], {"/dev/bridge": "candidate", name: "unknown"}),
            ([], {"/dev/bridge": "absent", name: "absent"}),
        ):
            ports[:] = here
            await eventually(seen, states.__eq__)


async def test_another_device_under_a_ports_name_is_not_the_board_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it shown, or opened, in its place: a bridge's number goes to whoever comes next."""
    one, two = "24:0a:c4:00:00:01", "24:0a:c4:00:00:02"
    known = {
        mac: PortInfo("/dev/bridge", location=f"1-1.{n}", vid=0x10C4, pid=0xEA60, serial_number=mac)
        for n, mac in enumerate((one, two))
    }
    with contextlib.closing(Journal(tmp_path, shared=True)) as journal:
        for mac, info in known.items():
            Memory(journal, "esp32-ota").learn_place(None, f"{info.device}{mac}", info, mac)
    ports: list[PortInfo] = [known[one]]
    monkeypatch.setattr(roster, "list_ports", lambda: list(ports))
    monkeypatch.setattr("ota_service.fleet.engine.POLL_S", 0.01)
    async with Engine(state_dir=tmp_path) as engine:

        async def seen() -> dict[str, str]:
            boards = engine.status()["boards"]
            return {name: board["state"] for name, board in boards.items()}

        strange = PortInfo("/dev/bridge", location="1-1.7", vid=0x1A86, pid=0x7523)
        for here, states in (
            (known[one], {one: "unknown"}),
            (known[two], {one: "absent", two: "unknown"}),
            (strange, {one: "absent", two: "absent", "/dev/bridge": "candidate"}),
            (known[one], {one: "unknown", two: "absent", "/dev/bridge": "absent"}),
        ):
            ports[:] = [here]
            await eventually(seen, states.__eq__)


def test_boards_whose_ports_swap_names_are_known_by_their_bridges(tmp_path: Path) -> None:
    """As after a start of the machine; one that was seen elsewhere since is not taken for there."""
    one, two, three = (f"24:0a:c4:00:00:0{n}" for n in (1, 2, 3))

    def bridge(device: str, socket: int) -> PortInfo:
        return PortInfo(device, location=f"1-1.{socket}", vid=0x10C4, pid=0xEA60,
                        serial_number="0001")  # fmt: skip

    with contextlib.closing(Journal(tmp_path, shared=True)) as journal:
        memory = Memory(journal, "esp32-ota")

        def seen(mac: str, info: PortInfo) -> None:
            memory.learn_place(None, info.device, info, mac)

        def at(info: PortInfo) -> str | None:
            found = memory.board_at(info)
            return found.mac if found is not None else None

        seen(one, bridge("/dev/a", 1))
        seen(two, bridge("/dev/b", 2))
        seen(one, bridge("/dev/b", 1))
        assert [at(bridge("/dev/b", 1)), at(bridge("/dev/a", 2))] == [one, two]
        seen(two, bridge("/dev/c", 3))
        assert [at(bridge("/dev/a", 2)), at(bridge("/dev/c", 3))] == [None, two]
        seen(three, bridge("/dev/d", 3))
        assert at(bridge("/dev/c", 3)) == three


@pytest.mark.slow
async def test_as_a_service_it_has_the_verbs_and_replies(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """For a page or a program that knows the service: with the firmware that was aimed at, which
    may be a manifest; what was staged is activated by an engine that was told of none."""
    wheel, eye = (
        esp32_boards(layout="guide", app=build_app(project, "1.0.0", size_bytes=80_000))
        for project in ("wheel", "eye")
    )
    boards = {"a": wheel.url, "b": eye.url}
    images = {}
    for project in ("wheel", "eye"):
        file = image(tmp_path, "2.0", project=project).rename(tmp_path / f"{project}.bin")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        images[project] = {"url": file.name, "sha256": digest}
    manifest = {"format": 1, "version": "2.0", "images": images}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    async with Engine(boards, **QUICK) as engine:
        service = engine.service
        with pytest.raises(OtaError, match="No firmware is named yet"):
            await service.command("update")
        with pytest.raises(ValueError, match="did you mean"):
            await service.command("updat")
        assert "update" in (await service.command("help"))["verbs"]
        await engine.aim(tmp_path / "manifest.json")
        assert (await service.status())["target"]["version"] == "2.0"
        planned = await service.command("update", {"dry_run": True, "wait_s": 30})
        assert {name: plan["image"] for name, plan in planned["plan"].items()} == {
            "a": "wheel",
            "b": "eye",
        }
        staged = await service.command("stage", {"probe": True, "wait_s": 30})
        assert {board["staged"]["version"] for board in staged["boards"].values()} == {"2.0"}
        await engine.aim(None)
        assert "target" not in await service.status()
    async with Engine(boards, **QUICK) as engine:
        done = (await engine.activate()).require()
        assert {board.version for board in done.boards.values()} == {"2.0"}
        assert (await engine.verify(tmp_path))["b"].matches is True
    assert [board.control.running()["project"] for board in (wheel, eye)] == ["wheel", "eye"]


def test_two_names_for_one_port_are_refused_with_both(tmp_path: Path) -> None:
    """Before anything is opened."""
    (tmp_path / "link").symlink_to(tmp_path / "board")
    boards: tuple[tuple[Any, str], ...] = (
        (["/dev/x", "/dev/../dev/x"], "/dev/x and /dev/../dev/x are one and the same port"),
        (["/dev/x", "/dev/x"], "/dev/x is named twice"),
        ({"a": "/dev/x", "b": "/dev/x"}, "/dev/x is named twice"),
        ([f"esp32sim://{tmp_path}/{name}" for name in ("board", "link")], "board and esp32sim://"),
    )
    for named, words in boards:
        with pytest.raises(OtaError, match=words) as caught:
            Engine(named)
        assert caught.value.code == "duplicate-board"


async def test_a_group_of_a_command_that_is_alive_is_let_be(tmp_path: Path) -> None:
    """It is in the middle of its switch, and that command's; one that died is finished where all of
    its boards are: whoever reads one of them takes none of them back."""
    mac, elsewhere = "24:0a:c4:00:00:01", "24:0a:c4:00:00:02"
    living = Journal(tmp_path, shared=True)
    living.update_board(mac)
    living.put(NameRecord("esp32-ota", "a", mac))
    for name, macs in (("mine", [mac]), ("other", [elsewhere]), ("both", [mac, elsewhere])):
        members = [
            {"name": name, "image": "app", "mac": of, "step": 0, "key": "k", "url": "none",
             "version": "2", "switch": "activate"} for of in macs
        ]  # fmt: skip
        course = {"version": "2", "steps": [["app"]], "step": 1, "boards": {name: "app"}}
        data = {"members": members, "others": [], "names": [name], "stops": [], "course": course}
        since = datetime.now(UTC)
        living.put(GroupRecord("esp32-ota", f"run:{name}", "k", "2", "switching", since, data))

    async def resumed() -> list[str]:
        async with Engine({"a": "/dev/nowhere"}, state_dir=tmp_path) as engine:
            await engine._fleet.groups.known.wait()
            return [run.resumes.id for run in engine._fleet.runs if run.resumes is not None]

    assert await resumed() == []
    assert {record.phase for record in living.all(GroupRecord)} == {"switching"}
    living.close()
    assert await resumed() == ["run:mine"]
