# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation of rollouts in a process of its own, as `make prove` runs it beside the rest.

python -m tests.rollout.prove MACHINES; its last line and exit code say what was broken.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.rollout import test_kill
from tests.rollout.fakeapp import FakeApp
from tests.rollout.machines import FakeMachine
from tests.rollout.simulation import Found, roll, trials
from tests.rollout.tool import NEW, Loop, attributes_text, url
from tests.support.command import environment, run_command

ROOT = Path(__file__).parents[2]
WHOLE, THINNED = 1000, 12
# What a thousand machines may cost: to plan them, and in memory until all have the firmware.
PLAN_S, MOST_MB = 10.0, 300.0


@dataclass
class Told:
    """What the process said; failed: whether it broke a promise."""

    text: str
    failed: int

    def __str__(self) -> str:
        return self.text


def run(quick: bool) -> Told:
    """Run it to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rollout.prove", str(THINNED if quick else WHOLE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout.strip() + (f"\n{done.stderr}" if done.returncode else "")
    return Told(text, int(done.returncode != 0))


async def apart(count: int, folder: Path, found: Found) -> None:
    """What `plan` costs, and with many machines a whole `start`, each in a process of its own; app
    and machines answer at once."""
    async with FakeApp.start() as app, AsyncExitStack() as machines:
        site = app.location("site")
        fragment = app.fragment("esp32", {"services": []})
        fakes = [
            FakeMachine(app, app.machine(site, f"m{index:04}", attributes_text(fragment, "m")))
            for index in range(count)
        ]
        file = folder / "plan.json"
        file.write_text(
            json.dumps(
                {
                    "select": {"locations": [site.id]},
                    "target": {"url": url(NEW), "version": NEW},
                    "waves": [1, "100%"],
                    "soak": "1s",
                    "mode": "attributes",
                }
            )
        )
        env = environment(folder, **app.environment())
        done = await run_command("rollout", "plan", str(file), env=env, limit_s=600)
        plan_s = _cost("plan", count, found)
        if done.code or sum(f"m{index:04}" in done.out for index in range(count)) < count:
            found.broken.append(f"plan: exit code {done.code}: {done.err}")
        if plan_s > PLAN_S:
            found.broken.append("plan: too slow")
        if count >= WHOLE:
            for fake in fakes:
                await machines.enter_async_context(fake.serving())
            done = await run_command("rollout", "start", str(file), env=env, limit_s=1800)
            _cost("start", count, found, plan_s)
            left = [fake.machine.name for fake in fakes if NEW not in fake.got]
            if done.code or left:
                found.broken.append(f"start: exit code {done.code}, not {left}: {done.err}")


def _cost(verb: str, count: int, found: Found, before_s: float = 0.0) -> float:
    """Seconds of the processor that a command has used. before_s: those of the ones before it. Its
    memory is the largest one's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s, megabytes = used.ru_utime + used.ru_stime - before_s, used.ru_maxrss * 1024 / 1e6
    found.lines.append(f"{verb}: {count} machines, {cpu_s:.1f} s of its own, {megabytes:.0f} MB")
    if megabytes > MOST_MB:
        found.broken.append(f"{verb}: too large")
    return cpu_s


async def kills(folder: Path, found: Found) -> None:
    """The tool killed at every moment of a rollout, and of its undoing."""
    for verb, mode in (("start", "attributes"), ("start", "variables"), ("undo", "attributes")):
        seen = await test_kill.moments(folder / f"{verb}-{mode}", verb, mode=mode)
        for nth, kind in enumerate(seen, 1):
            try:
                await test_kill.killed(folder / f"{verb}-{mode}-{nth}", verb, nth, mode=mode)
            except AssertionError as error:
                found.broken.append(f"{verb} ({mode}) killed at {nth}, {kind}: {error}")
        found.lines.append(f"{verb} ({mode}): killed at each of {len(seen)} moments")


def main(count: int) -> int:
    """Every trial with so many machines; 0 where no promise was broken."""
    found = Found()
    with tempfile.TemporaryDirectory(prefix="rollout-") as folder:
        asyncio.run(apart(count, Path(folder), found))
    for trial in trials(count, 1):
        with (
            tempfile.TemporaryDirectory(prefix="rollout-") as folder,
            asyncio.Runner(loop_factory=Loop) as runner,
        ):
            runner.run(roll(trial, Path(folder) / "plans", found))
    if count >= WHOLE:
        with (
            tempfile.TemporaryDirectory(prefix="rollout-") as folder,
            asyncio.Runner(loop_factory=Loop) as runner,
        ):
            runner.run(kills(Path(folder), found))
    print(found)
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
