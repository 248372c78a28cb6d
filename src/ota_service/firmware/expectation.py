# SPDX-License-Identifier: GPL-3.0-or-later
"""What a firmware must print to count as running: a regular expression, searched in linear time.

Python's `re` can backtrack without end, and holds the whole interpreter meanwhile, whatever
thread it runs in. So a pattern from a configuration is translated into a nondeterministic
automaton (K. Thompson, "Regular Expression Search Algorithm", CACM 1968), whose time grows with
the line's length times the pattern's, whatever the pattern is. The syntax is `re`'s own: it is
read by `re`'s parser. What no such automaton can do is refused: back-references, look-arounds
and possessive groups.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from re import _constants as c  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

PATTERN_MAX_CHARS = 500
# Counted repeats are written out, so `(a{100}){100}` would be large.
MAX_STEPS = 1_000

Test = Callable[[str], bool]
"""Whether one character fits."""

_SHORTHANDS = {
    c.CATEGORY_DIGIT: r"\d",
    c.CATEGORY_NOT_DIGIT: r"\D",
    c.CATEGORY_SPACE: r"\s",
    c.CATEGORY_NOT_SPACE: r"\S",
    c.CATEGORY_WORD: r"\w",
    c.CATEGORY_NOT_WORD: r"\W",
}
_BEGINNINGS = (c.AT_BEGINNING, c.AT_BEGINNING_STRING)
_ENDS = (c.AT_END, c.AT_END_STRING)


class PatternError(ValueError):
    """A pattern that cannot be used, and why, in words that continue "boot_expect: "."""


@dataclass(slots=True)
class _Step:
    """One state: it consumes a character (`test`), asks for a place (`at`), or just leads on."""

    test: Test | None = None
    at: Any = None
    ascii: bool = False
    next: list[int] = field(default_factory=list)


class Expectation:
    """A pattern to search for in lines. Raises PatternError where it cannot be used."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > PATTERN_MAX_CHARS:
            raise PatternError(f"{len(pattern)} characters; the limit is {PATTERN_MAX_CHARS}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = parser.parse(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            place = getattr(error, "pos", None)
            at = f" at character {place + 1}" if place is not None else ""
            words = getattr(error, "msg", None) or "it is nested too deep"
            raise PatternError(f"is not a regular expression: {words}{at}") from None
        self.pattern = pattern
        self._steps: list[_Step] = []
        self._end = self._add()
        try:
            self._start = self._sequence(tree, tree.state.flags, self._end)
        except RecursionError:
            raise PatternError("is not a regular expression: it is nested too deep") from None

    def found_in(self, line: str) -> bool:
        """Whether the pattern matches anywhere in `line`, as `re.search` would say."""
        states: set[int] = set()
        for place in range(len(line) + 1):
            states.add(self._start)  # a match may begin at any place
            states = self._closure(states, line, place)
            if self._end in states:
                return True
            if place < len(line):
                char = line[place]
                states = {
                    self._steps[state].next[0]
                    for state in states
                    if (test := self._steps[state].test) is not None and test(char)
                }
        return False

    def _closure(self, states: set[int], line: str, place: int) -> set[int]:
        """All states that are reached from `states` without consuming a character."""
        reached: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in reached:
                continue
            reached.add(state)
            step = self._steps[state]
            if step.test is None and (step.at is None or _is_at(step, line, place)):
                waiting += step.next
        return reached

    # --- translation: every method returns the state at which its part begins

    def _add(self, *leads_to: int, test: Test | None = None, at: Any = None, flags: int = 0) -> int:
        if len(self._steps) >= MAX_STEPS:
            raise PatternError("is too large once its repeats are written out")
        self._steps.append(_Step(test, at, bool(flags & re.ASCII), list(leads_to)))
        return len(self._steps) - 1

    def _sequence(self, parts: Any, flags: int, then: int) -> int:
        for part in reversed(list(parts)):
            then = self._part(part, flags, then)
        return then

    def _part(self, part: Any, flags: int, then: int) -> int:
        kind, value = part
        if kind in (c.LITERAL, c.NOT_LITERAL, c.ANY, c.IN):
            return self._add(then, test=_test(kind, value, flags))
        if kind is c.AT:
            return self._add(then, at=value, flags=flags)
        if kind is c.BRANCH:
            return self._add(*(self._sequence(branch, flags, then) for branch in value[1]))
        if kind is c.SUBPATTERN:
            _, added, removed, body = value
            return self._sequence(body, (flags | added) & ~removed, then)
        if kind in (c.MAX_REPEAT, c.MIN_REPEAT):
            least, most, body = value
            return self._repeat(least, most, body, flags, then)
        raise PatternError(
            "uses a back-reference, a look-around or a possessive group; write it without"
        )

    def _repeat(self, least: int, most: Any, body: Any, flags: int, then: int) -> int:
        if least > MAX_STEPS or (most is not c.MAXREPEAT and most > MAX_STEPS):
            raise PatternError("is too large once its repeats are written out")
        if most is c.MAXREPEAT:
            loop = self._add()
            self._steps[loop].next = [self._sequence(body, flags, loop), then]
            then = loop
        else:
            after = then
            for _ in range(most - least):
                then = self._add(self._sequence(body, flags, then), after)
        for _ in range(least):
            then = self._sequence(body, flags, then)
        return then


def _test(kind: Any, value: Any, flags: int) -> Test:
    """The test of one character, for a single item of a parsed pattern."""
    if kind is c.ANY:
        return (lambda char: True) if flags & re.DOTALL else (lambda char: char != "\n")
    if kind is c.NOT_LITERAL:
        return _negated(_ignoring_case(lambda char: ord(char) == value, flags))
    if kind is c.LITERAL:
        return _ignoring_case(lambda char: ord(char) == value, flags)
    negated = bool(value) and value[0][0] is c.NEGATE
    members = [_member(item, flags) for item in value if item[0] is not c.NEGATE]
    test = _ignoring_case(lambda char: any(member(char) for member in members), flags)
    return _negated(test) if negated else test


def _member(item: Any, flags: int) -> Test:
    """The test for one member of a set such as [a-z_\\d]."""
    kind, value = item
    if kind is c.LITERAL:
        return lambda char: ord(char) == value
    if kind is c.RANGE:
        low, high = value
        return lambda char: low <= ord(char) <= high
    shorthand = re.compile(_SHORTHANDS[value], flags & re.ASCII)
    return lambda char: shorthand.match(char) is not None


def _negated(test: Test) -> Test:
    return lambda char: not test(char)


def _ignoring_case(test: Test, flags: int) -> Test:
    if not flags & re.IGNORECASE:
        return test

    def either(char: str) -> bool:
        return any(len(form) == 1 and test(form) for form in {char, char.lower(), char.upper()})

    return either


def _is_at(step: _Step, line: str, place: int) -> bool:
    """Whether `place` in `line` is where the step's anchor holds; a line has no line ends."""
    if step.at in _BEGINNINGS:
        return place == 0
    if step.at in _ENDS:
        return place == len(line)
    word = re.compile(r"\w", re.ASCII if step.ascii else 0)
    before = place > 0 and word.match(line[place - 1]) is not None
    behind = place < len(line) and word.match(line[place]) is not None
    return (before != behind) == (step.at is c.AT_BOUNDARY)
