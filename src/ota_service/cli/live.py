# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows a service's boards while they are updated: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_STEP_PERCENT = 25


class Live:
    """A context manager; `show` takes a status each time there is one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("   {task.description:<12.12}"),
                TextColumn("{task.fields[what]:<22.22}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(compact=True),
                console=console,
            )

    def __enter__(self) -> Live:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, status: Mapping[str, Any]) -> None:
        """Bring what is shown up to this status."""
        for name, board in dict(status.get("boards", {})).items():
            if self._bars is not None:
                self._bar(self._bars, name, board)
            else:
                self._line(name, board)

    def _bar(self, bars: Progress, name: str, board: Mapping[str, Any]) -> None:
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=100, what="")
        percent = float(dict(board.get("progress", {})).get("percent", 0))
        if _done(board):
            percent = 100.0
        bars.update(self._tasks[name], completed=percent, what=_what(board))

    def _line(self, name: str, board: Mapping[str, Any]) -> None:
        percent = float(dict(board.get("progress", {})).get("percent", 0))
        step = int(percent) // _PLAIN_STEP_PERCENT * _PLAIN_STEP_PERCENT
        what = _what(board)
        if board.get("phase") == "writing":
            what = f"{what} {step} %"
        if self._said.get(name) != what:
            self._said[name] = what
            self._console.print(f"   {name:<12} {what}")


def _done(board: Mapping[str, Any]) -> bool:
    return board.get("state") in ("up_to_date", "rolled_back", "awaiting_confirmation")


def _what(board: Mapping[str, Any]) -> str:
    """The phase while there is one, else the state, in a person's words."""
    return str(board.get("phase") or board.get("state", "")).replace("_", " ")
