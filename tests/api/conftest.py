# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs' environment: simulated boards, and folders of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp32_sim.pytest_plugin import _esp32_simulator as _esp32_simulator
from esp32_sim.pytest_plugin import esp32_boards as esp32_boards


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where state and firmware are kept by default."""
    monkeypatch.setenv("VIAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VIAM_MODULE_DATA", str(tmp_path / "data"))
