# SPDX-License-Identifier: GPL-3.0-or-later
"""esptool's stub loader, as its version for esptool 5.6 behaves.

Facts: espressif/esp-flasher-stub (command_handler.c, main.c) and esp-stub-lib (flash.c): two
status bytes, big-endian; erases start at FLASH_BEGIN and run ahead of the data, and leave out
sectors that are blank before the first one that is not; a block is acknowledged before it is
written, an error in writing it is told at the next command; one unacknowledged packet while
reading flash.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import zlib
from base64 import b64decode
from pathlib import Path

from esp32_sim import loader_common as lc
from esp32_sim.chip import Registers, security_info
from esp32_sim.core import SHORT_REACH_BYTES, Core, sector_span
from esp32_sim.flash import SECTOR_BYTES, next_erase_bytes
from esp32_sim.loader_common import Command, Leave, RefusedError
from esp32_sim.loader_rom import SYNC_DATA, write_registers
from esp32_sim.stubreceiver import StubReceiver

OK = b"\x00\x00"
BAD_DATA_LEN = b"\xc0\x00"
BAD_CHECKSUM = b"\xc1\x00"
INVALID_COMMAND = b"\xc3\x00"
FAILED_SPI_OP = b"\xc4\x00"
NOT_IN_FLASH_MODE = b"\xc6\x00"
INFLATE_ERROR = b"\xc7\x00"
NOT_ENOUGH_DATA = b"\xc8\x00"
TOO_MUCH_DATA = b"\xc9\x00"
NOT_IMPLEMENTED = b"\xff\x00"

# The inflater's window: the stub writes to flash whenever it is full.
WINDOW_BYTES = 32768
BLANK_SECTOR = b"\xff" * SECTOR_BYTES
READ_PACKET_LIMIT_BYTES = 4096
GREETING = b"OHAI"


@functools.cache
def known_stubs(chip: str) -> dict[int, bytes]:
    """Entry point to code of the stubs that the installed esptool ships for a chip.

    esptool itself is not imported: that would stop all boards of the process for too long.
    """
    found: dict[int, bytes] = {}
    spec = importlib.util.find_spec("esptool")
    if spec is None or spec.origin is None:
        raise RuntimeError("esptool is not installed, so its stub loader is not known")
    folder = Path(spec.origin).parent / "targets" / "stub_flasher"
    for file in folder.glob(f"*/{chip}.json"):
        stub = json.loads(file.read_text())
        found[stub["entry"]] = b64decode(stub["text"])
    return found


def is_stub(chip: str, ram: list[tuple[int, bytes]], entry: int) -> bool:
    """Whether what was uploaded to RAM is a stub that esptool ships for the chip, bit by bit."""
    text = known_stubs(chip).get(entry)
    if text is None:
        return False
    pieces: dict[int, bytearray] = {}
    for address, data in ram:
        for start, piece in pieces.items():
            if start + len(piece) == address:
                piece += data
                break
        else:
            pieces[address] = bytearray(data)
    return any(bytes(piece) == text for piece in pieces.values())


class StubLoader:
    """One run of the stub."""

    def __init__(self, core: Core, registers: Registers) -> None:
        self.core = core
        self.registers = registers
        # The stub takes the size from the flash's id, and SPI_SET_PARAMS changes it.
        self.flash_bytes = core.flash.size
        if registers.chip.wide_flash and self.flash_bytes > SHORT_REACH_BYTES:
            core.reach_bytes = self.flash_bytes
        registers.spi_attached = True
        # It also tries to clear the block-protect bits (stub_target_flash_unlock).
        core.flash.write_status1(0)
        self._in_flash_mode = False
        self._at = 0
        self._left = 0
        self._erase_at = 0
        self._erase_left = 0
        self._dirty_seen = False
        self._inflater = zlib.decompressobj()
        self._window = bytearray()
        self._mem_left = -1
        self._late_error: bytes | None = None

    async def run(self) -> None:
        """Greet and serve commands; raises Leave."""
        self.core.spend(self.core.times.stub_start_s)
        self.core.attach(StubReceiver(self.core.time_s))
        self.core.send_frame(GREETING)
        while True:
            command = lc.parse(await self.core.frame())
            if command is None:
                continue
            self.core.spend(self.core.times.command_s)
            await self._serve(command)

    async def _serve(self, command: Command) -> None:
        if self._late_error is not None:
            status, self._late_error = self._late_error, None
            self._answer(command, status=status)
            return
        handler = self._HANDLERS.get(command.op)
        if handler is None:
            self._answer(command, status=INVALID_COMMAND)
            return
        try:
            await handler(self, command)
        except RefusedError as refused:
            self._answer(command, status=refused.status)

    def _answer(
        self, command: Command, *, value: int = 0, data: bytes = b"", status: bytes = OK
    ) -> None:
        self.core.send_frame(lc.response(command.op, value, data, status))

    @staticmethod
    def _need(command: Command, *sizes: int) -> None:
        if len(command.data) not in sizes:
            raise RefusedError(BAD_DATA_LEN)

    def _check_range(self, address: int, size: int) -> None:
        if address + size > self.flash_bytes:
            raise RefusedError(FAILED_SPI_OP)

    # --- registers, RAM, settings

    async def _sync(self, command: Command) -> None:
        if len(command.data) != len(SYNC_DATA):
            raise RefusedError(BAD_DATA_LEN)
        for _ in range(8):
            self._answer(command)

    async def _read_reg(self, command: Command) -> None:
        self._need(command, 4)
        self._answer(command, value=self.registers.read(command.words(1)[0]))

    async def _write_reg(self, command: Command) -> None:
        write_registers(self.core, self.registers, command, NOT_ENOUGH_DATA)
        self._answer(command)

    async def _mem_begin(self, command: Command) -> None:
        self._need(command, 16)
        self._mem_left = command.words(1)[0]
        self._answer(command)

    async def _mem_data(self, command: Command) -> None:
        if self._mem_left < 0:
            raise RefusedError(NOT_IN_FLASH_MODE)
        size = len(command.data) - lc.DATA_HEADER_BYTES
        if size < 0:
            raise RefusedError(NOT_ENOUGH_DATA)
        if size > self._mem_left or size != command.words(1)[0]:
            raise RefusedError(TOO_MUCH_DATA)
        self._mem_left -= size
        self._answer(command)

    async def _mem_end(self, command: Command) -> None:
        self._need(command, 8)
        if self._mem_left < 0:
            raise RefusedError(NOT_IN_FLASH_MODE)
        stay, entry = command.words(2)
        self._mem_left = -1
        self._answer(command)
        if not stay:
            raise Leave("ram", entry)

    async def _spi_set_params(self, command: Command) -> None:
        self._need(command, 24)
        self.flash_bytes = command.words(2)[1]
        self._answer(command)

    async def _spi_attach(self, command: Command) -> None:
        self._need(command, 4)
        self._answer(command)

    async def _change_baudrate(self, command: Command) -> None:
        self._need(command, 8)
        self._answer(command)
        self.core.set_baud(command.words(1)[0])

    async def _get_security_info(self, command: Command) -> None:
        self._need(command, 0)
        info = security_info(self.registers.config)
        if not info:
            raise RefusedError(NOT_IMPLEMENTED)
        self._answer(command, data=info)

    # --- writing flash

    async def _flash_begin(self, command: Command) -> None:
        self._need(command, 16, 20)
        size, _, _, offset = command.words(4)
        if size:
            self._check_range(offset, size)
        self._in_flash_mode = True
        self._at, self._left = offset, size
        self._inflater = zlib.decompressobj()
        self._window.clear()
        self._erase_at, self._erase_left = sector_span(offset, size) if size else (offset, 0)
        self._dirty_seen = False
        self._erase_next()
        self._answer(command)
        await self.core.settle()

    def _erase_next(self) -> None:
        """Pass one blank sector, or start the next erase where the flash is free; never wait."""
        if not self._erase_left:
            return
        if not self._dirty_seen:
            read_s_per_mib = self.core.times.read_s_per_mib
            sector = self.core.read_flash(self._erase_at, SECTOR_BYTES, read_s_per_mib)
            if sector == BLANK_SECTOR:
                self._erase_at += SECTOR_BYTES
                self._erase_left -= SECTOR_BYTES
                return
            self._dirty_seen = True
        if not self.core.flash_is_busy():
            step = next_erase_bytes(self._erase_at, self._erase_left)
            self.core.start_erase(self._erase_at, step, "loader")
            self._erase_at += step
            self._erase_left -= step

    async def _write(self, data: bytes) -> None:
        while self._erase_left and self._erase_at < self._at + len(data):
            if self._dirty_seen:
                self.core.wait_flash()
                await self.core.settle()
            self._erase_next()
        if self._at + len(data) > self.flash_bytes:
            self._late_error = FAILED_SPI_OP
            return
        self.core.wait_flash()
        await self.core.settle()
        await self.core.program(self._at, data, "loader")
        await self.core.settle()
        self._at += len(data)
        self._left -= len(data)

    def _take_block(self, command: Command, short: bytes, long: bytes) -> bytes:
        if len(command.data) < lc.DATA_HEADER_BYTES:
            raise RefusedError(short)
        if not self._in_flash_mode:
            raise RefusedError(NOT_IN_FLASH_MODE)
        data = command.data[lc.DATA_HEADER_BYTES :]
        if command.words(1)[0] != len(data):
            raise RefusedError(long)
        if lc.checksum(data) != command.checksum:
            raise RefusedError(BAD_CHECKSUM)
        self.core.spend(self.core.times.block_s * len(data) / 16384)
        return data

    async def _flash_data(self, command: Command) -> None:
        data = self._take_block(command, NOT_ENOUGH_DATA, TOO_MUCH_DATA)
        self._answer(command)
        await self._write(data[: self._left])

    async def _flash_defl_data(self, command: Command) -> None:
        data = self._take_block(command, BAD_DATA_LEN, BAD_DATA_LEN)
        # Nothing but the stream's Adler-32 may follow the last byte.
        if self._left == 0 and len(data) > 4:
            raise RefusedError(TOO_MUCH_DATA)
        self._answer(command)
        while not self._inflater.eof:
            self._erase_next()
            try:
                self._window += self._inflater.decompress(data, WINDOW_BYTES - len(self._window))
            except zlib.error:
                self._late_error = INFLATE_ERROR
                return
            data = self._inflater.unconsumed_tail
            full = len(self._window) >= WINDOW_BYTES
            if self._inflater.eof or full:
                piece = bytes(self._window[: self._left])
                self._window.clear()
                await self._write(piece)
            elif not data:
                return

    async def _flash_end(self, command: Command) -> None:
        self._need(command, 4)
        if not self._in_flash_mode:
            raise RefusedError(NOT_IN_FLASH_MODE)
        if self._left:
            raise RefusedError(BAD_DATA_LEN)
        self._in_flash_mode = False
        self.core.wait_flash()
        await self.core.settle()
        self._answer(command)
        if command.words(1)[0] == 0:
            raise Leave("restart")

    # --- the rest of the flash

    async def _flash_md5(self, command: Command) -> None:
        self._need(command, 16)
        address, size = command.words(2)
        self._check_range(address, size)
        times = self.core.times
        data = self.core.read_flash(address, size, times.md5_s_per_mib)
        self.core.spend(times.md5_call_s)
        self._answer(command, data=hashlib.md5(data).digest())

    async def _read_flash(self, command: Command) -> None:
        self._need(command, 16)
        address, size, packet_bytes = command.words(3)
        self._answer(command)
        if packet_bytes > READ_PACKET_LIMIT_BYTES or packet_bytes == 0:
            self._late_error = BAD_DATA_LEN
            return
        if address + size > self.flash_bytes:
            self._late_error = FAILED_SPI_OP
            return
        read_s_per_mib = self.core.times.read_s_per_mib
        digest = hashlib.md5()
        sent = acked = 0
        while sent < size or acked < size:
            if sent < size:
                packet_size = min(packet_bytes, size - sent)
                packet = self.core.read_flash(address + sent, packet_size, read_s_per_mib)
                digest.update(packet)
                self.core.send_frame(packet)
                sent += len(packet)
            ack = await self.core.frame()
            if len(ack) != 4:
                break
            acked = int.from_bytes(ack, "little")
        self.core.send_frame(digest.digest())

    async def _erase_flash(self, command: Command) -> None:
        # esptool 5.6's stub does not look at the length (command_handler.c), the one before did:
        # the stricter one is modelled, because with the other a READ_FLASH with one bit changed
        # on the wire erases the chip, whatever the host does.
        self._need(command, 0)
        await self.core.erase_range(0, self.flash_bytes, "loader")
        self._answer(command)

    async def _erase_region(self, command: Command) -> None:
        self._need(command, 8)
        address, size = command.words(2)
        if address % 4096 or size % 4096:
            raise RefusedError(BAD_DATA_LEN)
        self._check_range(address, size)
        await self.core.erase_range(address, size, "loader")
        self._answer(command)

    async def _run_user_code(self, command: Command) -> None:
        raise Leave("app")

    _HANDLERS = {  # noqa: RUF012 - a table of methods
        lc.SYNC: _sync,
        lc.READ_REG: _read_reg,
        lc.WRITE_REG: _write_reg,
        lc.MEM_BEGIN: _mem_begin,
        lc.MEM_DATA: _mem_data,
        lc.MEM_END: _mem_end,
        lc.SPI_SET_PARAMS: _spi_set_params,
        lc.SPI_ATTACH: _spi_attach,
        lc.CHANGE_BAUDRATE: _change_baudrate,
        lc.GET_SECURITY_INFO: _get_security_info,
        lc.FLASH_BEGIN: _flash_begin,
        lc.FLASH_DATA: _flash_data,
        lc.FLASH_END: _flash_end,
        lc.FLASH_DEFL_BEGIN: _flash_begin,
        lc.FLASH_DEFL_DATA: _flash_defl_data,
        lc.FLASH_DEFL_END: _flash_end,
        lc.SPI_FLASH_MD5: _flash_md5,
        lc.READ_FLASH: _read_flash,
        lc.ERASE_FLASH: _erase_flash,
        lc.ERASE_REGION: _erase_region,
        lc.RUN_USER_CODE: _run_user_code,
    }
