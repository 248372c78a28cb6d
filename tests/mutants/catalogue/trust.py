# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose firmware a host takes."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TRUST = "tests/firmware/test_trust.py"
REPOSITORY = "tests/firmware/test_repository.py"
REPO = "tests/cli/test_repo.py"

MUTANTS = (
    Mutant(
        "a wrong signature of a host's key counts",
        "firmware/trust.py",
        "valid = [block.key_digest for block in there if not block.problem]",
        "valid = [block.key_digest for block in there]",
        f"{TRUST}::test_what_a_host_with_a_key_takes",
    ),
    Mutant(
        "an image without a signature passes",
        "firmware/trust.py",
        "    if not there:\n        raise OtaError(",
        "    if not there:\n        return b''\n        raise OtaError(",
        f"{TRUST}::test_what_a_host_with_a_key_takes",
    ),
    Mutant(
        "the policy of the environment stands in for the host's",
        "firmware/trust.py",
        "    if added is not None:\n        found.append(",
        "    if added is not None:\n        found = []\n        found.append(",
        f"{TRUST}::test_a_second_policy_only_adds",
    ),
    Mutant(
        "the group may write to the policy",
        "firmware/trust.py",
        "if found.st_mode & 0o022 and",
        "if found.st_mode & 0o002 and",
        f"{TRUST}::test_a_policy_that_is_not_root_s_own",
    ),
    Mutant(
        "what comes from no repository passes",
        "firmware/trust.py",
        "            if grant is None:\n                raise not_from_there(policy)\n",
        "            if grant is None:\n                continue\n",
        f"{TRUST}::test_a_file_from_nowhere_is_from_no_repository",
    ),
    Mutant(
        "another file than the one that was signed for passes",
        "firmware/trust.py",
        "hashlib.new(name, data).hexdigest() != value:",
        "not hashlib.new(name, data):",
        f"{REPOSITORY}::test_a_stolen_server",
    ),
    Mutant(
        "a weak hash counts",
        "firmware/trust.py",
        '_HASHES = frozenset({"sha256",',
        '_HASHES = frozenset({"sha1", "sha256",',
        f"{REPOSITORY}::test_a_stolen_server",
    ),
    Mutant(
        "the bootloader of a Merged Binary is let pass",
        "firmware/trust.py",
        'parts: list[Part] = [("The Merged Binary\'s bootloader", blocks)]',
        "parts: list[Part] = []",
        f"{TRUST}::test_all_that_a_merged_binary_starts",
    ),
    Mutant(
        "a file counts for another version than it was signed for",
        "firmware/repository.py",
        "if version and said != version:",
        "if version and not said:",
        f"{REPOSITORY}::test_a_stolen_configuration",
    ),
    Mutant(
        "after a power cut, older metadata counts",
        "firmware/repository.py",
        "if any(now.get(name, version) < version for name, version in held.items()):",
        "if any(now.get(name, version) < 0 for name, version in held.items()):",
        f"{REPOSITORY}::test_what_was_seen_outlasts_a_power_cut",
    ),
    Mutant(
        "one role that has expired keeps what others took back",
        "firmware/repository.py",
        "            with contextlib.suppress(OtaError):\n                now_there",
        "            if True:\n                now_there",
        f"{REPOSITORY}::test_one_expired_role_holds_up_its_own_files_only",
    ),
    Mutant(
        "what its owner has taken back is still taken",
        "firmware/repository.py",
        "                    del remembered.allowed[path]\n",
        "                    known.clear\n",
        f"{REPOSITORY}::test_fresh_metadata_takes_back_what_was_allowed",
    ),
    Mutant(
        "a clock that was set back makes old metadata fresh",
        "firmware/repository.py",
        "if now < remembered.seen_s - CLOCK_SLACK_S:",
        "if now < 0:",
        f"{REPOSITORY}::test_a_clock_behind_the_newest_metadata",
    ),
    Mutant(
        "what a stolen root has allowed outlives it",
        "firmware/repository.py",
        'if known.get("root") != digest:',
        'if not known.get("root"):',
        f"{REPOSITORY}::test_another_root_has_allowed_nothing_yet",
    ),
    Mutant(
        "a memory that others may write to counts",
        "firmware/trust.py",
        "        _require_owned(one, os.lstat(one), owners, sticky=one != folder)\n",
        "",
        f"{REPOSITORY}::test_a_memory_that_others_may_write_to",
    ),
    Mutant(
        "a decoy of a partition table hides what is started",
        "update/flash_plan.py",
        "if place != merged.table_offset and not any(",
        "if place < merged.table_offset and not any(",
        f"{TRUST}::test_a_merged_binary_with_two_tables",
    ),
    Mutant(
        "a decoy of a table in a signature's sector hides what is started",
        "update/flash_plan.py",
        "(part.offset, part.offset + app.size_bytes)",
        "(part.offset, part.offset + app.total_bytes)",
        f"{TRUST}::test_a_merged_binary_with_two_tables",
    ),
    Mutant(
        "a key vouches for data",
        "firmware/trust.py",
        "if data_of is not None and policy.repositories is None:",
        "if data_of is not None and policy.repositories:",
        f"{TRUST}::test_what_no_key_signs_in_a_merged_binary",
    ),
    Mutant(
        "two who publish at once lose a release",
        "building/repository.py",
        "fcntl.flock(first, fcntl.LOCK_EX)",
        "fcntl.flock(first, fcntl.LOCK_SH)",
        f"{REPO}::test_of_two_who_publish_at_once_both_have_published",
    ),
    Mutant(
        "a policy that refuses keeps a board from going back",
        "fleet/board.py",
        "if awaited is not None and update.purpose in SWITCHES:",
        "if awaited is None:",
        "tests/fleet/test_board.py::test_what_was_begun_ends_without_its_firmware",
    ),
    Mutant(
        "what was taken back is written from the shelf",
        "fleet/firmwares.py",
        "recent = not by_metadata or age_s <= LOOK_AGAIN_S",
        "recent = not by_metadata or age_s > LOOK_AGAIN_S",
        f"{TRUST}::test_what_was_taken_back_is_not_written_from_the_shelf",
    ),
    Mutant(
        "what was fetched before the policy is written",
        "fleet/board.py",
        "            await self._fetch_anew(update)\n            return\n",
        "            pass\n",
        "tests/fleet/test_board.py::test_a_policy_that_came_after_the_firmware",
    ),
    Mutant(
        "the first repository that fits counts",
        "firmware/repository.py",
        "len(one.url) > len(repository.url)",
        "len(one.url) < len(repository.url)",
        f"{REPOSITORY}::test_the_longest_prefix_counts",
    ),
    Mutant(
        "a file may be longer than it was signed for",
        "firmware/supply.py",
        "max_bytes = min([max_image_bytes, *(grant.size_bytes for grant in grants)])",
        "max_bytes = max_image_bytes",
        f"{TRUST}::test_an_endless_file",
    ),
    Mutant(
        "an owner signs what a thief has put into the folder",
        "building/repository.py",
        "signed = _verified(state.root, role, found)",
        "signed = found.signed",
        f"{REPO}::test_nothing_is_signed_anew_that_was_not_right",
    ),
    Mutant(
        "an owner begins with the root that a thief has put into the folder",
        "building/repository.py",
        "if read_file(metadata / name, METADATA_BYTES) != first:",
        "if not first:",
        f"{REPO}::test_nothing_is_signed_anew_that_was_not_right",
    ),
    Mutant(
        "an owner signs an older state anew",
        "building/repository.py",
        "        state._require_newest()\n",
        "",
        f"{REPO}::test_nothing_is_signed_anew_that_was_not_right",
    ),
    Mutant(
        "keys can be read by others",
        "building/repository.py",
        '_write(keys / f"{role}.pem", _pem(private, password), mode=0o600)',
        '_write(keys / f"{role}.pem", _pem(private, password))',
        f"{REPO}::test_two_commands_make_a_repository",
    ),
)
