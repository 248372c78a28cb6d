# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof's numbers as a table, on a terminal or in a file."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from tests.prove.prover import COLUMNS, Tally

HEADINGS = (
    "cases",
    "cuts",
    "judged",
    "recovered\nin memory",
    "recovered\nover link",
    "boards\nlost",
    "keys\nlost",
    "not\nconverged",
)
NOTE = (
    "cuts: interruptions made; judged: distinct contents of the flash after them. In the body of "
    "a slot, where one page program is like the next, the first and last ones are cut and some "
    "between them, and not from every start again. A board's own writes (bootloader, app) are cut "
    "between operations only. recovered in memory: each image several times (as it was left, after "
    "a start, with and without the journal, to other targets)."
)


def table(tally: Tally) -> Table:
    """One row a kind of interruption, and the sum."""
    shown = Table(box=box.MARKDOWN)
    shown.add_column("interrupted")
    for heading in HEADINGS:
        shown.add_column(heading.replace("\n", " "), justify="right")
    kinds = sorted({kind for kind, _ in tally.numbers})
    for kind in kinds:
        shown.add_row(kind, *(f"{tally.numbers[kind, column]:,}" for column in COLUMNS))
    totals = [f"{tally.total(column):,}" for column in COLUMNS]
    totals[0] = ""
    shown.add_row("all", *totals)
    return shown


def last_line(tally: Tally) -> str:
    """The line that a script looks for."""
    return (
        f"{tally.total('cuts')} cuts, {tally.total('lost')} boards lost, "
        f"{tally.total('keys')} keys lost, {tally.total('converge')} not converged"
    )


def show(tally: Tally, console: Console) -> None:
    """The table with its note."""
    console.print(table(tally))
    console.print(NOTE, highlight=False)
