# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a machine, and of a rollout: two tables and one function, without any I/O.

    MACHINE[state, event] -> state     one machine
    ROLLOUT[state, event] -> state     all of them
    course(...) -> Course              what the machines' states mean for the waves

`drive.Drive` finds out what happened and carries out what follows; it decides nothing. An event
that has no row changes nothing. docs/fleets.md shows both tables (docs/generate.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ota_service.fleet.policy import by_pair

MachineState = Literal[
    "pending", "writing", "waiting", "good", "failed", "offline", "conflict", "undone"
]
"""pending: not touched, or to be looked at again. writing: its value before is on disk, and the
new one may have been sent. waiting: it has the new value, and its boards are watched. good,
failed: what they have shown. offline: nobody could ask it. conflict: its configuration is not what
it was, or cannot be changed; nothing of it is touched. undone: it has its value before again."""

MachineEvent = Literal[
    "begin", "refused", "sent", "already", "good", "bad", "late", "lost", "worse", "returned",
    "foreign", "again", "undone",
]  # fmt: skip
"""begin: it is about to be written. refused: it cannot be. sent: read again, it has the new value;
already: it had it before anything was written. bad: a board has shown that the firmware is not
good; late: its time is over, and it was asked; lost: it could not be asked for so long, or not at
all. worse: no longer good, and not bad. returned: one that was offline answers. foreign: its
value is neither the one before nor ours. again: a person's resume. undone: see there."""

MachineRow = tuple[tuple[MachineState, ...], tuple[MachineEvent, ...], MachineState, str]

_TOUCHED: tuple[MachineState, ...] = ("writing", "waiting", "good", "failed", "offline")

MACHINE_ROWS: tuple[MachineRow, ...] = (
    (("pending",), ("begin",), "writing", "the value before is kept first"),
    (("pending",), ("already",), "waiting", "nothing is to be written"),
    (("pending",), ("lost",), "offline", "what cannot be watched is not written"),
    (("pending", *_TOUCHED), ("refused",), "conflict", "its configuration stays as it is"),
    (("writing",), ("sent",), "waiting", "also where the reply was lost: it was read again"),
    (("waiting",), ("good",), "good", "every board that counts has shown it"),
    (("waiting", "good"), ("bad",), "failed", "a board went back, or cannot take it"),
    (("waiting",), ("late",), "failed", "it had its time"),
    (("waiting", "good"), ("lost",), "offline", "it counts as failed until it shows what it is"),
    (("good",), ("worse",), "waiting", "it has its time again"),
    (("offline",), ("returned",), "pending", "it is taken up as if its wave began now"),
    (("pending", "conflict", *_TOUCHED), ("foreign",), "conflict", "somebody else has changed it"),
    (("failed", "conflict"), ("again",), "pending", "a person wants it looked at again"),
    ((*_TOUCHED, "conflict", "pending"), ("undone",), "undone", "read again, it is as before"),
)

RolloutState = Literal["running", "paused", "halted", "aborted", "done"]
RolloutEvent = Literal[
    "pause", "resume", "abort", "too-many", "unproven", "next", "finish", "go-on"
]
"""pause, resume, abort: a person's (undo aborts, too). too-many: more machines have failed than
may. unproven: a wave is over, and no board at all has shown the firmware. next: the next wave
begins. finish: there is none. go-on: a machine that was offline at the end came back."""

RolloutRow = tuple[tuple[RolloutState, ...], tuple[RolloutEvent, ...], RolloutState, str]

ROLLOUT_ROWS: tuple[RolloutRow, ...] = (
    (("running",), ("pause",), "paused", "nothing more is written; machines are still watched"),
    (("running", "paused"), ("too-many", "unproven"), "halted", "until a person says otherwise"),
    (("paused", "halted"), ("resume",), "running", "what failed is looked at again"),
    (("running", "paused", "halted", "done"), ("abort",), "aborted", "nothing is changed any more"),
    (("running",), ("next",), "running", "the wave before it has passed"),
    (("running",), ("finish",), "done", "the last wave has passed"),
    (("done",), ("go-on",), "running", "it is taken up"),
)


MACHINE = by_pair((at, events, to) for at, events, to, _ in MACHINE_ROWS)
ROLLOUT = by_pair((at, events, to) for at, events, to, _ in ROLLOUT_ROWS)

MACHINE_STATES: tuple[MachineState, ...] = get_args(MachineState)
UNDECIDED: tuple[MachineState, ...] = ("pending", "writing", "waiting")
WRITABLE: tuple[RolloutState, ...] = ("running",)
"""Only then is a configuration changed, but for undo."""


@dataclass(frozen=True, slots=True)
class Course:
    """What follows from the states of the machines.

    event: what happens to the rollout; None: nothing. may_write: whether machines of the waves
    that have begun may be written now. settled: whether the newest wave is decided, so that its
    soak goes on.
    """

    event: RolloutEvent | None
    may_write: bool
    settled: bool = False


def course(
    state: RolloutState,
    waves: Sequence[Sequence[MachineState]],
    begun: int,
    *,
    silent: int,
    may_fail: int,
    proven: bool,
    soaked: bool,
    late: bool,
) -> Course:
    """The next step of a rollout.

    waves: the machines' states; begun: how many waves have begun. silent: how many were written,
    and can't be asked how they are. may_fail: how many of those and of the failed there may be, of
    all. proven: whether a board of some machine was seen to be good. soaked: the newest
    wave was decided for as long as its soak, and looked at since. late: the time for machines of
    the newest wave is over.
    """
    failed = [machine for wave in waves for machine in wave].count("failed")
    if failed + silent > may_fail:
        return Course("too-many" if state in ("running", "paused") else None, may_write=False)
    if state not in WRITABLE:
        return Course(None, may_write=False)
    if begun == 0:
        return Course("next", may_write=False)
    now = [machine for wave in waves[:begun] for machine in wave]
    if any(machine in UNDECIDED for machine in now):
        return Course(None, may_write=True)
    # Those that are offline may yet come back, and show what they are.
    event = _behind_a_wave(
        waits="offline" in now and not late,
        unproven=bool(now) and not proven,
        soaked=soaked,
        last=begun == len(waves),
    )
    return Course(event, may_write=True, settled=True)


def _behind_a_wave(*, waits: bool, unproven: bool, soaked: bool, last: bool) -> RolloutEvent | None:
    """What follows when all waves that have begun are decided."""
    if unproven:
        return None if waits else "unproven"
    if not soaked:
        return None
    if not last:
        return "next"
    return None if waits else "finish"
