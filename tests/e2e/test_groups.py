# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of boards that go forward or back as a whole: the module over its socket, real esptool.

What each group does in every other case, and cut anywhere, is in tests/fleet/test_group.py and
tests/prove/groups.py.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import SimBoard
from ota_service.cli.live import half_of
from tests.support.module_client import ROOT, ModuleProcess
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow

GOOD, PANICS = Behaviour(), Behaviour(ending="panic", ending_after_s=0.3)
LASTS_S = 120.0


def serve(
    rig: Rig, version: str, *, wheel: Behaviour = GOOD, eye: Behaviour = GOOD,
    order: Sequence[Sequence[str]] = (), size_bytes: int = 60_000,
) -> str:  # fmt: skip
    """Serve a manifest: the image wheel for the boards a and b, and eye for c; its url."""
    entries = {}
    for seed, (name, does) in enumerate({"wheel": wheel, "eye": eye}.items()):
        data = rig.image(version, behaviour=does, seed=seed, size_bytes=size_bytes)
        rig.server.put(f"/{version}/{name}.bin", data)
        entries[name] = {"url": f"{name}.bin", "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {
        "format": 1,
        "version": version,
        "images": entries,
        "boards": {"a": "wheel", "b": "wheel", "c": "eye"},
        "order": [list(step) for step in order],
        "together": [["wheel", "eye"]],
    }
    return rig.server.put(f"/{version}/manifest.json", json.dumps(manifest).encode())


def three(**config: Any) -> list[SimBoard]:
    """Boards of two layouts."""
    return [SimBoard(layout, config=config) for layout in ("guide", "micro-rdk", "guide")]


OLD = dict.fromkeys("abc", ("1.0.0", "1.0.0"))


def all_on(version: str) -> dict[str, tuple[str, str]]:
    """What `runs` gives then."""
    return dict.fromkeys("abc", (version, version))


def runs(rig: Rig) -> dict[str, tuple[str, str]]:
    """The version of the app that each board runs, and the tag in its NVS, by the simulator."""
    shown = {}
    for name in rig.names:
        app = rig.board(name).control.running()
        tag = nvs_init(bytearray(rig.nvs(name))).string("VIAM_NS", "OTA_VERSION")
        shown[name] = (app["version"], tag or "")
    return shown


def phase_of(status: Mapping[str, Any]) -> str:
    """Where the group of the last run stands, while that is under way."""
    run = status.get("run", {})
    at_work = run.get("outcome") == "running"
    return str(run.get("manifest", {}).get("phase", "")) if at_work else ""


def over(status: Mapping[str, Any]) -> bool:
    """Whether nothing goes on any more."""
    ended = status.get("run", {}).get("outcome", "running") != "running"
    return bool(ended and status["state"] == "idle")


async def ended(rig: Rig) -> dict[str, Any]:
    """The status when nothing goes on any more."""
    return await rig.module.wait_status(NAME, over, timeout_s=LASTS_S)


async def test_one_that_does_not_start_takes_its_whole_group_back(tmp_path: Path) -> None:
    """Both wheels had the new firmware, and were good: firmware and version of all three are the
    old ones again; the eye is rolled back, the wheels are outdated, the target is stopped."""
    async with Rig.start(tmp_path, three()) as rig:
        url = serve(rig, "2.0.0", eye=PANICS, order=[["wheel"], ["eye"]])
        await rig.configure(url=url, version="2.0.0")
        seen: list[str] = []

        def watch(status: dict[str, Any]) -> bool:
            seen.append(phase_of(status))
            return over(status)

        status = await rig.module.wait_status(NAME, watch, timeout_s=LASTS_S)
        assert runs(rig) == OLD
        states = {name: board["state"] for name, board in status["boards"].items()}
        assert states == {"a": "outdated", "b": "outdated", "c": "rolled_back"}
        assert {board["version"] for board in status["boards"].values()} == {"1.0.0"}
        assert (status["run"]["outcome"], status["error"]["code"]) == ("failed", "stopped")
        assert "c: The new firmware did not come up" in status["error"]["message"]
        phases = [phase for phase in dict.fromkeys(seen) if phase]
        assert phases == ["staging", "switching", "confirming", "going_back"]
        shown = status["run"]["manifest"]
        assert shown["boards"] == {"a": "wheel", "b": "wheel", "c": "eye"}
        assert shown["steps"] == [["wheel"], ["eye"]]
        (run,) = (await rig.command("history", id=status["run"]["id"]))["runs"]
        assert run["manifest"]["phase"] == "going_back"
        assert {run["boards"][name]["by"] for name in "ab"} == {"its group"}
        with pytest.raises(Exception, match="stopped"):
            await rig.command("update")


async def test_a_group_waits_for_all_of_its_boards_and_then_is_final(tmp_path: Path) -> None:
    """The one that is missing is named, and nothing is switched; when it is there, all are."""
    async with Rig.start(tmp_path, three()) as rig:
        rig.board("b").control.unplug()
        await rig.configure(url=serve(rig, "2.0.0"), version="2.0.0")
        status = await ended(rig)
        assert status["error"]["code"] == "manifest-incomplete"
        assert "b: The port" in status["error"]["message"]
        assert rig.board("a").control.running()["version"] == "1.0.0"
        rig.board("b").control.plug()
        status = await rig.next_run(status["run"]["id"], timeout_s=LASTS_S)
        assert (status["run"]["trigger"], status["run"]["outcome"]) == ("attached", "succeeded")
        assert runs(rig) == all_on("2.0.0")
        assert all(board["good"] for board in status["boards"].values())


IMPATIENT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
from ota_service.fleet import group_policy
group_policy.LOST_S = 1.0
runpy.run_path(sys.argv.pop(1) + "/main.py", run_name="__main__")
"""
"""The module, where five minutes pass in one second."""


async def test_one_that_is_lost_behind_its_switch_takes_its_group_back(tmp_path: Path) -> None:
    """The others do not wait for ever: firmware and version are the old ones again, and the run
    says that the group is half."""
    impatient = [sys.executable, "-c", IMPATIENT, str(ROOT / "src")]
    async with Rig.start(tmp_path, three(), impatient) as rig:
        url = serve(rig, "2.0.0", order=[["wheel"], ["eye"]])
        await rig.configure(url=url, version="2.0.0")

        def starts(now: Mapping[str, Any]) -> bool:
            forward = phase_of(now) in ("switching", "confirming")
            return forward and now["boards"]["c"].get("phase") == "booting"

        await rig.module.wait_status(NAME, starts, timeout_s=LASTS_S, interval_s=0.01)
        rig.board("c").control.unplug()
        status = await ended(rig)
        assert status["run"]["outcome"] == "failed"
        assert "(a, b, c) went back. Not taken back: c (" in status["error"]["message"]
        assert status["run"]["manifest"]["half"] == ["c"]
        assert "only c has the new firmware" in half_of(status["run"])[0]
        assert status["boards"]["c"]["state"] == "absent"
        assert runs(rig) == {**OLD, "c": ("2.0.0", "2.0.0")}


def with_rollback() -> list[SimBoard]:
    """Three boards whose bootloaders want an app to confirm itself."""
    config = {"rollback": True}
    return [SimBoard("micro-rdk", slot="ota_1", otadata="valid", config=config) for _ in range(3)]


async def test_members_that_have_confirmed_themselves_go_back_with_one_that_does_not(
    tmp_path: Path,
) -> None:
    """Where bootloaders use rollback: the wheels have confirmed themselves by then."""
    async with Rig.start(tmp_path, with_rollback()) as rig:
        confirms, never = Behaviour(confirm_after_s=0.2), Behaviour(confirm_after_s=None)
        url = serve(rig, "2.0.0", wheel=confirms, eye=never)
        await rig.configure(url=url, version="2.0.0", confirm_timeout_s=4)
        await rig.module.wait_status(NAME, lambda now: phase_of(now) == "confirming")
        status = await ended(rig)
        assert runs(rig) == OLD
        assert status["boards"]["c"]["state"] == "rolled_back"
        assert status["boards"]["a"]["state"] == status["boards"]["b"]["state"] == "outdated"


async def test_cancel_while_apps_may_confirm_themselves_takes_the_group_back(
    tmp_path: Path,
) -> None:
    """Though a reset turns an app down that has not: that is where it goes anyway."""
    async with Rig.start(tmp_path, with_rollback()) as rig:
        url = serve(rig, "2.0.0")
        await rig.configure(url=url, version="2.0.0", confirm_timeout_s=60)
        await rig.module.wait_status(NAME, lambda now: phase_of(now) == "confirming")
        await rig.command("cancel")
        status = await ended(rig)
        assert status["run"]["outcome"] == "cancelled"
        assert runs(rig) == OLD
        assert {board["state"] for board in status["boards"].values()} == {"outdated"}


@pytest.mark.parametrize("phase", ["staging", "switching", "confirming", "going_back"])
async def test_a_killed_process_is_carried_on_by_the_next_one(tmp_path: Path, phase: str) -> None:
    """Forward or back, as the journal says: no board is of another generation than the others."""
    eye = PANICS if phase == "going_back" else Behaviour(confirm_after_s=0.2)
    wheel = Behaviour(confirm_after_s=0.2)
    async with Rig.start(tmp_path, with_rollback()) as rig:
        url = serve(rig, "2.0.0", wheel=wheel, eye=eye, order=[["wheel"], ["eye"]])
        attributes = rig.attributes(url=url, version="2.0.0", confirm_timeout_s=3)
        await rig.module.add(NAME, attributes)
        await rig.module.wait_status(
            NAME, lambda now: phase_of(now) == phase, timeout_s=LASTS_S, interval_s=0.01
        )
        await rig.module.kill()
        async with ModuleProcess.start(tmp_path / "machine") as again:
            rig.module = again
            await again.add(NAME, attributes)
            await again.wait_status(NAME, over, timeout_s=LASTS_S)
            assert runs(rig) == (OLD if phase == "going_back" else all_on("2.0.0"))
