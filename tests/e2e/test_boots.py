# SPDX-License-Identifier: GPL-3.0-or-later
"""What a watched start comes to, end to end: words, panics, power, sleep, and boards that were
never reset; behind bootloaders that speak, that say nothing, and that use rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.logs import LOOKALIKES
from esp32_sim.process import SimBoard
from tests.support.rig import NAME, PROJECT, Rig

pytestmark = pytest.mark.slow

SAYS_MUCH = Behaviour(say="\n".join(LOOKALIKES.values()), say_after_s=0.1)
SLEEPS = Behaviour(ending="deep-sleep", ending_after_s=0.3, sleep_s=0.2)
ONE_DIP = Behaviour(ending="brownout-tagged", ending_after_s=0.1, ending_lives=1)
DIPS = Behaviour(ending="brownout-reset", ending_after_s=0.1)
RESTARTS_ONCE = Behaviour(ending="restart", ending_after_s=0.1, ending_lives=1)
PANICS = Behaviour(
    ending="panic", ending_after_s=0.3, panic="riscv", say="I (9) app: on my way", say_after_s=0.2
)


async def updated(rig: Rig, *behaviours: Behaviour, **attributes: Any) -> dict[str, Any]:
    """The boards when each had an app of 1.1.0 with a behaviour of its own."""
    pins = {
        name: {"url": rig.serve("1.1.0", path=f"/{name}.bin", behaviour=behaviour)}
        for name, behaviour in zip(rig.names, behaviours, strict=True)
    }
    before = await rig.run_id()
    await rig.configure(
        url=rig.server.url("/a.bin"), version="1.1.0", pins=pins, canary=False, **attributes
    )
    boards: dict[str, Any] = (await rig.next_run(before))["boards"]
    return boards


async def kept_log(rig: Rig, name: str) -> list[str]:
    """The boot log in the history of a board's last run."""
    runs = (await rig.command("history", board=name, boot_log=True))["runs"]
    log: list[str] = runs[0]["boards"][name]["boot_log"]
    return log


async def test_only_evidence_of_the_firmware_takes_it_back(tmp_path: Path) -> None:
    """Quotes, wakes and one dip of the power leave it; a panic does not, and its words stay."""
    async with Rig.start(tmp_path, [SimBoard("guide")] * 6) as rig:
        boards = await updated(rig, SAYS_MUCH, SLEEPS, ONE_DIP, DIPS, RESTARTS_ONCE, PANICS)
        for name in "abc":
            assert boards[name]["state"] == "up_to_date", boards[name]
            assert boards[name]["confirmed"] is True
        failed = boards["d"]
        assert (failed["state"], failed["error"]["code"]) == ("failed", "brown-out")
        assert failed["version"] == "1.1.0"
        assert "attempts" not in failed
        assert any("RTCWDT_BROWN_OUT_RESET" in line for line in await kept_log(rig, "d"))
        for name, why in {"e": "restarted by itself", "f": "panicked"}.items():
            assert (boards[name]["state"], boards[name]["version"]) == ("rolled_back", "1.0.0")
            assert boards[name]["error"]["code"] == "boot-failed"
            assert why in boards[name]["error"]["message"]
        log = await kept_log(rig, "f")
        new, old = log.index("--- start of ota_0"), log.index("--- start of factory")
        assert [line.split(":")[0] for line in log[new:old]][-6:] == [
            "MSTATUS ",
            "MHARTID ",
            "Stack memory",
            "3fc92f60",
            "ELF file SHA256",
            "Rebooting...",
        ]
        assert "I (9) app: on my way" in log[new:old]
        assert any("App version:      1.0.0" in line for line in log[old:])


async def test_a_board_whose_power_failed_is_watched_again_and_not_written(tmp_path: Path) -> None:
    """The next look finds the firmware in place: it only watches its start once more."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        await updated(rig, DIPS)
        board = rig.board()
        board.control.start_trace()
        watched = board.control.counters()["boot"]
        reply = await rig.command("update", wait_s=60)
        status = await rig.module.status(NAME)
        assert status["boards"]["a"]["error"]["code"] == "brown-out", reply
        assert "attempts" not in status["boards"]["a"]
        assert board.control.counters()["boot"] >= watched + 4
        assert [op for op in board.control.stop_trace() if op["who"] == "loader"] == []


async def test_planned_restarts_are_allowed_where_they_are_configured(tmp_path: Path) -> None:
    """As many as `boot_restarts` says, and no panic among them."""
    async with Rig.start(tmp_path, [SimBoard("guide")] * 2) as rig:
        boards = await updated(rig, RESTARTS_ONCE, PANICS, boot_restarts=1)
        assert boards["a"]["state"] == "up_to_date", boards["a"]
        assert boards["b"]["state"] == "rolled_back", boards["b"]


async def test_behind_a_silent_bootloader_the_way_back_is_not_waited_for_in_vain(
    tmp_path: Path,
) -> None:
    """The old firmware ran before, and its bootloader prints no line to wait for."""
    silent = SimBoard("guide", config={"bootloader_log": "none"})
    async with Rig.start(tmp_path, [silent]) as rig:
        boards = await updated(rig, PANICS, boot_timeout_s=60)
        assert (boards["a"]["state"], boards["a"]["version"]) == ("rolled_back", "1.0.0")
        run = (await rig.command("history", board="a", boot_log=True))["runs"][0]["boards"]["a"]
        assert run["phases"]["rolling_back"] < 60
        assert run["boot_log"].count("--- start of factory") == 1
        assert rig.board().control.running()["version"] == "1.0.0"


@pytest.mark.parametrize("log", ["info", "none"])
@pytest.mark.parametrize(("state", "looks"), [("new", 1), ("pending", 0)])
async def test_a_rollback_bootloader_whose_newer_entry_names_a_damaged_slot(
    tmp_path: Path, log: str, state: str, looks: int
) -> None:
    """Nobody is there to confirm anything, so nothing is waited for, and it is looked at once."""
    layout = LAYOUTS["micro-rdk"]
    flash = make_flash(layout, slot="ota_1", otadata=state)
    at = layout.find("ota_0")
    # Its own confirmation would be one of the entry that is looked at here.
    runs = build_app(PROJECT, "1.0.0", behaviour=Behaviour(confirm_after_s=None))
    other = make_flash(layout, app=runs, slot="ota_0")
    flash[at.offset : at.offset + at.size] = other[at.offset : at.offset + at.size]
    flash[layout.find("ota_1").offset + 0x1000] ^= 1
    otadata = layout.find("otadata")
    entries = bytes(flash[otadata.offset : otadata.offset + otadata.size])
    board = SimBoard(layout, flash=bytes(flash), config={"rollback": True, "bootloader_log": log})
    async with Rig.start(tmp_path, [board]) as rig:
        control = rig.board().control
        control.running()
        # The start that has just been has changed the entry already.
        control.write_flash(otadata.offset, entries)
        boards = await updated(rig, Behaviour(), confirm_timeout_s=1)
        assert boards["a"]["state"] == "up_to_date", boards["a"]
        run = (await rig.command("history", board="a", boot_log=True))["runs"][0]["boards"]["a"]
        assert run["restarts"] == [
            "into download mode, to be looked at",
            *["once into its firmware, to see which slot runs"] * looks,
            "into ota_1, and watched",
            "into download mode, to be looked at",
        ]


async def test_power_that_fails_before_an_app_has_confirmed_itself(tmp_path: Path) -> None:
    """Its bootloader goes back, which is power, not firmware: no restart of ours hastens it, only
    otadata decides, and the same target may be tried again."""
    flash = make_flash("micro-rdk", slot="ota_1", otadata="valid")
    board = SimBoard("micro-rdk", flash=bytes(flash), config={"rollback": True})
    dip = Behaviour(ending="brownout", ending_after_s=0.1, ending_lives=1, confirm_after_s=None)
    async with Rig.start(tmp_path, [board]) as rig:
        boards = await updated(rig, dip, confirm_timeout_s=2)
        assert (boards["a"]["state"], boards["a"]["version"]) == ("failed", "1.0.0"), boards["a"]
        assert boards["a"]["error"]["code"] == "brown-out"
        assert "attempts" not in boards["a"]
        run = (await rig.command("history", board="a", boot_log=True))["runs"][0]["boards"]["a"]
        assert run["restarts"] == [
            "into download mode, to be looked at",
            "once into its firmware, to see which slot runs",
            "into ota_0, and watched",
            "into download mode, to be looked at",
            "into ota_1, and watched",
        ]
        assert rig.board().control.running()["version"] == "1.0.0"
        reply = await rig.command("update", dry_run=True)
        assert reply["plan"]["a"]["action"] in ("write", "switch")


async def test_a_board_without_reset_lines_is_not_called_up_to_date(tmp_path: Path) -> None:
    """It is in download mode by hand and stays there: said, with what to do. The button pressed
    while its start is watched is as good as a line."""
    board = SimBoard("guide", config={"reset_lines": False})
    async with Rig.start(tmp_path, [board]) as rig:
        control = rig.board().control
        control.reset(boot_button=True)
        control.wait_for("download")
        boards = await updated(rig, Behaviour())
        assert boards["a"]["state"] == "failed", boards["a"]
        assert boards["a"]["error"]["code"] == "no-reset"
        assert "reset button" in boards["a"]["error"]["remedy"]
        assert "attempts" not in boards["a"]
        assert "running" not in boards["a"]
        assert control.state()["state"] == "stub"

        control.reset(boot_button=True)
        control.wait_for("download", since=control.state()["events"])
        before = await rig.run_id()
        await rig.configure(
            url=rig.server.url("/a.bin"), version="1.1.0", auto_update=False, boot_timeout_s=60
        )
        told = rig.module.log.count("press its reset button")
        await rig.command("update")
        await rig.module.wait_log("press its reset button", times=told + 1)
        control.reset()
        status = await rig.next_run(before, timeout_s=120)
        assert status["boards"]["a"]["state"] == "up_to_date", status["boards"]["a"]
        assert status["boards"]["a"]["confirmed"] is True
        assert control.running()["version"] == "1.1.0"


async def test_a_rollback_board_without_reset_lines_is_done_by_no_later_run(
    tmp_path: Path,
) -> None:
    """Its entry stays NEW, which looks like a bootloader without rollback; each run can talk to
    the stub loader that the one before has left at its speed."""
    config = {"rollback": True, "reset_lines": False}
    board = SimBoard("micro-rdk", otadata="valid", slot="ota_1", config=config)
    async with Rig.start(tmp_path, [board]) as rig:
        control = rig.board().control
        control.reset(boot_button=True)
        control.wait_for("download")
        boards = await updated(rig, Behaviour(), confirm_timeout_s=1)
        for _ in range(2):
            assert (boards["a"]["state"], boards["a"]["error"]["code"]) == ("failed", "no-reset")
            assert "attempts" not in boards["a"]
            assert control.state()["state"] == "stub"
            before = await rig.run_id()
            await rig.command("update")
            boards = (await rig.next_run(before))["boards"]
        control.reset()
        control.wait_for("confirmed")
        assert control.running()["version"] == "1.1.0"


@pytest.mark.parametrize("confirms", [True, False])
async def test_a_target_that_comes_while_an_app_has_to_confirm_itself(
    tmp_path: Path, confirms: bool
) -> None:
    """What comes of the one before is not taken for the new one's: that follows, and is what the
    run ends with."""
    app = Behaviour(confirm_after_s=0.3 if confirms else None)
    board = SimBoard("micro-rdk", slot="ota_1", otadata="valid", config={"rollback": True})
    async with Rig.start(tmp_path, [board]) as rig:
        url = rig.serve("1.1.0", behaviour=app)
        await rig.configure(url=url, version="1.1.0", confirm_timeout_s=3)
        await rig.module.wait_status(
            NAME, lambda now: now["boards"]["a"]["state"] == "awaiting_confirmation"
        )
        status = await rig.updated("1.2.0", confirm_timeout_s=3)
        board = status["boards"]["a"]
        assert (board["state"], board["version"], board["good"]) == ("up_to_date", "1.2.0", True)
        assert status["run"]["outcome"] == "succeeded"
        told = (await rig.command("history", board="a"))["runs"][0]["boards"]["a"]
        assert (told["from"], told["to"]) == ("1.1.0" if confirms else "1.0.0", "1.2.0")
