# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of images and otadata, and how the slot is switched."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

OTADATA = "tests/formats/test_otadata.py"
IMAGE = "tests/formats/test_image.py"

MUTANTS = (
    Mutant(
        "an entry's CRC is written before the entry",
        "formats/otadata.py",
        'self.add([Program(offset, head, reason), Program(offset + _CRC_AT, crc, "its CRC")])',
        'self.add([Program(offset + _CRC_AT, crc, "its CRC"), Program(offset, head, reason)])',
        f"{OTADATA}::test_an_entry_counts_only_with_its_state",
    ),
    Mutant(
        "a torn entry's CRC goes to zero in one program",
        "formats/otadata.py",
        "if crc != (right := _crc(seq)) and crc & right == right:",
        "if crc == (right := _crc(seq)) and crc & right != right:",
        f"{OTADATA}::test_the_entry_that_a_cut_would_have_revived",
    ),
    Mutant(
        "the number whose CRC is zero is left alone",
        "formats/otadata.py",
        "if not _crc(seq):",
        "if not seq:",
        OTADATA,
    ),
    Mutant(
        "a rejected entry is not taken away before its sector is erased",
        "formats/otadata.py",
        "if not entry.counts and entry.seq != SEQ_BLANK:",
        "if not entry.counts and entry.seq == SEQ_BLANK:",
        OTADATA,
    ),
    Mutant(
        "of two equal numbers the second entry decides",
        "formats/otadata.py",
        "return OtaData(entries, max(counting, key=lambda i: (entries[i].seq, -i), default=None))",
        "return OtaData(entries, max(counting, key=lambda i: (entries[i].seq, i), default=None))",
        OTADATA,
    ),
    Mutant(
        "an ABORTED entry counts",
        "formats/otadata.py",
        "_REJECTED = (OtaState.INVALID, OtaState.ABORTED)",
        "_REJECTED = (OtaState.INVALID,)",
        OTADATA,
    ),
    Mutant(
        "a pending entry in the sector that does not decide is overlooked",
        "formats/otadata.py",
        "return any(e.counts and e.state == OtaState.PENDING_VERIFY for e in self.entries)",
        "return self.active is not None "
        "and self.entries[self.active].state == OtaState.PENDING_VERIFY",
        OTADATA,
    ),
    Mutant(
        "the entry of the running slot is written over",
        "formats/otadata.py",
        "return 1 - (active if active in vouching else vouching[0])",
        "return active if active in vouching else vouching[0]",
        OTADATA,
    ),
    Mutant(
        "VALID that the bootloader writes by itself counts as rollback",
        "formats/otadata.py",
        "own = sector == 0 and 1 <= entry.seq <= n_slots and not has_factory",
        "own = sector == 0 and 1 < entry.seq <= n_slots and not has_factory",
        OTADATA,
    ),
    Mutant(
        "an entry that names the right slot in another state is taken for the wanted one",
        "formats/otadata.py",
        "return otadata.entries[otadata.active].state == state and back == running_slot",
        "return back == running_slot",
        OTADATA,
    ),
    Mutant(
        "an image's checksum is not looked at",
        "formats/image.py",
        "if checksum != data[length - 1]:",
        "if checksum != data[length - 1] and hash_appended:",
        IMAGE,
    ),
    Mutant(
        "an image's appended SHA-256 is not looked at",
        "formats/image.py",
        "if hash_appended and hashlib.sha256(view[:length]).digest() != data[length:size_bytes]:",
        "if hash_appended and not data[length:size_bytes]:",
        IMAGE,
    ),
    Mutant(
        "any other value of the hash flag means no hash",
        "formats/image.py",
        "hash_appended = data[23] != 0  # as the bootloader reads it",
        "hash_appended = data[23] == 1",
        IMAGE,
    ),
    Mutant(
        "an app's mapped segments may stand anywhere",
        "formats/image.py",
        "if chip.maps(seg.load_address) and (seg.load_address - seg.file_offset) % page:",
        "if chip.maps(seg.load_address) and (seg.load_address - seg.file_offset) % 4:",
        IMAGE,
    ),
    Mutant(
        "a Merged Binary passes for an App Image",
        "formats/image.py",
        '    if find_partition_table(data) is not None:\n        raise OtaError("merged-binary")\n',
        "",
        IMAGE,
    ),
    Mutant(
        "a program for memory passes for a bootloader",
        "formats/image.py",
        "return chip.loader is None or any(",
        "return True or any(",
        "tests/cli/test_words.py",
    ),
    Mutant(
        "an app for other fuse blocks is written",
        "formats/image.py",
        "if not within(revision, least, highest):",
        "if revision < least:",
        "tests/cli/test_words.py",
    ),
)
