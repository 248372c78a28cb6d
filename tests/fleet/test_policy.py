# SPDX-License-Identifier: GPL-3.0-or-later
"""The two tables of policy, walked whole: no board is ever left without a way on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from ota_service.errors import ERRORS, OtaError
from ota_service.fleet import policy
from ota_service.fleet.board import Board
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.board_state import State as Shown
from ota_service.fleet.group import Group, Member
from ota_service.fleet.journal_rows import AttemptRecord
from ota_service.fleet.manifests import _why_not_further
from ota_service.fleet.orders import Answer
from ota_service.fleet.policy import BOARD, FIRMWARE, Permits, Row
from ota_service.fleet.status import _board
from ota_service.fleet.turns import Ask, Turns
from tests.fleet.conftest import TARGET, AtDesk, Desk

STATES: tuple[policy.State, ...] = get_args(policy.State)
EVENTS: tuple[policy.Event, ...] = get_args(policy.Event)
ORDERS: tuple[policy.Event, ...] = (
    *("update", "more", "other", "read", "plan", "rollback", "back", "flash"),
    "known",
)
MOVING = set(policy.SESSIONS)


def pairs() -> Iterator[tuple[str, str, Row]]:
    """Each row with what it is for."""
    for (state, event), row in BOARD.items():
        yield state, event, row


def test_every_event_has_a_row_in_every_state() -> None:
    """Nothing that can happen to a board is undecided, and nothing is decided twice."""
    assert set(BOARD) == {(state, event) for state in STATES for event in EVENTS}
    counted = sum(len(states) * len(events) for states, events, *_ in policy.ROWS)
    assert counted <= len(BOARD)


def test_every_action_is_carried_out_by_the_board() -> None:
    """Each action has its method; the board has no action that the table does not name."""
    named = {row.action for _, _, row in pairs()}
    assert named == set(get_args(policy.Action))
    for action in named:
        assert inspect.iscoroutinefunction(getattr(Board, f"_{action}")), action


def test_a_wait_reads_its_inbox() -> None:
    """In every wait an order changes something at once, or is answered at once."""
    for state in policy.WAITS:
        events: tuple[policy.Event, ...] = ("read", "plan", "cancel", "end", "retarget", "update")
        for event in events:
            assert BOARD[state, event].action != "nothing", (state, event)


def test_every_order_is_answered_joined_or_lined_up() -> None:
    """No order is lost, in whatever state it arrives."""
    lost = {"nothing", "release", "drop", "finish", "hold", "pause", "leave_alone", "ask", "owe"}
    for state in STATES:
        for event in ORDERS:
            row = BOARD[state, event]
            assert row.action not in lost, (state, event, row)


def test_cancel_ends_every_wait_at_once_and_stops_every_session() -> None:
    """A wait holds no session, so nothing has to be waited for."""
    for state in policy.WAITS:
        assert BOARD[state, "cancel"] == BOARD[state, "end"]
        assert BOARD[state, "cancel"].state == "rest"
    sessions: tuple[policy.State, ...] = ("updating", "rewriting")
    for state in sessions:
        assert BOARD[state, "cancel"].state == "stopping"
    for state in policy.SESSIONS:
        assert BOARD[state, "end"].action == "stop_session"


def test_every_session_ends() -> None:
    """Whatever a session ends with, the board is in no session any more, or begins the next."""
    for state in policy.SESSIONS:
        for event in policy.ENDS:
            row = BOARD[state, event]
            if (state, event) == ("reading", "again"):
                assert row.action == "go_on"  # once more: `policy.READ_ATTEMPTS`
                continue
            assert row.state not in MOVING | {None}, (state, event, row)


def test_nobody_s_cancel_leaves_a_board_half_way_back() -> None:
    """Nor another target, nor a firmware's stop: only the end of the process does, for the next."""
    states: tuple[policy.State, ...] = ("going_back", "owing")
    for state in states:
        events: tuple[policy.Event, ...] = ("cancel", "retarget", "stopped", "update", "back")
        for event in events:
            assert BOARD[state, event].state is None, (state, event)
    assert BOARD["going_back", "hindered"].state == BOARD["going_back", "again"].state == "owing"
    assert BOARD["owing", "time"].state == "going_back"


def test_only_an_update_pauses_or_is_set_aside() -> None:
    """A read never spends an attempt: whatever it ends with is its reply."""
    for state, _, row in pairs():
        if row.action in ("pause", "set_aside", "hold", "leave_alone"):
            assert state in ("updating", "held", "rest"), (state, row)
    for event in policy.ENDS:
        assert BOARD["reading", event].action in ("reply", "go_on")
        assert BOARD["rewriting", event].action == "reply"


def test_what_is_over_disturbs_nobody() -> None:
    """The end of a wait that nobody is in changes nothing."""
    waits: dict[policy.Event, policy.State] = {
        "firmware": "fetching",
        "no-firmware": "fetching",
        "turn": "queued",
        "free": "held",
    }
    for event, meant in waits.items():
        for state in STATES:
            if state != meant:
                assert BOARD[state, event] == BOARD["rest", "turn"], (state, event)


def test_every_state_can_be_reached_and_left() -> None:
    """From rest each state is reached, and from each there is a way back to rest."""
    reached = {"rest"}
    while True:
        more = {row.state for at, _, row in pairs() if at in reached and row.state} | reached
        if more == reached:
            break
        reached = more
    assert reached == set(STATES)
    home = {"rest"}
    while True:
        more = {at for at, _, row in pairs() if row.state in home} | home
        if more == home:
            break
        home = more
    assert home == set(STATES)


# --- many boards


def test_the_firmware_s_table_is_whole() -> None:
    """Each event has a row in each state."""
    states, events = get_args(policy.FirmwareState), get_args(policy.FirmwareEvent)
    assert set(FIRMWARE) == {(state, event) for state in states for event in events}


def test_a_stop_holds() -> None:
    """Nothing but a person's word leads out of it."""
    for event in get_args(policy.FirmwareEvent):
        row = FIRMWARE["stopped", event]
        assert row.state == ("open" if event == "lifted" else None), event
        if event.startswith("ask"):
            assert row.action == "refuse"


def test_only_evidence_of_the_firmware_stops_it() -> None:
    """A canary that fails by its link makes place for another one."""
    assert FIRMWARE["trying", "neutral"] == policy.TableRow(
        "open", "look_again", "another canary is tried"
    )
    assert FIRMWARE["trying", "bad"].state == "stopped"
    for code in ERRORS:
        told = policy.verdict(False, OtaError(code), of_image=True)
        known = {"check-unanswered": "unanswered"} | dict.fromkeys(policy.EVIDENCE, "bad")
        assert told == known.get(code, "neutral"), code
    assert {"boot-failed", "check-failed"} == policy.EVIDENCE
    for confirmed, said in ((True, "good"), (False, "good"), (None, "neutral")):
        good = policy.good("up_to_date", confirmed, False)
        assert policy.verdict(good, None, of_image=True) == said
        assert not policy.good("up_to_date", confirmed, True)
        assert not policy.good("outdated", confirmed, False)


def test_what_was_not_judged_says_nothing_of_a_firmware() -> None:
    """A board that carries the target's tag with another build in it, up to date or gone back."""
    assert policy.verdict(True, None, of_image=False) == "neutral"
    assert policy.verdict(False, OtaError("boot-failed"), of_image=False) == "neutral"


class Asks:
    """A board that is told its turn."""

    def __init__(self, turns: Turns, sha256: str, *, aside: bool = False) -> None:
        self.told: list[str] = []
        turns.ask(Ask(self, "key", sha256, False, False, aside, object()))

    def tell(self, event: policy.Event, token: object | None, value: OtaError | None) -> None:
        """Noted."""
        self.told.append(event)


def test_another_file_under_the_same_version_has_its_own_canary() -> None:
    """What boards were seen to run was the file of before."""
    turns = Turns(8, True, lambda _: 5, lambda key, why: None)
    canary, waits = Asks(turns, "one"), Asks(turns, "one")
    assert (canary.told, waits.told) == (["turn"], [])
    turns.ended(canary, "key", "good")
    turns.ended(waits, "key", "good")
    assert waits.told == ["turn"]
    canary, waits = Asks(turns, "two"), Asks(turns, "two")
    assert (canary.told, waits.told) == (["turn"], [])
    turns.ended(canary, "key", "bad")
    assert waits.told == ["stopped"]
    assert Asks(turns, "three").told == ["stopped"]


@pytest.mark.parametrize(
    ("verdicts", "stops"),
    [
        *[("bbb", False), ("bbbg", True), ("bbgg", False), ("bbbgg", True), ("bbnnn", False)],
        *[("", False), ("bbbnnnn", False), ("bbbbnnn", True)],
    ],
)
def test_more_than_half_of_four(verdicts: str, stops: bool) -> None:
    """The share of boards that did not start a firmware, at least four of them."""
    words: dict[str, policy.Verdict] = {"b": "bad", "g": "good", "n": "neutral"}
    assert policy.too_many([words[letter] for letter in verdicts]) is stops


# --- what is an event, and which


def test_every_error_is_an_event_of_its_kind() -> None:
    """The table of errors says what is tried again; the last attempt sets a board aside."""
    for code, kind in ERRORS.items():
        first = policy.judge(OtaError(code), failed=1, max_attempts=3)
        last = policy.judge(OtaError(code), failed=3, max_attempts=3)
        if code in ("port-busy", "not-allowed-now"):
            assert (first, last) == ("hindered", "hindered")
        elif code == "cancelled":
            assert (first, last) == ("cancelled", "cancelled")
        elif code == "changed-elsewhere":
            assert (first, last) == ("used-up", "used-up")
        elif not kind.counts and not kind.transient:
            assert (first, last) == ("failed", "failed")
        else:
            assert first == ("again" if kind.transient else "failed")
            assert last == "used-up"


def test_an_order_that_permits_more_does_not_simply_join() -> None:
    """`force` and `override` are never lost in an update that is under way without them."""
    plain, force = Permits(), Permits(force=True)
    override = Permits(override=frozenset({"not-allowed-now"}))
    assert policy.meets(force, plain, same_target=True) == "update"
    assert policy.meets(plain, force, same_target=True) == "more"
    assert policy.meets(force, override, same_target=True) == "more"
    assert policy.meets(force | override, override, same_target=True) == "update"
    assert policy.meets(force, plain, same_target=False) == "other"
    assert BOARD["held", "more"].action == "ask_turn"


@pytest.mark.parametrize("state", ["set_aside", "rolled_back", "held"])
def test_a_board_that_is_held_is_spared(state: str) -> None:
    """Until its target changes or it is released, whoever asks."""
    record = AttemptRecord("m", "t", failed=3, state=state, code="link-lost", message="lost.")  # type: ignore[arg-type]
    for by_person in (True, False):
        told = policy.spared(record, by_person=by_person, as_last_read=True, board="a")
        assert told is not None
        assert told.error is not None
        assert told.state == ("set_aside" if state == "set_aside" else "rolled_back")
        failed = "It is not tried again, since it failed before: lost."
        by_a_person = ERRORS["held"].message
        assert told.error.message == (by_a_person if state == "held" else failed)


def test_the_journal_stands_in_for_a_look_only_where_nobody_asked() -> None:
    """A person's update always reads."""
    record = AttemptRecord("m", "t")
    alone = policy.spared(record, by_person=False, as_last_read=True, board="a")
    assert alone == policy.Spared("up_to_date")
    assert not policy.spared(record, by_person=True, as_last_read=True, board="a")
    failed = AttemptRecord("m", "t", failed=1)
    assert not policy.spared(failed, by_person=False, as_last_read=True, board="a")


@pytest.mark.parametrize(
    ("state", "runs", "wanted", "said"),
    [
        ("up_to_date", "motor", "server", True),
        ("up_to_date", "motor", "motor", False),
        ("up_to_date", "motor", None, False),
        ("up_to_date", "", "server", False),
        ("outdated", "motor", "server", False),
    ],
)
def test_a_tag_that_another_program_stores_is_said(
    state: Shown, runs: str, wanted: str | None, said: bool
) -> None:
    """The tag decides what is written; what runs is said all the same, and it is not good."""
    running = {"slot": "factory", "project": runs, "app_version": "1.0.0"}
    about = BoardState("a", state=state, running=running, confirmed=True)
    assert policy.is_good(about, wanted) is (state == "up_to_date" and not said)
    words = policy.runs_another(about, wanted) or ""
    assert ("but motor 1.0.0 runs there, and not server" in words) is said


def test_whoever_waits_for_a_board_goes_by_what_the_status_says(at_desk: AtDesk) -> None:
    """Status, the steps and the groups of a manifest: the tag alone makes no board good."""

    async def test(desk: Desk) -> None:
        desk.firmwares.about[TARGET.key] = {"project": "server"}
        board = desk.board()
        board.shown.state, board.shown.confirmed = "up_to_date", True
        assignment = SimpleNamespace(base=TARGET, images={"a": "motor"})
        engine = SimpleNamespace(
            settings=desk.settings, boards={"a": board}, firmwares=desk.firmwares,
            roster=SimpleNamespace(assignment=None),
        )  # fmt: skip
        run: Any = SimpleNamespace(
            engine=engine, course=SimpleNamespace(assignment=assignment, step=2), is_cancelled=False
        )
        order = desk.order()
        order.give(Answer("done"))
        order.report["outcome"] = "up_to_date"
        member, group = Member("a", "motor", board, order), object.__new__(Group)
        for runs, good in (("server", True), ("motor", False)):
            board.shown.running = {"slot": "factory", "project": runs, "app_version": "1.0.0"}
            shown = _board(run.engine, board)
            why = _why_not_further(run, [(order, board)])
            assert (shown["good"], "notice" in shown, why is None) == (good, not good, good)
            assert why is None or "but motor 1.0.0 runs there, and not server" in why.message
            refused = await group._why_not(member)
            assert (member.before, refused is None) == (good, good)
            assert refused is None or refused.code == "other-project"

    at_desk(test)


SHOWN = get_args(Shown)


@pytest.mark.parametrize("before", SHOWN)
@pytest.mark.parametrize("version", [None, "1", "2"])
def test_outdated_is_never_said_of_a_board_with_the_wanted_version(
    before: Shown, version: str | None
) -> None:
    """Nor is up to date said of one with another."""
    wanted = "2"
    for state in (
        policy.shown_after_read(before, version, wanted, None),
        policy.shown_when_dropped(before, version, wanted),
        policy.shown_when_released(version, wanted),
        policy.shown_when_retargeted(before, version, wanted),
    ):
        assert not (state == "outdated" and version == wanted and before != "outdated")
        assert not (state == "up_to_date" and version != wanted and before != "up_to_date")


@pytest.mark.parametrize("before", ["unknown", "absent", "outdated", "up_to_date", "unrecognised"])
def test_a_read_that_learns_something_shows_it(before: Shown) -> None:
    """A rollout's gate waits for `up_to_date`: it must not wait for ever."""
    assert policy.shown_after_read(before, "2", "2", None) == "up_to_date"
    assert policy.shown_after_read(before, "1", "2", None) == "outdated"
    no_slots = OtaError("no-ota-slots")
    assert policy.shown_after_read(before, "2", "2", no_slots) == "unsupported"


def test_pauses_grow_and_stay() -> None:
    """The last pause is the longest."""
    for pause_s in (policy.retry_pause_s, policy.download_pause_s):
        pauses = [pause_s(failed) for failed in range(10)]
        assert pauses == sorted(pauses)
        assert pauses[0] > 0


@pytest.mark.parametrize(
    ("under_way", "asked", "event"),
    [
        ("stage", "stage", "update"),
        ("update", "stage", "update"),
        ("stage", "update", "wider"),
        ("activate", "activate", "update"),
        ("activate", "update", "other"),
        ("update", "activate", "other"),
        ("stage", "activate", "other"),
        ("activate", "stage", "other"),
    ],
)
def test_parts_of_an_update_meet_each_other(under_way: str, asked: str, event: str) -> None:
    """What does less joins what does more; what does another thing follows."""
    plain, override = policy.Permits(), policy.Permits(override=frozenset({"not-allowed-now"}))
    purposes = under_way, asked
    assert policy.meets(plain, plain, same_target=True, purposes=purposes) == event
    assert policy.meets(plain, plain, same_target=False, purposes=purposes) == "other"
    more = "more" if event == "update" else event
    assert policy.meets(plain, override, same_target=True, purposes=purposes) == more


def test_what_stands_aside_neither_waits_for_a_canary_nor_is_one() -> None:
    """A stage, or a part of what goes on as a whole; a firmware that is stopped stops it, too."""
    stopped: list[str] = []
    turns = Turns(8, True, lambda _: 5, lambda key, why: stopped.append(key))
    canary, aside = Asks(turns, "one"), Asks(turns, "one", aside=True)
    waits = Asks(turns, "one")
    assert [board.told for board in (canary, aside, waits)] == [["turn"], ["turn"], []]
    turns.ended(aside, "key", "good")
    turns.ended(aside, "key", "bad")
    assert (waits.told, stopped) == ([], [])
    turns.ended(canary, "key", "bad")
    assert (waits.told, stopped) == (["stopped"], ["key"])
    assert Asks(turns, "one", aside=True).told == ["stopped"]
