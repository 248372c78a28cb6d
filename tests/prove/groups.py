# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of boards, cut at each thing that happens to any member: none may be left half.

A `Scene` is a robot of three boards and a manifest whose images go together. Its life is recorded
once; then it is lived again and again with a fault at one of its ticks, and where the process died
it is started anew. What every board that is there starts, and the tag in its NVS, are read by
readers that are not the product's: all are of the new generation, or all of the old one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from ota_service.firmware.target import Target
from ota_service.fleet.service import FleetService
from tests.prove import images
from tests.prove.board import BOOT, quiet
from tests.prove.images import Firmware
from tests.prove.judge import Problem
from tests.prove.prover import Failure, Tally, edits_remembered
from tests.prove.robot import Fault, Robot, Tick
from tests.prove.starts import Start

NAMES = ("arm", "base", "eyes")
SETTLES_S = 900.0
"""Of the clock that jumps: a lost member is waited for, and apps have their time to confirm."""

Generations = Mapping[str, tuple[str, str | None]]


@dataclass(frozen=True)
class Scene:
    """A robot and its manifest. brings: the firmware of each board, in the order of `NAMES`.

    order: steps, each the boards' names; an image has its board's name. rollback: the boards'
    bootloaders use it. cancel_at: the phase in which a person cancels. layouts: of the boards.
    """

    name: str
    brings: tuple[Firmware, Firmware, Firmware]
    order: tuple[tuple[str, ...], ...] = (NAMES,)
    rollback: bool = False
    cancel_at: str = ""
    layouts: tuple[str, str, str] = ("guide", "micro-rdk", "guide")
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing of its own keeps it from the new generation."""
        ends = all(f.starts and (f.confirms or not self.rollback) for f in self.brings)
        return ends and not self.cancel_at

    def robot(self, folder: Path) -> Robot:
        """Its boards with the old generation, and the folder that the service is to look at."""
        starts = {
            name: Start(layout, "valid" if self.rollback else "first", self.rollback, "small")
            for name, layout in zip(NAMES, self.layouts, strict=True)
        }
        files = folder / "files"
        files.mkdir(parents=True)
        entries = {}
        for name, firmware in zip(NAMES, self.brings, strict=True):
            (files / f"{name}.bin").write_bytes(firmware.data)
            digest = hashlib.sha256(firmware.data).hexdigest()
            entries[name] = {"url": f"{name}.bin", "sha256": digest}
        manifest = {
            "format": 1,
            "version": "rel-2",
            "images": entries,
            "boards": {name: name for name in NAMES},
            "order": [list(step) for step in self.order],
            "together": [list(NAMES)],
        }
        (files / "manifest.json").write_text(json.dumps(manifest))
        rules = {"boot_timeout_s": BOOT.timeout_s, "boot_stable_s": BOOT.stable_s}
        target = Target(str(files / "manifest.json"), "rel-2")
        return Robot(folder, starts, {"target": target, **rules, **self.options})

    def old(self) -> Generations:
        """Every board as it was."""
        return dict.fromkeys(NAMES, (images.OLD.name, images.OLD.tag))

    def new(self) -> Generations:
        """Every board with what the manifest brings."""
        return {n: (f.name, "rel-2") for n, f in zip(NAMES, self.brings, strict=True)}

    async def act(self, service: FleetService, robot: Robot) -> Lived:
        """What happens in a life: a person may cancel; then everything comes to its end, also for
        a board that was pulled, and once more when that is plugged in again."""
        if self.cancel_at:
            await until(service, lambda now: phase_of(now) in (self.cancel_at, "over"))
            await service.command("cancel", {})
        await settled(service, robot)
        away = [name for name in NAMES if not robot.plugged(name)]
        robot.apps_live()
        seen = {name: robot.generation(name) for name in NAMES if name not in away}
        for name in away:
            robot.plug(name)
        if away:
            await settled(service, robot)
            robot.apps_live()
        return Lived(seen, service.status())


@dataclass(frozen=True)
class Lived:
    """Of a life: what the boards that were there were while another one was away, and the last
    status."""

    without: Generations
    status: dict[str, Any]


def phase_of(status: Mapping[str, Any]) -> str:
    """Where the last run's group stands; "over" where there is no run under way."""
    run = status.get("run", {})
    if run and run["outcome"] != "running":
        return "over"
    return str(run.get("manifest", {}).get("phase", ""))


async def until(service: FleetService, condition: Any) -> dict[str, Any]:
    """Let time pass until a status fulfils it."""
    async with asyncio.timeout(SETTLES_S):
        while not condition(status := service.status()):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)
    return status


async def settled(service: FleetService, robot: Robot) -> None:
    """Until nothing goes on any more, nor will by itself; boards that were pulled for a while are
    back."""
    engine = service._engine

    def over(status: Mapping[str, Any]) -> bool:
        runs = all(run.done.is_set() for run in engine.runs)
        return runs and phase_of(status) == "over" and status["state"] == "idle"

    async with asyncio.timeout(SETTLES_S):
        since_s = robot.now_s()
        while robot.now_s() - since_s < 10:
            if not over(service.status()) or robot.returning:
                since_s = robot.now_s()
            await asyncio.sleep(0.5)


def unfinished(robot: Robot) -> list[str]:
    """The phases of the groups that the journal has yet to finish, by another reader."""
    with closing(sqlite3.connect(robot.folder / "state" / "journal.sqlite3")) as journal:
        return [phase for (phase,) in journal.execute("SELECT phase FROM board_groups")]


# --- cuts


@dataclass(frozen=True)
class Trial:
    """A scene's life with faults, and with others if another one has to follow. kind: the row of
    the table."""

    scene: Scene
    kind: str
    faults: tuple[Fault, ...]
    then: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        """For people, and for `CASE=`."""
        lives = (self.faults, self.then) if self.then else (self.faults,)
        told = "/".join("+".join(f"{f.tick}:{f.how}" for f in faults) for faults in lives)
        return f"group/{self.scene.name}@{told}"


def trials(scene: Scene, recorded: Sequence[Tick]) -> list[Trial]:
    """Every way in which a scene's life is cut. recorded: what happened in it without a fault.

    While slots are written, which is all alike, a few of the operations stand for all.
    """
    made = []
    slots = 0
    for number, tick in enumerate(recorded, 1):
        if tick.what.startswith("writing"):
            slots += 1
            if slots % SLOT_STRIDE:
                continue
        made.append(Trial(scene, "the process", (Fault(number, "kill"),)))
        if tick.who in NAMES:
            made += [
                Trial(scene, "a member's power", (Fault(number, "power"),)),
                Trial(scene, "a member's plug", (Fault(number, "unplug", 20.0),)),
                Trial(scene, "a member's plug, for long", (Fault(number, "unplug"),)),
            ]
    return [*made, *_of_two(scene, recorded), *_twice(scene, recorded)]


def _twice(scene: Scene, recorded: Sequence[Tick]) -> Iterator[Trial]:
    """The process dies, and the next one as well, or a member is lost to that."""
    rng = random.Random(scene.name)
    behind = [n for n, one in enumerate(recorded, 1) if not one.what.startswith("writing")]
    for _ in range(TWICE):
        how = rng.choice(("kill", "power", "unplug"))
        then = Fault(rng.randrange(1, 120), how, rng.choice((0.0, 20.0)))
        yield Trial(scene, "twice", (Fault(rng.choice(behind), "kill"),), (then,))


def _of_two(scene: Scene, recorded: Sequence[Tick]) -> Iterator[Trial]:
    """The process dies between any two operations of two members that are switched together: one
    has come to an operation of its own, and another one to one of its own behind it."""
    at: dict[str, list[int]] = {}
    for number, one in enumerate(recorded, 1):
        if one.who in NAMES and one.what.split(":")[0] in ACTIVATES:
            at.setdefault(one.who, []).append(number)
    pairs = [pair for step in scene.order for pair in combinations(step, 2)]
    for first, other in pairs:
        for hung, killed in product(at.get(first, ()), at.get(other, ())):
            # The first one's later operations do not happen, so the other's come so much earlier.
            behind = sum(number >= hung for number in at[first])
            tick = killed - behind + 1
            if tick > hung:
                yield Trial(scene, "two members", (Fault(hung, "hang"), Fault(tick, "kill")))


def prove_group(trial: Trial) -> Tally:
    """Live with the faults, start anew where the process died, and judge."""
    tally, problems = Tally(), []
    kind = f"group: {trial.kind}"
    tally.add(kind, "cuts")
    tally.add(kind, "judged")
    with tempfile.TemporaryDirectory(prefix="robot-", dir=_memory()) as folder, quiet():
        robot = trial.scene.robot(Path(folder))
        try:
            robot.faults = trial.faults
            lived = robot.live_apart(trial.scene.act)
            for faults in (trial.then, ()):
                if robot.dead:
                    robot.faults = faults
                    lived = robot.live_apart(trial.scene.act)
            problems += _half(trial.scene, lived.without)
            problems += _half(trial.scene, {name: robot.generation(name) for name in NAMES})
            problems += _once_more(trial.scene, robot)
            if phases := unfinished(robot):
                problems.append(Problem("converge", f"the journal still says {phases}"))
        except (AssertionError, TimeoutError) as error:
            problems.append(Problem("converge", str(error)))
    if problems:
        for column in {problem.kind for problem in problems}:
            first = next(p for p in problems if p.kind == column)
            tally.add(kind, column)
            tally.failures.append(Failure(kind, trial.name, first))
    return tally


def _once_more(scene: Scene, robot: Robot) -> list[Problem]:
    """What another start of the process makes of a robot that has come to its end: nothing, where
    that is new; whole it is in any case, also where what was cancelled or lost is tried again."""
    robot.faults, again = (), replace(scene, cancel_at="")
    before = {name: robot.cells[name].key() for name in NAMES}
    new = {name: robot.generation(name) for name in NAMES} == scene.new()
    lived = robot.live_apart(again.act)
    ended, error = lived.status["run"]["outcome"], lived.status.get("error")
    if new and (ended, error) != ("succeeded", None):
        return [Problem("converge", f"its next start: {ended}, {error}")]
    if new and {name: robot.cells[name].key() for name in NAMES} != before:
        return [Problem("converge", "its next start changes a board")]
    return _half(again, {name: robot.generation(name) for name in NAMES})


def _half(scene: Scene, seen: Generations) -> list[Problem]:
    """Whether these boards are all of one generation: the old one where the new one is not good."""
    allowed = [scene.old(), *([scene.new()] if scene.good else [])]
    if any(all(whole[name] == now for name, now in seen.items()) for whole in allowed):
        return []
    told = ", ".join(f"{name} {of} {tag}" for name, (of, tag) in seen.items())
    return [Problem("lost", f"the group is left half: {told}")]


def _memory() -> str | None:
    """Where files cost nothing."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


SCENES = (
    Scene("good", (images.NEW, images.NEW, images.NEW)),
    Scene("steps", (images.NEW, images.NEW, images.NEW), (("arm",), ("base", "eyes"))),
    Scene("one panics", (images.NEW, images.NEW, images.PANICS)),
    Scene("the last step panics", (images.NEW, images.NEW, images.PANICS), (NAMES[:2], NAMES[2:])),
    Scene("confirmed", (images.NEW, images.NEW, images.NEW), rollback=True),
    Scene("one never confirms", (images.NEW, images.NEW, images.SHY), rollback=True),
    Scene("cancelled", (images.NEW, images.NEW, images.SHY), rollback=True, cancel_at="confirming"),
)
SLOT_STRIDE = 25
TWICE = 60
ACTIVATES = frozenset({"switching", "recording"})


def recorded(scene: Scene) -> list[Tick]:
    """What happens in a scene's life without a fault; as good as it is to be."""
    with tempfile.TemporaryDirectory(prefix="robot-", dir=_memory()) as folder, quiet():
        robot = scene.robot(Path(folder))
        robot.live(scene.act)
        whole = scene.new() if scene.good else scene.old()
        seen = {name: robot.generation(name) for name in NAMES}
        if seen != whole or unfinished(robot):
            raise AssertionError(f"{scene.name}: {seen}, {unfinished(robot)}")
        return list(robot.ticks)


def chosen(scene: Scene, made: Sequence[Trial], *, quick: bool) -> list[Trial]:
    """What is tried of a scene: most of it, spread over all of it; quick: one of each kind."""
    rng = random.Random(scene.name)
    if not quick:
        return rng.sample(made, min(len(made), WHOLE_EACH))
    kinds = sorted({trial.kind for trial in made})
    return [rng.choice([trial for trial in made if trial.kind == kind]) for kind in kinds]


def prove_groups(part: int, parts: int, *, quick: bool) -> Tally:
    """One part of all that is tried; quick: of one scene."""
    tally = Tally()
    with edits_remembered():
        for scene in QUICK_SCENES if quick else SCENES:
            made = trials(scene, recorded(scene))
            for trial in chosen(scene, made, quick=quick)[part::parts]:
                tally.merge(prove_group(trial))
    return tally


def again(name: str) -> Tally:
    """A trial once more, by its name. Raises LookupError."""
    called = name.removeprefix("group/").partition("@")[0]
    scene = next((one for one in SCENES if one.name == called), None)
    if scene is None:
        raise LookupError(f"no scene is called {called}")
    with edits_remembered():
        made = {trial.name: trial for trial in trials(scene, recorded(scene))}
        if name not in made:
            raise LookupError(f"no trial is called {name}")
        return prove_group(made[name])


WHOLE_EACH = 250
QUICK_SCENES = (SCENES[5],)
