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
_END, _ESCAPE, _ESCAPED = b"\xc0", b"\xdb", (b"\xdb\xdc", b"\xdb\xdd")


class _Answers:
    """esptool's reader of answers, which takes each byte for itself, and would never leave a port
    that sends without end.

    Whole answers are cut out of what came in one step. Each has no more bytes and no more time
    than one needs; what is none is left to esptool's own reader, which has the words for it.
    until_s: when the last of those that are waited for must have come, by the monotonic clock.
    """

    def __init__(self, port: Any, trace: Any) -> None:
        self._port = port
        self._in_words = _slip_reader(self, trace)
        self._come = b""
        self._ended = False
        self.until_s = math.inf

    def __next__(self) -> bytes:
        """Raises FatalError where none came, and StopIteration from then on, as esptool's does."""
        if self._ended:
            raise StopIteration
        self._ended = True
        answer = self._unescaped(self._whole())
        self._ended = False
        return answer

    def _whole(self) -> bytes:
        port, come, left_bytes = self._port, self._come, MAX_ANSWER_BYTES
        whole_s = MAX_ANSWER_BYTES * 10 / port.baudrate
        due_s = min(self.until_s, time.monotonic() + (port.timeout or 0.0) + whole_s)
        end = come.find(_END, 1)
        while end < 0 and come[:1] in (b"", _END):
            if left_bytes < 0 or time.monotonic() > due_s:
                raise FatalError("What the board sends is no answer, and does not end")
            more = bytes(port.read(self._waiting() or 1))
            if not more and come:
                raise FatalError(f"Packet content transfer stopped (received {len(come)} bytes).")
            if not more:
                raise FatalError("No serial data received.")
            left_bytes -= len(more)
            end = (come + more).find(_END, max(1, len(come)))
            come += more
        self._come = come[end + 1 :] if end > 0 else b""
        return come[: end + 1] if end > 0 else come

    def _unescaped(self, whole: bytes) -> bytes:
        answer = whole[1:-1]
        escapes = answer.count(_ESCAPE)
        if whole[:1] == _END and not escapes:
            return answer
        if whole[:1] == _END and escapes == sum(map(answer.count, _ESCAPED)):
            return answer.replace(_ESCAPED[0], _END).replace(_ESCAPED[1], _ESCAPE)
        self._come = whole + self._come
        return bytes(next(self._in_words))

    def _waiting(self) -> int:
        return min(int(self._port.in_waiting), MAX_ANSWER_BYTES // 4)

    def inWaiting(self) -> int:
        """As esptool asks."""
        return len(self._come) or self._waiting()

    def read(self, size_bytes: int) -> bytes:
        """As esptool asks."""
        come, self._come = self._come, b""
        return come or bytes(self._port.read(size_bytes))


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
