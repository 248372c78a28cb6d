# SPDX-License-Identifier: GPL-3.0-or-later
"""`make prove`: every interruption, tried. QUICK=1: thinned. CASE=..: one of them again."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

from rich.console import Console

from tests.prove import groups, on_link, second_judge, suite
from tests.prove.board import quiet
from tests.prove.chips import prove_chips
from tests.prove.link import Boards
from tests.prove.prover import Depth, Failure, Recording, Tally, prove, prove_alike
from tests.prove.suite import Trial
from tests.prove.table import last_line, show
from tests.prove.workers import end_with_parent
from tests.rollout import prove as rollouts

WORKERS = 2
SHOWN_FAILURES = 12


class Progress:
    """A line that says how far it is, now and then; one that is written over on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began_s = self.said_s = time.monotonic()
        self.told = False
        self.each_s = 0.3 if console.is_terminal else 10.0

    def say(self, what: str, done: int, total: int, *, last: bool = False) -> None:
        """So many of so many."""
        now_s = time.monotonic()
        if not last and now_s - self.said_s < self.each_s:
            return
        self.said_s = now_s
        text = f"[{now_s - self.began_s:5.0f} s] {what}: {done} of {total}"
        end = "\r" if self.console.is_terminal and not last else "\n"
        self.console.print(text, end=end, highlight=False)

    def tell(self, found: Tally) -> None:
        """The first thing that was wrong, as soon as it is known; the rest comes at the end."""
        if found.failures and not self.told:
            self.told = True
            first = found.failures[0]
            self.console.print(f"FOUND {first.case}: {first.problem.text}", highlight=False)


def run(
    trials: Sequence[Trial], boards_each: int, console: Console, *, link: bool = True,
    before_link: Callable[[], object] = lambda: None,
    beside: Sequence[Callable[[], Tally]] = (),
) -> Tally:  # fmt: skip
    """Record, cut, judge, recover; all that was found.

    before_link: called when the cores are free, since what goes over the link mostly waits.
    beside: further work for the processes that cut.
    """
    tally = Tally()
    progress = Progress(console)
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(WORKERS, context, end_with_parent) as pool:
            # The first ones are cut while the others are recorded, which is mostly waiting.
            recordings: dict[str, Recording] = {}
            waiting: dict[Future[Tally], int] = {}
            recorded = _record(sorted(trials, key=_nvs), Path(folder), boards_each, progress, tally)
            for _, alike in groupby(recorded, key=lambda found: _nvs(found[0])):
                for some in batched(alike):
                    recordings.update((trial.case.name, recording) for trial, recording in some)
                    work = [(recording, trial.depth) for trial, recording in some]
                    waiting[pool.submit(prove_alike, work)] = len(some)
            waiting |= {pool.submit(work): 1 for work in beside}
            what, done, total = "cut, judged and recovered in memory", 0, sum(waiting.values())
            for future in as_completed(waiting):
                progress.tell(found := future.result())
                tally.merge(found)
                done += waiting[future]
                progress.say(what, done, total, last=done == total)
        before_link()
        if link:
            _over_link(trials, recordings, Path(folder), boards_each, progress, tally)
    checked = second_judge.check(recordings.values())
    for failure in checked.failures:
        tally.add(failure.kind, failure.problem.kind)
        tally.failures.append(failure)
    console.print(checked.words, highlight=False)
    return tally


def _nvs(trial: Trial) -> tuple[str, str]:
    """What the contents of a case's NVS depend on."""
    return trial.case.start.layout, trial.case.start.nvs


def batched(some: Iterable[tuple[Trial, Recording]]) -> Iterator[list[tuple[Trial, Recording]]]:
    """In such parts that two workers end at about the same time."""
    left = iter(some)
    while part := list(islice(left, 32)):
        yield part


def _record(
    trials: Sequence[Trial], folder: Path, count: int, progress: Progress, tally: Tally
) -> Iterator[tuple[Trial, Recording]]:
    """Each case's session over the link."""
    cases = [trial.case for trial in trials]
    what = "sessions recorded over the link"
    with Boards(folder / "record", count) as boards:
        for done, found in enumerate(on_link.record(boards, cases), 1):
            progress.say(what, done, len(cases), last=done == len(cases))
            if isinstance(found, Failure):
                tally.add(found.kind, found.problem.kind)
                tally.failures.append(found)
            else:
                yield trials[done - 1], found


def _over_link(
    trials: Sequence[Trial], recordings: dict[str, Recording], folder: Path, count: int,
    progress: Progress, tally: Tally,
) -> None:  # fmt: skip
    some = [
        recovery
        for trial in trials
        if trial.case.name in recordings
        for recovery in on_link.recoveries(trial, recordings[trial.case.name].ops)
    ]
    what = "recovered over the link"
    with Boards(folder / "recover", count, seed=1) as boards:
        for done, found in enumerate(on_link.recover_all(boards, some), 1):
            progress.tell(found)
            tally.merge(found)
            progress.say(what, done, len(some), last=done == len(some))


def one(name: str, console: Console) -> Tally:
    """A case again, or one cut of it: "case" or "case@op:how"."""
    if name.startswith("group/"):
        return groups.again(name)
    case, _, cut = name.partition("@")
    trial = suite.named(case)
    cut, _, again = cut.partition("+")
    with tempfile.TemporaryDirectory(prefix="prove-") as folder, Boards(Path(folder), 1) as boards:
        recording = next(on_link.record(boards, [trial.case]))
    if isinstance(recording, Failure):
        tally = Tally()
        tally.add(recording.kind, recording.problem.kind)
        tally.failures.append(recording)
        return tally
    for number, op in enumerate(recording.ops):
        console.print(f"{number:4} {op.who:10} {op.phase:12} {op.op}", highlight=False)
    if again:
        console.print("a second cut is repeated with all those of its first one")
    depth = Depth(trial.depth.detail, twice=1 if again else 0)
    return prove(recording, depth, cut or None)


def chips(quick: bool) -> Tally:
    """Sessions cut on each chip, by its own registers."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        for found in prove_chips(Path(folder), 1 if quick else 2, quick=quick):
            tally.merge(found)
    return tally


class Found(Protocol):
    """What came of the faults: printable, and how many broke a promise."""

    failed: int


def faults() -> Found | None:
    """The 200-fold runs of process and link faults, where they are there."""
    if importlib.util.find_spec("tests.faults.prove") is None:
        return None
    module = importlib.import_module("tests.faults.prove")
    found: Found = module.run(False)
    return found


def report(failures: Iterable[Failure], console: Console) -> None:
    """The first failures in words, with what repeats them and the image that shows them."""
    folder: Path | None = None
    shown = list(failures)
    for number, failure in enumerate(shown[:SHOWN_FAILURES]):
        console.print(f"{failure.problem.kind}: {failure.problem.text}", highlight=False)
        console.print(f"    make prove CASE={failure.case}", highlight=False, soft_wrap=True)
        if failure.image is not None:
            folder = folder or Path(tempfile.mkdtemp(prefix="prove-failed-"))
            file = folder / f"{number}.bin"
            file.write_bytes(zlib.decompress(failure.image))
            console.print(f"    {file}", highlight=False, soft_wrap=True)
    if len(shown) > SHOWN_FAILURES:
        console.print(f"... and {len(shown) - SHOWN_FAILURES} more that were kept")


def _of_groups(kind: str, column: str, wanted: str) -> bool:
    return kind.startswith("group: ") and column == wanted


def main() -> int:
    """Run the proof; 0 only where nothing was found."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    quick = os.environ.get("QUICK", "") not in ("", "0")
    failed = 0
    if case := os.environ.get("CASE"):
        try:
            tally = one(case, console)
        except LookupError as error:
            print(error.args[0], file=sys.stderr)
            return 2
    else:
        trials = suite.quick() if quick else suite.whole()
        with quiet(), ThreadPoolExecutor(2) as apart:
            injected: list[Future[Found | None]] = []
            rolled: list[Future[Found]] = []
            cut: list[Future[Tally]] = []

            def begin() -> None:
                if not quick:  # each fault has tests of its own, which run with the others
                    injected.append(apart.submit(faults))
                rolled.append(apart.submit(rollouts.run, quick))
                cut.append(apart.submit(chips, quick))

            parts = 1 if quick else WORKERS * 4
            beside = [partial(groups.prove_groups, n, parts, quick=quick) for n in range(parts)]
            tally = run(trials, 8 if quick else 12, console, before_link=begin, beside=beside)
            found = injected[0].result() if injected else None
            told = rolled[0].result()
            if (ended := cut[0].exception()) is None:
                tally.merge(cut[0].result())
        if ended is not None:  # what the others found is told all the same
            console.print(f"the chips' part ended early: {ended!r}", highlight=False)
            failed += 1
        if found is not None:
            console.print(found)
            failed += found.failed
        console.print(str(told), highlight=False, soft_wrap=True)
        failed += told.failed
    show(tally, console)
    at = tally.numbers.items()
    tried = sum(n for (kind, column), n in at if _of_groups(kind, column, "cuts"))
    half = sum(n for (kind, column), n in at if _of_groups(kind, column, "lost"))
    console.print(f"{tried} groups cut, {half} left half that could be reached", highlight=False)
    report(tally.failures, console)
    print(last_line(tally), flush=True)
    bad = sum(tally.total(column) for column in ("lost", "keys", "converge"))
    return 1 if bad or failed or not tally.total("cuts") else 0


if __name__ == "__main__":
    sys.exit(main())
