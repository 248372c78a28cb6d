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
    ("verb", "mode"), [("start", "attributes"), ("start", "variables"), ("undo", "attributes")]
)
@simulated
async def test_killed_at_each_step(tmp_path: Path, verb: str, mode: str) -> None:
    """At each call when it arrives, when it has its effect and no reply, and when it is answered;
    before and after each save of the state."""
    seen = await moments(tmp_path / "whole", verb, mode=mode)
    kinds = {"UpdateRobotPart arrives", "UpdateRobotPart done", "save begins", "save ended"}
    assert kinds <= set(seen)
    tried = [
        await killed(tmp_path / str(nth), verb, nth, mode=mode) for nth in range(1, len(seen) + 1)
    ]
    assert kinds <= set(tried)


@simulated
async def test_killed_before_and_after_the_first_write(tmp_path: Path) -> None:
    """The thinned form: the moments around the first write, and the saves on both sides."""
    seen = await moments(tmp_path / "whole", "start")
    first = seen.index("UpdateRobotPart arrives") + 1
    for nth in range(first - 2, first + 5):
        await killed(tmp_path / str(nth), "start", nth)
