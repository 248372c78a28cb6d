# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a machine shows that a firmware is good: a pure function of its status.

What the tool wrote proves nothing; what the boards show does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ota_service.errors import ERRORS
from ota_service.firmware.urls import redact_url
from ota_service.rollout.plan import Target

Status = Mapping[str, Any]
Verdict = Literal["good", "wait", "bad"]

FATAL = ("rolled_back", "failed", "set_aside", "unsupported")
NEVER = ("absent", "unsupported", "candidate", "unrecognised")
"""Boards in these states before a rollout are none of its business."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a machine showed before its configuration was touched.

    leave: boards that are reported, not counted. boards: those that count. run: the id of its
    last run, whose errors are no news. is_readings: boards have the names of a sensor's readings.
    """

    __pydantic_config__ = {"extra": "ignore"}  # noqa: RUF012 - 0.2.0 kept one thing more

    leave: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    run: str = ""
    is_readings: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What a machine shows now. good, total: boards that count. board: which one is bad."""

    verdict: Verdict
    words: str
    board: str = ""
    good: int = 0
    total: int = 0
    percent: float = 0.0
    arrived: bool = True


def before(status: Status, *, since: bool = False) -> Before:
    """What is to be remembered of a status from before.

    since: it is from after the target came: what is away, or cannot take it, is no longer excused.
    """
    boards = _boards(status)
    excused = set(NEVER) - set(FATAL) - {"absent"} if since else NEVER
    leave = tuple(name for name, board in boards.items() if board.get("state") in excused)
    return Before(
        leave=leave,
        boards=tuple(name for name, board in boards.items() if _counts(name, board, leave)),
        run="" if since else str(_part(status, "run").get("id", "")),
        is_readings=status.get("is_readings") is True,
    )


def look(status: Status, target: Target, known: Before, pinned: Collection[str] = ()) -> Look:
    """What a machine's status says of the firmware that was configured.

    pinned: boards that the configuration gives a version of their own; a status says so itself.
    """
    counted, missing = _expected(status, known, pinned)
    good = [name for name, board in counted.items() if board.get("good") is True]
    percent = sum(_percent(board) for board in counted.values()) / (len(counted) or 1)
    numbers: dict[str, Any] = {"good": len(good), "total": len(counted), "percent": percent}
    if not _arrived(status, target):
        return Look("wait", "the new configuration has not arrived", **numbers, arrived=False)
    bad = next((name for name, board in counted.items() if board.get("state") in FATAL), "")
    fault = _is(bad, counted[bad].get("state"), counted[bad]) if bad else _fault(status, known)
    if fault:
        return Look("bad", fault, board=bad, **numbers)
    numbers["total"] += len(missing)
    if missing:
        return Look("wait", f"{missing[0]} is not there", **numbers)
    waits = next((name for name in counted if name not in good), "")
    if waits:
        words = _is(waits, _at(counted[waits]), counted[waits])
        return Look("wait", words, board=waits, **numbers)
    if not counted and status.get("state") != "idle":
        return Look("wait", f"it is {status.get('state', 'starting')}", **numbers)
    return Look("good", f"{len(good)} of {len(counted)} boards are good", **numbers)


def _expected(
    status: Status, known: Before, pinned: Collection[str]
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """The boards that have to become good, and the names of those that are not there."""
    boards = _boards(status)
    # Only readings have other names: two boards of one status may differ by a dash alone.
    called = reading_name if known.is_readings or status.get("is_readings") else str
    leave, expected, pins = (set(map(called, some)) for some in (known.leave, known.boards, pinned))
    counted = {
        name: board
        for name, board in boards.items()
        if _counts(called(name), board, pins | leave)
        # Unless it came since, and is none of ours.
        and (called(name) in expected or board.get("state") not in NEVER)
    }
    there = {*map(called, boards), *pins}
    return counted, [name for name in known.boards if called(name) not in there]


def from_readings(readings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a status that the sensor's readings have; see `module.sensor.readings_of`.

    They count the boards that are not good, and don't name them: where there are more than their
    states explain, none of those that are up to date is taken for good.
    """
    states = {
        key.removeprefix("state_"): str(value)
        for key, value in readings.items()
        if key.startswith("state_")
    }
    behind = sum(state not in ("up_to_date", "candidate") for state in states.values())
    seen = float(readings.get("boards_not_good", 0)) <= behind
    error = str(readings.get("last_error_code", ""))
    made: dict[str, Any] = {
        "is_readings": True,
        "state": str(readings.get("state", "")),
        "target": {"version": str(readings.get("target_version", ""))},
        "boards": {
            name: {"state": state, "good": seen and state == "up_to_date"}
            for name, state in states.items()
        },
    }
    if error == "stopped":
        made["error"] = {"code": error, "message": ERRORS[error].message}
    return made


def reading_name(board: str) -> str:
    """What a board is called in the sensor's readings."""
    return re.sub(r"[^A-Za-z0-9]+", "_", board).strip("_") or "board"


# --- inside


def _part(status: Status, name: str) -> Mapping[str, Any]:
    found = status.get(name)
    return found if isinstance(found, Mapping) else {}


def _boards(status: Status) -> dict[str, Mapping[str, Any]]:
    return {
        str(name): board
        for name, board in _part(status, "boards").items()
        if isinstance(board, Mapping)
    }


def _counts(name: str, board: Mapping[str, Any], without: Collection[str]) -> bool:
    """Whether a board has to become good. Pinned ones have a firmware of their own, which their
    status names (an image beside it is the manifest's, and ours); a candidate is nobody's yet."""
    return name not in without and ("target" not in board or "image" in board)


def _arrived(status: Status, target: Target) -> bool:
    shown = _part(status, "target")
    if shown.get("version") != target.version:
        return False
    # Another file under the version that was there is told by its url, or by its digest alone. A
    # sensor's readings have neither.
    if "url" not in shown:
        return True
    digest = target.sha256 or shown.get("sha256")
    return redact_url(str(shown["url"])) == redact_url(target.url) and (
        shown.get("sha256") == digest
    )


def _fault(status: Status, known: Before) -> str:
    """What is wrong with the firmware for the whole machine, once a run of ours has found it."""
    error, run = _part(status, "error"), _part(status, "run")
    code = str(error.get("code", ""))
    if not code or (known.run and run.get("id") == known.run):
        return ""
    row = ERRORS.get(code)
    lasts = row is not None and row.blame == "firmware" and not row.transient
    over = status.get("state") == "idle" and run.get("outcome") == "failed"
    if code == "stopped" or (lasts and over):
        return f"{error.get('message', '')} [{code}]".strip()
    return ""


def _at(board: Mapping[str, Any]) -> object:
    """What a board is at that is not good."""
    unseen = board.get("state") == "up_to_date"
    shown = "up to date, and was not seen to start" if unseen else board.get("state", "unknown")
    return board.get("phase") or shown


def _is(name: str, what: object, board: Mapping[str, Any]) -> str:
    error, words = _part(board, "error"), f"{name} is {str(what).replace('_', ' ')}"
    return f"{words}: {error.get('message', '')} [{error.get('code', '')}]" if error else words


def _percent(board: Mapping[str, Any]) -> float:
    if board.get("good") is True:
        return 100.0
    return float(_part(board, "progress").get("percent", 0.0) or 0.0)
