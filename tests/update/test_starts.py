# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a watched log's next bytes are waited for."""

from __future__ import annotations

import pytest

from ota_service.update.starts import READ_TIMEOUT_S, SHORTEST_S, read_timeout_s


@pytest.mark.parametrize(
    ("due_s", "now_s", "wait_s"),
    [
        (None, 3.0, READ_TIMEOUT_S),
        (5.0, 3.0, READ_TIMEOUT_S),
        (5.0, 4.98, 0.02),
        (5.0, 4.9999, SHORTEST_S),
        (5.0, 5.0, READ_TIMEOUT_S),
        (5.0, 9.0, READ_TIMEOUT_S),
    ],
)
def test_only_the_last_wait_before_a_verdict_is_short(
    due_s: float | None, now_s: float, wait_s: float
) -> None:
    """An app that runs but has yet to print what boot_expect asks for must not make it spin."""
    assert read_timeout_s(due_s, now_s) == pytest.approx(wait_s)
