# SPDX-License-Identifier: GPL-3.0-or-later
"""Telnet with the COM-PORT option as bytes: what arrives taken apart, what is sent put together.

RFC 854 (Telnet), RFC 2217 (COM-PORT-OPTION). No I/O.
"""

from __future__ import annotations

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


class Decoder:
    """Takes the stream apart: the port's bytes, and what is between them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[bytes | Negotiation | Answer]:
        """What is whole in the stream so far, in its order."""
        data = self._rest + received
        at = 0
        while at < len(data):
            mark = data.find(IAC, at)
            if mark != at:
                end = len(data) if mark < 0 else mark
                yield data[at:end]
                at = end
                continue
            step = self._command(data, at)
            if step is None:
                break
            found, at = step
            if found is not None:
                yield found
        self._rest = data[at:]

    @staticmethod
    def _command(data: bytes, at: int) -> tuple[bytes | Negotiation | Answer | None, int] | None:
        """What begins at an IAC, and the place behind it; None while it is not whole."""
        if at + 1 >= len(data):
            return None
        verb = data[at + 1]
        if verb == IAC:
            return b"\xff", at + 2
        if verb in (DO, DONT, WILL, WONT):
            return (Negotiation(verb, data[at + 2]), at + 3) if at + 2 < len(data) else None
        if verb != SB:
            return None, at + 2
        end = at + 2
        while (end := data.find(IAC, end)) >= 0 and end + 1 < len(data):
            if data[end + 1] == SE:
                body = data[at + 2 : end].replace(b"\xff\xff", b"\xff")
                if len(body) >= 2 and body[0] == COM_PORT:
                    return Answer((body[1] - SERVER_OFFSET) & 0xFF, body[2:]), end + 2
                return None, end + 2
            end += 2
        return None


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
