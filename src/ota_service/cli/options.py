# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that subcommands share, so that one name means one thing, within one range."""

from __future__ import annotations

from pathlib import Path

import click

from ota_service.cli.output import Command


def baud_option(function: Command) -> Command:
    """`--baud`, as the argument `baud`."""
    return click.option(
        "--baud",
        type=click.IntRange(9_600, 4_000_000),
        default=921_600,
        show_default=True,
        help="Highest speed to use; falls back by itself.",
    )(function)


def boot_options(function: Command) -> Command:
    """`--boot-timeout` and `--boot-stable`, in seconds; `flash` had them first with -s."""
    stable = click.option(
        "--boot-stable",
        "--boot-stable-s",
        "boot_stable",
        type=click.FloatRange(0, 600),
        default=5.0,
        show_default=True,
        metavar="S",
        help="Seconds that it must then run.",
    )
    timeout = click.option(
        "--boot-timeout",
        "--boot-timeout-s",
        "boot_timeout",
        type=click.FloatRange(1, 600),
        default=20.0,
        show_default=True,
        metavar="S",
        help="Seconds that the new app may take to show that it starts.",
    )
    return timeout(stable(function))


def state_dir_option(function: Command) -> Command:
    """`--state-dir` of what writes to a board directly, as the argument `state_dir`."""
    return click.option(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where what the board has is kept; default: $VIAM_HOME/ota-service, "
        "without that ~/.local/state/ota-service.",
    )(function)
