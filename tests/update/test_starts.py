# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a watched log's next bytes are waited for, and what a silent port tells."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ota_service.update.boot import BootMonitor, BootRules, Expected
from ota_service.update.starts import READ_TIMEOUT_S, SHORTEST_S, Starts, read_timeout_s
from tests.prove.board import Notes

LOGGER = logging.getLogger("tests")


@pytest.mark.parametrize(
    ("due_s", "now_s", "wait_s"),
    [
        (None, 3.0, READ_TIMEOUT_S),
        (5.0, 3.0, READ_TIMEOUT_S),
        (5.0, 4.98, 0.02),
        (5.0, 4.9999, SHORTEST_S),
        (5.0, 5.0, READ_TIMEOUT_S),
        (5.0, 9.0, READ_TIMEOUT_S),
    ],
)
def test_only_the_last_wait_before_a_verdict_is_short(
    due_s: float | None, now_s: float, wait_s: float
) -> None:
    """An app that runs but has yet to print what boot_expect asks for must not make it spin."""
    assert read_timeout_s(due_s, now_s) == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("printed", "port_went", "silent"),
    [
        (b"rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n", False, True),
        (b"I (31) boot: ESP-IDF v5.1\r\n", False, False),
        (b"rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n", True, None),
        (b"", False, None),
    ],
)
def test_a_bootloader_is_silent_only_where_it_could_have_been_heard(
    monkeypatch: pytest.MonkeyPatch, printed: bytes, port_went: bool, silent: bool | None
) -> None:
    """That is remembered for good: a port that went, or on which nothing at all came, is no proof
    of it."""
    monitor = BootMonitor(Expected(), 3.0, 3.0)
    if printed:
        monitor.feed(printed, 0.1)
    if port_went:
        monitor.port_left(0.2)
    none: Any = None
    starts = Starts(none, none, "a", BootRules(), Notes(), LOGGER)
    monkeypatch.setattr(starts, "_once", lambda why, until, stopped: monitor)
    assert starts.first_look().silent is silent
