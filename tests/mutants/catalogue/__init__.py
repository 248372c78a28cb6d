# SPDX-License-Identifier: GPL-3.0-or-later
"""The list: what would be wrong, where, and which tests are meant to notice.

Kept by hand, a file a subject: each is a slip that could cost a board, a key, or the truth of a
report. Where code changes, its mutants change with it (`test_mutants.py` says which).
"""

from __future__ import annotations

from tests.mutants.catalogue import (
    boot,
    firmware,
    formats,
    groups,
    kept,
    link,
    nvs,
    rollout,
    tables,
    trust,
    update,
)
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *formats.MUTANTS,
    *nvs.MUTANTS,
    *tables.MUTANTS,
    *update.MUTANTS,
    *boot.MUTANTS,
    *kept.MUTANTS,
    *link.MUTANTS,
    *firmware.MUTANTS,
    *trust.MUTANTS,
    *groups.MUTANTS,
    *rollout.MUTANTS,
)
