# SPDX-License-Identifier: GPL-3.0-or-later
"""What is common to the visits that write a whole board: a flash and a restore."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ota_service.errors import OtaError
from ota_service.formats.nvs import Nvs
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Protection
from ota_service.update.boot import UNJUDGED, BootMonitor, Verdict
from ota_service.update.inspect import NAMESPACE, VERSION_KEY
from ota_service.update.session import BootRules

WritePhase = Literal["connecting", "inspecting", "writing", "verifying", "booting"]


@dataclass(frozen=True, slots=True)
class WriteJob:
    """What to do.

    name: for messages. state_dir: where what the board has is kept. confirm: the MAC of the board
    that is meant. baud: the highest speed.
    """

    name: str
    state_dir: Path = field(kw_only=True)
    confirm: str | None = field(default=None, kw_only=True)
    baud: int = field(default=921_600, kw_only=True)
    boot: BootRules = field(default_factory=BootRules, kw_only=True)


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

    confirmed: the start was seen to be good; False where its log showed nothing to judge by.
    version: the tag that is stored now. backup: the folder with what the board had before, None
    where nothing had to be written, or none of it could be read. error: where the board was
    written and does not start (`boot-failed`), or its start cannot be judged (`brown-out`,
    `no-reset`).
    """

    chip: ChipInfo
    version: str = field(default="", kw_only=True)
    confirmed: bool | None = field(default=None, kw_only=True)
    backup: Path | None = field(default=None, kw_only=True)
    error: OtaError | None = field(default=None, kw_only=True)
    boot_log: tuple[str, ...] = field(default=(), kw_only=True)

    def ending(self) -> dict[str, Any]:
        """How it ended, as in the reply."""
        shown: dict[str, Any] = {}
        if self.confirmed is not None:
            shown["confirmed"] = self.confirmed
        if self.backup is not None:
            shown["backup"] = str(self.backup)
        if self.error is not None:
            shown["error"] = self.error.to_dict()
        return shown

    def judge(self, monitor: BootMonitor, *, remedy: str) -> None:
        """Note what the watched start shows. remedy: for a firmware that does not start."""
        self.boot_log = tuple(monitor.told)
        written = "Everything was written and read back, but"
        if monitor.verdict is Verdict.FAILED:
            self.error = OtaError(
                "boot-failed",
                f"{written} the firmware does not start: {monitor.reason}.{kept_in(self.backup)}",
                remedy=remedy,
            )
        elif monitor.verdict in UNJUDGED:
            self.error = OtaError(
                UNJUDGED[monitor.verdict],
                f"{written} the start of the firmware cannot be judged: {monitor.reason}."
                f"{kept_in(self.backup)}",
            )
        else:
            self.confirmed = monitor.verdict is Verdict.RUNNING


def kept_in(folder: Path | None) -> str:
    """Where to find what the board had, as a sentence behind others."""
    if folder is None:
        return ""
    return f" What it had (NVS, otadata, partition table) is kept in {folder}."


def require_board(mac: str, meant: str | None, *, remedy: str) -> None:
    """Raise OtaError "wrong-board" where it is another one than the one that is meant."""
    if meant is not None and mac != meant:
        raise OtaError(
            "wrong-board",
            f"The board at this port is {mac}, and {meant} is meant. Nothing was written.",
            remedy=remedy,
        )


def require_unprotected(protection: Protection, chip: ChipInfo) -> None:
    """Raise OtaError "flash-protected" where a part of the flash cannot be written."""
    if protection.covers(0, chip.flash_bytes or 0):
        raise OtaError(
            "flash-protected",
            "The flash chip's protection bits cover a part of the flash, so nothing was written.",
        )


def version_in(nvs: Nvs) -> str:
    """The tag that is stored there; "" for none."""
    return nvs.get_string(NAMESPACE, VERSION_KEY) or ""
