# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a board, and of a firmware on many boards: two tables, without any I/O.

    BOARD[state, event] -> Row      one board: waits, attempts, reads, cancel, the end of a process
    FIRMWARE[state, event] -> Row   one firmware: a canary first, and the stop for all

Everything that affects a board's course stands here. `board.Board` and `turns.Turns` carry the
actions out, and decide nothing. What is not an event yet (an error, two orders, a record of the
journal) is made one by the functions below the tables, which are as pure. docs/architecture.md
shows both tables (docs/generate.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Generic, Literal, TypeVar, get_args

from ota_service.errors import OtaError
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.board_state import State as Shown
from ota_service.fleet.journal_rows import AttemptRecord
from ota_service.fleet.settings import Override

State = Literal[
    "rest", "fetching", "queued", "held", "pausing", "confirming", "checking",
    "updating", "reading", "rewriting", "going_back", "owing", "stopping",
]  # fmt: skip
"""What a board's task is at.

rest: nothing is asked of the board. Six waits of an update: fetching (for its firmware), queued
(for its turn), held (for the sensor, the robot or a busy port), pausing (before another attempt),
confirming (its app may not be disturbed), checking (the robot has yet to say that it works). Five
in which a session has the board: updating, reading, rewriting (rollback or flash), going_back (what
an update brought is taken back, which nobody's cancel ends), stopping (it was told to stop where
that leaves the board bootable). And owing: a way back waits for the sensor, the robot, a busy port,
or before another attempt.
"""

Event = Literal[
    # orders
    "update", "more", "other", "read", "plan", "rollback", "back", "flash", "known",
    "release", "cancel", "retarget", "end", "later", "wider",
    # a wait is over
    "firmware", "no-firmware", "turn", "stopped", "free", "time", "passed", "refused", "unanswered",
    # a session is over, or the way to one
    "done", "failed", "used-up", "again", "hindered", "awaits", "checks", "cancelled",
    # the port
    "gone", "came",
]  # fmt: skip
"""What happens to a board's task.

Orders: update, which stage and activate are, too (more: it permits what the one under way does
not; wider: it does more than the stage under way; other: it has another target, or is another
thing), read (version, verify), plan, rollback, back (its group goes back), flash, release, cancel,
retarget, end (of the process); known: an update or a read of a board that is not there, or that
the journal answers for; later: an update that pauses goes on pausing behind a look.
Sessions: done, failed for good, used-up (the last attempt failed), again (it may succeed later),
hindered (sensor, robot or port said no), awaits (the app has to confirm itself), checks (the robot
has to say that it works: passed, refused, unanswered), cancelled.
"""

Action = Literal[
    "nothing", "answer_known", "answer_last", "answer_plan", "ask", "ask_turn",
    "carry_out", "check", "drop", "drop_line", "fetch", "finish", "go_on", "hold", "join",
    "leave_alone", "leave_unchecked", "line_up", "look", "owe", "pass_check", "pause",
    "refuse_rollback", "release", "reply", "retarget", "rewrite", "set_aside", "show_came",
    "show_gone", "stop_line", "stop_session", "take_back", "without_firmware",
]  # fmt: skip


S = TypeVar("S")
E = TypeVar("E")
A = TypeVar("A")


@dataclass(frozen=True)  # with slots, CPython 3.11 cannot make one by its alias
class TableRow(Generic[S, A]):
    """Where an event leads, what is done, and why. state None: it stays where it is."""

    state: S | None
    action: A
    why: str


Rows = tuple[tuple[tuple[S, ...], tuple[E, ...], S | None, A, str], ...]
"""A table as it is written: in these states, at these events."""


def by_pair(rows: Iterable[tuple[Iterable[S], Iterable[E], A]]) -> dict[tuple[S, E], A]:
    """What stands there for each state and event. Raises ValueError where two rows are for the
    same."""
    table: dict[tuple[S, E], A] = {}
    for states, events, what in rows:
        for pair in product(states, events):
            if pair in table:
                raise ValueError(f"the table has two rows for {pair}")
            table[pair] = what
    return table


def expand(rows: Rows[S, E, A]) -> dict[tuple[S, E], TableRow[S, A]]:
    """A table as it is asked. Raises ValueError as `by_pair`."""
    return by_pair(
        (states, events, TableRow(state, action, why))
        for states, events, state, action, why in rows
    )


Row = TableRow[State, Action]

STATES: tuple[State, ...] = get_args(State)
WAITS: tuple[State, ...] = ("fetching", "queued", "held", "pausing", "confirming", "checking")
SESSIONS: tuple[State, ...] = ("updating", "reading", "rewriting", "going_back", "stopping")
_OTHERS: tuple[State, ...] = ("reading", "rewriting", "going_back", "owing", "stopping")
"""What is no update, or no longer one: the board is had, or waited for, by something else."""
ENDS: tuple[Event, ...] = get_args(
    Literal["done", "failed", "used-up", "again", "hindered", "awaits", "checks", "cancelled"]
)

ROWS: Rows[State, Event, Action] = (
    # --- an update begins
    (("rest",), ("update", "more", "wider", "other"), "fetching", "fetch",
     "its firmware comes first"),
    (("rest",), ("later",), "pausing", "pause", "it paused before a look, and goes on pausing"),
    (("fetching",), ("firmware",), "queued", "ask_turn", "a canary may have to go first"),
    (("fetching",), ("no-firmware",), "rest", "without_firmware",
     "no port is opened for it, but to end what was begun"),
    (("queued",), ("turn",), "updating", "carry_out", "a session in a thread"),
    # --- a further order meets an update
    ((*WAITS, "updating"), ("update",), None, "join", "both are answered when the update ends"),
    (("fetching", "queued"), ("more",), None, "join", "the session will have what is permitted"),
    (("held", "pausing"), ("more",), "queued", "ask_turn", "a person's word ends the wait"),
    (("fetching",), ("wider",), None, "join", "the stage becomes an update"),
    (("queued", "held", "pausing"), ("wider",), "queued", "ask_turn",
     "the stage becomes an update, for which a canary may have to go first"),
    (("confirming", "updating"), ("wider",), None, "line_up",
     "it follows when the session has ended"),
    (("confirming",), ("more",), None, "line_up", "an app that has to confirm itself is let be"),
    (("checking",), ("more", "wider"), None, "line_up",
     "it runs the new firmware, which is being judged"),
    (("updating",), ("more",), None, "line_up", "the session on the way does not know of it"),
    ((*WAITS, "updating"), ("other",), None, "line_up",
     "it follows as soon as the one for the old target has ended"),
    (_OTHERS, ("update", "more", "wider", "other"), None, "line_up",
     "it follows when the session has ended"),
    # --- reads
    (("rest", "fetching", "queued", "pausing"), ("read", "plan"), "reading", "look",
     "nobody has the board, so it is looked at; an update that waits goes on afterwards"),
    (("held", "confirming", "checking", "owing"), ("read", "plan"), None, "answer_last",
     "the board may not be touched: what is known, and why not now"),
    (("updating",), ("plan",), None, "answer_plan", "the plan that is being carried out"),
    (("updating",), ("read",), None, "line_up", "after the session the board shows what it has"),
    (("reading",), ("read", "plan"), None, "look", "the same question is asked of a board once"),
    (("rewriting", "going_back", "stopping"), ("read", "plan"), None, "line_up",
     "after the session"),
    # --- rollback and flash
    (("rest",), ("rollback", "flash"), "rewriting", "rewrite", "a session in a thread"),
    (("fetching", "queued", "held", "pausing", "checking"), ("rollback", "flash"), "rewriting",
     "rewrite",
     "the update that waits is void with what it was made for"),
    (("confirming",), ("rollback",), None, "refuse_rollback",
     "an app that has to confirm itself is let be"),
    (("confirming",), ("flash",), "rewriting", "rewrite", "everything on the board goes anyway"),
    (("updating",), ("flash",), "stopping", "stop_line", "everything on the board goes anyway"),
    (("updating",), ("rollback",), None, "line_up", "after the session"),
    (_OTHERS, ("rollback", "flash", "back"), None, "line_up", "after the session"),
    # --- the way back of a group
    (("rest", *WAITS), ("back",), "going_back", "take_back",
     "the update that waits is void; an app that has to confirm itself is not let be"),
    (("updating",), ("back",), "stopping", "stop_line", "its update is void"),
    (("going_back",), ("hindered", "again"), "owing", "owe", "a way back is not given up for it"),
    (("owing",), ("time",), "going_back", "take_back", "asked, and tried, again"),
    (("going_back",), tuple(e for e in ENDS if e not in ("hindered", "again")), "rest", "reply",
     "one answer"),
    (("going_back", "owing"), ("cancel",), None, "drop_line",
     "what is half way back goes all of it; updates in line are taken out"),
    (("owing",), ("end",), "rest", "drop", "the next process finds it in the journal"),
    # --- boards that are not there, or that the journal answers for
    (("rest", *_OTHERS), ("known",), None, "answer_known",
     "absent, held by an earlier failure, or as last read: no port is opened, no run held open"),
    ((*WAITS, "updating"), ("known",), None, "join", "the update knows better"),
    # --- cancel, another target, the end of the process
    (("rest",), ("cancel", "end"), None, "nothing", "there is nothing to stop"),
    (WAITS, ("cancel", "end", "retarget"), "rest", "drop", "no session has the board: at once"),
    (("updating",), ("cancel", "end", "retarget"), "stopping", "stop_session",
     "at the next place where the board boots; behind the switch it finishes"),
    (("reading", "stopping"), ("cancel",), None, "drop_line",
     "a look goes on; updates in line are taken out"),
    (("reading", "going_back", "stopping"), ("end",), "stopping", "stop_session",
     "the process ends"),
    (("rewriting",), ("cancel", "end"), "stopping", "stop_session",
     "before the first write; behind it only the end of the process stops it"),
    (("rest",), ("retarget",), None, "retarget", "what it shows is held against the new target"),
    (_OTHERS, ("retarget",), None, "retarget",
     "the session has nothing to do with the target, or was told to stop"),
    # --- a stopped firmware
    (("fetching", "queued", "held", "pausing"), ("stopped",), "rest", "drop",
     "no further board gets a firmware that does not start"),
    (("updating",), ("stopped",), "stopping", "stop_session",
     "before the switch the board keeps its firmware"),
    (("rest", "confirming", "checking", *_OTHERS), ("stopped",), None, "nothing",
     "it does not wait for that firmware"),
    # --- sensor and busy port: no attempt
    (("updating",), ("hindered",), "held", "hold", "the turn goes to others"),
    (("held",), ("time",), None, "ask", "each second, without opening the port"),
    (("held",), ("hindered",), None, "hold", "the answer is still no"),
    (("held",), ("free",), "queued", "ask_turn", "it may go on"),
    # --- attempts
    (("updating",), ("again",), "pausing", "pause", "later and later, and slower"),
    (("pausing",), ("time",), "queued", "ask_turn", "another attempt"),
    (("updating",), ("used-up",), "rest", "set_aside", "until the target changes, or release"),
    (("updating",), ("done", "failed", "cancelled"), "rest", "finish", "the outcome stands"),
    # --- an app that has to confirm itself
    (("updating",), ("awaits",), "confirming", "leave_alone", "a reset would undo it"),
    (("confirming",), ("time",), "updating", "carry_out", "the board is looked at again"),
    # --- the robot's word on what runs now
    (("updating",), ("checks",), "checking", "check", "the update stands when the robot says so"),
    (("checking",), ("passed",), "rest", "pass_check", "the outcome stands"),
    (("checking",), ("refused",), "going_back", "take_back", "the robot says that it fails"),
    (("checking",), ("unanswered",), "rest", "leave_unchecked",
     "nothing speaks against the firmware; but it is not good"),
    # --- reads, rollback, flash: one answer each
    (("reading",), ("again",), None, "go_on", "once more, slower: it is no attempt"),
    (("reading", "rewriting"), tuple(e for e in ENDS if e != "again"), "rest", "reply",
     "a read's error is its reply, and says nothing of the update"),
    (("rewriting",), ("again",), "rest", "reply", "a person asks again, or not"),
    # --- a session that was told to stop
    (("stopping",), ("done", "failed", "used-up", "checks"), "rest", "finish",
     "too late to stop: the outcome stands"),
    (("stopping",), ("again", "hindered", "awaits", "cancelled"), "rest", "drop",
     "it goes no further"),
    # --- release, the port
    (STATES, ("release",), None, "release", "what is at rest may be taken up again"),
    (("rest",), ("gone",), None, "show_gone", "absent"),
    (("rest",), ("came",), None, "show_came", "not looked at yet"),
    ((*WAITS, "owing", *SESSIONS), ("gone", "came"), None, "nothing",
     "a session's own restarts do that"),
)  # fmt: skip

_LATE: tuple[Event, ...] = (
    *("firmware", "no-firmware", "turn", "free", "time", "later"),
    *("passed", "refused", "unanswered", *ENDS),
)
"""Events of a wait or a session that is over: where no row names them, nobody waits for them."""


BOARD = {
    **dict.fromkeys(product(STATES, _LATE), Row(None, "nothing", "nobody waits for it any more")),
    **expand(ROWS),
}


# --- many boards: one firmware

FirmwareState = Literal["open", "trying", "proven", "halted", "stopped"]
"""open: boards may go. trying: a canary has it, the others wait. proven: a board was seen to run
it. halted: a board's health check was not answered, and no further board gets it before another run
is asked for. stopped: no further board gets it, until another target or `release` with
`stopped`."""

FirmwareEvent = Literal[
    "ask", "ask-first", "ask-again",
    "good", "bad", "too-many", "neutral", "unanswered", "lifted", "resumed",
]  # fmt: skip
"""ask: a board asks for its turn; ask-first: where more than three boards are there and nobody
has confirmed this firmware; ask-again: one that had its turn and is not at its end. good, bad,
neutral: how a board's update ended; bad is evidence of the firmware alone; unanswered: nobody
answered the health check. resumed: another run begins. too-many: bad for more
than half of at least four. lifted: a person's `release` with `stopped`."""

FirmwareAction = Literal[
    "let_go", "let_wait", "refuse", "look_again", "halt_all", "stop_all", "nothing"
]


FIRMWARE_ROWS: Rows[FirmwareState, FirmwareEvent, FirmwareAction] = (
    (("open", "trying"), ("ask-again",), None, "let_go", "it has begun"),
    (("open",), ("ask",), None, "let_go", "nobody has to go first"),
    (("open",), ("ask-first",), "trying", "let_go", "it is the canary"),
    (("open",), ("good",), "proven", "nothing", "a board was seen to run it"),
    (("open",), ("bad", "neutral", "lifted"), None, "nothing", "too few have tried it"),
    (("trying",), ("ask", "ask-first"), None, "let_wait", "for what becomes of the canary"),
    (("trying",), ("good",), "proven", "look_again", "the canary was seen to run it"),
    (("trying",), ("neutral", "lifted"), "open", "look_again", "another canary is tried"),
    (("trying",), ("bad",), "stopped", "stop_all", "the canary did not start it"),
    (("proven",), ("ask", "ask-first", "ask-again"), None, "let_go", "no canary is needed"),
    (("proven",), ("good", "bad", "neutral", "lifted"), None, "nothing", "it speaks of the board"),
    (("open", "trying", "proven", "halted"), ("too-many",), "stopped", "stop_all",
     "more than half of at least four did not start it"),
    (("open", "trying", "proven"), ("unanswered",), "halted", "halt_all",
     "nobody knows whether it works"),
    (("open", "trying", "proven"), ("resumed",), None, "nothing", "nothing was halted"),
    (("halted", "stopped"), ("ask", "ask-first", "ask-again"), None, "refuse",
     "no further board gets it"),
    (("halted", "stopped"), ("good", "bad", "neutral", "unanswered"), None, "nothing",
     "those that were under way end"),
    (("halted",), ("resumed",), "open", "look_again", "another run may go on with it"),
    (("stopped",), ("too-many", "resumed"), None, "nothing", "a person lifts it"),
    (("halted", "stopped"), ("lifted",), "open", "look_again", "a person's word"),
)  # fmt: skip
FIRMWARE = expand(FIRMWARE_ROWS)

CANARY_ABOVE = 3
STOP_FROM_BOARDS = 4

Verdict = Literal["good", "bad", "neutral", "unanswered"]
EVIDENCE = frozenset({"boot-failed", "check-failed"})
"""Codes that tell of the firmware: panic, loop, no start, a health check's no. A lost link, a
brown-out or a port that is gone tells of the board alone."""


def good(shown: Shown, confirmed: bool | None, unchecked: bool) -> bool:
    """Whether others may follow a board: it is up to date, its start was seen, and the robot's
    health check, if any, has passed.

    confirmed: its app was seen to run; False: its log has nothing to judge by, which is all that
    can be had of it; None: no start of it was watched. unchecked: it has yet to pass.
    """
    return shown == "up_to_date" and confirmed is not None and not unchecked


def is_good(about: BoardState, wanted: str | None) -> bool:
    """The same, of what a board shows; wanted: as in `runs_another`, which is never good."""
    seen = good(about.state, about.confirmed, about.unchecked)
    return seen and runs_another(about, wanted) is None


def runs_another(about: BoardState, wanted: str | None) -> str | None:
    """What is said of a board that stores the target's version and runs another program, so that
    nothing is written. wanted: the project of its target's image, where that is known."""
    runs = about.running.get("project")
    if about.state != "up_to_date" or not runs or not wanted or runs == wanted:
        return None
    words = " ".join(filter(None, (runs, about.running.get("app_version"))))
    return (
        f"The stored version is the target's, but {words} runs there, and not {wanted}; update "
        "with force writes it."
    )


def verdict(good: bool, error: OtaError | None, *, of_image: bool) -> Verdict:
    """What a board's end says of its firmware: nothing, where what was judged is another one."""
    if not of_image:
        return "neutral"
    if good:
        return "good"
    if error is not None and error.code == "check-unanswered":
        return "unanswered"
    return "bad" if error is not None and error.code in EVIDENCE else "neutral"


def too_many(verdicts: Iterable[Verdict]) -> bool:
    """Whether so many boards did not start a firmware that no further one gets it."""
    ended = list(verdicts)
    return len(ended) >= STOP_FROM_BOARDS and ended.count("bad") * 2 > len(ended)


# --- what an order permits


@dataclass(frozen=True, slots=True)
class Permits:
    """What a person allowed beyond what happens by itself.

    force: although the version is equal, and nothing else. override: what is overridden. rescue:
    the MAC of the one board, on which nothing boots.
    """

    force: bool = False
    override: frozenset[Override] = frozenset()
    rescue: str | None = None

    def __or__(self, other: Permits) -> Permits:
        return Permits(
            self.force or other.force, self.override | other.override, self.rescue or other.rescue
        )


def meets(
    under_way: Permits, asked: Permits, *, same_target: bool,
    purposes: tuple[str, str] = ("update", "update"),
) -> Event:  # fmt: skip
    """What a further update is to one that is under way. purposes: of that one and of this one."""
    before, now = purposes
    if same_target and purposes == ("stage", "update"):
        return "wider"
    if not same_target or (before != now and purposes != ("update", "stage")):
        return "other"
    return "update" if under_way | asked == under_way else "more"


# --- from an error to an event

HINDRANCES = frozenset({"port-busy", "not-allowed-now"})
RETRY_PAUSES_S = (1.0, 5.0, 20.0, 60.0)
HELD_POLL_S = 1.0
ROBOT_POLL_S = 2.0
"""Before the robot, which said no or did not answer, is asked again."""
DOWNLOAD_PAUSES_S = (30.0, 60.0, 120.0, 300.0, 600.0)
"""Before a download that was given up is tried again: a machine may start before its network."""
MISSING_PAUSES_S = (300.0, 900.0, 3600.0)
"""Before a file is looked for again that its server does not have: it may be published later."""


def judge(error: OtaError, *, failed: int, max_attempts: int) -> Event:
    """What a failed session is. failed: attempts that failed so far, this one included."""
    if error.code in HINDRANCES:
        return "hindered"
    if error.code == "cancelled":
        return "cancelled"
    if error.code == "changed-elsewhere":
        return "used-up"  # raised only when it happened too often
    if not error.kind.counts and not error.kind.transient:
        return "failed"
    if failed >= max_attempts:
        return "used-up"
    return "again" if error.kind.transient else "failed"


def word_on(answer: Literal["yes", "no", "none"], on_no_answer: Literal["stay", "back"]) -> Event:
    """What the robot's last answer to a health check is."""
    if answer == "none" and on_no_answer == "stay":
        return "unanswered"
    return "passed" if answer == "yes" else "refused"


READ_ATTEMPTS = 2


def retry_pause_s(failed: int) -> float:
    """How long to wait before another attempt."""
    return RETRY_PAUSES_S[min(max(failed, 1), len(RETRY_PAUSES_S)) - 1]


def download_pause_s(failed: int, *, missing: bool = False) -> float:
    """How long to wait before a firmware is asked for again.

    failed: how often in a row it could not be had. missing: its server does not have it.
    """
    pauses_s = MISSING_PAUSES_S if missing else DOWNLOAD_PAUSES_S
    return pauses_s[min(max(failed, 1), len(pauses_s)) - 1]


# --- from a record of the journal, or an error, to what a board shows

HELD = frozenset({"rolled_back", "set_aside", "held"})
"""States of attempts that keep a board from being taken up again."""

UNSUPPORTED = frozenset(
    {
        *("no-ota-slots", "flash-encrypted", "wrong-chip", "chip-revision", "secure-download"),
        *("partition-table-invalid", "nvs-missing", "flash-size", "secure-boot"),
        *("signature-invalid", "signature-untrusted"),
        *("image-too-large", "secure-version"),
    }
)
"""Codes of boards that can never take this update as it is."""

_SHOWN: dict[str, Shown] = {
    **dict.fromkeys(("port-missing", "no-board"), "absent"),
    **dict.fromkeys(("wrong-board", "duplicate-board"), "set_aside"),
    "held": "rolled_back",
    "no-answer": "unrecognised",
    "other-project": "unrecognised",
    "awaiting-confirmation": "awaiting_confirmation",
    **dict.fromkeys(UNSUPPORTED, "unsupported"),
}
NOT_THE_BOARD = frozenset({"wrong-board", "duplicate-board"})
"""Codes of another board than the one that is meant."""
WITHOUT_OUTCOME = frozenset(
    {"cancelled", "stopped", "not-staged", "stage-stale", "check-unanswered", *HINDRANCES}
)
"""Codes that say nothing of a board: it shows what it showed before."""


def shown_for(error: OtaError) -> Shown:
    """The state of a board whose last word is this error."""
    return _SHOWN.get(error.code, "failed")


_KEPT = frozenset({"rolled_back", "set_aside", "failed", "awaiting_confirmation"})


def shown_after_read(
    before: Shown, version: str | None, wanted: str, problem: OtaError | None
) -> Shown:
    """The state of a board that was looked at: what was read, unless an update's end says more.

    version: the stored tag; None where it could not be read. problem: what the look found wrong.
    """
    if before in _KEPT:
        return before
    if problem is not None and problem.code in UNSUPPORTED:
        return "unsupported"
    if version is None:
        return before
    return "up_to_date" if version == wanted else "outdated"


def shown_when_dropped(before: Shown, version: str | None, wanted: str) -> Shown:
    """The state of a board whose update went no further."""
    if version != wanted:
        return "outdated"
    return "up_to_date" if before == "up_to_date" else "unknown"


def shown_when_released(version: str | None, wanted: str) -> Shown:
    """The state of a board that may be taken up again.

    With the wanted version stored it would not have come to that: what was read was changed
    since, or is not what runs.
    """
    return "unknown" if version in (None, wanted) else "outdated"


_NOT_OF_THE_TARGET = frozenset(
    {"absent", "candidate", "unrecognised", "awaiting_confirmation", "unknown", "updating"}
)


def shown_when_retargeted(before: Shown, version: str | None, wanted: str) -> Shown:
    """The state of a board that has another target now."""
    if before in ("up_to_date", "outdated") and version == wanted:
        return "up_to_date"
    if before in _NOT_OF_THE_TARGET:
        return before
    return shown_when_released(version, wanted)


@dataclass(frozen=True, slots=True)
class Spared:
    """Why a board needs no session: what it shows instead, and the error where it is held."""

    state: Literal["set_aside", "rolled_back", "up_to_date"]
    error: OtaError | None = None


def spared(
    record: AttemptRecord, *, by_person: bool, as_last_read: bool, board: str
) -> Spared | None:
    """Why a board needs no session: held by an earlier failure, or known to be right.

    record: how it fared with the target. as_last_read: the journal proves that it has the version.
    """
    if record.state == "held":
        return Spared("rolled_back", OtaError("held", board=board))
    if record.state in HELD:
        error = OtaError(
            record.code or "boot-failed",  # what it says was so at that time
            f"It is not tried again, since it failed before: {record.message or ''}",
            board=board,
            remedy="Configure a new version, or call release for this board to try again.",
        )
        return Spared("set_aside" if record.state == "set_aside" else "rolled_back", error)
    tried = record.failed > 0 or record.unjudged
    if not by_person and not tried and as_last_read:
        return Spared("up_to_date")
    return None
