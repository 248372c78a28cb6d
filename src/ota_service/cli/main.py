# SPDX-License-Identifier: GPL-3.0-or-later
"""The `esp32-ota` command: what a person at a terminal calls.

Exit codes: 0 done, 1 failed, 2 wrong usage. Each subcommand imports what it needs when it is
called, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ota_service.errors import OtaError

EXIT_FAILED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
