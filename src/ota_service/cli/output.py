# SPDX-License-Identifier: GPL-3.0-or-later
"""How the command prints: tables and colours on a terminal, plain lines elsewhere, JSON if asked.

rich looks for a terminal, NO_COLOR, TERM=dumb and FORCE_COLOR by itself. What belongs to the
answer goes to stdout, what only accompanies it to stderr, so that an answer can be piped.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, TextIO, TypeVar, cast

import click
from rich.console import Console
from rich.text import Text

from ota_service.cli import show

PLAIN_WIDTH = 10_000
"""Columns where no terminal is: a line of a table must stay one line for grep and awk."""

_TRAILING = re.compile(r" +(?=\n)")

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(function: Command) -> Command:
    """The option `--json`, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        function
    )


def out() -> Console:
    """For the answer."""
    return _console(stderr=False)


def err() -> Console:
    """For what accompanies it."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    console = Console(
        file=stream if stream.isatty() else cast(IO[str], _Trimmed(stream)),
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
    )
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = PLAIN_WIDTH
    return console


class _Trimmed:
    """A stream without the blanks that fill a table's last column: a pipe has no columns."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(_TRAILING.sub("", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_json(value: Any) -> None:
    """`value` as indented JSON on stdout."""
    show.print_json(value)


def rate_text(bytes_per_s: float) -> str:
    """A transfer rate in at most 9 columns: "123 kB/s", "1.2 MB/s"."""
    if bytes_per_s >= 999_500:
        return f"{bytes_per_s / 1e6:.1f} MB/s"
    return f"{bytes_per_s / 1e3:.0f} kB/s"


def time_text(seconds: float) -> str:
    """A duration: "0:07", "12:34", "1:02:03"."""
    whole = int(seconds + 0.5)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def error_text(error: Mapping[str, Any]) -> str:
    """An error of a status as one line: what happened, what to do, its code."""
    words = f"{error.get('message', '')} {error.get('remedy', '')}".strip()
    return f"{words} [{error.get('code', 'unknown')}]"


def errors_of(boards: Mapping[str, Mapping[str, Any]]) -> list[Text]:
    """One line for each board with an error."""
    return [
        Text.assemble((f"{name}: ", "bold"), error_text(board["error"]))
        for name, board in boards.items()
        if board.get("error")
    ]
