# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator's command line: `esp32-ota sim`, and `python -m esp32_sim` without that command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from esp32_sim.chips import CHIP_NAMES, ESP32
from esp32_sim.layouts import LAYOUT_NAMES


@click.command()
@click.option("--boards", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--dir", "dir", type=click.Path(file_okay=False, path_type=Path),
              help="Where the boards live: their flash contents stay there.")  # fmt: skip
@click.option("--layout", type=click.Choice(LAYOUT_NAMES),
              help="Partition table of all; default: those with OTA slots, in turn.")  # fmt: skip
@click.option("--chip", type=click.Choice(CHIP_NAMES),
              help="Of new boards, or of the firmware of --files; default: esp32.")  # fmt: skip
@click.option("--times", type=click.Choice(["on", "off"]), default="on", show_default=True,
              help="Whether wire and flash take the time that they really take.")  # fmt: skip
@click.option("--flash", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A flash dump that new boards start from.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Of the boards' MACs and contents.")  # fmt: skip
@click.option("--files", "folder", type=click.Path(file_okay=False, path_type=Path),
              help="Write firmware for such boards into this folder instead, and end.")  # fmt: skip
@click.option("--bridge-latency-ms", type=click.FloatRange(0), default=1.0, hidden=True)
# For programs that prepare boards by themselves, as `SimProcess` does.
@click.option("--board-dir", type=click.Path(path_type=Path), multiple=True, hidden=True)
@click.option("--boards-from-stdin", is_flag=True, hidden=True)
def sim(folder: Path | None, **given: Any) -> None:
    """Run simulated boards until stopped; prints one port url a line.

    Each url is a PORT for inspect, update and flash, and for the configuration of the service.

    \b
    esp32-ota sim --files /tmp/firmware
    esp32-ota sim --boards 2 --dir /tmp/boards
    """
    from esp32_sim.images import write_firmware
    from esp32_sim.server import Options, Refused, run

    try:
        if folder is not None:
            if given["dir"] is not None:
                raise click.UsageError("Give either --files or --dir.")
            for name, what in write_firmware(folder, given["chip"] or ESP32.name).items():
                click.echo(f"{folder / name}: {what}")
            return
        options = Options(**given)
        if not options.prepared and options.dir is None:
            raise click.UsageError(
                "--dir is needed: the folder in which the boards are kept, such as /tmp/boards."
            )
        run(options)
    except Refused as error:
        raise click.ClickException(
            f"{error} Stop that process, or name another folder with --dir."
        ) from None
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{name}{error.strerror or error}.") from None
    except ValueError as error:
        raise click.UsageError(f"{error}") from None
