# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the image in a partition boots, as the bootloader decides it.

Three answers, because what an update may write hangs on it: an image that is whole and that
nothing speaks against boots; one that is damaged does not; and of one that is whole but that a
bootloader may refuse for another reason (which depends on how the bootloader was built) it cannot
be told.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

from ota_service.errors import OtaError
from ota_service.formats.chips import SIGNED_BY
from ota_service.formats.flashops import SECTOR_BYTES
from ota_service.formats.image import (
    AppImage,
    BootImage,
    Segment,
    image_layout,
    load_doubt,
    parse_boot_header,
    parse_boot_image,
    parse_header,
)
from ota_service.formats.partitions import Partition
from ota_service.formats.recognise import IMAGE_MAGIC
from ota_service.formats.signature import SignatureBlock
from ota_service.link.chip import BootKeys, ChipInfo
from ota_service.link.flash import Flash

HEAD_BYTES = 0x120
"""Image header, first segment header and app descriptor."""

_OTHER_BLOCKS = "holds an image for some revisions of the chip's fuse blocks only"

ESP32_CHIP_ID = 0
"""The one chip whose bootloaders look neither at block revisions nor for an app descriptor."""

Boots = Literal["yes", "no", "unclear"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a bootloader makes of a partition.

    size_bytes: of the image, 0 where there is none. why: why not, or why it is not clear, as the
    end of "ota_0 ..."; "" for one that boots.
    """

    boots: Boots
    why: str = ""
    size_bytes: int = 0


def candidate(flash: Flash, partition: Partition, chip: ChipInfo, secure_floor: int) -> Candidate:
    """Read a partition's image whole, and judge it.

    secure_floor: the secure version that the bootloader asks for by the board's fuses, 0 where
    it asks for none. Raises OtaError `link-lost`.
    """
    size_bytes = image_bytes(flash, partition)
    head = flash.read(partition.offset, HEAD_BYTES)
    if size_bytes is None:
        if head[:2] == bytes((IMAGE_MAGIC, 0)):  # a bootloader misses nothing in it
            return Candidate("unclear", "holds an image without segments")
        return Candidate("no", _instead(head))
    if chip.secure_boot:  # with the sector of its signature
        size_bytes = min(-(-size_bytes // SECTOR_BYTES + 1) * SECTOR_BYTES, partition.size_bytes)
    try:
        image = parse_boot_image(flash.read(partition.offset, size_bytes))
    except OtaError as error:
        if error.code == "link-lost":
            raise
        return Candidate("no", "holds a damaged image")
    doubt = header_doubt(head, chip, secure_floor) or loading_doubt(flash, partition, chip)
    refused = signature_refusal(image, chip)
    if not doubt and refused is not None:
        doubt = f"holds an image that the board refuses ({refused.code})"
    return Candidate("unclear" if doubt else "yes", doubt, image.size_bytes)


def _instead(head: bytes) -> str:
    """What a partition holds that has no image."""
    about = parse_header(bytes((IMAGE_MAGIC,)) + head[1:])
    if about is None or head[0] != 0xFF:
        return "holds no image"
    return (
        f'holds "{about.version}" staged for its activation; staging has overwritten the firmware '
        "that was there"
    )


def header_doubt(head: bytes, chip: ChipInfo, secure_floor: int) -> str:
    """What may keep a bootloader from starting a whole image, by its first bytes; "": nothing."""
    header = parse_boot_header(head)
    if header.chip_id != chip.chip_id:
        return "holds an image for another chip"
    if not header.runs_on_revision(chip.revision):
        return "holds an image for other revisions of the chip"
    secure_version = header.descriptor.secure_version if header.descriptor is not None else 0
    if secure_version < secure_floor:
        return f"has secure version {secure_version}, and the board's fuses ask for {secure_floor}"
    return ""


def loading_doubt(flash: Flash, partition: Partition, chip: ChipInfo) -> str:
    """What may keep a bootloader from loading the whole image in a partition; "": nothing.

    Without an app descriptor those of other chips than the ESP32 take other bytes for its block
    revisions, or refuse the image (`esp_image_format.c`, process_segment_data,
    verify_segment_header).
    """
    head = flash.read(partition.offset, HEAD_BYTES)
    if chip.chip_id != ESP32_CHIP_ID and parse_boot_header(head).descriptor is None:
        return "holds an image without an app descriptor"
    layout = _layout(flash, partition)
    return load_doubt(layout[1], chip.chip_id) if layout is not None else ""


def only_the_board_knows(head: bytes, chip: ChipInfo) -> str:
    """What a bootloader holds an image against beyond what is read here; "": nothing.

    Without its log, or having been seen to run, such an image is not taken for one that runs.
    Source: esp32.md, "Secure Boot v2" (keys, block revisions).
    """
    if chip.secure_boot and chip.boot_keys is None:
        return "holds a signed image, and only the board knows whether it trusts its key"
    about = parse_boot_header(head).descriptor
    if about is not None and chip.chip_id != ESP32_CHIP_ID:
        unknown = chip.block_revision is None and about.min_block_revision
        with contextlib.suppress(OtaError):
            chip.require_blocks(about)
            return _OTHER_BLOCKS if unknown else ""
        return _OTHER_BLOCKS
    return ""


def signature_refusal(image: AppImage | BootImage, chip: ChipInfo) -> OtaError | None:
    """Why a board with secure boot would not start a whole image; None where nothing is known
    against it.

    As the chips' ROM has it, which the bootloader asks (ESP-IDF,
    `secure_boot_signatures_bootloader.c`): one valid block by a trusted key is enough.
    """
    if not chip.secure_boot:
        return None
    if not image.signed:
        return OtaError("secure-boot")
    keys = chip.boot_keys
    if keys is None:
        return None  # version 1, or a chip whose fuses are not known: only the board can tell
    schemes, n_blocks = SIGNED_BY[chip.chip_id]
    blocks = [
        block
        for block in image.signatures[:n_blocks]
        if block is not None and block.scheme in (*schemes, "")
    ]
    if blocks:
        return _refused_by(keys, blocks)
    return OtaError(
        "secure-boot",
        f"The board accepts images with a Secure Boot v2 signature ({' or '.join(schemes)}) "
        "only, and this image has none that counts there.",
    )


def _refused_by(keys: BootKeys, blocks: list[SignatureBlock]) -> OtaError | None:
    valid = [block for block in blocks if not block.problem]
    given_up = [b for b in blocks if b.problem and keys.aggressive and b.is_by(keys.trusted)]
    if given_up:
        return OtaError(
            "signature-invalid",
            f"A signature of the image {given_up[0].problem}, and the board could give up the "
            "key that it names for good.",
        )
    if not valid:
        return OtaError("signature-invalid", f"The image's signature {blocks[0].problem}.")
    if any(block.is_by(keys.trusted) for block in valid):
        return None
    revoked = any(block.is_by(keys.revoked) for block in valid)
    why = "was revoked on the board" if revoked else "the board's fuses do not trust"
    names = ", ".join(block.key_digest.hex()[:16] for block in valid)
    return OtaError(
        "signature-untrusted", f"The image is signed by the key {names}.., which {why}."
    )


def image_bytes(flash: Flash, partition: Partition) -> int | None:
    """The length of the image in a partition, from its segment headers; None where none is."""
    layout = _layout(flash, partition)
    return layout[0] if layout is not None else None


def _layout(flash: Flash, partition: Partition) -> tuple[int, tuple[Segment, ...]] | None:
    def read(at: int, size_bytes: int) -> bytes:
        return flash.read(partition.offset + at, size_bytes)

    return image_layout(read, partition.size_bytes)
