# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloaded files on disk, addressed by their SHA-256, and what each url last gave.

    CACHE_DIR/firmware/images/<sha256>.bin     whole files
    CACHE_DIR/firmware/urls/<name>.json        what the url gave: digest, version, validators

Several processes may use it at once: files appear under their names whole, by rename. No name
and no content holds a url. Nothing here has to last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.files import read_file, write_file

MAX_CACHE_BYTES = 256 << 20
# What is older and has no name yet was left by a process that was killed while it wrote.
UNNAMED_S = 3600.0
# Where version 0.2.0 had what it was still downloading.
_PARTS = "incoming/*.part"
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


class Cache:
    """The cache of one folder. Raises OtaError disk-full, file-access where it cannot write, and
    config-invalid for a folder that it may not have."""

    def __init__(self, cache_dir: Path) -> None:
        trust.require_apart(cache_dir, "The folder of downloads (VIAM_MODULE_DATA)")
        self.root = cache_dir / "firmware"
        self.images = self.root / "images"
        self.urls = self.root / "urls"

    def require_room(self, size_bytes: int) -> None:
        """Raise OtaError disk-full where `size_bytes` more do not fit."""
        with self._writing():
            free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < size_bytes + SPARE_BYTES:
            raise OtaError(
                "disk-full",
                f"The firmware has {size_bytes:,} bytes, and the disk of {self.root} has "
                f"{free_bytes:,} bytes left.",
            )

    def keep(self, data: bytes) -> str:
        """Make a file one of the cache's; returns its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.require_room(len(data))
        with self._writing():
            write_file(self.image_path(sha256), data)
        return sha256

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
        with self._writing():
            write_file(self._url_path(url), json.dumps(asdict(known)).encode())
        self._shrink(keep=known.sha256)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The folders are there, and a disk's errors are ours."""
        try:
            for folder in (self.root, self.images, self.urls):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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

    def _shrink(self, *, keep: str) -> None:
        """Remove the images that were used longest ago, until the rest fits."""
        for path in (*self.images.glob(".*"), *self.urls.glob(".*"), *self.root.glob(_PARTS)):
            if 0.0 < _changed_s(path) < time.time() - UNNAMED_S:
                with contextlib.suppress(OSError):
                    path.unlink()
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
