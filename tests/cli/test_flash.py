# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota flash` and `make flash-esp32-bin` on a simulated board without OTA slots."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp32_sim.images import Behaviour
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from tests.flash.merged_files import merged
from tests.support.command import Done, command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK = ("--boot-timeout-s", "4", "--boot-stable-s", "0.5")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[RunningBoard]:
    """A 4 MB board without OTA slots whose app prints its secrets at every start."""
    with SimProcess(tmp_path / "boards", [SimBoard("no-ota")]) as sim:
        yield sim.boards[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A Merged Binary with the OTA guide's table, whose app prints what NVS holds."""
    path = tmp_path / "merged.bin"
    path.write_bytes(merged(behaviour=Behaviour(print_secrets=True)))
    return path


def flash(board: RunningBoard, file: Path, folder: Path, *arguments: str, code: int = 0) -> Done:
    """Run the command."""
    where = ("--state-dir", str(folder / "state"), *QUICK, *arguments)
    return command("flash", board.url, str(file), *where, code=code)


def secrets(board: RunningBoard) -> list[str]:
    """The strings of a board's NVS that nobody may see."""
    state = nvs_init(bytearray(board.control.read_flash(0x9000, 0x6000)))
    names = ("WIFI_PASSWORD", "ROBOT_SECRET", "ROBOT_ID")
    return [state.items["VIAM_NS", name][1].decode() for name in names]


def test_it_shows_what_changes_writes_and_watches(
    board: RunningBoard, file: Path, tmp_path: Path
) -> None:
    """First only shown, then done with the keys kept; the secrets that the app prints stay out."""
    hidden = secrets(board)
    before = board.control.read_flash(0, 0x310000)
    shown = flash(board, file, tmp_path, "--keep-nvs", "--dry-run")
    assert board.control.read_flash(0, 0x310000) == before
    for words in ("factory", "0x10000 1536 KB", "0x110000 1 MB", "11 keys move from 0x9000"):
        assert words in shown.out
    lost = flash(board, file, tmp_path, "--dry-run").out
    assert "nvs: what the board has there is LOST" in lost

    done = flash(board, file, tmp_path, "--keep-nvs", "--confirm", board.mac.upper())
    assert done.out.splitlines()[0] == (
        f"Writing {file} (a Merged Binary for ESP32 with micro-rdk-server 1.0.5, ESP-IDF v5.1.4, "
        f"{len(file.read_bytes()):,} bytes) to {board.url}."
    )
    assert "Done: the board runs micro-rdk-server 1.0.5" in done.out
    assert 'version "1.0.0"' in done.out
    board.control.wait_for_text(f"ROBOT_SECRET={hidden[1]}")
    for secret in hidden:
        assert secret not in done.out + done.err + shown.out
    kept = tmp_path / "state/backups" / board.mac.replace(":", "") / "1"
    assert (
        f"What it has (NVS, otadata, partition table) is kept in {kept}; "
        f"`esp32-ota restore {board.url} {kept}` puts it back."
    ) in done.out.splitlines()
    again = flash(board, file, tmp_path, "--keep-nvs", "--json")
    reply = json.loads(again.out)
    assert (reply["ok"], reply["confirmed"], reply["nvs"][0]["moved"]) == (True, True, False)
    assert Path(reply["backup"]).parent == kept.parent


def test_the_make_target_writes_too(board: RunningBoard, file: Path) -> None:
    """`make flash-esp32-bin PORT=.. BIN=.. KEEP_NVS=1`, as a person types it."""
    done = subprocess.run(
        ["make", "flash-esp32-bin", f"PORT={board.url}", f"BIN={file}", "KEEP_NVS=1"],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(board.dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Done: the board runs micro-rdk-server 1.0.5" in done.stdout


def test_a_script_is_told_what_is_lost_before_it_is_written(
    board: RunningBoard, file: Path, tmp_path: Path
) -> None:
    """Without a terminal nobody is asked; the line is there, and the keys are gone."""
    done = flash(board, file, tmp_path)
    lines = done.out.splitlines()
    (lost,) = (n for n, line in enumerate(lines) if line.startswith("nvs: ") and "LOST" in line)
    assert lost < lines.index("Writing ...")
    state = nvs_init(bytearray(board.control.read_flash(0x9000, 0x4000)))
    assert ("VIAM_NS", "ROBOT_SECRET") not in state.items


def test_another_boards_mac_and_other_files_write_nothing(
    board: RunningBoard, file: Path, tmp_path: Path
) -> None:
    """One line each, with exit code 1."""
    board.control.start_trace()
    done = flash(board, file, tmp_path, "--confirm", "24:0a:c4:ff:ff:ff", code=1)
    assert "wrong-board" in done.err
    (tmp_path / "s3.bin").write_bytes(b"\xe9\x02" + bytes(2000))
    assert "not-an-image" in flash(board, tmp_path / "s3.bin", tmp_path, code=1).err
    ops = [op for op in board.control.stop_trace() if op["who"] == "loader"]
    assert ops == []


def test_a_power_cut_in_the_middle_is_mended_by_the_same_command(
    board: RunningBoard, file: Path, tmp_path: Path
) -> None:
    """The error says where the keys are, and in this command's words how to go on; nothing starts;
    the same again finds them there."""
    hidden = secrets(board)
    board.control.cut_power_at(60, "torn")
    done = flash(board, file, tmp_path, "--keep-nvs", code=1)
    assert "link-lost" in done.err
    folder = tmp_path / "state/backups" / board.mac.replace(":", "")
    assert str(folder / "1") in done.err
    assert "Call flash again with `--keep-nvs` (with make: KEEP_NVS=1)" in done.err
    assert "keep_nvs" not in done.err
    assert (folder / "unfinished.json").is_file()
    board.control.power_on()
    done = flash(board, file, tmp_path, "--keep-nvs")
    assert "Done" in done.out
    state = nvs_init(bytearray(board.control.read_flash(0x9000, 0x4000)))
    assert state.items["VIAM_NS", "ROBOT_SECRET"][1].decode() == hidden[1]
    assert not (folder / "unfinished.json").exists()


def test_a_firmware_that_does_not_start_is_told_with_its_log(
    board: RunningBoard, tmp_path: Path
) -> None:
    """Written and read back is not enough; the keys stay on disk, and no secret is shown."""
    hidden = secrets(board)
    bad = tmp_path / "bad.bin"
    # Late enough that the app has printed them first, also on a busy machine.
    behaviour = Behaviour(ending="panic", ending_after_s=1.0, print_secrets=True)
    bad.write_bytes(merged(behaviour=behaviour))
    done = flash(board, bad, tmp_path, "--keep-nvs", "--boot-stable-s", "4", code=1)
    assert "boot-failed" in done.out
    assert "Guru Meditation" in done.out
    assert "is kept in" in done.out
    assert "ROBOT_SECRET=***" in done.out
    for secret in hidden:
        assert secret not in done.out + done.err
