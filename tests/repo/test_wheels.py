# SPDX-License-Identifier: GPL-3.0-or-later
"""`make wheels`: the packages for another machine, collected on this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from tests.support.pins import pinned

ROOT = Path(__file__).parents[2]


def collect(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the tool."""
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "wheels.py", *arguments],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_wheels_are_for_the_other_machine(tmp_path: Path, python: str) -> None:
    """One that is Python alone, one with machine code: the tags are those that pip there takes."""
    (tmp_path / "pins.txt").write_text(pinned("idna", "propcache"))
    out = tmp_path / "wheels"
    done = collect(
        *("--platform", "linux/arm64", "--python", python),
        *("--requirements", tmp_path / "pins.txt", "--out", out),
    )
    assert done.returncode == 0, done.stderr
    version = (3, int(python.partition(".")[2]))
    # A Debian 11: glibc 2.31.
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(31, 16, -1)]
    taken = {*cpython_tags(version, platforms=platforms), *compatible_tags(version, "cp")}
    found = {}
    for wheel in out.glob("*.whl"):
        name, _, _, tags = parse_wheel_filename(wheel.name)
        assert tags & taken, wheel.name
        found[name] = "aarch64" in wheel.name
    assert found == {"idna": False, "propcache": True}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--platform", "linux/riscv"], "linux/arm64"),
        (["--platform", "linux/arm64", "--python", "3.11.2"], "such as 3.11"),
        (["--python", "3.99"], "--python needs --platform"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], text: str) -> None:
    """Before anything is downloaded, in words that say what is taken."""
    done = collect(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
