# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cases are tried, and how deeply: the whole proof, and its thinned form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tests.prove import images, nvs_shapes, starts
from tests.prove.cuts import Detail
from tests.prove.flows import Case
from tests.prove.prover import Depth
from tests.prove.starts import OTA_LAYOUTS, Start, one_rare, pairwise, product

BOTH = (False, True)
ROLLBACK = (True,)
GONE_BACK = ("aborted",)
WAITING = ("first",)
WHOLE_BESIDE = ("blank", "first", "both", "aborted", "top")
"""States of otadata beside whose running slot another one holds a whole image."""

ODD_STATES = ("blank", "first", "both", "aborted", "not-bootable")

ALL_TEARS = Depth(Detail(body=20), twice=80)
SOME_TEARS = Depth(Detail(tears=3, ends=3, body=40), journals=False, twice=150)
ODD = Depth(Detail(tears=3, slot=False), journals=False, twice=150)
QUICK_RARE = Depth(Detail(tears=1, slot=False), journals=False, others=False, twice=400)
QUICK = Depth(Detail(tears=1, ends=2, body=60), journals=False, twice=300)


@dataclass(frozen=True)
class Trial:
    """A case, and how deeply it is tried. on_link: cuts that are recovered over the link as
    well: 0 none, 1 a few, 2 every operation of otadata and NVS.
    """

    case: Case
    depth: Depth
    on_link: int = 0


def odd(layouts: Sequence[str], states: Sequence[str], rollbacks: Sequence[bool]) -> list[Start]:
    """Boards whose bootloader, running app or partition table is out of the ordinary."""
    found = [
        start
        for layout in layouts
        for state in states
        for rollback in rollbacks
        for start in (
            *(Start(layout, state, rollback, "small", build=build) for build in starts.BUILDS[1:]),
            Start(layout, state, rollback, "small", running=images.BARE),
            Start(layout, state, rollback, "small", running=images.BARE, build="silent"),
        )
        if starts.possible(start)
    ]
    tables = (starts.UNEQUAL.name, starts.ELSEWHERE.name)
    return [*found, *product(tables, states, rollbacks, ("small",))]


def _odd_trials(some: Sequence[Start], depth: Depth) -> list[Trial]:
    """Every flow with such boards; none goes back to what its fuses forbid."""
    ways = [s for s in some if s.otadata in WHOLE_BESIDE and s.build != "anti-rollback"]
    described = [replace(s, running=images.NEW) for s in some if s.running.described]
    waiting = [s for s in some if s.otadata in WAITING and s.rollback]
    return [
        *_trials("update", some, depth, on_link=1),
        *_trials("update", [replace(s, first_contact=True) for s in some], depth),
        *_trials("switch", some, depth),
        *_trials("stage", some, depth),
        *_trials("activate", some, depth),
        *_trials("record", described, depth),
        *_trials("back", some, depth, on_link=1),
        *_trials("go-back", ways, depth),
        *_trials("correct", [s for s in some if s.otadata in GONE_BACK], depth),
        *_trials("pending", waiting, depth),
        *_trials("shy", waiting, depth, on_link=1),
        *_trials("take-back", waiting, depth),
    ]


def whole() -> list[Trial]:
    """Everything: every start of the core with every other, the rare ones pairwise."""
    core_states, core_shapes = list(starts.CORE), list(nvs_shapes.CORE)
    pairs = pairwise(OTA_LAYOUTS, core_states, BOTH, core_shapes)
    layouts = [*OTA_LAYOUTS, starts.THREE_SLOTS.name]
    rare = pairwise(layouts, list(starts.STATES), BOTH, list(nvs_shapes.SHAPES), one_rare)
    grid = product(OTA_LAYOUTS, core_states, BOTH, core_shapes)
    waiting = product(OTA_LAYOUTS, WAITING, ROLLBACK, nvs_shapes.SHAPES)
    brought = product(OTA_LAYOUTS, WAITING, BOTH, ("small", "robot"))
    gone = product(OTA_LAYOUTS, GONE_BACK, BOTH, nvs_shapes.SHAPES)
    trials = [
        *_trials("update", pairs, ALL_TEARS, on_link=2),
        *_trials("update", [s for s in rare if s not in set(pairs)], SOME_TEARS),
        *_trials("update", [s for s in grid if s not in {*pairs, *rare}], SOME_TEARS),
        *_trials("update", [replace(s, first_contact=True) for s in pairs], SOME_TEARS),
        *_trials("plain-image", pairs, SOME_TEARS),
        *_trials("stage", pairs, SOME_TEARS, on_link=1),
        *_trials("activate", [s for s in pairs if s.nvs == "small"], ALL_TEARS, on_link=1),
        *_trials("activate", [s for s in pairs if s.nvs != "small"], SOME_TEARS),
        *_trials("switch", pairs, ALL_TEARS, on_link=1),
        *_trials("record", [replace(s, running=images.NEW) for s in pairs], ALL_TEARS, on_link=1),
        *_trials("back", pairs, ALL_TEARS, on_link=1),
        *_trials("back", [s for s in rare if s.nvs in ("small", "robot")], SOME_TEARS),
        *_trials("go-back", [s for s in pairs if s.otadata in WHOLE_BESIDE], ALL_TEARS, on_link=1),
        *_trials("correct", gone, SOME_TEARS),
        *_trials("pending", waiting, ALL_TEARS, on_link=1),
        *_trials("shy", waiting, ALL_TEARS, on_link=1),
        *_trials("take-back", brought, ALL_TEARS, on_link=1),
        *_odd_trials(odd(OTA_LAYOUTS[:2], ODD_STATES, BOTH), ODD),
    ]
    return _few_on_link(trials, each=12)


def quick() -> list[Trial]:
    """Every flow, every kind of operation, each value of each dimension once."""
    shapes, states = list(nvs_shapes.CORE), list(starts.CORE)
    some = [
        Start(OTA_LAYOUTS[i % 3], states[i], bool(i % 2), shapes[(i + 3) % 8]) for i in range(8)
    ]
    rare_shapes, rare_states = list(nvs_shapes.MORE), list(starts.MORE)
    # The large NVS of the third layout takes long to read, so it is tried with a few only.
    some += [
        Start(OTA_LAYOUTS[i % 2], "both", bool(i % 2), name) for i, name in enumerate(rare_shapes)
    ]
    some += [Start(name, "both", i % 2 == 0, "small") for i, name in enumerate(starts.ODD_LAYOUTS)]
    some += [
        start
        for i, name in enumerate(rare_states)
        if starts.possible(start := Start(OTA_LAYOUTS[i % 3], name, i % 2 == 0, "small"))
    ]
    few, common, rare = some[:8:3], some[:8], some[8:]
    waiting = [Start(OTA_LAYOUTS[i], "first", True, shapes[i]) for i in range(2)]
    gone = [Start(OTA_LAYOUTS[i], "aborted", True, shapes[i]) for i in range(2)]
    odds = odd(OTA_LAYOUTS[1:2], ("first",), ROLLBACK)
    trials = [
        *_trials("update", common, QUICK, on_link=1),
        *_trials("update", rare, QUICK_RARE),
        *_trials("update", [replace(s, first_contact=True) for s in few], QUICK),
        *_trials("plain-image", few[:1], QUICK),
        *_trials("switch", few[:1], QUICK),
        *_trials("stage", [replace(common[2], nvs="small")], QUICK),
        *_trials("activate", few[1:], QUICK, on_link=1),
        *_trials("record", [replace(s, running=images.NEW) for s in few], QUICK),
        *_trials("back", few, QUICK, on_link=1),
        *_trials("go-back", few, QUICK, on_link=1),
        *_trials("correct", gone, QUICK),
        *_trials("pending", waiting, QUICK, on_link=1),
        *_trials("shy", waiting, QUICK),
        *_trials("take-back", waiting, QUICK),
        *_trials("update", odds, QUICK_RARE),
        *_trials("update", [replace(s, first_contact=True) for s in odds[3:4]], QUICK_RARE),
        *_trials("back", odds[:4:2], QUICK_RARE),
    ]
    return _few_on_link(trials, each=1)


def _trials(flow: str, some: Iterable[Start], depth: Depth, on_link: int = 0) -> list[Trial]:
    found = []
    for start in some:
        # How a slot is written does not depend on NVS: where tears are thinned, so are slots.
        slot = depth.detail.tears > 3 or (depth.detail.slot and start.nvs == "small")
        slot = slot or flow == "activate"  # one byte of it
        detail = replace(depth.detail, slot=slot)
        found.append(Trial(Case(flow, start), replace(depth, detail=detail), on_link))
    return found


def _few_on_link(trials: Sequence[Trial], *, each: int) -> list[Trial]:
    """Of those that are tried over the link a little, so many of each flow."""
    left: dict[str, int] = {}
    found = []
    for trial in trials:
        if trial.on_link == 1:
            left[trial.case.flow] = left.get(trial.case.flow, each) - 1
            if left[trial.case.flow] < 0:
                trial = replace(trial, on_link=0)
        found.append(trial)
    return found


def named(name: str) -> Trial:
    """The trial of a case by its name, with all tears; raises LookupError."""
    for trial in [*whole(), *quick()]:
        if trial.case.name == name:
            return replace(trial, depth=replace(ALL_TEARS, twice=0))
    raise LookupError(f"no case is called {name}")
