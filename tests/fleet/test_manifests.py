# SPDX-License-Identifier: GPL-3.0-or-later
"""A service in this process whose url gives a manifest: what is stopped, found, kept and pinned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard
from ota_service.fleet import roster
from ota_service.fleet.journal import open_journal
from ota_service.fleet.service import shutdown
from ota_service.fleet.settings import RobotCall
from ota_service.link.ports import ESPRESSIF_VID, SERIAL_JTAG_PID, PortInfo
from tests.faults.desk import Desk
from tests.support.host_policy import add_key, add_repository, make_host
from tests.support.signing import key, public, sign
from tests.support.tuf_repository import TufRepository

OWN = key("ECDSA-P-256")
pytestmark = pytest.mark.slow


def board(project: str, **options: Any) -> SimBoard:
    """One that runs a project's old firmware."""
    return SimBoard("guide", app=build_app(project, "1.0.0", size_bytes=40_000), **options)


def publish(
    desk: Desk, version: str, images: Mapping[str, Behaviour], tag: str | None = None,
    signed: Collection[str] = (), **more: Any,
) -> str:  # fmt: skip
    """Serve a manifest and its images, each of the project that it is called by; its url. tag: the
    version of its images; signed: by our key."""
    entries = {}
    for name, behaviour in images.items():
        data = build_app(name, version, size_bytes=40_000, behaviour=behaviour)
        data = sign(data, OWN) if name in signed else data
        desk.server.put(f"/{version}/{name}.bin", data)
        entries[name] = {"url": f"{name}.bin", "sha256": hashlib.sha256(data).hexdigest()}
        entries[name] |= {"version": tag} if tag is not None else {}
    made = {"format": 1, "version": version, "images": entries, **more}
    return desk.server.put(f"/{version}/manifest.json", json.dumps(made).encode())


async def test_an_image_that_does_not_start_is_stopped_and_stays_so(tmp_path: Path) -> None:
    """One canary of its boards fails; the others and the next step's are left, also by the next
    life of the service, which knows by the kept manifest that this is what was stopped."""
    boards = [*(board("wheel") for _ in range(4)), board("eye")]
    async with Desk.start(tmp_path, boards) as desk:
        images = {"wheel": Behaviour(ending="panic", ending_after_s=0.2), "eye": Behaviour()}
        url = publish(desk, "2.0", images, order=[["wheel"], ["eye"]])
        for life in (1, 2):
            status = await desk.updated("2.0", url=url)
            states = sorted(one["state"] for one in status["boards"].values())
            assert states == [*["outdated"] * 4, "rolled_back"], status
            assert status["error"]["code"] == "stopped"
            assert status["boards"]["e"]["error"]["code"] == "manifest-incomplete"
            opened = {n: desk.board(n).control.counters().get("opened", 0) for n in desk.names}
            if life == 1:
                before = opened
                await shutdown()
                desk.service = None
        assert opened == before
        assert opened["e"] == 1, "it was looked at, to see what runs on it, and not again"


async def test_boards_that_are_found_get_their_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `boards` in the configuration: those that run a project of the manifest; what runs
    another is let be, and is not counted."""
    boards = [board("wheel"), board("eye"), board("stranger")]
    async with Desk.start(tmp_path, boards) as desk:
        infos = [
            PortInfo(one.url, vid=ESPRESSIF_VID, pid=SERIAL_JTAG_PID, serial_number=one.mac)
            for one in map(desk.board, desk.names)
        ]
        monkeypatch.setattr(roster, "list_ports", lambda: infos)
        images = {"wheel": Behaviour(), "eye": Behaviour()}
        url = publish(desk, "2.0", images, order=[["eye"], ["wheel"]])
        status = await desk.updated("2.0", url=url, boards=None)
        macs = [desk.board(name).mac for name in desk.names]
        shown = {mac: status["boards"][mac] for mac in macs}
        assert [one.get("image") for one in shown.values()] == ["wheel", "eye", None], status
        assert [one["version"] for one in shown.values()] == ["2.0", "2.0", "1.0.0"]
        assert shown[macs[2]]["error"]["code"] == "other-project"
        assert status["run"]["outcome"] == "succeeded"


async def test_an_image_goes_by_what_runs_whatever_was_noted(tmp_path: Path) -> None:
    """A board that was given another project's firmware, and went back from it; and one whose
    journal is wrong, as another process may leave it. Each gets the image of what it runs."""
    async with Desk.start(tmp_path, [board("wheel"), board("eye")]) as desk:
        images = {"wheel": Behaviour(), "eye": Behaviour()}
        url = publish(desk, "2.0", images, boards={"a": "eye"})
        await desk.updated("2.0", url=url)
        await desk.command("rollback", boards=["a"], wait_s=60)
        await shutdown()
        desk.service = None
        await desk.configure(url=url, version="2.0", auto_update=False)
        status = await desk.wait(lambda status: status["boards"]["a"]["state"] != "unknown")
        assert status["boards"]["a"]["state"] == "rolled_back"
        assert status["boards"]["a"]["running"]["project"] == "wheel"
        await shutdown()
        desk.service = None
        journal = open_journal(tmp_path / "state")
        journal.update_board(desk.board("b").mac, project="wheel")
        journal.close()
        url = publish(desk, "3.0", images, together=[["wheel", "eye"]])
        status = await desk.updated("3.0", url=url)
        assert status["run"]["outcome"] == "succeeded", status
        assert status["run"]["manifest"]["boards"] == {"a": "wheel", "b": "eye"}
        apps = [desk.board(name).control.state()["app"] for name in "ab"]
        assert [(app["project"], app["version"]) for app in apps] == [
            ("wheel", "3.0"), ("eye", "3.0"),
        ]  # fmt: skip
        read = (await desk.command("history", limit=1))["runs"][0]["boards"]["b"]["restarts"]
        assert len([why for why in read if "download mode" in why]) == 2


async def test_a_later_step_goes_by_what_is_so_when_it_begins(tmp_path: Path) -> None:
    """Its board is unplugged meanwhile: no attempt, and its return starts a run for all. A board of
    the first step is pinned meanwhile: it holds no step up, and has what is configured for it."""
    async with Desk.start(tmp_path, [board("wheel"), board("eye")]) as desk:
        rest: dict[str, Any] = {
            "order": [["wheel"], ["eye"]], "boards": {"a": "wheel", "b": "eye"},
        }  # fmt: skip
        boards = [{"name": name, "port": desk.board(name).url} for name in desk.names]

        async def in_step_1(version: str) -> Any:
            url = publish(desk, version, {"wheel": Behaviour(), "eye": Behaviour()}, **rest)
            gate = desk.server.hold(f"/{version}/wheel.bin")
            await desk.configure(url=url, version=version, boards=boards)
            await desk.wait(lambda now: now.get("run", {}).get("manifest", {}).get("step") == 1)
            return url, gate

        _, gate = await in_step_1("2.0")
        first = desk.run_id()
        desk.board("b").control.unplug()
        gate.set()
        status = await desk.wait(lambda now: now["run"]["outcome"] != "running")
        assert status["run"]["outcome"] == "partly", status
        assert {n: one["state"] for n, one in status["boards"].items()} == {
            "a": "up_to_date", "b": "absent",
        }  # fmt: skip
        desk.board("b").control.plug()
        status = await desk.next_run(first)
        assert (status["run"]["trigger"], status["run"]["outcome"]) == ("attached", "succeeded")
        assert {one["version"] for one in status["boards"].values()} == {"2.0"}

        # A board of a later step that is cancelled is not begun, and may be asked for again.
        _, gate = await in_step_1("2.5")
        assert (await desk.command("cancel", boards=["b"]))["cancelled"]
        assert desk.service is not None
        (begun,) = [run for run in desk.service._engine.runs if not run.done.is_set()]
        again = await desk.command("update", boards=["b"])
        assert again["joined"] is False
        gate.set()
        status = await desk.wait(lambda now: now["boards"]["b"]["state"] == "up_to_date")
        await begun.done.wait()
        (run,) = (await desk.command("history", id=begun.id))["runs"]
        assert run["boards"]["b"]["error"]["code"] == "cancelled"

        url, gate = await in_step_1("3.0")
        app = desk.server.put("/5.0.bin", build_app("wheel", "5.0", size_bytes=40_000))
        own = {"url": app, "version": "5.0"}
        await desk.configure(url=url, version="3.0", boards=[{**boards[0], **own}, boards[1]])
        status = await desk.wait(lambda now: now["boards"]["b"]["version"] == "3.0")
        gate.set()
        status = await desk.wait(lambda now: now["boards"]["a"]["state"] == "up_to_date")
        assert status["boards"]["a"]["version"] == "5.0"
        assert "image" not in status["boards"]["a"]


async def test_a_plain_image_follows_a_manifest(tmp_path: Path) -> None:
    """At another url, and in its very place: the boards have the target that the url gives now. A
    board is looked at first when it may be restarted, and is waited for until then."""
    async with Desk.start(tmp_path, [board("eye")]) as desk:
        url = publish(desk, "2.0", {"eye": Behaviour()})
        allowed = False

        class Sensor:
            async def may_restart(self) -> bool:
                return allowed

            async def ask(self, call: RobotCall) -> Mapping[str, Any]:
                raise LookupError(call.resource)

        service = await desk.configure(url=url, version="2.0", auto_update=False)
        service._engine.robot = Sensor()
        await desk.command("update")
        await desk.wait(
            lambda now: now["boards"]["a"].get("error", {}).get("code") == "not-allowed-now"
        )
        assert desk.board().control.counters().get("opened", 0) == 0
        allowed = True
        status = await desk.wait(lambda now: now["run"]["outcome"] == "succeeded")
        assert status["boards"]["a"]["image"] == "eye"
        assert "error" not in status["boards"]["a"]
        for version, path in (("3.0", "/3.0.bin"), ("4.0", "/4.0/manifest.json")):
            plain = build_app("eye", version, size_bytes=40_000)
            status = await desk.updated(version, url=desk.server.put(path, plain))
            assert status["boards"]["a"]["version"] == version
            assert "image" not in status["boards"]["a"]
            assert "manifest" not in status["target"] | status["run"]
        url = publish(desk, "5.0", {"eye": Behaviour()})
        assert (await desk.updated("5.0", url=url))["boards"]["a"]["image"] == "eye"
        # Under the same version, a person's word finds out; what happens by itself need not ask.
        desk.server.put("/5.0/manifest.json", plain)
        assert (await desk.command("update", wait_s=30))["run"]["outcome"] == "succeeded"
        assert "image" not in desk.status()["boards"]["a"]
        entry = (await desk.command("history"))["runs"][0]["boards"]["a"]
        assert (entry["outcome"], "error" in entry) == ("up_to_date", False)
        assert desk.status()["target"]["app_version"] == "4.0"

        # A board's own url is that of one App Image.
        own = {"name": "a", "port": desk.board().url, "version": "2.0",
               "url": desk.server.url("/2.0/manifest.json")}  # fmt: skip
        status = await desk.updated("6.0", boards=[own])
        assert status["boards"]["a"]["error"]["code"] == "not-an-image"
        assert "is a manifest" in status["boards"]["a"]["error"]["message"]


async def test_a_manifest_whose_images_cannot_be_had_is_not_kept(tmp_path: Path) -> None:
    """It may be put right under its version: the next start asks for it again. What was kept is
    what boards are held against, also where nothing is done by itself."""
    async with Desk.start(tmp_path, [board("eye")]) as desk:
        url = publish(desk, "2.0", {"eye": Behaviour()}, boards={"a": "eye"})
        desk.server.put("/2.0/eye.bin", build_app("eye", "2.1", size_bytes=40_000))
        status = await desk.updated("2.0", url=url)
        assert status["error"]["code"] == "digest-mismatch"
        assert status["run"]["outcome"] == "failed"
        publish(desk, "2.0", {"eye": Behaviour()}, "e7")
        await shutdown()
        desk.service = None
        status = await desk.updated("2.0", url=url)
        assert status["boards"]["a"]["version"] == "e7", status
        await shutdown()
        asked = len(desk.server.requests)
        desk.service = None
        await desk.configure(url=url, version="2.0", auto_update=False)
        status = await desk.wait(lambda now: now["boards"]["a"]["state"] == "up_to_date")
        assert status["boards"]["a"]["image"] == "eye"
        assert (len(desk.server.requests), "run" in status) == (asked, False)


async def test_what_was_staged_is_activated_by_the_manifest_it_was_staged_by(
    tmp_path: Path,
) -> None:
    """Without the network, which may hang, and the host's policy: it held when it was written."""
    async with Desk.start(tmp_path, [board("eye")]) as desk:
        url = publish(desk, "2.0", {"eye": Behaviour()}, together=[["eye"]])
        await desk.configure(url=url, version="2.0", auto_update=False)
        assert (await desk.command("stage", wait_s=30))["run"]["outcome"] == "succeeded"
        desk.server.hold("/2.0/manifest.json")  # for ever
        asked = len(desk.server.requests)
        assert (await desk.command("activate", wait_s=30))["run"]["outcome"] == "succeeded"
        assert desk.status()["boards"]["a"]["version"] == "2.0"
        assert len(desk.server.requests) == asked


async def test_a_host_s_policy_holds_for_each_image_and_for_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two images the signed one is written; when the host asks for its repository instead, the
    manifest that was kept from elsewhere is not gone by."""
    folder = make_host(tmp_path, monkeypatch)
    add_key(folder, public(OWN))
    async with Desk.start(tmp_path, [board("wheel"), board("eye")]) as desk:
        images = {"wheel": Behaviour(), "eye": Behaviour()}
        where = {"a": "wheel", "b": "eye"}
        url = publish(desk, "2.0", images, signed=["wheel"], boards=where)
        status = await desk.updated("2.0", url=url)
        assert status["trust"] == {"requires": ["secure-boot-v2"]}
        assert status["boards"]["a"]["version"] == "2.0"
        assert status["error"]["code"] == "signature-missing"
        (run,) = (await desk.command("history"))["runs"]
        assert run["boards"]["a"]["allowed_by"][0]["keys"]
        assert run["boards"]["b"]["error"]["code"] == "signature-missing"
        assert desk.board("b").control.counters().get("opened", 0) == 0

        url = publish(desk, "3.0", images, signed=where.values(), boards=where)
        status = await desk.updated("3.0", url=url)
        assert status["run"]["outcome"] == "succeeded"
        opened = [desk.board(name).control.counters()["opened"] for name in "ab"]
        await shutdown()
        desk.service = None
        (folder / "keys" / "release.pem").unlink()
        (folder / "keys").rmdir()
        made = TufRepository()
        made.publish()
        add_repository(folder, desk.server.url("/elsewhere/"), made.root)
        status = await desk.updated("3.0", url=url)
        assert status["error"]["code"] == "signature-untrusted"
        assert "manifest" not in status["run"]
        assert [desk.board(name).control.counters()["opened"] for name in "ab"] == opened
