# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal survives: kills, damage, full disks, other processes, other versions."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ota_service.errors import OtaError
from ota_service.fleet.journal import FILE_NAME, Journal, open_journal
from ota_service.fleet.journal_lock import FolderLock
from ota_service.fleet.journal_store import Store

MAC = "aa:bb:cc:dd:ee:01"


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process, killed at the end; its first line says that it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def put(store: Store, key: str, value: str) -> None:
    """Store any value, in the plainest of the tables."""
    store.write("INSERT OR REPLACE INTO confirmed_firmware VALUES (?, ?)", key, value)


def at(folder: Path, **options: Any) -> Store:
    """A store in a folder."""
    return Store(FolderLock(folder), **options)


def is_safe(store: Store) -> bool:
    """Whether the file has everything."""
    return store.problem is None


def noted(journal: Journal, key: str) -> str | None:
    """A value that a test has put into a journal."""
    rows = journal.read("SELECT at FROM confirmed_firmware WHERE sha256 = ?", key)
    return str(rows[0]["at"]) if rows else None


def in_file(path: Path, key: str) -> str | None:
    """The value that another process would find, read from a copy of the files."""
    copy = path.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for found in path.parent.glob(f"{path.name}*"):
        shutil.copy(found, copy)
    connection = sqlite3.connect(copy / path.name)
    try:
        row = connection.execute(
            "SELECT at FROM confirmed_firmware WHERE sha256 = ?", (key,)
        ).fetchone()
    finally:
        connection.close()
    return str(row[0]) if row else None


# --- modes


def test_modes(tmp_path: Path) -> None:
    """Folder 700, every file in it 600, whatever the umask, also while it is open."""
    old = os.umask(0)
    try:
        with open_journal(tmp_path / "a" / "state") as journal:
            put(journal, "k", "v")
            names = sorted(path.name for path in journal.folder.iterdir())
            assert names == ["journal.lock", "journal.sqlite3", "journal.sqlite3-wal"]
            for path in journal.folder.iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
            assert stat.S_IMODE(journal.folder.stat().st_mode) == 0o700
    finally:
        os.umask(old)


def test_an_empty_folder_is_made_private_a_shared_one_is_left(tmp_path: Path) -> None:
    """Only a folder that is the journal's alone is closed to others."""
    for name, mode in (("empty", 0o700), ("shared", 0o755)):
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(0o755)
        if name == "shared":
            (folder / "something").touch()
        with open_journal(folder):
            assert stat.S_IMODE(folder.stat().st_mode) == mode


# --- one a process, one process


def test_services_share_one_journal(tmp_path: Path) -> None:
    """Opened twice it is the same one; it ends with its last user, and then opens anew."""
    (tmp_path / "link").symlink_to(tmp_path / "state")
    first = open_journal(tmp_path / "state")
    second = open_journal(str(tmp_path / "link"))
    assert first is second
    first.close()
    put(second, "k", "v")
    second.close()
    with open_journal(tmp_path / "state") as third:
        assert third is not first
        assert noted(third, "k") == "v"


def test_two_folders_in_one_process(tmp_path: Path) -> None:
    """Services that name different folders are told both."""
    with open_journal(tmp_path / "one"), pytest.raises(OtaError) as caught:
        open_journal(tmp_path / "two")
    assert caught.value.code == "config-invalid"
    assert str(tmp_path / "one") in caught.value.message
    assert str(tmp_path / "two") in caught.value.message
    assert not (tmp_path / "two").exists()
    open_journal(tmp_path / "two").close()


HOLDER = """
import sys
from ota_service.fleet.journal import open_journal
sys.argv[0] = "/opt/bin/esp32-ota"
journal = open_journal(sys.argv[1])
journal.write("INSERT OR REPLACE INTO confirmed_firmware VALUES (?, ?)", "k", "theirs")
print("ready", flush=True)
sys.stdin.read()
"""


def test_another_process_is_named(tmp_path: Path) -> None:
    """`state-busy` says who has the folder; when that process is killed, the folder is free."""
    with process(HOLDER, str(tmp_path), "--url", "http://me:hunter2@host") as child:
        with pytest.raises(OtaError, match=f"pid {child.pid} \\(esp32-ota\\)") as caught:
            open_journal(tmp_path)
        assert caught.value.code == "state-busy"
        assert "hunter2" not in (tmp_path / "journal.lock").read_text()
    with open_journal(tmp_path) as journal:
        assert noted(journal, "k") == "theirs"


# --- kills


WRITER = """
import sys
from ota_service.fleet.journal import open_journal
journal = open_journal(sys.argv[1])
print("ready", flush=True)
noted = journal.read("SELECT at FROM confirmed_firmware WHERE sha256 = 'n'")
number = int(noted[0][0] if noted else 0)
while True:
    number += 1
    journal.begin_attempt("board", f"t{number}")
    journal.write("INSERT OR REPLACE INTO confirmed_firmware VALUES (?, ?)", "n", str(number))
    journal.end_attempt("board", f"t{number}", succeeded=False)
    print(number, flush=True)
"""


@pytest.mark.parametrize(
    "kill", [0, 1, 2, *(pytest.param(kill, marks=pytest.mark.slow) for kill in range(3, 10))]
)
def test_killed_in_the_middle_of_writes(tmp_path: Path, kill: int) -> None:
    """Whatever a write has returned for is there after SIGKILL, and nothing is damaged."""
    with process(WRITER, str(tmp_path)) as child:
        assert child.stdout is not None
        for _ in range(1 + 3 * kill):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().split()
    with open_journal(tmp_path) as journal:
        assert journal.warning is None
        assert journal.problem is None
        number = int(noted(journal, "n") or 0)
        said = int(lines[-1]) if lines else 1 + 3 * kill
        assert number in (said, said + 1)
        assert journal.attempt("board", f"t{said}").failed == 1


def test_writes_wait_for_the_disk(tmp_path: Path) -> None:
    """A power cut cannot be had here, so SQLite is asked: commits are synchronous, in WAL."""
    store = at(tmp_path)
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    store.close()


def test_a_wrong_statement_changes_nothing(tmp_path: Path) -> None:
    """A transaction with an error in it leaves neither half of itself, nor a problem."""
    path = tmp_path / FILE_NAME
    store = at(tmp_path)

    def both() -> None:
        put(store, "k", "v")
        store.write("INSERT INTO nothing VALUES (1)")

    with pytest.raises(sqlite3.Error):
        store.whole(both)
    assert store.read("SELECT * FROM confirmed_firmware") == []
    put(store, "l", "v")
    assert is_safe(store)
    assert in_file(path, "k") is None
    assert in_file(path, "l") == "v"
    store.close()


# --- damage


def damaged(kind: str, good: bytes) -> bytes:
    """A journal's file in some state that a disk may leave it in."""
    if kind == "text":
        return b"this is no database\n" * 500
    if kind == "header":
        return b"\xff" * 100 + good[100:]
    if kind == "zeros":
        return bytes(len(good))
    if kind == "half":
        return good[: len(good) // 2]
    return good[:4096] + b"\xa5" * (len(good) - 4096)


@pytest.mark.parametrize("kind", ["text", "header", "zeros", "half", "pages"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, kind: str) -> None:
    """It is renamed, not removed; a warning says so; the journal begins anew and works."""
    path = tmp_path / FILE_NAME
    with open_journal(tmp_path) as journal:
        put(journal, "k", "v")
    bad = damaged(kind, path.read_bytes())
    path.write_bytes(bad)
    with open_journal(tmp_path) as journal:
        assert journal.warning is not None
        (aside,) = tmp_path.glob("journal.damaged-*.sqlite3")
        assert aside.name in journal.warning
        assert aside.read_bytes() == bad
        assert noted(journal, "k") is None
        put(journal, "k", "new")
        assert journal.problem is None
    with open_journal(tmp_path) as journal:
        assert journal.warning is None
        assert noted(journal, "k") == "new"


def test_damaged_twice_in_a_second(tmp_path: Path) -> None:
    """Two damaged files do not overwrite each other."""
    for _ in range(2):
        (tmp_path / FILE_NAME).write_bytes(b"no database" * 100)
        open_journal(tmp_path).close()
    assert len(list(tmp_path.glob("journal.damaged-*.sqlite3"))) == 2


def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    """A file that was made and never written is no damage."""
    (tmp_path / FILE_NAME).touch()
    with open_journal(tmp_path) as journal:
        assert journal.warning is None
        assert journal.problem is None


# --- a disk that does not take what is written


FULL = """
import json, os, resource, sys
from pathlib import Path
from ota_service.fleet.journal_lock import FolderLock
from ota_service.fleet.journal_store import Store

def put(store, key, value):
    store.write("INSERT OR REPLACE INTO confirmed_firmware VALUES (?, ?)", key, value)

def limit(soft):
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

path = Path(sys.argv[1])
store = Store(FolderLock(path.parent), retry_s=0)
put(store, "before", "1")
limit(os.path.getsize(f"{path}-wal") + 5000)
problems = []
for number in range(20):
    put(store, f"k{number}", "x" * 3000)
    problems.append(store.problem.message if store.problem else "")
seen = [row["sha256"] for row in store.read("SELECT sha256 FROM confirmed_firmware")]
limit(resource.RLIM_INFINITY)
put(store, "after", "1")
print(json.dumps([problems, sorted(seen), store.problem is None]), flush=True)
os._exit(0)  # without closing: what is in the file now must be enough
"""


@pytest.mark.slow
def test_a_full_disk_does_not_stop_writes(tmp_path: Path) -> None:
    """Writes go on in memory with a problem shown, and all of it reaches the file later.

    The limit on the size of files stands for the full disk.
    """
    path = tmp_path / FILE_NAME
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True
    )
    problems, seen, solved = json.loads(done.stdout)
    (message, *_) = {problem for problem in problems if problem} or [""]
    assert message, "the disk never was full"
    assert seen == sorted(["before", *(f"k{number}" for number in range(20))])
    assert str(path) in message
    assert solved
    for key in (*seen, "after"):
        assert in_file(path, key) is not None


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size at `folder`; needs root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(tmp_path: Path) -> None:
    """On a file system without room a new journal works in memory, as `disk-full`."""
    with small_disk(tmp_path, "256k"):
        ballast = tmp_path / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(1 << 20))
        store = at(tmp_path, retry_s=0)
        put(store, "k", "v")
        assert store.problem is not None
        assert store.problem.code == "disk-full"
        assert len(store.read("SELECT * FROM confirmed_firmware")) == 1
        ballast.unlink()
        store.retry()
        assert is_safe(store)
        store.close()
        again = at(tmp_path)
        assert len(again.read("SELECT * FROM confirmed_firmware")) == 1
        again.close()


def test_a_refused_file_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """Each write does not copy everything to a disk that has just refused it; `retry` does."""
    path = tmp_path / FILE_NAME
    store = at(tmp_path, retry_s=3600)
    shutil.rmtree(tmp_path)
    tmp_path.touch()  # a file in the folder's place
    put(store, "k", "1")
    assert not is_safe(store)
    tmp_path.unlink()
    tmp_path.mkdir()
    put(store, "k", "2")
    assert not is_safe(store)
    assert not path.exists()
    store.retry()
    assert is_safe(store)
    assert in_file(path, "k") == "2"
    store.close()


def test_a_file_damaged_while_it_is_in_use(tmp_path: Path) -> None:
    """A file that comes back as nonsense is set aside, and memory is written anew."""
    path = tmp_path / FILE_NAME
    store = at(tmp_path, retry_s=0)
    put(store, "k", "1")
    shutil.rmtree(tmp_path)
    tmp_path.touch()  # a file in the folder's place
    put(store, "l", "1")
    assert not is_safe(store)
    tmp_path.unlink()
    tmp_path.mkdir()
    path.write_bytes(b"no database" * 100)
    put(store, "m", "1")
    assert is_safe(store)
    assert store.warning is not None
    assert [in_file(path, key) for key in "klm"] == ["1", "1", "1"]
    assert len(list(tmp_path.glob("journal.damaged-*.sqlite3"))) == 1
    store.close()


def test_a_removed_file_is_made_again(tmp_path: Path) -> None:
    """Whoever removes the file of a running process does not make it forget."""
    path = tmp_path / FILE_NAME
    store = at(tmp_path, retry_s=0)
    put(store, "k", "1")
    for found in tmp_path.glob(f"{FILE_NAME}*"):
        found.unlink()
    put(store, "l", "1")
    assert is_safe(store)
    assert in_file(path, "k") == in_file(path, "l") == "1"
    store.close()


def test_a_new_file_with_the_number_of_the_old_one_gets_everything(tmp_path: Path) -> None:
    """Once the old file is closed, a file system may give its number to the next one."""
    path = tmp_path / FILE_NAME
    store = at(tmp_path, retry_s=0)
    put(store, "k", "1")
    store._to_memory()
    store._failed(OSError(errno.ENOSPC, "No space left on device"))
    assert store.problem is not None
    assert store.problem.code == "disk-full"
    for found in tmp_path.glob(f"{FILE_NAME}*"):
        found.unlink()
    path.touch()
    store._inode = path.stat().st_ino
    store.retry()
    assert is_safe(store)
    assert in_file(path, "k") == "1"
    store.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Where there can be no file at all, everything works in memory, and the problem says so."""
    (tmp_path / "file").touch()
    with open_journal(tmp_path / "file" / "state") as journal:
        assert journal.problem is not None
        assert journal.problem.code == "internal"
        put(journal, "k", "v")
        assert noted(journal, "k") == "v"


def test_a_read_only_disk_still_knows_what_it_knew(tmp_path: Path) -> None:
    """A journal that can be read but not written is read."""
    folder = tmp_path / "state"
    folder.mkdir()
    with small_disk(folder, "1m"):
        with open_journal(folder) as journal:
            put(journal, "k", "v")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with open_journal(folder) as journal:
            assert noted(journal, "k") == "v"
            assert journal.problem is not None
            put(journal, "k", "w")
            assert noted(journal, "k") == "w"


# --- versions


@pytest.mark.parametrize(
    ("version", "word", "why"),
    [(99, "newer", "newer version"), (5, "older", "before this program's first release")],
)
def test_a_journal_of_another_program_is_set_aside(
    tmp_path: Path, version: int, word: str, why: str
) -> None:
    """After a downgrade, a journal that this program does not understand is kept, unread; and so is
    one of before there was a release."""
    other = at(tmp_path)
    put(other, "k", "v")
    other.close()
    with closing(sqlite3.connect(other.path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with open_journal(tmp_path) as journal:
        assert journal.warning is not None
        assert why in journal.warning
        assert noted(journal, "k") is None
        assert journal.problem is None
    (aside,) = tmp_path.glob(f"journal.{word}-*.sqlite3")
    assert in_file(aside, "k") == "v"


# --- threads


@pytest.mark.slow
def test_threads(tmp_path: Path) -> None:
    """Eight threads that count together lose nothing, in memory or in the file."""
    with open_journal(tmp_path) as journal:
        start = threading.Barrier(8)
        errors: list[BaseException] = []

        def work(index: int) -> None:
            try:
                start.wait()
                run = f"r{index}"
                journal.start_run(run, f"S{index}", "command", {})
                for number in range(25):
                    journal.end_attempt(MAC, "t", succeeded=False)
                    journal.update_board(MAC, **{("chip", "slot")[index % 2]: str(number)})
                    journal.update_run_board(run, "left", {"n": number})
                    assert journal.history(f"S{index}")[0].boards["left"] == {"n": number}
                journal.finish_run(run, "succeeded")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
    with open_journal(tmp_path) as journal:
        assert journal.attempt(MAC, "t").failed == 200
        board = journal.board(MAC)
        assert board is not None
        assert (board.chip, board.slot) == ("24", "24")
        runs = journal.history()
        assert len(runs) == 8
        assert all(run.boards["left"] == {"n": 24} for run in runs)


def test_no_descriptor_stays_behind(tmp_path: Path) -> None:
    """100 openings, damaged and busy ones among them, leave the process with the files it had."""
    open_journal(tmp_path).close()
    before = len(os.listdir("/proc/self/fd"))
    for index in range(50):
        if index % 10 == 0:
            (tmp_path / FILE_NAME).write_bytes(b"no database" * 100)
        with open_journal(tmp_path), pytest.raises(OtaError):
            Journal(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_process_in_the_folder_s_place_loses_nothing(tmp_path: Path) -> None:
    """The folder is replaced under a living process, and another one writes there: its rows stay,
    and ours come to them when it has ended."""
    folder = tmp_path / "state"
    journal = open_journal(folder)
    journal.start_run("ours", "OTA", "command", {})
    shutil.move(folder, tmp_path / "away")
    code = """
import sys
from ota_service.fleet.journal import open_journal
journal = open_journal(sys.argv[1])
journal.start_run("theirs", "OTHER", "command", {})
print("ready", flush=True)
sys.stdin.read()
journal.close()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        journal.finish_run("ours", "succeeded")
        assert journal.problem is not None
        assert journal.problem.code == "state-busy"
        assert str(other.pid) in journal.problem.message
        other.communicate()
    journal.retry()
    assert is_safe(journal)
    journal.close()
    with open_journal(folder) as again:
        assert {run.id for run in again.history()} == {"ours", "theirs"}


def test_what_was_forgotten_in_memory_is_forgotten_in_the_file(tmp_path: Path) -> None:
    """The disk refuses writes for a while; what others wrote meanwhile stays."""
    store = at(tmp_path, retry_s=3600)
    for key in ("gone", "kept", "changed"):
        put(store, key, "1")
    store._to_memory()
    store._failed(OSError(28, "No space left on device"))
    store.write("DELETE FROM confirmed_firmware WHERE sha256 = 'gone'")
    put(store, "changed", "2")
    put(store, "new", "2")
    with sqlite3.connect(store.path) as theirs:
        theirs.execute("UPDATE confirmed_firmware SET at = '3' WHERE sha256 = 'kept'")
        theirs.execute("INSERT INTO confirmed_firmware VALUES ('other', '3')")
    theirs.close()
    assert not is_safe(store)
    store.retry()
    assert is_safe(store)
    rows = store.read("SELECT sha256, at FROM confirmed_firmware ORDER BY 1")
    assert [tuple(row) for row in rows] == [
        *(("changed", "2"), ("kept", "3"), ("new", "2"), ("other", "3")),
    ]
    store.close()


# --- commands that share it

SHARER = HOLDER.replace("(sys.argv[1])", "(sys.argv[1], shared=True)")


def test_commands_share_the_journal(tmp_path: Path) -> None:
    """Two processes that share it write side by side, and see each other's."""
    with open_journal(tmp_path, shared=True) as journal, process(SHARER, str(tmp_path)):
        assert noted(journal, "k") == "theirs"
        put(journal, "k", "ours")
        assert noted(journal, "k") == "ours"
        assert journal.problem is None
    with open_journal(tmp_path) as journal:
        assert noted(journal, "k") == "ours"


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_a_service_and_a_command_share_nothing(tmp_path: Path, shared: bool) -> None:
    """Whoever comes second is told who is there."""
    with (
        process(HOLDER if shared else SHARER, str(tmp_path)) as child,
        pytest.raises(OtaError, match=f"pid {child.pid} \\(esp32-ota\\)") as caught,
    ):
        open_journal(tmp_path, shared=shared)
    assert caught.value.code == "state-busy"


@pytest.mark.slow
def test_all_commands_that_share_it_are_named(tmp_path: Path) -> None:
    """Those that have ended are not."""
    with process(SHARER, str(tmp_path)) as first, process(SHARER, str(tmp_path)) as second:
        with process(SHARER, str(tmp_path)) as third:
            pass
        with pytest.raises(OtaError) as caught:
            open_journal(tmp_path)
    text = caught.value.message
    assert [f"pid {child.pid} " in text for child in (first, second, third)] == [True, True, False]


@pytest.mark.slow
def test_a_second_command_ends_nothing_of_the_first(tmp_path: Path) -> None:
    """Only who is alone takes what is open for a dead process's."""
    with open_journal(tmp_path, shared=True) as journal:
        journal.start_run("ours", "esp32-ota", "command", {})
        journal.begin_attempt(MAC, "t")
        with process(SHARER, str(tmp_path)):
            assert journal.attempt(MAC, "t").open_since is not None
            assert [run.outcome for run in journal.history()] == ["running"]
    with process(SHARER, str(tmp_path)), open_journal(tmp_path, shared=True) as journal:
        assert journal.attempt(MAC, "t").failed == 1
        assert [run.outcome for run in journal.history()] == ["failed"]


@pytest.mark.slow
def test_commands_that_come_at_the_same_time_do_not_refuse_each_other(tmp_path: Path) -> None:
    """However they meet at the lock and at a file that is still to be made."""
    code = """
import sys
from ota_service.fleet.journal import open_journal
print("ready", flush=True)
sys.stdin.read()
for number in range(10):
    with open_journal(sys.argv[1], shared=True) as journal:
        assert journal.problem is None, journal.problem
        journal.end_attempt("board", "t", succeeded=False)
"""
    folder = tmp_path / "state"
    with process(code, str(folder)) as one, process(code, str(folder)) as two:
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.close()
        assert [child.wait() for child in (one, two)] == [0, 0]
        for child in (one, two):
            child.stdin = None  # so that nothing is flushed into it
    with open_journal(folder) as journal:
        assert journal.attempt("board", "t").failed == 20
