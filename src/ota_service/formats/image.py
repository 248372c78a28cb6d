# SPDX-License-Identifier: GPL-3.0-or-later
"""An App Image checked as the bootloader checks it, before anything is written.

Format: ESP-IDF, "App Image Format" (system API reference), `esp_app_format.h`,
`esp_app_desc.h`; what is refused is what `esp_image_format.c` refuses. Signatures: `signature`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ota_service.errors import OtaError
from ota_service.formats.chips import CHIP_BY_ID, Chip, chip_name, is_free
from ota_service.formats.recognise import (
    BOOTLOADER_DESCRIPTOR_MAGIC,
    DESCRIPTOR_OFFSET,
    IMAGE_MAGIC,
    MAX_SEGMENTS,
    cut_merged_start,
    find_partition_table,
    has_descriptor,
    is_esp8266,
    name_of,
)
from ota_service.formats.signature import SECTOR_BYTES, SignatureBlock, signature_blocks
from ota_service.formats.text import field_text

HEADER_BYTES = 24
SEGMENT_HEADER_BYTES = 8
DESCRIPTOR_BYTES = 256
HASH_BYTES = 32
MAX_SEGMENT_BYTES = 0x1000000
"""SIXTEEN_MB in esp_image_format.c: the bootloader refuses longer segments."""
_CHECKSUM_SEED = 0xEF
MIN_BOOTLOADER_BYTES = 4096
"""ESP-IDF's have 14 KB and more."""
_SIGNATURE_V1_BYTES = 68
_RESERVED_BELOW = 0x10000000
"""Load addresses below are padding blocks, neither loaded nor mapped (`should_load`)."""


@dataclass(frozen=True, slots=True)
class AppDescriptor:
    """What an app says of itself (`esp_app_desc_t`). Texts are safe to print.

    min_block_revision, max_block_revision: of the chip's fuse blocks, 100 * major + minor.
    """

    secure_version: int
    version: str
    project: str
    time: str
    date: str
    idf_version: str
    elf_sha256: bytes
    min_block_revision: int
    max_block_revision: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment. file_offset: where its data begins, from the image's first byte."""

    load_address: int
    file_offset: int
    size_bytes: int


def within(revision: int, least: int, highest: int) -> bool:
    """Whether a revision is allowed; all as 100 * major + minor. highest 0 and 0xFFFF: no limit."""
    return least <= revision and (highest in (0, 0xFFFF) or revision <= highest)


def require_revision(
    revision: int, least: int, highest: int, what: str = "", remedy: str = ""
) -> None:
    """Raise OtaError "chip-revision" where it is not allowed. what: behind "revision v1.0"."""
    if not within(revision, least, highest):
        wanted = revision_text(least)
        wanted += " or later" if revision < least else f" to {revision_text(highest)}"
        raise OtaError(
            "chip-revision",
            f"The image runs on revision {wanted}{what}; the chip's is {revision_text(revision)}.",
            remedy=remedy,
        )


def revision_text(revision: int) -> str:
    """ "v3.1" for 301."""
    return f"v{revision // 100}.{revision % 100}"


class _Revisions:
    """100 * major + minor each. max_revision 0 and 0xFFFF: no limit."""

    __slots__ = ()
    min_revision: int
    max_revision: int

    def runs_on_revision(self, revision: int) -> bool:
        """Whether the bootloader of a chip of this revision (100 * major + minor) starts it
        (`bootloader_common_check_chip_revision_validity`)."""
        return within(revision, self.min_revision, self.max_revision)


@dataclass(frozen=True, slots=True)
class AppImage(_Revisions):
    """A whole App Image that has passed every check.

    chip: the name as esptool spells it, or "chip id N".
    min_revision, max_revision: as 100 * major + minor. max_revision 0 and 0xFFFF: no limit.
    size_bytes: the image with its padding, checksum and hash.
    signed: a secure boot signature follows the image. signatures: its blocks by their places, of
    version 2; () for version 1. total_bytes: what has to be written, the signature included.
    sha256: the digest of those total_bytes bytes.
    """

    chip_id: int
    chip: str
    entry: int
    min_revision: int
    max_revision: int
    segments: tuple[Segment, ...]
    hash_appended: bool
    size_bytes: int
    signed: bool
    signatures: tuple[SignatureBlock | None, ...]
    total_bytes: int
    descriptor: AppDescriptor
    sha256: bytes


@dataclass(frozen=True, slots=True)
class BootHeader(_Revisions):
    """What the first bytes of an image say of where it runs; fields as an `AppImage`'s.

    descriptor: None for apps by ESP-IDF before 3.3: a bootloader needs none.
    """

    chip_id: int
    min_revision: int
    max_revision: int
    descriptor: AppDescriptor | None


@dataclass(frozen=True, slots=True)
class BootImage:
    """A slot's image that a bootloader finds whole, whoever built it; sizes as an `AppImage`'s."""

    size_bytes: int
    signed: bool
    signatures: tuple[SignatureBlock | None, ...]


def parse_header(data: bytes) -> AppDescriptor | None:
    """The app descriptor from the first 288 bytes of a slot; None where there is none.

    For display only: a header alone proves nothing about the image behind it.
    """
    if (
        len(data) < DESCRIPTOR_OFFSET + DESCRIPTOR_BYTES
        or data[0] != IMAGE_MAGIC
        or not 1 <= data[1] <= MAX_SEGMENTS
        or not has_descriptor(data)
    ):
        return None
    return _descriptor(data)


def _descriptor(data: bytes) -> AppDescriptor:
    secure_version, *texts, digest, least, highest = struct.unpack_from(
        "<4xI8x32s32s16s16s32s32sHH", data, DESCRIPTOR_OFFSET
    )
    version, project, time, date, idf = map(field_text, texts)
    return AppDescriptor(secure_version, version, project, time, date, idf, digest, least, highest)


def parse_app_image(data: bytes, *, trailing: bool = False) -> AppImage:
    """The App Image at the start of `data`, checked completely.

    trailing: False for a file, where only a signature and padding (FF, 00) may follow the image;
    True for the contents of a slot, where anything may follow.
    Raises `OtaError`: "not-an-image", "merged-binary", "bootloader-image", "no-app-descriptor",
    "image-corrupt"; the message says what the bytes are instead, or where they are damaged.
    """
    what = "file" if not trailing else "slot's content"
    name = name_of(data)
    if name is not None:
        raise OtaError("not-an-image", f"The {what} is {name}, not an ESP32 App Image.")
    if find_partition_table(data) is not None:
        raise OtaError("merged-binary")
    if data[0] != IMAGE_MAGIC:
        raise OtaError(
            "not-an-image",
            f"The {what} is not an ESP32 App Image: its first byte is 0x{data[0]:02X}, not 0xE9.",
        )
    if is_esp8266(data):
        raise OtaError("not-an-image", f"The {what} is an image for the ESP8266.")
    if cut_merged_start(data) is not None:
        raise OtaError(
            "merged-binary",
            "The file is a Merged Binary that begins at its bootloader, not an App Image.",
        )
    chip_id = _chip_id(data)
    segments, size_bytes = whole_image(data)
    _check_kind(data, segments, chip_id)
    _check_mapping(data, segments, chip_id)
    entry = struct.unpack_from("<I", data, 4)[0]
    if not any(
        seg.load_address >= _RESERVED_BELOW
        and seg.load_address <= entry < seg.load_address + seg.size_bytes
        for seg in segments
    ):
        raise _corrupt(f"its entry point {entry:#010x} lies in none of its segments")
    signed, signatures, total_bytes = _signature(data, size_bytes, trailing)
    if not trailing and data[total_bytes:].strip(b"\xff\0"):
        raise _corrupt(
            f"{len(data) - total_bytes} bytes that belong to no image follow its end at "
            f"{total_bytes:#x}"
        )
    min_revision, max_revision = _revisions(data, chip_id)
    return AppImage(
        chip_id=chip_id,
        chip=chip_name(chip_id),
        entry=entry,
        min_revision=min_revision,
        max_revision=max_revision,
        segments=segments,
        hash_appended=data[23] != 0,
        size_bytes=size_bytes,
        signed=signed,
        signatures=signatures,
        total_bytes=total_bytes,
        descriptor=_descriptor(data),
        sha256=hashlib.sha256(memoryview(data)[:total_bytes]).digest(),
    )


def parse_boot_image(data: bytes) -> BootImage:
    """The image at the start of a slot's contents, checked as the bootloader checks it and no
    further (`esp_image_verify`): its segments, where mapped ones stand, checksum and SHA-256.

    Raises `OtaError`: "not-an-image", "image-corrupt".
    """
    if data[:1] != bytes((IMAGE_MAGIC,)):
        raise OtaError("not-an-image", "The slot holds no image.")
    chip_id = _chip_id(data)
    segments, size_bytes = whole_image(data)
    _check_mapping(data, segments, chip_id)
    signed, signatures, _ = _signature(data, size_bytes, trailing=True)
    return BootImage(size_bytes, signed, signatures)


def parse_boot_header(data: bytes) -> BootHeader:
    """From the first 288 bytes of an image; of fewer, what they hold.

    Raises `OtaError` "image-corrupt" for less than an image's header.
    """
    chip_id = _chip_id(data)
    least, highest = _revisions(data, chip_id)
    return BootHeader(chip_id, least, highest, parse_header(data))


def image_layout(
    read: Callable[[int, int], bytes], limit_bytes: int
) -> tuple[int, tuple[Segment, ...]] | None:
    """The image's length in bytes, with its checksum and appended digest, and its segments; None
    where none is.

    A few small reads instead of the whole slot: a length proves nothing about the content.
    read: (offset from the image's start, size) -> bytes. limit_bytes: the slot's size.
    """
    if limit_bytes < HEADER_BYTES:
        return None
    header = read(0, HEADER_BYTES)
    if header[0] != IMAGE_MAGIC or not 1 <= header[1] <= MAX_SEGMENTS:
        return None
    end, segments = HEADER_BYTES, []
    for _ in range(header[1]):
        if end + SEGMENT_HEADER_BYTES > limit_bytes:
            return None
        address, size_bytes = struct.unpack("<II", read(end, SEGMENT_HEADER_BYTES))
        end += SEGMENT_HEADER_BYTES
        segments.append(Segment(address, end, size_bytes))
        end += size_bytes
        if end >= limit_bytes:
            return None
    end += 16 - end % 16 + (HASH_BYTES if header[23] else 0)  # as in `whole_image`
    return (end, tuple(segments)) if end <= limit_bytes else None


def load_doubt(segments: tuple[Segment, ...], chip_id: int) -> str:
    """What may keep a bootloader from loading a whole image, as the end of "ota_0 ..."; "":
    nothing. `esp_image_format.c`: verify_load_addresses, and in the newest verify_segment_header.
    """
    chip = CHIP_BY_ID.get(chip_id)
    for index, seg in enumerate(segments):
        loaded = seg.size_bytes and seg.load_address >= _RESERVED_BELOW
        if chip is None or not loaded or chip.maps(seg.load_address):
            continue
        if not is_free(chip_id, seg.load_address, seg.size_bytes):
            return (
                f"holds an image whose segment {index} goes to {seg.load_address:#010x}, where the "
                "bootloader itself may be, or nothing is"
            )
    if segments[0].size_bytes < DESCRIPTOR_BYTES:
        return "holds an image whose first segment has no room for an app descriptor"
    return ""


def _corrupt(why: str) -> OtaError:
    return OtaError("image-corrupt", f"The App Image is damaged: {why}.")


def _chip_id(data: bytes) -> int:
    if len(data) < HEADER_BYTES:
        raise _corrupt(f"it ends after {len(data)} bytes, within its header")
    return int.from_bytes(data[12:14], "little")


def _revisions(data: bytes, chip_id: int) -> tuple[int, int]:
    """Least and highest chip revision, 100 * major + minor.

    Images from before ESP-IDF v5.0 have the old field only. It holds the major revision, on the
    ESP32-C3 the minor one (`esp_app_format.h`, min_chip_rev).
    """
    old, least, highest = struct.unpack_from("<BHH", data, 14)
    if least == 0 and old:
        least = old if chip_id == 5 else old * 100
    return least, highest


def _walk(data: bytes) -> tuple[tuple[Segment, ...], int]:
    """The segments, and the offset behind the last one's data."""
    count = data[1]
    if not 1 <= count <= MAX_SEGMENTS:
        raise _corrupt(f"its header says {count} segments, where 1 to {MAX_SEGMENTS} are possible")
    segments = []
    place = HEADER_BYTES
    for index in range(count):
        if place + SEGMENT_HEADER_BYTES > len(data):
            raise _corrupt(f"it ends at {len(data)} bytes, before segment {index} of {count}")
        address, size = struct.unpack_from("<II", data, place)
        place += SEGMENT_HEADER_BYTES
        if size % 4 or size >= MAX_SEGMENT_BYTES:
            raise _corrupt(f"segment {index} has an impossible length of {size} bytes")
        if place + size > len(data):
            raise _corrupt(
                f"it ends at {len(data)} bytes, within segment {index} of {count}, which goes on "
                f"to {place + size}"
            )
        segments.append(Segment(address, place, size))
        place += size
    return tuple(segments), place


def whole_image(data: bytes) -> tuple[tuple[Segment, ...], int]:
    """The segments of the image at the start of `data`, and its length.

    data: at least an image's header. Raises `OtaError` "image-corrupt" where a segment is
    impossible, and where checksum or hash are missing or wrong.
    """
    segments, end = _walk(data)
    length = end + 16 - end % 16
    hash_appended = data[23] != 0  # as the bootloader reads it
    size_bytes = length + (HASH_BYTES if hash_appended else 0)
    if size_bytes > len(data):
        raise _corrupt(f"it ends at {len(data)} bytes, {size_bytes - len(data)} before its end")
    checksum = _CHECKSUM_SEED
    view = memoryview(data)
    for seg in segments:
        checksum ^= xor(view[seg.file_offset : seg.file_offset + seg.size_bytes])
    if checksum != data[length - 1]:
        raise _corrupt(
            f"its checksum is 0x{data[length - 1]:02X}, its contents give 0x{checksum:02X}"
        )
    if hash_appended and hashlib.sha256(view[:length]).digest() != data[length:size_bytes]:
        raise _corrupt("its SHA-256 does not match its contents")
    return segments, size_bytes


def xor(data: bytes | memoryview) -> int:
    """XOR of all bytes; folds halves of one large number, which is fast for megabytes."""
    size = len(data)
    folded = int.from_bytes(data, "little")
    while size > 1:
        half = (size + 1) // 2
        folded = (folded >> (8 * half)) ^ (folded & ((1 << (8 * half)) - 1))
        size = half
    return folded


def _check_kind(data: bytes, segments: tuple[Segment, ...], chip_id: int) -> None:
    """Raise unless a whole image is an app's: its descriptor heads its first segment."""
    if has_descriptor(data) and segments[0].size_bytes >= DESCRIPTOR_BYTES:
        return
    chip = CHIP_BY_ID.get(chip_id)
    if is_bootloader(data, segments, chip):
        raise OtaError("bootloader-image")
    if chip is not None and not _maps(segments, chip):
        raise OtaError(
            "not-an-image",
            "The image is a program that runs from memory alone, not an App Image.",
        )
    raise OtaError("no-app-descriptor")


def _maps(segments: tuple[Segment, ...], chip: Chip) -> bool:
    return any(seg.size_bytes and chip.maps(seg.load_address) for seg in segments)


def is_bootloader(data: bytes, segments: tuple[Segment, ...], chip: Chip | None) -> bool:
    """Whether a whole image without app descriptor is a second-stage bootloader.

    It runs from memory alone, as other programs do: what tells it from them is its size, and a
    descriptor of its own, or the place of its code. chip: of the header, None where unknown.
    """
    if sum(seg.size_bytes for seg in segments) < MIN_BOOTLOADER_BYTES:
        return False
    if data[DESCRIPTOR_OFFSET] == BOOTLOADER_DESCRIPTOR_MAGIC:
        return True
    if chip is None or _maps(segments, chip):
        return False
    return chip.loader is None or any(
        seg.size_bytes and chip.loader[0] <= seg.load_address < chip.loader[1] for seg in segments
    )


def _check_mapping(data: bytes, segments: tuple[Segment, ...], chip_id: int) -> None:
    """Raise where a mapped segment does not stand at its address modulo the mapping's page.

    The page is 64 KiB, except on chips that can be built with smaller ones: newer apps say
    which in their descriptor (`esp_app_desc_t.mmu_page_size`, a power of two); for older ones
    the smallest is taken.
    """
    chip = CHIP_BY_ID.get(chip_id)
    if chip is None:
        return
    page = min(chip.mmu_page_bytes)
    said = data[DESCRIPTOR_OFFSET + 180 : DESCRIPTOR_OFFSET + 181] if has_descriptor(data) else b""
    if said and 1 << min(said[0], 31) in chip.mmu_page_bytes:
        page = 1 << said[0]
    for index, seg in enumerate(segments):
        if chip.maps(seg.load_address) and (seg.load_address - seg.file_offset) % page:
            raise _corrupt(
                f"segment {index} stands at {seg.file_offset:#x}, which cannot be mapped to its "
                f"address {seg.load_address:#010x}"
            )


def _signature(
    data: bytes, size_bytes: int, trailing: bool
) -> tuple[bool, tuple[SignatureBlock | None, ...], int]:
    """(whether a signature follows, version 2's blocks, the length with it), for an image of
    `size_bytes` bytes.

    Version 1 (the first ESP32): 68 bytes, a zero word and the signature, right behind the image.
    It has no magic, so it is only seen in files.
    """
    blocks = signature_blocks(data, size_bytes)
    start = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    if any(block is not None and not block.problem for block in blocks):
        return True, blocks, min(start + SECTOR_BYTES, len(data))
    if blocks and not trailing:
        number, block = next((n, block) for n, block in enumerate(blocks, 1) if block is not None)
        raise OtaError(
            "signature-invalid", f"The image's signature block {number} {block.problem}."
        )
    if not trailing and len(data) == size_bytes + _SIGNATURE_V1_BYTES:
        behind = data[size_bytes:]
        if behind[:4] == b"\0\0\0\0" and behind.strip(b"\xff\0"):
            return True, (), len(data)
    return False, (), size_bytes
