# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test starts from, whatever ran before it in the same process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ota_service.firmware import secrets

# Tests start hundreds of processes of ours. Where the environment forbids bytecode (as containers
# do), each would compile everything anew, which takes longer than most of what they are asked.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _no_secrets_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's urls hold is hidden in every text of its process from then on."""
    monkeypatch.setattr(secrets, "_forms", {})
    monkeypatch.setattr(secrets, "_told", {})
    monkeypatch.setattr(secrets, "_pattern", None)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """The command keeps the log to itself for the rest of its process, which is a test's here."""
    logger = logging.getLogger("ota_service")
    propagate, level, handlers = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate = propagate
    logger.setLevel(level)
    logger.handlers[:] = handlers
