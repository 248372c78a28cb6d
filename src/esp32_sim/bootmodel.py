# SPDX-License-Identifier: GPL-3.0-or-later
"""The second-stage bootloader: which app it chooses, what it writes, what it prints.

Source: ESP-IDF's bootloader_utility.c, bootloader_common_loader.c and flash_partitions.c, and
esp32.md, "otadata". Works on a bytearray in memory as well as on the flash of a running board.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from esp32_sim import layouts
from esp32_sim.chips import ESP32, Chip
from esp32_sim.flash import SECTOR_BYTES, FlashOp, NorFlash
from esp32_sim.imagecheck import (
    BadImageError,
    LoadedImage,
    bootloader_flash_bytes,
    bootloader_problem,
    verify_app,
)
from esp32_sim.images import DESCRIPTOR, DESCRIPTOR_OFFSET, read_descriptor
from esp32_sim.layouts import Partition

NEW = 0
PENDING_VERIFY = 1
VALID = 2
INVALID = 3
ABORTED = 4
UNDEFINED = 0xFFFFFFFF
BLANK_SEQ = 0xFFFFFFFF

SELECT = struct.Struct("<I20sII")
FACTORY_INDEX = -1


def seq_crc(seq: int) -> int:
    """The CRC of an otadata entry: over its sequence number alone."""
    return zlib.crc32(seq.to_bytes(4, "little"), 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Select:
    """One otadata entry (esp_ota_select_entry_t)."""

    seq: int
    state: int
    crc: int
    label: bytes = b"\xff" * 20

    @classmethod
    def parse(cls, raw: bytes) -> Select:
        """From its 32 bytes."""
        seq, label, state, crc = SELECT.unpack(raw[: SELECT.size])
        return cls(seq, state, crc, label)

    @classmethod
    def make(cls, seq: int, state: int = UNDEFINED) -> Select:
        """A well-formed entry."""
        return cls(seq, state, seq_crc(seq))

    def encode(self) -> bytes:
        """Its 32 bytes."""
        return SELECT.pack(self.seq, self.label, self.state, self.crc)

    @property
    def is_invalid(self) -> bool:
        """Blank, or in a state that cannot boot; the CRC does not matter here."""
        return self.seq == BLANK_SEQ or self.state in (INVALID, ABORTED)

    @property
    def counts(self) -> bool:
        """Whether it takes part in the choice."""
        return not self.is_invalid and self.crc == seq_crc(self.seq)

    def index(self, slot_count: int) -> int:
        """The slot that it names: (ota_seq - 1) % app_count in uint32_t, so 0 wraps around."""
        return (self.seq - 1 & 0xFFFFFFFF) % slot_count


@dataclass(frozen=True)
class BootResult:
    """What one pass of the bootloader led to.

    partition: the app that runs; None where none does (then error says why). index: its slot
    number, -1 for factory, None for a test app. log: the lines printed, without line ends.
    writes: the flash operations that the bootloader made. partitions: the table that it read.
    started: whether the ROM started the bootloader at all. secure_version: what the eFuses count
    afterwards.
    """

    partition: Partition | None
    index: int | None
    image: LoadedImage | None
    log: tuple[str, ...]
    writes: tuple[FlashOp, ...]
    error: str = ""
    partitions: tuple[Partition, ...] = ()
    started: bool = True
    secure_version: int = 0

    @property
    def slot(self) -> str | None:
        """The running partition's label."""
        return self.partition.label if self.partition else None

    @property
    def offset(self) -> int | None:
        """The running partition's offset."""
        return self.partition.offset if self.partition else None


def boot(
    flash: bytearray | NorFlash,
    *,
    rollback: bool = False,
    anti_rollback: bool = False,
    secure_version: int = 0,
    table_offset: int = layouts.TABLE_OFFSET,
    silent: bool = False,
    chip: Chip = ESP32,
    revision: int = 301,
    block_revision: int = 0,
    boot_keys: tuple[bytes, ...] | None = None,
    log: Callable[[str], None] | None = None,
) -> BootResult:
    """Boot once, writing otadata as the bootloader does.

    rollback, anti_rollback: whether the bootloader was built with
    CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE and CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK (which needs
    the former). secure_version: what the chip's eFuses count. table_offset: where the bootloader
    was built to look for the partition table. silent: built without a log, as the Arduino
    core's; the ROM speaks all the same. revision, block_revision: of the chip and of its eFuse
    blocks, major * 100 + minor. boot_keys: digests of the keys that Secure Boot v2 trusts; None
    where it is off. log: called with each line as it is printed.
    """
    nor = NorFlash(flash) if isinstance(flash, bytearray) else flash
    return _Boot(
        nor,
        rollback,
        anti_rollback,
        secure_version,
        table_offset,
        silent,
        chip,
        revision,
        block_revision,
        boot_keys,
        log,
    ).run()


@dataclass
class _Boot:
    flash: NorFlash
    rollback: bool
    anti_rollback: bool
    secure_version: int
    table_offset: int
    silent: bool
    chip: Chip
    revision: int
    block_revision: int
    boot_keys: tuple[bytes, ...] | None
    sink: Callable[[str], None] | None
    lines: list[str] = field(default_factory=list)
    writes: list[FlashOp] = field(default_factory=list)
    clock_ms: int = 31
    partitions: tuple[Partition, ...] = ()
    started: bool = False

    # --- printing

    def print(self, line: str) -> None:
        self.lines.append(line)
        if self.sink is not None:
            self.sink(line)

    def info(self, text: str, tag: str = "boot") -> None:
        self.log("I", "32", text, tag)

    def error(self, text: str, tag: str = "boot") -> None:
        self.log("E", "31", text, tag)

    def log(self, level: str, colour: str, text: str, tag: str) -> None:
        self.clock_ms += 4
        if not self.silent:
            self.print(f"\x1b[0;{colour}m{level} ({self.clock_ms}) {tag}: {text}\x1b[0m")

    # --- the pass

    def run(self) -> BootResult:
        problem = bootloader_problem(self.flash, self.chip)
        if problem is not None:
            for line in problem.split("\n"):
                self.print(line)
            return self.result(None, None, None, problem)
        self.started = True
        self.info("ESP-IDF v5.1.4 2nd stage bootloader")
        self.info("compile time Jan  1 2026 12:34:56")
        self.info(f"chip revision: v{self.revision // 100}.{self.revision % 100}")
        if self.chip.checks_blocks:
            blocks = self.block_revision
            self.info(f"efuse block revision: v{blocks // 100}.{blocks % 100}")
        size = bootloader_flash_bytes(self.flash, self.chip.bootloader_offset)
        self.info(f"SPI Flash Size : {size >> 20}MB", f"boot.{self.chip.name}")
        partitions = self.read_table(size)
        if partitions is None:
            self.error("Failed to verify partition table")
            self.error("load partition table error!")
            return self.result(None, None, None, "partition table")
        self.partitions = tuple(partitions)
        previous = self.flash.on_op

        def record(op: FlashOp) -> None:
            self.writes.append(op)
            if previous is not None:
                previous(op)

        self.flash.on_op = record
        try:
            return self.choose(partitions)
        finally:
            self.flash.on_op = previous

    def result(
        self,
        partition: Partition | None,
        index: int | None,
        image: LoadedImage | None,
        error: str = "",
    ) -> BootResult:
        return BootResult(
            partition,
            index,
            image,
            tuple(self.lines),
            tuple(self.writes),
            error,
            self.partitions,
            self.started,
            self.secure_version,
        )

    def read_table(self, chip_bytes: int) -> list[Partition] | None:
        """The table, verified; chip_bytes: the flash's size by the bootloader's own header."""
        raw = self.flash.read(self.table_offset, layouts.TABLE_BYTES)
        found: list[Partition] = []
        with_md5 = False
        for at in range(0, len(raw), 32):
            entry = raw[at : at + 32]
            magic, kind, subtype, offset, size, label, flags = layouts.ENTRY.unpack(entry)
            if magic == layouts.ENTRY_MAGIC:
                if offset > chip_bytes or size > chip_bytes - offset:
                    self.error(
                        f"partition {at // 32} invalid - offset {offset:#x} size {size:#x} "
                        f"exceeds flash chip size {chip_bytes:#x}",
                        "flash_parts",
                    )
                    return None
                name = label.split(b"\x00")[0].decode("ascii", "replace")
                found.append(Partition(name, kind, subtype, offset, size, flags))
            elif magic == layouts.MD5_MAGIC[:2] and not with_md5:
                if hashlib.md5(raw[:at]).digest() != entry[16:]:
                    self.error("Incorrect MD5 checksum", "flash_parts")
                    return None
                with_md5 = True
            elif at and entry[:4] == b"\xff" * 4:
                self.show_table(found)
                return found
            else:
                self.error(
                    f"partition {at // 32} invalid magic number "
                    f"{int.from_bytes(magic, 'little'):#x}",
                    "flash_parts",
                )
                return None
        self.error("partition table has no terminating entry, not valid", "flash_parts")
        return None

    def show_table(self, partitions: list[Partition]) -> None:
        self.info("Partition Table:")
        self.info("## Label            Usage          Type ST Offset   Length")
        for number, p in enumerate(partitions):
            self.info(
                f"{number:2} {p.label:16} {usage(p):16} {p.type:02x} {p.subtype:02x} "
                f"{p.offset:08x} {p.size:08x}"
            )
        self.info("End of partition table")

    def choose(self, partitions: list[Partition]) -> BootResult:
        apps: dict[int, Partition] = {}
        test: Partition | None = None
        otadata: Partition | None = None
        for p in partitions:
            if p.type == layouts.TYPE_APP and p.subtype == layouts.APP_FACTORY:
                apps[FACTORY_INDEX] = p
            elif p.type == layouts.TYPE_APP and p.subtype == layouts.APP_TEST:
                test = p
            elif p.type == layouts.TYPE_APP and p.subtype & 0xF0 == layouts.APP_OTA_0:
                apps[p.subtype & 0x0F] = p
            elif (p.type, p.subtype) == (layouts.TYPE_DATA, layouts.DATA_OTA):
                otadata = p
        slot_count = sum(1 for index in apps if index >= 0)
        start, initial = FACTORY_INDEX, False
        if otadata is not None:
            start, initial = self.select(otadata, apps, slot_count)
        # From the chosen one down to factory, then upwards.
        order = list(range(start, FACTORY_INDEX - 1, -1)) + list(range(start + 1, slot_count))
        for index in order:
            partition = apps.get(index)
            if partition is None:
                continue
            image = self.try_load(partition)
            if image is not None:
                if initial and index >= 0 and otadata is not None:
                    self.write_select(otadata, 0, Select.make(index + 1, VALID))
                    self.info(f"Set actual ota_seq={index + 1} in otadata[0]")
                    self.burn(partition)
                self.info("Disabling RNG early entropy source...")
                return self.result(partition, index, image)
            if index == FACTORY_INDEX:
                self.error("Factory app partition is not bootable")
            else:
                self.error(f"OTA app partition slot {index} is not bootable")
        if test is not None:
            image = self.try_load(test)
            if image is not None:
                return self.result(test, None, image)
        self.error("No bootable app partitions in the partition table")
        return self.result(None, None, None, "no bootable app")

    def select(
        self, otadata: Partition, apps: dict[int, Partition], slot_count: int
    ) -> tuple[int, bool]:
        """(index to try first, whether otadata has never been written)."""
        has_factory = FACTORY_INDEX in apps
        entries = [
            Select.parse(self.flash.read(otadata.offset + i * SECTOR_BYTES, SELECT.size))
            for i in range(2)
        ]
        if self.rollback:
            for i in range(2):
                if entries[i].state == PENDING_VERIFY:
                    entries[i] = Select(entries[i].seq, ABORTED, entries[i].crc, entries[i].label)
                    self.write_select(otadata, i, entries[i])
        unwritten = all(e.seq == BLANK_SEQ or e.crc != seq_crc(e.seq) for e in entries)
        if self.anti_rollback:
            self.info("Enabled a check secure version of app for anti rollback")
            self.info(f"Secure version (from eFuse) = {self.secure_version}")
            if unwritten or slot_count == 0:
                self.info("otadata[0..1] in initial state")
                return FACTORY_INDEX, True
        elif all(entry.is_invalid for entry in entries) or slot_count == 0:
            if has_factory:
                self.info("Defaulting to factory image")
                return FACTORY_INDEX, False
            self.info("No factory image, trying OTA 0")
            return 0, unwritten
        active = -1
        for i in range(2):
            if not entries[i].counts or not self.is_new_enough(
                apps.get(entries[i].index(slot_count))
            ):
                continue
            if active < 0 or entries[i].seq > entries[active].seq:
                active = i
        if active < 0:
            if has_factory:
                self.error("ota data partition invalid, falling back to factory")
            else:
                self.error("ota data partition invalid and no factory, will try all partitions")
            return FACTORY_INDEX, False
        chosen = entries[active]
        if self.rollback and chosen.state == NEW:
            self.write_select(
                otadata, active, Select(chosen.seq, PENDING_VERIFY, chosen.crc, chosen.label)
            )
        index = chosen.index(slot_count)
        if chosen.state == VALID:
            self.burn(apps.get(index))
        return index, False

    def write_select(self, otadata: Partition, index: int, entry: Select) -> None:
        address = otadata.offset + index * SECTOR_BYTES
        self.flash.erase(address, SECTOR_BYTES, "bootloader")
        self.flash.program(address, entry.encode(), "bootloader")

    def app_secure_version(self, partition: Partition) -> int | None:
        """What an app's descriptor says; None where it has none."""
        head = self.flash.read(partition.offset, DESCRIPTOR_OFFSET + DESCRIPTOR.size)
        info = read_descriptor(head)
        return None if info is None else info.secure_version

    def is_new_enough(self, partition: Partition | None) -> bool:
        """check_anti_rollback: an app without a descriptor is not."""
        if not self.anti_rollback or partition is None:
            return True
        found = self.app_secure_version(partition)
        if found is None:
            self.error("Failed to get partition description 261")
            return False
        return found >= self.secure_version

    def burn(self, partition: Partition | None) -> None:
        """update_anti_rollback: from now on nothing older boots."""
        if not self.anti_rollback or partition is None:
            return
        found = self.app_secure_version(partition)
        if found is not None and found > self.secure_version:
            self.secure_version = found
            self.info(f"Anti-rollback is set. eFuse field is updated({found}).", "efuse")

    def try_load(self, partition: Partition) -> LoadedImage | None:
        if not self.is_new_enough(partition):
            return None
        try:
            image = verify_app(
                self.flash,
                partition.offset,
                partition.size,
                chip=self.chip,
                revision=self.revision,
                block_revision=self.block_revision,
                boot_keys=self.boot_keys,
            )
        except BadImageError as error:
            self.error(str(error), "esp_image")
            return None
        for i, segment in enumerate(image.segments):
            kind = "map" if segment.mapped else "load"
            self.info(
                f"segment {i}: paddr={segment.flash_offset:08x} vaddr={segment.load_address:08x} "
                f"size={segment.size:05x}h ({segment.size:6}) {kind}",
                "esp_image",
            )
        self.info(f"Loaded app from partition at offset {partition.offset:#x}")
        return image


def usage(partition: Partition) -> str:
    """The bootloader's name for a partition's use."""
    if partition.type == layouts.TYPE_APP:
        if partition.subtype == layouts.APP_FACTORY:
            return "factory app"
        if partition.subtype == layouts.APP_TEST:
            return "test app"
        return "OTA app" if partition.subtype & 0xF0 == layouts.APP_OTA_0 else "Unknown app"
    if partition.type == layouts.TYPE_DATA:
        return {
            layouts.DATA_OTA: "OTA data",
            layouts.DATA_PHY: "RF data",
            layouts.DATA_NVS: "WiFi data",
            layouts.DATA_NVS_KEYS: "NVS keys",
        }.get(partition.subtype, "Unknown data")
    return "Unknown"
