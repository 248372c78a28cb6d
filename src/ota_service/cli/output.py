# SPDX-License-Identifier: GPL-3.0-or-later
"""How the command prints: tables and colours on a terminal, plain lines elsewhere, JSON if asked,
in one style; and how it stops.

rich looks for a terminal, NO_COLOR, TERM=dumb and FORCE_COLOR by itself. What belongs to the
answer goes to stdout, what only accompanies it to stderr, so that an answer can be piped.

Names, versions, messages and logs come from boards, files and servers. Whatever is printed goes
through `out`, `err`, `say` or `print_json`, where no text commands the terminal, reads otherwise
than it is, makes a line of its own or holds a secret. rich's markup means nothing anywhere.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, TextIO, TypeVar, cast

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ota_service.client.failure import Failure
from ota_service.errors import ERRORS
from ota_service.firmware.secrets import hide
from ota_service.formats.text import UNSEEN, visible

PLAIN_WIDTH = 10_000
"""Columns where no terminal is: a line of a table must stay one line for grep and awk."""

_TRAILING = re.compile(r" +(?=\n)")

Command = TypeVar("Command", bound=Callable[..., Any])
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def out() -> Console:
    """For the answer."""
    return _console(stderr=False)


def err() -> Console:
    """For what accompanies it."""
    return _console(stderr=True)


def clean(text: str) -> str:
    """`text` as one line that is seen as it is, without secrets."""
    return visible(hide(text))


def say(text: str, *, err: bool = False) -> None:
    """One line, without a style."""
    click.echo(clean(text), err=err)


class _Console(Console):
    """Whatever is printed, also as a part of something else, comes through `render`."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """rich's own, with every text in it cleaned."""
        return super().render(_cleaned(renderable), options)


def _cleaned(shown: RenderableType) -> RenderableType:
    """Of a table in place, since its columns are measured before its cells are rendered."""
    if isinstance(shown, str):
        return clean(shown)
    if isinstance(shown, Text) and clean(shown.plain) != shown.plain:
        return Text(clean(shown.plain), shown.style, end=shown.end, no_wrap=shown.no_wrap)
    if isinstance(shown, Table):
        for column in shown.columns:
            column._cells[:] = map(_cleaned, column._cells)
    return shown


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    console = _Console(
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


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """`value` as indented JSON on stdout: valid, and its texts the same for a program."""
    lines = json.dumps(_hidden(value), indent=indent, ensure_ascii=False).split("\n")
    click.echo("\n".join(UNSEEN.sub(_escaped, line) for line in lines))


print_line = partial(print_json, indent=None)
"""The same on one line: for what is told bit by bit."""


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    return [_hidden(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def files() -> Iterator[None]:
    """A file that cannot be read or written is a failure in one line."""
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        remedy = ERRORS["file-access"].remedy
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free some space on its disk."
        raise Failure(f"{name}{error.strerror or error}.", remedy, code="file-access") from None


@contextmanager
def on_stop(stop: Callable[[], object]) -> Iterator[asyncio.Event]:
    """In the event loop: what the first Ctrl-C or SIGTERM does in the length of a block; gives what
    is set then."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)

    def once() -> None:
        if not stopped.is_set():
            stopped.set()
            stop()

    for number in signals:
        loop.add_signal_handler(number, once)
    try:
        yield stopped
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; `right`: the columns of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(
            name, justify="right" if name in right else "left", overflow="fold", min_width=len(name)
        )
    return made


def facts(values: Mapping[str, str | None], *, indent: int = 2) -> Table:
    """Names and values, one a line; those without a value are left out."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, indent))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in values.items():
        if value:
            made.add_row(name, Text(value))
    return made


def size(size_bytes: int) -> str:
    """A size for people: "1 MB", "16 KB", "300,016"."""
    for unit, name in ((1 << 20, "MB"), (1 << 10, "KB")):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes:,}"


def share(part_bytes: int, whole_bytes: int) -> str:
    """How full something is, as "29 %"."""
    return f"{100 * part_bytes / whole_bytes:.0f} %" if whole_bytes else ""


def bar(part_bytes: int, whole_bytes: int, width: int = 10) -> str:
    """The same as a bar of blocks."""
    filled = min(width, -(-part_bytes * width // whole_bytes)) if whole_bytes else 0
    return "█" * filled + "░" * (width - filled)


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
    message, remedy = str(error.get("message", "")), str(error.get("remedy", ""))
    stop = "." if message and remedy and message[-1] not in ".?!" else ""
    return f"{message}{stop} {remedy}".strip() + f" [{error.get('code', 'unknown')}]"


def errors_of(boards: Mapping[str, Mapping[str, Any]]) -> list[Text]:
    """One line for each board with an error, or with something to notice; for all of which the
    same is to be said, one."""
    said: dict[str, list[str]] = {}
    for name, board in boards.items():
        if board.get("error"):
            said.setdefault(error_text(board["error"]), []).append(name)
    for name, board in boards.items():
        if board.get("notice"):
            said.setdefault(str(board["notice"]), []).append(name)
    return [each(names, words) for words, names in said.items()]


def each(names: Iterable[str], words: str) -> Text:
    """What is to be said of boards."""
    return Text.assemble((f"{', '.join(names)}: ", "bold"), words)
