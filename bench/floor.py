# SPDX-License-Identifier: GPL-3.0-or-later
"""What physics asks for, item by item: nobody can be faster over this wire to this flash.

Pure arithmetic from the wire's speed, the bridge's latency, the flash's times and the sizes of
what must be sent. The times are those of the simulated board (`esp32_sim.core.Times`,
from data sheets and measurements); the host's own work counts as nothing.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esp32_sim.core import Times
from esp32_sim.flash import BLOCK_BYTES, PAGE_BYTES, SECTOR_BYTES

ROM_BAUD = 115_200
RESET_S = 0.15
"""EN low for 0.1 s, IO0 low for another 0.05 s: esptool's sequence, which slow EN lines need."""
LEAVE_S = 0.1
"""EN low for 0.1 s, into the firmware."""
STUB_BLOCK_BYTES = 0x1800
BLOCK_WIRE_BYTES = 0x4000
REQUEST_BYTES, ANSWER_BYTES = 10, 12
"""SLIP frames without data: 8 bytes of header and two ends; the stub's answer has 2 bytes more.
The ROM's answer has 14."""
RECORD_BYTES = 16
"""One register in a WRITE_REG packet."""
ORDER_RECORDS = 10
"""The fewest records of a changing SPI command without its data: write enable (3), address and
its length, length of the data, command (2), start, and the one that starts the status."""


@dataclass(frozen=True)
class Item:
    """One part of a floor."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Line:
    """A wire: its speed once the stub loader runs, the bridge's latency, and the chip behind it."""

    baud: int
    latency_s: float
    chip: str = "esp32"

    def exchange(self, sent: int = 0, got: int = 0, *, baud: int | None = None) -> float:
        """One request with `sent` bytes of data and its answer with `got`."""
        speed = baud or self.baud
        answer = ANSWER_BYTES + (2 if baud is not None else 0)
        wire = (REQUEST_BYTES + sent + answer + got) * 10 / speed
        return wire + self.latency_s + Times().command_s

    def read(self, size_bytes: int) -> float:
        """READ_FLASH: request and answer, data at once behind it, acknowledgement, digest."""
        packets = max(1, -(-size_bytes // SECTOR_BYTES))
        data = (size_bytes + packets * (2 + 6) + 18) * 10 / self.baud
        return self.exchange(16) + data + packets * self.latency_s

    def digest(self, size_bytes: int) -> float:
        """SPI_FLASH_MD5."""
        times = Times()
        return self.exchange(16, 16) + times.md5_call_s + times.md5_s_per_mib * size_bytes / 2**20


@functools.cache
def stub_segments(chip: str) -> tuple[int, int]:
    """Sizes of a chip's stub loader as the installed esptool ships it: code, data."""
    spec = importlib.util.find_spec("esptool")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "targets" / "stub_flasher" / "2" / f"{chip}.json"
    stub = json.loads(file.read_text())
    return len(base64.b64decode(stub["text"])), len(base64.b64decode(stub["data"]))


def connect(line: Line) -> list[Item]:
    """From the open port to a stub loader at full speed, that knows chip and flash."""
    rom = functools.partial(line.exchange, baud=ROM_BAUD)
    stub = 0.0
    for size in stub_segments(line.chip):
        blocks = -(-size // STUB_BLOCK_BYTES)
        stub += rom(16) + size * 10 / ROM_BAUD + blocks * rom(16)
    items = [
        Item("reset into download mode", RESET_S),
        Item("sync (8 answers)", rom(36) + 7 * 14 * 10 / ROM_BAUD),
        Item("chip and MAC (3 registers)", 3 * rom(4)),
        Item(f"stub loader ({sum(stub_segments(line.chip)):,} bytes at 115200)", stub + rom(8)),
    ]
    if line.baud != ROM_BAUD:
        items.append(Item("speed", line.exchange(8, baud=ROM_BAUD)))
    fuses = 5 * line.exchange(4)
    flash = line.exchange(7 * RECORD_BYTES) + line.exchange(4) + line.exchange(24)
    items.append(Item("fuses (5 registers), flash id and size", fuses + flash))
    return items


def image(line: Line, compressed_bytes: int, size_bytes: int) -> list[Item]:
    """Wire and flash time of a slot, of which the larger one counts."""
    times = Times()
    blocks = -(-compressed_bytes // BLOCK_WIRE_BYTES)
    wire = (compressed_bytes + 42 * blocks) * 10 / line.baud
    span = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    erase = span // BLOCK_BYTES * times.block_erase_s
    erase += span % BLOCK_BYTES // SECTOR_BYTES * times.sector_erase_s
    program = -(-size_bytes // PAGE_BYTES) * times.page_program_s
    if wire > erase + program:
        return [Item(f"image over the wire ({compressed_bytes:,} bytes, compressed)", wire)]
    return [Item(f"image into flash (erase {erase:.2f} s, program {program:.2f} s)",
                 erase + program)]  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What must be read of one board, in bytes: the smallest set.

    nvs: what is in use of each page in use. slots: sizes of the images whose digests say what
    runs and what the spare slot holds.
    """

    table_bytes: int
    heads: int
    otadata_bytes: int
    nvs: Sequence[int]
    slots: Sequence[int]


def look(line: Line, board: Contents) -> list[Item]:
    """Everything that an update depends on, each byte once."""
    nvs = sum(line.read(size) for size in board.nvs)
    return [
        Item("partition table, to its end", line.read(board.table_bytes)),
        Item("app descriptors", board.heads * line.read(288)),
        Item("otadata (two entries)", 2 * line.read(board.otadata_bytes // 2)),
        Item("NVS (pages in use)", nvs),
        Item("digests of the slots", sum(line.digest(size) for size in board.slots)),
    ]


def changes(line: Line, ops: Sequence[tuple[str, int]]) -> list[Item]:
    """Erases and programs of otadata and NVS as (kind, size_bytes), each read back by a digest.

    One packet, one look at the status, one digest for each: ours looks at the registers, too.
    """
    times = Times()
    total = 0.0
    for kind, size in ops:
        records = ORDER_RECORDS + (-(-size // 4) if kind == "program" else 0)
        total += line.exchange(records * RECORD_BYTES) + line.exchange(4)
        total += times.flash_s(kind, size) + line.digest(size)
    return [Item(f"otadata and NVS ({len(ops)} erases and programs, read back)", total)]


def leave(boot_s: float) -> list[Item]:
    """Into the firmware; boot_s: from the end of the reset to the app's first descriptor line."""
    return [Item("reset into the firmware", LEAVE_S), Item("boot to the app's descriptor", boot_s)]


def total(items: Sequence[Item]) -> float:
    """Their sum in seconds."""
    return sum(item.seconds for item in items)
