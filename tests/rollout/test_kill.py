# SPDX-License-Identifier: GPL-3.0-or-later
"""The tool is killed at each step of a rollout and started again: nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.rollout.tool import NEW, OLD, Fleet, Kill, Killed, simulated, with_target

PLAN: dict[str, Any] = {"waves": [1, "100%"], "soak": "1s"}
COUNT = 3
# Of the moments that are like each other (somebody is asked something), one of so many.
EACH = 10

# What was on its way when the tool was killed is cleaned up by nobody.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def moments(folder: Path, verb: str, **plan: Any) -> list[str]:
    """The moments of a run that is not killed."""
    async with Fleet.start(folder, COUNT, **PLAN, **plan) as fleet:
        if verb == "undo":
            assert (await fleet.run("start")).code == 0
        fleet.kill = kill = Kill()
        done = await fleet.run(verb)
        assert done.code == 0, done
        return kill.seen


async def killed(folder: Path, verb: str, nth: int, **plan: Any) -> str:
    """Kill it at the nth moment, start it again, judge; the name of the moment."""
    async with Fleet.start(folder, COUNT, **PLAN, **plan) as fleet:
        if verb == "undo":
            assert (await fleet.run("start")).code == 0
        fleet.kill = kill = Kill(nth)
        with contextlib.suppress(Killed):
            await fleet.run(verb)
        where = f"killed at {nth}: {kill.seen[-1]}"
        done = await fleet.run(verb)
        assert done.code == 0, (where, done)
        if verb == "start":
            for name in fleet.machines:
                assert fleet.text(name) == with_target(fleet.texts[name]), where
            assert fleet.got() == [[OLD, NEW]] * COUNT, where
            assert sorted(fleet.writes) == sorted(fleet.machines), where
            # What was before is still known, and exactly.
            done = await fleet.run("undo")
            assert done.code == 0, (where, done)
        for name in fleet.machines:
            assert fleet.text(name) == fleet.texts[name], where
        assert fleet.got() == [[OLD, NEW, OLD]] * COUNT, where
        for call in fleet.app.asked("UpdateRobotPart"):
            assert call.request.HasField("last_known_update"), where
        return kill.seen[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "mode", "only"),
    [
        ("start", "attributes", ("UpdateRobotPart", "save")),
        ("start", "variables", ("UpdateRobotPart",)),
        ("undo", "attributes", ("UpdateRobotPart",)),
    ],
)
@simulated
async def test_killed_at_each_step(
    tmp_path: Path, verb: str, mode: str, only: tuple[str, ...]
) -> None:
    """At each call when it arrives, when it has its effect and no reply, and when it is answered;
    before and after each save of the state. (`make prove`: at every moment there is.)"""
    seen = await moments(tmp_path / "whole", verb, mode=mode)
    kinds = {"UpdateRobotPart arrives", "UpdateRobotPart done", "save begins", "save ended"}
    assert kinds <= set(seen)
    for nth, kind in enumerate(seen, 1):
        if kind.startswith(only) or nth % EACH == 0:
            assert await killed(tmp_path / str(nth), verb, nth, mode=mode) == kind
