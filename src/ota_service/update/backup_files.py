# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups on this computer's disk: a folder each, and in the state folder those of each board.

    FOLDER/backup.json          what it is of, and which file is which place of the flash
    FOLDER/*.bin                their contents
    STATE_DIR/backups/<MAC without colons>/<number>/        such a folder; the newest is the highest
    STATE_DIR/backups/<MAC without colons>/unfinished.json  while a board is being written

They hold the board's credentials: files have mode 600, and folders that are made here 700.
`backup.json` is written last and in one step, so that a folder holds either the whole old backup
or the whole new one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ota_service.errors import OtaError
from ota_service.firmware.files import read_file, sync_names, write_file
from ota_service.formats.flashops import SECTOR_BYTES
from ota_service.formats.table_places import TABLE_PLACES
from ota_service.update.backup import STORE_KINDS, Backup, Piece

MANIFEST = "backup.json"
_MARK = "unfinished.json"
_LARGEST_BYTES, _MANIFEST_BYTES = 1 << 24, 1 << 20

Work = Literal["flash", "restore"]


class _Place(BaseModel):
    """A place of the flash, and the file with its contents: none outside the folder."""

    label: str
    kind: str
    offset: int
    size_bytes: int
    sha256: str
    file: str = Field(pattern=r"^[^/]+\.bin$")

    @classmethod
    def of(cls, piece: Piece) -> _Place:
        """The file's name tells its contents, so that what is there stays whole meanwhile."""
        sha256 = hashlib.sha256(piece.data).hexdigest()
        kind = piece.kind.rpartition("/")[2].replace("ota", "otadata")
        return cls(
            label=piece.label,
            kind=piece.kind,
            offset=piece.offset,
            size_bytes=len(piece.data),
            sha256=sha256,
            file=f"{kind}-{piece.offset:#x}-{sha256[:8]}.bin",
        )


class _Manifest(BaseModel):
    format: Literal[1] = 1
    mac: str = Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
    chip: str
    flash_bytes: int | None = None
    made_at: str
    table: _Place
    nvs: list[_Place]
    otadata: _Place | None = None

    @classmethod
    def of(cls, backup: Backup) -> _Manifest:
        otadata = backup.otadata
        return cls(
            mac=backup.mac,
            chip=backup.chip,
            flash_bytes=backup.flash_bytes,
            made_at=backup.made_at,
            table=_Place.of(backup.table),
            nvs=[_Place.of(piece) for piece in backup.stores],
            otadata=_Place.of(otadata) if otadata is not None else None,
        )

    @property
    def places(self) -> list[_Place]:
        """In the order of `Backup.pieces`."""
        return [self.table, *([self.otadata] if self.otadata is not None else []), *self.nvs]


def to_dict(backup: Backup) -> dict[str, Any]:
    """A backup without its contents, for people and programs."""
    shown = _Manifest.of(backup).model_dump(exclude_none=True, exclude={"format"})
    for place in (shown["table"], shown.get("otadata", {}), *shown["nvs"]):
        place.pop("file", None)
    return shown


def write_backup(folder: Path, backup: Backup) -> None:
    """Put a backup into `folder`, in place of the one that is there. On disk when this returns.

    Raises OtaError disk-full or file-access where that fails; what was there is then whole.
    """
    with _disk(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        old = None
        with contextlib.suppress(ValidationError):
            old = _manifest(folder)
        new = _Manifest.of(backup)
        for place, piece in zip(new.places, backup.pieces, strict=True):
            write_file(folder / place.file, piece.data)
        write_file(folder / MANIFEST, new.model_dump_json(indent=2, exclude_none=True).encode())
        sync_names(folder)
        names = {place.file for place in old.places} if old is not None else set()
        for name in names - {place.file for place in new.places}:
            (folder / name).unlink(missing_ok=True)


def read_backup(folder: Path) -> Backup:
    """The backup in `folder`. Raises OtaError backup-invalid where there is no whole one."""
    try:
        manifest = _manifest(folder)
    except ValidationError as error:
        at = ".".join(map(str, error.errors()[0]["loc"])) or "no JSON object"
        raise _invalid(folder, f"its {MANIFEST} is damaged ({at})") from None
    if manifest is None:
        raise _invalid(folder, f"it has no {MANIFEST}")
    otadata = manifest.otadata
    backup = Backup(
        mac=manifest.mac,
        chip=manifest.chip,
        flash_bytes=manifest.flash_bytes,
        table=_piece(folder, manifest.table),
        otadata=_piece(folder, otadata) if otadata is not None else None,
        stores=tuple(_piece(folder, place) for place in manifest.nvs),
        made_at=manifest.made_at,
    )
    try:
        table = backup.partitions.partitions
    except OtaError as error:
        raise _invalid(folder, error.message.rstrip(".")) from None
    places = {(part.label, part.kind, part.offset, part.whole_bytes) for part in table}
    for piece in backup.pieces[1:]:
        if (piece.label, piece.kind, piece.offset, len(piece.data)) not in places:
            raise _invalid(folder, f"its table has no partition {piece.label!r} as it names one")
    if (
        len(backup.table.data) != SECTOR_BYTES
        or backup.table.offset not in TABLE_PLACES
        or not all(piece.kind in STORE_KINDS for piece in backup.stores)
    ):
        raise _invalid(folder, "it names places that no backup has")
    return backup


def holds_backup(folder: Path) -> bool:
    """Whether there is one, whole or not."""
    return (folder / MANIFEST).exists()


@dataclass(frozen=True, slots=True)
class Kept:
    """A backup in the state folder, and where it is."""

    folder: Path
    backup: Backup

    @property
    def number(self) -> int:
        """The higher, the newer: this computer's clock may be wrong."""
        return int(self.folder.name)


class Backups:
    """The backups of one board in the state folder.

    One goes when a newer one of the same board has every key of it with its value (`covers`). A
    half-written board has fewer keys than before and so takes nothing away.
    """

    def __init__(self, state_dir: Path, mac: str) -> None:
        self.folder = state_dir / "backups" / mac.replace(":", "")

    def all(self) -> list[Kept]:
        """The whole ones, oldest first."""
        found = []
        for number in self._numbers():
            folder = self.folder / str(number)
            with contextlib.suppress(OtaError):
                found.append(Kept(folder, read_backup(folder)))
        return found

    def keep(self, backup: Backup) -> Kept:
        """Save it as the newest; where the newest has the same contents, that one stays.

        Raises OtaError disk-full or file-access where that fails.
        """
        kept = self.all()
        if kept and kept[-1].backup.pieces == backup.pieces:
            return kept[-1]
        with _disk(self.folder):
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
            for left in self.folder.glob(".new-*"):
                shutil.rmtree(left, ignore_errors=True)
            made = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
            try:
                write_backup(made, backup)
                folder = self.folder / str(max(self._numbers(), default=0) + 1)
                made.rename(folder)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
            sync_names(self.folder)
            sync_names(self.folder.parent)
        return Kept(folder, backup)

    def begin(self, work: Work, new: Kept | None) -> Path | None:
        """A board is about to be written; new: what it had, None where it showed nothing.

        From now to `finish` what it had is what the next one starts from. Returns the folder of
        the backup with what the board had before the first of several that did not finish.
        """
        mark = self._mark()
        # A board that is readable behind a restore has what was restored.
        since = mark[1] if mark is not None and (mark[0] == "flash" or new is None) else None
        if since is None:
            since = new.number if new is not None else None
        if since is None:
            return None
        with _disk(self.folder):
            write_file(self.folder / _MARK, json.dumps({"by": work, "since": since}).encode())
            sync_names(self.folder)
        best: Kept | None = None
        for kept in self.all():
            if kept.number >= since and (best is None or kept.backup.covers(best.backup)):
                best = kept
        return best.folder if best is not None else None

    def unfinished(self, work: Work | None = None) -> list[Kept]:
        """The backups since a work (this one) began that did not finish, newest first."""
        mark = self._mark()
        if mark is None or work not in (None, mark[0]):
            return []
        return [kept for kept in reversed(self.all()) if kept.number >= mark[1]]

    def finish(self) -> None:
        """The board is whole again. Its backups stay."""
        with contextlib.suppress(OSError):
            (self.folder / _MARK).unlink(missing_ok=True)

    def tidy(self, spared: Path | None = None) -> None:
        """Remove those that a newer one covers, but `spared`, which was just used."""
        kept = self.all()
        for index, old in enumerate(kept):
            if spared is not None and old.folder.resolve() == spared.resolve():
                continue
            if any(newer.backup.covers(old.backup) for newer in kept[index + 1 :]):
                shutil.rmtree(old.folder, ignore_errors=True)

    def _numbers(self) -> list[int]:
        with contextlib.suppress(OSError):
            return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())
        return []

    def _mark(self) -> tuple[str, int] | None:
        try:
            mark = json.loads(read_file(self.folder / _MARK, _MANIFEST_BYTES))
            return str(mark["by"]), int(mark["since"])
        except (OtaError, ValueError, KeyError, TypeError, RecursionError):
            return None


# --- files


def _manifest(folder: Path) -> _Manifest | None:
    """None where there is none. Raises pydantic's ValidationError, and OtaError file-access."""
    try:
        return _Manifest.model_validate_json(read_file(folder / MANIFEST, _MANIFEST_BYTES))
    except OtaError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _piece(folder: Path, place: _Place) -> Piece:
    try:
        data = read_file(folder / place.file, _LARGEST_BYTES)
    except OtaError as error:
        raise _invalid(folder, error.message.rstrip(".")) from None
    if len(data) != place.size_bytes or hashlib.sha256(data).hexdigest() != place.sha256:
        raise _invalid(folder, f"{place.file} is not what was written")
    return Piece(place.label, place.kind, place.offset, data)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OtaError(
            "disk-full" if full else "file-access",
            f"What the board has cannot be kept in {folder}: {error.strerror}. Nothing was "
            "written to the board.",
            remedy="Free some space there, or use another folder." if full else "",
        ) from None


def _invalid(folder: Path, why: str) -> OtaError:
    return OtaError("backup-invalid", f"{folder} holds no whole backup: {why}.")
