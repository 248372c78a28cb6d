# SPDX-License-Identifier: GPL-3.0-or-later
"""One board's task: every order is answered, waits hold nothing up, and nothing dies in silence.

Sessions are scripted, the journal is real, and the clock jumps where everybody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import endings, policy
from ota_service.fleet.board import Board
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.firmwares import Fetched, Firmwares
from ota_service.fleet.group import Group, Member
from ota_service.fleet.hooks import FlashHooks, SessionHooks
from ota_service.fleet.journal_rows import FirmwareRecord, SlotRecord
from ota_service.fleet.orders import Answer, Fact, FlashFile, Purpose, Trigger
from ota_service.fleet.places import Place
from ota_service.fleet.policy import Verdict
from ota_service.fleet.run import Run
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.formats.image import parse_app_image
from ota_service.formats.nvs import parse_nvs
from ota_service.formats.partitions import Partition
from ota_service.link.chip import ChipInfo
from ota_service.link.ownership import mark_rewritten, rewrite_mark
from ota_service.link.ports import PortInfo
from ota_service.update.facts import BoardFacts, SlotFact
from ota_service.update.inspect import App, Inspection, Running
from ota_service.update.plan import Plan
from ota_service.update.session import Brought, Image, Job, Outcome
from tests.fleet.conftest import OTHER, PORT, TARGET, AtDesk, Desk

MAC = "24:0a:c4:00:00:01"
SLOT = Partition("ota_0", 0, 0x10, 0x10000, 0x100000)
FOUND = Inspection(
    ChipInfo("ESP32", 0, MAC, 301, 4 << 20), nvs=parse_nvs(b"\xff" * 0x3000), version="1"
)
DONE = Outcome("up_to_date", found=FOUND, version="2", slot=SLOT, confirmed=True)
READ = Outcome("read", found=FOUND, version="1")
WRITE = Plan("write", "version differs", slot=SLOT, from_version="1", to_version="2")
WAITS = Outcome("awaiting_confirmation", plan=WRITE, found=FOUND, version="2", slot=SLOT)


def now_s() -> float:
    """Simulated seconds."""
    return asyncio.get_running_loop().time()


def test_attempts_pause_longer_and_longer_until_the_board_is_set_aside(at_desk: AtDesk) -> None:
    """1 s, then 5 s; each attempt is slower, and the journal keeps the end."""

    async def test(desk: Desk) -> None:
        desk.script = ["link-lost"] * 3
        board, began_s = desk.board(), now_s()
        answer = await desk.give(board, desk.order())
        assert answer.end == "error"
        assert (board.shown.state, board.shown.attempts) == ("set_aside", 3)
        assert now_s() - began_s == pytest.approx(6.0, abs=0.2)
        bauds = [attempt._job.baud for attempt in desk.attempts]
        assert bauds == sorted(bauds, reverse=True)
        assert len(set(bauds)) == 3
        assert board.free

    at_desk(test)


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("before", [[], ["link-lost"], ["port-busy"]])
def test_a_policy_that_came_after_the_firmware(
    at_desk: AtDesk, refused: bool, before: list[str]
) -> None:
    """What was fetched under another one is fetched anew before each attempt, and not written."""

    async def test(desk: Desk) -> None:
        shelf, old = desk.firmwares, desk.fetched
        desk.script, after = [*before, DONE], len(before)
        anew = Fetched(replace(old.image, sha256="1" * 64), True, ({"policy": "/x"},))

        async def outdated(_: Target, fetched: Fetched) -> bool:
            if fetched is not old or len(desk.attempts) < after:
                return False
            shelf.at_once = OtaError("signature-missing") if refused else anew
            return True

        shelf.outdated = outdated
        board, order = desk.board(), desk.order()
        answer = await desk.give(board, order)
        assert len(desk.attempts) == after + (not refused)
        if refused:
            assert (answer.end, board.shown.state) == ("no-firmware", "unknown")
        else:
            job = desk.attempts[-1]._job
            assert isinstance(job, Job)
            assert job.image == anew.image
            assert order.report["allowed_by"] == [{"policy": "/x"}]
        assert (board.free, shelf.waiting) == (True, [])

    at_desk(test)


@pytest.mark.parametrize("before", [[], ["link-lost"], ["port-busy"], ["link-lost", "port-busy"]])
@pytest.mark.parametrize("end", ["rolled_back", "up_to_date"])
def test_what_was_begun_ends_without_its_firmware(
    at_desk: AtDesk, before: list[str], end: Any
) -> None:
    """After a restart, whatever a policy refuses by then: a board that was left alone is looked at,
    and goes back where its app has failed."""

    async def test(desk: Desk) -> None:
        desk.firmwares.at_once = OtaError("signature-missing")
        failed = OtaError("boot-failed") if end == "rolled_back" else None
        version = "1" if failed else "2"
        desk.script = [*before, replace(DONE, end=end, version=version, error=failed)]
        desk.memory.awaits(
            MAC, TARGET.key, version="2", slot="ota_0", seconds=100, previous_version="1"
        )
        board, began_s = desk.board(), now_s()
        order = desk.order(place=Place("a", "here", PORT, mac=MAC))
        answer = await desk.give(board, order)
        assert now_s() - began_s == pytest.approx(100, abs=5)
        assert (answer.end, board.shown.state) == ("error" if failed else "done", end)
        for attempt in desk.attempts:
            job = attempt._job
            assert isinstance(job, Job)
            assert job.confirm is not None
            assert (job.image, job.confirm.slot) == (None, "ota_0")
        assert len(desk.attempts) == len(before) + 1
        assert desk.memory.awaited(MAC) is None
        # Nothing is begun any more, and nothing is.
        assert (await desk.give(board, desk.order(place=order.place))).end == "no-firmware"
        assert len(desk.attempts) == len(before) + 1
        assert (board.free, desk.firmwares.waiting) == (True, [])

    at_desk(test)


def test_a_flash_tells_what_allowed_it(at_desk: AtDesk) -> None:
    """Also where it failed: something may have been written."""

    async def test(desk: Desk) -> None:
        desk.script = ["link-lost"] * 3
        file: Any = SimpleNamespace(allowed_by=({"policy": "/x"},))
        order = desk.order("flash", file=FlashFile(file, MAC))
        assert (await desk.give(desk.board(), order)).end == "error"
        assert order.report["allowed_by"] == [{"policy": "/x"}]

    at_desk(test)


def test_a_board_has_its_own_speed_and_its_own_rules_for_a_start(at_desk: AtDesk) -> None:
    """What its entry says, and the service's where it says nothing."""

    async def test(desk: Desk) -> None:
        desk.script = [DONE]
        entry = BoardEntry("a", port=PORT, baud=115_200, boot_timeout_s=60.0, boot_expect="up")
        board = Board("a", entry, TARGET, desk)
        await desk.give(board, desk.order())
        job = desk.attempts[0]._job
        assert isinstance(job, Job)
        assert (job.baud, job.boot.timeout_s, job.boot.stable_s) == (115_200, 60.0, 5.0)
        assert job.boot.matches is not None
        assert job.boot.matches("it is up")

    at_desk(test)


def test_a_read_in_a_pause_reads_and_the_update_goes_on_pausing(at_desk: AtDesk) -> None:
    """It spends no attempt and no time of the pause."""

    async def test(desk: Desk) -> None:
        desk.script = ["link-lost", "link-lost", READ, DONE]
        board, order, began_s = desk.board(), desk.order(), now_s()
        board.order(order)
        await desk.until(lambda: len(desk.begun) == 2 and board.state == "pausing")
        answer = await desk.give(board, desk.order("version"), within_s=1)
        assert answer.reply["version"] == "1"
        await desk.until(lambda: board.state == "pausing", within_s=1)
        assert board.shown.attempts == 2
        assert (await order.answer).end == "done"
        assert desk.begun == ["update", "update", "version", "update"]
        assert now_s() - began_s == pytest.approx(6.0, abs=0.5)

    at_desk(test)


def test_a_board_that_is_read_first_of_all_is_read_where_it_is(at_desk: AtDesk) -> None:
    """Before anybody has looked at what is plugged in."""

    async def test(desk: Desk) -> None:
        desk.script = [READ]
        board = desk.board()
        assert (await desk.give(board, desk.order("version"))).end == "done"
        assert desk.attempts[0]._port == board.shown.port == PORT

    at_desk(test)


def test_reads_never_spend_attempts_nor_leave_errors_behind(at_desk: AtDesk) -> None:
    """Two reads of a silent board; the next update has all of its attempts."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        desk.script = ["no-answer"] * 4
        for _ in range(2):
            answer = await desk.give(board, desk.order("version"))
            assert answer.reply["error"]["code"] == "no-answer"
        assert board.shown.attempts == 0
        assert board.shown.error is None
        assert board.shown.to_dict()["state"] == "unknown"
        desk.script = ["no-answer", "no-answer", DONE]
        assert (await desk.give(board, desk.order())).end == "done"
        assert board.shown.state == "up_to_date"

    at_desk(test)


@pytest.mark.parametrize(("version", "state"), [("2", "up_to_date"), ("1", "outdated")])
def test_a_read_shows_what_it_learned(at_desk: AtDesk, version: str, state: str) -> None:
    """After `version` the state is what was read."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        desk.script = [replace_found(READ, version)]
        await desk.give(board, desk.order("version"))
        assert board.shown.state == state

    at_desk(test)


def replace_found(outcome: Outcome, version: str) -> Outcome:
    """An outcome whose look found another tag."""
    found = replace(FOUND, version=version)
    return Outcome(outcome.end, found=found, version=version, slot=outcome.slot)


def test_twenty_reads_at_once_open_the_port_once(at_desk: AtDesk) -> None:
    """They have the same question, and get the same answer."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        desk.script = [READ]
        orders = [desk.order("version") for _ in range(20)]
        for order in orders:
            board.order(order)
        answers = await asyncio.gather(*(order.answer for order in orders))
        assert desk.begun == ["version"]
        assert {str(answer.reply["version"]) for answer in answers} == {"1"}

    at_desk(test)


def test_other_questions_are_asked_for_themselves(at_desk: AtDesk) -> None:
    """Of another firmware, or with another permit: one answer would be wrong for one of them."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        desk.script = [READ, READ, READ]
        orders = [
            desk.order("version"),
            desk.order("version", target=OTHER),
            desk.order("version", force=True),
        ]
        for order in orders:
            board.order(order)
        await asyncio.gather(*(order.answer for order in orders))
        assert [attempt._order for attempt in desk.attempts] == orders

    at_desk(test)


def test_a_duel_is_no_interrupted_attempt(at_desk: AtDesk) -> None:
    """What another updater did is counted under a name of its own, whoever has read it before."""

    async def test(desk: Desk) -> None:
        desk.journal.end_attempt(MAC, desk.settings.target.key, succeeded=True)
        desk.memory.saw(replace(FOUND, version="9"))
        assert desk.memory.duel(MAC, desk.settings.target.key, "9", "2") == 1
        assert not desk.memory.facts(MAC, OTHER).interrupted

    at_desk(test)


def test_a_sensor_s_no_is_a_wait_in_which_reads_are_answered_at_once(at_desk: AtDesk) -> None:
    """With the last version and why the board is not looked at; it is no attempt."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        desk.script = [READ, DONE, DONE, DONE]
        await desk.give(board, desk.order("version"))
        desk.allowed = False
        order = desk.order()
        board.order(order)
        await desk.until(lambda: board.state == "held")
        purposes: tuple[Purpose, ...] = ("version", "verify", "plan")
        for purpose in purposes:
            began_s = now_s()
            answer = await desk.give(board, desk.order(purpose))
            assert now_s() == began_s
            assert answer.error is not None
            assert answer.error.code == "not-allowed-now"
            if purpose == "version":
                assert answer.reply["version"] == "1"
                assert answer.reply["version_read_at"]
        assert board.shown.attempts == 0
        assert board.shown.phase == "waiting"
        override = desk.order(override=["not-allowed-now"])
        assert (await desk.give(board, override, within_s=2)).end == "done"
        assert (await order.answer).end == "done"

    at_desk(test)


WAIT_STATES = ("fetching", "held", "pausing", "confirming")


async def in_wait(desk: Desk, board: Board, state: str) -> asyncio.Future[Answer]:
    """Bring a board's update into a wait; its answer."""
    order = desk.order()
    if state == "fetching":
        desk.firmwares.at_once = None
    desk.allowed = state != "held"
    first: dict[str, object] = {"pausing": "link-lost", "confirming": WAITS}
    desk.script = [first.get(state, DONE), DONE]
    board.order(order)
    await desk.until(lambda: board.state == state)
    return order.answer


def test_an_update_that_a_rollback_makes_void_says_so(at_desk: AtDesk) -> None:
    """The history tells what happened to the board, and not that somebody cancelled it."""

    async def test(desk: Desk) -> None:
        board, update = desk.board(), desk.order()
        desk.script = ["link-lost", replace(DONE, end="rolled_back", version="1", found=RUNS)]
        board.order(update)
        await desk.until(lambda: board.state == "pausing")
        assert (await desk.give(board, desk.order("rollback"))).end == "done"
        assert (await update.answer).end == "cancelled"
        assert "rolled back instead" in update.report["error"]["message"]

    at_desk(test)


@pytest.mark.parametrize("event", ["cancel", "end", "retarget"])
@pytest.mark.parametrize("state", WAIT_STATES)
def test_a_wait_ends_at_once(at_desk: AtDesk, state: str, event: str) -> None:
    """Cancel, another target and the end of the process hold nobody up; a fetch is let go."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        answer = await in_wait(desk, board, state)
        began_s = now_s()
        board.tell(event, value=OTHER if event == "retarget" else None)  # type: ignore[arg-type]
        assert (await answer).end == "cancelled"
        assert now_s() == began_s
        await board.quiet.wait()
        assert board.state == "rest"
        assert desk.firmwares.waiting == []
        unread = "unknown" if event == "retarget" else "outdated"
        expected = "awaiting_confirmation" if state == "confirming" else unread
        assert board.shown.state == expected

    at_desk(test)


@pytest.mark.parametrize("state", WAIT_STATES)
def test_the_same_order_again_joins_in_every_wait(at_desk: AtDesk, state: str) -> None:
    """Both are answered when the update ends."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        first = await in_wait(desk, board, state)
        second = desk.order()
        board.order(second)
        desk.allowed = True
        if state == "fetching":
            desk.firmwares.waiting[-1](desk.fetched)
        assert (await first).end == (await second.answer).end == "done"

    at_desk(test)


def test_confirmation_takes_its_time_and_then_the_board_is_looked_at(at_desk: AtDesk) -> None:
    """Nothing resets it meanwhile: rollback is refused, reads are answered from what is known."""

    async def test(desk: Desk) -> None:
        board, began_s = desk.board(), now_s()
        answer = await in_wait(desk, board, "confirming")
        refused = await desk.give(board, desk.order("rollback"))
        assert refused.error is not None
        assert refused.error.code == "awaiting-confirmation"
        assert (await desk.give(board, desk.order("version"))).reply["version"] == "2"
        assert desk.begun == ["update"]
        assert (await answer).end == "done"
        assert now_s() - began_s >= desk.settings.confirm_timeout_s
        assert getattr(desk.attempts[-1]._job, "confirm", None) is not None

    at_desk(test)


async def in_session(
    desk: Desk, board: Board
) -> tuple[asyncio.Future[object], asyncio.Future[Answer]]:
    """Have a session under way that ends as its future is set; and its order's answer."""
    end: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    desk.script = [end, DONE, DONE]
    order = desk.order()
    board.order(order)
    await desk.until(lambda: desk.begun)
    return end, order.answer


@pytest.mark.parametrize("event", ["cancel", "end", "retarget", "stopped"])
def test_a_session_is_stopped_and_says_why(at_desk: AtDesk, event: str) -> None:
    """It stops at the next place; the answer has the reason, not just `cancelled`."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        _, answer = await in_session(desk, board)
        values = {"retarget": OTHER, "stopped": OtaError("stopped", "stopped: 1 of 1")}
        board.tell(event, value=values.get(event))  # type: ignore[arg-type]
        answered = await answer
        assert answered.end == ("stopped" if event == "stopped" else "cancelled")
        assert board.free
        # Of another target, nothing is known of a board that was never read.
        assert board.shown.state == ("unknown" if event == "retarget" else "outdated")

    at_desk(test)


def test_too_late_to_cancel_is_said(at_desk: AtDesk) -> None:
    """Behind the switch an update ends well, whatever is asked of it: that is its outcome."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        end, _ = await in_session(desk, board)
        board.tell("cancel")
        end.set_result(DONE)
        await board.quiet.wait()
        assert board.shown.state == "up_to_date"

    at_desk(test)


def test_what_waits_for_a_session_is_taken_afterwards(at_desk: AtDesk) -> None:
    """Looks before updates; more permissions begin a further session."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        end, answer = await in_session(desk, board)
        desk.script = [READ, DONE]
        forced, read = desk.order(force=True), desk.order("version")
        board.order(forced)
        board.order(read)
        await desk.until(lambda: len(board._line) == 2)
        end.set_result(DONE)
        assert (await answer).end == "done"
        await asyncio.gather(read.answer, forced.answer)
        assert desk.begun == ["update", "version", "update"]
        assert getattr(desk.attempts[-1]._job, "force", False)

    at_desk(test)


def test_a_dry_run_gets_the_plan_that_is_carried_out(at_desk: AtDesk) -> None:
    """As soon as it is made; the board is not looked at twice."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        end, answer = await in_session(desk, board)
        plan = desk.order("plan")
        board.order(plan)
        await asyncio.sleep(1)
        assert not plan.answer.done()
        board.post(lambda sight: sight.planned(WRITE))
        assert (await plan.answer).reply["action"] == "write"
        again = await desk.give(board, desk.order("plan"))
        assert again.reply["action"] == "write"
        end.set_result(DONE)
        await answer
        assert desk.begun == ["update"]

    at_desk(test)


@pytest.mark.parametrize("purpose", ["update", "version", "rollback"])
def test_a_board_that_is_not_there_is_answered_at_once(at_desk: AtDesk, purpose: Purpose) -> None:
    """It is no attempt, and opens nothing."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        missing = OtaError("port-missing", board="a")
        place = Place("a", "absent", "/dev/x", error=missing)
        answer = await desk.give(board, desk.order(purpose, place=place))
        assert answer.error is missing
        assert board.shown.state == "absent"
        assert desk.begun == []

    at_desk(test)


def test_an_exception_ends_in_a_state_an_answer_and_a_way_on(at_desk: AtDesk) -> None:
    """Nothing dies in silence: the next order is taken as if nothing had been."""

    async def test(desk: Desk) -> None:
        board = desk.board()

        def broken(*_: object) -> None:
            raise RuntimeError("unforeseen")

        whole, desk.firmwares.want = desk.firmwares.want, broken
        answer = await desk.give(board, desk.order())
        assert answer.error is not None
        assert answer.error.code == "internal"
        assert board.shown.to_dict()["state"] == "failed"
        desk.firmwares.want = whole
        desk.script = [DONE]
        assert (await desk.give(board, desk.order())).end == "done"
        assert board.shown.state == "up_to_date"

    at_desk(test)


def test_a_new_target_is_brought_behind_the_old_one(at_desk: AtDesk) -> None:
    """The order for it waits in line while the old session stops."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        _, old = await in_session(desk, board)
        board.tell("retarget", value=OTHER)
        desk.script = [Outcome("up_to_date", found=FOUND, version="3", slot=SLOT)]
        answer = await desk.give(board, desk.order(target=OTHER))
        assert (await old).end == "cancelled"
        assert answer.end == "done"
        assert (board.shown.state, board.shown.version) == ("up_to_date", "3")

    at_desk(test)


# --- what the journal has of what runs


RUNS = replace(FOUND, running=Running(SLOT, "verified", 1000, "1" * 32))


def hooks_of(desk: Desk, board: Board) -> SessionHooks:
    """Of a session with this board, whose facts arrive at once."""

    def tell(fact: Fact) -> None:
        fact(board._sight)

    hooks = SessionHooks(desk, board.shown, desk.order(), tell)
    board.shown.port = PORT
    return hooks


def confirmed(desk: Desk) -> bool | None:
    """As the journal has it."""
    record = desk.journal.board(MAC)
    assert record is not None
    return record.confirmed


@pytest.mark.parametrize("of_image", [False, True])
def test_only_an_image_that_was_seen_to_run_is_proven(at_desk: AtDesk, of_image: bool) -> None:
    """Another build under the target's tag is noted as what it is."""

    async def test(desk: Desk) -> None:
        image = desk.fetched.image
        outcome = replace(DONE, found=RUNS, of_image=of_image)
        desk.memory.succeeded(outcome, image, TARGET.key)
        noted = desk.journal.get(SlotRecord, mac=MAC, slot="ota_0")
        assert noted is not None
        assert noted.md5 == (image.md5 if of_image else "1" * 32)
        proven = desk.journal.get(FirmwareRecord, sha256=image.sha256)
        assert (proven is not None) is of_image

    at_desk(test)


def test_what_runs_stays_confirmed_until_otadata_is_switched(at_desk: AtDesk) -> None:
    """An attempt that is cancelled or fails before that has changed nothing of it."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        hooks = hooks_of(desk, board)
        desk.journal.update_board(MAC, confirmed=True, slot="ota_0")
        hooks.identified(MAC)
        hooks.inspected(RUNS)
        hooks.planned(WRITE)
        hooks.phase("writing")
        assert (confirmed(desk), board.shown.confirmed) == (True, True)
        hooks.phase("switching")
        assert (confirmed(desk), board.shown.confirmed) == (None, None)

    at_desk(test)


SPARE = Partition("ota_1", 0, 0x11, 0x110000, 0x100000)


def app_in(slot: Partition, project: str) -> App:
    """What a slot holds."""
    data = build_app(project, "1.0", size_bytes=4096)
    return App(slot, data[:512], parse_app_image(data).descriptor)


MOTOR = replace(RUNS, apps=(app_in(SLOT, "motor"), app_in(SPARE, "other")))
NEW = replace(WRITE, slot=SPARE)


def noted(desk: Desk) -> dict[str, str]:
    """What runs, as the next process shows it."""
    record = desk.journal.board(MAC)
    assert record is not None
    return {k: v for k, v in desk.memory.running(record).items() if k != "app_version"}


@pytest.mark.parametrize(
    ("outcome", "by", "runs"),
    [
        (Outcome("up_to_date", NEW, slot=SPARE, confirmed=True, of_image=True), "", "new ota_1"),
        (Outcome("up_to_date", NEW, slot=SPARE, confirmed=False, of_image=True), "", "new ota_1"),
        # Of an update whose firmware is gone by now: what is in the slot speaks.
        (Outcome("up_to_date", slot=SPARE, confirmed=True), "", "other ota_1"),
        (Outcome("up_to_date", slot=SLOT), "", "motor ota_0"),
        (Outcome("rolled_back", NEW, slot=SLOT, error=OtaError("boot-failed")), "", "motor ota_0"),
        (Outcome("failed", NEW, slot=SLOT, error=OtaError("boot-failed")), "", "motor ota_0"),
        (Outcome("rolled_back", slot=SLOT, confirmed=True), "person", "motor ota_0"),
        (Outcome("rolled_back", slot=SLOT, confirmed=True), "group", "motor ota_0"),
        (Outcome("rolled_back", slot=SPARE, confirmed=True), "person", "other ota_1"),
        # Of an unjudged start the slot is not noted: the next look watches it.
        (Outcome("unjudged", NEW, slot=SPARE, error=OtaError("brown-out")), "", "new "),
        (Outcome("unjudged", NEW, slot=SPARE, error=OtaError("no-reset")), "", " "),
    ],
)
def test_whatever_changes_what_runs_changes_what_the_journal_says(
    at_desk: AtDesk, outcome: Outcome, by: Any, runs: str
) -> None:
    """From the switch on it says nothing, and at the end what the slot holds that runs."""

    async def test(desk: Desk) -> None:
        data = build_app("new", "2", size_bytes=4096)
        image = Image(data, "0" * 64, "0" * 32, parse_app_image(data))
        hooks = hooks_of(desk, board := desk.board())
        hooks.identified(MAC)
        hooks.inspected(MOTOR)
        hooks.planned(NEW)
        assert noted(desk) == {"project": "motor", "slot": "ota_0"}
        hooks.phase("rolling_back" if by else "switching")
        assert noted(desk) == {}
        assert by or board.shown.running == {}
        ended, memory = replace(outcome, found=MOTOR, version="1"), desk.memory
        if outcome.end == "up_to_date":
            memory.succeeded(ended, image, TARGET.key)
        elif outcome.end == "unjudged":
            memory.unjudged(ended, image, TARGET.key)
        else:
            memory.rolled_back(ended, TARGET.key, by=by or "itself")
        said = noted(desk)
        assert f"{said.get('project', '')} {said.get('slot', '')}" == runs

    at_desk(test)


def test_a_board_that_went_back_by_itself_has_no_slot_that_is_known(at_desk: AtDesk) -> None:
    """It was only read since: what runs is not in the slot that it was last brought to."""

    async def test(desk: Desk) -> None:
        desk.memory.runs(
            MAC, "ota_1", app_in(SPARE, "new"), version="2", size_bytes=1, md5="2" * 32
        )
        desk.journal.update_board(MAC, slot="ota_1")
        hooks = hooks_of(desk, desk.board())
        hooks.identified(MAC)
        hooks.inspected(MOTOR)
        assert noted(desk) == {"project": "motor"}
        hooks.inspected(replace(MOTOR, running=Running(None, "none")))
        assert noted(desk) == {}

    at_desk(test)


def test_a_flash_that_was_begun_leaves_nothing_known(at_desk: AtDesk) -> None:
    """From its first write on, for the next process too: nothing is up to date by the journal. That
    it was this service itself is known, so that what it sees from then on counts."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        hooks = hooks_of(desk, board)
        hooks.identified(MAC)
        hooks.inspected(MOTOR)
        mark_rewritten(MAC)
        FlashHooks(hooks).phase("writing")
        assert board.shown.rewritten == rewrite_mark(MAC) is not None
        record = desk.journal.board(MAC)
        assert record is not None
        assert (record.version, record.version_read_at, noted(desk)) == (None, None, {})
        assert desk.memory.facts(MAC, TARGET) == BoardFacts()

    at_desk(test)


def test_the_next_process_shows_who_is_held(at_desk: AtDesk) -> None:
    """Also where its start reads no board."""

    async def test(desk: Desk) -> None:
        back = replace(DONE, end="rolled_back", version="1")
        desk.memory.rolled_back(back, TARGET.key, by="person")
        board, record = desk.board(), desk.journal.board(MAC)
        assert record is not None
        board.recall(desk.memory, record)
        await asyncio.sleep(0.1)
        assert board.shown.state == "rolled_back"
        assert board.shown.error is not None
        assert board.shown.error.code == "held"
        assert "rolled back by a person" in board.shown.error.message

    at_desk(test)


@pytest.mark.parametrize(("found", "action", "refused"), [
    (MOTOR, "write", False), (RUNS, "write", True), (RUNS, "none", False),
    (replace(MOTOR, running=Running(SPARE, "verified")), "record", True),
])  # fmt: skip
def test_an_image_for_what_runs_is_for_what_was_read(
    at_desk: AtDesk, found: Inspection, action: Any, refused: bool
) -> None:
    """What a manifest without `boards` gives by the journal is held against the board."""

    async def test(desk: Desk) -> None:
        order = desk.order(runs="motor")
        hooks = SessionHooks(desk, desk.board().shown, order, lambda fact: None)
        hooks.identified(MAC)
        hooks.inspected(found)
        with pytest.raises(OtaError, match="motor") if refused else nullcontext():
            hooks.planned(replace(NEW, action=action))

    at_desk(test)


def test_another_updater_s_firmware_is_not_confirmed(at_desk: AtDesk) -> None:
    """Whatever was seen of the one before."""

    async def test(desk: Desk) -> None:
        desk.journal.end_attempt(MAC, TARGET.key, succeeded=True)
        desk.journal.update_board(MAC, confirmed=True)
        assert desk.memory.duel(MAC, TARGET.key, "9", "2") == 1
        assert confirmed(desk) is None

    at_desk(test)


@pytest.mark.parametrize("known", [None, True, False])
def test_another_board_at_the_port_is_not_confirmed_by_the_one_before(
    at_desk: AtDesk, known: bool | None
) -> None:
    """It shows what the journal has of it."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        board.shown.mac, board.shown.confirmed = "24:0a:c4:00:00:99", True
        desk.journal.update_board(MAC, confirmed=known)
        hooks_of(desk, board).identified(MAC)
        assert (board.shown.mac, board.shown.confirmed) == (MAC, known)
        assert bool(board.shown.notice) == (known is False)
        board._sight.place(Place("a", "here", PORT, mac="24:0a:c4:00:00:99"))
        assert board.shown.confirmed is None

    at_desk(test)


def test_a_version_that_nobody_knows_is_none(at_desk: AtDesk) -> None:
    """The host keeps it, and what runs is new to it: a way back takes the descriptor's."""

    async def test(desk: Desk) -> None:
        hooks = hooks_of(desk, desk.board())
        hooks.identified(MAC)
        hooks.inspected(replace(RUNS, nvs=None, on_host=True, version=""))
        hooks.planned(WRITE)
        assert desk.memory.facts(MAC, TARGET).slots["ota_0"].version is None

    at_desk(test)


def test_a_target_is_reached_where_it_was_and_nothing_failed_since(at_desk: AtDesk) -> None:
    """That a board never met it is no success; nor is it one any more behind another target."""

    async def test(desk: Desk) -> None:
        def reached() -> bool:
            return desk.memory.facts(MAC, TARGET).reached

        assert not reached()
        desk.journal.end_attempt(MAC, TARGET.key, succeeded=True)
        assert reached()
        desk.journal.end_attempt(MAC, OTHER.key, succeeded=True)
        assert not reached()
        desk.journal.end_attempt(MAC, TARGET.key, succeeded=True)
        desk.journal.end_attempt(MAC, TARGET.key, succeeded=False, error=OtaError("boot-failed"))
        assert not reached()

    at_desk(test)


# --- settings and targets that change while an update waits


def test_an_update_that_paused_goes_on_by_the_settings_of_now(at_desk: AtDesk) -> None:
    """A slower line, and a longer start, are what a person changes because it failed."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        desk.script = ["no-answer", DONE]
        order = desk.order()
        board.order(order)
        await desk.until(lambda: board.state == "pausing")
        desk.settings = replace(desk.settings, baud=115_200, boot_timeout_s=77.0)
        assert (await order.answer).end == "done"
        job = desk.attempts[-1]._job
        assert isinstance(job, Job)
        assert (job.baud, job.boot.timeout_s) == (115_200, 77.0)

    at_desk(test)


async def confirming_for_another(desk: Desk) -> tuple[Board, asyncio.Future[Answer]]:
    """A board that is left alone for the target before, and the answer to its update to ours."""
    board = desk.board()
    answer = await in_wait(desk, board, "confirming")
    assert board._job is not None
    assert board._job.confirm is not None
    board._job = replace(board._job, confirm=replace(board._job.confirm, target=OTHER.key))
    return board, answer


def test_a_cancel_while_the_target_before_is_ended_is_a_cancel(at_desk: AtDesk) -> None:
    """Nothing of ours was done."""

    async def test(desk: Desk) -> None:
        board, answer = await confirming_for_another(desk)
        end: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        desk.script = [end]
        await desk.until(lambda: len(desk.begun) == 2)
        board.tell("cancel")
        await board.heard()
        end.set_result(DONE)
        answered = await answer
        assert answered.end == "cancelled"
        assert answered.error is not None
        assert answered.error.code == "cancelled"

    at_desk(test)


def test_the_failure_of_the_target_before_says_nothing_of_ours(at_desk: AtDesk) -> None:
    """Others may go on with it."""

    async def test(desk: Desk) -> None:
        ended: list[str | None] = []
        end_turn = desk.turns.ended

        def noted(board: Board, key: str, verdict: Verdict | None) -> None:
            ended.append(verdict)
            end_turn(board, key, verdict)

        desk.turns.ended = noted  # type: ignore[assignment,method-assign]
        _, answer = await confirming_for_another(desk)
        error = OtaError("boot-failed")
        desk.script = [replace(DONE, end="failed", error=error, confirmed=None, of_image=True)]
        assert (await answer).end == "error"
        desk.script = [error]
        _, answer = await confirming_for_another(desk)
        desk.script = [error]
        assert (await answer).end == "error"
        assert ended == ["neutral", "neutral"]
        desk.script = [replace(DONE, end="failed", error=error, confirmed=None, of_image=True)]
        await desk.give(desk.board(), desk.order())
        assert ended[-1] == "bad"

    at_desk(test)


BROUGHT = Brought("ota_1", 10, "0" * 32, "2", "1")


@pytest.mark.parametrize("waits", [True, False])
def test_a_member_that_was_not_started_is_activated_wherever_its_file_was(
    at_desk: AtDesk, waits: bool
) -> None:
    """A process ended between the note of its switch and its start. What waits on it is the file by
    its digest and version, which was staged from another address."""

    async def test(desk: Desk) -> None:
        image = desk.fetched.image
        target = Target("http://127.0.0.1:9/here.bin", TARGET.version, sha256=image.sha256)
        desk.memory.stage(MAC, "ota_1", image, replace(target, url="http://127.0.0.1:9/there.bin"))
        desk.memory.brings(MAC, target.key, BROUGHT)
        if not waits:
            desk.memory.activated(MAC, "ota_1")
        member = Member("a", "a", None, desk.order(target=target), mac=MAC)
        asked = Group(SimpleNamespace(engine=desk), "g", [member], ["a"])._how(member)  # type: ignore[arg-type]
        assert await asked == ("activate" if waits else "update")

    at_desk(test)


async def updated(desk: Desk, board: Board) -> None:
    """It runs the target, and the journal knows what was brought."""
    desk.script = [DONE]
    await desk.give(board, desk.order())
    board.shown.mac = MAC
    desk.memory.brings(MAC, TARGET.key, BROUGHT)


def test_a_way_back_is_not_given_up_and_holds_nothing(at_desk: AtDesk) -> None:
    """It waits for the sensor, comes again behind a lost link, and no cancel ends it; afterwards
    the board is outdated, and may be updated again."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        await updated(desk, board)
        old = Outcome("rolled_back", found=FOUND, version="1", slot=SLOT, confirmed=True)
        desk.script, desk.allowed = ["never begun", "link-lost", old], False
        order = desk.order("back")
        board.order(order)
        await desk.until(lambda: board.state == "owing")
        assert board.shown.error is not None
        assert board.shown.error.code == "not-allowed-now"
        board.tell("cancel")
        board.tell("stopped", value=OtaError("stopped"))
        read = await desk.give(board, desk.order("version"), within_s=1)
        assert read.reply["version"] == "2"
        desk.script, desk.allowed = ["link-lost", old], True
        answer = await order.answer
        assert (answer.end, answer.reply) == ("done", {"slot": "ota_0", "version": "1"})
        job = desk.attempts[-1]._job
        assert isinstance(job, Job)
        assert job.back_of == BROUGHT
        assert job.baud < desk.settings.baud
        assert (board.shown.state, board.shown.version) == ("outdated", "1")
        assert board.free
        assert not board.shown.error
        assert desk.memory.brought(MAC, TARGET.key) is None
        assert desk.memory.facts(MAC, TARGET).reached is False
        desk.script = [DONE]
        assert (await desk.give(board, desk.order())).end == "done"

    at_desk(test)


@pytest.mark.parametrize("state", ["confirming", "pausing", "updating"])
def test_a_way_back_makes_an_update_void(at_desk: AtDesk, state: str) -> None:
    """An app that could confirm itself is not waited for: its group goes back."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        board.shown.mac = MAC
        desk.memory.brings(MAC, TARGET.key, BROUGHT)
        session: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        first = {"confirming": WAITS, "pausing": OtaError("link-lost"), "updating": session}[state]
        old = Outcome("rolled_back", found=FOUND, version="1", slot=SLOT, confirmed=True)
        desk.script = [first, old]
        update = desk.order()
        board.order(update)
        await desk.until(lambda: board.state == state and desk.begun)
        answer = await desk.give(board, desk.order("back"))
        assert (answer.end, (await update.answer).end) == ("done", "cancelled")
        assert desk.begun == ["update", "back"]
        assert board.shown.state == "outdated"

    at_desk(test)


def test_a_way_back_ends_with_the_process_or_where_nothing_is_known(at_desk: AtDesk) -> None:
    """Each has its answer; the journal keeps what is owed."""

    async def test(desk: Desk) -> None:
        board = desk.board()
        await updated(desk, board)
        other = desk.order("back", target=OTHER)
        assert (await desk.give(board, other)).reply["error"]["code"] == "changed-elsewhere"
        desk.script, desk.allowed = ["never begun"], False
        order = desk.order("back")
        board.order(order)
        await desk.until(lambda: board.state == "owing")
        board.tell("end")
        assert (await order.answer).end == "error"
        assert board.state == "rest"
        assert desk.memory.brought(MAC, TARGET.key) == BROUGHT

    at_desk(test)


IMAGE_SLOT = Partition("ota_1", 0, 0x11, 0x110000, 0x100000)
STAGED = Outcome(
    "staged", plan=replace(WRITE, slot=IMAGE_SLOT, to_version="1"), found=FOUND, version="1",
    slot=SLOT,
)  # fmt: skip
HERE = Place("a", "here", PORT, mac=MAC)


def test_a_stage_leaves_the_board_what_it_was(at_desk: AtDesk) -> None:
    """It is outdated still, nothing counts as evidence, and the journal has what waits."""

    async def test(desk: Desk) -> None:
        desk.script = ["link-lost", STAGED]
        board, order = desk.board(), desk.order("stage", place=HERE)
        answer = await desk.give(board, order)
        assert (answer.end, board.shown.state, board.shown.version) == ("done", "outdated", "1")
        waits = desk.memory.staged(MAC, TARGET)
        assert waits is not None
        assert board.shown.staged == waits
        assert (waits.slot, waits.version, waits.stale) == ("ota_1", "2", False)
        since, desk.script = waits.since, [STAGED]
        await desk.give(board, desk.order("stage", place=HERE))
        assert board.shown.staged == waits
        assert board.shown.staged.since == since
        stale = desk.memory.staged(MAC, OTHER)
        assert stale is not None
        assert stale.stale
        for url, version, sha256, is_stale in (  # by its digest, wherever it lies now
            ("file:///a/desk.bin", waits.version, waits.sha256, False),
            ("file:///a/desk.bin", "3", waits.sha256, True),
            ("file:///a/desk.bin", waits.version, "ab" * 32, True),
            ("file:///a/desk.bin", waits.version, None, True),
        ):
            found = desk.memory.staged(MAC, Target(url, version, sha256))
            assert found is not None
            assert found.stale is is_stale, (url, version, sha256)
        record = desk.journal.attempt(MAC, TARGET.key)
        assert (record.failed, record.updated_at) == (0, None)

    at_desk(test)


@pytest.mark.parametrize(("changes", "sessions"), [
    ({}, 1), ({"whole": True}, 2), ({"target": OTHER}, 2),
    ({"place": Place("a", "here", PORT, PortInfo(PORT, appeared_at=utc_now()), MAC)}, 2),
    ({"place": Place("a", "here", PORT, PortInfo(PORT), MAC)}, 2),
])  # fmt: skip
def test_a_stage_each_night_restarts_no_board_for_nothing(
    at_desk: AtDesk, changes: dict[str, Any], sessions: int
) -> None:
    """This very image waits there, and its port was there ever since the board was seen."""

    async def test(desk: Desk) -> None:
        desk.script = [STAGED, STAGED]
        place = Place(
            "a", "here", PORT, PortInfo(PORT, appeared_at=datetime(2020, 1, 1, tzinfo=UTC)), MAC
        )
        board = desk.board()
        assert (await desk.give(board, desk.order("stage", place=place))).end == "done"
        if "place" not in changes or changes["place"].info.appeared_at is None:
            desk.journal.update_board(MAC, seen_at=utc_now())
        again = desk.order("stage", **{"place": place, **changes})
        assert (await desk.give(board, again)).end == "done"
        assert len(desk.begun) == sessions
        assert again.report["staged"]["slot"] == "ota_1"
        assert board.free

    at_desk(test)


@pytest.mark.parametrize(("purpose", "trigger", "spared"), [
    ("stage", "command", True), ("update", "command", False), ("activate", "command", False),
    ("update", "configured", True),
])  # fmt: skip
def test_a_stage_opens_no_port_of_a_board_that_is_up_to_date(
    at_desk: AtDesk, purpose: Purpose, trigger: Trigger, spared: bool
) -> None:
    """As far as was seen since its port is there; what else a person asks for reads the board."""

    async def test(desk: Desk) -> None:
        board, long_ago = desk.board(), datetime(2020, 1, 1, tzinfo=UTC)
        desk.journal.update_board(MAC, version="2", version_read_at=utc_now(), seen_at=utc_now())
        place = Place("a", "here", PORT, PortInfo(PORT, appeared_at=long_ago), MAC)
        engine: Any = SimpleNamespace(memory=desk.memory)
        run = Run(engine, trigger, purpose=purpose)
        ((_, why_not),) = run._recall({board: place})
        assert why_not == (policy.Spared("up_to_date") if spared else None)

    at_desk(test)


def test_what_was_overwritten_is_said_however_often_it_takes(at_desk: AtDesk) -> None:
    """A second attempt finds the slot without it."""

    async def test(desk: Desk) -> None:
        sight, order = desk.board()._sight, desk.order("stage")
        sight.at_work = order
        made = replace(WRITE, replaces="1.2.2")
        sight.planned(made)
        assert "replaces" not in order.report
        for plan in (made, WRITE):
            sight.planned(plan)
            sight.phase("writing", 0.0)
            sight.progress(0, 10)
            assert order.report["replaces"] == "1.2.2"

    at_desk(test)


@pytest.mark.parametrize("purpose", ["stage", "version", "verify"])
def test_what_a_board_cannot_have_while_its_app_confirms_itself_is_said_once(
    at_desk: AtDesk, purpose: Purpose
) -> None:
    """Also where nothing of this process waits for it: the answer comes, and is not tried again."""

    async def test(desk: Desk) -> None:
        desk.script = ["awaiting-confirmation"]
        answer = await desk.give(desk.board(), desk.order(purpose, place=HERE))
        assert answer.error is not None
        assert (answer.error.code, len(desk.begun)) == ("awaiting-confirmation", 1)

    at_desk(test)


def test_an_activation_needs_no_firmware(at_desk: AtDesk) -> None:
    """Nothing is fetched; and where nothing fitting waits, no port is opened."""

    async def test(desk: Desk) -> None:
        desk.script = [STAGED]
        board = desk.board()
        answer = await desk.give(board, desk.order("activate", place=HERE))
        assert answer.error is not None
        assert (answer.error.code, board.shown.error, desk.begun) == (
            "not-staged",
            answer.error,
            [],
        )
        await desk.give(board, desk.order("stage", place=HERE))
        answer = await desk.give(board, desk.order("activate", place=HERE, target=OTHER))
        assert answer.error is not None
        assert (answer.error.code, desk.begun) == ("stage-stale", ["stage"])

        desk.firmwares.at_once, began = OtaError("download-failed"), len(desk.firmwares.waiting)
        switch = replace(WRITE, action="switch", slot=IMAGE_SLOT, of_image=True)
        desk.script = ["link-lost", replace(DONE, plan=switch, slot=IMAGE_SLOT, of_image=True)]
        answer = await desk.give(board, desk.order("activate", place=HERE))
        assert (answer.end, board.shown.state) == ("done", "up_to_date")
        assert len(desk.firmwares.waiting) == began
        assert board.shown.staged is None
        assert desk.memory.staged(MAC, TARGET) is None
        facts = desk.memory.facts(MAC, TARGET)
        assert facts.slots["ota_1"].md5 == desk.fetched.image.md5
        assert board.shown.running["slot"] == "ota_1"
        began, again = len(desk.begun), desk.order("activate", place=HERE)
        answer = await desk.give(board, again)
        assert (answer.end, answer.error, len(desk.begun)) == ("done", None, began)
        assert again.report["outcome"] == "up_to_date"  # there is nothing to do
        assert (again.report["action"], "error" in again.report) == ("none", False)

    at_desk(test)


@pytest.mark.parametrize("hindered", [False, True])
def test_an_update_makes_a_stage_that_waits_an_update(at_desk: AtDesk, hindered: bool) -> None:
    """Both are answered when it ends; one that a session has is followed by it."""

    async def test(desk: Desk) -> None:
        desk.script, desk.allowed = [DONE], not hindered
        if not hindered:
            desk.firmwares.at_once = None
        board, stage = desk.board(), desk.order("stage")
        board.order(stage)
        await desk.until(lambda: board.state == ("held" if hindered else "fetching"))
        begun = len(desk.begun)
        update = desk.order(override=("not-allowed-now",))
        board.order(update)
        if not hindered:
            await desk.until(lambda: desk.firmwares.waiting)
            desk.firmwares.waiting[0](desk.fetched)
        else:
            desk.script = [DONE]
        assert [(await order.answer).end for order in (stage, update)] == ["done", "done"]
        assert desk.begun[begun:] == ["update"]

        session = asyncio.get_running_loop().create_future()
        desk.script, desk.allowed, desk.firmwares.at_once = [session, DONE], True, desk.fetched
        stage, update = desk.order("stage"), desk.order()
        board.order(stage)
        await desk.until(lambda: desk.begun[-1] == "stage")
        board.order(update)
        await desk.until(lambda: board._line)
        session.set_result(STAGED)
        assert [(await order.answer).end for order in (stage, update)] == ["done", "done"]
        assert desk.begun[-2:] == ["stage", "update"]

    at_desk(test)


def test_a_member_of_a_group_is_the_board_that_it_was(at_desk: AtDesk) -> None:
    """A twin in its place, holding the same firmware, is not taken back for it; for what is no
    part of a group, whoever is found there is asked."""

    async def test(desk: Desk) -> None:
        board = Board("a", None, TARGET, desk)
        for whole in (True, False):
            order = desk.order("back", place=replace(HERE, mac="24:0a:c4:00:00:02"), whole=whole)
            hooks = SessionHooks(desk, board.shown, order, lambda fact: fact(board._sight))
            if whole:
                with pytest.raises(OtaError, match="of the group"):
                    hooks.identified(MAC)
            else:
                hooks.identified(MAC)

    at_desk(test)


# --- what an operator reads


@pytest.mark.parametrize(
    ("code", "kept"), [("boot-failed", True), ("check-failed", True), ("brown-out", False)]
)
def test_what_failed_on_a_board_is_known_as_long_as_it_is_in_its_slot(
    at_desk: AtDesk, code: str, kept: bool
) -> None:
    """So that no rollback starts it; power that failed says nothing of it. What is written there
    next makes that void."""

    async def test(desk: Desk) -> None:
        desk.memory.brings(MAC, TARGET.key, Brought("ota_1", 500, "2" * 32, "2", "1"))
        back = replace(DONE, end="rolled_back", version="1", error=OtaError(code))
        endings._noted(desk.memory, TARGET.key, back, None)
        hooks = hooks_of(desk, desk.board())
        failed = hooks.identified(MAC).failed
        assert failed == ({"ota_1": SlotFact(500, "2" * 32, "2")} if kept else {})
        assert "ota_1" not in hooks.facts.slots
        desk.memory.overwrites(MAC, "ota_1")
        assert hooks.identified(MAC).failed == {}

    at_desk(test)


@pytest.mark.parametrize(
    ("stored", "action", "of_image", "told"),
    [
        *[("1", "record", True, True), ("1", "record", False, False)],
        *[("0", "record", True, False), ("1", "write", True, False)],
    ],
)
def test_an_old_image_under_a_new_version_is_told(
    at_desk: AtDesk, stored: str, action: Any, of_image: bool, told: bool
) -> None:
    """Where the board was seen to run it under the tag that is stored: not where an interruption
    kept the tag from being stored."""

    async def test(desk: Desk) -> None:
        seen: list[Target] = []
        desk.firmwares.retagged = seen.append
        hooks = hooks_of(desk, desk.board())
        desk.memory.runs(MAC, "ota_0", None, version=stored, size_bytes=1000, md5="1" * 32)
        hooks.identified(MAC)
        hooks.found = RUNS
        plan = replace(WRITE, action=action, of_image=of_image)
        hooks.planned(plan)
        assert seen == ([TARGET] if told else [])

    at_desk(test)


def test_a_file_that_boards_run_already_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, and for the status as long as the target stands."""

    async def proven(_: str) -> bool:
        return True

    log = logging.LoggerAdapter(logging.getLogger("ota_service.fleet"))
    firmwares = Firmwares(Settings("OTA", TARGET, cache_dir=tmp_path), log, proven)
    firmwares.about[TARGET.key] = {"app_version": "1.2.0"}
    firmwares.retagged(TARGET)
    firmwares.retagged(TARGET)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == firmwares.same[TARGET.key]
    assert record.getMessage().startswith(
        'The image at http://127.0.0.1:9/x.bin calls itself "1.2.0" and is what boards run '
        'already: only the version "2" is stored.'
    )
    firmwares.keep(set())
    assert firmwares.same == {}


@pytest.mark.parametrize(
    ("purpose", "action", "lines"),
    [
        ("update", "none", []),
        ("version", None, []),
        ("update", "write", ["a: gets the image (version differs)", "a: booting"]),
        ("update", "record", ["a: gets the version alone (version differs)", "a: booting"]),
        ("rollback", None, ["a: booting"]),
    ],
)
def test_only_what_changes_a_board_is_a_line(
    at_desk: AtDesk, caplog: pytest.LogCaptureFixture,
    purpose: Purpose, action: Any, lines: list[str],
) -> None:  # fmt: skip
    """In words of people; a look at boards that have what they are to have is none."""
    caplog.set_level(logging.INFO, "ota_service.fleet")

    async def test(desk: Desk) -> None:
        sight = desk.board()._sight
        sight.at_work = desk.order(purpose)
        if action is not None:
            sight.planned(replace(WRITE, action=action))
        for phase in ("connecting", "booting", "rolling_back", None):
            sight.phase(phase, 0.0)

    at_desk(test)
    assert [record.getMessage() for record in caplog.records] == lines


def test_what_comes_of_a_duel_is_said_each_time(at_desk: AtDesk) -> None:
    """How often it happened, and what becomes of the board at the last time."""

    async def test(desk: Desk) -> None:
        told = []
        desk.memory.succeeded(replace(DONE, found=RUNS), None, TARGET.key)
        for last in (False, False, True):
            board = desk.board()
            hooks = hooks_of(desk, board)
            hooks.identified(MAC)
            with pytest.raises(OtaError) if last else contextlib.nullcontext():
                hooks.inspected(replace(RUNS, version="9"))
            assert board.shown.error is not None
            told.append(board.shown.error.message.partition("(")[2])
        assert told == [
            "1 of 3 times; then the board is left as it is).",
            "2 of 3 times; then the board is left as it is).",
            "3 of 3 times; the board is left as it is).",
        ]

    at_desk(test)
