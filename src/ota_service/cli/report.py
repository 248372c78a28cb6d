# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service says, as tables: its status, what a run did, its history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ota_service.cli.live import STYLES, half_of, in_order
from ota_service.cli.output import each, error_text, errors_of, out, print_json, table
from ota_service.update.boot import decisive

Reply = Mapping[str, Any]

WIDE = 110
"""Columns from which a status has room for ports."""

MAC_COLUMNS = 17
_JUDGED = ("boot-failed", "brown-out", "no-reset", "check-failed")
"""Errors that come from watching a start."""
_OUTCOME_STYLES = {"succeeded": "green", "running": "cyan", "partly": "yellow"}


def state_text(state: str) -> Text:
    """A board's state in words and colour."""
    return Text(state.replace("_", " "), style=STYLES.get(state, ""))


def status_table(status: Reply, *, ports: bool = True) -> Table:
    """The boards of a status; `ports`: with the port of each.

    Where boards are pinned a column says to which version; all others go to the service's. Where
    that is a manifest, one says which of its images each of them gets.
    """
    boards = in_order(dict(status.get("boards", {})))
    images = any("image" in board for board in boards.values())
    pins = any("target" in board and "image" not in board for board in boards.values())
    made = table(
        *("board", "state", "version"),
        *(["image"] if images else []),
        *(["pinned to"] if pins else []),
        *("slot", "app"),
        *(["port"] if ports else []),
    )
    # A MAC stays whole; a longer name is folded, and leaves the others their room.
    made.columns[0].min_width = min(max(map(len, boards), default=0), MAC_COLUMNS)
    for name, board in boards.items():
        running = dict(board.get("running", {}))
        app = f"{running.get('project', '')} {running.get('app_version', '')}".strip()
        image = str(board.get("image", ""))
        pinned = "" if image else str(dict(board.get("target", {})).get("version", ""))
        made.add_row(
            name,
            _state_and_staged(board),
            str(board.get("version", "")),
            *([image] if images else []),
            *([pinned] if pins else []),
            str(running.get("slot", "")),
            app,
            *([str(board.get("port", ""))] if ports else []),
        )
    return made


def _state_and_staged(board: Reply) -> Text:
    """A board's state, and what waits on it to be activated."""
    words, staged = state_text(str(board.get("state", ""))), dict(board.get("staged", {}))
    if staged:
        old = ", of another target" if staged.get("stale") else ""
        words.append(f" ({staged.get('version', '')} staged{old})", style="dim")
    return words


def print_status(console: Console, status: Reply) -> None:
    """A whole status: the target, the boards, what is wrong."""
    target = dict(status.get("target", {}))
    console.print(Text.assemble(("version  ", "bold"), str(target.get("version", ""))))
    console.print(Text.assemble(("url      ", "bold"), str(target.get("url", ""))))
    if target.get("size_bytes"):
        about = f"{target.get('project', '')} {target.get('app_version', '')}"
        image = f"{about} for {target.get('chip', '?')}, {int(target['size_bytes']):,} bytes"
        console.print(Text.assemble(("image    ", "bold"), image))
    if target.get("notice"):
        console.print(Text.assemble(("notice   ", "bold yellow"), str(target["notice"])))
    console.print(Text.assemble(("state    ", "bold"), _state_line(status)))
    console.print()
    boards = in_order(dict(status.get("boards", {})))
    if boards:
        console.print(status_table(status, ports=console.width >= WIDE))
    else:
        console.print("No boards are known.")
    problems = [*map(Text, _half(status.get("run", {}))), *errors_of(boards)]
    error = status.get("error")
    if error and _is_news(error, boards):
        problems.insert(0, Text(error_text(error)))
    if problems:
        console.print()
    for line in problems:
        console.print(line)


def _half(run: Reply) -> list[str]:
    return [" ".join(lines)] if (lines := half_of(run)) else []


def _state_line(status: Reply) -> Text:
    run = dict(status.get("run", {}))
    line = Text(str(status.get("state", "")))
    if run:
        outcome = str(run.get("outcome", ""))
        moment = str(run.get("finished_at") or run.get("started_at"))
        if outcome == "running":
            since = ago(moment).removesuffix(" ago")
            line.append(f"; a run has been going for {since}", style=_OUTCOME_STYLES[outcome])
            return line
        line.append("; last run ")
        line.append(outcome, style=_OUTCOME_STYLES.get(outcome, "red"))
        line.append(f", {ago(moment)}")
    return line


def run_table(run: Reply) -> Table:
    """What one run of the history did to each board."""
    made = table("board", "from", "to", "outcome", "seconds", right=("seconds",))
    for name, board in in_order(dict(run.get("boards", {}))).items():
        outcome, staged = str(board.get("outcome", "running")), dict(board.get("staged", {}))
        seconds = seconds_of(board)
        # What a board is in that a run did not get to says nothing about the run.
        words = state_text(outcome)
        if staged:
            over = f", over {board['replaces']}" if "replaces" in board else ""
            words = Text(f"{staged.get('version', '')} staged{over}", style="green")
        elif outcome in ("outdated", "unknown"):
            words = Text("not updated", style=STYLES["outdated"])
        made.add_row(
            name,
            str(board.get("from", "")),
            str(board.get("to", "")),
            words,
            f"{seconds:.1f}" if seconds else "",
        )
    return made


def print_run(
    console: Console, run: Reply, *, said: Mapping[str, Sequence[str]] | None = None
) -> None:
    """The end of a run: its table, an error with its remedy for each board that has one, what
    decided in the log of one that did not start, and in the last line how it ended; said: more,
    and of which boards, which is the last line where there is just one."""
    boards = in_order(dict(run.get("boards", {})))
    if boards:
        console.print(run_table(run))
    for line in (*map(Text, _half(run)), *errors_of(boards)):
        console.print(line)
    for name, board in boards.items():
        if _code(board) in _JUDGED and (log := decisive(list(board.get("boot_log", ())))):
            console.print(f"{name}, as it started (the whole log: --json):", style="bold")
            for told in log:
                console.print(f"  | {told}", style="dim", soft_wrap=True)
    error = run.get("error")
    if error and _is_news(error, boards):
        console.print(Text(error_text(error)))
    outcome = str(run.get("outcome", ""))
    ends = {
        "partly": "The run succeeded in part.",
        "cancelled": "The run was cancelled.",
    }
    words = ends.get(outcome, f"The run {outcome}.")
    for more, names in (said or {}).items():
        if len(boards) == 1:
            words = more
        else:
            console.print(each(names, more))
    console.print(Text(words, style=_OUTCOME_STYLES.get(outcome, "red")))


def _is_news(error: Reply, boards: Reply) -> bool:
    """Whether an error for all says what no board's own does: where nobody was there, those that
    were asked say why."""
    told = {_code(board) for board in boards.values()} - {""}
    code = str(error.get("code", ""))
    return code not in told and not (code == "no-board" and told)


def _version_cells(board: Reply) -> list[RenderableType]:
    return [str(board.get("version", ""))]


def _verify_cells(board: Reply) -> list[RenderableType]:
    if "matches" not in board:
        return [""]
    return [Text("runs it", "green") if board["matches"] else Text("runs another", "red")]


def _rollback_cells(board: Reply) -> list[RenderableType]:
    guessed = board.get("version_from") == "descriptor" and "error" not in board
    note = ["version from the image's descriptor"] if guessed else []
    return [str(board.get("slot", "")), str(board.get("version", "")), *note]


LOOKS: dict[str, tuple[tuple[str, ...], Callable[[Reply], list[RenderableType]]]] = {
    "version": (("version", "error"), _version_cells),
    "verify": (("verify", "error"), _verify_cells),
    "rollback": (("slot", "version", "note"), _rollback_cells),
}
"""Verbs that reply for each board: their columns, and the cells of all but the last, which is for
what went wrong."""


def end(
    verb: str, reply: Reply, *, as_json: bool, said: Mapping[str, Sequence[str]] | None = None
) -> None:
    """What a verb came to, as JSON or for people: a run (said: as in `print_run`), a dry run's
    plan, or what was replied for each board. Exit code 1 where a run did not succeed, or a board
    has an error or runs another image, or there is none."""
    looks = verb in LOOKS
    if as_json:
        print_json(reply)
    elif "plan" in reply:
        out().print(plan_table(reply["plan"]))
    elif looks:
        out().print(_look_table(verb, in_order(dict(reply["boards"]))))
    else:
        print_run(out(), reply, said=said)
    boards: Sequence[Reply] = list(reply["boards"].values()) if looks else ()
    if looks and not boards:
        click.echo("No board was there to ask.", err=True)
    bad = any("error" in board or board.get("matches") is False for board in boards)
    failed = bad or not boards if looks else reply.get("outcome") != "succeeded"
    if failed and "plan" not in reply:
        raise SystemExit(1)


def _look_table(verb: str, boards: Reply) -> Table:
    """Without its last column where nothing is to be said there."""
    columns, cells = LOOKS[verb]
    rows: list[list[RenderableType]] = []
    for name, board in boards.items():
        error = [Text(error_text(board["error"]), style="red")] if "error" in board else []
        rows.append([name, *cells(board), *error])
    made = table(*("board", *columns)[: max(map(len, rows), default=1)])
    for row in rows:
        made.add_row(*row)
    return made


def _code(board: Reply) -> str:
    return str(dict(board.get("error", {})).get("code", ""))


def seconds_of(board: Reply) -> float:
    """How long a run was busy with a board: the sum of its phases."""
    return float(sum(dict(board.get("phases", {})).values()))


def history_table(runs: Sequence[Reply]) -> Table:
    """Runs, newest first, one a line. boards: of an update, how many ended up to date; of a stage,
    how many have it."""
    made = table("started", "trigger", "for", "version", "outcome", "boards", "id")
    made.columns[0].no_wrap = made.columns[-1].no_wrap = True
    for run in runs:
        target, boards = dict(run.get("target", {})), dict(run.get("boards", {}))
        outcome = str(run.get("outcome", ""))
        purpose = str(target.get("purpose", "update"))
        counted = purpose in ("update", "stage", "activate")
        good = sum(b.get("outcome") == "up_to_date" or "staged" in b for b in boards.values())
        made.add_row(
            local_time(str(run.get("started_at", ""))),
            str(run.get("trigger", "")),
            purpose,
            str(target.get("version", "")),
            Text(outcome, style=_OUTCOME_STYLES.get(outcome, "red")),
            f"{good} of {len(boards)}" if counted else str(len(boards)),
            str(run.get("id", "")),
        )
    return made


def plan_table(plan: Reply) -> Table:
    """The reply of a dry run."""
    made = table("board", "would", "because")
    styles = {"refuse": "red", "none": "green"}
    for name, step in in_order(plan).items():
        action = str(step.get("action", ""))
        made.add_row(
            name,
            Text(_ACTIONS.get(action, action), style=styles.get(action, "cyan")),
            str(step.get("reason", "")),
        )
    return made


_ACTIONS = {
    "none": "stay as it is",
    "write": "be written",
    "switch": "switch slots",
    "record": "get the version",
    "refuse": "be refused",
}


def local_time(moment: str) -> str:
    """An ISO 8601 moment in this machine's time: "2026-01-02 03:04"."""
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return moment


def ago(moment: str, now: datetime | None = None) -> str:
    """How long ago an ISO 8601 moment was, roughly: "12 s ago", "3 h ago"."""
    try:
        age_s = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return moment
    for unit_s, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if age_s >= 2 * unit_s:
            return f"{age_s / unit_s:.0f} {name} ago"
    return f"{max(0, age_s):.0f} s ago"
