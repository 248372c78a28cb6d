# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of a rollout: whatever happens in whatever order, the brake holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.fleet.policy import by_pair
from ota_service.rollout.plan import Share, Wave, assign
from ota_service.rollout.policy import (
    MACHINE,
    MACHINE_ROWS,
    ROLLOUT,
    MachineEvent,
    MachineRow,
    MachineState,
    RolloutEvent,
    RolloutState,
    course,
)

TOUCHES = ("writing",)
ENDS = ("good", "failed", "offline", "conflict")


@pytest.mark.parametrize("again", [MACHINE_ROWS[0], (("pending", "good"), ("begin",), "good", "")])
def test_each_pair_has_one_row(again: MachineRow) -> None:
    """Else the later one would silently win: a table that has two is none."""
    rows = [*MACHINE_ROWS, again]
    with pytest.raises(ValueError, match=r"two rows for \('pending', 'begin'\)"):
        by_pair((states, events, to) for states, events, to, _ in rows)


def test_every_state_and_event_is_reached() -> None:
    """None is there that nothing leads to."""
    assert {at for at, _ in MACHINE} | {*MACHINE.values()} == {*get_args(MachineState)}
    assert {event for _, event in MACHINE} == {*get_args(MachineEvent)}
    assert {*MACHINE.values()} == {*get_args(MachineState)}
    assert {at for at, _ in ROLLOUT} | {*ROLLOUT.values()} == {*get_args(RolloutState)}
    assert {event for _, event in ROLLOUT} == {*get_args(RolloutEvent)}


def test_only_what_is_about_to_be_written_is_written() -> None:
    """There is one way to `writing`: from pending, when it was looked at."""
    assert [pair for pair, to in MACHINE.items() if to in TOUCHES] == [("pending", "begin")]
    assert all(to != "running" for (at, _), to in ROLLOUT.items() if at == "aborted")


# --- many machines, and whatever may happen to them


@dataclass
class World:
    """A rollout that is driven by chance. fates: what each machine comes to once it is written."""

    waves: list[list[str]]
    fates: dict[str, str]
    may_fail: int
    state: RolloutState = "running"
    begun: int = 0
    states: dict[str, MachineState] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states = {name: "pending" for wave in self.waves for name in wave}

    def happens(self, name: str, event: MachineEvent) -> None:
        before = self.states[name]
        self.states[name] = MACHINE.get((before, event), before)

    def silent(self) -> int:
        return sum(self.states[name] == "offline" for name in self.written)

    def failed(self) -> int:
        return sum(state == "failed" for state in self.states.values()) + self.silent()

    def decide(self, *, soaked: bool, late: bool) -> bool:
        """As the driver does; whether machines may be written now."""
        while True:
            found = course(
                self.state,
                [[self.states[name] for name in wave] for wave in self.waves],
                self.begun,
                silent=self.silent(),
                may_fail=self.may_fail,
                proven="good" in self.states.values(),
                soaked=soaked,
                late=late,
            )
            if found.event is None:
                return found.may_write
            if found.event == "next":
                assert self.begun < len(self.waves)
                # No wave begins on a bad one, nor on nothing.
                assert self.failed() <= self.may_fail
                assert not self.written or "good" in self.states.values()
                self.begun += 1
            self.state = ROLLOUT.get((self.state, found.event), self.state)
            if found.event != "next":
                return False

    def write(self, name: str) -> None:
        assert self.state == "running"
        assert name in {each for wave in self.waves[: self.begun] for each in wave}
        self.happens(name, "begin")
        if self.states[name] == "writing":
            self.written.append(name)
            self.happens(name, "sent")


FATES = ("good", "bad", "late", "lost", "foreign")
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@st.composite
def worlds(draw: st.DrawFn, fates: tuple[str, ...] = FATES) -> World:
    """Waves of machines, what each comes to, and how many may fail."""
    count = draw(sizes)
    waves = [[f"{number}.{index}" for index in range(size)] for number, size in enumerate(count)]
    names = [name for wave in waves for name in wave]
    drawn = draw(st.lists(st.sampled_from(fates), min_size=len(names), max_size=len(names)))
    return World(waves, dict(zip(names, drawn, strict=True)), draw(st.integers(0, 4)))


def drive(world: World, chance: st.DataObject, steps: int = 400) -> None:
    """To its end, machine by machine in any order."""
    for step in range(steps):
        late = step > steps // 2
        may_write = world.decide(soaked=True, late=late)
        if world.state != "running":
            return
        begun = [name for wave in world.waves[: world.begun] for name in wave]
        todo = [n for n in begun if world.states[n] == "waiting"]
        todo += [n for n in begun if world.states[n] == "pending" and may_write]
        if not todo:
            if not late:
                continue
            assert "offline" in world.states.values()
            return
        name = chance.draw(st.sampled_from(todo))
        if world.states[name] == "pending":
            world.write(name)
        else:
            world.happens(name, world.fates[name])  # type: ignore[arg-type]


@settings(max_examples=80)
@given(worlds(), st.data())
def test_no_more_is_written_than_the_waves_that_have_begun(
    world: World, data: st.DataObject
) -> None:
    """And each machine once; when it is over, every machine of them is accounted for."""
    drive(world, data)
    begun = [name for wave in world.waves[: world.begun] for name in wave]
    assert set(world.written) <= set(begun)
    assert len(world.written) == len(set(world.written))
    assert all(world.states[name] == "pending" for name in world.states if name not in begun)
    if world.state == "done":
        assert world.begun == len(world.waves)
        assert all(world.states[name] in ENDS for name in begun)
        assert world.failed() <= world.may_fail


@settings(max_examples=50)
@given(worlds(("bad", "bad", "late", "good")), st.data())
def test_a_bad_release_ends_in_the_wave_that_shows_it(world: World, data: st.DataObject) -> None:
    """More than max_failed may fail only within one wave, or in the first."""
    drive(world, data)
    before = [name for wave in world.waves[: world.begun - 1] for name in wave]
    assert sum(world.states[name] == "failed" for name in before) <= world.may_fail
    newest = world.waves[world.begun - 1]
    assert world.failed() <= world.may_fail + len(newest)
    if all(fate != "good" for fate in world.fates.values()):
        assert world.begun == 1
        assert world.state == "halted"
        assert len(world.written) <= len(world.waves[0])


@settings(max_examples=40)
@given(worlds(), st.data(), st.sampled_from(["pause", "abort"]), st.integers(0, 12))
def test_a_person_stops_it_at_any_time(
    world: World, data: st.DataObject, order: RolloutEvent, after: int
) -> None:
    """From then on nothing is written, whatever machines show; resume goes on after a pause."""
    drive(world, data, steps=after)
    if world.state != "running":
        return
    world.state = ROLLOUT[world.state, order]
    written = len(world.written)
    assert not world.decide(soaked=True, late=True)
    drive(world, data)
    assert len(world.written) == written
    if world.state == "paused":
        world.state = ROLLOUT["paused", "resume"]
        drive(world, data)
        assert world.state in ("running", "done", "halted")
    elif order == "abort":
        assert world.state == "aborted"


# --- waves

shares = st.one_of(
    st.integers(1, 60).map(lambda count: Wave(share=Share(count=count))),
    st.floats(0.1, 100).map(lambda percent: Wave(share=Share(percent=percent))),
)


@settings(max_examples=40)
@given(st.lists(shares, min_size=1, max_size=6), st.integers(1, 120), st.data())
def test_every_machine_is_in_one_wave(waves: list[Wave], count: int, data: st.DataObject) -> None:
    """In natural order; named ones where they are named; the last wave takes what is left."""
    names = [f"m{index}" for index in range(count)]
    named = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
    if named:
        waves = [*waves, Wave(machines=named)]
        waves.insert(0, waves.pop() if data.draw(st.booleans()) else Wave(share=Share(count=1)))
    made = assign(waves, names)
    flat = [name for wave in made for name in wave]
    assert sorted(flat) == sorted(names)
    for wave, its in list(zip(waves, made, strict=True))[:-1]:
        if wave.machines is not None:
            assert its == wave.machines
        elif wave.share is not None and wave.share.percent is not None:
            assert len(its) <= max(1, math.ceil(count * wave.share.percent / 100))
    free = [name for name in flat if name not in named]
    assert free == sorted(free, key=lambda name: int(name[1:]))
