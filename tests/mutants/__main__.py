# SPDX-License-Identifier: GPL-3.0-or-later
"""`make mutants`: makes each change in a copy of the checkout, and lets its tests look at it.

ONLY=words tries those whose name has these words. A mutant is noticed where its tests fail; the
same tests are first seen to pass without any change, or their failing would mean nothing.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import ROOT, Mutant

WORKERS = 2
LIMIT_S = 240
"""A change may make its tests wait for ever, which is noticing it."""
_LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", "build", "dist", "results", "__pycache__", ".*_cache", ".hypothesis")
)
_LOADED_ONCE = ("hypothesis", "esptool", "aiohttp", "cryptography", "pydantic", "grpclib")
"""Other people's packages, whose import takes longer than most of the tests."""

PASSED, FAILED = 0, 1
"""pytest's exit codes; the others say that it was called wrongly or found no test."""


class Copy:
    """A copy of the checkout, in which one mutant at a time is made."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self._output = folder.with_suffix(".log")
        shutil.copytree(ROOT, folder, ignore=_LEFT_OUT, symlinks=True)

    def put(self, path: str, text: str) -> None:
        """Another text, without what Python has compiled of the one before: a file of the same
        size and second would pass for it."""
        place = self.root / path
        for compiled in place.parent.glob(f"__pycache__/{place.stem}.*"):
            compiled.unlink()
        place.write_text(text)

    def start(self, tests: Sequence[str], limit_s: int) -> int:
        """Begin with these tests in a process of their own, and return its id. 0: no limit."""
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(self._pytest(tests, limit_s))
            finally:
                os._exit(pytest.ExitCode.INTERNAL_ERROR)
        return pid

    def _pytest(self, tests: Sequence[str], limit_s: int) -> int:
        output = os.open(self._output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((nothing, output, output)):
            os.dup2(descriptor, number)
        signal.alarm(limit_s)
        os.chdir(self.root)
        # Processes that tests start must find the copy as well.
        os.environ["PYTHONPATH"] = str(self.root / "src")
        ours = (ROOT, ROOT / "src")  # the environment may be in the checkout, too
        others = [one for one in sys.path if Path(one or ".").resolve() not in ours]
        sys.path[:] = [str(self.root / "src"), str(self.root), *others]
        for name in [one for one in sys.modules if one.split(".")[0] == "tests"]:
            del sys.modules[name]
        command = ["-x", "-q", "-p", "no:cacheprovider"]
        command += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        if not any("::" in word for word in tests):
            command += ["-m", "not slow"]
        code = int(pytest.main([*command, *tests]))
        sys.stdout.flush()
        return code

    def ended(self, status: int) -> tuple[int, str]:
        """pytest's exit code, FAILED where it took too long, and the end of its output."""
        code = os.waitstatus_to_exitcode(status)
        output = self._output.read_text("utf-8", "replace")[-2000:]
        return FAILED if code == -signal.SIGALRM else code, output


Work = TypeVar("Work")


def side_by_side(
    copies: Sequence[Copy],
    works: Iterable[Work],
    start: Callable[[Copy, Work], int],
    ended: Callable[[Copy, Work, int, str], None],
) -> None:
    """Do each work in one of the copies, as many at a time as there are copies."""
    free, busy = list(copies), dict[int, tuple[Copy, Work]]()

    def wait() -> None:
        pid, status = os.wait()
        copy, work = busy.pop(pid)
        ended(copy, work, *copy.ended(status))
        free.append(copy)

    for work in works:
        if not free:
            wait()
        copy = free.pop()
        busy[start(copy, work)] = copy, work
    while busy:
        wait()


def main() -> int:
    """Try the mutants; 0 where each is noticed, or is known to be beyond any test."""
    only = os.environ.get("ONLY", "")
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    if not chosen:
        print(f"no mutant has {only!r} in its name", file=sys.stderr)
        return 2
    texts = {mutant.path: (ROOT / mutant.path).read_text() for mutant in chosen}
    for mutant in chosen:
        mutant.applied(texts[mutant.path])
    for package in _LOADED_ONCE:
        importlib.import_module(package)
    began_s = time.monotonic()
    wrong: list[str] = []
    codes: list[int] = []

    def say(words: str) -> None:
        print(f"[{time.monotonic() - began_s:5.0f} s] {words}", flush=True)

    def unchanged_ended(copy: Copy, tests: list[str], code: int, output: str) -> None:
        if code != PASSED:
            wrong.append(f"{output}\nthese tests do not pass without a mutant: {tests}")

    def begin(copy: Copy, mutant: Mutant) -> int:
        copy.put(mutant.path, mutant.applied(texts[mutant.path]))
        return copy.start(mutant.tests.split(), LIMIT_S)

    def mutant_ended(copy: Copy, mutant: Mutant, code: int, output: str) -> None:
        copy.put(mutant.path, texts[mutant.path])
        word = {FAILED: "noticed", PASSED: "SURVIVED"}.get(code, f"BROKEN\n{output}")
        if code == PASSED and mutant.survives:
            word = f"survives: {mutant.survives}"
        elif code != FAILED:
            wrong.append(mutant.name)
        codes.append(code)
        say(f"{mutant.file}: {mutant.name}: {word}")

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(WORKERS)]
        words = {word for mutant in chosen for word in mutant.tests.split()}
        named = sorted(word for word in words if "::" in word)
        groups = [named[::2], named[1::2], sorted(words.difference(named))]
        side_by_side(
            copies, filter(None, groups), lambda copy, one: copy.start(one, 0), unchanged_ended
        )
        if wrong:
            print(*wrong, sep="\n")
            return 2
        say("the tests pass without a mutant")
        side_by_side(copies, chosen, begin, mutant_ended)
    print(f"{len(chosen)} mutants, {codes.count(FAILED)} noticed", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
