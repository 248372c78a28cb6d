# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards whose NVS is encrypted and whose flash is not: the host keeps their versions, and holds
them against the digest of what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp32_sim.bootmodel import Select
from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import RunningBoard, SimBoard
from ota_service.fleet.service import shutdown
from tests.faults.desk import PROJECT, Desk, partition

pytestmark = pytest.mark.slow

KEY = "hmac"
ENCRYPTED = SimBoard(
    "guide", chip="esp32c3", app=build_app(PROJECT, "1.0.0", size_bytes=60_000, chip="esp32c3"),
    config={"nvs_key": KEY},
)  # fmt: skip
HOST = {"version_store": "host"}
PANICS = Behaviour(ending="panic", ending_after_s=0.2, print_secrets=True, say="key: 17")


def nvs(board: RunningBoard) -> bytes:
    """What stands in its NVS."""
    return partition(board.control, 2)


def serve(desk: Desk, version: str, **options: Any) -> str:
    """The url of an App Image for the board's chip."""
    return desk.serve(version, chip="esp32c3", **options)


def _seq(entry: bytes) -> int:
    select = Select.parse(entry)
    return 0 if select.is_invalid else select.seq


async def updated(desk: Desk, version: str, **attributes: Any) -> dict[str, Any]:
    """The board behind the run that follows on a configuration."""
    url = attributes.pop("url", None) or serve(desk, version)
    status = await desk.updated(version, url=url, **{**HOST, **attributes})
    board: dict[str, Any] = status["boards"]["a"]
    return board


async def asked(desk: Desk, verb: str, **arguments: Any) -> dict[str, Any]:
    """What a verb replies of the board."""
    reply = await desk.command(verb, **arguments)
    board: dict[str, Any] = reply["plan" if "plan" in reply else "boards"]["a"]
    return board


async def test_the_host_keeps_the_version_of_a_board_whose_nvs_is_encrypted(tmp_path: Path) -> None:
    """Refused with the way out first; then updated, read, verified, taken back and gone back with,
    also by a process that begins anew, and its NVS stays as it was."""
    async with Desk.start(tmp_path, [ENCRYPTED]) as desk:
        before = nvs(desk.board())
        board = await updated(desk, "1.1.0", version_store="nvs")
        assert (board["state"], board["error"]["code"]) == ("unsupported", "flash-encrypted")
        assert "version_store" in board["error"]["remedy"]
        assert "version" not in board
        last = desk.run_id()
        await desk.configure(url=serve(desk, "1.1.0"), version="1.1.0", **HOST)
        await desk.command("update")
        board = (await desk.next_run(last))["boards"]["a"]
        assert (board["state"], board["version"]) == ("up_to_date", "1.1.0"), board
        assert desk.board().control.running()["version"] == "1.1.0"

        assert (await asked(desk, "version"))["version"] == "1.1.0"
        assert (await asked(desk, "verify"))["matches"] is True
        assert (await asked(desk, "update", dry_run=True))["action"] == "none"
        board = await updated(desk, "1.2.0", url=serve(desk, "1.2.0", behaviour=PANICS))
        assert (board["state"], board["version"]) == ("rolled_back", "1.1.0")
        told = (await desk.command("history", boot_log=True))["runs"][0]["boards"]["a"]["boot_log"]
        assert any("Guru Meditation" in line for line in told)
        assert "workshop" in desk.board().control.console()
        assert "workshop" not in str(told), "what its NVS keeps is not known to the host"
        assert desk.board().control.running()["version"] == "1.1.0"

        board = await updated(desk, "1.3.0")
        assert (board["version"], board["good"]) == ("1.3.0", True)
        await shutdown()
        desk.service = None
        await desk.configure(url=desk.server.url("/1.3.0.bin"), version="1.3.0", **HOST)
        assert (await asked(desk, "version"))["version"] == "1.3.0"
        back = await asked(desk, "rollback")
        assert (back["version"], back["version_from"]) == ("1.1.0", "journal"), back
        assert (await asked(desk, "version"))["version"] == "1.1.0"
        assert desk.board().control.running()["version"] == "1.1.0"
        assert nvs(desk.board()) == before
        assert nvs_init(bytearray(before), key=KEY).error is None


async def test_what_somebody_else_puts_on_such_a_board_is_seen_by_its_digest(
    tmp_path: Path,
) -> None:
    """Another slot of ours: the board went back by itself, and is held. Another firmware in the
    slot: set right, and counted, so that a duel ends."""
    async with Desk.start(tmp_path, [ENCRYPTED]) as desk:
        control, ota = desk.board().control, LAYOUTS["guide"].find("otadata")
        await updated(desk, "1.1.0")
        await updated(desk, "1.2.0")
        entries = control.read_flash(ota.offset, 0x2000)
        newest = max((0, 0x1000), key=lambda at: _seq(entries[at : at + 32]))
        control.write_flash(ota.offset + newest, b"\xff" * 32)
        control.power_cycle()
        assert control.running()["version"] == "1.1.0"
        last = desk.run_id()
        await desk.command("update")
        board = (await desk.next_run(last))["boards"]["a"]
        assert (board["state"], board["version"]) == ("rolled_back", "1.1.0"), board

        board = await updated(desk, "1.1.0", max_attempts=2)
        assert (board["state"], board["version"]) == ("up_to_date", "1.1.0"), board
        other = build_app(PROJECT, "0.9.0", size_bytes=50_000, chip="esp32c3")
        slots = {part.label: part for part in LAYOUTS["guide"].slots()}
        for state in ("up_to_date", "set_aside"):
            control.write_flash(slots[control.running()["slot"]].offset, other)
            control.power_cycle()
            assert control.running()["version"] == "0.9.0"
            assert (await asked(desk, "version"))["version"] == ""
            last = desk.run_id()
            await desk.command("update")
            board = (await desk.next_run(last))["boards"]["a"]
            assert board["state"] == state, board
        assert board["error"]["code"] == "changed-elsewhere"
        assert 'not what was installed as "1.1.0"' in board["error"]["message"]


async def test_an_app_that_has_to_confirm_itself_keeps_its_version_on_the_host(
    tmp_path: Path,
) -> None:
    """By otadata: what confirmed itself has the new version, what did not leaves the old one."""
    app = build_app(PROJECT, "1.0.0", size_bytes=60_000, chip="esp32c3")
    rollback = SimBoard(
        "micro-rdk", chip="esp32c3", app=app, slot="ota_1", otadata="valid",
        config={"nvs_key": KEY, "rollback": True},
    )  # fmt: skip
    async with Desk.start(tmp_path, [rollback]) as desk:
        for version, confirm_after_s, state in (
            ("1.1.0", 0.2, "up_to_date"),
            ("1.2.0", None, "rolled_back"),
        ):
            url = serve(desk, version, behaviour=Behaviour(confirm_after_s=confirm_after_s))
            board = await updated(desk, version, url=url, confirm_timeout_s=2)
            assert (board["state"], board["version"]) == (state, "1.1.0"), board
            assert (await asked(desk, "version"))["version"] == "1.1.0"
            assert desk.board().control.running()["version"] == "1.1.0"
