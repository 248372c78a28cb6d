# SPDX-License-Identifier: GPL-3.0-or-later
"""A mutant: one small change of meaning in one file, and who is meant to notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = "src/ota_service"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change.

    name: what is wrong with it, in words. file: below src/ota_service. before, after: the code,
    which stands there once, and what it becomes. tests: what pytest is called with; slow tests
    only where one is named by itself (`::`). survives: why no test can notice it, where that is
    so.
    """

    name: str
    file: str
    before: str
    after: str
    tests: str
    survives: str = ""

    @property
    def path(self) -> str:
        """The file, from the checkout's root."""
        return f"{SOURCE}/{self.file}"

    def applied(self, text: str) -> str:
        """The file's text with the change. Raises ValueError where it does not fit (any more)."""
        if text.count(self.before) != 1:
            found = text.count(self.before)
            raise ValueError(f"{self.name}: its code stands {found} times in {self.path}, not once")
        changed = text.replace(self.before, self.after)
        try:
            compile(changed, self.path, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.name}: {error}") from None
        return changed
