# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs this folder's tests only where a real viam-server is named, and says so where none is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without VIAM_SERVER; a wrong one is a mistake, not a reason to skip."""
    named = os.environ.get("VIAM_SERVER")
    ours = [item for item in items if HERE in item.path.parents]
    if named and ours and not os.access(named, os.X_OK):
        raise pytest.UsageError(f"VIAM_SERVER={named}: there is no such program")
    for item in ours:
        item.add_marker(pytest.mark.slow)
        if not named:
            item.add_marker(
                pytest.mark.skip(
                    reason="needs a viam-server: VIAM_SERVER=/path/to/viam-server "
                    "make test-viam-server"
                )
            )
