# SPDX-License-Identifier: GPL-3.0-or-later
"""Registers of a chip with the stub loader running: written by one packet, read one by one or
all at once.

Where a bridge keeps each answer for 16 ms, what costs is the number of times that an answer is
awaited. Requests may then go out together, with a gap between them. How the stub loader receives:
espressif/esp-flasher-stub, slip.c, frame_buffer.c and its UART interrupt. Where not all are
answered, they are sent one by one before the link is given up.
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

FIFO_BYTES = 128
GAP = bytes(FIFO_BYTES)
"""What stands between two requests that are sent together: as many bytes as the UART's FIFO holds.

One interrupt takes at most a FIFO of bytes, and the stub loader drops what stands behind the end of
a request in the same interrupt. Bytes outside of a frame mean nothing to it.
"""

TOGETHER_MARGIN_S = 0.003
"""How much longer than a gap an exchange must take for requests to go together."""

_STALE_ANSWERS = 100
"""How many other answers may stand before the one that is waited for (esptool)."""

GROUPS = (3, 1)
"""How many requests go together at the most, at first and after one that was not answered. Ten and
more stalled Espressif's own stub loader on an emulated chip that had too little of the processor,
and behind 16 ms they save 5 % of an update's exchanges only."""

TOGETHER_TIMEOUT_S = 1.0
"""How long the next answer to requests that were sent together is waited for."""

SYNC, SYNC_DATA = 0x08, b"\x07\x07\x12\x20" + b"\x55" * 32
"""What is asked and answered by the ROM and the stub loader alike (esptool 5.6.0, `sync`)."""
_SYNC_TRIES = 2


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


class UnansweredError(FatalError):  # type: ignore[misc]  # esptool is not typed
    """Requests that were sent together were not all answered, and fewer are sent from now on. It is
    not known which of them were carried out; everything before is, and no answer is on its way."""


class Registers:
    """The registers of one chip.

    exchange_s: what one exchange takes here at the least; None until it was measured. Every
    method raises esptool's FatalError where the chip stops answering.
    """

    def __init__(self, esp: Any) -> None:
        self._esp = esp
        self._write_command = esp.ESP_CMDS["WRITE_REG"]
        self._read_command = esp.ESP_CMDS["READ_REG"]
        self._groups = list(GROUPS)
        self.exchange_s: float | None = None

    def read(self, register: int) -> int:
        """One register."""
        return int(self._esp.read_reg(register))

    def write(self, records: Sequence[Record]) -> None:
        """One packet: the stub loader takes any number of 16-byte records."""
        self._esp.check_command("write target memory", self._write_command, _packet(records))

    def exchange(self, records: Sequence[Record], registers: Sequence[int]) -> list[int]:
        """Write by one packet, then read; the values in their order.

        Raises UnansweredError where that may be tried once more, with fewer requests at once.
        """
        requests = [frame(self._read_command, struct.pack("<I", one)) for one in registers]
        commands = [self._read_command] * len(requests)
        if records:
            requests.insert(0, frame(self._write_command, _packet(records)))
            commands.insert(0, self._write_command)
        size = self._groups[0] if self._together else 1
        values = []
        for at in range(0, len(requests), size):
            group = requests[at : at + size]
            if len(group) > 1:
                values += self._answers(group, commands[at : at + size])
            elif at == 0 and records:
                self.write(records)
                values.append(0)
            else:
                values.append(self.read(registers[at - bool(records)]))
        return values[bool(records) :]

    def _answers(self, requests: Sequence[bytes], commands: Sequence[int]) -> list[int]:
        """Those to requests that are sent together."""
        port = self._esp._port
        port.timeout = TOGETHER_TIMEOUT_S
        try:
            self._esp.flush_input()
            port.write(GAP.join(requests))
            return [await_answer(self._esp, command) for command in commands]
        except FatalError as error:
            del self._groups[0]
            self._come_to_rest()
            raise UnansweredError(str(error)) from error
        finally:
            port.timeout = DEFAULT_TIMEOUT

    def _come_to_rest(self) -> None:
        """Answers that are late must not be taken for those to the next requests, which carry no
        number: they come before the one to a question of another kind."""
        for tries in reversed(range(_SYNC_TRIES)):
            self._esp.flush_input()  # esptool's reader has ended with its error
            try:
                # The first byte ends a request that was cut off.
                self._esp._port.write(b"\xc0" + bytes(FIFO_BYTES) + frame(SYNC, SYNC_DATA))
                await_answer(self._esp, SYNC)
            except FatalError:
                if not tries:
                    raise
            else:
                return

    @property
    def _together(self) -> bool:
        """Whether requests are sent together: on a slow bridge."""
        if self.exchange_s is None:
            return False
        gap_s = len(GAP) * 10 / self._esp._port.baudrate
        return bool(self.exchange_s > gap_s + TOGETHER_MARGIN_S)


def _packet(records: Sequence[Record]) -> bytes:
    """The stub loader waits before the write that a delay stands with, so each delay goes to the
    next record."""
    packet, wait_us = b"", 0
    for register, value, mask, then_us in records:
        packet += struct.pack("<IIII", register, value, mask, wait_us)
        wait_us = then_us
    return packet
