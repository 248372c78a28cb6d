# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rest of this process may ask of its services, and tell their journal.

For the companions of the service (discovery, sensor), which live beside it in the module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ota_service.errors import OtaError
from ota_service.fleet.journal import Journal, open_journal
from ota_service.fleet.journal_rows import BoardRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.service import engines
from ota_service.fleet.status import status_of
from ota_service.link.ports import PortInfo
from ota_service.update.inspect import Inspection


def statuses() -> dict[str, dict[str, Any]]:
    """The status of every service of this process by its name; called in the event loop.

    A service that was removed stays in it until its boards are let go: they may still be written.
    """
    return {engine.settings.service: status_of(engine) for engine in engines()}


def recall(info: PortInfo) -> BoardRecord | None:
    """The board that was last seen at a port, where a service has the journal open."""
    memory = _memory()
    return memory.board_at(info) if memory is not None else None


def awaits_confirmation(mac: str) -> bool:
    """Whether a board's app is being left alone to confirm itself, so no reset may reach it."""
    memory = _memory()
    awaited = memory.awaited(mac) if memory is not None else None
    return awaited is not None and awaited[1] > 0


def remember(state_dir: Path, port: str, info: PortInfo | None, found: Inspection) -> None:
    """Note a board that a person's probe has found: its port is known from now on.

    state_dir: for when no service has the journal open. Blocks. Raises OtaError `state-busy`.
    """
    memory = _memory()
    if memory is not None:
        _note(memory.journal, port, info, found)
        return
    with open_journal(state_dir) as journal:
        _note(journal, port, info, found)


def _note(journal: Journal, port: str, info: PortInfo | None, found: Inspection) -> None:
    memory = Memory(journal, "")
    memory.saw(found)
    memory.learn_place(None, port, info, found.chip.mac)


def _memory() -> Memory | None:
    for engine in engines():
        try:
            return engine.memory
        except OtaError:
            continue
    return None
