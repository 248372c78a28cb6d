# SPDX-License-Identifier: GPL-3.0-or-later
"""What a board's task needs of its service, and no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from ota_service.fleet.board_state import BoardState
from ota_service.fleet.firmwares import Firmwares
from ota_service.fleet.memory import Memory
from ota_service.fleet.robot import Calls, Robot
from ota_service.fleet.settings import Settings
from ota_service.fleet.turns import Turns

Result = TypeVar("Result")
Given = ParamSpec("Given")
Log = logging.LoggerAdapter[logging.Logger]


class Around(Protocol):
    """A service, as its boards see it. owner: who claims their ports ("service OTA"). slots: for
    sessions that are no updates. robot: the machine around it, as the newest instance has it."""

    settings: Settings
    owner: str
    log: Log
    firmwares: Firmwares
    turns: Turns
    slots: asyncio.Semaphore
    robot: Robot | None
    calls: Calls

    @property
    def memory(self) -> Memory:
        """The journal. Raises OtaError `state-busy`."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a task until it ends, or the service does."""

    def journaled(
        self, call: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Awaitable[Result]:
        """Something that blocks for as long as a disk takes, in a thread."""

    def renamed(self, about: BoardState, mac: str) -> None:
        """A board that is not in `boards` goes by its MAC now."""
