# SPDX-License-Identifier: GPL-3.0-or-later
"""Interruptions that once led to a wrong belief, each alone: what the next run makes of them."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from esp32_sim.bootmodel import Select
from esp32_sim.layouts import Layout
from esp32_sim.nvsmodel import nvs_init
from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet.journal import open_journal
from ota_service.fleet.memory import Memory
from ota_service.formats import nvs
from ota_service.update.facts import BoardFacts
from tests.formats.nvs_firmware import Firmware
from tests.formats.nvs_pages import stuck
from tests.prove import nvs_shapes
from tests.prove.board import Link, Notes, Told, quiet, update
from tests.prove.cells import Cells
from tests.prove.flows import Case
from tests.prove.images import NEW, NEXT, OLD, OTHER, PANICS
from tests.prove.judge import running, stored
from tests.prove.prover import record_in_memory
from tests.prove.starts import SECTOR, Start


def cut_in(case: Case, phase: str, after: int) -> Link:
    """A board that lost its power after so many operations of a phase."""
    board = Link(Cells(case.flash()), case.start.bootloader)
    for op in record_in_memory(case).ops:
        if op.phase == phase:
            after -= 1
            if after < 0:
                break
        board.cells.apply(op.op)
    return board


def shows(board: Link, case: Case) -> tuple[str, str | None]:
    """What it boots, and the tag stored."""
    firmware, words = running(board.cells, case.start.bootloader)
    return firmware.name if firmware is not None else words, stored(board.cells, case.start.plan)


def test_a_way_back_that_was_cut_off_is_gone_again_to_its_end() -> None:
    """The new entry is taken away already, the new tag still stored: not "up to date"."""
    case = Case("back", Start("micro-rdk", "first", False, "small"))
    board = cut_in(case, "rolling_back", 1)
    assert shows(board, case) == ("old", PANICS.tag)
    notes = Notes(case.facts(interrupted=True))
    with quiet():
        outcome = update(board, PANICS, notes)
    assert [made.action for made in notes.plans] == ["switch"]
    assert outcome.end == "rolled_back"
    assert shows(board, case) == ("old", OLD.tag)


def test_without_a_journal_the_image_in_the_other_slot_tells() -> None:
    """Nobody remembers the update, but the firmware that the tag belongs to does not run."""
    case = Case("back", Start("micro-rdk", "first", False, "small"))
    board = cut_in(case, "rolling_back", 1)
    notes = Notes(BoardFacts())
    with quiet():
        outcome = update(board, PANICS, notes)
    assert [made.action for made in notes.plans] == ["switch"]
    assert outcome.end == "rolled_back"
    assert shows(board, case) == ("old", "1.0.0")  # its own version, for want of its tag
    with quiet():
        assert update(board, NEXT, Notes()).end == "up_to_date"


@pytest.mark.parametrize("journal", [True, False])
def test_going_back_to_the_old_target_after_an_interruption(journal: bool) -> None:
    """The new firmware boots already, the old tag is still stored, and now that one is wanted."""
    case = Case("update", Start("micro-rdk", "first", False, "small"))
    board = cut_in(case, "recording", 0)
    assert shows(board, case) == ("new", OLD.tag)
    known = replace(case.facts(), interrupted=True)
    notes = Notes(known if journal else BoardFacts())
    with quiet():
        outcome = update(board, OLD, notes)
    assert [made.action for made in notes.plans] == ["switch"]
    assert outcome.end == "up_to_date"
    assert shows(board, case) == ("old", OLD.tag)


@pytest.mark.parametrize("phase", ["recording", "booting"])
def test_an_update_cut_off_before_its_first_start_still_waits_for_its_app(phase: str) -> None:
    """A bootloader with rollback makes the entry PENDING_VERIFY at that start: a run that took
    the board for done would let the next look at it undo the update."""
    case = Case("update", Start("guide", "aborted", True, "small"))
    board = cut_in(case, phase, 0)
    notes = Notes(case.facts(interrupted=True))
    with quiet():
        outcome = update(board, NEW, notes)
    assert outcome.end == "up_to_date"
    assert outcome.confirmed is True
    assert shows(board, case) == ("new", NEW.tag)


def test_an_app_that_confirms_late_is_left_alone_until_then() -> None:
    """Looked at too early, it gets its time again; looked at later, it is confirmed."""
    case = Case("pending", Start("guide", "first", True, "small"))
    board = Link(Cells(case.flash()), case.start.bootloader)
    notes = Notes(case.facts())
    with quiet():
        for _ in range(3):
            early = board.session(case.job(), notes)
            assert early.end == "awaiting_confirmation"
            assert board.firmware is NEW
        board.time_passes()
        late = board.session(case.job(), notes)
    assert late.end == "up_to_date"
    assert shows(board, case) == ("new", NEW.tag)


def test_a_new_entry_that_no_bootloader_turns_is_no_failure() -> None:
    """NEW that stays NEW after a start: a bootloader without rollback, and a good firmware."""
    case = Case("pending", replace(Start("guide", "first", False, "small"), spare=NEW))
    flash = bytearray(case.flash())
    at = case.start.plan.find("otadata").offset + SECTOR
    flash[at : at + 32] = Select.make(2, 0).encode()
    board = Link(Cells(bytes(flash)), case.start.bootloader)
    facts = case.facts(interrupted=True)
    with quiet():
        outcome = update(board, NEW, Notes(facts))
    assert (outcome.end, outcome.confirmed) == ("up_to_date", True), "its start was seen to be good"
    assert shows(board, case) == ("new", NEW.tag)


def test_a_page_with_nothing_in_it_makes_room() -> None:
    """Collecting a page whose items are all erased once ended in a refusal."""
    before = nvs_shapes.no_second_free(0x14000, random.Random(1))
    pages = nvs.parse_nvs(before)
    assert pages.free_pages == 1
    assert min(page.used for page in pages.order) == 0
    edit = nvs.set_string(
        before, base=0x9000, namespace="VIAM_NS", key="OTA_VERSION", value="rel-2"
    )
    old, new = nvs_init(bytearray(before)), nvs_init(bytearray(edit.result))
    assert new.free_pages >= 1
    key = ("VIAM_NS", "OTA_VERSION")
    assert new.items == old.items | {key: ("string", b"rel-2")}


def test_the_journal_tells_of_an_update_to_another_target(tmp_path: Path) -> None:
    """Only where it was the last thing done to the board, and never came to an end."""
    with contextlib.closing(open_journal(tmp_path)) as journal:
        memory = Memory(journal, "OTA")
        one, two = (Target("http://10.0.0.5/app.bin", version) for version in ("1", "2"))
        journal.begin_attempt("board", one.key)
        assert memory.facts("board", two).interrupted
        assert not memory.facts("board", one).interrupted
        assert memory.facts("board", one).unwatched
        assert not memory.facts("other", two).interrupted
        journal.end_attempt("board", one.key, succeeded=True)
        assert not memory.facts("board", two).interrupted
        journal.begin_attempt("board", two.key)
        journal.end_attempt("board", two.key, succeeded=False, error=OtaError("link-lost"))
        assert memory.facts("board", one).interrupted
        journal.set_attempt_state("board", two.key, "rolled_back")
        assert not memory.facts("board", one).interrupted


class Tidy(Link):
    """A board whose app makes room in its NVS at its start, where it `tidies`."""

    tidies = True
    layout: Layout

    def restart(self) -> None:
        """The app's start, and what it does then."""
        super().restart()
        at = self.layout.find("nvs")
        region = bytearray(self.cells.read(at.offset, at.size))
        if self.tidies:
            Firmware(region).delete(b"VIAM_NS", b"ROBOT_ID")
        self.cells.write(at.offset, bytes(region))


@pytest.mark.parametrize(
    ("otadata", "tidies", "starts", "end"),
    [
        ("both", True, 1, "up_to_date"),
        ("both", False, 1, "refused"),
        ("new", True, 0, "refused"),
    ],
)
def test_a_board_whose_nvs_cannot_be_changed_is_started_once(
    otadata: str, tidies: bool, starts: int, end: str
) -> None:
    """As the remedy says: once, and not where that start might be one that its app must confirm."""
    case = Case("update", Start("guide", otadata, False, "small"))
    flash = bytearray(case.flash())
    at = case.start.plan.find("nvs")
    flash[at.offset : at.end] = stuck(at.size)
    board = Tidy(Cells(bytes(flash)), case.start.bootloader)
    board.layout, board.tidies = case.start.plan, tidies
    notes = Told(case.facts())
    with quiet():
        outcome = update(board, NEW, notes)
    assert outcome.end == end
    told = "once into its firmware, so that it repairs its NVS"
    assert notes.restarts.count(told) == starts
    assert [made.action for made in notes.plans] == ["write" if end == "up_to_date" else "refuse"]
    assert outcome.error is None or outcome.error.code == "nvs-invalid"


@pytest.mark.parametrize("tidies", [True, False])
def test_a_person_goes_back_on_a_board_whose_nvs_cannot_be_changed(tidies: bool) -> None:
    """It is started once for that as well, and where that does not help nothing is written."""
    start = replace(Start("guide", "both", False, "small"), spare=OTHER)
    case = Case("go-back", start)
    flash = bytearray(case.flash())
    at = start.plan.find("nvs")
    flash[at.offset : at.end] = stuck(at.size)
    board = Tidy(Cells(bytes(flash)), start.bootloader)
    board.layout, board.tidies = start.plan, tidies
    notes = Told(case.facts())
    before = shows(board, case)
    with quiet():
        if tidies:
            assert board.session(case.job(), notes).end == "rolled_back"
            assert shows(board, case) == ("other", OTHER.version)
        else:
            with pytest.raises(OtaError) as caught:
                board.session(case.job(), notes)
            assert caught.value.code == "nvs-invalid"
            assert shows(board, case) == before
    assert notes.restarts.count("once into its firmware, so that it repairs its NVS") == 1


class Spoils(Tidy):
    """A board whose new firmware leaves an NVS that cannot be changed; the old one may tidy."""

    def restart(self) -> None:
        """As `Tidy`, of the old firmware."""
        tidies, self.tidies = self.tidies, False
        Link.restart(self)
        at = self.layout.find("nvs")
        if self.firmware is PANICS:
            self.cells.write(at.offset, stuck(at.size))
        self.tidies = tidies
        if self.firmware is not PANICS:
            super().restart()


@pytest.mark.parametrize("tidies", [True, False])
def test_a_firmware_that_spoils_nvs_is_gone_back_from_all_the_same(tidies: bool) -> None:
    """otadata first; the version when the old firmware has repaired its NVS, or not at all."""
    case = Case("back", Start("guide", "both", False, "small"))
    board = Spoils(Cells(case.flash()), case.start.bootloader)
    board.layout, board.tidies = case.start.plan, tidies
    notes = Told(case.facts())
    with quiet():
        outcome = update(board, PANICS, notes)
    assert outcome.end == "rolled_back"
    assert outcome.error is not None
    assert outcome.error.code == "boot-failed"
    assert notes.restarts.count("once into its firmware, so that it repairs its NVS") == 1
    firmware, tag = shows(board, case)
    assert firmware == "old"
    if tidies:
        assert outcome.version == tag == OLD.tag
    else:
        assert outcome.version is None
        assert "its version could not be put right" in outcome.error.message


class Late(Told):
    """Somebody cancels while the new firmware starts, which is too late."""

    late = False

    def phase(self, name: str) -> None:
        """As `Told`."""
        super().phase(name)
        self.late = self.late or name == "booting"

    def cancelled(self) -> bool:
        """From then on."""
        return self.late


def test_a_cancel_takes_nothing_from_the_way_back() -> None:
    """The old firmware has its time to repair its NVS: the version belongs to what runs."""
    case = Case("back", Start("guide", "both", False, "small"))
    board = Spoils(Cells(case.flash()), case.start.bootloader)
    board.layout, board.tidies = case.start.plan, True
    with quiet():
        outcome = update(board, PANICS, Late(case.facts()))
    assert (outcome.end, outcome.version) == ("rolled_back", OLD.tag)
    assert shows(board, case) == ("old", OLD.tag)


class Dead(Spoils):
    """A board whose old firmware does not start any more either."""

    def restart(self) -> None:
        """As `Spoils`."""
        super().restart()
        if self.firmware is not PANICS:
            self.firmware = None


def test_what_is_in_place_is_said_as_it_is() -> None:
    """Neither firmware starts, and the version could not be put right: that is not left out."""
    case = Case("back", Start("guide", "both", False, "small"))
    board = Dead(Cells(case.flash()), case.start.bootloader)
    board.layout, board.tidies = case.start.plan, False
    with quiet():
        outcome = update(board, PANICS, Told(case.facts()))
    assert (outcome.end, outcome.version) == ("failed", None)
    assert outcome.error is not None
    assert "its version could not be put right" in outcome.error.remedy
    assert "version are in place" not in outcome.error.remedy
