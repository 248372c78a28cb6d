# SPDX-License-Identifier: GPL-3.0-or-later
"""Which part of a flash chip its block-protect bits cover (W25Q64 data sheet, status register)."""

from __future__ import annotations

from dataclasses import dataclass

_BP_MASK, _TB, _SEC = 0x1C, 0x20, 0x40


@dataclass(frozen=True, slots=True)
class Protection:
    """A flash chip's first status register, and what its block-protect bits cover."""

    status: int
    flash_bytes: int | None

    def covers(self, offset: int, size_bytes: int) -> bool:
        """Whether a place is protected, by the Winbond scheme that most chips follow.

        BP2..0 protect the upper (TB = 0) or lower part of the flash in powers of two of 1/64;
        what is not understood counts as covered.
        """
        level = (self.status & _BP_MASK) >> 2
        if level == 0:
            return False
        if self.status & _SEC or level == 7 or self.flash_bytes is None:
            return True
        covered = (self.flash_bytes // 64) << (level - 1)
        if self.status & _TB:
            return offset < covered
        return offset + size_bytes > self.flash_bytes - covered
