# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file is that is not an App Image: for messages that name it."""

from __future__ import annotations

import re
import struct

from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.partitions import (
    MAGIC as PARTITION_MAGIC,
)
from ota_service.formats.partitions import (
    TABLE_OFFSET,
)
from ota_service.formats.table_places import TABLE_PLACES, table_at

IMAGE_MAGIC = 0xE9
DESCRIPTOR_OFFSET = 32
DESCRIPTOR_MAGIC = b"\x32\x54\xcd\xab"  # 0xABCD5432
BOOTLOADER_DESCRIPTOR_MAGIC = 0x50  # at the same place
MAX_SEGMENTS = 16

_STARTS: tuple[tuple[bytes, str], ...] = (
    (rb"\x7fELF", "an ELF file: `esp32-ota image ota FILE` makes an App Image of it"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"PK\x05\x06", "an empty zip archive"),
    (rb"\x1f\x8b", "a gzip archive: unpack it first"),
    (rb"BZh", "a bzip2 archive: unpack it first"),
    (rb"\xfd7zXZ\0", "an xz archive: unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (re.escape(PARTITION_MAGIC), "a partition table"),
    (rb"UF2\n", "a UF2 file"),
    (rb"\x1e\xf1\xee\x1b", "a Matter OTA file, which has a header of its own"),
    (rb"\x1e\xf1\xee\x0b", "a Zigbee OTA file, which has a header of its own"),
    (rb"\xea\x04", "an image for the ESP8266"),
    (rb"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
    (rb"(?s).{257}ustar", "a tar archive"),
    (
        rb"(?i)\s*(<!doctype|<html|<head|<body|<\?xml|<!--)",
        "a web page: perhaps the server's login or error page",
    ),
    (rb":[0-9A-Fa-f]{10,}\s*[\r\n]", "an Intel HEX file"),
    (rb"S0[0-9A-Fa-f]{8,}\s*[\r\n]", "a Motorola S-record file"),
)
"""How files of other kinds begin, as regular expressions."""


def name_of(data: bytes) -> str | None:
    """What `data` is, as the end of "The file is ..."; None where it begins like an image.

    Never fails and looks at the first bytes only, except for files of one repeated byte.
    """
    if not data:
        return "empty"
    for byte, name in ((b"\xff", "erased flash (all FF)"), (b"\0", "all zeros")):
        if data[:1] == byte and not data.strip(byte):
            return name
    head = data[:512]
    if _is_arduino_ota(data):
        return "an Arduino .ota file, which is compressed: use the .bin that it was made of"
    for start, name in _STARTS:
        if re.match(start, head):
            return name
    return _kind_of_text(head) if head[0] != IMAGE_MAGIC else None


def _kind_of_text(head: bytes) -> str | None:
    if not all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 or byte >= 128 for byte in head):
        return None
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not merely a character cut in two
            return None
    if head.lstrip()[:1] not in (b"{", b"["):
        return "a text file"
    named = b'"images"' in head
    return "a manifest, which only a service's url may name" if named else "JSON"


def _is_arduino_ota(data: bytes) -> bool:
    """By the header of ArduinoIoTCloud's `bin2ota.py`: the length of what follows the checksum,
    CRC-32, and the board: "3PSE", or the USB ids of one of Arduino's own."""
    length = int.from_bytes(data[:4], "little")
    return length == len(data) - 8 and (data[8:12] == b"3PSE" or data[10:12] == b"\x41\x23")


def has_descriptor(data: bytes, start: int = 0) -> bool:
    """Whether an app descriptor stands where an App Image at `start` has it."""
    place = start + DESCRIPTOR_OFFSET
    return data[place : place + 4] == DESCRIPTOR_MAGIC


def is_esp8266(data: bytes) -> bool:
    """Whether an image with magic 0xE9 has the ESP8266's header of 8 bytes.

    Its first segment's load address then stands where the ESP32 has its WP pin and drive
    settings (0x000000EE in every image that esptool builds).
    """
    if len(data) < 16 or data[0] != IMAGE_MAGIC:
        return False
    address = int.from_bytes(data[8:12], "little")
    return 0x3FFE8000 <= address < 0x40000000 or 0x40100000 <= address < 0x40300000


def is_image_header(data: bytes, start: int) -> bool:
    """Whether the bytes at `start` can be an image's header."""
    return (
        len(data) >= start + 24
        and data[start] == IMAGE_MAGIC
        and 1 <= data[start + 1] <= MAX_SEGMENTS
    )


def _has_table(data: bytes, offset: int, begins_at: int = 0) -> bool:
    """Whether a whole partition table with MD5 is at a flash address; data: from `begins_at`."""
    table = table_at(lambda at, size: data[at - begins_at : at - begins_at + size], offset)
    return table is not None and table.has_md5


def _own_place(data: bytes, start: int) -> int | None:
    """Where the chip has its bootloader for which the one at `start` is; None where none is."""
    if not is_image_header(data, start) or has_descriptor(data, start):
        return None
    chip = CHIP_BY_ID.get(struct.unpack_from("<H", data, start + 12)[0])
    return chip.bootloader_offset if chip is not None else None


def find_partition_table(data: bytes) -> tuple[int, int] | None:
    """(bootloader offset, partition table offset) of a Merged Binary; None for another file.

    `data` is the flash from its first byte. The bootloader is at 0x1000, 0x0 or 0x2000, as its
    chip has it. At the default place 0x8000 the table's first magic is enough, so that a damaged
    one is still recognised; at other places (0x9000 to 0x20000) the table must be whole, with
    its MD5.
    """
    starts = (start for start in (0x1000, 0x2000, 0x0) if _own_place(data, start) == start)
    bootloader = next(starts, None)
    if bootloader is None or (bootloader and has_descriptor(data) and data[0] == IMAGE_MAGIC):
        return None
    if data[TABLE_OFFSET : TABLE_OFFSET + 2] == PARTITION_MAGIC:
        return bootloader, TABLE_OFFSET
    places = (offset for offset in TABLE_PLACES[1:] if _has_table(data, offset))
    table = next(places, None)
    return None if table is None else (bootloader, table)


def cut_merged_start(data: bytes) -> int | None:
    """The flash address of the first byte of a Merged Binary that begins at its bootloader.

    (esptool's `merge-bin --target-offset 0x1000` makes them.) None for every other file.
    """
    start = _own_place(data, 0)
    if start and any(_has_table(data, offset, start) for offset in TABLE_PLACES):
        return start
    return None
