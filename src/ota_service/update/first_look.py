# SPDX-License-Identifier: GPL-3.0-or-later
"""What the log of one ordinary start says of what a board runs, or why it runs nothing.

Only lines that the ROM or the bootloader prints in their own form count (esp32.md, "The boot
log"): an app may print the same words of somebody else. A bootloader that prints nothing says
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ota_service.errors import OtaError

_JUNK = r"^.{0,3}?"  # what a UART makes of the reset itself
_ROM = re.compile(
    _JUNK + r"(ets |rst:0x|configsip: |clk_drv:|mode:|load:|ho \d|tail \d|entry |ESP-ROM:|Build:|"
    r"SPIWP:|Saved PC:|boot:0x|invalid header: |flash read err|csum err|ets_main|user code done|"
    r"Octal Flash Mode Enabled|For OPI Flash, |SHA-256 comparison failed|Calculated: |Expected: |"
    r"Attempting to boot anyway|waiting for download|wait u\w+ download|"
    r"Fatal exception \(\d+\): |epc1=0x)"
)
_BOOTLOADER = re.compile(
    r"^[EWIDV] \(\d+\) (boot|boot\.\w+|boot_comm|bootloader\w*|esp_image|flash_parts|efuse|"
    r"qio_mode|octal_psram|secure_boot\w*|flash_encrypt\w*): "
)
_ENTRY = re.compile(_JUNK + r"entry 0x[0-9a-f]+$")
_RESET = re.compile(_JUNK + r"rst:0x")
_NO_BOOTLOADER = re.compile(_JUNK + r"(invalid header: 0x|flash read err, 1000|csum err:)")
_TOO_SMALL = re.compile(
    r"^E \(\d+\) flash_parts: partition \d+ invalid - .*exceeds flash chip size"
)
_TABLE = re.compile(
    r"^E \(\d+\) (flash_parts: |boot: Failed to verify partition table|"
    r"boot: load partition table error)"
)
_NOTHING = re.compile(r"^E \(\d+\) boot: No bootable app partitions in the partition table")
_LOADED = re.compile(r"^I \(\d+\) boot: Loaded app from partition at offset 0x[0-9a-f]+")
_INFO = re.compile(r"^I \(\d+\) boot: ")

FLASH_SIZE_REMEDY = (
    "Write a Merged Binary whose bootloader is made for the size of the board's flash, with "
    "`esp32-ota flash PORT FILE` (`esp32-ota image merge --flash-size ..` makes one)."
)


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What one start showed.

    offset: flash address that the bootloader loaded the app from; None where it does not say.
    stuck: why the board comes to no app at all, from the ROM's or bootloader's own words.
    nothing_boots: the bootloader says that no app partition boots. app_prints: something printed
    that neither the ROM nor the bootloader prints, so something runs. silent: its bootloader
    printed nothing; None: what it printed may have been lost. restarted: False where the board
    never left download mode, so that nothing was seen.
    """

    offset: int | None = None
    stuck: OtaError | None = None
    nothing_boots: bool = False
    app_prints: bool = False
    silent: bool | None = False
    restarted: bool = True


def first_look(lines: Sequence[str], loaded_offset: int | None) -> FirstLook:
    """From the lines of a log, without colours. loaded_offset: of `Loaded app from partition`.

    That counts as long as nobody but ROM and bootloader has spoken since the last reset: an app
    behind a silent bootloader may pass on what its co-processor's bootloader says.
    """
    start = max((n for n, line in enumerate(lines) if _RESET.search(line)), default=0)
    loaded = next((n for n, line in enumerate(lines) if n >= start and _LOADED.search(line)), None)
    if loaded_offset is not None and loaded is not None and all(map(theirs, lines[start:loaded])):
        return FirstLook(loaded_offset)
    return FirstLook(
        stuck=_stuck(lines),
        nothing_boots=any(map(_NOTHING.search, lines)),
        app_prints=not all(map(theirs, lines)),
        silent=not any(map(_BOOTLOADER.search, lines)),
    )


def hands_over(line: str) -> bool:
    """Whether it is the ROM's last one, behind which the bootloader runs."""
    return bool(_ENTRY.search(line))


def theirs(line: str) -> bool:
    """Whether the ROM or the bootloader says it."""
    return bool(_ROM.search(line) or _BOOTLOADER.search(line))


def _stuck(lines: Sequence[str]) -> OtaError | None:
    if line := _first(_TOO_SMALL, lines):
        return OtaError(
            "flash-size",
            "The board does not start: its bootloader is made for a smaller flash than the "
            f'partition table needs ("{line}").',
            remedy=FLASH_SIZE_REMEDY,
        )
    if line := _first(_TABLE, lines):
        return OtaError(
            "partition-table-invalid",
            f'The board does not start: its bootloader refuses the partition table ("{line}").',
        )
    again = sum(bool(_RESET.search(line)) for line in lines) > 1
    if line := _first(_NO_BOOTLOADER, lines):
        text = f'The board does not start: it has no whole bootloader ("{line}").'
    elif again and any(map(_INFO.search, lines)) and not any(map(_NOTHING.search, lines)):
        text = "The board restarts again and again in its bootloader, without starting an app."
    else:
        return None
    remedy = "Write a Merged Binary with `esp32-ota flash PORT FILE`."
    return OtaError("otadata-invalid", text, remedy=remedy)


def _first(pattern: re.Pattern[str], lines: Sequence[str]) -> str:
    """The first line with the pattern, without what stands before its text; "": none has it."""
    found = next((line for line in lines if pattern.search(line)), "")
    return re.sub(r"^[EWIDV] \(\d+\) ", "", found)
