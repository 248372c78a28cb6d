# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloaded files on disk, addressed by their SHA-256, and what each url last gave.

    CACHE_DIR/firmware/images/<sha256>.bin     whole files
    CACHE_DIR/firmware/urls/<name>.json        what the url gave: digest, version, validators
    CACHE_DIR/firmware/incoming/<random>.part  downloads in progress

Several processes may use it at once: files appear under their names whole, by rename. No name
and no content holds a url. Nothing here has to last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.files import read_file

MAX_CACHE_BYTES = 256 << 20
# A part belongs to whoever holds its lock; it may take this long to take it.
UNLOCKED_PART_S = 60.0
# How many urls are remembered, and how many versions of each.
MAX_URLS = 1000
MAX_VERSIONS = 50
MAX_RECORD_BYTES = 1 << 20
# Room that is left to others on the disk.
SPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Known:
    """What a url gave last time. etag, last_modified: its validators, as the server sent them.

    first: version -> the digest that the url first gave under it.
    """

    sha256: str
    version: str
    etag: str | None = None
    last_modified: str | None = None
    first: dict[str, str] = field(default_factory=dict)


class Part:
    """A file in the making: bytes are appended, counted and digested; at the end it is kept."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed by `discard`
            dir=cache.incoming, suffix=".part", delete=False
        )
        # The lock ends with the process, so a part without it belongs to nobody any more.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def append(self, data: bytes) -> None:
        """Add `data` at the end."""
        with self._cache.explained():
            self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    def restart(self) -> None:
        """Forget everything that was added."""
        with self._cache.explained():
            self._file.seek(0)
            self._file.truncate()
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def read(self) -> bytes:
        """Everything that was added."""
        with self._cache.explained():
            self._file.seek(0)
            return self._file.read(self.size_bytes)

    def keep(self) -> str:
        """Make it an image of the cache; returns its SHA-256."""
        sha256 = self._digest.hexdigest()
        with self._cache.explained():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._file.name, self._cache.image_path(sha256))
        return sha256

    def discard(self) -> None:
        """Remove what is left of it; does nothing after `keep`."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file.name)


class Cache:
    """The cache of one folder. Raises OtaError disk-full, file-access where it cannot write, and
    config-invalid for a folder that it may not have."""

    def __init__(self, cache_dir: Path) -> None:
        trust.require_apart(cache_dir, "The folder of downloads (VIAM_MODULE_DATA)")
        self.root = cache_dir / "firmware"
        self.images = self.root / "images"
        self.urls = self.root / "urls"
        self.incoming = self.root / "incoming"

    def part(self, expected_bytes: int | None) -> Part:
        """A new file in the making, where the disk has room for it."""
        self._make_folders()
        with self.explained():
            self._remove_stale_parts()
        self.require_room(expected_bytes or 0)
        with self.explained():
            return Part(self)

    def _make_folders(self) -> None:
        with self.explained():
            for folder in (self.root, self.images, self.urls, self.incoming):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def require_room(self, size_bytes: int) -> None:
        """Raise OtaError disk-full where `size_bytes` more do not fit."""
        with self.explained():
            free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < size_bytes + SPARE_BYTES:
            raise OtaError(
                "disk-full",
                f"The firmware has {size_bytes:,} bytes, and the disk of {self.root} has "
                f"{free_bytes:,} bytes left.",
            )

    def image_path(self, sha256: str) -> Path:
        """Where the file with this digest is or will be."""
        return self.images / f"{sha256}.bin"

    def image(self, sha256: str) -> bytes | None:
        """The file with this digest; None where there is none, or a damaged one."""
        path = self.image_path(sha256)
        data = b""
        with contextlib.suppress(OtaError):
            data = read_file(path, MAX_CACHE_BYTES, links=False)
        if hashlib.sha256(data).hexdigest() != sha256:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its last use: the oldest goes first
        return data

    def known(self, url: str) -> Known | None:
        """What `url` gave last time, as far as its file is still there."""
        known = self._record(url)
        return known if known is not None and self.image_path(known.sha256).is_file() else None

    def first(self, url: str, version: str) -> str | None:
        """The digest that `url` gave when it was first asked for `version`."""
        known = self._record(url)
        return known.first.get(version) if known is not None else None

    def _record(self, url: str) -> Known | None:
        try:
            text = read_file(self._url_path(url), MAX_RECORD_BYTES, links=False)
            known = Known(**json.loads(text))
            hash((known.sha256, known.version, *known.first.items()))
        except (OtaError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        return known

    def remember(self, url: str, known: Known) -> None:
        """Note what `url` gave, and make room where the cache has grown too large."""
        before = self._record(url)
        first = dict(before.first) if before is not None else {}
        first.setdefault(known.version, known.sha256)
        known = replace(known, first=dict(list(first.items())[-MAX_VERSIONS:]))
        self._make_folders()
        with self.explained():
            fd, name = tempfile.mkstemp(dir=self.incoming, suffix=".part")
            with os.fdopen(fd, "w") as file:
                json.dump(asdict(known), file)
            os.replace(name, self._url_path(url))
        self._shrink(keep=known.sha256)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn a disk's errors into ours."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OtaError("disk-full", f"The disk of {self.root} is full.") from None
            raise OtaError(
                "file-access",
                f"The cache folder {self.root} cannot be used: {error.strerror}.",
                remedy="Give this user (viam-server's, where it is a service) the right to write "
                "there, or name another folder in VIAM_MODULE_DATA.",
            ) from None

    def _url_path(self, url: str) -> Path:
        return self.urls / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"

    def _remove_stale_parts(self) -> None:
        """Remove what processes left behind that were killed."""
        for path in self.incoming.glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime < UNLOCKED_PART_S:
                    continue
                # Without waiting, whatever somebody may have put there.
                with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    def _shrink(self, *, keep: str) -> None:
        """Remove the images that were used longest ago, until the rest fits."""
        records = sorted(self.urls.glob("*.json"), key=_changed_s)
        for path in records[:-MAX_URLS]:
            with contextlib.suppress(OSError):
                path.unlink()
        found = []
        for path in self.images.glob("*.bin"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total_bytes = sum(size for _, size, _ in found)
        for _, size_bytes, path in sorted(found):
            if total_bytes <= MAX_CACHE_BYTES:
                return
            if path != self.image_path(keep):
                with contextlib.suppress(OSError):
                    path.unlink()
                    total_bytes -= size_bytes


def _changed_s(path: Path) -> float:
    """When a file was last written; 0 for one that another process has just removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
