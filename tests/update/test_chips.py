# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole path on each chip: look, update, one that panics, back by a person, the whole flash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.chips import CHIPS
from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app, build_bootloader
from esp32_sim.layouts import LAYOUTS, Layout, Partition, encode_table
from esp32_sim.process import SimBoard
from ota_service.formats.merge import merge
from ota_service.link.at_port import at_port
from ota_service.update.flash_merged import FlashJob, run_flash
from ota_service.update.flash_plan import check_merged
from ota_service.update.session import Job
from tests.flash.in_memory import Hooks
from tests.update.test_native_usb import EVERY, PANICS, boards, job, run, tag

pytestmark = pytest.mark.slow

QUICK_TALK = Behaviour(tick_s=0.1)
WATCHED_S = 0.2


JTAG = {"usb": "serial-jtag"}
ATTACHED: dict[str, dict[str, Any]] = {
    "esp32": {},
    "esp32s2": {"usb": "otg"},
    "esp32s3": {**JTAG, **EVERY},
    "esp32c6": JTAG,
}
"""How each chip is attached here, one of each kind; `make prove` has them all."""


@pytest.mark.parametrize("chip", ATTACHED)
def test_the_whole_path(tmp_path: Path, chip: str) -> None:
    """By each chip's own registers, eFuses, bootloader and log, over its own port where it has
    one; confirmed where the first lines of its log are not lost with the port."""
    facts, config = CHIPS[chip], ATTACHED[chip]
    seen = "usb_leaves_at" not in config
    with boards(tmp_path, SimBoard("guide", chip=chip, config=config)) as (board,):
        found = run(board.url, Job("board", course="look")).found
        assert found is not None
        assert found.problem is None
        assert (found.chip.name, found.chip.chip_id, found.chip.mac) == (
            facts.title, facts.id, board.mac,
        )  # fmt: skip
        assert found.chip.flash_bytes == LAYOUTS["guide"].flash_bytes

        wanted = job(chip)
        wanted = replace(wanted, boot=replace(wanted.boot, stable_s=WATCHED_S))
        outcome = run(board.url, wanted)
        assert (outcome.end, outcome.confirmed, outcome.error) == ("up_to_date", seen, None)
        assert board.control.state()["plugged"], "its port was waited for"
        assert (board.control.counters().get("unplugged", 0) > 0) is not seen
        assert (board.control.running()["version"], tag(board)) == ("2.0.0", "2.0.0")

        outcome = run(board.url, job(chip, "3.0.0", PANICS))
        assert (outcome.end, tag(board)) == ("rolled_back", "2.0.0")
        assert "Core  0 panic'ed" in str(outcome.error), outcome.error

        outcome = run(board.url, replace(wanted, image=None, version="", course="rollback"))
        assert outcome.end == "rolled_back"
        assert board.control.running()["version"] != "2.0.0"

        data = merge(
            bootloader=build_bootloader(chip=chip, flash_size_code=3),
            table=encode_table(LAYOUTS["guide"].partitions),
            app=build_app(version="4.0.0", size_bytes=30_000, chip=chip, behaviour=QUICK_TALK),
        ).data
        flash = FlashJob(
            "board", check_merged(data), True, state_dir=tmp_path, confirm=board.mac,
            boot=wanted.boot,
        )  # fmt: skip
        with at_port(board.url, "test") as port:
            written = run_flash(port, flash, Hooks())
        assert (written.error, written.confirmed) == (None, seen)
        assert board.control.running()["version"] == "4.0.0"
        assert tag(board) == outcome.version


HIGH = Layout(
    "high",
    32 << 20,
    (
        Partition("nvs", 1, 2, 0x9000, 0x6000),
        Partition("otadata", 1, 0, 0xF000, 0x2000),
        Partition("ota_0", 0, 0x10, 0x20000, 0x100000),
        Partition("ota_1", 0, 0x11, 0x1000000, 0x100000),
    ),
)
"""The second slot is above what 24 bits of address reach."""


@pytest.mark.parametrize("chip", ["esp32s3", "esp32c3"])
def test_flash_above_16_mib(tmp_path: Path, chip: str) -> None:
    """Written by commands with 32 bits of address where the stub loader has them, too; else
    refused before anything is written, by whose address it could not be."""
    board_of = SimBoard(flash=bytes(make_flash(HIGH, chip=chip)), chip=chip)
    with boards(tmp_path, board_of) as (board,):
        before = (board.dir / "flash.bin").read_bytes()
        if chip == "esp32s3":
            outcome = run(board.url, job(chip))
            assert (outcome.end, outcome.slot and outcome.slot.name) == ("up_to_date", "ota_1")
            assert board.control.running()["version"] == "2.0.0"
            assert board.control.running()["offset"] == 0x1000000
            return
        outcome = run(board.url, job(chip))
        assert outcome.error is not None
        assert (outcome.end, outcome.error.code) == ("refused", "flash-size")
        assert "reach to 0x1100000" in outcome.error.message
        board.control.running()
        assert (board.dir / "flash.bin").read_bytes() == before
