# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts over many machines with random failures and lost connections, and their judge.

A rollout may not give a bad release to more machines than the wave that shows it, and those that
`max_failed` lets fail before; and when it is over, every machine is accounted for. The judge looks
at what reached the machines, not at what the tool says of them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpclib import GRPCError, Status

from tests.rollout.fakeapp import Call, LostReply, Moment
from tests.rollout.machines import BACK, FAILED, GONE, GOOD, STOPPED, FakeMachine
from tests.rollout.tool import BAD, NEW, OLD, Fleet, url
from tests.support.command import Done

# How often something goes wrong with a call, where a rollout is tried with that.
APP_TROUBLE = 0.02
LOST_REPLIES = 0.01
LOST_CONNECTIONS = 0.03
# How many calls may be under way at once, of machines and app: parallelism is bounded.
AT_ONCE = 64


@dataclass(frozen=True)
class Trial:
    """One rollout. share_bad: how many of the machines go bad with the release."""

    seed: int
    count: int
    share_bad: float
    waves: Sequence[Any]
    max_failed: int | str
    trouble: bool = True

    @property
    def name(self) -> str:
        """What it is called in a report."""
        return f"{self.count} machines, {self.share_bad:.0%} bad, seed {self.seed}"


@dataclass
class Found:
    """What came of the rollouts; printable. failed: how many promises were broken."""

    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many promises were broken."""
        return len(self.broken)

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"BROKEN {each}" for each in self.broken)])


def trials(count: int, seeds: int) -> list[Trial]:
    """Releases that are bad everywhere, on some machines, and on so few that it goes on."""
    waves = [1, "5%", "25%", "100%"]
    return [
        Trial(seed, count, share, waves, limit)
        for seed in range(seeds)
        for share, limit in ((1.0, 0), (0.3, "2%"), (0.01, "5%"))
    ]


def sizes(trial: Trial) -> list[int]:
    """How many machines each wave has: percentages are of all, rounded up, and the last one has
    the rest."""
    left, found = trial.count, []
    for wave in trial.waves:
        share = wave if isinstance(wave, int) else -(-trial.count * int(wave.rstrip("%")) // 100)
        found.append(min(share, left))
        left -= found[-1]
    return found


def limit(trial: Trial) -> int:
    """How many machines may fail: a percentage is of all, rounded down."""
    given = trial.max_failed
    return given if isinstance(given, int) else trial.count * int(given.rstrip("%")) // 100


async def roll(trial: Trial, folder: Path, found: Found) -> None:
    """Run it to its end, and judge."""
    chance = random.Random(trial.seed)
    bad = {f"m{index:04}" for index in range(trial.count) if chance.random() < trial.share_bad}
    ways = {name: chance.choice((BACK, FAILED, STOPPED, GONE)) for name in sorted(bad)}
    version = BAD if bad else NEW
    began_s = time.process_time()

    def judge(name: str, version: str) -> str:
        return GOOD if version == OLD else ways.get(name, GOOD)

    async with (
        AsyncExitStack() as machines,
        Fleet.start(
            folder, 0, waves=list(trial.waves), max_failed=trial.max_failed, soak="5s",
            timeout="3m", target={"url": url(version), "version": version},
        ) as fleet,
    ):  # fmt: skip
        for index in range(trial.count):
            name = f"m{index:04}"
            fake = await machines.enter_async_context(
                fleet.add(name, judge=judge, takes_s=chance.uniform(1, 15))
            )
            if trial.trouble:
                _flaky(fake, chance)
        if trial.trouble:
            fleet.app.listen(_troubled(chance))
        done = await fleet.run("start")
        status = await fleet.run("status", "--json")
        _judge(trial, fleet, bad, version, done, status, found)
    found.lines.append(
        f"rollout: {trial.name}: exit code {done.code}, {len(fleet.writes)} written, "
        f"{sum(version in each for each in fleet.got())} reached, "
        f"{time.process_time() - began_s:.1f} s"
    )


def _judge(
    trial: Trial, fleet: Fleet, bad: set[str], version: str, done: Done, status: Done, found: Found
) -> None:
    def broken(what: str) -> None:
        found.broken.append(f"{trial.name}: {what}\n{done.err[-2000:]}")

    reached = [name for name, fake in fleet.machines.items() if version in fake.got]
    hit = sorted(bad & set(reached))
    # What reached the machines, wave by wave: the first wave after which too many had failed, or
    # nobody had shown the firmware yet, is the last that may have been begun.
    failed, begun, should_halt = 0, 0, False
    written = fleet.writes
    for size in sizes(trial):
        begun += size
        failed = len(bad & set(written[:begun]))
        should_halt = failed > limit(trial) or failed == begun
        if should_halt:
            break
    if len(written) > begun:
        broken(f"{len(written)} machines were written, of {begun} that may have been")
    if len(hit) > max(sizes(trial)) + limit(trial):
        broken(f"a bad release on {len(hit)} machines")
    if done.code != (1 if should_halt else 0):
        broken(f"exit code {done.code}, where {failed} failed of {limit(trial)} that may")
    for name, fake in fleet.machines.items():
        version_there = fake.machine.part.config["services"][1]["attributes"]["version"]
        if (version_there == version) != (name in written) or len(fake.got) > 2:
            broken(f"{name} has {version_there} and got {fake.got}")
    if not should_halt and len(reached) != trial.count:
        broken(f"{trial.count - len(reached)} machines were left out")
    if fleet.app.busiest > AT_ONCE:
        broken(f"{fleet.app.busiest} calls at once")
    missing = [name for name in fleet.machines if f'"{name}"' not in status.out]
    if missing:
        broken(f"{len(missing)} machines are not in the status, such as {missing[0]}")
    for line in status.out.splitlines():
        json.loads(line)


def _flaky(fake: FakeMachine, chance: random.Random) -> None:
    def before() -> None:
        if chance.random() < LOST_CONNECTIONS:
            raise ConnectionError

    fake.before = before


def _troubled(chance: random.Random) -> Any:
    def trouble(call: Call, moment: Moment) -> None:
        if moment == "arrives" and chance.random() < APP_TROUBLE:
            raise GRPCError(chance.choice((Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED)))
        if moment == "done" and chance.random() < LOST_REPLIES:
            raise LostReply

    return trouble
