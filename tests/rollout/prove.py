# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation of rollouts in a process of its own, as `make prove` runs it beside the rest.

python -m tests.rollout.prove MACHINES; its last line and exit code say what was broken.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.rollout.simulation import Found, roll, trials
from tests.rollout.tool import Loop

ROOT = Path(__file__).parents[2]
WHOLE, THINNED = 1000, 12


@dataclass
class Told:
    """What the process said; failed: whether it broke a promise."""

    text: str
    failed: int

    def __str__(self) -> str:
        return self.text


def run(quick: bool) -> Told:
    """Run it to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rollout.prove", str(THINNED if quick else WHOLE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout.strip() + (f"\n{done.stderr}" if done.returncode else "")
    return Told(text, int(done.returncode != 0))


def main(count: int) -> int:
    """Every trial with so many machines; 0 where no promise was broken."""
    found = Found()
    for trial in trials(count, 1):
        with (
            tempfile.TemporaryDirectory(prefix="rollout-") as folder,
            asyncio.Runner(loop_factory=Loop) as runner,
        ):
            runner.run(roll(trial, Path(folder) / "plans", found))
    print(found)
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
