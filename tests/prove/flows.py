# SPDX-License-Identifier: GPL-3.0-or-later
"""What is interrupted: the kinds of change that a run makes on a board, and what is to come of it.

A `Case` is one start and one flow. `plan_of` says how to set the board up, what to run, which
operations of its trace are cut, and what one more update has to lead to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from esp32_sim.bootmodel import PENDING_VERIFY, UNDEFINED, VALID, Select
from esp32_sim.nvsmodel import NvsStore
from ota_service.update.facts import BoardFacts
from ota_service.update.session import Awaited, Brought, Job
from tests.prove import images
from tests.prove.board import BOOT, Board, Notes, known_facts, staged, to_its_end, update
from tests.prove.cells import Cells
from tests.prove.images import Firmware
from tests.prove.judge import Judge, Problem, region_of, running, stored
from tests.prove.nvs_init import VERSION, nvs_of
from tests.prove.starts import SECTOR, Start

FLOWS = (
    "update",
    "plain-image",
    "switch",
    "record",
    "correct",
    "back",
    "pending",
    "shy",
    "go-back",
    "take-back",
    "stage",
    "activate",
)
"""update: a write of the slot, otadata, the version. plain-image: the same with an image that
has no SHA-256. switch: the spare slot holds the image already. record: it runs already.
correct: the bootloader has gone back by itself, and the tag is put right. back: the new firmware
panics, and the host goes back. pending: a board is met while its app has yet to confirm itself.
shy: it never does, and the host goes back. go-back: a person wants the other slot's firmware.
take-back: what an update has brought is taken back, perhaps before its app confirmed itself.
stage: the slot is written but for its magic byte. activate: the rest, from a staged slot."""


@dataclass(frozen=True)
class Case:
    """One flow from one start."""

    flow: str
    start: Start

    @property
    def name(self) -> str:
        """As `CASE=` takes it."""
        return f"{self.flow}/{self.start.name}"

    @property
    def firmware(self) -> Firmware:
        """The firmware that the run brings."""
        named = {"back": images.PANICS, "shy": images.SHY, "plain-image": images.PLAIN}
        return named.get(self.flow, images.NEW)

    @property
    def old(self) -> Firmware:
        """What runs before."""
        return self.start.running

    def flash(self) -> bytes:
        """The board's flash when the recorded session begins."""
        start = self.start
        if self.flow == "switch":
            start = replace(start, spare=self.firmware)
        elif self.flow in ("pending", "shy", "take-back"):
            return self._pending()
        elif self.flow == "activate":
            return self._staged()
        elif self.flow == "correct":
            return _with_tag(replace(start, spare=self.firmware), self.firmware.tag)
        return start.contents()

    def _staged(self) -> bytes:
        """After a stage of the new firmware."""
        flash, data = bytearray(self.start.contents()), self.firmware.data
        at = self.start.plan.find(self.spare).offset
        end = at + -(-max(images.SIZES) // SECTOR) * SECTOR
        flash[at:end] = (b"\xff" + data[1:]).ljust(end - at, b"\xff")
        return bytes(flash)

    def _pending(self) -> bytes:
        """After an update by a host: the new entry PENDING_VERIFY, if its bootloader knows of that;
        the new tag stored."""
        start = replace(self.start, spare=self.firmware)
        flash = bytearray(_with_tag(start, self.firmware.tag))
        at = start.plan.find("otadata").offset
        # ota_0 runs, so that the new firmware is in ota_1, which every layout has.
        flash[at : at + 2 * SECTOR] = b"\xff" * 2 * SECTOR
        flash[at : at + 32] = Select.make(1, VALID).encode()
        state = PENDING_VERIFY if start.rollback else UNDEFINED
        flash[at + SECTOR : at + SECTOR + 32] = Select.make(2, state).encode()
        return bytes(flash)

    @property
    def spare(self) -> str:
        """The label of the slot that the new firmware is or comes in, where it is known."""
        return "ota_1" if self.start.runs == "ota_0" else "ota_0"

    @property
    def old_tag(self) -> str | None:
        """The tag that belongs to the old firmware; None where NVS has none as a string."""
        return _old_tag(self.start)

    def facts(self, *, interrupted: bool = False) -> BoardFacts:
        """What the journal has of the board before the session, or after it was cut."""
        start = self.start
        if self.flow == "record" and not interrupted:
            return BoardFacts()
        facts = known_facts(start.plan, start.runs, self.old, self.old_tag or "")
        if self.flow == "stage":
            return facts  # nothing that boots has changed, whatever became of it
        if self.flow == "activate":
            facts = replace(facts, staged=staged(self.firmware, self.spare))
        if self.flow in ("pending", "shy", "correct"):
            # The last success of ours was what ran before the update that is being judged.
            interrupted = interrupted or self.flow != "correct"
        return replace(facts, unwatched=interrupted and self.flow != "go-back")

    def job(self) -> Job:
        """The recorded session's job."""
        job = Job("board", version=self.firmware.tag, image=self.firmware.image, boot=BOOT)
        if self.flow == "shy":
            job = replace(job, confirm=Awaited(self.spare, self.old_tag))
        elif self.flow == "go-back":
            job = replace(job, course="rollback")
        elif self.flow == "take-back":
            image, tag = self.firmware.image, self.firmware.tag
            brought = Brought(self.spare, len(image.data), image.md5, tag, self.old_tag)
            job = Job("board", back_of=brought, boot=BOOT)
        elif self.flow == "stage":
            job = replace(job, course="stage")
        elif self.flow == "activate":
            job = replace(job, course="activate", image=None)
        return job

    def cut_from(self) -> str:
        """The phase from which operations are cut; "" for all."""
        return "rolling_back" if self.flow == "back" else ""

    def judge(self, flash: bytes) -> Judge:
        """What has to stay, whatever happens."""
        start = self.start
        cells = Cells(flash)
        region = region_of(cells, start.plan)
        before = nvs_of(region)
        assert before.error is None, (self.name, before.error)
        tags: list[object] = [before.items.get(VERSION), ("string", self.firmware.tag.encode())]
        old = self.old_tag
        if old is None:
            tags += [None, ("string", b"")]  # they read the same
        else:
            tags.append(("string", old.encode()))
        spares = {
            p.label: cells.read(p.offset, max(images.SIZES))
            for p in start.plan.partitions
            if p.type == 0 and p.label != start.runs
        }
        boots: tuple[Firmware, ...] = (self.old, self.firmware)
        if self.flow == "go-back":
            boots = (self.old, images.OTHER)
            tags.append(("string", images.OTHER.version.encode()))
        if self.flow == "stage":
            boots, tags = (self.old,), [tag for tag in tags if tag != tags[1]]
        forward = self.flow in ("update", "plain-image", "switch", "activate")
        early = self.firmware.tag if forward and self.firmware.tag != old else None
        staging = self.spare if self.flow == "stage" else None
        return Judge(
            start.plan, start.bootloader, region, boots, tuple(tags), spares, early, staging
        )


@lru_cache(maxsize=64)
def _old_tag(start: Start) -> str | None:
    return stored(Cells(start.contents()), start.plan)


def _with_tag(start: Start, tag: str) -> bytes:
    flash = bytearray(start.contents())
    at = start.plan.find("nvs")
    store = NvsStore(region := bytearray(flash[at.offset : at.end]))
    store.init()
    store.set(*VERSION, tag)
    flash[at.offset : at.end] = region
    return bytes(flash)


# --- what one more update leads to


def recover(case: Case, board: Board, facts: BoardFacts, *, own: bool = False) -> list[Problem]:
    """One more update of a cut board, and what is not right then.

    own: the board itself was writing: its bootloader may have gone back to the old firmware,
    because power failed before the new one had confirmed itself.
    """
    notes = Notes(facts)
    try:
        if own and case.start.rollback and case.flow not in ("back", "shy", "take-back"):
            problems = _settled(case, board, notes)
        elif case.flow in ("stage", "activate") and facts.slots:
            problems = _activated(case, board, notes)
        elif case.flow not in ("back", "shy", "pending", "correct", "take-back"):
            problems = _to_target(case, board, notes)
        elif case.flow in ("back", "shy"):
            problems = _back(case, board, notes)
        elif case.flow == "take-back":
            problems = _taken_back(case, board, notes)
        else:
            problems = _settled(case, board, notes)
    except Exception as error:
        problems = [Problem("converge", f"{type(error).__name__}: {error}")]
    if board.nvs_erased:
        problems.append(Problem("keys", "the app erased its NVS"))
    return problems


def _is(case: Case, board: Board, firmware: Firmware, tag: str | None) -> list[Problem]:
    found = []
    plan = case.start.plan
    now, words = running(board.cells, case.start.bootloader)
    if now is None or now.name != firmware.name:
        found.append(Problem("converge", f"boots {words} instead of {firmware.name}"))
    if (have := stored(board.cells, plan)) != tag:
        found.append(Problem("converge", f"stored {have!r} instead of {tag!r}"))
    return found


def retarget(case: Case, board: Board, facts: BoardFacts, firmware: Firmware) -> list[Problem]:
    """Meanwhile another firmware is wanted, whose update was never begun."""
    try:
        found = _to_target(case, board, Notes(facts), firmware)
    except Exception as error:
        return [Problem("converge", f"{type(error).__name__}: {error}")]
    return found


def _to_target(
    case: Case, board: Board, notes: Notes, firmware: Firmware | None = None
) -> list[Problem]:
    firmware = firmware or case.firmware
    outcome = update(board, firmware, notes)
    found = _is(case, board, firmware, firmware.tag)
    if found:
        plans = "; ".join(f"{p.action}: {p.reason}" for p in notes.plans)
        return [Problem("converge", f"{found[0].text} ({outcome.end}; {plans})"), *found[1:]]
    if outcome.end != "up_to_date":
        found.append(Problem("converge", f"ended {outcome.end}: {outcome.error}"))
    return found


def _activated(case: Case, board: Board, notes: Notes) -> list[Problem]:
    """A stage that was cut is asked for again, as is an activation, by the journal alone."""
    if case.flow == "stage":
        outcome = board.session(case.job(), notes)
        if found := _is_old(case, board, notes):
            return found
        if outcome.end != "staged" or outcome.plan is None or outcome.plan.slot is None:
            return [Problem("converge", f"ended {outcome.end}: {outcome.error}")]
        waits = staged(case.firmware, outcome.plan.slot.name)
        notes.facts = replace(notes.facts, staged=waits)
    job = Job("board", case.firmware.tag, course="activate", boot=BOOT)
    outcome = to_its_end(board, job, notes)
    found = _is(case, board, case.firmware, case.firmware.tag)
    if outcome.end != "up_to_date":
        found.append(Problem("converge", f"ended {outcome.end}: {outcome.error}"))
    return found


def _forced(case: Case, board: Board, firmware: Firmware) -> list[Problem]:
    """What a person's update leads to, with a journal that knows nothing."""
    outcome = update(board, firmware, Notes(), force=True)
    found = _is(case, board, firmware, firmware.tag)
    if outcome.end != "up_to_date":
        found.append(Problem("converge", f"forced: ended {outcome.end}: {outcome.error}"))
    return found


def _back(case: Case, board: Board, notes: Notes) -> list[Problem]:
    """The firmware is bad: the old one with its own tag must run, and a next one must come."""
    if case.flow == "shy":
        _shy_again(case, board, notes)
    else:
        update(board, case.firmware, notes)
    found = _is_old(case, board, notes)
    if found and not notes.facts.slots:
        # Nobody remembers what this firmware failed at, and the board runs what it is to.
        found = _is(case, board, case.firmware, case.firmware.tag)
    return found or _forced(case, board, images.NEXT)


def _taken_back(case: Case, board: Board, notes: Notes) -> list[Problem]:
    """What was begun goes all of the way, and a next one must come."""
    if not notes.facts.slots:
        return _forced(case, board, images.NEXT)  # nobody knows that anything was to be taken back
    outcome = board.session(case.job(), notes)
    found = _is_old(case, board, notes)
    if outcome.end != "rolled_back":
        found.append(Problem("converge", f"ended {outcome.end}: {outcome.error}"))
    return found or _forced(case, board, images.NEXT)


def _is_old(case: Case, board: Board, notes: Notes) -> list[Problem]:
    tags = {case.old_tag, case.old_tag or ""}
    if not notes.facts.slots:
        # Without a journal the image's own version stands for a tag that nobody knows.
        tags |= {case.old.version, case.old.version or None}  # none and empty read the same
    found = min((_is(case, board, case.old, tag) for tag in tags), key=len)
    if found:
        plans = "; ".join(f"{p.action}: {p.reason}" for p in notes.plans)
        return [Problem("converge", f"{found[0].text} ({plans})"), *found[1:]]
    return found


def _shy_again(case: Case, board: Board, notes: Notes) -> None:
    """The journal knows that the board waits for its app; its time is over."""
    if notes.facts.slots:
        board.session(case.job(), notes)
    if not notes.facts.slots or _is_old(case, board, notes):
        update(board, case.firmware, notes)


def _settled(case: Case, board: Board, notes: Notes) -> list[Problem]:
    """The board may have gone back by itself; tag and firmware must belong together then."""
    update(board, case.firmware, notes)
    if _is(case, board, case.firmware, case.firmware.tag):
        found = _is_old(case, board, notes)
        if found:
            return found
    return _forced(case, board, case.firmware)


__all__ = ["FLOWS", "Case", "recover", "retarget"]
