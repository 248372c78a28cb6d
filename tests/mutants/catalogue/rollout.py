# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout gives to whom, and what it leaves alone."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

ROLLOUT = "tests/rollout/test_rollout.py"

MUTANTS = (
    Mutant(
        "a rollout lets one more machine fail",
        "rollout/policy.py",
        "if failed + silent > may_fail:",
        "if failed + silent > may_fail + 1:",
        f"{ROLLOUT}::test_so_many_may_fail_and_one_more_halts",
    ),
    Mutant(
        "a rollout takes silence for good",
        "rollout/policy.py",
        "if failed + silent > may_fail:",
        "if failed > may_fail:",
        f"{ROLLOUT}::test_silence_since_the_write_is_not_good",
    ),
    Mutant(
        "a rollout's soak passes unseen",
        "rollout/drive.py",
        "(record.seen_at or 0.0) >= over_at",
        "now_s >= over_at",
        f"{ROLLOUT}::test_silence_in_the_soak_is_not_good",
    ),
    Mutant(
        "a rollout writes over an edit that it has not seen",
        "rollout/cloud.py",
        "            last_known_update=part.updated,\n",
        "",
        f"{ROLLOUT}::test_a_concurrent_edit_is_never_overwritten",
    ),
    Mutant(
        "a rollout writes over somebody's target",
        "rollout/drive.py",
        "            if not change.holds(found, old):\n",
        "            if False:\n",
        f"{ROLLOUT}::test_undo_leaves_what_others_changed_since",
    ),
    Mutant(
        "a rollout writes before it has kept what was there",
        "rollout/drive.py",
        "        if todo or new:\n            self._save()\n",
        "",
        f"{ROLLOUT}::test_what_was_there_is_on_disk_before_the_write",
    ),
    Mutant(
        "a rollout takes a lost reply for somebody else's edit",
        "rollout/cloud.py",
        "                if once and connection is not None:\n"
        "                    raise NotSent(words) from None\n",
        "                if once and connection is not None:\n"
        "                    raise Conflict(words) from None\n",
        f"{ROLLOUT}::test_a_lost_reply_is_not_taken_for_somebody_elses_edit",
    ),
    Mutant(
        "a rollout waits for boards that were away before",
        "rollout/gate.py",
        'if board.get("state") in excused)',
        "if False)",
        f"{ROLLOUT}::test_pinned_and_absent_boards_hold_nobody_up",
    ),
    Mutant(
        "a rollout takes a manifest's boards for pinned ones",
        "rollout/gate.py",
        '("target" not in board or "image" in board)',
        '"target" not in board',
        "tests/rollout/test_gate.py::test_the_gate",
    ),
    Mutant(
        "a rollout follows an order as often as it sees it",
        "rollout/drive.py",
        "    if order.key not in answered:\n",
        "    if True:\n",
        "tests/rollout/test_state.py::test_an_order_is_obeyed_once",
    ),
    Mutant(
        "a rollout ends a soak by a reading from before",
        "rollout/drive.py",
        "now_s if captured_s is None else min(captured_s, now_s)",
        "now_s",
        f"{ROLLOUT}::test_a_reading_from_before_the_soaks_end_does_not_end_it",
    ),
    Mutant(
        "a rollout leaves out a machine that it has written and cannot read",
        "rollout/drive.py",
        "unread, record.written_at = event, clock_s()",
        "record.written_at = clock_s()",
        f"{ROLLOUT}::test_who_cannot_be_read_after_its_write_is_watched",
    ),
    Mutant(
        "a rollout leaves out a machine that was silent and cannot be read",
        "rollout/drive.py",
        '"refused" if record.written_at is None else "lost"',
        '"refused"',
        f"{ROLLOUT}::test_who_comes_back_and_cannot_be_read_still_counts_as_silent",
    ),
)
