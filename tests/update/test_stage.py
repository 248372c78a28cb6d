# SPDX-License-Identifier: GPL-3.0-or-later
"""Staging and activation, in memory: what a board boots at each step, and what is proven before."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from esp32_sim.bootmodel import NEW as STATE_NEW
from esp32_sim.bootmodel import PENDING_VERIFY, VALID, Select
from esp32_sim.nvsmodel import NvsError, NvsStore
from ota_service.errors import OtaError
from ota_service.link.sparse import digest
from ota_service.update.facts import BoardFacts, SlotFact, Staged
from ota_service.update.session import Job, Outcome
from tests.prove.board import BOOT, Link, Notes, quiet, staged, update
from tests.prove.cells import Cells
from tests.prove.flows import Case
from tests.prove.images import NEW, NEXT, OLD, OTHER, PANICS, Firmware
from tests.prove.judge import running, stored
from tests.prove.starts import SECTOR, Start

START = Start("micro-rdk", "first", False, "small")
CASE = Case("update", START)
SLOT = START.plan.find("ota_1").offset


class Desk:
    """One board in memory, and what is known of it."""

    def __init__(self, start: Start = START, facts: BoardFacts | None = None) -> None:
        self.case = Case("update", start)
        self.board = Link(Cells(self.case.flash()), start.bootloader)
        self.notes = Notes(self.case.facts() if facts is None else facts)

    def does(self, course: str, firmware: Firmware | None = NEW, tag: str = NEW.tag) -> Outcome:
        """One session."""
        image = firmware.image if firmware is not None else None
        job = Job("a", tag, image, course=course, boot=BOOT)  # type: ignore[arg-type]
        with quiet():
            return self.board.session(job, self.notes)

    def knows(self, waits: Staged | None) -> None:
        """What the journal has as staged."""
        self.notes.facts = replace(self.notes.facts, staged=waits)

    def shows(self) -> tuple[str, str | None]:
        """What it boots, and the tag stored."""
        firmware, words = running(self.board.cells, self.case.start.bootloader)
        name = firmware.name if firmware is not None else words
        return name, stored(self.board.cells, self.case.start.plan)

    @property
    def writes(self) -> int:
        """How many operations reached its flash."""
        return len([op for op in self.board.ops if op.who == "loader"])


def test_a_staged_board_keeps_its_firmware_until_its_activation() -> None:
    """The slot holds all of the image but its first byte; the activation needs no image."""
    desk = Desk()
    outcome = desk.does("stage")
    assert (outcome.end, outcome.error) == ("staged", None)
    assert outcome.plan is not None
    assert outcome.plan.slot is not None
    assert outcome.plan.slot.name == "ota_1"
    assert desk.shows() == ("old", OLD.tag)
    assert desk.board.cells.read(SLOT, len(NEW.data)) == b"\xff" + NEW.data[1:]
    assert desk.board.running

    desk.knows(staged(NEW, "ota_1"))
    before = desk.writes
    outcome = desk.does("activate", None)
    assert (outcome.end, outcome.of_image, outcome.confirmed) == ("up_to_date", True, True)
    assert desk.shows() == ("new", NEW.tag)
    phases = {op.phase for op in desk.board.ops[before:] if op.who == "loader"}
    assert phases == {"verifying", "switching", "recording"}


@pytest.mark.parametrize("facts", [CASE.facts(), BoardFacts()])
@pytest.mark.parametrize("first", [0xFF, 0xEB, 0xF9, 0xE9])
def test_an_update_finds_what_is_staged(first: int, facts: BoardFacts) -> None:
    """By its digest, also without a journal, and where power failed in the magic byte; and writes
    nothing of it again."""
    desk = Desk(facts=facts)
    desk.does("stage")
    desk.board.cells[SLOT] = first
    before = desk.writes
    assert update(desk.board, NEW, desk.notes).end == "up_to_date"
    assert desk.notes.plans[-1].action == "switch"
    slot = [o.op for o in desk.board.ops[before:] if o.who == "loader" and o.op.offset >= SLOT]
    assert len(slot) == (first != 0xE9)
    assert desk.shows() == ("new", NEW.tag)


@pytest.mark.parametrize("first", [0x00, 0x50])
def test_a_slot_whose_magic_byte_cannot_be_programmed_is_not_staged(first: int) -> None:
    """A slot that lost its image before it was erased, or anything else."""
    desk = Desk()
    desk.does("stage")
    desk.board.cells[SLOT] = first
    desk.knows(staged(NEW, "ota_1"))
    assert code(desk.does("activate", None)) == "not-staged"
    assert update(desk.board, NEW, desk.notes).end == "up_to_date"
    assert desk.notes.plans[-1].action == "write"


def code(outcome: Outcome) -> str | None:
    """Of the error that it ended with."""
    return outcome.error.code if outcome.error is not None else None


def test_staging_again_writes_nothing() -> None:
    """What is staged is found, with or without a journal."""
    desk = Desk()
    desk.does("stage")
    before = desk.writes
    outcome = desk.does("stage")
    assert outcome.end == "staged"
    assert outcome.plan is not None
    assert (outcome.plan.action, outcome.plan.slot is not None) == ("none", True)
    assert desk.writes == before
    assert desk.shows() == ("old", OLD.tag)


def test_what_another_updater_wrote_is_not_activated() -> None:
    """The board's own updater uses the same slot: its digest is another one."""
    desk = Desk()
    desk.does("stage")
    desk.knows(staged(NEW, "ota_1"))
    desk.does("stage", NEXT, NEXT.tag)
    outcome = desk.does("activate", None)
    assert code(outcome) == "not-staged"
    assert "something else has written it" in str(outcome.error)
    assert desk.shows() == ("old", OLD.tag)


@pytest.mark.parametrize(
    ("waits", "wanted"),
    [
        (None, "not-staged"),
        (staged(NEXT, "ota_1", stale=True), "stage-stale"),
        (staged(NEW, "ota_1"), "not-staged"),
    ],
)
def test_nothing_is_written_where_nothing_fitting_is_staged(
    waits: Staged | None, wanted: str
) -> None:
    """Nothing at all, of another target, or not any more."""
    desk = Desk()
    desk.knows(waits)
    assert code(desk.does("activate", None)) == wanted
    assert (desk.writes, desk.shows()) == (0, ("old", OLD.tag))


def test_a_board_that_runs_the_target_has_nothing_to_stage() -> None:
    """And nothing is overwritten for it."""
    desk = Desk()
    update(desk.board, NEW, desk.notes)
    before = desk.writes
    outcome = desk.does("stage")
    assert outcome.end == "staged"
    assert outcome.plan is not None
    assert outcome.plan.slot is None
    assert outcome.plan.reason.startswith("nothing to stage: up to date")
    assert desk.writes == before


def test_a_board_that_runs_the_image_under_another_tag_gets_the_tag_at_its_activation() -> None:
    """There is nothing to write, and the space for the tag was proven."""
    desk = Desk()
    outcome = desk.does("stage", OLD, "renamed")
    assert outcome.plan is not None
    assert outcome.plan.slot is not None
    assert (outcome.plan.action, outcome.plan.slot.name) == ("none", "ota_0")
    desk.knows(replace(staged(OLD, "ota_0"), version="renamed"))
    assert desk.does("activate", None, "renamed").end == "up_to_date"
    assert desk.shows() == ("old", "renamed")


def test_what_is_replaced_is_named() -> None:
    """By the journal where it is that firmware, else by its own descriptor; not what never ran."""
    desk = Desk(replace(START, spare=OTHER))
    slots = dict(desk.notes.facts.slots)
    known = SlotFact(len(OTHER.data), OTHER.image.md5, "rel-0", *about(OTHER))
    for facts, version in (
        (replace(desk.notes.facts, slots={**slots, "ota_1": known}), "rel-0"),
        (replace(desk.notes.facts, slots={**slots, "ota_1": replace(known, project="x")}), "0.9.0"),
        (desk.notes.facts, "0.9.0"),
    ):
        again = Desk(replace(START, spare=OTHER), facts)
        again.does("stage")
        assert again.notes.plans[-1].replaces == version
    again.does("stage", NEXT, NEXT.tag)
    assert again.notes.plans[-1].replaces == ""


def about(firmware: Firmware) -> tuple[str, str]:
    """Its project and version."""
    descriptor = firmware.image.parsed.descriptor
    return descriptor.project, descriptor.version


def test_a_rollback_of_a_staged_board_says_what_became_of_the_old_firmware() -> None:
    """Nothing is changed, and what is staged stays."""
    desk = Desk(replace(START, spare=OTHER))
    desk.does("stage")
    with pytest.raises(OtaError, match="staging has overwritten the firmware that was there"):
        desk.does("rollback", None)
    assert desk.shows() == ("old", OLD.tag)
    desk.knows(staged(NEW, "ota_1"))
    assert desk.does("activate", None).end == "up_to_date"


def test_a_staged_firmware_that_panics_is_taken_back() -> None:
    """As after an update: the old firmware with its own tag."""
    desk = Desk()
    desk.does("stage", PANICS, PANICS.tag)
    desk.knows(staged(PANICS, "ota_1"))
    outcome = desk.does("activate", None, PANICS.tag)
    assert (outcome.end, code(outcome), outcome.of_image) == ("rolled_back", "boot-failed", True)
    assert desk.shows() == ("old", OLD.tag)


@pytest.mark.parametrize("at", ["inspecting", "writing"])
def test_a_stage_is_cancelled_where_nothing_boots_but_the_old_firmware(at: str) -> None:
    """Before the first write and in the middle of it; one that is written stands."""

    class Cancels(Notes):
        def cancelled(self) -> bool:
            return self.link is not None and self.link.phase == at

    desk = Desk()
    desk.notes = Cancels(desk.notes.facts)
    with pytest.raises(OtaError, match="cancelled"):
        desk.does("stage")
    assert desk.shows() == ("old", OLD.tag)
    assert desk.board.running
    head = desk.board.cells.read(SLOT, 1)[0]
    assert head != 0xE9 or desk.board.cells.read(SLOT, len(OTHER.data)) == OTHER.data


@pytest.mark.parametrize("state", [STATE_NEW, PENDING_VERIFY])
def test_a_board_whose_app_has_yet_to_confirm_itself_is_not_staged(state: int) -> None:
    """What its bootloader would go back to stays."""
    desk = Desk(replace(START, rollback=True, spare=OTHER))
    at = START.plan.find("otadata").offset
    for sector, entry in enumerate((Select.make(1, state), Select.make(0xFFFFFFFF, VALID))):
        data = entry.encode() if sector == 0 else b"\xff" * 32
        desk.board.cells[at + sector * SECTOR : at + sector * SECTOR + 32] = data
    desk.notes.facts = replace(desk.notes.facts, unwatched=True)
    outcome = desk.does("stage")
    assert code(outcome) == "awaiting-confirmation"
    whole = OTHER.data
    assert desk.board.cells.read(SLOT, len(whole)) == whole


def test_nothing_is_staged_whose_way_back_is_not_certain() -> None:
    """What runs is made for earlier revisions of the chip, which only some bootloaders mind."""
    desk = Desk()
    at = START.plan.find("ota_0").offset
    desk.board.cells[at + 17 : at + 19] = b"\x64\x00"
    runs = SlotFact(len(OLD.data), digest(desk.board.cells.read(at, len(OLD.data))), OLD.tag)
    desk.notes.facts = BoardFacts(slots={"ota_0": runs}, last_slot="ota_0")
    outcome = desk.does("stage")
    assert (code(outcome), desk.writes) == ("otadata-invalid", 0)
    assert "would not go back to ota_0" in str(outcome.error)


def test_nothing_is_staged_whose_tag_does_not_fit() -> None:
    """The switch needs room in NVS, and so does the way back."""
    desk = Desk()
    at = START.plan.find("nvs")
    store = NvsStore(region := bytearray(b"\xff" * at.size))
    store.init()
    with contextlib.suppress(NvsError):
        for number in range(1000):
            store.set("other", f"k{number}", "x" * 60)
    desk.board.cells[at.offset : at.end] = bytes(region)
    outcome = desk.does("stage")
    assert (code(outcome), desk.writes, desk.shows()[0]) == ("nvs-full", 0, "old")


@pytest.mark.parametrize("damaged", [False, True])
def test_the_way_back_is_known_by_a_digest(damaged: bool) -> None:
    """The old firmware is read whole only where it is not what ran any more; then nothing is
    changed."""
    desk = Desk()
    at, read = START.plan.find("ota_0").offset, []
    right = desk.board.read

    def noted(offset: int, size_bytes: int) -> bytes:
        if desk.board.phase == "rolling_back" and offset == at:
            read.append(size_bytes)
        return right(offset, size_bytes)

    def phase(name: str) -> None:
        if damaged and name == "switching":
            desk.board.cells[at + 9000] = desk.board.cells[at + 9000] ^ 1

    def md5(offset: int, size_bytes: int) -> str:
        return digest(right(offset, size_bytes))

    desk.board.read, desk.board.md5 = noted, md5  # type: ignore[method-assign]
    desk.notes.on_phase = phase
    if damaged:
        with pytest.raises(OtaError, match="no other slot can be gone back to"):
            desk.does("update", PANICS, PANICS.tag)
        assert max(read) >= len(OLD.data)
    else:
        assert desk.does("update", PANICS, PANICS.tag).end == "rolled_back"
        assert read == []
