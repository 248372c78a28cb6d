# SPDX-License-Identifier: GPL-3.0-or-later
"""The `esp32-ota` command: what a person at a terminal calls.

Exit codes: 0 done, 1 failed, 2 wrong usage. Each subcommand imports what it needs when it is
called, so that `--help` answers at once; `SUBCOMMANDS` says where each one is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from ota_service.errors import OtaError

EXIT_FAILED = 1


# Name -> module and attribute of its click command, and its line in `--help`.
SUBCOMMANDS: dict[str, tuple[str, str, str]] = {
    "flash": (
        "ota_service.cli.flash",
        "flash",
        "Write the Merged Binary FILE to the board at PORT: everything on it is replaced.",
    ),
    "image": (
        "ota_service.cli.image",
        "image",
        "Look into firmware files; make App Images and Merged Binaries.",
    ),
    "ports": (
        "ota_service.cli.ports",
        "ports",
        "List serial ports, and which look like ESP32 boards. Opens none.",
    ),
    "serve": (
        "ota_service.cli.serve",
        "serve",
        "Serve the App Image FILE over http, and print its url and what to configure.",
    ),
}


class LazyGroup(click.Group):
    """A group whose subcommands of `SUBCOMMANDS` are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every subcommand's name."""
        return sorted({*super().list_commands(ctx), *SUBCOMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported now."""
        if cmd_name not in SUBCOMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = SUBCOMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of subcommands, without importing them."""
        rows = [
            (name, SUBCOMMANDS[name][2] if name in SUBCOMMANDS else self._short_help(ctx, name))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _short_help(self, ctx: click.Context, name: str) -> str:
        command = super().get_command(ctx, name)
        return command.get_short_help_str(limit=80) if command is not None else ""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Updates the firmware of ESP32 boards from the computer that they are attached to."""


@cli.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    },
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sim(arguments: tuple[str, ...]) -> None:
    """Run simulated boards until stopped; prints one port url a line."""
    from ota_service.sim.server import main as sim_main

    sys.exit(sim_main(list(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments` (default: the process's own) and exit."""
    try:
        cli.main(args=arguments, prog_name="esp32-ota", standalone_mode=True)
    except OtaError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
