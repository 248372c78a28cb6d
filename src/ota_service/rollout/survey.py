# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machines a plan means, and what would be changed on each. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ota_service.client.failure import Failure
from ota_service.rollout import change, document
from ota_service.rollout.change import Source, UnfitError, Values
from ota_service.rollout.cloud import Cloud, Part, Robot, at_once
from ota_service.rollout.plan import Plan, Wave, assign

_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class Found:
    """A part that a plan means. unfit: why it cannot be changed. source: where its values are.
    values: as they are now. sensor: of its service, where there is one."""

    name: str
    robot: Robot
    part: Part
    source: Source = field(default_factory=Source)
    values: Values = field(default_factory=dict)
    sensor: str = ""
    unfit: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """All of them, by name, and the names of each wave. notes: what a person should know."""

    found: dict[str, Found]
    waves: list[list[str]]
    notes: tuple[str, ...] = ()


async def survey(plan: Plan, cloud: Cloud) -> Survey:
    """Look at every machine that a plan selects.

    Raises Failure, which names missing permissions, and PlanError where the waves don't fit.
    """
    robots = await cloud.robots(plan.select)
    notes = await _permitted(cloud, robots)
    parts = await at_once(cloud.parts, robots)
    fragments = _Fragments(plan, cloud)
    found: list[Found] = []
    for robot, its in zip(robots, parts, strict=True):
        found += await _of_robot(plan, robot, its, fragments)
    if not found:
        remedy = "Correct select, or the key's access."
        raise Failure("No machine is selected.", remedy, code="not-found")
    by_name = _named(found)
    waves = _waves(plan.waves, by_name)
    notes = (*notes, *_about(plan, waves), *_equal_versions(plan, found))
    return Survey(by_name, waves, notes)


async def _permitted(cloud: Cloud, robots: Sequence[Robot]) -> tuple[str, ...]:
    missing = await cloud.missing_permissions(robots)
    if missing is None:
        return (
            "Viam's app does not say what this key may do; whether it may write is seen at the "
            "first machine.",
        )
    if missing:
        some = [f"{name} ({', '.join(lacks)})" for name, lacks in missing.items()]
        more = f" and {len(some) - _NAMED_AT_MOST} more" if len(some) > _NAMED_AT_MOST else ""
        raise Failure(
            f"The key lacks permissions: {', '.join(some[:_NAMED_AT_MOST])}{more}.",
            "Nothing was changed. Use a key that is an owner of the organisation, the locations "
            "or the machines.",
            code="refused",
        )
    return ()


class _Fragments:
    """What each version of a fragment has for the service, asked for once each."""

    def __init__(self, plan: Plan, cloud: Cloud) -> None:
        self._plan, self._cloud = plan, cloud
        self._known: dict[tuple[str, str], tuple[dict[str, str], str] | str] = {}

    async def source(self, text: str) -> tuple[Source, str]:
        """Where a part's service gets its values from, and its sensor. Raises UnfitError,
        Failure."""
        plan = self._plan
        wanted, given = plan.select.fragment, plan.fragment_variables
        tried = [
            (fragment, version)
            for fragment, version in change.fragments(text)
            if wanted in (None, fragment)
        ]
        if wanted is not None and given is not None:
            names = given.model_dump(exclude_none=True)
            return Source(wanted, names), ""
        why = "its configuration has no fragment"
        found: list[tuple[Source, str]] = []
        for fragment, version in tried:
            known = await self._about(fragment, version)
            if isinstance(known, str):
                why = known
            else:
                names = known[0] if given is None else given.model_dump(exclude_none=True)
                found.append((Source(fragment, names), known[1]))
        if len(found) > 1:
            raise UnfitError("several of its fragments have the service: name one in select")
        if not found:
            raise UnfitError(why)
        return found[0]

    async def _about(self, fragment: str, version: str) -> tuple[dict[str, str], str] | str:
        """The names of its variables, and of the sensor in it; or why it has none."""
        key = (fragment, version)
        if key not in self._known:
            config = await self._cloud.fragment(fragment, version)
            try:
                names = change.variables_of(config, self._plan.service)
                sensor = change.sensor_of(document.dumps(config), self._plan.service)
                self._known[key] = names, sensor or ""
            except UnfitError as error:
                self._known[key] = str(error)
        return self._known[key]


async def _of_robot(
    plan: Plan, robot: Robot, parts: Sequence[Part], fragments: _Fragments
) -> list[Found]:
    """The parts of a machine that can be changed; where none can, the main one, and why not.

    Without the fragment that is selected: none.
    """
    fit: list[Found] = []
    unfit: list[Found] = []
    for part in parts:
        sensor, source = "", Source()
        try:
            wanted = plan.select.fragment
            if wanted is not None and wanted not in dict(change.fragments(part.text)):
                continue
            if plan.mode == "variables":
                source, sensor = await fragments.source(part.text)
            values = change.values(part.text, change.spots(plan, part.text, source))
            sensor = change.sensor_of(part.text, plan.service) or sensor
            fit.append(Found(robot.name, robot, part, source, values, sensor))
        except UnfitError as error:
            unfit.append(Found(robot.name, robot, part, unfit=str(error)))
    return fit or unfit[:1]


def _named(found: Sequence[Found]) -> dict[str, Found]:
    """Each under a name of its own: of the machine; with its part's or location's where needed."""
    made: dict[str, Found] = {}
    robots: dict[str, set[str]] = {}
    parts: dict[str, int] = {}
    for one in found:
        robots.setdefault(one.robot.name, set()).add(one.robot.id)
        parts[one.robot.id] = parts.get(one.robot.id, 0) + 1
    for one in found:
        name = one.robot.name
        if len(robots[name]) > 1:
            name = f"{name} ({one.robot.location})"
        if parts[one.robot.id] > 1:
            name = f"{name}/{one.part.name}"
        if name in made:
            name = f"{name} {one.part.id}"
        made[name] = replace(one, name=name)
    return made


def _waves(waves: Sequence[Wave], found: Mapping[str, Found]) -> list[list[str]]:
    """Those that cannot be changed wait in the last wave, unless they are named."""
    expanded = [
        wave
        if wave.machines is None
        else Wave(machines=[n for word in wave.machines for n in _meant(word, found)])
        for wave in waves
    ]
    named = {name for wave in expanded for name in wave.machines or ()}
    fit = [name for name, one in found.items() if not one.unfit or name in named]
    made = assign(expanded, fit)
    made[-1] += [name for name in found if name not in fit]
    return made


def _meant(word: str, found: Mapping[str, Found]) -> list[str]:
    names = [name for name, one in found.items() if word in (name, one.robot.id, one.robot.name)]
    return names or [word]


def _equal_versions(plan: Plan, found: Sequence[Found]) -> list[str]:
    """A board goes by its version: another file under the one that it has is not written."""
    target = change.wanted(plan)
    equal = sum(
        one.values.get("version") == target["version"] and not change.holds(one.values, target)
        for one in found
        if not one.unfit
    )
    words = (
        f"{equal} of the machines are at version {plan.target.version} already, with another url "
        "or sha256: boards that have it are not written again, and prove nothing."
    )
    return [words] if equal else []


def _about(plan: Plan, waves: Sequence[Sequence[str]]) -> list[str]:
    """What a person may not have expected of the waves."""
    notes = [f"Wave {number} has no machine left." for number, w in enumerate(waves, 1) if not w]
    last, total = plan.waves[-1], sum(map(len, waves))
    asked = len(last.machines or ()) if last.share is None else last.share.up(total)
    if len(waves[-1]) > asked:
        notes.append(
            f"The last wave takes all that are left: {len(waves[-1])} machines, not {asked}."
        )
    return notes
