# SPDX-License-Identifier: GPL-3.0-or-later
"""One board from a program: looked at, planned for, updated, rolled back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from esp32_sim import Behaviour, RunningBoard, build_app
from esp32_sim.pytest_plugin import StartBoard
from ota_service import (
    Options,
    OtaError,
    Progress,
    inspect_board,
    load_firmware,
    plan_update,
    roll_back_board,
    update_board,
)
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import eventually

QUICK = Options(boot_timeout_s=4.0, boot_stable_s=0.5)


def image(folder: Path, version: str, *, seed: int = 0, behaviour: Behaviour | None = None) -> Path:
    """An App Image in a file."""
    path = folder / f"{version}.bin"
    app = build_app("thermostat", version, size_bytes=80_000, seed=seed, behaviour=behaviour)
    path.write_bytes(app)
    return path


async def in_app(board: RunningBoard) -> None:
    """Wait until its firmware runs."""

    async def state() -> str:
        return str((await asyncio.to_thread(board.control.state))["state"])

    await eventually(state, lambda now: now == "app")


@pytest.mark.slow
async def test_a_board_is_looked_at_and_left_as_it_was(esp32_boards: StartBoard) -> None:
    """Typed values, and the phases on the way; the board runs its firmware afterwards."""
    board = esp32_boards(layout="guide", version="1.2.2")
    phases: list[str] = []
    found = await inspect_board(board.url, on_progress=lambda at: phases.append(at.phase))
    assert (found.chip.mac, found.version) == (board.mac, "1.2.2")
    assert found.running.partition is not None
    assert found.running.partition.name == "factory"
    assert found.problem is None
    assert phases == ["connecting", "inspecting"]
    await in_app(board)


@pytest.mark.slow
async def test_a_plan_is_a_list_of_steps_and_writes_nothing(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """Also the reason of a board that cannot be updated."""
    board, other = esp32_boards(layout="guide", version="1.2.2"), esp32_boards(layout="no-ota")
    firmware = await load_firmware(image(tmp_path, "1.2.3"))
    made = await plan_update(board.url, firmware)
    assert (made.action, made.from_version, made.to_version) == ("write", "1.2.2", "1.2.3")
    assert [type(step).__name__ for step in made.steps][:2] == ["WriteSlot", "SealSlot"]
    same = await plan_update(board.url, firmware, "1.2.2")
    assert same.action == "none"
    refused = await plan_update(other.url, tmp_path / "1.2.3.bin")
    assert (refused.action, refused.code) == ("refuse", "no-ota-slots")
    assert board.control.running()["version"] == "1.2.2"


@pytest.mark.slow
async def test_a_board_is_updated_and_rolled_back(esp32_boards: StartBoard, tmp_path: Path) -> None:
    """From a url with progress; then back; a second update of the same does nothing."""
    board = esp32_boards(layout="micro-rdk", version="1.2.2")
    seen: list[Progress] = []
    async with FirmwareServer.start() as server:
        url = server.put("/app.bin", image(tmp_path, "1.2.3").read_bytes())
        done = await update_board(board.url, url, on_progress=seen.append, **QUICK)
        again = await update_board(board.url, url, "1.2.3", **QUICK)
    assert (done.outcome, done.action) == ("up_to_date", "write")
    assert (done.before, done.version, done.mac) == ("1.2.2", "1.2.3", board.mac)
    assert done.replaces == {"project": "micro-rdk-server", "by": "thermostat"}
    assert done.error is None
    assert done.seconds["booting"] > 0
    assert seen
    assert len(seen) == len(set(seen))
    assert again.action == "none"
    assert board.control.running()["version"] == "1.2.3"
    back = await roll_back_board(board.url, **QUICK)
    assert (back.slot, back.version) == ("ota_0", "1.2.2")
    assert board.control.running()["version"] == "1.2.2"


@pytest.mark.slow
async def test_a_firmware_that_does_not_start_is_an_error_with_a_remedy(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """And the board runs its old firmware, with its old version."""
    board = esp32_boards(layout="guide", version="1.2.2")
    panics = Behaviour(ending="panic", ending_after_s=0.2)
    with pytest.raises(OtaError) as caught:
        await update_board(board.url, image(tmp_path, "2.0", behaviour=panics), **QUICK)
    assert caught.value.code == "boot-failed"
    assert caught.value.remedy
    assert board.control.running()["version"] == "1.2.2"
    assert (await inspect_board(board.url)).version == "1.2.2"


@pytest.mark.slow
async def test_boards_are_updated_at_the_same_time(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """Each call stands for itself, and they share the folder of this process."""
    boards = [esp32_boards(layout="guide"), esp32_boards(layout="micro-rdk")]
    app = image(tmp_path, "3.1")
    done = await asyncio.gather(*(update_board(board.url, app, **QUICK) for board in boards))
    assert [report.outcome for report in done] == ["up_to_date", "up_to_date"]
    assert [board.control.running()["version"] for board in boards] == ["3.1", "3.1"]


@pytest.mark.slow
async def test_a_cancelled_task_leaves_the_board_in_its_firmware(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """A look and an update, in the middle of them."""
    board = esp32_boards(layout="guide", version="1.2.2", config={"timed": True})
    app = tmp_path / "app.bin"
    app.write_bytes(build_app("thermostat", "1.2.3", size_bytes=700_000))

    async def cancelled_at(phase: str, update: bool) -> None:
        reached = asyncio.Event()

        def told(at: Progress) -> None:
            if at.phase == phase and (not update or at.bytes_done):
                reached.set()

        work = (
            update_board(board.url, app, on_progress=told, **QUICK)
            if update
            else inspect_board(board.url, on_progress=told)
        )
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await in_app(board)
        assert board.control.running()["version"] == "1.2.2"

    await cancelled_at("inspecting", update=False)
    await cancelled_at("writing", update=True)


async def test_a_task_that_is_cancelled_while_its_firmware_comes_ends_at_once(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """Whether or not the version was given; the board is never opened."""
    board = esp32_boards(layout="guide")
    async with FirmwareServer.start() as server:
        url = server.put("/app.bin", image(tmp_path, "1.2.3").read_bytes())
        gate = server.hold("/app.bin")
        for count, version in enumerate((None, "1.2.3"), 1):
            task = asyncio.ensure_future(update_board(board.url, url, version))
            await server.wait_requests(count)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.set()
    assert board.control.counters().get("opened", 0) == 0


async def test_what_cannot_be_is_refused_with_words(
    esp32_boards: StartBoard, tmp_path: Path
) -> None:
    """Each by its code, before the board is touched."""
    board = esp32_boards(layout="guide")
    app, junk = image(tmp_path, "1.2.3"), tmp_path / "junk.bin"
    junk.write_bytes(b"\x00" * 5000)
    for code, work in (
        ("port-missing", inspect_board("/dev/ttyUSB77")),
        ("port-missing", update_board("/dev/ttyUSB77", app)),
        ("not-an-image", plan_update(board.url, junk)),
        ("not-an-image", update_board(board.url, junk)),
        ("file-access", load_firmware(tmp_path / "none.bin")),
        ("digest-mismatch", load_firmware(app, sha256="0" * 64)),
        ("digest-mismatch", update_board(board.url, await load_firmware(app), sha256="0" * 64)),
        ("config-invalid", update_board(board.url, app, boot_expect="(")),
        ("config-invalid", update_board(board.url, "ftp://x/a.bin", "1")),
        ("config-invalid", update_board(board.url, app, "x" * 200)),
    ):
        with pytest.raises(OtaError) as caught:
            await work
        assert caught.value.code == code
        assert caught.value.remedy
    assert board.control.counters().get("opened", 0) == 0
