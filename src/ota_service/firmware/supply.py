# SPDX-License-Identifier: GPL-3.0-or-later
"""From a target to its firmware: from the cache where that is certain, else from its url, which
may be a path of this machine."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.cache import Cache, Known
from ota_service.firmware.check import Firmware, IsManifest, ManifestFile, check_file
from ota_service.firmware.failures import GaveUp, NotThere
from ota_service.firmware.files import Stamp, read_file
from ota_service.firmware.local import find_file, read_firmware, stamp_at
from ota_service.firmware.manifest import is_json, is_whole
from ota_service.firmware.target import Headers, Target
from ota_service.firmware.urls import is_path

if TYPE_CHECKING:
    from ota_service.firmware.download import Download, Patience, Progress

LOGGER = logging.getLogger(__name__)

# Downloads that were given up and may be gone on with: on a bad link each byte counts. They are in
# memory, so the last one stays, and of those before it so many, and so much.
MAX_UNFINISHED = 4
UNFINISHED_BYTES = 8 << 20
# What is taken from a file as the value of a header.
MAX_HEADER_BYTES = 8000

_MENDED = frozenset({"signature-missing", "signature-invalid", "signature-untrusted",
                     "digest-mismatch", "metadata-invalid"})  # fmt: skip
"""What this host's policy refuses a file for, and its owner may be about to publish aright: file
and metadata do not appear at once."""

_Got = Firmware | ManifestFile
_Check = Callable[..., _Got]
"""`check_file` with what this host asks of the file, and what is known of it."""


class Supply:
    """Fetches firmware. All calls belong to one event loop. log: whose firmware it is.

    trusting: the host's policy of trust is passed by.
    """

    def __init__(
        self,
        cache_dir: Path,
        *,
        patience: Patience | None = None,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] = LOGGER,
        trusting: bool = False,
    ) -> None:
        self._log = log
        self._trusting = trusting
        self._cache = Cache(cache_dir)
        self._patience = patience
        self._unfinished: dict[str, Download] = {}
        self._stamps: dict[str, Stamp] = {}
        self._told = ""  # why attempts fail just now: once, however long it lasts

    async def get(
        self,
        target: Target,
        *,
        ca_file: str | None = None,
        max_image_bytes: int = 16_777_216,
        progress: Progress | None = None,
    ) -> Firmware:
        """The checked firmware of `target`.

        A target with a digest whose file is in the cache needs no network. Otherwise the server
        is asked whether the file changed; where it cannot be reached, what the same url gave
        for the same version is used.
        progress: called with the bytes that have arrived and the file's size, if known.
        The firmware's `changed_from` says where the url gave another file under this version
        before. Raises OtaError, blame "firmware" or "host"; no message holds a secret. Raises
        `IsManifest` with the manifest where the file is one, of this version.
        """
        asked, grants = await self.granted(
            target.url, target.version, ca_file=ca_file, headers=target.headers
        )
        report = progress or _quiet
        try:
            got = await self._allowed(target, ca_file, max_image_bytes, report, asked, grants)
        except OtaError as error:
            if asked and error.code in _MENDED and not isinstance(error, GaveUp):
                raise NotThere(error.code, error.message, remedy=error.remedy) from None
            raise
        first = await asyncio.to_thread(self._cache.first, target.url, target.version)
        changed = first if first not in (None, got.sha256) else None
        if isinstance(got, ManifestFile):
            place = await asyncio.to_thread(place_of, target.url)
            raise IsManifest(replace(got, changed_from=changed, place=place), target.shown_url)
        return replace(got, changed_from=changed)

    async def fetch(
        self,
        url: str,
        *,
        ca_file: str | None = None,
        max_bytes: int = 16_777_216,
        progress: Progress | None = None,
        headers: Headers = (),
    ) -> bytes:
        """A whole file of whatever kind, unchecked and not kept: it may hold a board's keys.

        Raises OtaError as `get` does.
        """
        context = await asyncio.to_thread(_ssl_context, ca_file)
        from ota_service.firmware.download import Download

        sent = await asyncio.to_thread(read_headers, headers)
        download = Download(url, None, max_bytes, progress or _quiet, headers=sent)
        await self._attempts(download, context)
        return bytes(download.arrived)

    async def granted(
        self, url: str, version: str = "", *, ca_file: str | None = None, headers: Headers = ()
    ) -> tuple[tuple[trust.Policy, ...], tuple[trust.Grant, ...]]:
        """What this host asks of a file, and what signed metadata says of the one at `url`.

        url: an address, or a path. version: that it must be bound to; "": any. Raises OtaError.
        """
        asked, grants = await self._policies(), []
        for policy in asked:
            if policy.repositories is not None:
                from ota_service.firmware import repository  # only here is a client needed

                def fetch(place: str, max_bytes: int) -> Awaitable[bytes]:
                    return self.fetch(place, ca_file=ca_file, max_bytes=max_bytes, headers=headers)

                grants.append(
                    await repository.grant(
                        policy, url, version, fetch=fetch, state_dir=trust.memory(), log=self._log
                    )
                )
        return asked, tuple(grants)

    async def _policies(self) -> tuple[trust.Policy, ...]:
        return () if self._trusting else await asyncio.to_thread(trust.policies)

    async def outdated(self, asked: tuple[trust.Policy, ...]) -> bool:
        """Whether this host asks for something else now than it did when a file was checked."""
        try:
            return await self._policies() != asked
        except OtaError:  # whoever gets the file anew is told
            return True

    async def still_good(
        self, target: Target, file: bytes, *, ca_file: str | None = None, checked: bool = True
    ) -> ManifestFile:
        """A manifest that the target's url gave before, held against what this host asks for now,
        unless `checked` is False.

        Needs the network only for a repository, whose last word counts where it gives none.
        Raises OtaError.
        """
        asked: tuple[trust.Policy, ...] = ()
        grants: tuple[trust.Grant, ...] = ()
        if checked:
            asked, grants = await self.granted(
                target.url, target.version, ca_file=ca_file, headers=target.headers
            )
        check = partial(_checked, target, policies=asked, grants=grants, sha256=target.sha256)
        got = await asyncio.to_thread(check, file)
        assert isinstance(got, ManifestFile)
        return replace(got, place=await asyncio.to_thread(place_of, target.url))

    async def _allowed(
        self, target: Target, ca_file: str | None, max_image_bytes: int, report: Progress,
        asked: tuple[trust.Policy, ...], grants: tuple[trust.Grant, ...],
    ) -> _Got:  # fmt: skip
        check: _Check = partial(_checked, target, policies=asked, grants=grants)
        sha256 = target.sha256 or next((grant.sha256 for grant in grants if grant.sha256), None)
        if sha256 is not None:
            cached = await self._from_cache(sha256, max_image_bytes, check)
            if cached is not None:
                return cached
        url = grants[0].url if grants else target.url
        max_bytes = min([max_image_bytes, *(grant.size_bytes for grant in grants)])
        if is_path(url):
            return await asyncio.to_thread(self._from_file, target, Path(url), max_bytes, check)
        context = await asyncio.to_thread(_ssl_context, ca_file)
        from ota_service.firmware.download import Download

        known = await asyncio.to_thread(self._cache.known, target.url)
        if target.sha256 is not None or grants:
            known = None  # it is known to be another file, or a damaged one
        headers = await asyncio.to_thread(read_headers, target.headers)
        download = Download(url, self._cache, max_bytes, report, known, headers)
        self._take_up(download)
        try:
            return await self._download(download, context, target, check)
        except OtaError as error:
            if error.code == "download-too-large" and max_bytes < max_image_bytes:
                text = f"{download.shown} gives more than the {max_bytes:,} bytes that were signed."
                raise NotThere("download-too-large", text) from None
            raise
        finally:
            self._put_away(download)

    def _from_file(self, target: Target, place: Path, max_bytes: int, check: _Check) -> _Got:
        data, self._stamps[target.url] = read_firmware(find_file(place), max_bytes)
        firmware = check(data, sha256=target.sha256)
        self._cache.remember(target.url, Known(firmware.sha256, target.version))
        return firmware

    def changed(self, url: str) -> bool:
        """Whether another file is at a path now than the one that was read there; in a thread."""
        before = self._stamps.get(url)
        return before is not None and stamp_at(Path(url)) not in (None, before)

    def _take_up(self, download: Download) -> None:
        """Go on with what an earlier call had to give up, if the server can tell its end."""
        before = self._unfinished.pop(download.url, None)
        if before is not None:
            download.arrived = before.arrived
            download.etag, download.last_modified = before.etag, before.last_modified

    def _put_away(self, download: Download) -> None:
        """Keep what arrived where a later call may go on with it."""
        if download.gave_up and download.arrived and (download.etag or download.last_modified):
            before = self._unfinished
            while before and (
                len(before) >= MAX_UNFINISHED
                or sum(len(one.arrived) for one in before.values()) > UNFINISHED_BYTES
            ):
                del before[next(iter(before))]
            before[download.url] = download

    async def _download(
        self, download: Download, context: ssl.SSLContext, target: Target, check: _Check
    ) -> _Got:
        known = download.known
        try:
            await self._attempts(download, context)
        except OtaError as error:
            if not download.gave_up or known is None or known.version != target.version:
                raise
            cached = await self._from_cache(known.sha256, download.max_bytes, check)
            if cached is None:
                raise
            self._log.warning("%s Using what it gave before for this version.", error.message)
            return cached
        if download.unchanged and known is not None:
            cached = await self._from_cache(known.sha256, download.max_bytes, check)
            if cached is not None:
                await asyncio.to_thread(self._remember, target, known.sha256, download)
                return cached
            download.known, download.unchanged = None, False  # damaged on disk: once more, whole
            await self._attempts(download, context)
        return await asyncio.to_thread(self._check_and_keep, download, target, check)

    async def _attempts(self, download: Download, context: ssl.SSLContext) -> None:
        """The attempts of a download, the first of which that fails is told; raises OtaError."""
        from ota_service.firmware.download import run_attempts

        def fails(error: OtaError) -> None:
            if self._told != error.message:
                self._log.warning("%s Trying again.", error.message)
            self._told = error.message

        await run_attempts(download, context, self._patience, fails)
        self._told = ""

    async def _from_cache(self, sha256: str, max_image_bytes: int, check: _Check) -> _Got | None:
        data = await asyncio.to_thread(self._cache.image, sha256)
        if data is None or len(data) > max_image_bytes:
            return None
        return await asyncio.to_thread(check, data, sha256=sha256)

    def _check_and_keep(self, download: Download, target: Target, check: _Check) -> _Got:
        data = bytes(download.arrived)
        try:
            firmware = check(data, sha256=target.sha256)
        except OtaError as error:
            cut = error.code == "image-corrupt" or (is_json(data) and not is_whole(data))
            if download.open_ended and cut:
                # Its server marked no end, so this is how a cut shows.
                raise OtaError(
                    "download-truncated",
                    f"What {download.shown} gave is not whole, and its server does not say how "
                    f"long the file is: {error.message}",
                ) from None
            raise
        self._remember(target, self._cache.keep(data), download)
        return firmware

    def _remember(self, target: Target, sha256: str, download: Download) -> None:
        known = download.known
        etag, last_modified = download.etag, download.last_modified
        if download.unchanged and known is not None:
            etag, last_modified = known.etag, known.last_modified
        self._cache.remember(target.url, Known(sha256, target.version, etag, last_modified))


def _checked(target: Target, data: bytes, **asked: Any) -> _Got:
    """A file of the target's; a manifest of another version may be replaced by the right one."""
    got = check_file(data, **asked)
    if isinstance(got, ManifestFile) and got.manifest.version != target.version:
        raise NotThere(
            "version-mismatch",
            f'The manifest at {target.shown_url} is of version "{got.manifest.version}", and '
            f'"{target.version}" is configured.',
            remedy="Configure the manifest's version, or publish the one that is meant.",
        )
    return got


def place_of(url: str) -> str:
    """Where the file itself is: a path may be its folder's."""
    if not is_path(url):
        return url
    try:
        return str(find_file(Path(url)))
    except OtaError:  # it was there a moment ago
        return url


def _ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """The certificates to trust; in a thread: the client, which nobody needs for what is here, is
    loaded with them. Raises OtaError."""
    from ota_service.firmware.download import make_ssl_context

    return make_ssl_context(ca_file)


def read_headers(headers: Headers) -> dict[str, str]:
    """Headers with what stands in their files now, without blanks around it. Raises OtaError."""
    return {name: value if isinstance(value, str) else _read_value(name, value)
            for name, value in headers}  # fmt: skip


def _read_value(name: str, path: Path) -> str:
    value = read_file(path, MAX_HEADER_BYTES).decode("ascii", "replace").strip()
    if not value or not value.isascii() or not value.isprintable():
        raise OtaError("file-access", f"{path} does not hold the one line of the header {name}.")
    return value


def _quiet(done_bytes: int, total_bytes: int | None) -> None:
    """Nobody watches."""
