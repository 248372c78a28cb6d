# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries a plan's writes out, step by step, over any `Flash`.

Order (design.md, items 2 to 4): slot, its digest, otadata, version, each read back. Power may
fail at any point: the running slot and its otadata entry are never touched, and a slot that is
being written never looks bootable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ota_service.board.flash import Flash, Progress, apply_verified, program_verified
from ota_service.board.inspect import NAMESPACE, VERSION_KEY, boot_order, image_bytes
from ota_service.board.plan import Plan, RecordVersion, SwitchOtadata, WriteSlot
from ota_service.board.stream import SlotStream
from ota_service.errors import OtaError
from ota_service.formats import nvs, otadata
from ota_service.formats.flashops import PAGE_BYTES, SECTOR_BYTES, FlashOp, Program
from ota_service.formats.image import parse_app_image
from ota_service.formats.otadata import OtaState
from ota_service.formats.partitions import Partition, PartitionTable

Phase = Literal["writing", "verifying", "switching", "recording"]
PhaseHook = Callable[[Phase], None]
"""Called as each phase begins; raises to stop there (only before the switch: see `carry_out`)."""

VersionOf = Callable[[Partition], str | None]

IMAGE_MAGIC = 0xE9
OTA_STATE_AT = 24
"""Of ota_state in an otadata entry (esp32.md, "otadata")."""

NEW_STATE = bytes(4)


def carry_out(
    plan: Plan, flash: Flash, stream: SlotStream | None, *, phase: PhaseHook, progress: Progress
) -> None:
    """Do the plan's writes; restarting and watching is the session's.

    stream: the image of a `WriteSlot`. phase and progress may raise to stop before the switch:
    nothing that boots has been changed until then. From the switch on they must not raise.
    Raises OtaError `verify-failed`, `flash-protected`, `link-lost`.
    """
    for step in plan.steps:
        if isinstance(step, WriteSlot):
            if stream is None:
                raise ValueError("a plan that writes a slot needs an image")
            write_slot(flash, step.slot, stream, phase=phase, progress=progress)
        elif isinstance(step, SwitchOtadata):
            phase("switching")
            apply_verified(flash, step.edit.ops)
        elif isinstance(step, RecordVersion):
            phase("recording")
            apply_verified(flash, step.edit.ops)


def write_slot(
    flash: Flash,
    slot: Partition,
    stream: SlotStream,
    *,
    phase: PhaseHook = lambda _: None,
    progress: Progress = lambda _: None,
) -> None:
    """Write an image into a slot that does not run, so that it never looks half bootable.

    What stands there loses its magic byte first, by one program that can only clear bits. The
    body is written and its digest read back while the first page is blank. Then the first page
    is programmed but for its magic byte, and the magic byte alone last: an interruption leaves
    either no image or the whole one.
    """
    phase("writing")
    if flash.read(slot.offset, 1)[0] == IMAGE_MAGIC:
        program_verified(flash, Program(slot.offset, b"\x00", "no image any more"))
    flash.write_stream(slot.offset, stream, progress)
    phase("verifying")
    body = slot.offset + PAGE_BYTES
    if flash.md5(body, stream.size_bytes - PAGE_BYTES) != stream.body_md5:
        raise OtaError("verify-failed", f"The image in {slot.label} is not what was written.")
    program_verified(flash, Program(slot.offset + 1, stream.head[1:], "image header"))
    program_verified(flash, Program(slot.offset, stream.head[:1], "image magic"))
    if flash.md5(slot.offset, stream.size_bytes) != stream.image_md5:
        raise OtaError("verify-failed", f"The image in {slot.label} is not what was written.")


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """How a board goes back: the new otadata entry taken away, then the version.

    slot: what will run then. version: the tag that will be stored; None: the key is removed.
    ops: in their order.
    """

    slot: Partition
    version: str | None
    ops: tuple[FlashOp, ...]


def plan_rollback(
    flash: Flash, table: PartitionTable, *, bad: Partition, version_of: VersionOf
) -> RollbackPlan:
    """Look at the board again, and plan its way back from the slot `bad`.

    version_of: the tag that belongs to the slot gone back to; None: none did. Where the
    bootloader has gone back by itself (fallback or its own rollback), the entry is taken away
    all the same, so that the next power-on does not try it again.
    Raises OtaError `boot-failed` where nothing else on the board is bootable: then nothing is
    changed.
    """
    at, store = table.otadata, table.nvs
    assert at is not None
    assert store is not None
    raw = flash.read(at.offset, at.size_bytes)
    entries = otadata.parse_otadata(raw)
    slots = table.ota_slots
    ops: list[FlashOp] = []
    if bad in slots:
        for sector, entry in enumerate(entries.entries):
            if entry.written and entry.slot_index(len(slots)) == slots.index(bad):
                edit = otadata.take_away(raw, base=at.offset, sector=sector)
                ops += edit.ops
                raw = edit.result
    slot = _will_boot(flash, table, raw, bad)
    nvs_raw = flash.read(store.offset, store.size_bytes)
    version = version_of(slot)
    if version is None:
        back = nvs.erase_key(nvs_raw, base=store.offset, namespace=NAMESPACE, key=VERSION_KEY)
    else:
        back = nvs.set_string(
            nvs_raw, base=store.offset, namespace=NAMESPACE, key=VERSION_KEY, value=version
        )
    return RollbackPlan(slot, version, (*ops, *back.ops))


def _will_boot(flash: Flash, table: PartitionTable, raw: bytes, bad: Partition) -> Partition:
    """The partition that the bootloader starts with this otadata; verified by its image."""
    for partition in boot_order(table, otadata.parse_otadata(raw)):
        if partition == bad:
            continue
        if is_bootable(flash, partition):
            return partition
    raise OtaError(
        "boot-failed",
        f"The firmware in {bad.label} did not come up, and no other slot holds a whole image "
        "to go back to, so nothing was changed.",
        remedy="Correct the firmware and update again, or write a Merged Binary with "
        "`make flash-esp32-bin`.",
    )


def is_bootable(flash: Flash, partition: Partition) -> bool:
    """Whether a partition holds a whole image, as the bootloader verifies it."""
    size_bytes = image_bytes(flash, partition)
    if size_bytes is None:
        return False
    try:
        parse_app_image(flash.read(partition.offset, size_bytes), trailing=True)
    except OtaError as error:
        if error.code == "link-lost":
            raise
        return False
    return True


def rearm(flash: Flash, table: PartitionTable) -> None:
    """Give an app that waits for confirmation its whole time again.

    For a board that was found in PENDING_VERIFY when it was first looked at: leaving download
    mode passes the bootloader, which would abort the entry. NEW is PENDING_VERIFY with one bit
    cleared, and the entry's CRC does not cover the state, so one program turns it back.
    """
    at = table.otadata
    assert at is not None
    entries = otadata.parse_otadata(flash.read(at.offset, at.size_bytes)).entries
    for sector, entry in enumerate(entries):
        if entry.counts and entry.state == OtaState.PENDING_VERIFY:
            state_at = at.offset + sector * SECTOR_BYTES + OTA_STATE_AT
            apply_verified(flash, [Program(state_at, NEW_STATE, "its time to confirm again")])
