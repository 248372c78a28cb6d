# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `flash` end to end: a board without OTA slots is made one that takes updates."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError

from esp32_sim.images import Behaviour
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import SimBoard
from tests.flash.merged_files import merged
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow


def keys(raw: bytes) -> dict[tuple[str, str], Any]:
    """What the simulator's own reader finds in an NVS partition."""
    state = nvs_init(bytearray(raw))
    assert state.error is None
    return dict(state.items)


def kept_nvs(folder: Path) -> Path:
    """The file of a backup that has the NVS."""
    (found,) = folder.glob("nvs-*.bin")
    return found


async def refusal(rig: Rig, **arguments: Any) -> str:
    """The text of the error that `flash` ends in."""
    with pytest.raises(GRPCError) as caught:
        await rig.command("flash", **arguments)
    return str(caught.value)


async def test_flash_makes_a_board_capable_of_ota(tmp_path: Path) -> None:
    """The guide's way: unsupported, flashed with keep_nvs, updated by itself; every key stays.

    What is refused before: another MAC, an App Image, a path that is none.
    """
    async with Rig.start(tmp_path, [SimBoard("no-ota")]) as rig:
        status = await rig.updated("1.1.0")
        assert status["boards"]["a"]["state"] == "unsupported"
        before = keys(rig.nvs())
        file = tmp_path / "merged.bin"
        file.write_bytes(merged())
        (tmp_path / "app.bin").write_bytes(rig.image("1.1.0"))
        mac = rig.board().mac
        digest = rig.flash_digest()
        wanted = {"board": "a", "path": str(file), "keep_nvs": True, "confirm": mac}
        assert "wrong-board" in await refusal(rig, **{**wanted, "confirm": "24:0a:c4:ff:ff:ff"})
        assert "not-an-image" in await refusal(rig, **{**wanted, "path": str(tmp_path / "app.bin")})
        assert "cannot be read" in await refusal(rig, **{**wanted, "path": "/nowhere/x.bin"})
        assert rig.flash_digest() == digest

        last = await rig.run_id()
        reply = await rig.command("flash", **wanted, wait_s=60)
        assert reply["run"]["outcome"] == "succeeded"
        result = reply["boards"]["a"]
        assert result["confirmed"] is True
        assert result["running"]["app_version"] == "1.0.5"
        assert [row["label"] for row in result["partitions_before"]] == [
            *("nvs", "phy_init", "factory")
        ]
        (kept,) = result["nvs"]
        assert kept["keys"] == len(before)
        assert (kept["from"]["size_bytes"], kept["to"]["size_bytes"]) == (0x6000, 0x4000)
        backup = Path(result["backup"])
        assert backup.parent == tmp_path / "machine/viam/ota-service/backups" / mac.replace(":", "")
        assert keys(kept_nvs(backup).read_bytes()) == before
        assert not (backup.parent / "unfinished.json").exists()

        status = await rig.next_run(last)  # it takes the update by itself
        assert status["boards"]["a"]["state"] == "up_to_date", status
        assert status["boards"]["a"]["version"] == "1.1.0"
        assert status["boards"]["a"]["running"]["slot"] == "ota_0"
        after = keys(rig.nvs())
        assert after.keys() == before.keys()
        assert {at: v for at, v in after.items() if at[1] != "OTA_VERSION"} == {
            at: v for at, v in before.items() if at[1] != "OTA_VERSION"
        }
        runs = (await rig.command("history", boot_log=True))["runs"]
        flashed = next(run for run in runs if run["target"].get("purpose") == "flash")
        assert flashed["outcome"] == "succeeded"
        assert flashed["boards"]["a"]["boot_log"]


async def test_a_file_from_a_url_and_an_app_that_does_not_start(tmp_path: Path) -> None:
    """The url's password is nowhere; the board's keys are kept on disk, and the error says where.

    The same command again with a good file finds them there, although the bad app has erased
    the board's NVS meanwhile.
    """
    async with Rig.start(tmp_path, [SimBoard("no-ota")]) as rig:
        await rig.configure(url=rig.serve("1.0.0"), version="1.0.0")
        await rig.settled()
        before = keys(rig.nvs())
        panics = Behaviour(ending="panic", ending_after_s=0.2)
        rig.server.put("/m.bin", merged(version="2.0", behaviour=panics), login="u:hunter2hunter2")
        url = rig.server.url("/m.bin", user_info="u:hunter2hunter2", query="token=s3cr3ts3cr3t")
        wanted = {"board": "a", "keep_nvs": True, "confirm": rig.board().mac, "wait_s": 60}
        text = await refusal(rig, url=url, **wanted)
        assert "boot-failed" in text
        folder = tmp_path / "machine/viam/ota-service/backups" / rig.board().mac.replace(":", "")
        folder /= "1"
        assert str(folder) in text
        kept = kept_nvs(folder)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert keys(kept.read_bytes()) == before
        everything = text + str(await rig.command("history")) + str(await rig.module.status(NAME))
        everything += rig.module.log
        for secret in ("hunter2hunter2", "s3cr3ts3cr3t"):
            assert secret not in everything

        rig.board().control.write_flash(0x9000, b"\xff" * 0x4000)
        (tmp_path / "good.bin").write_bytes(merged(version="1.0.0"))
        reply = await rig.command("flash", path=str(tmp_path / "good.bin"), **wanted)
        assert reply["boards"]["a"]["confirmed"] is True
        assert keys(rig.nvs()) == before
        assert reply["boards"]["a"]["backup"] == str(folder)
        status = await rig.module.status(NAME)
        assert status["boards"]["a"]["state"] == "up_to_date"


async def test_a_long_flash_replies_with_its_run(tmp_path: Path) -> None:
    """It goes on behind, with its progress in the status and its end in the history."""
    async with Rig.start(tmp_path, [SimBoard("no-ota", config={"timed": True})]) as rig:
        await rig.configure(url=rig.serve("1.0.0"), version="1.0.0")
        await rig.settled()
        (tmp_path / "m.bin").write_bytes(merged(version="1.0.0"))
        wanted = {"board": "a", "path": str(tmp_path / "m.bin"), "confirm": rig.board().mac}
        reply = await rig.command("flash", **wanted, keep_nvs=True, wait_s=0)
        assert reply["run"]["outcome"] == "running"
        await rig.module.wait_status(
            NAME, lambda status: "progress" in status["boards"]["a"], timeout_s=30
        )
        async with asyncio.timeout(60):
            while True:
                runs = (await rig.command("history"))["runs"]
                (run,) = [run for run in runs if run["id"] == reply["run"]["id"]]
                if run["outcome"] != "running":
                    break
                await asyncio.sleep(0.2)
        assert run["outcome"] == "succeeded"
        assert run["result"]["boards"]["a"]["confirmed"] is True


async def test_the_module_may_end_in_the_middle(tmp_path: Path) -> None:
    """It ends in time; the keys are on disk, and the next module's flash brings them back."""
    folder = tmp_path / "machine"
    file = tmp_path / "m.bin"
    file.write_bytes(merged(version="1.0.0", size_bytes=600_000))
    kept = folder / "viam/ota-service/backups"
    async with Rig.start(tmp_path, [SimBoard("no-ota", config={"timed": True})]) as rig:
        await rig.configure(url=rig.serve("1.0.0"), version="1.0.0")
        await rig.settled()
        before = keys(rig.nvs())
        wanted = {"board": "a", "path": str(file), "keep_nvs": True, "confirm": rig.board().mac}
        await rig.command("flash", **wanted, wait_s=0)
        await rig.module.wait_status(
            NAME, lambda s: s["boards"]["a"].get("progress", {}).get("percent", 0) > 20
        )
        begun = time.monotonic()
        await rig.module.terminate()
        assert time.monotonic() - begun < 10
        assert keys(next(kept.rglob("nvs-*.bin")).read_bytes()) == before
        (mark,) = kept.rglob("unfinished.json")
        async with ModuleProcess.start(folder) as module:
            again = Rig(tmp_path, rig.sim, rig.server, module, ["a"])
            await again.configure(url=rig.server.url("/1.0.0.bin"), version="1.0.0")
            reply = await again.command("flash", **wanted, wait_s=60)
            assert reply["boards"]["a"]["confirmed"] is True
            assert keys(again.nvs()) == before
            assert not mark.exists()
