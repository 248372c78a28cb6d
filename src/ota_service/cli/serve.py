# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota serve`: an App Image for the machines of the same network, without any set-up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from pathlib import Path

import click
from aiohttp import web
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ota_service.cli.file_server import FileServer, Served, Stage, Transfer, load
from ota_service.cli.output import files, out
from ota_service.client.addresses import listen_problem, own_addresses
from ota_service.errors import OtaError
from ota_service.formats.merge import describe_app

DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 3001
_LOGIN = "USER:PASSWORD"
_ANY = ("0.0.0.0", "::", "")


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
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    with Downloads(console) as downloads:
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
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                raise OtaError(
                    "address-in-use",
                    f"Port {port} of {host} cannot be listened at ({listen_problem(error)}).",
                ) from None
            actual_port = runner.addresses[0][1]
            urls = [
                f"http://{f'{_LOGIN}@' if auth else ''}{_bracketed(address)}:{actual_port}"
                f"{server.url_path}"
                for address in (own_addresses() if host in _ANY else [host])
            ]
            _introduce(console, file, served, urls, auth is not None)
            await stop.wait()
        finally:
            await runner.cleanup()
    console.print("Stopped.")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


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
