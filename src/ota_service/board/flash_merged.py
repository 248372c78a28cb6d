# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a Merged Binary to one board: everything is replaced, and that is said first.

Blocking; runs in a thread of its own, like `session`. The order of the writes and why it is
that one: `rewrite`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from serial import SerialBase

from ota_service.board.backup import NVS_KIND, Backup, take_backup
from ota_service.board.backup_files import Backups
from ota_service.board.boot import UNJUDGED, Expected, Verdict
from ota_service.board.chip import ChipInfo
from ota_service.board.flash import Flash
from ota_service.board.flash_plan import Before, FlashPlan, KeptPartition, MergedFile, plan_flash
from ota_service.board.inspect import NAMESPACE, VERSION_KEY
from ota_service.board.kept_keys import which_counts
from ota_service.board.link import EspLink
from ota_service.board.rewrite import Write, rewrite, total_bytes
from ota_service.board.session import BootRules
from ota_service.board.visit import connect, left_running, watch_start
from ota_service.errors import OtaError
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.partitions import TABLE_OFFSET, PartitionTable
from ota_service.formats.table_places import all_tables, require_only

FlashPhase = Literal["connecting", "inspecting", "writing", "verifying", "booting"]


def again(keep_nvs: bool) -> str:
    """What to do about a board that is half written."""
    how = "with keep_nvs" if keep_nvs else "(with keep_nvs the board's keys come back)"
    return f"Call flash again {how}: the board starts nothing until it is written whole."


@dataclass(frozen=True, slots=True)
class FlashJob:
    """What to do.

    name: for messages. file: what to write. keep_nvs: carry all keys over. confirm: the MAC
    that the board must have, None: any. state_dir: where what the board has is kept. baud: the
    highest speed.
    """

    name: str
    file: MergedFile
    keep_nvs: bool
    state_dir: Path
    confirm: str | None = None
    baud: int = 921_600
    boot: BootRules = field(default_factory=BootRules)


class FlashHooks(Protocol):
    """What is told while it goes on; called from its thread."""

    def identified(self, mac: str) -> None:
        """The chip answered. Raises to go no further."""

    def planned(self, chip: ChipInfo, before: Before, plan: FlashPlan) -> None:
        """What the board has and will have; nothing was written yet. Raises to stop here."""

    def kept(self, folder: Path) -> None:
        """What the board had is in this folder; the first write comes next."""

    def phase(self, name: FlashPhase) -> None:
        """A phase begins."""

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes that were sent."""

    def cancelled(self) -> bool:
        """Whether to stop, where nothing was written yet."""

    def stopping(self) -> bool:
        """Whether the process ends."""


@dataclass(slots=True)
class FlashOutcome:
    """What came of it: what the board shows.

    confirmed: the start was seen to be good; False where its log showed nothing to judge by.
    version: the tag that is stored now. backup: the folder with what the board had, None where
    none of it could be read. error: where the board was written and does not start
    (`boot-failed`), or its start cannot be judged (`brown-out`, `no-reset`).
    """

    chip: ChipInfo
    before: Before
    file: MergedFile
    plan: FlashPlan
    version: str = ""
    confirmed: bool | None = None
    backup: Path | None = None
    error: OtaError | None = None
    boot_log: tuple[str, ...] = ()

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
        if self.confirmed is not None:
            shown["confirmed"] = self.confirmed
        if self.backup is not None:
            shown["backup"] = str(self.backup)
        if self.error is not None:
            shown["error"] = self.error.to_dict()
        return shown


def plan_dict(before: Before, file: MergedFile, plan: FlashPlan) -> dict[str, Any]:
    """What is there and what will be, for people and programs."""
    shown: dict[str, Any] = {
        "sha256": file.sha256,
        "partitions": table_rows(file.merged.table),
        "nvs": [part.to_dict() for part in plan.kept],
    }
    if before.table is not None:
        shown["partitions_before"] = table_rows(before.table)
    if plan.lost:
        shown["nvs_lost"] = list(plan.lost)
    if plan.notes:
        shown["notes"] = list(plan.notes)
    return shown


def table_rows(table: PartitionTable) -> list[dict[str, Any]]:
    """A partition table's rows."""
    return [
        {
            "label": part.label,
            "kind": part.kind,
            "offset": part.offset,
            "size_bytes": part.size_bytes,
        }
        for part in table.partitions
    ]


def run_flash(port: SerialBase, job: FlashJob, hooks: FlashHooks) -> FlashOutcome:
    """Do `job` with the board behind `port`, which is open with its lines released.

    Raises OtaError: before the first write for everything that can be known; `verify-failed`,
    `link-lost` and `cancelled` after it, when the board has to be written again.
    """
    hooks.phase("connecting")

    def identified(mac: str) -> None:
        if job.confirm is not None and mac != job.confirm:
            raise OtaError(
                "wrong-board",
                f"The board at this port is {mac}, and {job.confirm} was confirmed. Nothing was "
                "written.",
                remedy="Confirm the MAC of the board that is meant.",
            )
        hooks.identified(mac)

    link = connect(port, baud=job.baud, identified=identified)
    with left_running(link):
        hooks.phase("inspecting")
        outcome = _prepare(link, job, hooks)
        _write(link, job, hooks, outcome)
        return _boot(port, link, job, hooks, outcome)


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


def to_keep(
    before: Before, saved: Mapping[Path, Mapping[str, bytes]] | None = None
) -> dict[str, bytes]:
    """The NVS contents to carry over: the board's, or those of runs that were interrupted.

    saved: on the disk, folder -> label -> contents, the newest first; which of two count:
    `kept_keys`. Raises OtaError where the board has none that can be read and nothing was saved,
    and where it cannot be told which ones count.
    """
    saved = saved or {}
    problem = before.table_problem
    if before.table is not None and any(
        part.kind == NVS_KIND and part.encrypted for part in before.table.partitions
    ):
        problem = OtaError("flash-encrypted", "The board encrypts its NVS.")
    if problem is not None and not saved:
        raise OtaError(
            problem.code,
            f"The board's keys cannot be kept: {problem.message}",
            remedy="Flash without keep_nvs if they may be lost, and provision the board anew.",
        )
    keep: dict[str, bytes] = {}
    for label in dict.fromkeys([*before.nvs, *(label for one in saved.values() for label in one)]):
        held: dict[Path | None, bytes] = {}
        if label in before.nvs:
            held[None] = before.nvs[label]
        held.update((folder, one[label]) for folder, one in saved.items() if label in one)
        keep[label] = which_counts(label, held)
    return keep


def _prepare(link: EspLink, job: FlashJob, hooks: FlashHooks) -> FlashOutcome:
    """Everything that can be known, and what must be kept on disk, before the first write."""
    chip = link.chip
    before = look_before(link, chip)
    store = Backups(job.state_dir, chip.mac)
    keep = None
    if job.keep_nvs:
        saved = store.unfinished("flash" if before.backup is not None else None)
        keep = (
            {}
            if chip.flash_encrypted
            else to_keep(before, {one.folder: one.backup.nvs for one in saved})
        )
    plan = plan_flash(job.file, chip, before, keep=keep)
    if link.protection().covers(0, chip.flash_bytes or 0):
        raise OtaError(
            "flash-protected",
            "The flash chip's protection bits cover a part of the flash, so nothing was written.",
        )
    hooks.planned(chip, before, plan)
    if hooks.cancelled():
        raise OtaError("cancelled")
    outcome = FlashOutcome(chip, before, job.file, plan, version=_version(job.file, plan.kept))
    new = store.keep(before.backup) if before.backup is not None else None
    outcome.backup = store.begin("flash", new)
    if outcome.backup is not None:
        hooks.kept(outcome.backup)
    return outcome


def _version(file: MergedFile, kept: tuple[KeptPartition, ...]) -> str:
    """The tag that the board will hold in its default NVS."""
    for part in kept:
        if part.label == "nvs":
            return parse_nvs(part.data).get_string(NAMESPACE, VERSION_KEY) or ""
    for partition, nvs in file.merged.nvs:
        if partition.label == "nvs" and isinstance(nvs, Nvs):
            return nvs.get_string(NAMESPACE, VERSION_KEY) or ""
    return ""


def _write(link: Flash, job: FlashJob, hooks: FlashHooks, outcome: FlashOutcome) -> None:
    plan = outcome.plan
    total = total_bytes(plan)
    hooks.phase("writing")

    def progress(done: int) -> None:
        if hooks.stopping():
            raise OtaError("cancelled", "The updater was stopped while it wrote the whole flash.")
        hooks.progress(done, total)

    try:
        rewrite(
            link,
            plan,
            old_tables=(TABLE_OFFSET, *outcome.before.tables),
            standing=[Write(part.label, part.after.offset, part.data) for part in plan.kept],
            verifying=lambda: hooks.phase("verifying"),
            progress=progress,
        )
    except OtaError as error:
        raise OtaError(
            error.code, error.message + _where(outcome), remedy=again(job.keep_nvs)
        ) from error


def _where(outcome: FlashOutcome) -> str:
    """Where to find what the board had."""
    if outcome.backup is None:
        return ""
    return f" What it had (NVS, otadata, partition table) is kept in {outcome.backup}."


def _boot(
    port: SerialBase, link: EspLink, job: FlashJob, hooks: FlashHooks, outcome: FlashOutcome
) -> FlashOutcome:
    hooks.phase("booting")
    file = outcome.file
    about = file.app.descriptor if file.app is not None else None
    expected = Expected(
        offset=file.booted.offset,
        project=about.project if about is not None else None,
        version=about.version if about is not None else None,
        elf_sha256=about.elf_sha256.hex() if about is not None else None,
        matches=job.boot.matches,
    )
    nvs = [parse_nvs(part.data) for part in outcome.plan.kept]
    nvs += [held for _, held in file.merged.nvs if isinstance(held, Nvs)]
    monitor = watch_start(port, link, expected, job.boot, nvs=nvs, stopped=hooks.stopping)
    outcome.boot_log = tuple(monitor.told)
    outcome.confirmed = monitor.verdict is Verdict.RUNNING
    if monitor.verdict is Verdict.FAILED:
        outcome.confirmed = None
        outcome.error = OtaError(
            "boot-failed",
            f"Everything was written and read back, but the firmware does not start: "
            f"{monitor.reason}.{_where(outcome)}",
            remedy="Look at the boot log, correct the firmware, and flash it again.",
        )
    elif monitor.verdict in UNJUDGED:
        outcome.error = OtaError(
            UNJUDGED[monitor.verdict],
            "Everything was written and read back, but the start of the firmware cannot be judged: "
            f"{monitor.reason}.{_where(outcome)}",
        )
    elif outcome.confirmed or (
        monitor.verdict is Verdict.SILENT and _has_kept_keys(port, job, outcome)
    ):
        # Else a firmware of which nothing is known may have erased the keys that it was given.
        store = Backups(job.state_dir, outcome.chip.mac)
        store.finish()
        store.tidy()
    return outcome


def _has_kept_keys(port: SerialBase, job: FlashJob, outcome: FlashOutcome) -> bool:
    """Whether a board whose start showed nothing has every key that it was given.

    For that it is looked at in download mode and restarted once more. False as well where that
    cannot be told.
    """
    kept = [parse_nvs(part.data).keys() for part in outcome.plan.kept]
    if not kept:
        return True

    def same(mac: str) -> None:
        if mac != outcome.chip.mac:
            raise OtaError("wrong-board")

    try:
        link = connect(port, baud=job.baud, identified=same)
        with left_running(link):
            found = [
                parse_nvs(link.read(part.after.offset, part.after.whole_bytes)).keys()
                for part in outcome.plan.kept
            ]
            link.restart()
    except OtaError:
        return False
    return all(there >= meant for there, meant in zip(found, kept, strict=True))
