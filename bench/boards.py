# SPDX-License-Identifier: GPL-3.0-or-later
"""Timed simulated boards in the states that the benchmark compares, and what is on them."""

from __future__ import annotations

import functools
import hashlib
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.floor import Contents
from esp32_sim.factory import make_flash
from esp32_sim.images import build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.formats.image import parse_app_image
from ota_service.formats.nvs import set_string
from ota_service.formats.otadata import OtaState, switch
from ota_service.update.session import Image

LAYOUT = "micro-rdk"
TABLE = 0x8000
DESCRIPTOR_LINE = "Project name:"
OLD, NEW = "1.0.0", "1.1.0"
RUNNING_BYTES = 300_000

State = Literal["blank", "random", "older", "same", "staged"]
STATES: tuple[State, ...] = ("blank", "random", "older", "same")


@functools.cache
def image(size_bytes: int, version: str = NEW, chip: str = "esp32") -> Image:
    """An App Image that compresses like a real one."""
    return _checked(build_app(version=version, size_bytes=size_bytes, seed=5, chip=chip))


@functools.cache
def running(chip: str = "esp32") -> Image:
    """What the board runs before."""
    return _checked(build_app(version=OLD, size_bytes=RUNNING_BYTES, chip=chip))


def _checked(data: bytes) -> Image:
    return Image(
        data,
        hashlib.sha256(data).hexdigest(),
        hashlib.md5(data, usedforsecurity=False).hexdigest(),
        parse_app_image(data),
    )


def place(label: str) -> tuple[int, int]:
    """Offset and size of a partition."""
    partition = LAYOUTS[LAYOUT].find(label)
    return partition.offset, partition.size


def flash(state: State, size_bytes: int, chip: str = "esp32") -> bytes:
    """A board that runs ota_0, its spare slot ota_1 in a state."""
    app = running(chip).data
    made = make_flash(LAYOUT, app=app, version=OLD, otadata="updated", slot="ota_0", chip=chip)
    at, room = place("ota_1")
    fills = {
        "blank": b"",
        "random": random.Random(1).randbytes(min(room, size_bytes + 4096)),
        "older": image(size_bytes, "0.9.0", chip).data,
        "same": image(size_bytes, chip=chip).data,
        "staged": b"\xff" + image(size_bytes, chip=chip).data[1:],
    }
    made[at : at + len(fills[state])] = fills[state]
    return bytes(made)


@contextmanager
def board(
    contents: bytes, latency_ms: float, *, chip: str = "esp32", usb: str = "bridge",
    timed: bool = True,
) -> Iterator[RunningBoard]:  # fmt: skip
    """One running board, its app started."""
    config = {"timed": timed, "bridge_latency_ms": latency_ms, "chip": chip, "usb": usb}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        SimProcess(Path(folder), [SimBoard(LAYOUT, flash=contents, config=config)]) as sim,
    ):
        sim.boards[0].control.wait_for("app")
        yield sim.boards[0]


def contents(data: bytes, slots: list[int]) -> Contents:
    """What must be read of a flash; slots: sizes of the images whose digests count."""
    table = data[TABLE : TABLE + 0xC00]
    end = next(at for at in range(0, len(table), 32) if table[at : at + 4] == b"\xff" * 4)
    at, size = place("nvs")
    used = []
    for page in range(at, at + size, 4096):
        raw = data[page : page + 4096].rstrip(b"\xff")
        if raw:
            used.append(-(-len(raw) // 32) * 32)
    return Contents(end + 32, 2, 64, used, slots)


@dataclass(frozen=True)
class Edited:
    """What a script has to write beside the image: whole partitions."""

    otadata: bytes
    nvs: bytes


def edited(data: bytes, version: str = NEW) -> Edited:
    """otadata and NVS of a flash as an update to ota_1 leaves them."""
    at, size = place("otadata")
    boots = switch(
        data[at : at + size],
        base=at,
        n_slots=2,
        to_slot=1,
        running_slot=0,
        has_factory=False,
        state=OtaState.UNDEFINED,
    )
    at, size = place("nvs")
    tag = set_string(
        data[at : at + size], base=at, namespace="VIAM_NS", key="OTA_VERSION", value=version
    )
    return Edited(boots.result, tag.result)


def boot_s(running_board: RunningBoard) -> float:
    """From the end of a reset to the app's first descriptor line, on the board as it is."""
    control = running_board.control
    since = control.state()["console"]
    begun_s = time.monotonic()
    control.reset()
    control.wait_for_text(DESCRIPTOR_LINE, since=since, timeout_s=20)
    return time.monotonic() - begun_s
