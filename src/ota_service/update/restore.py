# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans how a backup comes back: a function of the backup and of what a board has now.

NVS goes to the partitions of the same labels, wherever they are now. otadata and the partition
table belong to apps that may be gone, so they go back only where that leaves a board that
starts:

- The table that a board has stays, as long as an app may start with it: a whole flash may have
  given it another one since, and the backup's over the new bootloader and apps would end it.
- A table comes back where the board has none, or no app with its own, and starts something with
  the backup's: a whole bootloader, and a whole image in the place that otadata names.
- otadata comes back under the same table only, where the slot that it names holds a whole image.
- To another board goes NVS alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ota_service.errors import OtaError
from ota_service.formats.bootloader import parse_bootloader
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.image import parse_header
from ota_service.formats.nvs import Nvs
from ota_service.formats.nvs.move import move_nvs
from ota_service.formats.otadata import boots_after, parse_otadata
from ota_service.formats.partitions import Partition, PartitionTable
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Flash
from ota_service.update.backup import NVS_KIND, Backup, Piece
from ota_service.update.bootable import HEAD_BYTES, candidate, image_bytes
from ota_service.update.rewrite import Write, WritePlan

_ELSEWHERE = "Write a Merged Binary with such a partition with `esp32-ota flash PORT FILE` first."


@dataclass(frozen=True, slots=True)
class Restored:
    """A partition that gets its contents back. keys: None where they cannot be read."""

    before: Piece
    after: Partition
    keys: int | None

    def to_dict(self) -> dict[str, object]:
        """As in the reply."""
        shown: dict[str, object] = {
            "partition": self.after.label,
            "from": {"offset": self.before.offset, "size_bytes": len(self.before.data)},
            "to": {"offset": self.after.offset, "size_bytes": self.after.size_bytes},
        }
        if self.keys is not None:
            shown["keys"] = self.keys
        return shown


@dataclass(frozen=True, slots=True)
class RestorePlan(WritePlan):
    """What is written. restored: what the board has of the backup afterwards. table_back,
    otadata_back: whether those come from the backup. needed: False where the board has all of it.
    """

    restored: tuple[Restored, ...]
    table_back: bool
    otadata_back: bool
    needed: bool

    def to_dict(self) -> dict[str, object]:
        """As in the reply."""
        shown: dict[str, object] = {
            "nvs": [one.to_dict() for one in self.restored],
            "otadata": self.otadata_back,
            "table": self.table_back,
        }
        if self.notes:
            shown["notes"] = list(self.notes)
        return shown


@dataclass(frozen=True, slots=True)
class Had:
    """What a board had before.

    found: what it shows; None where its table cannot be read, because of `problem`. own: what it
    showed before a restore that did not finish, whose table was taken away then. known: other
    backups of it, which may have its table.
    """

    found: Backup | None
    problem: OtaError | None = None
    own: Backup | None = None
    known: Sequence[Backup] = ()


def plan_restore(flash: Flash, chip: ChipInfo, saved: Backup, had: Had) -> RestorePlan:
    """What to write so that a board has `saved`, or as much of it as it starts with.

    Raises OtaError where that cannot be: "wrong-chip", "nvs-missing", "nvs-full", "nvs-invalid",
    "flash-encrypted", "partition-table-invalid". Nothing was written then.
    """
    if saved.chip != chip.name:
        raise OtaError(
            "wrong-chip",
            f"The backup is of an {saved.chip}, the board's chip is {chip.name}.",
            remedy="Restore it to a board with the same chip.",
        )
    return _Restore(flash, chip, saved, had).plan()


class _Restore:
    """What is put back, to which board, and what that had; fields as the arguments above."""

    def __init__(self, flash: Flash, chip: ChipInfo, saved: Backup, had: Had) -> None:
        self.flash, self.chip, self.saved, self.had = flash, chip, saved, had
        self.same_board = saved.mac == chip.mac
        self.notes: list[str] = []

    def plan(self) -> RestorePlan:
        base, found = self._base(), self.had.found
        restored = tuple(_restored(self.saved, base.partitions))
        writes = [
            Write(one.after.label, one.after.offset, _contents(one.before, one.after))
            for one in restored
        ]
        same_table = base.partitions.partitions == self.saved.partitions.partitions
        otadata = self._otadata(base, same_table)
        if otadata is not None:
            writes.append(Write("otadata", otadata.offset, otadata.data))
        needed = [one for one in writes if self.flash.read(one.offset, len(one.data)) != one.data]
        closed = {one.after.offset for one in restored if one.after.read_only}
        for write in needed:
            if write.offset in closed:
                raise OtaError(
                    "nvs-missing",
                    f"The board's partition table makes {write.name} read-only, and the backup "
                    "has something else for it.",
                    remedy=_ELSEWHERE,
                )
        return RestorePlan(
            writes=tuple(needed),
            table=Write("partition table", base.table.offset, base.table.data),
            old_tables=(found.table.offset,) if found is not None else (),
            restored=restored,
            table_back=self.same_board and same_table,
            otadata_back=otadata is self.saved.otadata and otadata is not None,
            needed=bool(needed) or found is None or found.table != base.table,
            notes=tuple(self.notes),
        )

    def _base(self) -> Backup:
        """The backup whose table and otadata the board has afterwards."""
        had, saved = self.had, self.saved
        own = had.found or had.own
        if own is None:
            for one in (*had.known, *([saved] if self.same_board else [])):
                if self._starts(one):
                    return one
            assert had.problem is not None
            raise OtaError(
                had.problem.code,
                f"{had.problem.message.rstrip('.')}, and with no table that is known of it an app "
                "would start.",
                remedy="Write a Merged Binary with `esp32-ota flash PORT FILE`, then restore.",
            )
        if self.same_board and own.partitions.partitions != saved.partitions.partitions:
            if _may_start(self.flash, own):
                self.notes.append(
                    "The board has apps under another partition table than the backup's, so its "
                    "table and otadata stay."
                )
            elif self._starts(saved):
                return saved
            else:
                self.notes.append(
                    "No app starts on the board, neither with its table nor the backup's."
                )
        return own

    def _otadata(self, base: Backup, same_table: bool) -> Piece | None:
        """The one that the board has afterwards; None where its table has no place for it."""
        saved = self.saved.otadata
        if not self.same_board:
            self.notes.append("The backup is of another board, so that only its NVS is written.")
            return base.otadata
        if not same_table or saved is None or base.otadata is None:
            return base.otadata
        if base is self.saved or saved.data == base.otadata.data:
            return saved
        problem = self._otadata_problem(base)
        if problem is not None:
            self.notes.append(f"otadata stays as it is: {problem}.")
        return saved if problem is None else base.otadata

    def _otadata_problem(self, base: Backup) -> str | None:
        """Why the backup's otadata would not start what it names."""
        table = self.saved.partitions
        named = boots_after(self.saved.selection, table)
        now = boots_after(base.selection, table)
        if named is None:
            return "the backup's names no slot"
        if parse_otadata(self.saved.selection).on_trial:
            return "the backup's was waiting for its app to confirm itself"
        if not self._boots(named):
            return f"the backup's names {named.label}, which holds no whole app any more"
        if now is not None and self._secure_version(named) < self._secure_version(now):
            return (
                f"the bootloader may refuse the app in {named.label} for its lower secure version"
            )
        return None

    def _secure_version(self, partition: Partition) -> int:
        about = parse_header(self.flash.read(partition.offset, HEAD_BYTES))
        return about.secure_version if about is not None else 0

    def _starts(self, backup: Backup) -> bool:
        """Whether the board starts the app that this table and otadata name, without a detour."""
        known = CHIP_BY_ID.get(self.chip.chip_id)
        if known is None:
            return False
        place = known.bootloader_offset
        try:
            head = self.flash.read(place, backup.table.offset - place)
            loader = parse_bootloader(head, trailing=True)
        except OtaError as error:
            if error.code == "link-lost":
                raise
            return False
        table = backup.partitions
        if loader.flash_bytes is not None and table.end > loader.flash_bytes:
            return False
        named = boots_after(backup.selection, table)
        on_trial = parse_otadata(backup.selection).on_trial
        return named is not None and not on_trial and self._boots(named)

    def _boots(self, partition: Partition) -> bool:
        """Whether it holds an image that nothing keeps the bootloader from starting."""
        chip = self.chip
        return candidate(self.flash, partition, chip, chip.secure_version).boots == "yes"


def _may_start(flash: Flash, backup: Backup) -> bool:
    """Whether the board may start something with this table: the bootloader tries all of it, and
    may take what `_boots` does not."""
    table = backup.partitions
    apps = [*([table.factory] if table.factory is not None else []), *table.ota_slots]
    return any(image_bytes(flash, app) is not None for app in apps)


def _restored(saved: Backup, table: PartitionTable) -> list[Restored]:
    found = []
    for piece in saved.stores:
        after = _place(piece, table)
        held = piece.nvs()
        keys = len(held.keys()) if isinstance(held, Nvs) else None
        if after is None:
            if piece.blank or keys == 0:
                continue
            raise OtaError(
                "nvs-missing",
                f"The board's partition table has no place for the backup's {piece.label}.",
                remedy=_ELSEWHERE,
            )
        found.append(Restored(piece, after, keys))
    return found


def _place(piece: Piece, table: PartitionTable) -> Partition | None:
    """The partition of the same label and kind; of several the one at the same place."""
    alike = [p for p in table.partitions if (p.label, p.kind) == (piece.label, piece.kind)]
    return next((p for p in alike if p.offset == piece.offset), alike[0] if alike else None)


def _contents(piece: Piece, after: Partition) -> bytes:
    if after.whole_bytes == len(piece.data):
        return piece.data
    if piece.kind != NVS_KIND:
        raise OtaError(
            "nvs-missing",
            f"{after.label} has {after.size_bytes:#x} bytes on the board and "
            f"{len(piece.data):#x} in the backup.",
            remedy=_ELSEWHERE,
        )
    return move_nvs(piece.data, after.whole_bytes)
