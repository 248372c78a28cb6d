# SPDX-License-Identifier: GPL-3.0-or-later
"""Staged at night, activated when it suits: over the socket, with boards on their ports."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard
from ota_service.fleet.service import shutdown
from tests.faults.desk import PROJECT, Desk
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow


async def test_boards_are_staged_and_activated(tmp_path: Path) -> None:
    """Each sentence of the documentation: what the verbs reply, what the status shows, that no
    download is needed for the activation, and what it says of what does not fit."""
    async with Rig.start(tmp_path, [SimBoard("micro-rdk"), SimBoard("micro-rdk-8mb")]) as rig:
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0")
        await rig.settled("1.1.0")
        url = rig.serve("1.2.0")
        await rig.configure(url=url, version="1.2.0", auto_update=False)

        reply = await rig.command("activate", wait_s=30)
        assert {b["error"]["code"] for b in reply["boards"].values()} == {"not-staged"}

        reply = await rig.command("stage", wait_s=60)
        assert reply["ok"] is True
        assert reply["run"]["outcome"] == "succeeded"
        digest = hashlib.sha256(image := rig.image("1.2.0")).hexdigest()
        for name, board in reply["boards"].items():
            assert board["outcome"] == "outdated", name
            assert board["replaces"] == "1.0.0"
            assert board["staged"]["version"] == "1.2.0"
            assert board["staged"]["digest"] == digest
        status = await rig.module.status(NAME)
        for name, board in status["boards"].items():
            assert (board["state"], board["version"]) == ("outdated", "1.1.0"), name
            assert board["staged"] == reply["boards"][name]["staged"]
            offset, _ = rig.partition(name, board["staged"]["slot"])
            assert rig.board(name).control.read_flash(offset, 8) == b"\xff" + image[1:8]

        # Another target meanwhile, and the first one again; without its server.
        await rig.configure(url=rig.serve("1.3.0"), version="1.3.0", auto_update=False)
        status = await rig.module.status(NAME)
        assert all(board["staged"]["stale"] for board in status["boards"].values())
        reply = await rig.command("activate", wait_s=30)
        assert {b["error"]["code"] for b in reply["boards"].values()} == {"stage-stale"}
        requests = len(rig.server.requests)
        await rig.configure(url=url, version="1.2.0", auto_update=False)

        reply = await rig.command("rollback", boards=["a"], wait_s=30)
        assert "staging has overwritten" in reply["boards"]["a"]["error"]["message"]
        reply = await rig.command("activate", wait_s=60)
        assert reply["run"]["outcome"] == "succeeded"
        assert reply["joined"] is False
        status = await rig.module.status(NAME)
        for name, board in status["boards"].items():
            assert (board["state"], board["version"]) == ("up_to_date", "1.2.0"), name
            assert (board["good"], "staged" in board) == (True, False)
        assert len(rig.server.requests) == requests
        history = (await rig.command("history", limit=20))["runs"]
        purposes = [run["target"].get("purpose") for run in history]
        assert purposes == ["activate", "rollback", "activate", "stage", "activate", None]


async def test_what_a_lost_journal_had_staged_is_found_by_its_digest(tmp_path: Path) -> None:
    """A board with NVS that cannot be read is staged as well; without the journal `activate` knows
    of nothing, and `stage` and `update` find what is in the slot, and write nothing of it."""
    app = build_app(PROJECT, "1.0.0", size_bytes=60_000, chip="esp32c3")
    encrypted = SimBoard("guide", chip="esp32c3", app=app, config={"nvs_key": "hmac"})
    async with Desk.start(tmp_path, [encrypted]) as desk:
        target = {"version_store": "host", "auto_update": False, "version": "1.1.0"}
        target["url"] = desk.serve("1.1.0", chip="esp32c3")
        await desk.configure(**target)
        board = (await desk.command("stage", wait_s=60))["boards"]["a"]
        assert board["staged"]["slot"] == "ota_0", board
        assert (await desk.look()).slot == "factory"

        for verb in ("stage", "update"):
            await shutdown()
            shutil.rmtree(tmp_path / "state")
            desk.service = None
            await desk.configure(**target)
            reply = await desk.command("activate", wait_s=60)
            assert reply["boards"]["a"]["error"]["code"] == "not-staged"
            assert "staged" not in desk.status()["boards"]["a"]
            desk.board().control.start_trace()
            await desk.command(verb, wait_s=60)
            slot = [op for op in desk.board().control.stop_trace() if op["address"] >= 0x110000]
            assert len(slot) == (verb == "update"), slot
        board = desk.status()["boards"]["a"]
        assert (board["state"], board["version"]) == ("up_to_date", "1.1.0"), board
        assert (await desk.look()).version == "1.1.0"


async def test_a_cancelled_stage_leaves_nothing_that_boots(tmp_path: Path) -> None:
    """In the middle of its write; the old firmware runs, and its tag is its own. Asked for again,
    it is staged, and a board that is being staged has its update afterwards."""
    async with Desk.start(tmp_path, [SimBoard("micro-rdk", config={"timed": True})]) as desk:
        before = await desk.look()
        url = desk.serve("1.1.0", size_bytes=300_000)
        await desk.configure(url=url, version="1.1.0", auto_update=False)
        await desk.command("stage")
        await desk.wait(lambda now: now["boards"]["a"].get("phase") == "writing")
        assert (await desk.command("cancel"))["cancelled"] is True
        status = await desk.wait(lambda now: now["run"]["outcome"] != "running")
        board = status["boards"]["a"]
        assert (status["run"]["outcome"], board["state"]) == ("cancelled", "outdated")
        assert "staged" not in board
        assert await desk.look() == before

        assert (await desk.command("stage"))["joined"] is False
        await desk.wait(lambda now: now["boards"]["a"].get("phase") == "writing")
        assert (await desk.command("stage"))["joined"] is True
        assert (await desk.command("update"))["joined"] is False
        status = await desk.wait(lambda now: now["boards"]["a"]["state"] == "up_to_date")
        runs = (await desk.command("history"))["runs"]
        assert [run["target"].get("purpose") for run in runs] == [None, "stage", "stage"]
        assert runs[1]["boards"]["a"]["staged"]["slot"] == "ota_1"
        assert runs[0]["boards"]["a"]["action"] == "switch"


async def test_an_app_that_confirms_itself_is_let_be_by_stage(tmp_path: Path) -> None:
    """A bootloader with rollback: an activation leaves the board alone as an update does, nothing
    is staged meanwhile, and a firmware that panics goes back, and is staged no more."""
    flash = make_flash("micro-rdk", slot="ota_1", otadata="valid")
    board = SimBoard("micro-rdk", flash=bytes(flash), config={"rollback": True})
    shy = Behaviour(confirm_after_s=1.5)
    panics = Behaviour(ending="panic", ending_after_s=0.1)
    async with Desk.start(tmp_path, [board]) as desk:
        options = {"auto_update": False, "confirm_timeout_s": 4}
        url = desk.serve("1.1.0", behaviour=shy)
        await desk.configure(url=url, version="1.1.0", **options)
        await desk.command("stage", wait_s=60)
        await desk.command("activate")
        await desk.wait(lambda now: now["boards"]["a"]["state"] == "awaiting_confirmation")
        await desk.configure(url=desk.serve("1.2.0", behaviour=panics), version="1.2.0", **options)
        board_now = (await desk.command("stage", wait_s=60))["boards"]["a"]
        assert board_now["error"]["code"] == "awaiting-confirmation", board_now
        await desk.configure(url=url, version="1.1.0", **options)
        status = await desk.command("update", wait_s=60)
        assert desk.status()["boards"]["a"]["state"] == "up_to_date", status

        await desk.configure(url=desk.server.url("/1.2.0.bin"), version="1.2.0", **options)
        await desk.command("stage", wait_s=60)
        reply = await desk.command("activate", wait_s=60)
        assert reply["run"]["outcome"] == "failed"
        board_now = desk.status()["boards"]["a"]
        assert (board_now["state"], board_now["version"]) == ("rolled_back", "1.1.0")
        assert "staged" not in board_now
        again = (await desk.command("activate", wait_s=60))["boards"]["a"]
        assert again["error"]["code"] == "boot-failed"  # it is held until `release`
