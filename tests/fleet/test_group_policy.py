# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of a group, walked whole: it always ends, and never in the middle."""

from __future__ import annotations

import asyncio
import inspect
import re
from datetime import UTC, datetime
from itertools import combinations_with_replacement, pairwise
from typing import cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_service.errors import ERRORS, OtaError
from ota_service.fleet import group, group_policy
from ota_service.fleet.group import Group
from ota_service.fleet.group_policy import ENDS, GROUP, JOURNALLED, STATES, Event, Fate, State
from ota_service.fleet.groups import Groups
from ota_service.fleet.journal_rows import GroupRecord
from ota_service.fleet.run import Run
from tests.support.simulated_time import SimulatedLoop

EVENTS: tuple[Event, ...] = get_args(Event)
OUTSIDE: tuple[Event, ...] = ("cancel", "retarget", "end")
FATES: tuple[Fate, ...] = get_args(Fate)


def walk(events: list[Event]) -> list[tuple[State, str]]:
    """The states and actions that events lead through; those without a row do not happen."""
    state: State = "staging"
    passed: list[tuple[State, str]] = [(state, "")]
    for event in events:
        row = GROUP.get((state, event))
        if row is not None:
            state = row.state or state
            passed.append((state, row.action))
    return passed


def test_what_comes_from_outside_has_a_row_wherever_a_group_is_at_work() -> None:
    """A cancel, another target or the end of the process find no state without an answer."""
    for state in STATES:
        if state not in ENDS:
            assert all((state, event) in GROUP for event in OUTSIDE), state


TAKEN: dict[State, tuple[Event, ...]] = {
    "staging": ("staged", "unstaged", "good"),
    "switching": ("step", "switched", "good", "failed", "unanswered"),
    "confirming": ("good", "failed", "unanswered"),
    "going_back": ("back", "owed"),
    "owing": ("came", "void"),
}
"""What may happen to a group by itself, by where it is."""


def test_whatever_a_group_may_take_has_a_row() -> None:
    """One that has none would end the run in the middle."""
    assert all((state, event) in GROUP for state, events in TAKEN.items() for event in events)
    literals = set(re.findall(r'_take\(\s*"(\w+)"', inspect.getsource(group)))
    assert literals <= {*OUTSIDE, *(event for events in TAKEN.values() for event in events)}


def test_every_action_and_event_occurs() -> None:
    """Nothing in the table's words is there for nothing."""
    assert {row.action for row in GROUP.values()} == set(get_args(group_policy.Action))
    assert {event for _, event in GROUP} == set(EVENTS)
    reached = {row.state or state for (state, _), row in GROUP.items()}
    assert reached | {"staging"} == set(STATES)


@given(st.lists(st.sampled_from(EVENTS), max_size=14))
def test_no_way_leads_past_the_journal(events: list[Event]) -> None:
    """The journal says so before anything is switched, and before anything goes back; a group that
    was begun ends whole: all forward, or all back."""
    passed = walk(events)
    actions = [action for _, action in passed]
    if any(state in group_policy.FORWARD for state, _ in passed):
        assert "begin_switch" in actions
    if any(state == "going_back" for state, _ in passed):
        assert {"turn_round"} & set(actions)
    for (before, _), (after, action) in pairwise(passed):
        if before in group_policy.FORWARD and after not in group_policy.FORWARD:
            assert (after, action) in {
                ("going_back", "turn_round"), ("final", "clear"), ("kept", "clear"),
            }  # fmt: skip
        if before == "going_back" and after != before:
            assert (after, action) in {("gone_back", "clear_and_stop"), ("owing", "keep_owed")}
        assert not (before in ENDS and before != "owing" and after != before)


def test_from_the_middle_there_is_always_a_way_to_an_end() -> None:
    """Neither another target nor the end of a process is one."""
    for state in JOURNALLED:
        ways = {row.state for (at, _), row in GROUP.items() if at == state and row.state}
        assert ways & {"final", "gone_back", "going_back"}, state
        assert GROUP[state, "retarget"].state is None
        assert GROUP[state, "end"] == (group_policy.Row(None, "leave", GROUP[state, "end"].why))


@pytest.mark.parametrize("more", [False, True])
def test_one_member_that_fails_turns_its_group_round_whatever_the_others_are_at(more: bool) -> None:
    """Every combination of three members' fates; None: it has none yet."""
    for fates in combinations_with_replacement([None, *FATES], 3):
        event = group_policy.event_of(fates, more=more)
        known = set(fates)
        if known & {"bad", "lost", "refused"}:
            assert event == "failed"
        elif "cancelled" in known:
            assert event == "cancel"
        elif known == {"good"}:
            assert event == ("step" if more else "good")
        elif None in known:
            assert event is None
        else:
            assert event == "unanswered"
        first = min(fates, key=group_policy.blame)
        if event == "failed":
            assert first in ("bad", "lost", "refused")


@pytest.mark.parametrize(
    ("code", "fate", "way"),
    [
        ("boot-failed", "bad", "back"),
        ("check-failed", "bad", "back"),
        ("check-unanswered", "unanswered", "unreached"),
        ("link-lost", "lost", "unreached"),
        ("port-missing", "lost", "unreached"),
        ("no-answer", "lost", "unreached"),
        ("brown-out", "lost", "unreached"),
        ("no-reset", "lost", "unreached"),
        ("not-staged", "refused", "unreached"),
        ("stage-stale", "refused", "unreached"),
        ("wrong-board", "refused", "unreached"),
        ("changed-elsewhere", "refused", "void"),
    ],
)
def test_what_an_answer_is_to_the_group(code: str, fate: Fate, way: str) -> None:
    """Of an activation, and of a way back."""
    error = OtaError(code)
    assert group_policy.fate(False, error, cancelled=False) == fate
    assert group_policy.way_back(error) == way


def test_every_error_has_a_fate_and_a_way() -> None:
    """None is forgotten; a member that is good is that, unless it was to be stopped."""
    for code in ERRORS:
        assert group_policy.fate(False, OtaError(code), cancelled=False) != "good"
        assert group_policy.way_back(OtaError(code)) in get_args(group_policy.Way)
    assert group_policy.fate(True, None, cancelled=False) == "good"
    assert group_policy.fate(True, None, cancelled=True) == "cancelled"
    assert group_policy.fate(False, None, cancelled=False) == "lost"


def test_what_is_left_of_a_group_is_tried_again_after_30_s_and_later_and_later() -> None:
    """Each try counts once, from the first one of a new process on."""

    async def main() -> None:
        groups, run = Groups(), cast(Run, None)
        since = datetime.now(UTC)
        data = {"names": ["a"], "members": []}
        record = GroupRecord("OTA", "run:a", "key", "2", "owing", since, data)
        for pause_s in (30.0, 60.0, 120.0):
            assert groups.due(record, at_once=False)
            with groups.at_work([Group(run, record.id, [], ["a"], state="owing")]):
                assert not groups.due(record, at_once=True)
            groups.over(record)
            await asyncio.sleep(pause_s - 1.0)
            assert not groups.due(record, at_once=False)
            await asyncio.sleep(2.0)

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())
