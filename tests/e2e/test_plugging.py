# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards that are plugged out and in while nothing goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim.process import SimBoard
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow


async def test_a_board_that_is_unplugged_is_absent_and_taken_up_when_it_is_back(
    tmp_path: Path,
) -> None:
    """The status follows the cable; its return starts a run of its own for that board alone."""
    async with Rig.start(tmp_path, [SimBoard("guide"), SimBoard("micro-rdk")]) as rig:
        await rig.updated("1.1.0")
        board, other = rig.board("a"), rig.board("b")
        opened = other.control.counters()["opened"]
        board.control.unplug()
        status = await rig.module.wait_status(NAME, lambda s: s["boards"]["a"]["state"] == "absent")
        assert status["boards"]["a"]["error"]["code"] == "port-missing"
        assert status["boards"]["b"]["state"] == "up_to_date"
        last = await rig.run_id()
        board.control.plug()
        status = await rig.next_run(last)
        assert status["run"]["trigger"] == "attached"
        assert status["boards"]["a"]["state"] == "up_to_date"
        assert other.control.counters()["opened"] == opened


async def test_without_auto_update_a_board_that_is_back_is_only_shown(tmp_path: Path) -> None:
    """No port is opened by itself."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        board = rig.board()
        board.control.unplug()
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0", auto_update=False)
        await rig.module.wait_status(NAME, lambda s: s["boards"]["a"]["state"] == "absent")
        board.control.plug()
        status = await rig.module.wait_status(
            NAME, lambda s: s["boards"]["a"]["state"] == "unknown"
        )
        assert "run" not in status
        assert board.control.counters().get("opened", 0) == 0


async def test_an_absent_board_is_shown_while_the_download_still_hangs(tmp_path: Path) -> None:
    """Within two seconds of the configuration, whatever the download does."""
    async with Rig.start(tmp_path, [SimBoard("guide"), SimBoard("guide")]) as rig:
        rig.board("b").control.unplug()
        url = rig.serve("1.1.0")
        release = rig.server.hold("/1.1.0.bin")
        await rig.configure(url=url, version="1.1.0")
        status = await rig.module.wait_status(
            NAME, lambda s: s["boards"]["b"]["state"] == "absent", timeout_s=2
        )
        assert status["run"]["outcome"] == "running"
        release.set()
        status = await rig.settled()
        assert status["run"]["outcome"] == "partly"
        assert status["boards"]["a"]["version"] == "1.1.0"
