# SPDX-License-Identifier: GPL-3.0-or-later
"""A board in memory: our planner and steps over a flash that the simulator's models judge.

The boot model and the NVS model are the simulator's, which share nothing with `formats/`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from esp32_sim.bootmodel import BootResult, boot
from esp32_sim.nvsmodel import NvsState, nvs_init
from ota_service.formats.image import AppImage, parse_app_image
from ota_service.link.chip import ChipInfo
from ota_service.link.stream import STREAMS
from ota_service.update.carry_out import carry_out
from ota_service.update.facts import BoardFacts, KnownImage
from ota_service.update.first_look import FirstLook, first_look
from ota_service.update.inspect import Inspection, inspect
from ota_service.update.plan import Plan, plan
from tests.support.memory_flash import MemoryFlash

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Firmware:
    """An App Image, parsed once."""

    data: bytes
    parsed: AppImage
    known: KnownImage
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Firmware:
        """From a file's bytes."""
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        behind = hashlib.md5(data[1:], usedforsecurity=False).hexdigest()
        known = KnownImage(len(data), md5, data[:512], behind)
        return cls(data, parse_app_image(data), known, hashlib.sha256(data).hexdigest())


@dataclass
class MemoryBoard:
    """A flash, and what its bootloader was built with.

    silent: the bootloader prints nothing; chatty: its app prints something of its own then.
    host: the host keeps the version where NVS is encrypted.
    """

    data: bytearray
    rollback: bool = False
    silent: bool = False
    chatty: bool = False
    host: bool = False
    table_offset: int = 0x8000
    chip: ChipInfo = field(
        default_factory=lambda: ChipInfo("ESP32", 0, "24:0a:c4:00:00:01", 301, None)
    )

    def __post_init__(self) -> None:
        if self.chip.flash_bytes is None:
            self.chip = ChipInfo("ESP32", 0, self.chip.mac, self.chip.revision, len(self.data))

    def boot(self) -> BootResult:
        """One pass of the bootloader; it may write."""
        return boot(self.data, rollback=self.rollback, table_offset=self.table_offset)

    def look(self, firmware: Firmware | None = None, facts: BoardFacts | None = None) -> Inspection:
        """As a session looks: an ordinary restart where nothing else tells what runs."""
        flash = MemoryFlash(self.data)

        def look() -> FirstLook:
            result = boot(flash.data, rollback=self.rollback, table_offset=self.table_offset)
            self.data[:] = flash.data
            if self.silent:
                return FirstLook(app_prints=result.offset is not None and self.chatty)
            return first_look([_COLOUR.sub("", line) for line in result.log], result.offset)

        found = inspect(
            flash,
            self.chip,
            facts=facts or BoardFacts(),
            firmware=firmware.known if firmware is not None else None,
            look=look,
            host_store=self.host,
        )
        self.data[:] = flash.data
        return found

    def plan(
        self, firmware: Firmware, version: str, *, facts: BoardFacts | None = None,
        force: bool = False, rescue: bool = False,
    ) -> tuple[Inspection, Plan]:  # fmt: skip
        """Look, and plan."""
        facts = facts or BoardFacts()
        found = self.look(firmware, facts)
        made = plan(
            found, version=version, image=firmware.parsed, facts=facts, force=force, rescue=rescue
        )
        return found, made

    def carry_out(self, made: Plan, firmware: Firmware) -> MemoryFlash:
        """Do the plan's writes; returns the flash with its trace."""
        flash = MemoryFlash(self.data)
        stream = STREAMS.get(firmware.sha256, firmware.data)
        carry_out(made, flash, stream, phase=lambda _: None, progress=lambda _: None)
        self.data[:] = flash.data
        return flash

    def nvs(self) -> NvsState:
        """The NVS as firmware would find it, on a copy."""
        for at in range(self.table_offset, self.table_offset + 0xC00, 32):
            entry = self.data[at : at + 32]
            if entry[2:4] == b"\x01\x02":
                offset = int.from_bytes(entry[4:8], "little")
                size = int.from_bytes(entry[8:12], "little")
                return nvs_init(bytearray(self.data[offset : offset + size]))
        raise LookupError("nvs")
