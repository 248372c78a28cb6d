# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs for boards that are attached here, without Viam, on simulated boards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
from pathlib import Path

import pytest

from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.firmware import download
from ota_service.firmware.download import Patience
from ota_service.fleet import roster
from ota_service.fleet.journal import Journal
from ota_service.fleet.memory import Memory
from ota_service.link.ports import PortInfo, describe
from tests.support.command import (
    Call,
    ended,
    environment,
    here,
    on_terminal,
    printed,
    run_command,
    start_command,
)
from tests.support.command import call as call
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import eventually
from tests.support.rig import PROJECT

QUICK = ("--boot-timeout", "4", "--boot-stable", "0.5")


def image_file(folder: Path, version: str, name: str = "app.bin", **options: object) -> Path:
    """An App Image in a file."""
    path = folder / name
    path.write_bytes(build_app(PROJECT, version, size_bytes=100_000, **options))  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_a_file_is_written_and_a_second_time_left_alone(call: Call, tmp_path: Path) -> None:
    """The version is the descriptor's; equal versions need --force; JSON is the run's history."""
    app = image_file(tmp_path, "1.1.0")
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        board = sim.boards[0]
        command = ("update", board.url, "--file", str(app), *QUICK)
        done = call(*command)
        assert done.code == 0, done.err + done.out
        assert done.out.splitlines()[-3].split() == ["board", "from", "to", "outcome", "seconds"]
        row = done.out.splitlines()[-2].split()
        assert row[:5] == ["board-1", "1.0.0", "1.1.0", "up", "to"]
        assert "\x1b" not in done.out
        assert done.err == ""
        assert board.control.running()["version"] == "1.1.0"

        told = call(*command)
        assert told.code == 0
        assert told.out.splitlines()[-1] == (
            'Nothing was written: the board has version "1.1.0" already (--force writes anyway).'
        )
        assert not any(line != line.rstrip() for line in told.out.splitlines())
        again = call(*command, "--json")
        assert again.code == 0
        assert json.loads(again.out)["boards"]["board-1"]["action"] == "none"
        dry = call(*command, "--dry-run", "--force", "--json")
        planned = json.loads(dry.out)["plan"]["board-1"]
        assert (planned["action"], planned["reason"]) == (
            "none",
            "forced: the board runs this image already; it is restarted and watched",
        )
        folder = ("--url", str(app.parent / "package"), "--version", "1.2.0", *QUICK)
        (app.parent / "package").mkdir()
        app.rename(app.parent / "package" / "app.bin")
        found = call("update", board.url, *folder, "--dry-run", "--json")
        assert json.loads(found.out)["plan"]["board-1"]["action"] == "record", found.out
        (app.parent / "package" / "app.bin").rename(app)
        forced = call(*command, "--force")
        assert forced.out.splitlines()[-1] == (
            "Nothing was written: the board runs this image already; its start was watched."
        )
        other = image_file(tmp_path, "1.1.0", "other.bin", seed=4)
        done = call("update", board.url, "--file", str(other), "--force", *QUICK,
                                 "--json")  # fmt: skip
        assert json.loads(done.out)["boards"]["board-1"]["action"] == "write"


@pytest.mark.slow
def test_a_rescue_is_asked_for_with_the_boards_mac(call: Call, tmp_path: Path) -> None:
    """Both options, the right MAC, and a board on which nothing boots; else the words say why."""
    app = image_file(tmp_path, "1.1.0")
    flash = make_flash("guide")
    for part in LAYOUTS["guide"].partitions:
        if part.type == 0:
            flash[part.offset + 0x1000] ^= 1
    with SimProcess(tmp_path / "boards", [SimBoard("guide", flash=bytes(flash))]) as sim:
        board = sim.boards[0]
        command = ("update", board.url, "--file", str(app), *QUICK)
        left = call(*command, "--force")
        assert left.code == 1
        assert "--rescue --confirm MAC" in " ".join((left.out + left.err).split())
        for wrong in (["--rescue"], ["--confirm", board.mac], ["--rescue", "--confirm", "x"]):
            assert call(*command, *wrong).code == 2
        done = call(*command, "--rescue", "--confirm", board.mac.upper())
        assert done.code == 0, done.out + done.err
        assert board.control.running()["version"] == "1.1.0"
        again = call(*command, "--rescue", "--confirm", board.mac, "--json")
        assert again.code == 1
        assert json.loads(again.out)["boards"]["board-1"]["error"]["code"] == "board-boots"


def test_without_a_port_nobody_guesses(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes into question is listed, nothing is opened, and it is wrong usage."""
    ports: list[PortInfo] = []
    monkeypatch.setattr(roster, "list_ports", lambda: ports)
    monkeypatch.setattr("ota_service.cli.ports.describe_port", lambda port: PortInfo(
        port, vid=0x1A86, pid=0x7523))  # fmt: skip
    bridges = [PortInfo(f"/dev/nowhere{n}", vid=0x1A86, pid=0x7523) for n in range(2)]
    natives = [
        PortInfo(f"/dev/own{n}", vid=0x303A, pid=0x1001, serial_number=f"24:0a:c4:00:00:0{n}")
        for n in range(2)
    ]
    for attached, verb, words in (
        ([], ["version"], "known on USB: name a PORT (a simulated board's is its url)."),
        ([PortInfo("/dev/ttyS0")], ["inspect", "--all"], "No board is known on USB"),
        (bridges[:1], ["version"], "name a PORT, or give --probe"),
        (bridges, ["rollback", "--all"], "name a PORT, or give --all --probe"),
        (bridges, ["version", "--probe"], "2 boards are attached: name a PORT, or give --all"),
        (natives, ["inspect"], "2 boards are attached: name a PORT, or give --all"),
    ):
        ports[:] = attached
        done = call(*verb)
        assert (done.code, done.out) == (2, ""), (verb, done)
        assert words in done.err
        assert all(info.device in done.err for info in attached if info.vid is not None)
    ports[:] = [natives[0], *bridges]
    done = call("version")  # the one that is known
    assert done.code == 1
    assert "24:0a:c4:00:00:00 is at /dev/own0." in done.err
    assert "24:0a:c4:00:00:00" in done.out
    assert "[port-missing]" in done.out
    assert "Not opened: /dev/nowhere1, perhaps an ESP32 (CH34x bridge); --probe opens it." in (
        done.err
    )
    assert "nowhere" not in done.out
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = call("rollback")
    assert (asked.code, asked.out) == (1, "")
    assert "Roll back 24:0a:c4:00:00:00? [y/N]" in asked.err
    assert asked.err.endswith("Error: Stopped. [cancelled]\n")

    def plugged_in(question: str, **_: object) -> None:
        assert question == "Roll back 24:0a:c4:00:00:00?"
        ports.append(natives[1])

    monkeypatch.setattr("click.confirm", plugged_in)
    asked = call("rollback", "--all")
    assert (asked.code, "24:0a:c4:00:00:00  " in asked.out) == (1, True), asked
    assert "24:0a:c4:00:00:01" not in asked.out + asked.err  # nobody agreed to that one
    twice = call("version", "/dev/nowhere1", "/dev/../dev/nowhere1")
    assert twice.code == 1
    assert "/dev/nowhere1 and /dev/../dev/nowhere1 are one and the same port." in twice.err
    assert twice.err.endswith("[duplicate-board]\n")


def test_what_was_found_to_be_no_board_stays_closed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lidar that a probe has opened once is not opened again to be looked at."""
    lidar = PortInfo("/dev/lidar", vid=0x10C4, pid=0xEA60, location="1-1.2")
    own = PortInfo("/dev/own", vid=0x303A, pid=0x1001, serial_number="24:0a:c4:00:00:01")
    with contextlib.closing(Journal(tmp_path / "state" / "ota-service", shared=True)) as journal:
        Memory(journal, "esp32-ota").mark_not_ours(lidar, "No ESP32 answered.", None)
    opened: list[str] = []

    async def look(port: str, **_: object) -> None:
        opened.append(port)
        raise OtaError("no-answer")

    monkeypatch.setattr("ota_service.api.single.inspect_board", look)
    for ports, verbs in (([lidar], ["--all", "--probe"]), ([lidar, own], ["--all"])):
        monkeypatch.setattr(roster, "list_ports", lambda ports=ports: ports)
        done = call("inspect", *verbs)
        assert "Not opened: /dev/lidar: No ESP32 answered." in done.err
        assert done.code == (2 if ports == [lidar] else 1)
    assert opened == ["/dev/own"]


@pytest.mark.slow
def test_all_boards_that_are_attached(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest gives each its image; what is on a bridge is opened by a probe alone, and is known
    from then on; all are read, and go back, together."""
    apps = [build_app(project, "1.0.0", size_bytes=80_000) for project in ("wheel", "eye")]
    boards = [*(SimBoard("guide", app=app) for app in apps), SimBoard("guide", app=apps[0])]
    with SimProcess(tmp_path / "boards", boards) as sim:
        *natives, bridged = sim.boards
        ports = [
            PortInfo(one.url, vid=0x303A, pid=0x1001, serial_number=one.mac) for one in natives
        ]
        bridge = describe(bridged.url)
        assert bridge is not None
        assert bridge.bridge == "CP210x"
        ports.append(bridge)
        monkeypatch.setattr(roster, "list_ports", lambda: ports)
        images = {}
        for name in ("wheel", "eye"):
            file = tmp_path / f"{name}.bin"
            file.write_bytes(build_app(name, "2.0", size_bytes=80_000))
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            images[name] = {"url": file.name, "sha256": digest}
        manifest = tmp_path / "manifest.json"
        manifest.write_text(json.dumps({"format": 1, "version": "2.0", "images": images}))

        plan = call("update", "--all", "--file", str(manifest), "--dry-run", "--json")
        planned = json.loads(plan.out)["plan"]
        assert {mac: step["image"] for mac, step in planned.items()} == {
            natives[0].mac: "wheel",
            natives[1].mac: "eye",
        }
        done = call("update", "--all", "--file", str(manifest), *QUICK)
        assert done.code == 0, done
        assert all(f"{one.mac}  1.0.0  2.0  up to date" in done.out for one in natives)
        assert f"Not opened: {bridged.url}" in done.err
        assert bridged.control.counters().get("opened", 0) == 0

        looked = call("inspect", "--all", "--probe", "--json")
        assert looked.code == 0, looked
        seen = json.loads(looked.out)["boards"]
        assert {one["mac"] for one in seen.values()} == {one.mac for one in sim.boards}
        verified = call("verify", "--all", "--file", str(manifest))
        assert verified.code == 1  # what is known is asked without a probe from now on
        assert f"{bridged.mac}  runs another" in verified.out
        back = json.loads(call("rollback", "--all", "--json", *QUICK).out)["boards"]
        assert {back[one.mac]["version"] for one in natives} == {"1.0.0"}
        assert back[bridged.mac]["error"]["code"]
        table = call("inspect", "--all")
        assert table.code == 0
        assert table.out.count("\nMAC ") == 3


@pytest.mark.slow
def test_several_boards_that_are_named(call: Call, tmp_path: Path) -> None:
    """One that is not there stops no other; they are staged, which says what is overwritten, and
    activated without naming the firmware again; what is not staged is told."""
    app, later = image_file(tmp_path, "1.1.0"), image_file(tmp_path, "1.2.0", "later.bin")
    with SimProcess(tmp_path / "boards", [*[SimBoard("guide")] * 2, SimBoard("micro-rdk")]) as sim:
        urls = [board.url for board in sim.boards]
        done = call("update", *urls[:2], f"{urls[0]}0", "--file", str(app), *QUICK)
        assert done.code == 1
        lines = done.out.splitlines()
        assert [line.split()[:3] for line in lines if "1.0.0  1.1.0  up to date" in line] == [
            ["board-1", "1.0.0", "1.1.0"],
            ["board-2", "1.0.0", "1.1.0"],
        ]
        assert "board-10: The port" in done.out
        assert lines[-1] == "The run succeeded in part."
        other = image_file(tmp_path, "1.1.0", "other.bin", seed=4)
        again = call("update", *urls, f"{urls[0]}0", "--file", str(other), *QUICK)
        assert again.code == 1
        assert (
            'board-1, board-2: Nothing was written: the board has version "1.1.0" already, though '
            "it runs another image than this (--force writes anyway).\n" in again.out
        )
        assert again.out.splitlines()[-1] == "The run succeeded in part."

        staged = call("stage", *urls[:2], "--file", str(later))
        assert staged.code == 0, staged
        assert staged.out.count("1.2.0 staged") == 2
        staged = call("stage", urls[2], "--file", str(later), "--version", "x", "--json")
        assert staged.code == 0, staged
        assert json.loads(staged.out)["boards"]["board-3"]["replaces"] == "1.0.0"
        stale = call("activate", urls[0], *QUICK)
        assert stale.code == 1
        assert "[stage-stale]" in stale.out
        active = call("activate", *urls, "--file", str(later), *QUICK)
        assert active.code == 1
        assert active.out.count("1.2.0  up to date") == 2
        assert "[stage-stale]" in active.out
        assert call("activate", urls[2], "--file", str(later), "--version", "x", *QUICK).code == 0
        nothing = call("activate", urls[2], *QUICK)
        assert (nothing.code, "not-staged" in nothing.out) == (0, False)
        assert nothing.out.endswith('written: the board has version "x" already.\n')
        read = call("version", *urls, "--json")
        versions = {name: one["version"] for name, one in json.loads(read.out)["boards"].items()}
        assert versions == {"board-1": "1.2.0", "board-2": "1.2.0", "board-3": "x"}
        verified = call("verify", *urls[:2], "--file", str(later))
        assert (verified.code, verified.out.count("runs it")) == (0, 2)
        back = call("rollback", *urls[:2], *QUICK)
        assert (back.code, back.out.count("  1.1.0")) == (0, 2)


def test_only_what_can_be_overridden_is_an_option() -> None:
    """The words name what exists."""
    told = here("update", "/dev/x", "--override", "wrong-board")
    assert told.code == 2
    assert "other-project" in told.err


@pytest.mark.slow
def test_it_says_where_less_was_done_than_a_write(call: Call, tmp_path: Path) -> None:
    """The image ran already, or was in the other slot: read off the plan, not guessed."""
    app, old = image_file(tmp_path, "1.1.0"), image_file(tmp_path, "1.0.9", "old.bin")
    with SimProcess(tmp_path / "boards", [SimBoard("micro-rdk")]) as sim:
        url = sim.boards[0].url

        def last_line(file: Path, version: str) -> str:
            done = call("update", url, "--file", str(file), "--version", version, *QUICK)
            assert done.code == 0, done.out + done.err
            return done.out.splitlines()[-1]

        assert last_line(old, "a") == "The run succeeded."
        assert last_line(app, "b") == "The run succeeded."
        assert last_line(app, "c") == (
            "The board ran the image already: only the version was stored."
        )
        assert (last_line(old, "d")).startswith("The image was in the other slot already:")


@pytest.mark.slow
def test_another_projects_firmware_is_named_before_it_is_replaced(
    call: Call, tmp_path: Path
) -> None:
    """Naming the port is consent; a slip shows in the dry run, and while it can be stopped."""
    other = tmp_path / "other.bin"
    other.write_bytes(build_app("thermostat", "3.0", size_bytes=100_000))
    note = f'Note: replaces the project "{PROJECT}" by "thermostat".'
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        command = ("update", sim.boards[0].url, "--file", str(other), *QUICK)
        dry = call(*command, "--dry-run", "--json")
        assert note in dry.err
        (planned,) = json.loads(dry.out)["plan"].values()
        assert planned["replaces"] == {"project": PROJECT, "by": "thermostat"}
        done = call(*command)
        assert done.code == 0, done.out + done.err
        lines = done.out.splitlines()
        assert lines.count(note) == 1
        writing = [n for n, line in enumerate(lines) if "writing" in line or "verifying" in line]
        assert lines.index(note) < min(writing, default=len(lines))
        again = call(*command, "--force", "--json")
        assert "Note:" not in again.err
        assert "replaces" not in json.loads(again.out)["boards"]["board-1"]


@pytest.mark.slow
async def test_ctrl_c_behind_the_switch_is_too_late(tmp_path: Path) -> None:
    """The update finishes, so the command has done what it was called for."""
    app = image_file(tmp_path, "1.1.0")
    with SimProcess(tmp_path / "b", [SimBoard("guide")]) as sim:
        process = await start_command(
            *("update", sim.boards[0].url, "--file", str(app), "--boot-stable", "3"),
            env=environment(tmp_path),
        )
        await printed(process, b"booting")
        process.send_signal(signal.SIGINT)
        done = await ended(process, limit_s=30)
        assert done.code == 0, done
        assert done.out.splitlines()[-1] == "Too late to stop: the update was finished."
        assert sim.boards[0].control.running()["version"] == "1.1.0"


@pytest.mark.slow
async def test_a_url_is_fetched_and_a_bad_firmware_is_taken_back(tmp_path: Path) -> None:
    """Exit code 1, and one line that says what happened and what to do."""
    async with FirmwareServer.start() as server:
        bad = build_app(PROJECT, "2.0.0", size_bytes=80_000, behaviour=Behaviour(
            ending="panic", ending_after_s=0.2))  # fmt: skip
        url = server.put("/bad.bin", bad, login="me:s3cret").replace("//", "//me:s3cret@")
        with SimProcess(tmp_path / "boards", [SimBoard("micro-rdk")]) as sim:
            done = await run_command(
                *("update", sim.boards[0].url, "--url", url, "--version", "two", *QUICK),
                env=environment(tmp_path),
            )
            assert done.code == 1
            assert "rolled back" in done.out
            assert "[boot-failed]" in done.out
            assert "s3cret" not in done.out + done.err
            assert sim.boards[0].control.running()["version"] == "1.0.0"


@pytest.mark.slow
def test_another_board_at_the_same_port_is_welcome(call: Call, tmp_path: Path) -> None:
    """Who names a port means what is there now: boards are flashed one after another."""
    app = image_file(tmp_path, "1.1.0")
    with SimProcess(tmp_path / "boards", [SimBoard("guide"), SimBoard("guide")]) as sim:
        port = tmp_path / "port"
        for board in sim.boards:
            port.unlink(missing_ok=True)
            port.symlink_to(board.dir)
            done = call(*("update", f"esp32sim://{port}", "--file", str(app), *QUICK))
            assert done.code == 0, done.out + done.err
            assert board.control.running()["version"] == "1.1.0"


@pytest.mark.slow
async def test_ctrl_c_leaves_the_boards_bootable_and_says_so(tmp_path: Path) -> None:
    """In the middle of the writing: the old firmware runs when the command has ended, and of each
    board it is said which; a board that was not there was not touched."""
    app = tmp_path / "app.bin"
    app.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=700_000))
    timed = SimBoard("guide", config={"timed": True})
    with SimProcess(tmp_path / "b", [timed, timed]) as sim:
        urls = [*(board.url for board in sim.boards), f"esp32sim://{tmp_path}/b/nowhere"]
        process = await start_command(
            "update", *urls, "--file", str(app), env=environment(tmp_path)
        )
        await printed(process, b"board-2      writing 25 %")
        process.send_signal(signal.SIGINT)
        done = await ended(process, limit_s=20)
        assert done.code == 1, done
        assert "Stopping where that leaves every board bootable" in done.out
        for name in ("board-1", "board-2"):
            runs = f"{name} is left bootable: it runs factory (micro-rdk-server 1.0.0)."
            assert runs in done.out
        assert "nowhere was not touched." in done.out

        async def versions() -> list[str]:
            apps = [board.control.state().get("app") or {} for board in sim.boards]
            return [str(app.get("version")) for app in apps]

        await eventually(versions, lambda found: found == ["1.0.0", "1.0.0"], timeout_s=5)


def test_what_cannot_be_meant_is_wrong_usage(tmp_path: Path) -> None:
    """Exit code 2, before any port is opened."""
    app = str(image_file(tmp_path, "1.1.0"))
    wrong = [
        (("update", "/dev/ttyUSB0"), "either --url or --file"),
        (("update", "/dev/ttyUSB0", "--file", app, "--url", "http://x/a"), "either --url or"),
        (("update", "/dev/ttyUSB0", "--url", "http://x/a.bin"), "--version"),
        (("update", "/dev/ttyUSB0", "--url", "ftp://x/a.bin", "--version", "1"), "http://"),
        (("update", "/dev/ttyUSB0", "--url", "a.bin", "--version", "1"), "whole path, from / on"),
        (("update", "/dev/ttyUSB0", "--url", "file:///a", "--version", "1"), "the path alone"),
        (("update", "gopher://x", "--file", app), "port"),
        (("update", "/dev/ttyUSB0", "--file", app, "--boot-expect", "("), "boot_expect"),
        (("stage", "/dev/ttyUSB0"), "either --url or --file"),
        (("activate", "/dev/ttyUSB0", "--version", "1"), "either --url or --file"),
        (("verify", "/dev/ttyUSB0"), "either --url or --file"),
        (("verify", "/dev/ttyUSB0", "--url", "http://x/manifest.json"), "Give --version"),
        (("version", "/dev/ttyUSB0", "--all"), "not both"),
        (("rollback", "/dev/ttyUSB0", "--probe"), "not both"),
        (("inspect", "/dev/ttyUSB0", "/dev/ttyUSB1", "--reset", "by-hand"), "one board"),
        (
            (
                "update",
                "/dev/ttyUSB0",
                "/dev/ttyUSB1",
                "--file",
                app,
                "--rescue",
                "--confirm",
                "24:0a:c4:00:00:01",
            ),
            "one board",
        ),
    ]
    for arguments, words in wrong:
        done = here(*arguments)
        assert done.code == 2, (arguments, done)
        assert words in done.err, (arguments, done.err)
        assert "Traceback" not in done.err


def test_a_file_that_is_no_app_image_is_refused_first(call: Call, tmp_path: Path) -> None:
    """One line with the remedy and the code, whatever is at the port."""
    junk = tmp_path / "junk.bin"
    junk.write_bytes(b"\x00" * 5000)
    done = call("update", "/dev/ttyUSB77", "--file", str(junk))
    assert (done.code, done.out) == (1, "")
    (error,) = done.err.splitlines()
    assert error.startswith("Error: ")
    assert error.endswith("[not-an-image]")


@pytest.mark.slow
def test_what_never_began_is_told_as_not_updated(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A url that nobody serves, and a cache that cannot be: one line each, and what to do."""
    monkeypatch.setattr(download, "Patience", lambda: Patience(delays_s=(0.01,)))
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        url = sim.boards[0].url
        done = call("update", url, "--url", "http://127.0.0.1:9/a.bin", "--version", "2")
        assert done.code == 1
        assert "not updated" in done.out
        assert "[download-failed]" in done.out
        (tmp_path / "file").write_text("")
        app = str(image_file(tmp_path, "1.1.0"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        done = call("update", url, "--file", app)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"Error: The cache folder {tmp_path / 'file'}")
        assert "VIAM_MODULE_DATA" in done.err
        assert done.err.rstrip().endswith("[file-access]")
        assert sim.boards[0].control.running()["version"] == "1.0.0"


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    """With percent, rate and time left, within 80 columns; NO_COLOR keeps it without colours."""
    app = tmp_path / "app.bin"
    app.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=300_000))
    with SimProcess(tmp_path / "b", [SimBoard("guide", config={"timed": True})]) as sim:
        command = ("update", sim.boards[0].url, "--file", str(app), *QUICK)
        code, seen = on_terminal(*command, env=environment(tmp_path, NO_COLOR="1"))
        assert code == 0, seen
        assert "━" in seen
        assert "kB/s" in seen
        assert "\x1b[3" not in seen
        assert "up to date" in seen


@pytest.mark.slow
def test_a_board_without_a_mac_is_refused_with_words(call: Call, tmp_path: Path) -> None:
    """It could not be told from others; nothing of it is written or noted."""
    app = image_file(tmp_path, "1.1.0")
    board = SimBoard("guide", config={"mac": "00:00:00:00:00:00"})
    with SimProcess(tmp_path / "boards", [board]) as sim:
        url = sim.boards[0].url
        done = call("update", url, "--file", str(app), *QUICK)
        assert done.code == 1
        assert "hold 00:00:00:00:00:00 as its MAC" in done.err + done.out
        assert sim.boards[0].control.running()["version"] == "1.0.0"
