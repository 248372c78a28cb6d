# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a board's task, what it hears, and what it answers: values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet.board_state import BoardState, iso
from ota_service.fleet.places import Place
from ota_service.fleet.policy import Event, Permits, Spared
from ota_service.update.flash_plan import MergedFile
from ota_service.update.plan import Plan
from ota_service.update.session import Brought, Image

if TYPE_CHECKING:
    from ota_service.fleet.sight import Sight

Trigger = Literal["configured", "command", "attached", "resumed"]
Purpose = Literal[
    "update", "stage", "activate", "plan", "version", "verify", "log", "rollback", "back", "flash"
]
UPDATES: tuple[Purpose, ...] = ("update", "stage", "activate")
"""Purposes that wait for a turn and are tried again. A stage does all of an update that changes
nothing that boots, an activation the rest."""
SWITCHES: tuple[Purpose, ...] = ("update", "activate")
"""Those that change what a board runs."""
READS: tuple[Purpose, ...] = ("plan", "version", "verify", "log")
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
    why the journal answers for the board. image: a look's; file: a flash's. brought: what `back`
    takes back; None: what the journal has as this target's. plan, not_before_s, began_s: what the
    board's task notes on the way, in the event loop's time. report: what the history shows.
    followers: the same, asked again. runs: the project for which the board gets its image of a
    manifest; None: for nothing that is known of it. whole: it is a part of what goes on on several
    boards as a whole, which judges the firmware by itself: no canary, no evidence.
    """

    purpose: Purpose
    target: Target
    place: Place
    why: str = ""
    permits: Permits = field(default_factory=Permits)
    failed: int = 0
    spared: Spared | None = None
    runs: str | None = None
    whole: bool = False
    image: Image | None = None
    file: FlashFile | None = None
    brought: Brought | None = None
    plan: Plan | None = None
    not_before_s: float = 0.0
    began_s: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    followers: list[Order] = field(default_factory=list)
    answer: asyncio.Future[Answer] = field(default_factory=_future)

    def asks_as(self, other: Order) -> bool:
        """Whether the other order asks the same question, so that one answer serves both."""
        return (self.purpose, self.target.key, self.permits) == (
            other.purpose,
            other.target.key,
            other.permits,
        )

    def permit(self, more: Permits) -> None:
        """Permit more than before, from its next attempt on."""
        self.permits |= more

    def refuse(self, error: OtaError, end: End = "error") -> Answer:
        """Answer it with what kept it from being done."""
        answer = Answer(end, error, refusal(self.purpose, error))
        self.give(answer)
        return answer

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


Fact = Callable[["Sight"], None]
"""What a session tells, or the service knows: something for the board's picture to take in."""


# --- what is replied where a board was not looked at


def refusal(purpose: str, error: OtaError) -> dict[str, Any]:
    """The reply where a board could not be had."""
    if purpose == "plan":
        return {"action": "refuse", "reason": error.message, "code": error.code}
    return {"error": error.to_dict()}


def last_reply(
    purpose: str, about: BoardState, error: OtaError, plan: Plan | None
) -> dict[str, Any]:
    """The reply where a board may not be touched now: what is known, and why not."""
    if purpose == "plan" and plan is not None:
        return dict(plan.to_dict())
    reply = refusal(purpose, error)
    if purpose == "version" and about.version is not None:
        reply["version"] = about.version
        if about.version_read_at is not None:
            reply["version_read_at"] = iso(about.version_read_at)
    return reply
