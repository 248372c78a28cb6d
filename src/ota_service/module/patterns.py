# SPDX-License-Identifier: GPL-3.0-or-later
"""Regular expressions from a configuration: refused where they could keep Python busy for ever.

Python's `re` holds the interpreter while it searches, so a pattern that backtracks without end
would stop the whole module, whatever thread it runs in.
"""

from __future__ import annotations

import re
import warnings
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

PATTERN_MAX_CHARS = 500
# A repeat that may run this often counts as unlimited.
_LARGE_REPEAT = 32
# In how many ways the limited repeats and choices of a pattern may be combined at one place.
_MAX_WAYS = 10_000
_UNLIMITED = float("inf")
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)


def pattern_problem(pattern: str) -> str | None:
    """What is wrong with `pattern`, in words; None: it can be used.

    Refused are patterns that do not compile, and those that repeat something which itself can
    match in several ways, such as `(a+)+` or `(a|aa)*`: their search time can double with each
    further character. What is left searches a line in a time that is a power of its length.
    """
    if len(pattern) > PATTERN_MAX_CHARS:
        return f"{len(pattern)} characters; the limit is {PATTERN_MAX_CHARS}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
            tree = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        place = getattr(error, "pos", None)
        at = f" at character {place + 1}" if place is not None else ""
        return f"is not a regular expression: {getattr(error, 'msg', error)}{at}"
    if not _is_bounded(tree):
        return (
            "repeats something that itself can match in several ways, such as (a+)+ or (a|aa)*, "
            "and could search for ever"
        )
    return None


def _is_bounded(tree: Any) -> bool:
    try:
        _ways(tree)
    except (_TooManyWays, OverflowError, RecursionError):
        return False
    return True


class _TooManyWays(Exception):
    """A repeat multiplies the ways of its body beyond any bound."""


def _ways(node: Any) -> float:
    """In how many ways a parsed pattern can match at one place; infinite for one large repeat.

    Raises _TooManyWays where a repeat stands around something that has several ways itself.
    """
    if isinstance(node, _parser.SubPattern | list):
        return _product(node)
    if not isinstance(node, tuple) or len(node) != 2:
        return 1
    kind, value = node
    if isinstance(value, _parser.SubPattern):
        return _ways(value)
    if kind in _REPEATS:
        least, most, body = value
        of_body = _ways(body)
        if of_body > 1 and most > 1 and (most >= _LARGE_REPEAT or of_body**most > _MAX_WAYS):
            raise _TooManyWays
        if most >= _LARGE_REPEAT and most != least:
            return _UNLIMITED
        return float(of_body ** max(1, most) * (most - least + 1))
    if kind is _constants.BRANCH:
        return float(sum(_ways(branch) for branch in value[1]))
    if isinstance(value, tuple | list):
        # Groups, look-arounds and conditions: whatever patterns they hold.
        return _product([part for part in value if isinstance(part, _parser.SubPattern)])
    return 1


def _product(parts: Any) -> float:
    ways = 1.0
    for part in parts:
        ways *= _ways(part)
    return ways
