# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects the pinned packages, for machines that have no package index.

    python tools/wheels.py [--platform linux/arm64] [--python 3.11] [--out build/wheels]

Without `--platform` they are for machines like this one. Wheels of several kinds may lie in one
folder. They are the index's own files, whose hashes the pins have.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# As meta.json and the Viam app call them -> as wheels do.
PLATFORMS = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
# The C library of Debian 10, Ubuntu 20.04 and everything later; wheels for older ones fit, too.
_GLIBC = (17, 28)


# The index has no wheel of it. It is Python alone: the set-up builds it where it is used.
SOURCE_ONLY = ("esptool",)


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


def collect(requirements: Sequence[Path], out: Path, platform: str | None, python: str) -> None:
    """Put the packages of requirements files into a folder; raises CalledProcessError."""
    options = ["--only-binary=:all:", f"--no-binary={','.join(SOURCE_ONLY)}"]
    if platform is not None:
        options += tags(platform, python)
    files = [argument for path in requirements for argument in ("-r", path)]
    # The pins are closed, so each one stands for itself.
    pip("download", "--no-deps", "--no-build-isolation", *options, *files, "-d", out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser = argparse.ArgumentParser(description="Collect the pinned packages as wheels.")
    parser.add_argument("--platform", choices=sorted(PLATFORMS), help="other than this machine's")
    parser.add_argument("--python", default=own, help=f"of the other machine, default {own}")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument(
        "--requirements",
        type=Path,
        nargs="+",
        default=[ROOT / "requirements-build.txt", ROOT / "requirements.txt"],
    )
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
    packages = [path for path in given.out.iterdir() if path.is_file()]
    size_bytes = sum(path.stat().st_size for path in packages)
    print(f"{given.out}: {len(packages)} packages, {size_bytes:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
