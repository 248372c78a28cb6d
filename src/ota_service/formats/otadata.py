# SPDX-License-Identifier: GPL-3.0-or-later
"""otadata: which slot boots, and how to change that so that a cut of power never hurts.

Format: ESP-IDF, `esp_flash_partitions.h` (esp_ota_select_entry_t) and `bootloader_common_loader.c`;
the order in which slots are tried: `bootloader_utility.c`. Two sectors, one entry of 32 bytes at
the start of each: ota_seq u32, label[20], ota_state u32, crc u32 of ota_seq.

How an entry is changed here (a program clears any subset of its bits when it is cut, an erase
sets any subset):

- Written: first everything but the CRC, then the CRC alone. Until its last bit is cleared the
  CRC is wrong (FFFFFFFF belongs to seq 0, which is never written), so a torn entry never counts.
- Taken away: the CRC alone is programmed to zero. A whole entry is not whole any more from the
  first cleared bit on. One that a torn write has left may have the right CRC but for surplus ones,
  and would pass through it: there a single bit that the right CRC needs is cleared first, which
  no cut can halve. Zeroing all 32 bytes would not do: a torn program may turn ABORTED (4) into
  NEW (0) first, and a later torn erase may make seq 0 with CRC FFFFFFFF, which counts.
- Erased: an entry that was rejected (INVALID, ABORTED) or torn is taken away before, or a torn
  erase could turn its state into one that counts while its CRC is still right. (Out of reach is
  only otadata whose two entries are all zeros, which no firmware writes: an erase cut such that
  all of a CRC is set and nothing of its seq gives seq 0, which counts.)
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum

from ota_service.errors import OtaError
from ota_service.formats.flashops import (
    SECTOR_BYTES,
    Erase,
    FlashOp,
    Program,
    Recorder,
)
from ota_service.formats.partitions import OTADATA_BYTES, Partition, PartitionTable

ENTRY_BYTES = 32
SEQ_BLANK = 0xFFFFFFFF
_CRC_AT = 28


class OtaState(IntEnum):
    """The state of an entry (`esp_ota_img_states_t`)."""

    NEW = 0
    PENDING_VERIFY = 1
    VALID = 2
    INVALID = 3
    ABORTED = 4
    UNDEFINED = 0xFFFFFFFF


_REJECTED = (OtaState.INVALID, OtaState.ABORTED)


@dataclass(frozen=True, slots=True)
class OtaEntry:
    """One of the two entries. state: usually an `OtaState`, but any number may stand there.

    blank: all its 32 bytes are FF. taken_away: its CRC is zero, as `take_away` leaves it.
    """

    seq: int
    state: int
    crc_ok: bool
    blank: bool
    label: bytes
    taken_away: bool = False

    @property
    def written(self) -> bool:
        """Whether it is whole: a sequence number with its right CRC, whatever its state."""
        return self.crc_ok and self.seq != SEQ_BLANK

    @property
    def counts(self) -> bool:
        """Whether the bootloader takes it into account (`bootloader_common_ota_select_valid`)."""
        return self.written and self.state not in _REJECTED

    @property
    def rejected(self) -> bool:
        """Whether it is whole, and the board has turned it down."""
        return self.written and self.state in _REJECTED

    @property
    def state_name(self) -> str:
        """The state for people: "VALID", or its number."""
        try:
            return OtaState(self.state).name
        except ValueError:
            return f"{self.state:#x}"

    def slot_index(self, n_slots: int) -> int:
        """The OTA slot that it names, by the bootloader's 32-bit arithmetic."""
        return ((self.seq - 1) & 0xFFFFFFFF) % n_slots


@dataclass(frozen=True, slots=True)
class OtaData:
    """Both entries. active: the sector (0 or 1) of the one that decides; None: none counts."""

    entries: tuple[OtaEntry, OtaEntry]
    active: int | None

    def slot_index(self, n_slots: int) -> int | None:
        """The OTA slot that is named, None where no entry counts.

        The slot that runs may be another one: see `boot_order`.
        """
        return None if self.active is None else self.entries[self.active].slot_index(n_slots)

    @property
    def newest(self) -> int | None:
        """The sector of the whole entry with the highest sequence number, whatever its state."""
        written = [i for i in (0, 1) if self.entries[i].written]
        return max(written, key=lambda i: (self.entries[i].seq, -i), default=None)

    @property
    def may_be_pending(self) -> bool:
        """Whether a reset may reject an entry that counts.

        A bootloader with rollback turns PENDING_VERIFY into ABORTED at every pass, in both
        sectors, whichever is active. Entries with a wrong CRC never boot anything, so nothing is
        lost with them.
        """
        return any(e.counts and e.state == OtaState.PENDING_VERIFY for e in self.entries)

    def rejecting_pending(self) -> OtaData:
        """What a bootloader with rollback makes of them at its next pass."""
        first, second = (
            replace(entry, state=OtaState.ABORTED)
            if entry.state == OtaState.PENDING_VERIFY
            else entry
            for entry in self.entries
        )
        return _deciding((first, second))

    @property
    def on_trial(self) -> bool:
        """Whether the bootloader may take an entry back that its app has not confirmed."""
        new = any(e.counts and e.state == OtaState.NEW for e in self.entries)
        return new or self.may_be_pending

    @property
    def newest_rejected(self) -> bool:
        """Whether the newest whole entry is ABORTED or INVALID: the board has rolled back."""
        newest = self.newest
        return newest is not None and self.entries[newest].rejected


def _crc(seq: int) -> int:
    return zlib.crc32(struct.pack("<I", seq), 0xFFFFFFFF)


def _entry(raw: bytes) -> OtaEntry:
    seq, label, state, crc = struct.unpack("<I20sII", raw)
    ok, blank = crc == _crc(seq), raw == b"\xff" * ENTRY_BYTES
    return OtaEntry(seq, state, ok, blank, label, taken_away=not (ok or crc))


def parse_otadata(data: bytes) -> OtaData:
    """otadata from the partition's first 0x2000 bytes.

    Of two entries that count, the one with the higher sequence number is active; with equal ones
    the first (`bootloader_common_select_otadata`).
    Raises `OtaError`: "otadata-invalid" for fewer than 0x2000 bytes. No contents are invalid.
    """
    if len(data) < OTADATA_BYTES:
        raise OtaError(
            "otadata-invalid", f"otadata has {len(data):#x} bytes instead of {OTADATA_BYTES:#x}."
        )
    entries = (
        _entry(bytes(data[:ENTRY_BYTES])),
        _entry(bytes(data[SECTOR_BYTES : SECTOR_BYTES + ENTRY_BYTES])),
    )
    return _deciding(entries)


def _deciding(entries: tuple[OtaEntry, OtaEntry]) -> OtaData:
    counting = [i for i in (0, 1) if entries[i].counts]
    return OtaData(entries, max(counting, key=lambda i: (entries[i].seq, -i), default=None))


def boot_order(otadata: OtaData, *, has_factory: bool, n_slots: int) -> list[int | None]:
    """The OTA slots in the order in which the bootloader tries them; None is factory.

    It starts with the slot named (else factory, else ota_0), goes down to factory, then up
    (`bootloader_utility_load_boot_image`). A slot whose image is damaged is passed over.
    """
    named = otadata.slot_index(n_slots)
    if named is None:
        order: list[int | None] = list(range(n_slots))
        return [None, *order] if has_factory else order
    down: list[int | None] = list(range(named, -1, -1))
    return down + ([None] if has_factory else []) + list(range(named + 1, n_slots))


def boots_after(result: bytes, table: PartitionTable) -> Partition | None:
    """The partition that these bytes of otadata name, by the bootloader's rule.

    That is the first one tried. None for a table without factory and OTA slots.
    """
    slots = table.ota_slots
    order = boot_order(
        parse_otadata(result), has_factory=table.factory is not None, n_slots=max(1, len(slots))
    )
    if order[0] is None:
        return table.factory
    return slots[order[0]] if slots else None


def shows_rollback(otadata: OtaData, *, has_factory: bool, n_slots: int) -> bool:
    """Whether this board's bootloader is known to use rollback, so that NEW may be written.

    Known by an entry that is PENDING_VERIFY or ABORTED, which nothing else writes, or VALID where
    the bootloader does not write that by itself. (Without rollback it writes VALID once: into
    sector 0 of blank otadata without factory, with seq = slot + 1. That entry stays when the app
    later writes sector 1, so it proves nothing whatever stands beside it.)
    """
    for sector, entry in enumerate(otadata.entries):
        if not entry.written:
            continue
        if entry.state in (OtaState.PENDING_VERIFY, OtaState.ABORTED):
            return True
        own = sector == 0 and 1 <= entry.seq <= n_slots and not has_factory
        if entry.state == OtaState.VALID and not own:
            return True
    return False


@dataclass(frozen=True, slots=True)
class OtaEdit:
    """A change of otadata: carry `ops` out in their order, read each back.

    ops: flash addresses; empty where nothing has to be done.
    sector: of the entry that decides afterwards (`switch`) or that is taken away (`take_away`).
    seq, state: that entry's. result: the 0x2000 bytes afterwards.
    """

    ops: tuple[FlashOp, ...]
    sector: int
    seq: int
    state: int
    result: bytes


def _disqualify(raw: bytes, offset: int, reason: str) -> list[FlashOp]:
    """Programs after which this entry is not whole, and in none of which it becomes whole, in
    whatever order their bits are cleared."""
    seq, crc = (int.from_bytes(raw[at : at + 4], "little") for at in (0, _CRC_AT))
    ops: list[FlashOp] = []
    if not _crc(seq):
        # One single seq has a CRC of zeros; it becomes another one first.
        bits = (1 << shift for shift in range(32))
        seq &= ~next(bit for bit in bits if seq & bit and _crc(seq & ~bit) != crc)
        ops.append(Program(offset, seq.to_bytes(4, "little"), reason))
    if crc != (right := _crc(seq)) and crc & right == right:
        crc &= ~(right & -right)
        ops.append(Program(offset + _CRC_AT, crc.to_bytes(4, "little"), f"{reason}: one bit first"))
    if crc:
        ops.append(Program(offset + _CRC_AT, bytes(4), reason))
    return ops


class _Plan(Recorder):
    def now(self) -> OtaData:
        return parse_otadata(bytes(self.flash))

    def erase(self, sector: int, reason: str) -> None:
        entry = self.now().entries[sector]
        offset = sector * SECTOR_BYTES
        if not entry.counts and entry.seq != SEQ_BLANK:
            raw = bytes(self.flash[offset : offset + ENTRY_BYTES])
            why = "so that a torn erase cannot revive the entry"
            self.add(_disqualify(raw, self.base + offset, why))
        self.add([Erase(self.base + offset, SECTOR_BYTES, reason)])

    def write(self, sector: int, seq: int, state: int, reason: str) -> None:
        self.erase(sector, "room for the entry")
        offset = self.base + sector * SECTOR_BYTES
        head = struct.pack("<I20sI", seq, b"\xff" * 20, state)
        crc = struct.pack("<I", _crc(seq))
        self.add([Program(offset, head, reason), Program(offset + _CRC_AT, crc, "its CRC")])


def _seq_above(floor: int, slot: int, n_slots: int) -> int | None:
    """The smallest seq above `floor` that names `slot`; None where none is left."""
    seq = floor + 1
    seq += (slot - (seq - 1)) % n_slots
    return seq if seq < SEQ_BLANK else None


def _spare_sector(otadata: OtaData) -> int:
    """Which sector to use where no entry counts: the newest rejected one, else a blank one.

    One that is all zeros comes last: see the module's text.
    """
    if otadata.newest is not None:
        return otadata.newest
    return min((0, 1), key=lambda i: (not otadata.entries[i].blank, otadata.entries[i].seq == 0))


def switch(
    data: bytes,
    *,
    base: int,
    n_slots: int,
    to_slot: int,
    running_slot: int | None,
    has_factory: bool,
    state: OtaState,
) -> OtaEdit:
    """Make the bootloader start `to_slot`, so that at every cut it starts that or what runs now.

    data: otadata's 0x2000 bytes. base: its flash address. to_slot, running_slot: OTA indices;
    running_slot None: the factory app runs. running_slot is the one that really runs, which may
    not be the one that otadata names. to_slot must hold a whole image already, unless it runs.
    state: of the new entry: NEW where `shows_rollback`, else UNDEFINED.

    What is done, in general: the sector that vouches for the running slot is spared, the other
    one is erased and gets the new entry. Taking that entry away again (`take_away`) brings the
    running slot back. For the latter the running slot must be vouched for, so:

    - The entry of the running slot is not the active one (the active one names a slot that does
      not boot): the active one's sector is written; the entry of the running slot counts as soon
      as that is erased.
    - No entry vouches for the running slot and the bootloader would not start it by default: an
      entry for it is written first, into the sector that is not active. Then the other one gets
      the new entry.
    - No entry vouches, but the bootloader starts the running slot by default (factory; ota_0
      without factory): entries of slots that do not boot are erased, the active one last.
    - No seq is left below 2^32: the running slot's entry is written again with a small seq into
      the other sector, then the high one is erased and its sector written.

    Raises `OtaError`: "otadata-invalid" for too few bytes, or where the factory app is said to
    run on a board without one.
    """
    if not (0 <= to_slot < n_slots and (running_slot is None or 0 <= running_slot < n_slots)):
        raise ValueError(f"slots {to_slot} and {running_slot} of {n_slots}")
    if running_slot is None and not has_factory:
        raise OtaError("otadata-invalid")
    plan = _Plan(data[:OTADATA_BYTES], base)
    otadata = plan.now()
    default = None if has_factory else 0
    if _nothing_to_do(otadata, n_slots, to_slot, running_slot, default, state):
        active = otadata.active
        assert active is not None
        entry = otadata.entries[active]
        return OtaEdit((), active, entry.seq, entry.state, bytes(plan.flash))

    free = _sector_to_write(plan, n_slots, to_slot, running_slot, default)
    return _write_new(plan, free, to_slot, running_slot, n_slots, state)


def _sector_to_write(
    plan: _Plan, n_slots: int, to_slot: int, running_slot: int | None, default: int | None
) -> int:
    """The sector for the new entry, once nothing needs what is in it; see `switch`."""
    otadata = plan.now()
    active = otadata.active
    vouching = [
        i
        for i, entry in enumerate(otadata.entries)
        if entry.counts and entry.slot_index(n_slots) == running_slot
    ]
    if vouching and to_slot != running_slot:
        return 1 - (active if active in vouching else vouching[0])
    spare = 1 - active if active is not None else _spare_sector(otadata)
    if to_slot == running_slot:  # it only becomes official what already runs
        return spare
    if running_slot == default:
        free = active if active is not None else spare
        if otadata.entries[1 - free].counts:
            plan.erase(1 - free, "it names a slot that does not boot")
        return free
    assert running_slot is not None
    _write_above(plan, spare, running_slot, n_slots, OtaState.UNDEFINED, "the running slot")
    return 1 - spare


def _nothing_to_do(
    otadata: OtaData,
    n_slots: int,
    to_slot: int,
    running_slot: int | None,
    default: int | None,
    state: OtaState,
) -> bool:
    """Whether otadata names `to_slot` already, as `switch` would have left it."""
    if otadata.active is None or otadata.slot_index(n_slots) != to_slot:
        return False
    if to_slot == running_slot:
        return True
    if otadata.newest != otadata.active:
        return False  # A rejected entry above it would look like a rollback ever after.
    other = otadata.entries[1 - otadata.active]
    back = other.slot_index(n_slots) if other.counts else default
    return otadata.entries[otadata.active].state == state and back == running_slot


def _floor(plan: _Plan, sector: int) -> int:
    """The seq that an entry in `sector` has to exceed: that of a whole entry beside it."""
    beside = plan.now().entries[1 - sector]
    return beside.seq if beside.written else 0


def _write_above(plan: _Plan, sector: int, slot: int, n_slots: int, state: int, reason: str) -> int:
    """An entry for `slot` in `sector`, above the other one if there is room below 2^32."""
    seq = _seq_above(_floor(plan, sector), slot, n_slots) or slot + 1
    plan.write(sector, seq, state, reason)
    return seq


def _write_new(
    plan: _Plan, free: int, to_slot: int, running_slot: int | None, n_slots: int, state: OtaState
) -> OtaEdit:
    """The new entry in sector `free`, above what is beside it, made room for if need be."""
    beside = plan.now().entries[1 - free]
    if _seq_above(_floor(plan, free), to_slot, n_slots) is None:
        if beside.counts and running_slot is not None and to_slot != running_slot:
            plan.write(free, running_slot + 1, OtaState.UNDEFINED, "the running slot, renumbered")
            plan.erase(1 - free, "its sequence numbers are used up")
            free = 1 - free
        elif beside.counts:
            # The running slot itself becomes official, beside an entry that does not boot.
            plan.write(free, to_slot + 1, state, "the slot to boot")
            plan.erase(1 - free, "its sequence numbers are used up")
            return OtaEdit(tuple(plan.ops), free, to_slot + 1, state, bytes(plan.flash))
        else:
            plan.erase(1 - free, "its sequence numbers are used up")
    seq = _write_above(plan, free, to_slot, n_slots, state, "the slot to boot")
    return OtaEdit(tuple(plan.ops), free, seq, state, bytes(plan.flash))


def take_away(data: bytes, *, base: int, sector: int) -> OtaEdit:
    """Take the entry of `sector` away; the other entry then decides.

    Its CRC is programmed to zero, which no cut can leave half done (see the module's text); the
    sector is not erased, because a torn erase could leave more than the entry had.
    `boots_after(edit.result, table)` says what boots then. No operation for a blank entry.
    """
    if sector not in (0, 1):
        raise ValueError(f"sector {sector}")
    plan = _Plan(data[:OTADATA_BYTES], base)
    entry = plan.now().entries[sector]
    if entry.written:
        offset = sector * SECTOR_BYTES
        raw = bytes(plan.flash[offset : offset + ENTRY_BYTES])
        plan.add(_disqualify(raw, base + offset, "the entry is taken away"))
    return OtaEdit(tuple(plan.ops), sector, entry.seq, entry.state, bytes(plan.flash))
