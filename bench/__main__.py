# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: measures, prints tables, and leaves JSON under bench/results/.

QUICK=1: one image, two speeds, under a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

from rich.console import Console

from bench import tables, updates

RESULTS = Path(__file__).parent / "results"
PARTS = ("updates", "downtime", "network", "load")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--runs", type=int, default=3, help="of each cell (default 3)")
    parser.add_argument("--everything", action="store_true", help="the whole matrix: hours")
    for name in ("task", "image", "state", "baud", "latency_ms", "way"):
        parser.add_argument(f"--{name.replace('_', '-')}", help="only these, comma-separated")
    parser.add_argument("--no-items", action="store_true", help="no tables of the floors' items")
    return parser.parse_args()


def _updates(options: argparse.Namespace, quick: bool, console: Console) -> list[updates.Result]:
    whole = updates.everything() if options.everything else updates.standard()
    cells = updates.select(
        list(updates.quick() if quick else whole),
        task=options.task, image=options.image, state=options.state, baud=options.baud,
        latency_ms=options.latency_ms, way=options.way,
    )  # fmt: skip
    runs = 1 if quick else options.runs
    told = Console(stderr=True).print
    return [updates.measure(cell, updates.repeats(cell, runs), told) for cell in cells]


def _save(name: str, data: object) -> None:
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
    file = RESULTS / f"{name}-{stamp}.json"
    file.write_text(json.dumps({"about": about, "results": data}, indent=1) + "\n")


def main() -> int:
    """Run the benchmark; returns the exit code."""
    options = _options()
    quick = bool(os.environ.get("QUICK"))
    parts = options.parts or (["updates"] if quick else list(PARTS))
    console = Console(width=None if sys.stdout.isatty() else 160)
    if "updates" in parts:
        results = _updates(options, quick, console)
        tables.show(console, results, items=not options.no_items)
        _save("updates", [result.to_json() for result in results])
    if "downtime" in parts:
        from bench import downtime

        found = downtime.measure(1 if quick else options.runs, (1, 8) if quick else downtime.CROWDS)
        console.print(downtime.table(found))
        _save("downtime", downtime.to_json(found))
    if "network" in parts:
        from bench import network

        measured = network.measure(options.runs)
        console.print(network.table(measured))
        _save("network", network.to_json(measured))
    if "load" in parts:
        from bench import load

        figures = load.measure()
        console.print(load.table(figures))
        _save("load", load.to_json(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
