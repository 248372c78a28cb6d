# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota inspect`: what is on attached boards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ota_service.cli.content_tables import on_board
from ota_service.cli.contents import board_report
from ota_service.cli.live import Live
from ota_service.cli.options import baud_option, reset_option, state_dir_option, stop_asking
from ota_service.cli.output import err, json_option, on_stop, out, print_json, say
from ota_service.cli.ports import WHICH, attached, boards_here, meant
from ota_service.client.failure import Failure
from ota_service.client.remedies import line_of, own_words
from ota_service.errors import OtaError
from ota_service.link.ports import describe, shown
from ota_service.module.folders import default_state_dir

if TYPE_CHECKING:
    from ota_service.api.single import Progress
    from ota_service.link.resets import ResetWay
    from ota_service.update.inspect import Inspection


@click.command(
    help=f"""Show what is on attached boards. Restarts them.

    Prints chip and MAC, partition table, otadata, the slots with their apps, and the version in
    NVS. Each board is restarted into download mode to be read, once more if it takes its own log
    to tell which slot runs, and at the end into its firmware. Nothing is written.
    {WHICH}
    \b
    esp32-ota inspect /dev/ttyUSB0
    esp32-ota inspect --all --json
    """
)
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
    """The boards at the ports that are named, or those that are attached, one block each."""
    from ota_service.api.engine import named
    from ota_service.fleet.directory import remember

    find = partial(meant, all_boards=all_boards, probe=probe)
    ports = named(boards) if boards else asyncio.run(attached(find, state_dir))
    found = asyncio.run(_look(ports, baud, reset))
    if probe:  # a person's word: their ports are known from now on
        for name, one in found.items():
            if not isinstance(one, OtaError):
                remember(state_dir or default_state_dir(), ports[name], describe(ports[name]), one)
    problems = [one for one in found.values() if isinstance(one, OtaError)]
    alone = len(found) == 1 and not all_boards
    if alone and problems:
        raise problems[0]
    if as_json:
        told = {name: _report(ports[name], one) for name, one in found.items()}
        print_json(next(iter(told.values())) if alone else {"boards": told})
    else:
        seen = [(n, one) for n, one in found.items() if not isinstance(one, OtaError)]
        for name, one in seen:
            if name != seen[0][0]:
                out().print()
            out().print(on_board(shown(ports[name]), one))
    for problem in problems:
        say(f"Error: {line_of(problem)}", err=True)
    if problems:
        raise SystemExit(1)


def _report(port: str, found: Inspection | OtaError) -> dict[str, Any]:
    if isinstance(found, OtaError):
        return {"port": shown(port), "error": own_words(found.to_dict())}
    return {"port": shown(port), **board_report(found)}


async def _look(
    ports: Mapping[str, str], baud: int, reset: ResetWay | None
) -> dict[str, Inspection | OtaError]:
    """What is on each board, or why it could not be reached, by name. Raises Failure after Ctrl-C,
    when the boards are back in their firmware."""
    from ota_service.api.single import inspect_board

    console = err()
    shows: dict[str, dict[str, Any]] = {name: {"state": "unknown"} for name in ports}
    stopped = False

    async def one(name: str, port: str) -> Inspection | OtaError:
        def told(at: Progress) -> None:
            if "phase" not in shows[name]:  # now that it is known to be a port, and open
                words = f"Restarting the board at {shown(port)} to read it; nothing is written."
                console.print(words)
            shows[name]["phase"] = at.phase

        try:
            found = await inspect_board(port, baud=baud, reset=reset, on_progress=told)
            shows[name] = {"state": "read"}
            return found
        except OtaError as error:
            error.board = name if shown(port) not in error.message else None
            shows[name] = {"state": "failed", "error": error.to_dict()}
            return error

    def into(verb: str, several: str) -> str:
        if len(ports) == 1:
            return f"the board {verb} restarted into its firmware"
        return f"the boards {several} restarted into their firmware"

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            click.echo(f"Stopping; {into('is', 'are')}...", err=True)
            stop_asking(reset)
            task.cancel()

    task = asyncio.gather(*(one(*item) for item in ports.items()))
    with on_stop(stop), Live(console, transient=True) as live:
        if console.is_terminal:
            live.show({"boards": shows})
        try:
            return dict(zip(ports, await task, strict=True))
        except asyncio.CancelledError:
            raise Failure(f"Stopped; {into('was', 'were')}.", code="cancelled") from None
