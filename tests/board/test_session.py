# SPDX-License-Identifier: GPL-3.0-or-later
"""One session with a simulated board: what is left of an app that waits for confirmation."""

from __future__ import annotations

from pathlib import Path

import pytest

from ota_service.board import session
from ota_service.board.inspect import Inspection
from ota_service.board.serial_port import close_port, open_port
from ota_service.board.session import BootRules, Job, Outcome
from ota_service.errors import OtaError
from ota_service.formats.otadata import parse_otadata
from ota_service.sim.images import Behaviour, build_app
from ota_service.sim.layouts import LAYOUTS
from ota_service.sim.process import RunningBoard, SimBoard, SimProcess
from tests.prove.board import Notes

pytestmark = pytest.mark.slow

BOOT = BootRules(timeout_s=4, stable_s=0.3)
NEVER = Behaviour(confirm_after_s=None)


def run(board: RunningBoard, job: Job, notes: Notes | None = None) -> Outcome:
    """One session."""
    port = open_port(board.url)
    try:
        return session.run(port, job, notes or Notes())
    finally:
        close_port(port)


def states(board: RunningBoard, layout: str = "micro-rdk") -> list[str]:
    """The states in otadata, newest last."""
    at = LAYOUTS[layout].find("otadata").offset
    entries = parse_otadata(board.control.read_flash(at, 0x2000)).entries
    return [entry.state_name for entry in sorted(entries, key=lambda one: one.seq)]


class Refusing(Notes):
    """Somebody who wants no more of it as soon as the board was looked at."""

    def inspected(self, found: Inspection) -> None:
        assert found.pending
        raise OtaError("changed-elsewhere")


def test_a_session_that_fails_leaves_an_app_its_time_to_confirm(tmp_path: Path) -> None:
    """As one that only looks does: the bootloader that is passed on the way back turns down what
    has not confirmed itself."""
    app = build_app(size_bytes=60_000, behaviour=NEVER)
    spec = SimBoard(app=app, slot="ota_1", otadata="new", config={"rollback": True})
    with SimProcess(tmp_path, [spec]) as sim:
        board = sim.boards[0]
        for job, notes in (
            (Job("a", read_only=True), Notes()),
            (Job("a", read_only=True), Refusing()),
            (Job("a", go_back=True), Notes()),
        ):
            assert board.control.running()["slot"] == "ota_1"
            assert states(board) == ["VALID", "PENDING_VERIFY"]
            try:
                run(board, job, notes)
            except OtaError as error:
                assert error.code in ("changed-elsewhere", "awaiting-confirmation")
            assert board.control.running()["slot"] == "ota_1"
            assert states(board) == ["VALID", "PENDING_VERIFY"]
