# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota serve`: an App Image, a manifest with its images, or a signed repository, for the
machines of the same network.

aiohttp's own FileResponse is not enough: a broken-off download goes on by the ETag that it began
with (`If-Range`), a build that is being written must not be served, and who downloads how much is
shown. Sources: RFC 9110, sections 8.8.3 (ETag), 13 (conditions) and 14 (ranges).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import click
from aiohttp import BasicAuth, web
from rich.console import Console
from rich.text import Text

from ota_service.cli.output import files, on_stop, out
from ota_service.client.addresses import listen
from ota_service.errors import OtaError
from ota_service.firmware.files import FIRMWARE_BYTES, read_file
from ota_service.firmware.manifest import FILE_NAME, Manifest, is_json, parse_manifest
from ota_service.formats.image import parse_app_image
from ota_service.formats.merge import describe_app
from ota_service.formats.text import field_text

DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 3001
_LOGIN = "USER:PASSWORD"
CHUNK_BYTES = 64 << 10


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="The address to listen at.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535),
              help="0: a free one.")  # fmt: skip
@click.option("--auth", metavar="USER:PASSWORD", envvar="ESP32_OTA_AUTH",
              help="Ask for them; better given as the variable ESP32_OTA_AUTH.")  # fmt: skip
def serve(file: Path, host: str, port: int, auth: str | None) -> None:
    """Serve the App Image or manifest FILE over http, and print its url and what to configure.

    A Merged Binary is refused. A new build of FILE is taken up by itself. FILE may also be a
    manifest or a folder with a manifest.json (`esp32-ota manifest`), which is served with the
    images that it names, or the folder of a repository (`esp32-ota repo`). Stop it with Ctrl-C.
    """
    auth = auth or None
    if auth is not None and ":" not in auth:
        raise click.BadParameter("it has the form USER:PASSWORD", param_hint="--auth")
    say = partial(_say, out())
    with files():
        if file.is_dir() and (file / FILE_NAME).is_file():
            file /= FILE_NAME
        look: Look
        if file.is_dir():
            if not (file / "metadata").is_dir():
                words = (f"{file} holds neither a {FILE_NAME} nor a repository; `esp32-ota "
                         "manifest new` and `esp32-ota repo init` make them.")  # fmt: skip
                raise click.BadParameter(words, param_hint="FILE")
            look, what = partial(in_repository, file), None
        elif is_json(read_file(file, FIRMWARE_BYTES)):
            made = load_manifest(file)
            look = partial(in_manifest, file)
            what = _Introduced(f"a manifest of {', '.join(made.images)}", made.version)
        else:
            look = build = Build(file, say)
            what = _Introduced(f"{build.about}, {len(build.content.data):,} bytes", build.version)
        server = Server(look, say, auth)
        if isinstance(look, Build):
            server.nothing = f"the firmware is at /{quote(file.name)}"
        asyncio.run(_serve(file, what, server, host, port))


@dataclass(frozen=True)
class _Introduced:
    """A firmware, in words, and its version."""

    about: str
    version: str


async def _serve(
    file: Path, what: _Introduced | None, server: Server, host: str, port: int
) -> None:
    console = out()
    stop = asyncio.Event()
    with on_stop(stop.set):
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            login = "://" if server.auth is None else f"://{_LOGIN}@"
            path = "/" if what is None else "/" + quote(file.name)
            places = await listen(runner, host, port)
            urls = [place.replace("://", login) + path for place in places]
            if what is not None:
                _introduce(console, file, what, urls, server.auth is not None)
            else:
                words = f"The repository {file}; its firmwares are at targets/NAME below:"
                console.print(words, soft_wrap=True)
                console.print(Text("\n".join(urls), style="bold"), soft_wrap=True)
            await stop.wait()
        finally:
            await runner.cleanup()
    console.print("Stopped.")


def _introduce(
    console: Console, file: Path, what: _Introduced, urls: list[str], auth: bool
) -> None:
    console.print(f"{file.name}: {what.about}", soft_wrap=True)
    console.print(Text(urls[0], style="bold"), soft_wrap=True)
    if len(urls) > 1:
        others = ", ".join(urls[1:])
        console.print(f"This machine has further addresses: {others}", soft_wrap=True)
    console.print("To configure:")
    attributes = {"url": urls[0], "version": what.version or "1"}
    for line in json.dumps(attributes, indent=2, ensure_ascii=False).splitlines():
        console.print(line, soft_wrap=True)
    if auth:
        console.print(f"Put the user and password that you gave in place of {_LOGIN}.")
    console.print("Stop with Ctrl-C.")


def _say(console: Console, text: str) -> None:
    """One line with the time of day."""
    console.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True)


# --- what is served


@dataclass(frozen=True)
class Content:
    """A file as it is served, with what names this very content."""

    data: bytes
    etag: str
    changed_s: float


Say = Callable[[str], None]
Look = Callable[[str], Content | None]
"""What is at a request's path by now, None where nothing is; called in a thread. Raises OtaError,
OSError, ValueError where it cannot be had."""


def content_of(path: Path) -> Content:
    """A file as it is now. Raises OtaError, OSError."""
    changed_s = path.stat().st_mtime
    data = read_file(path, FIRMWARE_BYTES)
    return Content(data, hashlib.sha256(data).hexdigest()[:32], changed_s)


class Build:
    """An App Image, of which the newest build that is whole is served: it may still be being
    written. Raises OtaError for any other file, OSError."""

    def __init__(self, path: Path, say: Say) -> None:
        self._path = path
        self._say = say
        self._take(content_of(path))

    def _take(self, content: Content) -> None:
        self._seen_s = content.changed_s
        self._image = parse_app_image(content.data)
        self.content = content

    def __call__(self, path: str) -> Content | None:
        """A `Look`."""
        if path != "/" + self._path.name:
            return None
        try:
            changed_s = self._path.stat().st_mtime
            if changed_s != self._seen_s:
                self._seen_s = changed_s  # before it is read: of each change one request tells
                self._renew()
        except (OtaError, OSError) as error:
            why = error.message if isinstance(error, OtaError) else error.strerror or str(error)
            name = self._path.name
            self._say(f"{name} has changed and cannot be served: {why} The old one stays.")
        return self.content

    def _renew(self) -> None:
        before = self.content.etag
        self._take(content_of(self._path))
        if self.content.etag != before:
            self._say(
                f"{self._path.name} has changed: now {describe_app(self._image)}. Configure "
                f'"version": {json.dumps(self.version, ensure_ascii=False)} to have it installed.'
            )

    @property
    def version(self) -> str:
        """The version of the app descriptor."""
        return self._image.descriptor.version

    @property
    def about(self) -> str:
        """The app in words."""
        return f"{describe_app(self._image)}, for {self._image.chip}"


def in_repository(folder: Path, path: str) -> Content | None:
    """A `Look` at a repository: its metadata and its targets, and nothing beside them."""
    folder = folder.resolve()
    place = (folder / path.lstrip("/")).resolve()
    inside = any(place.is_relative_to(folder / part) for part in ("metadata", "targets"))
    return content_of(place) if inside else None


def in_manifest(file: Path, path: str) -> Content | None:
    """A `Look` at a manifest and the images that it names by now, and at nothing beside them."""
    folder = file.parent.resolve()
    place = (folder / path.lstrip("/")).resolve()
    made = parse_manifest(read_file(file, FIRMWARE_BYTES))
    named = {_below(folder, image.url) for image in made.images.values()}
    return content_of(place) if place in {file.resolve(), *named} else None


def load_manifest(path: Path) -> Manifest:
    """The manifest in a file, whose images lie below its folder as it says. Raises OtaError."""
    made = parse_manifest(read_file(path, FIRMWARE_BYTES))
    for name, image in made.images.items():
        place = _below(path.parent, image.url)
        if place is not None:
            data = read_file(place, FIRMWARE_BYTES)
            parse_app_image(data)
            found = hashlib.sha256(data).hexdigest()
            if found != image.sha256:
                text = f"images.{name}.sha256: {place} is another file, with {found}."
                raise OtaError("manifest-invalid", text)
    return made


def _below(folder: Path, url: str) -> Path | None:
    """The file that a manifest means by a url, where that is below its folder."""
    if urlsplit(url).scheme:
        return None
    folder = folder.resolve()
    place = (folder / unquote(url.partition("?")[0])).resolve()
    return place if place.is_relative_to(folder) else None


# --- who downloads what


@dataclass(slots=True)
class Transfer:
    """One answer: who got how much of it. begin: the first byte's offset."""

    client: str
    agent: str
    begin: int = 0
    sent_bytes: int = 0
    total_bytes: int = 0
    started_s: float = field(default_factory=time.monotonic)


def _ended(transfer: Transfer, status: int | None) -> str:
    sent = f"{transfer.sent_bytes:,}"
    if status is None:
        return f"broke off after {sent} of {transfer.total_bytes:,} bytes"
    words = {
        304: "has it already (304)",
        401: "gave no or a wrong user and password (401)",
        404: "asked for another path (404)",
        405: "wanted something other than reading (405)",
        416: "asked for bytes that do not exist (416)",
    }
    if status in words:
        return words[status]
    if not transfer.sent_bytes:
        return f"looked ({status})"
    seconds = max(0.001, time.monotonic() - transfer.started_s)
    part = f" from byte {transfer.begin:,}" if transfer.begin else ""
    return f"got {sent} bytes{part} in {seconds:.1f} s ({status})"


# --- the server


class Server:
    """Answers requests by a `look`, and says who downloads what.

    auth: "user:password" to ask for, or None. nothing: what is said where nothing is.
    """

    def __init__(self, look: Look, say: Say, auth: str | None = None) -> None:
        self.auth = auth
        self.nothing = "there is no such file"
        self._look = look
        self._say = say

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        agent = request.headers.get("User-Agent", "").encode("utf-8", "replace")
        transfer = Transfer(request.remote or "?", field_text(agent)[:40])  # safe to print
        status = None
        try:
            response = await self._answer(request, transfer)
            status = response.status
        finally:
            who = transfer.client + (f" ({transfer.agent})" if transfer.agent else "")
            self._say(f"{who} {_ended(transfer, status)}")
        return response

    async def _answer(self, request: web.Request, transfer: Transfer) -> web.StreamResponse:
        if not self._allowed(request):
            headers = {"WWW-Authenticate": 'Basic realm="firmware"'}
            return web.Response(status=401, text="user and password are needed\n", headers=headers)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="only GET\n", headers={"Allow": "GET, HEAD"})
        found = None
        # A RuntimeError is a ring of links, before Python 3.13.
        with contextlib.suppress(OSError, ValueError, OtaError, RuntimeError):
            found = await asyncio.to_thread(self._look, request.path)
        if found is None:
            return web.Response(status=404, text=f"{self.nothing}\n")
        return await self._send(request, found, transfer)

    def _allowed(self, request: web.Request) -> bool:
        if self.auth is None:
            return True
        user, _, password = self.auth.partition(":")
        wanted = BasicAuth(user, password, "utf-8").encode()
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())

    async def _send(
        self, request: web.Request, served: Content, transfer: Transfer
    ) -> web.StreamResponse:
        size = len(served.data)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Cache-Control": "no-cache",
        }
        response = web.StreamResponse(headers=headers)
        response.etag, response.last_modified = served.etag, served.changed_s
        headers |= {name: response.headers[name] for name in ("ETag", "Last-Modified")}
        if any(tag.value in ("*", served.etag) for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        begin, end = 0, size
        if_range = request.headers.get("If-Range")
        if if_range is None or if_range in (headers["ETag"], headers["Last-Modified"]):
            with contextlib.suppress(ValueError):  # several, or none: the whole, says RFC 9110
                wanted = request.http_range
                begin, end, _ = wanted.indices(size)
                if begin >= size:
                    return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
                if wanted.start is not None:
                    response.set_status(206)
                    response.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        response.content_length = end - begin
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        transfer.begin, transfer.total_bytes = begin, end - begin
        self._say(f"{transfer.client} begins: {transfer.total_bytes:,} bytes")
        for at in range(begin, end, CHUNK_BYTES):
            chunk = served.data[at : min(at + CHUNK_BYTES, end)]
            await response.write(chunk)
            transfer.sent_bytes += len(chunk)
        await response.write_eof()
        return response
