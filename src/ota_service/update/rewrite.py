# SPDX-License-Identifier: GPL-3.0-or-later
"""A visit that writes a whole board, as a flash and a restore do: from its reset to its start.

The board's partition table goes first and the new one comes last. In between nothing boots, so
that no firmware runs on a half-written flash and takes a moved NVS for a damaged one; download
mode answers all the time, and the same again does the whole.

Blocking; runs in a thread of its own, like `session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from serial import SerialBase

from ota_service.errors import OtaError
from ota_service.formats.flashops import SECTOR_BYTES, Erase
from ota_service.formats.nvs import Nvs
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Flash, Progress, apply_verified
from ota_service.link.link import EspLink
from ota_service.link.ownership import mark_rewritten
from ota_service.link.sparse import digest
from ota_service.link.stream import make_stream
from ota_service.update.boot import UNJUDGED, BootMonitor, BootRules, Expected, Hears, Verdict
from ota_service.update.inspect import secrets_of
from ota_service.update.leave import left_running
from ota_service.update.secrets import Redactor
from ota_service.update.starts import watch

WritePhase = Literal["connecting", "inspecting", "writing", "verifying", "booting"]


@dataclass(frozen=True, slots=True)
class Write:
    """Whole sectors to be written. name: what they are, for messages."""

    name: str
    offset: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WritePlan:
    """What is written.

    writes: everything but the table, in this order. table: the sector of the partition table.
    old_tables: where the bootloader may find another one. notes: for people.
    """

    writes: tuple[Write, ...]
    table: Write
    old_tables: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def standing(self) -> Sequence[Write]:
        """What must be on the board, written or not, before the table is put in its place."""
        return ()


@dataclass(frozen=True, slots=True)
class WriteJob:
    """What to do.

    name: for messages. state_dir: where what the board has is kept. confirm: the MAC of the board
    that is meant. baud: the highest speed. hears: gets what it prints when it is started.
    """

    name: str
    state_dir: Path = field(kw_only=True)
    confirm: str | None = field(default=None, kw_only=True)
    baud: int = field(default=921_600, kw_only=True)
    boot: BootRules = field(default_factory=BootRules, kw_only=True)
    hears: Hears = field(default=lambda heard: None, kw_only=True, repr=False)


class WriteHooks(Protocol):
    """What is told while it goes on; called from its thread."""

    def identified(self, mac: str) -> None:
        """The chip answered, and it is the board that is meant. Raises to go no further."""

    def kept(self, folder: Path) -> None:
        """What the board had is in this folder; the first write comes next."""

    def phase(self, name: WritePhase) -> None:
        """A phase begins."""

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes that were sent."""


@dataclass(slots=True)
class WriteOutcome:
    """What came of it: what the board shows.

    confirmed: the app was seen to run; False where its log showed nothing to judge by, and
    `notice` says so. version: the tag that is stored now. nvs: what the board had, also before a
    write that did not finish: what of it stays, its app may print. hides: there was, or is, more
    that cannot be read, so that nothing of the app's own lines is kept. backup: the folder with
    what the board had before, None where nothing had to be written, or none of it could be read.
    error: where the board was written and does not start (`boot-failed`), or its start cannot be
    judged (`brown-out`, `no-reset`).
    """

    chip: ChipInfo
    version: str = field(default="", kw_only=True)
    nvs: Sequence[Nvs] = field(default=(), kw_only=True, repr=False)
    hides: bool = field(default=False, kw_only=True)
    confirmed: bool | None = field(default=None, kw_only=True)
    notice: str = field(default="", kw_only=True)
    backup: Path | None = field(default=None, kw_only=True)
    error: OtaError | None = field(default=None, kw_only=True)
    boot_log: tuple[str, ...] = field(default=(), kw_only=True)

    def ending(self) -> dict[str, Any]:
        """How it ended, as in the reply."""
        shown = {
            "confirmed": self.confirmed,
            "notice": self.notice or None,
            "backup": self.backup and str(self.backup),
            "error": self.error and self.error.to_dict(),
        }
        return {name: value for name, value in shown.items() if value is not None}

    @property
    def kept(self) -> str:
        """Where to find what the board had, as a sentence behind others."""
        if self.backup is None:
            return ""
        return f" What it had (NVS, otadata, partition table) is kept in {self.backup}."


@contextmanager
def visited(
    port: SerialBase,
    baud: int,
    identified: Callable[[str], None],
    *,
    meant: str | None = None,
    remedy: str = "",
) -> Iterator[EspLink]:
    """The board behind an open port, in download mode; where the visit fails it is restarted.

    identified: called with its MAC before anything but fuses is read; raises to go no further.
    meant: its MAC, where another board is to be refused with this remedy. Raises OtaError
    "wrong-board", and as `EspLink.connect` does.
    """

    def known(mac: str) -> None:
        if meant is not None and mac != meant:
            raise OtaError(
                "wrong-board",
                f"The board at this port is {mac}, and {meant} is meant. Nothing was written.",
                remedy=remedy,
            )
        identified(mac)

    link = EspLink.connect(port, baud=baud, identified=known)
    with left_running(link):
        yield link


def require_unprotected(link: EspLink) -> None:
    """Raise OtaError "flash-protected" where a part of the flash cannot be written."""
    if link.protection().covers(0, link.chip.flash_bytes or 0):
        raise OtaError(
            "flash-protected",
            "The flash chip's protection bits cover a part of the flash, so nothing was written.",
        )


def total_bytes(plan: WritePlan) -> int:
    """How much is written."""
    return sum(len(write.data) for write in (*plan.writes, plan.table))


def rewrite(
    flash: Flash,
    plan: WritePlan,
    hooks: WriteHooks,
    outcome: WriteOutcome,
    *,
    again: str,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Take the old tables away, write, read back, put the new table in its place.

    again: what to do about a board that is half written. stopped: whether to stop between two
    blocks all the same. Raises OtaError with where to find what the board had.
    """
    total, done = total_bytes(plan), 0
    mark_rewritten(outcome.chip.mac)

    def progress(at: int) -> None:
        if stopped():
            raise OtaError("cancelled", "The updater was stopped while it wrote the whole flash.")
        hooks.progress(done + at, total)

    hooks.phase("writing")
    try:
        for offset in sorted({*plan.old_tables, plan.table.offset}):
            apply_verified(flash, [Erase(offset, SECTOR_BYTES, "nothing starts meanwhile")])
        for write in plan.writes:
            _write(flash, write, progress)
            done += len(write.data)
        hooks.phase("verifying")
        for write in plan.standing:
            _verify(flash, write)
        _write(flash, plan.table, progress)
    except OtaError as error:
        raise OtaError(error.code, error.message + outcome.kept, remedy=again) from error


def _write(flash: Flash, write: Write, progress: Progress) -> None:
    flash.write_stream(write.offset, make_stream(write.data, plain=True), progress)
    _verify(flash, write)


def _verify(flash: Flash, write: Write) -> None:
    if flash.md5(write.offset, len(write.data)) != digest(write.data):
        raise OtaError(
            "verify-failed",
            f"What was read back at {write.offset:#x} ({write.name}) is not what was written.",
        )


def started(
    port: SerialBase,
    link: EspLink,
    job: WriteJob,
    outcome: WriteOutcome,
    expected: Expected,
    *,
    nvs: Iterable[Nvs],
    stopped: Callable[[], bool] = lambda: False,
    remedy: str,
) -> None:
    """Restart the board, watch its log, and note in the outcome what that shows.

    nvs: what it has now and may print at its start, to be left out. remedy: for a firmware that
    does not start.
    """
    redact = Redactor(secrets_of([*nvs, *outcome.nvs]))
    monitor = BootMonitor(expected, job.boot, redact, hides=outcome.hides, hears=job.hears)
    link.restart()
    watch(port, monitor, link.in_download, stopped=stopped)
    outcome.boot_log = tuple(monitor.told)
    written = "Everything was written and read back, but"
    if monitor.verdict is Verdict.FAILED:
        outcome.error = OtaError(
            "boot-failed",
            f"{written} the firmware does not start: {monitor.reason}.{outcome.kept}",
            remedy=remedy,
        )
    elif monitor.verdict in UNJUDGED:
        outcome.error = OtaError(
            UNJUDGED[monitor.verdict],
            f"{written} the start of the firmware cannot be judged: {monitor.reason}."
            f"{outcome.kept}",
        )
    else:
        outcome.confirmed, outcome.notice = monitor.confirmed, monitor.notice
