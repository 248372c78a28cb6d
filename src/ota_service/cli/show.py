# SPDX-License-Identifier: GPL-3.0-or-later
"""How the commands for files show them: one style of tables, sizes and bars."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from ota_service.client.failure import Failure
from ota_service.errors import ERRORS


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; `right`: the columns of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=False
        )
    return made


def facts(values: Mapping[str, str | None]) -> Table:
    """Names and values, one a line; those without a value are left out."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    made.add_column(style="dim")
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


def print_json(value: Any) -> None:
    """JSON for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


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
