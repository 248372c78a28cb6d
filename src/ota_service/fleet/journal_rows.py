# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal takes and gives: one frozen dataclass a table, whose fields are its columns.

Times are aware datetimes in UTC; None means that a thing is not known.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import Field, dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, dataclass_transform

from ota_service.firmware.urls import redact
from ota_service.fleet.board_state import iso
from ota_service.update.boot import UNJUDGED

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SqlValue = str | int | float | None
Value = TypeVar("Value", bound="DataclassInstance")

AttemptState = Literal["none", "set_aside", "rolled_back", "held", "awaiting"]
GroupPhase = Literal["switching", "going_back", "owing"]
Outcome = Literal["running", "succeeded", "partly", "failed", "cancelled"]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record:
    """A row of `TABLE`, known by its first fields, the `KEYS`: a frozen dataclass."""

    TABLE: ClassVar[str]
    KEYS: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, table: str, keys: int = 1) -> None:
        dataclass(frozen=True)(cls)
        cls.TABLE, cls.KEYS = table, tuple(cls.columns())[:keys]

    @classmethod
    def columns(cls) -> dict[str, Field[Any]]:
        """Its fields that are columns."""
        return {f.name: f for f in fields(cls) if f.metadata.get("column", True)}

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """Columns that are no fields are passed over."""
        values = {n: _from_sql(str(f.type), row[n]) for n, f in cls.columns().items()}
        return cls(**values)

    @classmethod
    def of(cls, value: Any, **more: Any) -> Self:
        """A row of what another value has by the same names; more: what it has not."""
        names = cls.columns().keys() - more.keys()
        return cls(**{name: getattr(value, name) for name in names}, **more)

    def to(self, kind: type[Value], **more: Any) -> Value:
        """Another value of what the row has by the same names; more: what it has not."""
        names = self.columns().keys() & {field.name for field in fields(kind)}
        return kind(**{name: getattr(self, name) for name in names}, **more)

    def to_row(self) -> dict[str, SqlValue]:
        """Its columns as SQLite stores them."""
        return {name: to_sql(getattr(self, name)) for name in self.columns()}


class BoardRecord(Record, table="boards"):
    """What was last seen on a board.

    mac: "aa:bb:cc:dd:ee:ff". version: the stored tag, "" where the board has none, None where it
    was not read. version_read_at: None also where an attempt was begun since then that did not
    end well. slot: name of the running slot. unchecked: the robot's health check has yet to say yes
    to what runs. rewritten: the last time that its flash was replaced (`rewrite_mark`), of which
    all of this takes account.
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
    silent: bool | None = None
    unchecked: bool = False
    rewritten: int | None = None


class SlotRecord(Record, table="slots", keys=2):
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


class PortRecord(Record, table="ports"):
    """What was behind a configured port at its first success.

    wrong_board: why the port is left closed until `release`; None: it is not.
    """

    port: str
    mac: str
    usb_location: str | None
    usb_serial: str | None
    learned_at: datetime
    wrong_board: str | None = None


class NameRecord(Record, table="names", keys=2):
    """Which board a configured name stands for."""

    service: str
    name: str
    mac: str


class NotOursRecord(Record, table="not_ours"):
    """A place (USB location, else port) whose board is left alone until `release`."""

    place: str
    reason: str
    mac: str | None
    since: datetime


class BridgeRecord(Record, table="bridges"):
    """A generic bridge that a person has had opened, so that it is known as ours.

    identity: which USB device it was ("10c4:ea60:0001"): another one in the same place is not.
    """

    place: str
    identity: str | None
    mac: str | None
    since: datetime


class AttemptRecord(Record, table="attempts", keys=2):
    """How a board fared with a target.

    board: its MAC, or its configured name while no MAC is known. target: its key. failed: attempts
    that failed and count, those among them that a killed process began and never ended. state:
    what became of it, `since` when. open_since: an attempt in progress. seq: rises with each
    change, whatever the clock does.
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
    seq: int = 0

    @property
    def ended_well(self) -> bool:
        """Whether the last thing that came of it is a success."""
        return (self.state, self.failed, self.code, self.open_since) == ("none", 0, None, None)

    @property
    def unjudged(self) -> bool:
        """Whether the firmware was started, and nothing that was seen speaks for or against it."""
        return self.state == "none" and self.code in UNJUDGED.values()


class PendingRecord(Record, table="pending"):
    """A board that may not be reset until its new app had time to confirm itself.

    Clocks jump, so what counts is up_until_s, in seconds since the machine started; boot: which
    start that was. power_failed: the board's power failed before it had confirmed itself.
    """

    mac: str
    target: str
    version: str
    slot: str
    since: datetime
    until: datetime
    previous_version: str | None = None
    power_failed: bool = False
    boot: str | None = None
    up_until_s: float | None = None


class GroupRecord(Record, table="board_groups", keys=2):
    """A group of boards that is in the middle of its switch, and what its end is to be.

    id: the run and the group. target, version: the service's, whose manifest has the group. phase:
    switching: the members are brought to their firmware; going_back: from it; owing: all but those
    that could not be reached have gone back. data: its members in the order of their switch, each
    with name, mac, image, step and target; what is stopped where its firmware failed; why it goes
    back.
    """

    service: str
    id: str
    target: str
    version: str
    phase: GroupPhase
    since: datetime
    data: dict[str, Any]


class StagedRecord(Record, table="staged"):
    """What waits in a slot of a board to be activated, as a `facts.Staged`."""

    mac: str
    target: str
    version: str
    slot: str
    size_bytes: int
    sha256: str
    md5: str
    staged_md5: str
    head: bytes
    since: datetime


class BroughtRecord(Record, table="brought"):
    """What the last update that switched a board brought to it, as a `session.Brought`."""

    mac: str
    target: str
    slot: str
    size_bytes: int
    md5: str
    version: str
    previous_version: str | None
    since: datetime


class OwedCallRecord(Record, table="owed_calls", keys=2):
    """An `after_restart` that is owed to the robot since a session with a board was about to
    begin. call: as JSON."""

    service: str
    board: str
    call: str
    since: datetime


class TargetRecord(Record, table="targets"):
    """A service's last targets, by one key for all of them."""

    service: str
    key: str
    since: datetime


class StopRecord(Record, table="stops", keys=2):
    """A target that no further board of a service gets."""

    service: str
    target: str
    reason: str
    since: datetime


class FirmwareRecord(Record, table="confirmed_firmware"):
    """A firmware that a board was seen running well, so that no canary is needed."""

    sha256: str
    at: datetime


class Run(Record, table="runs"):
    """One run, as the history shows it.

    target: {"url" (without secrets), "version", "sha256", "manifest" (where it stands in one), ..}.
    boards: for each name what the run did, freely structured: from, to, phases with seconds and
    bytes, reasons, outcome, error, boot log. result: the reply of a read that outlasted its
    caller. interrupted: its process ended in the middle of it.
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
    boards: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"column": False})

    def to_dict(self) -> dict[str, Any]:
        """As the verb history gives it: no None anywhere, times as text."""
        shown = {name: getattr(self, name) for name in (*self.columns(), "boards")}
        del shown["updated_at"]
        shown["target"] = {k: v for k, v in self.target.items() if k != "manifest"}
        shown["manifest"] = self.target.get("manifest")
        shown["started_at"] = iso(self.started_at, "microseconds")
        shown["finished_at"] = self.finished_at and iso(self.finished_at, "microseconds")
        shown["interrupted"] = self.interrupted or None
        without: dict[str, Any] = without_none(shown)
        return without


class RunBoardRecord(Record, table="run_boards", keys=2):
    """What a run did to one board; mac and port serve to find it."""

    run: str
    name: str
    mac: str | None
    port: str | None
    data: dict[str, Any]


# --- values and columns


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


def to_sql(value: object) -> SqlValue:
    """A field's value as SQLite stores it. Times sort as text."""
    if isinstance(value, datetime):
        return iso(value, "microseconds")
    if isinstance(value, dict):
        return dump(without_none(value))
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"the journal cannot hold {type(value).__name__}")


_UNREAD: dict[str, Any] = {
    "datetime": datetime.fromtimestamp(0, UTC),
    "bytes": b"",
    "dict[str, Any]": {"truncated": True},
}
"""What stands for a value that must be there and cannot be read."""


def _from_sql(type_name: str, value: SqlValue) -> Any:
    """A column's value as its field's annotation says; one that cannot be read is as none."""
    kind, _, rest = type_name.partition(" | ")
    if value is None and rest:
        return None
    try:
        if kind == "datetime":
            return datetime.fromisoformat(str(value))
        if kind == "bytes":
            return bytes.fromhex(str(value))
        if kind.startswith("dict"):
            return dict(json.loads(str(value)))
    except (ValueError, TypeError):
        return None if rest else _UNREAD[kind]
    return bool(value) if kind == "bool" else value
