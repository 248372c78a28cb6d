# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens ports to see what is behind them, with the session that updates use, writing nothing.

Blocking; runs in threads. Imported at the first probe, since it brings esptool along.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.fleet import directory
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


def remember(state_dir: Path, port: str, info: PortInfo | None, found: Inspection) -> None:
    """Make the port known to the services' journal; a journal that cannot be had is no fault."""
    try:
        directory.remember(state_dir, port, info, found)
    except OtaError as error:
        LOGGER.warning("what was found at %s could not be noted: %s", shown(port), error.message)
