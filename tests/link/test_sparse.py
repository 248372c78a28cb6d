# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading mostly blank regions: the same bytes as a whole read, over less wire."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp32_sim.factory import make_flash
from esp32_sim.layouts import LAYOUTS
from ota_service.link.sparse import (
    Region,
    Seen,
    digest,
    nvs_region,
    otadata_region,
    read_regions,
    table_region,
    whole,
)


class Board:
    """A flash behind counted requests."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytes(data)
        self.read_bytes = 0
        self.requests = 0

    def peek(self, offset: int, size_bytes: int) -> bytes:
        self.read_bytes += size_bytes
        self.requests += 1
        return self.data[offset : offset + size_bytes]

    def md5(self, offset: int, size_bytes: int) -> str:
        self.requests += 1
        return digest(self.data[offset : offset + size_bytes])

    def read(self, regions: Sequence[Region]) -> list[tuple[int, bytes]]:
        return read_regions(regions, self.peek, self.md5)


def regions(layout: str) -> list[Region]:
    """What an inspection asks for."""
    found = [table_region(0x8000)]
    for partition in LAYOUTS[layout].partitions:
        if partition.label == "nvs":
            found.append(nvs_region(partition.offset, partition.size))
        elif partition.label == "otadata":
            found.append(otadata_region(partition.offset, partition.size))
    return found


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_board_of_the_field_is_read_by_a_fraction_of_its_bytes(layout: str) -> None:
    """Every region comes out whole, and less than a third of it goes over the wire."""
    board = Board(make_flash(layout))
    wanted = regions(layout)
    found = board.read(wanted)
    assert sorted(at for at, _ in found) == sorted(region.offset for region in wanted)
    for at, data in found:
        assert data == board.data[at : at + len(data)]
    assert board.read_bytes < sum(region.size_bytes for region in wanted) / 3


@given(st.integers(0, 2**32), st.integers(0, 12))
def test_what_comes_out_is_what_is_there_or_nothing(seed: int, spots: int) -> None:
    """Bytes in any place, also where a page's bitmap knows nothing of them: never a guess."""
    rng = random.Random(seed)
    flash = bytearray(b"\xff" * 0x10000)
    for _ in range(spots):
        at = rng.randrange(0x8000, 0xF000)
        flash[at : at + 40] = rng.randbytes(40)
    board = Board(flash)
    asked = [table_region(0x8000), nvs_region(0x9000, 0x4000), otadata_region(0xD000, 0x2000)]
    for at, data in board.read(asked):
        assert data == board.data[at : at + len(data)]


def test_regions_that_touch_are_proven_by_one_digest() -> None:
    """Three regions in a row cost one request for their digests."""
    board = Board(bytes(range(256)) * 16)
    board.read([whole(0, 64), whole(64, 64), whole(128, 64)])
    assert board.requests == 4


def test_an_answer_of_another_place_is_not_believed() -> None:
    """A request whose address was changed on the wire is answered from there."""
    board = Board(bytes(range(256)) * 16)
    wrong = read_regions([whole(0, 64)], lambda at, size: board.peek(at + 1, size), board.md5)
    assert wrong == []


# --- what is remembered


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 30)), max_size=30))
def test_memory_agrees_with_a_plain_model(steps: list[tuple[bool, int, int]]) -> None:
    """Put and drop in any order: what is known is exactly what was put last and not dropped."""
    seen, model = Seen(), dict[int, int]()
    for number, (put, at, size) in enumerate(steps):
        if put:
            seen.put(at, bytes([number]) * size)
            model |= dict.fromkeys(range(at, at + size), number)
        else:
            seen.drop(at, size)
            for place in range(at, at + size):
                model.pop(place, None)
    for at in range(90):
        for size in (1, 5):
            places = range(at, at + size)
            known = all(place in model for place in places)
            assert seen.get(at, size) == (bytes(model[p] for p in places) if known else None)
