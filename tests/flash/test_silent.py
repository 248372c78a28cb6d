# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole flash with `keep_nvs` of boards whose log shows nothing to judge by."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim.factory import build_nvs
from esp32_sim.images import Behaviour
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.link.serial_port import close_port, open_port
from ota_service.update.backup_files import Backups
from ota_service.update.flash_merged import FlashJob, FlashOutcome, run_flash
from ota_service.update.flash_plan import check_merged
from ota_service.update.session import BootRules
from tests.flash.in_memory import Hooks, keys
from tests.flash.merged_files import merged

pytestmark = pytest.mark.slow

QUIET = Behaviour(console_baud=0)


class Meanwhile(Hooks):
    """The firmware changes NVS when it starts: to `nvs`, where that is given."""

    def __init__(self, board: RunningBoard, nvs: bytes | None) -> None:
        super().__init__()
        self.board = board
        self.nvs = nvs

    def phase(self, name: str) -> None:
        super().phase(name)
        if name == "booting" and self.nvs is not None:
            self.board.control.write_flash(0x9000, self.nvs)


def flash(board: RunningBoard, state: Path, nvs: bytes | None = None) -> FlashOutcome:
    """A whole flash of it with keep_nvs; nvs: what the firmware makes of it."""
    file = check_merged(merged(behaviour=QUIET, size_bytes=20_000))
    job = FlashJob("a", file, keep_nvs=True, state_dir=state, boot=BootRules(0.5, 0.1))
    port = open_port(board.url, board="a")
    try:
        return run_flash(port, job, Meanwhile(board, nvs))
    finally:
        close_port(port)


def silent_board(tmp_path: Path) -> SimProcess:
    """As Arduino builds it, without OTA slots."""
    quiet = {"bootloader_log": "none"}
    return SimProcess(tmp_path / "boards", [SimBoard("no-ota", config=quiet)])


def test_it_is_done_where_the_keys_are_still_there(tmp_path: Path) -> None:
    """So that what the firmware does with them later is never undone; and the board runs."""
    with silent_board(tmp_path) as sim:
        (board,) = sim.boards
        before = keys(board.control.read_flash(0x9000, 0x6000))
        outcome = flash(board, tmp_path)
        assert outcome.confirmed is False
        assert outcome.error is None
        assert Backups(tmp_path, board.mac).unfinished() == []
        assert board.control.running()["slot"] == "factory"
        assert keys(board.control.read_flash(0x9000, 0x4000)) == before
        later = build_nvs(0x4000, {"WIFI_PASSWORD": "later"})
        board.control.write_flash(0x9000, later)
        flash(board, tmp_path)
        assert keys(board.control.read_flash(0x9000, 0x4000)) == keys(later)


def test_it_is_not_done_where_the_firmware_has_erased_them(tmp_path: Path) -> None:
    """The same again gives them back, and the board is left running in between."""
    with silent_board(tmp_path) as sim:
        (board,) = sim.boards
        before = keys(board.control.read_flash(0x9000, 0x6000))
        outcome = flash(board, tmp_path, b"\xff" * 0x4000)
        assert outcome.error is None
        assert Backups(tmp_path, board.mac).unfinished("flash")
        assert board.control.running()["slot"] == "factory"
        flash(board, tmp_path)
        assert keys(board.control.read_flash(0x9000, 0x4000)) == before
        assert Backups(tmp_path, board.mac).unfinished() == []
