# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota update`: one board without Viam, on simulated boards, in a process of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import SimBoard, SimProcess
from tests.support.command import (
    ended,
    environment,
    here,
    on_terminal,
    printed,
    run_command,
    start_command,
)
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import eventually
from tests.support.rig import PROJECT

QUICK = ("--boot-timeout", "4", "--boot-stable", "0.5")


def image_file(folder: Path, version: str, name: str = "app.bin", **options: object) -> Path:
    """An App Image in a file."""
    path = folder / name
    path.write_bytes(build_app(PROJECT, version, size_bytes=100_000, **options))  # type: ignore[arg-type]
    return path


@pytest.mark.slow
async def test_a_file_is_written_and_a_second_time_left_alone(tmp_path: Path) -> None:
    """The version is the descriptor's; equal versions need --force; JSON is the run's history."""
    env = environment(tmp_path)
    app = image_file(tmp_path, "1.1.0")
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        board = sim.boards[0]
        command = ("update", board.url, "--file", str(app), *QUICK)
        done = await run_command(*command, env=env)
        assert done.code == 0, done.err + done.out
        assert done.out.splitlines()[-3].split() == ["board", "from", "to", "outcome", "seconds"]
        row = done.out.splitlines()[-2].split()
        assert row[:5] == ["board-1", "1.0.0", "1.1.0", "up", "to"]
        assert "\x1b" not in done.out
        assert done.err == ""
        assert board.control.running()["version"] == "1.1.0"

        told = await run_command(*command, env=env)
        assert told.code == 0
        assert told.out.splitlines()[-1] == (
            'Nothing was written: the board has version "1.1.0" already (--force writes anyway).'
        )
        assert not any(line != line.rstrip() for line in told.out.splitlines())
        again = await run_command(*command, "--json", env=env)
        assert again.code == 0
        assert json.loads(again.out)["boards"]["board-1"]["action"] == "none"
        dry = await run_command(*command, "--dry-run", "--force", "--json", env=env)
        planned = json.loads(dry.out)["plan"]["board-1"]
        assert (planned["action"], planned["reason"]) == (
            "none",
            "forced: the board runs this image already; it is restarted and watched",
        )
        folder = ("--url", str(app.parent / "package"), "--version", "1.2.0", *QUICK)
        (app.parent / "package").mkdir()
        app.rename(app.parent / "package" / "app.bin")
        found = await run_command("update", board.url, *folder, "--dry-run", "--json", env=env)
        assert json.loads(found.out)["plan"]["board-1"]["action"] == "record", found.out
        (app.parent / "package" / "app.bin").rename(app)
        forced = await run_command(*command, "--force", env=env)
        assert forced.out.splitlines()[-1] == (
            "Nothing was written: the board runs this image already; its start was watched."
        )
        other = image_file(tmp_path, "1.1.0", "other.bin", seed=4)
        done = await run_command("update", board.url, "--file", str(other), "--force", *QUICK,
                                 "--json", env=env)  # fmt: skip
        assert json.loads(done.out)["boards"]["board-1"]["action"] == "write"


@pytest.mark.slow
async def test_a_rescue_is_asked_for_with_the_boards_mac(tmp_path: Path) -> None:
    """Both options, the right MAC, and a board on which nothing boots; else the words say why."""
    env = environment(tmp_path)
    app = image_file(tmp_path, "1.1.0")
    flash = make_flash("guide")
    for part in LAYOUTS["guide"].partitions:
        if part.type == 0:
            flash[part.offset + 0x1000] ^= 1
    with SimProcess(tmp_path / "boards", [SimBoard("guide", flash=bytes(flash))]) as sim:
        board = sim.boards[0]
        command = ("update", board.url, "--file", str(app), *QUICK)
        left = await run_command(*command, "--force", env=env)
        assert left.code == 1
        assert "--rescue --confirm MAC" in " ".join((left.out + left.err).split())
        for wrong in (["--rescue"], ["--confirm", board.mac], ["--rescue", "--confirm", "x"]):
            assert (await run_command(*command, *wrong, env=env)).code == 2
        other = await run_command(*command, "--rescue", "--confirm", "24:0a:c4:99:99:99", env=env)
        assert other.code == 1
        assert "wrong-board" in other.out + other.err
        done = await run_command(*command, "--rescue", "--confirm", board.mac.upper(), env=env)
        assert done.code == 0, done.out + done.err
        assert board.control.running()["version"] == "1.1.0"
        again = await run_command(*command, "--rescue", "--confirm", board.mac, "--json", env=env)
        assert again.code == 1
        assert json.loads(again.out)["boards"]["board-1"]["error"]["code"] == "board-boots"


def test_only_what_can_be_overridden_is_an_option() -> None:
    """The words name what exists."""
    told = here("update", "/dev/x", "--override", "wrong-board")
    assert told.code == 2
    assert "other-project" in told.err


@pytest.mark.slow
async def test_it_says_where_less_was_done_than_a_write(tmp_path: Path) -> None:
    """The image ran already, or was in the other slot: read off the plan, not guessed."""
    env = environment(tmp_path)
    app, old = image_file(tmp_path, "1.1.0"), image_file(tmp_path, "1.0.9", "old.bin")
    with SimProcess(tmp_path / "boards", [SimBoard("micro-rdk")]) as sim:
        url = sim.boards[0].url

        async def last_line(file: Path, version: str) -> str:
            done = await run_command(
                "update", url, "--file", str(file), "--version", version, *QUICK, env=env
            )
            assert done.code == 0, done.out + done.err
            return done.out.splitlines()[-1]

        assert await last_line(old, "a") == "The run succeeded."
        assert await last_line(app, "b") == "The run succeeded."
        assert await last_line(app, "c") == (
            "The board ran the image already: only the version was stored."
        )
        assert (await last_line(old, "d")).startswith("The image was in the other slot already:")


@pytest.mark.slow
async def test_another_projects_firmware_is_named_before_it_is_replaced(tmp_path: Path) -> None:
    """Naming the port is consent; a slip shows in the dry run, and while it can be stopped."""
    env = environment(tmp_path)
    other = tmp_path / "other.bin"
    other.write_bytes(build_app("thermostat", "3.0", size_bytes=100_000))
    note = f'Note: replaces the project "{PROJECT}" by "thermostat".'
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        command = ("update", sim.boards[0].url, "--file", str(other), *QUICK)
        dry = await run_command(*command, "--dry-run", "--json", env=env)
        assert note in dry.err
        (planned,) = json.loads(dry.out)["plan"].values()
        assert planned["replaces"] == {"project": PROJECT, "by": "thermostat"}
        done = await run_command(*command, env=env)
        assert done.code == 0, done.out + done.err
        lines = done.out.splitlines()
        assert lines.count(note) == 1
        writing = [n for n, line in enumerate(lines) if "writing" in line or "verifying" in line]
        assert lines.index(note) < min(writing, default=len(lines))
        again = await run_command(*command, "--force", "--json", env=env)
        assert "Note:" not in again.err
        assert "replaces" not in json.loads(again.out)["boards"]["board-1"]


@pytest.mark.slow
async def test_ctrl_c_behind_the_switch_is_too_late(tmp_path: Path) -> None:
    """The update finishes, so the command has done what it was called for."""
    app = image_file(tmp_path, "1.1.0")
    with SimProcess(tmp_path / "b", [SimBoard("guide")]) as sim:
        process = await start_command(
            *("update", sim.boards[0].url, "--file", str(app), "--boot-stable", "3"),
            env=environment(tmp_path),
        )
        await printed(process, b"booting")
        process.send_signal(signal.SIGINT)
        done = await ended(process, limit_s=30)
        assert done.code == 0, done
        assert done.out.splitlines()[-1] == "Too late to stop: the update was finished."
        assert sim.boards[0].control.running()["version"] == "1.1.0"


@pytest.mark.slow
async def test_a_url_is_fetched_and_a_bad_firmware_is_taken_back(tmp_path: Path) -> None:
    """Exit code 1, and one line that says what happened and what to do."""
    async with FirmwareServer.start() as server:
        bad = build_app(PROJECT, "2.0.0", size_bytes=80_000, behaviour=Behaviour(
            ending="panic", ending_after_s=0.2))  # fmt: skip
        url = server.put("/bad.bin", bad, login="me:s3cret").replace("//", "//me:s3cret@")
        with SimProcess(tmp_path / "boards", [SimBoard("micro-rdk")]) as sim:
            done = await run_command(
                *("update", sim.boards[0].url, "--url", url, "--version", "two", *QUICK),
                env=environment(tmp_path),
            )
            assert done.code == 1
            assert "rolled back" in done.out
            assert "[boot-failed]" in done.out
            assert "s3cret" not in done.out + done.err
            assert sim.boards[0].control.running()["version"] == "1.0.0"


@pytest.mark.slow
async def test_another_board_at_the_same_port_is_welcome(tmp_path: Path) -> None:
    """Who names a port means what is there now: boards are flashed one after another."""
    env = environment(tmp_path)
    app = image_file(tmp_path, "1.1.0")
    with SimProcess(tmp_path / "boards", [SimBoard("guide"), SimBoard("guide")]) as sim:
        port = tmp_path / "port"
        for board in sim.boards:
            port.unlink(missing_ok=True)
            port.symlink_to(board.dir)
            done = await run_command(
                *("update", f"esp32sim://{port}", "--file", str(app), *QUICK), env=env
            )
            assert done.code == 0, done.out + done.err
            assert board.control.running()["version"] == "1.1.0"


@pytest.mark.slow
async def test_ctrl_c_leaves_the_board_bootable_and_says_so(tmp_path: Path) -> None:
    """In the middle of the writing: the old firmware runs when the command has ended."""
    app = tmp_path / "app.bin"
    app.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=700_000))
    with SimProcess(tmp_path / "b", [SimBoard("guide", config={"timed": True})]) as sim:
        board = sim.boards[0]
        process = await start_command(
            *("update", board.url, "--file", str(app)), env=environment(tmp_path)
        )
        await printed(process, b"writing 25 %")
        process.send_signal(signal.SIGINT)
        done = await ended(process, limit_s=20)
        assert done.code == 1, done
        assert "Stopping where that leaves the board bootable" in done.out
        assert "The board is left bootable: it runs factory (micro-rdk-server 1.0.0)." in done.out

        async def version() -> str:
            return str((board.control.state().get("app") or {}).get("version"))

        await eventually(version, lambda found: found == "1.0.0", timeout_s=5)


def test_what_cannot_be_meant_is_wrong_usage(tmp_path: Path) -> None:
    """Exit code 2, before any port is opened."""
    app = str(image_file(tmp_path, "1.1.0"))
    wrong = [
        (("update", "/dev/ttyUSB0"), "either --url or --file"),
        (("update", "/dev/ttyUSB0", "--file", app, "--url", "http://x/a"), "either --url or"),
        (("update", "/dev/ttyUSB0", "--url", "http://x/a.bin"), "--version"),
        (("update", "/dev/ttyUSB0", "--url", "ftp://x/a.bin", "--version", "1"), "http://"),
        (("update", "/dev/ttyUSB0", "--url", "a.bin", "--version", "1"), "whole path, from / on"),
        (("update", "/dev/ttyUSB0", "--url", "file:///a", "--version", "1"), "the path alone"),
        (("update", "gopher://x", "--file", app), "port"),
        (("update", "/dev/ttyUSB0", "--file", app, "--boot-expect", "("), "boot_expect"),
    ]
    for arguments, words in wrong:
        done = here(*arguments)
        assert done.code == 2, (arguments, done)
        assert words in done.err, (arguments, done.err)
        assert "Traceback" not in done.err


@pytest.mark.slow
async def test_a_file_that_is_no_app_image_is_refused_first(tmp_path: Path) -> None:
    """One line with the remedy and the code; the board is never opened."""
    junk = tmp_path / "junk.bin"
    junk.write_bytes(b"\x00" * 5000)
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        board = sim.boards[0]
        done = await run_command(
            "update", board.url, "--file", str(junk), env=environment(tmp_path)
        )
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("Error: ")
        assert done.err.strip().endswith("[not-an-image]")
        assert len(done.err.splitlines()) == 1
        assert board.control.counters().get("opened", 0) == 0


@pytest.mark.slow
async def test_what_never_began_is_told_as_not_updated(tmp_path: Path) -> None:
    """A url that nobody serves, and a cache that cannot be: one line each, and what to do."""
    env = environment(tmp_path)
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        url = sim.boards[0].url
        done = await run_command(
            "update", url, "--url", "http://127.0.0.1:9/a.bin", "--version", "2", env=env
        )
        assert done.code == 1
        assert "not updated" in done.out
        assert "[download-failed]" in done.out
        (tmp_path / "file").write_text("")
        app = str(image_file(tmp_path, "1.1.0"))
        env["XDG_CACHE_HOME"] = str(tmp_path / "file")
        done = await run_command("update", url, "--file", app, env=env)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"Error: The cache folder {tmp_path / 'file'}")
        assert "VIAM_MODULE_DATA" in done.err
        assert done.err.rstrip().endswith("[file-access]")
        assert sim.boards[0].control.running()["version"] == "1.0.0"


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    """With percent, rate and time left, within 80 columns; NO_COLOR keeps it without colours."""
    app = tmp_path / "app.bin"
    app.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=300_000))
    with SimProcess(tmp_path / "b", [SimBoard("guide", config={"timed": True})]) as sim:
        command = ("update", sim.boards[0].url, "--file", str(app), *QUICK)
        code, seen = on_terminal(*command, env=environment(tmp_path, NO_COLOR="1"))
        assert code == 0, seen
        assert "━" in seen
        assert "kB/s" in seen
        assert "\x1b[3" not in seen
        assert "up to date" in seen


@pytest.mark.slow
async def test_a_board_without_a_mac_is_refused_with_words(tmp_path: Path) -> None:
    """It could not be told from others; nothing of it is written or noted."""
    app = image_file(tmp_path, "1.1.0")
    board = SimBoard("guide", config={"mac": "00:00:00:00:00:00"})
    with SimProcess(tmp_path / "boards", [board]) as sim:
        url = sim.boards[0].url
        env = environment(tmp_path)
        done = await run_command("update", url, "--file", str(app), *QUICK, env=env)
        assert done.code == 1
        assert "hold 00:00:00:00:00:00 as its MAC" in done.err + done.out
        assert sim.boards[0].control.running()["version"] == "1.0.0"
