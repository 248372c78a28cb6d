# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds App Images that the bootloader accepts, with a behaviour that the simulated app obeys.

The format is ESP-IDF's (esp_app_format.h, esp_app_desc.h; esp32.md, "App Image"). Content is
random with a seed, as compressible as real firmware (0.54 to 0.60 with zlib, level 9).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esp32_sim.chips import ESP32, chip_of
from esp32_sim.loader_common import checksum

HEADER = struct.Struct("<BBBBIB3sHBHH4sB")
SEGMENT_HEADER = struct.Struct("<II")
DESCRIPTOR = struct.Struct("<II8s32s32s16s16s32s32sHHB75s")
IMAGE_MAGIC = 0xE9
DESCRIPTOR_MAGIC = 0xABCD5432
DESCRIPTOR_OFFSET = HEADER.size + SEGMENT_HEADER.size
BEHAVIOUR_MAGIC = b"ESP32SIM-BEHAVIOUR:"

PAGE = 0x10000

Ending = Literal[
    "run", "exception", "stuck", "panic", "loop", "restart", "hang", "watchdog", "deep-sleep",
    "brownout", "brownout-tagged", "brownout-reset",
]  # fmt: skip


@dataclass(frozen=True)
class Behaviour:
    """What an app does once it runs; all times in seconds since its start.

    ending: run (for ever), exception and stuck (falls, or hangs, before it prints a line: the ROM
    tells of the one, and the bootloader's watchdog resets both), panic (last words and reboot),
    loop and restart (resets itself: the chip, or the processor as esp_restart does), hang (falls
    silent), watchdog (falls silent and is reset by the watchdog 5 s later), deep-sleep (wakes
    after sleep_s), brownout and brownout-tagged (told by apps of older and newer ESP-IDF),
    brownout-reset (by the ROM alone).
    ending_after_s: when. ending_lives: in so many lives since power or EN, and in those after
    them it runs; 0: in all. panic: its form, one of `logs.PANICS`. console_baud: 0 for no output
    at all. log_level_off: no log lines from ESP-IDF, so no descriptor lines. confirm_after_s:
    marks itself valid, as an app of a rollback bootloader does; None for never. say, say_after_s:
    lines of its own. print_secrets: prints what NVS holds. nvs_writes: rewrites a counter and a
    blob in NVS all the time, so that a reset meets it in the middle. tick_s: seconds between two
    lines of idle chatter, 0 for none.
    """

    ending: Ending = "run"
    ending_after_s: float = 0.0
    ending_lives: int = 0
    panic: str = "load-prohibited"
    sleep_s: float = 1.0
    console_baud: int = 115200
    log_level_off: bool = False
    confirm_after_s: float | None = 1.0
    say: str = ""
    say_after_s: float = 0.0
    print_secrets: bool = False
    nvs_writes: bool = False
    tick_s: float = 0.0

    def to_bytes(self) -> bytes:
        """As it is embedded in an image: magic, JSON, NUL."""
        changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        return BEHAVIOUR_MAGIC + json.dumps(changed).encode() + b"\x00"


def find_behaviour(image: bytes) -> Behaviour | None:
    """The behaviour embedded in an image; None for firmware that is not ours."""
    at = image.find(BEHAVIOUR_MAGIC)
    if at < 0:
        return None
    start = at + len(BEHAVIOUR_MAGIC)
    end = image.find(b"\x00", start)
    try:
        return Behaviour(**json.loads(image[start:end]))
    except (ValueError, TypeError):
        return None


@dataclass(frozen=True)
class AppInfo:
    """The fields of an app descriptor that an app prints at its start."""

    project: str
    version: str
    time: str
    date: str
    idf_version: str
    elf_sha256: bytes
    secure_version: int
    min_block_revision: int
    max_block_revision: int


def read_descriptor(image: bytes) -> AppInfo | None:
    """The app descriptor of an image; None where it has none."""
    if len(image) < DESCRIPTOR_OFFSET + DESCRIPTOR.size:
        return None
    magic, secure, _, version, project, time, date, idf, sha, low, high, *_ = (
        DESCRIPTOR.unpack_from(image, DESCRIPTOR_OFFSET)
    )
    if magic != DESCRIPTOR_MAGIC:
        return None

    def text(raw: bytes) -> str:
        return raw.split(b"\x00")[0].decode("utf-8", "replace")

    return AppInfo(
        text(project), text(version), text(time), text(date), text(idf), sha, secure, low, high
    )


def filler(size: int, rng: random.Random) -> bytes:
    """Bytes that deflate to a little less than 0.57 of their size."""
    out = bytearray()
    while len(out) < size:
        out += rng.randbytes(140)
        out += bytes((rng.randrange(256),)) * 116
    return bytes(out[:size])


def assemble(
    segments: list[tuple[int, bytes]],
    entry: int,
    *,
    chip_id: int = ESP32.id,
    flash_size_code: int = 0x3,
    min_revision: int = 0,
    max_revision: int = 0xFFFF,
    hash_appended: bool = True,
) -> bytes:
    """An image from (load address, data) segments; data lengths must be multiples of 4."""
    header = HEADER.pack(
        IMAGE_MAGIC,
        len(segments),
        2,
        flash_size_code << 4,
        entry,
        0xEE,
        b"\x00\x00\x00",
        chip_id,
        min(min_revision // 100, 255),
        min_revision,
        max_revision,
        b"\x00" * 4,
        1 if hash_appended else 0,
    )
    body = bytearray(header)
    for address, data in segments:
        if len(data) % 4:
            raise ValueError("segment lengths are multiples of 4")
        body += SEGMENT_HEADER.pack(address, len(data)) + data
    body += b"\x00" * (15 - len(body) % 16)
    body.append(checksum(b"".join(data for _, data in segments)))
    if hash_appended:
        body += hashlib.sha256(body).digest()
    return bytes(body)


def descriptor(
    project: str,
    version: str,
    *,
    secure_version: int = 0,
    elf_sha256: bytes,
    block_revisions: tuple[int, int] = (0, 99),
) -> bytes:
    """The 256 bytes at the start of an app's first segment."""
    return DESCRIPTOR.pack(
        DESCRIPTOR_MAGIC,
        secure_version,
        b"\x00" * 8,
        version.encode()[:31],
        project.encode()[:31],
        b"12:34:56",
        b"Jan  1 2026",
        b"v5.1.4",
        elf_sha256,
        *block_revisions,  # of the eFuses: at least, at most
        16,  # MMU page: 64 KiB
        b"\x00" * 75,
    )


def build_app(
    project: str = "micro-rdk-server",
    version: str = "1.0.0",
    *,
    size_bytes: int = 300_000,
    seed: int = 0,
    behaviour: Behaviour | None = None,
    chip: str = ESP32.name,
    chip_id: int | None = None,
    min_revision: int = 0,
    max_revision: int = 0xFFFF,
    block_revisions: tuple[int, int] = (0, 99),
    secure_version: int = 0,
    hash_appended: bool = True,
    described: bool = True,
) -> bytes:
    """An App Image of about `size_bytes` (exact to 16 bytes for 2 KiB and more).

    The same arguments give the same bytes. From 68 KiB on it has a mapped code segment as well
    as mapped data; smaller ones have their code in RAM. Revisions are major * 100 + minor.
    chip: what it is built for; chip_id: another id in the header alone. block_revisions: of the
    chip's eFuse blocks, the least and the most that it takes.
    described: with an app descriptor; apps by ESP-IDF before 3.3 have none.
    """
    behaviour = behaviour or Behaviour()
    facts = chip_of(chip)
    memory = facts.memory
    rng = random.Random(f"{project}/{version}/{seed}")
    elf_sha256 = hashlib.sha256(f"{project}/{version}/{seed}/{behaviour}".encode()).digest()
    head = behaviour.to_bytes()
    if described:
        head = (
            descriptor(
                project,
                version,
                secure_version=secure_version,
                elf_sha256=elf_sha256,
                block_revisions=block_revisions,
            )
            + head
        )
    head += b"\x00" * (-len(head) % 4)

    # What is neither data nor code: headers of up to five segments, checksum, digest.
    fixed = HEADER.size + 5 * SEGMENT_HEADER.size + 16 + (32 if hash_appended else 0)
    room = max(size_bytes - fixed, len(head) + 256) & ~3
    segments: list[tuple[int, bytes]] = []
    if size_bytes < PAGE + 4096:
        drom = head + filler((room - len(head)) // 2 & ~3, rng)
        iram = filler(room - len(drom), rng)
        segments = [(memory.drom + DESCRIPTOR_OFFSET, drom), (memory.iram, iram)]
        entry = memory.iram + 4
    else:
        # Mapped segments stand at file offsets equal to their addresses modulo 64 KiB: RAM
        # segments fill the gap, as esptool's elf2image arranges it.
        code_at = max(1, room // 3 // PAGE) * PAGE + DESCRIPTOR_OFFSET
        gap = code_at - SEGMENT_HEADER.size - DESCRIPTOR_OFFSET
        dram_bytes = min(12_000, gap // 4) & ~3
        iram_bytes = min(40_000, gap // 4) & ~3
        drom_bytes = gap - dram_bytes - iram_bytes - 2 * SEGMENT_HEADER.size
        drom = head + filler(drom_bytes - len(head), rng)
        dram = filler(dram_bytes, rng)
        iram = filler(iram_bytes, rng)
        irom = filler(max(64, room - len(drom) - len(dram) - len(iram) - 64) & ~3, rng)
        segments = [
            (memory.drom + DESCRIPTOR_OFFSET, drom),
            (memory.dram, dram),
            (memory.iram, iram),
            (memory.irom + DESCRIPTOR_OFFSET, irom),
            (memory.rtc, filler(64, rng)),
        ]
        entry = memory.iram + 0x400
    return assemble(
        segments,
        entry,
        chip_id=facts.id if chip_id is None else chip_id,
        min_revision=min_revision,
        max_revision=max_revision,
        hash_appended=hash_appended,
    )


def build_bootloader(*, chip: str = ESP32.name, seed: int = 0, flash_size_code: int = 0x3) -> bytes:
    """A second-stage bootloader image: valid to the ROM, without an app descriptor.

    It begins with ESP-IDF's bootloader descriptor (magic byte 0x50), as new ones do.
    """
    facts = chip_of(chip)
    rng = random.Random(f"bootloader/{seed}")
    described = struct.pack("<B3xI32s24s16s", 0x50, 1, b"v5.1.4", b"Jan  1 2026 12:34:56", b"")
    segments = []
    for address, size in facts.memory.bootloader:
        segments.append((address, described + filler(size - len(described), rng)))
        described = b""
    return assemble(segments, facts.memory.entry, chip_id=facts.id, flash_size_code=flash_size_code)


def write_firmware(folder: Path, chip: str = ESP32.name) -> dict[str, str]:
    """Firmware to try on simulated boards, as files; what each is, by its name. Raises OSError.

    The boards run 1.0.0 of the same project when they are made.
    """
    panics = Behaviour(ending="panic", ending_after_s=2.0)
    files = {
        "app.bin": (build_app(version="1.1.0", seed=1, chip=chip), "an App Image, version 1.1.0"),
        "app-panics.bin": (
            build_app(version="1.2.0", seed=2, behaviour=panics, chip=chip),
            "an App Image, version 1.2.0, that panics 2 s after its start",
        ),
        "bootloader.bin": (build_bootloader(chip=chip), "a bootloader, for Merged Binaries"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: what for name, (_, what) in files.items()}
