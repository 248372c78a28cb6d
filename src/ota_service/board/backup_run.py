# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a backup of one board, and puts one back.

Blocking; runs in a thread of its own, like `session`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from serial import SerialBase

from ota_service.board.backup import Backup, take_backup
from ota_service.board.backup_files import Backups
from ota_service.board.boot import UNJUDGED, Expected, Verdict
from ota_service.board.chip import ChipInfo
from ota_service.board.flash import Flash
from ota_service.board.inspect import NAMESPACE, VERSION_KEY
from ota_service.board.leave import left_running, put_back
from ota_service.board.link import EspLink
from ota_service.board.restore import Had, RestorePlan, plan_restore
from ota_service.board.rewrite import rewrite, total_bytes
from ota_service.board.session import BootRules
from ota_service.board.visit import connect, is_pending, watch_start
from ota_service.errors import OtaError
from ota_service.formats.nvs import Nvs
from ota_service.formats.table_places import require_only

RestorePhase = Literal["connecting", "inspecting", "writing", "verifying", "booting"]

AGAIN = "Call restore again: the board starts nothing until it is written whole."


def run_backup(port: SerialBase, *, baud: int, identified: Callable[[str], None]) -> Backup:
    """Read what a backup has from the board behind `port`, and restart it as it was.

    identified: called with its MAC; raises to go no further. Raises OtaError as `take_backup`.
    """
    link = connect(port, baud=baud, identified=identified)
    with left_running(link):
        backup = take_backup(link, link.chip)
        put_back(link)
        return backup


@dataclass(frozen=True, slots=True)
class RestoreJob:
    """What to do.

    name: for messages. saved, folder: what is put back, and where it is from. state_dir: where
    what the board has is kept. confirm: the MAC of the board that is meant, where that is
    another one than the backup's. baud: the highest speed.
    """

    name: str
    saved: Backup
    folder: Path
    state_dir: Path
    confirm: str | None = None
    baud: int = 921_600
    boot: BootRules = field(default_factory=BootRules)


class RestoreHooks(Protocol):
    """What is told while it goes on; called from its thread."""

    def identified(self, mac: str) -> None:
        """The chip answered, and it is the board that is meant."""

    def planned(self, chip: ChipInfo, plan: RestorePlan) -> None:
        """What will be written; nothing was yet. Raises to stop here."""

    def kept(self, folder: Path) -> None:
        """What the board had is in this folder; the first write comes next."""

    def phase(self, name: RestorePhase) -> None:
        """A phase begins."""

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes that were sent."""


@dataclass(slots=True)
class RestoreOutcome:
    """What came of it. confirmed: the start was seen to be good; False where its log showed
    nothing to judge by. version: the tag that is stored now. backup: the folder with what the
    board had before, None where nothing had to be written, or none of it could be read. error:
    `boot-failed`, or `brown-out` and `no-reset` where its start cannot be judged.
    """

    chip: ChipInfo
    plan: RestorePlan
    version: str = ""
    confirmed: bool | None = None
    backup: Path | None = None
    error: OtaError | None = None
    boot_log: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        shown: dict[str, Any] = {
            "mac": self.chip.mac,
            "chip": self.chip.name,
            **self.plan.to_dict(),
            "written": self.plan.needed,
            "version": self.version,
        }
        if self.confirmed is not None:
            shown["confirmed"] = self.confirmed
        if self.backup is not None:
            shown["backup"] = str(self.backup)
        if self.error is not None:
            shown["error"] = self.error.to_dict()
        return shown


def run_restore(port: SerialBase, job: RestoreJob, hooks: RestoreHooks) -> RestoreOutcome:
    """Put a backup back to the board behind `port`, which is open with its lines released.

    Raises OtaError: before the first write for everything that can be known; `verify-failed`
    and `link-lost` after it, when it has to be done again.
    """
    hooks.phase("connecting")
    meant = job.confirm or job.saved.mac

    def identified(mac: str) -> None:
        if mac != meant:
            raise OtaError(
                "wrong-board",
                f"The board at this port is {mac}, and {meant} is meant. Nothing was written.",
                remedy="Name the port of the board that the backup is of, or confirm the MAC of "
                "the one that is to have its NVS.",
            )
        hooks.identified(mac)

    link = connect(port, baud=job.baud, identified=identified)
    with left_running(link):
        hooks.phase("inspecting")
        outcome = _prepare(link, job, hooks)
        if outcome.plan.needed:
            _write(link, hooks, outcome)
        return _boot(port, link, job, hooks, outcome)


def _prepare(link: EspLink, job: RestoreJob, hooks: RestoreHooks) -> RestoreOutcome:
    """Everything that can be known, and what must be kept on disk, before the first write."""
    chip = link.chip
    store = Backups(job.state_dir, chip.mac)
    had = _look_before(link, chip, store)
    if had.found is not None and is_pending(had.found):
        raise OtaError("awaiting-confirmation")
    plan = plan_restore(link, chip, job.saved, had)
    if plan.needed and link.protection().covers(0, chip.flash_bytes or 0):
        raise OtaError(
            "flash-protected",
            "The flash chip's protection bits cover a part of the flash, so nothing was written.",
        )
    hooks.planned(chip, plan)
    outcome = RestoreOutcome(chip, plan, version=_version(plan))
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


def _write(flash: Flash, hooks: RestoreHooks, outcome: RestoreOutcome) -> None:
    plan, kept = outcome.plan, outcome.backup
    total = total_bytes(plan)
    hooks.phase("writing")
    try:
        rewrite(
            flash,
            plan,
            old_tables=plan.old_tables,
            verifying=lambda: hooks.phase("verifying"),
            progress=lambda done: hooks.progress(done, total),
        )
    except OtaError as error:
        where = f" What it had is kept in {kept}." if kept is not None else ""
        raise OtaError(error.code, error.message + where, remedy=AGAIN) from error


def _boot(
    port: SerialBase, link: EspLink, job: RestoreJob, hooks: RestoreHooks, outcome: RestoreOutcome
) -> RestoreOutcome:
    hooks.phase("booting")
    nvs = [held for one in job.saved.stores if isinstance(held := one.nvs(), Nvs)]
    expected = Expected(matches=job.boot.matches)
    monitor = watch_start(port, link, expected, job.boot, nvs=nvs, stopped=lambda: False)
    outcome.boot_log = tuple(monitor.told)
    if monitor.verdict is Verdict.FAILED:
        outcome.error = OtaError(
            "boot-failed",
            f"Everything was written and read back, but the firmware does not start: "
            f"{monitor.reason}.",
            remedy="Look at the boot log; a Merged Binary of the firmware that the backup is of, "
            "flashed with keep_nvs, brings both.",
        )
        return outcome
    if monitor.verdict in UNJUDGED:
        outcome.error = OtaError(
            UNJUDGED[monitor.verdict],
            "Everything was written and read back, but the start of the firmware cannot be judged: "
            f"{monitor.reason}.",
        )
        return outcome
    outcome.confirmed = monitor.verdict is Verdict.RUNNING
    store = Backups(job.state_dir, outcome.chip.mac)
    store.finish()
    store.tidy(job.folder)
    return outcome


def _version(plan: RestorePlan) -> str:
    for one in plan.restored:
        held = one.before.nvs()
        if one.after.label == "nvs" and isinstance(held, Nvs):
            return held.get_string(NAMESPACE, VERSION_KEY) or ""
    return ""
