# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota inspect`: what is on attached boards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ota_service.cli.content_tables import on_board
from ota_service.cli.contents import board_report
from ota_service.cli.live import Live
from ota_service.cli.options import baud_option, reset_option, state_dir_option, stop_asking
from ota_service.cli.output import err, json_option, on_stop, out, print_json, say
from ota_service.cli.ports import boards_here, meant
from ota_service.cli.remedies import line_of, own_words
from ota_service.client.failure import Failure
from ota_service.errors import OtaError
from ota_service.link.ports import describe, shown
from ota_service.module.folders import default_state_dir

if TYPE_CHECKING:
    from ota_service.api.single import Progress
    from ota_service.link.resets import ResetWay
    from ota_service.update.inspect import Inspection


@click.command()
@boards_here
@baud_option
@reset_option
@state_dir_option
@json_option
def inspect(
    boards: Sequence[str],
    all_boards: bool,
    probe: bool,
    baud: int,
    reset: ResetWay | None,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Show what is on attached boards. Restarts them.

    Prints chip and MAC, partition table, otadata, the slots with their apps, and the version in
    NVS. Each board is restarted into download mode to be read, once more if it takes its own log
    to tell which slot runs, and at the end into its firmware. Nothing is written.

    Name the boards by their ports, such as /dev/ttyUSB0 or rfc2217://host:port. Without a port:
    the board that is attached, where just one is known to be, by Espressif's own USB or since
    its port was opened before; with --all every such board. Ports of other USB bridges are
    listed, and not opened.

    \b
    esp32-ota inspect /dev/ttyUSB0
    esp32-ota inspect --all --json
    """
    folder = {"state_dir": state_dir} if state_dir is not None else {}
    if not boards:
        find = partial(meant, all_boards=all_boards, probe=probe)
        boards = asyncio.run(_attached(find, folder))
    found = asyncio.run(_look(boards, baud, reset))
    problems = [one for one in found.values() if isinstance(one, OtaError)]
    if probe:  # a person's word: their ports are known from now on
        from ota_service.fleet.probe import remember

        for port, one in found.items():
            if not isinstance(one, OtaError):
                remember(state_dir or default_state_dir(), port, describe(port), one)
    alone = len(found) == 1 and not all_boards
    if alone and problems:
        raise problems[0]
    told = {port: _report(port, one) for port, one in found.items()}
    if as_json:
        print_json(told[next(iter(told))] if alone else {"boards": told})
    else:
        seen = {port: one for port, one in found.items() if not isinstance(one, OtaError)}
        for number, (port, one) in enumerate(seen.items()):
            if number:
                out().print()
            out().print(on_board(port, one))
    for problem in problems:
        say(f"Error: {line_of(problem)}", err=True)
    if problems:
        raise SystemExit(1)


def _report(port: str, found: Inspection | OtaError) -> dict[str, Any]:
    if isinstance(found, OtaError):
        return {"port": port, "error": own_words(found.to_dict())}
    return {"port": port, **board_report(found)}


async def _attached(find: Callable[[dict[str, Any]], dict[str, Any]], folder: Any) -> list[str]:
    """The ports of the boards that are meant where none is named."""
    from ota_service.api.engine import Engine

    async with Engine(**folder) as engine:
        return [str(board["port"]) for board in find(engine.status()).values()]


async def _look(
    ports: Sequence[str], baud: int, reset: ResetWay | None
) -> dict[str, Inspection | OtaError]:
    """What is on each board, or why it could not be reached, by the ports as they may be shown.
    Raises Failure after Ctrl-C, when the boards are back in their firmware."""
    from ota_service.api.single import inspect_board

    console = err()
    shows: dict[str, dict[str, Any]] = {shown(port): {"state": "unknown"} for port in ports}
    stopped = False

    async def one(port: str) -> Inspection | OtaError:
        name = shown(port)

        def told(at: Progress) -> None:
            if "phase" not in shows[name]:  # now that it is known to be a port, and open
                console.print(
                    f"Restarting the board at {name} to read it; nothing is written.",
                    soft_wrap=True,
                )
            shows[name]["phase"] = at.phase

        try:
            found = await inspect_board(port, baud=baud, reset=reset, on_progress=told)
            shows[name] = {"state": "read"}
            return found
        except OtaError as error:
            error.board = name if name not in error.message else None
            shows[name] = {"state": "failed", "error": error.to_dict()}
            return error

    def into(one: str, more: str) -> str:
        alone = len(ports) == 1
        return (
            f"the board {one} restarted into its"
            if alone
            else (f"the boards {more} restarted into their")
        )

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            click.echo(f"Stopping; {into('is', 'are')} firmware...", err=True)
            stop_asking(reset)
            task.cancel()

    task = asyncio.gather(*map(one, ports))
    with on_stop(stop), Live(console, transient=True) as live:
        if console.is_terminal:
            live.show({"boards": shows})
        try:
            return dict(zip(shows, await task, strict=True))
        except asyncio.CancelledError:
            done = f"Stopped; {into('was', 'were')} firmware."
            raise Failure(done, code="cancelled") from None
