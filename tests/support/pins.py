# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned requirements as the repository has them, with their hashes."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("requirements.txt", "requirements-build.txt", "requirements-dev.txt")


def pins(file: str) -> dict[str, str]:
    """Name -> its lines, `name==version` and one line for each hash, of a requirements file."""
    text = (ROOT / file).read_text("utf-8")
    blocks = re.findall(r"^(([\w.-]+)==.*\n(?:    .*\n)+)", text, re.M)
    return {name: lines for lines, name in blocks}


def pinned(*names: str) -> str:
    """Some of them, as the text of a requirements file."""
    known = {name: lines for file in FILES for name, lines in pins(file).items()}
    return "".join(known[name] for name in names)
