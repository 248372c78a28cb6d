# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota serve`: an App Image for the machines of the same network, without any set-up.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import click
from aiohttp import BasicAuth, web
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ota_service.cli.output import files, on_stop, out
from ota_service.client.addresses import listen
from ota_service.errors import OtaError
from ota_service.formats.image import AppImage, parse_app_image
from ota_service.formats.merge import describe_app
from ota_service.formats.text import field_text

DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 3001
_LOGIN = "USER:PASSWORD"
CHUNK_BYTES = 64 << 10


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="The address to listen at.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535),
              help="0: a free one.")  # fmt: skip
@click.option("--auth", metavar="USER:PASSWORD", envvar="ESP32_OTA_AUTH",
              help="Ask for them; better given as the variable ESP32_OTA_AUTH.")  # fmt: skip
def serve(file: Path, host: str, port: int, auth: str | None) -> None:
    """Serve the App Image FILE over http, and print its url and what to configure.

    A Merged Binary is refused. A new build of FILE is taken up by itself. Stop it with Ctrl-C.
    """
    auth = auth or None
    if auth is not None and ":" not in auth:
        raise click.BadParameter("it has the form USER:PASSWORD", param_hint="--auth")
    with files():
        served = load(file)
        asyncio.run(_serve(file, served, host, port, auth))


async def _serve(file: Path, served: Served, host: str, port: int, auth: str | None) -> None:
    console = out()
    stop = asyncio.Event()
    with on_stop(stop.set), Downloads(console) as downloads:
        server = FileServer(
            file,
            served,
            watch=downloads.watch,
            changed=lambda found: _say_changed(downloads, file, found),
            auth=auth,
        )
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            places = await listen(runner, host, port)
            login = f"://{_LOGIN}@" if auth else "://"
            urls = [place.replace("://", login) + server.url_path for place in places]
            _introduce(console, file, served, urls, auth is not None)
            await stop.wait()
        finally:
            await runner.cleanup()
    console.print("Stopped.")


def _introduce(console: Console, file: Path, served: Served, urls: list[str], auth: bool) -> None:
    image = served.image
    console.print(
        Text(f"{file.name}: {describe_app(image)}, for {image.chip}, {len(served.data):,} bytes")
    )
    console.print(Text(urls[0], style="bold"), soft_wrap=True)
    if len(urls) > 1:
        others = ", ".join(urls[1:])
        console.print(Text(f"This machine has further addresses: {others}"), soft_wrap=True)
    console.print("To configure:")
    attributes = {"url": urls[0], "version": served.version or "1"}
    console.print(Text(json.dumps(attributes, indent=2, ensure_ascii=False)), soft_wrap=True)
    if auth:
        console.print(Text(f"Put the user and password that you gave in place of {_LOGIN}."))
    console.print("Stop with Ctrl-C.")


def _say_changed(downloads: Downloads, file: Path, found: Served | str) -> None:
    if isinstance(found, str):
        downloads.say(f"{file.name} has changed and cannot be served: {found} The old one stays.")
    else:
        downloads.say(
            f"{file.name} has changed: now {describe_app(found.image)}. Configure "
            f'"version": {json.dumps(found.version, ensure_ascii=False)} to have it installed.'
        )


class Downloads:
    """Who downloads what: a bar each on a terminal, a line at begin and end elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[int, TaskID] = {}
        self._bars = (
            Progress(
                TextColumn("{task.description}"),
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
        self._console.print(Text(f"{moment} {text}"), soft_wrap=True)

    def watch(self, stage: Stage, transfer: Transfer) -> None:
        """As `FileServer` has it."""
        bars = self._bars
        if stage == "begun":
            if bars is not None:
                self._tasks[transfer.number] = bars.add_task(
                    transfer.client, total=transfer.total_bytes
                )
            else:
                self.say(f"{transfer.client} begins: {transfer.total_bytes:,} bytes")
        elif stage == "going":
            if bars is not None:
                bars.update(self._tasks[transfer.number], completed=transfer.sent_bytes)
        else:
            if bars is not None and (task := self._tasks.pop(transfer.number, None)) is not None:
                bars.remove_task(task)
            self.say(_ended(stage, transfer))


def _ended(stage: Stage, transfer: Transfer) -> str:
    who = transfer.client + (f" ({transfer.agent})" if transfer.agent else "")
    if stage == "broken":
        return f"{who} broke off after {transfer.sent_bytes:,} of {transfer.total_bytes:,} bytes"
    words = {
        304: "has it already (304)",
        401: "gave no or a wrong user and password (401)",
        404: "asked for another path (404)",
        405: "wanted something other than reading (405)",
        416: "asked for bytes that do not exist (416)",
    }
    if transfer.status in words:
        return f"{who} {words[transfer.status]}"
    if not transfer.sent_bytes:
        return f"{who} looked ({transfer.status})"
    seconds = max(0.001, time.monotonic() - transfer.started_s)
    part = f" from byte {transfer.begin:,}" if transfer.begin else ""
    return f"{who} got {transfer.sent_bytes:,} bytes{part} in {seconds:.1f} s ({transfer.status})"


# --- the server


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
    return Served(data, image, hashlib.sha256(data).hexdigest()[:32], changed_s)


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
        user, _, password = self._auth.partition(":")
        wanted = BasicAuth(user, password, "utf-8").encode()
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
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Cache-Control": "no-cache",
        }
        response = web.StreamResponse(headers=headers)
        response.etag, response.last_modified = served.etag, served.changed_s
        headers |= {name: response.headers[name] for name in ("ETag", "Last-Modified")}
        if any(tag.value in ("*", served.etag) for tag in request.if_none_match or ()):
            return self._short(request, 304, "", headers)
        begin, end = 0, size
        if_range = request.headers.get("If-Range")
        if if_range is None or if_range in (headers["ETag"], headers["Last-Modified"]):
            with contextlib.suppress(ValueError):  # several, or none: the whole, says RFC 9110
                wanted = request.http_range
                begin, end, _ = wanted.indices(size)
                if begin >= size:
                    return self._short(request, 416, "", {"Content-Range": f"bytes */{size}"})
                if wanted.start is not None:
                    response.set_status(206)
                    response.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        response.content_length = end - begin
        transfer = self._transfer(request, response.status)
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
