# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machines a plan means, and what would be changed on each. Touches nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ota_service.client.failure import Failure
from ota_service.rollout import change, document
from ota_service.rollout.change import Source, UnfitError
from ota_service.rollout.cloud import Cloud, Part, at_once
from ota_service.rollout.plan import Plan, Wave, assign
from ota_service.rollout.state import Record, Rollout, WaveRecord

if TYPE_CHECKING:
    from viam.proto.app import Robot

_NAMED_AT_MOST = 3
_BY_COMMAND = (
    'its service has "auto_update" false: its boards wait for an `update` there, of a person or of '
    "a job"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A part that a plan means; record: what is known of it, which has its name and wave last."""

    robot: Robot
    part: Part
    record: Record


async def survey(plan: Plan, cloud: Cloud, now_s: float) -> tuple[Rollout, list[str]]:
    """Look at every machine that a plan selects: the state of a rollout that has touched nothing
    yet, and what a person should know of it.

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
    _name(found)
    records = {one.record.name: one.record for one in found}
    waves = _waves(plan.waves, found)
    for number, names in enumerate(waves):
        for name in names:
            records[name].wave = number
    rollout = Rollout(
        digest=plan.digest,
        target=change.wanted(plan),
        started_at=now_s,
        waves=[WaveRecord() for _ in waves],
        machines=[records[name] for names in waves for name in names],
    )
    notes += [*_about(plan, waves), *_equal_versions(plan, rollout), *_by_command(plan, rollout)]
    return rollout, notes


async def _permitted(cloud: Cloud, robots: Sequence[Robot]) -> list[str]:
    missing = await cloud.missing_permissions(robots)
    if missing is None:
        return [
            "Viam's app does not say what this key may do; whether it may write is seen at the "
            "first machine."
        ]
    if missing:
        some = [f"{name} ({', '.join(lacks)})" for name, lacks in missing.items()]
        raise Failure(
            f"The key lacks permissions: {_some(some)}.",
            "Nothing was changed. Use a key that is an owner of the organisation, the locations "
            "or the machines.",
            code="refused",
        )
    return []


@dataclass(frozen=True, slots=True)
class _Fragment:
    """What a fragment's version has for the service. names: of its variables; why: it has none.
    has: whether it has the service at all. included: the fragments in it."""

    has: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    sensor: str = ""
    auto_update: Any = None
    included: Sequence[tuple[str, str]] = ()


class _Fragments:
    """What each version of a fragment has for the service, asked for once each."""

    def __init__(self, plan: Plan, cloud: Cloud) -> None:
        self._plan, self._cloud = plan, cloud
        self._known: dict[tuple[str, str], _Fragment] = {}
        self._refused: set[tuple[str, str]] = set()

    async def source(self, text: str) -> tuple[Source, _Fragment]:
        """Where a part's service gets its values from, and the fragment that has it. Raises
        UnfitError, Failure."""
        wanted, given = self._plan.select.fragment, self._plan.fragment_variables
        tried = [
            (fragment, version)
            for fragment, version in change.fragments(text)
            if wanted in (None, fragment)
        ]
        names = given.model_dump(exclude_none=True) if given is not None else None
        if wanted is not None and names is not None:
            # They may also be handed on to a fragment in it, or to one that may not be read.
            holder = await self._holder(tried)
            return Source(wanted, names), holder[1] if holder else _Fragment()
        why, nested = "its configuration has no fragment", ""
        found: list[tuple[Source, _Fragment]] = []
        for fragment, version in tried:
            about = await self._about(fragment, version)
            if not about.why:
                found.append((Source(fragment, names or about.names), about))
            elif not about.has and (holder := await self._holder(about.included)):
                nested = _IN_ANOTHER.format(self._plan.service, holder[0], outer=fragment)
            else:
                why = about.why
        if len(found) > 1:
            raise UnfitError("several of its fragments have the service: name one in select")
        if not found:
            raise UnfitError(nested or why)
        return found[0]

    async def around(self, text: str, wanted: str) -> str:
        """Which of a part's fragments includes another one; "": none, or it may not be read."""
        for entry in change.fragments(text):
            async for fragment, _ in self._all([entry]):
                if fragment == wanted:
                    return entry[0]
        return ""

    async def _holder(self, entries: Sequence[tuple[str, str]]) -> tuple[str, _Fragment] | None:
        """The first fragment of these, or in them, that has the service, and may be read."""
        async for fragment, about in self._all(entries):
            if about.has:
                return fragment, about
        return None

    async def _all(
        self, entries: Sequence[tuple[str, str]]
    ) -> AsyncIterator[tuple[str, _Fragment]]:
        """These fragments, and those in them, at whatever depth; nothing of those that may not be
        read."""
        waiting, seen = list(entries), set(self._refused)
        while waiting:
            entry, about = waiting.pop(0), _Fragment()
            if entry not in seen:
                try:
                    about = await self._about(*entry)
                except Failure as error:
                    if error.unreachable:
                        raise
                    self._refused.add(entry)
            yield entry[0], about
            seen.add(entry)
            waiting += about.included

    async def _about(self, fragment: str, version: str) -> _Fragment:
        key = (fragment, version)
        if key not in self._known:
            config, service = await self._cloud.fragment(fragment, version), self._plan.service
            names, why, sensor = {}, "", None
            try:
                names = change.variables_of(config, service)
                sensor = change.sensor_of(document.dumps(config), service)
            except UnfitError as error:
                why = str(error)
            attributes = change.attributes_of(config, service)
            self._known[key] = _Fragment(
                attributes is not None,
                names,
                why,
                sensor or "",
                (attributes or {}).get("auto_update"),
                change.included(config),
            )
        return self._known[key]


_IN_ANOTHER = (
    'the service "{}" is not in fragment {outer} but in {}, which that includes, so its variables '
    "are set there and not in the part. Where {outer} has variables of its own for them, name "
    "these in fragment_variables, and {outer} in select"
)


async def _of_robot(
    plan: Plan, robot: Robot, parts: Sequence[Part], fragments: _Fragments
) -> list[Found]:
    """The parts of a machine that can be changed; where none can, the main one, and why not.

    Without the fragment that is selected: none.
    """
    fit: list[Found] = []
    unfit: list[Found] = []
    for part in parts:
        record = Record(name="", part=part.id, wave=0, address=part.address)
        about = _Fragment()
        try:
            wanted = plan.select.fragment
            if wanted is not None and wanted not in dict(change.fragments(part.text)):
                if outer := await fragments.around(part.text, wanted):
                    raise UnfitError(
                        f"it has fragment {wanted} only by way of fragment {outer}, which includes "
                        f"it: a part sets the variables of {outer} alone, so select that one"
                    )
                continue
            if plan.mode == "variables":
                record.source, about = await fragments.source(part.text)
            values = change.values(part.text, change.spots(plan, part.text, record.source))
            record.sensor = change.sensor_of(part.text, plan.service) or about.sensor
            given = about.auto_update
            if change.waits_for_command(part.text, plan.service, record.source, given):
                record.note = _BY_COMMAND
            record.values = values
            fit.append(Found(robot, part, record))
        except UnfitError as error:
            record.happened("refused", str(error))
            unfit.append(Found(robot, part, record))
    return fit or unfit[:1]


def _name(found: Sequence[Found]) -> None:
    """Give each a name of its own: of the machine; with its part's or location's where needed."""
    given: set[str] = set()
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
        if name in given:
            name = f"{name} {one.part.id}"
        given.add(name)
        one.record.name = name


def _waves(waves: Sequence[Wave], found: Sequence[Found]) -> list[list[str]]:
    """Those that cannot be changed wait in the last wave, unless they are named."""
    expanded = [
        wave
        if wave.machines is None
        else Wave(machines=[n for word in wave.machines for n in _meant(word, found)])
        for wave in waves
    ]
    named = {name for wave in expanded for name in wave.machines or ()}
    every = [one.record.name for one in found]
    unfit = {one.record.name for one in found if one.record.values is None} - named
    made = assign(expanded, [name for name in every if name not in unfit])
    made[-1] += [name for name in every if name in unfit]
    return made


def _meant(word: str, found: Sequence[Found]) -> list[str]:
    names = [
        one.record.name for one in found if word in (one.record.name, one.robot.id, one.robot.name)
    ]
    return names or [word]


def _equal_versions(plan: Plan, rollout: Rollout) -> list[str]:
    """A board goes by its version: another file under the one that it has is not written."""
    target = rollout.target
    equal = sum(
        record.values is not None
        and record.values.get("version") == target["version"]
        and not change.holds(record.values, target)
        for record in rollout.machines
    )
    words = (
        f"{equal} of the machines are at version {plan.target.version} already, with another url "
        "or sha256: boards that have it are not written again, and prove nothing."
    )
    return [words] if equal else []


def _by_command(plan: Plan, rollout: Rollout) -> list[str]:
    """Of whom a wave waits for somebody else."""
    names = [record.name for record in rollout.machines if record.note]
    if not names:
        return []
    return [
        f'"auto_update" is false on {_some(names)}: the boards there wait for an `update`, of a '
        f"person or of a job. A machine that gets none within {plan.timeout_s:.0f} s of its turn "
        "(`timeout`) counts as failed."
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{', '.join(names[:_NAMED_AT_MOST])}{more}"


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
