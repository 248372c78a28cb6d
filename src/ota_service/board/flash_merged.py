# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a Merged Binary to one board: everything is replaced, and that is said first.

Blocking; runs in a thread of its own, like `session`. The order of the writes and why it is
that one: `flash_plan`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from serial import SerialBase

from ota_service.board.boot import UNJUDGED, BootMonitor, Expected, Verdict
from ota_service.board.chip import ChipInfo
from ota_service.board.flash import Flash, apply_verified
from ota_service.board.flash_plan import (
    NVS_KIND,
    Before,
    FlashPlan,
    KeptPartition,
    MergedFile,
    Write,
    plan_flash,
)
from ota_service.board.inspect import NAMESPACE, VERSION_KEY
from ota_service.board.kept_nvs import KeptNvs
from ota_service.board.link import EspLink, leave_download_mode
from ota_service.board.secrets import Redactor
from ota_service.board.session import BootRules
from ota_service.board.stream import make_plain_stream
from ota_service.board.watch import watch
from ota_service.errors import OtaError
from ota_service.formats.flashops import SECTOR_BYTES, Erase
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.partitions import TABLE_OFFSET, PartitionTable
from ota_service.formats.table_places import all_tables, find_table, require_only

LOGGER = logging.getLogger("ota_service.board")

FlashPhase = Literal["connecting", "inspecting", "writing", "verifying", "booting"]

AGAIN = (
    "Call flash again, with keep_nvs if it was meant: the board starts nothing until it is "
    "written whole."
)


@dataclass(frozen=True, slots=True)
class FlashJob:
    """What to do.

    name: for messages. file: what to write. keep_nvs: carry all keys over. confirm: the MAC
    that the board must have, None: any. state_dir: where keys are kept meanwhile. baud: the
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
    version: the tag that is stored now. kept_at: the folder that still has the board's NVS,
    None where it was removed or never needed. error: where the board was written and does not
    start (`boot-failed`), or its start cannot be judged (`brown-out`, `no-reset`).
    """

    chip: ChipInfo
    before: Before
    file: MergedFile
    plan: FlashPlan
    version: str = ""
    confirmed: bool | None = None
    kept_at: Path | None = None
    error: OtaError | None = None
    boot_log: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in the reply of the verb."""
        shown: dict[str, Any] = {
            "mac": self.chip.mac,
            "chip": self.chip.name,
            **plan_dict(self.before, self.file, self.plan),
            "written_bytes": self.plan.total_bytes,
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
        if self.kept_at is not None:
            shown["nvs_kept_at"] = str(self.kept_at)
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

    def identified(mac: str) -> int | None:
        if job.confirm is not None and mac != job.confirm:
            raise OtaError(
                "wrong-board",
                f"The board at this port is {mac}, and {job.confirm} was confirmed. Nothing was "
                "written.",
                remedy="Confirm the MAC of the board that is meant.",
            )
        hooks.identified(mac)
        return None

    try:
        link = EspLink.connect(port, baud=job.baud, identified=identified)
    except BaseException:
        leave_download_mode(port)
        raise
    with _left_running(link):
        hooks.phase("inspecting")
        outcome = _prepare(link, job, hooks)
        _write(link, job, hooks, outcome)
        return _boot(port, link, job, hooks, outcome)


def look_before(flash: Flash, chip: ChipInfo) -> Before:
    """What the board has: its table, and the contents of its NVS partitions."""
    tables = all_tables(flash.read)
    try:
        table = find_table(flash.read, flash_bytes=chip.flash_bytes)
        require_only(flash.read, table)
    except OtaError as error:
        if error.code == "link-lost":
            raise
        return Before(None, error, tables=tables)
    nvs = {
        part.label: flash.read(part.offset, part.size_bytes)
        for part in table.partitions
        if part.kind == NVS_KIND and not part.encrypted
    }
    return Before(table, nvs=nvs, tables=tables)


def to_keep(before: Before, saved: dict[str, bytes]) -> dict[str, bytes]:
    """The NVS contents to carry over: the board's, or those that an interrupted run saved.

    saved: from the disk. They count where the board's lack a key of theirs: its NVS was
    overwritten, or erased by a firmware that could not read it.
    Raises OtaError where the board has none that can be read, and nothing was saved.
    """
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
    for label in {**before.nvs, **saved}:
        live = _parsed(before.nvs.get(label))
        old = _parsed(saved.get(label))
        if isinstance(old, Nvs) and not (isinstance(live, Nvs) and live.keys() >= old.keys()):
            keep[label] = saved[label]
        elif isinstance(live, OtaError):
            raise live
        elif live is not None:
            keep[label] = before.nvs[label]
    return keep


def _parsed(data: bytes | None) -> Nvs | OtaError | None:
    if data is None:
        return None
    try:
        return parse_nvs(data)
    except OtaError as error:
        return error


def _prepare(link: EspLink, job: FlashJob, hooks: FlashHooks) -> FlashOutcome:
    """Everything that can be known, and what must be kept on disk, before the first write."""
    chip = link.chip
    before = look_before(link, chip) if not chip.flash_encrypted else Before(None)
    store = KeptNvs(job.state_dir, chip.mac)
    keep = None
    if job.keep_nvs:
        keep = to_keep(before, store.load()) if not chip.flash_encrypted else {}
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
    if plan.kept:
        assert keep is not None
        store.save({part.label: keep[part.label] for part in plan.kept})
        outcome.kept_at = store.folder
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
    total = plan.total_bytes
    done = 0
    hooks.phase("writing")

    def progress(at: int) -> None:
        if hooks.stopping():
            raise OtaError(
                "cancelled",
                "The updater was stopped while it wrote the whole flash.",
                remedy=AGAIN,
            )
        hooks.progress(done + at, total)

    with _half_written(outcome):
        # From here until the last write no app starts on this board.
        place = outcome.plan.table.offset
        for offset in sorted({TABLE_OFFSET, place, *outcome.before.tables}):
            apply_verified(link, [Erase(offset, SECTOR_BYTES, "nothing starts meanwhile")])
        for write in plan.writes:
            _write_verified(link, write, progress)
            done += len(write.data)
        hooks.phase("verifying")
        for part in plan.kept:
            _verify(link, Write(part.label, part.after.offset, part.data))
        _write_verified(link, plan.table, progress)


def _write_verified(link: Flash, write: Write, progress: Any) -> None:
    link.write_stream(write.offset, make_plain_stream(write.data), progress)
    _verify(link, write)


def _verify(link: Flash, write: Write) -> None:
    digest = hashlib.md5(write.data, usedforsecurity=False).hexdigest()
    if link.md5(write.offset, len(write.data)) != digest:
        raise OtaError(
            "verify-failed",
            f"What was read back at {write.offset:#x} ({write.name}) is not what was written.",
            remedy=AGAIN,
        )


@contextmanager
def _half_written(outcome: FlashOutcome) -> Iterator[None]:
    """Say where the keys are, whatever ends the writing."""
    try:
        yield
    except OtaError as error:
        raise OtaError(error.code, error.message + _where(outcome), remedy=AGAIN) from error


def _where(outcome: FlashOutcome) -> str:
    return f" Its NVS is kept in {outcome.kept_at}." if outcome.kept_at is not None else ""


def _boot(
    port: SerialBase, link: EspLink, job: FlashJob, hooks: FlashHooks, outcome: FlashOutcome
) -> FlashOutcome:
    hooks.phase("booting")
    file, rules = job.file, job.boot
    about = file.app.descriptor if file.app is not None else None
    expected = Expected(
        offset=file.booted.offset,
        project=about.project if about is not None else None,
        version=about.version if about is not None else None,
        elf_sha256=about.elf_sha256.hex() if about is not None else None,
        matches=rules.matches,
    )
    redact = Redactor(_secrets(outcome))
    monitor = BootMonitor(
        expected, rules.timeout_s, rules.stable_s, restarts=rules.restarts, redact=redact
    )
    link.restart()
    watch(port, monitor, stopped=hooks.stopping, in_download=link.in_download)
    outcome.boot_log = tuple(monitor.told)
    if monitor.verdict is Verdict.RUNNING:
        outcome.confirmed = True
        if outcome.kept_at is not None:
            KeptNvs(job.state_dir, outcome.chip.mac).remove()
            outcome.kept_at = None
    elif monitor.verdict is Verdict.FAILED:
        outcome.error = OtaError(
            "boot-failed",
            f"Everything was written and read back, but the firmware does not start: "
            f"{monitor.reason}.{_where(outcome)}",
            remedy="Look at the boot log, correct the firmware, and flash it again.",
        )
    elif monitor.verdict in UNJUDGED:
        outcome.confirmed = False
        outcome.error = OtaError(
            UNJUDGED[monitor.verdict],
            "Everything was written and read back, but the start of the firmware cannot be judged: "
            f"{monitor.reason}.{_where(outcome)}",
        )
    else:
        outcome.confirmed = False
    return outcome


def _secrets(outcome: FlashOutcome) -> list[bytes]:
    """The strings that the firmware may print at its start, wherever they come from."""
    found = [parse_nvs(part.data) for part in outcome.plan.kept]
    found += [nvs for _, nvs in outcome.file.merged.nvs if isinstance(nvs, Nvs)]
    return [
        value
        for nvs in found
        for space, key, value in nvs.strings()
        if (space, key) != (NAMESPACE, VERSION_KEY)
    ]


@contextmanager
def _left_running(link: EspLink) -> Iterator[None]:
    """Whatever goes wrong, the board is not left in download mode, as far as its port allows."""
    try:
        yield
    except BaseException:
        if not link.running:
            with contextlib.suppress(Exception):
                link.restart()
        raise
