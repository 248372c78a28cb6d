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
    seen, problems = asyncio.run(_look(ports, baud, reset))
    if probe:  # a person's word: their ports are known from now on
        for name, found in seen.items():
            remember(state_dir or default_state_dir(), ports[name], describe(ports[name]), found)
    alone = len(ports) == 1 and not all_boards
    if alone and problems:
        raise problems.popitem()[1]
    _tell(ports, seen, problems, as_json=as_json, alone=alone)
    if problems:
        raise SystemExit(1)


def _tell(
    ports: Mapping[str, str],
    seen: Mapping[str, Inspection],
    problems: Mapping[str, OtaError],
    *,
    as_json: bool,
    alone: bool,
) -> None:
    if as_json:
        told = {name: board_report(found) for name, found in seen.items()}
        told |= {name: {"error": own_words(one.to_dict())} for name, one in problems.items()}
        boards = {name: {"port": shown(port), **told[name]} for name, port in ports.items()}
        print_json(boards.popitem()[1] if alone else {"boards": boards})
    else:
        for number, (name, found) in enumerate(seen.items()):
            if number:
                out().print()
            out().print(on_board(shown(ports[name]), found))
    for problem in problems.values():
        say(f"Error: {line_of(problem)}", err=True)


async def _look(
    ports: Mapping[str, str], baud: int, reset: ResetWay | None
) -> tuple[dict[str, Inspection], dict[str, OtaError]]:
    """What is on each board, and why others could not be reached, by name. Raises Failure after
    Ctrl-C, when the boards are back in their firmware."""
    from ota_service.api.single import inspect_board

    console = err()
    shows: dict[str, dict[str, Any]] = {name: {"state": "unknown"} for name in ports}

    async def one(name: str, port: str) -> Inspection | OtaError:
        def told(at: Progress) -> None:
            if "phase" not in shows[name]:  # now that it is known to be a port, and open
                words = f"Restarting the board at {shown(port)} to read it; nothing is written."
                console.print(words)
            shows[name]["phase"] = at.phase

        try:
            found = await inspect_board(port, baud=baud, reset=reset, on_progress=told)
        except OtaError as error:
            error.board = name if shown(port) not in error.message else None
            shows[name] = {"state": "failed", "error": error.to_dict()}
            return error
        shows[name] = {"state": "read"}
        return found

    def into(verb: str, several: str) -> str:
        if len(ports) == 1:
            return f"the board {verb} restarted into its firmware"
        return f"the boards {several} restarted into their firmware"

    def stop() -> None:
        click.echo(f"Stopping; {into('is', 'are')}...", err=True)
        stop_asking(reset)
        task.cancel()

    task = asyncio.gather(*(one(*item) for item in ports.items()))
    with on_stop(stop), Live(console, transient=True) as live:
        if console.is_terminal:
            live.show({"boards": shows})
        try:
            found = dict(zip(ports, await task, strict=True))
        except asyncio.CancelledError:
            raise Failure(f"Stopped; {into('was', 'were')}.", code="cancelled") from None
    problems = {name: one for name, one in found.items() if isinstance(one, OtaError)}
    return {n: one for n, one in found.items() if not isinstance(one, OtaError)}, problems
