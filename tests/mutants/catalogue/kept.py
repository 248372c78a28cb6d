# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept on this computer: of boards before they are replaced, and of runs."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

BACKUP = "tests/flash/test_backup.py"
FLASH_PLAN = "tests/flash/test_plan.py"
JOURNAL = "tests/journal"
OWNERSHIP = "tests/link/test_ownership.py"
_FILES, _RESTORE, _REWRITE = "update/backup_files.py", "update/restore.py", "update/rewrite.py"
_ATTEMPTS = "fleet/journal.py"
POLICY = "tests/fleet/test_policy.py"
BOARD = "tests/fleet/test_board.py"
ROBOT = "tests/fleet/test_robot.py"

_WHOLE_FLASH = (
    Mutant(
        "the old table stands while the flash is rewritten",
        _REWRITE,
        "for offset in sorted({*plan.old_tables, plan.table.offset}):",
        "for offset in sorted({plan.table.offset} - {*plan.old_tables}):",
        "tests/update/test_tables.py::test_a_whole_flash_ends_a_table_that_may_not_be_in_use",
    ),
    Mutant(
        "a board is rewritten without a word to other journals",
        _REWRITE,
        "    mark_rewritten(outcome.chip.mac)\n",
        "",
        f"{BACKUP}::test_a_flash_keeps_what_the_board_has",
    ),
    Mutant(
        "the new table is written first",
        _REWRITE,
        "        for write in plan.writes:\n            _write(flash, write, progress)\n",
        "        for write in (plan.table, *plan.writes):\n"
        "            _write(flash, write, progress)\n",
        f"{BACKUP}::test_a_flash_writes_its_table_last",
    ),
    Mutant(
        "what is rewritten is not read back",
        _REWRITE,
        "    if flash.md5(write.offset, len(write.data)) != digest(write.data):",
        "    if not flash.md5(write.offset, len(write.data)):",
        f"{BACKUP}::test_what_is_rewritten_is_read_back",
    ),
    Mutant(
        "keys that stay in their place are not looked at before the table",
        _REWRITE,
        "        for write in plan.standing:\n            _verify(flash, write)\n",
        "",
        f"{BACKUP}::test_what_is_rewritten_is_read_back",
    ),
    Mutant(
        "nothing is kept of a board before it is replaced",
        "update/flash_merged.py",
        "new = store.keep(before.backup) if before.backup is not None else None",
        "new = None",
        f"{BACKUP}::test_a_flash_keeps_what_the_board_has",
    ),
    Mutant(
        "a flash is not remembered as begun",
        "update/flash_merged.py",
        'outcome.backup = store.begin("flash", new)',
        "outcome.backup = new.folder if new is not None else None",
        f"{BACKUP}::test_a_flash_that_was_cut_is_finished_with_the_keys",
    ),
    Mutant(
        "a board with secure boot gets another bootloader",
        "update/flash_plan.py",
        "    if chip.secure_boot:\n",
        "    if chip.secure_boot and chip.flash_encrypted:\n",
        f"{FLASH_PLAN}::test_boards_that_it_would_not_start_are_refused",
    ),
    Mutant(
        "another board than the confirmed one is replaced",
        _REWRITE,
        "if meant is not None and mac != meant:",
        "if meant is not None and not mac:",
        "tests/cli/test_flash.py::test_another_boards_mac_and_other_files_write_nothing",
    ),
)

_BACKUP = (
    Mutant(
        "a backup goes where a newer one has fewer keys",
        "update/backup.py",
        "else has.items() >= kept.items()",
        "else has.items() <= kept.items()",
        f"{BACKUP}::test_one_covers_another_where_no_key_would_be_lost",
    ),
    Mutant(
        "a backup goes where a newer one has other values",
        "update/backup.py",
        "else has.items() >= kept.items()",
        "else has.keys() >= kept.keys()",
        f"{BACKUP}::test_one_covers_another_where_no_key_would_be_lost",
    ),
    Mutant(
        "others may look into a folder of backups",
        _FILES,
        "folder.mkdir(mode=0o700, parents=True, exist_ok=True)\n        old =",
        "folder.mkdir(mode=0o755, parents=True, exist_ok=True)\n        old =",
        f"{BACKUP}::test_files_are_private_whole_and_replaced_in_one_step",
    ),
    Mutant(
        "a table comes back over apps that it does not fit",
        _RESTORE,
        "            if _may_start(self.flash, own):\n",
        "            if _may_start(self.flash, own) and not self._starts(saved):\n",
        f"{BACKUP}::test_an_app_that_only_the_bootloader_may_know_keeps_its_table",
    ),
)

_JOURNAL = (
    Mutant(
        "an attempt that never ended is forgotten",
        _ATTEMPTS,
        "failed = known.failed + (known.open_since is not None)",
        "failed = known.failed",
        f"{JOURNAL}/test_journal.py::test_an_attempt_that_never_ended_counts",
    ),
    Mutant(
        "an attempt of a process that was killed costs nothing",
        _ATTEMPTS,
        "UPDATE attempts SET failed = failed + 1, open_since = NULL",
        "UPDATE attempts SET open_since = NULL",
        f"{JOURNAL}/test_journal.py::test_an_attempt_that_never_ended_counts",
    ),
    Mutant(
        "power that failed uses an attempt up",
        _ATTEMPTS,
        "counts = error is None or error.kind.counts",
        "counts = True",
        f"{JOURNAL}/test_journal.py::test_failures_are_counted_and_a_success_forgets_them",
    ),
    Mutant(
        "a write of the journal does not wait for the disk",
        "fleet/journal_store.py",
        '"PRAGMA synchronous = FULL"',
        '"PRAGMA synchronous = OFF"',
        f"{JOURNAL}/test_journal_store.py::test_writes_wait_for_the_disk",
    ),
    Mutant(
        "a board that nobody has seen start is good",
        "fleet/policy.py",
        'return shown == "up_to_date" and confirmed is not None',
        'return shown == "up_to_date"',
        "tests/fleet/test_policy.py",
    ),
    Mutant(
        "who read a foreign version hides that it was changed",
        "fleet/memory.py",
        "        latest = self._latest(mac)\n        if latest is None",
        "        latest = self._latest(mac)\n        record = self.journal.board(mac)\n"
        "        if record is None or record.version != wanted or latest is None",
        "tests/fleet/test_board.py",
    ),
    Mutant(
        "what was read before an attempt that was cut off is evidence",
        _ATTEMPTS,
        "UPDATE boards SET version_read_at = NULL WHERE mac = ?",
        "UPDATE boards SET version_read_at = version_read_at WHERE mac = ?",
        "tests/fleet/test_release.py",
    ),
    Mutant(
        "the journal believes what it knew of a board that was rewritten since",
        _ATTEMPTS,
        "rewrite_mark(mac) in (None, record.rewritten)",
        "rewrite_mark(mac) != 0",
        "tests/fleet/test_release.py",
    ),
    Mutant(
        "a second command ends what the first has open",
        _ATTEMPTS,
        "            if lock.alone:\n",
        "            if lock.alone or shared:\n",
        f"{JOURNAL}/test_journal_store.py::test_a_second_command_ends_nothing_of_the_first",
    ),
    Mutant(
        "power that failed during a confirmation is forgotten with the process",
        "fleet/memory.py",
        "UPDATE pending SET power_failed = 1 WHERE mac = ?",
        "UPDATE pending SET power_failed = 0 WHERE mac = ?",
        f"{JOURNAL}/test_journal.py",
    ),
    Mutant(
        "a service and a command share a journal",
        "fleet/journal_lock.py",
        "or not (self.shared or self.alone):",
        "or (self.shared and not self.alone):",
        f"{JOURNAL}/test_journal_store.py",
    ),
    Mutant(
        "a port is opened without a look at who has it",
        "link/ownership.py",
        "            seen = holders(port)\n",
        "            seen: list[Holder] = []\n",
        f"{OWNERSHIP}::test_another_program_is_found_before_opening",
    ),
    Mutant(
        "two processes of this program have one port",
        "link/ownership.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        f"{OWNERSHIP}::test_another_process_of_ours_is_named",
    ),
    Mutant(
        "any override takes another project's board",
        "fleet/board.py",
        'or "other-project" in order.permits.override,',
        "or bool(order.permits.override),",
        "tests/fleet/test_override.py",
    ),
)

_FLEET = (
    Mutant(
        "a link that was lost speaks against a firmware",
        "fleet/policy.py",
        'EVIDENCE = frozenset({"boot-failed", "check-failed"})',
        'EVIDENCE = frozenset({"boot-failed", "check-failed", "link-lost"})',
        POLICY,
    ),
    Mutant(
        "a tag with another build in it speaks for a firmware",
        "fleet/policy.py",
        '    if not of_image:\n        return "neutral"\n',
        "",
        POLICY,
    ),
    Mutant(
        "an image is proven by what another one has shown",
        "fleet/memory.py",
        "        image = image if outcome.of_image else None\n",
        "",
        f"{BOARD}::test_only_an_image_that_was_seen_to_run_is_proven",
    ),
    Mutant(
        "what was seen of a firmware is said of the one that is switched to",
        "fleet/hooks.py",
        'if name == "switching" and self.mac is not None:',
        'if name == "switching" and self.mac is None:',
        f"{BOARD}::test_what_runs_stays_confirmed_until_otadata_is_switched",
    ),
    Mutant(
        "a proof outlives another file under its version",
        "fleet/turns.py",
        '(known.sha256 != ask.sha256 and known.state != "stopped")',
        "known.sha256 is None",
        POLICY,
    ),
    Mutant(
        "half of the boards are too many",
        "fleet/policy.py",
        'ended.count("bad") * 2 > len(ended)',
        'ended.count("bad") * 2 >= len(ended)',
        POLICY,
    ),
    Mutant(
        "a board that the robot has not said yes to is good",
        "fleet/policy.py",
        'return shown == "up_to_date" and confirmed is not None and not unchecked',
        'return shown == "up_to_date" and confirmed is not None',
        f"{ROBOT}::test_no_answer_halts_this_run_and_no_other",
    ),
    Mutant(
        "true is 1 in a robot's reply",
        "fleet/robot.py",
        "return isinstance(expected, bool) == isinstance(value, bool) and bool(expected == value)",
        "return bool(expected == value)",
        f"{ROBOT}::test_a_yes_has_what_is_expected",
    ),
    Mutant(
        "after_restart is owed only when before_restart was answered",
        "fleet/robot.py",
        """            if after is not None:
                await self._owe(_key(after), board)
            if before is not None:
                said = await unless(stop.at_all, self.ask(before))
""",
        """            if before is not None:
                said = await unless(stop.at_all, self.ask(before))
            if after is not None:
                await self._owe(_key(after), board)
""",
        f"{ROBOT}::test_a_robot_that_thinks_for_long_holds_no_cancel_up",
    ),
    Mutant(
        "a robot drives off while another of its boards is written",
        "fleet/robot.py",
        "if self._out[key] == {stop} and await self._rows(call=key):",
        "if await self._rows(call=key):",
        f"{ROBOT}::test_boards_that_share_a_robot_are_one",
    ),
    Mutant(
        "a robot that says no to the last board is not told that it is over for the others",
        "fleet/robot.py",
        "if self._out[key] == {stop} and await self._rows(call=key):",
        "if owed and self._out[key] == {stop} and await self._rows(call=key):",
        f"{ROBOT}::test_the_last_one_pays_also_where_it_was_not_allowed_itself",
    ),
    Mutant(
        "a firmware that waits for the robot's word needs no canary any more",
        "fleet/memory.py",
        "if outcome.confirmed and not (board is not None and board.unchecked):",
        "if outcome.confirmed:",
        f"{ROBOT}::test_a_firmware_is_good_when_the_robot_says_so",
    ),
    Mutant(
        "what was changed since is taken back",
        "update/session.py",
        "if self.link.md5(slot.offset, brought.size_bytes) != brought.md5:",
        'if brought.md5 == "":',
        "tests/update/test_session_slips.py::test_what_was_changed_since_is_not_taken_back",
    ),
    Mutant(
        "what did not come up on a board is gone back to",
        "update/session.py",
        "if fact is not None and self.link.md5(slot.offset, fact.size_bytes) == fact.md5:",
        "if fact is None:",
        "tests/update/test_session_slips.py"
        "::test_nobody_goes_back_to_what_did_not_come_up_on_this_board",
    ),
    Mutant(
        "what a failure of the power went back from is not gone back to",
        "fleet/endings.py",
        "outcome.error is not None and outcome.error.code in policy.EVIDENCE:",
        "outcome.error is not None:",
        f"{BOARD}::test_what_failed_on_a_board_is_known_as_long_as_it_is_in_its_slot",
    ),
    Mutant(
        "a dry run plans what a hold keeps from being done",
        "fleet/run.py",
        'asked = self.purpose in UPDATES or (self.purpose == "plan" and held)',
        "asked = self.purpose in UPDATES",
        "tests/fleet/test_service.py::test_a_dry_run_of_what_an_update_leaves_alone_says_so",
    ),
    Mutant(
        "a busy port uses an attempt up",
        "fleet/policy.py",
        'HINDRANCES = frozenset({"port-busy", "not-allowed-now"})',
        'HINDRANCES = frozenset({"not-allowed-now"})',
        POLICY,
    ),
    Mutant(
        "an order that permits more simply joins",
        "fleet/policy.py",
        'return "update" if under_way | asked == under_way else "more"',
        'return "update"',
        POLICY,
    ),
    Mutant(
        "of one board under two names, the one that was moved is closed",
        "fleet/places.py",
        "if place.port == seen_at), same[0])",
        "if place.port != seen_at), same[0])",
        "tests/fleet/test_release.py",
    ),
    Mutant(
        "a board that used its attempts up is tried once more",
        "fleet/policy.py",
        "    if failed >= max_attempts:\n",
        "    if failed > max_attempts:\n",
        "tests/fleet/test_board.py tests/fleet/test_policy.py",
    ),
)

MUTANTS = (*_WHOLE_FLASH, *_BACKUP, *_JOURNAL, *_FLEET)
