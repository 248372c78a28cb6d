# SPDX-License-Identifier: GPL-3.0-or-later
"""Many boards on one machine, and two processes that want the same things."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from esp32_sim.process import SimBoard
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow


async def test_many_boards_are_updated_max_parallel_at_once(tmp_path: Path) -> None:
    """Sixteen boards, four at a time: never more sessions than that, and all come through."""
    boards = [SimBoard("guide") for _ in range(16)]
    async with Rig.start(tmp_path, boards) as rig:
        await rig.configure(
            url=rig.serve("1.1.0", size_bytes=30_000),
            version="1.1.0",
            max_parallel=4,
            boot_stable_s=0.5,
        )
        most = 0
        while True:
            begun = time.monotonic()
            status = await rig.module.status(NAME)
            took_s = time.monotonic() - begun
            assert took_s < 1.0
            busy = [b for b in status["boards"].values() if b.get("phase") not in (None, "waiting")]
            most = max(most, len(busy))
            if status.get("run", {}).get("outcome", "running") != "running":
                break
        assert 1 < most <= 4
        assert status["run"]["outcome"] == "succeeded"
        assert {board["version"] for board in status["boards"].values()} == {"1.1.0"}


async def test_a_second_process_names_who_has_the_state_folder(tmp_path: Path) -> None:
    """One journal a process; another one says state-busy, and works when the first has ended."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        status = await rig.updated("1.1.0")
        async with ModuleProcess.start(tmp_path / "machine") as second:
            wanted = rig.attributes(url=rig.server.url("/1.1.0.bin"), version="1.1.0")
            await second.add(NAME, wanted)
            status = await second.wait_status(NAME, lambda s: "error" in s)
            assert status["error"]["code"] == "state-busy"
            assert str(rig.module.process.pid) in status["error"]["message"]
            with pytest.raises(Exception, match=r"tried again by itself.*state-busy"):
                await second.command(NAME, {"command": "activate"})
            await rig.module.terminate()
            status = await second.wait_status(
                NAME, lambda s: s.get("run", {}).get("outcome") == "succeeded"
            )
            assert status["boards"]["a"]["version"] == "1.1.0"


async def test_two_services_of_one_module_share_no_board(tmp_path: Path) -> None:
    """Disjoint boards work side by side; a board in both is refused, naming both services."""
    async with Rig.start(tmp_path, [SimBoard("guide"), SimBoard("micro-rdk")]) as rig:
        url = rig.serve("1.1.0")
        one = {"url": url, "version": "1.1.0", "boot_stable_s": 1}
        a, b = ({"name": n, "port": rig.board(n).url} for n in rig.names)
        await rig.module.add("LEFT", {**one, "boards": [a]})
        with pytest.raises(Exception, match=r"LEFT.*RIGHT|RIGHT.*LEFT"):
            await rig.module.add("RIGHT", {**one, "boards": [a, b]})
        await rig.module.add("RIGHT", {**one, "boards": [b]})
        for name, board in (("LEFT", "a"), ("RIGHT", "b")):
            status = await rig.module.wait_status(
                name, lambda s: s.get("run", {}).get("outcome") == "succeeded"
            )
            assert status["boards"][board]["version"] == "1.1.0"
