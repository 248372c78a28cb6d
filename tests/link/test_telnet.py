# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream of an RFC 2217 connection, taken apart and put together."""

from __future__ import annotations

import serial.rfc2217
from hypothesis import given
from hypothesis import strategies as st

from ota_service.link.urlhandler import telnet
from ota_service.link.urlhandler.telnet import Answer, Decoder, Negotiation

VALUES = st.binary(max_size=6)
PARTS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.builds(
            Negotiation,
            st.sampled_from([telnet.DO, telnet.DONT, telnet.WILL, telnet.WONT]),
            st.integers(0, 255),
        ),
        st.builds(Answer, st.integers(1, 12), VALUES),
    ),
    max_size=8,
)


def encoded(part: bytes | Negotiation | Answer) -> bytes:
    """A part as the server sends it."""
    if isinstance(part, bytes):
        return telnet.escape(part)
    if isinstance(part, Negotiation):
        return telnet.negotiate(part.verb, part.option)
    return telnet.command(part.command + telnet.SERVER_OFFSET, part.value)


@given(PARTS, st.integers(1, 7))
def test_whatever_the_pieces_the_same_comes_out(
    parts: list[bytes | Negotiation | Answer], step: int
) -> None:
    """Data, also with 0xFF in it, options and answers survive any cutting of the stream."""
    stream = b"".join(map(encoded, parts))
    decoder = Decoder()
    data = bytearray()
    others = []
    for at in range(0, len(stream), step):
        for found in decoder.feed(stream[at : at + step]):
            if isinstance(found, bytes):
                data += found
            else:
                others.append(found)
    assert bytes(data) == b"".join(part for part in parts if isinstance(part, bytes))
    assert others == [part for part in parts if not isinstance(part, bytes)]


def test_commands_that_mean_nothing_here_are_passed_over() -> None:
    """NOP (0xF1) and a message of another option are no data."""
    stream = b"a\xff\xf1b" + bytes((telnet.IAC, telnet.SB, 24, 1, telnet.IAC, telnet.SE)) + b"c"
    assert b"".join(part for part in Decoder().feed(stream) if isinstance(part, bytes)) == b"abc"


def test_numbers_are_those_of_pyserial() -> None:
    """The independent implementation has the same codes."""
    theirs = serial.rfc2217
    assert bytes((telnet.SET_BAUD,)) == theirs.SET_BAUDRATE
    assert bytes((telnet.SET_CONTROL,)) == theirs.SET_CONTROL
    assert bytes((telnet.PURGE,)) == theirs.PURGE_DATA
    assert bytes((telnet.CONTROL_DTR_ON,)) == theirs.SET_CONTROL_DTR_ON
    assert bytes((telnet.CONTROL_RTS_OFF,)) == theirs.SET_CONTROL_RTS_OFF
    assert telnet.command(telnet.SET_BAUD, telnet.baud(255)) == (
        theirs.IAC + theirs.SB + theirs.COM_PORT_OPTION + theirs.SET_BAUDRATE
        + b"\0\0\0\xff\xff" + theirs.IAC + theirs.SE
    )  # fmt: skip
