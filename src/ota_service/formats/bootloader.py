# SPDX-License-Identifier: GPL-3.0-or-later
"""A second-stage bootloader's image, checked whole, and the flash size that it is built for.

Format: as an App Image's, without an app descriptor; `esp_bootloader_desc.h` for newer ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ota_service.errors import OtaError
from ota_service.formats.chips import CHIP_BY_ID, chip_name
from ota_service.formats.image import HASH_BYTES, Segment, is_bootloader, whole_image
from ota_service.formats.recognise import (
    BOOTLOADER_DESCRIPTOR_MAGIC,
    DESCRIPTOR_OFFSET,
    IMAGE_MAGIC,
    has_descriptor,
    is_esp8266,
    is_image_header,
    name_of,
)
from ota_service.formats.text import field_text

_SIZE_AT = 3
FLASH_MODES = {0: "qio", 1: "qout", 2: "dio", 3: "dout"}
FLASH_BYTES = {code: 1 << (20 + code) for code in range(8)}
"""Size code of the image header (upper half of byte 3) -> bytes; esp_image_flash_size_t."""
FLASH_BYTES_ELSE = 2 << 20
"""What a bootloader takes for another code (`update_flash_config` of each chip)."""
_REMEDY = "Name the bootloader that the project built: build/bootloader/bootloader.bin."


@dataclass(frozen=True, slots=True)
class Bootloader:
    """A bootloader that has passed every check.

    size_bytes: the image with its checksum and hash. flash_bytes: the flash that its header is
    made for, None for an unknown code: partitions beyond it are not found at boot.
    idf_version: "" for builds that do not say it.
    """

    chip_id: int
    chip: str
    segments: tuple[Segment, ...]
    hash_appended: bool
    size_bytes: int
    flash_bytes: int | None
    flash_mode: str
    idf_version: str
    built: str

    @property
    def offset(self) -> int | None:
        """The flash address that the chip's ROM loads it from; None for an unknown chip."""
        chip = CHIP_BY_ID.get(self.chip_id)
        return chip.bootloader_offset if chip is not None else None


def header_flash_bytes(head: bytes) -> int | None:
    """The flash that the bootloader whose image begins with `head` finds; None for no image.

    head: 4 bytes or more, as they are at the chip's bootloader offset. Where the partition table
    ends behind that size, no app of it starts.
    """
    if len(head) <= _SIZE_AT or head[0] != IMAGE_MAGIC:
        return None
    return FLASH_BYTES.get(head[_SIZE_AT] >> 4, FLASH_BYTES_ELSE)


def parse_bootloader(data: bytes, *, trailing: bool = False) -> Bootloader:
    """The bootloader at the start of `data`, checked completely.

    trailing: False for a file, where only padding (FF, 00) may follow the image.
    Raises OtaError "not-an-image", "image-corrupt".
    """
    name = name_of(data)
    if name is not None:
        raise _refused(f"The bootloader is {name}.")
    if data[0] != IMAGE_MAGIC or not is_image_header(data, 0):
        begin = f"it begins with 0x{data[0]:02X}, not 0xE9"
        raise _refused(f"The bootloader is no image: {begin}.")
    if is_esp8266(data):
        raise _refused("The bootloader is for the ESP8266.")
    if has_descriptor(data):
        raise _refused(
            "What was given as the bootloader is an App Image: it has an app descriptor."
        )
    try:
        segments, size_bytes = whole_image(data)
    except OtaError as error:
        raise OtaError(
            "image-corrupt",
            error.message.replace("The App Image is", "The bootloader is"),
            remedy="Build the bootloader again.",
        ) from None
    chip_id = int.from_bytes(data[12:14], "little")
    if not trailing and not is_bootloader(data, segments, CHIP_BY_ID.get(chip_id)):
        raise _refused("What was given as the bootloader is another program that runs from memory.")
    rest = data[size_bytes:]
    if not trailing and rest.strip(b"\xff\0") and rest[:1] not in (b"\xe7", b"\xff"):
        more = f"{len(rest)} bytes of something else follow"
        raise _refused(f"The bootloader ends at {size_bytes:#x}, and {more}.", "image-corrupt")
    described = data[DESCRIPTOR_OFFSET] == BOOTLOADER_DESCRIPTOR_MAGIC
    return Bootloader(
        chip_id=chip_id,
        chip=chip_name(chip_id),
        segments=segments,
        hash_appended=data[23] != 0,
        size_bytes=size_bytes,
        flash_bytes=FLASH_BYTES.get(data[_SIZE_AT] >> 4),
        flash_mode=FLASH_MODES.get(data[2], f"{data[2]:#04x}"),
        idf_version=field_text(data[40:72]) if described else "",
        built=field_text(data[72:96]) if described else "",
    )


def _refused(message: str, code: str = "not-an-image") -> OtaError:
    return OtaError(code, message, remedy=_REMEDY)


def with_flash_bytes(data: bytes, flash_bytes: int) -> bytes:
    """The bootloader in `data` with another flash size in its header, its hash made anew.

    As esptool does when it writes one. Raises ValueError for a size that has no code; a signed
    bootloader would lose its signature's validity, so that one is refused with OtaError.
    """
    code = next((code for code, size in FLASH_BYTES.items() if size == flash_bytes), None)
    if code is None:
        raise ValueError(f"a flash of {flash_bytes} bytes")
    found = parse_bootloader(data)
    changed = bytearray(data)
    changed[_SIZE_AT] = code << 4 | data[_SIZE_AT] & 0x0F
    if changed == data:
        return data
    if data[found.size_bytes :].strip(b"\xff\0"):
        raise OtaError(
            "flash-size",
            "The bootloader is signed, so its flash size cannot be changed afterwards.",
            remedy="Build the bootloader for this flash size (CONFIG_ESPTOOLPY_FLASHSIZE).",
        )
    if found.hash_appended:
        end = found.size_bytes - HASH_BYTES
        changed[end : found.size_bytes] = hashlib.sha256(changed[:end]).digest()
    return bytes(changed)
