# SPDX-License-Identifier: GPL-3.0-or-later
"""SPI commands to the flash chip through the SPI controller's registers, few packets for each.

The stub loader's own write commands always erase, and trust every byte of a request. Here one
WRITE_REG packet carries many registers, and what would do damage in another place is read back
from the controller before the command starts: register writes have no checksum.

Registers and bits: ESP32 Technical Reference Manual, "SPI Controller"; esptool's
`run_spiflash_command` for the other chips' offsets. Opcodes: W25Q64 data sheet.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from esptool.util import FatalError

from ota_service.link.chip import SHORT_REACH_BYTES
from ota_service.link.registers import Record, Registers, UnansweredError

MAX_SPI_BYTES = 64
"""One SPI user command carries at most the 16 words of the controller's buffer."""

CHECKED_BYTES = 32
"""Programs up to this size may change what is in use (entries' states, otadata), so their bytes
are looked at in the controller's buffer before the command starts. Longer ones go to blank
flash, where a byte that was changed on the wire is found when it is read back."""

PAGE_PROGRAM, SECTOR_ERASE = 0x02, 0x20
_WIDE = {PAGE_PROGRAM: 0x12, SECTOR_ERASE: 0x21}
"""The same with an address of 4 bytes (data sheets of 25Q256 chips): what 3 bytes cannot express
would be done modulo 16 MiB."""
READ_ID, RESET_ENABLE, RESET, READ_STATUS = 0x9F, 0x66, 0x99, 0x05
_WRITE_ENABLE, _WRITE_DISABLE = 0x06, 0x04

_USR_COMMAND, _USR_ADDR, _USR_MISO, _USR_MOSI = 1 << 31, 1 << 30, 1 << 28, 1 << 27
_CMD_USR = 1 << 18
_OPCODE_BITS = 7 << 28
_ADDRESS_BITS_AT = 26
_WIP = 0x01
_ALL = 0xFFFFFFFF

_SHORT_US = 10
"""A command and its few bytes are through the SPI bus in less than 4 us at 20 MHz."""
_PROGRAM_US = 600
"""What a program of a few bytes takes (0.4 to 0.7 ms, data sheet): the status that is read after
it is then the last one nearly always."""
_PAGE_PART_US = 3000
"""The longest that a page program may take (W25Q64 data sheet, tPP)."""
_BUSY_LIMIT_S = 5.0
"""Data sheets allow a sector erase 0.4 s and a block erase 2 s, worn chips take longer."""


class NotTakenError(FatalError):  # type: ignore[misc]  # esptool is not typed
    """A register did not take its value, so a command was not started."""


class SpiBus:
    """The SPI controller that leads to the flash chip, of a chip with the stub loader running.

    Raises esptool's FatalError where the chip stops answering or its answers do not fit.
    """

    def __init__(self, esp: Any) -> None:
        self._esp = esp
        base = esp.SPI_REG_BASE
        self._cmd, self._addr = base, base + 0x04
        self._usr, self._usr1 = base + esp.SPI_USR_OFFS, base + esp.SPI_USR1_OFFS
        self._usr2, self._w0 = base + esp.SPI_USR2_OFFS, base + esp.SPI_W0_OFFS
        self._mosi_len = base + esp.SPI_MOSI_DLEN_OFFS
        self._miso_len = base + esp.SPI_MISO_DLEN_OFFS
        self._registers = Registers(esp)
        # The ROM's flash functions, which the stub loader calls, rely on these.
        self._rest: list[Record] = []
        times_s = [time.monotonic()]
        for at in (self._usr, self._usr1, self._usr2):
            self._rest.append(self._set(at, self._registers.read(at)))
            times_s.append(time.monotonic())
        taken_s = [after - before for before, after in pairwise(times_s)]
        # The machine may have been busy with something else meanwhile, or a bridge's timer near
        # its end, so nothing is concluded from one alone.
        self._registers.exchange_s = min(taken_s)

    def run(self, *opcodes: int) -> None:
        """Commands without address and data, one after the other in one packet."""
        self._registers.write([*self._sequence(opcodes, _SHORT_US), *self._rest])

    def ask(
        self, opcode: int, size_bytes: int, *, after: Sequence[int] = (), then_us: int = _SHORT_US,
        expected: int | None = None,
    ) -> int:  # fmt: skip
        """A command with an answer of up to 4 bytes, little-endian; read twice alike.

        after: commands before it in the same packet, with a pause of then_us behind each.
        expected: what it answered before; then one reading that says the same is enough.
        """
        question = self._question(opcode, size_bytes)
        records = [*self._sequence(after, then_us), *question, *self._rest]
        mask = (1 << 8 * size_bytes) - 1
        (first,) = self._exchange(records, [self._w0])
        if first & mask != expected and self._registers.read(self._w0) != first:
            raise FatalError("the chip's answers differ")
        return first & mask

    def change(
        self, opcode: int, address: int, data: bytes, proven: bool, *, blank: bool = False,
        last: bool = False,
    ) -> None:  # fmt: skip
        """One command that changes flash, with up to 64 bytes; returns when it is done.

        proven: the line has just carried a large transfer without an error, so that of what was
        written to the controller only where and what is done is looked at.
        blank: nothing stands there yet, so wrong bytes do no harm before they are read back.
        last: a digest is asked for next, which tells whether a program is done, so the flash's
        status need not be. (Of an erase it does not: what is being erased may read as blank.)
        Write enable comes late in the packet, so that no damage before it can change flash.
        """

        def once() -> None:
            self._prepare(opcode, address, data, proven, blank)
            start = self._start(_PROGRAM_US if data else _SHORT_US)
            if last and data:
                self._registers.write([start, *self._rest])
            else:
                self._ask_until_done([start])

        self._repeated(once)

    def program_page(self, address: int, data: bytes) -> None:
        """Up to a page into blank flash by one packet, on a proven line only.

        What the flash did not take, because it was slower than its data sheet allows, is found
        when it is read back.
        """
        records: list[Record] = []
        for at in range(0, len(data), MAX_SPI_BYTES):
            part = data[at : at + MAX_SPI_BYTES]
            place, rest = self._setup(address + at, part)
            records += [*place, *rest, *self._plain(_WRITE_ENABLE, _SHORT_US)]
            records += [*self._go(PAGE_PROGRAM, address, True), self._start(_PAGE_PART_US)]
        self._repeated(partial(self._ask_until_done, records))

    # --- records

    @staticmethod
    def _set(register: int, value: int) -> Record:
        return register, value, _ALL, 0

    def _start(self, wait_us: int) -> Record:
        # By a mask: a bit of the value that was changed on the wire must not start something
        # else, for this register's other bits erase and write as well.
        return self._cmd, _CMD_USR, _CMD_USR, wait_us

    def _sequence(self, opcodes: Sequence[int], then_us: int) -> list[Record]:
        return [record for opcode in opcodes for record in self._plain(opcode, then_us)]

    def _plain(self, opcode: int, wait_us: int) -> list[Record]:
        return [
            self._set(self._usr, _USR_COMMAND),
            self._set(self._usr2, _OPCODE_BITS | opcode),
            self._start(wait_us),
        ]

    def _question(self, opcode: int, size_bytes: int) -> list[Record]:
        return [
            self._set(self._usr, _USR_COMMAND | _USR_MISO),
            self._set(self._usr2, _OPCODE_BITS | opcode),
            self._set(self._miso_len, size_bytes * 8 - 1),
            self._set(self._w0, 0),
            self._start(_SHORT_US),
        ]

    def _setup(self, address: int, data: bytes) -> tuple[list[Record], list[Record]]:
        """(the place, its length included; the bytes)."""
        bits = 24 if address < SHORT_REACH_BYTES else 32
        at = address << 32 - bits if self._esp.SPI_ADDR_REG_MSB else address
        place = [self._set(self._addr, at), self._set(self._usr1, bits - 1 << _ADDRESS_BITS_AT)]
        if data:
            place.append(self._set(self._mosi_len, len(data) * 8 - 1))
        padded = data + b"\xff" * (-len(data) % 4)
        words = struct.unpack(f"<{len(padded) // 4}I", padded)
        return place, [self._set(self._w0 + 4 * i, word) for i, word in enumerate(words)]

    def _go(self, opcode: int, address: int, with_data: bool) -> list[Record]:
        opcode = opcode if address < SHORT_REACH_BYTES else _WIDE[opcode]
        usr = _USR_COMMAND | _USR_ADDR | (_USR_MOSI if with_data else 0)
        return [self._set(self._usr, usr), self._set(self._usr2, _OPCODE_BITS | opcode)]

    # --- exchanges

    def _prepare(self, opcode: int, address: int, data: bytes, proven: bool, blank: bool) -> None:
        """Everything of a changing command but its start, looked at in the controller."""
        place, rest = self._setup(address, data)
        go = self._go(opcode, address, bool(data))
        looked_at = [*place, *go] if not proven else [place[0], go[1]]
        if len(data) <= CHECKED_BYTES and not blank:
            looked_at += rest
        records = [*place, *rest, *self._plain(_WRITE_ENABLE, _SHORT_US), *go]
        try:
            found = self._exchange(records, [register for register, _, _, _ in looked_at])
            if found != [value for _, value, _, _ in looked_at]:
                raise NotTakenError("a register of the chip did not take its value")
        except FatalError:
            with contextlib.suppress(FatalError):
                self.run(_WRITE_DISABLE)
            raise

    def _exchange(self, records: Sequence[Record], registers: Sequence[int]) -> list[int]:
        """One that starts nothing in the flash, so that it may be done again."""
        while True:
            with contextlib.suppress(UnansweredError):
                return self._registers.exchange(records, registers)

    def _repeated(self, change: Callable[[], None]) -> None:
        """What changes flash, once more where it is not known whether it was started: the same bits
        are cleared, or the same sector is erased, when the flash is free again."""
        while True:
            try:
                return change()
            except UnansweredError:
                self._ask_until_done()

    def _ask_until_done(self, start: Sequence[Record] = ()) -> None:
        """Start something, and ask for the flash chip's status until it says that it is done."""
        limit_s = time.monotonic() + _BUSY_LIMIT_S
        question = [*self._question(READ_STATUS, 1), *self._rest]
        exchange = self._registers.exchange if start else self._exchange
        busy = exchange([*start, *question], [self._w0])[0] & _WIP
        while busy:
            if time.monotonic() > limit_s:
                raise FatalError("the flash chip stays busy")
            busy = self._exchange(question, [self._w0])[0] & _WIP
