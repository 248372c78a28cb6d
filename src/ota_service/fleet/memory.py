# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs remember from one to the next: the journal in the terms of a board's session.

Blocks; called in threads. The journal's own words are kept out of the run and the session.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ota_service.errors import OtaError
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.journal import Journal
from ota_service.fleet.journal_rows import (
    AttemptRecord,
    BoardRecord,
    PendingRecord,
    SlotRecord,
)
from ota_service.formats.image import AppDescriptor
from ota_service.formats.partitions import Partition
from ota_service.link.ports import PortInfo
from ota_service.update.facts import BoardFacts, SlotFact
from ota_service.update.flash_merged import FlashOutcome
from ota_service.update.inspect import Inspection
from ota_service.update.session import Awaited, Image, Outcome

_ELSEWHERE = "/elsewhere"


class Memory:
    """One service's view of the journal."""

    def __init__(self, journal: Journal, service: str) -> None:
        self.journal = journal
        self.service = service

    # --- where boards are

    def board_named(self, name: str, port: str | None) -> BoardRecord | None:
        """What was last seen on the board that this configured port, or else name, stands for."""
        known = self.journal.known_port(port) if port is not None else None
        mac = known.mac if known is not None else self.journal.mac_of(self.service, name)
        record = self.journal.board(mac) if mac is not None else None
        elsewhere = record is not None and record.port not in (None, port)
        return None if elsewhere and known is None else record

    def board_at(self, info: PortInfo) -> BoardRecord | None:
        """The board that was last seen at this port, if the same USB device is there."""
        record = self.journal.board_at(info.place)
        if record is None or record.usb_serial != info.serial_number:
            return None
        return record

    def is_our_bridge(self, info: PortInfo) -> bool:
        """Whether a person has had this bridge opened before, and a board answered."""
        return self.journal.known_bridge(info.place, info.identity) is not None

    def learn_place(self, name: str, port: str, info: PortInfo | None, mac: str) -> None:
        """A board answered at a port."""
        journal = self.journal
        journal.learn_name(self.service, name, mac)
        journal.update_board(
            mac,
            port=port,
            usb_location=info.location if info is not None else None,
            usb_serial=info.serial_number if info is not None else None,
            seen_at=utc_now(),
        )
        if info is not None and info.bridge is not None:
            journal.remember_bridge(info.place, info.identity, mac)

    # --- what is on them

    def is_as_read(self, record: BoardRecord) -> bool:
        """Whether a board's stored version is still what was read of it last: no attempt at any
        target was begun since then that did not end well."""
        latest = self._latest_attempt(record.mac)
        if latest is None or (latest.open_since is None and latest.code is None):
            return True
        read, tried = record.version_read_at, latest.updated_at
        return latest.open_since is None and bool(read and tried and read >= tried)

    def _latest_attempt(self, mac: str) -> AttemptRecord | None:
        return next(iter(self.journal.attempts(mac)), None)

    def facts(self, mac: str, target: str) -> BoardFacts:
        """What a plan for this board may depend on."""
        record = self.journal.board(mac)
        attempt = self.journal.attempt(mac, target)
        latest = self._latest_attempt(mac) or attempt
        slots = {
            name: SlotFact(slot.size_bytes, slot.md5, slot.version, slot.project, slot.app_version)
            for name, slot in self.journal.slots(mac).items()
            if slot.seen_running_at is not None
        }
        return BoardFacts(
            slots=slots,
            last_slot=record.slot if record is not None else None,
            unwatched=attempt.open_since is not None or attempt.failed > 0 or attempt.unjudged,
            interrupted=latest.target != target
            and latest.state in ("none", "set_aside")
            and (latest.open_since is not None or latest.failed > 0),
        )

    def saw(self, found: Inspection) -> None:
        """A board was looked at."""
        mac = found.chip.mac
        app = found.running_app
        about = app.descriptor if app is not None else None
        self.journal.update_board(
            mac,
            chip=found.chip.name,
            flash_bytes=found.chip.flash_bytes,
            version=found.version if found.nvs is not None else None,
            version_read_at=utc_now() if found.nvs is not None else None,
            project=about.project if about is not None else None,
            app_version=about.version if about is not None else None,
        )

    def runs(
        self, mac: str, slot: Partition, about: AppDescriptor | None, *, version: str | None,
        size_bytes: int, md5: str, sha256: str | None = None,
    ) -> None:  # fmt: skip
        """A slot's content was seen running: evidence for the next time."""
        moment = utc_now()
        self.journal.record_slot(
            SlotRecord(
                mac,
                slot.name,
                md5,
                size_bytes,
                sha256=sha256,
                version=version,
                project=about.project if about is not None else None,
                app_version=about.version if about is not None else None,
                installed_at=moment,
                seen_running_at=moment,
            )
        )

    def succeeded(self, outcome: Outcome, image: Image | None, target: str) -> None:
        """A board came to its target, seen or at least not seen to fail."""
        found, slot = outcome.found, outcome.slot
        assert found is not None
        assert slot is not None
        mac = found.chip.mac
        journal = self.journal
        if image is not None and outcome.confirmed is not None:
            about, size_bytes = image.parsed.descriptor, len(image.data)
            self.runs(
                mac, slot, about, version=outcome.version, size_bytes=size_bytes, md5=image.md5,
                sha256=image.sha256,
            )  # fmt: skip
            if outcome.confirmed:
                journal.confirm_firmware(image.sha256)
            journal.update_board(mac, project=about.project, app_version=about.version)
        journal.update_board(
            mac,
            slot=slot.name,
            version=outcome.version,
            version_read_at=utc_now(),
            confirmed=outcome.confirmed,
        )
        journal.end_attempt(mac, target, succeeded=True)
        journal.clear_pending(mac)

    def rolled_back(self, outcome: Outcome, target: str, *, held: bool = False) -> None:
        """A board went back: this target is not tried again by itself.

        held: a person had it go back, so nothing has failed.
        """
        found = outcome.found
        assert found is not None
        mac = found.chip.mac
        changes: dict[str, str | datetime] = {"version_read_at": utc_now()}
        if outcome.version is not None:
            changes["version"] = outcome.version
        if outcome.slot is not None:
            changes["slot"] = outcome.slot.name
        self.journal.update_board(mac, **changes)
        error = outcome.error
        code, message = (error.code, error.message) if error is not None else (None, None)
        self.journal.clear_pending(mac)
        if held:
            why = "rolled back by a person"
            self.journal.set_attempt_state(mac, target, "held", code="cancelled", message=why)
            return
        self.journal.end_attempt(mac, target, succeeded=False, code=code, message=message)
        self.journal.set_attempt_state(mac, target, "rolled_back", code=code, message=message)

    def unjudged(self, outcome: Outcome, error: OtaError, target: str) -> None:
        """A board's start was watched, and nothing that was seen speaks for or against the
        firmware: the next look watches it again."""
        found = outcome.found
        assert found is not None
        mac = found.chip.mac
        self.journal.update_board(mac, version=outcome.version, version_read_at=utc_now())
        if error.code == "brown-out":
            self.journal.clear_pending(mac)
        self.journal.end_attempt(
            mac, target, succeeded=False, code=error.code, message=error.message
        )

    def flashing(self, mac: str) -> None:
        """A board's whole flash is being replaced: what was known of its slots is void."""
        self.journal.forget_slots(mac)
        self.journal.clear_pending(mac)

    def flashed(self, outcome: FlashOutcome) -> None:
        """A board's whole flash was replaced."""
        mac, app = outcome.chip.mac, outcome.file.app
        self.flashing(mac)
        about = app.descriptor if app is not None else None
        self.journal.update_board(
            mac,
            chip=outcome.chip.name,
            flash_bytes=outcome.chip.flash_bytes,
            slot=outcome.file.booted.name,
            version=outcome.version,
            version_read_at=utc_now(),
            project=about.project if about is not None else "",
            app_version=about.version if about is not None else "",
            confirmed=outcome.confirmed,
        )

    # --- attempts

    def duel(self, mac: str, target: str, found_version: str, wanted: str) -> int:
        """How often something else has changed a tag that we had brought to this target.

        Counted when it is seen, so that a duel with another updater ends (esp32.md, "Beside
        us"). 0: nobody did.
        """
        record = self.journal.board(mac)
        if record is None or record.version != wanted or found_version in (wanted, ""):
            return 0
        key = f"{target}{_ELSEWHERE}"
        self.journal.begin_attempt(mac, key)
        ended = self.journal.end_attempt(
            mac, key, succeeded=False, counts=True, code="changed-elsewhere"
        )
        return ended.failed

    def awaited(self, mac: str | None) -> tuple[Awaited, float] | None:
        """What a board's app has to confirm itself by, and how many seconds it has left."""
        record = self.journal.pending(mac) if mac is not None else None
        if record is None:
            return None
        left_s = (record.until - utc_now()).total_seconds()
        # A clock that was set back must not make it wait for ever.
        most_s = (record.until - record.since).total_seconds()
        return Awaited(record.slot, record.previous_version), min(max(0.0, left_s), most_s)

    def awaits(
        self, mac: str, target: str, *, version: str, slot: str, seconds: float,
        previous_slot: str | None, previous_version: str | None,
    ) -> None:  # fmt: skip
        """A board is left alone until its app had time to confirm itself."""
        moment = utc_now()
        self.journal.set_pending(
            PendingRecord(
                mac,
                target,
                version,
                slot,
                moment,
                moment + timedelta(seconds=seconds),
                previous_slot,
                previous_version,
            )
        )
