# SPDX-License-Identifier: GPL-3.0-or-later
"""`make prove QUICK=1`, as continuous integration runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from esp32_sim.chips import CHIPS
from tests.prove import images, nvs_shapes, starts, suite
from tests.prove.flows import FLOWS

ROOT = Path(__file__).parents[2]
whole = cache(suite.whole)
LAST = re.compile(r"(\d+) cuts, 0 boards lost, 0 keys lost, 0 not converged")


def test_the_thinned_form_leaves_no_kind_out() -> None:
    """Each flow, layout, state of otadata, bootloader, app and shape of NVS occurs in it."""
    trials = suite.quick()
    used = [trial.case.start for trial in trials]
    assert {trial.case.flow for trial in trials} == set(FLOWS)
    assert {start.layout for start in used} == {*starts.OTA_LAYOUTS, *starts.ODD_LAYOUTS}
    assert {start.build for start in used} == set(starts.BUILDS)
    assert images.BARE in {start.running for start in used}
    assert {start.otadata for start in used} == set(starts.STATES)
    assert {start.rollback for start in used} == {True, False}
    assert {start.nvs for start in used} == set(nvs_shapes.SHAPES)


@pytest.mark.slow
def test_the_whole_form_combines_everything_of_the_core() -> None:
    """3 layouts, 8 states of otadata, 2 bootloaders, 8 shapes of NVS: 384 updates, and more."""
    starts_of = {t.case.start for t in whole() if t.case.flow == "update"}
    core = starts.product(
        starts.OTA_LAYOUTS, list(starts.CORE), (False, True), list(nvs_shapes.CORE)
    )
    assert len(core) == 384
    assert starts_of >= set(core)


@pytest.mark.parametrize("form", [suite.quick, pytest.param(whole, marks=pytest.mark.slow)])
def test_bootloaders_with_rollback_are_as_many(form: Callable[[], list[suite.Trial]]) -> None:
    """As those without it: both are common."""
    rollback = [trial.case.start.rollback for trial in form()]
    assert 0.4 < sum(rollback) / len(rollback) < 0.65


@pytest.mark.slow
def test_the_thinned_proof() -> None:
    """Nothing lost, everything converged; the last line and the exit code say so."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.prove"],
        cwd=ROOT,
        env={**os.environ, "QUICK": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout + done.stderr
    match = LAST.fullmatch(last)
    assert match is not None, last
    assert int(match[1]) > 1500
    for row in ("update: slot", "update: otadata", "update: NVS", "during recovery"):
        assert f"| {row}" in done.stdout
    assert re.search(r"^[1-9]\d* groups cut, 0 left half that could be reached$", done.stdout, re.M)
    for kind in ("the process", "a member's plug", "a member's power", "two members"):
        assert f"| group: {kind} " in done.stdout
    for chip in CHIPS.values():
        assert re.search(rf"\| registers: {chip.title} +\| +0 \| +1 \|", done.stdout), chip.title
