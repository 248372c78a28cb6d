# SPDX-License-Identifier: GPL-3.0-or-later
"""The robot's own word: what is a yes, what is owed to the robot, and what its answers come to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import policy
from ota_service.fleet.board import Board
from ota_service.fleet.journal_rows import FirmwareRecord, OwedCallRecord
from ota_service.fleet.policy import Event
from ota_service.fleet.robot import ASKED_AGAIN_S, Calls, Stop, fits
from ota_service.fleet.settings import BoardEntry, NoSuchResource, RobotCall, Settings
from ota_service.fleet.turns import Turns
from ota_service.update.session import Outcome
from tests.fleet.conftest import OTHER, TARGET, AtDesk, Desk
from tests.fleet.test_board import BROUGHT, DONE, FOUND, MAC, SLOT, now_s

NO = {"ok": False, "why": "it drives"}
BEFORE = RobotCall("arm", {"do": "before"}, {"ok": True})
AFTER = RobotCall("arm", {"do": "after"}, {"ok": True})
CHECK = RobotCall("arm", {"do": "check"}, {"ok": True}, timeout_s=120.0)
OLD = Outcome("rolled_back", found=FOUND, version="1", slot=SLOT, confirmed=True, of_image=True)
NEW = replace(DONE, of_image=True)


@pytest.mark.parametrize(
    ("expected", "reply", "yes"),
    [
        ({}, {}, True),
        ({"a": 1}, {"a": 1.0, "b": 2}, True),
        ({"a": 1.5}, {"a": 1}, False),
        ({"a": 1}, {}, False),
        ({"a": True}, {"a": True}, True),
        ({"a": True}, {"a": 1.0}, False),
        ({"a": 0}, {"a": False}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1, "d": 2}, "e": 3}}, True),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, False),
        ({"a": {"b": 1}}, {"a": [1]}, False),
        ({"a": {}}, {"a": 1}, False),
        ({"a": [1, {"b": True}]}, {"a": [1.0, {"b": True, "c": 0}]}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": [True]}, {"a": [1]}, False),
        ({"a": "x"}, {"a": "x"}, True),
    ],
)
def test_a_yes_has_what_is_expected(expected: Any, reply: Any, yes: bool) -> None:
    """Each key with an equal value, objects likewise; numbers by value, and true is no number."""
    assert fits(expected, reply) is yes


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (RuntimeError("a\n b\x1b[31m"), "arm: a b?[31m"),
        (RuntimeError(), "arm: RuntimeError"),
        (asyncio.CancelledError(), "arm has given up"),
        (RuntimeError("x" * 999), f"arm: {'x' * 200}..."),
        (RuntimeError("at http://u:s3cret-word@h/"), "arm: at http://***@h/"),
        ({"says": 'my "s3cret" \\ word'}, 'arm replied {"says": "***"}'),
        ({"a": "\x9b\n"}, 'arm replied {"a": "?\\n"}'),
    ],
)
def test_what_a_robot_says_can_be_shown(at_desk: AtDesk, answer: Any, words: str) -> None:
    """In the status, the history and a line of the log: short, printable, without our secrets."""
    Target("http://h/", "1", None, (("X", 'my "s3cret" \\ word'),))

    async def test(desk: Desk) -> None:
        desk.robot = Arm(check=answer)
        said = await desk.calls.ask(CHECK)
        assert said.words == words

    at_desk(test)


class Arm:
    """A robot whose answers a test sets, by what it is told to do: a reply, an exception, or an
    event before which it does not reply (`then`). A reply in a list is given once."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"before": {"ok": True}, "after": {"ok": True}, **answers}
        self.then: Mapping[str, Any] = {"ok": True}
        self.heard: list[str] = []

    async def may_restart(self) -> bool:
        """Always."""
        return True

    async def ask(self, call: RobotCall) -> Mapping[str, Any]:
        """As the test has set."""
        what = str(call.command["do"])
        self.heard.append(what)
        answer = self.answers[what]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return self.then
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)


def with_arm(desk: Desk, arm: Arm, **calls: Any) -> Settings:
    """The settings of a service that asks it."""
    desk.robot = arm
    desk.settings = replace(desk.settings, before_restart=BEFORE, after_restart=AFTER, **calls)
    return desk.settings


def owed(desk: Desk) -> list[tuple[str, str]]:
    """The boards for which something is owed, and what, by the journal."""
    rows = desk.journal.all(OwedCallRecord, service="OTA")
    return [(row.board, json.loads(row.call)["command"]["do"]) for row in rows]


async def session(
    desk: Desk, board: str = "a", stop: Stop | None = None, *, overridden: bool = False,
    ends: Exception | None = None,
) -> str:  # fmt: skip
    """What a session with a board comes to: "" where it went on to its end."""
    try:
        around = desk.calls.around(board, desk.settings, stop or Stop(), overridden=overridden)
        async with around:
            assert (board, "after") in owed(desk)
            if ends is not None:
                raise ends
    except OtaError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    ("before", "overridden", "ends", "code", "after"),
    [
        ({"ok": True}, False, None, "", True),
        ({"ok": True}, False, OtaError("link-lost"), "link-lost", True),
        ({"ok": True}, False, OtaError("port-busy"), "port-busy", True),
        (NO, False, None, "not-allowed-now", False),
        (NO, True, None, "", True),
        (RuntimeError("dead"), False, None, "not-allowed-now", True),
        (KeyError("its own"), False, None, "not-allowed-now", True),
        (RuntimeError("dead"), True, None, "", True),
        (TimeoutError(), False, None, "not-allowed-now", True),
        (NoSuchResource("no arm"), False, None, "not-allowed-now", False),
        (NoSuchResource("no arm"), True, None, "", True),
    ],
)
def test_what_was_asked_before_is_undone_after(
    at_desk: AtDesk, before: Any, overridden: bool, ends: Any, code: str, after: bool
) -> None:
    """But not where the robot said no, or is not there: then nothing was done."""

    async def test(desk: Desk) -> None:
        arm = Arm(before=before)
        with_arm(desk, arm)
        assert await session(desk, overridden=overridden, ends=ends) == code
        assert arm.heard == ["before"] + ["after"] * after
        assert owed(desk) == [] or code == "not-allowed-now"
        await desk.until(lambda: not owed(desk), within_s=ASKED_AGAIN_S + 1)
        assert arm.heard == ["before"] + ["after"] * after

    at_desk(test)


def test_a_no_costs_the_disk_nothing(at_desk: AtDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A robot that is asked every 2 s for hours: one row is written when the wait begins, and goes
    when it is over; what is owed by a board that was allowed meanwhile is called all the same."""

    async def test(desk: Desk) -> None:
        arm = Arm(before=NO)
        with_arm(desk, arm)
        written: list[str] = []

        def noted(name: str, do: Any, *args: Any, **kwargs: Any) -> None:
            written.append(name)
            do(*args, **kwargs)

        for name in ("put", "drop"):
            do = getattr(desk.journal, name)
            monkeypatch.setattr(desk.journal, name, partial(noted, name, do))
        for _ in range(50):
            assert await session(desk) == "not-allowed-now"
            await asyncio.sleep(policy.ROBOT_POLL_S)
        assert written == ["put"]
        arm.answers["before"] = [{"ok": True}, NO]
        assert await session(desk, "b") == ""
        assert arm.heard[-2:] == ["before", "after"]
        assert await session(desk) == "not-allowed-now"  # as its own row went with that of "b"
        assert written == ["put", "put", "drop", "put"]
        arm.answers["before"] = {"ok": True}
        assert await session(desk) == ""
        assert (arm.heard.count("after"), owed(desk)) == (2, [])
        arm.answers["before"] = NO
        for _ in range(2):
            assert await session(desk) == "not-allowed-now"
            await asyncio.sleep(ASKED_AGAIN_S + 1)
        assert written[4:] == ["drop", *["put", "drop"] * 2]
        assert arm.heard.count("after") == 2

    at_desk(test)


def test_a_robot_that_is_not_configured_any_more_is_not_called_for_ever(
    at_desk: AtDesk, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is missing is called until it is there; one that the configuration names no more,
    for the service or for a board, is given up, and the log says so."""

    async def test(desk: Desk) -> None:
        arm = Arm(after=NoSuchResource("there is no arm"))
        settings = with_arm(desk, arm)
        assert await session(desk) == ""
        await asyncio.sleep(1000)
        assert owed(desk) == [("a", "after")]
        entry = BoardEntry("a", mac=MAC, health_check=CHECK)
        desk.settings = replace(settings, before_restart=None, after_restart=None, boards=(entry,))
        await asyncio.sleep(1000)
        assert owed(desk) == [("a", "after")]
        desk.settings = replace(desk.settings, boards=(replace(entry, health_check=None),))
        await desk.until(lambda: not owed(desk), within_s=61)
        called = len(arm.heard)
        await asyncio.sleep(1000)
        assert len(arm.heard) == called
        assert [line for line in caplog.messages if "arm is not in the configuration" in line]

    at_desk(test)


@pytest.mark.parametrize("other", ["b", "a"])
def test_boards_that_share_a_robot_are_one(at_desk: AtDesk, other: str) -> None:
    """It does not drive off while another of its boards is in a session, also one that has the
    first one's name by now; who waits for it to have its ports back waits for the last."""

    async def test(desk: Desk) -> None:
        arm = Arm()
        settings = with_arm(desk, arm)
        done = [asyncio.Event(), asyncio.Event()]

        async def at(board: str, until: asyncio.Event) -> None:
            async with desk.calls.around(board, settings, Stop(), overridden=False):
                await until.wait()

        both = [asyncio.ensure_future(at(*one)) for one in zip(("a", other), done, strict=True)]
        await desk.until(lambda: arm.heard == ["before", "before"])
        back = asyncio.ensure_future(desk.calls.given_back(AFTER))
        done[0].set()
        await both[0]
        assert arm.heard == ["before", "before"]
        assert not back.done()
        done[1].set()
        await asyncio.gather(*both, back)
        assert arm.heard == ["before", "before", "after"]
        assert owed(desk) == []
        await desk.calls.given_back(None)

    at_desk(test)


def test_the_last_one_pays_also_where_it_was_not_allowed_itself(at_desk: AtDesk) -> None:
    """A session that ended while another board asked left it to that one, which was told no."""

    async def test(desk: Desk) -> None:
        thinks = asyncio.Event()
        arm = Arm(before=[{"ok": True}, thinks])
        settings = with_arm(desk, arm)
        async with desk.calls.around("a", settings, Stop(), overridden=False):
            other = asyncio.ensure_future(session(desk, "b"))
            await desk.until(lambda: arm.heard == ["before", "before"])
        assert arm.heard == ["before", "before"]
        arm.then = NO
        thinks.set()
        assert await other == "not-allowed-now"
        assert arm.heard == ["before", "before", "after"]
        assert owed(desk) == []

    at_desk(test)


def test_what_is_owed_is_called_until_there_is_a_yes(at_desk: AtDesk) -> None:
    """Later and later; a session that goes on meanwhile is not disturbed."""

    async def test(desk: Desk) -> None:
        arm = Arm(after=[RuntimeError("dead"), NO, RuntimeError("dead"), {"ok": True}])
        settings = with_arm(desk, arm)
        began_s = now_s()
        assert await session(desk) == ""
        assert owed(desk) == [("a", "after")]
        await desk.until(lambda: arm.heard.count("after") == 3)
        assert now_s() - began_s == pytest.approx(6, abs=0.1)
        async with desk.calls.around("b", settings, Stop(), overridden=False):
            await asyncio.sleep(1000)
            assert arm.heard.count("after") == 3
        assert arm.heard[-1] == "after"
        assert owed(desk) == []
        await asyncio.sleep(1000)
        assert arm.heard.count("after") == 4

    at_desk(test)


@pytest.mark.parametrize("late", [False, True])
def test_a_robot_that_is_told_of_others_holds_no_cancel_up(at_desk: AtDesk, late: bool) -> None:
    """Another board's after_restart hangs; with whoever is cancelled meanwhile nothing was begun,
    and he leaves nothing behind."""

    async def test(desk: Desk) -> None:
        hangs, stop = asyncio.Event(), Stop()
        arm = Arm(after=[RuntimeError("dead"), hangs] if late else hangs)
        settings = with_arm(desk, arm)
        first = asyncio.ensure_future(session_at(desk, settings))
        await desk.until(lambda: arm.heard.count("after") == 1 + late)
        second = asyncio.ensure_future(session(desk, "b", stop))
        await asyncio.sleep(1)
        assert arm.heard.count("before") == 1
        began_s = now_s()
        stop.at_all.set()
        assert await second == "cancelled"
        assert now_s() - began_s < 1
        assert owed(desk) == [("a", "after")]
        hangs.set()
        await first
        async with asyncio.timeout(10):
            await desk.calls.given_back(AFTER)
        await desk.until(lambda: not owed(desk), within_s=10)
        assert arm.heard.count("after") == 1 + late

    at_desk(test)


@pytest.mark.parametrize("fails", ["put", "all", "drop"])
def test_a_journal_that_fails_keeps_no_robot_waiting(
    at_desk: AtDesk, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Nothing is begun that it does not know; whoever waits for the ports goes on, and what is owed
    is called when there is a journal again."""

    async def test(desk: Desk) -> None:
        arm = Arm(after=[NO, {"ok": True}])
        settings = with_arm(desk, arm)
        with monkeypatch.context() as broken:
            broken.setattr(desk.journal, fails, _broken)
            if fails != "drop":
                with pytest.raises(RuntimeError, match="the disk"):
                    await session_at(desk, settings)
            else:
                await session_at(desk, settings)
                async with asyncio.timeout(10):
                    await asyncio.gather(*desk.tasks, return_exceptions=True)
            async with asyncio.timeout(1):
                await desk.calls.given_back(AFTER)
        assert arm.heard[:1] == ["before"] * (fails != "put")
        arm.answers["after"] = [NO, {"ok": True}]
        assert await session(desk, "b") == ""
        await desk.until(lambda: not owed(desk), within_s=10)
        assert arm.heard[-1] == "after"

    at_desk(test)


async def session_at(desk: Desk, settings: Settings) -> None:
    """One without a look at the journal."""
    async with desk.calls.around("a", settings, Stop(), overridden=False):
        pass


def _broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the disk")


def test_a_process_that_ends_waits_two_seconds_for_its_robot(at_desk: AtDesk) -> None:
    """What it still owes then is called by the next one."""

    async def test(desk: Desk) -> None:
        arm, stop = Arm(after=asyncio.Event()), Stop()
        with_arm(desk, arm)
        ended = asyncio.ensure_future(session(desk, stop=stop))
        await desk.until(lambda: arm.heard == ["before", "after"])
        stop.ending.set()
        began_s = now_s()
        assert await ended == ""
        assert now_s() - began_s == pytest.approx(2.0)
        assert owed(desk) == [("a", "after")]
        arm.answers["after"] = {"ok": True}
        desk.calls = Calls(desk)
        await desk.calls.owed()
        await desk.until(lambda: not owed(desk), within_s=1)
        assert arm.heard == ["before", "after", "after"]

    at_desk(test)


def test_a_robot_that_thinks_for_long_holds_no_cancel_up(at_desk: AtDesk) -> None:
    """Nobody knows what it did, so it is told that it is over."""

    async def test(desk: Desk) -> None:
        arm, stop = Arm(before=asyncio.Event()), Stop()
        with_arm(desk, arm)
        ended = asyncio.ensure_future(session(desk, stop=stop))
        await desk.until(lambda: arm.heard == ["before"])
        assert owed(desk) == [("a", "after")]  # for the next process, if this one dies now
        began_s = now_s()
        stop.at_all.set()
        assert await ended == "cancelled"
        assert now_s() - began_s < 1
        assert arm.heard == ["before", "after"]

    at_desk(test)


def test_a_robot_that_says_no_in_ever_other_words_fills_no_log(
    at_desk: AtDesk, caplog: pytest.LogCaptureFixture
) -> None:
    """It may hold a distance, or a time: the status has the newest words, the log the first."""

    async def test(desk: Desk) -> None:
        with_arm(desk, Arm())
        board, order = desk.board(), desk.order()
        desk.script = [OtaError("not-allowed-now", f"{n} m to go.") for n in (3, 2, 1)]
        desk.script += [OtaError("port-busy", "Taken."), DONE]
        board.order(order)
        await desk.until(lambda: board.shown.error and "1 m to go" in board.shown.error.message)
        assert (await order.answer).end == "done"
        waits = [line for line in caplog.messages if "it waits" in line]
        assert waits == ["a: it waits: 3 m to go.", "a: it waits: Taken."]

    with caplog.at_level("INFO"):
        at_desk(test)


# --- the robot's word on what runs


def board_of(desk: Desk, arm: Arm, **check: Any) -> Board:
    """A board that was just switched to the target by the next session."""
    with_arm(desk, arm, health_check=replace(CHECK, **check))
    board = desk.board()
    board.shown.mac = MAC
    desk.memory.brings(MAC, TARGET.key, BROUGHT)
    desk.journal.update_board(MAC, unchecked=True)
    return board


def proven(desk: Desk) -> bool:
    """Whether the journal has the firmware as one that needs no canary."""
    return desk.journal.get(FirmwareRecord, sha256=desk.fetched.image.sha256) is not None


def test_a_firmware_is_good_when_the_robot_says_so(at_desk: AtDesk) -> None:
    """Asked until there is an answer; what was seen counts from then on, and a killed process has
    it in its journal before."""

    async def test(desk: Desk) -> None:
        arm = Arm(check=[RuntimeError("boots"), RuntimeError("boots"), {"ok": True}])
        board, order = board_of(desk, arm), desk.order()
        desk.script = [NEW]
        board.order(order)
        await desk.until(lambda: board.state == "checking")
        assert (board.shown.state, board.shown.phase) == ("updating", "checking")
        assert desk.journal.attempt(MAC, TARGET.key).ended_well
        assert not proven(desk)
        read = await desk.give(board, desk.order("version"), within_s=0.5)
        assert read.reply["error"]["code"] == "check-unanswered"
        assert read.reply["version"] == "2"
        assert (await order.answer).end == "done"
        assert arm.heard.count("check") == 3
        about = board.shown
        assert policy.good(about.state, about.confirmed, about.unchecked)
        assert proven(desk)
        assert "checking" in order.report["phases"]

    at_desk(test)


def test_a_no_takes_the_firmware_back_and_speaks_against_it(at_desk: AtDesk) -> None:
    """As a firmware that does not start: here a canary's, so that no further board gets it."""

    async def test(desk: Desk) -> None:
        stopped: list[str] = []
        desk.turns = Turns(8, True, lambda _: 4, lambda key, why: stopped.append(key))
        desk.fetched = desk.firmwares.at_once = replace(desk.fetched, proven=False)
        arm = Arm(check=NO)
        board = board_of(desk, arm)
        old = replace(OLD, error=OtaError("check-failed", "no. The board is back"))
        desk.script = [NEW, "link-lost", old]
        answer = await desk.give(board, desk.order())
        assert answer.error is not None
        assert answer.error.code == "check-failed"
        assert (board.shown.state, board.shown.version) == ("rolled_back", "1")
        assert desk.begun == ["update", "back", "back"]
        job = desk.attempts[-1]._job
        brought = getattr(job, "back_of", None)
        assert brought is not None
        assert (brought.slot, brought.code) == (BROUGHT.slot, "check-failed")
        assert 'replied {"ok": false, "why": "it drives"}' in brought.why
        assert stopped == [TARGET.key]
        assert desk.journal.attempt(MAC, TARGET.key).state == "rolled_back"
        assert board.free

    at_desk(test)


def test_a_way_back_that_fails_is_the_firmware_s_failure_too(at_desk: AtDesk) -> None:
    """And said with what the robot said."""

    async def test(desk: Desk) -> None:
        board = board_of(desk, Arm(check=NO))
        desk.script = [NEW, "link-lost", "link-lost", "link-lost"]
        answer = await desk.give(board, desk.order())
        assert answer.error is not None
        assert answer.error.code == "check-failed"
        assert "it drives" in answer.error.message
        assert "not taken back: The connection" in answer.error.message
        assert board.shown.state == "failed"
        assert desk.journal.board(MAC) is not None
        assert board.free

    at_desk(test)


@pytest.mark.parametrize("on_no_answer", ["stay", "back"])
def test_no_answer_halts_this_run_and_no_other(at_desk: AtDesk, on_no_answer: str) -> None:
    """Further boards are not begun; the next run asks the robot again."""

    async def test(desk: Desk) -> None:
        desk.turns = Turns(1, True, lambda _: 4, lambda key, why: pytest.fail(str(why)))
        desk.fetched = desk.firmwares.at_once = replace(desk.fetched, proven=False)
        arm = Arm(check=RuntimeError("dead"))
        board, other, began_s = (
            board_of(desk, arm, on_no_answer=on_no_answer),
            desk.board(),
            now_s(),
        )
        old = replace(OLD, error=OtaError("check-unanswered", "nobody. The board is back"))
        desk.script = [NEW, old] if on_no_answer == "back" else [NEW]
        first, second = desk.order(), desk.order()
        board.order(first)
        await desk.until(lambda: board.state == "checking")
        other.order(second)
        answer = await first.answer
        assert answer.error is not None
        assert answer.error.code == "check-unanswered"
        assert now_s() - began_s == pytest.approx(120, abs=3)
        state = "rolled_back" if on_no_answer == "back" else "up_to_date"
        about = board.shown
        assert (about.state, about.unchecked) == (state, on_no_answer == "stay")
        assert not policy.good(about.state, about.confirmed, about.unchecked)
        left_out = await second.answer
        assert left_out.end == "stopped"
        assert left_out.error is not None
        assert left_out.error.code == "check-unanswered"
        desk.turns.resume()
        arm.answers["check"] = {"ok": True}
        if on_no_answer == "stay":
            assert first.report["unchecked"]
            desk.script = [NEW]
            again = desk.order()
            assert (await desk.give(board, again)).end == "done"
            assert "unchecked" not in again.report
        desk.script = [DONE]
        assert (await desk.give(other, desk.order())).end == "done"

    at_desk(test)


@pytest.mark.parametrize("event", ["cancel", "end", "retarget", "rollback", "back"])
def test_what_ends_the_asking(at_desk: AtDesk, event: Any) -> None:
    """The new firmware stays, unchecked; a new target, or a way back, goes on from there."""

    async def test(desk: Desk) -> None:
        arm = Arm(check=RuntimeError("dead"))
        board, update = board_of(desk, arm), desk.order()
        desk.script = [NEW]
        board.order(update)
        await desk.until(lambda: board.state == "checking")
        if event in ("rollback", "back"):
            desk.script = [OLD]
            assert (await desk.give(board, desk.order(event))).end == "done"
            assert (await update.answer).end == "cancelled"
            assert board.shown.state == ("rolled_back" if event == "rollback" else "outdated")
        else:
            told: Event = event
            board.tell(told, value=OTHER if event == "retarget" else None)
            assert (await update.answer).end == "cancelled"
            state = "outdated" if event == "retarget" else "up_to_date"
            assert board.shown.state == state
            assert board.shown.unchecked
            record = desk.journal.board(MAC)
            assert record is not None
            assert record.unchecked
            assert update.report["unchecked"]
        heard = len(arm.heard)
        await asyncio.sleep(100)
        assert len(arm.heard) <= heard + 1
        assert board.free

    at_desk(test)


def test_a_check_that_is_configured_anew_is_asked_as_it_is_now(at_desk: AtDesk) -> None:
    """Its resource may have been renamed meanwhile; or nothing is to be asked any more."""

    async def test(desk: Desk) -> None:
        arm = Arm(check=RuntimeError("dead"), self_test={"ok": True})
        board, order = board_of(desk, arm), desk.order()
        desk.script = [NEW]
        board.order(order)
        await desk.until(lambda: "check" in arm.heard)
        check = replace(CHECK, command={"do": "self_test"})
        desk.settings = replace(desk.settings, health_check=check)
        assert (await order.answer).end == "done"
        assert arm.heard[-1] == "self_test"

        arm.answers["check"] = RuntimeError("dead")
        board, order = board_of(desk, arm), desk.order()
        desk.script = [NEW]
        board.order(order)
        await desk.until(lambda: board.state == "checking")
        desk.settings = replace(desk.settings, health_check=None)
        assert (await order.answer).end == "done"

    at_desk(test)


def test_a_check_may_take_all_its_time(at_desk: AtDesk) -> None:
    """A self-test that is long is asked for once; not where the machine is configured anew, whose
    old resource may never reply."""

    async def test(desk: Desk) -> None:
        for anew in (False, True):
            arm = Arm(check=asyncio.Event())
            board, order, began_s = board_of(desk, arm), desk.order(), now_s()
            desk.script = [NEW]
            board.order(order)
            await desk.until(partial(arm.heard.count, "check"))
            await asyncio.sleep(100)
            if anew:
                desk.robot = new = Arm(check={"ok": True})
            else:
                arm.answers["check"].set()
            assert (await order.answer).end == "done"
            assert now_s() - began_s == pytest.approx(100, abs=5)
            assert arm.heard.count("check") == 1
            assert not anew or new.heard == ["check"]

    at_desk(test)


@pytest.mark.parametrize("event", ["cancel", "end", "retarget"])
def test_a_check_that_hangs_holds_nothing_up(at_desk: AtDesk, event: Event) -> None:
    """Neither what ends the asking, nor the end of its own time."""

    def at_work() -> list[str]:
        return [getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks()]

    async def test(desk: Desk) -> None:
        arm = Arm(check=asyncio.Event())
        board, order = board_of(desk, arm, timeout_s=86_400.0), desk.order()
        desk.script = [NEW]
        board.order(order)
        await desk.until(lambda: "check" in arm.heard)
        assert "_until_checked" in at_work()
        board.tell(event, value=OTHER if event == "retarget" else None)
        assert (await order.answer).end == "cancelled"
        await desk.until(lambda: {"_until_checked"}.isdisjoint(at_work()), within_s=10)

    at_desk(test)


def test_who_asks_no_more_has_nothing_unchecked(at_desk: AtDesk) -> None:
    """A health check that was taken out of the configuration is waited for by nobody."""

    async def test(desk: Desk) -> None:
        board = board_of(desk, Arm())
        desk.settings = replace(desk.settings, health_check=None)
        desk.script = [NEW]
        assert (await desk.give(board, desk.order())).end == "done"
        record = desk.journal.board(MAC)
        assert record is not None
        assert not record.unchecked
        assert policy.good(board.shown.state, board.shown.confirmed, board.shown.unchecked)

    at_desk(test)
