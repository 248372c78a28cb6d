# SPDX-License-Identifier: GPL-3.0-or-later
"""What a firmware must print to count as running: a regular expression, searched in linear time.

Python's `re` can backtrack without end, and holds the whole interpreter meanwhile, whatever
thread it runs in. So a pattern from a configuration is RE2's: its time grows with the line's
length alone, its memory is bounded, and it has no back-references and no look-arounds. Its
syntax is also that of Go, in which viam-server is written.
"""

from __future__ import annotations

from typing import Any

import re2

PATTERN_MAX_CHARS = 500
MAX_MEMORY_BYTES = 1 << 20


class PatternError(ValueError):
    """A pattern that cannot be used, and why, in words that continue "boot_expect: "."""


class Expectation:
    """A pattern to search for in lines. Raises PatternError where it cannot be used."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > PATTERN_MAX_CHARS:
            raise PatternError(f"{len(pattern)} characters; the limit is {PATTERN_MAX_CHARS}")
        options = re2.Options()
        options.log_errors = False  # it would write to the process's standard error
        options.max_mem = MAX_MEMORY_BYTES
        try:
            self._compiled: Any = re2.compile(pattern, options=options)
        except (re2.error, UnicodeError) as error:
            raise PatternError(
                f"is not a regular expression that RE2 takes: {_words(error)}"
            ) from None
        self.pattern = pattern

    def found_in(self, line: str) -> bool:
        """Whether the pattern matches anywhere in `line`."""
        # A lone surrogate, which a line decoded with replacements never holds, has no UTF-8.
        return self._compiled.search(line.encode("utf-8", "replace").decode()) is not None


def _words(error: Exception) -> str:
    first = error.args[0] if error.args else error
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)
