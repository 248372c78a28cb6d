# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ROM loader and the stub loader share: packets, checks, opcodes.

Source: esptool's loader.py (opcodes and layouts) and "Serial Protocol" in its documentation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FLASH_BEGIN = 0x02
FLASH_DATA = 0x03
FLASH_END = 0x04
MEM_BEGIN = 0x05
MEM_END = 0x06
MEM_DATA = 0x07
SYNC = 0x08
WRITE_REG = 0x09
READ_REG = 0x0A
SPI_SET_PARAMS = 0x0B
SPI_ATTACH = 0x0D
READ_FLASH_SLOW = 0x0E
CHANGE_BAUDRATE = 0x0F
FLASH_DEFL_BEGIN = 0x10
FLASH_DEFL_DATA = 0x11
FLASH_DEFL_END = 0x12
SPI_FLASH_MD5 = 0x13
GET_SECURITY_INFO = 0x14
ERASE_FLASH = 0xD0
ERASE_REGION = 0xD1
READ_FLASH = 0xD2
RUN_USER_CODE = 0xD3

DATA_HEADER_BYTES = 16
CHECKSUM_SEED = 0xEF


class Leave(Exception):
    """The loader ends (no error): run the app in flash, restart the chip, or run code in RAM."""

    def __init__(self, how: str, entry: int = 0) -> None:
        super().__init__(how)
        self.how = how
        self.entry = entry


class RefusedError(Exception):
    """A command fails with these status bytes."""

    def __init__(self, status: bytes) -> None:
        super().__init__(status.hex())
        self.status = status


@dataclass(frozen=True, slots=True)
class Command:
    """One request: opcode, data, and the checksum field."""

    op: int
    data: bytes
    checksum: int

    def words(self, count: int) -> tuple[int, ...]:
        """The first `count` u32 of the data."""
        return struct.unpack_from(f"<{count}I", self.data)


def parse(frame: bytes) -> Command | None:
    """The request in a frame; None for what is not one."""
    if len(frame) < 8 or frame[0] != 0:
        return None
    _, op, length, checksum = struct.unpack_from("<BBHI", frame)
    if len(frame) != 8 + length:
        return None
    return Command(op, frame[8:], checksum)


def response(op: int, value: int, data: bytes, status: bytes) -> bytes:
    """The answer to `op`, before SLIP."""
    return struct.pack("<BBHI", 1, op, len(data) + len(status), value) + data + status


def checksum(data: bytes) -> int:
    """XOR of all bytes, seed 0xEF."""
    return xor_bytes(data) ^ CHECKSUM_SEED


def xor_bytes(data: bytes) -> int:
    """XOR of all bytes; folds halves, so that megabytes take milliseconds."""
    folded, half_bits = int.from_bytes(data, "little"), 4 << len(data).bit_length()
    while half_bits >= 8:
        folded = folded >> half_bits ^ folded & ((1 << half_bits) - 1)
        half_bits //= 2
    return folded
