# SPDX-License-Identifier: GPL-3.0-or-later
"""Apps do what their images say, and print what ESP-IDF apps print."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from esp32_sim.bootmodel import PENDING_VERIFY, VALID, Select
from esp32_sim.config import BoardConfig
from esp32_sim.factory import default_nvs, make_flash
from esp32_sim.images import Behaviour, assemble, build_app, descriptor
from esp32_sim.layouts import FLAG_READ_ONLY, LAYOUTS, Layout, Partition
from esp32_sim.logs import LOOKALIKES, PANICS
from esp32_sim.nvsmodel import nvs_init
from tests.sim.conftest import OpenPort, StartBoard

pytestmark = pytest.mark.slow

# Apps' seconds pass in a twentieth.
FAST = {"time_scale": 0.05}


def app(**behaviour: Any) -> bytes:
    """A small image with that behaviour."""
    return build_app("robot", "2.0.0", size_bytes=20_000, behaviour=Behaviour(**behaviour))


def test_start_lines(start: StartBoard) -> None:
    """Project, version and hash of the descriptor, and the version in NVS."""
    board = start(app=app(), version="1.9.9")
    board.control.wait_for_text("OTA_VERSION")
    log = board.control.console()
    for line in (
        "app_init: Project name:     robot",
        "app_init: App version:      2.0.0",
        "app_init: ELF file SHA256:  ",
        "VIAM_NS OTA_VERSION: '1.9.9'",
    ):
        assert line in log
    state = board.control.state()
    assert state["state"] == "app"
    assert state["app"] == {
        "slot": "ota_0", "offset": 0x20000, "project": "robot", "version": "2.0.0"
    }  # fmt: skip


def test_firmware_without_our_marker(start: StartBoard) -> None:
    """An image of somebody else runs as an ordinary app with its own descriptor."""
    foreign = assemble(
        [
            (0x3F400020, descriptor("blinky", "0.1", elf_sha256=bytes(32)) + bytes(1000)),
            (0x40080000, bytes(2000)),
        ],
        0x40080004,
    )
    board = start(layout="guide", app=foreign)
    event = board.control.wait_for("app")
    assert (event["project"], event["version"]) == ("blinky", "0.1")
    assert board.control.counters()["boot"] == 1


def test_panic_again_and_again(start: StartBoard) -> None:
    """Guru Meditation after some seconds, a reset by software, the same app again."""
    board = start(app=app(ending="panic", ending_after_s=2), config=FAST)
    first = board.control.wait_for("app")
    panic = board.control.wait_for("panic")
    assert panic["time_s"] - first["time_s"] >= 0.09
    board.control.wait_for("panic", since=panic["number"])
    log = board.control.console()
    assert "Guru Meditation Error: Core  0 panic'ed" in log
    assert "rst:0xc (SW_CPU_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "reason"),
    [("loop", "rst:0x3 (SW_RESET)"), ("watchdog", "rst:0x7 (TG0WDT_SYS_RESET)")],
)
def test_restarts(start: StartBoard, ending: str, reason: str) -> None:
    """A loop restarts itself; a hang with watchdog is restarted."""
    board = start(app=app(ending=ending), config=FAST)
    board.control.wait_for_text(reason)
    board.control.wait_for("app", since=board.control.wait_for("reset")["number"])


@pytest.mark.parametrize("form", PANICS)
def test_last_words(start: StartBoard, form: str) -> None:
    """Panics have many forms; a reset of the processor ends them all."""
    board = start(app=app(ending="panic", panic=form), config=FAST)
    board.control.wait_for_text("\r\n".join(PANICS[form]) + "\r\n")
    board.control.wait_for_text("rst:0xc (SW_CPU_RESET)")


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_says_what_looks_like_trouble(start: StartBoard, kind: str) -> None:
    """Nothing has happened to such an app."""
    board = start(app=app(say=LOOKALIKES[kind], tick_s=0.5), config=FAST)
    end = board.control.wait_for_text(LOOKALIKES[kind].replace("\n", "\r\n") + "\r\n")
    board.control.wait_for_text("alive", since=end)
    assert board.control.counters()["boot"] == 1


ENDINGS = {
    "restart": "rst:0xc (SW_CPU_RESET)",
    "deep-sleep": "rst:0x5 (DEEPSLEEP_RESET)",
    "brownout": "\r\nBrownout detector was triggered",
    "brownout-tagged": "E BOD: Brownout detector was triggered",
    "brownout-reset": "rst:0xf (RTCWDT_BROWN_OUT_RESET)",
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_ends_again_and_again(start: StartBoard, ending: str) -> None:
    """Each life ends like the one before."""
    board = start(app=app(ending=ending), config=FAST)
    at = board.control.wait_for_text(ENDINGS[ending])
    board.control.wait_for_text(ENDINGS[ending], since=at)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_ends_once(start: StartBoard, ending: str) -> None:
    """A planned restart, a nap, a dip of the voltage: then the app runs."""
    board = start(app=app(ending=ending, ending_lives=1, say="hello", say_after_s=3), config=FAST)
    board.control.wait_for("said")
    assert board.control.console().count(ENDINGS[ending]) == 1
    assert board.control.counters()["boot"] == 2
    since = board.control.state()["events"]
    board.control.reset()  # which clears what the app knew it by
    board.control.wait_for("said", since=since)
    assert board.control.counters()["boot"] == 4


@pytest.mark.slow
def test_hang_is_silent(start: StartBoard, open_port: OpenPort) -> None:
    """After the start nothing comes any more, and the app stays."""
    board = start(app=app(ending="hang", tick_s=0.5), config=FAST)
    board.control.wait_for("hang")
    port = open_port(board.url, timeout=0.3)
    assert port.read(1) == b""
    assert board.control.counters()["boot"] == 1


def test_silent_app(start: StartBoard) -> None:
    """No console at all: the bootloader's lines are the last."""
    board = start(app=app(console_baud=0, tick_s=0.1), config=FAST)
    board.control.wait_for("app")
    assert "Loaded app" in board.control.console()
    assert "robot" not in board.control.console()


def test_log_level_off(start: StartBoard) -> None:
    """No descriptor lines, but what the app prints by itself."""
    board = start(app=app(log_level_off=True, say="ready", say_after_s=0.1), config=FAST)
    board.control.wait_for_text("ready")
    assert "App version" not in board.control.console()


def test_other_baud(start: StartBoard, open_port: OpenPort) -> None:
    """The app's lines need the app's baud; at 115200 they are noise."""
    board = start(app=app(console_baud=9600, tick_s=1), config=FAST)
    board.control.wait_for("app")
    port = open_port(board.url)
    assert b"alive" not in port.read(60)
    port.baudrate = 9600
    assert b"alive" in port.read_until(b"alive")


def test_says_its_line_later(start: StartBoard) -> None:
    """boot_expect waits for such a line."""
    board = start(app=app(say="connected to the cloud", say_after_s=4), config=FAST)
    began = board.control.wait_for("app")
    said = board.control.wait_for("said", text="connected to the cloud")
    assert said["time_s"] - began["time_s"] >= 0.19


def test_prints_its_secrets(start: StartBoard) -> None:
    """Some firmware does; the host's log must not keep them."""
    board = start(app=app(print_secrets=True), nvs=default_nvs())
    for key in ("ROBOT_SECRET", "WIFI_PASSWORD"):
        board.control.wait_for_text(key + "=" + str(default_nvs()[key]))


def states(board: Any, layout: str) -> list[int]:
    """The states of both otadata entries."""
    at = LAYOUTS[layout].find("otadata").offset
    return [Select.parse(board.control.read_flash(at + i * 4096, 32)).state for i in range(2)]


def new_on_board(start: StartBoard, **behaviour: Any) -> Any:
    """A board with a rollback bootloader after an update to ota_1, written as NEW."""
    return start(
        layout="micro-rdk",
        slot="ota_1",
        otadata="new",
        app=app(**behaviour),
        flash_options={"other_app": build_app("robot", "1.0.0", size_bytes=20_000)},
        config={"rollback": True, **FAST},
    )


def test_confirms_itself(start: StartBoard) -> None:
    """PENDING_VERIFY becomes VALID, and stays through a reset."""
    board = new_on_board(start, confirm_after_s=4)
    assert board.control.wait_for("app")["version"] == "2.0.0"
    assert states(board, "micro-rdk")[1] == PENDING_VERIFY
    since = board.control.wait_for("confirmed")["number"]
    assert states(board, "micro-rdk")[1] == VALID
    board.control.reset()
    assert board.control.wait_for("app", since=since)["version"] == "2.0.0"


def test_reset_before_confirmation_rolls_back(start: StartBoard) -> None:
    """A reset in between, whatever for, brings the old app back for good."""
    board = new_on_board(start, confirm_after_s=None)
    since = board.control.wait_for("app", version="2.0.0")["number"]
    board.control.reset()
    assert board.control.wait_for("app", since=since)["version"] == "1.0.0"


def test_nvs_that_cannot_start_is_erased(start: StartBoard) -> None:
    """The worst outcome: without a free page the app erases everything."""
    flash = make_flash("guide", app=app())
    nvs = LAYOUTS["guide"].find("nvs")
    page = bytes(flash[nvs.offset : nvs.offset + 4096])
    for i in range(1, 4):
        flash[nvs.offset + i * 4096 : nvs.offset + (i + 1) * 4096] = page
    board = start(flash=bytes(flash))
    assert "NO_FREE_PAGES" in board.control.wait_for("nvs-erased")["error"]
    board.control.wait_for_text("OTA_VERSION: ''")
    assert board.control.read_flash(nvs.offset, nvs.size) == b"\xff" * nvs.size


@pytest.mark.slow
def test_nvs_writer_leaves_torn_items(start: StartBoard) -> None:
    """Resets meet the app in the middle of its writes, and its next start repairs them."""
    board = start(layout="guide", app=app(nvs_writes=True), nvs=default_nvs())
    nvs = LAYOUTS["guide"].find("nvs")
    repairs = 0
    for _ in range(12):
        since = board.control.wait_for("app", since=board.control.state()["events"] - 1)["number"]
        ops = board.control.state()["flash_ops"]
        while board.control.state()["flash_ops"] < ops + 5:
            time.sleep(0.005)
        board.control.power_off()
        cells = bytearray(board.control.read_flash(nvs.offset, nvs.size))
        state = nvs_init(cells)
        assert state.error is None
        assert state.string("VIAM_NS", "ROBOT_SECRET") == default_nvs()["ROBOT_SECRET"]
        repairs += bool(state.writes)
        board.control.power_on()
        board.control.wait_for("app", since=since)
    assert repairs >= 3


def test_silent_bootloader_and_an_app_without_descriptor(start: StartBoard) -> None:
    """Nothing but the ROM's lines and what the app says by itself."""
    image = build_app(
        size_bytes=20_000, described=False, behaviour=Behaviour(log_level_off=True, say="hello")
    )
    board = start(app=image, config={"bootloader_log": "none"})
    board.control.wait_for("said", text="hello")
    log = board.control.console()
    assert "rst:0x1 (POWERON_RESET)" in log
    assert "boot:" not in log.replace(",boot:0x", "")
    assert board.control.running()["project"] == ""


def test_silent_bootloader_retries(start: StartBoard) -> None:
    """Where nothing boots, resets are all that shows."""
    board = start(app=b"\xff" * 16, config={"bootloader_log": "none", **FAST})
    board.control.wait_for_text("rst:0x3 (SW_RESET)")
    assert "bootable" not in board.control.console()


def test_table_elsewhere(start: StartBoard) -> None:
    """A bootloader that was built with another offset of the table."""
    plan = LAYOUTS["micro-rdk"]
    moved = tuple(
        dataclasses.replace(p, offset=p.offset + 0x8000) if p.offset < 0x20000 else p
        for p in plan.partitions
    )
    layout = Layout("moved", plan.flash_bytes, moved)
    board = start(layout=layout, slot="ota_1", config={"table_offset": 0x10000})
    assert board.control.running()["slot"] == "ota_1"
    assert board.control.read_flash(0x8000, 32) == b"\xff" * 32


TWO_STORES = Layout(
    "two-stores",
    4 << 20,
    (
        Partition("nvs_other", 1, 2, 0x9000, 0x4000),
        Partition("nvs", 1, 2, 0xD000, 0x4000),
        Partition("factory", 0, 0, 0x20000, 0x100000),
    ),
)


def two_stores(flags: int) -> Layout:
    """The same with flags at the second store."""
    other, *rest = TWO_STORES.partitions
    return Layout("two", 4 << 20, (dataclasses.replace(other, flags=flags), *rest))


@pytest.mark.parametrize(
    ("nvs", "more", "version"),
    [
        ({"OTA_VERSION": "1"}, {"OTA_VERSION": "2"}, "1"),
        ({"ROBOT_ID": "x"}, {"OTA_VERSION": "2"}, "2"),
        ({}, {"OTA_VERSION": "2"}, "2"),
        ({"OTA_VERSION": "1"}, {}, "1"),
    ],
)
def test_several_nvs_partitions(
    start: StartBoard, nvs: dict[str, Any], more: dict[str, Any], version: str
) -> None:
    """The version comes from the first that has it, "nvs" before the table's order."""
    board = start(
        layout=TWO_STORES, app=app(), nvs=nvs, flash_options={"more_nvs": {"nvs_other": more}}
    )
    board.control.wait_for_text(f"OTA_VERSION: '{version}'")


def test_read_only_nvs_is_not_repaired(start: StartBoard) -> None:
    """Whatever stands there: the app reads it and writes nothing."""
    flash = make_flash(
        two_stores(FLAG_READ_ONLY), app=app(), nvs={}, more_nvs={"nvs_other": {"OTA_VERSION": "2"}}
    )
    flash[0x9000 + 64 + 3 * 32] ^= 1
    before = bytes(flash[0x9000:0xD000])
    board = start(flash=bytes(flash))
    board.control.wait_for_text("OTA_VERSION: ")
    assert board.control.read_flash(0x9000, 0x4000) == before


def test_confirming_counts_the_secure_version_up(start: StartBoard) -> None:
    """With anti-rollback nothing older boots any more, also after a power cycle."""
    new = build_app("robot", "2.0.0", size_bytes=20_000, secure_version=3)
    old = build_app("robot", "1.0.0", size_bytes=20_000, secure_version=1)
    board = start(
        layout="micro-rdk", slot="ota_1", otadata="new", app=new,
        flash_options={"other_app": old},
        config={"rollback": True, "anti_rollback": True, "secure_version": 1, **FAST},
    )  # fmt: skip
    board.control.wait_for("burnt", secure_version=3)
    assert BoardConfig.load(board.dir).secure_version == 3
    board.control.write_flash(LAYOUTS["micro-rdk"].find("ota_1").offset, b"\xff")
    since = board.control.state()["events"]
    board.control.power_cycle()
    board.control.wait_for("boot-failed", since=since)
    board.control.wait_for_text("OTA app partition slot 0 is not bootable")


def test_no_bootable_app_retries(start: StartBoard) -> None:
    """The bootloader resets the chip and tries again, for ever."""
    board = start(layout="micro-rdk", app=b"\xff" * 16, config=FAST)
    first = board.control.wait_for("boot-failed")
    board.control.wait_for("boot-failed", since=first["number"])
    log = board.control.console()
    assert "invalid magic byte" in log
    assert "OTA app partition slot 0 is not bootable" in log
    assert "No bootable app partitions in the partition table" in log
    assert "rst:0x3 (SW_RESET)" in log


def test_blank_flash_retries(start: StartBoard) -> None:
    """The ROM's watchdog resets a chip without a bootloader."""
    board = start(flash=b"\xff" * (1 << 20), config=FAST)
    board.control.wait_for_text("rst:0x10 (RTCWDT_RTC_RESET)")
    assert "invalid header: 0xffffffff" in board.control.console()
