# SPDX-License-Identifier: GPL-3.0-or-later
"""Staged at night, activated when it suits: over the socket, with boards on their ports."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from esp32_sim.process import SimBoard
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
