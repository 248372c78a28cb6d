# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a group of boards that go forward or back as a whole: a table, without any I/O.

    GROUP[state, event] -> Row

`group.Group` carries the actions out, and decides nothing. What a member's answer is to its group
is told by the functions below the table, which are as pure. docs/architecture.md shows the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from ota_service.errors import OtaError
from ota_service.fleet.policy import EVIDENCE, Rows, TableRow, expand
from ota_service.update.boot import UNJUDGED

State = Literal[
    "staging", "switching", "confirming", "going_back",
    "not_begun", "final", "kept", "gone_back", "owing",
]  # fmt: skip
"""What a group is at.

staging: its firmware is written where nothing can start it. switching: the journal says so, and
its members are switched, step by step. confirming: every member has been switched, and not every
one is good yet. going_back: the journal says so, and those that may have been switched go back.
Ends: not_begun (no member was switched), final (every member is good), kept (every member was
switched, and of one there is no answer whether it is well), gone_back, owing (gone back, but for
members that could not be reached: they are taken back when they appear).
"""

Phase = Literal["staging", "switching", "confirming", "going_back"]
"""Of these, what a run shows of its manifest: those in which there is something to be done."""

Event = Literal[
    "staged", "unstaged", "step", "switched", "good", "failed", "unanswered", "cancel", "retarget",
    "end", "back", "owed", "came", "void",
]  # fmt: skip
"""What happens to a group.

staged: all members are, and their ways back are proven; unstaged: one is not, and will not be.
step: the members of a step are good, and there is another one; switched: all members have passed
their switch; good: all members are. failed: a member's firmware failed, it refused, or it was lost
for too long. unanswered: nobody said whether a member is well. cancel, retarget, end (of the
process): from outside. back: all members run what they ran before; owed: all that could be reached.
came: one that could not be is there again, and is as it was left; void: it is not, or it is to
have another target by now.
"""

Action = Literal[
    "begin_switch", "switch_step", "show", "clear", "turn_round", "clear_and_stop", "keep_owed",
    "take_back", "report", "leave", "let_be", "nothing",
]  # fmt: skip


Row = TableRow[State, Action]

STATES: tuple[State, ...] = get_args(State)
ENDS: tuple[State, ...] = ("not_begun", "final", "kept", "gone_back", "owing")
FORWARD: tuple[State, ...] = ("switching", "confirming")
JOURNALLED: tuple[State, ...] = (*FORWARD, "going_back")
"""Where the next start has to finish what was begun."""

ROWS: Rows[State, Event, Action] = (
    # --- nothing that boots has been changed yet
    (("staging",), ("staged",), "switching", "begin_switch",
     "the journal first, then the members of the first step"),
    (("staging",), ("unstaged", "cancel", "retarget", "end"), "not_begun", "let_be",
     "what was staged cannot boot, so every member keeps what it has"),
    (("staging",), ("good",), "final", "clear", "every member was good before"),
    # --- forward
    (("switching",), ("step",), None, "switch_step", "the members of the step before are good"),
    (("switching",), ("switched",), "confirming", "show", "each of them has to show that it is"),
    (FORWARD, ("good",), "final", "clear", "the last member is good: nothing goes back any more"),
    (("confirming",), ("unanswered",), "kept", "clear",
     "all run the new firmware, and nothing speaks against it"),
    (("switching",), ("unanswered",), "going_back", "turn_round",
     "no further board is begun behind a missing answer, and no group is left half"),
    (FORWARD, ("failed", "cancel"), "going_back", "turn_round",
     "the journal first; then who is on the way is stopped, and all go back in reverse order"),
    # --- from outside, in the middle
    (JOURNALLED, ("retarget",), None, "nothing", "the group first ends, forward or back"),
    (JOURNALLED, ("end",), None, "leave", "the next start finishes it, as the journal says"),
    (("going_back",), ("cancel", "failed", "good", "unanswered", "step", "switched"), None,
     "nothing", "it goes back already"),
    # --- back
    (("going_back",), ("back",), "gone_back", "clear_and_stop", "every member runs what it ran"),
    (("going_back",), ("owed",), "owing", "keep_owed",
     "those that could not be reached go back when they appear"),
    (("owing",), ("came",), "going_back", "take_back", "it is as it was left; so is the target"),
    (("owing",), ("void",), "gone_back", "report",
     "another target, or another firmware on it: it is nobody's to take back"),
    (("owing",), ("end",), None, "leave", "the journal has it"),
    (("owing",), ("retarget",), None, "nothing", "it is looked at when the member appears"),
)  # fmt: skip


GROUP = expand(ROWS)

# --- what a member's answer is to its group

LOST_S = 300.0
"""How long a member may be lost behind the beginning of the switch before its group goes back; or
held up while others are switched, by the robot's no or a busy port. For as long a way back heeds a
no, too."""

Fate = Literal["bad", "refused", "lost", "cancelled", "unanswered", "good"]
"""What became of a member that was to be switched: what ends a group soonest comes first.

bad: its firmware failed, and it has gone back by itself. refused: it will not be switched, as it
is. lost: it may be reached again. unanswered: nobody said whether it is well.
"""

_AWAY = frozenset({"port-missing", "no-board", *UNJUDGED.values()})


def fate(good: bool, error: OtaError | None, *, cancelled: bool) -> Fate:
    """good: the board is, by its activation's end. cancelled: that was stopped, or was to be."""
    if cancelled:
        return "cancelled"
    if good:
        return "good"
    if error is None:
        return "lost"  # it holds the firmware, and its start was not seen
    if error.code in EVIDENCE:
        return "bad"
    if error.code == "check-unanswered":
        return "unanswered"
    return "lost" if error.kind.transient or error.code in _AWAY else "refused"


def blame(fate: Fate | None) -> int:
    """What a group goes back for, of several reasons: the lowest."""
    return get_args(Fate).index(fate) if fate is not None else len(get_args(Fate))


def event_of(fates: Sequence[Fate | None], *, more: bool) -> Event | None:
    """What the fates of the members of a step are to their group; None: it waits for the rest.

    more: there is a further step.
    """
    known = set(fates)
    if known & {"bad", "lost", "refused"}:
        return "failed"
    if "cancelled" in known:
        return "cancel"
    if None in known:
        return None
    if "unanswered" in known:
        return "unanswered"
    return "step" if more else "good"


Way = Literal["back", "void", "unreached"]
"""What became of a member's way back. void: what it runs is not what was to be taken back."""


def way_back(error: OtaError | None) -> Way:
    """error: the answer's to an order to go back."""
    if error is None or error.code in EVIDENCE:
        return "back"  # where the firmware before does not come up either, nothing is left to do
    return "void" if error.code == "changed-elsewhere" else "unreached"
