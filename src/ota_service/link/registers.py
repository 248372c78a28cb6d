# SPDX-License-Identifier: GPL-3.0-or-later
"""Registers of a chip with the stub loader running: written by one packet, read one by one or
all at once.

Where a bridge keeps each answer for 16 ms, what costs is the number of times that an answer is
awaited. Requests may then go out together, with a gap between them. How the stub loader receives:
espressif/esp-flasher-stub, slip.c, frame_buffer.c and its UART interrupt.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Any

from ota_service.link import esptool_setup  # noqa: F401  (before esptool)

from esptool.loader import DEFAULT_TIMEOUT  # isort: skip  (after esptool_setup)
from esptool.util import FatalError  # isort: skip

Record = tuple[int, int, int, int]
"""One register write of a WRITE_REG packet: address, value, mask, delay afterwards in us."""

GAP = bytes(128)
"""What stands between two requests that are sent together: as many bytes as the UART's FIFO holds.

One interrupt takes at most a FIFO of bytes, and the stub loader drops what stands behind the end of
a request in the same interrupt. Bytes outside of a frame mean nothing to it.
"""

TOGETHER_MARGIN_S = 0.003
"""How much longer than a gap an exchange must take for requests to go together."""

_STALE_ANSWERS = 100
"""How many other answers may stand before the one that is waited for (esptool)."""

ALONE: set[str] = set()
"""Ports on which requests that were sent together were not all answered, so that none are any
more."""


def frame(command: int, data: bytes, checksum: int = 0) -> bytes:
    """A request in its SLIP frame (esptool's serial protocol, "Low Level Protocol")."""
    body = struct.pack("<BBHI", 0, command, len(data), checksum) + data
    return b"\xc0" + body.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"


class RefusedError(FatalError):  # type: ignore[misc]  # esptool is not typed
    """The stub loader received a request, and did not take it."""


def await_answer(esp: Any, command: int) -> int:
    """The value in the next answer to `command`; raises FatalError, or RefusedError of that."""
    due_s = time.monotonic() + esp._port.timeout + DEFAULT_TIMEOUT
    for _ in range(_STALE_ANSWERS):
        if time.monotonic() > due_s:
            break
        answer = esp.read()
        if len(answer) >= 10 and answer[0] == 1 and answer[1] == command:
            if answer[8]:
                raise RefusedError(f"A request was refused: status {answer[8:10].hex()}")
            return int.from_bytes(answer[4:8], "little")
    raise FatalError("no answer to a request")


class Registers:
    """The registers of one chip.

    exchange_s: what one exchange takes here at the least; None until it was measured. Every
    method raises esptool's FatalError where the chip stops answering.
    """

    def __init__(self, esp: Any) -> None:
        self._esp = esp
        self._write_command = esp.ESP_CMDS["WRITE_REG"]
        self._read_command = esp.ESP_CMDS["READ_REG"]
        self.exchange_s: float | None = None

    def read(self, register: int) -> int:
        """One register."""
        return int(self._esp.read_reg(register))

    def write(self, records: Sequence[Record]) -> None:
        """One packet: the stub loader takes any number of 16-byte records."""
        self._esp.check_command("write target memory", self._write_command, _packet(records))

    def exchange(self, records: Sequence[Record], registers: Sequence[int]) -> list[int]:
        """Write by one packet, then read; the values in their order."""
        if not self._together or len(registers) < 1 + (not records):
            if records:
                self.write(records)
            return [self.read(register) for register in registers]
        requests = [frame(self._read_command, struct.pack("<I", one)) for one in registers]
        if records:
            requests.insert(0, frame(self._write_command, _packet(records)))
        try:
            self._send(GAP.join(requests))
            if records:
                await_answer(self._esp, self._write_command)
            return [await_answer(self._esp, self._read_command) for _ in registers]
        except FatalError:
            ALONE.add(self._port_name)
            raise

    def write_before(self, records: Sequence[Record], request: bytes) -> None:
        """Write by one packet while another request already travels behind it, in its frame.

        Returns when the packet is answered; the request's answer is still to be awaited.
        """
        self._send(frame(self._write_command, _packet(records)) + GAP + request)
        await_answer(self._esp, self._write_command)

    def _send(self, data: bytes) -> None:
        port = self._esp._port
        if port.timeout != DEFAULT_TIMEOUT:
            port.timeout = DEFAULT_TIMEOUT
        self._esp.flush_input()
        port.write(data)

    @property
    def _together(self) -> bool:
        """Whether requests are sent together: on a slow bridge, unless that failed before."""
        if self.exchange_s is None:
            return False
        gap_s = len(GAP) * 10 / self._esp._port.baudrate
        return self.exchange_s > gap_s + TOGETHER_MARGIN_S and self._port_name not in ALONE

    @property
    def _port_name(self) -> str:
        return str(self._esp._port.name)


def _packet(records: Sequence[Record]) -> bytes:
    """The stub loader waits before the write that a delay stands with, so each delay goes to the
    next record."""
    packet, wait_us = b"", 0
    for register, value, mask, then_us in records:
        packet += struct.pack("<IIII", register, value, mask, wait_us)
        wait_us = then_us
    return packet
