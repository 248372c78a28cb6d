# SPDX-License-Identifier: GPL-3.0-or-later
"""The page's server: the page, the status as a stream of events, and the verbs.

GET  /                the page
GET  /static/...      its style and script
GET  /api/events      {"status": ..} or {"error": ..}, one event a change (SSE)
POST /api/command     {"command": VERB, ...}: the service's reply, or {"error": ..}
GET  /api/history/ID  a run, as a file
GET  /api/session     whether this browser is let in, and what it may ask for
POST /api/login       {"token": ..}: lets this browser in, where there is a token
POST /api/firmware    on a bench: a file that was dropped
GET  /api/log         on a bench: a board's start as it is watched (SSE)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from aiohttp import web

from ota_service.client.addresses import listen
from ota_service.client.failure import Failure
from ota_service.dashboard.feed import Feed, Service, explained
from ota_service.dashboard.guard import HEADERS, UPLOAD, Guard

if TYPE_CHECKING:  # a machine's page needs nothing of what it brings along
    from ota_service.dashboard.attached import AttachedBoards

_REQUESTS = logging.getLogger("ota_service.dashboard.requests")
"""What is no request has its answer; anybody may send it, and it would fill the terminal."""
_REQUESTS.setLevel(logging.CRITICAL)

VERBS = (
    *("update", "stage", "activate", "cancel", "rollback", "release"),
    *("history", "version", "verify"),
)
"""What the page may ask of a machine's service. `flash` is left to who is beside the board."""
BENCH_VERBS = (*VERBS, "flash", "log")
_OF_FILES = ("tag", "choose", "clear")
"""What is about the bench's own files."""

WAIT_S = 120.0
"""How long a look or a rollback may take before the page no longer waits for its reply."""
FLASH_WAIT_S = 600.0
_WAITS_S = {"rollback": WAIT_S, "version": WAIT_S, "verify": WAIT_S, "flash": FLASH_WAIT_S}
_CHUNK_BYTES = 256 << 10
_MAX_BODY_BYTES = 64 << 10
_MAX_DEPTH = 10
"""Of a command's values; libraries below give up at some hundreds."""
_WRONG_TOKEN_S = 1.0
_KEEP_ALIVE_S = 15.0
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
"""Of the page's parts."""


class Page:
    """The handlers of one server. label: what the page calls the machine."""

    def __init__(self, service: Service, guard: Guard, label: str) -> None:
        self._service = service
        self._here = cast("AttachedBoards", service) if hasattr(service, "bench") else None
        self._verbs = VERBS if self._here is None else BENCH_VERBS
        self._guard = guard
        self._label = label
        self._feed = Feed(service)
        self._streams: set[asyncio.Task[Any]] = set()
        folder = resources.files("ota_service.dashboard") / "static"
        self._index = (folder / "index.html").read_text("utf-8")
        self._static = {
            part.name: (part.read_text("utf-8"), _TYPES[ending])
            for part in folder.iterdir()
            if (ending := part.name.rpartition(".")[2]) in _TYPES
        }

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._guard.middleware], client_max_size=_MAX_BODY_BYTES)
        app.router.add_get("/", self._get_index)
        app.router.add_get("/static/{name}", self._get_static)
        app.router.add_get("/api/session", self._get_session)
        app.router.add_get("/api/events", self._get_events)
        app.router.add_post("/api/command", self._post_command)
        app.router.add_get("/api/history/{id:[0-9a-z]+}", self._get_run)
        app.router.add_post("/api/login", self._post_login)
        if self._here is not None:
            app.router.add_post(UPLOAD, partial(self._post_firmware, self._here))
            app.router.add_get("/api/log", partial(self._get_log, self._here))
        app.on_shutdown.append(self._end_streams)
        return app

    async def _get_index(self, _: web.Request) -> web.Response:
        return web.Response(text=self._index, content_type="text/html")

    async def _get_static(self, request: web.Request) -> web.Response:
        found = self._static.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        return web.Response(text=found[0], content_type=found[1])

    async def _get_session(self, _: web.Request) -> web.Response:
        bench, verbs = self._here is not None, list(self._verbs)
        about = {"ok": True, "machine": self._label, "bench": bench, "verbs": verbs}
        return web.json_response(about)

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._feed.watch())

    async def _get_log(self, here: AttachedBoards, request: web.Request) -> web.StreamResponse:
        try:
            told = here.follow(request.query.get("board", ""))
        except Failure as error:
            return _failed(error)
        return await self._stream(request, told)

    async def _stream(
        self, request: web.Request, news: AsyncGenerator[dict[str, Any], None]
    ) -> web.StreamResponse:
        """One event for each, until they or the server end."""
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            await response.prepare(request)
            async with contextlib.aclosing(news):
                waiting = asyncio.ensure_future(anext(news))
                try:
                    while True:
                        done, _ = await asyncio.wait({waiting}, timeout=_KEEP_ALIVE_S)
                        if not done:
                            await response.write(b": still here\n\n")
                            continue
                        await _send(response, waiting.result())
                        waiting = asyncio.ensure_future(anext(news))
                finally:
                    waiting.cancel()
                    await asyncio.wait({waiting})
        except (ConnectionError, StopAsyncIteration):
            pass  # the page was closed, or all was told
        finally:
            self._streams.discard(task)
        return response

    async def _end_streams(self, _: web.Application) -> None:
        for task in self._streams:
            task.cancel()

    async def _post_command(self, request: web.Request) -> web.Response:
        asked = await _body(request)
        verb = asked.pop("command", None)
        known = self._verbs if self._here is None else (*self._verbs, *_OF_FILES)
        if verb not in known:
            return _error("The page knows no such command.", 400)
        wait_s = WAIT_S if asked.get("dry_run") else _WAITS_S.get(verb, 0)
        if wait_s:
            asked["wait_s"] = wait_s
        try:
            reply = await self._service.command(verb, asked, wait_s=wait_s)
        except Failure as error:
            return _failed(error)
        finally:
            self._feed.hurry()
        return web.json_response(reply)

    async def _get_run(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        try:
            reply = await self._service.command("history", {"id": id})
        except Failure as error:
            return _failed(error)
        run = next(iter(reply.get("runs", ())), None)
        if run is None:
            raise web.HTTPNotFound
        headers = {"Content-Disposition": f'attachment; filename="esp32-ota-{id}.json"'}
        dumps = partial(json.dumps, indent=2, ensure_ascii=False)
        return web.json_response(run, headers=headers, dumps=dumps)

    async def _post_firmware(self, here: AttachedBoards, request: web.Request) -> web.Response:
        chunks = request.content.iter_chunked(_CHUNK_BYTES)
        try:
            with explained():
                name, size_bytes = request.query.get("name", ""), request.content_length
                await here.bench.take(name, chunks, size_bytes)
        except Failure as error:
            return _failed(error)
        except (ConnectionError, web.RequestPayloadError):
            return _error("The file did not come to its end.", 400)
        finally:
            self._feed.hurry()
        return web.json_response(here.about_bench())

    async def _post_login(self, request: web.Request) -> web.Response:
        asked = await _body(request)
        if not self._guard.is_token(str(asked.get("token", ""))):
            await asyncio.sleep(_WRONG_TOKEN_S)  # guessing takes time
            return _error("This is not the token.", 401)
        response = web.json_response({"ok": True})
        self._guard.let_in(request, response)
        return response


async def _send(response: web.StreamResponse, news: Mapping[str, Any]) -> None:
    text = json.dumps(news, ensure_ascii=False)
    await response.write(f"data: {text}\n\n".encode())


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        asked = await request.json()
    except (ValueError, RecursionError):  # the latter: lists in lists in lists
        asked = None
    if not isinstance(asked, dict) or not _shallow(asked, _MAX_DEPTH):
        raise web.HTTPBadRequest(text="A JSON object is expected.")
    return asked


def _shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(item, levels - 1) for item in items)


def _failed(error: Failure) -> web.Response:
    status = 502 if error.unreachable else 413 if error.code == "download-too-large" else 409
    return web.json_response({"error": error.to_dict()}, status=status)


def _error(message: str, status: int) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


@asynccontextmanager
async def serving(
    service: Service, guard: Guard, host: str, port: int, *, label: str
) -> AsyncIterator[str]:
    """Serve the page for the length of a block; its address, with the token where there is one.

    port 0: any that is free. Raises OtaError `address-in-use`.
    """
    app = Page(service, guard, label).application()
    # A page that was closed ends its stream at once, and with the last one the questions end.
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=1.0, handle_signals=False, handler_cancellation=True,
        logger=_REQUESTS,
    )  # fmt: skip
    await runner.setup()
    try:
        urls = await listen(runner, host, port)
        # Behind the #, where it is sent to nobody: the page takes it from there.
        secret = f"#token={quote(guard.token, safe='')}" if guard.token is not None else ""
        yield f"{urls[0]}/{secret}"
    finally:
        await runner.cleanup()
