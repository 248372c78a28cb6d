# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that subcommands share, so that one name means one thing, within one range."""

from __future__ import annotations

import re
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ota_service.cli.output import Command
from ota_service.fleet.settings import OVERRIDES

if TYPE_CHECKING:
    from ota_service.link.resets import ResetWay

baud_option = click.option(
    "--baud",
    type=click.IntRange(9_600, 4_000_000),
    default=921_600,
    show_default=True,
    help="Highest speed to use; falls back by itself.",
)
state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the journal and backups are kept, by default where the service keeps them: "
    "$VIAM_HOME/ota-service, without that ~/.local/state/ota-service. Commands share it; a "
    "service has it for itself.",
)

_PINS = re.compile(r"(?P<chip>[^:=,\s]+):en=(?P<en>\d{1,4}),boot=(?P<boot>\d{1,4})")


def _reset(context: click.Context, parameter: click.Parameter, given: str | None) -> Any:
    from ota_service.link.resets import ByHand, ResetPins

    if given is None:
        return None
    if given == "by-hand":
        return ByHand(lambda what: click.echo(what[:1].upper() + what[1:], err=True))
    match = _PINS.fullmatch(given)
    if match is None or match["en"] == match["boot"]:
        raise click.BadParameter("give by-hand, or two lines as in gpiochip0:en=17,boot=18")
    chip = match["chip"] if match["chip"].startswith("/") else f"/dev/{match['chip']}"
    return ResetPins(chip, int(match["en"]), int(match["boot"]))


reset_option = click.option(
    "--reset",
    metavar="PINS|by-hand",
    callback=_reset,
    help="Where DTR and RTS of the port do not reach the board: the lines of a GPIO chip that do, "
    "such as gpiochip0:en=17,boot=18; by-hand: you are told what to press.",
)


def stop_asking(reset: ResetWay | None) -> None:
    """A person who stops the command will press nothing more."""
    from ota_service.link.resets import ByHand

    if isinstance(reset, ByHand):
        reset.stop.set()


no_trust_option = click.option(
    "--no-trust",
    is_flag=True,
    help="Pass this host's policy of trust by: root only, and it is in the history.",
)

dry_run_option = click.option(
    "--dry-run",
    is_flag=True,
    help="Read the boards, say what would be done and why, and write nothing.",
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask, also on a terminal.")

_BOOT = (
    click.option(
        "--boot-restarts",
        type=click.IntRange(0, 10),
        default=0,
        show_default=True,
        metavar="N",
        help="Planned restarts that it may make meanwhile.",
    ),
    click.option(
        "--boot-stable",
        "--boot-stable-s",
        "boot_stable_s",
        type=click.FloatRange(0, 600),
        default=5.0,
        show_default=True,
        metavar="S",
        help="Seconds that it must then run.",
    ),
    click.option(
        "--boot-timeout",
        "--boot-timeout-s",
        "boot_timeout_s",
        type=click.FloatRange(1, 600),
        default=20.0,
        show_default=True,
        metavar="S",
        help="Seconds that the new app may take to show that it starts.",
    ),
)


def boot_options(function: Command) -> Command:
    """How a start is judged: the service's boot_* attributes as options."""
    for option in _BOOT:
        function = option(function)
    return function


def asked_options(function: Command) -> Command:
    """What a person's update asks for beyond its boards: `--force`, `--override`, `--rescue` and
    `--confirm`, as the one argument `asked`, in the verb's own words."""

    @click.option(
        "--force",
        is_flag=True,
        help="Although the stored version is equal. A board that runs the image already is "
        "restarted and watched.",
    )
    @click.option(
        "--override",
        type=click.Choice(OVERRIDES),
        multiple=True,
        help="Override what else would keep the update from a board; may be given several times.",
    )
    @click.option(
        "--rescue",
        is_flag=True,
        help="Write a board of which it is proven that nothing on it boots; needs --confirm.",
    )
    @click.option("--confirm", metavar="MAC", help="With --rescue: the board's MAC.")
    @wraps(function)
    def with_asked(
        force: bool, override: tuple[str, ...], rescue: bool, confirm: str | None, **rest: Any
    ) -> Any:
        if rescue != (confirm is not None):
            raise click.UsageError("Give --rescue and --confirm together.")
        if rescue and len(rest["boards"]) != 1:
            raise click.UsageError("--rescue is for one board: name it.")
        asked: dict[str, Any] = {"force": force or None, "override": list(override) or None}
        if confirm is not None:
            asked |= {"rescue": True, "confirm": mac(confirm)}
        return function(asked={k: v for k, v in asked.items() if v is not None}, **rest)

    return with_asked  # type: ignore[return-value]


def mac(text: str) -> str:
    """The MAC that --confirm names, before any file is read. Raises click.UsageError."""
    from ota_service.module.checks import check_mac

    try:
        return check_mac(text)
    except ValueError:
        words = "--confirm must be the board's MAC, such as 24:0a:c4:12:34:56."
        raise click.UsageError(words) from None
