# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota backup` and `restore` on simulated boards."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from esp32_sim.factory import build_nvs, default_nvs
from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.firmware.target import Target
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.journal_rows import SlotRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.places import Place, stands_in
from ota_service.link.ports import PortInfo
from tests.flash.in_memory import keys
from tests.flash.merged_files import merged
from tests.support.command import command, environment, on_terminal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK = ("--boot-timeout", "4", "--boot-stable", "0.5")
NVS = LAYOUTS["guide"].find("nvs")
TARGET = Target("http://10.0.0.5/app.bin", "1.0.0")


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[list[RunningBoard]]:
    """Two boards with the guide's table, whose app prints its secrets at every start."""
    app = build_app(size_bytes=60_000, behaviour=Behaviour(print_secrets=True))
    with SimProcess(tmp_path / "boards", [SimBoard("guide", app=app)] * 2) as sim:
        yield sim.boards


def backup(board: RunningBoard, folder: Path, *options: str, code: int = 0) -> str:
    """What `backup` prints."""
    done = command("backup", board.url, str(folder), *options, code=code)
    return done.out if code == 0 else done.err


def restore(board: RunningBoard, folder: Path, state: Path, *options: str, code: int = 0) -> str:
    """What `restore` prints, on both."""
    options = ("--state-dir", str(state), *QUICK, *options)
    done = command("restore", board.url, str(folder), *options, code=code)
    return done.out + done.err


def nvs(board: RunningBoard) -> bytes:
    """Its NVS partition."""
    return board.control.read_flash(NVS.offset, NVS.size)


def provision(board: RunningBoard, **values: str) -> None:
    """Give it these keys instead of its own."""
    board.control.write_flash(NVS.offset, build_nvs(NVS.size, values))


def place(board: RunningBoard) -> Place:
    """As if it were on a bridge that has been there for long."""
    then, port = datetime(2020, 1, 1, tzinfo=UTC), f"/dev/tty-{board.mac}"
    return Place("a", "here", port, PortInfo(port, location=board.mac, appeared_at=then), board.mac)


def learn(journal: Journal, board: RunningBoard) -> None:
    """Note all that a service may have seen on a board."""
    memory, mac, now = Memory(journal, "OTA"), board.mac, datetime.now(UTC)
    at = place(board)
    memory.learn_place("a", str(at.port), at.info, mac)
    seen = {"version": "1.0.0", "version_read_at": now, "slot": "ota_0", "silent": True}
    journal.update_board(mac, **seen)
    journal.put(SlotRecord(mac, "ota_0", "0" * 32, 60_000, seen_running_at=now))
    memory.awaits(mac, TARGET.key, version="1.0.0", slot="ota_0", seconds=60, previous_version=None)


def knows(journal: Journal, board: RunningBoard) -> bool:
    """Whether it goes by that, as far as it has come to look."""
    memory, mac = Memory(journal, "OTA"), board.mac
    proven = stands_in(place(board), memory, "1.0.0")
    facts, awaited = memory.facts(mac, TARGET), memory.awaited(mac) is not None
    assert {bool(facts.slots), facts.silent, facts.last_slot == "ota_0", awaited} == {proven}
    seen = journal.board(mac)
    assert seen is not None
    assert seen.usb_location == mac, "where it is, is known all the same"
    return proven


def test_a_backup_is_read_without_a_write_and_names_its_place(
    boards: list[RunningBoard], tmp_path: Path
) -> None:
    """Files of mode 600, one JSON; for another board and for fewer keys another folder is asked."""
    first, second = boards
    folder = tmp_path / "kept"
    first.control.start_trace()
    text = backup(first, folder)
    assert [op for op in first.control.stop_trace() if op["who"] == "loader"] == []
    assert first.control.running()
    assert f"{first.mac}: ESP32, flash 8 MB" in text
    assert f"`esp32-ota restore {first.url} {folder}` puts them back." in text
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    reply = json.loads(backup(first, folder, "--json"))
    told = json.loads((folder / "backup.json").read_text())
    assert (reply["ok"], reply["mac"], reply["dir"]) == (True, first.mac, str(folder))
    assert reply["nvs"][0]["sha256"] == told["nvs"][0]["sha256"]
    for secret in ("workshop", "wifi-"):
        assert secret not in text + str(reply) + str(told)

    assert "wrong-board" in backup(second, folder, code=1)
    provision(first, WIFI_SSID="x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "Name another folder" in backup(first, folder, code=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_backup_of_a_flash_brings_the_keys_back(
    boards: list[RunningBoard], tmp_path: Path
) -> None:
    """Flashed without the keys, then restored by the command that the flash has named. A service
    with a journal of its own believes neither time what it knew of the board."""
    board = boards[0]
    before = nvs(board)
    service = open_journal(tmp_path / "service")
    learn(service, board)
    learn(service, boards[1])
    assert knows(service, board)
    file = tmp_path / "m.bin"
    # Its table is another one: the board's own stays, and its otadata.
    file.write_bytes(merged("micro-rdk", flash_mb=8, size_bytes=60_000))
    state = tmp_path / "state"
    done = command("flash", board.url, str(file), "--state-dir", str(state), *QUICK)
    assert not knows(service, board)
    learn(service, board)
    (line,) = [line for line in done.out.splitlines() if "puts it back" in line]
    words = line.split("`")[1].split()
    assert words[:3] == ["esp32-ota", "restore", board.url]
    text = restore(board, Path(words[3]), state)
    assert "Done: the board has its backup, and was seen to start." in text
    assert "its table and otadata stay" in " ".join(text.split())  # wherever a line ends
    assert 'Its NVS holds version "1.0.0".' in text
    part = LAYOUTS["micro-rdk"].find("nvs")
    assert keys(board.control.read_flash(part.offset, part.size)) == keys(before)
    assert not knows(service, board)
    learn(service, board)
    assert "nothing is written" in restore(board, Path(words[3]), state)
    assert knows(service, board)
    assert knows(service, boards[1])
    service.close()


def test_a_restore_that_lost_its_power_is_finished_by_the_same_again(
    boards: list[RunningBoard], tmp_path: Path
) -> None:
    """Nothing starts meanwhile; the words say what to do; no secret is shown."""
    board = boards[0]
    backup(board, tmp_path / "kept")
    before = nvs(board)
    provision(board, WIFI_SSID="elsewhere", WIFI_PASSWORD="hunter2hunter2")
    board.control.cut_power_at(9, "torn")
    text = restore(board, tmp_path / "kept", tmp_path / "state", code=1)
    assert "link-lost" in text
    assert "Call restore again: the board starts nothing until it is written whole." in text
    board.control.power_on()
    assert board.control.read_flash(0x8000, 0x1000) == b"\xff" * 0x1000
    text += restore(board, tmp_path / "kept", tmp_path / "state", "--json")
    assert nvs(board) == before
    assert board.control.running()["slot"] == "factory"
    assert '"written": true' in text
    secrets = default_nvs(seed=0)
    for secret in ("hunter2hunter2", str(secrets["ROBOT_SECRET"])):
        assert secret not in text


def test_another_board_has_to_be_confirmed(boards: list[RunningBoard], tmp_path: Path) -> None:
    """One that replaces a broken one gets its NVS; a slip of the port writes nothing."""
    first, second = boards
    backup(first, tmp_path / "kept")
    provision(second, WIFI_SSID="x")
    second.control.start_trace()
    state = tmp_path / "state"
    text = restore(second, tmp_path / "kept", state, code=1)
    assert "wrong-board" in text
    assert first.mac in text
    assert second.mac in text
    text = restore(second, tmp_path / "kept", state, "--confirm", first.mac, code=1)
    assert "wrong-board" in text
    assert [op for op in second.control.stop_trace() if op["who"] == "loader"] == []
    text = restore(second, tmp_path / "kept", state, "--confirm", second.mac.upper())
    assert "of another board, so that only its NVS is written" in text
    assert keys(nvs(second)) == keys(nvs(first))
    assert "backup-invalid" in restore(first, tmp_path / "nowhere", state, code=1)


def test_on_a_terminal_it_asks_first(boards: list[RunningBoard], tmp_path: Path) -> None:
    """A no writes nothing, and the board runs."""
    board = boards[0]
    backup(board, tmp_path / "kept")
    provision(board, WIFI_SSID="x")
    before = nvs(board)
    words = ("restore", board.url, str(tmp_path / "kept"), *QUICK)
    env = environment(tmp_path)
    code, seen = on_terminal(*words, env=env, columns=200, typed=b"n\n")
    assert (code, "Nothing was written." in seen) == (1, True), seen
    assert nvs(board) == before
    assert board.control.running()
    code, seen = on_terminal(*words, env=env, columns=200, typed=b"y\n")
    assert code == 0, seen
    assert keys(nvs(board)).keys() > keys(before).keys()


def test_a_board_in_its_confirmation_is_left_as_it_was(tmp_path: Path) -> None:
    """Its bootloader would take a reset for a failure; so it gets its time again."""
    app = build_app(size_bytes=60_000, behaviour=Behaviour(confirm_after_s=None))
    spec = SimBoard("guide", app=app, slot="ota_1", otadata="new", config={"rollback": True})
    with SimProcess(tmp_path / "boards", [spec]) as sim:
        board = sim.boards[0]
        assert board.control.running()["slot"] == "ota_1"
        backup(board, tmp_path / "kept")
        assert board.control.running()["slot"] == "ota_1"
        provision(board, WIFI_SSID="x")
        text = restore(board, tmp_path / "kept", tmp_path / "state", code=1)
        assert "awaiting-confirmation" in text
        assert board.control.running()["slot"] == "ota_1"
