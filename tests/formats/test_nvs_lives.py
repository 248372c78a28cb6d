# SPDX-License-Identifier: GPL-3.0-or-later
"""From whatever an app's life has left, a change of the version loses nothing, at every cut.

Lives with blobs of many parts, pages that are being freed, torn items and refused writes, by the
tests' own firmware with the rules of any version.
"""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.errors import OtaError
from tests.formats.nvs_firmware import ALL_RULES, SZ, Firmware, NoSpace, Rules
from tests.formats.nvs_page import ACTIVE, PAGE, N
from tests.formats.nvs_proofs import KEY, NS, prove, starts
from tests.formats.outcomes import outcome

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["string", "blob", "blob", "version", "delete", "start"]),
        st.integers(0, 3),
        st.integers(0, 90) | st.integers(300, 1500) | st.integers(2500, 6000),
    ),
    min_size=1,
    max_size=30,
)


class Life:
    """An app on a flash, and its last flash operations: (cells before it, place, data)."""

    def __init__(self, pages: int, rules: Rules) -> None:
        self.flash, self.rules = bytearray(b"\xff" * (pages * PAGE)), rules
        self.log: list[tuple[bytes, int, bytes | None]] = []
        self.app = self.started()

    def started(self) -> Firmware:
        return Firmware(self.flash, rules=self.rules, on_write=self.note)

    def note(self, place: int, data: bytes | None) -> None:
        self.log = [*self.log[-120:], (bytes(self.flash), place, data)]

    def step(self, step: Step, turn: int) -> None:
        """One thing that an app does; a refusal is part of life."""
        what, number, size = step
        value = random.Random(turn).randbytes(size)
        with contextlib.suppress(NoSpace):
            if what == "start":
                self.app = self.started()
            elif what == "version":
                self.app.set_item(NS, KEY, SZ, b"1.%d\0" % size)
            elif what == "delete":
                self.app.delete(NS, b"%s%d" % (b"blob" if size % 2 else b"text", number))
            elif what == "blob":
                self.app.set_blob(NS, b"blob%d" % number, value)
            else:
                self.app.set_item(NS, b"text%d" % number, SZ, value[:1500].hex().encode() + b"\0")

    def fill(self, left: int) -> None:
        """Numbers until `left` entries of the last page are empty."""
        page, turn = self.app.list[-1], 0
        with contextlib.suppress(NoSpace):
            while page.state == ACTIVE and page.next < N - left:
                self.app.set_item(b"app", b"n%d" % turn, 0x04, turn.to_bytes(4, "little"))
                turn += 1

    def cut(self, back: int, share: float) -> bytes:
        """The flash as the `back`th last operation leaves it that is done to its `share`."""
        if not back or not self.log:
            return bytes(self.flash)
        before, place, data = self.log[-min(back, len(self.log))]
        cells = bytearray(before)
        size = PAGE if data is None else len(data)
        for i in range(int(size * share)):
            cells[place + i] = 0xFF if data is None else cells[place + i] & data[i]
        return bytes(cells)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    st.integers(3, 5),
    st.sampled_from(ALL_RULES),
    STEPS,
    st.sampled_from([0, 1, 2, 3, N]),
    STEPS,
    st.integers(0, 120),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_a_change_after_any_life(
    pages: int,
    rules: Rules,
    steps: list[Step],
    left: int,
    more: list[Step],
    back: int,
    share: float,
) -> None:
    """Some steps, a page filled to its last entries, some more, and a reset on the way."""
    life = Life(pages, rules)
    for turn, step in enumerate(steps):
        life.step(step, turn)
    life.fill(left)
    for turn, step in enumerate(more[:3]):
        life.step(step, 100 + turn)
    data = life.cut(back, share)
    if any(one.error for rule in ALL_RULES for one in starts(data, rule)):
        return  # a board that was lost before us
    edit = outcome(prove, data, "2.0.0", torn=0, second=1, seed=back)
    assert not isinstance(edit, OtaError) or edit.code in ("nvs-full", "nvs-invalid")
