# SPDX-License-Identifier: GPL-3.0-or-later
"""The folders that the service uses where none is configured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_NAME = "ota-service"


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """What must last: `$VIAM_HOME/ota-service`, else the XDG state folder.

    Not VIAM_MODULE_DATA: viam-server deletes that where a module fails its first start.
    """
    home = environment.get("VIAM_HOME")
    return Path(home) / _NAME if home else _xdg(environment, "XDG_STATE_HOME", ".local/state")


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """What can be fetched again: VIAM_MODULE_DATA, else the XDG cache folder."""
    data = environment.get("VIAM_MODULE_DATA")
    return Path(data) if data else _xdg(environment, "XDG_CACHE_HOME", ".cache")


def _xdg(environment: Mapping[str, str], variable: str, below_home: str) -> Path:
    # The XDG specification: a relative path counts as not set.
    base = environment.get(variable, "")
    folder = Path(base) if base.startswith("/") else Path.home() / below_home
    return folder / _NAME
