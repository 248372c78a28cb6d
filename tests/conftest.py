# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test starts from, whatever ran before it in the same process."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary folder for this process of tests, and those that it starts: what is left in the
    usual one for other processes on this machine is about simulated boards of the same MACs."""
    tmp_path_factory.getbasetemp()  # stays where it is
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield Path(folder)
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before


@pytest.fixture(autouse=True)
def _no_boards_of_others(temporary: Path) -> None:
    """What one test does to a simulated board is not done to the next one's of the same MAC."""
    for mark in temporary.glob("esp32-ota-locks/rewritten.*"):
        mark.unlink()


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
