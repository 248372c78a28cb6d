# SPDX-License-Identifier: GPL-3.0-or-later
"""The boards that are attached here, as the page has a machine's service, with the bench's files
for the firmware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ota_service.api.engine import Engine
from ota_service.client.machine import whole_numbers
from ota_service.client.remedies import BENCH, own_words
from ota_service.dashboard.bench import Bench
from ota_service.dashboard.feed import explained
from ota_service.errors import OtaError
from ota_service.formats.text import visible

_OF_FLASH = {"board", "confirm", "keep_nvs", "wait_s"}
_BY_FIRMWARE = ("update", "stage", "activate", "verify")


class AttachedBoards:
    """Implements `feed.Service` by an engine, which is open. bench: what lies beside them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._service = engine.service
        self._aiming = asyncio.Lock()
        self._aimed: tuple[Path, str] | None = None
        self.bench = Bench(lambda: self._aiming.locked() or engine.uses_firmware)

    def close(self) -> None:
        """Remove the bench's files."""
        self.bench.close()

    async def status(self) -> dict[str, Any]:
        """The engine's, with the bench's files."""
        return self._seen({**self._engine.status(), "bench": self.bench.to_dict()})

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        """A verb of the service, about the bench's firmware where it needs one; or one of the
        bench: flash, log, tag, choose, clear. Raises Failure."""
        given = dict(arguments or {})
        with explained():
            if verb == "tag":
                self.bench.tag(given.get("version"))
            elif verb == "choose":
                self.bench.choose(given.get("sha256"))
            elif verb == "clear":
                self.bench.clear(given.get("sha256"))
            elif verb == "log":
                boards, probe = _names(given), given.get("probe") is True
                return self._seen(await self._engine.watch_start(boards=boards, probe=probe))
            else:
                return self._seen(await self._command(verb, given))
            return self.about_bench()

    def about_bench(self) -> dict[str, Any]:
        """The reply of what is about the bench's own files."""
        return self._seen({"ok": True, "bench": self.bench.to_dict()})

    def follow(self, board: str) -> AsyncGenerator[dict[str, Any], None]:
        """{"line"} of a board's watched start, as it comes; at its end {"end": {"verdict"}}.
        Raises Failure."""
        with explained():
            told = self._engine.follow(board)

        async def seen() -> AsyncGenerator[dict[str, Any], None]:
            async with aclosing(told):
                async for one in told:
                    yield (
                        {"line": visible(one["line"])}
                        if "line" in one
                        else {"end": self._seen(one)}
                    )

        return seen()

    def _seen(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """With every text as it is seen, whoever made it, files under the names that they came
        with, and errors in the words of this page."""
        seen: dict[str, Any] = own_words(whole_numbers(self.bench.named(reply)), BENCH)
        return seen

    async def _command(self, verb: str, given: dict[str, Any]) -> dict[str, Any]:
        if verb == "flash":
            if not given.keys() <= _OF_FLASH:
                raise ValueError("flash writes the Merged Binary that lies on the bench")
            given["path"] = str(self.bench.merged())
        if verb not in _BY_FIRMWARE:
            return await self._service.command(verb, given)
        async with self._aiming:
            await self._aim(*self.bench.firmware())
            asking = asyncio.ensure_future(self._service.command(verb, given))
            await asyncio.sleep(0)  # its run has begun by then, so nobody aims elsewhere
        return await asking

    async def _aim(self, path: Path, version: str) -> None:
        """Let the verbs mean this firmware. It is all boards': an update to another one would
        end, and a dry run would be of this one."""
        if (path, version) == self._aimed:
            return
        if self._engine.uses_firmware:
            raise OtaError(
                "not-finished",
                "Boards are at work with another firmware.",
                remedy="Wait for the end of that, or cancel it.",
            )
        self._aimed = None  # a browser that goes away ends this anywhere
        await self._engine.aim(path, version)
        self._aimed = path, version


def _names(given: Mapping[str, Any]) -> list[str]:
    """The one board whose start is to be watched."""
    names = given.get("boards")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ValueError("log needs boards, with just the one that is to be restarted")
    return names
