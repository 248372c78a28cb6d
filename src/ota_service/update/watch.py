# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a board's log from its port and feeds it to a `BootMonitor`, in real time.

The port stays open from before the reset, with DTR and RTS released. Ports on native USB vanish
at a reset and come back: they are opened again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from serial import SerialBase, SerialException

from ota_service.errors import OtaError
from ota_service.update.boot import BootMonitor

READ_TIMEOUT_S = 0.05
SHORTEST_S = 0.001
RETURN_TIMEOUT_S = 5.0
"""How long a port on native USB may take to come back after a reset."""

ASK_AFTER_S = 2.0
"""A board that has printed nothing by then (or in half of its time, where that is less) is asked
whether it is in download mode still."""

_RETRY_S = 0.1


def watch(
    port: SerialBase,
    monitor: BootMonitor,
    *,
    until: Callable[[BootMonitor], bool] = lambda monitor: monitor.verdict is not None,
    stopped: Callable[[], bool] = lambda: False,
    limit_s: float | None = None,
    in_download: Callable[[], bool] | None = None,
) -> bool:
    """Read until `until` holds, `stopped` says so, or `limit_s` are over; False where it was
    stopped.

    in_download: asks the chip whether it is in download mode still; called once, where it has
    printed nothing. Raises OtaError `link-lost` where the port is gone and does not come back.
    """
    start_s = time.monotonic()
    ask_after_s = min(ASK_AFTER_S, monitor.timeout_s / 2)
    timeout_s = -1.0
    while not until(monitor):
        if stopped():
            return False
        wait_s = read_timeout_s(monitor.due_s, time.monotonic() - start_s)
        try:
            if wait_s != timeout_s:
                port.timeout = timeout_s = wait_s
            data = port.read(max(1, min(port.in_waiting, 4096)))
        except (SerialException, OSError, TypeError) as error:
            # TypeError: pyserial's port object after its device vanished under a read
            _reopen(port, error)
            data = b""
        now_s = time.monotonic() - start_s
        if data:
            monitor.feed(data, now_s)
        else:
            if in_download is not None and not monitor.heard and now_s >= ask_after_s:
                monitor.in_download = in_download()
                in_download = None
            monitor.tick(now_s)
        if limit_s is not None and now_s >= limit_s:
            break
    return True


def read_timeout_s(due_s: float | None, now_s: float) -> float:
    """How long to wait for a log's next bytes: the last wait is a short one, so that the verdict
    comes when it is due. Past that (where boot_expect has yet to be met) nothing is due."""
    left_s = due_s - now_s if due_s is not None else 0.0
    return min(READ_TIMEOUT_S, max(SHORTEST_S, left_s)) if left_s > 0 else READ_TIMEOUT_S


def _reopen(port: SerialBase, error: BaseException) -> None:
    deadline_s = time.monotonic() + RETURN_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(Exception):
            port.close()
        try:
            port.open()
        except (SerialException, OSError):
            time.sleep(_RETRY_S)  # the device is made by the kernel: there is no event to await
        else:
            return
    raise OtaError(
        "link-lost", "The board's port went away while its start was watched."
    ) from error
