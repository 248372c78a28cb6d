# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a board's task, what it hears, and what it answers: values."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ota_service.board.chip import ChipInfo
from ota_service.board.flash_plan import MergedFile
from ota_service.board.inspect import Inspection
from ota_service.board.plan import Plan
from ota_service.board.session import Image
from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet.journal_rows import BoardRecord
from ota_service.fleet.places import Place
from ota_service.fleet.policy import Event, Permits, Spared
from ota_service.fleet.settings import BoardEntry

Trigger = Literal["configured", "command", "attached", "resumed"]
Purpose = Literal["update", "plan", "version", "verify", "rollback", "flash"]
READS: tuple[Purpose, ...] = ("plan", "version", "verify")
"""Purposes that write nothing."""

End = Literal["done", "cancelled", "stopped", "no-firmware", "error"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an order. reply: of a read, a rollback or a flash, as its verb gives it."""

    end: End
    error: OtaError | None = None
    reply: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FlashFile:
    """The Merged Binary that an order of `flash` writes; confirm: the MAC the board must have."""

    file: MergedFile
    confirm: str
    keep_nvs: bool = False


def _future() -> asyncio.Future[Answer]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class Order:
    """One thing asked of one board; answered once.

    why: what started it, for the log. target: an update's; a read's for `verify` and `plan`.
    place: where the board was found. failed: attempts at this target that failed before. spared:
    why the journal answers for the board. image: a look's; file: a flash's. plan, not_before_s,
    began_s: what the board's task notes on the way, in the event loop's time. report: what the
    history shows. followers: the same, asked again.
    """

    purpose: Purpose
    target: Target
    place: Place
    why: str = ""
    permits: Permits = field(default_factory=Permits)
    failed: int = 0
    spared: Spared | None = None
    image: Image | None = None
    file: FlashFile | None = None
    plan: Plan | None = None
    not_before_s: float = 0.0
    began_s: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    followers: list[Order] = field(default_factory=list)
    answer: asyncio.Future[Answer] = field(default_factory=_future)

    def give(self, answer: Answer) -> None:
        """Answer it, and those that joined it."""
        for order in (self, *self.followers):
            if order is not self:
                order.report |= self.report
            if not order.answer.done():
                order.answer.set_result(answer)


@dataclass(frozen=True, slots=True)
class Message:
    """Something for a board's task to act on. token: of the wait that it belongs to."""

    event: Event
    order: Order | None = None
    value: Any = None
    token: object | None = None


# --- facts: what a session tells, and what the service knows


@dataclass(frozen=True, slots=True)
class PhaseBegan:
    """A phase of a session began; None: the last one ended. at_s: monotonic."""

    name: str | None
    at_s: float


@dataclass(frozen=True, slots=True)
class Identified:
    """The chip said its MAC."""

    mac: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The board was looked at."""

    found: Inspection


@dataclass(frozen=True, slots=True)
class Planned:
    """What is done with it. writes: it is carried out."""

    plan: Plan
    writes: bool


@dataclass(frozen=True, slots=True)
class FlashPlanned:
    """The whole flash is about to be replaced. kept: what becomes of the keys, in words."""

    chip: ChipInfo
    total_bytes: int
    kept: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Where what a board had is kept, while its whole flash is written."""

    folder: Path


@dataclass(frozen=True, slots=True)
class Progressed:
    """Bytes of the image that were sent."""

    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """The board was restarted, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that a person should see while it goes on."""

    error: OtaError


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the journal has of a board. as_read: nothing was done to it since it was read."""

    record: BoardRecord
    as_read: bool


@dataclass(frozen=True, slots=True)
class Adopted:
    """The configuration's entry for a board, which may have another name now."""

    name: str
    entry: BoardEntry | None


Fact = (
    PhaseBegan
    | Identified
    | Seen
    | Planned
    | FlashPlanned
    | Kept
    | Progressed
    | Restarted
    | Warned
    | Remembered
    | Adopted
)
