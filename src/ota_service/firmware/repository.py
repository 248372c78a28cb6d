# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware from TUF repositories: what the signed metadata of one says of a file.

The rules are python-tuf's (`ngclient`, The Update Framework 1.0); here are the way to the metadata,
which is our downloader, what is remembered, and errors in our words.

    MEMORY/<name>/metadata/     what TUF remembers: it takes nothing older any more
    MEMORY/<name>/allowed.json  which files were allowed, which versions of metadata were seen, and
                                when it was last fresh

A file that was allowed before needs no fresh metadata: an update that was begun with it goes on,
also where its repository cannot be reached or has expired. Metadata that is fresh and names
another file in its place takes that back. What is refused is looked for again later, without a
further run: its owner may mend it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.failures import GaveUp, NotThere
from ota_service.firmware.files import open_lock, read_file, write_file
from ota_service.firmware.trust import Grant, Policy, Repository
from ota_service.firmware.urls import redact_url

Fetch = Callable[[str, int], Awaitable[bytes]]
"""A whole file by its url, up to so many bytes. Raises OtaError."""
LOGGER = logging.getLogger(__name__)
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

ROLES = ("root", "timestamp", "snapshot", "targets")
_ROOT = "root.json"
MAX_ALLOWED = 500
"""Files that are remembered of each repository; the oldest are forgotten first."""
LOCK_POLL_S = 0.05
CLOCK_SLACK_S = 120.0
"""A clock that is set may go back by so much."""
SEEN_STEP_S = 3600.0
"""How exactly it is remembered when metadata was fresh: not each look is worth a write."""
LOOK_S = 20.0
"""How long a server is waited for where what it allowed before has the answer."""

_THREADS = ThreadPoolExecutor(max_workers=32, thread_name_prefix="repository")
"""Of their own: a thread here waits for downloads, which need the usual ones."""


async def grant(
    policy: Policy, url: str, version: str, *, fetch: Fetch, state_dir: Path, log: Log,
    guarded: bool = True,
) -> Grant:  # fmt: skip
    """What a policy's repositories say of the file at `url`: an address, or a path.

    version: that it must be bound to; "": any. state_dir: the memory, `trust.memory` as a rule;
    guarded: it must be nobody else's to write to. Raises OtaError `signature-untrusted`,
    `trust-invalid` where the memory is others', or there is none, `version-mismatch`,
    `metadata-expired`, `metadata-invalid`, `replayed`, `clock-behind`, and what `fetch` raises.
    """
    place, repository = trust.place_of(url), None
    for one in policy.repositories or ():  # the longest prefix counts
        if place.startswith(one.url) and (repository is None or len(one.url) > len(repository.url)):
            repository = one
    if repository is None:
        raise trust.not_from_there(policy)
    path = place.removeprefix(repository.url).removeprefix("targets/")
    if not place.startswith(f"{repository.url}targets/"):
        raise trust.not_from_there(policy)
    loop = asyncio.get_running_loop()
    client = _Client(policy, repository, path, url, fetch, state_dir, guarded, loop)
    call = loop.run_in_executor(_THREADS, partial(client.grant, version, log))
    try:
        return await call
    finally:
        client.cancel()


class _Failed(exceptions.DownloadError):
    """Carries an error of ours through the client."""

    def __init__(self, error: OtaError) -> None:
        super().__init__(error.code)
        self.error = error


class _Fetcher(FetcherInterface):
    """Gets metadata with our downloader, from a thread; `last`: what came last, by its role.

    Each file once in a look, also one that cannot be had or is not taken: many files may be its.
    """

    def __init__(self, get: Callable[[str, int], bytes]) -> None:
        self._get = get
        self._had: dict[str, bytes | OtaError] = {}
        self.last: bytes = b""
        self.missing: OtaError | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError  # everything goes through `download_bytes`, which has a limit

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A file of metadata."""
        try:
            self.last = self._once(url, max_length)
        except NotThere as error:
            self.missing = error
            raise exceptions.DownloadHTTPError(error.code, 404) from None
        except OtaError as error:
            if error.code == "download-too-large":
                raise exceptions.DownloadLengthMismatchError(error.code) from None
            raise _Failed(error) from None
        return self.last

    def _once(self, url: str, max_length: int) -> bytes:
        if url not in self._had:
            try:
                self._had[url] = self._get(url, max_length)
            except OtaError as error:
                self._had[url] = error
        had = self._had[url]
        if isinstance(had, OtaError):
            raise had
        return had


@dataclass
class _Client:
    """One look at a repository for one file. Lives in a thread; `loop` is the downloader's."""

    policy: Policy
    repository: Repository
    path: str
    url: str = field(repr=False)
    fetch: Fetch
    state_dir: Path
    guarded: bool
    loop: asyncio.AbstractEventLoop
    _wanted: Future[bytes] | None = None
    _over: bool = False
    _until_s: float | None = None

    @property
    def shown(self) -> str:
        """Where the repository is, without secrets."""
        return redact_url(self.repository.url)

    @property
    def folder(self) -> Path:
        """What is remembered of this policy's repository."""
        name = json.dumps([str(self.policy.folder), self.repository.url])
        return self.state_dir / hashlib.sha256(name.encode()).hexdigest()[:32]

    def cancel(self) -> None:
        """Nobody waits any more; in the event loop."""
        self._over = True
        if self._wanted is not None:
            self._wanted.cancel()

    def grant(self, version: str, log: Log) -> Grant:
        """As the function of this name."""
        asked_s = time.monotonic()
        with self._alone() as folder:
            remembered = _Remembered.read(folder / "allowed.json", self.repository.root)
            if self._before(remembered, version) is not None:
                self._until_s = time.monotonic() + LOOK_S
            try:
                found = self._look(folder, remembered, asked_s)
            except OtaError as error:
                before = self._before(remembered, version)
                if before is None or error.code == "cancelled":
                    raise
                log.warning("%s What it allowed before is still taken.", error.message)
                found = before
            return self._bound(found, version, folder)

    def _before(self, remembered: _Remembered, version: str) -> dict[str, Any] | None:
        """What was allowed before, where that has the answer."""
        before = remembered.allowed.get(self.path) or remembered.allowed.get(unquote(self.path))
        return before if before and version in (_version(before), "") else None

    def _look(self, folder: Path, remembered: _Remembered, asked_s: float) -> dict[str, Any]:
        """Ask the repository; where somebody else found it dead meanwhile, that is the answer."""
        known = _DEAD.get(folder)
        if known is not None and known[0] >= asked_s:
            raise known[1]
        try:
            return self._fresh(folder, remembered)
        except OtaError as error:
            if isinstance(error, GaveUp) and not isinstance(error, NotThere):
                _DEAD[folder] = time.monotonic(), error
            raise
        except OSError as error:  # such as a full disk
            raise _unusable(error, folder) from None

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        """The folder, for as long as no other process or thread uses it."""
        folder = self.folder
        try:
            for one in (folder, folder / "metadata"):
                if self.guarded:
                    trust.make_own(one)
                one.mkdir(mode=0o700, exist_ok=True)
            lock = open_lock(folder / "lock", os.O_CREAT)
            try:
                self._wait_for(lock)
                yield folder
            finally:
                os.close(lock)
        except OSError as error:
            raise _unusable(error, folder) from None

    def _wait_for(self, lock: int) -> None:
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._over:
                    raise OtaError("cancelled") from None
                time.sleep(LOCK_POLL_S)

    def _fresh(self, folder: Path, remembered: _Remembered) -> dict[str, Any]:
        """What fresh metadata says of the file, which is remembered."""
        now = time.time()
        if now < remembered.seen_s - CLOCK_SLACK_S:
            raise NotThere(
                "clock-behind",
                f"This machine's clock says {_day(now)}, and metadata of {self.shown} was seen on "
                f"{_day(remembered.seen_s)}.",
                remedy="Set the clock. If it is right, and was ahead then, remove "
                f"{folder / 'allowed.json'} (docs/trust.md).",
            )
        was = list(remembered.allowed.items())
        kept = folder / "metadata"
        fetcher = _Fetcher(self._get)
        problem, found = None, None
        with self._explained(fetcher, _stated(kept) | remembered.versions):
            updater = Updater(
                str(kept), f"{self.repository.url}metadata/", fetcher=fetcher,
                config=UpdaterConfig(), bootstrap=self.repository.root,
            )  # fmt: skip
            updater.refresh()
        newer = self._require_newest(remembered, kept)
        try:
            found = self._entry(updater, fetcher, self.path)
            found = found or self._entry(updater, fetcher, unquote(self.path))
        except OtaError as error:  # of the role that speaks of this file
            problem = error
        self._take_back(remembered, updater, fetcher)
        if found is not None:
            remembered.allowed.pop(self.path, None)
            remembered.allowed[found.path] = _about(found)
        changed = newer or was != list(remembered.allowed.items())
        if changed or now > remembered.seen_s + SEEN_STEP_S:
            remembered.seen_s = max(remembered.seen_s, now)
            remembered.write(folder / "allowed.json")
        if problem is not None:
            raise problem
        if found is None:
            raise NotThere(
                "signature-untrusted",
                f"The owner of {self.shown} has not signed for any {self.path}.",
                remedy="Publish it with `esp32-ota repo add`, or correct the url.",
            )
        signed = _vouching(kept, found.path)
        metadata = {role: one.version for role, one in signed.items()}
        expires = min(one.expires for one in signed.values())
        return {**_about(found), "metadata": metadata, "expires": f"{expires:%Y-%m-%dT%H:%M:%SZ}"}

    def _take_back(self, remembered: _Remembered, updater: Updater, fetcher: _Fetcher) -> None:
        """What was allowed before, and is something else by now."""
        self._until_s = self._until_s or time.monotonic() + LOOK_S
        for path, known in list(remembered.allowed.items()):
            # One role that has expired or cannot be had says nothing of the others' files.
            with contextlib.suppress(OtaError):
                now_there = self._entry(updater, fetcher, path)
                if now_there is None or _about(now_there) != known:
                    del remembered.allowed[path]

    def _entry(self, updater: Updater, fetcher: _Fetcher, path: str) -> TargetFile | None:
        if self._over:
            raise OtaError("cancelled")
        with self._explained(fetcher, {}):
            return updater.get_targetinfo(path)

    def _require_newest(self, remembered: _Remembered, kept: Path) -> bool:
        """Whether metadata is newer than any that was seen. Raises `replayed` where some is older:
        the client's own files are not synced, so that a power cut may bring back what they were.

        Who has lost the key of timestamp or snapshot may begin anew with another one: the
        specification of TUF, 5.3.11.
        """
        now, before = _stated(kept), remembered.versions
        roles = Metadata[Root].from_bytes(_read(kept / "root.json")).signed.roles
        keys = [roles[role].keyids for role in ("timestamp", "snapshot")]
        held = (
            before if keys == remembered.keys else {n: v for n, v in before.items() if n == _ROOT}
        )
        if any(now.get(name, version) < version for name, version in held.items()):
            raise self._replayed()
        remembered.versions, remembered.keys = now, keys
        return now != before

    def _replayed(self) -> OtaError:
        return NotThere("replayed", f"{self.shown} shows older metadata than it did before.")

    def _bound(self, found: Mapping[str, Any], version: str, folder: Path) -> Grant:
        said, custom = _version(found), found["ota"]
        if not said:
            raise NotThere(
                "metadata-invalid",
                f"The metadata of {self.path} does not say which version it is.",
                remedy='Publish it with `esp32-ota repo add`, or with {"ota": {"version": ..}} as '
                "its custom data.",
            )
        if version and said != version:
            raise NotThere(
                "version-mismatch",
                f'{self.path} was signed as version "{said}", and "{version}" is configured.',
            )
        return Grant(
            folder=self.policy.folder, repository=self.repository.url, path=self.path,
            url=self._address(found["hashes"], folder), size_bytes=found["size_bytes"],
            hashes=found["hashes"], project=_text(custom.get("project")),
            chip=_text(custom.get("chip")), metadata=found.get("metadata", {}),
            expires=found.get("expires"),
        )  # fmt: skip

    def _address(self, hashes: Mapping[str, str], folder: Path) -> str:
        """Where the file is: under its hash, where the root says that it is there."""
        place, hashed = f"{self.repository.url}targets/{self.path}", True
        with contextlib.suppress(exceptions.RepositoryError):
            known = Metadata[Root].from_bytes(_read(folder / "metadata" / "root.json"))
            hashed = bool(known.signed.consistent_snapshot)
        if hashed:
            head, _, name = place.rpartition("/")
            place = f"{head}/{next(iter(hashes.values()))}.{name}"
        return self._with_secrets(place)

    def _with_secrets(self, place: str) -> str:
        """What opens the door at the configured url opens it for all of the repository."""
        if place.startswith("/"):
            return place
        parts = urlsplit(self.url)
        user, at, _ = parts.netloc.rpartition("@")
        scheme, _, rest = place.partition("://")
        return f"{scheme}://{user}{at}{rest}" + (f"?{parts.query}" if parts.query else "")

    def _get(self, place: str, max_bytes: int) -> bytes:
        """A file of metadata, from the downloader in its loop."""
        if place.startswith("/"):
            try:
                return read_file(place, max_bytes)
            except OtaError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise NotThere(error.code, error.message) from None
                raise
        work: Any = self.fetch(self._with_secrets(place), max_bytes)
        self._wanted = asyncio.run_coroutine_threadsafe(work, self.loop)
        if self._over:  # looked at when there is something that `cancel` could have missed
            self._wanted.cancel()
        try:
            left_s = None if self._until_s is None else max(0.0, self._until_s - time.monotonic())
            return self._wanted.result(left_s)
        except CancelledError:
            raise OtaError("cancelled") from None
        except TimeoutError:
            self._wanted.cancel()
            text = f"{self.shown} has not shown its metadata within {LOOK_S:g} s."
            raise GaveUp("download-failed", text) from None

    @contextmanager
    def _explained(self, fetcher: _Fetcher, before: Mapping[str, int]) -> Iterator[None]:
        """What the client finds wrong, in our words; it may be right again at any time."""
        try:
            yield
        except _Failed as failed:
            raise failed.error from None
        except exceptions.DownloadHTTPError:
            raise fetcher.missing or OtaError("http-status") from None
        except exceptions.ExpiredMetadataError as error:
            role = str(error).replace("New ", "").partition(" is ")[0].removeprefix("Final ")
            raise NotThere(
                "metadata-expired",
                f"The metadata of {self.shown} has expired ({role.removesuffix('.json')}), so "
                "nothing new is taken from there.",
            ) from None
        except exceptions.BadVersionNumberError:
            now = _versions(fetcher.last)
            if any(now.get(name, have) < have for name, have in before.items()):
                raise self._replayed() from None
            text = f"The files of metadata at {self.shown} do not belong together."
            raise NotThere("metadata-invalid", text) from None
        except (exceptions.RepositoryError, exceptions.DownloadLengthMismatchError) as error:
            why = _why(error)
            raise NotThere("metadata-invalid", f"The metadata of {self.shown} {why}.") from None


_DEAD: dict[Path, tuple[float, OtaError]] = {}
"""Memory of a repository -> when it could not be reached, by the monotonic clock, and why."""


_FOR_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOLCK)


def _unusable(error: OSError, folder: Path) -> OtaError:
    text = f"{error.filename or folder} cannot be used: {error.strerror}."
    if error.errno in _FOR_NOW:
        return GaveUp("file-access", text)
    return trust.no_memory(text)


def _why(error: Exception) -> str:
    if isinstance(error, exceptions.UnsignedMetadataError):
        return "is not signed by as many of its owner's keys as it takes"
    if isinstance(error, exceptions.DownloadLengthMismatchError):
        return "is longer than was signed, or than metadata may be"
    if isinstance(error, exceptions.LengthOrHashMismatchError):
        return "holds files that do not belong together"
    return "cannot be read, or breaks a rule of TUF"


def _vouching(kept: Path, path: str) -> dict[str, Any]:
    """The metadata by which a target is allowed, by its role: the four, and each delegated role
    that is asked for it on the way to the one that has it, as it lies in the client's folder."""
    signed = {role: _signed(kept, role) for role in ROLES}
    waiting = [signed["targets"]]
    while waiting:
        here, below = waiting.pop(), []
        if path in here.targets:
            break
        delegations = here.delegations
        for role, ends in delegations.get_roles_for_target(path) if delegations else ():
            if role not in signed and (kept / f"{quote(role, '')}.json").exists():
                signed[role] = _signed(kept, role)
                below.append(signed[role])
            if ends:
                waiting = []
                break
        waiting += reversed(below)
    return signed


def _signed(kept: Path, role: str) -> Any:
    return Metadata[Any].from_bytes(_read(kept / f"{quote(role, '')}.json")).signed


def _stated(kept: Path) -> dict[str, int]:
    """The versions that the client's folder states."""
    found: dict[str, int] = {}
    for role in ROLES:
        for name, version in _versions(_read(kept / f"{role}.json")).items():
            found[name] = max(version, found.get(name, 0))
    return found


def _versions(data: bytes | None) -> dict[str, int]:
    """The versions that a file of metadata states: its own, and those of files that it names."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        signed = json.loads(data or b"")["signed"]
        named = {n: int(meta["version"]) for n, meta in signed.get("meta", {}).items()}
        return {f"{signed['_type']}.json": int(signed["version"]), **named}
    return {}


def _read(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _about(found: TargetFile) -> dict[str, Any]:
    custom = found.custom if isinstance(found.custom, dict) else {}
    return {"size_bytes": found.length, "hashes": dict(found.hashes), "ota": custom.get("ota")}


def _version(found: Mapping[str, Any]) -> str:
    """What the owner has bound a file to; "" where nothing."""
    custom = found["ota"]
    return _text(custom.get("version")) or "" if isinstance(custom, dict) else ""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass
class _Remembered:
    """root: SHA-256 of the policy's root; allowed: target -> what metadata under it said of it;
    versions: file of metadata -> the newest that was seen; keys: whose, of timestamp and snapshot.
    seen_s: when it was last fresh."""

    root: str
    allowed: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    keys: list[list[str]] = field(default_factory=list)
    seen_s: float = 0.0

    @classmethod
    def read(cls, path: Path, root: bytes) -> _Remembered:
        """What is there and can be read. Another root has allowed nothing yet."""
        digest = hashlib.sha256(root).hexdigest()
        try:
            known = json.loads(_read(path) or b"{}")
            seen_s = float(known.get("seen_s", 0))
            _day(seen_s)
            if known.get("root") != digest:
                return cls(digest, seen_s=seen_s)
            versions = {str(n): int(v) for n, v in known.get("versions", {}).items()}
            keys = [list(one) for one in known.get("keys", ())]
            return cls(digest, dict(known.get("allowed", {})), versions, keys, seen_s)
        except (ValueError, TypeError, AttributeError, OverflowError, OSError):
            return cls(digest)

    def write(self, path: Path) -> None:
        """In one step."""
        kept = dict(list(self.allowed.items())[-MAX_ALLOWED:])
        write_file(path, json.dumps(asdict(self) | {"allowed": kept}).encode())
