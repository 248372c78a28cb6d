# SPDX-License-Identifier: GPL-3.0-or-later
"""The chips' own USB ports: they come and go with the chip, and reset it in their own way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import serial

from esp32_sim.chips import CHIPS
from esp32_sim.config import BoardConfig
from esp32_sim.images import Behaviour, build_app
from esp32_sim.launch_esptool import usb_ids
from tests.sim.conftest import OpenPort, StartBoard, run_esptool

pytestmark = pytest.mark.slow

JTAG = {"usb": "serial-jtag"}
OTG = {"usb": "otg"}
LEAVING = {"usb_leaves_at": "every-reset"}


def into_download_mode(port: Any) -> None:
    """esptool's sequence for USB-Serial-JTAG, whose reset comes with DTR going down under RTS."""
    for name, state in (("dtr", True), ("rts", False), ("rts", True), ("dtr", False)):
        setattr(port, name, state)


def wait_gone(port: Any) -> None:
    """Until the open port has left the bus."""
    for _ in range(10):
        try:
            port.read(1 << 20)
        except serial.SerialException:
            port.close()
            return
    pytest.fail("the port is still there")


def reset_by_rts(port: Any) -> None:
    """RTS alone, and let go."""
    port.rts = True
    port.rts = False


# --- USB-Serial-JTAG


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["esp32s3", "esp32c3", "esp32c6", "esp32h2"])
def test_esptool_over_serial_jtag(start: StartBoard, tmp_path: Path, chip: str) -> None:
    """The unchanged command knows the port by its ids, enters download mode, writes and leaves."""
    board = start(chip=chip, layout="guide", config=JTAG)
    image = build_app(size_bytes=20_000, chip=chip)
    file = tmp_path / "app.bin"
    file.write_bytes(image)
    since = board.control.wait_for("app")["number"]
    said = run_esptool(board.url, "--baud", "921600", "write-flash", "0x310000", str(file)).stdout
    assert "USB mode:           USB-Serial/JTAG" in said
    assert board.control.read_flash(0x310000, len(image)) == image
    board.control.wait_for("reset", since=since, reason=CHIPS[chip].resets["usb"])
    since = board.control.wait_for("stub", since=since)["number"]
    board.control.wait_for("app", since=since)
    assert "unplugged" not in board.control.counters()


def test_resets_by_rts(start: StartBoard, open_port: OpenPort) -> None:
    """Into download mode and out of it, without losing port or log."""
    board = start(chip="esp32c3", version="5.0.0", config=JTAG)
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    into_download_mode(port)
    log = port.read_until(b"download\r\n")
    assert b"rst:0x15 (USB_UART_CHIP_RESET),boot:0x4 (DOWNLOAD(USB/UART0/1))" in log
    port.rts = False
    assert board.control.wait_for("download", since=since)
    reset_by_rts(port)
    log = port.read_until(b"Calling app_main()")
    assert b"rst:0x15 (USB_UART_CHIP_RESET),boot:0xc (SPI_FAST_FLASH_BOOT)" in log
    assert b"App version:      5.0.0" in log


def test_lines_that_do_nothing(start: StartBoard, open_port: OpenPort) -> None:
    """Both lines, DTR alone, and closing the port: the app runs on."""
    board = start(chip="esp32c3", config=JTAG)
    board.control.wait_for("app")
    resets = board.control.counters()["reset"]
    port = open_port(board.url, dtr=True, rts=True)
    port.rts = False
    port.dtr = False
    port.dtr = True
    port.close()
    board.control.wait_for("closed")
    assert board.control.counters()["reset"] == resets


def test_a_reset_from_a_held_pin_stays_in_download_mode(
    start: StartBoard, open_port: OpenPort
) -> None:
    """RTS does not look at the pin again: only EN, power or the watchdog lead out of it."""
    board = start(chip="esp32c3", config=JTAG)
    since = board.control.wait_for("app")["number"]
    board.control.reset(boot_button=True)
    since = board.control.wait_for("plugged", since=since)["number"]
    port = open_port(board.url)
    reset_by_rts(port)
    board.control.wait_for("download", since=since)
    board.control.reset()
    board.control.wait_for("app", since=since)


def test_a_hard_reset_takes_the_port_along(start: StartBoard, open_port: OpenPort) -> None:
    """It is gone for a moment, and what the chip said meanwhile is lost."""
    board = start(chip="esp32c3", config=JTAG)
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    board.control.reset()
    wait_gone(port)
    with pytest.raises(serial.SerialException, match="Errno 2"):
        open_port(board.url)
    board.control.wait_for("app", since=since)
    board.control.wait_for("plugged", since=since)
    again = open_port(board.url, timeout=0.1)
    assert again.read(1000) == b""
    assert "App version" in board.control.console()


def test_a_port_that_leaves_at_every_reset(start: StartBoard, open_port: OpenPort) -> None:
    """Also at those by RTS, but the reset does what it would have done."""
    board = start(chip="esp32c3", config={**JTAG, **LEAVING, "usb_back_s": 0.05})
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    into_download_mode(port)
    wait_gone(port)
    board.control.wait_for("download", since=since)
    since = board.control.wait_for("plugged", since=since)["number"]
    port = open_port(board.url)
    reset_by_rts(port)
    wait_gone(port)
    board.control.wait_for("app", since=since)
    board.control.wait_for("plugged", since=since)
    assert open_port(board.url).is_open


def test_apps_own_resets(start: StartBoard, open_port: OpenPort) -> None:
    """A panic resets the processor alone and the port stays; a watchdog takes it along."""
    for ending, leaves in (("panic", False), ("watchdog", True)):
        behaviour = Behaviour(ending=ending, ending_after_s=0.1, ending_lives=1)  # type: ignore[arg-type]
        app = build_app(behaviour=behaviour, chip="esp32c6")
        board = start(chip="esp32c6", app=app, config={**JTAG, "time_scale": 0.1})
        since = board.control.wait_for("app")["number"]
        board.control.wait_for("app", since=since)
        assert ("unplugged" in board.control.counters()) is leaves


def test_deep_sleep(start: StartBoard) -> None:
    """The port is away for as long as the chip sleeps."""
    behaviour = Behaviour(ending="deep-sleep", ending_after_s=0.1, sleep_s=0.2, ending_lives=1)
    board = start(chip="esp32c3", app=build_app(behaviour=behaviour, chip="esp32c3"), config=JTAG)
    events = ("asleep", "unplugged", "reset", "app", "plugged")
    since = board.control.wait_for("app")["number"]
    for event in events:
        since = board.control.wait_for(event, since=since)["number"]


def test_another_name(start: StartBoard, open_port: OpenPort) -> None:
    """Two boards that are back under each other's name, each known by its MAC alone."""
    boards = [start(chip="esp32s3", config={**JTAG, "usb_back_s": 0.05}) for _ in range(2)]
    events = []
    for board, other in zip(boards, reversed(boards), strict=True):
        board.control.wait_for("app")
        board.control.configure(usb_name=other.dir.name)
        events.append(board.control.state()["events"])
        board.control.reset()
    for board, since in zip(boards, events, strict=True):
        board.control.wait_for("plugged", since=since)
    for board, other in zip(boards, reversed(boards), strict=True):
        seen = json.loads((board.dir / "port.json").read_text())["usb"]
        assert seen["serial_number"] == other.mac.upper()
        with open_port(board.url) as port:
            into_download_mode(port)
            other.control.wait_for("download")


def test_back_after_a_time_that_is_set(start: StartBoard) -> None:
    """For as long as a slow host or hub takes."""
    board = start(chip="esp32c3", config={**JTAG, "usb_back_s": 0.4})
    board.control.wait_for("app")
    since = board.control.state()["events"]
    began = time.monotonic()
    board.control.reset()
    board.control.wait_for("plugged", since=since)
    assert time.monotonic() - began > 0.39


def test_a_pulled_cable_stays_pulled(start: StartBoard, open_port: OpenPort) -> None:
    """Whatever the chip does meanwhile; plugged in again, power comes with it."""
    board = start(chip="esp32c3", config={**JTAG, "usb_back_s": 0})
    since = board.control.wait_for("app")["number"]
    board.control.unplug()
    board.control.reset()
    since = board.control.wait_for("app", since=since)["number"]
    assert board.control.state()["plugged"] is None
    board.control.plug()
    board.control.unplug(keep_power=False)
    url = board.control.plug()
    assert open_port(url).is_open
    board.control.wait_for("app", since=since)
    assert board.control.state()["plugged"]


def test_power_and_port_go_together(start: StartBoard) -> None:
    """Without power there is no port."""
    board = start(chip="esp32c3", config={**JTAG, "usb_back_s": 0.05})
    since = board.control.wait_for("app")["number"]
    board.control.power_off()
    assert board.control.state()["plugged"] is None
    board.control.power_on()
    board.control.wait_for("plugged", since=since)
    board.control.wait_for("app", since=since)


@pytest.mark.parametrize("usb", [JTAG, OTG])
def test_baud_has_no_meaning(start: StartBoard, open_port: OpenPort, usb: dict[str, str]) -> None:
    """The log is readable at any, and an app's own baud changes nothing."""
    app = build_app(behaviour=Behaviour(console_baud=74880, tick_s=0.05), chip="esp32s3")
    board = start(chip="esp32s3", app=app, config=usb)
    port = open_port(board.url, baudrate=9600)
    assert b"alive" in port.read_until(b"alive")


# --- USB-OTG


def test_an_apps_cdc_port(start: StartBoard, open_port: OpenPort) -> None:
    """RTS falling with DTR leads into the ROM, and without back to the app."""
    board = start(chip="esp32s2", config={**OTG, "usb_back_s": 0.05})
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    port.dtr = port.rts = True
    port.rts = False
    since = board.control.wait_for("download", since=since)["number"]
    port.dtr = False
    reset_by_rts(port)
    board.control.wait_for("app", since=since)
    assert b"rst:" not in port.read_until(b"Calling app_main()")


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3"])
@pytest.mark.parametrize("buttons", [False, True], ids=["by-lines", "by-buttons"])
def test_esptool_over_otg(start: StartBoard, chip: str, buttons: bool) -> None:
    """Out of download mode by RTS, or by the watchdog where the pin led into it."""
    board = start(chip=chip, config={**OTG, "usb_back_s": 0.05})
    since = board.control.wait_for("app")["number"]
    if buttons:
        board.control.reset(boot_button=True)
        board.control.wait_for("plugged", since=since)
    said = run_esptool(board.url, *(("--before", "no-reset") if buttons else ()), "flash-id").stdout
    assert board.mac in said
    assert "USB mode:           USB-OTG" in said
    since = board.control.wait_for("stub", since=since)["number"]
    board.control.wait_for("app", since=since)
    reason = CHIPS[chip].resets["rtc-watchdog" if buttons else "cpu"]
    board.control.wait_for("reset", since=since, reason=reason)


# --- who they are


def test_a_board_put_behind_a_bridge_has_its_port(start: StartBoard) -> None:
    """Its own port went with its power; a bridge's has power of its own."""
    board = start(chip="esp32s2", config={**OTG, "usb_back_s": 0.05})
    board.control.power_off()
    assert board.control.state()["plugged"] is None
    board.control.configure(usb="bridge")
    assert board.control.state()["plugged"] == str(board.dir)


@pytest.mark.parametrize(
    ("chip", "usb", "ids"),
    [
        ("esp32", "bridge", (0x10C4, 0xEA60)),
        ("esp32c3", "serial-jtag", (0x303A, 0x1001)),
        ("esp32s2", "otg", (0x303A, 0x0002)),
        ("esp32s3", "otg", (0x303A, 0x0009)),
    ],
)
def test_usb_ids(start: StartBoard, chip: str, usb: str, ids: tuple[int, int]) -> None:
    """Where a host's list of ports would have them."""
    assert usb_ids(start(chip=chip, config={"usb": usb}).url) == ids


def test_a_port_that_the_chip_does_not_have() -> None:
    """An ESP32 has none, a C3 no OTG."""
    for chip, usb in (("esp32", "serial-jtag"), ("esp32c3", "otg"), ("esp32s2", "serial-jtag")):
        with pytest.raises(ValueError, match="has no USB port of the kind"):
            BoardConfig(chip=chip, usb=usb)  # type: ignore[arg-type]


def test_with_times(start: StartBoard, open_port: OpenPort) -> None:
    """A board that takes its time says the same, whatever baud the host has set."""
    board = start(chip="esp32c3", config={**JTAG, "timed": True})
    board.control.wait_for("app")
    port = open_port(board.url, baudrate=300)
    reset_by_rts(port)
    log = port.read_until(b"Calling app_main()")
    assert log.startswith(b"ESP-ROM:esp32c3-api1-20210207")
    assert b"Loaded app from partition at offset 0x20000" in log
    assert log.endswith(b"Calling app_main()")
