# SPDX-License-Identifier: GPL-3.0-or-later
"""From a target to its firmware: from the cache where that is certain, else from its url."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware.cache import Cache, Known
from ota_service.firmware.check import Firmware, check_firmware
from ota_service.firmware.download import Download, Progress, make_ssl_context, run_attempts
from ota_service.firmware.target import Target

LOGGER = logging.getLogger(__name__)

# Growing and bounded; what still fails then waits for the fleet's next try.
RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0)

_Key = tuple[str, str | None, int]


@dataclass
class _Shared:
    """One fetch that any number of callers wait for, each with its own view of the progress."""

    task: asyncio.Task[Firmware]
    watchers: list[Progress] = field(default_factory=list)
    last: tuple[int, int | None] | None = None


class Supply:
    """Fetches firmware. All calls belong to one event loop."""

    def __init__(
        self, cache_dir: Path, *, retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S
    ) -> None:
        self._cache = Cache(cache_dir)
        self._retry_delays_s = retry_delays_s
        self._shared: dict[_Key, _Shared] = {}

    async def get(
        self,
        target: Target,
        *,
        ca_file: str | None = None,
        max_image_bytes: int = 16_777_216,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Firmware:
        """The checked firmware of `target`.

        A target with a digest whose file is in the cache needs no network. Otherwise the server
        is asked whether the file changed; where it cannot be reached, what the same url gave
        for the same version is used. Calls for one target at the same time share a download,
        which ends when nobody waits for it any more.
        progress: called with the bytes that have arrived and the file's size, if known.
        Raises OtaError, blame "firmware" or "host"; no message holds a secret.
        """
        key = (target.key, ca_file, max_image_bytes)
        shared = self._shared.get(key)
        if shared is None or shared.task.done():
            shared = self._begin(key, target, ca_file, max_image_bytes)
        # Each call has an entry of its own, also where two have the same function.
        watcher: Progress = _quiet if progress is None else lambda *at: progress(*at)
        shared.watchers.append(watcher)
        if shared.last is not None:
            watcher(*shared.last)
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.watchers.remove(watcher)
            if not shared.watchers and not shared.task.done():
                shared.task.cancel()
                if self._shared.get(key) is shared:
                    del self._shared[key]

    def _begin(
        self, key: _Key, target: Target, ca_file: str | None, max_image_bytes: int
    ) -> _Shared:
        def report(done_bytes: int, total_bytes: int | None) -> None:
            shared.last = (done_bytes, total_bytes)
            for watcher in list(shared.watchers):
                watcher(done_bytes, total_bytes)

        def forget(_: asyncio.Task[Firmware]) -> None:
            if self._shared.get(key) is shared:
                del self._shared[key]

        task = asyncio.create_task(self._fetch(target, ca_file, max_image_bytes, report))
        shared = self._shared[key] = _Shared(task)
        task.add_done_callback(forget)
        return shared

    async def _fetch(
        self, target: Target, ca_file: str | None, max_image_bytes: int, report: Progress
    ) -> Firmware:
        if target.sha256 is not None:
            cached = await asyncio.to_thread(self._from_cache, target.sha256, max_image_bytes)
            if cached is not None:
                return cached
        context = await asyncio.to_thread(make_ssl_context, ca_file)
        known = await asyncio.to_thread(self._cache.known, target.url)
        if target.sha256 is not None:
            known = None  # it is known to be another file, or a damaged one
        download = Download(target.url, self._cache, max_image_bytes, report, known)
        try:
            return await self._download(download, context, target)
        finally:
            if download.part is not None:
                download.part.discard()

    async def _download(
        self, download: Download, context: ssl.SSLContext, target: Target
    ) -> Firmware:
        known = download.known
        try:
            await run_attempts(download, context, self._retry_delays_s)
        except OtaError as error:
            if not error.kind.transient or known is None or known.version != target.version:
                raise
            cached = await asyncio.to_thread(self._from_cache, known.sha256, download.max_bytes)
            if cached is None:
                raise
            LOGGER.warning("%s Using what it gave before for this version.", error.message)
            return cached
        if download.unchanged and known is not None:
            cached = await asyncio.to_thread(self._from_cache, known.sha256, download.max_bytes)
            if cached is not None:
                await asyncio.to_thread(self._remember, target, known.sha256, download)
                return cached
            download.known, download.unchanged = None, False  # damaged on disk: once more, whole
            await run_attempts(download, context, self._retry_delays_s)
        return await asyncio.to_thread(self._check_and_keep, download, target)

    def _from_cache(self, sha256: str, max_image_bytes: int) -> Firmware | None:
        data = self._cache.image(sha256)
        if data is None or len(data) > max_image_bytes:
            return None
        return check_firmware(data, sha256=sha256)

    def _check_and_keep(self, download: Download, target: Target) -> Firmware:
        assert download.part is not None
        firmware = check_firmware(download.part.read(), sha256=target.sha256)
        sha256 = download.part.keep()
        self._remember(target, sha256, download)
        return firmware

    def _remember(self, target: Target, sha256: str, download: Download) -> None:
        known = download.known
        etag, last_modified = download.etag, download.last_modified
        if download.unchanged and known is not None:
            etag, last_modified = known.etag, known.last_modified
        self._cache.remember(target.url, Known(sha256, target.version, etag, last_modified))


def _quiet(done_bytes: int, total_bytes: int | None) -> None:
    """Nobody watches."""
