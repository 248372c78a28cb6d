# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed in esptool is the same in its results."""

from __future__ import annotations

from typing import Any

import pytest
from esptool.loader import slip_reader
from esptool.util import FatalError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ota_service.link.esptool_setup import _Answers, checksum


@given(st.binary(max_size=5000), st.integers(0, 255))
def test_the_checksum_is_the_loaders(data: bytes, state: int) -> None:
    """XOR of all bytes, from any start."""
    wanted = state
    for byte in data:
        wanted ^= byte
    assert checksum(data, state) == wanted


class Pieces:
    """A port that gets one piece after the other, and then nothing more."""

    baudrate, timeout = 115_200, 3.0

    def __init__(self, pieces: list[bytes]) -> None:
        self.left = [piece for piece in pieces if piece]

    @property
    def in_waiting(self) -> int:
        """Of the piece that is there."""
        return len(self.left[0]) if self.left else 0

    def inWaiting(self) -> int:
        """As esptool's reader asks."""
        return self.in_waiting

    def read(self, size_bytes: int) -> bytes:
        """Never more than the piece that is there."""
        if not self.left:
            return b""
        piece = self.left[0]
        self.left[:1] = [piece[size_bytes:]] if piece[size_bytes:] else []
        return piece[:size_bytes]


def read(reader: Any) -> tuple[list[bytes], str]:
    """All answers, and what is said of what is none."""
    answers = []
    while True:
        try:
            answers.append(bytes(next(reader)))
        except FatalError as error:
            return answers, str(error)


# What comes at a port, of the few bytes that mean something to SLIP, and two more.
BYTES = st.lists(st.sampled_from(b"\xc0\xdb\xdc\xddab"), max_size=12).map(bytes)


@settings(max_examples=40)
@given(st.lists(BYTES, max_size=6))
@example([b"\xc0\x01\xdb", b"\xdc\x02\xc0\xc0", b"\xc0\xc0\xdb\xdd\xdc\xc0"])
@example([b"\xc0a\xc0b\xc0"])
def test_answers_are_those_that_esptool_reads(pieces: list[bytes]) -> None:
    """However they are cut, and whatever stands between them."""
    answers, _ = read(_Answers(Pieces(pieces), lambda *_: None))
    assert answers == read(slip_reader(Pieces(pieces), lambda *_: None))[0]


@pytest.mark.parametrize(
    "none",
    [
        b"ets Jun  8 2016 00:22:57",
        b"Guru Meditation Error: Core  0 panic'ed (LoadProhibited)",
        b"\xc0a\xdba\xc0",
    ],
)
def test_what_is_no_answer_is_told_in_esptools_words(none: bytes) -> None:
    """It knows a panic's, for instance; and nothing is an answer any more behind that."""
    reader = _Answers(Pieces([b"\xc0a\xc0", none]), lambda *_: None)
    found = read(reader)
    assert found == read(slip_reader(Pieces([b"\xc0a\xc0", none]), lambda *_: None))
    assert found[0] == [b"a"]
    with pytest.raises(StopIteration):
        next(reader)
