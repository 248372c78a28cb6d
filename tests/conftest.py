# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test starts from, whatever ran before it in the same process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """The command keeps the log to itself for the rest of its process, which is a test's here."""
    logger = logging.getLogger("ota_service")
    propagate, level, handlers = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate = propagate
    logger.setLevel(level)
    logger.handlers[:] = handlers
