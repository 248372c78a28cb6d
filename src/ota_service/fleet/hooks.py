# SPDX-License-Identifier: GPL-3.0-or-later
"""What a board's session tells its run, from its thread: status, log and journal."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ota_service.board.facts import BoardFacts
from ota_service.board.inspect import Inspection
from ota_service.board.ownership import SERVICE_CLAIMS
from ota_service.board.plan import Plan, WatchBoot, WriteSlot
from ota_service.board.ports import shown
from ota_service.board.session import Phase
from ota_service.errors import OtaError
from ota_service.fleet.board_state import BoardState, Progress, utc_now
from ota_service.fleet.memory import Memory
from ota_service.fleet.places import Place

if TYPE_CHECKING:
    from ota_service.firmware.target import Target

LOGGER = logging.getLogger("ota_service.fleet")

_LOG_EACH_PERCENT = 10


@dataclass(slots=True)
class BoardWork:
    """One board's part in a run.

    cancel: set to stop it where that leaves the board bootable; stop: the process ends.
    report: what the history shows of it. project: the image's, "" while there is none.
    """

    board: BoardState
    place: Place
    target: Target
    cancel: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    project: str = ""
    plan: Plan | None = None
    report: dict[str, Any] = field(default_factory=dict)
    pausing: bool = False
    set_aside: bool = False


class SessionHooks:
    """Implements `board.session.Hooks` for one session of a run."""

    def __init__(
        self, work: BoardWork, memory: Memory, *, confirm_timeout_s: float, writes: bool, why: str,
        max_attempts: int,
    ) -> None:  # fmt: skip
        self.work = work
        self.memory = memory
        self.confirm_timeout_s = confirm_timeout_s
        self.writes = writes
        self.why = why
        self.max_attempts = max_attempts
        self.facts = BoardFacts()
        self.found: Inspection | None = None
        self._phase_began_s = time.monotonic()
        self._logged_percent = 0

    def identified(self, mac: str) -> BoardFacts:
        """The chip answered: is it the board that is meant?"""
        work, board, memory = self.work, self.work.board, self.memory
        self._require_right(mac)
        SERVICE_CLAIMS.add(memory.service, mac)
        board.mac = mac
        work.report["mac"] = mac
        memory.learn_place(board.name, str(board.port), work.place.info, mac)
        carried = memory.journal.carried_baud(mac, str(board.port))
        self.facts = replace(memory.facts(mac, work.target.key), carried_baud=carried)
        return self.facts

    def _require_right(self, mac: str) -> None:
        board, entry = self.work.board, self.work.board.entry
        if entry is None or board.port is None:
            return
        if entry.mac is not None and entry.mac != mac:
            raise OtaError(
                "wrong-board",
                f"The board at {shown(board.port)} is {mac}, not {entry.mac}.",
                board=board.name,
            )
        if entry.port is not None:
            info = self.work.place.info
            known = self.memory.journal.learn_port(
                entry.port,
                mac,
                location=info.location if info is not None else None,
                serial=info.serial_number if info is not None else None,
            )
            if known.mac != mac:
                why = f"The board at {shown(entry.port)} is {mac}; before it was {known.mac}."
                self.memory.journal.set_wrong_board(entry.port, why)
                raise OtaError("wrong-board", why, board=board.name)

    def inspected(self, found: Inspection) -> None:
        """Show what is on the board."""
        self.found = found
        board = self.work.board
        board.chip = found.chip.name
        board.flash_bytes = found.chip.flash_bytes
        if found.nvs is not None:
            board.version = found.version
            board.version_read_at = utc_now()
            self.work.report.setdefault("from", found.version)
        app, partition = found.running_app, found.running.partition
        if partition is not None:
            board.running = {"slot": partition.name}
            if app is not None and app.descriptor is not None:
                about = app.descriptor
                board.running |= {"project": about.project, "app_version": about.version}
        if self.writes and found.nvs is not None:
            self._end_duel(found)
        self.memory.saw(found)

    def _end_duel(self, found: Inspection) -> None:
        """Another updater with another version would change the board for ever."""
        target = self.work.target
        times = self.memory.duel(found.chip.mac, target.key, found.version, target.version)
        if times == 0:
            return
        message = (
            f'Something else changed the version from "{target.version}" to "{found.version}"'
            f" ({times} of {self.max_attempts} times)."
        )
        error = OtaError("changed-elsewhere", message, board=self.work.board.name)
        LOGGER.warning("%s", error)
        self.work.board.error = error
        if times >= self.max_attempts:
            raise error

    def planned(self, made: Plan) -> None:
        """The plan stands; from here on the journal must know what is being done."""
        work = self.work
        work.plan = made
        work.report |= {"action": made.action, "reason": made.reason}
        LOGGER.info("%s: %s (%s)", work.board.name, made.action, made.reason)
        found = self.found
        if found is not None and made.action in ("write", "switch"):
            self._say_replaced(found)
        if found is None or not self.writes:
            return
        if not made.rolled_back and not self.facts.unwatched and not found.pending:
            self._remember_running(found)
        if made.action in ("write", "switch", "record"):
            work.board.state = "updating"
            self.memory.journal.begin_attempt(found.chip.mac, work.target.key)
        for step in made.steps:
            if isinstance(step, WriteSlot):
                self.memory.overwrites(found.chip.mac, step.slot.name)

    def _say_replaced(self, found: Inspection) -> None:
        """Whoever named the board consented to another project's firmware; it is said anyway."""
        app, after = found.running_app, self.work.project
        before = app.descriptor.project if app is not None and app.descriptor is not None else ""
        if before and after and before != after:
            LOGGER.warning(
                '%s: the project "%s" is replaced by "%s"', self.work.board.name, before, after,
                extra={"replaced": (self.work.board.name, before, after)},
            )  # fmt: skip

    def _remember_running(self, found: Inspection) -> None:
        """What runs now is the evidence for the next look, and what a rollback goes back to."""
        running = found.running
        if running.partition is None or running.md5 is None or running.size_bytes is None:
            return
        name, mac = running.partition.name, found.chip.mac
        fact = self.facts.slots.get(name)
        if fact is None or fact.md5 != running.md5 or fact.version is None:
            self.memory.runs(
                found,
                running.partition,
                version=found.version,
                size_bytes=running.size_bytes,
                md5=running.md5,
            )
        if self.facts.last_slot is None:
            self.memory.last_slot(mac, name)

    def phase(self, name: Phase) -> None:
        """A phase begins."""
        now_s = time.monotonic()
        work = self.work
        phases = work.report.setdefault("phases", {})
        before = work.board.phase
        if before is not None and before != "waiting":
            phases[before] = round(phases.get(before, 0.0) + now_s - self._phase_began_s, 3)
        self._phase_began_s = now_s
        work.board.phase = name
        LOGGER.info("%s: %s", work.board.name, name.replace("_", " "))
        if name == "booting":
            work.board.progress = None
            self._await_confirmation()

    def _await_confirmation(self) -> None:
        """Before the restart: a killed process must find that this board is to be left alone."""
        found, made = self.found, self.work.plan
        boot = next((s for s in made.steps if isinstance(s, WatchBoot)), None) if made else None
        if found is None or boot is None or not boot.confirms:
            return
        running = found.running.partition
        self.memory.awaits(
            found.chip.mac,
            self.work.target.key,
            version=self.work.target.version,
            slot=boot.slot.name,
            seconds=self.confirm_timeout_s,
            previous_slot=running.name if running is not None else None,
            previous_version=made.from_version if made is not None else None,
        )

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes of the image that were sent; logged at most each 10 %."""
        board = self.work.board
        if board.progress is None:
            board.progress = Progress(bytes_total=bytes_total)
        board.progress.bytes_done = bytes_done
        self.work.report["bytes"] = bytes_done
        percent = bytes_done * 100 // bytes_total if bytes_total else 0
        if percent >= self._logged_percent + _LOG_EACH_PERCENT:
            self._logged_percent = percent - percent % _LOG_EACH_PERCENT
            LOGGER.info("%s: %d %% written", board.name, self._logged_percent)

    def restarting(self, reason: str) -> None:
        """Each restart's reason is in the log and in the history."""
        LOGGER.info("%s: restarted %s (%s)", self.work.board.name, reason, self.why)
        self.work.report.setdefault("restarts", []).append(reason)

    def carried(self, baud: int) -> None:
        """What the line was found to hold, or not to hold any more."""
        board = self.work.board
        if board.mac is not None:
            self.memory.journal.record_carried(board.mac, str(board.port), baud)

    def cancelled(self) -> bool:
        """Whether to stop where that leaves the board bootable."""
        return self.work.cancel.is_set() or self.work.stop.is_set()

    def stopping(self) -> bool:
        """Whether the process ends."""
        return self.work.stop.is_set()

    def end(self) -> None:
        """The session is over: close its last phase."""
        now_s = time.monotonic()
        before = self.work.board.phase
        if before is not None and before != "waiting":
            phases = self.work.report.setdefault("phases", {})
            phases[before] = round(phases.get(before, 0.0) + now_s - self._phase_began_s, 3)
        self.work.board.phase = None
        self.work.board.progress = None
