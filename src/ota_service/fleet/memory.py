# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs remember from one to the next: the journal in the terms of a board's session.

Blocks; called in threads. The journal's own words are kept out of the run and the session.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.journal import Journal
from ota_service.fleet.journal_rows import (
    AttemptRecord,
    BoardRecord,
    BridgeRecord,
    BroughtRecord,
    NameRecord,
    NotOursRecord,
    PendingRecord,
    PortRecord,
    SlotRecord,
    StagedRecord,
)
from ota_service.formats.image import AppImage
from ota_service.link.ports import PortInfo
from ota_service.update.bootable import HEAD_BYTES
from ota_service.update.facts import BoardFacts, SlotFact, Staged
from ota_service.update.flash_merged import FlashOutcome
from ota_service.update.inspect import App, Inspection
from ota_service.update.plan import require_staged
from ota_service.update.session import Awaited, Brought, Image, Outcome

_ELSEWHERE = "/elsewhere"
Described = AppImage | App | Image | Staged


By = Literal["itself", "person", "group"]


class Memory:
    """One service's view of the journal."""

    def __init__(self, journal: Journal, service: str) -> None:
        self.journal = journal
        self.service = service

    # --- where boards are

    def board_named(self, name: str, port: str | None) -> BoardRecord | None:
        """What was last seen on the board that this configured port, or else name, stands for."""
        journal = self.journal
        known: PortRecord | NameRecord | None = journal.get(PortRecord, port=port)
        at_port = known is not None
        known = known or journal.get(NameRecord, service=self.service, name=name)
        record = journal.board(known.mac) if known is not None else None
        elsewhere = record is not None and record.port not in (None, port)
        return None if elsewhere and not at_port else record

    def board_at(self, info: PortInfo) -> BoardRecord | None:
        """The board that was last seen at this port, if the same USB device is there."""
        journal = self.journal
        record = journal.get(BoardRecord, port=info.place)
        record = record or journal.get(BoardRecord, usb_location=info.place)
        bridge = journal.get(BridgeRecord, place=info.place, identity=info.identity)
        if record is None and bridge is not None and bridge.mac is not None:
            last = journal.board(bridge.mac)  # which has no place if its port's name was given away
            record = last if last is not None and last.port is None else None
        if record is None or record.usb_serial != info.serial_number:
            return None
        return journal.board(record.mac)

    def is_our_bridge(self, info: PortInfo) -> bool:
        """Whether a person has had this bridge opened before, and a board answered."""
        found = self.journal.get(BridgeRecord, place=info.place, identity=info.identity)
        return found is not None

    def not_ours(self, info: PortInfo) -> NotOursRecord | None:
        """Why what is attached at a place is left alone, until `release`; None: it is not."""
        return self.journal.get(NotOursRecord, place=info.place)

    def mark_not_ours(self, info: PortInfo, reason: str, mac: str | None) -> None:
        """Leave what is attached at a place alone, until `release`."""
        self.journal.put(NotOursRecord(info.place, reason, mac, utc_now()))

    def learn_place(self, name: str | None, port: str, info: PortInfo | None, mac: str) -> None:
        """A board answered at a port. name: as a service has it."""
        journal = self.journal
        if name is not None:
            journal.put(NameRecord(self.service, name, mac))
        journal.update_board(
            mac,
            port=port,
            usb_location=info.location if info is not None else None,
            usb_serial=info.serial_number if info is not None else None,
            seen_at=utc_now(),
        )
        if info is not None and info.bridge is not None:
            journal.put(BridgeRecord(info.place, info.identity, mac, utc_now()))

    # --- what is on them

    def facts(self, mac: str, target: Target) -> BoardFacts:
        """What a plan for this board may depend on."""
        record = self.journal.board(mac) or BoardRecord(mac)
        attempt = self.journal.attempt(mac, target.key)
        latest = self._latest(mac) or attempt
        slots: dict[str, SlotFact] = {}
        failed: dict[str, SlotFact] = {}
        for one in self.journal.all(SlotRecord, mac=mac):
            (failed if one.seen_running_at is None else slots)[one.slot] = one.to(SlotFact)
        return BoardFacts(
            slots=slots,
            failed=failed,
            version=record.version or "",
            last_slot=record.slot,
            confirmed=record.confirmed,
            reached=latest == attempt and attempt.ended_well and attempt.updated_at is not None,
            unwatched=attempt.open_since is not None or attempt.failed > 0 or attempt.unjudged,
            interrupted=latest.target != target.key
            and latest.state in ("none", "set_aside")
            and (latest.open_since is not None or latest.failed > 0),
            silent=bool(record.silent),
            staged=self.staged(mac, target),
        )

    def require_staged(self, mac: str | None, target: Target) -> Staged:
        """What waits on a board to be activated, which is the target's. Raises OtaError."""
        return require_staged(self.staged(mac, target), target.version)

    def staged(self, mac: str | None, target: Target) -> Staged | None:
        """What waits on a board to be activated; target: the board's."""
        record = self.journal.get(StagedRecord, mac=mac)
        if record is None:
            return None
        staged = record.to(Staged)
        return replace(staged, stale=not staged.is_of(target))

    def running(self, record: BoardRecord) -> dict[str, str]:
        """What ran on a board when it was last seen, as the status shows it; without what is not
        known. A board that was only read since it went back by itself runs another slot than the
        one that it was last brought to."""
        names = {"project": record.project, "app_version": record.app_version}
        slot = self.journal.get(SlotRecord, mac=record.mac, slot=record.slot)
        same = slot is None or names == {"project": slot.project, "app_version": slot.app_version}
        shown = {"slot": record.slot if same else None, **names}
        return {key: value for key, value in shown.items() if value is not None}

    def back(self, mac: str) -> dict[str, str] | None:
        """{"slot", "version"} of what ran before on a board and is in its slot still: where a
        rollback leads, unless the board shows otherwise."""
        record = self.journal.board(mac)
        ran = [
            one
            for one in self.journal.all(SlotRecord, mac=mac)
            if one.seen_running_at is not None and record is not None and one.slot != record.slot
        ]
        if not ran:
            return None
        last = max(ran, key=lambda one: one.seen_running_at or utc_now())
        return {"slot": last.slot, "version": last.version or last.app_version or ""}

    def stage(self, mac: str, slot: str, image: Image, target: Target) -> Staged:
        """An image waits in a slot of a board from now on, in place of whatever waited there."""
        known = image.known
        staged = Staged(
            target.key, target.version, slot, known.size_bytes, image.sha256, known.md5,
            known.staged_md5, known.head[:HEAD_BYTES], utc_now(),
        )  # fmt: skip
        before = self.staged(mac, target)
        if before is not None and replace(before, since=staged.since) == staged:
            staged = before
        self.journal.put(StagedRecord.of(staged, mac=mac))
        return staged

    def overwrites(self, mac: str, slot: str) -> None:
        """A slot of a board is about to hold something else than before."""
        self.journal.drop(SlotRecord, mac=mac, slot=slot)
        self.journal.drop(StagedRecord, mac=mac, slot=slot)

    def activated(self, mac: str, slot: str) -> None:
        """What waited in a slot waits no more: it was started."""
        self.journal.drop(StagedRecord, mac=mac, slot=slot)

    def still_staged(self, found: Inspection, staged: Staged | None) -> Staged | None:
        """What waits on a board that was looked at: nothing, where its slot begins with something
        else by now. (Whether all of it is there is for its activation to see.)"""
        if staged is None or found.table is None:
            return staged
        head = next((app.head for app in found.apps if app.partition.name == staged.slot), b"")
        if head[1:] == staged.head[1:]:
            return staged
        self.journal.drop(StagedRecord, mac=found.chip.mac)
        return None

    def _latest(self, mac: str) -> AttemptRecord | None:
        """How a board fared last, whatever the target was."""
        # A duel's count stands beside the attempts, under a name of its own.
        attempts = self.journal.all(AttemptRecord, board=mac)  # the newest first
        return next((one for one in attempts if not one.target.endswith(_ELSEWHERE)), None)

    def saw(self, found: Inspection) -> None:
        """A board was looked at."""
        read = found.has_version
        self.journal.update_board(
            found.chip.mac,
            chip=found.chip.name,
            flash_bytes=found.chip.flash_bytes,
            version=found.version if read else None,
            version_read_at=utc_now() if read else None,
            **({} if found.silent is None else {"silent": found.silent}),
            **_names(found.running_app),
        )

    def runs(
        self, mac: str, slot: str, app: Described | None, *, version: str | None,
        size_bytes: int, md5: str, sha256: str | None = None,
    ) -> None:  # fmt: skip
        """A slot's content was seen running: evidence for the next time."""
        moment = utc_now()
        seen = SlotRecord(
            mac, slot, md5, size_bytes, sha256, version, installed_at=moment,
            seen_running_at=moment, **_names(app),
        )  # fmt: skip
        self.journal.put(seen)

    def succeeded(self, outcome: Outcome, image: Image | Staged | None, target: str) -> None:
        """A board came to its target, seen or at least not seen to fail."""
        found, slot = outcome.found, outcome.slot
        assert found is not None
        assert slot is not None
        mac, journal = found.chip.mac, self.journal
        runs = found.running
        image = image if outcome.of_image else None
        if image is None and outcome.confirmed and slot == runs.partition and runs.md5 is not None:
            # Somebody else's of this version, or the target's before, whose file is gone by now.
            self.runs(
                mac, slot.name, found.app(slot), version=outcome.version,
                size_bytes=runs.size_bytes or 0, md5=runs.md5,
            )  # fmt: skip
        if image is not None and outcome.confirmed is not None:
            self.runs(
                mac, slot.name, image, version=outcome.version, size_bytes=image.size_bytes,
                md5=image.md5, sha256=image.sha256,
            )  # fmt: skip
            board = journal.board(mac)
            if outcome.confirmed and not (board is not None and board.unchecked):
                journal.confirm_firmware(image.sha256)
        journal.update_board(
            mac,
            slot=slot.name,
            version=outcome.version,
            version_read_at=utc_now(),
            **({"confirmed": outcome.confirmed} if outcome.confirmed is not None else {}),
            **_names(runs_by_now(outcome, image)),
        )
        journal.end_attempt(mac, target, succeeded=True)
        journal.drop(PendingRecord, mac=mac)

    def rolled_back(self, outcome: Outcome, target: str, *, by: By = "itself") -> None:
        """A board went back: this target is not tried again by itself, but where its group went
        back, which holds no board.

        by: whose word it was; where it was not `itself`, nothing has failed.
        """
        found = outcome.found
        assert found is not None
        mac, journal = found.chip.mac, self.journal
        slot = outcome.slot.name if outcome.slot is not None else None
        seen = {"version": outcome.version, "slot": slot}
        known = {name: value for name, value in seen.items() if value is not None}
        journal.update_board(
            mac, version_read_at=utc_now(), confirmed=outcome.confirmed, unchecked=False,
            **known, **_names(runs_by_now(outcome, None)),
        )  # fmt: skip
        journal.drop(PendingRecord, mac=mac)
        journal.drop(BroughtRecord, mac=mac)
        if outcome.image is not None and slot is not None and outcome.slot is not None:
            self.runs(
                mac, slot, found.app(outcome.slot), version=outcome.version or None,
                size_bytes=outcome.image[0], md5=outcome.image[1],
            )  # fmt: skip
        if by == "group":
            journal.drop(AttemptRecord, board=mac, target=target)
            return
        if by == "person":
            why = OtaError("cancelled", "rolled back by a person")
            journal.set_attempt_state(mac, target, "held", why)
            return
        journal.end_attempt(mac, target, succeeded=False, error=outcome.error)
        journal.set_attempt_state(mac, target, "rolled_back", outcome.error)

    def unjudged(self, outcome: Outcome, image: Image | Staged | None, target: str) -> None:
        """A board's start was watched, and nothing that was seen speaks for or against the
        firmware: the next look watches it again."""
        found, error = outcome.found, outcome.error
        assert found is not None
        assert error is not None
        mac = found.chip.mac
        self.journal.update_board(
            mac, version=outcome.version, version_read_at=utc_now(),
            **_names(runs_by_now(outcome, image) if error.code != "no-reset" else None),
        )  # fmt: skip
        if error.code == "brown-out":
            self.journal.drop(PendingRecord, mac=mac)
        self.journal.end_attempt(mac, target, succeeded=False, error=error)

    def flashed(self, outcome: FlashOutcome) -> None:
        """A board's whole flash was replaced."""
        self.journal.forget_contents(outcome.chip.mac)
        self.journal.update_board(
            outcome.chip.mac,
            chip=outcome.chip.name,
            flash_bytes=outcome.chip.flash_bytes,
            slot=outcome.file.booted.name,
            version=outcome.version,
            version_read_at=utc_now(),
            confirmed=outcome.confirmed,
            **_names(outcome.file.app),
        )

    # --- what was brought

    def switches(self, mac: str, **changes: Any) -> None:
        """otadata is about to be changed: until a start has shown it, nobody knows what runs.

        changes: of the board's record, which go with it.
        """
        self.journal.update_board(mac, **changes, **_names(None))

    def brings(self, mac: str, target: str, brought: Brought) -> None:
        """A board is about to be switched to what an update has written."""
        self.journal.put(BroughtRecord.of(brought, mac=mac, target=target, since=utc_now()))

    def brought_failed(self, mac: str, target: str) -> None:
        """What an update brought, and what failed, is in its slot still: nobody is to go back to
        it."""
        new = self.brought(mac, target)
        if new is not None:
            about = SlotRecord(mac, new.slot, new.md5, new.size_bytes, version=new.version)
            self.journal.put(replace(about, installed_at=utc_now()))

    def brought(self, mac: str | None, target: str) -> Brought | None:
        """What the last update brought to a board, if it was this target's."""
        record = self.journal.get(BroughtRecord, mac=mac, target=target)
        return record.to(Brought) if record is not None else None

    def checked(self, mac: str) -> None:
        """The robot has said that what runs works, or is not asked any more: what was seen of its
        start counts now."""
        board = self.journal.update_board(mac, unchecked=False)
        slot = self.journal.get(SlotRecord, mac=mac, slot=board.slot)
        if board.confirmed and slot is not None and slot.sha256 is not None:
            self.journal.confirm_firmware(slot.sha256)

    # --- attempts

    def duel(
        self, mac: str, target: str, found_version: str, wanted: str, *, strange: bool = False
    ) -> int:
        """How often something else has changed a tag that we had brought to this target.

        Counted when it is seen, so that a duel with another updater ends (esp32.md, "Beside
        us"). 0: nobody did. strange: what runs is neither what the journal knows nor the target's.
        """
        latest = self._latest(mac)
        if latest is None or latest.target != target or not latest.ended_well:
            return 0  # (not by what was read of it: that may be the other one's by now)
        if found_version == wanted:
            return 0
        if not found_version and not strange:
            return 0
        key = f"{target}{_ELSEWHERE}"
        self.journal.begin_attempt(mac, key)
        self.journal.update_board(mac, confirmed=None)  # it may be another firmware
        changed = OtaError("changed-elsewhere")
        ended = self.journal.end_attempt(mac, key, succeeded=False, error=changed, counts=True)
        return ended.failed

    def awaited(self, mac: str | None) -> tuple[Awaited, float] | None:
        """What a board's app has to confirm itself by, and how many seconds it has left."""
        record = self.journal.get(PendingRecord, mac=mac)
        if record is None:
            return None
        awaited = Awaited(
            record.slot, record.previous_version, record.power_failed, record.version, record.target
        )
        return awaited, _left_s(record)

    def awaits(
        self, mac: str, target: str, *, version: str, slot: str, seconds: float,
        previous_version: str | None,
    ) -> None:  # fmt: skip
        """A board is left alone until its app had time to confirm itself."""
        moment, (boot, up_s) = utc_now(), uptime()
        until = moment + timedelta(seconds=seconds)
        record = PendingRecord(
            mac, target, version, slot, moment, until, previous_version, boot=boot,
            up_until_s=up_s + seconds,
        )  # fmt: skip
        self.journal.put(record)

    def power_failed(self, mac: str) -> None:
        """The power of a board failed while it was left alone: not its firmware's fault."""
        self.journal.write("UPDATE pending SET power_failed = 1 WHERE mac = ?", mac)


def runs_by_now(outcome: Outcome, image: Image | Staged | None) -> Described | None:
    """The app that an outcome's slot holds at the end; None: nobody knows.

    image: what the session was to write or switch to.
    """
    found, slot, made = outcome.found, outcome.slot, outcome.plan
    wrote = made is not None and made.action in ("write", "switch")
    if wrote and image is not None and outcome.end in ("up_to_date", "unjudged"):
        return image
    return found.app(slot) if found is not None and slot is not None else None


def _names(app: Described | None) -> dict[str, Any]:
    """What an app calls itself, by the names of columns."""
    about = app.descriptor if app is not None else None
    if about is None:
        return {"project": None, "app_version": None}
    return {"project": about.project, "app_version": about.version}


def uptime() -> tuple[str | None, float]:
    """Which start of the machine this is, and for how many seconds it has been up."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return boot, time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return None, 0.0


def _left_s(record: PendingRecord) -> float:
    """How long a board is still left alone: all of its time where the machine was started anew,
    since its clock may show anything then."""
    boot, up_s = uptime()
    whole_s = (record.until - record.since).total_seconds()
    if boot is None or record.boot != boot or record.up_until_s is None:
        return whole_s
    return min(max(0.0, record.up_until_s - up_s), whole_s)
