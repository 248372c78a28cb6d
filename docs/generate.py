# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes into the documentation what the code knows: `python docs/generate.py`.

Between `<!-- generated: NAME -->` and `<!-- end -->` stands what this script makes; a test fails
where that is not what the code says today.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from ota_service.errors import ERRORS

ROOT = Path(__file__).parents[1]
PAGES = ("docs/errors.md",)
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.S)

BLAMES = {
    "config": "The configuration or the command",
    "firmware": "The file at the url, or the way to it",
    "board": "What is on the board, or what the board is",
    "link": "The port, the cable, the way to the board",
    "policy": "Nothing is wrong: it may not happen now",
    "host": "This computer",
}


def errors() -> str:
    """The table of errors, grouped by whose fault they are."""
    parts = []
    for blame, title in BLAMES.items():
        parts.append(f"### {title}\n\n| Code | What happened | What to do | Retried | Counts |\n")
        parts.append("|---|---|---|---|---|\n")
        parts += [
            f"| `{row.code}` | {row.message} | {row.remedy} "
            f"| {'by itself' if row.transient else ''} | {'yes' if row.counts else ''} |\n"
            for row in ERRORS.values()
            if row.blame == blame
        ]
        parts.append("\n")
    return "".join(parts)


BLOCKS: dict[str, Callable[[], str]] = {"errors": errors}


def generated(text: str) -> str:
    """A page with its blocks made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}{found[3]}", text)


def main() -> int:
    """Write the pages; returns the exit code."""
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = generated(text)
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
