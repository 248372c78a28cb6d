# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a backup of one board, and puts one back.

Blocking; runs in a thread of its own, like `session`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serial import SerialBase

from ota_service.errors import OtaError
from ota_service.formats.nvs import Nvs
from ota_service.formats.otadata import parse_otadata
from ota_service.formats.table_places import require_only
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Flash
from ota_service.link.link import EspLink
from ota_service.update.backup import Backup, take_backup
from ota_service.update.backup_files import Backups
from ota_service.update.boot import Expected
from ota_service.update.inspect import first_tag
from ota_service.update.leave import put_back
from ota_service.update.restore import Had, RestorePlan, plan_restore
from ota_service.update.rewrite import (
    WriteHooks,
    WriteJob,
    WriteOutcome,
    require_unprotected,
    rewrite,
    started,
    visited,
)

AGAIN = "Call restore again: the board starts nothing until it is written whole."


def run_backup(port: SerialBase, *, baud: int, identified: Callable[[str], None]) -> Backup:
    """Read what a backup has from the board behind `port`, and restart it as it was.

    identified: called with its MAC; raises to go no further. Raises OtaError as `take_backup`.
    """
    with visited(port, baud, identified) as link:
        backup = take_backup(link, link.chip)
        put_back(link)
        return backup


@dataclass(frozen=True, slots=True)
class RestoreJob(WriteJob):
    """What to do. saved, folder: what is put back, and where it is from. Without `confirm` the
    backup's board is meant.
    """

    saved: Backup
    folder: Path


class RestoreHooks(WriteHooks, Protocol):
    """What is told while it goes on; called from its thread."""

    def planned(self, chip: ChipInfo, plan: RestorePlan) -> None:
        """What will be written; nothing was yet. Raises to stop here."""


@dataclass(slots=True)
class RestoreOutcome(WriteOutcome):
    """What came of it."""

    plan: RestorePlan

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "mac": self.chip.mac,
            "chip": self.chip.name,
            **self.plan.to_dict(),
            "written": self.plan.needed,
            "version": self.version,
            **self.ending(),
        }


def run_restore(port: SerialBase, job: RestoreJob, hooks: RestoreHooks) -> RestoreOutcome:
    """Put a backup back to the board behind `port`, which is open with its lines released.

    Raises OtaError: before the first write for everything that can be known; `verify-failed`
    and `link-lost` after it, when it has to be done again.
    """
    hooks.phase("connecting")
    with visited(
        port,
        job.baud,
        hooks.identified,
        meant=job.confirm or job.saved.mac,
        remedy="Name the port of the board that the backup is of, or confirm the MAC of the one "
        "that is to have its NVS.",
    ) as link:
        hooks.phase("inspecting")
        outcome = _prepare(link, job, hooks)
        if outcome.plan.needed:
            rewrite(link, outcome.plan, hooks, outcome, again=AGAIN)
        hooks.phase("booting")
        _start(port, link, job, outcome)
        return outcome


def _prepare(link: EspLink, job: RestoreJob, hooks: RestoreHooks) -> RestoreOutcome:
    """Everything that can be known, and what must be kept on disk, before the first write."""
    chip = link.chip
    store = Backups(job.state_dir, chip.mac)
    had = _look_before(link, chip, store)
    if had.found is not None and parse_otadata(had.found.selection).may_be_pending:
        raise OtaError("awaiting-confirmation")
    plan = plan_restore(link, chip, job.saved, had)
    if plan.needed:
        require_unprotected(link)
    hooks.planned(chip, plan)
    held = [(one.after.label, one.before.nvs()) for one in plan.restored]
    tag = first_tag((label, nvs) for label, nvs in held if isinstance(nvs, Nvs))
    before = [one for one in (had.found, had.own, *had.known) if one is not None]
    outcome = RestoreOutcome(
        chip,
        plan,
        version=tag,
        nvs=[nvs for one in before for nvs in one.held],
        hides=any(one.hidden for one in (job.saved, *before)),
    )
    if plan.needed:
        outcome.backup = _keep_before(store, had)
        if outcome.backup is not None:
            hooks.kept(outcome.backup)
    return outcome


def _look_before(flash: Flash, chip: ChipInfo, store: Backups) -> Had:
    """What the board has, or what it had before somebody took its table away."""
    try:
        found = take_backup(flash, chip)
    except OtaError as error:
        if error.code in ("link-lost", "flash-encrypted"):
            raise
        own = store.unfinished("restore")
        known = [kept.backup for kept in reversed(store.all())]
        return Had(None, error, own[0].backup if own else None, known)
    require_only(flash.read, found.partitions)
    return Had(found)


def _keep_before(store: Backups, had: Had) -> Path | None:
    """On the disk before the first write: what the board has, and that it is being written."""
    if had.found is not None:
        new = store.keep(had.found)
        store.begin("restore", new)
        return new.folder
    own = store.unfinished("restore")
    return own[0].folder if own else None


def _start(port: SerialBase, link: EspLink, job: RestoreJob, outcome: RestoreOutcome) -> None:
    started(
        port,
        link,
        job,
        outcome,
        Expected(matches=job.boot.matches),
        nvs=job.saved.held,
        remedy="Look at the boot log; a Merged Binary of the firmware that the backup is of, "
        "flashed with keep_nvs, brings both.",
    )
    if outcome.error is None:
        store = Backups(job.state_dir, outcome.chip.mac)
        store.finish()
        store.tidy(job.folder)
