# SPDX-License-Identifier: GPL-3.0-or-later
"""A real HTTP server on a port of its own, with the faults that a test asks for.

async with FirmwareServer.start() as server:
    url = server.put("/app.bin", data)
    server.cut_next("/app.bin", after_bytes=1000)
    ...
    assert [request.status for request in server.requests] == [200, 206]
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

CHUNK_BYTES = 16 << 10

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that arrived, and the status that it got."""

    method: str
    path: str
    headers: CIMultiDict[str]
    status: int


@dataclass
class _File:
    data: bytes
    headers: dict[str, str]
    validators: bool
    ranges: bool
    chunked: bool
    login: str | None
    answers: list[Answer] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    gate: asyncio.Event | None = None


class FirmwareServer:
    """A running server. Made by `FirmwareServer.start`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.port = 0
        self.tls = False
        self._files: dict[str, _File] = {}
        self._arrived = asyncio.Condition()

    @classmethod
    @asynccontextmanager
    async def start(
        cls, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[FirmwareServer]:
        """Serve until the end of the block; port 0: a free one, then in `port`."""
        server = cls()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
            server.port = runner.addresses[0][1]
            server.tls = tls is not None
            yield server
        finally:
            await runner.cleanup()

    def url(self, path: str, *, user_info: str = "", query: str = "") -> str:
        """The address of `path`, which begins with a slash."""
        scheme = "https" if self.tls else "http"
        at = f"{user_info}@" if user_info else ""
        return f"{scheme}://{at}127.0.0.1:{self.port}{path}{'?' + query if query else ''}"

    def served(self, path: str) -> bytes:
        """What `path` gives."""
        return self._files[path].data

    def put(
        self,
        path: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        validators: bool = True,
        ranges: bool = True,
        chunked: bool = False,
        login: str | None = None,
    ) -> str:
        """Serve `data` at `path`; returns its url.

        validators: send an ETag. ranges: answer Range. chunked: no Content-Length. login:
        "user:password" to ask for.
        """
        self._files[path] = _File(data, dict(headers or {}), validators, ranges, chunked, login)
        return self.url(path)

    def cut_next(self, path: str, *, after_bytes: int) -> None:
        """Break the connection of the next answer after so many bytes of its body."""
        self._files[path].cuts.append(after_bytes)

    def fail_next(
        self, path: str, status: int, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the next request with `status`."""

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers=dict(headers or {}), text="no")

        self.answer_next(path, answer)

    def redirect(self, path: str, location: str, *, status: int = 302) -> str:
        """Redirect every request for `path`; returns its url."""
        url = self.put(path, b"")

        async def answer(_: web.Request) -> web.StreamResponse:
            self._files[path].answers.append(answer)
            return web.Response(status=status, headers={"Location": location})

        self._files[path].answers.append(answer)
        return url

    def answer_next(self, path: str, answer: Answer) -> None:
        """Let `answer` make the next answer."""
        self._files[path].answers.append(answer)

    def hold(self, path: str) -> asyncio.Event:
        """Send only the first bytes of `path` until the event is set."""
        gate = self._files[path].gate = asyncio.Event()
        return gate

    async def wait_requests(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Wait until `count` requests have arrived."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        file = self._files.get(request.path)
        if file is None:
            return await self._note(request, web.Response(status=404, text="no such file"))
        if file.answers:
            return await self._note(request, await file.answers.pop(0)(request))
        if file.login is not None:
            wanted = "Basic " + base64.b64encode(file.login.encode()).decode()
            if request.headers.get("Authorization") != wanted:
                return await self._note(request, web.Response(status=401, text="who?"))
        return await self._send(request, file)

    async def _send(self, request: web.Request, file: _File) -> web.StreamResponse:
        headers = dict(file.headers)
        etag = f'"{hashlib.sha256(file.data).hexdigest()[:16]}"'
        if file.validators:
            headers.setdefault("ETag", etag)
            if request.headers.get("If-None-Match") == headers["ETag"]:
                return await self._note(request, web.Response(status=304, headers=headers))
        begin, status = 0, 200
        wanted = request.headers.get("Range", "")
        if wanted and file.ranges and request.headers.get("If-Range") == headers.get("ETag"):
            begin, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {begin}-{len(file.data) - 1}/{len(file.data)}"
        body = file.data[begin:]
        response = web.StreamResponse(status=status, headers=headers)
        if file.chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(body)
        await self._note(request, response)
        await response.prepare(request)
        cut = file.cuts.pop(0) if file.cuts else None
        for at in range(0, len(body), CHUNK_BYTES):
            if at and file.gate is not None:
                await file.gate.wait()
            chunk = body[at : at + CHUNK_BYTES]
            if cut is not None and at + len(chunk) > cut:
                await response.write(body[at:cut])
                assert request.transport is not None
                request.transport.close()  # after what was written has been sent
                return response
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _note(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        async with self._arrived:
            headers = CIMultiDict(request.headers)
            self.requests.append(Request(request.method, request.path_qs, headers, response.status))
            self._arrived.notify_all()
        return response
