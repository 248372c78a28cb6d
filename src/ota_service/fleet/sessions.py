# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions as boards' tasks have them: in a thread, on a port that is claimed and closed."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ota_service.errors import OtaError
from ota_service.firmware.expectation import Expectation
from ota_service.fleet.hooks import FlashHooks, SessionHooks
from ota_service.fleet.settings import Settings
from ota_service.link.at_port import at_port
from ota_service.link.link import EspLink
from ota_service.link.serial_port import ROM_BAUD
from ota_service.update import session
from ota_service.update.flash_merged import FlashJob, FlashOutcome, run_flash
from ota_service.update.session import Awaited, BootRules, Job, Outcome

LOGGER = logging.getLogger("ota_service.fleet")

EXECUTOR = ThreadPoolExecutor(max_workers=64, thread_name_prefix="board")
"""Sessions block; max_parallel bounds how many write at once, this only what can exist."""


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a session ended, or the way to it.

    outcome, or error, or waits_s: how long the board is left alone first. failed: attempts that
    failed so far. wrote: a flash had begun to write.
    """

    outcome: Outcome | FlashOutcome | None = None
    error: OtaError | None = None
    failed: int = 0
    waits_s: float = 0.0
    awaited: Awaited | None = None
    wrote: bool = False


def run_session(port: str, owner: str, job: Job, hooks: SessionHooks) -> Outcome:
    """One session, in its thread."""
    with at_port(port, owner, job.name) as opened:
        return session.run(opened, job, hooks)


def run_flash_session(port: str, owner: str, job: FlashJob, hooks: FlashHooks) -> FlashOutcome:
    """One writing of a Merged Binary, in its thread."""
    with at_port(port, owner, job.name) as opened:
        return run_flash(opened, job, hooks)


class _Found(Exception):
    """A chip has said its MAC: that was all to be known."""


def mac_at(port: str, owner: str) -> str | None:
    """The MAC of the chip behind a port, None where no ESP32 answers. Restarts it."""
    found: list[str] = []

    def identified(mac: str) -> None:
        found.append(mac)
        raise _Found

    try:
        with at_port(port, owner) as opened:
            EspLink.connect(opened, baud=ROM_BAUD, attempts=1, identified=identified)
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


def after_waiting(job: Job, outcome: Outcome) -> Job:
    """What to do when a board that awaited confirmation had its time."""
    if job.confirm is not None or outcome.plan is None or outcome.plan.action == "refuse":
        return replace(job, rearm=False)
    assert outcome.slot is not None
    slot, before = outcome.slot.name, outcome.previous_version
    return replace(job, confirm=Awaited(slot, before, outcome.power_failed))
