# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows a service's boards while they are updated: bars on a terminal, plain lines elsewhere.

A frame is a function of a status, the space there is and the time, so it can be looked at
without an update. 80 columns and a bar a board; where there are more boards than lines, those
that something happens to come first and the others are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ota_service.cli.output import rate_text, time_text
from ota_service.formats.text import natural

Board = Mapping[str, Any]
Status = Mapping[str, Any]
Value = TypeVar("Value")

_PLAIN_STEP_PERCENT = 25
_NAME_COLUMNS = (8, 17)  # 17: a MAC
_WHAT_COLUMNS = 14
_FIXED_COLUMNS = 3 + _WHAT_COLUMNS + 4 + 9 + 5 + 5  # margin, phase, percent, rate, time, gaps
_BAR_COLUMNS = (8, 40)

STYLES = {
    "up_to_date": "green",
    "updating": "cyan",
    "outdated": "yellow",
    "awaiting_confirmation": "yellow",
    "rolled_back": "red",
    "failed": "red",
    "set_aside": "red",
    "unsupported": "red",
    "unrecognised": "red",
    "absent": "dim",
    "candidate": "dim",
    "unknown": "dim",
}
"""The colour of a board's state."""


class Live:
    """A context manager; `show` takes a status each time there is one.

    names: the boards to show; None: all. transient: the bars go at the end, where a table
    takes their place.
    """

    def __init__(
        self, console: Console, names: Sequence[str] | None = None, *, transient: bool = False
    ) -> None:
        self._console = console
        self._names = names
        self._said: dict[str, str] = {}
        self._half: list[str] = []
        self._status: Status = {}
        self._live: RichLive | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = RichLive(
                console=console,
                refresh_per_second=12,
                get_renderable=self._frame,
                transient=transient,
            )

    def __enter__(self) -> Live:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Bring what is shown up to this status."""
        self._status = status
        if self._live is None:
            self._lines(status)

    def _frame(self) -> RenderableType:
        size = self._console.size
        return frame(self._status, self._names, columns=size.width, lines=size.height - 1)

    def _lines(self, status: Status) -> None:
        download = _download_text(status)
        if download and self._said.get("") != download.split()[0]:
            self._said[""] = download.split()[0]
            self._console.print(Text(f"   {download.split(',')[0]}"))
        half = half_of(status.get("run", {}))
        if half != self._half:
            self._half = half
            for line in half:
                self._console.print(Text(f"   {line}"), soft_wrap=True)
        for name, board in boards_of(status, self._names).items():
            what = _what(board)
            if board.get("phase") == "writing":
                step = int(_percent(board)) // _PLAIN_STEP_PERCENT * _PLAIN_STEP_PERCENT
                what = f"{what} {step} %"
            if board.get("error") and (waits := _waits_for(board)):
                what = f"{what}: {waits}"
            elif board.get("error") and not board.get("phase"):
                what = f"{what} [{board['error'].get('code', '')}]"
            elif board.get("notice") and not board.get("phase"):
                what = f"{what}; {board['notice']}"
            if self._said.get(name) != what:
                self._said[name] = what
                self._console.print(Text(f"   {name:<12} {what}"), soft_wrap=True)


def boards_of(status: Status, names: Sequence[str] | None = None) -> dict[str, Board]:
    """The boards of a status by name, those of `names` alone where given."""
    boards = in_order(dict(status.get("boards", {})))
    if names is None:
        return boards
    wanted = {word.lower() for word in names}
    return {
        name: board
        for name, board in boards.items()
        if wanted & {name.lower(), str(board.get("mac", "")), str(board.get("port", "")).lower()}
    }


def in_order(boards: Mapping[str, Value]) -> dict[str, Value]:
    """By name, "board 2" before "board 10": on their way through Viam they lose their order."""
    return {name: boards[name] for name in sorted(boards, key=natural)}


def half_of(run: Mapping[str, Any]) -> list[str]:
    """Of a run whose manifest has a group that is half switched: which boards have the new
    firmware, and what to do about it, each a line."""
    names = list((run.get("manifest") or {}).get("half", ()))
    have = "has" if len(names) == 1 else "have"
    return names and [
        f"Half switched: of a group only {', '.join(names)} {have} the new firmware.",
        "Attach all of it and let it restart: the service or the next command ends it.",
    ]


def frame(
    status: Status, names: Sequence[str] | None = None, *, columns: int = 80, lines: int = 24
) -> RenderableType:
    """What a terminal of this size shows of a status: one line a board, and one below them; two
    more where a group is half switched."""
    boards, half = boards_of(status, names), half_of(status.get("run", {}))
    room = max(1, lines - 1 - len(half))
    shown = dict(boards)
    if len(boards) > room:
        first = sorted(boards, key=lambda name: _urgency(boards[name]))[: max(1, room - 1)]
        shown = {name: board for name, board in boards.items() if name in first}
    longest = max((len(name) for name in shown), default=0)
    name_columns = min(max(longest, _NAME_COLUMNS[0]), _NAME_COLUMNS[1])
    bar_columns = columns - _FIXED_COLUMNS - name_columns - 1
    bar_columns = min(max(bar_columns, _BAR_COLUMNS[0]), _BAR_COLUMNS[1])
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=2)
    grid.add_column(width=name_columns, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=_WHAT_COLUMNS, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=bar_columns)
    for width in (4, 9, 5):  # percent, rate, time left
        grid.add_column(width=width, justify="right", no_wrap=True)
    for name, board in shown.items():
        grid.add_row(*_row(name, board, bar_columns))
    below: list[tuple[str, str]] = []
    if len(shown) < len(boards):
        left = [board for name, board in boards.items() if name not in shown]
        below.append((f"and {len(left)} more: {counts_text(left)}", "dim"))
    below += [*((line, "yellow") for line in half), (_summary(status, boards), "dim")]
    texts = (
        Text(f"   {words}", style=style, no_wrap=True, overflow="ellipsis")
        for words, style in below
    )
    return Group(grid, *texts)


def _row(name: str, board: Board, bar_columns: int) -> tuple[RenderableType, ...]:
    state, phase = str(board.get("state", "")), board.get("phase")
    style = STYLES["updating"] if phase else STYLES.get(state, "")
    progress = dict(board.get("progress", {}))
    percent = rate = left = ""
    bar: RenderableType = Text("")
    if _waits_for(board):
        bar = Text(str(board["error"].get("code", "")), style="yellow", no_wrap=True)
    elif phase == "waiting":
        bar = ProgressBar(total=100, completed=0, width=bar_columns)
    elif phase == "writing" and progress.get("bytes_total"):
        bar = ProgressBar(
            total=100, completed=_percent(board), width=bar_columns, complete_style="cyan"
        )
        percent = f"{_percent(board):.0f}%"
        rate, left = _rate_and_left(progress)
    elif phase:
        bar = ProgressBar(total=None, pulse=True, width=bar_columns, pulse_style="cyan")
    elif state == "up_to_date":
        bar = ProgressBar(total=1, completed=1, width=bar_columns, finished_style="green")
        percent = "100%"
    elif board.get("error"):
        bar = Text(str(board["error"].get("code", "")), style=style, no_wrap=True)
    return (_mark(board), Text(name), Text(_what(board), style=style), bar, percent, rate, left)


def _mark(board: Board) -> Text:
    """A sign beside the colour: not everyone sees colours, and not every terminal has them."""
    style = "" if board.get("phase") else STYLES.get(str(board.get("state", "")), "")
    return Text({"green": " ✓", "red": " ✗"}.get(style, ""), style=style)


def _rate_and_left(progress: Mapping[str, Any]) -> tuple[str, str]:
    """The mean rate so far, and the time left."""
    eta_s = progress.get("eta_s")
    left_bytes = progress.get("bytes_total", 0) - progress.get("bytes_done", 0)
    if not eta_s or left_bytes <= 0:
        return "", ""
    return rate_text(left_bytes / eta_s), time_text(eta_s)


def _waits_for(board: Board) -> str:
    """What a board waits for that others must do, such as free its port; "": for nothing."""
    if board.get("phase") != "waiting" or board.get("state") != "updating":
        return ""
    return str(dict(board.get("error", {})).get("message", ""))


def _percent(board: Board) -> float:
    return float(dict(board.get("progress", {})).get("percent", 0))


def _urgency(board: Board) -> int:
    """Boards that something happens to, then those with an error, then the rest."""
    if phase := board.get("phase"):
        return 1 if phase == "waiting" else 0
    return 2 if STYLES.get(str(board.get("state"))) == "red" else 3


def _what(board: Board) -> str:
    """The phase while there is one, else the state, in a person's words."""
    phase, state = board.get("phase"), str(board.get("state", ""))
    if state == "awaiting_confirmation" and phase in (None, "", "waiting"):
        return "unconfirmed"
    return str(phase or state).replace("_", " ")


def counts_text(boards: Sequence[Board]) -> str:
    """How many boards there are in each state: "3 up to date, 1 failed"."""
    counts: Counter[str] = Counter()
    for board in boards:
        waits = board.get("phase") == "waiting" and board.get("state") == "updating"
        busy = board.get("phase") and board.get("state") in ("unknown", "outdated", "up_to_date")
        state = str(board.get("state", "unknown")).replace("_", " ")
        counts["waiting" if waits else _what(board) if busy else state] += 1
    return ", ".join(f"{count} {words}" for words, count in counts.items())


def _download_text(status: Status) -> str:
    if status.get("state") != "downloading":
        return ""
    percent = dict(status.get("progress", {})).get("percent")
    return "downloading the firmware" + (f", {percent:.0f} %" if percent is not None else "")


def _summary(status: Status, boards: Mapping[str, Board]) -> str:
    download = _download_text(status)
    if download:
        return download
    if not boards:
        return str(status.get("state", "connecting"))
    for name, board in boards.items():
        if waits := _waits_for(board):
            return f"{name} waits: {waits}"
    return counts_text(list(boards.values()))
