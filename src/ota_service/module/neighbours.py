# SPDX-License-Identifier: GPL-3.0-or-later
"""How the companions reach the services of their own process, without loading what those need."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import Any


async def directory() -> Any:
    """The module `fleet.directory`; None while this process has had no service.

    It brings esptool along, which the first service loads anyway, and a companion alone must not.
    """
    if "ota_service.fleet.service" not in sys.modules:
        return None
    # In a thread: the service's own import may be going on in another one.
    return await asyncio.to_thread(importlib.import_module, "ota_service.fleet.directory")


async def statuses() -> dict[str, dict[str, Any]]:
    """The status of every service of this process, by its name."""
    found = await directory()
    return {} if found is None else found.statuses()
