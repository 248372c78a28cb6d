# SPDX-License-Identifier: GPL-3.0-or-later
"""Prepares esptool for use as a library: no configuration files, no output, own resets.

Must be imported before esptool: it reads `esptool.cfg`, `setup.cfg` and `tox.ini` from the
working directory when it is imported (esp32.md, "Talking to the chip").
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import Any

os.environ.setdefault("ESPTOOL_CFGFILE", os.devnull)

from esp_pylib.logger import EspLog, EspLogBase
from esp_pylib.serial_reset import hard_reset
from esptool import loader
from esptool.loader import DEFAULT_TIMEOUT, MAX_TIMEOUT, ESPLoader
from esptool.reset import ResetStrategy
from esptool.util import FatalError

from ota_service.formats.image import xor
from ota_service.link.attachment import attachment

_LOGGER = logging.getLogger("ota_service.esptool")


class _QuietLog(EspLogBase):
    """esptool's messages as debug lines of ours, with the name of the board's thread.

    esptool has one global logger, so the output of boards would mix on a terminal. Its trace
    shows whole packets, credentials included, and is never turned on.
    """

    def print(self, *args: Any, **_: Any) -> None:
        text = "".join(str(arg) for arg in args).strip()
        if text and _LOGGER.isEnabledFor(logging.DEBUG):
            _LOGGER.debug("[%s] %s", threading.current_thread().name, text)

    note = warn = err = debug = hint = print

    def progress_bar(self, *args: Any, **kwargs: Any) -> None:
        pass

    def set_verbosity(self, verbosity: Any) -> None:
        pass


_standard_resets = ESPLoader._construct_reset_strategy_sequence
_standard_restart = ESPLoader.hard_reset


def _resets(self: Any, mode: str) -> Any:
    """What resets this board. For a bridge's device esptool tries several ways in turn."""
    ways = attachment(self._port).resets(self._port)
    return _standard_resets(self, mode) if ways is None else ways


def _restart(self: Any, uses_usb: bool = False) -> None:
    """esptool opens a port that the reset takes away again by its old name, and resets whatever
    is there then once more."""
    if attachment(self._port).may_return:
        hard_reset(self._port)
    else:
        _standard_restart(self, uses_usb)


def _usb_ids(self: Any) -> tuple[int | None, int | None]:
    """VID and PID of the port: esptool lists all of the machine's for that, and knows no urls."""
    info = attachment(self._port).info
    return (info.vid, info.pid) if info is not None else (None, None)


MAX_ANSWER_BYTES = 16_384
"""No answer is longer: of flash come 4 KiB at a time, of which SLIP may double each byte."""


_slip_reader, _command = loader.slip_reader, ESPLoader.command


class _Answers:
    """esptool's reader of answers, which a port that sends without end would never leave.

    Each answer has no more bytes and no more time than one needs. until_s: when the last of those
    that are waited for must have come, by the monotonic clock.
    """

    def __init__(self, port: Any, trace: Any) -> None:
        self._port = port
        self._answers = _slip_reader(self, trace)
        self._left_bytes, self._due_s = 0, math.inf
        self.until_s = math.inf

    def __next__(self) -> bytes:
        self._left_bytes = MAX_ANSWER_BYTES
        whole_s = MAX_ANSWER_BYTES * 10 / self._port.baudrate
        self._due_s = min(self.until_s, time.monotonic() + (self._port.timeout or 0.0) + whole_s)
        return bytes(next(self._answers))

    def inWaiting(self) -> int:
        """As esptool asks."""
        return min(int(self._port.in_waiting), MAX_ANSWER_BYTES // 4)

    def read(self, size_bytes: int) -> bytes:
        """As esptool asks."""
        if self._left_bytes < 0 or time.monotonic() > self._due_s:
            raise FatalError("What the board sends is no answer, and does not end")
        data = bytes(self._port.read(size_bytes))
        self._left_bytes -= len(data)
        return data


def _within_time(
    esp: Any,
    op: int | None = None,
    data: bytes = b"",
    chk: int = 0,
    wait_response: bool = True,
    timeout: float = DEFAULT_TIMEOUT,
) -> Any:
    """esptool's `command`, which takes a hundred answers to other requests, each in its own time.
    Those were on their way already: the time of two is enough for all."""
    reader = esp._slip_reader
    reader.until_s = time.monotonic() + min(timeout, MAX_TIMEOUT) + DEFAULT_TIMEOUT
    try:
        return _command(esp, op, data, chk, wait_response, timeout)
    finally:
        reader.until_s = math.inf


def checksum(data: bytes, state: int = ESPLoader.ESP_CHECKSUM_MAGIC) -> int:
    """The loaders' checksum, the XOR of all bytes.

    esptool's own goes byte by byte in Python: 1 ms for a block, which many boards add up.
    """
    return state ^ xor(data)


def install() -> None:
    """Make esptool quiet and quick, and our resets its own; idempotent."""
    if not isinstance(EspLog.instance, _QuietLog):
        EspLog.set_logger(quiet := _QuietLog())
        ResetStrategy.print_once = quiet.print  # it has kept the logger of its import
    ESPLoader._construct_reset_strategy_sequence = _resets
    ESPLoader.hard_reset = _restart
    ESPLoader.get_usb_vid_pid = _usb_ids
    ESPLoader.command = _within_time
    loader.slip_reader = _Answers
    ESPLoader.checksum = staticmethod(checksum)
    # Hex dumps are formatted for the trace also while that is off: 15 to 25 ms for each block of
    # 16 KiB, during which the wire is idle.
    loader.HexFormatter = lambda *_: ""
