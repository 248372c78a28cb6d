# SPDX-License-Identifier: GPL-3.0-or-later
"""boot_expect: what Python's `re` finds in the usual forms, in a time that no pattern blows up."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_service.firmware.expectation import Expectation, PatternError

LINES = [
    "I (512) wifi: connected to viam, ip=10.0.0.17",
    "app_init: App version:      1.2.3",
    "Hello, World",
    "",
    "aaaaab",
    "_word word_",
]


@pytest.mark.parametrize(
    "pattern",
    [
        r"ip=\d+\.\d+\.\d+\.\d+",
        r"(\d{1,3}\.){3}\d{1,3}$",
        r"^Hello",
        r"(?i)hello, (world|you)",
        r"App version:\s+1\.2\.[0-9]+",
        r"(?:a|aa)+b",
        r"[^a-z ]{2,}",
        r"\bword\b",
        r"\Bword",
        r"a{2,3}?b",
        r"(?i:HELLO), World",
        r"x*",
        r"nothing like it",
        r"",
        r"[\W\d]+",
        r"^$",
        r"(a*)*b|c",
        r"(?P<name>ip)=",
    ],
)
def test_it_finds_what_re_finds(pattern: str) -> None:
    """The usual forms, on lines as boards print them."""
    expectation = Expectation(pattern)
    compiled = re.compile(pattern)
    for line in LINES:
        assert expectation.found_in(line) == (compiled.search(line) is not None), line


@given(st.text(max_size=40), st.text(max_size=20))
def test_any_text_is_taken_or_refused(pattern: str, line: str) -> None:
    """Nothing that a configuration may hold ends in another exception."""
    try:
        Expectation(pattern).found_in(line)
    except PatternError as error:
        assert str(error)


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(a|aa)+$", r"(a?){30}b", r"a*a*a*a*a*b", r"(.*)(.*)(.*)(.*)x"]
)
def test_no_pattern_searches_for_ever(pattern: str) -> None:
    """Each of these would keep `re` busy for minutes to centuries on such a line."""
    expectation = Expectation(pattern)
    line = "a" * 1000 + "!"
    begun = time.process_time()
    assert not expectation.found_in(line)
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("[", "is not a regular expression that RE2 takes: missing ]"),
        ("((a{50}){50}){50}", "invalid repetition size"),
        (r"(a)\1", "invalid escape sequence"),
        ("(?=a)b", "invalid perl operator"),
        ("(?<!a)b", "invalid"),
        ("a++b", "bad repetition operator"),
        ("a" * 501, "501 characters; the limit is 500"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(pattern: str, words: str) -> None:
    """The words go into a configuration's fault."""
    with pytest.raises(PatternError) as caught:
        Expectation(pattern)
    assert words in str(caught.value)


@pytest.mark.parametrize("pattern", ["(" * 240 + ")" * 240, "(?:" * 90 + "a" + ")*" * 90])
def test_deep_nesting_ends_in_an_answer(pattern: str) -> None:
    """Never in a RecursionError."""
    assert Expectation(pattern).found_in("aaa")
