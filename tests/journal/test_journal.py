# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal remembers, across being closed and opened again."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import journal as journal_module
from ota_service.fleet import journal_runs
from ota_service.fleet import memory as memory_module
from ota_service.fleet.board_state import iso
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.journal_rows import (
    AttemptRecord,
    BoardRecord,
    FirmwareRecord,
    NameRecord,
    PendingRecord,
    PortRecord,
    Record,
    Run,
    SlotRecord,
    StopRecord,
    TargetRecord,
    to_sql,
)
from ota_service.fleet.journal_store import FILE_NAME
from ota_service.fleet.memory import Memory
from ota_service.link.chip import ChipInfo
from ota_service.link.ownership import mark_rewritten
from ota_service.link.ports import PortInfo
from ota_service.update.inspect import Inspection
from ota_service.update.session import Awaited

FIRST_RELEASE = Path(__file__).with_name("first_release.sql")
MAC = "aa:bb:cc:dd:ee:01"
OTHER = "aa:bb:cc:dd:ee:02"
THEN = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
BOARD = BoardRecord(
    mac=MAC,
    chip="ESP32",
    flash_bytes=8 << 20,
    port="/dev/ttyUSB0",
    usb_location="1-1.2",
    usb_serial="0001",
    seen_at=THEN,
    version="1.2.2",
    version_read_at=THEN,
    slot="ota_0",
    project="motor",
    app_version="7",
    confirmed=False,
)
HUB = PortInfo("/dev/ttyUSB0", location="1-1.2", vid=0x10C4, pid=0xEA60, serial_number="0001")
OTHER_HUB = replace(HUB, device="/dev/ttyUSB1", location="1-1.3")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A new journal."""
    with open_journal(tmp_path / "state") as opened:
        yield opened


def begun(
    journal: Journal, service: str, trigger: str, target: dict[str, Any], run_id: str | None = None
) -> Run:
    """A run that has just begun."""
    run_id = run_id or f"r{next(NUMBERS)}"
    journal.start_run(run_id, service, trigger, target)
    run = one(journal, run_id)
    assert run is not None
    return run


def one(journal: Journal, run_id: str) -> Run | None:
    """A run by its id."""
    return next(iter(journal.history(run_id=run_id)), None)


def slots_of(journal: Journal, mac: str) -> dict[str, SlotRecord]:
    """What is known of a board's slots."""
    return {slot.slot: slot for slot in journal.all(SlotRecord, mac=mac)}


def name_of(journal: Journal, service: str, name: str) -> str | None:
    """The MAC that a name stands for."""
    found = journal.get(NameRecord, service=service, name=name)
    return found.mac if found is not None else None


NUMBERS = itertools.count()


def reopened(journal: Journal) -> Journal:
    """The same journal as the next process finds it."""
    journal.close()
    return open_journal(journal.folder)


def test_a_board_comes_back_as_it_was(journal: Journal) -> None:
    """Every field survives, with its type; what is not known stays so."""
    journal.put(BOARD)
    journal.put(BoardRecord(OTHER, version=""))
    journal = reopened(journal)
    assert journal.board(MAC) == BOARD
    assert journal.board(OTHER) == BoardRecord(OTHER, version="")
    assert journal.all(BoardRecord) == [BOARD, BoardRecord(OTHER, version="")]
    assert journal.board("aa:bb:cc:dd:ee:03") is None
    journal.close()


def test_update_board_changes_what_is_named(journal: Journal) -> None:
    """Other fields stay, and an unknown board is begun; a wrong field is an error at once."""
    journal.put(BOARD)
    assert journal.update_board(MAC, version="1.2.3", confirmed=True) == replace(
        BOARD, version="1.2.3", confirmed=True
    )
    assert journal.update_board(OTHER, chip="ESP32") == BoardRecord(OTHER, chip="ESP32")
    with pytest.raises(TypeError, match="colour"):
        journal.update_board(MAC, colour="red")


def test_what_is_noted_too_late_is_forgotten_with_the_rest(journal: Journal) -> None:
    """A session's end is noted when its port is free again, and another program may have flashed
    the board by then: what was seen before that is not what it holds."""
    journal.put(BOARD)
    mark_rewritten(MAC)
    journal.update_board(MAC, version="1.2.3", confirmed=True)
    known = journal.board(MAC)
    assert known is not None
    assert (known.version, known.confirmed, known.port) == (None, None, BOARD.port)
    journal.update_board(MAC, version="1.2.4")
    assert journal.board(MAC) == replace(known, version="1.2.4")


def test_a_port_has_one_board(journal: Journal) -> None:
    """A board seen at a port takes the place of the one that was seen there before."""
    memory = Memory(journal, "OTA")
    journal.put(BOARD)
    assert memory.board_at(HUB) == memory.board_at(replace(HUB, location=None)) == BOARD
    assert memory.board_at(replace(HUB, serial_number="0002")) is None
    for port in (HUB.device, "/dev/ttyUSB7"):  # also by its place on the hub alone
        memory.learn_place(None, port, replace(HUB, device=port), OTHER)
        found = memory.board_at(HUB)
        assert found is not None
        assert (found.mac, found.port) == (OTHER, port)
        assert journal.board(MAC) == replace(BOARD, port=None, usb_location=None)
        journal.put(BOARD)


def test_a_rollback_leads_to_what_last_ran_elsewhere(journal: Journal) -> None:
    """Not to what runs, nor to what nobody saw run, nor to what was overwritten since."""
    memory, running = Memory(journal, "OTA"), replace(BOARD, slot="ota_1")
    journal.put(running)
    later = THEN.replace(year=2027)
    for slot in (
        SlotRecord(MAC, "ota_1", "01", 9, version="3", seen_running_at=later),
        SlotRecord(MAC, "ota_2", "02", 9, version="4"),
    ):
        journal.put(slot)
    assert memory.back(MAC) is None
    journal.put(SlotRecord(MAC, "factory", "03", 9, version="1", seen_running_at=THEN))
    assert memory.back(MAC) == {"slot": "factory", "version": "1"}
    journal.put(SlotRecord(MAC, "ota_0", "04", 9, app_version="2.0", seen_running_at=later))
    assert memory.back(MAC) == {"slot": "ota_0", "version": "2.0"}
    memory.overwrites(MAC, "ota_0")
    assert memory.back(MAC) == {"slot": "factory", "version": "1"}
    assert memory.back(OTHER) is None


def test_slots(journal: Journal) -> None:
    """A slot's content is evidence until it is forgotten, before it is overwritten."""
    first = SlotRecord(MAC, "ota_0", "5d41", 1000, sha256="aa", version="1", installed_at=THEN)
    second = SlotRecord(MAC, "ota_1", "7d79", 2000, seen_running_at=THEN)
    for record in (first, second, replace(second, mac=OTHER)):
        journal.put(record)
    journal = reopened(journal)
    slots = slots_of(journal, MAC)
    assert slots["ota_0"] == first
    assert slots["ota_1"].seen_running_at == THEN
    journal.drop(SlotRecord, mac=MAC, slot="ota_1")
    assert slots_of(journal, MAC) == {"ota_0": first}
    journal.put(replace(first, md5="0000", version="2"))
    assert slots_of(journal, MAC)["ota_0"].md5 == "0000"
    journal.drop(SlotRecord, mac=MAC)
    assert slots_of(journal, MAC) == {}
    assert slots_of(journal, OTHER) == {"ota_1": replace(second, mac=OTHER)}
    journal.close()


def test_a_port_s_first_success_counts(journal: Journal) -> None:
    """Another board at a known port does not take its place by itself, only after `release`."""
    port = "/dev/serial/by-path/x"
    journal.learn_port(port, MAC, location="1-1.2", serial="0001")
    held = journal.learn_port(port, OTHER, location="1-1.3", serial=None)
    assert (held.mac, held.usb_location, held.usb_serial) == (MAC, "1-1.2", "0001")
    journal.put(replace(held, wrong_board="another MAC"))
    journal = reopened(journal)
    assert journal.get(PortRecord, port=port) == replace(held, wrong_board="another MAC")
    journal.release(port)
    assert journal.get(PortRecord, port=port) is None
    assert journal.learn_port(port, OTHER).mac == OTHER
    journal.close()


def test_names_are_each_service_s_own(journal: Journal) -> None:
    """Two services may give one name to different boards."""
    journal.put(NameRecord("OTA", "left", MAC))
    journal.put(NameRecord("OTA2", "left", OTHER))
    assert name_of(journal, "OTA", "left") == MAC
    assert name_of(journal, "OTA2", "left") == OTHER
    assert name_of(journal, "OTA", "right") is None


def test_not_ours_until_release(journal: Journal) -> None:
    """Remembered per place, across restarts, and released by place or MAC."""
    Memory(journal, "OTA").mark_not_ours(HUB, "other-project", MAC)
    Memory(journal, "OTA").mark_not_ours(OTHER_HUB, "no-answer", None)
    journal = reopened(journal)
    memory = Memory(journal, "OTA")
    record = memory.not_ours(HUB)
    assert record is not None
    assert (record.reason, record.mac) == ("other-project", MAC)
    journal.release(MAC, "1-1.9")
    assert memory.not_ours(HUB) is None
    assert memory.not_ours(OTHER_HUB) is not None
    journal.release("1-1.3")
    assert memory.not_ours(OTHER_HUB) is None
    journal.release()
    journal.close()


def test_a_known_bridge_is_one_device_in_one_place(journal: Journal) -> None:
    """Something else plugged into the socket of a known bridge is not known."""
    Memory(journal, "OTA").learn_place("left", HUB.device, HUB, MAC)
    journal = reopened(journal)
    memory = Memory(journal, "OTA")
    assert memory.is_our_bridge(HUB)
    assert not memory.is_our_bridge(replace(HUB, vid=0x1A86, pid=0x7523))
    assert not memory.is_our_bridge(OTHER_HUB)
    journal.close()


def test_failures_are_counted_and_a_success_forgets_them(journal: Journal) -> None:
    """What the table of errors says decides what counts, unless the caller does."""
    assert journal.attempt(MAC, "t") == AttemptRecord(MAC, "t")
    for code, counts, failed in (
        ("no-answer", None, 1),
        ("port-busy", None, 1),
        ("port-busy", True, 2),
        ("verify-failed", False, 2),
        (None, None, 3),
    ):
        journal.begin_attempt(MAC, "t")
        error = OtaError(code, "m") if code is not None else None
        record = journal.end_attempt(MAC, "t", succeeded=False, counts=counts, error=error)
        assert (record.failed, record.code, record.open_since) == (failed, code, None)
    assert journal.attempt(MAC, "u").failed == journal.attempt(OTHER, "t").failed == 0
    journal.begin_attempt(MAC, "t")
    record = journal.end_attempt(MAC, "t", succeeded=True)
    assert replace(record, updated_at=None, seq=0) == AttemptRecord(MAC, "t")


def test_an_attempt_that_never_ended_counts(journal: Journal) -> None:
    """A process that dies in the middle of attempts uses them up: no loop wears a flash out."""
    for failed in (1, 2, 3):
        journal.begin_attempt(MAC, "t")
        assert journal.attempt(MAC, "t").open_since is not None
        journal = reopened(journal)
        record = journal.attempt(MAC, "t")
        assert (record.failed, record.open_since) == (failed, None)
    journal = reopened(journal)
    assert journal.attempt(MAC, "t").failed == 3
    journal.begin_attempt(MAC, "t")
    assert journal.begin_attempt(MAC, "t").failed == 4, "begun again without an end in between"
    journal.close()


def test_states_hold_until_release(journal: Journal) -> None:
    """Set aside, rolled back, held: across restarts, since the same moment, until `release`."""
    journal.end_attempt(MAC, "t", succeeded=False, error=OtaError("no-answer", "silence"))
    first = journal.set_attempt_state(MAC, "t", "set_aside")
    again = journal.set_attempt_state(MAC, "t", "set_aside", error=OtaError("boot-failed", "panic"))
    assert (first.code, first.message) == ("no-answer", "silence")
    assert (again.code, again.message, again.since) == ("boot-failed", "panic", first.since)
    journal.set_attempt_state(OTHER, "t", "rolled_back")
    journal = reopened(journal)
    assert journal.all(AttemptRecord, board=MAC) == [again]
    journal.release(MAC)
    assert journal.all(AttemptRecord, board=MAC) == []
    assert journal.attempt(OTHER, "t").state == "rolled_back"
    journal.close()


def test_release_does_not_forget_an_attempt_in_progress(journal: Journal) -> None:
    """Released while being written: the count begins anew, the open attempt is still known."""
    journal.end_attempt(MAC, "t", succeeded=False)
    journal.begin_attempt(MAC, "t")
    journal.release(MAC)
    record = journal.attempt(MAC, "t")
    assert (record.failed, record.state) == (0, "none")
    assert record.open_since is not None


def test_attempts_are_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old targets' rows go, the newest stay."""
    monkeypatch.setattr(journal_module, "MAX_ATTEMPT_ROWS", 5)
    for index in range(12):
        journal.begin_attempt(MAC, f"t{index:02}")
        journal.end_attempt(MAC, f"t{index:02}", succeeded=False)
    assert [record.target for record in journal.all(AttemptRecord, board=MAC)] == [
        f"t{i:02}" for i in range(11, 6, -1)
    ]


def test_pending_boards(journal: Journal) -> None:
    """What awaits confirmation is known to the next process."""
    record = PendingRecord(MAC, "t", "1.2.3", "ota_1", THEN, THEN + timedelta(seconds=120), "1.2.2")
    journal.put(record)
    journal = reopened(journal)
    assert journal.get(PendingRecord, mac=MAC) == record
    journal.drop(PendingRecord, mac=MAC)
    assert journal.get(PendingRecord, mac=MAC) is None
    journal.close()


def test_a_stopped_target_stays_stopped(journal: Journal) -> None:
    """Across restarts and the same target's configuration, until a person or another target."""
    assert journal.set_target("OTA", "t")
    journal.stop("OTA", "t", "3 of 4 boards failed to boot this firmware")
    journal = reopened(journal)
    assert not journal.set_target("OTA", "t")
    stopped = {"t": "3 of 4 boards failed to boot this firmware"}
    assert journal.stops("OTA", ["t", "pinned"]) == stopped
    assert journal.stops("OTA2", ["t"]) == {}
    journal.drop(StopRecord, service="OTA")
    assert journal.stops("OTA", ["t"]) == {}
    journal.stop("OTA", "t", "again")
    assert journal.set_target("OTA", "u")
    assert journal.stops("OTA", ["u"]) == {}
    assert journal.stops("OTA", ["t"]) == {}, "another target was configured meanwhile"
    assert journal.get(TargetRecord, service="OTA2") is None
    journal.close()


def test_confirmed_firmware(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest confirmed digests are known, a bounded number of them."""
    monkeypatch.setattr(journal_module, "MAX_CONFIRMED", 3)
    for digest in ("a", "b", "c", "a", "d"):
        journal.confirm_firmware(digest)
    known = [digest for digest in "abcd" if journal.get(FirmwareRecord, sha256=digest)]
    assert known == ["a", "c", "d"]


def test_a_run_s_life(journal: Journal) -> None:
    """A run's entry grows, ends, and is found by service, name, MAC and port."""
    run = begun(journal, "OTA", "configured", {"version": "1.2.3", "sha256": None})
    assert one(journal, run.id) == run
    journal.update_run_board(run.id, "left", {"mac": MAC, "port": "/dev/ttyUSB0", "to": "1.2.3"})
    journal.update_run_board(run.id, "left", {"mac": MAC, "port": "/dev/ttyUSB0", "seconds": 1.5})
    journal.update_run_board(run.id, "right", {"mac": OTHER, "error": {"code": "x", "y": None}})
    journal.finish_run(run.id, "partly", error={"code": "no-board"}, result={"plan": {}})
    second = begun(journal, "OTA2", "command", {})
    journal.finish_run(second.id, "succeeded")
    journal = reopened(journal)
    found = one(journal, run.id)
    assert found is not None
    assert found.boards == {
        "left": {"mac": MAC, "port": "/dev/ttyUSB0", "seconds": 1.5},
        "right": {"mac": OTHER, "error": {"code": "x"}},
    }
    assert (found.outcome, found.error, found.result) == (
        "partly",
        {"code": "no-board"},
        {"plan": {}},
    )
    assert found.target == {"version": "1.2.3"}
    assert [entry.id for entry in journal.history()] == [second.id, run.id]
    assert [entry.id for entry in journal.history("OTA")] == [run.id]
    assert [entry.id for entry in journal.history(limit=1)] == [second.id]
    for board in ("right", OTHER):
        (entry,) = journal.history(board=[board])
        assert list(entry.boards) == ["right"]
    assert journal.history(board=["/dev/ttyUSB0"])[0].id == run.id
    assert journal.history("OTA2", board=[MAC]) == []
    assert one(journal, "nothing") is None
    journal.close()


def test_history_has_no_none_in_it(journal: Journal) -> None:
    """What the verb replies leaves out keys without a value, at any depth."""
    run = begun(journal, "OTA", "command", {"sha256": None, "version": "1"}, run_id="r1")
    assert run.to_dict() == {
        "id": "r1",
        "service": "OTA",
        "trigger": "command",
        "target": {"version": "1"},
        "started_at": to_sql(run.started_at),
        "outcome": "running",
        "boards": {},
    }


def test_no_secret_of_a_url_is_kept(journal: Journal) -> None:
    """User info and query values of any url in any entry do not reach the file."""
    url = "http://me:hunter2@10.0.0.5:3001/app.bin?token=hunter2"
    run = begun(journal, "OTA", "command", {"url": url})
    journal.update_run_board(run.id, "left", {"error": {"message": f"no answer from {url}."}})
    result = {"deep": [{"url": url}]}
    journal.finish_run(run.id, "failed", error={"message": f"{url}: refused"}, result=result)
    journal.close()
    for path in journal.folder.iterdir():
        assert b"hunter2" not in path.read_bytes()
    found = one(journal, run.id)
    assert found is not None
    assert found.target["url"] == "http://***@10.0.0.5:3001/app.bin?token=***"


def test_an_open_run_is_interrupted_until_taken_up(journal: Journal) -> None:
    """The next process finds the run that was cut off, also after a second crash."""
    run = begun(journal, "OTA", "attached", {})
    done = begun(journal, "OTA", "attached", {})
    journal.finish_run(done.id, "succeeded")
    for _ in range(2):
        journal = reopened(journal)
        (found,) = [run for run in journal.history("OTA") if run.interrupted]
        assert (found.id, found.outcome, found.interrupted) == (run.id, "failed", True)
        assert found.finished_at is not None
        assert found.to_dict()["interrupted"] is True
    assert journal.take_up("OTA2") == []
    assert [found.id for found in journal.take_up("OTA")] == [run.id]
    assert journal.take_up("OTA") == []
    assert journal.history()[-1].interrupted
    journal.close()


def test_history_is_bounded_in_number(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest runs stay, and one in progress stays however old."""
    monkeypatch.setattr(journal_runs, "MAX_RUNS", 5)
    old = begun(journal, "OTA", "command", {}, run_id="open")
    for index in range(9):
        run = begun(journal, "OTA", "command", {}, run_id=f"r{index}")
        journal.update_run_board(run.id, "left", {"n": index})
        journal.finish_run(run.id, "succeeded")
    kept = [run.id for run in journal.history(limit=100)]
    assert kept == ["r8", "r7", "r6", "r5", "r4"]
    assert one(journal, old.id) is not None
    (rows,) = journal.read("SELECT count(*) AS n FROM run_boards")
    assert rows["n"] == 5, "entries go with their runs"


def test_history_is_bounded_in_size(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large entries push old ones out."""
    monkeypatch.setattr(journal_runs, "MAX_HISTORY_BYTES", 50_000)
    for index in range(10):
        run = begun(journal, "OTA", "command", {}, run_id=f"r{index}")
        journal.update_run_board(run.id, "left", {"boot_log": "x" * 12_000})
        journal.finish_run(run.id, "succeeded")
    assert [run.id for run in journal.history()] == ["r9", "r8", "r7", "r6"]


def test_an_entry_is_bounded(journal: Journal) -> None:
    """A huge boot log is left out of its entry, the rest stays."""
    run = begun(journal, "OTA", "command", {})
    journal.update_run_board(run.id, "left", {"outcome": "failed", "boot_log": ["y" * 99] * 5000})
    found = one(journal, run.id)
    assert found is not None
    assert found.boards["left"] == {"outcome": "failed", "truncated": True}


def test_times_are_utc_and_sort_as_text() -> None:
    """Any time zone becomes UTC, always with microseconds, and comes back as the same moment."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert iso(moment) == "2026-01-02T01:04:05Z"
    assert to_sql(moment) == "2026-01-02T01:04:05.000000Z"
    assert datetime.fromisoformat(str(to_sql(moment))) == moment
    assert str(to_sql(moment)) < str(to_sql(moment + timedelta(microseconds=1)))


def sample(kind: type[Record], text: str) -> Record:
    """A record with a value in each column."""
    values: dict[str, Any] = {
        "int": 1, "bool": True, "float": 1.5, "datetime": THEN, "bytes": b"\xe9",
        "dict[str, Any]": {"a": 1},
    }  # fmt: skip
    types = {name: str(field.type).partition(" | ")[0] for name, field in kind.columns().items()}
    return kind(**{name: values.get(typed, text) for name, typed in types.items()})


NOTED = Target.noted("t", "http://10.0.0.5/app.bin", "2", None)


@pytest.mark.parametrize("released", [True, False])
def test_a_journal_of_the_first_release_opens(tmp_path: Path, released: bool) -> None:
    """What it has is known, and it takes what a new one takes: each kind of record, in each
    column, in place of the one with the same keys."""
    if released:
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as old:
            old.executescript(FIRST_RELEASE.read_text("utf-8"))
    with open_journal(tmp_path) as journal:
        assert (journal.problem, journal.warning) == (None, None)
        if released:
            seen = BoardRecord(MAC, "ESP32", version="1.2.2", version_read_at=THEN)
            assert journal.board(MAC) == seen
            assert Memory(journal, "OTA").facts(MAC, NOTED).unwatched
            assert not journal.set_target("OTA", "t")
            staged = Memory(journal, "OTA").staged(MAC, NOTED)
            assert staged is not None
            assert staged.head == b"\xe9\x05"
            assert [run.id for run in journal.history()] == ["r1", "r2"]
            assert journal.history()[0].boards == {"left": {"to": "1.2.2"}}
        begun(journal, "OTA", "command", {}, run_id="r3")
        assert journal.history()[0].id == "r3"
        for kind in Record.__subclasses__():
            keys = dict.fromkeys(kind.KEYS, "k")
            for text in ("k", "l"):
                record = replace(sample(kind, text), **keys)
                journal.put(record)
                assert journal.all(kind, **keys) == [record]


def test_one_unreadable_value_costs_that_value(journal: Journal) -> None:
    """Neither the history nor a board nor the next start is lost with it."""
    run = begun(journal, "OTA", "command", {"version": "1"})
    journal.update_run_board(run.id, "left", {"to": "1"})
    journal.finish_run(run.id, "failed", error={"code": "no-board"})
    journal.put(BOARD)
    for sql in (
        "UPDATE runs SET target = 'x', error = '[1', started_at = 'yesterday'",
        "UPDATE run_boards SET data = '[1]'",
        "UPDATE boards SET version_read_at = 'never', flash_bytes = NULL",
    ):
        journal.write(sql)
    journal = reopened(journal)
    (found,) = journal.history()
    assert (found.id, found.target, found.error) == (run.id, {"truncated": True}, None)
    assert found.boards == {"left": {"truncated": True}}
    board = journal.board(MAC)
    assert board is not None
    assert (board.chip, board.version, board.version_read_at) == (BOARD.chip, BOARD.version, None)
    journal.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """What the machine's clock shows: the first of the list."""
    shown = [datetime(2026, 1, 1, tzinfo=UTC)]
    for module in (journal_module, memory_module, journal_runs):
        monkeypatch.setattr(module, "utc_now", lambda: shown[0])
    return shown


def test_a_clock_that_is_set_back_orders_nothing_anew(
    journal: Journal, clock: list[datetime]
) -> None:
    """What was tried and run last is last, whatever the time was."""
    for index, year in enumerate((2026, 1970, 2035, 2001)):
        clock[0] = datetime(year, 1, 1, tzinfo=UTC)
        journal.begin_attempt(MAC, f"t{index}")
        journal.end_attempt(MAC, f"t{index}", succeeded=False)
        begun(journal, "OTA", "command", {}, f"n{index}")
    assert [attempt.target for attempt in journal.all(AttemptRecord, board=MAC)] == [
        "t3",
        "t2",
        "t1",
        "t0",
    ]
    assert [run.id for run in journal.history()] == ["n3", "n2", "n1", "n0"]


def test_what_was_read_before_an_attempt_is_no_evidence_whatever_the_clock_says(
    journal: Journal, clock: list[datetime]
) -> None:
    """Read at noon, tried at midnight of 1970, cut off: the board is looked at again."""
    journal.update_board(MAC, version="1", version_read_at=clock[0], confirmed=True)
    clock[0] = datetime(1970, 1, 1, tzinfo=UTC)
    journal.begin_attempt(MAC, "t")
    board = journal.board(MAC)
    assert board is not None
    assert board.version_read_at is None
    assert board.confirmed  # what runs is the same until otadata is switched


def test_a_board_is_left_alone_for_its_time_whatever_the_clock_says(
    journal: Journal, clock: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seconds since the machine's start count; after another start, the whole time again."""
    up: list[Any] = ["first", 1000.0]
    monkeypatch.setattr(memory_module, "uptime", lambda: tuple(up))
    memory = Memory(journal, "OTA")
    memory.awaits(MAC, "t", version="2", slot="ota_1", seconds=120, previous_version="1")
    left = []
    for boot, up_s, year in (
        *(("first", 1030.0, 2035), ("first", 1030.0, 1970), ("first", 1200.0, 1970)),
        ("second", 10.0, 2035),
    ):
        up[:], clock[0] = [boot, up_s], datetime(year, 1, 1, tzinfo=UTC)
        awaited = memory.awaited(MAC)
        assert awaited is not None
        left.append(awaited[1])
    assert left == [90.0, 90.0, 0.0, 120.0]


def test_power_that_failed_during_a_confirmation_is_remembered(journal: Journal) -> None:
    """A process that is killed then must not blame the firmware."""
    memory = Memory(journal, "OTA")
    memory.awaits(MAC, "t", version="2", slot="ota_1", seconds=120, previous_version="1")
    for failed in (False, True):
        awaited = memory.awaited(MAC)
        assert awaited is not None
        assert awaited[0] == Awaited("ota_1", "1", failed, "2", "t")
        memory.power_failed(MAC)
        journal = reopened(journal)
        memory = Memory(journal, "OTA")
    journal.close()


def test_a_silent_bootloader_is_remembered(journal: Journal) -> None:
    """As it was last listened to; a look that did not listen changes nothing."""
    memory = Memory(journal, "OTA")
    chip = ChipInfo("ESP32", 0, MAC, 301, 4 << 20)
    target = Target("http://10.0.0.5/app.bin", "1")
    assert not memory.facts(MAC, target).silent
    for heard, silent in ((True, True), (None, True), (False, False)):
        memory.saw(Inspection(chip, silent=heard))
        assert memory.facts(MAC, target).silent is silent
    journal.close()
