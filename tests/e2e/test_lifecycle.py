# SPDX-License-Identifier: GPL-3.0-or-later
"""How the service lives: changes in the middle, removal, signals, boards that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour
from esp32_sim.process import SimBoard
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow

LARGE = 900_000


async def writing(rig: Rig, name: str = "a") -> dict[str, Any]:
    """Wait until a board's slot is being written."""
    return await rig.module.wait_status(NAME, lambda s: s["boards"][name].get("phase") == "writing")


def loader_ops(rig: Rig, name: str = "a") -> list[dict[str, Any]]:
    """The flash operations of ours since the trace began."""
    return [op for op in rig.board(name).control.trace() if op["who"] == "loader"]


def slow(layout: str) -> SimBoard:
    """A board with true wire and flash times, so that a write takes seconds."""
    return SimBoard(layout, config={"timed": True})


async def test_a_new_target_in_the_middle_redirects_the_run(tmp_path: Path) -> None:
    """A board before the switch stops at the next block and goes to the new target."""
    async with Rig.start(tmp_path, [slow("micro-rdk")]) as rig:
        await rig.configure(url=rig.serve("1.1.0", size_bytes=LARGE), version="1.1.0")
        await writing(rig)
        await rig.configure(url=rig.serve("1.2.0"), version="1.2.0")
        status = await rig.module.wait_status(
            NAME,
            lambda s: s["boards"]["a"]["state"] == "up_to_date" and s["state"] == "idle",
        )
        assert status["boards"]["a"]["version"] == "1.2.0"
        assert rig.board().control.running()["version"] == "1.2.0"


async def test_a_removed_service_leaves_its_boards_in_a_firmware_that_boots(
    tmp_path: Path,
) -> None:
    """After the grace the write is stopped at a block, and the old firmware runs."""
    async with Rig.start(tmp_path, [slow("micro-rdk")]) as rig:
        await rig.configure(url=rig.serve("1.1.0", size_bytes=LARGE), version="1.1.0", baud=115200)
        await writing(rig)
        number = rig.board().control.state()["events"]
        await rig.module.remove(NAME)
        rig.board().control.wait_for("app", since=number, timeout_s=10)
        assert rig.board().control.running()["version"] == "1.0.0"
        await rig.module.add(NAME, rig.attributes(url=rig.serve("1.1.0"), version="1.1.0"))
        status = await rig.settled()
        assert status["boards"]["a"]["state"] == "up_to_date"


async def test_a_signal_ends_the_module_within_ten_seconds_and_boards_boot(
    tmp_path: Path,
) -> None:
    """SIGTERM in the middle of a slot write; the next start carries on by itself."""
    async with Rig.start(tmp_path, [slow("micro-rdk")]) as rig:
        url = rig.serve("1.1.0", size_bytes=LARGE)
        await rig.configure(url=url, version="1.1.0")
        await writing(rig)
        begun = time.monotonic()
        await rig.module.terminate()
        assert time.monotonic() - begun < 10
        assert rig.board().control.running()["version"] == "1.0.0"
        async with ModuleProcess.start(tmp_path / "machine") as again:
            rig.module = again
            await again.add(NAME, rig.attributes(url=url, version="1.1.0"))
            status = await rig.settled()
            assert status["run"]["trigger"] == "resumed"
            assert status["boards"]["a"]["state"] == "up_to_date"


async def test_attributes_without_a_new_target_open_no_port(tmp_path: Path) -> None:
    """Only boards that are newly listed or pinned otherwise are looked at."""
    boards = [SimBoard("guide"), SimBoard("micro-rdk")]
    async with Rig.start(tmp_path, boards) as rig:
        await rig.updated("1.1.0")
        opened = [rig.board(n).control.counters().get("opened", 0) for n in rig.names]
        assert min(opened) > 0
        url = rig.server.url("/1.1.0.bin")
        await rig.configure(url=url, version="1.1.0", max_parallel=2, boot_timeout_s=9)
        await rig.configure(url=url, version="1.1.0", auto_update=False)
        await rig.configure(url=url, version="1.1.0")
        last = await rig.run_id()
        await rig.configure(
            url=url, version="1.1.0", pins={"b": {"url": rig.serve("1.2.0"), "version": "1.2.0"}}
        )
        status = await rig.next_run(last)
        assert status["boards"]["b"]["version"] == "1.2.0"
        assert status["boards"]["a"]["version"] == "1.1.0"
        assert rig.board("a").control.counters()["opened"] == opened[0]


async def test_check_on_start_false_reads_no_board_but_a_new_target_does(tmp_path: Path) -> None:
    """A restart of the module by itself restarts no board."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        url = (await rig.updated("1.1.0")) and rig.server.url("/1.1.0.bin")
        opened = rig.board().control.counters()["opened"]
        await rig.module.terminate()
        async with ModuleProcess.start(tmp_path / "machine") as again:
            rig.module = again
            quiet = rig.attributes(url=url, version="1.1.0", check_on_start=False)
            await again.add(NAME, quiet)
            status = await again.wait_status(
                NAME, lambda s: s["boards"]["a"]["state"] == "up_to_date"
            )
            assert status["boards"]["a"]["version"] == "1.1.0"
            assert rig.board().control.counters()["opened"] == opened
            await again.terminate()
        async with ModuleProcess.start(tmp_path / "machine") as again:
            rig.module = again
            new = {"url": rig.serve("1.2.0"), "version": "1.2.0", "check_on_start": False}
            await again.add(NAME, rig.attributes(**new))
            assert (await rig.settled())["boards"]["a"]["version"] == "1.2.0"


async def test_cancel_keeps_the_old_firmware_and_update_starts_again(tmp_path: Path) -> None:
    """cancel answers at once; the board boots what it had; a later update finishes the job."""
    async with Rig.start(tmp_path, [slow("micro-rdk")]) as rig:
        await rig.configure(url=rig.serve("1.1.0", size_bytes=LARGE), version="1.1.0")
        await writing(rig)
        number = rig.board().control.state()["events"]
        begun = time.monotonic()
        reply = await rig.command("cancel")
        assert time.monotonic() - begun < 0.5
        assert reply["cancelled"] is True
        status = await rig.settled()
        assert status["run"]["outcome"] == "cancelled"
        assert status["boards"]["a"]["state"] == "outdated"
        rig.board().control.wait_for("app", since=number, timeout_s=10)
        assert rig.board().control.running()["version"] == "1.0.0"
        assert (await rig.command("cancel"))["cancelled"] is False
        done = await rig.command("update", wait_s=60)
        assert done["run"]["outcome"] == "succeeded"


async def test_a_dry_run_meanwhile_shows_the_plan_that_is_carried_out(tmp_path: Path) -> None:
    """A board in the middle of an update is not looked at twice; a read's reply is kept."""
    async with Rig.start(tmp_path, [slow("micro-rdk")]) as rig:
        await rig.configure(url=rig.serve("1.1.0", size_bytes=LARGE), version="1.1.0")
        await writing(rig)
        opened = rig.board().control.counters()["opened"]
        reply = await rig.command("update", dry_run=True, wait_s=5)
        assert reply["plan"]["a"]["action"] == "write"
        (run,) = (await rig.command("history", limit=1, id=await rig.run_id()))["runs"]
        assert run["boards"]["a"]["outcome"] == "updating"  # as it stands, while it goes on
        assert run["boards"]["a"]["attempted"] == "1.1.0"
        assert rig.board().control.counters()["opened"] == opened
        late = await rig.command("version", wait_s=0)
        assert late["boards"] == {}
        await rig.settled()

        for _ in range(200):
            runs = (await rig.command("history"))["runs"]
            entry = next(run for run in runs if run["id"] == late["run"]["id"])
            if "result" in entry:
                break
            await asyncio.sleep(0.1)  # the history has no event to await
        assert entry["result"]["boards"]["a"]["version"] == "1.1.0"


async def test_rollback_holds_the_board_until_release(tmp_path: Path) -> None:
    """Back to the other slot with the journal's version; taken up again after release."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        await rig.updated("1.1.0")
        await rig.updated("1.2.0")
        assert (await rig.command("verify"))["boards"] == {"a": {"matches": True}}
        reply = await rig.command("rollback", boards=["a"])
        assert reply["boards"]["a"] == {
            "slot": "ota_0",
            "version": "1.1.0",
            "version_from": "journal",
        }
        assert rig.board().control.running()["version"] == "1.1.0"
        (run,) = (await rig.command("history", limit=1))["runs"]
        told = run["boards"]["a"]
        assert (run["outcome"], told["outcome"], told["by"]) == (
            *("succeeded", "rolled_back", "a person"),
        )
        assert (await rig.command("verify"))["boards"] == {"a": {"matches": False}}
        held = await rig.command("update", wait_s=30)
        status = await rig.module.status(NAME)
        assert held["run"]["outcome"] == "failed"
        (run,) = (await rig.command("history", limit=1))["runs"]
        assert run["boards"]["a"]["error"]["code"] == status["boards"]["a"]["error"]["code"]
        assert run["boards"]["a"]["error"]["code"] == "held"
        assert (status["boards"]["a"]["state"], status["boards"]["a"]["version"]) == (
            "rolled_back",
            "1.1.0",
        )
        assert (await rig.command("release", boards=["a"]))["released"] == ["a"]
        assert (await rig.command("update", wait_s=30))["run"]["outcome"] == "succeeded"
        assert rig.board().control.running()["version"] == "1.2.0"


async def test_history_tells_what_runs_did(tmp_path: Path) -> None:
    """Newest first, with reasons, phases, restarts; the result of a read is kept too."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        await rig.updated("1.1.0")
        await rig.command("version")
        runs = (await rig.command("history"))["runs"]
        assert [run["target"].get("purpose") for run in runs] == ["version", None]
        board = runs[1]["boards"]["a"]
        assert (board["from"], board["to"], board["action"]) == ("1.0.0", "1.1.0", "write")
        assert {"connecting", "writing", "switching", "recording", "booting"} <= set(
            board["phases"]
        )
        assert any("watched" in reason for reason in board["restarts"])
        assert (await rig.command("history", limit=1))["runs"] == runs[:1]
        assert len((await rig.command("history", board="a"))["runs"]) == 2


async def test_an_unfit_release_stops_for_the_other_boards(tmp_path: Path) -> None:
    """With more than three boards one goes first; its failed boot stops the run for all."""
    boards = [SimBoard("guide") for _ in range(4)]
    async with Rig.start(tmp_path, boards) as rig:
        bad = rig.serve("1.1.0", behaviour=Behaviour(ending="panic", ending_after_s=0.3))
        await rig.configure(url=bad, version="1.1.0")
        status = await rig.settled()
        states = sorted(board["state"] for board in status["boards"].values())
        assert states == ["outdated", "outdated", "outdated", "rolled_back"]
        assert status["error"]["code"] == "stopped"
        assert "1 of 1 boards failed to boot" in status["error"]["message"]
        assert all(rig.board(name).control.running()["version"] == "1.0.0" for name in rig.names)
        last = await rig.run_id()
        good = await rig.configure_and_wait("1.2.0", last)
        assert all(board["version"] == "1.2.0" for board in good["boards"].values())


async def test_more_than_half_failing_stops_without_a_canary_too(tmp_path: Path) -> None:
    """One bad release must not take a whole robot down, also where no canary is wanted."""
    boards = [SimBoard("guide") for _ in range(6)]
    async with Rig.start(tmp_path, boards) as rig:
        bad = rig.serve("1.1.0", behaviour=Behaviour(ending="panic", ending_after_s=0.2))
        await rig.configure(url=bad, version="1.1.0", canary=False, max_parallel=2)
        status = await rig.settled(timeout_s=90)
        states = [board["state"] for board in status["boards"].values()]
        assert states.count("outdated") >= 1, states
        assert states.count("rolled_back") >= 4, states
        assert status["error"]["code"] == "stopped"


async def test_another_updater_does_not_lead_to_an_endless_duel(tmp_path: Path) -> None:
    """A tag that changes behind our back counts; at max_attempts the board is set aside."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        await rig.updated("1.1.0", max_attempts=2)
        url = rig.server.url("/1.1.0.bin")
        for attempt in (1, 2):
            await _store_version(rig, "on-device")
            await rig.command("update", wait_s=30)
            board = (await rig.module.status(NAME))["boards"]["a"]
            if attempt == 1:
                assert (board["state"], board["version"]) == ("up_to_date", "1.1.0")
        assert board["state"] == "set_aside"
        assert board["error"]["code"] == "changed-elsewhere"
        assert url


async def _store_version(rig: Rig, version: str) -> None:
    """As the firmware itself would: through the simulator's own NVS writer."""
    from esp32_sim.nvsmodel import NvsStore

    nvs = bytearray(rig.nvs())
    store = NvsStore(nvs)
    store.init()
    store.set("VIAM_NS", "OTA_VERSION", version)
    offset = rig.partition("a", "nvs")[0]
    await asyncio.to_thread(rig.board().control.write_flash, offset, bytes(store.region))


async def test_rollback_bootloaders_are_left_alone_until_the_app_confirms(
    tmp_path: Path,
) -> None:
    """NEW is written, nobody resets the board until its app had its time, then VALID is read."""
    board = SimBoard("micro-rdk", otadata="valid", slot="ota_1", config={"rollback": True})
    async with Rig.start(tmp_path, [board]) as rig:
        await rig.configure(
            url=rig.serve("1.1.0", behaviour=Behaviour(confirm_after_s=1.0)),
            version="1.1.0",
            confirm_timeout_s=4,
        )
        waiting = await rig.module.wait_status(
            NAME, lambda s: s["boards"]["a"]["state"] == "awaiting_confirmation"
        )
        assert waiting["run"]["outcome"] == "running"
        opened = rig.board().control.counters()["opened"]
        with contextlib.suppress(Exception):
            await rig.command("version", wait_s=1)
        assert rig.board().control.counters()["opened"] == opened
        status = await rig.settled()
        assert status["boards"]["a"]["state"] == "up_to_date"
        assert status["boards"]["a"]["confirmed"] is True


async def test_an_app_that_never_confirms_is_rolled_back(tmp_path: Path) -> None:
    """Its time over, otadata still says PENDING_VERIFY: the old firmware and tag come back."""
    board = SimBoard("micro-rdk", otadata="valid", slot="ota_1", config={"rollback": True})
    async with Rig.start(tmp_path, [board]) as rig:
        await rig.configure(
            url=rig.serve("1.1.0", behaviour=Behaviour(confirm_after_s=None)),
            version="1.1.0",
            confirm_timeout_s=2,
        )
        status = await rig.settled()
        assert status["boards"]["a"]["state"] == "rolled_back"
        assert status["boards"]["a"]["version"] == "1.0.0"
        assert "did not confirm itself" in status["boards"]["a"]["error"]["message"]
        assert rig.board().control.running()["version"] == "1.0.0"


async def test_a_foreign_update_looked_at_too_early_is_not_killed(tmp_path: Path) -> None:
    """PENDING_VERIFY on first contact: its app gets its time again, then the board is updated."""
    board = SimBoard("micro-rdk", otadata="pending", slot="ota_1", config={"rollback": True})
    async with Rig.start(tmp_path, [board]) as rig:
        await rig.configure(
            url=rig.serve("1.1.0", behaviour=Behaviour(confirm_after_s=0.5)),
            version="1.1.0",
            confirm_timeout_s=3,
        )
        await rig.module.wait_status(
            NAME, lambda s: s["boards"]["a"]["state"] == "awaiting_confirmation"
        )
        status = await rig.settled()
        assert status["boards"]["a"]["state"] == "up_to_date", status
        assert rig.board().control.running()["version"] == "1.1.0"
