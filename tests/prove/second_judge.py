# SPDX-License-Identifier: GPL-3.0-or-later
"""A second opinion on NVS, by idftool's reader, on a sample: it is slow.

It looks at NVS as the firmware leaves it after its start, because it does not make the repairs
that the firmware makes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from idftool.nvs.parser import parse

from tests.prove.cells import Cells
from tests.prove.cuts import Detail, cuts
from tests.prove.judge import Problem, region_of
from tests.prove.nvs_init import VERSION, nvs_of
from tests.prove.prover import Failure, Recording

CUTS = 60


@dataclass(frozen=True)
class Checked:
    """words: what was done; failures: where the two judges differ or keys are missing."""

    words: str
    failures: tuple[Failure, ...]


def check(recordings: Iterable[Recording]) -> Checked:
    """Read the NVS of a sample of cut boards with idftool."""
    rng = random.Random("second judge")
    found: list[Failure] = []
    chosen = list(recordings)
    rng.shuffle(chosen)
    looked = 0
    for recording in chosen:
        if looked >= CUTS:
            break
        case = recording.case
        made = cuts(
            case.flash(), recording.ops, case.start.plan, Detail(tears=1, ends=1, body=99),
            seed=case.name,
        )  # fmt: skip
        some = [cut for cut in made if cut.region == "NVS"]
        for cut in rng.sample(some, min(2, len(some))):
            looked += 1
            if (text := differs(cut.cells, recording)) is not None:
                problem = Problem("keys", f"idftool: {text}")
                found.append(Failure("second judge", f"{case.name}@{cut.name}", problem))
    words = f"idftool's NVS reader agrees on {looked - len(found)} of {looked} cut boards"
    return Checked(words, tuple(found))


def differs(cells: Cells, recording: Recording) -> str | None:
    """How idftool's reading differs from what has to be there; None where it does not."""
    layout = recording.case.start.plan
    before = nvs_of(region_of(Cells(recording.case.flash()), layout))
    region = nvs_of(region_of(cells, layout)).flash
    judged = parse(region)
    values = {(e.namespace, e.key): e.value for e in judged.entries}
    for key, (kind, value) in before.items.items():
        if key == VERSION:
            continue
        have = values.get(key)
        if isinstance(have, str):
            have = have.encode()
        elif isinstance(have, int):
            have = have.to_bytes(len(value), "little", signed=have < 0)
        if have != value:
            return f"{key} of type {kind} differs"
    return None
