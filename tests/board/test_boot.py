# SPDX-License-Identifier: GPL-3.0-or-later
"""What a boot log proves, line by line, against a clock that the test turns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_service.board.boot import MAX_LINE_CHARS, BootMonitor, Expected, Verdict
from ota_service.board.secrets import Redactor

OFFSET = 0x110000
ROM = "rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)"
LOADED = f"\x1b[0;32mI (107) boot: Loaded app from partition at offset {OFFSET:#x}\x1b[0m"
PROJECT = "I (296) app_init: Project name:     robot"
VERSION = "I (300) app_init: App version:      1.1.0"
SHA = "I (308) app_init: ELF file SHA256:  489d76bb..."
GOOD = Expected(offset=OFFSET, project="robot", version="1.1.0", elf_sha256="489d76bb" * 8)


def monitor(expected: Expected = GOOD, **options: object) -> BootMonitor:
    """A watch with the usual times."""
    return BootMonitor(expected, timeout_s=20.0, stable_s=5.0, **options)  # type: ignore[arg-type]


def feed(watched: BootMonitor, now_s: float, *lines: str) -> None:
    """Lines as they come from a port."""
    watched.feed("".join(f"{line}\r\n" for line in lines).encode(), now_s)


def test_an_app_that_keeps_running_is_running() -> None:
    """The bootloader names the slot, the descriptor matches, and then nothing goes wrong."""
    watched = monitor()
    feed(watched, 0.1, ROM, LOADED, PROJECT, VERSION, SHA)
    watched.tick(5.0)
    assert watched.verdict is None
    watched.tick(5.2)
    assert watched.verdict is Verdict.RUNNING


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Guru Meditation Error: Core  0 panic'ed (LoadProhibited)", "panicked"),
        ("abort() was called at PC 0x400d", "panicked"),
        ("rst:0xc (SW_CPU_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)", "restarted by itself"),
        ("rst:0x7 (TG0WDT_SYS_RESET),boot:0x13", "restarted by itself"),
        ("waiting for download", "download mode"),
    ],
)
def test_trouble_seconds_after_the_start_fails_the_boot(line: str, why: str) -> None:
    """Seeing the version line is not enough: what happens in the next seconds counts."""
    watched = monitor()
    feed(watched, 0.1, ROM, LOADED, PROJECT, VERSION)
    feed(watched, 2.4, line)
    assert watched.verdict is Verdict.FAILED
    assert why in watched.reason


def test_a_reset_is_trouble_even_where_the_first_reset_line_was_lost() -> None:
    """Ports on native USB lose the first lines; the app's own reset must still be seen."""
    watched = monitor()
    feed(watched, 0.3, LOADED)
    feed(watched, 2.0, "rst:0xc (SW_CPU_RESET),boot:0x13")
    assert watched.verdict is Verdict.FAILED


def test_a_fallback_is_named_with_the_bootloaders_reason() -> None:
    """The slot that otadata names may not be the one that runs."""
    watched = monitor()
    feed(
        watched,
        0.2,
        ROM,
        "E (80) boot: OTA app partition slot 0 is not bootable",
        "I (107) boot: Loaded app from partition at offset 0x10000",
    )
    assert watched.verdict is Verdict.FAILED
    assert "0x10000 instead of 0x110000" in watched.reason
    assert "slot 0 is not bootable" in watched.reason


@pytest.mark.parametrize("line", ["I (9) app_init: Project name: other", VERSION + "-dirty"])
def test_another_app_fails_the_boot(line: str) -> None:
    """Where the descriptor's lines are printed they must be the image's."""
    watched = monitor()
    feed(watched, 0.2, ROM, LOADED, line)
    assert watched.verdict is Verdict.FAILED


def test_silence_proves_nothing() -> None:
    """A board whose log is off, or at another speed, is not rolled back for it."""
    watched = monitor()
    watched.feed(bytes(range(128, 256)) * 3, 1.0)
    watched.tick(19.9)
    assert watched.verdict is None
    watched.tick(20.0)
    assert watched.verdict is Verdict.SILENT


def test_silence_fails_where_boot_expect_is_set() -> None:
    """`boot_expect` asks for a line; without it the app does not count as running."""
    watched = monitor(Expected(offset=OFFSET, matches=lambda line: "ready" in line))
    feed(watched, 0.2, ROM, LOADED)
    watched.tick(19.0)
    early = watched.verdict
    watched.tick(20.1)
    assert (early, watched.verdict) == (None, Verdict.FAILED)
    assert "boot_expect" in watched.reason


def test_boot_expect_is_met_by_a_line_of_the_app() -> None:
    """With its line the app counts as running once it has also been stable."""
    pattern = re.compile("robot is (ready|up)")
    watched = monitor(
        Expected(offset=OFFSET, matches=lambda line: pattern.search(line) is not None)
    )
    feed(watched, 0.2, ROM, LOADED)
    feed(watched, 8.0, "robot is ready")
    assert watched.verdict is Verdict.RUNNING


def test_a_loop_before_any_evidence_fails_the_boot() -> None:
    """A board whose bootloader cannot start anything resets again and again."""
    watched = monitor()
    feed(watched, 0.1, ROM, "invalid header: 0xffffffff")
    feed(watched, 0.5, "rst:0x10 (RTCWDT_RTC_RESET),boot:0x13")
    assert watched.verdict is Verdict.FAILED


def test_power_that_comes_again_starts_the_watch_over_a_few_times() -> None:
    """Somebody's plug is no fault of the app; a supply that browns out for ever is."""
    watched = monitor()
    feed(watched, 0.1, ROM, LOADED, VERSION)
    for n in range(3):
        feed(watched, 2.0 + n, ROM, LOADED)
        assert watched.verdict is None
    feed(watched, 6.0, ROM)
    assert watched.verdict is Verdict.FAILED


def test_secrets_are_taken_out_of_what_is_kept() -> None:
    """An app that prints its Wi-Fi password must not get it into the history or an error."""
    watched = monitor(redact=Redactor([b"hunter2hunter2", b"abc"]))
    feed(watched, 0.1, ROM, LOADED, "wifi password hunter2hunter2 abc")
    feed(watched, 0.2, "abort() was called with hunter2hunter2")
    assert "hunter2hunter2" not in "\n".join(watched.lines) + watched.reason
    assert "wifi password *** abc" in watched.lines


def test_the_log_ends_where_it_was_decided() -> None:
    """A board that panics and starts again in the same breath must not push out the reason."""
    watched = monitor()
    again = [ROM, LOADED, PROJECT, VERSION, SHA] * 60
    feed(watched, 0.2, ROM, LOADED, "Guru Meditation Error: Core 0", "PC: 0x400d", *again)
    assert watched.verdict is Verdict.FAILED
    assert watched.lines[-2:] == ["Guru Meditation Error: Core 0", "PC: 0x400d"]


@given(st.lists(st.tuples(st.binary(max_size=3000), st.floats(0, 3)), max_size=20))
def test_any_bytes_end_in_a_verdict(chunks: list[tuple[bytes, float]]) -> None:
    """Whatever a port delivers, the watch ends, and what it keeps is bounded."""
    watched, now_s = monitor(), 0.0
    for data, later_s in chunks:
        now_s += later_s
        watched.feed(data, now_s)
    for _ in range(5):
        now_s += 20.0
        watched.tick(now_s)
    assert watched.verdict is not None
    assert all(len(line) <= MAX_LINE_CHARS for line in watched.lines)
