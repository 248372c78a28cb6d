# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts esptool's stub loader, at a higher speed than the ROM's where that can be done.

At 115200 baud its 6.7 kB take 0.6 s, the largest fixed cost of a session. The ROM can change its
speed as well (esptool's serial protocol, CHANGE_BAUDRATE), where it is known at which speed the
stub loader greets then. Whether a line holds a speed is seen by each session anew: nothing of it
is remembered.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from typing import Any

from ota_service.link import esptool_setup  # noqa: F401  (before esptool)
from ota_service.link.serial_port import ROM_BAUD

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.loader import DEFAULT_TIMEOUT, ESPLoader, StubFlasher  # isort: skip
from esptool.util import FatalError  # isort: skip

GREETS_AT: Mapping[str, int | None] = {
    "ESP32": ROM_BAUD,
    "ESP32-C3": None,
    "ESP32-C6": None,
    "ESP32-H2": None,
    "ESP32-S3": None,
}
"""Chip -> the speed of its stub loader's first word, where the ROM had another one; None: that one.

ESP32: it sets the UART to what the ROM's structure says, and CHANGE_BAUDRATE does not change that
(measured on Espressif's ROM: the UART's divider is that of 115200 behind MEM_END). The others leave
the UART as it is (espressif/esp-flasher-stub 1.4.1, main.c). The ESP32-S2's and the ESP32-P4's do
as the ESP32's, and what their ROMs' structures say then is not known: they are not sent faster.
"""
FASTEST_START_BAUD = 921_600
"""What the ROM is asked for at the most. Its estimate of the crystal makes higher speeds a gamble
(esptool, issue 365)."""
CRYSTAL_TOLERANCE = 0.015
"""How far the ROM's estimate may be off before its speed is left alone."""
BLOCK_BYTES = 0x400
"""What is sent to the ROM at once. It checks each block by one byte, so damage that makes up for
itself in that byte must be all that there is in a block, and nothing may be wrong in the others."""
SETTLE_S = 0.01
"""What the chip and a bridge are given to change their speed, before the first of the tries."""
PROOF_TIMEOUT_S = 0.25
"""How long one answer at a new speed is waited for, against milliseconds that it takes."""
PROOF_TRIES = 2
_GREETING = b"OHAI"
_GREETING_TIMEOUT_S = 0.1
"""The stub loader greets when it has set its clocks, some 10 ms after its start. A port over the
network may be set to that speed too late to hear it."""


def start_stub(esp: Any, baud: int, *, fast: bool = True) -> Any:
    """Send the stub loader to a chip's ROM and start it; esptool's object for it.

    baud: the highest speed at which it may be sent. fast: False: it is sent at the ROM's speed.
    The port is left at the speed at which it answers.
    Raises FatalError; the chip must then be reset.
    """
    baud = min(baud, FASTEST_START_BAUD)
    crystal = _crystal_error(esp) if fast and baud > ROM_BAUD and _may_go_fast(esp) else None
    if crystal is None or abs(crystal - 1) > CRYSTAL_TOLERANCE:
        stub = cmds.run_stub(esp)
        if not stub.IS_STUB:
            raise FatalError("The stub loader could not be started on the chip")
        return stub
    _set_baud(esp, int(baud * crystal), baud, 0)
    esp.ESP_RAM_BLOCK = min(BLOCK_BYTES, esp.ESP_RAM_BLOCK)
    code = StubFlasher(esp)
    for data, at in ((code.text, code.text_start), (code.data, code.data_start)):
        if data is not None:
            esp._upload_segment(data, at)
    esp.mem_finish(code.entry)
    esp._port.baudrate = GREETS_AT[esp.CHIP_NAME] or baud
    stub = esp.STUB_CLASS(esp)
    if not _hears_greeting(esp):
        prove_speed(stub)
    return stub


def _may_go_fast(esp: Any) -> bool:
    """Not under secure boot on an S3, whose ROM starts it by a detour of esptool's."""
    known = esp.CHIP_NAME in GREETS_AT and not esp.sync_stub_detected
    return known and not (esp.CHIP_NAME == "ESP32-S3" and esp.get_secure_boot_enabled())


def _crystal_error(esp: Any) -> float:
    """What the ROM takes an ESP32's crystal for, as a part of what it is: 40 or 26 MHz.

    The ROM makes its divider from the estimate, so it must be asked for a speed that is as wrong
    (esptool 5.6.0, targets/esp32.py, `change_baud`). Other ROMs know their crystal.
    """
    if esp.CHIP_NAME != "ESP32":
        return 1.0
    estimate = esp.get_rom_cal_crystal_freq()
    return float(estimate / (40_000_000 if estimate > 33_000_000 else 26_000_000))


def _hears_greeting(esp: Any) -> bool:
    esp._port.timeout = _GREETING_TIMEOUT_S
    try:
        return bool(esp.read() == _GREETING)
    except FatalError:
        return False
    finally:
        esp._port.timeout = DEFAULT_TIMEOUT


def change_baud(esp: Any, baud: int) -> None:
    """Change the stub loader's speed, and see that it answers at it; raises FatalError."""
    _set_baud(esp, baud, baud, esp._port.baudrate)


def _set_baud(esp: Any, asked: int, baud: int, old: int) -> None:
    try:
        esp.command(esp.ESP_CMDS["CHANGE_BAUDRATE"], struct.pack("<II", asked, old))
        esp._port.baudrate = baud
    except (ValueError, NotImplementedError, OSError) as error:  # where the port cannot
        raise FatalError(f"the port cannot be set to {baud} baud") from error
    time.sleep(SETTLE_S)
    prove_speed(esp)


def prove_speed(esp: Any) -> None:
    """See that the chip answers at the port's speed; raises FatalError."""
    for tries in reversed(range(PROOF_TRIES)):
        esp.flush_input()
        try:
            esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR, timeout=PROOF_TIMEOUT_S)
        except FatalError:
            if not tries:
                raise
        else:
            return
