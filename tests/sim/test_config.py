# SPDX-License-Identifier: GPL-3.0-or-later
"""A board's settings as a file."""

from __future__ import annotations

import json
from pathlib import Path

from esp32_sim.config import CONFIG_FILE, BoardConfig


def test_settings_come_back(tmp_path: Path) -> None:
    """What was saved is loaded, and a folder without a file is a default board."""
    assert BoardConfig.load(tmp_path) == BoardConfig()
    config = BoardConfig(revision=(1, 0), resets_on_open=True, max_baud=460800)
    config.save(tmp_path)
    assert BoardConfig.load(tmp_path) == config


def test_a_file_from_before_a_setting_existed(tmp_path: Path) -> None:
    """It loads, with the setting's default."""
    BoardConfig(rollback=True).save(tmp_path)
    file = tmp_path / CONFIG_FILE
    values = json.loads(file.read_text())
    del values["resets_on_open"]
    file.write_text(json.dumps(values))
    assert BoardConfig.load(tmp_path) == BoardConfig(rollback=True)
