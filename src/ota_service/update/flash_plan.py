# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans the writing of a Merged Binary: a pure function of the file and of what the board has.

It replaces everything, so it is arranged for an interruption at any place: see `rewrite`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.formats.bootloader import FLASH_BYTES_ELSE
from ota_service.formats.flashops import SECTOR_BYTES
from ota_service.formats.image import AppImage, require_revision
from ota_service.formats.merged import MergedBinary, parse_merged, whole_flash
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.nvs.move import move_nvs
from ota_service.formats.partitions import TABLE_OFFSET, Partition, PartitionTable
from ota_service.formats.table_places import all_tables
from ota_service.link.chip import ChipInfo
from ota_service.update.backup import NVS_KIND, Backup
from ota_service.update.rewrite import Write, WritePlan

_REMEDY = "Make it again: `esp32-ota image merge`; `esp32-ota image inspect` says what is in it."


@dataclass(frozen=True)
class MergedFile:
    """A Merged Binary that may be written: data is the flash from address 0, whole sectors.

    booted: what the board starts afterwards. app: the one there; None for one without an app
    descriptor. made_for: the bytes of flash that its bootloader is built for, where it says so.
    nvs: the file's own. allowed_by: how each policy of this host allowed it. asked: those policies.
    """

    data: bytes = field(repr=False)
    sha256: str
    merged: MergedBinary = field(repr=False)
    booted: Partition
    app: AppImage | None
    made_for: int | None
    nvs: tuple[tuple[Partition, Nvs], ...] = field(repr=False)
    allowed_by: tuple[Mapping[str, Any], ...] = ()
    asked: tuple[trust.Policy, ...] = field(default=(), repr=False)


def check_merged(
    data: bytes,
    *,
    policies: Sequence[trust.Policy] | None = None,
    grants: Sequence[trust.Grant] = (),
) -> MergedFile:
    """Check a whole file, and hold all that it would start against the host's policy of trust.

    policies, grants: as `check_firmware` has them. Raises OtaError "not-an-image",
    "image-corrupt", "flash-size", "partition-table-invalid", and what `trust.require` raises.
    """
    flash = whole_flash(data)
    merged = parse_merged(flash)
    _require_one_table(flash, merged)
    loader = merged.bootloader
    if isinstance(loader, OtaError):
        raise _damaged(loader.message)
    booted = merged.booted
    held = dict(merged.apps).get(booted) if booted is not None else None
    if booted is None or held is None:
        raise _damaged("The Merged Binary holds no app that a board would start.")
    # Without a descriptor it can run, though no update over the air will take it for an app.
    if isinstance(held, OtaError) and held.code != "no-app-descriptor":
        raise _damaged(f"The app in {booted.label} at {booted.offset:#x}: {held.message}")
    if isinstance(held, AppImage) and held.chip_id != merged.chip_id:
        raise OtaError(
            "wrong-chip",
            f"The Merged Binary has a bootloader for {merged.chip} and an app for {held.chip}.",
            remedy=_REMEDY,
        )
    made_for = loader.flash_bytes or FLASH_BYTES_ELSE
    if merged.table.end > made_for:
        raise OtaError(
            "flash-size",
            f"The partition table ends at {merged.table.end:#x}, and the bootloader is built for "
            f"a flash of {made_for:#x} bytes only: it would not start.",
            remedy="Make it again with the board's flash size: `esp32-ota image merge "
            "--flash-size ..`.",
        )
    stores = []
    for part, nvs in merged.nvs:
        if isinstance(nvs, OtaError):
            raise OtaError("image-corrupt", f"{part.label} in the file: {nvs.message}")
        stores.append((part, nvs))
    asked = trust.policies() if policies is None else tuple(policies)
    allowed_by = trust.require(asked, data, trust.merged_parts(flash, merged), grants)
    flash += b"\xff" * (-len(flash) % SECTOR_BYTES)
    sha256, app = hashlib.sha256(data).hexdigest(), merged.app_of(booted)
    return MergedFile(
        flash, sha256, merged, booted, app, loader.flash_bytes, tuple(stores), allowed_by, asked
    )


def _damaged(message: str) -> OtaError:
    return OtaError("image-corrupt", message, remedy=_REMEDY)


def _require_one_table(flash: bytes, merged: MergedBinary) -> None:
    """Whatever begins like a table may be the one that the bootloader uses: another one than is
    judged here would start other apps. Within an image it is that image's data, which is signed
    with it; the sector of signatures behind it is not."""
    inside = [(part.offset, part.offset + app.size_bytes)
              for part, app in merged.apps if isinstance(app, AppImage)]  # fmt: skip
    for place in all_tables(lambda at, size: flash[at : at + size]):
        if place != merged.table_offset and not any(a < place < b for a, b in inside):
            raise OtaError(
                "partition-table-invalid",
                f"The Merged Binary has a partition table at {merged.table_offset:#x} and what "
                f"begins like another one at {place:#x}: it cannot be told which its bootloader "
                "uses.",
                remedy=_REMEDY,
            )


@dataclass(frozen=True, slots=True)
class Before:
    """What the board has.

    nvs: label -> raw contents, of each NVS partition of its table. tables: the places of all
    tables that a bootloader might use. backup: all that is kept of it, None where no table can
    be read.
    """

    table: PartitionTable | None
    table_problem: OtaError | None = None
    nvs: Mapping[str, bytes] = field(default_factory=dict)
    tables: tuple[int, ...] = ()
    backup: Backup | None = None


@dataclass(frozen=True, slots=True)
class KeptPartition:
    """An NVS partition whose keys are carried over.

    before: where they were; None where they come from a backup on this computer's disk.
    in_place: nothing has to be written for them.
    """

    label: str
    before: Partition | None
    after: Partition
    keys: int
    in_place: bool
    data: bytes = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """As in the reply."""
        places = {"to": self.after} | ({} if self.before is None else {"from": self.before})
        return {
            "partition": self.label,
            "keys": self.keys,
            "moved": not self.in_place,
            **{
                name: {"offset": part.offset, "size_bytes": part.size_bytes}
                for name, part in places.items()
            },
        }


@dataclass(frozen=True, slots=True)
class FlashPlan(WritePlan):
    """What will be written. kept: NVS partitions whose keys stay. lost: those with keys that do
    not.
    """

    kept: tuple[KeptPartition, ...]
    lost: tuple[str, ...]

    @property
    def standing(self) -> list[Write]:
        """The keys that stay, in their place or in another one."""
        return [Write(part.label, part.after.offset, part.data) for part in self.kept]


def plan_flash(
    file: MergedFile, chip: ChipInfo, before: Before, *, keep: Mapping[str, bytes] | None
) -> FlashPlan:
    """What to write to a board of this chip.

    keep: label -> NVS contents to carry over, which may come from the disk; None: nothing is
    kept. Raises OtaError for whatever can be known before the first write.
    """
    _require_fit(file, chip)
    kept = _kept(file.merged.table, before, keep) if keep is not None else ()
    places = {part.after: part for part in kept}
    writes: list[Write] = []
    table_end = file.merged.table_offset + SECTOR_BYTES
    loader_end = file.merged.table_offset
    skipped = [(part.after.offset, part.after.offset + part.after.whole_bytes) for part in kept]
    for begin, end in _gaps(table_end, len(file.data), skipped):
        writes.append(Write(_name(file.merged.table, begin, end), begin, file.data[begin:end]))
    for part in file.merged.table.partitions:
        if part in places:
            if not places[part].in_place:
                writes.append(Write(part.name, part.offset, places[part].data))
        elif part.end > len(file.data) and not (part.is_app and part.offset < len(file.data)):
            writes.append(_blank(part, max(part.offset, len(file.data))))
    writes.append(Write("bootloader", 0, file.data[:loader_end]))
    table = Write(
        "partition table", loader_end, file.data[loader_end:table_end].ljust(SECTOR_BYTES, b"\xff")
    )
    lost = tuple(
        label
        for label, data in before.nvs.items()
        if all(part.label != label for part in kept) and data.strip(b"\xff")
    )
    old_tables = (TABLE_OFFSET, *before.tables)
    return FlashPlan(tuple(writes), table, old_tables, _notes(file, places), kept, lost)


def _require_fit(file: MergedFile, chip: ChipInfo) -> None:
    merged = file.merged
    if chip.flash_encrypted:
        raise OtaError(
            "flash-encrypted",
            "The board encrypts its flash; a Merged Binary would not start on it.",
            remedy="Use the project's own tools for boards with flash encryption.",
        )
    if chip.secure_boot:
        raise OtaError(
            "secure-boot",
            "The board accepts a signed bootloader only, and a wrong one would end it for good.",
            remedy="Use the project's own tools for boards with secure boot.",
        )
    if merged.chip_id != chip.chip_id:
        raise OtaError(
            "wrong-chip",
            f"The Merged Binary is for {merged.chip}, the board's chip is {chip.name}.",
            remedy="Write a Merged Binary that was made for this chip.",
        )
    if file.app is not None:
        require_revision(chip.revision, file.app.min_revision, file.app.max_revision)
        chip.require_blocks(file.app.descriptor)
    if chip.flash_problem is not None:
        raise chip.flash_problem
    size = chip.flash_bytes or 0
    written = max(merged.table.end, len(file.data))
    chip.require_reach(written)
    needed = max(written, file.made_for or 0)
    if needed > size:
        raise OtaError(
            "flash-size",
            f"The Merged Binary is made for a flash of {needed:#x} bytes, the board has {size:#x}.",
            remedy="Make one for the board's flash: `esp32-ota image merge --flash-size .. "
            "--partitions ..`.",
        )


def _kept(
    table: PartitionTable, before: Before, keep: Mapping[str, bytes]
) -> tuple[KeptPartition, ...]:
    kept = []
    for label, data in keep.items():
        nvs = parse_nvs(data)
        count = len(nvs.keys())
        if not count:
            continue
        after = _nvs_partition(table, label)
        if after is None:
            raise OtaError(
                "nvs-missing",
                f"The Merged Binary's table has no NVS partition {label!r} for the {count} keys "
                "that the board has there.",
                remedy="Use a partition table that has it, or flash without keep_nvs.",
            )
        if after.encrypted:
            raise OtaError("flash-encrypted", f"The partition {label!r} is to be encrypted.")
        live = before.table is not None and before.nvs.get(label) == data
        was = _nvs_partition(before.table, label) if before.table is not None and live else None
        in_place = was is not None and (was.offset, was.size_bytes) == (
            after.offset,
            after.size_bytes,
        )
        moved = data if in_place else move_nvs(data, after.whole_bytes)
        kept.append(KeptPartition(label, was, after, count, in_place, moved))
    return tuple(kept)


def _nvs_partition(table: PartitionTable, label: str) -> Partition | None:
    """The first NVS partition with this label, as the firmware finds it."""
    return next((p for p in table.partitions if (p.label, p.kind) == (label, NVS_KIND)), None)


def _gaps(begin: int, end: int, skipped: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """[begin, end) without the ranges of `skipped`, in order."""
    found = []
    at = begin
    for low, high in sorted(skipped):
        if at < min(low, end):
            found.append((at, min(low, end)))
        at = max(at, high)
    if at < end:
        found.append((at, end))
    return found


def _name(table: PartitionTable, begin: int, end: int) -> str:
    names = [part.name for part in table.partitions if part.offset < end and part.end > begin]
    return ", ".join(names) or f"{begin:#x} to {end:#x}"


def _blank(part: Partition, begin: int) -> Write:
    """What the file leaves out is blank: data as a whole, of apps what makes them one."""
    end = begin + SECTOR_BYTES if part.is_app else -(-part.end // SECTOR_BYTES) * SECTOR_BYTES
    return Write(f"{part.name} (blank)", begin, b"\xff" * (end - begin))


def _notes(file: MergedFile, kept: Mapping[Partition, KeptPartition]) -> tuple[str, ...]:
    notes = []
    for part, nvs in file.nvs:
        if part in kept and nvs.keys():
            notes.append(
                f"The file has keys of its own for {part.name}; the board's are kept instead."
            )
    if file.app is None:
        notes.append("The app has no app descriptor, so no update will take it for one.")
    return tuple(notes)
