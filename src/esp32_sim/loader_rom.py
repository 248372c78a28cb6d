# SPDX-License-Identifier: GPL-3.0-or-later
"""A chip's boot ROM in download mode, as esptool drives it.

Facts: esptool's loader.py and targets, its documentation of the serial protocol, and esp32.md.
The ROM answers with four status bytes, works synchronously, and knows a flash of 2 MiB until it
is told otherwise (measured on the ESP32, and taken for granted on the others).
"""

from __future__ import annotations

import hashlib
import zlib

from esp32_sim import loader_common as lc
from esp32_sim.chip import Registers, security_info
from esp32_sim.core import Core, sector_span
from esp32_sim.loader_common import Command, Leave, RefusedError

DEFAULT_FLASH_BYTES = 2 << 20
SYNC_DATA = b"\x07\x07\x12\x20" + b"\x55" * 32
SYNC_VALUE = 0x20120707
READ_SLOW_BYTES = 64

OK = b"\x00\x00\x00\x00"
INVALID_MESSAGE = b"\x01\x05\x00\x00"
FAILED_TO_ACT = b"\x01\x06\x00\x00"
INVALID_CRC = b"\x01\x07\x00\x00"
DEFLATE_ERROR = b"\x01\x0b\x00\x00"
# How often silicon repeats its refusal of an unknown command, in packets of 14 bytes (esptool,
# loader.py). They do not carry the command's opcode, or esptool would not know them as refusals;
# which one they carry is not documented.
REFUSALS = 8
REFUSAL_OP = lc.SYNC
# What secure download mode leaves of the commands (esptool's documentation, "Secure Download
# Mode"): nothing that reads, writes or runs memory, and nothing that reads the flash.
SECURE_COMMANDS = frozenset(
    {
        lc.SYNC, lc.FLASH_BEGIN, lc.FLASH_DATA, lc.FLASH_END, lc.SPI_SET_PARAMS, lc.SPI_ATTACH,
        lc.CHANGE_BAUDRATE, lc.FLASH_DEFL_BEGIN, lc.FLASH_DEFL_DATA, lc.FLASH_DEFL_END,
        lc.GET_SECURITY_INFO,
    }
)  # fmt: skip


class RomLoader:
    """One stay in download mode."""

    def __init__(self, core: Core, registers: Registers) -> None:
        self.core = core
        self.registers = registers
        self.flash_bytes = DEFAULT_FLASH_BYTES
        self.ram: list[tuple[int, bytes]] = []
        self._mem_at = 0
        self._mem_left = 0
        self._flash_at = 0
        self._flash_left = 0
        self._block_bytes = 0
        self._inflater = zlib.decompressobj()
        self.synced = False

    async def run(self) -> None:
        """Serve commands until one leaves the loader; raises Leave."""
        while True:
            command = lc.parse(await self.core.frame())
            if command is None or (not self.synced and command.op != lc.SYNC):
                continue
            self.core.spend(self.core.times.command_s)
            await self._serve(command)

    async def _serve(self, command: Command) -> None:
        handler = self._HANDLERS.get(command.op)
        if handler is None or not self._knows(command.op):
            refusal = lc.response(REFUSAL_OP, 0, b"", INVALID_MESSAGE)
            for _ in range(REFUSALS):
                self.core.send_frame(refusal)
            return
        try:
            await handler(self, command)
        except RefusedError as refused:
            self._answer(command, status=refused.status)

    def _knows(self, op: int) -> bool:
        if op == lc.GET_SECURITY_INFO and not self.registers.chip.security_info_bytes:
            return False
        return op in SECURE_COMMANDS or not self.registers.config.secure_download

    def _answer(
        self, command: Command, *, value: int = 0, data: bytes = b"", status: bytes = OK
    ) -> None:
        self.core.send_frame(lc.response(command.op, value, data, status))

    @staticmethod
    def _need(command: Command, *sizes: int) -> None:
        if len(command.data) not in sizes:
            raise RefusedError(INVALID_MESSAGE)

    def _check_range(self, address: int, size: int) -> None:
        if not self.registers.spi_attached or address + size > self.flash_bytes:
            raise RefusedError(FAILED_TO_ACT)

    # --- commands

    async def _sync(self, command: Command) -> None:
        if command.data != SYNC_DATA:
            raise RefusedError(INVALID_MESSAGE)
        self.synced = True
        for _ in range(8):
            self._answer(command, value=SYNC_VALUE)

    async def _read_reg(self, command: Command) -> None:
        self._need(command, 4)
        self._answer(command, value=self.registers.read(command.words(1)[0]))

    async def _write_reg(self, command: Command) -> None:
        write_registers(self.core, self.registers, command, INVALID_MESSAGE)
        self._answer(command)

    async def _mem_begin(self, command: Command) -> None:
        self._need(command, 16)
        size, _, _, offset = command.words(4)
        self._mem_at, self._mem_left = offset, size
        self._answer(command)

    async def _mem_data(self, command: Command) -> None:
        data = self._block(command)
        if len(data) > self._mem_left:
            raise RefusedError(FAILED_TO_ACT)
        self.ram.append((self._mem_at, data))
        self._mem_at += len(data)
        self._mem_left -= len(data)
        self._answer(command)

    def _block(self, command: Command) -> bytes:
        if len(command.data) < lc.DATA_HEADER_BYTES:
            raise RefusedError(INVALID_MESSAGE)
        size = command.words(1)[0]
        data = command.data[lc.DATA_HEADER_BYTES :]
        if len(data) != size:
            raise RefusedError(INVALID_MESSAGE)
        if lc.checksum(data) != command.checksum & 0xFF:
            raise RefusedError(INVALID_CRC)
        return data

    async def _mem_end(self, command: Command) -> None:
        self._need(command, 8)
        stay, entry = command.words(2)
        self._answer(command)
        # esptool's run_stub tells of a ROM that runs nothing under secure boot.
        hooked = self.registers.chip.stub_hook and self.registers.config.secure_boot_v2
        if not stay and not hooked:
            raise Leave("ram", entry)

    async def _spi_set_params(self, command: Command) -> None:
        self._need(command, 24)
        self.flash_bytes = command.words(2)[1]
        self._answer(command)

    async def _spi_attach(self, command: Command) -> None:
        self._need(command, 8)
        self.registers.spi_attached = True
        self._answer(command)

    async def _flash_begin(self, command: Command) -> None:
        self._need(command, self.registers.chip.flash_begin_bytes)
        size, _, block_bytes, offset = command.words(4)
        if size:
            self._check_range(offset, size)
            start, erase_bytes = sector_span(offset, size)
            await self.core.erase_range(start, erase_bytes, "loader")
        self._flash_at = offset
        self._flash_left = size
        self._block_bytes = block_bytes
        self._inflater = zlib.decompressobj()
        self._answer(command)

    async def _flash_data(self, command: Command) -> None:
        data = self._block(command)
        self._check_range(self._flash_at, min(len(data), self._flash_left))
        await self._write(data)
        self._answer(command)

    async def _flash_defl_data(self, command: Command) -> None:
        data = self._block(command)
        try:
            plain = self._inflater.decompress(data)
        except zlib.error as error:
            raise RefusedError(DEFLATE_ERROR) from error
        self._check_range(self._flash_at, min(len(plain), self._flash_left))
        await self._write(plain)
        self._answer(command)

    async def _write(self, data: bytes) -> None:
        data = data[: self._flash_left]
        self.core.spend(self.core.times.block_s * len(data) / 16384)
        await self.core.program(self._flash_at, data, "loader")
        self._flash_at += len(data)
        self._flash_left -= len(data)

    async def _flash_end(self, command: Command) -> None:
        self._need(command, 4)
        run_app = command.words(1)[0]
        self._answer(command)
        raise Leave("app" if run_app else "restart")

    async def _flash_md5(self, command: Command) -> None:
        self._need(command, 16)
        address, size = command.words(2)
        self._check_range(address, size)
        digest = hashlib.md5(self.core.flash.read(self.core.reach(address), size)).hexdigest()
        times = self.core.times
        self.core.spend(times.md5_call_s + times.md5_s_per_mib * size / (1 << 20))
        self._answer(command, data=digest.encode())

    async def _read_flash_slow(self, command: Command) -> None:
        self._need(command, 8)
        address, size = command.words(2)
        if self.registers.stub_hook:
            raise Leave("ram", self.registers.stub_hook)
        self._check_range(address, size)
        if size > READ_SLOW_BYTES:
            raise RefusedError(FAILED_TO_ACT)
        data = self.core.flash.read(self.core.reach(address), size)
        self._answer(command, data=data.ljust(READ_SLOW_BYTES, b"\x00"))

    async def _change_baudrate(self, command: Command) -> None:
        self._need(command, 8)
        self._answer(command)
        self.core.set_baud(round(command.words(1)[0] / self.registers.config.crystal_estimate))

    async def _get_security_info(self, command: Command) -> None:
        self._answer(command, data=security_info(self.registers.config))

    _HANDLERS = {  # noqa: RUF012 - a table of methods
        lc.SYNC: _sync,
        lc.GET_SECURITY_INFO: _get_security_info,
        lc.READ_REG: _read_reg,
        lc.WRITE_REG: _write_reg,
        lc.MEM_BEGIN: _mem_begin,
        lc.MEM_DATA: _mem_data,
        lc.MEM_END: _mem_end,
        lc.SPI_SET_PARAMS: _spi_set_params,
        lc.SPI_ATTACH: _spi_attach,
        lc.FLASH_BEGIN: _flash_begin,
        lc.FLASH_DATA: _flash_data,
        lc.FLASH_END: _flash_end,
        lc.FLASH_DEFL_BEGIN: _flash_begin,
        lc.FLASH_DEFL_DATA: _flash_defl_data,
        lc.FLASH_DEFL_END: _flash_end,
        lc.SPI_FLASH_MD5: _flash_md5,
        lc.READ_FLASH_SLOW: _read_flash_slow,
        lc.CHANGE_BAUDRATE: _change_baudrate,
    }


def write_registers(core: Core, registers: Registers, command: Command, bad_length: bytes) -> None:
    """WRITE_REG: any number of (address, value, mask, delay in us) records."""
    if not command.data or len(command.data) % 16:
        raise RefusedError(bad_length)
    words = command.words(len(command.data) // 4)
    for i in range(0, len(words), 4):
        address, value, mask, delay_us = words[i : i + 4]
        if core.times.timed:
            core.spend(delay_us / 1e6)
        if mask != 0xFFFFFFFF:
            value = value & mask | registers.read(address) & ~mask
        registers.write(address, value)
