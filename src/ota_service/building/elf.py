# SPDX-License-Identifier: GPL-3.0-or-later
"""From a linked program (ELF) to its App Image, by esptool's own image code.

Identical input gives identical bytes: nothing of the time or the machine goes into an image.
"""

from __future__ import annotations

from typing import Any

from ota_service.errors import OtaError
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.link import esptool_setup

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.bin_image import ELFFile  # isort: skip
from esptool.targets import CHIP_DEFS  # isort: skip
from esptool.util import FatalError  # isort: skip

ELF_MAGIC = b"\x7fELF"
CHIPS = tuple(name for name in CHIP_DEFS if name != "esp8266")
"""Every chip of the family that esptool knows, as it spells them: "esp32", "esp32s3", ..."""
_FLASH_SIZES = ("1MB", "2MB", "4MB", "8MB", "16MB", "32MB")

_MACHINES = {0x5E: "Xtensa", 0xF3: "RISC-V"}
_XTENSA = ("esp32", "esp32s2", "esp32s3")
_REMEDY = "Name the ELF file of an ESP32 app: with ESP-IDF build/PROJECT.elf."


def app_image(
    elf: bytes,
    *,
    chip: str | None = None,
    flash_mode: str = "dio",
    flash_freq: str | None = None,
    flash_size: str = "4MB",
    min_revision: int = 0,
    max_revision: int = 0xFFFF,
) -> bytes:
    """The App Image of the program in `elf`; it is not checked yet.

    chip: as in `CHIPS`; None: told from the program's addresses. Revisions as 100 * major +
    minor. flash_mode, flash_freq, flash_size: of the image's header, as esptool spells them.
    Raises OtaError "not-an-image", and "wrong-chip" where the chip cannot be told.
    """
    esptool_setup.install()
    program = _read(elf)
    fitting = candidates(elf)
    chip = chip or _only(elf, fitting)
    if chip in CHIPS and chip not in fitting and (fitting or not _same_machine(elf, chip)):
        raise OtaError(
            "wrong-chip",
            f"The ELF file is not for the {chip}: {_told(elf, fitting)}.",
            remedy="Name the chip that it was built for, or give the build for that chip.",
        )
    if chip not in CHIPS:
        raise OtaError(
            "wrong-chip",
            f"There is no chip {chip!r}.",
            remedy=f"Use one of {', '.join(CHIPS)}.",
        )
    if flash_size not in _FLASH_SIZES:
        raise OtaError(
            "flash-size",
            f"There is no flash size {flash_size!r}.",
            remedy=f"Use one of {', '.join(_FLASH_SIZES)}.",
        )
    try:
        image = cmds.elf2image(
            elf,
            chip,
            flash_mode=flash_mode,
            flash_freq=flash_freq,
            flash_size=flash_size,
            # The old field: the major revision, on the ESP32-C3 the minor (esp_app_format.h).
            min_rev=min_revision % 100 if chip == "esp32c3" else min_revision // 100,
            min_rev_full=min_revision,
            max_rev_full=max_revision,
            elf_sha256_offset=_sha256_offset(program),
        )
    except (FatalError, KeyError, ValueError) as error:
        raise _unusable(_words(error)) from error
    return bytes(image)


def candidates(elf: bytes) -> list[str]:
    """The chips whose memory the program in `elf` fits, in esptool's order.

    Raises OtaError "not-an-image".
    """
    program = _read(elf)
    places = [part.addr for part in program.sections]
    fitting = [name for name in CHIPS if _same_machine(elf, name)]
    return [
        name
        for name in fitting
        if all(
            any(low <= place < high for low, high, _ in CHIP_DEFS[name].MEMORY_MAP)
            for place in places
        )
        and any(_mapped(CHIP_DEFS[name], place) for place in places)
        # On the Xtensa chips constants in flash lie below everything else, and each of the
        # three has another window for them.
        and (name not in _XTENSA or CHIP_BY_ID[CHIP_DEFS[name].IMAGE_CHIP_ID].maps(min(places)))
    ]


def _read(elf: bytes) -> Any:
    if not elf.startswith(ELF_MAGIC):
        raise _unusable("The file is not an ELF file.")
    machine = int.from_bytes(elf[18:20], "little")
    if machine not in _MACHINES or elf[4:5] != b"\x01":
        raise _unusable("The ELF file is a program for no ESP32 chip.")
    try:
        program = ELFFile(elf)
    except (FatalError, ValueError, IndexError) as error:
        raise _unusable(_words(error)) from error
    if not program.sections:
        raise _unusable("The ELF file holds no program.")
    return program


def _unusable(message: str) -> OtaError:
    return OtaError("not-an-image", message, remedy=_REMEDY)


def _only(elf: bytes, found: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    raise OtaError(
        "wrong-chip",
        f"The chip of the ELF file cannot be told: {_told(elf, found)}.",
        remedy="Name the chip: --chip, or CHIP=.. with make.",
    )


def _same_machine(elf: bytes, chip: str) -> bool:
    return (chip in _XTENSA) == (int.from_bytes(elf[18:20], "little") == 0x5E)


def _told(elf: bytes, found: list[str]) -> str:
    """What machine and addresses say."""
    machine = _MACHINES[int.from_bytes(elf[18:20], "little")]
    return f"it is a program for {machine} that fits {', '.join(found) or 'no chip'}"


def _mapped(chip: Any, address: int) -> bool:
    return any(
        low <= address < high for low, high, name in chip.MEMORY_MAP if name in ("IROM", "DROM")
    )


def _sha256_offset(program: Any) -> int | None:
    """Where the ELF's digest belongs in an app with a descriptor (esp_app_desc_t)."""
    magic = b"\x32\x54\xcd\xab"
    return 0xB0 if any(part.data[:4] == magic for part in program.sections) else None


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"esptool cannot use the ELF file: {text[0] if text else type(error).__name__}"
