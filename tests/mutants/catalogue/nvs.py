# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing the version in NVS: what would lose it, or another key."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

EDIT = "tests/formats/test_nvs_edit.py"
STARTS = "tests/formats/test_nvs_starts.py"
_EDIT, _FLASH = "formats/nvs/edit.py", "formats/nvs/flash.py"
_PROVE = "formats/nvs/prove.py"

MUTANTS = (
    Mutant(
        "items that nothing finds stay in the way",
        "formats/nvs/edit.py",
        "    if hidden:\n        yield from _store(",
        "    if hidden and nvs.freeing:\n        yield from _store(",
        "tests/formats/test_nvs_starts.py::test_items_that_nothing_finds_are_out_of_the_way",
    ),
    Mutant(
        "a blob's parts are erased before its index",
        _EDIT,
        "key=lambda pair: pair[1].chunk != CHUNK_ANY",
        "key=lambda pair: pair[1].chunk == CHUNK_ANY",
        f"{EDIT}::test_taking_a_blob_away",
    ),
    Mutant(
        "what stands behind the free entries is not looked at",
        _EDIT,
        "dirty = [i for i in range(index, index + needed) if not page.is_blank(i)]",
        "dirty = [i for i in range(index, index + needed) if i < index]",
        f"{EDIT}::test_dirty_free_entries_are_skipped",
    ),
    Mutant(
        "a namespace's number that items use is free",
        _EDIT,
        "        taken.add(item.namespace)\n",
        "",
        f"{EDIT}::test_a_number_without_its_name_is_not_free",
    ),
    Mutant(
        "the old item is left standing",
        _EDIT,
        "        _erase_old(changed, key, value)\n",
        "",
        f"{EDIT}::test_append",
    ),
    Mutant(
        "a way is taken without its proof",
        _EDIT,
        "if proof.holds(changed.ops, value):",
        "if changed.ops:",
        f"{STARTS}::test_no_page_can_be_moved_without_risk",
    ),
    Mutant(
        "NVS that its firmware cannot open is written to",
        _EDIT,
        "if nvs.order and nvs.free_pages == 0:",
        "if nvs.free_pages == 0 and not nvs.order:",
        f"{STARTS}::test_what_no_firmware_can_open_is_left_as_it_is",
    ),
    Mutant(
        "a page whose items are all erased is not room",
        _EDIT,
        "[page for page in nvs.order if not page.items]",
        "[page for page in nvs.order if page.items]",
        f"{STARTS}::test_a_page_whose_items_are_all_erased_is_room",
    ),
    Mutant(
        "the page that is written to is not repaired first",
        _EDIT,
        "        flash.repair_page(last.index)\n",
        "",
        f"{EDIT}::test_a_torn_item_of_the_app",
    ),
    Mutant(
        "the older twin of the last item stays behind a new one",
        _EDIT,
        "    if nvs.twin is not None:\n",
        "    if nvs.twin is not None and nvs.freeing is not None:\n",
        f"{EDIT}::test_the_twin_of_another_key",
    ),
    Mutant(
        "an unfinished copy is left beside the new one",
        _EDIT,
        '        flash.kill(flash.page(nvs.dropped.index), "an unfinished copy")\n',
        "        pass\n",
        f"{STARTS}::test_a_version_is_not_lost_with_an_unfinished_copy "
        f"{EDIT}::test_a_page_that_is_being_freed",
    ),
    Mutant(
        "a header's first word is not written alone",
        _FLASH,
        '        self.program(page, place, entries[:4], f"{reason}: first word")\n'
        '        self.program(page, place + 4, entries[4:ENTRY_BYTES], f"{reason}: header")\n',
        '        self.program(page, place, entries[:ENTRY_BYTES], f"{reason}: header")\n',
        f"{EDIT}::test_append",
    ),
    Mutant(
        "a dead page keeps the right CRC",
        _FLASH,
        '        self.program(page.index, 28, bytes(4), f"{reason}: its CRC")\n',
        "",
        f"{EDIT}::test_collect",
    ),
    Mutant(
        "the proof asks old versions of the firmware only",
        _PROVE,
        "    Version(any_chunk=True, drops=False),\n    Version(any_chunk=True, drops=True),\n",
        "",
        f"{STARTS}::test_no_page_can_be_moved_without_risk",
    ),
    Mutant(
        "the proof looks at one start only",
        _PROVE,
        "second = self._start(tuple(after), drops)",
        "second = first",
        f"{STARTS}::test_a_page_is_chosen_whose_copy_keeps_a_blob",
    ),
    Mutant(
        "the proof does not tell what stands in free entries",
        "formats/nvs/page.py",
        'b"\\0" if s == EntryState.ERASED',
        'b"\\0" if s != EntryState.WRITTEN',
        f"{STARTS}::test_pages_that_the_proof_takes_for_one_differ_in_erased_bytes_only",
    ),
    Mutant(
        "nothing stands behind a copy that ends in a part of a blob",
        _EDIT,
        "guard = not new and _ends_in_later_part(items) and _used(items) < ENTRY_COUNT",
        "guard = False",
        f"{STARTS}::test_a_move_that_was_cut_before_parts_without_an_index",
    ),
    Mutant(
        "the bytes of a cut write are left under its bits",
        _FLASH,
        "        self._zero(page, entries, reason)\n        for entry in reversed(entries):",
        "        for entry in reversed(entries):",
        f"{EDIT}::test_a_torn_item_of_the_app",
    ),
    Mutant(
        "the proof cuts between operations only",
        _PROVE,
        "    changed = old ^ new\n",
        "    changed = 0\n",
        f"{EDIT}::test_the_proof_refuses_what_only_a_torn_program_would_break",
    ),
)
