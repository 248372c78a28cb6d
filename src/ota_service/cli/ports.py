# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota ports`: the serial ports of this machine, and which look like ESP32 boards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem
from rich.table import Table

from ota_service.cli.output import json_option, out, print_json, table
from ota_service.formats.text import visible
from ota_service.link.ports import PortInfo, list_ports, problem, shown


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


def _port(_: click.Context, __: click.Parameter, given: str) -> str:
    wrong = problem(given)
    if wrong is not None:
        raise click.BadParameter(f"{visible(shown(given))} {wrong}.")
    return given


port_argument = click.argument("port", shell_complete=_complete, callback=_port)
"""The argument PORT, which the shell completes with what is attached."""


def looks_like(info: PortInfo) -> str:
    """What a person may take the port for, in words."""
    if info.native:
        return "ESP32 (its own USB)"
    if info.bridge:
        return f"perhaps an ESP32 ({info.bridge} bridge)"
    return "unknown"


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
