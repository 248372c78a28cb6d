# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service knows of one board, as the status shows it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ota_service.errors import OtaError
from ota_service.fleet.settings import BoardEntry
from ota_service.link.ports import shown
from ota_service.update.boot import Heard
from ota_service.update.facts import Staged

State = Literal[
    "unknown",
    "candidate",
    "absent",
    "unsupported",
    "unrecognised",
    "outdated",
    "updating",
    "awaiting_confirmation",
    "up_to_date",
    "rolled_back",
    "failed",
    "set_aside",
]


def utc_now() -> datetime:
    """The present, UTC."""
    return datetime.now(UTC)


def iso(moment: datetime, to: str = "seconds") -> str:
    """ISO 8601 in UTC: "2026-01-02T03:04:05Z"; to: "seconds" or "microseconds"."""
    return moment.astimezone(UTC).isoformat(timespec=to).removesuffix("+00:00") + "Z"


def staged_dict(staged: Staged) -> dict[str, Any]:
    """What waits on a board, as in the status; digest: SHA-256 of its file."""
    return {
        "version": staged.version,
        "slot": staged.slot,
        "digest": staged.sha256,
        "since": iso(staged.since),
    }


@dataclass(slots=True)
class Progress:
    """Bytes of an image on their way, and when they began to move."""

    bytes_done: int = 0
    bytes_total: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def to_dict(self) -> dict[str, Any]:
        """bytes_done, bytes_total, percent, eta_s; the last two where they can be told."""
        shown: dict[str, Any] = {"bytes_done": self.bytes_done}
        if self.bytes_total:
            shown["bytes_total"] = self.bytes_total
            shown["percent"] = round(100.0 * self.bytes_done / self.bytes_total, 1)
        elapsed_s = time.monotonic() - self.started_s
        if self.bytes_done and self.bytes_total and elapsed_s > 0:
            left = self.bytes_total - self.bytes_done
            shown["eta_s"] = round(left * elapsed_s / self.bytes_done, 1)
        return shown


HEARD_PARTS = 400
"""Of a log, each of a line or a few: more than two starts print."""


@dataclass(slots=True)
class StartLog:
    """What a board prints in the starts that one session watches, for who looks on meanwhile.

    count: of all parts, the last of which are kept. verdicts: how the starts were judged. over:
    whether the session is.
    """

    parts: deque[Heard] = field(default_factory=lambda: deque(maxlen=HEARD_PARTS))
    count: int = 0
    verdicts: list[str] = field(default_factory=list)
    over: bool = False

    def add(self, heard: Heard) -> None:
        """What came just now."""
        self.parts.append(heard)
        self.count += 1
        self.verdicts += [heard.verdict] if heard.verdict else []

    def behind(self, count: int) -> list[Heard]:
        """What came behind so many parts, as far as it is kept."""
        new = min(self.count - count, len(self.parts))
        return list(self.parts)[len(self.parts) - new :]


@dataclass(slots=True)
class BoardState:
    """One board. Written by its own task alone (`board.Board`), read by everybody.

    name: from `boards`, else the MAC, else the port. entry: its entry in `boards`. port: where
    it is now. running: {"slot", "project", "app_version"}. confirmed: whether its app was seen to
    run, None where no start of it was watched; notice: why it is not confirmed. unchecked: the
    robot's health check has yet to say yes to it. staged: what waits in one of its slots to be
    activated. back: {"slot", "version"}, where a rollback leads as far as is known. log: of the
    starts that its last session watched. rewritten: as in its record of the journal.
    """

    name: str
    entry: BoardEntry | None = None
    port: str | None = None
    mac: str | None = None
    chip: str | None = None
    flash_bytes: int | None = None
    version: str | None = None
    version_read_at: datetime | None = None
    running: dict[str, str] = field(default_factory=dict)
    state: State = "unknown"
    phase: str | None = None
    progress: Progress | None = None
    confirmed: bool | None = None
    notice: str = ""
    unchecked: bool = False
    attempts: int = 0
    staged: Staged | None = None
    back: dict[str, str] | None = None
    log: StartLog = field(default_factory=StartLog)
    error: OtaError | None = None
    rewritten: int | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether it has a target of its own."""
        return self.entry is not None and self.entry.is_pinned

    @property
    def known_mac(self) -> str | None:
        """Its MAC, as it was seen or is configured."""
        return self.mac or (self.entry.mac if self.entry is not None else None)

    def to_dict(self) -> dict[str, Any]:
        """As in the status; what has no value is left out."""
        shown_now = {
            "state": self.state,
            "mac": self.mac,
            "chip": self.chip,
            "flash_bytes": self.flash_bytes,
            "version": self.version,
            "phase": self.phase,
            "confirmed": self.confirmed,
            "notice": self.notice or None,
            "port": self.port and shown(self.port),
            "version_read_at": self.version_read_at and iso(self.version_read_at),
            "running": dict(self.running) or None,
            "attempts": self.attempts or None,
            "progress": self.progress and self.progress.to_dict(),
            "staged": self.staged and staged_dict(self.staged),
            "back": self.back,
            "error": self.error and self.error.to_dict(),
        }
        return {key: value for key, value in shown_now.items() if value is not None}
