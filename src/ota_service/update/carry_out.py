# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries a plan's writes out, step by step, over any `Flash`.

Order (design.md, items 2 to 4): slot, its digest, otadata, version, each read back. Power may
fail at any point: the running slot and its otadata entry are never touched, and a slot that is
being written never looks bootable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ota_service.errors import OtaError
from ota_service.formats import nvs, otadata
from ota_service.formats.flashops import PAGE_BYTES, FlashOp, Program
from ota_service.formats.otadata import OtaState
from ota_service.formats.partitions import OTADATA_BYTES, Partition
from ota_service.formats.recognise import IMAGE_MAGIC
from ota_service.link.flash import Flash, Progress, apply_verified, program_verified
from ota_service.link.stream import SlotStream
from ota_service.update.bootable import candidate, header_doubt, image_bytes
from ota_service.update.inspect import NAMESPACE, VERSION_KEY, Inspection, boot_order
from ota_service.update.plan import Plan, RecordVersion, SealSlot, SwitchOtadata, WriteSlot

Phase = Literal["writing", "verifying", "switching", "recording"]
PhaseHook = Callable[[Phase], None]
"""Called as each phase begins; raises to stop there (only before the switch: see `carry_out`)."""

VersionOf = Callable[[Partition], str | None]


def carry_out(
    plan: Plan, flash: Flash, stream: SlotStream | None, *, phase: PhaseHook, progress: Progress
) -> None:
    """Do the plan's writes; restarting and watching is the session's.

    stream: the image of a `WriteSlot`; a plan may end behind that, with the slot staged. phase
    and progress may raise to stop before the switch: nothing that boots has been changed until
    then. From the switch on they must not raise.
    Raises OtaError `verify-failed`, `flash-protected`, `link-lost`.
    """
    for step in plan.steps:
        if isinstance(step, WriteSlot):
            if stream is None:
                raise ValueError("a plan that writes a slot needs an image")
            stage_slot(flash, step.slot, stream, phase=phase, progress=progress)
        elif isinstance(step, SealSlot):
            phase("verifying")
            seal_slot(flash, step)
        elif isinstance(step, SwitchOtadata):
            phase("switching")
            apply_verified(flash, step.edit.ops)
        elif isinstance(step, RecordVersion):
            phase("recording")
            apply_verified(flash, step.edit.ops)


def stage_slot(
    flash: Flash,
    slot: Partition,
    stream: SlotStream,
    *,
    phase: PhaseHook = lambda _: None,
    progress: Progress = lambda _: None,
) -> None:
    """Write an image into a slot that does not run, but for its magic byte: nothing there boots.

    What stands there loses its magic byte first, by one program that can only clear bits; in a
    blank slot, too, so that a flash that ignores programs is found before the first erase. The
    body is written and its digest read back while the first page is blank; then the first page
    is programmed but for its magic byte, and read back. What is left is `seal_slot`'s.
    """
    phase("writing")
    program_verified(flash, Program(slot.offset, b"\x00", "no image any more"))
    flash.write_stream(slot.offset, stream, progress)
    phase("verifying")
    body = slot.offset + PAGE_BYTES
    if flash.md5(body, stream.size_bytes - PAGE_BYTES) != stream.body_md5:
        raise OtaError("verify-failed", f"The image in {slot.name} is not what was written.")
    program_verified(flash, Program(slot.offset + 1, stream.head[1:], "image header"))


def seal_slot(flash: Flash, step: SealSlot) -> None:
    """Make a staged image one that boots: an interruption leaves either no image or the whole one.

    The slot's digest has been looked at in this session, so that one program is all there is to do.
    """
    slot = step.slot
    program_verified(flash, Program(slot.offset, bytes((IMAGE_MAGIC,)), "image magic"))
    if flash.md5(slot.offset, step.size_bytes) != step.md5:
        raise OtaError("verify-failed", f"The image in {slot.name} is not what was written.")


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """How a board goes back to another firmware on it: otadata first, then the version.

    slot: what will run then. version: the tag that will be stored; None: the key is removed.
    ops: in their order. image: size and MD5 of what the slot holds, where the host keeps the
    version and has to know it by that. problem: why the version cannot be stored in NVS as it is;
    `ops` are otadata's alone then.
    """

    slot: Partition
    version: str | None
    ops: tuple[FlashOp, ...]
    image: tuple[int, str] | None = None
    problem: OtaError | None = None


def plan_rollback(
    flash: Flash, found: Inspection, *, bad: Partition, fused: int, version_of: VersionOf
) -> RollbackPlan:
    """Look at the board again, and plan its way back from the slot `bad`, which did not come up.

    found: the board before its update. fused: the secure version that its fuses hold by now: the
    bootloader may refuse the old firmware since. version_of: the tag that belongs to the slot
    gone back to; None: none did. Where the bootloader has gone back by itself (fallback or its
    own rollback), the entry is taken away all the same, so that the next power-on does not try
    it again.
    Raises OtaError `boot-failed` where nothing else on the board is bootable: then nothing is
    changed.
    """
    raw, ops = _without_entries_of(flash, found, bad)
    slot, certain, why_not = _started_by(flash, found, raw, fused, but={bad: ""})
    if slot is None:
        raise OtaError(
            "boot-failed",
            f"The firmware in {bad.name} did not come up, and no other slot can be gone back to "
            f"({why_not}), so nothing was changed.",
            remedy="Correct the firmware and update again, or write a Merged Binary with "
            "`esp32-ota flash PORT FILE`.",
        )
    if not certain:
        ops += _chosen(found, raw, slot)
    return _with_version(flash, found, slot, version_of(slot), ops)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A flash as it will be: what is read of some places is what they are to hold."""

    flash: Flash
    places: tuple[tuple[int, bytes], ...]

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Whole places, and whatever lies apart from them."""
        for at, data in self.places:
            if (offset, size_bytes) == (at, len(data)):
                return data
        return self.flash.read(offset, size_bytes)

    def md5(self, offset: int, size_bytes: int) -> str:
        """Of what does not change."""
        return self.flash.md5(offset, size_bytes)

    def _never(self, *_: object) -> None:
        raise AssertionError("a flash that is only looked at")

    prefetch = erase = program = write_stream = _never


def rollback_after(flash: Flash, found: Inspection, whole: Plan) -> Flash:
    """The board's flash as `plan_rollback` is to find it once an update's plan was carried out."""
    places = []
    for step in whole.steps:
        if isinstance(step, SwitchOtadata):
            places.append((found.selection.offset, step.edit.result))
        elif isinstance(step, RecordVersion) and found.store is not None:
            places.append((found.store.offset, step.edit.result))
    return _Ahead(flash, tuple(places))


def plan_go_back(
    flash: Flash, found: Inspection, *, running: Partition, fused: int, version_of: VersionOf,
    failed: Mapping[Partition, str] = MappingProxyType({}),
) -> RollbackPlan:  # fmt: skip
    """Plan the way from a firmware that works to the one in another slot, because a person says.

    The running entry is taken away where that alone leads to another whole image; otherwise the
    other slot is chosen like an update chooses it. found, fused: as in `plan_rollback`. failed:
    slots whose firmware is known to fail, which nobody goes back to, and in words why.
    Raises OtaError `boot-failed` where no other slot holds an image that boots.
    """
    raw, ops = _without_entries_of(flash, found, running)
    slot, certain, why_not = _started_by(flash, found, raw, fused, but={**failed, running: ""})
    if slot is None:
        remedy = "Update the board to the firmware that it is to run."
        if failed:
            remedy = (
                "Configure the version that the board is to run; to try one again that did not "
                "come up, call release, then update."
            )
        raise OtaError(
            "boot-failed",
            f"No slot but {running.name} can be gone back to ({why_not}), so nothing was changed.",
            remedy=remedy,
        )
    if not (ops and certain):
        before = flash.read(found.selection.offset, OTADATA_BYTES)
        ops = _chosen(found, before, slot, running)
    return _with_version(flash, found, slot, version_of(slot), ops)


def _started_by(
    flash: Flash, found: Inspection, raw: bytes, fused: int, *, but: Mapping[Partition, str]
) -> tuple[Partition | None, bool, str]:
    """With this otadata: the first partition but some whose image certainly boots, whether it is
    certain that nothing before it is started, and why those before it are not taken.

    but: what is not to be taken, and in words why, where that is news.
    """
    floor = found.secure_floor(fused)
    certain, why_not = True, []
    for partition in boot_order(found.parts, otadata.parse_otadata(raw)):
        if partition in but:
            why_not += [f"{partition.name} {but[partition]}"] if but[partition] else []
            certain = False
            continue
        if _still_runs(flash, found, partition, floor):
            return partition, certain, ""
        image = candidate(flash, partition, found.chip, floor)
        if image.boots == "yes":
            return partition, certain, ""
        certain = certain and image.boots == "no"
        why_not.append(f"{partition.name} {image.why}")
    return None, False, "; ".join(why_not)


def _still_runs(flash: Flash, found: Inspection, partition: Partition, floor: int) -> bool:
    """Whether a partition holds what was seen to run from it, which needs no further look: a
    digest takes a moment, and reading a whole image as long as writing it."""
    runs, app = found.running, found.app(partition)
    if partition != runs.partition or runs.size_bytes is None or app is None:
        return False
    if header_doubt(app.head, found.chip, floor):
        return False
    return flash.md5(partition.offset, runs.size_bytes) == runs.md5


def _chosen(
    found: Inspection, raw: bytes, slot: Partition, running: Partition | None = None
) -> list[FlashOp]:
    """otadata's operations that make the bootloader try `slot` first.

    running: what is started at each cut until then; None: whatever this otadata leads to.
    """
    if slot in found.parts.ota_slots:
        return list(found.switched(raw, slot, running or slot, OtaState.UNDEFINED).ops)
    # Factory: it is tried first where no entry counts. The one that decides goes last.
    active = otadata.parse_otadata(raw).active
    ops: list[FlashOp] = []
    for sector in sorted((0, 1), key=lambda one: one == active):
        taken = otadata.take_away(raw, base=found.selection.offset, sector=sector)
        ops += taken.ops
        raw = taken.result
    return ops


def _without_entries_of(
    flash: Flash, found: Inspection, slot: Partition
) -> tuple[bytes, list[FlashOp]]:
    """otadata with every entry that names `slot` taken away, and the operations for that."""
    base, slots = found.selection.offset, found.parts.ota_slots
    raw = flash.read(base, OTADATA_BYTES)
    ops: list[FlashOp] = []
    for sector, entry in enumerate(otadata.parse_otadata(raw).entries):
        if entry.written and slots[entry.slot_index(len(slots))] == slot:
            edit = otadata.take_away(raw, base=base, sector=sector)
            ops += edit.ops
            raw = edit.result
    return raw, ops


def _with_version(
    flash: Flash, found: Inspection, slot: Partition, version: str | None, ops: list[FlashOp]
) -> RollbackPlan:
    version = version or None  # a missing key reads as "", and leaves no trace
    if found.on_host:
        size_bytes = image_bytes(flash, slot) or 0
        image = (size_bytes, flash.md5(slot.offset, size_bytes)) if size_bytes else None
        return RollbackPlan(slot, version, tuple(ops), image)
    try:
        record = record_ops(flash, found, version)
    except OtaError as error:
        if error.code == "link-lost":
            raise
        return RollbackPlan(slot, version, tuple(ops), problem=error)
    return RollbackPlan(slot, version, (*ops, *record))


def record_ops(flash: Flash, found: Inspection, version: str | None) -> tuple[FlashOp, ...]:
    """The operations that store a tag in NVS as it is now; None: the key is removed.

    Raises OtaError as `nvs.set_string` does.
    """
    store = found.store
    assert store is not None
    raw = flash.read(store.offset, store.whole_bytes)
    if version is None:
        return nvs.erase_key(raw, base=store.offset, namespace=NAMESPACE, key=VERSION_KEY).ops
    return nvs.set_string(
        raw, base=store.offset, namespace=NAMESPACE, key=VERSION_KEY, value=version
    ).ops
