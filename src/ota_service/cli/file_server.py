# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves one App Image over http: ranges, validators, and who downloaded what.

Sources: RFC 9110, sections 8.8.3 (ETag), 13 (conditions) and 14 (ranges); RFC 7617 (Basic).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from aiohttp import web

from ota_service.errors import OtaError
from ota_service.formats.image import AppImage, parse_app_image
from ota_service.formats.text import field_text

CHUNK_BYTES = 64 << 10
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Served:
    """The file as it is served: checked, and with what names this very content."""

    data: bytes
    image: AppImage
    etag: str
    changed_s: float

    @property
    def version(self) -> str:
        """The version of the app descriptor."""
        return self.image.descriptor.version


def load(path: Path) -> Served:
    """The App Image in a file. Raises OtaError for anything else, OSError."""
    changed_s = path.stat().st_mtime
    data = path.read_bytes()
    image = parse_app_image(data)
    return Served(data, image, f'"{hashlib.sha256(data).hexdigest()[:32]}"', changed_s)


@dataclass(slots=True)
class Transfer:
    """One answer: who got how much of it. status: as sent; begin: the first byte's offset."""

    number: int
    client: str
    agent: str
    status: int
    begin: int = 0
    sent_bytes: int = 0
    total_bytes: int = 0
    started_s: float = 0.0


Stage = Literal["begun", "going", "ended", "broken"]
Watch = Callable[[Stage, Transfer], None]


class FileServer:
    """The handler of one file. `watch` is called as answers begin, go on and end.

    auth: "user:password" to ask for, or None. changed: called with the file's new content, or
    with the reason why the old one is served on, when the file on disk changes.
    """

    def __init__(
        self,
        path: Path,
        served: Served,
        *,
        watch: Watch,
        changed: Callable[[Served | str], None],
        auth: str | None = None,
    ) -> None:
        self.path = path
        self.served = served
        self._watch = watch
        self._changed = changed
        self._auth = auth
        self._count = 0
        self._seen_s = served.changed_s

    @property
    def url_path(self) -> str:
        """The path of the file's url."""
        return "/" + quote(self.path.name)

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not self._allowed(request):
            headers = {"WWW-Authenticate": 'Basic realm="firmware"'}
            return self._short(request, 401, "user and password are needed\n", headers)
        if request.method not in ("GET", "HEAD"):
            return self._short(request, 405, "only GET\n", {"Allow": "GET, HEAD"})
        if request.path != "/" + self.path.name:
            return self._short(request, 404, f"the firmware is at {self.url_path}\n")
        await asyncio.to_thread(self._look)
        return await self._send(request, self.served)

    def _allowed(self, request: web.Request) -> bool:
        if self._auth is None:
            return True
        wanted = "Basic " + base64.b64encode(self._auth.encode()).decode()
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())

    def _look(self) -> None:
        """Take up a new build, but only a whole one: it may still be being written."""
        try:
            changed_s = self.path.stat().st_mtime
            if changed_s == self._seen_s:
                return
            self._seen_s = changed_s
            served = load(self.path)
        except OtaError as error:
            self._changed(error.message)
        except OSError as error:
            self._changed(error.strerror or str(error))
        else:
            if served.etag != self.served.etag:
                self.served = served
                self._changed(served)

    async def _send(self, request: web.Request, served: Served) -> web.StreamResponse:
        size = len(served.data)
        headers = {
            "ETag": served.etag,
            "Last-Modified": formatdate(served.changed_s, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Cache-Control": "no-cache",
        }
        if _names(request.headers.get("If-None-Match"), served.etag):
            return self._short(request, 304, "", headers)
        begin, end, status = 0, size, 200
        if_range = request.headers.get("If-Range")
        if if_range is None or if_range in (served.etag, headers["Last-Modified"]):
            wanted = _wanted(request.headers.get("Range"), size)
            if wanted == "none":
                return self._short(request, 416, "", {"Content-Range": f"bytes */{size}"})
            if wanted is not None:
                begin, end = wanted
                status = 206
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = end - begin
        transfer = self._transfer(request, status)
        transfer.begin, transfer.total_bytes = begin, end - begin
        await response.prepare(request)
        if request.method == "HEAD":
            self._watch("ended", transfer)
            return response
        self._watch("begun", transfer)
        try:
            for at in range(begin, end, CHUNK_BYTES):
                chunk = served.data[at : min(at + CHUNK_BYTES, end)]
                await response.write(chunk)
                transfer.sent_bytes += len(chunk)
                self._watch("going", transfer)
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            self._watch("broken", transfer)
            raise
        self._watch("ended", transfer)
        return response

    def _short(
        self, request: web.Request, status: int, text: str, headers: dict[str, str] | None = None
    ) -> web.Response:
        self._watch("ended", self._transfer(request, status))
        response = web.Response(status=status, headers=headers)
        if text:
            response.text = text
        return response

    def _transfer(self, request: web.Request, status: int) -> Transfer:
        self._count += 1
        agent = request.headers.get("User-Agent", "")
        return Transfer(
            self._count,
            str(request.remote or "?"),
            field_text(agent.encode("utf-8", "replace"))[:40],  # safe to print
            status,
            started_s=time.monotonic(),
        )


def _names(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match names this content."""
    if header is None:
        return False
    return header.strip() == "*" or etag in (
        tag.strip().removeprefix("W/") for tag in header.split(",")
    )


def _wanted(header: str | None, size: int) -> tuple[int, int] | Literal["none"] | None:
    """[begin, end) of a Range; None: the whole; "none": nothing of it exists.

    Several ranges in one request are answered with the whole, which RFC 9110 allows.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        last = int(match[2])
        return (max(0, size - last), size) if last else "none"
    begin = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    if match[2] and int(match[2]) < begin:
        return None
    return (begin, end) if begin < size else "none"
