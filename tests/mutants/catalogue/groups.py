# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups that go forward or back as a whole: the order of things, and what is remembered."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_GROUP, _POLICY = "fleet/group.py", "fleet/group_policy.py"
_TESTS = "tests/fleet/test_group.py"
_ANOTHER_PROCESS = f"{_TESTS}::test_another_process_first_finishes_what_the_journal_says"
_BACK = f"{_TESTS}::test_one_that_does_not_start_takes_all_back"
_OTHER_TARGET = f"{_TESTS}::test_another_target_waits_for_the_end_of_the_group"
_UNPLUGGED = f"{_TESTS}::test_a_member_that_is_unplugged_behind_its_switch"
_WORD = f"{_TESTS}::test_the_robot_s_word_counts_for_all_of_a_group"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a group is switched before the journal says so",
        _GROUP,
        '        await self._note("switching", self._anew)\n',
        "",
        _ANOTHER_PROCESS,
    ),
    Mutant(
        "what was owed stays owed behind a group that went forward",
        _GROUP,
        "                journal.drop(GroupRecord, service=service, id=record.id)\n",
        "                pass\n",
        f"{_TESTS}::test_what_was_owed_is_void_when_the_group_has_gone_forward",
    ),
    Mutant(
        "what is owed waits for a plug",
        "fleet/engine.py",
        '        here = {place.mac for place in places if place.kind == "here"}\n',
        "        here = {place.mac for place in came}\n",
        f"{_TESTS}::test_a_way_back_is_tried_again_while_its_board_is_there",
    ),
    Mutant(
        "what was brought is forgotten of a member that is only seen again",
        _GROUP,
        '        self._none_brought([one for one in self._todo if one.switch == "activate"])\n',
        "        self._none_brought(self._todo)\n",
        f"{_TESTS}::test_a_no_behind_a_missing_answer_takes_all_back",
    ),
    Mutant(
        "the end of the process begins with further boards",
        _GROUP,
        "        if self.engine.closing:  # no board that is at rest is begun with\n",
        "        if False:\n",
        f"{_TESTS}::test_the_end_of_the_process_begins_with_no_further_board",
    ),
    Mutant(
        "a group stays half for as long as the robot says no",
        _GROUP,
        "        if held_s < group_policy.LOST_S:\n",
        "        if True:\n",
        f"{_TESTS}::test_the_robot_s_no_leaves_no_group_half",
    ),
    Mutant(
        "a cancel of a member that is yet to come is not heard",
        _GROUP,
        "or any(m.board and leaves_out(m.board) for m in self._todo)\n",
        "or not leaves_out\n",
        f"{_TESTS}::test_a_cancel_of_one_member_takes_the_group_back",
    ),
    Mutant(
        "what is good has to be activated",
        _GROUP,
        "            return None if member.before else error\n",
        "            return error\n",
        f"{_TESTS}::test_what_is_good_needs_no_activation",
    ),
    Mutant(
        "a group is begun without a board for one of its images",
        _GROUP,
        '        each += [f"no board gets {image}" for image in self.unused]\n',
        "",
        f"{_TESTS}::test_a_group_is_not_begun_where_no_board_gets_one_of_its_images",
    ),
    Mutant(
        "another process does not keep the order of a block",
        _GROUP,
        "            why = await self._out_of_turn(step) if new else None\n",
        "            why = None\n",
        f"{_TESTS}::test_another_process_keeps_the_order_of_a_block",
    ),
    Mutant(
        "a group goes back before the journal says so",
        _GROUP,
        '        await self._note("going_back")\n',
        "",
        _ANOTHER_PROCESS,
    ),
    Mutant(
        "what a process has left in the middle is not taken up",
        "fleet/engine.py",
        "        await self._resume_groups()\n",
        "",
        _ANOTHER_PROCESS,
    ),
    Mutant(
        "members go back in the order of their switch",
        _GROUP,
        "        for member in reversed(self._todo):\n",
        "        for member in self._todo:\n",
        _BACK,
    ),
    Mutant(
        "a member that is on its way to the switch is not stopped",
        _GROUP,
        '                member.board.tell("cancel")\n',
        "                pass\n",
        f"{_TESTS}::test_cancel_before_the_end_takes_the_group_back "
        f"{_TESTS}::test_one_that_fails_stops_the_others_on_their_way",
    ),
    Mutant(
        "nothing is noted of what an activation brings",
        "fleet/hooks.py",
        "        image = staged.known if staged is not None else self.brings\n",
        "        image = self.brings\n",
        _BACK,
    ),
    Mutant(
        "a stop of a group is forgotten by the next process",
        _GROUP,
        "                journal.stop(self.engine.settings.service, key, error.message)\n",
        "                pass\n",
        _BACK,
    ),
    Mutant(
        "a lost member stops its target",
        _GROUP,
        "        if why.code in policy.EVIDENCE:\n            return OtaError(",
        "        if why.code:\n            return OtaError(",
        _UNPLUGGED,
    ),
    Mutant(
        "a lost member is given up at once",
        _POLICY,
        "LOST_S = 300.0",
        "LOST_S = 0.0",
        _UNPLUGGED,
    ),
    Mutant(
        "what is owed is forgotten",
        _GROUP,
        '_note("owing" if owed else None, self._stop, owed)',
        "_note(None, self._stop, owed)",
        _UNPLUGGED,
    ),
    Mutant(
        "a new run does not wait for a group",
        "fleet/run.py",
        "            await self.unless_cancelled(self.engine.groups.free(self.names))\n",
        "            pass\n",
        _OTHER_TARGET,
    ),
    Mutant(
        "a new target reaches a member in the middle of its switch",
        "fleet/groups.py",
        "        if any(g.state in group_policy.JOURNALLED and board in g.boards "
        "for g in self._active):\n",
        "        if False:\n",
        _OTHER_TARGET,
    ),
    Mutant(
        "a member that was good before the kill does not go back",
        _GROUP,
        '            member.fate = "good"\n',
        "            member.before = True\n",
        "tests/prove/test_prover.py::test_a_group_that_is_left_half_is_found",
    ),
    Mutant(
        "a lost member turns no group round",
        _POLICY,
        '    if known & {"bad", "lost", "refused"}:\n',
        '    if known & {"bad", "refused"}:\n',
        "tests/fleet/test_group_policy.py",
    ),
    Mutant(
        "a group is final before its last step",
        _POLICY,
        '    return "step" if more else "good"\n',
        '    return "good"\n',
        "tests/fleet/test_group_policy.py",
    ),
    Mutant(
        "a missing answer in the middle leaves a group half",
        _POLICY,
        '    (("switching",), ("unanswered",), "going_back", "turn_round",\n',
        '    (("switching",), ("unanswered",), "kept", "clear",\n',
        _WORD,
    ),
    Mutant(
        "a firmware that nobody said is well counts as good",
        _GROUP,
        ' and "unchecked" not in report\n',
        "\n",
        _WORD,
    ),
    Mutant(
        "a group is begun without one of its boards",
        _GROUP,
        "        others = {n: await self._away(n) for n in self.names if n not in asked}\n",
        "        others = dict.fromkeys([n for n in self.names if n in asked])\n",
        f"{_TESTS}::test_a_group_is_not_begun_without_one_of_its_boards",
    ),
    Mutant(
        "a secure version is raised in a group",
        "update/session.py",
        "            if new > now:\n",
        "            if False:\n",
        f"{_TESTS}::test_an_image_that_raises_a_secure_version_is_no_part_of_a_group",
    ),
)
