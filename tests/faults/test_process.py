# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the process, its disk and the board's flash: noticed, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esp32_sim.process import SimBoard
from tests.faults import prove
from tests.faults.desk import Desk, Shown, look

pytestmark = pytest.mark.slow


# Of the seeds that `make prove` goes through: either signal, once and twice, one board and two, a
# bootloader with and without rollback.
KILLED_SEEDS = (0, 2, 3, 5, 6)


def test_a_killed_module_carries_on() -> None:
    """SIGTERM or SIGKILL at random moments: the next start finishes the job by itself."""
    assert prove.several([("killed", seed) for seed in KILLED_SEEDS]) == {}


# --- disks


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A disk of so many KiB at `folder`; skips where it cannot be mounted."""
    folder.mkdir(parents=True)
    options = f"size={size_kib}k,mode=700"
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a disk to its last byte; returns the file that does."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break
    return path


async def test_a_full_disk_stops_the_download_and_no_board_is_touched(tmp_path: Path) -> None:
    """`disk-full` before a port is opened; with room again the next update succeeds."""
    with small_disk(tmp_path / "cache", 2048):
        async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
            before = await desk.look()
            opened = desk.board().control.counters().get("opened", 0)
            filler = fill(tmp_path / "cache")
            status = await desk.updated("1.1.0")
            assert status["error"]["code"] == "disk-full", status
            assert str(tmp_path / "cache") in status["error"]["message"]
            assert desk.board().control.counters().get("opened", 0) == opened
            filler.unlink()
            await desk.command("update", wait_s=30)
            assert desk.status()["boards"]["a"]["state"] == "up_to_date"
            await desk.truth(before, "1.1.0")


async def test_a_disk_that_fills_up_during_the_download(tmp_path: Path) -> None:
    """There was room when it began: `disk-full` all the same, and no half file is left."""
    with small_disk(tmp_path / "cache", 2048):
        async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
            url = desk.serve("1.1.0", size_bytes=600_000)
            gate = desk.server.hold("/1.1.0.bin")
            last = desk.run_id()
            await desk.configure(url=url, version="1.1.0")
            await desk.wait(lambda now: now.get("progress", {}).get("bytes_done", 0) > 0)
            filler = fill(tmp_path / "cache")
            gate.set()
            status = await desk.next_run(last)
            assert status["error"]["code"] == "disk-full", status
            left = [path for path in (tmp_path / "cache").rglob("*.part") if path.is_file()]
            assert left == []
            filler.unlink()
            await desk.command("update", wait_s=30)
            assert desk.status()["boards"]["a"]["state"] == "up_to_date"


@pytest.mark.slow
async def test_an_update_is_not_stopped_by_a_journal_that_cannot_be_written(
    tmp_path: Path,
) -> None:
    """The status says so; what was learned is kept, and written when there is room again."""
    with small_disk(tmp_path / "state", 1024):
        async with Desk.start(tmp_path, [SimBoard("guide"), SimBoard("micro-rdk")]) as desk:
            before = await desk.look()
            await desk.updated("1.1.0")
            filler = fill(tmp_path / "state")
            status = await desk.updated("1.2.0")
            for name in desk.names:
                assert status["boards"][name]["state"] == "up_to_date", status
            assert "error" in status, status
            assert str(tmp_path / "state") in status["error"]["message"]
            await desk.truth(before, "1.2.0")
            filler.unlink()
            status = await desk.updated("1.3.0")
            await desk.wait(lambda now: "error" not in now, timeout_s=20)
            # A new life reads from the file what the full disk had held back.
            from ota_service.fleet.service import shutdown

            await shutdown()
            desk.service = None
            last = desk.run_id()
            await desk.configure(url=desk.server.url("/1.3.0.bin"), version="1.3.0")
            status = await desk.next_run(last)
            assert status["boards"]["a"]["state"] == "up_to_date"
            runs = (await desk.command("history", limit=10))["runs"]
            assert sum(run["outcome"] == "succeeded" for run in runs) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["zeros", "text", "half", "one page"])
async def test_a_damaged_journal_is_set_aside(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning that names the file; boards are read anew, and nothing that is right is written."""
    from ota_service.fleet.service import shutdown

    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        before = await desk.look()
        await desk.updated("1.1.0")
        await shutdown()
        desk.service = None
        journals = [p for p in (tmp_path / "state").iterdir() if p.suffix in (".db", ".sqlite3")]
        assert len(journals) == 1, list((tmp_path / "state").iterdir())
        data = journals[0].read_bytes()
        journals[0].write_bytes(
            {
                "zeros": bytes(len(data)),
                "text": b"this is no journal\n",
                "half": data[: len(data) // 2 - 100],
                "one page": data[:4096] + b"\x5a" * 4096 + data[8192:],
            }[damage]
        )
        control = desk.board().control
        control.start_trace()
        await desk.configure(url=desk.server.url("/1.1.0.bin"), version="1.1.0")
        status = await desk.next_run(None)
        assert status["boards"]["a"]["state"] == "up_to_date", status
        assert [op for op in control.stop_trace() if op["who"] == "loader"] == []
        assert "set aside" in caplog.text
        await desk.truth(before, "1.1.0")


# --- the board's flash


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["guide", "micro-rdk-8mb"])
@pytest.mark.parametrize("fault", ["protected", "bottom protected", "ignores programs"])
async def test_a_flash_that_takes_nothing_is_refused(
    tmp_path: Path, layout: str, fault: str
) -> None:
    """`flash-protected` before anything is erased: every byte of the flash stays."""
    async with Desk.start(tmp_path, [SimBoard(layout)]) as desk:
        before: Shown = await desk.look()
        control = desk.board().control
        flash = desk.board().dir / "flash.bin"
        held = flash.read_bytes()
        if fault == "ignores programs":
            control.ignore_program()
        else:
            control.protect_flash(1 if fault == "bottom protected" else 7, bottom="b" in fault[:1])
        status = await desk.updated("1.1.0")
        board = status["boards"]["a"]
        assert (board["state"], board["error"]["code"]) == ("failed", "flash-protected"), board
        assert flash.read_bytes() == held
        control.ignore_program(False)
        control.protect_flash(0, locked=False)
        assert look(control) == before
        await desk.command("update", wait_s=30)
        assert desk.status()["boards"]["a"]["state"] == "up_to_date"
        await desk.truth(before, "1.1.0")


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["verifying", "switching", "recording", "rolling_back"])
async def test_a_flash_that_stops_taking_anything_midway(tmp_path: Path, phase: str) -> None:
    """Worn out in the middle: whatever still reads right boots, and no other key is touched."""
    from tests.faults import scenarios

    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        before = await desk.look()
        control = desk.board().control
        bad = scenarios.PANICS if phase == "rolling_back" else None
        with scenarios.at_phase(phase, control.ignore_program) as seen:
            await desk.updated("1.1.0", url=desk.serve("1.1.0", behaviour=bad), max_attempts=1)
        assert seen
        board = desk.status()["boards"]["a"]
        assert board["state"] in ("failed", "set_aside"), board
        assert board["error"]["code"] in ("flash-protected", "verify-failed"), board
        control.ignore_program(False)
        if phase != "rolling_back":
            await desk.truth(before, "1.1.0")
            await scenarios.heal(desk, "1.1.0", before)
        else:
            last = desk.run_id()
            await desk.command("release", boards=["a"])
            await desk.command("update")
            status = await desk.next_run(last)
            assert status["boards"]["a"]["state"] == "rolled_back", status
            assert look(control) == before
