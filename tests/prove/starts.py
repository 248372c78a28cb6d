# SPDX-License-Identifier: GPL-3.0-or-later
"""The states that a board may be in before it is updated: layout, otadata, bootloader, NVS."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from esp32_sim.bootmodel import ABORTED, INVALID, NEW, UNDEFINED, VALID, Select
from esp32_sim.factory import make_flash
from esp32_sim.layouts import LAYOUTS, OTA_LAYOUTS, TABLE_OFFSET, Layout, Partition
from tests.prove import nvs_shapes
from tests.prove.bootloader import Bootloader
from tests.prove.images import OLD, OTHER, SECURE_VERSION, Firmware

SECTOR = 0x1000
Entry = bytes | None

THREE_SLOTS = Layout(
    "three-slots",
    8 << 20,
    (
        Partition("nvs", 1, 2, 0x9000, 0x5000),
        Partition("otadata", 1, 0, 0xE000, 0x2000),
        *(Partition(f"ota_{i}", 0, 0x10 + i, 0x10000 + i * 0x100000, 0x100000) for i in range(3)),
    ),
)
"""Not met in the field so far, but valid: sequence numbers count modulo three."""

UNEQUAL = Layout(
    "unequal",
    8 << 20,
    (
        Partition("nvs", 1, 2, 0x9000, 0x5000),
        Partition("otadata", 1, 0, 0xE000, 0x2000),
        Partition("ota_0", 0, 0x10, 0x10000, 0x40000),
        Partition("ota_1", 0, 0x11, 0x50000, 0x100000),
        Partition("ota_2", 0, 0x12, 0x150000, 0x4000),
    ),
)
"""Slots of unequal size; the third is too small for any of the images."""

ELSEWHERE = Layout(
    "elsewhere",
    8 << 20,
    (
        Partition("nvs", 1, 2, 0x11000, 0x5000),
        Partition("otadata", 1, 0, 0x16000, 0x2000),
        Partition("ota_0", 0, 0x10, 0x20000, 0x100000),
        Partition("ota_1", 0, 0x11, 0x120000, 0x100000),
    ),
)
"""Its table is not at 0x8000, see `TABLES`."""

TABLES = {ELSEWHERE.name: 0x10000}
"""Where the tables of layouts stand that have them elsewhere."""

ODD_LAYOUTS = {layout.name: layout for layout in (THREE_SLOTS, UNEQUAL, ELSEWHERE)}

BUILDS = ("usual", "silent", "anti-rollback")
"""How bootloaders are built, beside their rollback."""

DEFAULT = "the first app"
"""What boots where otadata names nothing: factory, else ota_0."""


@dataclass(frozen=True)
class Otadata:
    """A starting state of otadata. runs: the label of the slot that then runs.

    entries: the two sectors' beginnings. broken: labels of slots whose image is damaged.
    rollback: whether only a bootloader with rollback (True) or without it (False) leaves this.
    """

    runs: str
    entries: tuple[Entry, Entry]
    broken: tuple[str, ...] = ()
    rollback: bool | None = None


def _entry(seq: int, state: int = UNDEFINED) -> bytes:
    return Select.make(seq, state).encode()


def _bad_crc(seq: int) -> bytes:
    return Select(seq, UNDEFINED, Select.make(seq).crc ^ 0x10).encode()


TOP = 0xFFFFFFFE
"""The highest sequence number there is; it names ota_1 of two slots."""

CORE: dict[str, Otadata] = {
    "blank": Otadata(DEFAULT, (None, None)),
    "first": Otadata("ota_0", (_entry(1), None)),
    "both": Otadata("ota_1", (_entry(1), _entry(2))),
    "aborted": Otadata("ota_0", (_entry(1, VALID), _entry(2, ABORTED))),
    "crc": Otadata("ota_0", (_entry(1), _bad_crc(2))),
    "both-crc": Otadata(DEFAULT, (_bad_crc(1), _bad_crc(2))),
    "top": Otadata("ota_1", (_entry(TOP - 1), _entry(TOP))),
    "not-bootable": Otadata("ota_0", (_entry(1), _entry(2)), broken=("ota_1",)),
}
"""The states that are combined with everything else."""

MORE: dict[str, Otadata] = {
    "second": Otadata("ota_1", (None, _entry(2))),
    "invalid": Otadata("ota_0", (_entry(1, VALID), _entry(2, INVALID))),
    "valid": Otadata("ota_1", (_entry(1, VALID), _entry(2, VALID))),
    "top-alone": Otadata("ota_1", (None, _entry(TOP))),
    "top-below": Otadata("ota_0", (_entry(TOP - 1), None)),
    "new": Otadata("ota_1", (_entry(1), _entry(2, NEW)), rollback=False),
    "equal": Otadata("ota_1", (_entry(2), _entry(2))),
    "zeros": Otadata("ota_0", (_entry(1), bytes(32))),
    "torn": Otadata("ota_0", (_entry(1), _entry(2)[:14] + b"\xff" * 18)),
    "lone-not-bootable": Otadata("ota_0", (None, _entry(2)), broken=("ota_1",)),
    "aborted-only": Otadata(DEFAULT, (None, _entry(2, ABORTED))),
    "upwards": Otadata("ota_1", (_entry(1), None), broken=("ota_0", "factory")),
}
"""Further ones, which meet each of the other dimensions' values pairwise."""

STATES = CORE | MORE


@dataclass(frozen=True)
class Start:
    """One board before its update. running: what it runs; spare: what its other slot holds.

    first_contact: nothing is known of it, so the update restarts it once to see what runs.
    tag: the version stored, where NVS has a place for it; the shape's own if None.
    """

    layout: str
    otadata: str
    rollback: bool
    nvs: str
    first_contact: bool = False
    running: Firmware = OLD
    spare: Firmware = OTHER
    build: str = "usual"

    @property
    def name(self) -> str:
        """layout/otadata/rollback/nvs, for people and for `CASE=`."""
        more = "/first-contact" if self.first_contact else ""
        more += "" if self.running.described else f"/{self.running.name}"
        more += "" if self.build == "usual" else f"/{self.build}"
        return f"{self.layout}/{self.otadata}/{_words(self.rollback)}/{self.nvs}{more}"

    @property
    def plan(self) -> Layout:
        """The partition table."""
        return ODD_LAYOUTS.get(self.layout) or LAYOUTS[self.layout]

    @property
    def bootloader(self) -> Bootloader:
        """What starts the board."""
        anti_rollback = self.build == "anti-rollback"
        return Bootloader(
            self.rollback,
            self.build == "silent",
            anti_rollback,
            SECURE_VERSION if anti_rollback else 0,
            TABLES.get(self.layout, TABLE_OFFSET),
        )

    @property
    def runs(self) -> str:
        """The label of the slot that runs."""
        label = STATES[self.otadata].runs
        return self.plan.first_app().label if label == DEFAULT else label

    def contents(self) -> bytes:
        """The whole flash, as it is when the update begins."""
        return _build(self)

    def _make(self) -> bytes:
        state = STATES[self.otadata]
        layout = self.plan
        at = layout.find("otadata").offset
        flash = make_flash(
            layout, app=self.running.data, slot=self.runs, nvs={}, otadata="blank",
            table_offset=self.bootloader.table_offset,
        )  # fmt: skip
        for partition in layout.partitions:
            if partition.type == 0 and partition.label != self.runs:
                data = OTHER.data if partition.label == "factory" else self.spare.data
                if partition.label in state.broken:
                    data = data[:9000] + b"\xff" * 200 + data[9200:]
                if len(data) > partition.size:
                    continue
                flash[partition.offset : partition.offset + len(data)] = data
        for number, entry in enumerate(state.entries):
            if entry is not None:
                start = at + number * SECTOR
                flash[start : start + 32] = entry
        store = layout.find("nvs")
        flash[store.offset : store.end] = _nvs(self.nvs, store.size)
        return bytes(flash)


def _words(rollback: bool) -> str:
    return "rollback" if rollback else "no-rollback"


@cache
def _nvs(shape: str, size: int) -> bytes:
    return nvs_shapes.SHAPES[shape](size, random.Random(f"{shape}/{size}"))


@lru_cache(maxsize=4)
def _build(start: Start) -> bytes:
    return start._make()


def possible(start: Start) -> bool:
    """Whether a board can be in this state."""
    only = STATES[start.otadata].rollback
    if start.build == "anti-rollback":
        # It needs rollback, a descriptor, and a table without factory (ESP-IDF's own words).
        factory = start.plan.first_app() not in start.plan.slots()
        if factory or not start.rollback or not start.running.described:
            return False
    return only is None or only == start.rollback


def one_rare(start: Start) -> bool:
    """Possible, and out of the ordinary in one respect only."""
    rare = (
        start.otadata in MORE,
        start.nvs in nvs_shapes.MORE,
        start.layout in ODD_LAYOUTS,
    )
    return possible(start) and sum(rare) <= 1


def product(
    layouts: Iterable[str], states: Iterable[str], rollbacks: Iterable[bool], shapes: Iterable[str]
) -> list[Start]:
    """All combinations that are possible."""
    found = [Start(*values) for values in itertools.product(layouts, states, rollbacks, shapes)]
    return [start for start in found if possible(start)]


def pairwise(
    layouts: Sequence[str],
    states: Sequence[str],
    rollbacks: Sequence[bool],
    shapes: Sequence[str],
    allowed: Callable[[Start], bool] = possible,
    seed: int = 0,
) -> list[Start]:
    """Few starts in which each two values of two dimensions meet, where that is possible.

    Greedy: each start is the one of some candidates that brings the most new pairs.
    """
    rng = random.Random(seed)
    everything = [
        start
        for values in itertools.product(layouts, states, rollbacks, shapes)
        if allowed(start := Start(*values))
    ]
    missing = set().union(*(_pairs(start) for start in everything)) if everything else set()
    chosen: list[Start] = []
    while missing:
        candidates = rng.sample(everything, min(60, len(everything)))
        wanted = min(missing)
        candidates += [s for s in everything if wanted in _pairs(s)][:20]
        best = max(candidates, key=lambda s: len(_pairs(s) & missing))
        if gained := _pairs(best) & missing:
            missing -= gained
            chosen.append(best)
    return chosen


def _pairs(start: Start) -> set[tuple[int, str, int, str]]:
    values = (start.layout, start.otadata, str(start.rollback), start.nvs)
    return {
        (i, values[i], j, values[j]) for i in range(len(values)) for j in range(i + 1, len(values))
    }


__all__ = [
    "CORE",
    "MORE",
    "OTA_LAYOUTS",
    "STATES",
    "THREE_SLOTS",
    "Start",
    "pairwise",
    "possible",
    "product",
]
