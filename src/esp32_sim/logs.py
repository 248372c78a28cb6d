# SPDX-License-Identifier: GPL-3.0-or-later
"""What apps print when they fail, and what only looks like it.

Source: ESP-IDF's components/esp_system/panic.c and its port/arch/xtensa and port/arch/riscv,
components/esp_libc, components/heap, task_wdt.c, and esp32.md, "The boot log".
"""

from __future__ import annotations

from typing import Final

_XTENSA: Final = (
    "",
    "Core  0 register dump:",
    "PC      : 0x400d3f5a  PS      : 0x00060530  A0      : 0x800d2a71  A1      : 0x3ffb4e70  ",
    "A2      : 0x00000000  A3      : 0x3ffb5c10  A4      : 0x00000001  A5      : 0x00000020  ",
    "A6      : 0x3ffae4f0  A7      : 0x00000000  A8      : 0x800d3f57  A9      : 0x3ffb4e50  ",
    "SAR     : 0x0000001a  EXCCAUSE: 0x0000001c  EXCVADDR: 0x00000000  LBEG    : 0x40089e15  ",
    "LEND    : 0x40089e25  LCOUNT  : 0xffffffff  ",
)
_BACKTRACE: Final = (
    "",
    "",
    "Backtrace: 0x400d3f57:0x3ffb4e70 0x400d2a6e:0x3ffb4ea0 0x40087c3a:0x3ffb4ed0",
    "",
    "",
    "",
    "",
    "ELF file SHA256: 1c4f2a90d",
    "",
    "Rebooting...",
)
_GURU: Final = "Guru Meditation Error: Core  0 panic'ed"
_LOAD: Final = f"{_GURU} (LoadProhibited). Exception was unhandled."

_RISCV: Final = (
    "Core  0 register dump:",
    "MEPC    : 0x42007e3c  RA      : 0x42007e2e  SP      : 0x3fc92f60  GP      : 0x3fc8b600  ",
    "TP      : 0x3fc88d34  T0      : 0x4005890e  T1      : 0x00000000  T2      : 0x00000000  ",
    "MSTATUS : 0x00001881  MTVEC   : 0x40380001  MCAUSE  : 0x00000005  MTVAL   : 0x00000000  ",
    "MHARTID : 0x00000000  ",
    "",
    "Stack memory:",
    "3fc92f60: 0x00000000 0x3fc92f90 0x42007e2e 0x3fc8b600 0x00000000 0x00000000 0x00000000",
    *_BACKTRACE[3:],
)
_LOAD_RISCV: Final = f"{_GURU} (Load access fault). Exception was unhandled."


def _panics(
    load: str,
    pc: str,
    exception: tuple[str, ...],
    aborted: tuple[str, ...],
    overrun: tuple[str, ...],
) -> dict[str, tuple[str, ...]]:
    """Each form, for one architecture.

    load: what is said of a read from nowhere; exception: what follows the panic handler's first
    line, aborted: what follows abort()'s; overrun: what a stack's guard says.
    """
    abort = ("", f"abort() was called at PC {pc} on core 0")
    return {
        "load-prohibited": (load, *exception),
        "coloured": (f"\x1b[0;31m{load}\x1b[0m", *exception),
        "abort": (*abort, *aborted),
        "assert": ("", "assert failed: app_main main.c:42 (handle != NULL)", *aborted),
        "old-assert": (
            'assertion "handle != NULL" failed: file "main/main.c", line 42, function: app_main',
            *abort,
            *aborted,
        ),
        "error-check": (
            f"ESP_ERROR_CHECK failed: esp_err_t 0x101 (ESP_ERR_NO_MEM) at {pc}",
            'file: "./main/main.c" line 42',
            "func: app_main",
            "expression: esp_wifi_init(&cfg)",
            *abort,
            *aborted,
        ),
        "stack-overflow": (
            "",
            "***ERROR*** A stack overflow in task main has been detected.",
            *aborted,
        ),
        "stack-canary": overrun,
        "interrupt-wdt": (f"{_GURU} (Interrupt wdt timeout on CPU0). ", *exception),
        "corrupt-heap": (
            "CORRUPT HEAP: Bad head at 0x3ffb5c10. Expected 0xabba1234 got 0x00000000",
            "",
            "assert failed: multi_heap_free multi_heap_poisoning.c:279 (head != NULL)",
            *aborted,
        ),
        "rust": (
            "",
            "thread 'main' panicked at src/main.rs:42:10:",
            "called `Result::unwrap()` on an `Err` value: ESP_ERR_NO_MEM",
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
            *abort,
            *aborted,
        ),
        "riscv": (_LOAD_RISCV, "", *_RISCV),
    }


PANICS: Final = _panics(
    _LOAD,
    "0x400d3f57",
    (*_XTENSA, *_BACKTRACE),
    _BACKTRACE,
    (
        f"{_GURU} (Unhandled debug exception). ",
        "Debug exception reason: Stack canary watchpoint triggered (main) ",
        *_XTENSA[1:],
        *_BACKTRACE,
    ),
)
"""What `Behaviour.panic` may be: an app's last words, each in its own form, a line each."""

RISCV_PANICS: Final = _panics(
    _LOAD_RISCV,
    "0x42007e3c",
    ("", *_RISCV),
    _RISCV,
    (
        f"{_GURU} (Stack protection fault). ",
        "",
        'Detected in task "main" at 0x42007e3c',
        "Stack pointer: 0x3fc92f60",
        "Stack bounds: 0x3fc92f70 - 0x3fc93f60",
        "",
        "",
        *_RISCV,
    ),
)
"""The same on RISC-V, where abort() shows registers, too, and the stack stands for a backtrace."""

# Of an app that has no handlers yet; what the real ROM prints of an illegal instruction at an app's
# entry. Then it stops.
ROM_EXCEPTION: Final = (
    "Fatal exception (0): IllegalInstruction",
    "epc1=0x4008119b, epc2=0x00000000, epc3=0x00000000, excvaddr=0x00000000, depc=0x00000000",
)

_BROWNOUT: Final = "Brownout detector was triggered"

BROWNOUTS: Final[dict[str, tuple[str, ...]]] = {
    "brownout": (_BROWNOUT, "", ""),
    "brownout-tagged": (f"E BOD: {_BROWNOUT}", "", "", ""),
}
"""What apps by ESP-IDF up to 4.4, and by newer ones, print when the voltage falls."""

_CRASHED: Final = f"I (900) diag: last crash: {_LOAD}"

LOOKALIKES: Final[dict[str, str]] = {
    "quoted-panic": _CRASHED,
    "coloured-quoted-panic": f"\x1b[0;32m{_CRASHED}\x1b[0m",
    "quoted-abort": "W (902) diag: abort() was called at PC 0x400d3f57 on core 0",
    "quoted-assert": "I (904) diag: last words: assert failed: app_main main.c:42 (handle != NULL)",
    "quoted-registers": "I (905) diag: Core  0 register dump: in the coredump partition",
    "reset-reason": "I (906) diag: last boot was rst:0xc (SW_CPU_RESET)",
    "reset-reason-bare": "last boot was rst:0x3 (SW_RESET)",
    "updater": "I (908) updater: idle, waiting for download",
    "co-processor": "\n".join(
        (
            "slave> rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)",
            "slave> I (31) boot: ESP-IDF v5.1.4 2nd stage bootloader",
            "slave> I (55) boot: Loaded app from partition at offset 0x10000",
        )
    ),
    "co-processor-fails": "slave> E (60) boot: OTA app partition slot 0 is not bootable",
    "co-processor-exception": "\n".join(("link to the co-processor is up", *ROM_EXCEPTION)),
    "quoted-bootloader": "I (910) diag: No bootable app partitions in the partition table",
    "quoted-brownout": "I (912) diag: Brownout detector was triggered 0 times",
    "task-wdt": "\n".join(
        (
            "E (5303) task_wdt: Task watchdog got triggered. The following tasks/users did not "
            "reset the watchdog in time:",
            "E (5303) task_wdt:  - IDLE0 (CPU 0)",
            "E (5303) task_wdt: Tasks currently running:",
            "E (5303) task_wdt: CPU 0: main",
            "E (5303) task_wdt: Print CPU 0 (current core) backtrace",
            "",
            "",
            "Backtrace: 0x400d3f57:0x3ffb4e70 0x400d2a6e:0x3ffb4ea0",
            "",
        )
    ),
}
"""What an app may say (`Behaviour.say`) and go on running: nothing has happened to it."""
