# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of NVS: constants, items, errors, and what a partition has to offer.

Source: ESP-IDF v5, components/nvs_flash/src/nvs_types.hpp, nvs_page.hpp, nvs.h.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Protocol

SECTOR = 4096
ENTRY_BYTES = 32
ENTRY_COUNT = 126
BITMAP_OFFSET = 32
ENTRIES_OFFSET = 64
CHUNK_MAX_BYTES = ENTRY_BYTES * (ENTRY_COUNT - 1)
KEY_MAX = 15

UNINIT = 0xFFFFFFFF
ACTIVE = 0xFFFFFFFE
FULL = 0xFFFFFFFC
FREEING = 0xFFFFFFF8
CORRUPT = 0xFFFFFFF0

EMPTY = 3
WRITTEN = 2
ERASED = 0

VERSION = 0xFE
HEADER = struct.Struct("<IIB19sI")
ITEM = struct.Struct("<BBBBI16s8s")

U8 = 0x01
SZ = 0x21
BLOB = 0x41
BLOB_DATA = 0x42
BLOB_IDX = 0x48
ANY_TYPE = 0xFF
ANY_NS = 255
NS_INDEX = 0
CHUNK_ANY = 0xFF
VARIABLE = (SZ, BLOB, BLOB_DATA)
INT_TYPES = {
    0x01: "B", 0x11: "b", 0x02: "H", 0x12: "h", 0x04: "I", 0x14: "i", 0x08: "Q", 0x18: "q",
}  # fmt: skip


def crc32(data: bytes) -> int:
    """ESP-IDF's CRC, as NVS uses it."""
    return zlib.crc32(data, 0xFFFFFFFF)


class Region(Protocol):
    """A partition's bytes under NOR rules; offsets count from its start."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes as they stand."""

    def program(self, offset: int, data: bytes) -> None:
        """Clear bits."""

    def erase_sector(self, offset: int) -> None:
        """Set 4 KiB to 0xFF."""


class NvsError(Exception):
    """An esp_err_t, by name."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} ({code:#06x})")
        self.name = name
        self.code = code


def no_free_pages() -> NvsError:
    """No page is free at init."""
    return NvsError("ESP_ERR_NVS_NO_FREE_PAGES", 0x110D)


def new_version() -> NvsError:
    """A page of a later format."""
    return NvsError("ESP_ERR_NVS_NEW_VERSION_FOUND", 0x1110)


def not_enough_space() -> NvsError:
    """No room for a value."""
    return NvsError("ESP_ERR_NVS_NOT_ENOUGH_SPACE", 0x1105)


Identity = tuple[int, bytes, int]
"""Namespace, key with its padding, chunk number."""


@dataclass(frozen=True, slots=True)
class Item:
    """One 32-byte entry with a header."""

    ns: int
    type: int
    span: int
    chunk: int
    crc: int
    key: bytes
    data: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Item:
        """From its 32 bytes."""
        ns, kind, span, chunk, crc, key, data = ITEM.unpack(raw)
        return cls(ns, kind, span, chunk, crc, key, data)

    @classmethod
    def make(cls, ns: int, kind: int, span: int, chunk: int, key: bytes, data: bytes) -> Item:
        """With its CRC."""
        name = key[:KEY_MAX].ljust(16, b"\x00")
        return cls(ns, kind, span, chunk, cls._crc(ns, kind, span, chunk, name, data), name, data)

    @staticmethod
    def _crc(ns: int, kind: int, span: int, chunk: int, key: bytes, data: bytes) -> int:
        return crc32(bytes((ns, kind, span, chunk)) + key + data)

    @property
    def crc_ok(self) -> bool:
        """Whether the header is intact."""
        return self.crc == self._crc(self.ns, self.type, self.span, self.chunk, self.key, self.data)

    @property
    def name(self) -> bytes:
        """The key."""
        return self.key[:KEY_MAX].split(b"\x00")[0]

    @property
    def identity(self) -> Identity:
        """What ESP-IDF's hash list tells items apart by; the type is not in it."""
        return self.ns, self.key, self.chunk

    def encode(self) -> bytes:
        """Its 32 bytes."""
        return ITEM.pack(self.ns, self.type, self.span, self.chunk, self.crc, self.key, self.data)

    # Variable-length items: size and CRC of the bytes that follow.

    @property
    def var_size(self) -> int:
        """Length of the data, a string's with its terminator."""
        return int.from_bytes(self.data[:2], "little")

    @property
    def var_crc(self) -> int:
        """CRC of the data."""
        return int.from_bytes(self.data[4:], "little")
