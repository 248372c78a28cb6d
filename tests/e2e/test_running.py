# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs is never written, and what a person may ask for beyond an update; over the socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app, build_bootloader
from esp32_sim.layouts import LAYOUTS, Layout, Partition
from esp32_sim.process import SimBoard
from tests.support.rig import IMAGE_BYTES, NAME, PROJECT, Rig

pytestmark = pytest.mark.slow

SILENT = {"bootloader_log": "none"}


def dead_flash(layout: str = "micro-rdk") -> bytes:
    """A flash on which nothing boots: each app has a wrong bit."""
    broken = bytearray(make_flash(layout))
    for part in LAYOUTS[layout].partitions:
        if part.type == 0:
            broken[part.offset + 0x1000] ^= 0x01
    return bytes(broken)


def slot_bytes(rig: Rig, label: str) -> bytes:
    """What stands in a slot where images are."""
    return rig.board().control.read_flash(rig.partition("a", label)[0], IMAGE_BYTES)


async def board_of(rig: Rig) -> dict[str, Any]:
    """The board as the status shows it."""
    status = await rig.module.status(NAME)
    return dict(status["boards"]["a"])


async def test_a_silent_board_with_an_old_app_is_updated_twice_and_never_lost(
    tmp_path: Path,
) -> None:
    """No boot log, no app descriptor: such a board was called dead, and force wrote the slot that
    ran."""
    app = build_app(PROJECT, "0.1", size_bytes=IMAGE_BYTES, described=False)
    async with Rig.start(tmp_path, [SimBoard("micro-rdk", app=app, config=SILENT)]) as rig:
        running = slot_bytes(rig, "ota_0")
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0", auto_update=False)
        reply = await rig.command("update", force=True, wait_s=90)
        assert reply["run"]["outcome"] == "succeeded", await board_of(rig)
        assert slot_bytes(rig, "ota_0") == running
        assert (await board_of(rig))["running"]["slot"] == "ota_1"
        status = await rig.updated("1.2.0")
        assert status["boards"]["a"]["running"]["slot"] == "ota_0"
        assert rig.board().control.running()["version"] == "1.2.0"


async def test_force_restarts_what_runs_already_and_leaves_the_way_back(tmp_path: Path) -> None:
    """The board runs the target's digest: nothing is written, and a rollback still works."""
    async with Rig.start(tmp_path, [SimBoard("micro-rdk")]) as rig:
        await rig.updated("1.1.0")
        board = rig.board()
        board.control.start_trace()
        reply = await rig.command("update", force=True, wait_s=60)
        assert reply["run"]["outcome"] == "succeeded"
        assert [op for op in board.control.stop_trace() if op["who"] == "loader"] == []
        (run,) = (await rig.command("history", limit=1))["runs"]
        report = run["boards"]["a"]
        assert report["action"] == "none"
        assert any("watched" in reason for reason in report["restarts"])
        back = await rig.command("rollback", wait_s=60)
        assert back["boards"]["a"]["version"] == "1.0.0"
        assert board.control.running()["version"] == "1.0.0"


async def test_a_rescue_is_for_one_confirmed_board_on_which_nothing_boots(tmp_path: Path) -> None:
    """By itself and by force it is left alone; the remedy names the rescue, which implies
    nothing else."""
    boards = [SimBoard("micro-rdk", flash=dead_flash()), SimBoard("micro-rdk")]
    async with Rig.start(tmp_path, boards) as rig:
        before = slot_bytes(rig, "ota_0")
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0")
        await rig.settled()
        assert (await board_of(rig))["error"]["code"] == "otadata-invalid"
        assert "rescue" in (await board_of(rig))["error"]["remedy"]
        await rig.command("update", boards=["a"], force=True, wait_s=60)
        assert "Nothing on the board boots" in (await board_of(rig))["error"]["message"]
        assert slot_bytes(rig, "ota_0") == before

        mac = rig.board().mac
        with pytest.raises(Exception, match="needs boards, with just the one board"):
            await rig.command("update", rescue=True, confirm=mac)
        with pytest.raises(Exception, match="needs confirm"):
            await rig.command("update", rescue=True, boards=["a"])
        with pytest.raises(Exception, match="wrong-board"):
            await rig.command("update", rescue=True, boards=["a"], confirm=rig.board("b").mac)
        assert slot_bytes(rig, "ota_0") == before

        reply = await rig.command("update", rescue=True, boards=["a"], confirm=mac, wait_s=60)
        assert reply["run"]["outcome"] == "succeeded", await board_of(rig)
        assert rig.board().control.running()["version"] == "1.1.0"
        again = await rig.command(
            "update", rescue=True, boards=["b"], confirm=rig.board("b").mac, wait_s=60
        )
        assert again["run"]["outcome"] == "failed"
        error = (await rig.module.status(NAME))["boards"]["b"]["error"]
        assert error["code"] == "board-boots"
        assert "without rescue" in error["remedy"]


async def test_a_rescue_looks_at_the_board_that_answers(tmp_path: Path) -> None:
    """Where nobody knows the MAC yet, the session itself holds it against the confirmed one."""
    async with Rig.start(tmp_path, [SimBoard("micro-rdk", flash=dead_flash())]) as rig:
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0", auto_update=False)
        board = rig.board()
        board.control.start_trace()
        wrong = "24:0a:c4:99:99:99"
        await rig.command("update", rescue=True, boards=["a"], confirm=wrong, wait_s=60)
        error = (await board_of(rig))["error"]
        assert error["code"] == "wrong-board"
        assert wrong in error["message"]
        assert [op for op in board.control.stop_trace() if op["who"] == "loader"] == []


async def test_what_is_overridden_is_named(tmp_path: Path) -> None:
    """A stopped firmware stays stopped for update and for force; unknown names say what exists."""
    boards = [SimBoard("guide") for _ in range(4)]
    async with Rig.start(tmp_path, boards) as rig:
        bad = rig.serve("1.1.0", behaviour=Behaviour(ending="panic", ending_after_s=0.3))
        await rig.configure(url=bad, version="1.1.0")
        assert (await rig.settled())["error"]["code"] == "stopped"
        for asked in ({}, {"force": True}, {"override": ["not-allowed-now"]}):
            with pytest.raises(Exception, match="stopped"):
                await rig.command("update", **asked)
        with pytest.raises(Exception, match="not-allowed-now, stopped, other-project"):
            await rig.command("update", override=["wrong-board"])
        last = await rig.run_id()
        reply = await rig.command("update", override=["stopped"], wait_s=90)
        assert reply["run"]["id"] != last
        states = [b["state"] for b in (await rig.module.status(NAME))["boards"].values()]
        assert states.count("rolled_back") >= 2  # the canary is held, others were tried


@pytest.mark.parametrize("log", ["info", "none"])
async def test_a_bootloader_for_less_flash_is_refused_before_any_write(
    tmp_path: Path, log: str
) -> None:
    """Its header says 2 MB under a table for 8: the board loops, and power and wiring were
    blamed after a write."""
    flash = bytearray(make_flash("micro-rdk-8mb"))
    small = build_bootloader(flash_size_code=1)
    flash[0x1000 : 0x1000 + len(small)] = small
    config = {"bootloader_log": "none"} if log == "none" else {}
    spec = SimBoard("micro-rdk-8mb", flash=bytes(flash), config=config)
    async with Rig.start(tmp_path, [spec]) as rig:
        board = rig.board()
        board.control.start_trace()
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0")
        status = await rig.settled()
        error = status["boards"]["a"]["error"]
        assert error["code"] == "flash-size", error
        assert "--flash-size" in error["remedy"]
        assert "running" not in status["boards"]["a"]
        assert [op for op in board.control.stop_trace() if op["who"] == "loader"] == []


SECURE = {"rollback": True, "anti_rollback": True, "secure_version": 1}


async def test_going_back_minds_the_fuses(tmp_path: Path) -> None:
    """The new app has confirmed itself and burnt the fuses: the old one would not boot any more,
    so a person's rollback is refused, and what runs is left as it is."""
    app = build_app(PROJECT, "1.0.0", size_bytes=IMAGE_BYTES, secure_version=1)
    spec = SimBoard(  # an entry that is ABORTED shows that the bootloader uses rollback
        "micro-rdk",
        slot="ota_1",
        otadata="aborted",
        flash_options={"other_app": app},
        config=SECURE,
    )
    async with Rig.start(tmp_path, [spec]) as rig:
        await rig.configure(
            url=rig.serve("2.0.0", secure_version=2), version="2.0.0", confirm_timeout_s=5
        )
        status = await rig.settled("2.0.0")
        assert status["boards"]["a"]["state"] == "up_to_date", status["boards"]["a"]
        rig.board().control.wait_for("burnt", timeout_s=20)
        board = rig.board()
        board.control.start_trace()
        reply = await rig.command("rollback", wait_s=60)
        error = reply["boards"]["a"]["error"]
        assert error["code"] == "boot-failed"
        assert "secure version 1, and the board's fuses ask for 2" in error["message"]
        assert [op for op in board.control.stop_trace() if op["who"] == "loader"] == []
        assert board.control.running()["version"] == "2.0.0"


async def test_the_only_image_that_boots_is_left_to_boot(tmp_path: Path) -> None:
    """The new app burns the fuses and panics a moment later: there is no way back any more, so
    nothing is taken away, and the words say why."""
    app = build_app(PROJECT, "1.0.0", size_bytes=IMAGE_BYTES, secure_version=1)
    spec = SimBoard("micro-rdk", slot="ota_1", otadata="aborted",
                    flash_options={"other_app": app}, config=SECURE)  # fmt: skip
    async with Rig.start(tmp_path, [spec]) as rig:
        ends = Behaviour(confirm_after_s=0.1, ending="panic", ending_after_s=0.8, ending_lives=1)
        url = rig.serve("2.0.0", secure_version=2, behaviour=ends)
        await rig.configure(url=url, version="2.0.0", boot_stable_s=3)
        status = await rig.settled("2.0.0")
        error = status["boards"]["a"]["error"]
        assert error["code"] == "boot-failed", error
        assert "ota_0 has secure version 1, and the board's fuses ask for 2" in error["message"]
        assert rig.board().control.running()["version"] == "2.0.0"
        image = rig.image("2.0.0", secure_version=2, behaviour=ends)
        assert slot_bytes(rig, "ota_1") == image[:IMAGE_BYTES]


UNEQUAL = Layout(
    "unequal",
    0x400000,
    (
        Partition("nvs", 1, 2, 0x9000, 0x4000),
        Partition("otadata", 1, 0, 0xD000, 0x2000),
        Partition("app", 0, 0x10, 0x10000, 0x100000),
        Partition("app", 0, 0x11, 0x110000, 0x40000),
        Partition("nvs_other", 1, 2, 0x200000, 0x4000),
    ),
)


async def test_slots_of_one_label_and_two_sizes_and_a_second_nvs(tmp_path: Path) -> None:
    """Each slot by its place, each image where it fits, the version where it stands."""
    spec = SimBoard(
        UNEQUAL,
        slot=UNEQUAL.partitions[2],
        nvs={"WIFI_SSID": "x"},
        flash_options={"more_nvs": {"nvs_other": {"OTA_VERSION": "1.0.0", "ROBOT_ID": "r"}}},
    )
    async with Rig.start(tmp_path, [spec]) as rig:
        status = await rig.updated("1.1.0")
        assert status["boards"]["a"]["running"]["slot"] == "app@0x110000", status["boards"]["a"]
        assert status["boards"]["a"]["version"] == "1.1.0"
        last = await rig.run_id()
        url = rig.serve("1.2.0", size_bytes=0x80000)
        await rig.configure(url=url, version="1.2.0")
        status = await rig.next_run(last)
        assert status["boards"]["a"]["running"]["slot"] == "app@0x10000", status["boards"]["a"]
        last = await rig.run_id()
        await rig.configure(url=rig.serve("1.3.0", size_bytes=0x80000, seed=1), version="1.3.0")
        error = (await rig.next_run(last))["boards"]["a"]["error"]
        assert error["code"] == "image-too-large"
        assert f"app@0x110000 has {0x40000}" in error["message"]
        assert rig.board().control.running()["version"] == "1.2.0"
