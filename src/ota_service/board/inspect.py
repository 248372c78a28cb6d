# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at one board in download mode: what is on it, and which slot really runs.

The slot that runs may not be the one that otadata names, so its evidence is looked for in the
order of esp32.md ("Which slot really runs"): the journal's digest, a checked image's digest,
one ordinary reset and the bootloader's own log, and else the slot's whole image, verified as
the bootloader does. A header alone proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ota_service.board.chip import ChipInfo
from ota_service.board.facts import BoardFacts, KnownImage
from ota_service.board.flash import Flash
from ota_service.board.sparse import (
    Region,
    blank_digest,
    nvs_region,
    otadata_region,
    table_region,
    whole,
)
from ota_service.errors import OtaError
from ota_service.formats import otadata
from ota_service.formats.extent import image_length
from ota_service.formats.image import AppDescriptor, parse_app_image, parse_header
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.otadata import OtaData, parse_otadata
from ota_service.formats.partitions import (
    SECTOR_BYTES,
    TABLE_OFFSET,
    Partition,
    PartitionTable,
    require_ota,
)
from ota_service.formats.table_places import find_table, require_only

OTADATA_BYTES = 0x2000
HEAD_BYTES = 0x120
"""Image header, first segment header and app descriptor."""

NAMESPACE = "VIAM_NS"
VERSION_KEY = "OTA_VERSION"

Evidence = Literal["journal", "image", "log", "verified", "none"]
LoadedOffset = Callable[[], int | None]
"""Restarts the board into its firmware, reads the bootloader's log, and enters download mode
again; returns the flash address that the bootloader loaded the app from, None where its log
does not say."""


@dataclass(frozen=True, slots=True)
class App:
    """What one app partition holds, by its header alone."""

    partition: Partition
    head: bytes
    descriptor: AppDescriptor | None


@dataclass(frozen=True, slots=True)
class Running:
    """The app that really runs, and how that is known.

    partition None: it cannot be told. size_bytes, md5: of its image, where they were looked at.
    """

    partition: Partition | None
    evidence: Evidence
    size_bytes: int | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is on one board. Bytes are as they were read; edits start from them.

    problem: why this board cannot be looked at any further; the rest is then incomplete.
    holding: labels of the app partitions whose content is the firmware asked about.
    version: the tag stored in NVS; "" where there is none.
    """

    chip: ChipInfo
    table: PartitionTable | None = None
    otadata_raw: bytes = b""
    otadata: OtaData | None = None
    nvs_raw: bytes = b""
    nvs: Nvs | None = None
    version: str = ""
    apps: tuple[App, ...] = ()
    running: Running = field(default_factory=lambda: Running(None, "none"))
    holding: frozenset[str] = frozenset()
    pending: bool = False
    problem: OtaError | None = None

    def app(self, label: str) -> App | None:
        """The app in the partition of this label."""
        return next((app for app in self.apps if app.partition.label == label), None)

    @property
    def running_app(self) -> App | None:
        """The app that runs, by its header."""
        partition = self.running.partition
        return self.app(partition.label) if partition is not None else None

    @property
    def secrets(self) -> list[bytes]:
        """The values of all NVS strings but the version: never to be shown."""
        if self.nvs is None:
            return []
        return [value for ns, key, value in self.nvs.strings() if (ns, key) != _VERSION_AT]


_VERSION_AT = (NAMESPACE, VERSION_KEY)


def inspect(
    flash: Flash,
    chip: ChipInfo,
    *,
    facts: BoardFacts,
    known: Iterable[KnownImage] = (),
    firmware: KnownImage | None = None,
    loaded_offset: LoadedOffset | None = None,
) -> Inspection:
    """Read what an update of this board depends on.

    known: checked images beside `firmware`, the one to be written. loaded_offset: None where
    the board must not be restarted to find out what runs.
    Raises OtaError `link-lost`; everything else that is wrong with the board is its `problem`.
    """
    if problem := _unreadable(chip):
        return Inspection(chip, problem=problem)
    flash.prefetch([table_region(TABLE_OFFSET)])
    try:
        table = find_table(flash.read, flash_bytes=chip.flash_bytes)
        flash.prefetch(
            [*_stores(table), *(whole(p.offset, HEAD_BYTES) for p in _app_places(table))]
        )
        require_only(flash.read, table, lambda at, size: flash.md5(at, size) == blank_digest(size))
    except OtaError as error:
        if error.code == "link-lost":
            raise
        return Inspection(chip, problem=error)
    apps = tuple(_apps(flash, table))
    found = Inspection(chip, table=table, apps=apps)
    try:
        require_ota(table)
    except OtaError as error:
        return _with_nvs(flash, replace(found, problem=error))
    images = [*([firmware] if firmware is not None else []), *known]
    found = _with_otadata(flash, found)
    if found.problem is None:
        running = _running(flash, found, facts, images, loaded_offset)
        if running.evidence == "log":
            flash.prefetch(_stores(table))
            found = _with_otadata(flash, found)  # the firmware ran in between
        found = replace(found, running=running)
    if firmware is not None:
        found = replace(found, holding=frozenset(_holding(flash, found, firmware)))
    return _with_nvs(flash, found)


def _unreadable(chip: ChipInfo) -> OtaError | None:
    if chip.secure_download:
        return OtaError("secure-download")
    if chip.flash_encrypted:
        return OtaError("flash-encrypted", "The board encrypts its flash.")
    if chip.flash_bytes is None:
        return OtaError("flash-size", "The size of the board's flash chip is not known.")
    return None


def _app_places(table: PartitionTable) -> list[Partition]:
    return [p for p in table.partitions if p.is_app and p.size_bytes >= HEAD_BYTES]


def _stores(table: PartitionTable) -> list[Region]:
    """otadata and NVS, which are mostly blank."""
    places = [(table.otadata, otadata_region), (table.nvs, nvs_region)]
    return [make(place.offset, place.size_bytes) for place, make in places if place is not None]


def _apps(flash: Flash, table: PartitionTable) -> Iterable[App]:
    for partition in _app_places(table):
        head = flash.read(partition.offset, HEAD_BYTES)
        yield App(partition, head, parse_header(head))


def _with_otadata(flash: Flash, found: Inspection) -> Inspection:
    assert found.table is not None
    partition = found.table.otadata
    assert partition is not None  # require_ota saw to it
    raw = flash.read(partition.offset, OTADATA_BYTES)
    try:
        otadata = parse_otadata(raw)
    except OtaError as error:
        return replace(found, problem=error)
    return replace(found, otadata_raw=raw, otadata=otadata, pending=otadata.may_be_pending)


def _with_nvs(flash: Flash, found: Inspection) -> Inspection:
    assert found.table is not None
    partition = found.table.nvs
    if partition is None:
        problem = found.problem or OtaError("nvs-missing")
        return replace(found, problem=problem)
    # What is behind the last whole sector is none of the firmware's NVS either.
    raw = flash.read(partition.offset, partition.size_bytes // SECTOR_BYTES * SECTOR_BYTES)
    try:
        if partition.encrypted:
            raise OtaError("flash-encrypted", "The board encrypts its NVS.")
        nvs = parse_nvs(raw)
        version = nvs.get_string(NAMESPACE, VERSION_KEY) or ""
    except OtaError as error:
        return replace(found, problem=found.problem or error)
    return replace(found, nvs_raw=raw, nvs=nvs, version=version)


def boot_order(table: PartitionTable, entries: OtaData) -> list[Partition]:
    """The app partitions in the order in which the bootloader tries them."""
    slots = table.ota_slots
    order = otadata.boot_order(
        entries, has_factory=table.factory is not None, n_slots=max(1, len(slots))
    )
    found = [table.factory if index is None else slots[index] for index in order]
    return [partition for partition in found if partition is not None]


def _running(
    flash: Flash,
    found: Inspection,
    facts: BoardFacts,
    images: list[KnownImage],
    loaded_offset: LoadedOffset | None,
) -> Running:
    assert found.table is not None
    assert found.otadata is not None
    order = boot_order(found.table, found.otadata)
    if not order:
        return Running(None, "none")
    named = order[0]
    fact = facts.slots.get(named.label)
    if fact is not None and fact.size_bytes <= named.size_bytes:
        md5 = flash.md5(named.offset, fact.size_bytes)
        if md5 == fact.md5:
            return Running(named, "journal", fact.size_bytes, md5)
    app = found.app(named.label)
    for image in images:
        if app is not None and _holds(flash, app, image):
            return Running(named, "image", image.size_bytes, image.md5)
    if loaded_offset is not None and not found.pending:
        offset = loaded_offset()
        for partition in order:
            if partition.offset == offset:
                return _measured(flash, partition, "log")
    for partition in order:
        if (running := _verified(flash, partition)) is not None:
            return running
    return Running(None, "none")


def _measured(flash: Flash, partition: Partition, evidence: Evidence) -> Running:
    """With the digest of the image, so that the next look needs no restart."""
    size_bytes = image_bytes(flash, partition)
    if size_bytes is None:
        return Running(partition, evidence)
    return Running(partition, evidence, size_bytes, flash.md5(partition.offset, size_bytes))


def _verified(flash: Flash, partition: Partition) -> Running | None:
    if parse_header(flash.read(partition.offset, HEAD_BYTES)) is None:
        return None
    size_bytes = image_bytes(flash, partition)
    if size_bytes is None:
        return None
    data = flash.read(partition.offset, size_bytes)
    try:
        image = parse_app_image(data, trailing=True)
    except OtaError:
        return None
    md5 = flash.md5(partition.offset, image.size_bytes)
    return Running(partition, "verified", image.size_bytes, md5)


def _holds(flash: Flash, app: App, image: KnownImage) -> bool:
    size = min(len(app.head), len(image.head))
    if app.head[:size] != image.head[:size] or image.size_bytes > app.partition.size_bytes:
        return False
    return flash.md5(app.partition.offset, image.size_bytes) == image.md5


def _holding(flash: Flash, found: Inspection, firmware: KnownImage) -> Iterable[str]:
    running = found.running
    for app in found.apps:
        known = running.partition == app.partition and running.size_bytes == firmware.size_bytes
        if known:
            if running.md5 == firmware.md5:
                yield app.partition.label
        elif _holds(flash, app, firmware):
            yield app.partition.label


def image_bytes(flash: Flash, partition: Partition) -> int | None:
    """The length of the image in a partition, from its segment headers; None where none is."""

    def read(at: int, size_bytes: int) -> bytes:
        return flash.read(partition.offset + at, size_bytes)

    return image_length(read, partition.size_bytes)
