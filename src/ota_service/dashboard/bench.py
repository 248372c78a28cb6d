# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies on the bench: files that were dropped on the page, checked and described.

They are kept under names of ours in a private folder, until they are cleared or the bench ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from ota_service.client.remedies import BENCH, remedy_of
from ota_service.errors import OtaError
from ota_service.firmware.check import ManifestFile, check_file
from ota_service.firmware.files import read_file, write_file
from ota_service.firmware.manifest import ImageEntry, Manifest
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import check_version
from ota_service.firmware.trust import Grant, Policy
from ota_service.formats.text import visible
from ota_service.module.folders import default_cache_dir
from ota_service.update.flash_plan import check_merged

IMAGE_BYTES = 16 << 20
"""Of an App Image, as the service's max_image_bytes is by default."""
FILE_BYTES = 32 << 20
"""Of a Merged Binary, and so of any file."""
BENCH_BYTES = 128 << 20
BENCH_FILES = 64
_NAME_MAX_CHARS = 200

_OTHER_TAG = "Give another tag, such as 1.0.0."

Kind = Literal["app", "merged", "manifest", "refused"]
Use = Literal["firmware", "merged", "none"]
"""What one of several files is meant for: to run on boards, to be flashed, or nothing."""

_PREFIX = "esp32-ota-bench-"
_KEPT_FILE = re.compile(rf"[^\s\"']*/{_PREFIX}[^/\s]+/([0-9a-f]{{64}}\.[a-z]+)")
"""The path of a file of this bench, or of one before."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """One file. name: what it was called, for people alone. path: where it is kept. project,
    app_version, chip: of an App Image, or of what a Merged Binary starts. error: why it is of no
    use here."""

    name: str
    path: Path
    size_bytes: int
    sha256: str
    kind: Kind = "refused"
    project: str | None = None
    app_version: str | None = None
    chip: str | None = None
    manifest: Manifest | None = field(default=None, repr=False)
    error: OtaError | None = None

    @property
    def use(self) -> Use:
        """What it can be chosen for."""
        if self.kind == "refused":
            return "none"
        return "merged" if self.kind == "merged" else "firmware"

    def to_dict(self) -> dict[str, Any]:
        """As the page has it; what has no value is left out."""
        shown = {
            "name": self.name,
            "kind": self.kind,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "project": self.project,
            "app_version": self.app_version,
            "chip": self.chip,
            **(_about(self.manifest) if self.manifest is not None else {}),
            "error": self.error and self.error.to_dict(),
        }
        return {key: value for key, value in shown.items() if value is not None}

    def succeeds(self, other: Dropped) -> bool:
        """Whether this is another build of the same, or the same file once more."""
        mine, its = ((one.name, one.kind, one.project, one.chip) for one in (self, other))
        return self.sha256 == other.sha256 or mine == its


class Bench:
    """The files, in the order in which they were dropped. Lives in one event loop.

    in_use: whether an update may still read what was here, which then stays where it is kept.
    """

    def __init__(self, in_use: Callable[[], bool]) -> None:
        self._in_use = in_use
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX)  # has mode 700
        self._supply = Supply(default_cache_dir())
        self._files: list[Dropped] = []
        self._chosen: dict[Use, str] = {}
        self._tags: dict[str, str] = {}
        self._kept: dict[Path, int] = {}  # what is in the folder, and its bytes
        self._arriving: set[Path] = set()
        self._names: dict[str, str] = {}

    def close(self) -> None:
        """Remove everything."""
        self._files.clear()
        self._folder.cleanup()

    def to_dict(self) -> dict[str, Any]:
        """{"files": [..], "firmware": {..}, "merged": {..}}: docs/dashboard.md."""
        meant, merged, missing = self._meant(), self._merged(), self._missing()
        shown: dict[str, Any] = {"files": [self._shown(one, missing) for one in self._files]}
        if meant is not None:
            firmware = shown["firmware"] = {
                "kind": meant.kind,
                "name": meant.name,
                "sha256": meant.sha256,
                "version": self._version(meant),
            }
            names = [_file_name(image) for image in missing]
            if meant.manifest is not None and names:
                firmware["missing"] = names
        if merged is not None:
            keys = ("name", "size_bytes", "chip", "sha256")
            about = merged.to_dict()
            shown["merged"] = {key: about[key] for key in keys if key in about}
        return shown

    def tag(self, version: object) -> None:
        """Another tag for the App Image that is meant. Raises OtaError."""
        meant = self._require_meant()
        if meant.manifest is not None:
            why, remedy = "A manifest names its boards' versions itself.", "Write them there."
            raise OtaError("config-invalid", why, remedy=remedy)
        self._tags[meant.sha256] = _tag(version)

    def choose(self, sha256: object) -> None:
        """Mean this file, and not the one that was dropped last. Raises OtaError."""
        chosen = self._require(sha256)
        if chosen.error is not None:
            raise chosen.error
        self._chosen[chosen.use] = chosen.sha256

    def clear(self, sha256: object = None) -> None:
        """Take a file off the bench, or everything. Raises OtaError `not-found`."""
        gone = self._files if sha256 is None else [self._require(sha256)]
        self._files = [one for one in self._files if one not in gone]
        self._tidy()

    def firmware(self) -> tuple[Path, str]:
        """The file of what boards are to run, and its tag.

        Raises OtaError: `not-found` where there is none, `config-invalid` where an App Image has
        no version and was given no tag, `manifest-incomplete`.
        """
        meant = self._require_meant()
        if meant.manifest is None:
            return meant.path, _tag(self._version(meant))
        missing = [_file_name(image) for image in self._missing()]
        if missing:
            raise OtaError(
                "manifest-incomplete",
                f"The manifest {meant.name} names files that are not here: {', '.join(missing)}.",
                remedy="Drop them on the page as well.",
            )
        path = self._with_images(meant.manifest)
        self._names[path.name] = meant.name
        return path, meant.manifest.version

    def merged(self) -> Path:
        """The Merged Binary. Raises OtaError `not-found`."""
        found = self._merged()
        if found is None:
            raise OtaError(
                "not-found",
                "There is no Merged Binary on the bench.",
                remedy="Drop one on the page: bootloader, partition table and app in one file.",
            )
        return found.path

    def named(self, value: Any) -> Any:
        """A reply with the files' own names for the paths at which they are kept here; those of a
        bench before have the beginning of their SHA-256."""
        if isinstance(value, Mapping):
            return {key: self.named(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.named(item) for item in value]
        return _KEPT_FILE.sub(self._name, value) if isinstance(value, str) else value

    def _name(self, kept: re.Match[str]) -> str:
        return self._names.get(kept[1], f"{kept[1][:12]}...{kept[1][64:]}")

    # --- a file arrives

    async def take(
        self, name: str, chunks: AsyncIterator[bytes], announced_bytes: int | None
    ) -> Dropped:
        """A file that was dropped: stored, checked, described. One that is of no use is kept in
        the list with its error, and nothing else of it. Whatever ends this early leaves nothing.

        Raises OtaError `download-too-large`, OSError, and what `chunks` raises.
        """
        name = visible(PurePosixPath(name.replace("\\", "/")).name)[:_NAME_MAX_CHARS] or "file"
        self._tidy()  # what an update needed that was on its way when the bench was cleared
        if len(self._files) + len(self._arriving) >= BENCH_FILES:
            raise _too_much(f"The bench holds {BENCH_FILES} files already, so {name} finds no room")
        handle, arriving = tempfile.mkstemp(dir=self._folder.name)
        part = Path(arriving)
        self._arriving.add(part)
        self._kept[part] = 0
        try:
            with os.fdopen(handle, "wb") as file:
                sha256 = await self._store(name, file.write, chunks, part, announced_bytes or 0)
            path = part.with_name(f"{sha256}.bin")
            about = Dropped(name, path, self._kept[part], sha256)
            dropped = await self._examine(about, part)
            if dropped.kind != "refused":
                os.replace(part, path)
                self._kept[path] = about.size_bytes
                self._names[path.name] = name
            self._add(dropped)
            return dropped
        finally:
            self._arriving.discard(part)
            self._remove(part)

    async def _store(
        self, name: str, write: Any, chunks: AsyncIterator[bytes], part: Path, announced_bytes: int
    ) -> str:
        """Bytes as they come, counted; their SHA-256."""
        digest = hashlib.sha256()
        self._require_room(name, announced_bytes, more_bytes=announced_bytes)
        async for chunk in chunks:
            self._kept[part] += len(chunk)
            self._require_room(name, self._kept[part])
            digest.update(chunk)
            await asyncio.to_thread(write, chunk)
        return digest.hexdigest()

    def _require_room(self, name: str, file_bytes: int, *, more_bytes: int = 0) -> None:
        if file_bytes > FILE_BYTES:
            raise _too_much(f"{name} has more than {FILE_BYTES >> 20} MiB")
        if sum(self._kept.values()) + more_bytes > BENCH_BYTES:
            raise _too_much(f"With {name} the bench would hold more than {BENCH_BYTES >> 20} MiB")

    async def _examine(self, about: Dropped, part: Path) -> Dropped:
        try:
            asked, grants = await self._supply.granted(str(about.path))
            return await asyncio.to_thread(_described, about, part, asked, grants)
        except OtaError as error:
            error.remedy = remedy_of(error.code, error.remedy, BENCH)
            return replace(about, error=error)

    def _add(self, dropped: Dropped) -> None:
        images = {image.sha256 for image in self._images()}
        wanted = images - {dropped.sha256}
        self._files = [
            one for one in self._files if one.sha256 in wanted or not dropped.succeeds(one)
        ]
        self._files.append(dropped)
        self._tags.pop(dropped.sha256, None)
        if dropped.use != "none" and dropped.sha256 not in images:
            self._chosen.pop(dropped.use, None)
        self._tidy()

    def _tidy(self) -> None:
        """Forget, and remove, what lies here no more."""
        here = {one.sha256 for one in self._files}
        self._chosen = {use: sha256 for use, sha256 in self._chosen.items() if sha256 in here}
        stays = {*self._arriving, *(one.path for one in self._files)}
        for path in self._kept.keys() - stays if not self._in_use() else ():
            self._remove(path)

    def _remove(self, path: Path) -> None:
        self._kept.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    # --- what is meant

    def _last(self, kind: Kind) -> Dropped | None:
        return next((one for one in reversed(self._files) if one.kind == kind), None)

    def _require(self, sha256: object) -> Dropped:
        found = next((one for one in self._files if one.sha256 == sha256), None)
        if found is None:
            why = "That file is not on the bench any more."
            raise OtaError("not-found", why, remedy="Drop it on the page again.")
        return found

    def _choice(self, use: Use) -> Dropped | None:
        chosen = self._chosen.get(use)
        return next((one for one in self._files if one.sha256 == chosen), None)

    def _merged(self) -> Dropped | None:
        """What is to be flashed: what was chosen, else what was dropped last."""
        return self._choice("merged") or self._last("merged")

    def _images(self) -> Sequence[ImageEntry]:
        """What the manifest names, if there is one: the one chosen, else the last."""
        for found in (self._choice("firmware"), self._last("manifest")):
            if found is not None and found.manifest is not None:
                return tuple(found.manifest.images.values())
        return ()

    def _meant(self) -> Dropped | None:
        """What boards are to run: what was chosen, else what was dropped last; the images of a
        manifest come with it."""
        if (chosen := self._choice("firmware")) is not None:
            return chosen
        app, manifest = self._last("app"), self._last("manifest")
        if app is None or manifest is None:
            return app or manifest
        wanted = {word for image in self._images() for word in (image.sha256, _file_name(image))}
        later = self._files.index(app) > self._files.index(manifest)
        return app if later and wanted.isdisjoint((app.sha256, app.name)) else manifest

    def _require_meant(self) -> Dropped:
        meant = self._meant()
        if meant is None:
            raise OtaError(
                "not-found",
                "There is no firmware on the bench.",
                remedy="Drop an App Image on the page, or a manifest with its images.",
            )
        return meant

    def _version(self, meant: Dropped) -> str:
        if meant.manifest is not None:
            return meant.manifest.version
        return self._tags.get(meant.sha256) or meant.app_version or ""

    def _missing(self) -> Sequence[ImageEntry]:
        """The manifest's images that are neither here nor at an address of their own."""
        here = {one.sha256 for one in self._files if one.kind == "app"}
        return [
            image
            for image in self._images()
            if image.sha256 not in here and not urlsplit(image.url).scheme
        ]

    def _shown(self, one: Dropped, missing: Sequence[ImageEntry]) -> dict[str, Any]:
        """A file; one that only has the name of a manifest's image says so."""
        if one.kind == "app" and any(_file_name(image) == one.name for image in missing):
            why = f"The manifest means another file of the name {one.name}: its SHA-256 differs."
            remedy = "Drop the very file that the manifest was made of, or make the manifest anew."
            return replace(one, error=OtaError("digest-mismatch", why, remedy=remedy)).to_dict()
        return one.to_dict()

    def _with_images(self, manifest: Manifest) -> Path:
        """The manifest's file with its images where they are here. Names that others gave to
        files lead nowhere."""
        here = {one.sha256: one.path for one in self._files if one.kind == "app"}
        images = {
            name: image.model_copy(update={"url": here[image.sha256].name})
            if image.sha256 in here
            else image
            for name, image in manifest.images.items()
        }
        data = manifest.model_copy(update={"images": images}).dump()
        path = Path(self._folder.name) / f"{hashlib.sha256(data).hexdigest()}.json"
        write_file(path, data)
        self._kept[path] = len(data)
        return path


def _about(manifest: Manifest) -> dict[str, Any]:
    """What a manifest is of: its images, their order, and which board gets which."""
    images = [
        {
            "name": name,
            "file": _file_name(image),
            "sha256": image.sha256,
            "version": image.version or manifest.version,
            **{key: it for key in ("project", "chip") if (it := getattr(image, key))},
        }
        for name, image in manifest.images.items()
    ]
    steps = [list(step) for step in manifest.steps] if manifest.order else None
    return {"images": images, "steps": steps, "boards": manifest.boards}


def _described(
    about: Dropped, part: Path, asked: tuple[Policy, ...], grants: tuple[Grant, ...]
) -> Dropped:
    """What a file is, held against the host's policy of trust. Blocks. Raises OtaError."""
    data = read_file(part, FILE_BYTES, links=False)
    try:
        found = check_file(data, policies=asked, grants=grants)
    except OtaError as error:
        if error.code != "merged-binary":
            raise
        merged = check_merged(data, policies=asked, grants=grants)
        described = replace(about, kind="merged", chip=merged.merged.chip)
        if merged.app is not None:
            app = merged.app.descriptor
            described = replace(described, project=app.project, app_version=app.version)
        return described
    if isinstance(found, ManifestFile):
        return replace(about, kind="manifest", manifest=found.manifest)
    if about.size_bytes > IMAGE_BYTES:
        raise _too_much(f"{about.name} is an App Image of more than {IMAGE_BYTES >> 20} MiB")
    app = found.image.descriptor
    return replace(
        about, kind="app", project=app.project, app_version=app.version, chip=found.image.chip
    )


def _tag(given: object) -> str:
    """A tag that boards can store. Raises OtaError."""
    problem = check_version(given) if isinstance(given, str) else "must be text"
    if not given:
        problem = "is empty"
    if problem:
        raise OtaError("config-invalid", f"version: {problem}.", remedy=_OTHER_TAG)
    return str(given)


def _file_name(image: ImageEntry) -> str:
    return PurePosixPath(unquote(urlsplit(image.url).path)).name


def _too_much(words: str) -> OtaError:
    return OtaError(
        "download-too-large",
        f"{words}.",
        remedy="Check that this is the file that is meant; clear the bench to make room.",
    )
