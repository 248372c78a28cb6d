# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose turn it is: boards written at once, a canary first, and the stop of a firmware.

Carries out `policy.FIRMWARE`. Lives in the event loop; boards are told by messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ota_service.errors import OtaError
from ota_service.fleet.policy import (
    CANARY_ABOVE,
    FIRMWARE,
    Event,
    FirmwareAction,
    FirmwareEvent,
    FirmwareState,
    Verdict,
    too_many,
)


class Waiting(Protocol):
    """A board's task, as far as its turn goes."""

    def tell(self, event: Event, token: object | None, value: OtaError | None) -> None:
        """It is its turn, or its firmware was stopped."""


@dataclass(slots=True)
class _Firmware:
    sha256: str = ""
    state: FirmwareState = "open"
    why: OtaError | None = None
    verdicts: dict[Waiting, Verdict] = field(default_factory=dict)
    under_way: set[Waiting] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Ask:
    """A board's wish for its turn. key: of its target. sha256: of its file, which may be another
    one under the same version. proven: a board was seen running this firmware. overrides: a person
    lets it have a stopped firmware. aside: what becomes of it tells nothing of the firmware, or is
    judged by others. token: of its wait."""

    board: Waiting
    key: str
    sha256: str
    proven: bool
    overrides: bool
    aside: bool
    token: object


@dataclass
class Turns:
    """One service's. crowd: how many boards that are there have a target; on_stop: a firmware was
    stopped just now, with the reason."""

    limit: int
    canary: bool
    crowd: Callable[[str], int]
    on_stop: Callable[[str, OtaError], None]
    _line: list[Ask] = field(default_factory=list)
    _busy: dict[Waiting, Ask] = field(default_factory=dict)
    _firmwares: dict[str, _Firmware] = field(default_factory=dict)

    def ask(self, ask: Ask) -> None:
        """Stand in line; the board is told when it is its turn."""
        known = self._firmwares.get(ask.key)
        if known is None or (known.sha256 != ask.sha256 and known.state != "stopped"):
            # Another file than what boards were seen to run proves nothing.
            self._firmwares[ask.key] = _Firmware(ask.sha256)
        self._line.append(ask)
        self._grant()

    def leave(self, board: Waiting) -> None:
        """A board neither waits nor is at work now; its update has not ended."""
        self._line = [ask for ask in self._line if ask.board is not board]
        if self._busy.pop(board, None) is not None:
            self._grant()

    def ended(self, board: Waiting, key: str, verdict: Verdict | None) -> None:
        """A board's update to a target has ended; verdict None: it steps back, to ask later."""
        firmware = self._firmwares.setdefault(key, _Firmware())
        if board in firmware.under_way:
            firmware.under_way.discard(board)
            if verdict is not None:
                firmware.verdicts[board] = verdict
            self._step(key, verdict or "neutral")
            if verdict == "bad" and too_many(firmware.verdicts.values()):
                self._step(key, "too-many")
        self._line = [ask for ask in self._line if ask.board is not board]
        self._busy.pop(board, None)
        self._grant()

    def stopped(self, key: str) -> OtaError | None:
        """Why no further board gets a firmware, if so."""
        firmware = self._firmwares.get(key)
        return firmware.why if firmware is not None and firmware.state == "stopped" else None

    def note_stopped(self, key: str, why: str) -> None:
        """What the journal knows from before."""
        self._firmwares[key] = _Firmware("", "stopped", OtaError("stopped", why))

    def resume(self) -> None:
        """Another run begins: what was halted may go on with it."""
        for key in self._firmwares:
            self._step(key, "resumed")
        self._grant()

    def lift(self) -> None:
        """Take all stops away."""
        for key, firmware in self._firmwares.items():
            if firmware.state == "stopped":
                self._firmwares[key] = _Firmware()  # as the table says: open
        self._grant()

    def keep(self, keys: set[str]) -> None:
        """Forget firmwares that are no board's target any more."""
        self._firmwares = {key: known for key, known in self._firmwares.items() if key in keys}

    # --- inside

    def _step(self, key: str, event: FirmwareEvent) -> FirmwareAction:
        firmware = self._firmwares.setdefault(key, _Firmware())
        row = FIRMWARE[firmware.state, event]
        firmware.state = row.state or firmware.state
        if row.action == "stop_all":
            self._stop(key, firmware)
        elif row.action == "halt_all":
            firmware.why = OtaError(
                "check-unanswered",
                "The robot's health check of a board was not answered, so no further board gets "
                "this firmware in this run.",
            )
        return row.action

    def _stop(self, key: str, firmware: _Firmware) -> None:
        bad = sum(verdict == "bad" for verdict in firmware.verdicts.values())
        firmware.why = OtaError(
            "stopped",
            f"stopped: {bad} of {len(firmware.verdicts)} boards failed to boot this firmware",
        )
        self.on_stop(key, firmware.why)

    def _grant(self) -> None:
        for ask in list(self._line):
            if len(self._busy) >= self.limit:
                return
            firmware = self._firmwares.setdefault(ask.key, _Firmware())
            if ask.aside and firmware.state != "stopped":
                action: FirmwareAction = "let_go"
            else:
                action = self._step(ask.key, self._kind(ask, firmware))
            if action == "let_wait":
                continue
            self._line.remove(ask)
            if action == "refuse" and not ask.overrides:
                ask.board.tell("stopped", None, firmware.why)
                continue
            if not ask.aside:
                firmware.under_way.add(ask.board)
            self._busy[ask.board] = ask
            ask.board.tell("turn", ask.token, None)

    def _kind(self, ask: Ask, firmware: _Firmware) -> FirmwareEvent:
        if ask.board in firmware.under_way:
            return "ask-again"
        first = self.canary and not ask.proven and self.crowd(ask.key) > CANARY_ABOVE
        return "ask-first" if first else "ask"
