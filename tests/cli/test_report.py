# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of `esp32-ota remote`: what a person reads in them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ota_service.cli.live import Live
from ota_service.cli.report import print_run, print_status

URL = "http://***@10.0.0.5:3001/app.bin"


def printed(status: dict[str, Any], columns: int) -> list[str]:
    """The lines of a status on a terminal of so many columns."""
    console = Console(file=io.StringIO(), width=columns, highlight=False, markup=False)
    with console.capture() as captured:
        print_status(console, status)
    return [line.rstrip() for line in captured.get().splitlines()]


def status_with(lab: dict[str, Any]) -> dict[str, Any]:
    """A board that goes to the service's version, and another."""
    running = {"slot": "ota_0", "project": "thermostat", "app_version": "1.2.2"}
    board = {"state": "outdated", "version": "1.2.2", "running": running, "port": "/dev/ttyUSB0"}
    return {
        "state": "idle",
        "target": {"url": URL, "version": "1.2.3"},
        "boards": {"kitchen": board, "lab": {**board, **lab}},
    }


@pytest.mark.parametrize("columns", [80, 120])
def test_a_pinned_board_stands_beside_the_version_that_it_goes_to(columns: int) -> None:
    """Its own, not the service's above the table; the others have none there."""
    target = {"url": URL, "version": "1.3.0-rc1"}
    lines = printed(status_with({"target": target}), columns)
    assert lines[0] == "version  1.2.3"
    (head,) = (line for line in lines if line.startswith("board"))
    assert head.split()[:5] == ["board", "state", "version", "pinned", "to"]
    (lab,) = (line for line in lines if line.startswith("lab"))
    assert lab.split()[:5] == ["lab", "outdated", "1.2.2", "1.3.0-rc1", "ota_0"]
    (kitchen,) = (line for line in lines if line.startswith("kitchen"))
    assert kitchen.split()[:4] == ["kitchen", "outdated", "1.2.2", "ota_0"]


def test_without_pinned_boards_there_is_no_such_column() -> None:
    """As it is for most."""
    assert not any("pinned" in line for line in printed(status_with({}), 80))


def test_a_start_that_says_nothing_is_told_wherever_a_board_is_shown() -> None:
    """In its status, at the end of a run, and while an update goes on without a terminal."""
    words = "starts, but says nothing: not confirmed"
    board = {"state": "up_to_date", "outcome": "up_to_date", "notice": words}
    assert f"lab: {words}" in printed(status_with(board), 80)
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    with console.capture() as captured, Live(console) as live:
        live.show({"boards": {"lab": board}})
        print_run(console, {"boards": {"lab": board}, "outcome": "succeeded"})
    lines = captured.get().splitlines()
    assert lines[0].split(maxsplit=1) == ["lab", f"up to date; {words}"]
    assert f"lab: {words}" in lines
