# SPDX-License-Identifier: GPL-3.0-or-later
"""otadata: read as the bootloader reads it, and changed so that every cut boots old or new."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase, Program, apply_ops
from ota_service.formats.otadata import (
    OtaEdit,
    OtaState,
    boot_order,
    boots_after,
    parse_otadata,
    shows_rollback,
    switch,
    take_away,
)
from ota_service.formats.partitions import parse_partition_table
from tests.formats import tables
from tests.formats.boot import choose, entry
from tests.formats.cuts import cut_states, single_bits

BLANK = b"\xff" * 4096
BASE = 0xD000
STATES = [*OtaState]
TOP = 0xFFFFFFFE  # the highest sequence number that can count


def sectors(seqs: list[int], states: list[int]) -> list[bytes]:
    """Blank, zeroed, and an entry of each seq and state, each also with a wrong CRC."""
    found = [BLANK, bytes(32) + BLANK[32:], bytes(4096)]
    for seq in seqs:
        found += [entry(seq, state) for state in states]
        found.append(entry(seq, OtaState.VALID, good=False))
    return found


def test_active_entry_and_slot() -> None:
    """The higher sequence number of the entries that count decides; equal ones: the first."""
    for first, second, active, slot in [
        (BLANK, BLANK, None, None),
        (entry(1, 0xFFFFFFFF), BLANK, 0, 0),
        (entry(1, 2), entry(2, 0xFFFFFFFF), 1, 1),
        (entry(1, 2), entry(2, 4), 0, 0),
        (entry(1, 2), entry(2, 3), 0, 0),
        (entry(1, 2), entry(2, 1), 1, 1),
        (entry(5, 2), entry(5, 2), 0, 0),
        (entry(3, 2, good=False), entry(2, 2), 1, 1),
        (entry(0, 2), BLANK, 0, 1),
    ]:
        ota = parse_otadata(first + second)
        assert (ota.active, ota.slot_index(2)) == (active, slot)


def test_sequence_number_zero() -> None:
    """Nothing writes it, but it counts, and the bootloader's arithmetic has 32 bits."""
    for slots in range(1, 17):
        ota = parse_otadata(entry(0, 2) + BLANK)
        assert ota.slot_index(slots) == choose(entry(0, 2) + BLANK, slots, False, range(slots))


def test_the_blank_number_never_counts() -> None:
    """Not even with its right CRC: the bootloader looks at the number first."""
    for state in (0, 2, 0xFFFFFFFF):
        data = entry(0xFFFFFFFF, state) + entry(1, 2)
        ota = parse_otadata(data)
        assert (ota.active, ota.newest) == (1, 1)
        assert ota.slot_index(3) == choose(data, 3, True, range(3))


def test_any_state_number_counts_but_the_two_rejected() -> None:
    """The bootloader knows only INVALID and ABORTED as reasons not to boot."""
    for state in (*range(10), 0x12345678, 0xFFFFFFFF):
        found = parse_otadata(entry(1, state) + BLANK).entries[0]
        assert found.counts is (state not in (3, 4))
    assert parse_otadata(entry(1, 7) + BLANK).entries[0].state_name == "0x7"


def test_short_otadata() -> None:
    """Fewer than two sectors cannot be judged."""
    with pytest.raises(OtaError) as caught:
        parse_otadata(BLANK + BLANK[:-1])
    assert caught.value.code == "otadata-invalid"


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_any_entries(first: bytes, second: bytes) -> None:
    """Any bytes are read, and agree with the tests' own bootloader."""
    data = first.ljust(4096, b"\xff") + second.ljust(4096, b"\xff")
    ota = parse_otadata(data)
    for slots in (2, 3, 16):
        for factory in (True, False):
            order = boot_order(ota, has_factory=factory, n_slots=slots)
            first_choice = choose(data, slots, factory, range(-1, slots))
            assert order[0] == (None if first_choice == -1 else first_choice)


def test_the_order_of_tries_is_the_bootloaders() -> None:
    """With every set of damaged slots the first whole one of `boot_order` is what boots."""
    for slots, factory in itertools.product((2, 3, 4), (True, False)):
        everything = [*range(-1 if factory else 0, slots)]
        for seq in (None, *range(1, slots + 1)):
            data = BLANK * 2 if seq is None else entry(seq, 2) + BLANK
            order = boot_order(parse_otadata(data), has_factory=factory, n_slots=slots)
            numbers = [-1 if slot is None else slot for slot in order]
            assert sorted(numbers) == everything
            for size in range(len(everything) + 1):
                for bootable in itertools.combinations(everything, size):
                    expected = next((slot for slot in numbers if slot in bootable), None)
                    assert choose(data, slots, factory, bootable) == expected


def test_pending() -> None:
    """Either entry that counts and is PENDING_VERIFY is lost at a reset of a rollback board."""
    for data, pending in [
        (entry(1, 2) + entry(2, 1), True),
        (entry(3, 2) + entry(2, 1), True),
        (entry(1, 1) + BLANK, True),
        (entry(1, 2) + entry(2, 1, good=False), False),
        (entry(1, 2) + entry(2, 0), False),
        (BLANK * 2, False),
    ]:
        assert parse_otadata(data).may_be_pending is pending


def test_newest_rejected() -> None:
    """A board that turned its newest entry down has rolled back."""
    for data, rejected in [
        (entry(1, 2) + entry(2, 4), True),
        (entry(1, 2) + entry(2, 3), True),
        (BLANK + entry(2, 4), True),
        (entry(3, 2) + entry(2, 4), False),
        (entry(1, 2) + entry(2, 4, good=False), False),
        (BLANK * 2, False),
    ]:
        assert parse_otadata(data).newest_rejected is rejected


@pytest.mark.parametrize(
    ("first", "second", "factory", "known"),
    [
        (BLANK, BLANK, False, False),
        (entry(1, 1), BLANK, True, True),
        (entry(1, 2), entry(2, 4), False, True),
        (entry(1, 2), BLANK, False, False),  # the bootloader wrote that by itself
        (entry(2, 2), BLANK, False, False),
        (entry(1, 2), entry(2, 0xFFFFFFFF), False, False),  # and the app switched later
        (entry(1, 2), BLANK, True, True),
        (entry(3, 2), BLANK, False, True),
        (BLANK, entry(1, 2), False, True),
        (entry(1, 2), entry(2, 2), False, True),
        (entry(1, 0xFFFFFFFF), entry(2, 0xFFFFFFFF), True, False),
        (entry(1, 0), entry(2, 0), True, False),  # NEW, written by a host perhaps
        (entry(1, 3), entry(2, 0xFFFFFFFF), True, False),
        (entry(1, 4, good=False), BLANK, True, False),
    ],
)
def test_what_shows_rollback(first: bytes, second: bytes, factory: bool, known: bool) -> None:
    """NEW is written only where the board's own traces prove a bootloader with rollback."""
    ota = parse_otadata(first + second)
    assert shows_rollback(ota, has_factory=factory, n_slots=2) is known


def test_boots_after() -> None:
    """The partition named: by an entry, else factory, else ota_0."""
    guide = parse_partition_table(tables.table_bytes(tables.OTA_GUIDE))
    shipped = parse_partition_table(tables.table_bytes(tables.AS_SHIPPED))
    for data, table, label in [
        (BLANK * 2, guide, "factory"),
        (BLANK * 2, shipped, "ota_0"),
        (entry(2, 2) + BLANK, guide, "ota_1"),
        (entry(2, 2) + entry(3, 2), shipped, "ota_0"),
    ]:
        part = boots_after(data, table)
        assert part is not None
        assert part.label == label


def run(
    data: bytes, slots: int, factory: bool, running: int, to_slot: int, state: OtaState
) -> OtaEdit:
    """`switch` with the tests' number -1 for factory."""
    return switch(
        data,
        base=BASE,
        n_slots=slots,
        to_slot=to_slot,
        running_slot=None if running < 0 else running,
        has_factory=factory,
        state=state,
    )


def prove(
    data: bytes, slots: int, factory: bool, broken: frozenset[int], to_slot: int, deep: bool
) -> int:
    """Prove one switch: what must hold of its result and of each cut; the number of states seen.

    broken: slots without a whole image before the update. Slot `to_slot` has one now.
    """
    everything = set(range(-1 if factory else 0, slots))
    running = choose(data, slots, factory, everything - broken)
    if running is None or running == to_slot:
        return 0
    bootable = everything - broken | {to_slot}
    edit = run(data, slots, factory, running, to_slot, OtaState.NEW)
    where = (data[:32].hex(), data[4096:4128].hex(), slots, factory, broken, running, to_slot)
    assert choose(edit.result, slots, factory, everything) == to_slot, where
    new = parse_otadata(edit.result)
    assert new.active == edit.sector, where
    assert new.entries[edit.sector].seq == edit.seq, where
    assert new.entries[edit.sector].state == OtaState.NEW, where
    assert not new.newest_rejected, where
    # A second call finds nothing left to do.
    assert not run(edit.result, slots, factory, running, to_slot, OtaState.NEW).ops, where
    flash = bytearray(data)
    for op in edit.ops:  # each reads back as its own data
        apply_ops(flash, [op], BASE)
        if isinstance(op, Program):
            assert flash[op.offset - BASE :][: len(op.data)] == op.data, where
    assert flash == edit.result, where
    seen = 0
    for name, state in cut_states(data, edit.ops, BASE, torn_each=6 if deep else 0):
        if deep or "first" not in name or name.endswith((" 4", " 24", " 28")):
            assert choose(state, slots, factory, bootable) in (running, to_slot), (where, name)
            seen += 1
    # Taking it away brings back what ran, although the new slot's image is whole.
    away = take_away(edit.result, base=BASE, sector=edit.sector)
    assert len(away.ops) == 1, where
    assert choose(away.result, slots, factory, bootable) == running, where
    torn = single_bits(edit.result, away.result) if deep else []
    for state in torn:
        assert choose(state, slots, factory, bootable) == running, where
        seen += 1
    return seen


def situations(
    slots: int, seqs: list[int], states: list[int]
) -> Iterator[tuple[bytes, bool, frozenset[int]]]:
    """otadata of every pair of sectors, with and without factory, with slots damaged or not."""
    both = sectors(seqs, states)
    for first, second, factory in itertools.product(both, both, (True, False)):
        if first[:32] == second[:32] == bytes(32):
            continue  # see the text of otadata.py: no operation can make that safe
        data = first + second
        yield data, factory, frozenset()
        named = choose(data, slots, factory, range(slots))
        if named is not None:
            yield data, factory, frozenset({named})
            yield data, factory, frozenset(range(slots)) - {(named + 1) % slots}
            yield data, factory, frozenset(range(slots))


@pytest.mark.slow
@pytest.mark.parametrize("slots", [2, 3, 5, 16])
def test_every_switch(slots: int) -> None:
    """Every pair of entries, in every state for two slots, with sequence numbers at both ends:
    each cut boots the old or the new, never anything else."""
    seqs = [1, 2, TOP - 1, TOP] if slots < 3 else [1, 2, TOP]
    states: list[int] = [*STATES] if slots < 3 else [0, 2, 4]
    targets = range(slots) if slots < 5 else (0, 1, slots - 1)
    seen = 0
    for data, factory, broken in situations(slots, seqs, states):
        for to_slot in targets:
            seen += prove(data, slots, factory, broken, to_slot, deep=False)
    assert seen > 10_000


@pytest.mark.parametrize(
    "slots",
    [2, 5, 16, pytest.param(3, marks=pytest.mark.slow)],
)
def test_torn_switches(slots: int) -> None:
    """Few and many slots, with operations torn at any byte or bit."""
    for first, second in [
        (BLANK, BLANK),
        (entry(1, 2), BLANK),
        (entry(1, 2), entry(2, 4)),
        (entry(slots + 1, 0xFFFFFFFF), entry(slots + 2, 3)),
        (entry(TOP, 2), entry(3, 2)),
        (entry(4, 2), entry(5, 2)),
    ]:
        for factory, to_slot in itertools.product((True, False), {0, 1, slots - 1}):
            prove(first + second, slots, factory, frozenset(), to_slot, deep=True)
            broken = frozenset({choose(first + second, slots, False, range(slots)) or 0})
            prove(first + second, slots, factory, broken, to_slot, deep=True)


def test_the_ordinary_switch() -> None:
    """Firmware-like: only the other sector is touched, with the smallest seq that fits."""
    data = entry(4, 2) + entry(3, 2)
    edit = run(data, 2, False, 1, 0, OtaState.UNDEFINED)
    assert (edit.sector, edit.seq, edit.state) == (1, 5, OtaState.UNDEFINED)
    assert edit.result[:4096] == data[:4096]
    assert all(op.offset >= BASE + 4096 for op in edit.ops)
    assert [type(op) for op in edit.ops] == [Erase, Program, Program]
    assert edit.result[4096:] == entry(5, 0xFFFFFFFF)


def test_first_switch_from_factory() -> None:
    """Blank otadata: one entry, and taking it away gives blank behaviour again."""
    edit = run(BLANK * 2, 2, True, -1, 1, OtaState.UNDEFINED)
    assert (edit.sector, edit.seq) == (0, 2)


def test_making_official_what_runs() -> None:
    """Where the running slot runs by fallback only, otadata can be made to name it."""
    data = entry(2, 2) + BLANK  # slot 1 is damaged, slot 0 runs
    edit = run(data, 2, False, 0, 0, OtaState.UNDEFINED)
    assert (edit.sector, edit.seq) == (1, 3)
    for name, state in cut_states(data, edit.ops, BASE):
        assert choose(state, 2, False, {0}) == 0, name
    assert not run(edit.result, 2, False, 0, 0, OtaState.UNDEFINED).ops


def test_used_up_sequence_numbers_beside_a_slot_that_does_not_boot() -> None:
    """The running slot becomes official with a small seq; the high entry is erased last."""
    data = entry(TOP, 2) + BLANK  # names slot 1 of 2, which is damaged
    edit = run(data, 2, False, 0, 0, OtaState.UNDEFINED)
    assert (edit.sector, edit.seq) == (1, 1)
    assert edit.result[:4096] == BLANK
    for name, state in cut_states(data, edit.ops, BASE):
        assert choose(state, 2, False, {0}) == 0, name


def test_a_rejected_entry_is_taken_away_before_its_sector_is_erased() -> None:
    """An ABORTED entry with the higher seq never comes back, at whichever bit an erase is torn."""
    data = entry(1, 2) + entry(2, 4)
    edit = run(data, 2, False, 0, 1, OtaState.NEW)
    assert isinstance(edit.ops[0], Program)
    flash = data
    for index, op in enumerate(edit.ops[:-1]):
        after = dict(cut_states(flash, [op], BASE))["op 0 done"]
        for state in single_bits(flash, after):
            assert choose(state, 2, False, {0, 1}) == 0, index
        flash = after


def seq_of(crc: int) -> int:
    """The one sequence number that has this CRC: the 32 steps of the CRC, backwards."""
    register = crc ^ 0xFFFFFFFF
    for _ in range(32):
        register = (register ^ 0xEDB88320) << 1 | 1 if register >> 31 else register << 1
        register &= 0xFFFFFFFF
    return register


def counting(raw: bytes, op: Erase | Program, at: int) -> set[int]:
    """The sequence numbers with which an entry may count while `op` clears its bits, in whatever
    order. raw: the entry's 32 bytes. at: its address."""
    after = bytearray(raw)
    apply_ops(after, [op], at)
    (seq, state, crc), (seq_after, state_after, crc_after) = (
        struct.unpack("<I20xII", entry_bytes) for entry_bytes in (raw, after)
    )
    assert (seq, crc) == (seq_after, crc_after) or (crc == crc_after) != (seq == seq_after)
    rejected = state == state_after and state in (3, 4)
    candidates = {seq_of(crc)} if crc == crc_after else {seq}
    return {
        one
        for one in candidates
        if one != 0xFFFFFFFF
        and not rejected
        and one & seq == one
        and seq_after & one == seq_after
        and (right := zlib.crc32(one.to_bytes(4, "little"), 0xFFFFFFFF)) & crc == right
        and crc_after & right == crc_after
    }


def assert_nothing_is_revived(data: bytes, edit: OtaEdit, slots: int, allowed: set[int]) -> None:
    """Whatever order bits are cleared in, no entry comes to count but for a slot of `allowed`."""
    flash = bytearray(data)
    for op in edit.ops:
        at = op.offset - op.offset % 4096
        if isinstance(op, Program):
            for one in counting(bytes(flash[at - BASE :][:32]), op, at):
                assert ((one - 1) & 0xFFFFFFFF) % slots in allowed, (data[:32].hex(), op)
        apply_ops(flash, [op], BASE)


ZERO_CRC_SEQ = seq_of(0)
ZEROED = bytes(32) + BLANK[32:]


@given(
    st.one_of(st.integers(0, 40), st.just(ZERO_CRC_SEQ), st.integers(0, 0xFFFFFFFF)),
    st.one_of(st.just(0xFFFFFFFF), st.lists(st.integers(0, 31))),
    st.sampled_from([0, 2, 4, 0xFFFFFFFF]),
    st.integers(2, 5),
    st.booleans(),
)
def test_no_order_of_bits_revives_a_torn_entry(
    seq: int, surplus: int | list[int], state: int, slots: int, factory: bool
) -> None:
    """A torn write has left the right CRC with surplus bits: clearing more of them never makes
    the entry count, unless it names the slot that runs or the new one anyway."""
    crc = zlib.crc32(seq.to_bytes(4, "little"), 0xFFFFFFFF)
    crc |= surplus if isinstance(surplus, int) else sum(1 << bit for bit in set(surplus))
    torn = struct.pack("<I20sII", seq, b"\xff" * 20, state, crc).ljust(4096, b"\xff")
    for data in (torn + ZEROED, ZEROED + torn, torn + entry(1, 2), entry(2, 2) + torn):
        running = choose(data, slots, factory, range(-1, slots))
        assert running is not None
        to_slot = (max(running, 0) + 1) % slots
        edit = run(data, slots, factory, running, to_slot, OtaState.UNDEFINED)
        assert_nothing_is_revived(data, edit, slots, {running, to_slot})
        assert choose(edit.result, slots, factory, range(-1, slots)) == to_slot


def test_the_entry_that_a_cut_would_have_revived() -> None:
    """Three slots and factory, which runs; the torn entry for ota_0 has one surplus bit."""
    torn = bytes.fromhex("07000000" + "ff" * 24 + "c6c72862").ljust(4096, b"\xff")
    for data in (torn + ZEROED, ZEROED + torn):
        edit = run(data, 3, True, -1, 1, OtaState.UNDEFINED)
        assert_nothing_is_revived(data, edit, 3, {1})


def test_the_number_whose_crc_is_zero() -> None:
    """Taking its entry away clears a bit of the number; its CRC has none left to clear."""
    data = entry(ZERO_CRC_SEQ, 2) + BLANK
    assert parse_otadata(data).active == 0
    away = take_away(data, base=BASE, sector=0)
    assert parse_otadata(away.result).active is None
    slot = (ZERO_CRC_SEQ - 1) % 3
    assert_nothing_is_revived(data, away, 3, {slot})


def test_an_entry_counts_only_with_its_state() -> None:
    """Its CRC comes last: before, a torn write could make it count in another state than NEW, so
    that nothing would ever take it back."""
    for data in (BLANK * 2, entry(1, 2) + BLANK, entry(1, 2) + entry(2, 4)):
        edit = run(data, 2, False, 0, 1, OtaState.NEW)
        for name, state in cut_states(data, edit.ops, BASE, torn_each=12):
            found = parse_otadata(state)
            if found.slot_index(2) == 1:
                assert found.active is not None
                assert found.entries[found.active].state == OtaState.NEW, name
        head, crc = edit.ops[-2:]
        assert isinstance(head, Program)
        assert isinstance(crc, Program)
        assert (head.offset % 4096, crc.offset % 4096) == (0, 28)


def test_taking_away_nothing() -> None:
    """A blank or already worthless entry needs no operation."""
    assert take_away(BLANK * 2, base=0, sector=0).ops == ()
    once = take_away(entry(1, 2) + BLANK, base=0, sector=0)
    assert take_away(once.result, base=0, sector=0).ops == ()


def test_wrong_use() -> None:
    """Slots that do not exist are a fault of the caller; a missing factory one of the board."""
    with pytest.raises(ValueError, match="slots"):
        run(BLANK * 2, 2, False, 0, 2, OtaState.NEW)
    with pytest.raises(ValueError, match="slots"):
        run(BLANK * 2, 2, False, 2, 0, OtaState.NEW)
    with pytest.raises(ValueError, match="sector"):
        take_away(BLANK * 2, base=0, sector=2)
    with pytest.raises(OtaError) as caught:
        run(BLANK * 2, 2, False, -1, 0, OtaState.NEW)
    assert caught.value.code == "otadata-invalid"


@given(
    st.tuples(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32)),
    st.integers(2, 16),
    st.booleans(),
    st.integers(0, 15),
)
def test_switching_from_any_bytes(
    raw: tuple[bytes, bytes], slots: int, factory: bool, to_slot: int
) -> None:
    """Whatever stands in the entries, a switch is proven."""
    data = b"".join(part.ljust(4096, b"\xff") for part in raw)
    prove(data, slots, factory, frozenset(), to_slot % slots, deep=False)
