# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of ports or boards with which something was found, while this process runs."""

from __future__ import annotations

import threading


class Noted:
    """A set of names, used from several threads."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._names

    def add(self, name: str) -> None:
        """Note a name."""
        with self._lock:
            self._names.add(name)

    def discard(self, name: str) -> None:
        """Forget a name, if it is noted."""
        with self._lock:
            self._names.discard(name)
