# SPDX-License-Identifier: GPL-3.0-or-later
"""What a board has beside its apps, as one value: partition table, otadata and NVS.

It is taken before anything replaces it, and is what a restore starts from. It holds the board's
credentials; the files that it is kept in: `backup_files`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from ota_service.errors import OtaError
from ota_service.formats.flashops import SECTOR_BYTES
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.partitions import (
    OTADATA_BYTES,
    TABLE_BYTES,
    TABLE_OFFSET,
    PartitionTable,
    parse_partition_table,
)
from ota_service.formats.table_places import find_table
from ota_service.formats.text import field_text
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Flash
from ota_service.link.sparse import nvs_region, otadata_region, table_region
from ota_service.update.inspect import NAMESPACE, VERSION_KEY

NVS_KIND = "data/nvs"
STORE_KINDS = (NVS_KIND, "data/nvs_keys")
"""Partitions of which a backup has the contents; encrypted NVS is worth nothing without its keys.
"""


Key = tuple[str, str, int]
"""Namespace, key and item type."""


def values(nvs: Nvs) -> dict[Key, bytes]:
    """What an NVS holds, by the namespaces' names."""
    names = {index: name for name, index in reversed(nvs.namespaces.items())}
    return {
        (names.get(space, f"#{space}"), field_text(key), kind): value
        for (space, key, kind), value in nvs.contents().items()
        if space
    }


def _made_anew(key: Key) -> bool:
    """Whether ESP-IDF measures or asks for it again, or a whole flash replaces it: the version."""
    return key[0] in ("phy", "dhcp_state") or key[:2] == (NAMESPACE, VERSION_KEY)


@dataclass(frozen=True, slots=True)
class Piece:
    """A place of a flash and what stands there. label, kind: the partition's."""

    label: str
    kind: str
    offset: int
    data: bytes = field(repr=False)

    @property
    def blank(self) -> bool:
        """Whether nothing was ever written there."""
        return not self.data.strip(b"\xff")

    def nvs(self) -> Nvs | OtaError | None:
        """Its keys, or why they cannot be read; None for what is no NVS."""
        if self.kind != NVS_KIND:
            return None
        try:
            return parse_nvs(self.data)
        except OtaError as error:
            return error

    def covers(self, older: Piece, *, by_name: bool) -> bool:
        """Whether nothing would be lost with `older`: its bytes, or each key of it with its value.

        by_name: a key with any value. What firmware makes anew is no loss.
        """
        if self.label != older.label or self.kind != older.kind:
            return False
        mine, theirs = self.nvs(), older.nvs()
        if not isinstance(mine, Nvs) or not isinstance(theirs, Nvs):
            return self.data == older.data
        kept = {at: value for at, value in values(theirs).items() if not _made_anew(at)}
        has = values(mine)
        return has.keys() >= kept.keys() if by_name else has.items() >= kept.items()


@dataclass(frozen=True, slots=True)
class Backup:
    """Of one board. table: the sector of its partition table. otadata: None where it has none.
    stores: each partition of `STORE_KINDS`. made_at: ISO 8601, UTC.
    """

    mac: str
    chip: str
    flash_bytes: int | None
    table: Piece
    otadata: Piece | None
    stores: tuple[Piece, ...]
    made_at: str

    @property
    def partitions(self) -> PartitionTable:
        """Its table, read. Raises OtaError as `parse_partition_table` does."""
        return _parsed(self.table, self.flash_bytes)

    @property
    def selection(self) -> bytes:
        """otadata as the bootloader reads it; blank where there is none."""
        data = self.otadata.data if self.otadata is not None else b""
        return data.ljust(OTADATA_BYTES, b"\xff")

    @property
    def nvs(self) -> dict[str, bytes]:
        """Label -> contents of its NVS partitions; of several with one label the first."""
        return {one.label: one.data for one in reversed(self.stores) if one.kind == NVS_KIND}

    @property
    def held(self) -> list[Nvs]:
        """Its NVS partitions that can be read."""
        return [held for one in self.stores if isinstance(held := one.nvs(), Nvs)]

    @property
    def hidden(self) -> bool:
        """Whether it has an NVS partition that cannot be read, whose secrets nobody can tell."""
        return any(isinstance(one.nvs(), OtaError) for one in self.stores)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of it, in an order that stays."""
        return (self.table, *([self.otadata] if self.otadata is not None else []), *self.stores)

    def covers(self, older: Backup, *, by_name: bool = False) -> bool:
        """Whether nothing of NVS would be lost with `older`, nor a whole table for a torn one.

        Names of keys alone do not tell what may go by itself: a file that was flashed over a
        provisioned board may have brought other values. by_name: for a person, who wants what the
        board has now.
        """
        if older.partitions.has_md5 and not self.partitions.has_md5:
            return False
        return all(
            piece.blank or any(mine.covers(piece, by_name=by_name) for mine in self.stores)
            for piece in older.stores
        )


def take_backup(flash: Flash, chip: ChipInfo) -> Backup:
    """Read it from a board. This is where a board's partition table is looked for.

    Raises OtaError: as `parse_partition_table` does, "flash-encrypted", and `link-lost`.
    """
    if chip.flash_encrypted:
        raise OtaError("flash-encrypted", "The board encrypts its flash.")
    flash.prefetch([table_region(TABLE_OFFSET)])
    place = find_table(flash.read, flash_bytes=chip.flash_bytes).offset
    table = Piece("partition table", "table", place, flash.read(place, SECTOR_BYTES))
    partitions = _parsed(table, chip.flash_bytes)
    at = partitions.otadata
    stores = [part for part in partitions.partitions if part.kind in STORE_KINDS]
    flash.prefetch(
        [
            *([otadata_region(at.offset, at.whole_bytes)] if at is not None else []),
            *(nvs_region(part.offset, part.whole_bytes) for part in stores),
        ]
    )

    def piece(label: str, kind: str, offset: int, size_bytes: int) -> Piece:
        return Piece(label, kind, offset, flash.read(offset, size_bytes))

    return Backup(
        mac=chip.mac,
        chip=chip.name,
        flash_bytes=chip.flash_bytes,
        table=table,
        otadata=piece(at.label, at.kind, at.offset, at.whole_bytes) if at is not None else None,
        stores=tuple(piece(p.label, p.kind, p.offset, p.whole_bytes) for p in stores),
        made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _parsed(table: Piece, flash_bytes: int | None) -> PartitionTable:
    return parse_partition_table(
        table.data[:TABLE_BYTES], table_offset=table.offset, flash_bytes=flash_bytes
    )
