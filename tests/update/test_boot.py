# SPDX-License-Identifier: GPL-3.0-or-later
"""What a boot log proves, line by line, against a clock that the test turns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp32_sim.logs import LOOKALIKES, PANICS, ROM_EXCEPTION
from ota_service.update.boot import (
    LINES_BEFORE,
    MAX_LINE_CHARS,
    NOTHING_TO_JUDGE_BY,
    SAYS_NOTHING,
    UNJUDGED,
    BootMonitor,
    BootRules,
    Expected,
    Heard,
    Verdict,
    decisive,
)
from ota_service.update.first_look import first_look
from ota_service.update.secrets import Redactor

OFFSET = 0x110000
ROM = "rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)"
LOADED = f"\x1b[0;32mI (107) boot: Loaded app from partition at offset {OFFSET:#x}\x1b[0m"
PROJECT = "I (296) app_init: Project name:     robot"
VERSION = "I (300) app_init: App version:      1.1.0"
RNG_OFF = "I (123) boot: Disabling RNG early entropy source..."
SHA = "I (308) app_init: ELF file SHA256:  489d76bb..."
GOOD = Expected(offset=OFFSET, project="robot", version="1.1.0", elf_sha256="489d76bb" * 8)


def monitor(expected: Expected = GOOD, restarts: int = 0, **more: Any) -> BootMonitor:
    """A watch with the usual times."""
    return BootMonitor(expected, BootRules(restarts=restarts), **more)


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


@dataclass(frozen=True)
class Row:
    """A log behind a good start (ROM, bootloader, descriptor), in steps of (seconds, lines)."""

    steps: tuple[tuple[float, tuple[str, ...]], ...]
    verdict: Verdict
    why: str = ""
    restarts: int = 0
    code: str | None = None


def row(verdict: Verdict, why: str, *lines: str, restarts: int = 0) -> Row:
    """All lines at once, 2.4 s after the reset."""
    return Row(((2.4, lines),), verdict, why, restarts, UNJUDGED.get(verdict))


RUNNING, FAILED, POWER, NO_RESET = (
    Verdict.RUNNING,
    Verdict.FAILED,
    Verdict.POWER,
    Verdict.NO_RESET,
)
SW = "rst:0xc (SW_CPU_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)"
BROWN_OUT = "rst:0xf (RTCWDT_BROWN_OUT_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)"
ETS = "ets Jul 29 2019 12:21:46"
AGAIN = (LOADED, PROJECT, VERSION)
GURU = "Guru Meditation Error: Core  0 panic'ed (LoadProhibited). Exception was unhandled."
XTENSA = (
    GURU,
    "Core  0 register dump:",
    "PC      : 0x400d3f5a  PS      : 0x00060530  A0      : 0x800d2a71  A1      : 0x3ffb4e70",
    "Backtrace: 0x400d3f57:0x3ffb4e70 0x400d2a6e:0x3ffb4ea0",
    "ELF file SHA256: 489d76bb4",
)
RISCV = (
    "Guru Meditation Error: Core  0 panic'ed (Store access fault). Exception was unhandled.",
    "Core  0 register dump:",
    "MEPC    : 0x42007a3c  RA      : 0x42007a3a  SP      : 0x3fc909f0  GP      : 0x3fc8a200",
    "Stack memory:",
    *(f"3fc9{at:04x}: 0x00000000 0x3fc8a200 0x42007a3a 0x00000000" for at in range(0, 1024, 32)),
)
ABORT = ("abort() was called at PC 0x400d1a2b on core 0", "Backtrace: 0x40081a2b:0x3ffb1f30")
ASSERT = ("assert failed: app_main main.c:21 (false)", "Backtrace: 0x40081a2b:0x3ffb1f30")
STACK = ("***ERROR*** A stack overflow in task main has been detected.", ABORT[1])
HEAP = ("CORRUPT HEAP: Bad tail at 0x3ffb8a2c. Expected 0xbaad5678 got 0x00000000", *ASSERT)
OLD_ASSERT = ('assertion "x" failed: file "main.c", line 21, function: app_main', *ABORT)
TASK_WATCHDOG = (
    "E (6312) task_wdt: Task watchdog got triggered. The following tasks/users did not reset",
    "E (6312) task_wdt: Print CPU 0 (current core) registers",
    "Core  0 register dump:",
    "MEPC    : 0x42007a3c  RA      : 0x42007a3a  SP      : 0x3fc909f0  GP      : 0x3fc8a200",
)
ALIVE = "I (3456) app: alive"
BOD = "\x1b[0;31mE BOD: Brownout detector was triggered"

ROWS = {
    # Words that an app prints of something else.
    "quotes a stored crash": row(
        RUNNING,
        "",
        "I (900) diag: stored crash: Guru Meditation Error: Core 0 panic'ed (LoadProhibited)",
        f"I (900) diag: stored crash: {GURU}",
    ),
    "quotes a reset": row(RUNNING, "", "I (800) diag: last boot was rst:0xc (SW_CPU_RESET)"),
    "quotes a whole reset": row(RUNNING, "", f"I (800) diag: {SW}", f"last boot: {SW}", f"  {SW}"),
    "tells of an abort": row(
        RUNNING, "", "last reset: task abort() was called 3 boots ago", f"last: {ABORT[0]}"
    ),
    "waits for a download": row(
        RUNNING, "", "I (800) ota: idle, waiting for download", "waiting for download"
    ),
    "passes on a bootloader's log": row(
        RUNNING,
        "",
        "slave> I (55) boot: Loaded app from partition at offset 0x10000",
        "slave> I (80) app_init: Project name:     slave_fw",
        "slave> E (80) boot: OTA app partition slot 0 is not bootable",
    ),
    "prints its whole stored crash, and goes on": row(RUNNING, "", *XTENSA, ALIVE),
    "finds its heap corrupt, and goes on": row(RUNNING, "", HEAP[0], ALIVE),
    "a task watchdog that only warns": row(RUNNING, "", *TASK_WATCHDOG),
    # Panics.
    **{
        f"{name}, {end}": row(
            FAILED, f"panicked 2.3 s after its start: {lines[0].rstrip('.')}", *lines, *last
        )
        for name, lines in {
            "Xtensa": XTENSA,
            "RISC-V": RISCV,
            "abort": ABORT,
            "assert": ASSERT,
            "assert of old": OLD_ASSERT,
            "stack overflow": STACK,
            "corrupt heap": HEAP,
            "registers alone": XTENSA[1:],
        }.items()
        for end, last in {
            "rebooting": ("Rebooting...",),
            "rebooting later": ("Rebooting in  3 seconds...",),
            "halted": ("CPU halted.",),
            "with a core dump": ("I (612) esp_core_dump_flash: Save core dump", "Rebooting..."),
            "reset": (ETS, SW),
            "reset by the watchdog": ("rst:0x7 (TG0WDT_SYS_RESET),boot:0x13 (SPI_FAST_FLASH)",),
            "on a port that loses the ROM's lines": (
                "I (24) boot: ESP-IDF v5.1 2nd stage bootloader",
            ),
        }.items()
    },
    "a panic in colour": row(
        FAILED, "panicked", *(f"\x1b[0;31m{line}\x1b[0m" for line in XTENSA), "Rebooting..."
    ),
    "a panic behind an unfinished line": row(
        FAILED, "panicked", f"connecting ... {GURU}", *XTENSA[1:], "Rebooting..."
    ),
    "a panic that only stops the board": Row(((2.4, (GURU,)), (4.5, ())), FAILED, "panicked"),
    # Resets.
    "restarts": row(FAILED, "restarted by itself 2.3 s after its start (SW_CPU_RESET)", ETS, SW),
    "hangs": row(FAILED, "TG0WDT_SYS_RESET", "rst:0x7 (TG0WDT_SYS_RESET),boot:0x13 (SPI)"),
    "a planned restart": row(RUNNING, "", ETS, SW, *AGAIN, restarts=1),
    "a planned restart too many": row(FAILED, "SW_CPU", SW, *AGAIN, SW, *AGAIN, restarts=1),
    "a watchdog is no planned restart": row(
        FAILED, "RTCWDT", "rst:0x10 (RTCWDT_RTC_RESET),boot:0x13 (SPI)", *AGAIN, restarts=9
    ),
    "a panic is no planned restart": row(FAILED, "panicked", GURU, SW, *AGAIN, restarts=9),
    "a glued panic is no planned restart": row(
        FAILED, "panicked", f"going {GURU}", SW, *AGAIN, restarts=9
    ),
    "a wake": row(RUNNING, "", "rst:0x5 (DEEPSLEEP_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)", *AGAIN),
    "wakes, again and again": Row(
        tuple((0.5 + n / 2, ("rst:0x5 (DSLEEP),boot:0xc (SPI)", *AGAIN)) for n in range(12)),
        RUNNING,
    ),
    "a wake whose reset line was lost": row(RUNNING, "", *AGAIN),
    "restarts whose reset lines were lost": row(FAILED, "bootloader ran again", *AGAIN * 4),
    # Power.
    "one brown-out": row(RUNNING, "", BROWN_OUT, *AGAIN),
    "one brown-out by the detector": row(RUNNING, "", BOD, ETS, SW, *AGAIN),
    "one brown-out by the detector of old": row(
        RUNNING, "", "Brownout detector was triggered", ETS, SW, *AGAIN
    ),
    "brown-outs for ever": row(POWER, "4 times", *[BROWN_OUT, *AGAIN] * 4),
    "brown-outs by the detector for ever": row(POWER, "4 times", *[BOD, SW, *AGAIN] * 4),
    "power that comes and goes": row(POWER, "4 times", *[ROM, *AGAIN] * 4),
    "a brown-out, then a crash": row(FAILED, "panicked", BROWN_OUT, *AGAIN, GURU, SW),
    "a brown-out excuses one restart": row(FAILED, "SW_CPU", BOD, SW, *AGAIN, SW),
    "a bootloader that goes back after a brown-out": row(
        POWER, "after its power failed", BROWN_OUT, LOADED.replace("0x110000", "0x10000")
    ),
    "a slot that is damaged after a brown-out": row(
        FAILED,
        "is not bootable",
        BROWN_OUT,
        "E (80) boot: OTA app partition slot 0 is not bootable",
        LOADED.replace("0x110000", "0x10000"),
    ),
    # Download mode.
    "into download mode": Row(
        (
            (2.4, (ETS, "rst:0x1 (POWERON_RESET),boot:0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO))")),
            (2.5, ("waiting for download",)),
            (22.5, ()),
        ),
        NO_RESET,
        "download mode",
        code="no-reset",
    ),
    "out of download mode again": row(
        RUNNING, "", "rst:0x1 (POWERON),boot:0x5 (DOWNLOAD(USB/UART0/1))", ROM, *AGAIN
    ),
}


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
def test_what_a_log_comes_to(case: Row) -> None:
    """Words decide nothing; what ROM, bootloader and panic handler say of this start does."""
    watched = monitor(restarts=case.restarts)
    feed(watched, 0.1, ETS, ROM, *AGAIN)
    for now_s, lines in case.steps:
        feed(watched, now_s, *lines)
    watched.tick(case.steps[-1][0] + 5.1)
    assert watched.verdict is case.verdict, watched.reason
    assert case.why in watched.reason
    assert UNJUDGED.get(case.verdict) == case.code


@pytest.mark.parametrize("words", PANICS.values(), ids=PANICS.keys())
def test_panics_as_the_simulated_board_knows_them(words: tuple[str, ...]) -> None:
    """Each in its own form, and with the reset that follows."""
    watched = monitor()
    feed(watched, 0.1, ETS, ROM, *AGAIN)
    feed(watched, 2.0, "I (2000) app: alive", *words, ETS, SW)
    assert watched.verdict is FAILED
    assert "panicked" in watched.reason


@pytest.mark.parametrize("words", LOOKALIKES.values(), ids=LOOKALIKES.keys())
def test_what_only_looks_like_trouble_as_the_simulated_board_knows_it(words: str) -> None:
    """An app that says it and goes on running."""
    watched = monitor()
    feed(watched, 0.1, ETS, ROM, *AGAIN, *words.split("\n"))
    watched.tick(5.2)
    assert watched.verdict is RUNNING


TAGGED = st.builds(
    "{} ({}) {}: {}{}".format,
    st.sampled_from("EWIDV"),
    st.integers(0, 10**9),
    st.from_regex(r"(?!boot\Z|app_init\Z|cpu_start\Z)[a-zA-Z_]{1,12}", fullmatch=True),
    st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=20),
    st.sampled_from(
        [
            GURU,
            SW,
            BROWN_OUT,
            BOD,
            *ABORT,
            *ASSERT,
            *STACK,
            *HEAP,
            "waiting for download",
            LOADED,
            PROJECT,
            "Rebooting...",
            "Core  0 register dump:",
            "CPU halted.",
        ]
    ),
)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(TAGGED, max_size=20))
def test_no_line_with_a_tag_decides(lines: list[str]) -> None:
    """Whatever an app logs under its tag, in whatever order, its start is judged as without it."""
    watched = monitor()
    feed(watched, 0.1, ROM, LOADED, PROJECT, VERSION)
    for number, line in enumerate(lines):
        feed(watched, 1.0 + number / 10, line)
    watched.tick(5.2)
    assert watched.verdict is RUNNING


REASONS = {
    1: "POWERON_RESET",
    3: "SW_RESET RTC_SW_SYS_RESET SW_SYS_RESET",
    4: "OWDT_RESET",
    5: "DEEPSLEEP_RESET PMU_SYS_PWR_DOWN_RESET",
    6: "SDIO_RESET PMU_CPU_PWR_DOWN_RESET",
    7: "TG0WDT_SYS_RESET HP_SYS_HP_WDT_RESET HP_SYS_HP_WDT0_RESET",
    8: "TG1WDT_SYS_RESET HP_SYS_HP_WDT1_RESET",
    9: "RTCWDT_SYS_RESET HP_SYS_LP_WDT_RESET",
    10: "INTRUSION_RESET",
    11: "TGWDT_CPU_RESET TG0WDT_CPU_RESET HP_CORE_HP_WDT_RESET",
    12: "SW_CPU_RESET RTC_SW_CPU_RESET",
    13: "RTCWDT_CPU_RESET HP_CORE_LP_WDT_RESET",
    14: "EXT_CPU_RESET",
    15: "RTCWDT_BROWN_OUT_RESET BROWN_OUT_RESET",
    16: "RTCWDT_RTC_RESET CHIP_LP_WDT_RESET",
    17: "TG1WDT_CPU_RESET",
    18: "SUPER_WDT_RESET",
    19: "GLITCH_RTC_RESET",
    20: "EFUSE_RESET EFUSE_CRC_ERR_RESET",
    21: "USB_UART_CHIP_RESET",
    22: "USB_JTAG_CHIP_RESET CHIP_USB_JTAG_RESET",
    23: "POWER_GLITCH_RESET CHIP_USB_UART_RESET",
    24: "JTAG_RESET JTAG_CPU_RESET",
    25: "RTC_PWR_GLITCH_RESET",
    26: "CPU_LOCKUP_RESET",
}
"""Reset reason -> its names over all chips (ESP-IDF, `esp_rom/*/include/*/rom/rtc.h`)."""


@pytest.mark.parametrize(
    ("code", "name"), [(code, name) for code, names in REASONS.items() for name in names.split()]
)
def test_every_chips_reset_reasons_are_judged(code: int, name: str) -> None:
    """A wake and what comes from outside leave a good firmware alone; all else ends its watch."""
    watched = monitor()
    feed(watched, 0.1, ROM, *AGAIN)
    feed(watched, 1.0, f"rst:{code:#x} ({name}),boot:0x8 (SPI_FAST_FLASH_BOOT)", *AGAIN)
    watched.tick(6.1)
    spared = ("POWER", "BROWN", "GLITCH", "PWR", "SLEEP", "USB", "JTAG", "EFUSE", "SDIO", "INTRU")
    assert watched.verdict is (RUNNING if any(word in name for word in spared) else FAILED)


def test_boot_expect_counts_afresh_after_every_start() -> None:
    """What an earlier start printed says nothing of the one that must run; a wake is no start."""
    for reset, verdict in (
        (BROWN_OUT, FAILED),
        (SW, FAILED),
        ("rst:0x5 (DSLEEP),boot:0x8", RUNNING),
    ):
        watched = monitor(Expected(offset=OFFSET, matches=lambda line: "ready" in line), restarts=1)
        feed(watched, 0.1, ROM, LOADED, "ready")
        feed(watched, 1.0, reset, LOADED)
        watched.tick(21.1)
        assert watched.verdict is verdict, reset


def test_a_board_that_was_asked_and_is_in_download_mode_waits_for_its_button() -> None:
    """Its reset reached nothing; if somebody presses the button in time, its start is judged."""
    for pressed, verdict in ((False, NO_RESET), (True, RUNNING)):
        watched = monitor()
        watched.tick(2.0)
        watched.in_download = True
        if pressed:
            feed(watched, 15.0, ETS, ROM, *AGAIN)
        watched.tick(20.1)
        assert watched.verdict is verdict


def test_a_log_that_begins_with_the_roms_words_is_of_a_board_in_download_mode() -> None:
    """Ports on native USB lose the lines before."""
    for words in ("waiting for download", "wait uart0 download", "wait usb download"):
        watched = monitor()
        feed(watched, 0.1, words)
        watched.tick(20.1)
        assert watched.verdict is NO_RESET


def test_a_reset_is_trouble_even_where_the_first_reset_line_was_lost() -> None:
    """Ports on native USB lose the first lines; the app's own reset must still be seen."""
    watched = monitor()
    feed(watched, 0.3, LOADED)
    feed(watched, 2.0, SW)
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


@pytest.mark.parametrize("before", [(LOADED, RNG_OFF), ()], ids=["", "silent bootloader"])
def test_an_app_that_falls_before_it_has_handlers_has_panicked(before: tuple[str, ...]) -> None:
    """The ROM tells of it, and then the board says nothing until its watchdog."""
    watched = monitor()
    feed(watched, 0.1, ETS, ROM, *before, *ROM_EXCEPTION)
    watched.tick(2.2)
    assert watched.verdict is FAILED
    assert watched.reason.endswith("s after its start: Fatal exception (0): IllegalInstruction")
    assert decisive(watched.told)[-1] == ROM_EXCEPTION[0]
    assert not first_look([ROM, *ROM_EXCEPTION], None).app_prints


def test_an_app_that_says_nothing_is_watched_until_the_bootloaders_watchdog_has_had_its_time() -> (
    None
):
    """It resets an app that hangs at its start, 9 s after the bootloader's."""
    hangs = monitor()
    feed(hangs, 0.4, ROM, LOADED, RNG_OFF)
    hangs.tick(8.9)
    assert not hangs.reason
    feed(hangs, 9.2, ETS, "rst:0x10 (RTCWDT_RTC_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)")
    assert hangs.verdict is FAILED
    silent = monitor()
    feed(silent, 0.4, ROM, LOADED, RNG_OFF)
    silent.tick(10.4)
    assert (silent.verdict, silent.notice) == (RUNNING, SAYS_NOTHING)


def test_silence_proves_nothing() -> None:
    """A board whose log is off, or at another speed, is not rolled back for it."""
    watched = monitor()
    watched.feed(bytes(range(128, 256)) * 3, 1.0)
    watched.tick(19.9)
    assert watched.verdict is None
    watched.tick(20.0)
    assert watched.verdict is Verdict.SILENT


@pytest.mark.parametrize(
    ("lines", "notice"),
    [
        pytest.param((ROM, LOADED, PROJECT), "", id="descriptor"),
        pytest.param((ROM, LOADED, RNG_OFF, "robot up"), "", id="a line of its own"),
        pytest.param((ROM, LOADED, RNG_OFF), SAYS_NOTHING, id="the bootloader alone"),
        pytest.param((ROM, "my bootloader", LOADED, RNG_OFF), SAYS_NOTHING, id="before the app"),
        pytest.param((ROM, LOADED, "\xff\xfe\xb1\xa0\x9f"), SAYS_NOTHING, id="at another speed"),
        pytest.param((ROM, "entry 0x400805e4"), SAYS_NOTHING, id="the ROM alone"),
        pytest.param((), SAYS_NOTHING, id="nothing at all"),
        pytest.param((ROM, "robot up"), NOTHING_TO_JUDGE_BY, id="behind a silent bootloader"),
        pytest.param(
            (ROM, LOADED, "robot up", BROWN_OUT, LOADED), SAYS_NOTHING, id="not since its power"
        ),
    ],
)
def test_what_the_app_itself_says_confirms_it(lines: tuple[str, ...], notice: str) -> None:
    """That a bootloader loaded an app does not show that the app runs."""
    watched = monitor()
    watched.feed("".join(f"{line}\r\n" for line in lines).encode("latin-1"), 0.1)
    watched.tick(20.2)
    assert watched.verdict in (Verdict.RUNNING, Verdict.SILENT)
    assert (watched.confirmed, watched.notice) == (not notice, notice)


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
    """Somebody's plug is no fault of the app, nor is a supply that browns out for ever."""
    watched = monitor()
    feed(watched, 0.1, ROM, LOADED, VERSION)
    for n in range(3):
        feed(watched, 2.0 + n, ROM, LOADED)
        assert watched.verdict is None
    feed(watched, 6.0, ROM)
    assert watched.verdict is Verdict.POWER


def test_secrets_are_taken_out_of_what_is_kept() -> None:
    """An app that prints its Wi-Fi password must not get it into the history or an error."""
    watched = monitor(redact=Redactor([b"hunter2hunter2", b"abc"]))
    feed(watched, 0.1, ROM, LOADED, "wifi password hunter2hunter2 abc")
    feed(watched, 0.2, "assert failed: hunter2hunter2", "Rebooting...")
    assert "hunter2hunter2" not in "\n".join(watched.lines) + watched.reason
    assert "wifi password *** abc" in watched.lines


def test_who_looks_on_hears_each_line_once_and_without_secrets() -> None:
    """As it comes, however it is cut; the search for secrets is left to who looks on."""
    heard: list[Heard] = []
    searched = 0

    def redact(line: str) -> str:
        nonlocal searched
        searched += 1
        return line.replace("hunter2", "***")

    watched = monitor(redact=redact, hears=heard.append)
    for part in (b"I (1) app: hun", b"ter2\nI (2) app: ", b"ready\n\n", b"\x1b[0m\n"):
        watched.feed(part, 0.5)
    assert searched == 0
    assert [one.shown() for one in heard] == [["I (1) app: ***"], ["I (2) app: ready"]]
    assert "hunter2" not in repr(heard)
    feed(watched, 1.0, "Guru Meditation Error: Core  0 panic'ed (LoadProhibited).", "Rebooting...")
    assert [one.verdict for one in heard if one.verdict] == [watched.reason]
    hidden = Heard(("I (1) app: hunter2", "I (2) app_init: App version: 1.0.0"), redact, hides=True)
    assert hidden.shown() == ["I (2) app_init: App version: 1.0.0"]


def test_the_log_ends_where_it_was_decided() -> None:
    """A board that panics and starts again in the same breath must not push out the reason."""
    watched = monitor()
    again = [ROM, LOADED, PROJECT, VERSION, SHA] * 60
    feed(watched, 0.2, ROM, LOADED, *XTENSA, "Rebooting...", *again)
    assert watched.verdict is Verdict.FAILED
    assert watched.told[-6:] == [*XTENSA, "Rebooting..."]


@pytest.mark.parametrize("panic", [XTENSA, RISCV])
def test_what_is_kept_of_a_panic_has_its_first_line_and_its_last(panic: tuple[str, ...]) -> None:
    """However much the app printed before, and however much the panic handler prints."""
    watched = monitor()
    feed(watched, 0.1, ROM, *AGAIN, *(f"I ({n}) app: {n}" for n in range(500)))
    feed(watched, 2.0, *panic, "", "Rebooting...", ETS, SW, *AGAIN)
    assert watched.told[LINES_BEFORE:] == [*panic, "Rebooting..."]
    assert watched.told[LINES_BEFORE - 1] == "I (499) app: 499"
    assert len("".join(watched.told)) < 24_000


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


def test_the_reason_of_a_panic_begins_with_the_panic() -> None:
    """What the app had printed on the same line may be what it keeps."""
    watched = monitor()
    line = "pass=hunter2 Guru Meditation Error: Core  0 panic'ed (LoadProhibited)."
    feed(watched, 0.1, ROM, LOADED, line, "Core  0 register dump:")
    feed(watched, 0.5, "Rebooting...")
    assert watched.verdict is Verdict.FAILED
    assert "Guru Meditation" in watched.reason
    assert "hunter2" not in watched.reason


def test_lines_are_searched_for_secrets_only_where_they_are_shown() -> None:
    """A log that is searched as it comes is read more slowly than it is written."""
    searched: list[str] = []

    def redact(line: str) -> str:
        searched.append(line)
        return line

    watched = monitor(redact=redact)
    feed(watched, 0.1, ROM, LOADED, *[f"line {n}" for n in range(1000)])
    assert searched == []
    assert watched.told[-1] == "line 999"
    assert len(searched) < 100


def test_time_decides_nothing_while_more_of_the_log_waits() -> None:
    """A panic may be in it."""
    watched = monitor()
    feed(watched, 0.1, ROM, LOADED, VERSION)
    watched.feed(b"I (900) main: busy\r\n", 9.0, more=True)
    assert watched.verdict is None
    watched.feed(b"Guru Meditation Error: Core  0 panic'ed (LoadProhibited).\r\n", 9.1, more=True)
    watched.feed(b"Core  0 register dump:\r\nRebooting...\r\n", 9.2)
    assert watched.verdict is Verdict.FAILED
