# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes small ELF files as linkers for the ESP32 chips leave them: sections at addresses."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from esp32_sim.images import descriptor, filler

XTENSA, RISCV = 0x5E, 0xF3

# esptool's name -> (machine, constants in flash, code in flash, memory for code); from the
# linker scripts of ESP-IDF, each address with the 32 bytes of image and segment header before.
PLACES: dict[str, tuple[int, int, int, int]] = {
    "esp32": (XTENSA, 0x3F400020, 0x400D0020, 0x40080000),
    "esp32s2": (XTENSA, 0x3F000020, 0x40080020, 0x40022000),
    "esp32s3": (XTENSA, 0x3C000020, 0x42010020, 0x40374000),
    "esp32c2": (RISCV, 0x3C000020, 0x42010020, 0x4037C000),
    "esp32c3": (RISCV, 0x3C000020, 0x42010020, 0x40380000),
    "esp32c5": (RISCV, 0x42000020, 0x42020020, 0x40800000),
    "esp32c6": (RISCV, 0x42000020, 0x42020020, 0x40800000),
    "esp32c61": (RISCV, 0x42000020, 0x42020020, 0x40800000),
    "esp32h2": (RISCV, 0x42000020, 0x42020020, 0x40800000),
    "esp32h21": (RISCV, 0x42000020, 0x42020020, 0x40800000),
    "esp32h4": (RISCV, 0x42000020, 0x42020020, 0x40810000),
    "esp32p4": (RISCV, 0x40000020, 0x40020020, 0x4FF00000),
    "esp32e22": (RISCV, 0x3C000020, 0x3C020020, 0x31000000),
    "esp32s31": (RISCV, 0x40000020, 0x40020020, 0x2F000000),
}


def write_elf(machine: int, entry: int, sections: Sequence[tuple[str, int, bytes]]) -> bytes:
    """An ELF file of (name, address, data) sections, all of them loaded."""
    names = b"\0"
    headers = [bytes(40)]
    body = b""
    start = 52
    for name, address, data in sections:
        headers.append(
            struct.pack("<10I", len(names), 1, 2, address, start + len(body), len(data), 0, 0, 4, 0)
        )
        names += name.encode() + b"\0"
        body += data
    at_names = len(names)
    names += b".shstrtab\0"
    headers.append(
        struct.pack("<10I", at_names, 3, 0, 0, start + len(body), len(names), 0, 0, 1, 0)
    )
    body += names
    body += b"\0" * (-len(body) % 4)
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = struct.pack(
        "<16sHHIIIIIHHHHHH",
        *(ident, 2, machine, 1, entry, 0, start + len(body), 0, 52, 32, 0, 40),
        *(len(headers), len(headers) - 1),
    )
    return header + body + b"".join(headers)


def app_elf(
    chip: str = "esp32", *, project: str = "demo", version: str = "1.2.3", described: bool = True
) -> bytes:
    """An app for `chip`: constants with a descriptor at their beginning, code, and code in RAM."""
    machine, constants, code, ram = PLACES[chip]
    rng = random.Random(chip)
    about = descriptor(project, version, elf_sha256=bytes(32)) if described else filler(256, rng)
    sections = [
        (".iram0.text", ram, filler(2000, rng)),
        (".flash.appdesc" if described else ".flash.head", constants, about),
        (".flash.rodata", constants + 256, filler(9_000, rng)),
        (".flash.text", code, filler(30_000, rng)),
    ]
    return write_elf(machine, ram, sections)
