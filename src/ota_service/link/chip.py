# SPDX-License-Identifier: GPL-3.0-or-later
"""What a chip says of itself: kind, revision, MAC, flash and security fuses."""

from __future__ import annotations

from dataclasses import dataclass

from ota_service.errors import OtaError
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.image import AppDescriptor, require_revision

BAD_FLASH_IDS = (0x000000, 0xFFFFFF, 0xFFFF3F)
"""What no flash chip answers (esptool 5.6.0, `_verify_flash_connection`)."""

SHORT_REACH_BYTES = 1 << 24
"""What flash addresses of 3 bytes can express."""


@dataclass(frozen=True, slots=True)
class BootKeys:
    """Which keys Secure Boot v2 trusts, by a chip's fuses.

    trusted, revoked: SHA-256 of public keys, or as many first bytes as the chip keeps.
    aggressive: a key is revoked by the chip itself when a verification with it fails.
    """

    trusted: tuple[bytes, ...]
    revoked: tuple[bytes, ...] = ()
    aggressive: bool = False


@dataclass(frozen=True, slots=True)
class ChipInfo:
    """One attached chip.

    name: as esptool spells it ("ESP32", "ESP32-S3"). chip_id: the id that images for it carry.
    mac: "aa:bb:cc:dd:ee:ff". revision: full revision, major * 100 + minor. flash_bytes: None
    where the flash chip's size is not known. secure_version: what the fuses hold for
    anti-rollback; it counts only where the bootloader minds it (`Inspection.secure_floor`).
    boot_keys: with Secure Boot v2 on; None also where the fuses of such a chip are not known.
    flash_id: what the flash chip answers, the maker in its lowest byte. block_revision: of the
    fuse blocks, as `revision`; None where it is not known. any_block_major: whether a fuse
    switches the check of its upper limit off.
    """

    name: str
    chip_id: int
    mac: str
    revision: int
    flash_bytes: int | None
    flash_encrypted: bool = False
    secure_boot: bool = False
    secure_download: bool = False
    secure_version: int = 0
    boot_keys: BootKeys | None = None
    flash_id: int | None = None
    block_revision: int | None = None
    any_block_major: bool = False

    @property
    def flash_problem(self) -> OtaError | None:
        """Why nothing can be done with its flash, where its size is not known."""
        if self.flash_bytes is not None:
            return None
        if self.flash_id is None:
            return OtaError("flash-size", "The size of the board's flash chip is not known.")
        shown = self.flash_id.to_bytes(3, "little").hex(" ")
        if self.flash_id not in BAD_FLASH_IDS:
            words = f"The size of the board's flash chip is not known: its id is {shown}."
            return OtaError("flash-size", words)
        return OtaError(
            "flash-size",
            f"The board's flash chip does not answer: its id reads {shown}.",
            remedy="Check the flash chip, its supply and its solder joints, and that nothing is "
            "wired to a pin that sets its voltage (GPIO12 on the ESP32, MTDI).",
        )

    def require_blocks(self, app: AppDescriptor) -> None:
        """Raise OtaError "chip-revision" for an app that its bootloader would refuse for the
        revision of the fuse blocks (`bootloader_common_check_efuse_blk_validity`)."""
        if self.block_revision is None:
            return
        require_revision(
            self.block_revision,
            app.min_block_revision,
            0 if self.any_block_major else app.max_block_revision,
            " of the chip's eFuse blocks",
            "Build the image for it (CONFIG_ESP_EFUSE_BLOCK_REV_MIN_FULL, _MAX_FULL).",
        )

    def require_reach(self, end: int) -> None:
        """Raise OtaError `flash-size` where the stub loader does not reach the flash up to `end`:
        it would read and write the place modulo 16 MiB."""
        known = CHIP_BY_ID.get(self.chip_id)
        if end > SHORT_REACH_BYTES and not (known is not None and known.wide_flash):
            raise OtaError(
                "flash-size",
                f"The board's partitions reach to {end:#x}, and on an {self.name} only the first "
                "16 MiB of flash can be read and written over the port.",
                remedy="Use a partition table whose app slots, otadata and NVS lie below 16 MiB.",
            )
