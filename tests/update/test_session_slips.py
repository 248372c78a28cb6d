# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions in which one thing goes wrong, each in memory: what the board has afterwards."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from esp32_sim.bootmodel import ABORTED, VALID, Select
from ota_service.errors import OtaError
from ota_service.formats.flashops import FlashOp, Program
from ota_service.update.carry_out import plan_rollback
from ota_service.update.facts import BoardFacts, SlotFact
from ota_service.update.plan import plan
from ota_service.update.session import Awaited, Brought, Job
from tests.prove.board import BOOT, Link, MemorySession, Notes, quiet
from tests.prove.cells import Cells
from tests.prove.flows import Case
from tests.prove.images import NEW, OLD, OTHER, PANICS
from tests.prove.judge import running, stored
from tests.prove.starts import SECTOR, Start

CASE = Case("update", Start("micro-rdk", "first", False, "small"))
SLOT = CASE.start.plan.find("ota_1").offset
JOB = Job("board", version=NEW.tag, image=NEW.image, boot=BOOT)


class OddFlash(Link):
    """A board in memory whose flash does something else now and then.

    ignores: the label of the partition in which it takes no program. drifts: changes a byte of
    the slot's body with the program of the slot's header.
    """

    def __init__(self, case: Case = CASE, *, ignores: str = "", drifts: bool = False) -> None:
        super().__init__(Cells(case.flash()), case.start.bootloader)
        self.ignores = ignores
        self.drifts = drifts

    def _do(self, op: FlashOp) -> None:
        if isinstance(op, Program) and self.ignores:
            at = CASE.start.plan.find(self.ignores)
            if at.offset <= op.offset < at.end:
                return
        super()._do(op)
        if self.drifts and isinstance(op, Program) and op.offset == SLOT + 1:
            super()._do(Program(SLOT + 0x1234, b"\0"))

    def shows(self) -> tuple[str, str | None]:
        """What it boots, and the tag stored."""
        firmware, words = running(self.cells, CASE.start.bootloader)
        return firmware.name if firmware is not None else words, stored(self.cells, CASE.start.plan)


def fails(board: Link, notes: Notes | None = None) -> str:
    """The code with which an update of it ends."""
    with quiet(), pytest.raises(OtaError) as caught:
        board.session(JOB, notes or Notes(CASE.facts()))
    return caught.value.code


def test_a_flash_that_takes_no_program_is_found_before_the_first_erase() -> None:
    """Whatever stands in the spare slot is whole then."""
    board = OddFlash(ignores="ota_1")
    assert fails(board) == "flash-protected"
    assert not [op for op in board.ops if op.who == "loader"]


@pytest.mark.parametrize("at", [0x1234, len(NEW.data) - 1])
def test_a_body_that_was_changed_on_its_way_gets_no_header(at: int) -> None:
    """The slot never looks like an image, and nothing is switched."""

    class Changed(OddFlash):
        def write_stream(self, offset: int, stream: Any, progress: Any) -> None:
            super().write_stream(offset, stream, progress)
            self.cells[offset + at] = self.cells[offset + at] ^ 1

    board = Changed()
    assert fails(board) == "verify-failed"
    assert board.cells.read(SLOT, 256) == b"\xff" * 256
    assert board.shows() == ("old", OLD.tag)


def test_a_slot_is_read_back_whole_before_it_is_switched_to() -> None:
    """Also behind the programs that complete it."""
    board = OddFlash(drifts=True)
    assert fails(board) == "verify-failed"
    assert board.shows() == ("old", OLD.tag)


def test_a_switch_is_taken_back_where_the_version_cannot_be_stored() -> None:
    """The old firmware with its own tag, and not the new one with the old tag."""
    board = OddFlash(ignores="nvs")
    assert fails(board) == "flash-protected"
    assert board.shows() == ("old", OLD.tag)


class Cancels(Notes):
    """Somebody cancels when a phase begins."""

    def __init__(self, at: str) -> None:
        super().__init__(CASE.facts())
        self.at = at
        self.seen = False

    def phase(self, name: str) -> None:
        super().phase(name)
        self.seen = self.seen or name == self.at

    def cancelled(self) -> bool:
        """From that phase on."""
        return self.seen


def test_a_run_that_is_cancelled_while_it_writes_stops_at_once() -> None:
    """Before the next block; the board goes on with what it had."""
    board = OddFlash()
    assert fails(board, Cancels("writing")) == "cancelled"
    assert board.running
    assert board.shows() == ("old", OLD.tag)
    body = range(SLOT + SECTOR, SLOT + len(NEW.data))
    assert not [op for op in board.ops if isinstance(op.op, Program) and op.op.offset in body]


@pytest.mark.parametrize("at", ["switching", "recording", "booting"])
def test_nobody_cancels_behind_the_switch(at: str) -> None:
    """From there on it goes to its end: half of it would be neither the old nor the new."""
    board = OddFlash()
    with quiet():
        assert board.session(JOB, Cancels(at)).end == "up_to_date"
    assert board.shows() == ("new", NEW.tag)


def test_a_link_that_is_lost_in_the_middle_of_an_image_says_nothing_of_it() -> None:
    """Or the way back would be given up, and the image called damaged."""

    at = CASE.start.plan.find("ota_0").offset

    class Lost(OddFlash):
        lost = False

        def read(self, offset: int, size_bytes: int) -> bytes:
            if self.lost and offset == at and size_bytes > SECTOR:
                raise OtaError("link-lost")
            return super().read(offset, size_bytes)

        def md5(self, offset: int, size_bytes: int) -> str:
            return "" if self.lost else super().md5(offset, size_bytes)  # not known to run

    board = Lost()
    notes = Notes(CASE.facts())
    with quiet():
        board.session(JOB, notes)
    found = notes.found
    assert found is not None
    assert found.table is not None
    board.lost = True
    with pytest.raises(OtaError) as caught:
        plan_rollback(
            board, found, bad=found.table.ota_slots[1], fused=0, version_of=lambda _: OLD.tag
        )
    assert caught.value.code == "link-lost"


def test_what_a_person_went_back_to_stays_at_the_next_restart() -> None:
    """A bootloader with rollback has nobody to wait for: that firmware ran before."""
    case = Case("go-back", replace(Start("micro-rdk", "first", True, "small"), spare=OTHER))
    board = Link(Cells(case.flash()), case.start.bootloader)
    with quiet():
        outcome = board.session(Job("board", course="rollback", boot=BOOT), Notes(case.facts()))
        assert outcome.end == "rolled_back"
        for _ in range(3):
            board.restart()
            assert board.firmware is OTHER


@pytest.mark.parametrize("same", [True, False])
def test_nobody_goes_back_to_what_did_not_come_up_on_this_board(same: bool) -> None:
    """Nothing is changed, and it is said what is there; unless the slot holds another by now."""
    case = Case("go-back", replace(Start("micro-rdk", "first", True, "small"), spare=OTHER))
    board = Link(Cells(case.flash()), case.start.bootloader)
    md5 = hashlib.md5(OTHER.data, usedforsecurity=False).hexdigest() if same else "0" * 32
    failed = {"ota_1": SlotFact(len(OTHER.data), md5, "1.3.0")}
    notes, job = Notes(replace(case.facts(), failed=failed)), Job("board", course="rollback")
    with quiet():
        if not same:
            assert board.session(replace(job, boot=BOOT), notes).end == "rolled_back"
            return
        with pytest.raises(OtaError, match=r'ota_1 holds "1\.3\.0", which did') as caught:
            board.session(job, notes)
    assert caught.value.code == "boot-failed"
    assert "release" in caught.value.remedy
    assert not [op for op in board.ops if op.who == "loader"]


def test_of_three_slots_the_one_that_did_not_come_up_is_passed_over() -> None:
    """The next one that boots is gone back to, also where the bootloader would try the other."""
    case = Case("go-back", replace(Start("three-slots", "first", True, "small"), spare=OTHER))
    flash, slots = bytearray(case.flash()), ("ota_0", "ota_1", "ota_2")
    plan, third = case.start.plan, next(s for s in slots if s not in ("ota_0", case.spare))
    at = plan.find(third).offset
    flash[at : at + len(OTHER.data)] = OTHER.data
    md5 = hashlib.md5(OTHER.data, usedforsecurity=False).hexdigest()
    for failed in (case.spare, third):
        board = Link(Cells(bytes(flash)), case.start.bootloader)
        known = {failed: SlotFact(len(OTHER.data), md5, "1.3.0")}
        job = Job("board", course="rollback", boot=BOOT)
        with quiet():
            outcome = board.session(job, Notes(replace(case.facts(), failed=known)))
        assert (outcome.end, outcome.error) == ("rolled_back", None)
        assert outcome.slot is not None
        assert {outcome.slot.name, failed} == {case.spare, third}


def test_nvs_that_is_marked_read_only_is_not_written() -> None:
    """Its firmware could not write it either."""
    notes = Notes(CASE.facts())
    OddFlash().session(replace(JOB, course="look"), notes)
    assert notes.found is not None
    assert notes.found.store is not None
    found = replace(notes.found, store=replace(notes.found.store, flags=2))
    made = plan(found, version=NEW.tag, image=NEW.image.parsed, facts=BoardFacts())
    assert (made.action, made.code) == ("refuse", "nvs-missing")


def test_a_boards_secrets_are_known_before_its_log_is_read() -> None:
    """Its firmware may print them at its start."""
    board = OddFlash()
    session = MemorySession(board, JOB, Notes(CASE.facts()))
    with quiet():
        session.run()
    assert session.starts.redact("key: 0123456789abcdef") == "key: ***"
    assert session.starts.redact(OLD.tag) == OLD.tag


def test_where_a_board_has_secrets_that_nobody_can_read_its_app_s_lines_are_not_kept() -> None:
    """One NVS partition that cannot be parsed is enough."""
    session = MemorySession(OddFlash(), JOB, Notes(CASE.facts()))
    session.link.reconnect()
    look = session._inspect
    session._look()
    assert not session.starts.hides
    session._inspect = lambda: replace(look(), hidden_nvs=True)  # type: ignore[method-assign]
    session._look()
    assert session.starts.hides


def test_power_that_failed_before_an_app_had_confirmed_itself_is_no_failure_of_it() -> None:
    """The bootloader turned it down then, whatever it was worth."""
    case = Case("shy", Start("micro-rdk", "first", True, "small"))
    flash = bytearray(case.flash())
    at = case.start.plan.find("otadata").offset
    flash[at : at + 32] = Select.make(1, VALID).encode()
    flash[at + SECTOR : at + SECTOR + 32] = Select.make(2, ABORTED).encode()
    for power_failed, end, code in ((True, "unjudged", "brown-out"), (False, "rolled_back", "")):
        board = Link(Cells(bytes(flash)), case.start.bootloader)
        awaited = Awaited("ota_1", case.old_tag, power_failed=power_failed)
        with quiet():
            outcome = board.session(replace(case.job(), confirm=awaited), Notes(case.facts()))
        assert outcome.end == end
        assert outcome.error is not None
        assert outcome.error.code == (code or "boot-failed")
    # The target before was brought twice; what is gone back to is its firmware by no means.
    awaited = Awaited("ota_1", "2.0", version="2.0", target="before")
    board = Link(Cells(bytes(flash)), case.start.bootloader)
    with quiet():
        outcome = board.session(replace(case.job(), confirm=awaited), Notes(case.facts()))
    assert (outcome.end, outcome.version) == ("rolled_back", case.old_tag)


def brought(case: Case, **changes: Any) -> Job:
    """To take back what the case's update brought."""
    image = case.firmware.image
    of = Brought(
        case.spare, len(image.data), image.md5, changes.pop("version", NEW.tag), case.old_tag
    )
    return Job("board", back_of=replace(of, **changes), boot=BOOT)


@pytest.mark.parametrize("pending", [False, True])
def test_what_an_update_brought_is_taken_back(pending: bool) -> None:
    """Firmware and tag, also from an app that could confirm itself yet; as often as it takes."""
    flow = "pending" if pending else "update"
    case = Case(flow, Start("micro-rdk", "first", pending, "small"))
    board = OddFlash(case)
    with quiet():
        end = pending or board.session(case.job(), Notes(case.facts())).end
        assert end in (True, "up_to_date")
        for _ in range(2):
            outcome = board.session(brought(case), Notes(case.facts()))
            assert (outcome.end, outcome.error, outcome.version) == ("rolled_back", None, OLD.tag)
            assert board.shows() == ("old", OLD.tag)
            assert board.firmware is not None
            assert board.firmware.name == "old"
        words = {"code": "check-failed", "why": "the robot says no"}
        outcome = board.session(brought(case, **words), Notes(case.facts()))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.end) == ("check-failed", "rolled_back")
    assert outcome.error.message.startswith("the robot says no. The board went back to ota_0")


@pytest.mark.parametrize("changed", ["slot", "tag", "other"])
def test_what_was_changed_since_is_not_taken_back(changed: str) -> None:
    """Another firmware in the slot, another tag, or another firmware that runs beside it."""
    board = OddFlash()
    with quiet():
        board.session(JOB, Notes(CASE.facts()))
        job, facts = brought(CASE), CASE.facts()
        if changed == "slot":
            job = brought(CASE, md5="0" * 32)
        elif changed == "tag":
            job = brought(CASE, version="9")
        else:
            board.session(brought(CASE), Notes(facts))
            facts = BoardFacts()
        ops = len(board.ops)
        with pytest.raises(OtaError) as caught:
            board.session(job, Notes(facts))
    assert caught.value.code == "changed-elsewhere"
    assert len(board.ops) == ops
    assert board.running


def test_what_fails_on_the_way_back_of_a_person_is_no_new_firmware() -> None:
    """It is named by its slot."""
    case = Case("go-back", replace(Start("micro-rdk", "first", False, "small"), spare=PANICS))
    board = Link(Cells(case.flash()), case.start.bootloader)
    with quiet():
        outcome = board.session(Job("board", course="rollback", boot=BOOT), Notes(case.facts()))
    assert outcome.error is not None
    assert outcome.error.message.startswith("The firmware in ota_1 did not come up: ")
