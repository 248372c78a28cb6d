# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation of many machines, thinned; `make prove` has a thousand of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollout.simulation import Found, Trial, roll, sizes, trials
from tests.rollout.tool import simulated


def test_waves_take_everybody_once() -> None:
    """The judge's own arithmetic."""
    assert sizes(Trial(0, 60, 0.0, [1, "5%", "25%", "100%"], 0)) == [1, 3, 15, 41]
    assert sizes(Trial(0, 3, 0.0, [1, "5%", "25%", "100%"], 0)) == [1, 1, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("trial", trials(60, 1), ids=lambda trial: trial.name)
@simulated
async def test_a_bad_release_stays_in_its_wave(tmp_path: Path, trial: Trial) -> None:
    """With failures, lost connections and lost replies; every machine is accounted for."""
    found = Found()
    await roll(trial, tmp_path, found)
    assert not found.broken, str(found)
