# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session tells from its thread: facts for its board's task, and notes for the journal.

Nothing here changes what the event loop has; nothing here decides what becomes of the board.
What must be on the disk before the board is touched is written here, before the session goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.fleet.around import Around
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.journal_rows import BoardRecord
from ota_service.fleet.orders import SWITCHES, UPDATES, Fact, Order
from ota_service.fleet.sight import Sight
from ota_service.link.chip import ChipInfo
from ota_service.link.ownership import SERVICE_CLAIMS
from ota_service.link.ports import shown
from ota_service.update.boot import Heard
from ota_service.update.facts import BoardFacts, KnownImage
from ota_service.update.flash_plan import Before, FlashPlan
from ota_service.update.inspect import Inspection
from ota_service.update.plan import Plan, WatchBoot, WriteSlot, tag_of_running
from ota_service.update.rewrite import WritePhase, total_bytes
from ota_service.update.session import Brought, Phase


class SessionHooks:
    """Implements `session.Hooks` for one order's session; `tell` brings a fact to the board's task.

    What a thread may read of the board is noted beforehand. brings: the image that it may get,
    as far as the journal has to know it. cancel: set to stop it where that
    leaves the board bootable; stop: the process ends.
    """

    def __init__(
        self, around: Around, about: BoardState, order: Order, tell: Callable[[Fact], None]
    ) -> None:
        self.name, self.entry, self.port = about.name, about.entry, str(about.port)
        self.memory = around.memory
        self.tell = tell
        self.cancel = threading.Event()
        self.stop = threading.Event()
        self.facts = BoardFacts()
        self.mac: str | None = None
        self.found: Inspection | None = None
        self.plan: Plan | None = None
        self.brings: KnownImage | None = None
        self._around, self._settings = around, around.settings.of(about.entry)
        self._info, self._target, self._runs = order.place.info, order.target, order.runs
        self._meant = order.place.mac if order.whole else None
        self._updates, self._switches = order.purpose in UPDATES, order.purpose in SWITCHES
        self._activates = order.purpose == "activate"

    def identified(self, mac: str) -> BoardFacts:
        """The chip answered: is it the board that is meant?"""
        memory = self.memory
        self._require_right(mac)
        SERVICE_CLAIMS.add(self._around, memory.service, mac, self.name)
        self.mac = mac
        place = partial(memory.learn_place, self.name, self.port, self._info, mac)
        memory.journal.whole(place)
        facts = self.facts = memory.facts(mac, self._target)
        record = memory.journal.board(mac) or BoardRecord(mac)
        self.tell(lambda sight: sight.identified(record))
        self.tell(lambda sight: sight.staged(facts.staged))
        return facts

    def _require_right(self, mac: str) -> None:
        entry, info, meant = self.entry, self._info, self._meant
        if meant not in (None, mac):
            why = f"The board at {shown(self.port)} is {mac}, not {meant} of the group."
            raise OtaError("wrong-board", why, board=self.name)
        if entry is None:
            return
        if entry.mac is not None and entry.mac != mac:
            why = f"The board at {shown(self.port)} is {mac}, not {entry.mac}."
            raise OtaError("wrong-board", why, board=self.name)
        if entry.port is None:
            return
        usb = (info.location, info.serial_number) if info is not None else (None, None)
        known = self.memory.journal.learn_port(entry.port, mac, *usb)
        if known.mac != mac:
            why = f"The board at {shown(entry.port)} is {mac}; before it was {known.mac}."
            self.memory.journal.put(replace(known, wrong_board=why))
            raise OtaError("wrong-board", why, board=self.name)

    def inspected(self, found: Inspection) -> None:
        """The board was looked at."""
        self.found = found
        self.tell(lambda sight: sight.seen(found))
        staged = self.memory.still_staged(found, self.facts.staged)
        self.tell(lambda sight: sight.staged(staged))
        self.memory.saw(found)
        if self._switches and found.has_version:
            self._end_duel(found)

    def _end_duel(self, found: Inspection) -> None:
        """Another updater with another version would change the board for ever."""
        target, most = self._target, self._settings.max_attempts
        runs = found.running.partition
        strange = found.on_host and runs is not None and not found.holds(runs)
        times = self.memory.duel(
            found.chip.mac, target.key, found.version, target.version, strange=strange
        )
        if times == 0:
            return
        what = f'version from "{target.version}" to "{found.version}"'
        if strange and not found.version:
            what = f'firmware: what runs is not what was installed as "{target.version}"'
        then = "the board is left as it is" if times >= most else "then the board is left as it is"
        message = f"Something else changed the {what} ({times} of {most} times; {then})."
        error = OtaError("changed-elsewhere", message, board=self.name)
        self.tell(lambda sight: sight.warned(error))
        if times >= most:
            raise error

    def planned(self, made: Plan) -> None:
        """The plan stands; from here on the journal must know what is being done."""
        self.plan = made
        found, changes = self.found, made.action in ("write", "switch", "record")
        if found is not None and changes:
            self._require_assigned(found)
        if found is None or not self._updates:
            return
        self.tell(lambda sight: sight.planned(made))
        self._tell_retagged(found, made)
        if not made.rolled_back and not self.facts.unwatched and not found.pending:
            self._remember_running(found)
        mac = found.chip.mac
        if self._switches and changes:
            self.memory.journal.begin_attempt(mac, self._target.key)
        for step in made.steps:
            if isinstance(step, WriteSlot):
                self.memory.overwrites(mac, step.slot.name)
                staged = self.memory.staged(mac, self._target)
                self.tell(partial(Sight.staged, staged=staged))

    def _tell_retagged(self, found: Inspection, made: Plan) -> None:
        """That the target's image is what runs already, under another tag, as was known before."""
        running = found.running.partition
        fact = self.facts.slots.get(running.name) if running is not None else None
        before = fact.version if fact is not None and made.of_image else None
        if made.action == "record" and before == made.from_version != made.to_version:
            self.tell(lambda _: self._around.firmwares.retagged(self._target))

    def _require_assigned(self, found: Inspection) -> None:
        """An image that a board gets for what runs on it rests on what was known of that."""
        app = found.running_app
        runs = app.descriptor.project if app is not None and app.descriptor is not None else ""
        if self._runs is not None and found.running.partition is not None and runs != self._runs:
            raise OtaError(
                "other-project",
                f'The board runs the project "{runs}", and not "{self._runs}" as it was known to '
                "when it was given its image of the manifest, so nothing was written.",
                board=self.name,
                remedy="Call update: it gets the image of what it runs.",
            )

    def _remember_running(self, found: Inspection) -> None:
        """What runs now is the evidence for the next look, and what a rollback goes back to."""
        running = found.running
        if running.partition is None or running.md5 is None or running.size_bytes is None:
            return
        name, mac = running.partition.name, found.chip.mac
        fact = self.facts.slots.get(name)
        if fact is not None and fact.md5 != running.md5:  # nobody has watched this one
            self.memory.journal.update_board(mac, confirmed=None)
            self.tell(lambda sight: sight.judged(None))
        if fact is None or fact.md5 != running.md5 or fact.version is None:
            unknown = found.on_host and not found.version
            self.memory.runs(
                mac, name, found.running_app, version=None if unknown else found.version,
                size_bytes=running.size_bytes, md5=running.md5,
            )  # fmt: skip
        if self.facts.last_slot is None:
            self.memory.journal.update_board(mac, slot=name)

    def phase(self, name: Phase | WritePhase) -> None:
        """A phase begins."""
        if name == "switching" and self.mac is not None:
            self.memory.journal.whole(partial(self._note_switch, self.mac))
            self.tell(lambda sight: sight.switches())
        if name == "rolling_back" and self.mac is not None:
            self.memory.switches(self.mac)
        if name == "booting":
            self._await_confirmation()
        began_s = time.monotonic()
        self.tell(lambda sight: sight.phase(name, began_s))

    def _note_switch(self, mac: str) -> None:
        """Before the switch: what the board can be taken back from, also by another process; and
        whose start was seen is not what runs from here on."""
        unchecked = self._settings.health_check is not None
        self.memory.switches(mac, confirmed=None, unchecked=unchecked)
        found, made, target = self.found, self.plan, self._target
        staged = self.facts.staged if self._activates else None
        image = staged.known if staged is not None else self.brings
        if found is None or made is None or made.slot is None or image is None:
            return
        before = tag_of_running(found, self.facts)
        brought = Brought(made.slot.name, image.size_bytes, image.md5, target.version, before)
        self.memory.brings(mac, target.key, brought)

    def _await_confirmation(self) -> None:
        """Before the restart: a killed process must find that this board is to be left alone."""
        found, made, target = self.found, self.plan, self._target
        boot = next((s for s in made.steps if isinstance(s, WatchBoot)), None) if made else None
        if found is None or boot is None or not boot.confirms:
            return
        self.memory.awaits(
            found.chip.mac,
            target.key,
            version=target.version,
            slot=boot.slot.name,
            seconds=self._settings.confirm_timeout_s,
            previous_version=tag_of_running(found, self.facts),
        )

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes of the image that were sent."""
        self.tell(lambda sight: sight.progress(bytes_done, bytes_total))

    def heard(self, heard: Heard) -> None:
        """Something of a start that is watched."""
        self.tell(lambda sight: sight.heard(heard))

    def restarting(self, reason: str) -> None:
        """Each restart's reason is in the history."""
        self.tell(lambda sight: sight.restarted(reason))

    def cancelled(self) -> bool:
        """Whether to stop where that leaves the board bootable."""
        return self.cancel.is_set() or self.stop.is_set()

    def stopping(self) -> bool:
        """Whether the process ends."""
        return self.stop.is_set()


class FlashHooks:
    """Implements `flash_merged.FlashHooks` by the hooks of a session."""

    def __init__(self, session: SessionHooks) -> None:
        self._session = session
        self.progress = session.progress
        self.cancelled = session.cancelled
        self.stopping = session.stopping
        self.wrote = False

    def identified(self, mac: str) -> None:
        """The chip answered: it must be the board that is meant."""
        self._session.identified(mac)

    def planned(self, chip: ChipInfo, before: Before, plan: FlashPlan) -> None:
        """Say it before it is done."""
        kept = "; ".join(
            f"{part.keys} keys of {part.label} {'stay' if part.in_place else 'are moved'}"
            for part in plan.kept
        )
        text, size_bytes = kept or "no key is kept", total_bytes(plan)
        self._session.tell(lambda sight: sight.flash_planned(chip, size_bytes, text))

    def kept(self, folder: Path) -> None:
        """Where to find what the board had, whatever comes now."""
        text = "what the board has is kept in %s"
        self._session.tell(lambda sight: sight.log(logging.INFO, text, folder))

    def phase(self, name: WritePhase) -> None:
        """A phase begins."""
        session = self._session
        if name == "writing" and session.mac is not None:
            self.wrote = True
            record = session.memory.journal.forget_contents(session.mac)
            session.tell(lambda sight: sight.emptied(record))
        self._session.phase(name)
