# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota inspect PORT`: what is on one attached board."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from ota_service.cli.content_tables import on_board
from ota_service.cli.contents import board_report
from ota_service.cli.options import baud_option, reset_option, stop_asking
from ota_service.cli.output import err, json_option, on_stop, out, print_json
from ota_service.cli.ports import port_argument
from ota_service.client.failure import Failure
from ota_service.link.ports import shown

if TYPE_CHECKING:
    from ota_service.api.single import Progress
    from ota_service.link.resets import ResetWay
    from ota_service.update.inspect import Inspection


@click.command()
@port_argument
@baud_option
@reset_option
@json_option
def inspect(port: str, baud: int, reset: ResetWay | None, as_json: bool) -> None:
    """Show what is on one attached board. Restarts it.

    Prints its chip and MAC, partition table, otadata, the slots with their apps, and the version
    in NVS. PORT is a device such as /dev/ttyUSB0, or an address such as rfc2217://host:port.

    The board is restarted into download mode to be read, once more if it takes its own log to
    tell which slot runs, and at the end into its firmware. Nothing is written.
    """
    found = asyncio.run(_look(port, baud, reset))
    if as_json:
        print_json({"port": shown(port), **board_report(found)})
    else:
        out().print(on_board(shown(port), found))


async def _look(port: str, baud: int, reset: ResetWay | None) -> Inspection:
    """Raises OtaError, and Failure after Ctrl-C, when the board is back in its firmware."""
    from ota_service.api.single import inspect_board

    console = err()
    words = [f"Restarting the board at {shown(port)} to read it; nothing is written."]
    with console.status("connecting") as spinner:

        def told(at: Progress) -> None:
            if words:  # now that it is known to be a port, and open
                console.print(words.pop())
            spinner.update(at.phase.replace("_", " "))

        def stop() -> None:
            if not task.cancelling():
                click.echo("Stopping; the board is restarted into its firmware...", err=True)
                stop_asking(reset)
                task.cancel()

        looking = inspect_board(port, baud=baud, reset=reset, on_progress=told)
        task = asyncio.ensure_future(looking)
        with on_stop(stop):
            try:
                return await task
            except asyncio.CancelledError:
                done = "Stopped; the board was restarted into its firmware."
                raise Failure(done, code="cancelled") from None
