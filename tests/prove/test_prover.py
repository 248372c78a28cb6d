# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof can fail: ways of writing that are known to hurt are caught, each by its own judge."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest

from ota_service.fleet.engine import Engine
from ota_service.formats import nvs, otadata
from ota_service.formats.flashops import PAGE_BYTES, SECTOR_BYTES, Erase, FlashOp, Program, program
from ota_service.formats.image import parse_app_image
from ota_service.formats.nvs import flash as _nvs_flash
from ota_service.formats.nvs import prove as _nvs_prove
from ota_service.update import bootable, carry_out, plan
from tests.prove import groups
from tests.prove.cuts import Detail
from tests.prove.flows import Case
from tests.prove.images import BARE, OTHER
from tests.prove.prover import Depth, Tally, edits_remembered, prove, record_in_memory
from tests.prove.robot import Fault
from tests.prove.starts import Start

DEPTH = Depth(Detail(tears=2, ends=3, body=40), twice=0)
Patch = Callable[[pytest.MonkeyPatch], None]


def tried(flow: str, *start: Any) -> Tally:
    """A case's numbers."""
    return prove(record_in_memory(Case(flow, Start(*start))), DEPTH)


def rewritten(before: bytes, after: bytes, base: int) -> tuple[FlashOp, ...]:
    """Operations that write each changed sector anew, in its place."""
    ops: list[FlashOp] = []
    for at in range(0, len(before), SECTOR_BYTES):
        if before[at : at + SECTOR_BYTES] != after[at : at + SECTOR_BYTES]:
            ops.append(Erase(base + at, SECTOR_BYTES))
            ops += program(base + at, after[at : at + SECTOR_BYTES])
    return tuple(ops)


def nvs_in_place(patch: pytest.MonkeyPatch) -> None:
    """Erase NVS's sector and write it anew."""
    right = nvs.set_string

    def set_string(data: bytes, **arguments: Any) -> nvs.NvsEdit:
        edit = right(data, **arguments)
        ops = rewritten(data, edit.result, arguments["base"])
        return nvs.NvsEdit(ops, edit.strategy, edit.result)

    patch.setattr(nvs, "set_string", set_string)


def both_entries_first(patch: pytest.MonkeyPatch) -> None:
    """Erase both sectors of otadata, then write them."""
    right = otadata.switch

    def switch(data: bytes, **arguments: Any) -> otadata.OtaEdit:
        edit = right(data, **arguments)
        base = arguments["base"]
        ops: list[FlashOp] = [Erase(base, SECTOR_BYTES), Erase(base + SECTOR_BYTES, SECTOR_BYTES)]
        for at in (0, SECTOR_BYTES):
            ops.append(Program(base + at, edit.result[at : at + 32]))
        return otadata.OtaEdit(tuple(ops), edit.sector, edit.seq, edit.state, edit.result)

    patch.setattr(otadata, "switch", switch)


def head_first(patch: pytest.MonkeyPatch) -> None:
    """Write a slot from its first page to its last one."""

    def stage_slot(flash: Any, slot: Any, stream: Any, **hooks: Any) -> None:
        hooks["phase"]("writing")
        body = zlib.decompress(b"".join(block.data for block in stream.blocks))[PAGE_BYTES:]
        flash.erase(slot.offset, -(-stream.size_bytes // SECTOR_BYTES) * SECTOR_BYTES)
        for op in program(slot.offset, stream.head + body):
            flash._do(op)

    patch.setattr(carry_out, "stage_slot", stage_slot)


def sealed_at_once(patch: pytest.MonkeyPatch) -> None:
    """Write a slot with its magic byte, when it is only to be staged."""
    right = carry_out.stage_slot

    def stage_slot(flash: Any, slot: Any, stream: Any, **hooks: Any) -> None:
        right(flash, slot, stream, **hooks)
        flash.program(slot.offset, stream.head[:1])

    patch.setattr(carry_out, "stage_slot", stage_slot)


def version_first(patch: pytest.MonkeyPatch) -> None:
    """Store the version before otadata is switched."""
    right = plan._Wanted._switch

    def switch(*arguments: Any, **options: Any) -> plan.Plan:
        made = right(*arguments, **options)
        order = (plan.WriteSlot, plan.SealSlot, plan.RecordVersion, plan.SwitchOtadata)
        steps = sorted(made.steps, key=lambda step: [*order, type(step)].index(type(step)))
        object.__setattr__(made, "steps", tuple(steps))
        return made

    patch.setattr(plan._Wanted, "_switch", switch)


def freeing_without_full(patch: pytest.MonkeyPatch) -> None:
    """Mark a page of NVS FREEING while the last one is still ACTIVE, and prove nothing."""
    patch.setattr(_nvs_flash.NvsFlash, "mark_full", lambda *_: None)
    patch.setattr(_nvs_prove.NvsProof, "holds", lambda *_: True)


def way_back_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Believe the stored tag although the way back was interrupted."""
    patch.setattr(plan._Wanted, "_tag_of_another", lambda *_: False)


def old_entry_taken(patch: pytest.MonkeyPatch) -> None:
    """Take both entries away where the new one is to go."""
    right = otadata.take_away

    def take_away(data: bytes, *, base: int, sector: int) -> otadata.OtaEdit:
        edit = right(data, base=base, sector=sector)
        other = right(edit.result, base=base, sector=1 - sector)
        ops = (*other.ops, *edit.ops)
        return otadata.OtaEdit(ops, edit.sector, edit.seq, edit.state, other.result)

    patch.setattr(otadata, "take_away", take_away)


def confirmation_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Take an update for done although its app has yet to confirm itself."""
    patch.setattr(plan._Wanted, "_has_yet_to_confirm", lambda *_: False)


def descriptor_needed(patch: pytest.MonkeyPatch) -> None:
    """Take an image without an app descriptor for one that does not boot."""
    patch.setattr(bootable, "parse_boot_image", lambda data: parse_app_image(data, trailing=True))


def sizes_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """Take the next slot, whatever its size."""
    patch.setattr(plan, "_that_fits", lambda slots, image, running=None: slots[0])


MUTANTS: list[tuple[Patch, str, tuple[Any, ...]]] = [
    (nvs_in_place, "keys", ("update", "guide", "first", False, "blobs")),
    (both_entries_first, "lost", ("update", "guide", "both", False, "small")),
    (head_first, "lost", ("update", "micro-rdk", "both", False, "small")),
    (sealed_at_once, "lost", ("stage", "micro-rdk", "both", False, "small")),
    (version_first, "keys", ("update", "micro-rdk", "both", False, "small")),
    (freeing_without_full, "keys", ("update", "guide", "first", False, "no-second-free")),
    (way_back_forgotten, "converge", ("back", "micro-rdk", "first", False, "small")),
    (old_entry_taken, "lost", ("back", "guide", "both", False, "small")),
    (confirmation_forgotten, "converge", ("update", "micro-rdk", "aborted", True, "small")),
    (
        descriptor_needed,
        "lost",
        ("update", "micro-rdk", "first", False, "small", True, BARE, OTHER, "silent"),
    ),
    (sizes_not_looked_at, "converge", ("update", "unequal", "both", False, "small")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "column", "case"), MUTANTS, ids=[mutant.__name__ for mutant, _, _ in MUTANTS]
)
def test_a_way_of_writing_that_hurts_is_caught(
    mutant: Patch, column: str, case: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right as it is, the case has no failures; with the mutant its own judge finds some."""
    right = tried(*case)
    assert right.total("cuts") > 10
    assert [right.total(name) for name in ("lost", "keys", "converge")] == [0, 0, 0]
    mutant(monkeypatch)
    assert tried(*case).total(column) > 0


@pytest.mark.slow
def test_a_group_that_is_left_half_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process forgets what the one before had begun, the proof of groups says so."""
    scene = groups.SCENES[3]
    with edits_remembered():
        ticks = groups.recorded(scene)
        last = max(n for n, tick in enumerate(ticks, 1) if tick.what.startswith("switching"))
        trial = groups.Trial(scene, "the process", (Fault(last, "kill"),))
        assert groups.prove_group(trial).failures == []

        async def forgets(engine: Engine, here: object = None, came: object = ()) -> None:
            """Nothing is taken up."""

        monkeypatch.setattr(Engine, "_resume_groups", forgets)
        found = groups.prove_group(trial)
    assert "lost" in {failure.problem.kind for failure in found.failures}
