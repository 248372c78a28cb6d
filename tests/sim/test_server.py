# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator as a command: what it prints, keeps, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esp32_sim.control import BoardControl
from esp32_sim.factory import make_flash
from esp32_sim.layouts import LAYOUTS
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import SimBoard, SimProcess, child_environment

pytestmark = pytest.mark.slow


@contextmanager
def running(*arguments: str, boards: int = 1) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """`python -m esp32_sim ...`; the urls, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "esp32_sim", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    assert process.stdout is not None
    try:
        yield [process.stdout.readline().strip() for _ in range(boards)], process
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def control(url: str) -> BoardControl:
    """The control channel of the board behind a url."""
    return BoardControl(url.removeprefix("esp32sim://"))


@pytest.mark.slow
def test_boards_of_all_layouts_with_slots(tmp_path: Path) -> None:
    """One url a line; the layouts with OTA slots in turn; 8 MB; an older firmware; NVS filled."""
    with running("--boards", "4", "--dir", str(tmp_path), "--times", "off", boards=4) as (urls, _):
        assert urls == [f"esp32sim://{tmp_path}/board-{i}" for i in (1, 2, 3, 4)]
        macs = set()
        for url, name in zip(urls, ["guide", "micro-rdk", "micro-rdk-8mb", "guide"], strict=True):
            board = control(url)
            assert board.wait_for("app")["version"] == "1.0.0"
            layout = LAYOUTS[name]
            nvs = layout.find("nvs")
            state = nvs_init(bytearray(board.read_flash(nvs.offset, nvs.size)))
            assert state.string("VIAM_NS", "OTA_VERSION") == "1.0.0"
            assert state.string("VIAM_NS", "ROBOT_SECRET")
            assert len(board.read_flash(0, 8 << 20)) == 8 << 20
            assert (tmp_path / url.rsplit("/", 1)[1] / "flash.bin").stat().st_size == 8 << 20
            macs.add(board.state()["mac"])
        assert len(macs) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_at_a_signal(tmp_path: Path, number: int) -> None:
    """Exit code 0, and the ports are gone."""
    with running("--dir", str(tmp_path), "--times", "off") as (_, process):
        process.send_signal(number)
        assert process.wait(10) == 0
        assert not (tmp_path / "board-1" / "port.json").exists()


def test_starts_from_a_dump(tmp_path: Path) -> None:
    """The dump's size is the flash's; a shorter one is filled up."""
    dump = tmp_path / "dump.bin"
    dump.write_bytes(make_flash("no-ota", version="7.7.7").rstrip(b"\xff"))
    folder = tmp_path / "boards"
    with running("--dir", str(folder), "--flash", str(dump), "--times", "off") as (urls, _):
        assert control(urls[0]).wait_for("app")["version"] == "7.7.7"
    assert (folder / "board-1" / "flash.bin").stat().st_size == 1 << 20


def test_keeps_its_boards(tmp_path: Path) -> None:
    """Started again on the same directory, the boards have what they had."""
    arguments = ("--dir", str(tmp_path), "--times", "off")
    with running(*arguments) as (urls, _):
        control(urls[0]).write_flash(0x7F0000, b"kept")
    with running(*arguments) as (urls, _):
        assert control(urls[0]).read_flash(0x7F0000, 4) == b"kept"


def test_boards_keep_their_chip(tmp_path: Path) -> None:
    """`--chip` makes new ones; later it need not be said, and saying another one is refused."""
    where = ("--dir", str(tmp_path), "--times", "off")
    for chosen in (("--chip", "esp32c6"), ()):
        with running(*where, *chosen) as (urls, _):
            board = control(urls[0])
            assert board.wait_for("app")["version"] == "1.0.0"
            assert "ESP-ROM:esp32c6" in board.console()
    refused = subprocess.run(
        [sys.executable, "-m", "esp32_sim", *where, "--chip", "esp32s3"],
        capture_output=True, text=True, check=False, env=child_environment(),
    )  # fmt: skip
    assert refused.returncode == 2
    assert "is an ESP32-C6 already" in refused.stderr


def test_needs_a_directory() -> None:
    """Without --dir it says so and does nothing."""
    result = subprocess.run(
        [sys.executable, "-m", "esp32_sim"],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    assert result.returncode == 2
    assert "--dir is needed" in result.stderr


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, ended by itself."""
    return subprocess.run(
        [sys.executable, "-m", "esp32_sim", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=child_environment(),
    )


@pytest.mark.slow
def test_a_folder_has_one_simulator_at_a_time(tmp_path: Path) -> None:
    """The second one says whose the boards are, and leaves them and their addresses alone."""
    arguments = ("--dir", str(tmp_path), "--times", "off")
    with running(*arguments) as (urls, process):
        done = refused(*arguments, "--boards", "2", "--seed", "9")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.strip() == (
            f"Error: The boards in {tmp_path} are simulated already, by process {process.pid}. "
            "Stop that process, or name another folder with --dir."
        )
        assert control(urls[0]).wait_for("app")["version"] == "1.0.0"
        assert control(urls[0]).state()["mac"] == "24:0a:c4:00:00:01"
        process.kill()
        process.wait(10)
    with running(*arguments) as (urls, _):  # nothing of a killed one holds the folder
        assert control(urls[0]).wait_for("app")["version"] == "1.0.0"


@pytest.mark.slow
def test_boards_of_a_program_are_claimed_too(tmp_path: Path) -> None:
    """Prepared boards, which come on stdin, end the process that may not have them."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim:
        done = refused("--dir", str(tmp_path))
        assert done.returncode == 1
        second = SimProcess(tmp_path, [SimBoard("guide")])
        with pytest.raises(RuntimeError, match="ended with code 1"):
            second.start()
        second.stop()
        assert sim.boards[0].control.wait_for("app")
        sim.kill()
        sim.start()
        assert sim.boards[0].control.wait_for("app")


def test_the_names_of_shipped_partition_tables_are_layouts(tmp_path: Path) -> None:
    """Who built a Merged Binary with `ota-guide` finds the name here."""
    assert make_flash("ota-guide", version="1") == make_flash("guide", version="1")
    with pytest.raises(ValueError, match=r"there are guide, micro-rdk, .*ota-guide"):
        make_flash("nowhere")
