# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota dashboard`: a local page of a machine's boards, live."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ota_service.cli.output import on_stop, say
from ota_service.cli.remote import access_options
from ota_service.client.machine import Access

if TYPE_CHECKING:
    from ota_service.dashboard.guard import Guard

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8032
TOKEN_MIN_CHARACTERS = 16


@click.command()
@click.option(
    "--host",
    default=DEFAULT_HOST,
    show_default=True,
    help="Address to listen at.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port to listen at; 0: any that is free.",
)
@click.option(
    "--token",
    metavar="TEXT",
    envvar="ESP32_OTA_TOKEN",
    help="What a browser must know to be let in, 16 characters or more. Better set "
    "ESP32_OTA_TOKEN. Without it, one is made up.",
)
@click.option(
    "--no-token",
    is_flag=True,
    help="Let everyone in who reaches the page: every account of this computer, at least.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A further name that browsers use for this computer.",
)
@access_options
def dashboard(
    access: Access,
    host: str,
    port: int,
    token: str | None,
    no_token: bool,
    allow_host: tuple[str, ...],
) -> None:
    """Show a machine's boards on a page in the browser, live.

    Prints the page's address, which holds a token: whoever opens it is let in. The page is for this
    computer alone unless --host says otherwise. Buttons update, cancel, roll back and release; what
    restarts a board asks first. Runs until Ctrl-C.
    """
    from ota_service.dashboard.guard import Guard

    if token is not None and len(token) < TOKEN_MIN_CHARACTERS:
        raise click.UsageError(f"A token has {TOKEN_MIN_CHARACTERS} characters or more.")
    if no_token:
        if token is not None:
            raise click.UsageError("Give a token or --no-token, not both.")
    elif token is None:
        token = secrets.token_urlsafe(24)
    guard = Guard(host, token=token, extra_hosts=allow_host)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(access, guard, host, port))


async def _serve(access: Access, guard: Guard, host: str, port: int) -> None:
    from ota_service.client.failure import Failure
    from ota_service.client.machine import connect
    from ota_service.dashboard.server import serving

    stop = asyncio.Event()
    with on_stop(stop.set):
        async with (
            connect(access) as machine,
            serving(machine, guard, host, port, label=access.address) as url,
        ):
            click.echo(url)
            click.echo("Press Ctrl-C to stop.", err=True)
            for line in _who(guard):
                click.echo(line, err=True)
            try:
                await machine.status()
            except Failure as error:
                say(f"Not connected yet, trying again: {error}", err=True)
            await stop.wait()


def _who(guard: Guard) -> Iterator[str]:
    if guard.token is None:
        yield "Without a token whoever reaches this address commands the boards."
        return
    yield "Open the whole address: who has it is let in, so give it to nobody else."
    if not guard.loopback:
        yield "It is not encrypted on its way."
