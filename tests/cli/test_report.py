# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of `esp32-ota remote`: what a person reads in them."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from ota_service.cli.content_tables import _otadata
from ota_service.cli.contents import _board_otadata, otadata
from ota_service.cli.live import Live, frame
from ota_service.cli.report import history_table, print_run, print_status
from ota_service.errors import OtaError
from ota_service.formats.otadata import parse_otadata, take_away
from ota_service.formats.partitions import PartitionTable
from ota_service.link.chip import ChipInfo
from ota_service.update.boot import decisive
from ota_service.update.inspect import Inspection

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
    """Its own, not the service's above the table; the others have none there. Where none is pinned,
    as it mostly is, there is no such column."""
    target = {"url": URL, "version": "1.3.0-rc1"}
    lines = printed(status_with({"target": target}), columns)
    assert lines[0] == "version  1.2.3"
    (head,) = (line for line in lines if line.startswith("board"))
    assert head.split()[:5] == ["board", "state", "version", "pinned", "to"]
    (lab,) = (line for line in lines if line.startswith("lab"))
    assert lab.split()[:5] == ["lab", "outdated", "1.2.2", "1.3.0-rc1", "ota_0"]
    (kitchen,) = (line for line in lines if line.startswith("kitchen"))
    assert kitchen.split()[:4] == ["kitchen", "outdated", "1.2.2", "ota_0"]
    assert not any("pinned" in line for line in printed(status_with({}), columns))


def test_a_long_name_is_folded_and_leaves_the_others_their_room() -> None:
    """A MAC stays whole; nothing becomes a column of one character."""
    long, mac = "the-board-behind-the-left-hand-side-door-of-the-cellar", "24:0a:c4:12:34:56"
    status = status_with({})
    status["boards"] = dict.fromkeys((long, mac), status["boards"]["lab"])
    lines = printed(status, 80)
    assert all(len(line) <= 80 for line in lines)
    table = lines[[line.startswith("board") for line in lines].index(True) :]
    assert len(table) <= 1 + 4 + 1
    row = ["outdated", "1.2.2", "ota_0", "thermostat", "1.2.2"]
    (whole,) = (line for line in table if line.startswith(mac))
    assert whole.split()[1:] == [*row, "/dev/ttyUSB0"]


def test_it_says_when_a_version_was_read_and_what_there_is_no_room_for() -> None:
    """Somebody else may have written the board since; a column never goes in silence."""
    read = (datetime.now(UTC) - timedelta(minutes=2, seconds=5)).isoformat()
    status = status_with({})
    port = "/dev/serial/by-path/pci-0000:00:14.0-usb-0:1.3:1.0-port0"
    for board in status["boards"].values():
        board |= {"version_read_at": read, "port": port}
    status["run"] = {"outcome": "running", "started_at": read}
    for columns, left_out in ((60, "port, slot"), (80, "port"), (100, "port"), (140, "")):
        lines = printed(status, columns)
        (row,) = (line for line in lines if line.startswith("kitchen"))
        assert "2 min ago" in row
        assert row.endswith(port) is (not left_out)
        assert ("ota_0" in row) is ("slot" not in left_out)
        noted = [line for line in lines if line.startswith("No room for: ")]
        assert noted == ([f"No room for: {left_out} (--json has all)."] if left_out else [])
        assert "state    idle; its run has taken 2 min so far" in lines


def test_a_way_back_is_no_damage() -> None:
    """The entry that was taken away is void; one that is cut is damaged."""
    entry = bytes.fromhex("01000000" + "ff" * 20 + "02000000" + "9a984347")
    flash = entry + b"\xff" * 0xFE0 + b"\x02" + entry[1:] + b"\xff" * 0xFE0
    after = take_away(flash, base=0, sector=0).result
    found, table = parse_otadata(after), PartitionTable((), True)
    board = _board_otadata(Inspection(ChipInfo("ESP32", 0, "", 301, None), table, otadata=found))
    assert board is not None
    for entries in (otadata(found, table), board["entries"]):  # of a file, and of a board
        assert [str(line) for line in _otadata(entries, None)] == [
            "otadata 0  void, as a way back leaves it",
            "otadata 1  damaged",
        ]


def test_a_run_without_boards_says_so_once() -> None:
    """Where those that were asked for have said why they are not there."""
    gone = {"outcome": "absent", "error": OtaError("port-missing").to_dict()}
    run = {"outcome": "failed", "error": OtaError("no-board").to_dict()}
    for boards, told in (({"lab": gone}, False), ({"lab": {"outcome": "absent"}}, True)):
        console = Console(file=io.StringIO(), width=80)
        with console.capture() as captured:
            print_run(console, {**run, "boards": boards})
        assert ("[no-board]" in captured.get()) is told


def test_a_history_is_in_a_persons_words() -> None:
    """As the options are called."""
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(history_table([{"target": {"purpose": "plan"}, "outcome": "succeeded"}]))
    assert " dry run " in captured.get()


def test_what_decided_of_a_failed_start_is_shown_with_it() -> None:
    """The panic, what led there and the backtrace; not the registers, nor the start after it."""
    log = [
        "--- start of ota_0",
        *(f"I ({at}) boot: segment {at}" for at in range(20)),
        "I (320) app: ready",
        "Guru Meditation Error: Core  0 panic'ed (LoadProhibited). Exception was unhandled.",
        "Core  0 register dump:",
        "Backtrace: 0x400d3f57:0x3ffb4e70",
        "--- start of factory",
        "E (87) boot: ota data partition invalid, falling back to factory",
    ]
    error = OtaError("boot-failed", "The app panicked.").to_dict()
    board = {"outcome": "rolled_back", "error": error, "boot_log": log}
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    with console.capture() as captured:
        print_run(console, {"boards": {"attic": board, "lab": board}, "outcome": "failed"})
    shown = [line[4:] for line in captured.get().splitlines() if line.startswith("  | ")]
    assert shown == [log[20], log[21], log[22], log[24]]
    told = " ".join(captured.get().split())
    assert "attic, lab, as they started (the whole log: --json):" in told
    assert (
        "attic, lab: The app panicked. Correct the firmware, and configure a new version. [boot"
        in told
    )
    assert decisive(["--- start of ota_0", *"abcdef"]) == [*"cdef"]
    assert decisive([]) == []


def test_a_group_that_is_half_switched_is_told_wherever_a_run_is_shown() -> None:
    """Which boards have the new firmware alone, and what to do: in the status, while it goes on
    (once), at its end; and it costs a terminal no line more than there are."""
    names = [f"board {number}" for number in range(30)]
    run = {"outcome": "running", "manifest": {"version": "2", "half": ["bow", "stern"]}}
    boards = {name: {"state": "updating", "phase": "waiting"} for name in names}
    status = {"state": "updating", "boards": boards, "run": run}
    first = "Half switched: of a group only bow, stern have the new firmware."
    then = "Attach all of it and let it restart: the service or the next command ends it."
    assert f"{first} {then}" in printed(status, 200)
    console = Console(file=io.StringIO(), width=200, highlight=False, markup=False)
    with console.capture() as captured, Live(console) as live:
        live.show(status)
        live.show({**status, "run": {**run, "manifest": {"version": "2"}}})
        live.show({**status, "run": {**run, "manifest": {"half": ["bow"]}}})
        live.show({**status, "run": {**run, "manifest": {"half": ["bow"]}}})
        print_run(console, {**run, "outcome": "failed", "boards": {}})
    lines = [line.strip() for line in captured.get().splitlines()]
    alone = "Half switched: of a group only bow has the new firmware."
    assert [line for line in lines if "switched" in line] == [first, alone, f"{first} {then}"]
    with console.capture() as captured:
        console.print(frame(status, columns=80, lines=10))
    lines = captured.get().splitlines()
    assert len(lines) == 10
    assert [line.strip() for line in lines[-3:-1]] == [first, then]
    assert max(map(len, lines)) <= 80


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


def test_that_nobody_was_there_is_no_news_beside_a_board_that_says_why() -> None:
    """Only where no board has an error of its own."""
    nobody = {"code": "no-board", "message": "No board was found.", "remedy": "Attach one."}
    missing = {"code": "port-missing", "message": "The port is gone.", "remedy": "Attach it."}
    told = "\n".join(printed({**status_with({"error": missing}), "error": nobody}, 80))
    assert "The port is gone." in told
    assert "No board was found." not in told
    assert "No board was found." in "\n".join(printed({**status_with({}), "error": nobody}, 80))
