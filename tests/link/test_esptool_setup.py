# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed in esptool is the same in its results."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ota_service.link.esptool_setup import checksum


@given(st.binary(max_size=5000), st.integers(0, 255))
def test_the_checksum_is_the_loaders(data: bytes, state: int) -> None:
    """XOR of all bytes, from any start."""
    wanted = state
    for byte in data:
        wanted ^= byte
    assert checksum(data, state) == wanted
