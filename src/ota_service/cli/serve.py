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
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import click
from aiohttp import BasicAuth, web
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ota_service.cli.output import files, on_stop, out
from ota_service.client.addresses import listen
from ota_service.errors import OtaError
from ota_service.firmware.files import FIRMWARE_BYTES, read_file
from ota_service.firmware.manifest import FILE_NAME, Manifest, is_json, parse_manifest
from ota_service.formats.image import AppImage, parse_app_image
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
    with files():
        served: Served | Manifest | None = None
        if file.is_dir() and (file / FILE_NAME).is_file():
            file /= FILE_NAME
        if not file.is_dir():
            listed = is_json(read_file(file, FIRMWARE_BYTES))
            served = load_manifest(file) if listed else load(file)
        elif not (file / "metadata").is_dir():
            words = (f"{file} holds neither a {FILE_NAME} nor a repository; `esp32-ota manifest "
                     "new` and `esp32-ota repo init` make them.")  # fmt: skip
            raise click.BadParameter(words, param_hint="FILE")
        asyncio.run(_serve(file, served, host, port, auth))


async def _serve(
    file: Path, served: Served | Manifest | None, host: str, port: int, auth: str | None
) -> None:
    console = out()
    stop = asyncio.Event()
    with on_stop(stop.set), Downloads(console) as downloads:
        server: _Server = (
            FileServer(file, served, downloads, auth)
            if isinstance(served, Served)
            else FolderServer(file, downloads, auth)
            if served is None
            else ManifestServer(file, downloads, auth)
        )
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            places = await listen(runner, host, port)
            login = f"://{_LOGIN}@" if auth else "://"
            urls = [place.replace("://", login) + server.url_path for place in places]
            if served is not None:
                _introduce(console, file, served, urls, auth is not None)
            else:
                words = f"The repository {file}; its firmwares are at targets/NAME below:"
                console.print(words, soft_wrap=True)
                console.print(Text("\n".join(urls), style="bold"), soft_wrap=True)
            await stop.wait()
        finally:
            await runner.cleanup()
    console.print("Stopped.")


def _introduce(
    console: Console, file: Path, served: Served | Manifest, urls: list[str], auth: bool
) -> None:
    if isinstance(served, Served):
        image = served.image
        about = f"{describe_app(image)}, for {image.chip}, {len(served.data):,} bytes"
    else:
        about = f"a manifest of {', '.join(served.images)}"
    console.print(f"{file.name}: {about}", soft_wrap=True)
    console.print(Text(urls[0], style="bold"), soft_wrap=True)
    if len(urls) > 1:
        others = ", ".join(urls[1:])
        console.print(f"This machine has further addresses: {others}", soft_wrap=True)
    console.print("To configure:")
    attributes = {"url": urls[0], "version": served.version or "1"}
    for line in json.dumps(attributes, indent=2, ensure_ascii=False).splitlines():
        console.print(line, soft_wrap=True)
    if auth:
        console.print(f"Put the user and password that you gave in place of {_LOGIN}.")
    console.print("Stop with Ctrl-C.")


@dataclass(frozen=True)
class Content:
    """A file as it is served, with what names this very content."""

    data: bytes
    etag: str
    changed_s: float


@dataclass(frozen=True)
class Served(Content):
    """The App Image as it is served: checked."""

    image: AppImage

    @property
    def version(self) -> str:
        """The version of the app descriptor."""
        return self.image.descriptor.version


def load_manifest(path: Path) -> Manifest:
    """The manifest in a file, whose images lie below its folder as it says. Raises OtaError."""
    made = parse_manifest(read_file(path, FIRMWARE_BYTES))
    for name, image in made.images.items():
        place = _below(path.parent, image.url)
        if place is not None:
            found = hashlib.sha256(load(place).data).hexdigest()
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


def load(path: Path) -> Served:
    """The App Image in a file. Raises OtaError for anything else, OSError."""
    changed_s = path.stat().st_mtime
    data = read_file(path, FIRMWARE_BYTES)
    image = parse_app_image(data)
    return Served(data, hashlib.sha256(data).hexdigest()[:32], changed_s, image)


# --- who downloads what


@dataclass(slots=True)
class Transfer:
    """One answer: who got how much of it. begin: the first byte's offset. bar: on a terminal."""

    client: str
    agent: str
    begin: int = 0
    sent_bytes: int = 0
    total_bytes: int = 0
    started_s: float = field(default_factory=time.monotonic)
    bar: TaskID | None = None


class Downloads:
    """Who downloads what: a bar each on a terminal, a line at begin and end elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[int, TaskID] = {}
        self._bars = (
            Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Downloads:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line with the time of day."""
        moment = time.strftime("%H:%M:%S")
        self._console.print(f"{moment} {text}", soft_wrap=True)

    def begin(self, transfer: Transfer) -> None:
        """Bytes are on their way."""
        if self._bars is not None:
            transfer.bar = self._bars.add_task(transfer.client, total=transfer.total_bytes)
        else:
            self.say(f"{transfer.client} begins: {transfer.total_bytes:,} bytes")

    def sent(self, transfer: Transfer, size_bytes: int) -> None:
        """So many more."""
        transfer.sent_bytes += size_bytes
        if self._bars is not None and transfer.bar is not None:
            self._bars.update(transfer.bar, completed=transfer.sent_bytes)

    def end(self, transfer: Transfer, status: int | None) -> None:
        """status: as answered; None: broken off."""
        if self._bars is not None and transfer.bar is not None:
            self._bars.remove_task(transfer.bar)
        who = transfer.client + (f" ({transfer.agent})" if transfer.agent else "")
        self.say(f"{who} {_ended(transfer, status)}")


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


class _Server:
    """What serves has in common. auth: "user:password" to ask for, or None."""

    def __init__(self, path: Path, downloads: Downloads, auth: str | None) -> None:
        self.path = path
        self._downloads = downloads
        self._auth = auth

    @property
    def url_path(self) -> str:
        """The path of what is served."""
        return "/" + quote(self.path.name)

    async def content(self, path: str) -> Content | str:
        """What is at a request's path, or why nothing."""
        raise NotImplementedError

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
            self._downloads.end(transfer, status)
        return response

    async def _answer(self, request: web.Request, transfer: Transfer) -> web.StreamResponse:
        if not self._allowed(request):
            headers = {"WWW-Authenticate": 'Basic realm="firmware"'}
            return web.Response(status=401, text="user and password are needed\n", headers=headers)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="only GET\n", headers={"Allow": "GET, HEAD"})
        found = await self.content(request.path)
        if isinstance(found, str):
            return web.Response(status=404, text=f"{found}\n")
        return await self._send(request, found, transfer)

    def _allowed(self, request: web.Request) -> bool:
        if self._auth is None:
            return True
        user, _, password = self._auth.partition(":")
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
        self._downloads.begin(transfer)
        for at in range(begin, end, CHUNK_BYTES):
            chunk = served.data[at : min(at + CHUNK_BYTES, end)]
            await response.write(chunk)
            self._downloads.sent(transfer, len(chunk))
        await response.write_eof()
        return response


class FileServer(_Server):
    """The handler of one file."""

    def __init__(
        self, path: Path, served: Served, downloads: Downloads, auth: str | None = None
    ) -> None:
        super().__init__(path, downloads, auth)
        self.served = served
        self._seen_s = served.changed_s

    async def content(self, path: str) -> Content | str:
        """The newest build that is whole."""
        if path != "/" + self.path.name:
            return f"the firmware is at {self.url_path}"
        await asyncio.to_thread(self._look)
        return self.served

    def _look(self) -> None:
        """Take up a new build, but only a whole one: it may still be being written."""
        name, say = self.path.name, self._downloads.say
        try:
            changed_s = self.path.stat().st_mtime
            if changed_s == self._seen_s:
                return
            self._seen_s = changed_s
            served = load(self.path)
        except (OtaError, OSError) as error:
            why = error.message if isinstance(error, OtaError) else error.strerror or str(error)
            say(f"{name} has changed and cannot be served: {why} The old one stays.")
            return
        if served.etag != self.served.etag:
            self.served = served
            say(
                f"{name} has changed: now {describe_app(served.image)}. Configure "
                f'"version": {json.dumps(served.version, ensure_ascii=False)} to have it installed.'
            )


class FolderServer(_Server):
    """The handler of a repository: its metadata and its targets, and nothing beside them."""

    @property
    def url_path(self) -> str:
        """The repository's base."""
        return "/"

    async def content(self, path: str) -> Content | str:
        """The file as it is now."""
        return await asyncio.to_thread(self._read, path) or "there is no such file"

    @property
    def _folder(self) -> Path:
        return self.path.resolve()

    def _serves(self, place: Path) -> bool:
        return any(place.is_relative_to(self._folder / part) for part in ("metadata", "targets"))

    def _read(self, path: str) -> Content | None:
        try:
            place = (self._folder / path.lstrip("/")).resolve()
            if not self._serves(place):
                return None
            data, changed_s = read_file(place, FIRMWARE_BYTES), place.stat().st_mtime
        except (OSError, ValueError, OtaError):
            return None
        return Content(data, hashlib.sha256(data).hexdigest()[:32], changed_s)


class ManifestServer(FolderServer):
    """The handler of a manifest: it and the images that it names by now."""

    @property
    def url_path(self) -> str:
        """The manifest itself."""
        return "/" + quote(self.path.name)

    @property
    def _folder(self) -> Path:
        return self.path.parent.resolve()

    def _serves(self, place: Path) -> bool:
        made = parse_manifest(read_file(self.path, FIRMWARE_BYTES))
        images = {_below(self._folder, image.url) for image in made.images.values()}
        return place in images or place == self._folder / self.path.name
