# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at one board in download mode: what is on it, and which slot really runs.

The slot that runs may not be the one that otadata names, so its evidence is looked for in the
order of esp32.md ("Which slot really runs"): the journal's digest, a checked image's digest,
one ordinary reset and the bootloader's own log, and else the slot's whole image, verified as
the bootloader does. A header alone proves nothing, and where the evidence leaves a doubt nothing
is said to run, so that nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from ota_service.errors import OtaError
from ota_service.formats import otadata
from ota_service.formats.bootloader import header_flash_bytes
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.image import HEADER_BYTES, AppDescriptor, parse_header
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.otadata import OtaData, OtaEdit, OtaState, parse_otadata
from ota_service.formats.partitions import (
    OTADATA_BYTES,
    TABLE_OFFSET,
    Partition,
    PartitionTable,
    require_ota,
)
from ota_service.formats.recognise import IMAGE_MAGIC
from ota_service.formats.table_places import find_table, require_only
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Flash
from ota_service.link.sparse import (
    Region,
    blank_digest,
    nvs_region,
    otadata_region,
    table_region,
    whole,
)
from ota_service.update.bootable import (
    HEAD_BYTES,
    candidate,
    header_doubt,
    image_bytes,
    loading_doubt,
    only_the_board_knows,
)
from ota_service.update.facts import BoardFacts, KnownImage
from ota_service.update.first_look import FLASH_SIZE_REMEDY, FirstLook

ENCRYPTED_REMEDY = (
    'Set version_store to "host" for this board in the service\'s configuration, so that this '
    "machine keeps its version, and call update; or use the board's own on-device OTA service."
)

NAMESPACE = "VIAM_NS"
VERSION_KEY = "OTA_VERSION"

Evidence = Literal["journal", "image", "log", "verified", "none"]
Look = Callable[[], FirstLook]
"""Restarts the board into its firmware, reads its log, and enters download mode again."""


@dataclass(frozen=True, slots=True)
class App:
    """What one app partition holds, by its header alone."""

    partition: Partition
    head: bytes
    descriptor: AppDescriptor | None


@dataclass(frozen=True, slots=True)
class Running:
    """The app that really runs, and how that is known.

    partition None: none does, or it cannot be told; `why` says which. size_bytes, md5: of its
    image, where they were looked at. dead: it is proven that nothing on the board boots.
    """

    partition: Partition | None
    evidence: Evidence
    size_bytes: int | None = None
    md5: str | None = None
    dead: bool = False
    why: OtaError | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is on one board. Bytes are as they were read; edits start from them.

    problem: why this board cannot be looked at any further; the rest is then incomplete.
    asked: the firmware asked about. holding: flash addresses of the app partitions whose content
    it is; staged: of those that hold all of it but its magic byte, which can be programmed.
    store: the NVS partition that has the version, or is to get it; nvs_raw, nvs: its contents.
    other_nvs: those of the board's other NVS partitions that can be read; hidden_nvs: whether
    there is one that cannot, whose secrets nobody can tell.
    version: the tag stored in NVS; "" where there is none. on_host: its NVS cannot be read, so the
    journal keeps the tag, which is "" where what runs is not known there. silent: whether its
    bootloader was found to print nothing; None: it was not listened to.
    """

    chip: ChipInfo
    table: PartitionTable | None = None
    otadata_raw: bytes = b""
    otadata: OtaData | None = None
    store: Partition | None = None
    nvs_raw: bytes = b""
    nvs: Nvs | None = None
    other_nvs: tuple[Nvs, ...] = ()
    hidden_nvs: bool = False
    version: str = ""
    on_host: bool = False
    apps: tuple[App, ...] = ()
    running: Running = field(default_factory=lambda: Running(None, "none"))
    asked: KnownImage | None = None
    holding: frozenset[int] = frozenset()
    staged: frozenset[int] = frozenset()
    pending: bool = False
    silent: bool | None = None
    problem: OtaError | None = None

    @property
    def parts(self) -> PartitionTable:
        """Its partition table, on a board whose table could be read."""
        assert self.table is not None
        return self.table

    @property
    def selection(self) -> Partition:
        """The otadata partition of a board that has OTA slots."""
        assert self.parts.otadata is not None
        return self.parts.otadata

    @property
    def entries(self) -> OtaData:
        """What otadata said on a board that has OTA slots."""
        assert self.otadata is not None
        return self.otadata

    def switched(self, raw: bytes, slot: Partition, runs: Partition, state: OtaState) -> OtaEdit:
        """otadata `raw` changed so that an OTA slot is started, and at each cut that or `runs`."""
        slots = self.parts.ota_slots
        return otadata.switch(
            raw,
            base=self.selection.offset,
            n_slots=len(slots),
            to_slot=slots.index(slot),
            running_slot=slots.index(runs) if runs in slots else None,
            has_factory=self.parts.factory is not None,
            state=state,
        )

    def changeable(self) -> Partition | None:
        """What runs, on a board that may be changed now; None: nothing does, or it cannot be told.

        Raises OtaError: its problem, or `awaiting-confirmation`.
        """
        if self.problem is not None:
            raise self.problem
        if self.pending:
            raise OtaError("awaiting-confirmation")
        return self.running.partition

    def app(self, partition: Partition) -> App | None:
        """The app in a partition."""
        return next((app for app in self.apps if app.partition.offset == partition.offset), None)

    def holds(self, partition: Partition) -> bool:
        """Whether a partition's content is the firmware asked about."""
        return partition.offset in self.holding

    def about(self, partition: Partition) -> AppDescriptor | None:
        """What the app in a partition says of itself."""
        app = self.app(partition)
        return app.descriptor if app is not None else None

    def secure_version_of(self, partition: Partition) -> int:
        """The secure version of the app in a partition, 0 where it says none."""
        about = self.about(partition)
        return about.secure_version if about is not None else 0

    def secure_floor(self, fused: int) -> int:
        """The least secure version that the bootloader starts; 0: it does not mind.

        fused: what the board's fuses hold now; chip.secure_version is what they held when the
        board was looked at. Those bits may be somebody's own data, or of no use: a bootloader
        minds them where they have grown since, or where an app on the board has a secure version
        at all, unless one that runs has less.
        """
        if fused > self.chip.secure_version:
            return fused
        running = self.running.partition
        if running is not None and self.secure_version_of(running) < fused:
            return 0
        return fused if any(self.secure_version_of(app.partition) for app in self.apps) else 0

    @property
    def has_version(self) -> bool:
        """Whether `version` was found out, be it as ""."""
        return self.nvs is not None or self.on_host

    @property
    def running_app(self) -> App | None:
        """The app that runs, by its header."""
        partition = self.running.partition
        return self.app(partition) if partition is not None else None

    @property
    def secrets(self) -> list[bytes]:
        """The values of all NVS strings but the version: never to be shown."""
        return secrets_of(self.other_nvs if self.nvs is None else (self.nvs, *self.other_nvs))


_VERSION_AT = (NAMESPACE, VERSION_KEY)


def read_otadata(flash: Flash, found: Inspection) -> OtaData:
    """What otadata says now."""
    return parse_otadata(flash.read(found.selection.offset, OTADATA_BYTES))


def secrets_of(stores: Iterable[Nvs]) -> list[bytes]:
    """The values of all their strings but the version."""
    return [
        value for store in stores for ns, key, value in store.strings() if (ns, key) != _VERSION_AT
    ]


def tag_in(nvs: Nvs) -> str:
    """The version that is stored there; "" for none."""
    return nvs.get_string(NAMESPACE, VERSION_KEY) or ""


def first_tag(stores: Iterable[tuple[str, Nvs]]) -> str:
    """The version in the first of some NVS partitions, by their labels, that has one: the default
    one's, then as they come, as firmwares with several read them; "" for none."""
    default_first = sorted(stores, key=lambda store: store[0] != "nvs")
    return next((tag for _, nvs in default_first if (tag := tag_in(nvs))), "")


def inspect(
    flash: Flash,
    chip: ChipInfo,
    *,
    facts: BoardFacts,
    known: Iterable[KnownImage] = (),
    firmware: KnownImage | None = None,
    look: Look | None = None,
    host_store: bool = False,
) -> Inspection:
    """Read what an update of this board depends on.

    known: checked images beside `firmware`, the one to be written. look: None where the board
    must not be restarted to find out what runs. host_store: the journal's version counts where
    NVS is encrypted.
    Raises OtaError `link-lost`; everything else that is wrong with the board is its `problem`.
    """
    try:
        found = _laid_out(flash, chip)
    except OtaError as error:
        if error.code == "link-lost":
            raise
        return Inspection(chip, problem=error)
    try:
        require_ota(found.parts)
    except OtaError as error:
        return _with_nvs(flash, replace(found, problem=error))
    images = [*([firmware] if firmware is not None else []), *known]
    found = _with_otadata(flash, found)
    found = _Search(flash, found, facts, images).done(None if found.pending else look)
    found = replace(found, pending=found.pending and not _nobody_confirms(found))
    if firmware is not None:
        holding, staged = _holding(flash, found, firmware), _staged(flash, found, firmware)
        found = replace(found, asked=firmware, holding=frozenset(holding), staged=frozenset(staged))
    found = _with_nvs(flash, found)
    encrypted = found.problem is not None and found.problem.code == "flash-encrypted"
    return _with_hosts(found, facts) if host_store and encrypted else found


def _with_hosts(found: Inspection, facts: BoardFacts) -> Inspection:
    """With the version that the journal keeps, as the board's NVS would have it.

    It counts only where what runs is what the journal knows to have run there. After another slot
    than this one it is of that one, and the plan sees that the board went back.
    """
    runs, version = found.running, ""
    slot = runs.partition.name if runs.partition is not None else ""
    fact = facts.slots.get(slot)
    if fact is not None and runs.md5 == fact.md5:
        moved = facts.last_slot not in (None, slot)
        version = facts.version if moved else fact.version or ""
    return replace(found, problem=None, on_host=True, version=version)


def _laid_out(flash: Flash, chip: ChipInfo) -> Inspection:
    """With the partition table and what heads its apps, where the flash can be read.

    Raises OtaError.
    """
    if chip.secure_download:
        raise OtaError("secure-download")
    if chip.flash_encrypted:
        raise OtaError("flash-encrypted", "The board encrypts its flash.")
    if chip.flash_problem is not None:
        raise chip.flash_problem
    flash.prefetch([table_region(TABLE_OFFSET)])
    table = find_table(flash.read, flash_bytes=chip.flash_bytes)
    apps = [p for p in table.partitions if p.is_app and p.size_bytes >= HEAD_BYTES]
    stores = _stores(table)
    ends = [*(app.end for app in apps), *(store.end for store in stores)]
    chip.require_reach(max(ends, default=0))
    heads = [whole(p.offset, HEAD_BYTES) for p in apps]
    flash.prefetch([*_bootloader_head(chip), *stores, *heads])
    require_only(flash.read, table, lambda at, size: flash.md5(at, size) == blank_digest(size))
    read = {partition: flash.read(partition.offset, HEAD_BYTES) for partition in apps}
    held = tuple(App(partition, head, parse_header(head)) for partition, head in read.items())
    return Inspection(chip, table=table, apps=held)


def _stores(table: PartitionTable) -> list[Region]:
    """otadata and NVS, which are mostly blank."""
    at = table.otadata
    regions = [otadata_region(at.offset, at.size_bytes)] if at is not None else []
    return regions + [nvs_region(p.offset, p.size_bytes) for p in table.nvs_stores]


def _bootloader_head(chip: ChipInfo) -> list[Region]:
    known = CHIP_BY_ID.get(chip.chip_id)
    return [whole(known.bootloader_offset, HEADER_BYTES)] if known is not None else []


def _with_otadata(flash: Flash, found: Inspection) -> Inspection:
    raw = flash.read(found.selection.offset, OTADATA_BYTES)
    otadata = parse_otadata(raw)
    return replace(found, otadata_raw=raw, otadata=otadata, pending=otadata.may_be_pending)


def _with_nvs(flash: Flash, found: Inspection) -> Inspection:
    """With the version, from the first NVS partition that has it.

    A firmware may use several (micro-RDK's newer builds have a list, which is not on the board):
    the default one is taken where none has the version, and another one only where it holds the
    namespace already. What cannot be read in another one is no reason to leave the board.
    """
    table = found.parts
    stores: list[tuple[Partition, bytes, Nvs]] = []
    problem: OtaError | None = None
    for partition in table.nvs_stores:
        raw = flash.read(partition.offset, partition.whole_bytes)
        try:
            if partition.encrypted:
                raise OtaError("flash-encrypted", "The board encrypts its NVS.")
            stores.append((partition, raw, parse_nvs(raw)))
        except OtaError as error:
            found = replace(found, hidden_nvs=True)
            if error.code == "flash-encrypted":
                error.remedy = ENCRYPTED_REMEDY
            if partition == table.nvs:
                return replace(found, problem=found.problem or error)
            problem = problem or error
    chosen = _store(table, stores)
    if chosen is None:
        return replace(found, problem=found.problem or problem or OtaError("nvs-missing"))
    others = tuple(nvs for partition, _, nvs in stores if partition != chosen[0])
    found = replace(found, other_nvs=others)
    partition, raw, nvs = chosen
    try:
        version = tag_in(nvs)
    except OtaError as error:
        return replace(found, problem=found.problem or error)
    return replace(found, store=partition, nvs_raw=raw, nvs=nvs, version=version)


def _store(
    table: PartitionTable, stores: list[tuple[Partition, bytes, Nvs]]
) -> tuple[Partition, bytes, Nvs] | None:
    """The one that has the version; else the one that has the namespace; else the default one."""
    for store in stores:
        if any(at == _VERSION_AT for at in store[2].keys()):  # noqa: SIM118
            return store
    for store in stores:
        if any(ns == NAMESPACE for ns, _ in store[2].keys()):  # noqa: SIM118
            return store
    return next((store for store in stores if store[0] == table.nvs), None)


def boot_order(table: PartitionTable, entries: OtaData) -> list[Partition]:
    """The app partitions in the order in which the bootloader tries them."""
    slots = table.ota_slots
    order = otadata.boot_order(
        entries, has_factory=table.factory is not None, n_slots=max(1, len(slots))
    )
    found = [table.factory if index is None else slots[index] for index in order]
    return [partition for partition in found if partition is not None]


def _nobody_confirms(found: Inspection) -> bool:
    """Whether the entry that decides awaits an app that does not boot: its slot is damaged, and
    another one runs, which is also the first one without that entry. Then a restart takes nothing
    away."""
    slots, runs = found.parts.ota_slots, found.running.partition
    pending = [e for e in found.entries.entries if e.counts and e.state == OtaState.PENDING_VERIFY]
    awaited = [slots[entry.slot_index(len(slots))] for entry in pending]
    before = boot_order(found.parts, found.entries)[0]
    after = boot_order(found.parts, found.entries.rejecting_pending())[0]
    return runs is not None and runs == after and runs not in (*awaited, before)


@dataclass(slots=True)
class _Search:
    """For what runs. found: so far. images: those that were checked."""

    flash: Flash
    found: Inspection
    facts: BoardFacts
    images: list[KnownImage]

    def done(self, look: Look | None) -> Inspection:
        """With what runs, or why the board comes to no app at all."""
        found = self.found
        order = boot_order(found.parts, found.entries)
        cramped = _cramped(self.flash, found)
        running = None if cramped else self._at_hand(order)
        if running is not None:
            return replace(found, running=running)
        seen = FirstLook()
        if look is not None:
            seen = look()
            self.flash.prefetch(_stores(found.parts))
            # The firmware ran in between.
            silent = seen.silent if seen.restarted else None
            self.found = found = replace(_with_otadata(self.flash, found), silent=silent)
            order = boot_order(found.parts, found.entries)
        if seen.offset is not None:
            return replace(found, running=self._loaded(order, seen.offset))
        # Without a look nothing speaks against a bootloader that starts its app all the same.
        problem = seen.stuck or (cramped if look is not None else None)
        if problem is not None:
            why = Running(None, "none", why=problem)
            return replace(found, running=why, problem=found.problem or problem)
        running = self._verified(order, seen)
        if not running.dead:
            return replace(found, running=running)
        if look is None or not seen.restarted:  # it may print, and more than was read may run
            return replace(found, running=replace(running, dead=False))
        return replace(found, running=running, pending=False)  # nobody is there to confirm anything

    def _at_hand(self, order: list[Partition]) -> Running | None:
        """What runs, where that can be told without a restart."""
        running = self._by_digest(order[0])
        if running is None and self.facts.silent:
            running = self._verified(order, FirstLook())
        return running if running is not None and running.partition is not None else None

    def _by_digest(self, partition: Partition) -> Running | None:
        """A partition whose content is known to be an image that boots here, by its digest."""
        found, app = self.found, self.found.app(partition)
        floor = found.secure_floor(found.chip.secure_version)
        if app is None or found.secure_version_of(partition) < floor:
            return None  # it may have run before the fuses were burnt
        fact = self.facts.slots.get(partition.name)
        if fact is not None and fact.size_bytes <= partition.size_bytes:
            md5 = self.flash.md5(partition.offset, fact.size_bytes)
            if md5 == fact.md5:
                return Running(partition, "journal", fact.size_bytes, md5)
        if (
            header_doubt(app.head, found.chip, floor)
            or found.chip.secure_boot
            or only_the_board_knows(app.head, found.chip)
        ):
            return None
        for image in self.images:
            if _holds(self.flash, app, image):
                if loading_doubt(self.flash, partition, found.chip):
                    return None
                return Running(partition, "image", image.size_bytes, image.md5)
        return None

    def _loaded(self, order: list[Partition], offset: int) -> Running:
        """What the bootloader's log says that it loaded; with the digest of its image, so that the
        next look needs no restart."""
        partition = next((one for one in order if one.offset == offset), None)
        if partition is None:
            return _untold(
                f"its bootloader starts an app at {offset:#x}, which is none of the slots in its "
                "table"
            )
        size_bytes = image_bytes(self.flash, partition)
        if size_bytes is None:
            return Running(partition, "log")
        return Running(partition, "log", size_bytes, self.flash.md5(partition.offset, size_bytes))

    def _verified(self, order: list[Partition], seen: FirstLook) -> Running:
        """What a bootloader that says nothing starts: the first image that it finds whole."""
        for partition in order:
            running = self._by_digest(partition) or self._whole(partition, seen)
            if running is None:
                continue
            if running.partition is not None and seen.nothing_boots:
                return _untold(
                    f"{partition.name} holds a whole image, and yet the bootloader says that no "
                    "app partition is bootable"
                )
            return running
        for partition in self.found.parts.test_apps:
            if self._whole(partition, seen) is not None:
                return _untold(f"where no other app boots, {partition.name} may be started")
        if seen.app_prints:
            return _untold("none holds a whole image, and yet something on the board prints")
        why = OtaError(
            "otadata-invalid",
            "Nothing on the board boots: no app partition that its bootloader would try holds a "
            "whole image.",
        )
        return Running(None, "none", dead=True, why=why)

    def _whole(self, partition: Partition, seen: FirstLook) -> Running | None:
        """A partition by its whole image; None where the bootloader passes it over."""
        chip = self.found.chip
        image = candidate(self.flash, partition, chip, self.found.secure_floor(chip.secure_version))
        if image.boots == "no" or (image.boots == "unclear" and seen.nothing_boots):
            return None
        doubt = image.why or only_the_board_knows(
            self.flash.read(partition.offset, HEAD_BYTES), chip
        )
        if doubt:
            return _untold(f"{partition.name} {doubt}")
        md5 = self.flash.md5(partition.offset, image.size_bytes)
        return Running(partition, "verified", image.size_bytes, md5)


def _cramped(flash: Flash, found: Inspection) -> OtaError | None:
    """A bootloader whose header says less flash than the table needs starts nothing."""
    table = found.parts
    for head in _bootloader_head(found.chip):
        size_bytes = header_flash_bytes(flash.read(head.offset, head.size_bytes))
        if size_bytes is not None and table.end > size_bytes:
            return OtaError(
                "flash-size",
                f"The board's bootloader is made for a flash of {size_bytes >> 20} MB, and its "
                f"partition table needs {-(-table.end >> 20)} MB: such a bootloader starts "
                "nothing.",
                remedy=FLASH_SIZE_REMEDY,
            )
    return None


def _untold(why: str) -> Running:
    text = f"It cannot be told which slot the board runs: {why}, so none was written."
    return Running(None, "none", why=OtaError("otadata-invalid", text))


def _holds(flash: Flash, app: App, image: KnownImage) -> bool:
    size = min(len(app.head), len(image.head))
    if app.head[:size] != image.head[:size] or image.size_bytes > app.partition.size_bytes:
        return False
    return flash.md5(app.partition.offset, image.size_bytes) == image.md5


def _holding(flash: Flash, found: Inspection, firmware: KnownImage) -> Iterable[int]:
    running = found.running
    for app in found.apps:
        known = running.partition == app.partition and running.size_bytes == firmware.size_bytes
        if known:
            if running.md5 == firmware.md5:
                yield app.partition.offset
        elif _holds(flash, app, firmware):
            yield app.partition.offset


def _staged(flash: Flash, found: Inspection, firmware: KnownImage) -> Iterable[int]:
    """Magic bytes that a power cut has left half programmed can still become whole."""
    magic = bytes((IMAGE_MAGIC,))
    for app in found.apps:
        at, first = app.partition.offset, app.head[0]
        size = min(len(app.head), len(firmware.head))
        if (
            firmware.staged_md5
            and first & IMAGE_MAGIC == IMAGE_MAGIC != first
            and magic[:size] + app.head[1:size] == firmware.head[:size]
            and firmware.size_bytes <= app.partition.size_bytes
            and flash.md5(at + 1, firmware.size_bytes - 1) == firmware.staged_md5
        ):
            yield at
