# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal takes and gives: one frozen dataclass a table, and their way into SQLite.

A dataclass's fields are its table's columns. Times are aware datetimes in UTC; None means that
a thing is not known.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from ota_service.firmware.urls import redact
from ota_service.update.boot import UNJUDGED

SqlValue = str | int | None
Statement = tuple[str, tuple[SqlValue, ...]]

AttemptState = Literal["none", "set_aside", "rolled_back", "held", "awaiting"]
Outcome = Literal["running", "succeeded", "partly", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class BoardRecord:
    """What was last seen on a board.

    mac: "aa:bb:cc:dd:ee:ff". version: the stored tag, "" where the board has none, None where it
    was not read. slot: name of the running slot. layout: fingerprint of the partition table.
    """

    mac: str
    chip: str | None = None
    flash_bytes: int | None = None
    port: str | None = None
    usb_location: str | None = None
    usb_serial: str | None = None
    seen_at: datetime | None = None
    version: str | None = None
    version_read_at: datetime | None = None
    slot: str | None = None
    project: str | None = None
    app_version: str | None = None
    confirmed: bool | None = None
    layout: str | None = None


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """What a slot of a board holds.

    md5: of the slot's first `size_bytes` bytes, in hex. sha256: of the image file. version: the
    tag that it was installed with. seen_running_at: when it was last seen to run; None: never.
    """

    mac: str
    slot: str
    md5: str
    size_bytes: int
    sha256: str | None = None
    version: str | None = None
    project: str | None = None
    app_version: str | None = None
    installed_at: datetime | None = None
    seen_running_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PortRecord:
    """What was behind a configured port at its first success.

    wrong_board: why the port is left closed until `release`; None: it is not.
    """

    port: str
    mac: str
    usb_location: str | None
    usb_serial: str | None
    learned_at: datetime
    wrong_board: str | None = None


@dataclass(frozen=True, slots=True)
class NameRecord:
    """Which board a configured name stands for."""

    service: str
    name: str
    mac: str


@dataclass(frozen=True, slots=True)
class LineRecord:
    """A speed at which a port carried a whole slot to a board without an error."""

    mac: str
    port: str
    baud: int


@dataclass(frozen=True, slots=True)
class SpeedRecord:
    """The speed that a port has fallen back to."""

    port: str
    baud: int


@dataclass(frozen=True, slots=True)
class NotOursRecord:
    """A place (USB location, else port) whose board is left alone until `release`."""

    place: str
    reason: str
    mac: str | None
    since: datetime


@dataclass(frozen=True, slots=True)
class BridgeRecord:
    """A generic bridge that a person has had opened, so that it is known as ours.

    identity: which USB device it was ("10c4:ea60:0001"): another one in the same place is not.
    """

    place: str
    identity: str | None
    mac: str | None
    since: datetime


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """How a board fared with a target.

    failed: attempts that failed and count, those among them that a killed process began and never
    ended. state: what became of it, `since` when. open_since: an attempt in progress.
    """

    board: str
    target: str
    failed: int = 0
    state: AttemptState = "none"
    code: str | None = None
    message: str | None = None
    since: datetime | None = None
    open_since: datetime | None = None
    updated_at: datetime | None = None

    @property
    def unjudged(self) -> bool:
        """Whether the firmware was started, and nothing that was seen speaks for or against it."""
        return self.state == "none" and self.code in UNJUDGED.values()


@dataclass(frozen=True, slots=True)
class PendingRecord:
    """A board that may not be reset until its new app had time to confirm itself."""

    mac: str
    target: str
    version: str
    slot: str
    since: datetime
    until: datetime
    previous_slot: str | None = None
    previous_version: str | None = None


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """A service's last target."""

    service: str
    key: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as the history shows it.

    target: {"url" (without secrets), "version", "sha256", ..}. boards: for each name what the
    run did, freely structured: from, to, phases with seconds and bytes, reasons, outcome, error,
    boot log. result: the reply of a read that outlasted its caller. interrupted: its process
    ended in the middle of it.
    """

    id: str
    service: str
    trigger: str
    target: dict[str, Any]
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None = None
    outcome: Outcome = "running"
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    interrupted: bool = False
    boards: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As the verb history gives it: no None anywhere, times as text."""
        values: dict[str, Any] = {
            "id": self.id,
            "service": self.service,
            "trigger": self.trigger,
            "target": self.target,
            "started_at": iso(self.started_at),
            "finished_at": iso(self.finished_at) if self.finished_at else None,
            "outcome": self.outcome,
            "error": self.error,
            "result": self.result,
            "interrupted": self.interrupted or None,
            "boards": self.boards,
        }
        without: dict[str, Any] = without_none(values)
        return without


def now() -> datetime:
    """The present, UTC."""
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, always with microseconds: "2026-01-02T03:04:05.000006Z"."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_iso(text: str) -> datetime:
    """The reverse of `iso`."""
    return datetime.fromisoformat(text)


def dump(value: dict[str, Any]) -> str:
    """A dictionary as JSON text, without the secrets of urls that stand anywhere in it.

    What JSON cannot hold becomes text: a journal entry is no reason for an update to fail.
    """
    text = json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))
    return redact(text)


def without_none(value: Any) -> Any:
    """`value` with every key left out whose value is None, at any depth."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_none(item) for item in value if item is not None]
    return value


# --- dataclasses and rows

Record = TypeVar("Record")


def to_sql(value: object) -> SqlValue:
    """A field's value as SQLite stores it."""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, dict):
        return dump(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"the journal cannot hold {type(value).__name__}")


def from_row(kind: type[Record], row: sqlite3.Row) -> Record:
    """A row as the dataclass whose fields are its columns; other columns are passed over."""
    values: dict[str, Any] = {}
    columns = set(row.keys())
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in columns:
            values[item.name] = _from_sql(str(item.type), row[item.name])
    return kind(**values)


def _from_sql(type_name: str, value: SqlValue) -> Any:
    """A column's value as its field's annotation says; one that cannot be read is as none."""
    if value is None:
        return None
    kind, _, rest = type_name.partition(" ")
    try:
        if kind == "datetime":
            return parse_iso(str(value))
        if kind.startswith("dict"):
            return load(str(value))
    except ValueError:
        return None if "None" in rest else _UNREAD.get(kind, {})
    return bool(value) if kind == "bool" else value


_UNREAD = {"datetime": datetime.fromtimestamp(0, UTC)}
"""What stands for a value that must be there and cannot be read."""


def load(text: str) -> dict[str, Any]:
    """A dictionary from `dump`. Raises ValueError."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no dictionary")
    return value


def upsert(table: str, record: object, *keys: str) -> Statement:
    """The statement that stores a dataclass whole, in place of the row with the same keys."""
    names = [item.name for item in fields(record)]  # type: ignore[arg-type]
    marks = ", ".join("?" * len(names))
    rest = [name for name in names if name not in keys]
    action = ", ".join(f"{name} = excluded.{name}" for name in rest)
    sql = (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) "
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {action}"
    )
    return sql, tuple(to_sql(getattr(record, name)) for name in names)
