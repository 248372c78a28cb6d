# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults of link and process, two hundred times: what `make prove` adds to its cuts.

python -m tests.faults.prove            all of them
python -m tests.faults.prove quick      a few of each
python -m tests.faults.prove noise 17   one of them again, by its seed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.faults import process, scenarios

WORKERS = 8
"""More than cores: a scenario mostly waits for its board's time."""


@dataclass(frozen=True)
class Row:
    """One kind of fault. each: how many faults one seed injects. quick: the seeds of a thin run."""

    name: str
    words: str
    go: Callable[[Path, int], Awaitable[object]]
    seeds: range
    quick: tuple[int, ...]
    each: int = 1


async def _leaks(folder: Path, seed: int) -> int:
    return await scenarios.leaks(folder, 50, seed)


async def _few_leaks(folder: Path, seed: int) -> int:
    return await scenarios.leaks(folder, 2, seed)


ROWS = (
    Row("killed", "module killed or stopped in an update", process.killed, range(200), (1, 8)),
    Row("noise", "bytes lost, doubled, changed", scenarios.noise, range(100), (1, 3)),
    Row("unplugged", "unplugged in a phase", scenarios.unplugged, range(96), (0, 5)),
    Row("life", "one port, its cable pulled so often", scenarios.life, range(200, 201), (3,)),
    Row("answers", "silent, garbage, stuck", scenarios.never_answers, range(12), (1,)),
    Row("reboots", "keeps rebooting", scenarios.keeps_rebooting, range(12), (0,)),
    Row("leaks", "failures that leave nothing behind", _leaks, range(4), (), each=50),
    Row("few-leaks", "failures that leave nothing behind", _few_leaks, range(0), (0,), each=2),
)


class Found(list[tuple[str, int, int]]):
    """(words, how many faults were injected, how many broke a promise), a row for each kind."""

    @property
    def failed(self) -> int:
        """How many broke a promise, in all."""
        return sum(failures for _, _, failures in self)

    def __str__(self) -> str:
        lines = [f"{'fault':42} {'times':>5} {'failed':>6}"]
        lines += [f"{words:42} {count:5} {failures:6}" for words, count, failures in self]
        return "\n".join(lines)

    def __rich__(self) -> str:
        return str(self)


def run(quick: bool) -> Found:
    """Inject the faults. Each broken promise is told on stderr, with the seed that repeats it."""
    tasks = [(row.name, seed) for row in ROWS for seed in (row.quick if quick else row.seeds)]
    problems = several(tasks, workers=WORKERS)
    found = Found()
    for row in ROWS:
        times = sum(name == row.name for name, _ in tasks) * row.each
        if times:
            found.append((row.words, times, sum(name == row.name for name, _ in problems)))
    return found


def several(tasks: Sequence[tuple[str, int]], *, workers: int = 3) -> dict[tuple[str, int], str]:
    """Run scenarios, each by name and seed, side by side; the promises that were broken.

    A process each, since a service's state is a process's own.
    """
    problems: dict[tuple[str, int], str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(one, name, seed): (name, seed) for name, seed in tasks}
        for future in as_completed(waiting):
            if problem := future.result():
                name, seed = waiting[future]
                problems[name, seed] = problem
                print(f"{name} {seed}: {problem}", file=sys.stderr, flush=True)
    return problems


def one(name: str, seed: int) -> str:
    """Run one scenario in this process; what is wrong, "" where nothing is."""
    logging.disable(logging.CRITICAL)
    row = next(row for row in ROWS if row.name == name)
    try:
        with _folder() as folder:
            asyncio.run(_awaited(row.go(folder, seed)))
    except Exception as error:
        where = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "tests" in frame.filename
        ]
        return f"{type(error).__name__}: {str(error)[:600]} ({' '.join(where[-3:])})"
    return ""


async def _awaited(work: Awaitable[object]) -> None:
    await work


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def main(arguments: list[str]) -> int:
    """The command line; see the module's text."""
    if len(arguments) == 2:
        problem = one(arguments[0], int(arguments[1]))
        print(problem or "no promise was broken")
        return 1 if problem else 0
    found = run(quick=arguments == ["quick"])
    print(found)
    return 1 if found.failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
