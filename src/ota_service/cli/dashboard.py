# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota dashboard`: a local page of a machine's boards, or of those that are attached here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ota_service.cli.options import state_dir_option
from ota_service.cli.output import on_stop, say
from ota_service.cli.ports import ports_argument
from ota_service.cli.remote import access_options
from ota_service.client.machine import Access
from ota_service.errors import OtaError
from ota_service.module.folders import default_state_dir

if TYPE_CHECKING:
    from ota_service.dashboard.feed import Service
    from ota_service.dashboard.guard import Guard

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8032
TOKEN_MIN_CHARACTERS = 16


@click.command()
@ports_argument
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
@state_dir_option
@partial(access_options, required=False)
@click.pass_context
def dashboard(
    context: click.Context,
    access: Access | None,
    ports: tuple[str, ...],
    state_dir: Path | None,
    host: str,
    port: int,
    token: str | None,
    no_token: bool,
    allow_host: tuple[str, ...],
) -> None:
    """Show boards on a page, live: a machine's, or those here.

    With --address the page is of a machine's service. Without it, it is a bench: for the boards at
    PORTs, else for all that are attached, with firmware that is dropped on the page.

    Prints the page's address, which holds a token: whoever opens it is let in. The page is for this
    computer alone unless --host says otherwise. What restarts a board asks first. Runs until
    Ctrl-C.
    """
    from ota_service.dashboard.guard import Guard

    if ports and access is not None:
        if context.get_parameter_source("address") is ParameterSource.COMMANDLINE:
            raise click.UsageError("Give PORTs or --address, not both.")
        access = None  # of the environment; PORTs are more precise
    if token is not None and len(token) < TOKEN_MIN_CHARACTERS:
        raise click.UsageError(f"A token has {TOKEN_MIN_CHARACTERS} characters or more.")
    if no_token:
        if token is not None:
            raise click.UsageError("Give a token or --no-token, not both.")
    elif token is None:
        token = secrets.token_urlsafe(24)
    guard = Guard(host, token=token, extra_hosts=allow_host)
    with contextlib.suppress(KeyboardInterrupt), _logged():
        asyncio.run(_serve(_service(access, ports, state_dir), guard, host, port))


@asynccontextmanager
async def _service(
    access: Access | None, ports: tuple[str, ...], state_dir: Path | None
) -> AsyncIterator[tuple[Service, str]]:
    """What the page shows, and its name. Raises OtaError where boards here cannot be had."""
    if access is not None:
        from ota_service.client.machine import connect

        async with connect(access) as machine:
            yield machine, access.address
        return
    from ota_service.api.engine import Engine
    from ota_service.dashboard.attached import AttachedBoards

    try:
        engine = Engine(ports or None, state_dir=state_dir or default_state_dir())
    except OtaError as error:
        if error.code not in ("config-invalid", "duplicate-board"):
            raise
        raise click.UsageError(error.message) from None
    async with engine:
        with contextlib.closing(AttachedBoards(engine)) as boards:
            yield boards, socket.gethostname()


async def _serve(
    service: contextlib.AbstractAsyncContextManager[tuple[Service, str]],
    guard: Guard,
    host: str,
    port: int,
) -> None:
    from ota_service.client.failure import Failure
    from ota_service.dashboard.server import serving

    stop = asyncio.Event()
    with on_stop(stop.set):
        async with (
            service as (boards, label),
            serving(boards, guard, host, port, label=label) as url,
        ):
            click.echo(url)
            click.echo("Press Ctrl-C to stop.", err=True)
            for line in _who(guard):
                click.echo(line, err=True)
            try:
                await boards.status()
            except Failure as error:
                say(f"Not connected yet, trying again: {error}", err=True)
            await stop.wait()
    click.echo("Stopped.", err=True)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """The page refers to what is said here where its server fails."""
    logger, handler = logging.getLogger("ota_service.dashboard"), logging.StreamHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _who(guard: Guard) -> Iterator[str]:
    if guard.token is None:
        yield "Without a token whoever reaches this address commands the boards."
        return
    yield "Open the whole address: who has it is let in, so give it to nobody else."
    if not guard.loopback:
        yield "It is not encrypted on its way."
