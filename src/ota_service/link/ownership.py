# SPDX-License-Identifier: GPL-3.0-or-later
"""One owner a port: across the services of this process, and across processes.

Opening a port can reset the board behind it, so whoever else has it is looked up before:

1. `PortOwners`, among the services of this process;
2. a lock file (flock) for each port in the temporary folder, among processes of this program,
   whoever runs them; its lock ends with its process, so nothing stale can stay;
3. the lock files that other serial programs write (`LCK..ttyUSB0`);
4. the open files of all processes that this user may look into (/proc).

Files that another user's process holds cannot be seen; what then remains is the exclusive lock
on the device itself, taken when it is opened (`serial_port.open_port`).

`ServiceClaims` is the same for what services are configured with: boards, before any port. And
`mark_rewritten` leaves word of what was done to a board for processes that had no part in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ota_service.errors import OtaError
from ota_service.firmware.files import open_lock, read_file
from ota_service.link.ports import canonical, is_url, shown

_PROC = Path("/proc")
_LOCK_FOLDER = "esp32-ota-locks"
_UUCP_BYTES = 1000
_LOOKS = 5
_UUCP_FOLDERS = (Path("/var/lock"), Path("/run/lock"))


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a port. pid: None where only a name is known. name: of the program or service."""

    pid: int | None
    name: str

    def __str__(self) -> str:
        if self.pid is None:
            return self.name
        return f"pid {self.pid} ({self.name})"


# --- who has a port


def holders(port: str, *, uucp: Iterable[Path] = _UUCP_FOLDERS) -> list[Holder]:
    """Other processes that have `port` open or locked, as far as this user can see. Opens nothing.

    Urls have none that could be seen. This process itself is left out.
    """
    if is_url(port):
        return []
    device = canonical(port)
    pids = {*_uucp_holders(device, uucp), *_proc_holders(device)} - {os.getpid()}
    return [Holder(pid, process_name(pid)) for pid in sorted(pids)]


def _proc_holders(device: str) -> Iterator[int]:
    """Processes with the character device open, found by path or by device number.

    By number too, because a container has nodes of its own for the same device.
    """
    try:
        status = os.stat(device)
    except OSError:
        return
    number = status.st_rdev if stat.S_ISCHR(status.st_mode) else None
    for name in os.listdir(_PROC):
        if name.isdigit() and _has_open(_PROC / name / "fd", device, number):
            yield int(name)


def _has_open(folder: Path, device: str, number: int | None) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:  # another user's process, or one that has just ended
        return False
    for name in names:
        link = f"{folder}/{name}"
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target == device:
                return True
            if number is not None and target.startswith("/dev/"):
                status = os.stat(link)
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == number:
                    return True
    return False


def _uucp_holders(device: str, folders: Iterable[Path]) -> Iterator[int]:
    """Holders by the lock files of minicom, cu, picocom and the like (FHS, /var/lock).

    Such a file holds the process id as ten ASCII characters, or, from old programs, as a 32-bit
    number in the machine's byte order. One whose process is gone is stale and is passed over.
    """
    for folder in folders:
        try:
            raw = read_file(folder / f"LCK..{os.path.basename(device)}", _UUCP_BYTES)
        except OtaError:
            continue
        words = raw.split()
        if words and words[0].isdigit():
            pid = int(words[0])
        elif len(raw) == 4:
            pid = int.from_bytes(raw, sys.byteorder)
        else:
            continue
        if (_PROC / str(pid)).exists():
            yield pid


def process_name(pid: int) -> str:
    """The name of a process, "process" where it cannot be told."""
    try:
        return (_PROC / str(pid) / "comm").read_text("utf-8", "replace").strip() or "process"
    except OSError:
        return "process"


# --- who may have a port


class PortOwners:
    """The registry of claimed ports; thread-safe. One a process: `PORT_OWNERS`.

    lock_dir: where the lock files are; by default a folder that all users share below the
    temporary folder.
    """

    def __init__(self, lock_dir: Path | None = None) -> None:
        self._lock_dir = lock_dir
        self._owners: dict[str, str] = {}
        self._mutex = threading.Lock()

    @contextmanager
    def claim(self, port: str, owner: str, board: str | None = None) -> Iterator[None]:
        """Have `port` for `owner` ("service OTA2"), or raise `port-busy` naming who has it.

        Never opens the port. Takes a few milliseconds to some tens: it looks through /proc.
        """
        key = canonical(port)
        with self._mutex:
            if (other := self._owners.get(key)) is not None:
                raise _busy(port, [other], board)
            self._owners[key] = owner
        lock_fd = None
        try:
            lock_fd = self._lock(key, owner, port, board)
            seen = holders(port)
            if seen:
                raise _busy(port, [str(holder) for holder in seen], board)
            yield
        finally:
            if lock_fd is not None:
                # The file stays: removing it would race with another process that has just
                # opened it and waits to lock a file that no longer has a name.
                _write_owner(lock_fd, "")
                os.close(lock_fd)
            with self._mutex:
                del self._owners[key]

    def owner(self, port: str) -> str | None:
        """Who has claimed `port` in this process, if anyone."""
        with self._mutex:
            return self._owners.get(canonical(port))

    def _lock(self, key: str, owner: str, port: str, board: str | None) -> int | None:
        """Lock the port's file. None where no lock file can be had: the other nets remain."""
        path = (self._lock_dir or _lock_folder()) / _lock_name(key)
        try:
            fd = _open_lock(path)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            busy = error.errno in (errno.EAGAIN, errno.EACCES)
            name = _lock_owner(fd) if busy else ""
            os.close(fd)
            if busy:
                raise _busy(port, [name], board) from None
            return None  # a file system without locks
        _write_owner(fd, owner)
        return fd


PORT_OWNERS = PortOwners()
"""The ports that this process has claimed."""


def _busy(port: str, names: list[str], board: str | None) -> OtaError:
    return OtaError(
        "port-busy", f"The port {shown(port)} is in use by {', '.join(names)}.", board=board
    )


def _lock_folder() -> Path:
    """The folder of lock files, made if need be: sticky and writable for all, as /tmp itself.

    Shared, because two users may share a port. Where another user has put something else in its
    place, a folder of this user's own has to do.
    """
    shared = Path(tempfile.gettempdir()) / _LOCK_FOLDER
    for folder, mode in ((shared, 0o1777), (Path(f"{shared}-{os.getuid()}"), 0o700)):
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                folder.chmod(mode)
            status = folder.lstat()
            trusted = status.st_uid in (0, os.getuid()) or status.st_mode & stat.S_ISVTX
            if stat.S_ISDIR(status.st_mode) and trusted and os.access(folder, os.W_OK | os.X_OK):
                return folder
    return shared


def _lock_name(key: str) -> str:
    """A file name for a port: readable for devices; a digest alone for urls, which may be long
    and may carry a password."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    stem = "url" if is_url(key) else re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(key))[:40]
    return f"{stem}.{digest}.lock"


def _open_lock(path: Path, mode: int = 0o644) -> int:
    """A file descriptor to lock on; mode: of a new file. Another user's file is opened for
    reading, which is enough.

    Created apart from opened: in sticky folders Linux refuses O_CREAT on another user's file
    (fs.protected_regular).
    """
    with contextlib.suppress(FileExistsError):
        fd = open_lock(path, os.O_CREAT | os.O_EXCL)
        os.fchmod(fd, mode)  # whatever the umask says: others must be able to lock it
        return fd
    fd = open_lock(path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def _write_owner(fd: int, owner: str) -> None:
    """Leave the owner's name in the lock file, for the message that others get; "": take it out.

    Only in a file of our own with one name: in a shared folder a file may be a trap, a second
    name of some other file.
    """
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_nlink != 1:
        return
    with contextlib.suppress(OSError):  # a full disk costs the name, not the lock
        os.ftruncate(fd, 0)
        if owner:
            os.pwrite(fd, f"{os.getpid()} {owner}\n".encode(), 0)


def _lock_owner(fd: int) -> str:
    """Who has the lock: "service OTA2, pid 1234 (python3)".

    The file's text may be another's who had the lock before: where the file is not the holder's
    own, the holder could not write it. So it counts only if the system names the same process.
    """
    holder = _flock_pid(fd)
    try:
        text = os.pread(fd, 512, 0).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    pid, _, owner = text.partition(" ")
    if pid.isdigit() and int(pid) == (holder or int(pid)) and os.path.exists(f"/proc/{pid}"):
        return f"{owner}, {Holder(int(pid), process_name(int(pid)))}"
    if holder is not None:
        return str(Holder(holder, process_name(holder)))
    return "another process of this program"


def _flock_pid(fd: int) -> int | None:
    """The process that has an open file locked, by the system's table (man 5 proc, /proc/locks).

    None where it does not tell: other systems, other process namespaces, some file systems. The
    table is given out a page at a time, and where a lock ends meanwhile, another one is left out
    (Linux, fs/seq_file.c). So what is not found is looked for again.
    """
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for _ in range(_LOOKS):
        for line in _locks():
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5] == device:
                return int(words[4]) if words[4].isdigit() and words[4] != "0" else None
    return None


def _locks() -> list[str]:
    try:
        return (_PROC / "locks").read_text().splitlines()
    except OSError:
        return []


# --- what was done to a board

_EVERYBODY = 0o666


def mark_rewritten(mac: str) -> None:
    """Leave word, beside the locks, that what a board holds is about to be replaced: each process
    knows boards by a journal of its own."""
    with contextlib.suppress(OSError):  # where there is no folder, a look at the board remains
        fd = _open_lock(_mark_of(mac), _EVERYBODY)  # another user's flash is as true
        try:
            if os.fstat(fd).st_nlink == 1:  # else it may be a trap, as in `_write_owner`
                os.utime(fd)
        finally:
            os.close(fd)


def rewrite_mark(mac: str) -> int | None:
    """What tells the last time that a board was rewritten from the one before: a time, in
    nanoseconds since 1970; None: nobody did since this machine was started."""
    try:
        return os.stat(_mark_of(mac), follow_symlinks=False).st_mtime_ns
    except OSError:
        return None


def _mark_of(mac: str) -> Path:
    return _lock_folder() / f"rewritten.{mac.replace(':', '')}"


# --- who is configured with a board


def duplicate(first: str, board: str, mac: str) -> OtaError:
    """The error of a board that is another one already."""
    text = f"The boards {first} and {board} are one and the same board ({mac})."
    return OtaError("duplicate-board", text, board=board)


class _BoardClaim(NamedTuple):
    """owner: the service as it lives, which its successor of the same name is not."""

    owner: object
    service: str
    board: str


class ServiceClaims:
    """Which service is configured with which board; thread-safe. One a process.

    Keys are MACs and canonical ports: whatever names a board.
    """

    def __init__(self) -> None:
        self._claims: dict[str, _BoardClaim] = {}
        self._mutex = threading.Lock()

    def claim(self, owner: object, service: str, boards: Mapping[str, str]) -> None:
        """Let a service have these keys (key -> the board's name), and no longer what it had
        before; all of them or none.

        A service of the same name gives its claims up to its successor. Raises `config-invalid`
        naming both services where another one has a key.
        """
        with self._mutex:
            for key in sorted(boards):
                self._require_ours(key, service)
            self._drop(owner)
            for key, board in boards.items():
                self._claims[key] = _BoardClaim(owner, service, board)

    def add(self, owner: object, service: str, key: str, board: str) -> None:
        """As `claim`, for a board whose MAC was just learned.

        Raises `duplicate-board` naming both where another board of the service has it.
        """
        with self._mutex:
            self._require_ours(key, service)
            before = self._claims.get(key)
            if before is not None and before.owner is owner and before.board != board:
                raise duplicate(before.board, board, key)
            self._claims[key] = _BoardClaim(owner, service, board)

    def drop(self, owner: object, key: str) -> None:
        """Give one key up: its board is not there any more."""
        with self._mutex:
            if key in self._claims and self._claims[key].owner is owner:
                del self._claims[key]

    def release(self, owner: object) -> None:
        """Forget what a service had, but nothing of its successor's."""
        with self._mutex:
            self._drop(owner)

    def owner(self, key: str) -> str | None:
        """The service that has `key`, if any."""
        with self._mutex:
            claim = self._claims.get(key)
            return claim.service if claim is not None else None

    def _require_ours(self, key: str, service: str) -> None:
        other = self._claims.get(key)
        if other is not None and other.service != service:
            raise OtaError(
                "config-invalid",
                f"The board {shown(key)} is claimed by two services, "
                f"{other.service} and {service}.",
                remedy="List each board in one service only.",
            )

    def _drop(self, owner: object) -> None:
        for key in [key for key, claim in self._claims.items() if claim.owner is owner]:
            del self._claims[key]


SERVICE_CLAIMS = ServiceClaims()
"""The boards that this process's services are configured with."""
