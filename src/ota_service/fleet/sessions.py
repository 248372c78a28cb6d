# SPDX-License-Identifier: GPL-3.0-or-later
"""A session with one board as a run has it: in a thread, on a port that is claimed and closed."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from ota_service.board import session
from ota_service.board.link import EspLink, leave_download_mode
from ota_service.board.ownership import PORT_OWNERS
from ota_service.board.ports import require_exists
from ota_service.board.serial_port import ROM_BAUD, close_port, open_port
from ota_service.board.session import BootRules, Job, Outcome
from ota_service.errors import OtaError
from ota_service.firmware.expectation import Expectation
from ota_service.fleet.hooks import SessionHooks
from ota_service.fleet.settings import Settings

LOGGER = logging.getLogger("ota_service.fleet")

EXECUTOR = ThreadPoolExecutor(max_workers=64, thread_name_prefix="board")
"""Sessions block; max_parallel bounds how many write at once, this only what can exist."""


def run_session(port: str, owner: str, job: Job, hooks: SessionHooks) -> Outcome:
    """One session in its thread: claim the port, open it, do the job, close it."""
    require_exists(port, job.name)
    with PORT_OWNERS.claim(port, owner, job.name):
        opened = open_port(port, board=job.name)
        try:
            return session.run(opened, job, hooks)
        finally:
            close_port(opened)


class _Found(Exception):
    """A chip has said its MAC: that was all to be known."""


def mac_at(port: str, owner: str) -> str | None:
    """The MAC of the chip behind a port, None where no ESP32 answers. Restarts it."""
    found: list[str] = []

    def identified(mac: str) -> None:
        found.append(mac)
        raise _Found

    try:
        with PORT_OWNERS.claim(port, owner):
            opened = open_port(port)
            try:
                EspLink.connect(opened, baud=ROM_BAUD, attempts=1, identified=identified)
            finally:
                leave_download_mode(opened)
                close_port(opened)
    except (OtaError, _Found) as error:
        LOGGER.debug("%s: %s", port, error)
    return found[0] if found else None


def boot_rules(settings: Settings) -> BootRules:
    """The configuration's boot_* attributes; boot_expect was checked when it was configured."""
    expect = settings.boot_expect
    return BootRules(
        settings.boot_timeout_s,
        settings.boot_stable_s,
        Expectation(expect).found_in if expect else None,
        settings.boot_restarts,
    )
