# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the service for its status while somebody looks on, once for all who do."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from ota_service.client.failure import Failure
from ota_service.client.remedies import BENCH, remedy_of
from ota_service.errors import ERRORS, OtaError

BUSY_S, IDLE_S, LOST_S = 0.4, 1.5, 3.0
"""How long to wait before the next question: while boards are busy, otherwise, after a failure."""


class Service(Protocol):
    """What the page asks of the service."""

    async def status(self) -> dict[str, Any]:
        """Everything that it knows. Raises Failure."""

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        """One verb. Raises Failure."""


@contextmanager
def explained() -> Iterator[None]:
    """Errors of ours as a Failure, which the page shows."""
    try:
        yield
    except OtaError as error:
        remedy = remedy_of(error.code, error.remedy, BENCH)
        raise Failure(error.message, remedy, code=error.code) from None
    except ValueError as error:  # what cannot be meant
        raise Failure(str(error), code="refused") from None
    except ConnectionError:
        raise
    except OSError as error:
        code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "file-access"
        words = f"A file that was dropped cannot be kept ({error.strerror})."
        raise Failure(words, ERRORS[code].remedy, code=code) from None


class Feed:
    """The last status, and whoever waits for the next."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._watchers = 0
        self._asking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._sooner = asyncio.Event()
        self._last: dict[str, Any] = {}
        self._count = 0

    async def watch(self) -> AsyncGenerator[dict[str, Any], None]:
        """Each news once: {"status": {..}}, or {"error": {..}} where nobody answers."""
        self._watchers += 1
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        seen = -1 if self._last else self._count
        try:
            while True:
                while seen == self._count:
                    await self._news.wait()
                seen = self._count
                yield self._last
        finally:
            self._watchers -= 1
            if self._watchers == 0 and self._asking is not None:
                self._asking.cancel()
                self._asking = None
                self._last = {}

    def hurry(self) -> None:
        """Something was commanded: ask now."""
        self._sooner.set()

    async def _ask(self) -> None:
        while True:
            try:
                status = await self._service.status()
                self._tell({"status": status})
                busy = status.get("state") != "idle"
                pause_s = BUSY_S if busy else IDLE_S
            except Failure as error:
                self._tell({"error": error.to_dict()})
                pause_s = LOST_S
            self._sooner.clear()
            try:
                await asyncio.wait_for(self._sooner.wait(), pause_s)
            except TimeoutError:
                continue

    def _tell(self, news: dict[str, Any]) -> None:
        self._last = news
        self._count += 1
        event, self._news = self._news, asyncio.Event()
        event.set()
