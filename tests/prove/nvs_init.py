# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware's starts of NVS by every version's rules, computed once for equal contents.

By the tests' own belief (tests/formats/nvs_firmware.py), which shares nothing with the product
nor with the simulator, whose NVS code plays the app.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from tests.formats.nvs_firmware import SZ, TO_5_3, Firmware, Rules, Start, start

Key = tuple[str, str]
VERSION: Key = ("VIAM_NS", "OTA_VERSION")
Value = tuple[str, bytes]
"""A type, "string" or its number, and the value; a string's without its terminator."""


@dataclass(frozen=True)
class NvsState:
    """What the firmware has after a start. error: None where it started. flash: as it is then."""

    items: dict[Key, Value]
    error: str | None
    flash: bytes

    @cached_property
    def others(self) -> dict[Key, Value]:
        """Every key but the version."""
        return {key: value for key, value in self.items.items() if key != VERSION}

    def string(self, namespace: str, key: str) -> str | None:
        """A string's value; None where it is missing or of another type."""
        found = self.items.get((namespace, key))
        return found[1].decode("utf-8", "replace") if found and found[0] == "string" else None


@lru_cache(maxsize=8000)
def nvs_of(region: bytes, rules: Rules = TO_5_3) -> NvsState:
    """What the firmware of `rules` finds in an NVS partition."""
    return _state(start(region, rules))


def _state(found: Start) -> NvsState:
    items: dict[Key, Value] = {}
    for (space, key, kind), value in found.keys.items():
        entry = ("string", value[:-1]) if kind == SZ else (f"{kind:#04x}", value)
        items.setdefault((space.decode("latin-1"), key.decode("latin-1")), entry)
    return NvsState(items, found.error or None, found.flash)


PLAYED = TO_5_3
"""By whose rules boards are played."""


@lru_cache(maxsize=8000)
def starts_by(region: bytes, rules: Rules) -> tuple[NvsState, NvsState]:
    """Two starts in a row by the rules of one version."""
    first = nvs_of(region, rules)
    same = first.error is not None or first.flash == region
    return first, first if same else nvs_of(first.flash, rules)


def forget() -> None:
    """Let go of what was computed: cases with other contents follow."""
    nvs_of.cache_clear()
    starts_by.cache_clear()


def alike(region: bytes, rules: tuple[Rules, ...]) -> tuple[Rules, ...]:
    """Those of `rules` whose start leaves what the one that is played leaves."""
    left = nvs_of(region, PLAYED).flash
    return tuple(one for one in rules if one == PLAYED or nvs_of(region, one).flash == left)


def repairs(region: bytes, rules: Rules = TO_5_3) -> list[tuple[int, bytes | None]]:
    """What a start writes: (place, data), data None where it erases a sector."""
    writes: list[tuple[int, bytes | None]] = []
    if nvs_of(region, rules).flash != region:
        Firmware(
            bytearray(region), rules=rules, on_write=lambda at, data: writes.append((at, data))
        )
    return writes
