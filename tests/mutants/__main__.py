# SPDX-License-Identifier: GPL-3.0-or-later
"""`make mutants`: makes each change in a copy of the checkout, and lets its tests look at it.

ONLY=words tries those whose name has these words. A mutant is noticed where its tests fail; the
same tests are first seen to pass without any change, or their failing would mean nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import ROOT, Mutant

WORKERS = 2
LIMIT_S = 240.0
"""A change may make its tests wait for ever, which is noticing it."""
_LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", "build", "dist", "results", "__pycache__", ".*_cache", ".hypothesis")
)

PASSED, FAILED = 0, 1
"""pytest's exit codes; the others say that it was called wrongly or found no test."""


class Copy:
    """A copy of the checkout, in which one mutant at a time is made."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        shutil.copytree(ROOT, folder, ignore=_LEFT_OUT, symlinks=True)

    def run(self, tests: Sequence[str], *, limit_s: float | None = None) -> tuple[int, str]:
        """pytest's exit code, FAILED where it took too long, and the end of its output."""
        # Processes that tests start must find the copy as well.
        env = os.environ | {"PYTHONPATH": str(self.root / "src")}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        if not any("::" in word for word in tests):
            command += ["-m", "not slow"]
        try:
            done = subprocess.run(
                [*command, *tests], cwd=self.root, env=env, timeout=limit_s, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return FAILED, f"not ended after {limit_s:.0f} s"
        return done.returncode, done.stdout[-2000:]

    def try_out(self, mutant: Mutant) -> tuple[int, str]:
        """As `run`, of the mutant's tests with the mutant in place."""
        path = self.root / mutant.path
        text = path.read_text()
        self._put(path, mutant.applied(text))
        try:
            return self.run(mutant.tests.split(), limit_s=LIMIT_S)
        finally:
            self._put(path, text)

    @staticmethod
    def _put(path: Path, text: str) -> None:
        """Another text, without what Python has compiled of the one before: a file of the same
        size and second would pass for it."""
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        path.write_text(text)


def main() -> int:
    """Try the mutants; 0 where each is noticed, or is known to be beyond any test."""
    only = os.environ.get("ONLY", "")
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    if not chosen:
        print(f"no mutant has {only!r} in its name", file=sys.stderr)
        return 2
    for mutant in chosen:
        mutant.applied((ROOT / mutant.path).read_text())
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(WORKERS):
            copies.put(Copy(Path(folder) / str(number)))

        def in_a_copy(mutant: Mutant | Sequence[str]) -> tuple[int, str]:
            copy = copies.get()
            try:
                return copy.try_out(mutant) if isinstance(mutant, Mutant) else copy.run(mutant)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(WORKERS) as pool:
            words = {word for mutant in chosen for word in mutant.tests.split()}
            named = sorted(word for word in words if "::" in word)
            tests = [one for one in (named, sorted(words.difference(named))) if one]
            for code, output in pool.map(in_a_copy, tests):
                if code != PASSED:
                    print(f"{output}\nthese tests do not pass without a mutant")
                    return 2
            print(
                f"[{time.monotonic() - began_s:5.0f} s] the tests pass without a mutant", flush=True
            )
            survivors = broken = 0
            for mutant, (code, output) in zip(chosen, pool.map(in_a_copy, chosen), strict=True):
                noticed = code == FAILED
                word = "noticed" if noticed else "SURVIVED" if code == PASSED else "BROKEN"
                if code == PASSED and mutant.survives:
                    word = f"survives: {mutant.survives}"
                survivors += code == PASSED and not mutant.survives
                broken += code not in (PASSED, FAILED)
                spent_s = time.monotonic() - began_s
                print(f"[{spent_s:5.0f} s] {mutant.file}: {mutant.name}: {word}", flush=True)
                if code not in (PASSED, FAILED):
                    print(output)
    known = sum(bool(mutant.survives) for mutant in chosen)
    noticed_count = len(chosen) - survivors - broken - known
    print(f"{len(chosen)} mutants, {noticed_count} noticed", flush=True)
    return 1 if survivors or broken else 0


if __name__ == "__main__":
    sys.exit(main())
