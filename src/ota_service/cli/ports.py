# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota ports`: the serial ports of this machine, and which look like ESP32 boards."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from ota_service.board.ports import PortInfo, list_ports


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def ports(as_json: bool) -> None:
    """List serial ports, and which look like ESP32 boards. Opens none."""
    found = list_ports()
    if as_json:
        click.echo(json.dumps([describe(info) for info in found], indent=2))
    elif not found:
        click.echo("No serial ports were found.")
    else:
        Console().print(table_of(found))


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
    table = Table(box=None, pad_edge=False)
    for title in ("Port", "Looks like", "MAC", "Name to configure"):
        table.add_column(title, overflow="fold")
    for info in found:
        table.add_row(info.device, looks_like(info), info.mac or "", info.by_path or info.device)
    return table
