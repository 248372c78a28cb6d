# SPDX-License-Identifier: GPL-3.0-or-later
"""What verbs reply of one board: values from values."""

from __future__ import annotations

from typing import Any

from ota_service.errors import OtaError
from ota_service.fleet.board_state import BoardState, iso, utc_now
from ota_service.formats.partitions import Partition
from ota_service.update.inspect import Inspection
from ota_service.update.plan import Plan
from ota_service.update.session import Image, Outcome


def refusal(purpose: str, error: OtaError) -> dict[str, Any]:
    """The reply where a board could not be had."""
    if purpose == "plan":
        return {"action": "refuse", "reason": error.message, "code": error.code}
    return {"error": error.to_dict()}


def last_reply(
    purpose: str, about: BoardState, error: OtaError, plan: Plan | None
) -> dict[str, Any]:
    """The reply where a board may not be touched now: what is known, and why not."""
    if purpose == "plan" and plan is not None:
        return dict(plan.to_dict())
    reply = refusal(purpose, error)
    if purpose == "version" and about.version is not None:
        reply["version"] = about.version
        if about.version_read_at is not None:
            reply["version_read_at"] = iso(about.version_read_at)
    return reply


def read_reply(purpose: str, outcome: Outcome) -> tuple[dict[str, Any], OtaError | None]:
    """The reply of a look at a board, and the error where it did not find what was asked."""
    if purpose == "plan":
        assert outcome.plan is not None
        return dict(outcome.plan.to_dict()), None
    found = outcome.found
    assert found is not None
    if purpose == "version" and found.nvs is not None:
        return {"version": found.version, "version_read_at": iso(utc_now())}, None
    if purpose == "verify" and found.running.partition is not None:
        return {"matches": found.holds(found.running.partition)}, None
    problem = found.problem or found.running.why or OtaError("otadata-invalid")
    return {"error": problem.to_dict()}, problem


def running_of(
    found: Inspection | None, slot: Partition | None, new: Image | None = None
) -> dict[str, str]:
    """What runs, as the status shows it. new: the image that was put into the slot."""
    if slot is None:
        return {}
    app = found.app(slot) if found is not None else None
    about = app.descriptor if app is not None else None
    if new is not None:
        about = new.parsed.descriptor
    shown = {"slot": slot.name}
    if about is not None:
        shown |= {"project": about.project, "app_version": about.version}
    return shown
