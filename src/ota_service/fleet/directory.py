# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rest of this process may ask of its services, and tell their journal; and a look at what
is behind a port that is none of theirs, with the session that updates use, writing nothing.

For the companions of the service (discovery, sensor), which live beside it in the module, and for
the command. Imported when it is needed, since it brings esptool along.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from ota_service.errors import OtaError
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.journal_rows import BoardRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.service import engines
from ota_service.fleet.status import status_of
from ota_service.link.at_port import at_port
from ota_service.link.ports import PortInfo, shown
from ota_service.link.serial_port import ROM_BAUD
from ota_service.update import session
from ota_service.update.facts import BoardFacts
from ota_service.update.inspect import Inspection
from ota_service.update.session import Job

LOGGER = logging.getLogger("ota_service.module")

# As long as esptool waits for a command's answer; the stub loader's first word has no limit of
# its own there.
ANSWER_TIMEOUT_S = 3.0


def statuses() -> dict[str, dict[str, Any]]:
    """The status of every service of this process by its name; called in the event loop.

    A service that was removed stays in it until its boards are let go: they may still be written.
    """
    return {engine.settings.service: status_of(engine) for engine in engines()}


def recall(info: PortInfo) -> BoardRecord | None:
    """The board that was last seen at a port, where a service has the journal open."""
    memory = _memory()
    return memory.board_at(info) if memory is not None else None


def awaits_confirmation(mac: str) -> bool:
    """Whether a board's app is being left alone to confirm itself, so no reset may reach it."""
    memory = _memory()
    awaited = memory.awaited(mac) if memory is not None else None
    return awaited is not None and awaited[1] > 0


def remember(state_dir: Path, port: str, info: PortInfo | None, found: Inspection) -> None:
    """Note a board that a person's probe has found: its port is known from now on. A journal that
    cannot be had is no fault.

    state_dir: for when no service has the journal open. Blocks.
    """
    memory = _memory()
    try:
        if memory is not None:
            _note(memory.journal, port, info, found)
            return
        with open_journal(state_dir) as journal:
            _note(journal, port, info, found)
    except OtaError as error:
        LOGGER.warning("what was found at %s could not be noted: %s", shown(port), error.message)


def _note(journal: Journal, port: str, info: PortInfo | None, found: Inspection) -> None:
    memory = Memory(journal, "")
    journal.board(found.chip.mac)  # forgets what is void, which this is not
    memory.saw(found)
    memory.learn_place(None, port, info, found.chip.mac)


def _memory() -> Memory | None:
    for engine in engines():
        try:
            return engine.memory
        except OtaError:
            continue
    return None


# --- what is behind a port; blocking


class _Quiet:
    """Implements `session.Hooks` for a look of which nothing but the outcome is wanted."""

    def __init__(self, port: str, given_up: threading.Event) -> None:
        self.answered = False
        self._port = port
        self._given_up = given_up

    def identified(self, mac: str) -> BoardFacts:
        """Whatever board it is, nothing is known of it beforehand."""
        self.answered = True
        return BoardFacts()

    def restarting(self, reason: str) -> None:
        """Why a board is restarted must stand in the log."""
        LOGGER.info("%s: restarted %s", self._port, reason)

    def cancelled(self) -> bool:
        """Whether the caller has gone."""
        return self._given_up.is_set()

    def _nothing(self, *_: object, **__: object) -> None:
        """Nobody follows it."""

    stopping = cancelled
    inspected = planned = phase = progress = _nothing


def probe(port: str, owner: str, given_up: threading.Event) -> Inspection:
    """What is behind a port. Restarts it; a board is left running as it was.

    owner: who holds the port meanwhile ("discovery find"). Raises OtaError: `port-busy`,
    `no-answer` where no ESP32 answers, and whatever else keeps it from being looked at.
    """
    hooks = _Quiet(shown(port), given_up)
    try:
        return _look(port, owner, Job(port, course="look"), hooks)
    except OtaError as error:
        # A chip that said its MAC is an ESP32, whatever happened to it afterwards.
        lost = error.code == "link-lost" or (error.code == "no-answer" and hooks.answered)
        if not lost or given_up.is_set():
            raise
    return _look(port, owner, Job(port, course="look", baud=ROM_BAUD), hooks)


def _look(port: str, owner: str, job: Job, hooks: _Quiet) -> Inspection:
    with at_port(port, owner, timeout_s=ANSWER_TIMEOUT_S) as opened:
        found = session.run(opened, job, hooks).found
    assert found is not None, "a session that only reads has always looked"
    return found
