# SPDX-License-Identifier: GPL-3.0-or-later
"""A service in this process: downloads, stops, names, claims, and what the history tells."""

from __future__ import annotations

import asyncio
import collections
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.network import served
from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard
from ota_service.errors import OtaError
from ota_service.firmware import download
from ota_service.firmware.check import Firmware
from ota_service.firmware.download import Patience
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from ota_service.fleet import engine as engine_module
from ota_service.fleet import places, roster
from ota_service.fleet import service as services
from ota_service.fleet.engine import Engine
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.service import FleetService, UnknownBoard, shutdown
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.link.ownership import SERVICE_CLAIMS
from ota_service.link.ports import PortInfo
from ota_service.link.stream import STREAMS
from ota_service.update.session import Image
from tests.faults.desk import PROJECT, Desk

NOWHERE = "esp32sim:///nowhere/"


def settings(folder: Path, *boards: BoardEntry, name: str = "OTA", **options: Any) -> Settings:
    """A service whose boards are nowhere."""
    return Settings(
        service=name,
        target=options.pop("target", Target("http://127.0.0.1:9/x.bin", "1")),
        boards=boards,
        state_dir=folder / "state",
        cache_dir=folder / "cache",
        **options,
    )


async def until(service: FleetService, condition: Any, *, within_s: float = 30) -> dict[str, Any]:
    """The first status that fulfils `condition`."""
    async with asyncio.timeout(within_s):
        while not condition(status := service.status()):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)
    return status


# --- downloads


@pytest.mark.slow
async def test_cancel_and_another_url_end_a_download_at_once(tmp_path: Path) -> None:
    """A server that drips for ever holds neither the run nor the service's state."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        for version in ("1.1.0", "1.2.0"):
            url = desk.serve(version)
            desk.server.hold(f"/{version}.bin")
            await desk.configure(url=url, version=version)
            await desk.wait(lambda now: now.get("progress", {}).get("bytes_done", 0) > 0)
            if version == "1.1.0":
                assert desk.status()["state"] == "downloading"
                begun_s = time.monotonic()
                assert (await desk.command("cancel"))["cancelled"] is True
                status = await desk.wait(lambda now: now["run"]["outcome"] == "cancelled")
                assert time.monotonic() - begun_s < 1
                assert status["state"] == "idle"
                assert "progress" not in status
        last = desk.run_id()
        await desk.configure(url=desk.serve("1.3.0"), version="1.3.0")
        status = await desk.next_run(last)
        assert status["boards"]["a"]["version"] == "1.3.0"
        runs = (await desk.command("history"))["runs"]
        assert [run["outcome"] for run in runs] == ["succeeded", "cancelled", "cancelled"]
        begun_s = time.monotonic()
        url = desk.serve("1.4.0")
        desk.server.hold("/1.4.0.bin")
        await desk.configure(url=url, version="1.4.0")
        await desk.wait(lambda now: now["state"] == "downloading")
        await shutdown()
        assert time.monotonic() - begun_s < 8


@pytest.mark.slow
async def test_a_path_is_a_url_and_a_change_of_its_file_starts_nothing(tmp_path: Path) -> None:
    """As a package's folder, and of a pinned board as a file: the same updates; another file under
    the version is told by itself, also one that is no firmware."""
    package = tmp_path / "packages" / "robot-1_1_0"
    package.mkdir(parents=True)
    images = {v: build_app(PROJECT, v, size_bytes=60_000) for v in ("1.1.0", "1.2.0")}
    (package / "robot.bin").write_bytes(images["1.1.0"])
    (tmp_path / "pinned.bin").write_bytes(images["1.2.0"])
    async with Desk.start(tmp_path, [SimBoard("guide"), SimBoard("guide")]) as desk:
        pin = {"url": str(tmp_path / "pinned.bin"), "version": "1.2.0"}
        boards = [
            {"name": "a", "port": desk.board("a").url},
            {"name": "b", "port": desk.board("b").url, **pin},
        ]
        status = await desk.updated("1.1.0", url=str(package), boards=boards)
        for name, version in (("a", "1.1.0"), ("b", "1.2.0")):
            assert status["boards"][name]["version"] == version, status
            assert status["boards"][name]["good"] is True
        assert (status["target"]["url"], status["target"]["app_version"]) == (str(package), "1.1.0")
        last = desk.run_id()
        (package / "robot.bin").write_bytes(images["1.2.0"])
        status = await desk.wait(lambda now: "notice" in now["target"])
        assert "another file under this version" in status["target"]["notice"]
        (package / "robot.bin").write_bytes(b"junk")
        await desk.wait(lambda now: "another file" not in now["target"]["notice"])
        (package / "robot.bin").write_bytes(images["1.1.0"])
        await desk.wait(lambda now: "notice" not in now["target"])
        assert (desk.run_id(), desk.status()["state"]) == (last, "idle")


async def test_a_path_that_gives_no_answer_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network folder may hang for minutes: boards that are plugged in are found meanwhile, and
    nobody asks for it again before it has answered."""
    asked, answer = [], threading.Event()
    polls: asyncio.Queue[None] = asyncio.Queue()

    def hangs(self: Supply, url: str) -> bool:
        asked.append(url)
        return not answer.wait(30)

    async def poll(self: Engine) -> None:
        polls.put_nowait(None)

    monkeypatch.setattr(Supply, "changed", hangs)
    monkeypatch.setattr(Engine, "_poll", poll)
    monkeypatch.setattr(engine_module, "POLL_S", 0.01)
    target, entry = Target(str(tmp_path / "a.bin"), "1"), BoardEntry("a", port=f"{NOWHERE}a")
    configured = settings(tmp_path, entry, target=target, auto_update=False)
    engine = Engine(configured, logging.getLogger("tests"))
    await engine.open()
    try:
        await engine.configure(configured, first=True)
        async with asyncio.timeout(10):
            for _ in range(5):
                await polls.get()
        assert asked == [target.url]
        answer.set()
        async with asyncio.timeout(10):
            while len(asked) < 2:
                await polls.get()
    finally:
        answer.set()
        await engine.end()


@pytest.mark.slow
async def test_a_slow_server_holds_up_only_its_own_boards(tmp_path: Path) -> None:
    """The others are updated meanwhile; what is held in memory goes when nobody needs it."""
    async with Desk.start(tmp_path, [SimBoard("guide"), SimBoard("micro-rdk")]) as desk:
        slow = desk.serve("9.0.0")
        desk.server.hold("/9.0.0.bin")
        boards = [
            {"name": "a", "port": desk.board("a").url},
            {"name": "b", "port": desk.board("b").url, "url": slow, "version": "9.0.0"},
        ]
        await desk.configure(url=desk.serve("1.1.0"), version="1.1.0", boards=boards)
        status = await desk.wait(lambda now: now["boards"]["a"]["state"] == "up_to_date")
        assert status["run"]["outcome"] == "running"
        await desk.command("cancel")
        await desk.wait(lambda now: now["state"] == "idle")
        assert desk.service is not None
        firmwares = desk.service._engine.firmwares
        assert firmwares._shelves == {}
        assert desk.status()["target"]["project"] == "micro-rdk-server"


@pytest.mark.slow
def test_images_are_held_only_while_a_run_needs_them(tmp_path: Path) -> None:
    """Whatever the outcome is, and however many releases there were. In a process of its own:
    other tests hold images, too."""
    root = Path(__file__).parents[2]
    code = (
        "import asyncio, sys; from pathlib import Path; "
        "from tests.fleet.test_service import several_releases; "
        "asyncio.run(several_releases(Path(sys.argv[1]))); print('let go')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "src")))},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout == "let go\n", done.stderr


async def several_releases(folder: Path) -> None:
    """Updates that end well and badly, reads and plans; afterwards no image is held."""
    others = images()  # of other tests, whose fixtures may hold some
    async with Desk.start(folder, [SimBoard("guide"), SimBoard("guide")]) as desk:
        panics = Behaviour(ending="panic", ending_after_s=0.2)
        for number, behaviour in enumerate((None, panics, None, None)):
            version = f"1.{number}.0"
            url = desk.serve(version, behaviour=behaviour)
            await desk.updated(version, url=url, max_attempts=1)
            await desk.command("verify")
            await desk.command("update", dry_run=True)
            assert desk.service is not None
            for run in desk.service._engine.runs:
                await run.done.wait()
            await desk.wait(lambda _: len(images()) <= len(others))
            await desk.wait(lambda _: not STREAMS._streams)
        assert desk.service is not None
        engine = desk.service._engine
        async with engine.firmwares.had(engine.settings.target):
            assert len(images()) > len(others), "what is counted is not what is held"


def images() -> list[object]:
    """All images of boards that this process holds."""
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, Image | Firmware)]


# --- a probe beside a run


@pytest.mark.slow
async def test_a_probe_goes_beside_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that waits goes on and is joined for its board; the board that was lost is found."""
    async with Desk.start(tmp_path, [SimBoard("guide"), SimBoard("guide")]) as desk:
        here, lost = desk.board("a"), desk.board("b")
        ports = [PortInfo(lost.url), PortInfo(here.url)]  # in place of the machine's serial ports
        monkeypatch.setattr(roster, "list_ports", lambda: ports)
        boards = [{"name": "a", "port": here.url}, {"name": "b", "mac": lost.mac}]
        url = desk.serve("1.1.0")
        release = desk.server.hold("/1.1.0.bin")
        await desk.configure(url=url, version="1.1.0", boards=boards)
        status = await desk.wait(lambda now: now["boards"]["b"]["state"] == "absent")
        first = status["run"]["id"]
        await desk.wait(lambda now: now["state"] == "downloading")
        plain = await desk.command("update")
        assert (plain["joined"], plain["run"]["id"]) == (True, first)

        reply = await desk.command("update", probe=True)
        assert reply["joined"] is False
        assert reply["run"]["id"] != first
        await desk.wait(lambda now: now["boards"]["b"].get("port") is not None)
        release.set()
        status = await desk.wait(lambda now: now["run"]["outcome"] != "running")
        assert {board["version"] for board in status["boards"].values()} == {"1.1.0"}
        runs = {run["id"]: run for run in (await desk.command("history"))["runs"]}
        assert runs[first]["outcome"] == "partly"
        second = runs[reply["run"]["id"]]
        assert second["outcome"] == "succeeded"
        assert {board["to"] for board in second["boards"].values()} == {"1.1.0"}
        # To be found, and to be updated; and the board that was there, to be updated alone.
        assert [b.control.counters()["opened"] for b in (here, lost)] == [1, 2]


# --- a firmware that is stopped


@pytest.mark.slow
async def test_a_stop_holds_until_a_person_lifts_it(tmp_path: Path) -> None:
    """Neither another update nor a new life of the service tries it again; `release` does."""
    async with Desk.start(tmp_path, [SimBoard("guide") for _ in range(5)]) as desk:
        url = desk.serve("1.1.0", behaviour=Behaviour(ending="panic", ending_after_s=0.2))
        status = await desk.updated("1.1.0", url=url)
        assert status["error"]["code"] == "stopped"
        (bad,) = [name for name, b in status["boards"].items() if b["state"] == "rolled_back"]
        run = (await desk.command("history"))["runs"][0]
        outcomes = sorted(board["outcome"] for board in run["boards"].values())
        assert outcomes == ["rolled_back", *["stopped"] * 4]
        assert {board["attempted"] for board in run["boards"].values()} == {"1.1.0"}
        opened = {name: desk.board(name).control.counters().get("opened", 0) for name in desk.names}

        with pytest.raises(OtaError, match="1 of 1 boards failed to boot") as caught:
            await desk.command("update", wait_s=30)
        assert caught.value.code == "stopped"
        assert "stopped: true" in caught.value.remedy
        await shutdown()
        desk.service = None
        await desk.configure(url=url, version="1.1.0")
        status = await desk.next_run(None)
        assert status["error"]["code"] == "stopped"
        now = {name: desk.board(name).control.counters().get("opened", 0) for name in desk.names}
        assert now == opened
        with pytest.raises(UnknownBoard, match="all: true"):
            await desk.command("release")

        # To override it gives it to the boards that are named, and lifts nothing.
        other = next(name for name in desk.names if name != bad)
        await desk.command("update", boards=[other], override=["stopped"], wait_s=60)
        assert desk.status()["boards"][other]["state"] == "rolled_back"
        with pytest.raises(OtaError, match="1 of 1 boards failed to boot"):
            await desk.command("update")

        await desk.command("release", stopped=True)
        assert desk.status()["boards"][bad]["state"] == "rolled_back"  # and nothing else is lifted
        await desk.command("update", wait_s=60)
        states = [board["state"] for board in desk.status()["boards"].values()]
        # Held boards count for the crowd, so that one canary goes first again.
        assert sorted(states) == [*["outdated"] * 2, *["rolled_back"] * 3]


@pytest.mark.slow
async def test_a_board_that_only_carries_the_version_is_no_canary(tmp_path: Path) -> None:
    """It got another file under that version: its proof is that one's, and of the others just one
    tries the file of now."""
    boards = [SimBoard("guide") for _ in range(5)]
    async with Desk.start(tmp_path, boards) as desk:
        first = [{"name": "a", "port": desk.board("a").url}]
        url = desk.serve("1.1.0")
        status = await desk.updated("1.1.0", url=url, boards=first)
        assert status["boards"]["a"]["good"]
        panics = Behaviour(ending="panic", ending_after_s=0.2)
        assert desk.serve("1.1.0", behaviour=panics) == url
        everyone = [{"name": name, "port": desk.board(name).url} for name in "abcde"]
        before, options = desk.run_id(), {"max_parallel": 5, "auto_update": False}
        await desk.configure(url=url, version="1.1.0", boards=everyone, **options)
        await desk.command("update")
        status = await desk.next_run(before)
        states = [board["state"] for board in status["boards"].values()]
        assert states.count("rolled_back") == 1, states
        assert status["error"]["code"] == "stopped"
        runs = {board.control.running()["version"] for board in map(desk.board, "bcde")}
        assert runs == {"1.0.0"}


@pytest.mark.slow
async def test_power_that_failed_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    """The board went back as its power failed, so its firmware is not blamed for it."""
    dip = Behaviour(ending="brownout", ending_after_s=0.1, ending_lives=1, confirm_after_s=None)
    flash = make_flash("micro-rdk", slot="ota_1", otadata="valid")
    board = SimBoard("micro-rdk", flash=bytes(flash), config={"rollback": True})
    async with Desk.start(tmp_path, [board]) as desk:
        wanted = {"url": desk.serve("1.1.0", behaviour=dip), "version": "1.1.0"}
        await desk.configure(**wanted, confirm_timeout_s=3)
        await desk.wait(lambda now: now["boards"]["a"]["state"] == "awaiting_confirmation")
        await shutdown()
        desk.service = None
        await desk.configure(**wanted, confirm_timeout_s=3)
        status = await desk.wait(lambda now: now.get("run", {}).get("outcome") == "failed")
        board_now = status["boards"]["a"]
        assert (board_now["error"]["code"], board_now["version"]) == ("brown-out", "1.0.0")
        assert "attempts" not in board_now


# --- names and claims


async def test_a_refused_configuration_leaves_nothing_alive(tmp_path: Path) -> None:
    """What viam-server has removed must not go on with its boards because its successor fails."""
    mine, theirs = BoardEntry("a", port=f"{NOWHERE}a"), BoardEntry("b", port=f"{NOWHERE}b")
    try:
        first = await FleetService.open(settings(tmp_path, mine))
        await FleetService.open(settings(tmp_path, theirs, name="OTHER"))
        await first.close()
        with pytest.raises(OtaError, match="OTHER and OTA"):
            await FleetService.open(settings(tmp_path, mine, theirs))
        assert [engine.settings.service for engine in services.engines()] == ["OTHER"]
        assert SERVICE_CLAIMS.owner(f"{NOWHERE}a") is None
        assert SERVICE_CLAIMS.owner(f"{NOWHERE}b") == "OTHER"
        again = await FleetService.open(settings(tmp_path, mine))
        assert again.status()["ok"] is True
    finally:
        await shutdown()


@pytest.mark.parametrize("where", ["journal", "boards"])
async def test_a_configuration_that_is_given_up_leaves_nothing_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """viam-server may not wait for a slow disk: what it calls off keeps no board from others, and
    the service that it asks for again begins as a new one."""
    entry, begun, go_on = BoardEntry("a", port=f"{NOWHERE}a"), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(folder: Path, *, shared: bool) -> Journal:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)
        return open_journal(folder, shared=shared)

    async def never(_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    try:
        with monkeypatch.context() as patched:
            if where == "journal":
                patched.setattr(engine_module, "open_journal", slow)
            else:
                patched.setattr(engine_module, "heard", never)
            opening = asyncio.ensure_future(FleetService.open(settings(tmp_path, entry)))
            async with asyncio.timeout(10):
                await begun.wait()
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert (services.engines(), SERVICE_CLAIMS.owner(f"{NOWHERE}a")) == ([], None)
            go_on.set()
        service = await FleetService.open(settings(tmp_path, entry, name="OTHER"))
        async with asyncio.timeout(10):
            await service._engine.groups.known.wait()
    finally:
        go_on.set()
        await shutdown()


@pytest.mark.slow
async def test_a_rename_keeps_what_is_known(tmp_path: Path) -> None:
    """State, and history by either name and by MAC; no port is opened for it."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        await desk.updated("1.1.0")
        assert desk.service is not None
        (run,) = desk.service._engine.runs
        await run.done.wait()  # so that its entry of the history has the name of then
        before = desk.status()["boards"]["a"]
        opened = desk.board().control.counters()["opened"]
        renamed = [{"name": "kitchen", "port": desk.board().url}]
        url = desk.server.url("/1.1.0.bin")
        await desk.configure(url=url, version="1.1.0", boards=renamed)
        status = await desk.wait(lambda now: "kitchen" in now["boards"])
        assert status["boards"]["kitchen"] == before
        assert desk.board().control.counters()["opened"] == opened
        for word in ("kitchen", "a", desk.board().mac):
            runs = (await desk.command("history", board=word))["runs"]
            assert len(runs) == 1, (word, runs)
            assert runs[0]["boards"]["a"]["to"] == "1.1.0"


@pytest.mark.slow
async def test_one_board_under_two_names_is_written_once(tmp_path: Path) -> None:
    """The second name says so, naming both; its tag never flips."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        link = tmp_path / "other"
        link.symlink_to(desk.board().dir)
        boards = [
            {"name": "left", "port": desk.board().url},
            {"name": "right", "port": f"esp32sim://{link}", "version": "1.0.9"},
        ]
        await desk.configure(url=desk.serve("1.1.0"), version="1.1.0", boards=boards)
        status = await desk.next_run(None)
        states = {name: board["state"] for name, board in status["boards"].items()}
        assert sorted(states.values()) == ["set_aside", "up_to_date"], status
        (second,) = [name for name, state in states.items() if state == "set_aside"]
        error = status["boards"][second]["error"]
        assert error["code"] == "duplicate-board"
        assert "left" in error["message"]
        assert "right" in error["message"]


@pytest.mark.slow
async def test_a_board_over_the_network_and_here_is_one_as_soon_as_it_is_known(
    tmp_path: Path,
) -> None:
    """Also in the next life of the service, before any port is opened; its tag never flips."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        board = desk.board()
        with served(board.url) as url:
            names = {"here": board.url, "far": url}
            versions = {"here": "1.1.0", "far": "1.0.9"}
            boards = [
                {"name": name, "port": port, "version": versions[name]}
                for name, port in names.items()
            ]
            desk.serve("1.1.0")
            wanted = {"url": desk.server.url("/1.1.0.bin"), "version": "1.1.0", "max_parallel": 1}
            await desk.configure(**wanted, boards=boards)
            for _ in range(2):
                status = await desk.wait(lambda now: not_written(now) and now["state"] == "idle")
                (second,) = not_written(status)
                (first,) = names.keys() - {second}
                error = status["boards"][second]["error"]
                assert "here" in error["message"]
                assert "far" in error["message"]
                assert status["boards"][first]["version"] == versions[first]
                opened = board.control.counters()["opened"]
                await shutdown()
                desk.service = None
                # The other way round, so that being listed first is not what counts.
                boards = sorted(boards, key=lambda entry: entry["name"] != second)
                await desk.configure(**wanted, boards=boards, check_on_start=False)
            await desk.wait(not_written)
            assert board.control.counters()["opened"] == opened
            assert board.control.running()["version"] == "1.1.0"

            # Where one of them was moved to another board meanwhile, release lets it be seen.
            await desk.command("release", boards=[second])
            assert desk.status()["boards"][second]["state"] != "set_aside"


def not_written(status: dict[str, Any]) -> list[str]:
    """The boards that were found to be others."""
    return [
        name
        for name, board in status["boards"].items()
        if board.get("error", {}).get("code") == "duplicate-board"
    ]


# --- what a board shows of its start


@pytest.mark.slow
async def test_an_app_that_says_nothing_is_good_and_not_confirmed(tmp_path: Path) -> None:
    """Status and history say so in words; it stays so when nothing is written, and when the
    process starts anew."""
    quiet = Behaviour(log_level_off=True)
    words = "starts, but says nothing: not confirmed"
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        status = await desk.updated("1.1.0", url=desk.serve("1.1.0", behaviour=quiet))
        board = status["boards"]["a"]
        assert (board["state"], board["confirmed"], board["good"]) == ("up_to_date", False, True)
        assert board["notice"] == words
        told = (await desk.command("history"))["runs"][0]["boards"]["a"]
        assert (told["confirmed"], told["notice"]) == (False, words)
        for restarted in (False, True):
            if restarted:
                await shutdown()
                desk.service = None
            before = desk.run_id()
            await desk.configure(url=desk.server.url("/1.1.0.bin"), version="1.1.0")
            await desk.command("update")
            board = (await desk.next_run(before))["boards"]["a"]
            assert (board["confirmed"], board["good"]) == (False, True)
            assert board["notice"].endswith(": not confirmed")


@pytest.mark.slow
async def test_what_a_board_went_back_to_is_good_when_it_is_the_target_again(
    tmp_path: Path,
) -> None:
    """Its start was watched on the way back. A board that nobody has seen start is not good."""
    panics = Behaviour(ending="panic", ending_after_s=0.2)
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        board = (await desk.updated("1.0.0"))["boards"]["a"]
        assert (board["state"], board["good"]) == ("up_to_date", False)
        assert "confirmed" not in board
        bad = await desk.updated("1.1.0", url=desk.serve("1.1.0", behaviour=panics))
        assert (bad["boards"]["a"]["state"], bad["boards"]["a"]["good"]) == ("rolled_back", False)
        board = (await desk.updated("1.0.0"))["boards"]["a"]
        assert (board["state"], board["confirmed"], board["good"]) == ("up_to_date", True, True)


# --- what an operator reads


MAC = "24:0a:c4:00:00:01"
NULL = "/dev/null"  # a device that exists everywhere, and is none that could be restarted


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """The lines of a level and above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


@pytest.mark.parametrize("why", ["held", "stopped"])
async def test_a_dry_run_of_what_an_update_leaves_alone_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """With the hold's code and what to do; the update itself says the same, in its history and in
    the log; and so does a release that it happened. No port is opened, and nothing fetched."""
    caplog.set_level(logging.INFO, "ota_service.fleet")
    wanted = settings(tmp_path, BoardEntry("a", port=NULL), auto_update=False)
    with open_journal(wanted.state_dir) as journal:
        journal.learn_port(NULL, MAC, location=None, serial=None)
        if why == "held":
            error = OtaError("boot-failed", "It panicked.")
            journal.set_attempt_state(MAC, wanted.target.key, "rolled_back", error)
        else:
            journal.stop("OTA", wanted.target.key, "Stopped: it panicked.")
        service = await FleetService.open(wanted)
        try:
            await until(service, lambda now: now["boards"]["a"].get("port"))
            plan = (await service.command("update", {"dry_run": True}))["plan"]["a"]
            assert plan["action"] == "refuse"
            assert "release" in plan["reason"]
            assert plan["code"] == ("boot-failed" if why == "held" else "stopped")
            if why == "stopped":
                return
            await service.command("update", {"wait_s": 10})
            (run,) = (await service.command("history", {"limit": 1}))["runs"]
            assert run["boards"]["a"]["error"]["code"] == "boot-failed"
            assert "release" in run["boards"]["a"]["error"]["remedy"]
            told = said(caplog, logging.WARNING)
            assert "before: It panicked. Configure a new version, or call release" in told[0]
            assert told[1:] == [
                f"OTA: 0 of 1 board up to date; for more: esp32-ota remote history --id {run['id']}"
            ]
            await service.command("release", {"boards": ["a"]})
            assert said(caplog)[-1] == "OTA: released by a person: a"
        finally:
            await shutdown()


async def test_what_is_not_there_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A board by its own line, a server by a line at its first refusal and one at the end."""
    caplog.set_level(logging.INFO, "ota_service.fleet")
    try:
        service = await FleetService.open(settings(tmp_path, BoardEntry("a", port="/dev/nowhere")))
        status = await until(service, lambda now: now.get("run", {}).get("finished_at"))
        assert status["error"]["code"] == "no-board"
        lines = said(caplog)
        assert lines[0] == "OTA: a: The port /dev/nowhere does not exist."
        assert len(lines) == 2, lines
    finally:
        await shutdown()


async def test_a_server_that_cannot_be_reached_is_told_at_once_and_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first attempt, in words of our own; then for all boards together."""
    caplog.set_level(logging.INFO, "ota_service.fleet")
    monkeypatch.setattr(download, "Patience", lambda: Patience(delays_s=(0.01, 0.01)))
    try:
        service = await FleetService.open(settings(tmp_path, BoardEntry("a", port=NULL)))
        await until(service, lambda _: len(said(caplog, logging.WARNING)) >= 3)
        why = "No connection to http://127.0.0.1:9/x.bin: connection refused."
        lines = said(caplog, logging.WARNING)
        assert lines[0] == f"OTA: {why} Trying again."
        assert lines[1].startswith(f"OTA: {why} Check that the url")
        assert lines[1].endswith("[download-failed]")
        assert lines[2].startswith("OTA: 0 of 1 board up to date")
        assert len(lines) == 3, lines
    finally:
        await shutdown()


async def test_what_waits_for_a_person_says_so_and_forgets_what_was_wrong_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With `auto_update` off: one line, the configured port, and no error of a configuration that
    was mended."""
    caplog.set_level(logging.INFO, "ota_service.fleet")
    try:
        service = await FleetService.open(settings(tmp_path, auto_update=True))
        await until(service, lambda now: now.get("error", {}).get("code") == "no-board")
        caplog.clear()
        wanted = settings(tmp_path, BoardEntry("a", port=NULL), auto_update=False)
        service = await FleetService.open(wanted)
        status = await until(service, lambda now: now["boards"]["a"].get("port"))
        assert status["boards"]["a"]["port"] == NULL
        assert "error" not in status
        assert said(caplog) == [
            'OTA: 1 board, target "1"; auto_update is off: waits for the command "update"'
        ]
    finally:
        await shutdown()


# --- the log, and many boards


@pytest.mark.slow
async def test_the_log_of_an_update_is_a_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every line names service and board; one says what came of it; an absent board has its own."""
    caplog.set_level(logging.INFO, "ota_service.fleet")
    async with Desk.start(tmp_path, [SimBoard("guide"), SimBoard("guide")]) as desk:
        desk.board("b").control.unplug()
        await desk.updated("1.1.0")
        lines = [record.getMessage() for record in caplog.records]
        assert all(line.startswith("OTA: ") for line in lines), lines
        ends = [line for line in lines if line.startswith("OTA: a: up to date")]
        assert len(ends) == 1
        assert '"1.0.0" -> "1.1.0", confirmed, after ' in ends[0]
        assert sum(line.startswith("OTA: b: ") for line in lines) == 1
        assert len(lines) <= 10, lines
        # The url still gives what the board runs: only its version is stored, which is said.
        same = desk.server.url("/1.1.0.bin")
        status = await desk.updated("1.2.0", url=same)
        assert 'calls itself "1.1.0" and is what boards run' in status["target"]["notice"]
        told = said(caplog, logging.WARNING)
        assert f"OTA: {status['target']['notice']}" in told


@pytest.mark.slow
async def test_every_line_of_a_rollback_names_service_and_board(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever part of the program says it; so the level of the service's own logger counts."""
    caplog.set_level(logging.DEBUG, "ota_service")
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        panics = Behaviour(ending="panic", ending_after_s=0.2)
        status = await desk.updated("1.1.0", url=desk.serve("1.1.0", behaviour=panics))
        assert status["boards"]["a"]["state"] == "rolled_back"
        back = (await desk.command("rollback"))["boards"]["a"]
        assert 'holds "1.1.0", which did not come up on this board' in back["error"]["message"]
        assert desk.status()["boards"]["a"]["state"] == "rolled_back"
    # esptool's trace is at DEBUG, for whoever asks for it.
    told = [r for r in caplog.records if r.name.split(".")[:2] != ["ota_service", "esptool"]]
    lines = [record.getMessage() for record in told if record.name.startswith("ota_service")]
    assert any("rolling back" in line for line in lines)
    assert all(line.startswith("OTA: ") for line in lines), lines
    assert {record.name for record in told if record.name.startswith("ota_service")} == {
        "ota_service.fleet"
    }


async def test_lines_go_through_the_logger_of_the_present_instance(tmp_path: Path) -> None:
    """Each change of an attribute makes a new instance, whose level may be another one."""
    first, second = logging.getLogger("first"), logging.getLogger("second")
    try:
        service = await FleetService.open(settings(tmp_path), logger=first)
        assert service._engine.log.logger is first
        await service.close()
        service = await FleetService.open(settings(tmp_path), logger=second)
        assert service._engine.log.logger is second
    finally:
        await shutdown()


async def test_two_hundred_boards_that_are_not_there_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look a second at each port's name; nothing is read, written or said for it, and the
    status comes from memory."""
    done: collections.Counter[str] = collections.Counter()
    monkeypatch.setattr(engine_module, "POLL_S", 3600.0)  # each look is the test's own
    monkeypatch.setattr(roster, "list_ports", lambda: [])  # whatever this machine has
    boards = [BoardEntry(f"b{n}", port=f"/dev/nowhere{n}") for n in range(200)]
    try:
        service = await FleetService.open(settings(tmp_path, *boards, auto_update=False))
        await until(service, lambda s: all(b["state"] == "absent" for b in s["boards"].values()))
        engine = service._engine

        def counted(module: Any, name: str) -> None:
            real = getattr(module, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                done[name] += 1
                return real(*args, **kwargs)

            monkeypatch.setattr(module, name, call)

        for module, name in (
            *((os, "stat"), (os, "listdir"), (os, "scandir"), (os, "open")),
            *((roster, "list_ports"), (places, "exists"), (places, "describe")),
            *((engine.memory.journal, "read"), (engine.memory.journal, "whole")),
            *((logging.Logger, "handle"), (asyncio, "to_thread")),
        ):
            counted(module, name)
        for _ in range(10):
            service.status()
        assert done == {}
        for _ in range(10):
            await engine._poll()
        assert done.pop("exists") == 200 * 10
        assert done.pop("list_ports") == done.pop("to_thread") == 10
        assert done.pop("stat") == 200 * 10
        assert done == {}
        assert all(board.quiet.is_set() for board in engine.boards.values())
    finally:
        await shutdown()
