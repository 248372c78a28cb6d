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
import threading
import time
from typing import Any

from ota_service.board import esptool_setup  # noqa: F401  (before esptool)

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.loader import DEFAULT_TIMEOUT, ESPLoader, StubFlasher  # isort: skip
from esptool.util import FatalError  # isort: skip

ROM_BAUD = 115_200
FASTEST_START_BAUD = 921_600
"""The ROM estimates its crystal, and may miss speeds above 1 Mbaud (esptool, issue 365)."""
SETTLE_S = 0.01
"""What the chip and a bridge are given to change their speed, before the first of the tries."""
PROOF_TIMEOUT_S = 0.25
"""How long one answer at a new speed is waited for, against milliseconds that it takes."""
PROOF_TRIES = 2
_GREETING = b"OHAI"
_GREETING_TIMEOUT_S = 0.25
"""The stub loader greets 40 ms after its start: it sets clocks, and waits for them, first."""


class _Ways:
    """What was found in this process: ports on which a fast start failed, and the chips whose stub
    loader starts at the ROM's first speed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slow: set[str] = set()
        self._at_rom_baud: set[str] = set()

    def fast(self, port: str) -> bool:
        with self._lock:
            return port not in self._slow

    def failed(self, port: str) -> None:
        with self._lock:
            self._slow.add(port)

    def greets_at_rom_baud(self, chip: str) -> bool:
        with self._lock:
            return chip in self._at_rom_baud

    def learn(self, chip: str) -> None:
        with self._lock:
            self._at_rom_baud.add(chip)


_WAYS = _Ways()


def start_stub(esp: Any, carried_baud: int | None) -> Any:
    """Send the stub loader to a chip's ROM and start it; esptool's object for it.

    carried_baud: a speed at which this port carried a whole slot to this very board without an
    error; None: none is known, so the ROM's is used. The ROM checks each block by one byte only.
    Raises FatalError; the chip must then be reset.
    """
    port = str(esp._port.name)
    fast = carried_baud is not None and carried_baud > ROM_BAUD and _WAYS.fast(port)
    if not fast or esp.sync_stub_detected or esp.CHIP_NAME != "ESP32":
        return _started(cmds.run_stub(esp))
    assert carried_baud is not None
    try:
        change_baud(esp, min(carried_baud, FASTEST_START_BAUD))
        _upload(esp)
        return _greeted(esp)
    except FatalError:
        _WAYS.failed(port)
        raise


def _started(esp: Any) -> Any:
    if not esp.IS_STUB:
        raise FatalError("The stub loader could not be started on the chip")
    return esp


def _upload(esp: Any) -> None:
    stub = StubFlasher(esp)
    for data, at in ((stub.text, stub.text_start), (stub.data, stub.data_start)):
        if data is not None:
            esp._upload_segment(data, at)
    esp.mem_finish(stub.entry)


def _greeted(esp: Any) -> Any:
    """The started stub loader at the port's speed, or else at the ROM's first one."""
    if _WAYS.greets_at_rom_baud(esp.CHIP_NAME):
        esp._port.baudrate = ROM_BAUD
    if _hears_greeting(esp):
        return esp.STUB_CLASS(esp)
    esp._port.baudrate = ROM_BAUD
    stub = esp.STUB_CLASS(esp)
    prove_speed(stub)
    _WAYS.learn(esp.CHIP_NAME)
    return stub


def _hears_greeting(esp: Any) -> bool:
    esp._port.timeout = _GREETING_TIMEOUT_S
    try:
        return bool(esp.read() == _GREETING)
    except FatalError:
        return False
    finally:
        esp._port.timeout = DEFAULT_TIMEOUT


def change_baud(esp: Any, baud: int) -> None:
    """Change the speed, and see that the chip answers at it; raises FatalError."""
    old = esp._port.baudrate if esp.IS_STUB else 0
    try:
        esp.command(esp.ESP_CMDS["CHANGE_BAUDRATE"], struct.pack("<II", baud, old))
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
