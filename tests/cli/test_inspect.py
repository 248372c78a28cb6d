# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota inspect` against simulated boards."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest

from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from tests.support.command import ended, environment, here, start_command
from tests.support.machine import eventually


def digest(board: RunningBoard) -> str:
    """Of a board's whole flash."""
    return hashlib.sha256((board.dir / "flash.bin").read_bytes()).hexdigest()


@pytest.mark.slow
def test_it_shows_what_is_on_a_board_and_changes_nothing(tmp_path: Path) -> None:
    """Chip, MAC, table, otadata, slots with their apps and the version; then the app runs on."""
    with SimProcess(tmp_path, [SimBoard("guide", version="1.4.2")]) as sim:
        board = sim.boards[0]
        before = digest(board)
        done = here("inspect", board.url, "--json")
        assert done.code == 0, done.err
        told = json.loads(done.out)
        assert told["mac"] == board.mac
        assert told["chip"]["name"] == "ESP32"
        assert told["chip"]["flash_bytes"] == 8 << 20
        assert told["version"] == "1.4.2"
        assert told["running"]["app_version"] == "1.4.2"
        assert told["running"]["evidence"] == "log"
        labels = {part["label"]: part for part in told["partitions"]}
        assert {"nvs", "otadata", "ota_0", "ota_1"} <= labels.keys()
        assert labels["ota_0"]["offset"] % 0x10000 == 0
        assert len(told["otadata"]["entries"]) == 2
        assert [app["slot"] for app in told["apps"] if app["running"]] == [told["running"]["slot"]]
        assert "problem" not in told
        assert "Restarting the board" in done.err
        assert digest(board) == before
        assert board.control.running()["version"] == "1.4.2"

        done = here("inspect", board.url)
        for part in (board.mac, "ota_1", "1.4.2", "running", "otadata 0"):
            assert part in done.out
        assert "\x1b" not in done.out


@pytest.mark.slow
def test_a_board_that_cannot_be_updated_is_shown_with_the_reason(tmp_path: Path) -> None:
    """What is on it is the answer, so the exit code is 0; the remedy stands there as well."""
    with SimProcess(tmp_path, [SimBoard("no-ota")]) as sim:
        done = here("inspect", sim.boards[0].url, "--json")
        assert done.code == 0, done.err
        told = json.loads(done.out)
        assert told["problem"]["code"] == "no-ota-slots"
        assert told["problem"]["remedy"]
        assert told["partitions"]


@pytest.mark.slow
async def test_ctrl_c_leaves_the_board_in_its_firmware(tmp_path: Path) -> None:
    """Also where it comes between the look at its log and the way back into download mode."""
    with SimProcess(tmp_path, [SimBoard("guide", config={"timed": True})]) as sim:
        board = sim.boards[0]

        async def state() -> str:
            return str(board.control.state()["state"])

        async def resets() -> int:
            return board.control.counters()["reset"]

        await eventually(state, lambda now: now == "app")
        before = await resets()
        process = await start_command("inspect", board.url, env=environment(tmp_path))
        # The first one is into download mode, the second one into the firmware to read its log.
        await eventually(resets, lambda now: now >= before + 2, interval_s=0.01)
        process.send_signal(signal.SIGINT)
        done = await ended(process, limit_s=20)
        assert (done.code, done.out) == (1, "")
        assert "Error: Stopped; the board was restarted into its firmware." in done.err
        await eventually(state, lambda now: now == "app", timeout_s=5)
