# SPDX-License-Identifier: GPL-3.0-or-later
"""An event loop whose clock jumps: where minutes pass, a test takes milliseconds.

with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
    runner.run(main())
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class _Selector(selectors.BaseSelector):
    """Asks the real one without waiting; where nothing is there, the time passes at once."""

    def __init__(self) -> None:
        self.real = selectors.DefaultSelector()
        self.now_s = 1000.0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self.real.get_map()

    def close(self) -> None:
        self.real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self.real.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return self.real.select(None)
        self.now_s += timeout
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop for tests that use no thread and no process."""

    def __init__(self) -> None:
        self._selector_of_time = _Selector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        """Seconds; they pass when everybody waits."""
        return self._selector_of_time.now_s
