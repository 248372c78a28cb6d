# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest at `url`, over the module's socket: several firmwares, for which boards, in order."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow

MOTOR, SENSOR = "motor-board", "sensor-board"


def publish(rig: Rig, version: str, *, path: str = "/robot/manifest.json", **more: Any) -> str:
    """Serve images, those of two projects by default, and a manifest of them; returns its url.

    images: name -> options of the image, `project` and own `version` among them.
    """
    images = more.pop("images", {"motor": {"project": MOTOR}, "sensor": {"project": SENSOR}})
    entries = {}
    for name, options in images.items():
        options = dict(options)
        tag = options.pop("tag", None)
        entry = options.pop("entry", {})
        data = rig.image(options.pop("version", version), size_bytes=60_000, **options)
        file = f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.bin"
        rig.server.put(f"/robot/{file}", data)
        entries[name] = {"url": file, "sha256": hashlib.sha256(data).hexdigest(), **entry}
        entries[name] |= {"version": tag} if tag else {}
    return rig.server.put(path, manifest(version, entries, **more))


def manifest(version: str, images: dict[str, Any], **more: Any) -> bytes:
    """Its file."""
    return json.dumps({"format": 1, "version": version, "images": images, **more}).encode()


async def configure(rig: Rig, **attributes: Any) -> None:
    """As the rig does it; these apps show at once what becomes of them."""
    await rig.configure(boot_stable_s=0.4, **attributes)


def board(project: str, layout: str = "guide", **options: Any) -> SimBoard:
    """A board that runs a project's old firmware."""
    chip = options.get("chip", "esp32")
    return SimBoard(
        layout, app=build_app(project, "1.0.0", size_bytes=60_000, chip=chip), **options
    )


def robot() -> list[SimBoard]:
    """One motor board and two sensor boards."""
    return [board(MOTOR), board(SENSOR), board(SENSOR, "micro-rdk")]


async def test_each_board_gets_its_image_and_a_start_needs_no_network(tmp_path: Path) -> None:
    """By the project that runs on it; the tag is the image's own, else the manifest's. What a
    dry run says beforehand; a pinned board is none of the manifest's; what was fetched is kept."""
    boards = [*robot(), board("other")]
    async with Rig.start(tmp_path, boards) as rig:
        images = {"motor": {"project": MOTOR}, "sensor": {"project": SENSOR, "tag": "s-7"}}
        url = publish(rig, "2.0", images=images)
        own = {"d": {"url": rig.serve("5.0", project="other", size_bytes=60_000), "version": "5.0"}}
        digest = hashlib.sha256(rig.server.served("/robot/manifest.json")).hexdigest()
        target: dict[str, Any] = {"url": url, "version": "2.0", "sha256": digest, "pins": own}
        await configure(rig, **target)
        status = await rig.settled()
        assert status["run"]["outcome"] == "succeeded", status
        assert status["target"]["sha256"] == digest
        assert status["target"]["manifest"] == {
            "images": ["motor", "sensor"], "steps": [["motor", "sensor"]],
        }  # fmt: skip
        found = status["boards"]
        assert {n: (b.get("image"), b["version"]) for n, b in found.items()} == {
            "a": ("motor", "2.0"), "b": ("sensor", "s-7"), "c": ("sensor", "s-7"),
            "d": (None, "5.0"),
        }  # fmt: skip
        assert {b["state"] for b in found.values()} == {"up_to_date"}
        shown = {"version": "2.0", "step": 1, "steps": [["motor", "sensor"]],
                 "boards": {"a": "motor", "b": "sensor", "c": "sensor"}}  # fmt: skip
        (run,) = (await rig.command("history"))["runs"]
        assert status["run"]["manifest"] == run["manifest"] == shown

        # Another process of the same machine: it goes by the manifest that was kept.
        before = len(rig.server.requests)
        await rig.module.terminate()
        async with ModuleProcess.start(tmp_path / "machine") as rig.module:
            await configure(rig, **target)
            status = await rig.settled()
            assert status["run"]["outcome"] == "succeeded", status
            assert status["run"]["manifest"] == shown
            assert [one.path for one in rig.server.requests[before:]] == ["/5.0.bin"]  # d's own

            # What a person asks for goes by what the url gives now; its server is not waited for.
            del target["sha256"]
            last = await rig.run_id()
            await configure(rig, **target)
            assert (await rig.next_run(last))["run"]["outcome"] == "succeeded"
            found = (await rig.command("verify"))["boards"]
            assert {n: one["matches"] for n, one in found.items()} == dict.fromkeys("abcd", True)
            asked, silent = asyncio.Event(), asyncio.Event()

            async def hang(_: web.Request) -> web.StreamResponse:
                asked.set()
                await silent.wait()
                return web.Response(status=503)

            rig.server.answer_next("/robot/manifest.json", hang)
            begun = await rig.command("update", boards=["a", "b"])
            await asyncio.wait_for(asked.wait(), 20)
            assert (await rig.module.status(NAME))["state"] == "downloading"
            assert (await rig.command("update", boards=["b"]))["run"]["id"] == begun["run"]["id"]
            assert (await rig.command("cancel"))["cancelled"]
            status = await rig.settled()
            assert {one["state"] for one in status["boards"].values()} == {"up_to_date"}
            silent.set()

            url = publish(rig, "3.0", order=[["sensor"], ["motor"]])
            await configure(rig, url=url, version="3.0", auto_update=False, pins=own)
            reply = await rig.command("update", dry_run=True)
            assert reply["steps"] == [["sensor"], ["motor"]]
            assert {n: (p["action"], p.get("image")) for n, p in reply["plan"].items()} == {
                "a": ("write", "motor"), "b": ("write", "sensor"), "c": ("write", "sensor"),
                "d": ("none", None),
            }  # fmt: skip
            assert all(reply["plan"][name]["expected_s"] > 0 for name in "abc")


async def test_a_step_begins_when_the_one_before_is_good(tmp_path: Path) -> None:
    """A firmware that panics leaves the boards of later steps as they are, with words. A manifest
    that replaces another one in the middle redirects the run, and both steps come through."""
    async with Rig.start(tmp_path, robot()) as rig:
        where = {"a": "motor", "b": "sensor", "c": "sensor"}
        order: dict[str, Any] = {"order": [["motor"], ["sensor"]], "boards": where}
        bad = Behaviour(ending="panic", ending_after_s=0.2)
        images = {"sensor": {"project": SENSOR}, "motor": {"project": MOTOR, "behaviour": bad}}
        untouched = [rig.flash_digest(name) for name in "bc"]
        url = publish(rig, "2.0", images=images, **order)
        await configure(rig, url=url, version="2.0")
        status = await rig.settled()
        assert status["run"]["outcome"] == "failed", status
        assert status["run"]["manifest"]["step"] == 1
        assert status["boards"]["a"]["state"] == "rolled_back"
        for name in "bc":
            assert status["boards"][name]["state"] == "outdated"
            error = status["boards"][name]["error"]
            assert error["code"] == "manifest-incomplete"
            assert "a (motor): rolled back" in error["message"]
        assert [rig.flash_digest(name) for name in "bc"] == untouched
        (run,) = (await rig.command("history"))["runs"]
        assert run["boards"]["b"]["error"]["code"] == "manifest-incomplete"

        begun = await rig.run_id()
        await configure(rig, url=publish(rig, "3.0", path="/robot/3.json", **order), version="3.0")
        waiting = await rig.module.wait_status(
            NAME, lambda s: s["boards"]["a"].get("phase") not in (None, "waiting")
        )
        assert {waiting["boards"][name].get("phase") for name in "bc"} == {None}
        await configure(rig, url=publish(rig, "4.0", path="/robot/4.json", **order), version="4.0")
        status = await rig.settled("4.0")
        while status["run"]["id"] == begun:
            status = await rig.next_run(status["run"]["id"])
        assert status["run"]["outcome"] == "succeeded", status
        assert {board["version"] for board in status["boards"].values()} == {"4.0"}
        assert status["run"]["manifest"]["step"] == 2


async def test_what_is_no_manifest_of_this_version_is_said(tmp_path: Path) -> None:
    """Nothing is written; the error names the path in the file, the version, or what it is. What
    fits nowhere and what two images fit is said, and the rest goes on."""
    boards = [board(name) for name in (MOTOR, "twin", "stray", "wrong")]
    async with Rig.start(tmp_path, boards) as rig:
        entry = {"url": "x.bin", "sha256": "12"}
        bad = {"format": 1, "version": "2.0", "images": {"motor": entry}}
        other: dict[str, Any] = {"sha256": "0" * 64}
        for path, file, code, words in (
            ("/0.json", bad, "digest-mismatch", "The file's SHA-256 is"),
            ("/1.json", bad, "manifest-invalid", "images.motor.sha256: must be 64 hex digits"),
            ("/2", {"name": "x", "builds": []}, "not-an-image", "manifest of ESP Web Tools"),
            ("/3?x=1", {**bad, "images": {"motor": {**entry, "sha256": "0" * 64}}, "version": "9"},
             "version-mismatch", 'of version "9", and "2.0" is configured'),
        ):  # fmt: skip
            rig.server.put(path.partition("?")[0], json.dumps(file).encode())
            before = await rig.run_id()
            await configure(rig, url=rig.server.url(path), version="2.0", **other)
            other = {}
            status = await rig.next_run(before)
            assert status["error"]["code"] == code, status
            assert words in status["error"]["message"]
            assert {board["state"] for board in status["boards"].values()} <= {"unknown"}

        images = {
            "motor": {"project": MOTOR}, "one": {"project": "twin"}, "two": {"project": "twin"},
            "spare": {"project": "nobody's"},
            "wrong": {"project": "other", "entry": {"project": "wrong", "chip": "esp32"}},
        }  # fmt: skip
        before = await rig.run_id()
        await configure(rig, url=publish(rig, "2.0", images=images), version="2.0")
        status = await rig.next_run(before)
        a, b, c = (status["boards"][name] for name in "abc")
        assert status["run"]["outcome"] == "partly", status
        assert (a["state"], a["version"]) == ("up_to_date", "2.0")
        assert b["error"]["code"] == "manifest-invalid"
        assert "one, two of the manifest all fit" in b["error"]["message"]
        assert (c["state"], c["error"]["code"]) == ("unrecognised", "other-project")
        assert [board["version"] for board in (b, c)] == ["1.0.0", "1.0.0"]
        assert status["boards"]["d"]["state"] == "outdated"
        assert status["error"]["code"] == "manifest-invalid"
        assert 'images.wrong.project: the file is of "other"' in status["error"]["message"]
        unused = "No board gets one, two, spare of the manifest."
        run = (await rig.command("history"))["runs"][0]
        assert run["boards"]["c"]["error"]["code"] == "other-project"
        assert status["run"]["manifest"]["notice"] == run["manifest"]["notice"] == unused
        assert unused in rig.module.log


async def test_a_robot_of_twelve_boards(tmp_path: Path) -> None:
    """Three projects on two chips: each board gets the image of its project for its chip, step by
    step, and a project without an image for a chip is said."""
    boards = [
        *(board("wheel") for _ in range(4)),
        *(board("wheel", chip="esp32s3") for _ in range(2)),
        *(board("eye", chip="esp32s3") for _ in range(3)),
        *(board("horn") for _ in range(2)), board("horn", chip="esp32s3"),
    ]  # fmt: skip
    async with Rig.start(tmp_path, boards) as rig:
        images = {
            "wheel": {"project": "wheel"},
            "wheel3": {"project": "wheel", "chip": "esp32s3"},
            "eye": {"project": "eye", "chip": "esp32s3", "tag": "e9"},
            "horn": {"project": "horn", "entry": {"project": "horn", "chip": "ESP32"}},
        }
        url = publish(rig, "2.0", images=images, order=[["eye"], ["wheel", "wheel3"]])
        await configure(rig, url=url, version="2.0")
        status = await rig.settled(timeout_s=120)
        assert status["run"]["outcome"] == "partly", status
        found = [board.get("image") for _, board in sorted(status["boards"].items())]
        assert found == ["wheel"] * 4 + ["wheel3"] * 2 + ["eye"] * 3 + ["horn"] * 2 + [None]
        assert status["boards"]["l"]["error"]["code"] == "other-project"
        versions = [board["version"] for _, board in sorted(status["boards"].items())]
        assert versions == ["2.0"] * 6 + ["e9"] * 3 + ["2.0"] * 2 + ["1.0.0"]
        assert status["run"]["manifest"]["step"] == 3
