# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job, end to end: the module over its socket, real downloads, real esptool, boards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from esp_idf_defs.otadata import OtaDataSelectEntry
from idftool.nvs.parser import parse as parse_nvs_with_idftool

from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour
from esp32_sim.layouts import LAYOUTS
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import SimBoard
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow

THREE = [SimBoard("guide"), SimBoard("micro-rdk"), SimBoard("micro-rdk-8mb")]


def shows(status: dict[str, Any], name: str, version: str, state: str = "up_to_date") -> None:
    """Assert that a board runs and holds `version`."""
    board = status["boards"][name]
    assert (board["state"], board["version"]) == (state, version), board
    assert board["running"]["app_version"] == version, board


def keys(rig: Rig, name: str = "a") -> dict[tuple[str, str], Any]:
    """A board's NVS by the simulator's own reader, without the version."""
    state = nvs_init(bytearray(rig.nvs(name)))
    assert state.error is None
    return {at: item for at, item in state.items.items() if at[1] != "OTA_VERSION"}


async def test_configured_boards_are_updated_confirmed_and_keep_their_keys(tmp_path: Path) -> None:
    """Three tables of the field, at once: new firmware runs, version stored, all else in place."""
    async with Rig.start(tmp_path, THREE) as rig:
        before = {name: keys(rig, name) for name in rig.names}
        status = await rig.updated("1.1.0")
        assert status["run"] | {"id": "", "started_at": "", "finished_at": ""} == {
            "id": "",
            "trigger": "configured",
            "started_at": "",
            "finished_at": "",
            "outcome": "succeeded",
        }
        for name in rig.names:
            shows(status, name, "1.1.0")
            assert status["boards"][name]["confirmed"] is True
            assert keys(rig, name) == before[name]
            app = rig.board(name).control.running()
            assert app["version"] == "1.1.0"
        stored = await rig.command("version")
        assert {n: b["version"] for n, b in stored["boards"].items()} == dict.fromkeys(
            rig.names, "1.1.0"
        )


async def test_what_is_written_is_read_by_code_that_is_not_ours(tmp_path: Path) -> None:
    """NVS by idftool's reader, otadata by esp-idf-defs, the slot by esptool: after two updates."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        before = {(e.namespace, e.key): e.value for e in parse_nvs_with_idftool(rig.nvs()).entries}
        assert before.pop(("VIAM_NS", "OTA_VERSION")) == "1.0.0"
        await rig.updated("1.1.0")
        await rig.updated("1.2.0")
        after = {(e.namespace, e.key): e.value for e in parse_nvs_with_idftool(rig.nvs()).entries}
        assert after.pop(("VIAM_NS", "OTA_VERSION")) == "1.2.0"
        assert after == before
        raw = rig.otadata()
        entries = [OtaDataSelectEntry.from_bytes(raw[at : at + 32]) for at in (0, 0x1000)]
        assert sorted(entry.seq for entry in entries if entry is not None) == [1, 2]
        # Its reader checks no CRC, so its writer judges: byte for byte the same.
        for at, entry in zip((0, 0x1000), entries, strict=True):
            assert entry is not None
            assert entry.to_bytes() == raw[at : at + 32]
        chosen, _ = OtaDataSelectEntry.select(*entries)
        assert chosen is not None
        assert chosen.ota_slot(2) == 1
        offset, size = rig.partition("a", "ota_1")
        image = rig.image("1.2.0")
        slot = rig.board().control.read_flash(offset, size)
        assert slot[: len(image)] == image


async def test_the_same_version_again_writes_nothing(tmp_path: Path) -> None:
    """Equal tags are up to date: not one flash operation of ours."""
    async with Rig.start(tmp_path, [SimBoard("micro-rdk")]) as rig:
        await rig.updated("1.1.0")
        board = rig.board()
        board.control.start_trace()
        before = await rig.run_id()
        await rig.command("update", wait_s=30)
        status = await rig.next_run(before)
        shows(status, "a", "1.1.0")
        assert [op for op in board.control.stop_trace() if op["who"] == "loader"] == []


async def test_updates_back_and_forth_keep_every_key(tmp_path: Path) -> None:
    """Upgrades, downgrades, versions of 128 bytes and of multi-byte characters; all keys stay."""
    versions = ["2.0.0-rc.1+build.7", "0.9.0", "v" * 128, "ü" * 64, "日本" * 21 + "ab", "3"]
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        before = keys(rig)
        for index, version in enumerate(versions):
            last = await rig.run_id()
            url = rig.serve("app", path=f"/{index}.bin", seed=index)
            await rig.configure(url=url, version=version)
            status = await rig.next_run(last)
            assert status["boards"]["a"]["version"] == version
            assert status["boards"]["a"]["state"] == "up_to_date", status
            assert keys(rig) == before
        slots = status["boards"]["a"]["running"]["slot"]
        assert slots in ("ota_0", "ota_1")


async def test_a_firmware_that_panics_seconds_after_its_start_is_rolled_back(
    tmp_path: Path,
) -> None:
    """Old firmware, old version, reason in the status; and it is not tried again by itself."""
    async with Rig.start(tmp_path, [SimBoard("micro-rdk-8mb"), SimBoard("guide")]) as rig:
        await rig.updated("1.1.0")
        before = keys(rig)
        bad = rig.serve("1.2.0", behaviour=Behaviour(ending="panic", ending_after_s=0.6))
        last = await rig.run_id()
        good = rig.server.url("/1.1.0.bin")
        pins = {"a": {"url": bad, "version": "1.2.0"}}
        await rig.configure(url=good, version="1.1.0", pins=pins)
        status = await rig.next_run(last)
        shows(status, "a", "1.1.0", "rolled_back")
        error = status["boards"]["a"]["error"]
        assert error["code"] == "boot-failed"
        assert "panicked" in error["message"]
        shows(status, "b", "1.1.0")
        assert keys(rig) == before
        assert rig.board("a").control.running()["version"] == "1.1.0"
        board = rig.board("a")
        board.control.start_trace()
        await rig.command("update", wait_s=30)
        assert [op for op in board.control.stop_trace() if op["who"] == "loader"] == []


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (Behaviour(ending="loop", ending_after_s=0.2), "restarted by itself"),
        (Behaviour(ending="exception"), "after its start: Fatal exception (0): "),
    ],
)
async def test_boot_loops_are_rolled_back(tmp_path: Path, behaviour: Behaviour, why: str) -> None:
    """An app that restarts itself, and one that falls at its very entry."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        url = rig.serve("1.1.0", behaviour=behaviour)
        await rig.configure(url=url, version="1.1.0")
        status = await rig.settled()
        shows(status, "a", "1.0.0", "rolled_back")
        assert why in status["boards"]["a"]["error"]["message"]


async def test_silence_is_unconfirmed_and_boot_expect_decides(tmp_path: Path) -> None:
    """An app without a log counts as unconfirmed; with boot_expect it must print its line."""
    silent = Behaviour(console_baud=0)
    async with Rig.start(tmp_path, [SimBoard("guide", flash_options={})]) as rig:
        says = Behaviour(say="robot ready", say_after_s=0.3)
        await rig.configure(
            url=rig.serve("1.1.0", behaviour=says), version="1.1.0", boot_expect="robot (ready|up)"
        )
        shows(await rig.settled(), "a", "1.1.0")
        last = await rig.run_id()
        await rig.configure(
            url=rig.serve("1.2.0", behaviour=silent), version="1.2.0", boot_expect="robot ready"
        )
        status = await rig.next_run(last)
        shows(status, "a", "1.1.0", "rolled_back")
        assert "boot_expect" in status["boards"]["a"]["error"]["message"]
        # A board's own pattern, instead of the service's.
        last = await rig.run_id()
        own = {"boot_expect": "app_init: App version", "baud": 230_400, "boot_stable_s": 0}
        await rig.configure(
            url=rig.serve("1.3.0"), version="1.3.0", boot_expect="nobody prints it", pins={"a": own}
        )
        shows(await rig.next_run(last), "a", "1.3.0")


async def test_one_failing_board_never_stops_another(tmp_path: Path) -> None:
    """A board without OTA slots is unsupported, an absent one absent; the third is updated."""
    boards = [SimBoard("no-ota"), SimBoard("guide"), SimBoard("micro-rdk")]
    async with Rig.start(tmp_path, boards) as rig:
        rig.board("b").control.unplug()
        status = await rig.updated("1.1.0")
        assert status["run"]["outcome"] == "partly"
        assert status["boards"]["a"]["state"] == "unsupported"
        assert status["boards"]["a"]["error"]["code"] == "no-ota-slots"
        assert status["boards"]["b"]["state"] == "absent"
        assert status["boards"]["b"]["error"]["code"] == "port-missing"
        shows(status, "c", "1.1.0")
        last = await rig.run_id()
        rig.board("b").control.plug()
        status = await rig.next_run(last)
        assert status["run"]["trigger"] == "attached"
        shows(status, "b", "1.1.0")


async def test_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    """The plan with its reason, and not one byte of flash changed by us."""
    async with Rig.start(tmp_path, [SimBoard("guide"), SimBoard("no-ota")]) as rig:
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0", auto_update=False)
        for name in rig.names:
            rig.board(name).control.start_trace()
        reply = await rig.command("update", dry_run=True)
        assert reply["plan"]["a"] == {
            "action": "write",
            "reason": 'version differs: stored "1.0.0", configured "1.1.0"',
        }
        assert reply["plan"]["b"]["action"] == "refuse"
        assert reply["plan"]["b"]["code"] == "no-ota-slots"
        for name in rig.names:
            ops = rig.board(name).control.stop_trace()
            assert [op for op in ops if op["who"] == "loader"] == []


async def test_going_back_to_the_other_slots_version_sends_no_image(tmp_path: Path) -> None:
    """The spare slot already holds the image: only otadata and the version are written."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        await rig.updated("1.1.0")
        await rig.updated("1.2.0")
        board = rig.board()
        board.control.start_trace()
        last = await rig.run_id()
        await rig.configure(url=rig.server.url("/1.1.0.bin"), version="1.1.0")
        status = await rig.next_run(last)
        shows(status, "a", "1.1.0")
        ops = [op for op in board.control.stop_trace() if op["who"] == "loader"]
        assert 0 < len(ops) < 30
        assert all(op["address"] < 0x10000 for op in ops)


async def test_the_running_image_under_another_tag_is_only_recorded(tmp_path: Path) -> None:
    """Another version of the same file: the tag changes, no slot does."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        await rig.updated("1.1.0")
        reply = None
        last = await rig.run_id()
        await rig.configure(url=rig.server.url("/1.1.0.bin"), version="renamed", auto_update=False)
        reply = await rig.command("update", dry_run=True)
        assert reply["plan"]["a"]["action"] == "record"
        assert reply["plan"]["a"]["reason"] == (
            "running image is already this one: record the version only"
        )
        await rig.command("update", wait_s=30)
        status = await rig.next_run(last)
        assert status["boards"]["a"]["version"] == "renamed"
        assert status["boards"]["a"]["running"]["app_version"] == "1.1.0"


async def test_a_command_without_wait_answers_at_once_and_a_second_one_joins(
    tmp_path: Path,
) -> None:
    """update returns its run; the same again joins it; the status stays quick meanwhile."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        await rig.configure(url=rig.serve("1.1.0"), version="1.1.0", auto_update=False)
        first = await rig.command("update")
        second = await rig.command("update")
        assert first["joined"] is False
        assert second["joined"] is True
        assert first["run"]["id"] == second["run"]["id"]
        assert (await rig.command("update", wait_s=60))["run"]["outcome"] == "succeeded"
        shows(await rig.settled(), "a", "1.1.0")


async def test_an_update_survives_its_client_and_its_configuration(tmp_path: Path) -> None:
    """A cancelled DoCommand and a service removed and added again join the same run."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        url = rig.serve("1.1.0", size_bytes=600_000)
        await rig.configure(url=url, version="1.1.0", auto_update=False)
        call = asyncio.create_task(rig.command("update", wait_s=60))
        await rig.module.wait_status(
            NAME, lambda s: s["boards"]["a"].get("phase") in ("writing", "verifying", "booting")
        )
        call.cancel()
        run = (await rig.module.status(NAME))["run"]["id"]
        await rig.configure(url=url, version="1.1.0", auto_update=True)
        status = await rig.settled()
        assert status["run"]["id"] == run
        shows(status, "a", "1.1.0")


async def test_a_damaged_file_opens_no_port(tmp_path: Path) -> None:
    """The whole image is checked before any board is touched."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        image = bytearray(rig.image("1.1.0"))
        image[50_000] ^= 0x10
        opens = rig.board().control.counters().get("opened", 0)
        await rig.configure(url=rig.server.put("/x.bin", bytes(image)), version="1.1.0")
        status = await rig.settled()
        assert status["run"]["outcome"] == "failed"
        assert status["error"]["code"] == "image-corrupt"
        assert rig.board().control.counters().get("opened", 0) == opens


async def test_a_bad_firmware_on_a_rescued_board_says_that_there_is_nothing_to_go_back_to(
    tmp_path: Path,
) -> None:
    """Nothing is taken away then, and a better firmware can still be written."""
    broken = bytearray(make_flash("guide"))
    for part in LAYOUTS["guide"].partitions:
        if part.type == 0:
            broken[part.offset + 0x1000] ^= 0x01
    async with Rig.start(tmp_path, [SimBoard("guide", flash=bytes(broken))]) as rig:
        bad = rig.serve("1.1.0", behaviour=Behaviour(ending="panic", ending_after_s=0.2))
        await rig.configure(url=bad, version="1.1.0", auto_update=False)
        mac = rig.board().mac
        reply = await rig.command("update", rescue=True, boards=["a"], confirm=mac, wait_s=60)
        assert reply["run"]["outcome"] == "failed"
        error = (await rig.module.status(NAME))["boards"]["a"]["error"]
        assert error["code"] == "boot-failed"
        assert "no other slot can be gone back to" in error["message"]
        last = await rig.run_id()
        await rig.configure(url=rig.serve("1.2.0"), version="1.2.0")
        shows(await rig.next_run(last), "a", "1.2.0")
