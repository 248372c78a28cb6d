# SPDX-License-Identifier: GPL-3.0-or-later
"""What a board shows: facts, errors and places, written into its state and its order's report.

Belongs to the board's task (`board.Board`): nobody else calls it.
"""

from __future__ import annotations

import logging
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import policy
from ota_service.fleet.around import Around
from ota_service.fleet.board_state import BoardState, Progress, utc_now
from ota_service.fleet.journal_rows import BoardRecord
from ota_service.fleet.memory import Described
from ota_service.fleet.orders import Order
from ota_service.fleet.places import Place
from ota_service.fleet.settings import BoardEntry
from ota_service.formats.partitions import Partition
from ota_service.link.chip import ChipInfo
from ota_service.link.ownership import SERVICE_CLAIMS
from ota_service.update.boot import NOTHING_TO_JUDGE_BY, Heard
from ota_service.update.facts import Staged
from ota_service.update.inspect import Inspection
from ota_service.update.plan import Plan

_STEP_PERCENT = 25
_LONG_PHASES = frozenset({"writing", "booting"})
"""Phases that last, whose beginning is worth a line where something is changed."""
_PLANNED = {
    "write": "gets the image",
    "switch": "is switched to the image in its spare slot",
    "record": "gets the version alone",
}
"""Plans that change something, in words."""


class Sight:
    """One board's. about: what is shown. before: its state before what goes on. target: what the
    board is to have. at_work: the order whose session goes on."""

    def __init__(self, about: BoardState, target: Target, around: Around) -> None:
        self.about = about
        self.target = target
        self.before = about.state
        self.at_work: Order | None = None
        self._around = around
        self._phase_began_s = 0.0
        self._logged_percent = 0

    def log(self, level: int, text: str, *values: object, **options: Any) -> None:
        """A line that names the board."""
        self._around.log.log(level, f"%s: {text}", self.about.name, *values, **options)

    # --- facts

    def identified(self, record: BoardRecord) -> None:
        """The chip said its MAC. record: what the journal has of that one."""
        about, mac = self.about, record.mac
        if mac != about.mac or about.confirmed is None:
            self._known(record.confirmed)
        about.mac = self._report["mac"] = mac
        about.unchecked, about.rewritten = record.unchecked, record.rewritten

    def seen(self, found: Inspection) -> None:
        """The board was looked at."""
        about = self.about
        about.chip, about.flash_bytes = found.chip.name, found.chip.flash_bytes
        if found.has_version:
            self.version(found.version)
            self._report.setdefault("from", found.version)
        about.running = running_of(found.running.partition, found.running_app) or about.running

    def heard(self, heard: Heard) -> None:
        """Something of a start that is watched."""
        self.about.log.add(heard)

    def staged(self, staged: Staged | None) -> None:
        """What waits on the board to be activated, by now."""
        self.about.staged = staged

    def flash_planned(self, chip: ChipInfo, total_bytes: int, kept: str) -> None:
        """The whole flash is about to be replaced. kept: what becomes of the keys, in words."""
        about = self.about
        about.chip, about.flash_bytes = chip.name, chip.flash_bytes
        about.state = "updating"
        self.log(logging.INFO, "the whole flash is written (%d bytes); %s", total_bytes, kept)

    def rewritten(self, mark: int) -> None:
        """Another program has replaced what the board holds: the next look will show with what.
        mark: what tells that time from others (`rewrite_mark`)."""
        about = self.about
        if mark == about.rewritten:  # a session has begun meanwhile
            return
        about.rewritten = mark
        self.log(logging.INFO, "another program has flashed or restored it; it is to be looked at")
        about.version = about.version_read_at = about.staged = about.back = None
        about.unchecked = False
        self.switches()
        if about.state in ("up_to_date", "outdated"):
            about.state = "unknown"

    def restarted(self, reason: str) -> None:
        """The board is restarted, and why."""
        self._report.setdefault("restarts", []).append(reason)
        why = self.at_work.why if self.at_work is not None else ""
        self.log(logging.DEBUG, "restarted %s (%s)", reason, why)

    def warned(self, error: OtaError) -> None:
        """Something that a person should see while it goes on."""
        self.about.error = error
        self.log(logging.WARNING, "%s", error.message)

    def adopted(self, name: str, entry: BoardEntry | None) -> None:
        """The configuration's entry for the board, which may have another name now."""
        self.about.name, self.about.entry = name, entry

    @property
    def _report(self) -> dict[str, Any]:
        return self.at_work.report if self.at_work is not None else {}

    def phase(self, name: str | None, at_s: float) -> None:
        """A phase begins, or the last one ends."""
        about = self.about
        if about.phase not in (None, "waiting"):
            phases = self._report.setdefault("phases", {})
            spent_s = phases.get(about.phase, 0.0) + at_s - self._phase_began_s
            phases[about.phase] = round(spent_s, 3)
        self._phase_began_s = at_s
        about.phase = name
        if name in ("writing", "booting", None):
            about.progress, self._logged_percent = None, 0
        if name is not None:
            order = self.at_work
            changes = order is not None and (
                order.purpose in ("rollback", "back", "flash")
                or (order.plan is not None and order.plan.action in _PLANNED)
            )
            level = logging.INFO if name in _LONG_PHASES and changes else logging.DEBUG
            self.log(level, "%s", name.replace("_", " "))

    def planned(self, plan: Plan) -> None:
        """What an update will do."""
        order, about = self.at_work, self.about
        if order is None:
            return
        order.plan = plan
        order.report |= {"action": plan.action, "reason": plan.reason}
        words = _PLANNED.get(plan.action)
        level = logging.INFO if words is not None else logging.DEBUG
        self.log(level, "%s (%s)", words or plan.action, plan.reason)
        # Whoever named the board consented to another project's firmware; it is said anyway.
        before = about.running.get("project")
        after = self._around.firmwares.project(order.target)
        if plan.action in ("write", "switch") and before and after and before != after:
            if order.purpose != "stage":
                order.report["replaces"] = {"project": before, "by": after}
            self.log(logging.WARNING, 'the project "%s" is replaced by "%s"', before, after)

    def progress(self, done: int, total: int) -> None:
        """Bytes of the image that were sent."""
        about = self.about
        if about.progress is None:
            about.progress = Progress(bytes_total=total)
            if self.at_work is not None and self.at_work.plan is not None:
                replaces = self.at_work.plan.replaces  # from here on it is gone
                self._report.update({"replaces": replaces} if replaces else {})
        about.progress.bytes_done = self._report["bytes"] = done
        percent = done * 100 // total if total else 0
        if percent >= self._logged_percent + _STEP_PERCENT:
            self._logged_percent = percent - percent % _STEP_PERCENT
            self.log(logging.INFO, "%d %% written", self._logged_percent)

    def remember(
        self, record: BoardRecord, running: dict[str, str], staged: Staged | None,
        back: dict[str, str] | None, held: policy.Spared | None, failed: int,
    ) -> None:  # fmt: skip
        """Show from the start what the journal has. held, failed: what keeps it from being taken
        up, and how often its target failed."""
        about = self.about
        about.staged, about.back = staged, back
        about.mac, about.chip, about.flash_bytes = record.mac, record.chip, record.flash_bytes
        about.version, about.version_read_at = record.version, record.version_read_at
        self._known(record.confirmed)
        about.unchecked, about.rewritten = record.unchecked, record.rewritten
        about.running = running
        if held is not None:
            about.state, about.error, about.attempts = held.state, held.error, failed
        elif record.version is not None and record.version != self.target.version:
            about.state = "outdated"
        elif record.version is not None and record.version_read_at is not None:
            about.state = "up_to_date"

    def _known(self, confirmed: bool | None) -> None:
        self.judged(confirmed, NOTHING_TO_JUDGE_BY if confirmed is False else "")

    def checked(self) -> None:
        """The robot's word on what runs is waited for no more."""
        self.about.unchecked = False

    # --- what is concluded

    def version(self, version: str | None) -> None:
        """A tag was read, or stored, just now."""
        if version is not None:
            self.about.version, self.about.version_read_at = version, utc_now()

    def emptied(self, record: BoardRecord) -> None:
        """Its whole flash is being replaced. record: what the journal has left of it."""
        self.about.rewritten = record.rewritten
        self.switches()

    def switches(self) -> None:
        """Until a start has shown it, nobody knows what runs."""
        self.about.running = {}
        self.judged(None)

    def judged(self, confirmed: bool | None, notice: str = "") -> None:
        """What a watched start of what runs has shown; None: none was watched."""
        self.about.confirmed, self.about.notice = confirmed, notice

    def error(self, error: OtaError) -> None:
        """What went wrong, under the state that belongs to its code."""
        about = self.about
        about.error = error
        about.state = policy.shown_for(error)
        if error.code in policy.WITHOUT_OUTCOME:
            wanted = self.target.version
            about.state = policy.shown_when_dropped(self.before, about.version, wanted)
        about.phase = about.progress = None

    def place(self, place: Place) -> None:
        """Where it is, or why its port stays closed."""
        about = self.about
        about.port = place.port or about.port
        if place.mac not in (None, about.mac):
            self.judged(None)
        about.mac = place.mac or about.mac
        if place.kind == "candidate":
            about.state = "candidate"
        elif place.kind == "here" and about.state in ("absent", "candidate"):
            about.state, about.error = "unknown", None
        elif place.error is not None:
            self.error(place.error)
        if place.kind == "absent":
            self.away()

    def away(self) -> None:
        """The MAC of a board that is not there may be another's, which was one with it before."""
        about = self.about
        if about.mac is not None and (about.entry is None or about.entry.mac != about.mac):
            SERVICE_CLAIMS.drop(self._around, about.mac)

    def gone(self, error: OtaError) -> None:
        """Its port is not there, or is not the board's."""
        self.log(logging.INFO, "%s", error.message)
        self.about.state, self.about.error = policy.shown_for(error), error
        self.away()

    def retarget(self, target: Target) -> None:
        """Another target is this board's from now on, or something ended that was for another."""
        about = self.about
        self.target = target
        if about.error is not None and about.error.code in policy.NOT_THE_BOARD:
            return
        before = about.state
        about.state = policy.shown_when_retargeted(before, about.version, target.version)
        about.error = about.error if about.state == before else None
        self.before = policy.shown_when_retargeted(self.before, about.version, target.version)

    def released(self) -> None:
        """It may be taken up again."""
        about = self.about
        if about.state in ("set_aside", "rolled_back", "failed", "unrecognised"):
            about.error, about.attempts = None, 0
            about.state = policy.shown_when_released(about.version, self.target.version)


def running_of(slot: Partition | None, app: Described | None) -> dict[str, str]:
    """What runs, as the status shows it. app: what the slot holds."""
    if slot is None:
        return {}
    about = app.descriptor if app is not None else None
    shown = {"slot": slot.name}
    if about is not None:
        shown |= {"project": about.project, "app_version": about.version}
    return shown
