# SPDX-License-Identifier: GPL-3.0-or-later
"""A board whose bootloader looks for its table at 0x10000, and one with a damaging table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esp32_sim.factory import make_flash
from esp32_sim.images import build_app
from esp32_sim.layouts import LAYOUTS, Partition, encode_table
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import SimBoard, SimProcess
from tests.support.command import Call
from tests.support.command import call as call
from tests.support.elsewhere import PROJECT, layout_at, merged_at

AT = 0x10000
QUICK = ("--boot-timeout", "4", "--boot-stable", "0.5")


@pytest.mark.slow
def test_it_is_inspected_updated_and_flashed_like_any_other(call: Call, tmp_path: Path) -> None:
    """Over the real link; inspection says where the table is; the keys stay to the end."""
    app, whole = tmp_path / "app.bin", tmp_path / "whole.bin"
    app.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=60_000))
    whole.write_bytes(merged_at(AT))
    board = SimBoard(layout_at(AT), config={"table_offset": AT})
    with SimProcess(tmp_path / "boards", [board]) as sim:
        board_url, control = sim.boards[0].url, sim.boards[0].control
        told = json.loads(call("inspect", board_url, "--json").out)
        assert (told["table_offset"], told["version"]) == (AT, "1.0.0")
        assert told["running"]["slot"] == "ota_0"
        assert "problem" not in told
        shown = call("inspect", board_url)
        assert "at 0x10000, not at 0x8000" in shown.out

        below = control.read_flash(0, AT + 0x1000)
        done = call("update", board_url, "--file", str(app), *QUICK)
        assert done.code == 0, done.err + done.out
        assert control.running()["version"] == "1.1.0"
        assert control.read_flash(0, AT + 0x1000) == below

        place = layout_at(AT).find("nvs")
        before = nvs_init(bytearray(control.read_flash(place.offset, place.size))).items
        done = call(
            *("flash", board_url, str(whole), "--keep-nvs", "--state-dir", str(tmp_path / "state")),
            *("--boot-timeout-s", "4", "--boot-stable-s", "0.5", "--json"),
        )
        assert done.code == 0, done.err + done.out
        assert json.loads(done.out)["confirmed"] is True
        assert control.running()["version"] == "1.0.5"
        assert control.read_flash(0, AT + 0xC00) == whole.read_bytes()[: AT + 0xC00]
        assert nvs_init(bytearray(control.read_flash(place.offset, place.size))).items == before


@pytest.mark.slow
def test_a_table_with_a_slot_on_the_bootloader_writes_nothing(call: Call, tmp_path: Path) -> None:
    """Its ota_1 begins at address 0: an update by it would end the board."""
    app = tmp_path / "app.bin"
    app.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=20_000))
    parts = [part for part in LAYOUTS["guide"].partitions if part.label != "ota_1"]
    flash = make_flash("guide")
    flash[0x8000:0x8C00] = encode_table((*parts, Partition("ota_1", 0, 0x11, 0, 0x8000)))
    with SimProcess(tmp_path / "boards", [SimBoard("guide", flash=bytes(flash))]) as sim:
        board = sim.boards[0]
        for more in ((), ("--force",)):
            done = call("update", board.url, "--file", str(app), "--version", "2", *more, *QUICK)
            assert done.code != 0
            assert "partition-table-invalid" in done.out + done.err
        assert board.control.read_flash(0, len(flash)) == flash
