# SPDX-License-Identifier: GPL-3.0-or-later
"""How a board's bootloader was built, and what its chip's fuses hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from esp32_sim.bootmodel import BootResult, boot
from esp32_sim.flash import NorFlash
from esp32_sim.layouts import TABLE_OFFSET


@dataclass(frozen=True)
class Bootloader:
    """Fields as `BoardConfig`'s. silent: it prints nothing. secure_version: in the fuses."""

    rollback: bool = False
    silent: bool = False
    anti_rollback: bool = False
    secure_version: int = 0
    table_offset: int = TABLE_OFFSET

    def boot(self, flash: Any) -> BootResult:
        """One start of a board with this flash (a `NorFlash`, or cells used like a bytearray)."""
        nor = flash if isinstance(flash, NorFlash) else NorFlash(flash)
        return boot(
            nor,
            rollback=self.rollback,
            anti_rollback=self.anti_rollback,
            secure_version=self.secure_version,
            table_offset=self.table_offset,
            silent=self.silent,
        )

    def config(self) -> dict[str, Any]:
        """What a simulated board is to be configured with."""
        return {
            "rollback": self.rollback,
            "bootloader_log": "none" if self.silent else "info",
            "anti_rollback": self.anti_rollback,
            "secure_version": self.secure_version,
            "table_offset": self.table_offset,
        }

    def burnt(self, secure_version: int) -> Bootloader:
        """The same with more fuses blown."""
        return replace(self, secure_version=secure_version)
