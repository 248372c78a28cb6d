# SPDX-License-Identifier: GPL-3.0-or-later
"""A small builder of App Images, bootloader images and Merged Binaries for the tests.

Written from ESP-IDF's description of the format; that it builds what esptool accepts is a test
of its own.
"""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import dataclass, field

# chip id -> (mapped data address, mapped code address, RAM address)
ADDRESSES = {
    0: (0x3F400020, 0x400D0020, 0x3FFB0000),
    2: (0x3F000020, 0x40080020, 0x3FFB0000),
    5: (0x3C000020, 0x42010020, 0x3FC80000),
    9: (0x3C000020, 0x42010020, 0x3FC88000),
    13: (0x42800020, 0x42000020, 0x40800000),
    18: (0x40000020, 0x40010020, 0x4FF00000),
}


def noise(size: int, seed: int = 0) -> bytes:
    """Reproducible bytes without structure."""
    return random.Random(seed).randbytes(size)


def descriptor(
    project: bytes = b"blink", version: bytes = b"1.2.3", secure_version: int = 0, page: int = 0
) -> bytes:
    """An app descriptor, 256 bytes. page: log2 of the mapping's page, 0 for unsaid."""
    return struct.pack(
        "<II8x32s32s16s16s32s32sHHB75x",
        0xABCD5432,
        secure_version,
        version,
        project,
        b"12:34:56",
        b"Nov 24 2026",
        b"v5.4.1",
        bytes(range(32)),
        0,
        0xFFFF,
        page,
    )


@dataclass
class Builder:
    """An image in the making; `build` gives its bytes."""

    segments: list[tuple[int, bytes]]
    entry: int
    chip_id: int = 0
    min_rev: int = 0
    min_rev_full: int = 0
    max_rev_full: int = 0xFFFF
    hash_appended: bool = True
    mapped: tuple[int, ...] = field(default=())
    page_bytes: int = 0x10000

    def build(self) -> bytes:
        """The image, with padding segments before mapped ones where they are needed."""
        body, checksum, count = b"", 0xEF, 0
        for address, data in self.segments:
            gap = (address - (24 + len(body) + 8)) % self.page_bytes
            if address in self.mapped and gap:
                filler = bytes((gap - 8) % self.page_bytes)
                body += struct.pack("<II", 0, len(filler)) + filler
                count += 1
            body += struct.pack("<II", address, len(data)) + data
            count += 1
            for byte in data:
                checksum ^= byte
        header = struct.pack(
            "<BBBBIB3xHBHH4xB",
            0xE9,
            count,
            2,
            0x2F,
            self.entry,
            0xEE,
            self.chip_id,
            self.min_rev,
            self.min_rev_full,
            self.max_rev_full,
            self.hash_appended,
        )
        image = header + body
        image += bytes(15 - len(image) % 16) + bytes([checksum])
        return image + hashlib.sha256(image).digest() if self.hash_appended else image


def app_builder(
    chip_id: int = 0, size: int = 3000, about: bytes | None = None, seed: int = 0
) -> Builder:
    """An app of about `size` bytes: descriptor and data, RAM, code."""
    drom, irom, ram = ADDRESSES[chip_id]
    return Builder(
        segments=[
            (drom, (descriptor() if about is None else about) + noise(size // 4 * 4, seed)),
            (ram, noise(512, seed + 1)),
            (irom, noise(1024, seed + 2)),
        ],
        entry=irom + 0x40,
        chip_id=chip_id,
        mapped=(drom, irom),
    )


def app(chip_id: int = 0, size: int = 3000, about: bytes | None = None, seed: int = 0) -> bytes:
    """The bytes of `app_builder`."""
    return app_builder(chip_id, size, about, seed).build()


# `iram_loader_seg` of ESP-IDF's bootloader.memory.ld.
LOADERS = {0: 0x40078000, 5: 0x403CE710, 13: 0x4086E610}


def bootloader(chip_id: int = 0, new: bool = True) -> bytes:
    """A second-stage bootloader: RAM segments only; new ones have their own descriptor."""
    ram = ADDRESSES[chip_id][2]
    loader = LOADERS.get(chip_id, ram + 0x8000)
    head = b"\x50" + bytes(79) if new else noise(80, 7)
    return Builder([(ram, head + noise(4000, 8)), (loader, noise(2000, 9))], ram, chip_id).build()


def merged(
    boot: bytes, table: bytes, apps: dict[int, bytes], at: int = 0x1000, table_at: int = 0x8000
) -> bytes:
    """A Merged Binary: FF between bootloader, partition table and apps."""
    parts = {at: boot, table_at: table, **apps}
    flash = bytearray(b"\xff" * max(start + len(data) for start, data in parts.items()))
    for start, data in parts.items():
        flash[start : start + len(data)] = data
    return bytes(flash)
