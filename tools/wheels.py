# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects the pinned packages as wheels, for machines that have no package index.

    python tools/wheels.py [--platform linux/arm64] [--python 3.11] [--out build/wheels]

Without `--platform` they are for machines like this one. Wheels of several kinds may lie in one
folder. What has no wheel in the index is built here: that works for other platforms as long as
it is Python alone (today that is esptool).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# As meta.json and the Viam app call them -> as wheels do.
PLATFORMS = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
# The C library of Debian 10, Ubuntu 20.04 and everything later; wheels for older ones fit, too.
_GLIBC = (17, 28)


def tags(platform: str, python: str) -> list[str]:
    """pip's options that name a platform ("linux/arm64") and a Python ("3.11")."""
    machine = PLATFORMS[platform]
    names = [f"manylinux2014_{machine}"]
    names += [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC[0], _GLIBC[1] + 1)]
    abi = f"cp{python.replace('.', '')}"
    options = [f"--platform={name}" for name in names]
    options += ["--implementation=cp", f"--python-version={python}"]
    return options + [f"--abi={name}" for name in (abi, "abi3", "none")]


def pip(*arguments: str | Path) -> None:
    """Run pip; raises CalledProcessError, and pip has said why."""
    command = [sys.executable, "-m", "pip", *arguments, "-q", "--disable-pip-version-check"]
    subprocess.run(command, check=True)


def collect(requirements: Path, out: Path, platform: str | None, python: str) -> None:
    """Put the wheels of a requirements file into a folder; raises CalledProcessError."""
    if platform is None:
        pip("wheel", "-r", requirements, "-w", out)
        return
    with tempfile.TemporaryDirectory(prefix="ota-wheels-") as folder:
        built = Path(folder)
        # The pins are closed, so each one stands for itself.
        pip("wheel", "--no-deps", "-r", requirements, "-w", built)
        anywhere = built / "anywhere"
        anywhere.mkdir()
        for wheel in built.glob("*-none-any.whl"):
            shutil.move(wheel, anywhere)
        options = ["--no-deps", "--only-binary=:all:", *tags(platform, python)]
        pip("download", *options, "--find-links", anywhere, "-r", requirements, "-d", out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser = argparse.ArgumentParser(description="Collect the pinned packages as wheels.")
    parser.add_argument("--platform", choices=sorted(PLATFORMS), help="other than this machine's")
    parser.add_argument("--python", default=own, help=f"of the other machine, default {own}")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"3\.\d{1,2}", given.python):
        parser.error("a Python is named by its first two numbers, such as 3.11")
    if given.platform is None and given.python != own:
        parser.error(f"--python needs --platform; without it the wheels are for Python {own}")
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        collect(given.requirements, given.out, given.platform, given.python)
    except subprocess.CalledProcessError as error:
        print(f"wheels: pip ended with code {error.returncode}; its words are above.",
              file=sys.stderr)  # fmt: skip
        return 1
    wheels = list(given.out.glob("*.whl"))
    size_bytes = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{given.out}: {len(wheels)} wheels, {size_bytes:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
