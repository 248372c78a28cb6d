# SPDX-License-Identifier: GPL-3.0-or-later
"""An event loop whose clock jumps: where minutes pass, a test takes milliseconds.

with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
    runner.run(main())
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Mapping
from typing import Any


class _Selector(selectors.BaseSelector):
    """Asks the real one without waiting; where nothing is there, the time passes at once."""

    def __init__(self, patience_s: float) -> None:
        self.real = selectors.DefaultSelector()
        self.now_s = 1000.0
        self.patience_s = patience_s

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
        if self.patience_s:
            time.sleep(self.patience_s)
            if ready := self.real.select(0):
                return ready
        self.now_s += timeout
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop for tests that use no thread and no process.

    patience_s: real seconds before a jump, where what is waited for comes through the kernel.
    """

    def __init__(self, *, patience_s: float = 0.0) -> None:
        self._selector_of_time = _Selector(patience_s)
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        """Seconds; they pass when everybody waits."""
        return self._selector_of_time.now_s
