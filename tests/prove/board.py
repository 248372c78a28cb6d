# SPDX-License-Identifier: GPL-3.0-or-later
"""A board in memory that goes through the very session that real boards go through.

`Link` stands in for the link to a chip, `MemorySession` for waiting at a port: everything else,
from the look at the board to the rollback, is the session's own code. What the board does when
it is restarted (bootloader, NVS repairs of its app, confirmation) is the simulator's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from esp32_sim.bootmodel import PENDING_VERIFY, VALID, BootResult, Select
from esp32_sim.flash import FlashOp as SimOp
from esp32_sim.flash import NorFlash
from esp32_sim.layouts import Layout
from ota_service.fleet.attempt import after_waiting
from ota_service.formats.flashops import Erase, FlashOp, Program, program
from ota_service.formats.partitions import Partition
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Protection
from ota_service.update.boot import BootMonitor, Expected, Verdict
from ota_service.update.facts import BoardFacts, SlotFact, Staged
from ota_service.update.first_look import FirstLook
from ota_service.update.inspect import Inspection
from ota_service.update.plan import Plan
from ota_service.update.session import BootRules, Job, Outcome, _Session
from ota_service.update.starts import Starts
from tests.formats.nvs_firmware import ALL_RULES, Rules
from tests.prove.bootloader import Bootloader
from tests.prove.cells import CellFlash, Cells
from tests.prove.images import Firmware, named
from tests.prove.nvs_init import alike, nvs_of, repairs

SECTOR = 0x1000
MAC = "24:0a:c4:00:00:01"
BOOT = BootRules(timeout_s=5.0, stable_s=0.3)
"""Long enough for `images.PANICS` to panic, no longer."""


@dataclass(frozen=True)
class Op:
    """One operation of a trace: who did it, what it was, and what the session was doing."""

    who: str
    op: FlashOp
    phase: str = ""


class Link(CellFlash):
    """A chip in download mode; implements what a session asks of a link.

    ops: everything that reached the flash, whoever did it. firmware: what runs since the last
    restart. nvs_erased: the app found its NVS unusable and erased it, as stock apps do. rules: of
    the versions whose app this may be, by what it has made of its NVS so far.
    """

    def __init__(
        self, cells: Cells, bootloader: Bootloader, rules: tuple[Rules, ...] = ALL_RULES
    ) -> None:
        super().__init__(cells)
        self.bootloader = bootloader
        self.chip = ChipInfo(
            "ESP32", 0, MAC, 301, len(cells), secure_version=bootloader.secure_version
        )
        self.running = False
        self.baud = 921_600
        self.phase = ""
        self.ops: list[Op] = []
        self.boots: BootResult | None = None
        self.firmware: Firmware | None = None
        self.nvs_erased = False
        self.rules = rules

    def _do(self, op: FlashOp) -> None:
        super()._do(op)
        self.ops.append(Op("loader", op, self.phase))

    def protection(self) -> Protection:
        """No protection bit is set."""
        return Protection(0, len(self.cells))

    def reconnect(self) -> None:
        """Into download mode: the firmware stops, and no bootloader is passed."""
        self.running = False

    def restart(self) -> None:
        """A reset into the firmware: the bootloader, then the app's start."""
        self.running = True
        nor = NorFlash(self.cells)  # type: ignore[arg-type]  # used like a bytearray
        nor.on_op = self._note
        self.boots = result = self.bootloader.boot(nor)
        self.firmware = None
        if result.image is not None:
            self.firmware = named(self.cells.read(result.image.offset, result.image.size))
        if result.partition is not None:
            self._start_nvs(result)

    def _start_nvs(self, result: BootResult) -> None:
        store = next(p for p in result.partitions if (p.type, p.subtype) == (1, 2))
        region = self.cells.read(store.offset, store.size)
        found = nvs_of(region)
        self.rules = alike(region, self.rules)
        for place, data in repairs(region) if found.error is None else ():
            at = store.offset + place
            if data is not None:
                for op in program(at, data):
                    self._app(op)
            else:
                self._app(Erase(at, SECTOR))
        if found.error is not None:
            self.nvs_erased = True
            self._app(Erase(store.offset, store.size))

    def _app(self, op: FlashOp) -> None:
        self.cells.apply(op)
        self.ops.append(Op("app", op, self.phase))

    def session(self, job: Job, notes: Notes) -> Outcome:
        """One session with this board."""
        notes.link = self
        return MemorySession(self, job, notes).run()

    def time_passes(self) -> None:
        """The app has had its time: a good one confirms itself where it has to."""
        if self.firmware is None or not self.firmware.confirms or self.boots is None:
            return
        at = next(p for p in self.boots.partitions if (p.type, p.subtype) == (1, 0)).offset
        entries = [Select.parse(self.cells.read(at + i * SECTOR, 32)) for i in range(2)]
        active = max(
            (i for i in range(2) if entries[i].counts), key=lambda i: entries[i].seq, default=None
        )
        if active is None or entries[active].state != PENDING_VERIFY:
            return
        entry = entries[active]
        valid = Select(entry.seq, VALID, entry.crc, entry.label).encode()
        place = at + active * SECTOR
        for op in (Erase(place, SECTOR), Program(place, valid)):
            self._app(op)

    def _note(self, op: SimOp) -> None:
        if op.outcome == "done":
            self.ops.append(Op(op.who, as_op(op.kind, op.address, op.size, op.data), self.phase))


def as_op(kind: str, address: int, size: int, data: bytes) -> FlashOp:
    """The simulator's operation as ours."""
    return Erase(address, size) if kind == "erase" else Program(address, data)


@dataclass
class Notes:
    """What the journal knows of a board, and the session's hooks. Implements `session.Hooks`.

    facts: given to the next session. target: the firmware that is being brought to the board.
    """

    facts: BoardFacts = field(default_factory=BoardFacts)
    link: Link | None = field(default=None, repr=False)
    plans: list[Plan] = field(default_factory=list)
    found: Inspection | None = None
    on_phase: Callable[[str], None] | None = None

    def identified(self, mac: str) -> BoardFacts:
        """The chip answered."""
        return self.facts

    def inspected(self, found: Inspection) -> None:
        """The board was looked at."""
        self.found = found

    def planned(self, made: Plan) -> None:
        """What will be done with it."""
        self.plans.append(made)

    def phase(self, name: str) -> None:
        """A phase begins."""
        if self.link is not None:
            self.link.phase = name
        if self.on_phase is not None:
            self.on_phase(name)

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes of the image that were sent."""

    def restarting(self, reason: str) -> None:
        """The board is restarted now."""

    def cancelled(self) -> bool:
        """Nobody cancels."""
        return False

    def stopping(self) -> bool:
        """The process goes on."""
        return False


class Told(Notes):
    """Notes with the restarts that were told."""

    restarts: tuple[str, ...] = ()

    def restarting(self, reason: str) -> None:
        """Noted."""
        self.restarts += (reason,)


class MemorySession(_Session):
    """A session whose port is a `Link`."""

    def __init__(self, link: Link, job: Job, notes: Notes) -> None:
        super().__init__(None, job, notes)
        self.link = link  # type: ignore[assignment]
        self.starts = MemoryStarts(link, None, job.name, job.boot, notes, job.log)  # type: ignore[arg-type]
        self.facts = notes.identified(MAC)

    def run(self) -> Outcome:
        """As `session.run`."""
        self.link.reconnect()
        return self._visit()


class MemoryStarts(Starts):
    """The starts of a board in memory."""

    _link: Link  # type: ignore[assignment]

    def _look(self) -> FirstLook:
        link = self._link
        link.restart()
        result = link.boots
        assert result is not None
        link.reconnect()
        return FirstLook(
            None if link.bootloader.silent else result.offset,
            app_prints=result.image is not None and link.bootloader.silent,
        )

    def _seen(self, until: Any, stopped: Any) -> tuple[BootMonitor, bool]:
        if stopped():  # it is reset before its app does anything
            return BootMonitor(Expected(), BootRules(0, 0)), False
        self._link.restart()
        return BootMonitor(Expected(), BootRules(0, 0)), True

    def watched(
        self,
        slot: Partition | None,
        expected: Expected | None = None,
        *,
        known_good: bool = False,
    ) -> BootMonitor:
        """By what the bootloader started, and what is known of that firmware."""
        link = self._link
        link.restart()
        monitor = BootMonitor(expected or Expected(), BootRules(0, 0))
        result, firmware = link.boots, link.firmware
        assert result is not None
        if slot is not None and result.offset != slot.offset:
            monitor.verdict = Verdict.FAILED
            monitor.reason = f"the bootloader started {result.slot}"
        elif firmware is None or not firmware.starts:
            monitor.verdict = Verdict.FAILED
            monitor.reason = "the app panicked"
        else:
            monitor.verdict, monitor.app_prints = Verdict.RUNNING, True
        return monitor


class Board(Protocol):
    """A board that sessions are made with: one in memory, or a simulated one over its port."""

    @property
    def cells(self) -> Cells:
        """Its flash as it is now."""

    @property
    def nvs_erased(self) -> bool:
        """Whether its app found NVS unusable and erased it."""

    @property
    def rules(self) -> tuple[Rules, ...]:
        """Of the versions by whose rules its NVS is to be judged."""

    def session(self, job: Job, notes: Notes) -> Outcome:
        """One session."""

    def time_passes(self) -> None:
        """Its app has had its time to confirm itself."""


def update(board: Board, firmware: Firmware, notes: Notes, *, force: bool = False) -> Outcome:
    """One update as a run makes it, the waiting for confirmation included."""
    job = Job("board", version=firmware.tag, image=firmware.image, force=force, boot=BOOT)
    return to_its_end(board, job, notes)


def to_its_end(board: Board, job: Job, notes: Notes) -> Outcome:
    """A session, and those that follow while its app has yet to confirm itself."""
    outcome = board.session(job, notes)
    for _ in range(3):
        if outcome.end != "awaiting_confirmation":
            break
        board.time_passes()
        job = after_waiting(job, outcome)
        outcome = board.session(job, notes)
    return outcome


def known_facts(layout: Layout, label: str, firmware: Firmware, tag: str) -> BoardFacts:
    """What the journal knows of a board that was seen running `firmware` from the slot `label`."""
    fact = SlotFact(len(firmware.data), firmware.image.md5, version=tag)
    return BoardFacts(slots={label: fact}, last_slot=label)


def staged(firmware: Firmware, slot: str, *, stale: bool = False) -> Staged:
    """What the journal knows of a board on which `firmware` is staged in the slot `slot`."""
    image, known = firmware.image, firmware.image.known
    return Staged(
        "key", firmware.tag, slot, known.size_bytes, image.sha256, known.md5, known.staged_md5,
        known.head[:288], datetime.now(UTC), stale,
    )  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Without the sessions' log: rollbacks are wanted here."""
    logger = logging.getLogger("ota_service")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
