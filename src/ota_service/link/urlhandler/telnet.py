# SPDX-License-Identifier: GPL-3.0-or-later
"""Telnet with the COM-PORT option as bytes: what arrives taken apart, what is sent put together.

RFC 854 (Telnet), RFC 2217 (COM-PORT-OPTION). No I/O.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

IAC, DONT, DO, WONT, WILL, SB, SE = 0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0xFA, 0xF0
BINARY, SUPPRESS_GO_AHEAD, COM_PORT = 0, 3, 44

SET_BAUD, SET_DATA_SIZE, SET_PARITY, SET_STOP_SIZE, SET_CONTROL = 1, 2, 3, 4, 5
PURGE = 12
SERVER_OFFSET = 100
"""The server answers a command with its number plus this one."""

CONTROL_NO_FLOW = 1
CONTROL_DTR_ON, CONTROL_DTR_OFF = 8, 9
CONTROL_RTS_ON, CONTROL_RTS_OFF = 11, 12
PURGE_RECEIVED, PURGE_TO_SEND = 1, 2

MAX_MESSAGE_BYTES = 1024
"""What a message of the server may have, of which the longest is its signature (RFC 2217)."""


@dataclass(frozen=True, slots=True)
class Negotiation:
    """WILL, WONT, DO or DONT of an option."""

    verb: int
    option: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A COM-PORT message of the server: its command (without the offset) and its value."""

    command: int
    value: bytes


_PART = re.compile(
    rb"(?P<data>[^\xff]+)|(?P<escaped>\xff\xff)|\xff(?P<verb>[\xfb-\xfe])(?P<option>.)|"
    rb"\xff\xfa(?P<body>(?:[^\xff]|\xff[^\xf0])*+)\xff\xf0|\xff[^\xfa-\xff]",
    re.DOTALL,
)


class EndlessError(Exception):
    """A message that has no end: the server does not speak the protocol."""


class Decoder:
    """Takes the stream apart: the port's bytes, and what is between them.

    Of what is not whole yet it keeps `MAX_MESSAGE_BYTES` at the most.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[bytes | Negotiation | Answer]:
        """What is whole in the stream so far, in its order. Raises EndlessError behind it."""
        data, at = self._rest + received, 0
        while part := _PART.match(data, at):
            at = part.end()
            if part["data"] or part["escaped"]:
                yield part["data"] or b"\xff"
            elif part["verb"]:
                yield Negotiation(part["verb"][0], part["option"][0])
            elif part["body"]:
                body = part["body"].replace(b"\xff\xff", b"\xff")
                if body[0] == COM_PORT and len(body) >= 2:
                    yield Answer((body[1] - SERVER_OFFSET) & 0xFF, body[2:])
        self._rest = data[at:]
        if len(self._rest) > MAX_MESSAGE_BYTES:
            raise EndlessError


def negotiate(verb: int, option: int) -> bytes:
    """WILL, WONT, DO or DONT."""
    return bytes((IAC, verb, option))


def command(number: int, value: bytes) -> bytes:
    """A COM-PORT command."""
    return bytes((IAC, SB, COM_PORT, number)) + escape(value) + bytes((IAC, SE))


def baud(value: int) -> bytes:
    """The value of SET-BAUDRATE."""
    return struct.pack("!I", value)


def escape(data: bytes) -> bytes:
    """The port's bytes as they go into the stream."""
    return data.replace(b"\xff", b"\xff\xff")
