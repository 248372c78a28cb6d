# SPDX-License-Identifier: GPL-3.0-or-later
"""The unchanged esptool command works on a simulated board as on an ESP32."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim.images import build_app
from tests.sim.conftest import StartBoard, run_esptool

pytestmark = pytest.mark.slow

STUB = pytest.mark.parametrize("stub", [(), ("--no-stub",)], ids=["stub", "rom"])


@STUB
def test_chip_and_flash_are_identified(start: StartBoard, stub: tuple[str, ...]) -> None:
    """Chip, revision, crystal, MAC, flash size: all as silicon tells them."""
    board = start(layout="guide")
    said = run_esptool(board.url, *stub, "flash-id").stdout
    assert "ESP32-D0WD-V3 (revision v3.1)" in said
    assert "Crystal frequency:  40MHz" in said
    assert board.mac in said
    assert "Detected flash size: 8MB" in said
    assert "Flash voltage set by a strapping pin: 3.3V" in said
    assert "Stub flasher running" in said or stub


@STUB
def test_chip_id_reads_the_mac(start: StartBoard, stub: tuple[str, ...]) -> None:
    """The ESP32 has no chip id; esptool falls back to the MAC."""
    board = start(layout="guide", config={"mac": "24:0a:c4:aa:bb:cc"})
    assert "24:0a:c4:aa:bb:cc" in run_esptool(board.url, *stub, "chip-id").stdout


@pytest.mark.parametrize(
    ("options", "write_options"),
    [
        ((), ()),
        ((), ("--no-compress",)),
        (("--no-stub",), ()),
        (("--no-stub",), ("--no-compress",)),
        (("--baud", "921600"), ()),
        (("--no-stub", "--baud", "460800"), ()),
    ],
    ids=["stub", "stub-raw", "rom", "rom-raw", "stub-921600", "rom-460800"],
)
def test_write_flash(
    start: StartBoard,
    tmp_path: Path,
    options: tuple[str, ...],
    write_options: tuple[str, ...],
) -> None:
    """What esptool writes over other data stands in the flash, byte by byte."""
    board = start(layout="guide")
    image = build_app(size_bytes=100_000, seed=9)
    file = tmp_path / "app.bin"
    file.write_bytes(image)
    board.control.write_flash(0x310000, b"\x00" * 0x20000)
    run_esptool(board.url, *options, "write-flash", *write_options, "0x310000", str(file))
    assert board.control.read_flash(0x310000, len(image)) == image


@pytest.mark.slow
@STUB
def test_verify_and_read_flash(start: StartBoard, tmp_path: Path, stub: tuple[str, ...]) -> None:
    """esptool reads back what stands in the flash, and notices one wrong bit."""
    board = start(layout="guide")
    image = board.control.read_flash(0x10000, 2500)
    file = tmp_path / "part.bin"
    file.write_bytes(image)
    run_esptool(board.url, *stub, "verify-flash", "0x10000", str(file))
    back = tmp_path / "back.bin"
    run_esptool(board.url, *stub, "read-flash", "0x10000", "2500", str(back))
    assert back.read_bytes() == image
    board.control.write_flash(0x10000 + 1234, bytes((image[1234] ^ 4,)))
    wrong = run_esptool(board.url, *stub, "verify-flash", "0x10000", str(file), check=False)
    assert wrong.returncode != 0


@STUB
def test_erase_region(start: StartBoard, stub: tuple[str, ...]) -> None:
    """Exactly the region is erased, in a 64 KiB block where one fits, else in sectors."""
    board = start(layout="guide")
    board.control.write_flash(0x30F000, b"\x00" * 0x13000)
    board.control.start_trace()
    run_esptool(board.url, *stub, "erase-region", "0x310000", "0x11000")
    assert [(op["kind"], op["address"], op["size"]) for op in board.control.trace()] == [
        ("erase", 0x310000, 0x10000),
        ("erase", 0x320000, 0x1000),
    ]
    assert board.control.read_flash(0x30F000, 0x1000) == b"\x00" * 0x1000
    assert board.control.read_flash(0x310000, 0x11000) == b"\xff" * 0x11000
    assert board.control.read_flash(0x321000, 0x1000) == b"\x00" * 0x1000


@STUB
def test_get_security_info_fails_as_on_silicon(start: StartBoard, stub: tuple[str, ...]) -> None:
    """Neither the ESP32's ROM nor the stub on it knows the command."""
    result = run_esptool(start().url, *stub, "get-security-info", check=False)
    assert result.returncode != 0
    assert "security info" in result.stdout + result.stderr or "0x14" in (
        result.stdout + result.stderr
    )


def test_staying_in_the_loader(start: StartBoard) -> None:
    """--after no-reset goes back from the stub to the ROM, no-reset-stub stays in the stub."""
    board = start()
    run_esptool(board.url, "--after", "no-reset", "read-mac")
    assert board.control.state()["state"] == "download"
    run_esptool(board.url, "--before", "no-reset", "--after", "no-reset-stub", "read-mac")
    assert board.control.state()["state"] == "stub"
    said = run_esptool(board.url, "--before", "no-reset", "--after", "no-reset-stub", "read-mac")
    assert board.mac in said.stdout
    assert "Uploading stub" not in said.stdout
    assert board.control.counters()["stub"] == 2


def test_erase_flash(start: StartBoard) -> None:
    """The whole chip; afterwards the ROM finds nothing to boot."""
    board = start(layout="no-ota")
    since = board.control.wait_for("app")["number"]
    run_esptool(board.url, "erase-flash")
    assert board.control.read_flash(0, 4 << 20) == b"\xff" * (4 << 20)
    assert "0xffffffff" in board.control.wait_for("boot-failed", since=since)["error"]


def test_esptool_leaves_the_board_running_its_app(start: StartBoard) -> None:
    """After its hard reset the board boots normally, although the port was closed meanwhile."""
    board = start(version="3.2.1")
    run_esptool(board.url, "read-mac")
    since = board.control.wait_for("stub")["number"]
    assert board.control.wait_for("app", since=since)["version"] == "3.2.1"
