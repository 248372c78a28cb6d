# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of mutants fits the code that it speaks of."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits(mutant: Mutant) -> None:
    """Its code stands there once, the change compiles, and the tests that it names exist."""
    text = (ROOT / mutant.path).read_text()
    assert mutant.applied(text) != text
    for word in mutant.tests.split():
        if word.startswith("tests/"):
            assert (ROOT / word.partition("::")[0]).exists()


def test_names_are_unique() -> None:
    """A name finds one mutant again."""
    assert not [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1]
