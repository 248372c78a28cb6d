# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the status: everything known, at once, from memory alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ota_service.fleet.core import effective_target

if TYPE_CHECKING:
    from ota_service.fleet.board_state import BoardState
    from ota_service.fleet.core import Core

Overall = Literal["idle", "checking", "downloading", "updating", "closing"]


def overall(core: Core) -> Overall:
    """The service's own state: the busiest of its runs; a run that only pauses is idle."""
    if core.closing:
        return "closing"
    stages = {run.stage for run in core.runs if not run.idle}
    for stage in ("updating", "downloading", "checking"):
        if stage in stages:
            return stage
    return "idle"


def status_of(core: Core) -> dict[str, Any]:
    """The reply of the verb status and of `get_status`; what has no value is left out."""
    target = core.settings.target
    shown: dict[str, Any] = {"url": target.shown_url, "version": target.version}
    if target.sha256 is not None:
        shown["sha256"] = target.sha256
    image = core.images.get(target.key)
    if image is not None:
        about = image.parsed.descriptor
        shown |= {
            "sha256": image.sha256,
            "size_bytes": len(image.data),
            "project": about.project,
            "app_version": about.version,
            "chip": image.parsed.chip,
        }
    notice = core.notices.get(target.key)
    if notice is not None:
        shown["notice"] = notice
    out: dict[str, Any] = {
        "ok": True,
        "state": overall(core),
        "target": shown,
        "boards": {name: _board(core, board) for name, board in list(core.boards.items())},
    }
    if core.download is not None:
        out["progress"] = core.download.to_dict()
    if core.last_run is not None:
        out["run"] = core.last_run.to_dict()
    error = core.error
    if error is None and core.last_run is not None:
        error = core.last_run.error
    if error is None and core.journal_problem is not None:
        error = core.journal_problem
    if error is not None:
        out["error"] = error.to_dict()
    return out


def _board(core: Core, board: BoardState) -> dict[str, Any]:
    """One board, with its own target where it has one: the service's is not for it."""
    shown = board.to_dict()
    if board.entry is not None and board.entry.is_pinned:
        target = effective_target(core.settings, board.entry)
        shown["target"] = {"url": target.shown_url, "version": target.version}
    return shown
