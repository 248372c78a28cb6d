# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota sim`: its usage, the firmware that it makes, and a folder that is taken."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ota_service.cli.contents import report
from tests.support.command import ended, environment, run_command, start_command


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--boards", "0", "--dir", "x"), ("--boards", "1")])
async def test_what_cannot_be_simulated_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    """In click's form, at once, and nothing on stdout."""
    done = await run_command("sim", *arguments, env=environment())
    assert (done.code, done.out) == (2, "")
    assert "Usage: esp32-ota sim" in done.err


async def test_unknown_layouts_are_answered_with_those_that_exist(tmp_path: Path) -> None:
    """Both names of the OTA guide's table among them."""
    done = await run_command("sim", "--dir", str(tmp_path), "--layout", "nowhere")
    assert done.code == 2
    for name in ("guide", "ota-guide", "micro-rdk", "micro-rdk-8mb", "no-ota"):
        assert f"'{name}'" in done.err


async def test_a_url_comes_first(tmp_path: Path) -> None:
    """Before anything else; and SIGTERM ends it in good order."""
    folder = tmp_path / "boards"
    first = await start_command(
        *("sim", "--dir", str(folder), "--layout", "ota-guide", "--times", "off")
    )
    assert first.stdout is not None
    line = await first.stdout.readline()
    assert line.decode() == f"esp32sim://{folder}/board-1\n"
    assert (folder / "board-1/port.json").exists()
    first.send_signal(signal.SIGTERM)
    assert (await ended(first)).code == 0


@pytest.mark.slow
async def test_it_makes_firmware_for_its_boards(tmp_path: Path) -> None:
    """Whole by the judgement of the code that an update uses; one goes by its bootloader."""
    done = await run_command("sim", "--files", str(tmp_path / "fw"))
    assert done.code == 0, done.err
    kinds = {path.name: report(path.read_bytes()) for path in (tmp_path / "fw").iterdir()}
    assert {name: (found["kind"], found["ok"]) for name, found in kinds.items()} == {
        "app.bin": ("app-image", True),
        "app-panics.bin": ("app-image", True),
        "bootloader.bin": ("bootloader", True),
    }
    assert kinds["app.bin"]["app"]["version"] == "1.1.0"
    for name in kinds:
        assert str(tmp_path / "fw" / name) in done.out
    (tmp_path / "file").write_text("")
    done = await run_command("sim", "--files", str(tmp_path / "file/fw"))
    assert done.code == 1
    assert done.err.startswith("Error: ")
