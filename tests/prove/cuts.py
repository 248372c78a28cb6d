# SPDX-License-Identifier: GPL-3.0-or-later
"""All the flash contents that an interruption of a recorded session can leave."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from esp32_sim.layouts import Layout
from ota_service.formats.flashops import Erase
from tests.formats.nvs_firmware import ALL_RULES, Rules
from tests.prove.board import Op
from tests.prove.cells import Cells
from tests.prove.nvs_init import PLAYED
from tests.prove.tears import tears_of, torn

OWN = "board's own"
"""What the bootloader or the app wrote, not the host."""


@dataclass(frozen=True)
class Cut:
    """One interruption. region: what was being written; op: which operation of the trace, counted
    from 0; how: "before" it, or the way in which it was torn. rules: of the versions whose
    firmware this may be: of one, once the app that is played has written to NVS.
    """

    region: str
    op: int
    how: str
    cells: Cells
    rules: tuple[Rules, ...] = ALL_RULES

    @property
    def name(self) -> str:
        """As `CASE=` takes it behind a case's name."""
        return f"{self.op}:{self.how}"


@dataclass(frozen=True)
class Detail:
    """How many cuts are made of a trace.

    tears: ways in which each operation is torn (in turn, where fewer than there are). ends: so
    many operations at the beginning and end of a slot's writing are all cut; body: of those
    between them each so many-th. slot: whether a slot's writing is cut at all.
    """

    tears: int = 99
    ends: int = 6
    body: int = 12
    slot: bool = True


def region_of(op: Op, layout: Layout) -> str:
    """What an operation writes to."""
    if op.who != "loader":
        return OWN
    place = op.op.offset
    for label, name in (("otadata", "otadata"), ("nvs", "NVS")):
        partition = layout.find(label)
        if partition.offset <= place < partition.end:
            return name
    return "slot"


def cuts(
    flash: bytes,
    ops: Sequence[Op],
    layout: Layout,
    detail: Detail,
    *,
    from_phase: str = "",
    seed: str = "",
) -> Iterator[Cut]:
    """Every cut of a trace that began with `flash`; the last one is behind its last operation.

    from_phase: operations before this phase of the session are done, but not cut. Operations of
    the board itself (its bootloader and app) are cut between, not within: how they are written
    is not ours.
    """
    cells, nvs = Cells(flash), layout.find("nvs")
    regions = [region_of(op, layout) for op in ops]
    chosen = _chosen(ops, regions, detail)
    begun = not from_phase
    last = ""
    rules: tuple[Rules, ...] = ALL_RULES
    for index, (op, region) in enumerate(zip(ops, regions, strict=True)):
        begun = begun or op.phase == from_phase
        if begun and index in chosen:
            last = region
            yield Cut(region, index, "before", cells.copy(), rules)
            if region != OWN:
                for cut in _torn(cells, op, region, index, detail, seed):
                    yield replace(cut, rules=rules)
        cells.apply(op.op)
        if region == OWN and nvs.offset <= op.op.offset < nvs.end:
            rules = (PLAYED,)
    if last:
        yield Cut(last, len(ops), "before", cells, rules)


def _torn(
    cells: Cells, op: Op, region: str, index: int, detail: Detail, seed: str
) -> Iterator[Cut]:
    ways = tears_of(op.op)
    rng = random.Random(f"{seed}/{index}")
    if detail.tears < len(ways):
        start = rng.randrange(len(ways))
        ways = tuple(ways[(start + i * 4) % len(ways)] for i in range(detail.tears))
    for how in ways:
        for result in torn(cells, op.op, how, random.Random(f"{seed}/{index}/{how}")):
            yield Cut(region, index, how, result)


def _chosen(ops: Sequence[Op], regions: Sequence[str], detail: Detail) -> set[int]:
    """The operations that are cut: all but most of a slot's body, whose kind is one."""
    others = {i for i, region in enumerate(regions) if region != "slot"}
    if not detail.slot:
        return others
    slot = [i for i, region in enumerate(regions) if region == "slot"]
    chosen = others
    chosen.update(slot[: detail.ends], slot[-detail.ends :], slot[:: detail.body])
    erases = [i for i in slot if isinstance(ops[i].op, Erase)]
    chosen.update(erases[:2], erases[-2:])
    return chosen
