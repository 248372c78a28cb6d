# SPDX-License-Identifier: GPL-3.0-or-later
"""One owner a port: services, processes of ours, and other programs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ota_service.errors import OtaError
from ota_service.link import ownership
from ota_service.link.ownership import (
    PortOwners,
    ServiceClaims,
    holders,
    mark_rewritten,
    process_name,
    rewrite_mark,
)

NO_UUCP: tuple[Path, ...] = ()


def claimed(owners: PortOwners, port: str, owner: str) -> None:
    """A claim that is given up again."""
    with owners.claim(port, owner):
        pass


def busy(owners: PortOwners, port: str, owner: str) -> bool:
    """Whether a claim is refused; else it is given up at once."""
    try:
        claimed(owners, port, owner)
    except OtaError as error:
        assert error.code == "port-busy"
        return True
    return False


@pytest.fixture
def pty() -> Iterator[str]:
    """A terminal device of this process."""
    master, slave = os.openpty()
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process; its first line of output says that it has come so far."""
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


OPENER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
print("ready", flush=True)
sys.stdin.read()
"""

CLAIMER = """
import sys
from pathlib import Path
from ota_service.link import ownership
from ota_service.link.ownership import PortOwners
owners = PortOwners(Path(sys.argv[2]))
with owners.claim(sys.argv[1], "service THEIRS"):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_services_of_one_process(pty: str, tmp_path: Path) -> None:
    """The second service learns who has the port, and gets it once it is released."""
    owners = PortOwners(tmp_path)
    link = tmp_path / "by-path"
    link.symlink_to(pty)
    with owners.claim(pty, "service OTA"):
        assert owners.owner(str(link)) == "service OTA"
        with (
            pytest.raises(OtaError, match="in use by service OTA\\.") as caught,
            owners.claim(str(link), "service OTA2", "left"),
        ):
            pass
        assert (caught.value.code, caught.value.board) == ("port-busy", "left")
        assert busy(owners, pty, "service OTA"), "one owner is one user of the port"
    assert owners.owner(pty) is None
    claimed(owners, str(link), "service OTA2")


@pytest.mark.parametrize("port", ["/nowhere/ttyUSB0", "esp32sim:///somewhere/board"])
def test_another_process_of_ours_is_named(port: str, tmp_path: Path) -> None:
    """The lock file works without the port being open, and ends with its process, even killed."""
    with process(CLAIMER, port, str(tmp_path)) as child:
        with pytest.raises(OtaError, match=f"service THEIRS, pid {child.pid} ") as caught:
            claimed(PortOwners(tmp_path), port, "service OTA")
        assert caught.value.code == "port-busy"
    claimed(PortOwners(tmp_path), port, "service OTA")


def test_a_stale_name_in_a_lock_file_is_not_believed(tmp_path: Path) -> None:
    """A holder that could not write its name (the file is another user's) is named by the system,
    never by what an earlier holder left there."""
    port = "esp32sim:///somewhere/board"
    owners = PortOwners(tmp_path)
    claimed(owners, port, "service OTA")
    (lock,) = tmp_path.iterdir()
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX);"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with process(code, str(lock)) as child:
        for text in ("", "1 service OLD\n", "999999999 service OLD\n"):
            lock.write_text(text)
            with pytest.raises(OtaError, match=f"in use by pid {child.pid} ") as caught:
                claimed(owners, port, "service OTA")
            assert "OLD" not in caught.value.message


def test_a_lock_that_the_system_left_out_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While other locks come and go, a reading of /proc/locks may lack one that is held: a stale
    name must not be believed then."""
    real, readings = ownership._locks, 0

    def locks() -> list[str]:
        nonlocal readings
        readings += 1
        return real() if readings % 3 == 0 else []

    monkeypatch.setattr(ownership, "_locks", locks)
    test_a_stale_name_in_a_lock_file_is_not_believed(tmp_path)
    assert readings >= 9


def test_no_secret_in_a_lock_file_s_name(tmp_path: Path) -> None:
    """A url with a password leaves neither it nor the host in the folder."""
    owners = PortOwners(tmp_path)
    with owners.claim("rfc2217://me:hunter2@myhost:1", "service OTA"):
        (path,) = tmp_path.iterdir()
        assert "hunter2" not in path.name
        assert "hunter2" not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_another_program_is_found_before_opening(pty: str, tmp_path: Path) -> None:
    """A program that simply has the device open is named with its pid, by any of the names."""
    link = tmp_path / "link"
    link.symlink_to(pty)
    owners = PortOwners(tmp_path)
    with process(OPENER, pty) as child:
        (holder,) = holders(str(link), uucp=NO_UUCP)
        assert holder.pid == child.pid
        assert holder.name == process_name(child.pid) != "process"
        with pytest.raises(OtaError, match=f"pid {child.pid} \\({holder.name}\\)"):
            claimed(owners, str(link), "service OTA")
        assert owners.owner(pty) is None, "a refused claim must leave nothing behind"
    claimed(owners, pty, "service OTA")


def test_own_open_files_do_not_count(pty: str) -> None:
    """This process has the device open itself (the fixture), which is no holder."""
    assert holders(pty, uucp=NO_UUCP) == []


def test_uucp_lock_files(pty: str, tmp_path: Path) -> None:
    """Locks of minicom and the like are honoured in both formats; stale and own ones are not."""
    path = tmp_path / f"LCK..{os.path.basename(pty)}"
    with process("print('ready', flush=True); input()") as child:
        for raw in (f"{child.pid:10d}\n".encode(), child.pid.to_bytes(4, sys.byteorder)):
            path.write_bytes(raw)
            assert [holder.pid for holder in holders(pty, uucp=(tmp_path,))] == [child.pid]
    assert holders(pty, uucp=(tmp_path,)) == [], "the process is gone: stale"
    for raw in (f"{os.getpid():10d} me\n".encode(), b"", b"nonsense"):
        path.write_bytes(raw)
        assert holders(pty, uucp=(tmp_path,)) == []


def test_a_missing_device_has_no_holders(tmp_path: Path) -> None:
    """Asking about a port that is gone is no error."""
    assert holders(str(tmp_path / "gone"), uucp=NO_UUCP) == []


def test_a_trap_in_the_lock_folder_is_not_written_to(pty: str, tmp_path: Path) -> None:
    """A link or second name planted where the lock file belongs harms no other file."""
    owners = PortOwners(tmp_path / "locks")
    (tmp_path / "locks").mkdir()
    with owners.claim(pty, "service OTA"):
        (lock,) = (tmp_path / "locks").iterdir()
    victim = tmp_path / "victim"
    for plant in (os.link, os.symlink):
        victim.write_text("precious")
        lock.unlink()
        plant(victim, lock)
        claimed(owners, pty, "service OTA")
        assert victim.read_text() == "precious"


def test_a_mark_is_left_where_it_is_no_trap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the folder gets no file of another's opened to all by a flash."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mac, victim = "aa:bb:cc:dd:ee:ff", tmp_path / "victim"
    mark_rewritten(mac)
    (mark,) = (tmp_path / "esp32-ota-locks").iterdir()
    assert stat.S_IMODE(mark.stat().st_mode) == 0o666
    before = rewrite_mark(mac)
    os.utime(mark, ns=(1, 1))
    mark_rewritten(mac)
    assert before is not None
    assert (rewrite_mark(mac) or 0) >= before
    victim.touch(mode=0o600)
    os.utime(victim, ns=(1, 1))
    for plant in (os.link, os.symlink):
        mark.unlink()
        plant(victim, mark)
        mark_rewritten(mac)
        found = victim.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o600, 1)


def test_without_a_lock_folder_the_rest_still_works(pty: str, tmp_path: Path) -> None:
    """A folder that cannot be had costs one net, not the update."""
    owners = PortOwners(tmp_path / "missing" / "folder")
    with owners.claim(pty, "service OTA"):
        assert busy(owners, pty, "service OTA2")


def test_default_folder_is_shared_and_sticky(
    pty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the locks are in one folder below the temporary folder, for all users."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with PortOwners().claim(pty, "service OTA"):
        (folder,) = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
        assert busy(PortOwners(), pty, "service OTA2")


def test_only_one_of_many_threads_wins(pty: str, tmp_path: Path) -> None:
    """Claims at the same moment give the port to exactly one."""
    owners = PortOwners(tmp_path)
    start, over = threading.Barrier(8), threading.Barrier(8)
    won: list[str] = []

    def run(name: str) -> None:
        start.wait()
        try:
            with owners.claim(pty, name):
                won.append(name)
                over.wait()
        except OtaError:
            over.wait()

    threads = [threading.Thread(target=run, args=(f"service {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


@pytest.mark.slow
def test_no_descriptor_stays_behind(pty: str, tmp_path: Path) -> None:
    """200 claims, won and refused, leave the process with the files it had."""
    owners = PortOwners(tmp_path)
    other = PortOwners(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with owners.claim(pty, "service OTA"):
            assert busy(other, pty, "service OTA2")
    assert len(os.listdir("/proc/self/fd")) == before


def test_services_that_claim_one_board_are_both_named() -> None:
    """The error names the board and both services; a refused claim changes nothing."""
    claims, one, two = ServiceClaims(), object(), object()
    claims.claim(one, "OTA", {"/dev/ttyUSB0": "a", "aa:bb:cc:dd:ee:ff": "b"})
    with pytest.raises(OtaError) as caught:
        claims.claim(two, "OTA2", {"/dev/ttyUSB1": "c", "aa:bb:cc:dd:ee:ff": "d"})
    assert caught.value.code == "config-invalid"
    assert "aa:bb:cc:dd:ee:ff" in caught.value.message
    assert "OTA and OTA2" in caught.value.message
    assert claims.owner("/dev/ttyUSB1") is None


def test_a_service_s_new_claim_replaces_its_old_one() -> None:
    """A re-created service has what it is configured with now; a learned MAC is added to it."""
    claims, one, two = ServiceClaims(), object(), object()
    claims.claim(one, "OTA", {"/dev/ttyUSB0": "a"})
    claims.claim(one, "OTA", {"/dev/ttyUSB1": "a"})
    assert claims.owner("/dev/ttyUSB0") is None
    claims.add(one, "OTA", "aa:bb:cc:dd:ee:ff", "a")
    assert claims.owner("/dev/ttyUSB1") == claims.owner("aa:bb:cc:dd:ee:ff") == "OTA"
    with pytest.raises(OtaError, match="OTA and OTA2"):
        claims.add(two, "OTA2", "aa:bb:cc:dd:ee:ff", "a")
    claims.release(one)
    claims.add(two, "OTA2", "aa:bb:cc:dd:ee:ff", "a")


def test_a_service_that_ends_leaves_its_successor_its_claims() -> None:
    """Both have one name; what ends later is the older one."""
    claims, old, new = ServiceClaims(), object(), object()
    claims.claim(old, "OTA", {"/dev/ttyUSB0": "a", "/dev/ttyUSB1": "b"})
    claims.claim(new, "OTA", {"/dev/ttyUSB0": "a"})
    claims.release(old)
    assert claims.owner("/dev/ttyUSB0") == "OTA"
    assert claims.owner("/dev/ttyUSB1") is None


def test_one_board_under_two_names_is_told_with_both() -> None:
    """As soon as the second says the same MAC; when the first is gone, it may."""
    claims, owner = ServiceClaims(), object()
    claims.claim(owner, "OTA", {"/dev/ttyUSB0": "left", "rfc2217://h:1": "right"})
    claims.add(owner, "OTA", "aa:bb:cc:dd:ee:ff", "left")
    claims.add(owner, "OTA", "aa:bb:cc:dd:ee:ff", "left")
    with pytest.raises(OtaError, match="left and right are one and the same") as caught:
        claims.add(owner, "OTA", "aa:bb:cc:dd:ee:ff", "right")
    assert caught.value.code == "duplicate-board"
    claims.drop(owner, "aa:bb:cc:dd:ee:ff")
    claims.add(owner, "OTA", "aa:bb:cc:dd:ee:ff", "right")
