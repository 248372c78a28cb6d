# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the status: everything known, at once, from memory alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ota_service.fleet.board import Board
    from ota_service.fleet.engine import Engine

Overall = Literal["idle", "checking", "downloading", "updating", "closing"]


def overall(engine: Engine) -> Overall:
    """The service's own state: the busiest of its boards; between attempts it is idle."""
    if engine.closing:
        return "closing"
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
    shown: dict[str, Any] = {"url": target.shown_url, "version": target.version}
    if target.sha256 is not None:
        shown["sha256"] = target.sha256
    shown |= firmwares.about.get(target.key, {})
    notice = firmwares.notices.get(target.key)
    if notice is not None:
        shown["notice"] = notice
    out: dict[str, Any] = {
        "ok": True,
        "state": overall(engine),
        "target": shown,
        "boards": {name: _board(board) for name, board in engine.boards.items()},
    }
    if firmwares.download is not None:
        out["progress"] = firmwares.download.to_dict()
    if engine.last_run is not None:
        out["run"] = engine.last_run.to_dict()
    error = engine.error
    if error is None and engine.last_run is not None:
        error = engine.last_run.error
    if error is None:
        error = engine.journal_problem
    if error is not None:
        out["error"] = error.to_dict()
    return out


def _board(board: Board) -> dict[str, Any]:
    """One board, with its own target where it has one: the service's is not for it."""
    shown, entry = board.shown.to_dict(), board.shown.entry
    if entry is not None and entry.is_pinned:
        shown["target"] = {"url": board.target.shown_url, "version": board.target.version}
    return shown
