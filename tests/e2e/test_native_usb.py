# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards on their own USB, through the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour
from esp32_sim.process import SimBoard
from tests.support.rig import NAME, Rig

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "usb": "serial-jtag",
    "usb_leaves_at": "every-reset",
    "usb_back_s": 0.2,
}


async def test_two_boards_that_swap_their_names_at_each_reset(tmp_path: Path) -> None:
    """Each gets its firmware under whatever name it has, is found again by its MAC for the next
    one, and goes back where it panics; their coming and going starts nothing by itself."""
    boards = [SimBoard("guide", chip="esp32c3", config=CONFIG) for _ in range(2)]
    talks = Behaviour(tick_s=0.2)
    async with Rig.start(tmp_path, boards) as rig:
        a, b = rig.board("a"), rig.board("b")
        a.control.running()
        b.control.running()
        a.control.configure(usb_name=b.dir.name)
        b.control.configure(usb_name=a.dir.name)
        url = rig.serve("1.1.0", chip="esp32c3", behaviour=talks)
        await rig.configure(url=url, version="1.1.0", boot_timeout_s=2)
        status = await rig.settled("1.1.0")
        shown = status["boards"]
        assert {n: (s["state"], s["version"]) for n, s in shown.items()} == {
            "a": ("up_to_date", "1.1.0"),
            "b": ("up_to_date", "1.1.0"),
        }, status
        assert (shown["a"]["mac"], shown["b"]["mac"]) == (a.mac, b.mac)
        assert a.control.running()["version"] == b.control.running()["version"] == "1.1.0"

        before = await rig.run_id()
        panics = Behaviour(tick_s=0.2, ending="panic", ending_after_s=1.0)
        pinned = {
            "url": rig.serve("1.2.0-bad", chip="esp32c3", behaviour=panics),
            "version": "1.2.0-bad",
        }
        url = rig.serve("1.2.0", chip="esp32c3", behaviour=talks)
        await rig.configure(url=url, version="1.2.0", boot_timeout_s=2, pins={"b": pinned})
        status = await rig.next_run(before)
        shown = status["boards"]
        assert {n: (s["state"], s["version"], s["port"]) for n, s in shown.items()} == {
            "a": ("up_to_date", "1.2.0", b.url),
            "b": ("rolled_back", "1.1.0", a.url),
        }, status
        assert a.control.running()["version"] == "1.2.0"
        assert b.control.running()["version"] == "1.1.0"

        last = await rig.run_id()
        await rig.module.wait_status(NAME, lambda s: s["state"] == "idle")
        opened = a.control.counters()["opened"]
        reply = await rig.command("version", boards=["a"], wait_s=30)
        assert reply["boards"]["a"]["version"] == "1.2.0"
        assert a.control.counters()["opened"] > opened
        assert await rig.run_id() == last
