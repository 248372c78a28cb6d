# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: measures, prints tables, and leaves JSON under bench/results/.

QUICK=1: one image, two speeds, under a minute. Who may (root) measures in the scheduler's real-time
class, beside whatever else the machine does: boards are no processes that wait for a core.
"""

from __future__ import annotations

import argparse
import contextlib
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
        "real_time": _real_time(),
    }
    file = RESULTS / f"{name}-{stamp}.json"
    file.write_text(json.dumps({"about": about, "results": data}, indent=1) + "\n")


def _real_time() -> bool:
    """Whether it is measured in that class, and what it starts runs in it as well.

    In turn with one another, all of it alike. Else one of the many threads here that has something
    to do may wait 3 ms for a core, at each of a session's hundred exchanges: a real board, and the
    kernel's driver of its port, do not wait.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        return True
    return False


def main() -> int:
    """Run the benchmark; returns the exit code."""
    options = _options()
    real_time = _real_time()
    quick = bool(os.environ.get("QUICK"))
    parts = options.parts or (["updates"] if quick else list(PARTS))
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not real_time:
        console.print("Beside everything else that this machine does: root measures without that.")
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
