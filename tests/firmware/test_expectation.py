# SPDX-License-Identifier: GPL-3.0-or-later
"""boot_expect: the same matches as Python's `re`, in a time that no pattern can blow up."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given, settings
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
        r"World\Z",
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
        r"(?x) Hello ,  # a comment",
    ],
)
def test_it_finds_what_re_finds(pattern: str) -> None:
    """The usual forms, on lines as boards print them."""
    expectation = Expectation(pattern)
    compiled = re.compile(pattern)
    for line in LINES:
        assert expectation.found_in(line) == (compiled.search(line) is not None), line


_PIECES = st.sampled_from(
    [*"aabBc1_ .^$|()*+?", r"\d", r"\w", r"\b", r"\B", r"\S", "[ab]", "[^a]", "{2}", "{1,2}", "(?:"]
)


@given(
    st.lists(_PIECES, max_size=9).map("".join), st.text(alphabet="aabBc1_ ", min_size=1, max_size=8)
)
@settings(max_examples=500)
def test_any_pattern_finds_what_re_finds(pattern: str, line: str) -> None:
    """What is taken means the same; what is refused does not compile or cannot be linear.

    Not on an empty line, where the versions of Python disagree about \\B.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compiled = re.compile(pattern)
        except re.error:
            with pytest.raises(PatternError, match="is not a regular expression"):
                Expectation(pattern)
            return
    try:
        expectation = Expectation(pattern)
    except PatternError as error:
        assert "possessive" in str(error)
        return
    assert expectation.found_in(line) == (compiled.search(line) is not None)


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
        ("[", "is not a regular expression: unterminated character set at character 1"),
        ("a{99999999999}", "is not a regular expression"),
        ("((a{50}){50}){50}", "too large"),
        ("a{1999}b{1999}", "too large"),
        (r"(a)\1", "back-reference"),
        ("(?=a)b", "look-around"),
        ("(?<!a)b", "look-around"),
        ("(?>a)b", "possessive"),
        ("a++b", "possessive"),
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
    try:
        Expectation(pattern).found_in("aaa")
    except PatternError as error:
        assert "deep" in str(error)
