# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the status: everything known, at once, from memory alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ota_service.firmware import trust

if TYPE_CHECKING:
    from ota_service.fleet.board import Board
    from ota_service.fleet.engine import Engine

Overall = Literal["idle", "checking", "downloading", "updating", "closing"]


def overall(engine: Engine) -> Overall:
    """The service's own state: the busiest of its boards; between attempts it is idle."""
    if engine.closing:
        return "closing"
    if engine.groups.run is not None:
        return "updating"
    states = {board.state for board in engine.boards.values()}
    if states - {"rest", "fetching", "pausing"}:
        return "updating"
    stages = {run.stage for run in engine.runs}
    if "fetching" in states or "downloading" in stages:
        return "downloading"
    return "checking" if "checking" in stages else "idle"


def status_of(engine: Engine) -> dict[str, Any]:
    """The reply of the verb status and of `get_status`; what has no value is left out."""
    target, firmwares = engine.settings.target, engine.firmwares
    run = engine.groups.run or engine.last_run  # whatever was asked for since waits for a group
    error = engine.error or (run and run.error) or engine.journal_problem
    aim = {
        "url": target.shown_url,
        "version": target.version,
        "sha256": target.sha256,
        **firmwares.about.get(target.key, {}),
        "notice": firmwares.notices.get(target.key) or firmwares.same.get(target.key),
    }
    out = {
        "ok": True,
        "state": overall(engine),
        "target": _with_value(aim),
        "boards": {name: _board(engine, board) for name, board in engine.boards.items()},
        "progress": firmwares.download and firmwares.download.to_dict(),
        "run": run and run.to_dict(),
        "trust": _trust(engine.trust, firmwares.about.values()),
        "error": error and error.to_dict(),
    }
    return _with_value(out)


def _trust(
    shown: Mapping[str, Any] | None, about: Iterable[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What this host asks of firmware, and whether metadata that it goes by expires soon."""
    if shown is None:
        return None
    notice = trust.expiry_notice(by for one in about for by in one.get("allowed_by", ()))
    return {**shown, "notice": notice} if notice else dict(shown)


def _with_value(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _board(engine: Engine, board: Board) -> dict[str, Any]:
    """One board, with its own target where it has one: the service's is not for it. image: of the
    manifest."""
    about, assignment = board.shown, engine.roster.assignment
    shown = {**about.to_dict(), "good": board.is_good}
    if (words := board.runs_another) is not None:
        shown["notice"] = words
    if about.staged is not None and not about.staged.is_of(board.target):
        shown["staged"]["stale"] = True
    images = assignment.images if assignment is not None and not about.is_pinned else {}
    image = images.get(about.name)
    if about.is_pinned or image is not None:
        shown["target"] = {"url": board.target.shown_url, "version": board.target.version}
    if image is not None:
        shown["image"] = image
    return shown
