# SPDX-License-Identifier: GPL-3.0-or-later
"""The corpus of bad input: files, boards and configurations, each with the error it must get.

Everything is made by this script, the same at each run; nothing binary is kept. Files are built
by the simulator's image builder, which shares no code with the checks.

    python -m tests.corpus.make            the list
    python -m tests.corpus.make FOLDER     the files, too
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import random
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from esp32_sim.factory import build_nvs, default_nvs, make_flash
from esp32_sim.images import assemble, build_app, build_bootloader
from esp32_sim.layouts import GUIDE, Layout, Partition, encode_table

APP = "micro-rdk-server"
SLOT_BYTES = 0x100000
"""Of the board that images are planned for: the OTA guide's layout."""
CHIP_REVISION = 301
HEADER, SEGMENT_HEADER = 24, 8


@dataclass(frozen=True)
class File:
    """One file at the url. code: the error it must get, None where it must be accepted.

    says: words of the message. sha256: what is configured. board: the error may come from the
    check against a board with the OTA guide's layout, instead of from the file alone.
    """

    name: str
    data: bytes = field(repr=False)
    code: str | None
    says: str = ""
    sha256: str | None = None
    board: bool = False


@dataclass(frozen=True)
class Board:
    """One board: its flash (made when it is needed: each has 8 MiB), and what its fuses say.

    code: the plan's refusal, None: a plan.
    """

    name: str
    flash: Callable[[], bytes] = field(repr=False)
    code: str | None
    says: str = ""
    chip: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """One configuration that must be refused, and words of the message."""

    name: str
    attributes: dict[str, Any]
    says: str


# --- images


@cache
def good() -> bytes:
    """A whole App Image that fits the board."""
    return build_app(APP, "9.9.9", size_bytes=150_000)


def segments(image: bytes) -> list[tuple[int, int, int]]:
    """(offset of its header, load address, length) for each segment."""
    found, at = [], HEADER
    for _ in range(image[1]):
        address, size = struct.unpack_from("<II", image, at)
        found.append((at, address, size))
        at += SEGMENT_HEADER + size
    return found


def signed_off(image: bytes | bytearray) -> bytes:
    """The image with checksum and SHA-256 made right again for its header and segments."""
    data = bytearray(image)
    value = 0xEF
    for at, _, size in segments(bytes(data)):
        for byte in data[at + SEGMENT_HEADER : at + SEGMENT_HEADER + size]:
            value ^= byte
    end = len(data) - (32 if data[23] else 0)
    data[end - 1] = value
    if data[23]:
        data[end:] = hashlib.sha256(data[:end]).digest()
    return bytes(data)


def put(image: bytes, at: int, *values: int, whole: bool = True) -> bytes:
    """The image with bytes replaced; whole: with its sums made right again."""
    data = bytearray(image)
    data[at : at + len(values)] = bytes(values)
    return signed_off(data) if whole else bytes(data)


def put32(image: bytes, at: int, value: int, *, whole: bool = False) -> bytes:
    """As `put`, for a 32-bit word."""
    return put(image, at, *struct.pack("<I", value), whole=whole)


def files() -> Iterator[File]:
    """Every file."""
    yield from _whole()
    yield from _truncated()
    yield from _headers()
    yield from _segments()
    yield from _sums()
    yield from _descriptors()
    yield from _other_firmware()
    yield from _other_files()
    yield from _sizes()


def _whole() -> Iterator[File]:
    image = good()
    digest = hashlib.sha256(image).hexdigest()
    yield File("good", image, None)
    yield File("good, without a hash", build_app(APP, "1", hash_appended=False), None)
    yield File("good, small", build_app(APP, "1", size_bytes=2048), None)
    yield File("good, padded with FF", image + b"\xff" * 4097, None)
    yield File("good, padded with 00", image + bytes(100), None)
    yield File("good, digest configured", image, None, sha256=digest)
    yield File("good, digest in capitals", image, None, sha256=digest.upper())
    yield File("another digest configured", image, "digest-mismatch", digest, sha256="0" * 64)
    yield File("one byte behind it", image + b"\x01", "image-corrupt", "1 bytes")
    yield File("text behind it", image + b"<!-- cached -->", "image-corrupt", "follow its end")
    yield File("twice", image + image, "image-corrupt")
    yield File("without its first byte", image[1:], "not-an-image")
    yield File("a byte before it", b"\n" + image, "not-an-image")
    yield File("a BOM before it", b"\xef\xbb\xbf" + image, "not-an-image")
    text = image.replace(b"\n", b"\r\n")
    yield File("sent as text", text, "image-corrupt")


def _truncated() -> Iterator[File]:
    image = good()
    places = {1, 2, 8, 12, 23, 24, 28, 31, 32, 36, 287, 288, 289}
    for at, _, size in segments(image):
        data = at + SEGMENT_HEADER
        places |= {at, at + 1, at + 4, at + 7, data, data + 1, data + size - 1, data + size}
    end = len(image) - 32
    places |= {end - 1, end, end + 1, len(image) - 16, len(image) - 1, len(image) - 4096}
    for place in sorted(places):
        yield File(f"cut after {place} bytes", image[:place], "image-corrupt", "damaged")


def _headers() -> Iterator[File]:
    image = good()
    for magic in (0x00, 0xE8, 0x7F, 0xFF):
        yield File(f"magic {magic:#x}", put(image, 0, magic), "not-an-image", "first byte")
    count = image[1]
    for number in (0, 17, 128, 255):
        data = put(image, 1, number, whole=False)
        yield File(f"{number} segments", data, "image-corrupt", f"{number} segments")
    for number in (count - 1, count + 1, 16):
        data = put(image, 1, number, whole=False)
        yield File(f"{number} segments instead of {count}", data, "image-corrupt")
    for mode, size in ((0xFF, 0xFF), (0, 0)):
        yield File(f"SPI mode {mode:#x}, size {size:#x}", put(image, 2, mode, size), None)
    for entry in (0, 0xFFFFFFFF, 0x3F000000, 0x40080000 - 4):
        data = put32(image, 4, entry, whole=True)
        yield File(f"entry at {entry:#x}", data, "image-corrupt", "entry point")
    # The ESP32's own id is 0 (esp_app_format.h, esp_chip_id_t).
    for chip in (2, 18):
        # The ESP32's memory for code is mapped flash there, where the segment cannot stand.
        yield File(f"chip id {chip}", put(image, 12, chip, 0), "image-corrupt", "mapped")
    for chip in (5, 9, 12, 13, 16, 20, 23, 0xFFFF):
        data = put(image, 12, chip & 0xFF, chip >> 8)
        yield File(f"chip id {chip}", data, "wrong-chip", board=True)
    for major in (4, 255):
        # min_chip_rev counts where min_chip_rev_full says nothing.
        data = put(image, 14, major, 0, 0)
        yield File(f"needs revision {major} (old field)", data, "chip-revision", board=True)
    for least in (CHIP_REVISION + 1, 0xFFFF):
        data = build_app(APP, "1", min_revision=least)
        yield File(f"needs revision {least}", data, "chip-revision", board=True)
    for most in (1, 100, CHIP_REVISION - 1):
        data = build_app(APP, "1", max_revision=most)
        yield File(f"up to revision {most}", data, "chip-revision", board=True)
    for least, most in ((0, 0), (0, 0xFFFF), (CHIP_REVISION, CHIP_REVISION)):
        data = build_app(APP, "1", min_revision=least, max_revision=most)
        yield File(f"revisions {least} to {most}", data, None, board=True)
    yield File("hash there, flag off", put(image, 23, 0, whole=False), "image-corrupt")
    yield File("hash flag 2", put(image, 23, 2), None)
    bare = build_app(APP, "1", hash_appended=False)
    yield File("hash flag on, no hash", put(bare, 23, 1, whole=False), "image-corrupt")


def _segments() -> Iterator[File]:
    image = good()
    limits = (0xFFFFFFFF, 0xFFFFFFFC, 0xFFFFFFF8, 0x80000000, 0x7FFFFFFC, 0x01000000, 0x00FFFFFC)
    for index, (at, address, size) in enumerate(segments(image)):
        for length in limits if index in (0, 2) else limits[:2]:
            data = put32(image, at + 4, length)
            yield File(f"segment {index} of {length:#x} bytes", data, "image-corrupt", "segment")
        for change in (-4, 4, 1, -size):
            data = put32(image, at + 4, size + change)
            yield File(f"segment {index} with {change:+} bytes", data, "image-corrupt")
        if 0x3F400000 <= address < 0x3F800000 or 0x400D0000 <= address < 0x40400000:
            for shift in (4, 0x100, 0x8000):
                data = put32(image, at, address + shift, whole=True)
                name = f"mapped segment {index} moved by {shift:#x}"
                yield File(name, data, "image-corrupt", "mapped")


def _sums() -> Iterator[File]:
    image = good()
    end = len(image) - 32
    for bit in (0, 7):
        wrong = bytearray(image)
        wrong[end - 1] ^= 1 << bit
        wrong[end:] = hashlib.sha256(wrong[:end]).digest()
        yield File(f"checksum, bit {bit}", bytes(wrong), "image-corrupt", "checksum")
    for at in (end, end + 15, len(image) - 1):
        data = put(image, at, image[at] ^ 1, whole=False)
        yield File(f"SHA-256, byte {at - end}", data, "image-corrupt", "SHA-256")
    zeros = image[:end] + bytes(32)
    yield File("SHA-256 of zeros", zeros, "image-corrupt", "SHA-256")
    for index, (at, _, size) in enumerate(segments(image)):
        for place in (at + SEGMENT_HEADER, at + SEGMENT_HEADER + size - 1):
            if place in range(32, 36):
                continue  # the descriptor's magic, see below
            data = put(image, place, image[place] ^ 0x10, whole=False)
            yield File(f"a bit of segment {index} at {place:#x}", data, "image-corrupt")
    # Two changes that the XOR checksum does not see: the SHA-256 does.
    at = segments(image)[1][0] + SEGMENT_HEADER
    data = put(image, at, image[at] ^ 1, image[at + 1] ^ 1, whole=False)
    yield File("two bits that cancel out", data, "image-corrupt", "SHA-256")


def _descriptors() -> Iterator[File]:
    image = good()
    at = HEADER + SEGMENT_HEADER
    for word in (0, 0xABCD5433, 0xFFFFFFFF):
        data = put32(image, at, word, whole=True)
        yield File(f"descriptor magic {word:#x}", data, "no-app-descriptor")
    yield File("version without an end", put(image, at + 16, *b"v" * 32), None)
    yield File("project that is no text", put(image, at + 48, *b"\xff\xfe\x00\x1b[2J" * 4), None)
    first, second, *_ = segments(image)
    body = image[first[0] + SEGMENT_HEADER :][: first[2]]
    code = image[second[0] + SEGMENT_HEADER :][: second[2]]
    swapped = assemble([(second[1], code), (0x3F400020, body)], second[1] + 4)
    yield File("descriptor in its second segment", swapped, "no-app-descriptor")
    short = assemble([(0x3F400020, body[:128]), (0x40080000, code)], 0x40080004)
    yield File("first segment shorter than a descriptor", short, "no-app-descriptor")


def merged(offset: int, chip: int, *, table: bytes | None = None) -> bytes:
    """A Merged Binary whose bootloader stands at `offset`, for a chip's id."""
    loader = put(build_bootloader(), 12, chip & 0xFF, chip >> 8)
    data = bytearray(b"\xff" * 0x10000)
    data[offset : offset + len(loader)] = loader
    table = encode_table(GUIDE.partitions) if table is None else table
    data[0x8000 : 0x8000 + len(table)] = table
    return bytes(data) + good()


def _other_firmware() -> Iterator[File]:
    for offset, chip in ((0x1000, 0), (0x1000, 2), (0, 5), (0, 9), (0, 13), (0x2000, 18)):
        data = merged(offset, chip)
        yield File(f"Merged Binary, bootloader at {offset:#x}, chip {chip}", data, "merged-binary")
    yield File("Merged Binary from its bootloader on", merged(0x1000, 0)[0x1000:], "merged-binary")
    damaged = bytearray(encode_table(GUIDE.partitions))
    damaged[40] ^= 1
    data = merged(0x1000, 0, table=bytes(damaged))
    yield File("Merged Binary with a damaged table", data, "merged-binary")
    yield File("whole flash", bytes(make_flash("guide", 4 << 20)), "merged-binary")
    yield File("bootloader", build_bootloader(), "bootloader-image")
    old = assemble([(0x3FFF0018, bytes(64)), (0x40078000, bytes(4096))], 0x40078004)
    yield File("bootloader of an older ESP-IDF", old, "bootloader-image")
    padded = b"\xff" * 0x1000 + build_bootloader()
    yield File("bootloader at its place", padded, "not-an-image")
    yield File("partition table", encode_table(GUIDE.partitions), "not-an-image", "partition table")
    yield File("NVS partition", build_nvs(0x6000, default_nvs()), "not-an-image")
    header = struct.pack("<BBBBI", 0xE9, 1, 0, 0x40, 0x40100004)
    body = header + struct.pack("<II", 0x40100000, 1024) + bytes(1024)
    yield File("ESP8266 image", body.ljust(2048, b"\x00"), "not-an-image", "ESP8266")
    header = struct.pack("<BBBBI", 0xEA, 4, 0, 0, 0x40100004)
    yield File("ESP8266 image, version 2", header + bytes(2048), "not-an-image", "ESP8266")
    yield File("UF2", b"UF2\n" + b"WQ]\x9e" + bytes(504), "not-an-image", "UF2")
    elf = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 2, 94) + bytes(4096)
    yield File("ELF", elf, "not-an-image", "esp32-ota image ota")
    yield File("Intel HEX", b":020000040800F2\r\n:00000001FF\r\n", "not-an-image", "HEX")
    yield File("S-record", b"S00600004844521B\r\nS9030000FC\r\n", "not-an-image", "S-record")


def _archive(name: str) -> bytes:
    out = io.BytesIO()
    image = good()
    if name == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(zipfile.ZipInfo("app.bin"), image)
    else:
        with tarfile.open(fileobj=out, mode="w") as tar:
            entry = tarfile.TarInfo("app.bin")
            entry.size = len(image)
            tar.addfile(entry, io.BytesIO(image))
    return out.getvalue()


def _other_files() -> Iterator[File]:
    image = good()
    noise = random.Random(1)
    yield File("empty", b"", "not-an-image", "empty")
    yield File("one byte", b"\x00", "not-an-image")
    yield File("16 MiB of zeros", bytes(16 << 20), "not-an-image", "zeros")
    yield File("1 MiB of FF", b"\xff" * (1 << 20), "not-an-image", "FF")
    yield File("noise", b"\x01" + noise.randbytes(65_535), "not-an-image")
    yield File("noise behind the magic", b"\xe9" + noise.randbytes(65_535), "image-corrupt")
    yield File("magic, then zeros", b"\xe9" + bytes(65_535), "image-corrupt")
    yield File("magic alone, again and again", b"\xe9" * 65_536, "image-corrupt")
    yield File("zip", _archive("zip"), "not-an-image", "zip")
    yield File("tar", _archive("tar"), "not-an-image", "tar")
    yield File("gzip", gzip.compress(image, mtime=0), "not-an-image", "gzip")
    yield File("bzip2", bz2.compress(image), "not-an-image", "bzip2")
    yield File("xz", lzma.compress(image), "not-an-image", "xz")
    yield File("HTML", b"<!DOCTYPE html><html>Please log in</html>", "not-an-image", "web page")
    yield File("HTML, after blanks", b"\r\n  <html><body>404", "not-an-image", "web page")
    yield File("XML", b'<?xml version="1.0"?><Error><Code>AccessDenied', "not-an-image")
    yield File("JSON", b'{"message": "Not Found"}', "not-an-image", "JSON")
    yield File("text", b"Not found\n", "not-an-image", "text")
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield File("Git LFS pointer", lfs, "not-an-image", "LFS")
    yield File("PNG", b"\x89PNG\r\n\x1a\n" + bytes(64), "not-an-image")
    yield File("PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not-an-image")
    yield File("base64 of an image", b"6QYCMB==" * 100, "not-an-image", "text")


def _sizes() -> Iterator[File]:
    exact = build_app(APP, "1", size_bytes=SLOT_BYTES)
    larger = build_app(APP, "1", size_bytes=SLOT_BYTES + 16)
    yield File("exactly the slot", exact, None, board=True)
    yield File("the slot, and a byte of padding", exact + b"\xff", None, board=True)
    yield File("a block larger than the slot", larger, "image-too-large", board=True)
    # Signed by secure boot version 1: 68 bytes right behind the image, so one byte too many.
    image = build_app(APP, "1", size_bytes=SLOT_BYTES - 64)
    one_more = image + bytes(4) + random.Random(2).randbytes(64)
    name = f"{len(one_more) - SLOT_BYTES} bytes larger than the slot, signature included"
    yield File(name, one_more, "image-too-large", board=True)
    yield File("4 MiB", build_app(APP, "1", size_bytes=4 << 20), "image-too-large", board=True)


# --- boards


def table_board(
    name: str,
    partitions: tuple[Partition, ...],
    code: str | None,
    says: str = "",
    *,
    table: bytes | None = None,
    change: Callable[[bytearray], None] | None = None,
    chip: dict[str, Any] | None = None,
) -> Board:
    """The guide's board with another table: made of `partitions`, or given as bytes."""

    def flash() -> bytes:
        data = make_flash(Layout("corpus", 8 << 20, partitions), seed=3)
        if table is not None:
            data[0x8000:0x9000] = table.ljust(0x1000, b"\xff")
        if change is not None:
            change(data)
        return bytes(data)

    return Board(name, flash, code, says, dict(chip or {}))


def replaced(label: str, /, **changes: Any) -> tuple[Partition, ...]:
    """The guide's partitions with one of them changed; size=None takes it away."""
    out = []
    for part in GUIDE.partitions:
        if part.label == label:
            if changes.get("size", 0) is None:
                continue
            values = {key: getattr(part, key) for key in Partition.__slots__}
            part = Partition(**{**values, **changes})
        out.append(part)
    return tuple(out)


def entries(count: int) -> tuple[Partition, ...]:
    """The guide's partitions and further small ones, `count` in all."""
    more = count - len(GUIDE.partitions)
    return GUIDE.partitions + tuple(
        Partition(f"d{index}", 0x40, index, 0x310000 + index * 0x1000, 0x1000)
        for index in range(more)
    )


def without_md5(partitions: tuple[Partition, ...]) -> bytes:
    """The table as ESP-IDF built it before version 3.0."""
    table = encode_table(partitions)
    at = len(partitions) * 32
    return table[:at] + b"\xff" * 32 + table[at + 32 :]


def encode(partitions: tuple[Partition, ...]) -> bytes:
    """As `encode_table`, also for tables that no flash could be made for."""
    return encode_table(partitions)


def boards() -> Iterator[Board]:
    """Every board."""
    guide = GUIDE.partitions
    table = encode_table(guide)
    bad = "partition-table-invalid"
    yield table_board("the guide's", guide, None)
    yield table_board("no MD5", guide, None, table=without_md5(guide))
    yield table_board("blank table", guide, bad, "blank", table=b"")
    yield table_board("table of zeros", guide, bad, table=bytes(0xC00))
    yield table_board("table of noise", guide, bad, table=random.Random(4).randbytes(0xC00))
    md5_at = len(guide) * 32 + 16
    for byte in (0, 15):
        wrong = bytearray(table)
        wrong[md5_at + byte] ^= 1
        yield table_board(f"wrong MD5, byte {byte}", guide, bad, "MD5", table=bytes(wrong))
    for index in (0, 3, len(guide) - 1):
        for byte in (0, 4, 8, 12):
            wrong = bytearray(table)
            wrong[index * 32 + byte] ^= 0x10
            name = f"bit of entry {index}, byte {byte}"
            yield table_board(name, guide, bad, table=bytes(wrong))
    no_end = b"".join(
        encode_table((Partition(f"p{index}", 0x40, 0, 0x400000 + index * 0x1000, 0x1000),))[:32]
        for index in range(96)
    )
    yield table_board("no end", guide, bad, "no end", table=no_end)
    yield table_board("95 entries", entries(95), None, table=without_md5(entries(95)))
    yield table_board("94 entries and MD5", entries(94), None)
    for offset, size in ((0x700000, 0x100000 + 0x1000), (0x800000, 0x1000), (0xFF0000, 0x100000)):
        more = (*guide, Partition("beyond", 0x40, 0, offset, size))
        name = f"partition {offset:#x} + {size:#x} beyond the flash"
        yield table_board(name, guide, "flash-size", "beyond", table=encode(more))
    more = (*guide, Partition("wraps", 0x40, 0, 0xFFFFF000, 0x2000))
    yield table_board("partition beyond 4 GiB", guide, bad, table=encode(more))
    for label, changes, says in (
        ("otadata", {"offset": 0xC000}, "overlap"),
        ("ota_1", {"offset": 0x200000}, "overlap"),
        ("ota_0", {"size": 0x110000}, "overlap"),
        ("ota_1", {"offset": 0x110000}, "overlap"),
        ("phy_init", {"offset": 0x9000}, "overlap"),
        ("nvs", {"offset": 0x8000}, "overlaps the partition table"),
        ("nvs", {"offset": 0x7000}, "overlaps the partition table"),
        ("ota_1", {"size": 0}, "no size"),
        ("ota_1", {"offset": 0x218000}, "multiple"),
        ("ota_1", {"offset": 0x210100}, "multiple"),
        ("nvs", {"offset": 0x9010}, ""),
        ("ota_1", {"subtype": 0x12}, "without gaps"),
        ("ota_1", {"subtype": 0x10}, "without gaps"),
        ("otadata", {"size": 0x1000}, "otadata"),
    ):
        name = f"{label} with " + ", ".join(f"{k} {v:#x}" for k, v in changes.items())
        yield table_board(name, guide, bad, says, table=encode(replaced(label, **changes)))
    second = (*guide, Partition("more", 1, 0, 0x320000, 0x2000))
    yield table_board("two otadata partitions", guide, bad, "2", table=encode(second))
    second = (*guide, Partition("more", 0, 0, 0x320000, 0x100000))
    yield table_board("two factory partitions", guide, bad, "2", table=encode(second))
    none = "no-ota-slots"
    yield table_board("one OTA slot", guide, none, table=encode(replaced("ota_1", size=None)))
    slots = replaced("ota_1", size=None)
    slots = tuple(part for part in slots if part.label != "ota_0")
    yield table_board("no OTA slot", guide, none, table=encode(slots))
    yield table_board("no otadata", guide, none, table=encode(replaced("otadata", size=None)))
    sixteen = tuple(part for part in guide if part.type != 0) + tuple(
        Partition(f"ota_{index}", 0, 0x10 + index, 0x10000 + index * 0x70000, 0x70000)
        for index in range(16)
    )
    yield table_board("sixteen OTA slots", sixteen, None)
    missing = "nvs-missing"
    yield table_board("no NVS", guide, missing, table=encode(replaced("nvs", size=None)))
    # It holds VIAM_NS, so it is the firmware's own.
    yield table_board("NVS of another label", guide, None, table=encode(replaced("nvs", label="n")))
    read_only = encode(replaced("nvs", flags=2))
    yield table_board("read-only NVS", guide, missing, "read-only", table=read_only)
    crypt = "flash-encrypted"
    yield table_board("NVS flagged encrypted", guide, crypt, table=encode(replaced("nvs", flags=1)))
    # Without flash encryption the firmware reads a flagged slot as it stands.
    yield table_board(
        "slot flagged encrypted", guide, None, table=encode(replaced("ota_0", flags=1))
    )
    yield from _nvs_boards()
    yield from _fuses()


def _nvs_boards() -> Iterator[Board]:
    guide = GUIDE.partitions
    nvs = GUIDE.find("nvs")
    keys = (*guide, Partition("nvs_keys", 1, 4, 0x320000, 0x1000))

    def encrypted(flash: bytearray) -> None:
        """Headers and states are plain, entries are not (ESP-IDF, "NVS Encryption")."""
        rng = random.Random(5)
        for page in range(nvs.offset, nvs.end, 0x1000):
            for at in range(page + 64, page + 0x1000, 32):
                if flash[at : at + 32] != b"\xff" * 32:
                    flash[at : at + 32] = rng.randbytes(32)

    def with_keys(flash: bytearray) -> None:
        encrypted(flash)
        flash[0x320000:0x320050] = random.Random(6).randbytes(0x50)

    yield table_board("encrypted NVS, keys in flash", keys, "flash-encrypted", change=with_keys)
    yield table_board("encrypted NVS, keys elsewhere", guide, "flash-encrypted", change=encrypted)
    yield table_board("a blank partition for NVS keys", keys, None)

    def no_app(flash: bytearray) -> None:
        for part in guide:
            if part.type == 0:
                flash[part.offset : part.end] = b"\xff" * part.size

    yield table_board("no app at all", guide, "otadata-invalid", change=no_app)

    def torn_app(flash: bytearray) -> None:
        flash[0x10000 + 0x4000] ^= 0xFF

    yield table_board("its only app damaged", guide, "otadata-invalid", change=torn_app)

    def full(flash: bytearray) -> None:
        # Three pages of 126 entries to the last one; the fourth has to stay free.
        values: dict[str, Any] = {"a": 1, "b": 2}
        values |= {f"key{index}": "v" * 60 for index in range(125)}
        flash[nvs.offset : nvs.end] = build_nvs(nvs.size, values, other={})

    yield table_board("NVS without room", guide, "nvs-full", change=full)


def _fuses() -> Iterator[Board]:
    guide = GUIDE.partitions
    for name, chip, code in (
        ("flash encryption", {"flash_encrypted": True}, "flash-encrypted"),
        ("secure download mode", {"secure_download": True}, "secure-download"),
        ("secure boot, unsigned image", {"secure_boot": True}, "secure-boot"),
        ("unknown flash size", {"flash_bytes": None}, "flash-size"),
        ("flash smaller than its table", {"flash_bytes": 2 << 20}, "flash-size"),
        ("ESP32-S3", {"name": "ESP32-S3", "chip_id": 9}, "wrong-chip"),
        ("ESP32-C3", {"name": "ESP32-C3", "chip_id": 5}, "wrong-chip"),
    ):
        yield table_board(name, guide, code, chip=chip)
    secured = build_app(APP, "1.0.0", secure_version=5, size_bytes=100_000)
    yield Board(
        "running app of a higher secure version",
        lambda: bytes(make_flash("guide", app=secured)),
        "secure-version",
    )


# --- configurations

URL = "http://10.0.0.5:3001/app.bin"


def configs() -> Iterator[Config]:
    """Every configuration."""
    base: dict[str, Any] = {"url": URL, "version": "1.2.3"}

    def one(name: str, says: str, **changes: Any) -> Config:
        return Config(name, {**base, **changes}, says)

    yield Config("empty", {}, "url")
    yield Config("no version", {"url": URL}, "version")
    yield Config("no url", {"version": "1"}, "url")
    for url in (
        *("", "app.bin", "srv/app.bin", "ftp://10.0.0.5/app.bin", "file:///etc/passwd"),
        *("http://", "http:///app.bin", "http://[::1/app.bin", "http://10.0.0.5:port/app.bin"),
        *("http://10.0.0.5/a b", "http://10.0.0.5/\n", "javascript:alert(1)"),
        "http://10.0.0.5:99999/app.bin",
    ):
        yield one(f"url {url!r}", "url", url=url)
    for value in (7, True, ["1.2.3"], {"tag": "1"}):
        yield one(f"version {value!r}", "version", version=value)
    yield one("version empty", "version", version="")
    yield one("version of 129 bytes", "128", version="v" * 129)
    yield one("version of 43 characters, 129 bytes", "128", version="日" * 43)
    yield one("version with NUL", "NUL", version="1\0")
    yield one("version that is no Unicode", "Unicode", version="\ud800")
    for digest in ("0" * 63, "0" * 65, "g" * 64, 5):
        yield one(f"sha256 {str(digest)[:8]} ({len(str(digest))})", "sha256", sha256=digest)
    for name, low, high in (
        ("baud", 0, 1e9),
        ("max_parallel", 0, 65),
        ("max_attempts", 0, 101),
        ("max_image_bytes", 0, 1e12),
        ("boot_timeout_s", 0, 601),
        ("boot_stable_s", -1, 601),
        ("confirm_timeout_s", 0, 86_401),
    ):
        for number in (low, high, float("nan"), float("inf"), "8", True):
            yield one(f"{name} {number!r}", name, **{name: number})
    for name in ("baud", "max_parallel", "max_attempts", "max_image_bytes"):
        yield one(f"{name} 1.5", name, **{name: 1.5})
    for name in ("auto_update", "check_on_start", "adopt", "canary"):
        flags: tuple[object, ...] = ("true", 1, 0, [])
        for flag in flags:
            yield one(f"{name} {flag!r}", name, **{name: flag})
    for pattern in ("(", "[a", "a{99999}", "(?=x)", r"(a)\1", "x" * 501):
        yield one(f"boot_expect {pattern[:10]}", "boot_expect", boot_expect=pattern)
    for name in ("ca_file", "state_dir"):
        yield one(f"{name} relative", name, **{name: "certs/ca.pem"})
        yield one(f"{name} with NUL", name, **{name: "/a\0b"})
    yield one("unknown attribute", "did you mean version?", verison="1")
    for name, board, says in (
        ("no name", {"port": "/dev/ttyUSB0"}, "name"),
        ("neither mac nor port", {"name": "a"}, "needs a mac or a port"),
        ("mac and port", {"name": "a", "mac": "24:0a:c4:00:00:01", "port": "/dev/x"}, "only one"),
        ("short mac", {"name": "a", "mac": "24:0a:c4"}, "six pairs"),
        ("mac of words", {"name": "a", "mac": "kitchen"}, "six pairs"),
        ("relative port", {"name": "a", "port": "ttyUSB0"}, "whole path"),
        ("unknown kind of port", {"name": "a", "port": "tcp://10.0.0.5:23"}, "url of a port"),
        ("port of a newline", {"name": "a", "port": "/dev/tty\n"}, "printed"),
        ("pinned to no url", {"name": "a", "port": "/dev/x", "url": "app.bin"}, "boards[0].url"),
        ("pinned to a long version", {"name": "a", "port": "/dev/x", "version": "v" * 129}, "128"),
        ("unknown key", {"name": "a", "prot": "/dev/x"}, "did you mean port?"),
        ("a name of 65 bytes", {"name": "n" * 65, "port": "/dev/x"}, "64"),
    ):
        yield one(f"board with {name}", says, boards=[board])
    yield one("boards as an object", "boards", boards={"name": "a", "port": "/dev/x"})
    yield one("boards of text", "boards[0]", boards=["/dev/ttyUSB0"])
    twice = [{"name": "a", "port": "/dev/x"}, {"name": "a", "port": "/dev/y"}]
    yield one("one name for two boards", "already has it", boards=twice)
    twice = [{"name": "a", "port": "/dev/x"}, {"name": "b", "port": "/dev/x"}]
    yield one("one port for two boards", "already has it", boards=twice)
    macs = [{"name": n, "mac": m} for n, m in (("a", "240AC4000001"), ("b", "24-0a-c4-00-00-01"))]
    yield one("one MAC for two boards, written differently", "already has it", boards=macs)
    yield one("allow_restart without a key", "allow_restart.key", allow_restart={"sensor": "s"})
    yield one("allow_restart as text", "allow_restart", allow_restart="s")


def main(arguments: list[str]) -> int:
    """Print the list; with a folder, write the files there."""
    folder = Path(arguments[0]) if arguments else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for index, file in enumerate(files()):
        count += 1
        print(f"file    {file.code or 'accepted':24} {len(file.data):9} {file.name}")
        if folder is not None:
            (folder / f"{index:03}.bin").write_bytes(file.data)
    for board in boards():
        count += 1
        print(f"board   {board.code or 'accepted':24} {'':9} {board.name}")
    for config in configs():
        count += 1
        print(f"config  {'config-invalid':24} {'':9} {config.name}")
    print(f"{count} in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
