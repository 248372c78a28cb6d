# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures an update over `rfc2217://` on loopback beside the same update over the local port."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.table import Table

from bench import boards, ours
from esp32_sim.process import child_environment

SIZE_BYTES = 330_000
BAUDS = (115_200, 921_600)
Measured = dict[tuple[str, int], list[float]]


@contextmanager
def served(url: str) -> Iterator[str]:
    """The same port over RFC 2217: the url of it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.rfc2217_server", url],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


def measure(runs: int) -> Measured:
    """(way, baud): seconds of each run."""
    image = boards.image(SIZE_BYTES)
    data = boards.flash("random", SIZE_BYTES)
    found: Measured = {}
    for baud in BAUDS:
        for _ in range(1 if baud == 115_200 else runs):
            with boards.board(data, 1) as board:
                local = ours.measure(board, image, baud)
            with boards.board(data, 1) as board, served(board.url) as url:
                remote = ours.measure(board, image, baud, url=url)
            found.setdefault(("local", baud), []).append(local.total_s)
            found.setdefault(("rfc2217", baud), []).append(remote.total_s)
    return found


def table(found: Measured) -> Table:
    """Both side by side."""
    made = Table(title="330 kB, spare slot random, over the network (loopback)",
                 title_justify="left")  # fmt: skip
    for name in ("baud", "local port, s", "rfc2217, s", "ratio"):
        made.add_column(name, justify="right")
    for baud in BAUDS:
        local = statistics.median(found["local", baud])
        remote = statistics.median(found["rfc2217", baud])
        made.add_row(str(baud), f"{local:.2f}", f"{remote:.2f}", f"{remote / local:.2f}")
    return made


def to_json(found: Measured) -> list[dict[str, Any]]:
    """For bench/results."""
    return [
        {"way": way, "baud": baud, "seconds": [round(one, 3) for one in seconds]}
        for (way, baud), seconds in found.items()
    ]
