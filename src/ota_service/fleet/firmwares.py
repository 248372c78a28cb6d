# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware of each target, for as long as a board or a look needs it.

Each target is fetched by itself, so that a slow server holds up only the boards that need it. A
fetch ends at once when nobody waits for it any more. Lives in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.check import Firmware, IsManifest, ManifestFile
from ota_service.firmware.files import FIRMWARE_BYTES, read_file, write_file
from ota_service.firmware.manifest import MAX_BYTES, Manifest
from ota_service.firmware.supply import Supply, place_of
from ota_service.firmware.target import Headers, Target
from ota_service.firmware.urls import is_path
from ota_service.fleet.assignment import about_manifest
from ota_service.fleet.board_state import Progress
from ota_service.fleet.orders import FlashFile
from ota_service.fleet.settings import Settings
from ota_service.link.stream import STREAMS
from ota_service.update.facts import KnownImage
from ota_service.update.flash_plan import check_merged
from ota_service.update.session import Image

MERGED_BYTES = 16 << 20
"""A Merged Binary may be as large as a flash, whatever the limit for App Images is."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A firmware that is there. proven: a board was seen running it well. allowed_by: how each
    policy of this host allowed it. asked: those policies. asked_s: when, in the event loop's
    time."""

    image: Image
    proven: bool
    allowed_by: tuple[Mapping[str, Any], ...] = ()
    asked: tuple[trust.Policy, ...] = ()
    asked_s: float = float("inf")


KEPT_MANIFESTS = 20
"""Of this many targets the last good one is kept; the oldest go first."""

LOOK_AGAIN_S = 86_400.0
"""How often metadata is looked at that expires soon, since its owner may have renewed it, or that
allowed what boards still get: he may have taken it back."""

Arrived = Callable[["Fetched | OtaError"], None]
LetGo = Callable[[], None]


@dataclass(eq=False)
class _Shelf:
    """One target's firmware, or the task that fetches it; wanted: by whom."""

    target: Target
    task: asyncio.Task[None] | None = None
    fetched: Fetched | None = None
    wanted: list[Arrived] = field(default_factory=list)


class Firmwares:
    """One service's. about: what the status shows of a target's file; notices: what it says of a
    file that changed under its version; same: of one that boards have run before; named: the
    manifest that names it, and as which image. All by the target's key."""

    def __init__(
        self,
        settings: Settings,
        log: logging.LoggerAdapter[logging.Logger],
        proven: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.settings = settings
        self.download: Progress | None = None
        self.about: dict[str, dict[str, Any]] = {}
        self.notices: dict[str, str] = {}
        self.same: dict[str, str] = {}
        self.named: dict[str, tuple[Manifest, str]] = {}
        self._known: dict[str, KnownImage] = {}
        self._looked: dict[str, tuple[Target, float]] = {}
        self._log = log
        self._proven = proven
        self._shelves: dict[str, _Shelf] = {}
        self._supply = Supply(settings.cache_dir, log=log, trusting=settings.trusting)

    def want(self, target: Target, arrived: Arrived) -> LetGo:
        """Have a target's firmware fetched; `arrived` is called, later, with it or the error.

        What is returned is called, once, when it is needed no more.
        """
        shelf = self._shelves.get(target.key)
        if shelf is None:
            shelf = self._shelves[target.key] = _Shelf(target)
            shelf.task = asyncio.ensure_future(self._fetch(shelf))
        shelf.wanted.append(arrived)
        if shelf.fetched is not None:
            asyncio.get_running_loop().call_soon(arrived, shelf.fetched)
        return partial(self._let_go, shelf, arrived)

    async def outdated(self, target: Target, fetched: Fetched) -> bool:
        """Whether this host's policy has changed since, or was last asked long ago; then the next
        wish has it fetched anew."""
        by_metadata = any(policy.repositories is not None for policy in fetched.asked)
        age_s = asyncio.get_running_loop().time() - fetched.asked_s
        recent = not by_metadata or age_s <= LOOK_AGAIN_S
        if recent and not await self._supply.outdated(fetched.asked):
            return False
        shelf = self._shelves.get(target.key)
        if shelf is not None and shelf.fetched is fetched:
            del self._shelves[target.key]
        return True

    async def require_current(self, file: FlashFile) -> None:
        """Raise OtaError where this host's policy has changed since a file was checked."""
        if await self._supply.outdated(file.file.asked):
            raise OtaError(
                "trust-invalid",
                "This host's policy of trust has changed since the file was checked.",
                remedy="Call flash again.",
            )

    @asynccontextmanager
    async def had(self, target: Target) -> AsyncIterator[Fetched]:
        """A target's firmware for the length of a block. Raises OtaError."""
        future: asyncio.Future[Fetched | OtaError] = asyncio.get_running_loop().create_future()

        def arrived(got: Fetched | OtaError) -> None:
            if not future.done():
                future.set_result(got)

        let_go = self.want(target, arrived)
        try:
            got = await future
            if isinstance(got, OtaError):
                raise got
            yield got
        finally:
            let_go()

    async def manifest(self, target: Target) -> ManifestFile | None:
        """What a target's file names, asked of its url; None: it is a plain App Image.

        Each of its images has project and chip, unless the manifest names the boards. Raises
        OtaError.
        """
        try:
            async with self.had(target):
                return None
        except IsManifest as error:
            return error.found

    async def kept(self, target: Target, *, checked: bool = True) -> ManifestFile | None:
        """The last good manifest of a target, without its server; None where there is none that
        this host would take now. checked: False where nothing is written by it."""
        try:
            data, about = await asyncio.to_thread(_read_kept, self._kept_path(target))
            found = await self._supply.still_good(
                target, data, ca_file=self.settings.ca_file, checked=checked
            )
            found = replace(found, manifest=found.manifest.filled(about))
        except (OtaError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        self._show(target, found)
        return found

    def forget_kept(self, target: Target) -> None:
        """What the target's url gives now is no manifest; in a thread."""
        self._kept_path(target).unlink(missing_ok=True)

    async def may_be_manifest(self, target: Target) -> bool:
        """Whether its name says so; what the file is, it says itself."""
        url = target.url
        if is_path(url):
            url = await asyncio.to_thread(place_of, url)
        return urlsplit(url).path.endswith(".json")

    async def merged(self, place: Path | str, confirm: str, keep_nvs: bool) -> FlashFile:
        """The Merged Binary at a path or a url, checked. Raises OtaError."""
        ca_file, headers = self.settings.ca_file, self._headers(place)
        asked, grants = await self._supply.granted(str(place), ca_file=ca_file, headers=headers)
        url = grants[0].url if grants else str(place)
        if isinstance(place, Path):
            data = await asyncio.to_thread(_read, Path(url))
        else:
            with self._shown() as progress:
                data = await self._supply.fetch(
                    url,
                    ca_file=ca_file,
                    max_bytes=max(self.settings.max_image_bytes, MERGED_BYTES),
                    progress=progress,
                    headers=headers,
                )
        check = partial(check_merged, data, policies=asked, grants=grants)
        return FlashFile(await asyncio.to_thread(check), confirm, keep_nvs)

    def _headers(self, place: Path | str) -> Headers:
        """Those of the configuration, where they belong to the same server."""
        if isinstance(place, Path):
            return ()
        return self.settings.target.pinned(url=place).headers

    async def look_at_file(self, target: Target) -> None:
        """Where a target's file is a path: read it again if it has changed, and say so. Boards that
        hold its version keep what they have."""
        if not await asyncio.to_thread(self._supply.changed, target.url):
            return
        try:
            async with self.had(target):
                pass
        except IsManifest:
            pass  # the next run goes by it
        except OtaError as error:
            self.notices[target.key] = error.message

    def project(self, target: Target) -> str | None:
        """Of its image; None where that is not known, or it has none."""
        return self.about.get(target.key, {}).get("project")

    def retagged(self, target: Target) -> None:
        """A board runs a target's image already, under another tag: whoever forgot to change the
        url, or what is served there, is told."""
        about = self.about.get(target.key, {})
        text = (
            f'The image at {target.shown_url} calls itself "{about.get("app_version", "")}" and is '
            f'what boards run already: only the version "{target.version}" is stored. If another '
            "firmware was meant, check the url and what is served there."
        )
        if self.same.get(target.key) != text:
            self._log.warning("%s", text)
        self.same[target.key] = text

    def known(self, other_than: str) -> tuple[KnownImage, ...]:
        """The files of other targets, as evidence for what a slot holds."""
        return tuple(image for key, image in self._known.items() if key != other_than)

    def keep(self, keys: set[str]) -> None:
        """Forget what is known of files that are no board's target any more."""
        for table in (self.about, self.notices, self.same, self._known, self._looked):
            for key in [key for key in table if key not in keys]:
                del table[key]

    def expiring(self) -> list[Target]:
        """Targets whose metadata expires soon, and was not looked at for a day."""
        now_s, due = asyncio.get_running_loop().time(), []
        for key, (target, at_s) in self._looked.items():
            by = self.about.get(key, {}).get("allowed_by", ())
            if now_s - at_s > LOOK_AGAIN_S and trust.expiry_notice(by):
                self._looked[key] = (target, now_s)
                due.append(target)
        return due

    async def look_at_metadata(self, target: Target) -> None:
        """Show until when a target's metadata is valid by now."""
        with contextlib.suppress(OtaError):
            _, grants = await self._supply.granted(
                target.url, target.version, ca_file=self.settings.ca_file, headers=target.headers
            )
            valid = {str(one.folder): one.expires for one in grants if one.expires is not None}
            for by in self.about.get(target.key, {}).get("allowed_by", ()):
                if by["policy"] in valid:
                    by["expires"] = valid[by["policy"]]

    def _let_go(self, shelf: _Shelf, arrived: Arrived) -> None:
        """Where nobody needs it, its bytes go, and a fetch that is on its way ends."""
        if arrived in shelf.wanted:
            shelf.wanted.remove(arrived)
        if shelf.wanted:
            return
        if self._shelves.get(shelf.target.key) is shelf:
            del self._shelves[shelf.target.key]
        if shelf.fetched is not None:
            # In a thread: the cache may be compressing another image just now.
            drop = partial(STREAMS.drop, shelf.fetched.image.sha256)
            asyncio.get_running_loop().run_in_executor(None, drop)
        elif shelf.task is not None:
            shelf.task.cancel()

    async def close(self) -> None:
        """End every fetch."""
        tasks = [shelf.task for shelf in self._shelves.values() if shelf.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- inside

    async def _fetch(self, shelf: _Shelf) -> None:
        try:
            got: Fetched | OtaError = await self._get(shelf.target)
        except OtaError as error:
            got = error  # who waits for it tells it
        except Exception as error:
            self._log.exception("fetching the firmware failed")
            got = OtaError.unforeseen(error)
        shelf.task = None
        if isinstance(got, Fetched):
            shelf.fetched = got
        elif self._shelves.get(shelf.target.key) is shelf:
            del self._shelves[shelf.target.key]
        for arrived in list(shelf.wanted):
            arrived(got)

    async def _get(self, target: Target) -> Fetched:
        asked_s = asyncio.get_running_loop().time()
        try:
            firmware = await self._supplied(target)
        except IsManifest as error:
            if target.key in self.named:
                raise _nested(self.named[target.key][1]) from None
            raise IsManifest(await self._take(target, error.found), target.shown_url) from None
        image = Image(firmware.data, firmware.sha256, firmware.md5, firmware.image)
        about = image.parsed.descriptor
        if target.key in self.named:
            manifest, name = self.named[target.key]
            manifest.filled({name: (about.project, image.parsed.chip)})
        self.about[target.key] = {
            "sha256": image.sha256,
            "size_bytes": len(image.data),
            "project": about.project,
            "app_version": about.version,
            "chip": image.parsed.chip,
        }
        self._note_policy(target, firmware)
        self._known[target.key] = image.known
        self._notice(target, firmware)
        proven = await self._proven(image.sha256)
        return Fetched(image, proven, firmware.allowed_by, firmware.asked, asked_s)

    async def _supplied(self, target: Target) -> Firmware:
        with self._shown() as progress:
            return await self._supply.get(
                target,
                ca_file=self.settings.ca_file,
                max_image_bytes=self.settings.max_image_bytes,
                progress=progress,
            )

    async def _take(self, target: Target, found: ManifestFile) -> ManifestFile:
        """A manifest that was fetched: what it leaves out its images say; then it is kept."""
        targets = found.manifest.targets(replace(target, url=found.place))
        # One after the other: hundreds at once would fill the memory.
        about = {
            name: await self._whose(name, targets[name]) for name in found.manifest.open_images
        }
        found = replace(found, manifest=found.manifest.filled(about))
        self._show(target, found)
        self._notice(target, found)
        kept = {"manifest": found.file.decode(), "about": about}
        try:
            await asyncio.to_thread(_keep, self._kept_path(target), kept)
        except OSError as error:
            self._log.warning("the manifest cannot be kept: %s", error.strerror)
        return found

    async def _whose(self, name: str, target: Target) -> tuple[str, str]:
        """Project and chip of a manifest's image, as its file says; nothing else of it stays."""
        try:
            image = (await self._supplied(target)).image
        except IsManifest:
            raise _nested(name) from None
        return image.descriptor.project, image.chip

    def _show(self, target: Target, found: ManifestFile) -> None:
        self.about[target.key] = {
            "sha256": found.sha256,
            "size_bytes": len(found.file),
            "manifest": about_manifest(found.manifest),
        }
        self._note_policy(target, found)

    def _note_policy(self, target: Target, file: Firmware | ManifestFile) -> None:
        if file.allowed_by:
            self.about[target.key]["allowed_by"] = [dict(by) for by in file.allowed_by]
            self._looked[target.key] = (target, asyncio.get_running_loop().time())

    def _kept_path(self, target: Target) -> Path:
        return self.settings.state_dir / "manifests" / f"{target.key}.json"

    def _notice(self, target: Target, firmware: Firmware | ManifestFile) -> None:
        """A file that changed under its version: boards that hold that version do not get it."""
        before = firmware.changed_from
        if before is None:
            self.notices.pop(target.key, None)
            return
        text = (
            f"The url gave another file under this version before (SHA-256 {before[:16]}..., now "
            f"{firmware.sha256[:16]}...). Boards that hold the version already keep what they "
            "have: publish the file under a new version, or call update with force."
        )
        if self.notices.get(target.key) != text:
            self._log.warning("%s, version %s: %s", target.shown_url, target.version, text)
        self.notices[target.key] = text

    @contextlib.contextmanager
    def _shown(self) -> Iterator[Callable[[int, int | None], None]]:
        """Show a download's progress in the status."""
        shown = self.download = Progress()

        def progress(done: int, total: int | None) -> None:
            shown.bytes_done = done
            shown.bytes_total = total or 0

        try:
            yield progress
        finally:
            if self.download is shown:
                self.download = None


def _nested(name: str) -> OtaError:
    """What the file of a manifest's image must not be: boards would follow it, and not the one
    that was configured."""
    return OtaError("manifest-invalid", f"images.{name}: its file is a manifest, no App Image.")


def _keep(path: Path, kept: Mapping[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path, json.dumps(kept).encode())
    found = sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime)
    for old in found[:-KEPT_MANIFESTS]:
        old.unlink(missing_ok=True)


def _read_kept(path: Path) -> tuple[bytes, dict[str, tuple[str, str]]]:
    found = json.loads(read_file(path, 8 * MAX_BYTES, links=False))  # text in JSON is longer
    about = {str(name): (str(one[0]), str(one[1])) for name, one in found["about"].items()}
    return found["manifest"].encode(), about


def _read(path: Path) -> bytes:
    try:
        return read_file(path, FIRMWARE_BYTES)
    except OtaError as error:
        raise OtaError(
            error.code,
            error.message,
            remedy="Name a Merged Binary on the machine that the boards are attached to.",
        ) from None
