# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts esptool's stub loader, at a higher speed than the ROM's where the line holds it.

At 115200 baud its 6.7 kB take 0.6 s, the largest fixed cost of a session. The ROM can change its
speed as well (esptool's serial protocol, CHANGE_BAUDRATE). The stub loader goes on at the speed
that the ROM's UART structure says (espressif/esp-flasher-stub 1.4.1, main.c), and whether that
command changes the structure is not documented; so both is tried, and what was found is
remembered. Where nothing answers, the board is reset and started at 115200, from then on.
"""

from __future__ import annotations

import struct
import time
from typing import Any

from ota_service.link import esptool_setup  # noqa: F401  (before esptool)
from ota_service.link.serial_port import ROM_BAUD

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.loader import DEFAULT_TIMEOUT, ESPLoader, StubFlasher  # isort: skip
from esptool.util import FatalError  # isort: skip

FASTEST_START_BAUD = 921_600
"""What the ROM is asked for at the most. Its estimate of the crystal makes higher speeds a gamble
(esptool, issue 365)."""
CRYSTAL_TOLERANCE = 0.015
"""How far the ROM's estimate may be off: the stub loader starts with a speed that is as wrong."""
SETTLE_S = 0.01
"""What the chip and a bridge are given to change their speed, before the first of the tries."""
PROOF_TIMEOUT_S = 0.25
"""How long one answer at a new speed is waited for, against milliseconds that it takes."""
PROOF_TRIES = 2
_GREETING = b"OHAI"
_GREETING_TIMEOUT_S = 0.25
"""The stub loader greets when it has set its clocks, some 10 ms after its start."""


SLOW_STARTS: set[str] = set()
"""Ports on which a fast start failed."""
AT_ROM_BAUD: set[str] = set()
"""MACs of boards whose stub loader was found to start at the ROM's first speed."""


def start_stub(esp: Any, mac: str, carried_baud: int | None) -> Any:
    """Send the stub loader to a chip's ROM and start it; esptool's object for it.

    mac: of the board. carried_baud: a speed at which this port carried a whole slot to this very
    board without an error; None: none is known, so the ROM's is used. The ROM checks each block
    by one byte only.
    Raises FatalError; the chip must then be reset.
    """
    port = str(esp._port.name)
    fast = carried_baud is not None and carried_baud > ROM_BAUD and port not in SLOW_STARTS
    if not fast or esp.sync_stub_detected or esp.CHIP_NAME != "ESP32":
        return _started(cmds.run_stub(esp))
    assert carried_baud is not None
    baud = min(carried_baud, FASTEST_START_BAUD)
    crystal = _crystal_error(esp)
    if abs(crystal - 1) > CRYSTAL_TOLERANCE:
        return _started(cmds.run_stub(esp))
    try:
        return _started_fast(esp, mac, baud, int(baud * crystal))
    except Exception:
        SLOW_STARTS.add(port)
        raise


def _started(esp: Any) -> Any:
    if not esp.IS_STUB:
        raise FatalError("The stub loader could not be started on the chip")
    return esp


def _crystal_error(esp: Any) -> float:
    """The ROM's estimate of the crystal, as a part of what it is: 40 or 26 MHz.

    The ROM makes its divider from the estimate, so it must be asked for a speed that is as wrong
    (esptool 5.6.0, targets/esp32.py, `change_baud`).
    """
    estimate = esp.get_rom_cal_crystal_freq()
    return float(estimate / (40_000_000 if estimate > 33_000_000 else 26_000_000))


def _started_fast(esp: Any, mac: str, baud: int, asked: int) -> Any:
    """The stub loader, sent at `baud`, for which the ROM is asked for the speed `asked`."""
    _set_baud(esp, asked, baud, 0)
    stub = StubFlasher(esp)
    for data, at in ((stub.text, stub.text_start), (stub.data, stub.data_start)):
        if data is not None:
            esp._upload_segment(data, at)
    esp.mem_finish(stub.entry)
    started = _greeted(esp, mac, baud)
    if esp._port.baudrate == baud and asked != baud:
        change_baud(started, baud)  # it took what the ROM was asked for
    return started


def _greeted(esp: Any, mac: str, baud: int) -> Any:
    """The started stub loader, at the speed at which it was sent or at the ROM's first one."""
    speeds = [baud, ROM_BAUD]
    if mac in AT_ROM_BAUD:
        speeds.reverse()
    esp._port.baudrate = speeds[0]
    if _hears_greeting(esp):
        return esp.STUB_CLASS(esp)
    for last, speed in enumerate(speeds):
        esp._port.baudrate = speed
        stub = esp.STUB_CLASS(esp)
        try:
            prove_speed(stub)
        except FatalError:
            if last:
                raise
        else:
            (AT_ROM_BAUD.add if speed == ROM_BAUD else AT_ROM_BAUD.discard)(mac)
            return stub
    raise AssertionError("not reached")


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
