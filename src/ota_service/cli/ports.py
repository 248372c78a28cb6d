# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota ports`: the serial ports of this machine, and which look like ESP32 boards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from rich.table import Table
from rich.text import Text

from ota_service.cli.output import Command, err, json_option, out, print_json, table
from ota_service.formats.text import visible
from ota_service.link.ports import PortInfo, list_ports, problem, shown
from ota_service.link.ports import describe as describe_port
from ota_service.module.folders import default_state_dir


@click.command()
@json_option
def ports(as_json: bool) -> None:
    """List serial ports, and which look like ESP32 boards. Opens none."""
    found = list_ports()
    if as_json:
        print_json([describe(info) for info in found])
    elif not found:
        click.echo("No serial ports were found. Is the board attached, and by a data cable?")
    else:
        out().print(table_of(found))


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    names = {info.device: looks_like(info) for info in list_ports()}
    names |= {info.by_path: looks_like(info) for info in list_ports() if info.by_path}
    return [
        CompletionItem(name, help=words)
        for name, words in names.items()
        if name.startswith(incomplete)
    ]


def _ports(_: click.Context, __: click.Parameter, given: Any) -> Any:
    for port in (given,) if isinstance(given, str) else given:
        wrong = problem(port)
        if wrong is not None:
            raise click.BadParameter(f"{visible(shown(port))} {wrong}.")
    return given


port_argument = click.argument("port", shell_complete=_complete, callback=_ports)
"""The argument PORT, which the shell completes with what is attached."""
_any_ports = partial(
    click.argument, metavar="[PORT]...", nargs=-1, shell_complete=_complete, callback=_ports
)
ports_argument = _any_ports("ports")
"""The same for any number."""


WHICH = """
    Name the boards by their ports, such as /dev/ttyUSB0 or rfc2217://host:port. Without a port:
    the board that is attached, where just one is known to be, by Espressif's own USB or since
    its port was opened before; with --all every such board. Ports of other USB bridges are
    listed, and not opened.
"""
"""Of the help of each subcommand that has these."""


def boards_here(function: Command) -> Command:
    """Which boards are meant: `boards`, ports that are named; `all_boards`; and `probe`."""

    @_any_ports("boards")
    @click.option("--all", "all_boards", is_flag=True, help="Every board that is known here.")
    @click.option(
        "--probe",
        is_flag=True,
        help="Also open the ports of USB bridges at which no board is known: perhaps a lidar's.",
    )
    @wraps(function)
    def with_boards(boards: tuple[str, ...], all_boards: bool, probe: bool, **rest: Any) -> Any:
        if boards and (all_boards or probe):
            raise click.UsageError("Name ports, or give --all or --probe: not both.")
        if rest["reset"] is not None and len(boards) != 1:
            raise click.UsageError("--reset is for one board: name its port.")
        return function(boards=boards, all_boards=all_boards, probe=probe, **rest)

    return with_boards  # type: ignore[return-value]


def meant(status: Mapping[str, Any], *, all_boards: bool, probe: bool) -> dict[str, Any]:
    """The boards that are meant where no port is named, of an engine's status, by name: all of
    them, or the only one. Raises click.UsageError where nobody can know, having listed the ports
    that come into question."""
    there = {n: b for n, b in status["boards"].items() if b["state"] != "absent"}
    known = {n: b for n, b in there.items() if probe or b["state"] != "candidate"}
    if len(known) == 1 or (known and all_boards):
        return known
    infos = [describe_port(str(board["port"])) for board in (known or there).values()]
    if infos:
        err().print(table_of([info for info in infos if info is not None]))
    if known:
        raise click.UsageError(f"{len(known)} boards are attached: name a PORT, or give --all.")
    if there:
        more = "--all --probe" if all_boards or len(there) > 1 else "--probe"
        raise click.UsageError(
            "Nobody can tell what is behind these ports without opening them: name a PORT, or give "
            f"{more}."
        )
    raise click.UsageError(
        "No board is known on USB: name a PORT (a simulated board's is its url)."
    )


def looks_like(info: PortInfo) -> str:
    """What a person may take the port for, in words."""
    if info.native:
        return "ESP32 (its own USB)"
    if info.bridge:
        return f"perhaps an ESP32 ({info.bridge} bridge)"
    return "unknown"


async def attached(
    find: Callable[[dict[str, Any]], dict[str, Any]], state_dir: Path | None
) -> dict[str, str]:
    """The ports of the boards that are meant where none is named, by the boards' names; not those
    of what was found to be none of ours, which are told. Raises click.UsageError."""
    from ota_service.api.engine import Engine

    async with Engine(state_dir=state_dir or default_state_dir()) as engine:
        found = find(engine.status())
    ports = {}
    for name, board in found.items():
        if board["state"] == "unrecognised":
            why = board.get("error", {}).get("message", "It is not ours.")
            err().print(Text(f"Not opened: {board['port']}: {why}"), soft_wrap=True)
        else:
            ports[name] = str(board["port"])
    if not ports:
        raise click.UsageError("Nothing else is attached: name the PORT of what is meant.")
    return ports


def named(port: str) -> str:
    """A port, and what it may be taken for."""
    info = describe_port(port)
    return f"{port}, {looks_like(info)}" if info is not None else port


def describe(info: PortInfo) -> dict[str, object]:
    """A port as JSON; what is not known is left out."""
    values: dict[str, object | None] = {
        "port": info.device,
        "by_path": info.by_path,
        "location": info.location,
        "usb": f"{info.vid:04x}:{info.pid:04x}" if info.vid and info.pid else None,
        "serial_number": info.serial_number,
        "product": info.product,
        "mac": info.mac,
        "likely_esp32": info.likely_esp32,
        "looks_like": looks_like(info),
    }
    return {name: value for name, value in values.items() if value is not None}


def table_of(found: Sequence[PortInfo]) -> Table:
    """The ports as a table; the name to configure is the one that follows the socket."""
    made = table("port", "looks like", "MAC", "name to configure")
    for info in found:
        made.add_row(info.device, looks_like(info), info.mac or "", info.by_path or info.device)
    return made
