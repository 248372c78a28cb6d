# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a Merged Binary to one board: everything is replaced, and that is said first.

Blocking; runs in a thread of its own, like `session`. The order of the writes and why it is
that one: `rewrite`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from serial import SerialBase

from ota_service.errors import OtaError
from ota_service.formats.nvs import parse_nvs
from ota_service.formats.partitions import PartitionTable
from ota_service.formats.table_places import all_tables, require_only
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Flash
from ota_service.link.link import EspLink
from ota_service.update.backup import Backup, take_backup
from ota_service.update.backup_files import Backups
from ota_service.update.boot import Expected
from ota_service.update.flash_plan import Before, FlashPlan, KeptPartition, MergedFile, plan_flash
from ota_service.update.inspect import first_tag
from ota_service.update.kept_keys import to_keep
from ota_service.update.rewrite import (
    WriteHooks,
    WriteJob,
    WriteOutcome,
    require_unprotected,
    rewrite,
    started,
    total_bytes,
    visited,
)


def again(keep_nvs: bool) -> str:
    """What to do about a board that is half written."""
    how = "with keep_nvs" if keep_nvs else "(with keep_nvs the board's keys come back)"
    return f"Call flash again {how}: the board starts nothing until it is written whole."


@dataclass(frozen=True, slots=True)
class FlashJob(WriteJob):
    """What to do. file: what to write. keep_nvs: carry all keys over."""

    file: MergedFile
    keep_nvs: bool


class FlashHooks(WriteHooks, Protocol):
    """What is told while it goes on; called from its thread."""

    def planned(self, chip: ChipInfo, before: Before, plan: FlashPlan) -> None:
        """What the board has and will have; nothing was written yet. Raises to stop here."""

    def cancelled(self) -> bool:
        """Whether to stop, where nothing was written yet."""

    def stopping(self) -> bool:
        """Whether the process ends."""


@dataclass(slots=True)
class FlashOutcome(WriteOutcome):
    """What came of it."""

    before: Before
    file: MergedFile
    plan: FlashPlan

    def to_dict(self) -> dict[str, Any]:
        """As in the reply of the verb."""
        shown: dict[str, Any] = {
            "mac": self.chip.mac,
            "chip": self.chip.name,
            **plan_dict(self.before, self.file, self.plan),
            "written_bytes": total_bytes(self.plan),
            "version": self.version,
            "running": {"slot": self.file.booted.label},
        }
        app = self.file.app
        if app is not None:
            shown["running"] |= {
                "project": app.descriptor.project,
                "app_version": app.descriptor.version,
            }
        return shown | self.ending()


def plan_dict(before: Before, file: MergedFile, plan: FlashPlan) -> dict[str, Any]:
    """What is there and what will be, for people and programs."""
    shown: dict[str, Any] = {
        "sha256": file.sha256,
        "partitions": _rows(file.merged.table),
        "nvs": [part.to_dict() for part in plan.kept],
    }
    if before.table is not None:
        shown["partitions_before"] = _rows(before.table)
    if plan.lost:
        shown["nvs_lost"] = list(plan.lost)
    if plan.notes:
        shown["notes"] = list(plan.notes)
    return shown


def _rows(table: PartitionTable) -> list[dict[str, Any]]:
    return [
        {"label": p.label, "kind": p.kind, "offset": p.offset, "size_bytes": p.size_bytes}
        for p in table.partitions
    ]


def run_flash(port: SerialBase, job: FlashJob, hooks: FlashHooks) -> FlashOutcome:
    """Do `job` with the board behind `port`, which is open with its lines released.

    Raises OtaError: before the first write for everything that can be known; `verify-failed`,
    `link-lost` and `cancelled` after it, when the board has to be written again.
    """
    hooks.phase("connecting")
    remedy = "Confirm the MAC of the board that is meant."
    with visited(port, job.baud, hooks.identified, meant=job.confirm, remedy=remedy) as link:
        hooks.phase("inspecting")
        outcome = _prepare(link, job, hooks)
        how = again(job.keep_nvs)
        rewrite(link, outcome.plan, hooks, outcome, again=how, stopped=hooks.stopping)
        hooks.phase("booting")
        _start(port, link, job, hooks, outcome)
        return outcome


def look_before(flash: Flash, chip: ChipInfo) -> Before:
    """What the board has: all of it that can be kept, and the keys that can be carried over."""
    tables = all_tables(flash.read)
    found: Backup | None = None
    try:
        found = take_backup(flash, chip)
        table = found.partitions
        require_only(flash.read, table)
    except OtaError as error:
        if error.code == "link-lost":
            raise
        return Before(None, error, tables=tables, backup=found)
    closed = {part.label for part in table.partitions if part.encrypted}
    nvs = {label: data for label, data in found.nvs.items() if label not in closed}
    return Before(table, nvs=nvs, tables=tables, backup=found)


def _prepare(link: EspLink, job: FlashJob, hooks: FlashHooks) -> FlashOutcome:
    """Everything that can be known, and what must be kept on disk, before the first write."""
    chip = link.chip
    before = look_before(link, chip)
    store = Backups(job.state_dir, chip.mac)
    keep = None
    if job.keep_nvs:
        saved = store.unfinished("flash" if before.backup is not None else None)
        held = {one.folder: one.backup.nvs for one in saved}
        keep = {} if chip.flash_encrypted else to_keep(before, held)
    plan = plan_flash(job.file, chip, before, keep=keep)
    require_unprotected(link)
    hooks.planned(chip, before, plan)
    if hooks.cancelled():
        raise OtaError("cancelled")
    outcome = FlashOutcome(chip, before, job.file, plan, version=_version(job.file, plan.kept))
    outcome.nvs = before.backup.held if before.backup is not None else ()
    new = store.keep(before.backup) if before.backup is not None else None
    outcome.backup = store.begin("flash", new)
    if outcome.backup is not None:
        hooks.kept(outcome.backup)
    return outcome


def _version(file: MergedFile, kept: tuple[KeptPartition, ...]) -> str:
    """The tag that the board will hold."""
    stores = {part.label: nvs for part, nvs in file.nvs}
    stores |= {part.label: parse_nvs(part.data) for part in kept}
    return first_tag(stores.items())


def _start(
    port: SerialBase, link: EspLink, job: FlashJob, hooks: FlashHooks, outcome: FlashOutcome
) -> None:
    file = outcome.file
    app = file.app.descriptor if file.app is not None else None
    kept = [parse_nvs(part.data) for part in outcome.plan.kept]
    started(
        port,
        link,
        job,
        outcome,
        Expected.of(file.booted, app, job.boot.matches),
        nvs=[*kept, *(held for _, held in file.nvs)],
        stopped=hooks.stopping,
        remedy="Look at the boot log, correct the firmware, and flash it again.",
    )
    if outcome.confirmed or (outcome.notice and _has_kept_keys(port, job, outcome)):
        # Else a firmware of which nothing is known may have erased the keys that it was given.
        store = Backups(job.state_dir, outcome.chip.mac)
        store.finish()
        store.tidy()


def _has_kept_keys(port: SerialBase, job: FlashJob, outcome: FlashOutcome) -> bool:
    """Whether a board whose start showed nothing has every key that it was given.

    For that it is looked at in download mode and restarted once more. False as well where that
    cannot be told. (Its reset reaches it: the start before was seen to leave download mode.)
    """
    kept = [parse_nvs(part.data).keys() for part in outcome.plan.kept]
    if not kept:
        return True
    try:
        with visited(port, job.baud, lambda mac: None, meant=outcome.chip.mac) as link:
            found = [
                parse_nvs(link.read(part.after.offset, part.after.whole_bytes)).keys()
                for part in outcome.plan.kept
            ]
            link.restart()
    except OtaError:
        return False
    return all(there >= meant for there, meant in zip(found, kept, strict=True))
