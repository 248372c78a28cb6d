# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware's starts of NVS by every version's rules, computed once for equal contents.

By the tests' own belief (tests/formats/nvs_firmware.py), which shares nothing with the product
nor with the simulator, whose NVS code plays the app.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tests.formats.nvs_firmware import ALL_RULES, SZ, TO_5_3, Firmware, Rules, Start, start

Key = tuple[str, str]
Value = tuple[str, bytes]
"""A type, "string" or its number, and the value; a string's without its terminator."""


@dataclass(frozen=True)
class NvsState:
    """What the firmware has after a start. error: None where it started. flash: as it is then."""

    items: dict[Key, Value]
    error: str | None
    flash: bytes

    def string(self, namespace: str, key: str) -> str | None:
        """A string's value; None where it is missing or of another type."""
        found = self.items.get((namespace, key))
        return found[1].decode("utf-8", "replace") if found and found[0] == "string" else None


@lru_cache(maxsize=4000)
def nvs_of(region: bytes, rules: Rules = TO_5_3) -> NvsState:
    """What the firmware of `rules` finds in an NVS partition."""
    return _state(start(region, rules))


def _state(found: Start) -> NvsState:
    items: dict[Key, Value] = {}
    for (space, key, kind), value in found.keys.items():
        entry = ("string", value[:-1]) if kind == SZ else (f"{kind:#04x}", value)
        items.setdefault((space.decode("latin-1"), key.decode("latin-1")), entry)
    return NvsState(items, found.error or None, found.flash)


@lru_cache(maxsize=4000)
def starts_of(region: bytes) -> tuple[tuple[Rules, NvsState, NvsState], ...]:
    """Two starts in a row by the rules of every version."""
    found = []
    for rules in ALL_RULES:
        first = nvs_of(region, rules)
        same = first.error is not None or first.flash == region
        found.append((rules, first, first if same else nvs_of(first.flash, rules)))
    return tuple(found)


def repairs(region: bytes, rules: Rules = TO_5_3) -> list[tuple[int, bytes | None]]:
    """What a start writes: (place, data), data None where it erases a sector."""
    writes: list[tuple[int, bytes | None]] = []
    if nvs_of(region, rules).flash != region:
        Firmware(
            bytearray(region), rules=rules, on_write=lambda at, data: writes.append((at, data))
        )
    return writes
