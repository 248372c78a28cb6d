# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's results as tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from bench.updates import SCRIPTS, Cell, Result

PHASES = ("connecting", "inspecting", "writing", "verifying", "switching", "recording", "booting")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _name(cell: Cell) -> str:
    what = {"update": f"{cell.image}, spare slot {cell.state}", "version": "read the version",
            "unchanged": "find it up to date"}[cell.task]  # fmt: skip
    bridge = f", {cell.latency_ms} ms bridge" if cell.latency_ms != 1 else ""
    chip = f", {cell.chip}" if cell.chip != "esp32" else ""
    line = str(cell.baud) if cell.usb == "bridge" else f"its own USB ({cell.usb})"
    return f"{what}, {line}{bridge}{chip}"


OURS = {"ours": "", "first": ", command, first", "later": ", command, later"}
"""Ways of ours, by what is said of each."""


def ways(results: Sequence[Result]) -> Table:
    """Every way beside the floor."""
    scripts: dict[str, dict[str, float]] = {}
    for result in results:
        scripts.setdefault(_name(result.cell), {})[result.cell.way] = result.median_s
    rows = []
    for result in results:
        name, way = _name(result.cell), result.cell.way
        if way not in OURS:
            continue
        row = [
            name + OURS[way],
            f"{result.floor_s:.2f}",
            f"{result.median_s:.2f}",
            f"{result.spread_s:.2f}" if len(result.runs) > 1 else "-",
            f"{result.ratio:.2f}",
        ]
        for script in SCRIPTS:
            other = scripts[name].get(script)
            row.append(f"{other:.2f} ({result.median_s / other:.2f})" if other else "-")
        rows.append(row)
    columns = ("Seconds (median)", "floor", "ours", "spread", "ours/floor",
               "best script (ours/it)", "separate calls")  # fmt: skip
    return _table("Updates of one board", columns, rows)


def phases(results: Sequence[Result]) -> Table:
    """Ours by phase."""
    rows = [
        [_name(result.cell), *(f"{result.phase_s(name):.2f}" for name in PHASES)]
        for result in results
        if result.cell.way == "ours"
    ]
    return _table("Ours by phase, seconds", ("", *PHASES), rows)


def floors(results: Sequence[Result]) -> list[Table]:
    """The items of each floor."""
    tables = []
    for result in results:
        if result.cell.way != "ours":
            continue
        rows = [[item.name, f"{item.seconds:.3f}"] for item in result.floor]
        rows.append(["sum", f"{result.floor_s:.3f}"])
        tables.append(_table(f"Floor: {_name(result.cell)}", ("", "s"), rows))
    return tables


def show(console: Console, results: Sequence[Result], *, items: bool) -> None:
    """All tables."""
    console.print(ways(results))
    console.print(phases(results))
    if items:
        for table in floors(results):
            console.print(table)
