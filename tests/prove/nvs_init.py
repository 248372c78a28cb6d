# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware's start of NVS, computed once for equal contents."""

from __future__ import annotations

from functools import lru_cache

from ota_service.sim.nvsmodel import NvsState, nvs_init


@lru_cache(maxsize=600)
def nvs_of(region: bytes) -> NvsState:
    """What the firmware finds in an NVS partition, and what it repairs (`writes`)."""
    return nvs_init(bytearray(region))
