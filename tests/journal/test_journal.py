# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal remembers, across being closed and opened again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from ota_service.fleet import journal_attempts, journal_runs, journal_schema
from ota_service.fleet.journal import FILE_NAME, Journal, open_journal
from ota_service.fleet.journal_lock import prepare_folder
from ota_service.fleet.journal_rows import (
    AttemptRecord,
    BoardRecord,
    PendingRecord,
    SlotRecord,
    iso,
    parse_iso,
)
from ota_service.fleet.journal_store import Store

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
    layout="abc",
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A new journal."""
    with open_journal(tmp_path / "state") as opened:
        yield opened


def reopened(journal: Journal) -> Journal:
    """The same journal as the next process finds it."""
    journal.close()
    return open_journal(journal.folder)


def test_a_board_comes_back_as_it_was(journal: Journal) -> None:
    """Every field survives, with its type; what is not known stays so."""
    journal.save_board(BOARD)
    journal.save_board(BoardRecord(OTHER, version=""))
    journal = reopened(journal)
    assert journal.board(MAC) == BOARD
    assert journal.board(OTHER) == BoardRecord(OTHER, version="")
    assert journal.boards() == [BOARD, BoardRecord(OTHER, version="")]
    assert journal.board("aa:bb:cc:dd:ee:03") is None
    journal.close()


def test_update_board_changes_what_is_named(journal: Journal) -> None:
    """Other fields stay, and an unknown board is begun; a wrong field is an error at once."""
    journal.save_board(BOARD)
    assert journal.update_board(MAC, version="1.2.3", confirmed=True) == replace(
        BOARD, version="1.2.3", confirmed=True
    )
    assert journal.update_board(OTHER, chip="ESP32") == BoardRecord(OTHER, chip="ESP32")
    with pytest.raises(TypeError, match="colour"):
        journal.update_board(MAC, colour="red")


def test_a_port_has_one_board(journal: Journal) -> None:
    """A board seen at a port takes the place of the one that was seen there before."""
    journal.save_board(BOARD)
    assert journal.board_at("/dev/ttyUSB0") == journal.board_at("1-1.2") == BOARD
    newer = replace(BOARD, mac=OTHER, seen_at=THEN + timedelta(days=1))
    journal.save_board(newer)
    assert journal.board_at("1-1.2") == newer
    assert journal.board(MAC) == replace(BOARD, port=None, usb_location=None)


def test_slots(journal: Journal) -> None:
    """A slot's content is evidence until it is forgotten, before it is overwritten."""
    first = SlotRecord(MAC, "ota_0", "5d41", 1000, sha256="aa", version="1", installed_at=THEN)
    second = SlotRecord(MAC, "ota_1", "7d79", 2000, seen_running_at=THEN)
    for record in (first, second, replace(second, mac=OTHER)):
        journal.record_slot(record)
    journal = reopened(journal)
    slots = journal.slots(MAC)
    assert slots["ota_0"] == first
    assert slots["ota_1"].seen_running_at == THEN
    journal.forget_slot(MAC, "ota_1")
    assert journal.slots(MAC) == {"ota_0": first}
    journal.record_slot(replace(first, md5="0000", version="2"))
    assert journal.slots(MAC)["ota_0"].md5 == "0000"
    journal.forget_slots(MAC)
    assert journal.slots(MAC) == {}
    assert journal.slots(OTHER) == {"ota_1": replace(second, mac=OTHER)}
    journal.close()


def test_a_port_s_first_success_counts(journal: Journal) -> None:
    """Another board at a known port does not take its place by itself, only after `release`."""
    port = "/dev/serial/by-path/x"
    journal.learn_port(port, MAC, location="1-1.2", serial="0001")
    held = journal.learn_port(port, OTHER, location="1-1.3", serial=None)
    assert (held.mac, held.usb_location, held.usb_serial) == (MAC, "1-1.2", "0001")
    journal.set_wrong_board(port, "another MAC")
    journal = reopened(journal)
    assert journal.known_port(port) == replace(held, wrong_board="another MAC")
    journal.release(port)
    assert journal.known_port(port) is None
    assert journal.learn_port(port, OTHER).mac == OTHER
    journal.close()


def test_names_are_each_service_s_own(journal: Journal) -> None:
    """Two services may give one name to different boards."""
    journal.learn_name("OTA", "left", MAC)
    journal.learn_name("OTA2", "left", OTHER)
    assert journal.mac_of("OTA", "left") == MAC
    assert journal.mac_of("OTA2", "left") == OTHER
    assert journal.mac_of("OTA", "right") is None


def test_not_ours_until_release(journal: Journal) -> None:
    """Remembered per place, across restarts, and released by place or MAC."""
    journal.mark_not_ours("1-1.4", "other-project", MAC)
    journal.mark_not_ours("1-1.5", "no-answer")
    journal = reopened(journal)
    record = journal.not_ours("1-1.4")
    assert record is not None
    assert (record.reason, record.mac) == ("other-project", MAC)
    journal.release(MAC, "1-1.9")
    assert journal.not_ours("1-1.4") is None
    journal.release("1-1.5")
    journal.release("1-1.5")
    journal.release()
    journal.close()


def test_a_release_lets_a_port_try_its_highest_speed_again(journal: Journal) -> None:
    """What it fell back to was perhaps a bad cable's."""
    journal.record_baud("/dev/ttyUSB0", 115_200)
    journal.record_baud("/dev/ttyUSB1", 460_800)
    journal.release(MAC, "/dev/ttyUSB0")
    assert journal.fallback_baud("/dev/ttyUSB0") is None
    assert journal.fallback_baud("/dev/ttyUSB1") == 460_800
    journal.close()


def test_a_known_bridge_is_one_device_in_one_place(journal: Journal) -> None:
    """Something else plugged into the socket of a known bridge is not known."""
    journal.remember_bridge("1-1.2", "10c4:ea60:0001", MAC)
    journal.remember_bridge("1-1.3", None)
    journal = reopened(journal)
    assert journal.known_bridge("1-1.2", "10c4:ea60:0001") is not None
    assert journal.known_bridge("1-1.2", "1a86:7523:") is None
    assert journal.known_bridge("1-1.3", None) is not None
    journal.close()


def test_speeds(journal: Journal) -> None:
    """A port's last proven speed, up or down."""
    assert journal.fallback_baud("p") is None
    for baud in (921600, 460800):
        journal.record_baud("p", baud)
        assert journal.fallback_baud("p") == baud


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
        record = journal.end_attempt(
            MAC, "t", succeeded=False, counts=counts, code=code, message="m"
        )
        assert (record.failed, record.code, record.open_since) == (failed, code, None)
    assert journal.attempt(MAC, "u").failed == journal.attempt(OTHER, "t").failed == 0
    journal.begin_attempt(MAC, "t")
    record = journal.end_attempt(MAC, "t", succeeded=True)
    assert replace(record, updated_at=None) == AttemptRecord(MAC, "t")


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
    journal.end_attempt(MAC, "t", succeeded=False, code="no-answer", message="silence")
    first = journal.set_attempt_state(MAC, "t", "set_aside")
    again = journal.set_attempt_state(MAC, "t", "set_aside", code="boot-failed", message="panic")
    assert (first.code, first.message) == ("no-answer", "silence")
    assert (again.code, again.message, again.since) == ("boot-failed", "panic", first.since)
    journal.set_attempt_state(OTHER, "t", "rolled_back")
    journal = reopened(journal)
    assert journal.attempts(MAC) == [again]
    journal.release(MAC)
    assert journal.attempts(MAC) == []
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
    monkeypatch.setattr(journal_attempts, "MAX_ATTEMPT_ROWS", 5)
    for index in range(12):
        journal.begin_attempt(MAC, f"t{index:02}")
        journal.end_attempt(MAC, f"t{index:02}", succeeded=False)
    assert [record.target for record in journal.attempts(MAC)] == [
        f"t{i:02}" for i in range(11, 6, -1)
    ]


def test_pending_boards(journal: Journal) -> None:
    """What awaits confirmation is known to the next process."""
    record = PendingRecord(
        MAC, "t", "1.2.3", "ota_1", THEN, THEN + timedelta(seconds=120), "ota_0", "1.2.2"
    )
    journal.set_pending(record)
    journal = reopened(journal)
    assert journal.pending(MAC) == record
    journal.clear_pending(MAC)
    assert journal.pending(MAC) is None
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
    journal.lift("OTA")
    assert journal.stops("OTA", ["t"]) == {}
    journal.stop("OTA", "t", "again")
    assert journal.set_target("OTA", "u")
    assert journal.stops("OTA", ["u"]) == {}
    assert journal.stops("OTA", ["t"]) == {}, "another target was configured meanwhile"
    assert journal.target("OTA2") is None
    journal.close()


def test_confirmed_firmware(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest confirmed digests are known, a bounded number of them."""
    monkeypatch.setattr(journal_attempts, "MAX_CONFIRMED", 3)
    for digest in ("a", "b", "c", "a", "d"):
        journal.confirm_firmware(digest)
    known = [digest for digest in "abcd" if journal.firmware_confirmed(digest)]
    assert known == ["a", "c", "d"]


def test_a_run_s_life(journal: Journal) -> None:
    """A run's entry grows, ends, and is found by service, name, MAC and port."""
    run = journal.start_run("OTA", "configured", {"version": "1.2.3", "sha256": None})
    assert journal.run(run.id) == run
    journal.update_run_board(run.id, "left", {"mac": MAC, "port": "/dev/ttyUSB0", "to": "1.2.3"})
    journal.update_run_board(run.id, "left", {"mac": MAC, "port": "/dev/ttyUSB0", "seconds": 1.5})
    journal.update_run_board(run.id, "right", {"mac": OTHER, "error": {"code": "x", "y": None}})
    journal.finish_run(run.id, "partly", error={"code": "no-board"}, result={"plan": {}})
    second = journal.start_run("OTA2", "command", {})
    journal.finish_run(second.id, "succeeded")
    journal = reopened(journal)
    found = journal.run(run.id)
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
    assert journal.run("nothing") is None
    journal.close()


def test_history_has_no_none_in_it(journal: Journal) -> None:
    """What the verb replies leaves out keys without a value, at any depth."""
    run = journal.start_run("OTA", "command", {"sha256": None, "version": "1"}, run_id="r1")
    assert run.to_dict() == {
        "id": "r1",
        "service": "OTA",
        "trigger": "command",
        "target": {"version": "1"},
        "started_at": iso(run.started_at),
        "outcome": "running",
        "boards": {},
    }


def test_no_secret_of_a_url_is_kept(journal: Journal) -> None:
    """User info and query values of any url in any entry do not reach the file."""
    url = "http://me:hunter2@10.0.0.5:3001/app.bin?token=hunter2"
    run = journal.start_run("OTA", "command", {"url": url})
    journal.update_run_board(run.id, "left", {"error": {"message": f"no answer from {url}."}})
    result = {"deep": [{"url": url}]}
    journal.finish_run(run.id, "failed", error={"message": f"{url}: refused"}, result=result)
    journal.close()
    for path in journal.folder.iterdir():
        assert b"hunter2" not in path.read_bytes()
    found = journal.run(run.id)
    assert found is not None
    assert found.target["url"] == "http://***@10.0.0.5:3001/app.bin?token=***"


def test_an_open_run_is_interrupted_until_taken_up(journal: Journal) -> None:
    """The next process finds the run that was cut off, also after a second crash."""
    run = journal.start_run("OTA", "attached", {})
    done = journal.start_run("OTA", "attached", {})
    journal.finish_run(done.id, "succeeded")
    for _ in range(2):
        journal = reopened(journal)
        (found,) = journal.interrupted_runs("OTA")
        assert (found.id, found.outcome, found.interrupted) == (run.id, "failed", True)
        assert found.finished_at is not None
        assert found.to_dict()["interrupted"] is True
    assert journal.interrupted_runs("OTA2") == []
    journal.take_up(run.id)
    assert journal.interrupted_runs() == []
    assert journal.history()[-1].interrupted
    journal.close()


def test_history_is_bounded_in_number(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest runs stay, and one in progress stays however old."""
    monkeypatch.setattr(journal_runs, "MAX_RUNS", 5)
    old = journal.start_run("OTA", "command", {}, run_id="open")
    for index in range(9):
        run = journal.start_run("OTA", "command", {}, run_id=f"r{index}")
        journal.update_run_board(run.id, "left", {"n": index})
        journal.finish_run(run.id, "succeeded")
    kept = [run.id for run in journal.history(limit=100)]
    assert kept == ["r8", "r7", "r6", "r5", "r4"]
    assert journal.run(old.id) is not None
    (rows,) = journal._store.read("SELECT count(*) AS n FROM run_boards")
    assert rows["n"] == 5, "entries go with their runs"


def test_history_is_bounded_in_size(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large entries push old ones out."""
    monkeypatch.setattr(journal_runs, "MAX_HISTORY_BYTES", 50_000)
    for index in range(10):
        run = journal.start_run("OTA", "command", {}, run_id=f"r{index}")
        journal.update_run_board(run.id, "left", {"boot_log": "x" * 12_000})
        journal.finish_run(run.id, "succeeded")
    assert [run.id for run in journal.history()] == ["r9", "r8", "r7", "r6"]


def test_an_entry_is_bounded(journal: Journal) -> None:
    """A huge boot log is left out of its entry, the rest stays."""
    run = journal.start_run("OTA", "command", {})
    journal.update_run_board(run.id, "left", {"outcome": "failed", "boot_log": ["y" * 99] * 5000})
    found = journal.run(run.id)
    assert found is not None
    assert found.boards["left"] == {"outcome": "failed", "truncated": True}


def test_times_are_utc_and_sort_as_text() -> None:
    """Any time zone becomes UTC, always with microseconds, and comes back as the same moment."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert iso(moment) == "2026-01-02T01:04:05.000000Z"
    assert parse_iso(iso(moment)) == moment
    assert iso(moment) < iso(moment + timedelta(microseconds=1))


@pytest.mark.parametrize("nobody", ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"])
def test_what_stands_under_no_mac_is_of_nobody(tmp_path: Path, nobody: str) -> None:
    """Earlier versions noted boards under it: forgotten, but for which places are known."""
    prepare_folder(tmp_path)
    old = Store(tmp_path / FILE_NAME, migrations=journal_schema.MIGRATIONS[:2])
    for mac, port in ((nobody, "/dev/ttyACM0"), (MAC, "/dev/ttyACM1")):
        old.write(
            ("INSERT INTO boards (mac, version) VALUES (?, '1')", (mac,)),
            ("INSERT INTO slots (mac, slot, md5, size_bytes) VALUES (?, 'ota_0', 'm', 1)", (mac,)),
            ("INSERT INTO names VALUES ('OTA', ?, ?)", (port, mac)),
            ("INSERT INTO ports (port, mac, learned_at) VALUES (?, ?, ?)", (port, mac, iso(THEN))),
            ("INSERT INTO bridges VALUES (?, 'usb', ?, ?)", (port, mac, iso(THEN))),
            ("INSERT INTO not_ours VALUES (?, 'why', ?, ?)", (port, mac, iso(THEN))),
            ("INSERT INTO lines VALUES (?, ?, 921600)", (mac, port)),
            (
                "INSERT INTO pending (mac, target, version, slot, since, until) "
                "VALUES (?, 't', '1', 'ota_0', ?, ?)",
                (mac, iso(THEN), iso(THEN)),
            ),
            (
                "INSERT INTO attempts (board, target, failed, updated_at) VALUES (?, 't', 2, ?)",
                (mac, iso(THEN)),
            ),
        )
    old.close()
    with open_journal(tmp_path) as journal:
        assert [record.mac for record in journal.boards()] == [MAC]
        assert journal.slots(nobody) == {}
        assert journal.mac_of("OTA", "/dev/ttyACM0") is None
        assert journal.known_port("/dev/ttyACM0") is None
        assert journal.known_port("/dev/ttyACM1") is not None
        assert journal.pending(nobody) is None
        assert journal.attempts(nobody) == []
        assert journal.carried_baud(nobody, "/dev/ttyACM0") is None
        for place, whose in (("/dev/ttyACM0", None), ("/dev/ttyACM1", MAC)):
            left = journal.not_ours(place)
            assert left is not None
            assert left.mac == whose
        assert journal.mac_of("OTA", "/dev/ttyACM1") == MAC
        assert journal.slots(MAC)
        assert journal.pending(MAC) is not None
        assert [attempt.failed for attempt in journal.attempts(MAC)] == [2]
        learned = journal.learn_port("/dev/ttyACM0", OTHER)
        assert learned.mac == OTHER, "the board that is there now is the right one"


def test_one_unreadable_value_costs_that_value(journal: Journal) -> None:
    """Neither the history nor a board nor the next start is lost with it."""
    run = journal.start_run("OTA", "command", {"version": "1"})
    journal.update_run_board(run.id, "left", {"to": "1"})
    journal.finish_run(run.id, "failed", error={"code": "no-board"})
    journal.save_board(BOARD)
    journal._store.write(
        ("UPDATE runs SET target = 'x', error = '[1', started_at = 'yesterday'", ()),
        ("UPDATE run_boards SET data = '{'", ()),
        ("UPDATE boards SET version_read_at = 'never', flash_bytes = NULL", ()),
    )
    journal = reopened(journal)
    (found,) = journal.history()
    assert (found.id, found.target, found.error) == (run.id, {}, None)
    assert found.boards == {"left": {"truncated": True}}
    board = journal.board(MAC)
    assert board is not None
    assert (board.chip, board.version, board.version_read_at) == (BOARD.chip, BOARD.version, None)
    journal.close()
