# SPDX-License-Identifier: GPL-3.0-or-later
"""Remembers what was read of a flash while nobody else can change it, so that it is read once.

While the stub loader runs, only we change the flash. Only bytes that were proven by a digest are
put in, and what is changed is dropped, so that it is read again.
"""

from __future__ import annotations


class Seen:
    """Proven bytes by their place."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytes]] = []

    def put(self, offset: int, data: bytes) -> None:
        """Remember bytes; they replace what was known of their place."""
        self.drop(offset, len(data))
        self._parts.append((offset, data))

    def get(self, offset: int, size_bytes: int) -> bytes | None:
        """The bytes, where all of them are known."""
        found = bytearray()
        at = offset
        while at < offset + size_bytes:
            part = next((p for p in self._parts if p[0] <= at < p[0] + len(p[1])), None)
            if part is None:
                return None
            found += part[1][at - part[0] : offset + size_bytes - part[0]]
            at = offset + len(found)
        return bytes(found)

    def drop(self, offset: int, size_bytes: int) -> None:
        """Forget what was known of a place."""
        end = offset + size_bytes
        kept: list[tuple[int, bytes]] = []
        for start, data in self._parts:
            if start < offset:
                kept.append((start, data[: offset - start]))
            if start + len(data) > end:
                kept.append((max(start, end), data[max(0, end - start) :]))
        self._parts = [part for part in kept if part[1]]

    def clear(self) -> None:
        """Forget everything."""
        self._parts.clear()
