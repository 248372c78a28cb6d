# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened on a board, in order, so that tests wait for events instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

CONSOLE_LIMIT_BYTES = 1 << 20


class History:
    """Events and console output of one board, and a way to wait for more.

    Events: reset, boot, boot-failed, app, download, stub, panic, confirmed, burnt, nvs-erased,
    hang, asleep, power-off, power-cut, power-on, opened, closed, unplugged, plugged, said. Each
    is a dictionary with number, event, time_s (the board process's monotonic clock) and details.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.counters: dict[str, int] = {}
        self.console = bytearray()
        self.console_dropped = 0
        self._changed = asyncio.Condition()
        self._wake: asyncio.Task[None] | None = None

    def add(self, event: str, **details: Any) -> None:
        """Record one event and wake those who wait."""
        self.events.append(
            {
                "number": len(self.events) + 1,
                "event": event,
                "time_s": time.monotonic(),
                **details,
            }
        )
        self.counters[event] = self.counters.get(event, 0) + 1
        self._notify()

    def print(self, data: bytes) -> None:
        """Record console output."""
        self.console += data
        excess = len(self.console) - CONSOLE_LIMIT_BYTES
        if excess > 0:
            del self.console[:excess]
            self.console_dropped += excess
        self._notify()

    def _notify(self) -> None:
        if self._wake is None or self._wake.done():
            self._wake = asyncio.ensure_future(self._notify_all())

    async def _notify_all(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wait(self, check: Callable[[], Any], timeout_s: float) -> Any:
        """Wait until `check` returns something true, and return it; None at the timeout."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                while not (found := check()):
                    await self._changed.wait()
                return found
        except TimeoutError:
            return None

    def find(self, event: str, since: int, match: dict[str, Any]) -> dict[str, Any] | None:
        """The first event of that name after number `since` whose details match."""
        for entry in self.events[since:]:
            if entry["event"] == event and all(entry.get(k) == v for k, v in match.items()):
                return entry
        return None

    def find_text(self, text: bytes, since: int) -> int | None:
        """Console position behind the first `text` at or after position `since`."""
        at = self.console.find(text, max(0, since - self.console_dropped))
        return None if at < 0 else at + len(text) + self.console_dropped
