# SPDX-License-Identifier: GPL-3.0-or-later
"""Image verification as the second-stage bootloader and the ROM do it.

Source: ESP-IDF's bootloader_support/src/esp_image_format.c, and esp32.md, "App Image". The second
stage is v5.1.4's, as of most boards in use, with the check of the eFuse blocks' revision that v5.1
got later. Not modelled is what only newer ones refuse: images without an app descriptor on chips
whose MMU pages can be of several sizes (v5.4: C6, H2), and a first segment that is too short for
one (v6).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from esp32_sim.chips import ESP32, Chip
from esp32_sim.flash import NorFlash
from esp32_sim.images import HEADER, IMAGE_MAGIC, SEGMENT_HEADER
from esp32_sim.loader_common import checksum
from esp32_sim.signature import SIGNATURE_SECTOR, is_signed

SEGMENT_LIMIT_BYTES = 16 << 20
RESERVED_BELOW = 0x10000000
"""Segments below are not loaded (should_load): padding."""
BLOCK_REVISIONS = struct.Struct("<HH")
BLOCK_REVISIONS_AT = 176
PAGE = 0x10000


class BadImageError(Exception):
    """The image does not hold; the text is what the bootloader prints."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a segment stands in flash and where it belongs in memory.

    mapped: whether the cache maps it from flash.
    """

    flash_offset: int
    load_address: int
    size: int
    mapped: bool


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A verified image: where, how long with checksum and digest, its segments."""

    offset: int
    size: int
    entry: int
    segments: tuple[Segment, ...]


def verify_app(
    flash: NorFlash,
    offset: int,
    limit_bytes: int,
    *,
    chip: Chip = ESP32,
    revision: int = 301,
    block_revision: int = 0,
    boot_keys: tuple[bytes, ...] | None = None,
) -> LoadedImage:
    """Verify the app image at `offset`; raises BadImageError with the bootloader's words.

    revision, block_revision: the chip's and that of its eFuse blocks, major * 100 + minor.
    boot_keys: digests of the keys that Secure Boot v2 trusts; None where it is off.
    """
    header = flash.read(offset, HEADER.size)
    magic, count, _, _, entry, _, _, chip_id, _, min_rev, max_rev, _, hashed = HEADER.unpack(header)
    if magic != IMAGE_MAGIC:
        hint = " (nothing flashed here?)" if magic == 0xFF else ""
        raise BadImageError(f"image at {offset:#x} has invalid magic byte{hint}")
    if chip_id != chip.id:
        raise BadImageError(f"mismatch chip ID, expected {chip.id}, found {chip_id}")
    if revision < min_rev:
        raise BadImageError(
            f"Image requires chip rev >= v{min_rev // 100}.{min_rev % 100}, "
            f"but chip is v{revision // 100}.{revision % 100}"
        )
    # 0xFFFF and 0 stand for "no maximum" in images of older tools.
    if max_rev not in (0, 0xFFFF) and revision > max_rev:
        raise BadImageError(
            f"Image requires chip rev <= v{max_rev // 100}.{max_rev % 100}, "
            f"but chip is v{revision // 100}.{revision % 100}"
        )
    if count > 16:  # none at all is as good as any
        raise BadImageError(f"image at {offset:#x} segment count {count} exceeds max 16")
    segments: list[Segment] = []
    data = bytearray()
    at = offset + HEADER.size
    for index in range(count):
        load_address, size = SEGMENT_HEADER.unpack(flash.read(at, SEGMENT_HEADER.size))
        at += SEGMENT_HEADER.size
        if size % 4 or size >= SEGMENT_LIMIT_BYTES:
            raise BadImageError(f"invalid segment length {size:#x}")
        mapped = any(low <= load_address < high for low, high in chip.memory.mapped)
        segment = Segment(at, load_address, size, mapped)
        if segment.mapped and at % PAGE != load_address % PAGE:
            raise BadImageError(
                f"Segment {index} load address {load_address:#010x}, doesn't match data {at:#010x}"
            )
        if at + size - offset > limit_bytes:
            raise BadImageError(
                f"Image length {at + size - offset} doesn't fit in partition length {limit_bytes}"
            )
        if not mapped and load_address >= RESERVED_BELOW and size:
            reason = chip.memory.keeps_out(load_address, load_address + size)
            if reason:
                raise BadImageError(
                    f"Segment {index} {load_address:#010x}-{load_address + size:#010x} invalid: "
                    f"{reason}"
                )
        if index == 0 and chip.checks_blocks and size:
            found = flash.read(at + BLOCK_REVISIONS_AT, BLOCK_REVISIONS.size)
            low, high = BLOCK_REVISIONS.unpack(found)
            _check_blocks(low, high, block_revision)
        data += flash.read(at, size)
        segments.append(segment)
        at += size
    length = at - offset
    length += 16 - length % 16
    size = length + (32 if hashed else 0)
    if size > limit_bytes:
        raise BadImageError(f"Image length {size} doesn't fit in partition length {limit_bytes}")
    stored = flash.read(offset + length - 1, 1)[0]
    calculated = checksum(bytes(data))
    if stored != calculated:
        raise BadImageError(f"Checksum failed. Calculated {calculated:#x} read {stored:#x}")
    if hashed:
        digest = hashlib.sha256(flash.read(offset, length)).digest()
        if digest != flash.read(offset + length, 32):
            raise BadImageError("Image hash failed - image is corrupt")
    if boot_keys is not None:
        padded = -(-size // SIGNATURE_SECTOR) * SIGNATURE_SECTOR
        whole = flash.read(offset, min(padded + SIGNATURE_SECTOR, limit_bytes))
        if not is_signed(whole[:padded], whole[padded:], boot_keys, chip.signature_blocks):
            raise BadImageError("Secure boot signature verification failed")
    return LoadedImage(offset, size, entry, tuple(segments))


def _check_blocks(low: int, high: int, revision: int) -> None:
    """Refuse an app that wants other eFuse blocks (bootloader_common_check_efuse_blk_validity):
    it takes what stands there for an app descriptor's, be there one or not."""
    chip_has = f"but chip is v{revision // 100}.{revision % 100}"
    if revision < low:
        raise BadImageError(
            f"Image requires efuse blk rev >= v{low // 100}.{low % 100}, {chip_has}"
        )
    if high not in (0, 0xFFFF) and revision > high:
        raise BadImageError(
            f"Image requires efuse blk rev <= v{high // 100}.{high % 100}, {chip_has}"
        )


def bootloader_flash_bytes(flash: NorFlash, offset: int) -> int:
    """The flash's size as the bootloader's own header says it: the high nibble of byte 3."""
    code = flash.read(offset, HEADER.size)[3] >> 4
    return 1 << 20 + code if code <= 7 else 2 << 20


def bootloader_problem(flash: NorFlash, chip: Chip) -> str | None:
    """Why the ROM would not start the second stage; None where it would.

    The ROM looks at the magic byte and the simple checksum, not at the digest.
    """
    offset = chip.bootloader_offset
    header = flash.read(offset, HEADER.size)
    if header[0] != IMAGE_MAGIC or not 1 <= header[1] <= 16:
        return f"invalid header: {int.from_bytes(header[:4], 'little'):#010x}"
    data = bytearray()
    at = offset + HEADER.size
    for _ in range(header[1]):
        _, size = SEGMENT_HEADER.unpack(flash.read(at, SEGMENT_HEADER.size))
        at += SEGMENT_HEADER.size
        if size > 0x10000:
            return f"invalid header: {int.from_bytes(header[:4], 'little'):#010x}"
        data += flash.read(at, size)
        at += size
    length = at - offset
    length += 16 - length % 16
    stored = flash.read(offset + length - 1, 1)[0]
    calculated = checksum(bytes(data))
    if stored != calculated:
        return f"csum err:{stored:#x}!={calculated:#x}\n{chip.rom.checksum_failed}"
    return None
