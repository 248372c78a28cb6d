# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota backup` and `restore`: NVS, otadata and partition table of one board, and back."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from ota_service.cli.options import baud_option, boot_options, state_dir_option
from ota_service.cli.output import err, json_option, out, print_json
from ota_service.cli.ports import port_argument
from ota_service.cli.remedies import line_of, own_words
from ota_service.cli.show import files, size, table
from ota_service.cli.whole_board import Terminal
from ota_service.client.failure import Failure
from ota_service.errors import OtaError
from ota_service.formats.nvs import Nvs
from ota_service.link.at_port import at_port
from ota_service.link.chip import ChipInfo
from ota_service.link.ports import require_exists, shown
from ota_service.module.folders import default_state_dir
from ota_service.update.backup import Backup
from ota_service.update.backup_files import holds_backup, read_backup, to_dict, write_backup
from ota_service.update.backup_run import (
    AGAIN,
    RestoreJob,
    RestoreOutcome,
    run_backup,
    run_restore,
)
from ota_service.update.restore import RestorePlan
from ota_service.update.session import BootRules

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@port_argument
@click.argument("folder", metavar="DIR", type=_FOLDER)
@baud_option
@json_option
def backup(port: str, folder: Path, baud: int, as_json: bool) -> None:
    """Keep the NVS, otadata and partition table of the board at PORT in DIR. Restarts it.

    Nothing is written to the board. DIR then holds its credentials, in files that only this user
    can read; `restore` puts them back. A backup of the same board that is there is replaced.
    """
    with files():
        require_exists(port)
        old = read_backup(folder) if holds_backup(folder) else None
        console = err()
        console.print(
            Text(f"Restarting the board at {shown(port)} to read it; nothing is written to it."),
            soft_wrap=True,
        )

        def identified(mac: str) -> None:
            if old is not None and old.mac != mac:
                raise OtaError(
                    "wrong-board",
                    f"{folder} holds a backup of the board {old.mac}, and the one at this port "
                    f"is {mac}.",
                    remedy="Name another folder for it.",
                )

        with at_port(port, "esp32-ota backup", port) as opened:
            made = run_backup(opened, baud=baud, identified=identified)
        if old is not None and not made.covers(old, by_name=True):
            raise Failure(
                f"{folder} holds a backup of this board with keys that the board has no longer, "
                "so it was left as it is.",
                "Name another folder; `esp32-ota restore` puts the keys back.",
            )
        write_backup(folder, made)
    if as_json:
        print_json({"ok": True, "dir": str(folder), **to_dict(made)})
        return
    console = out()
    flash = size(made.flash_bytes) if made.flash_bytes else "unknown"
    console.print(Text(f"{made.mac}: {made.chip}, flash {flash}"))
    console.print(_pieces(made))
    console.print(
        Text(
            f"Kept in {folder}, which holds the board's credentials now; "
            f"`esp32-ota restore {shown(port)} {folder}` puts them back."
        ),
        soft_wrap=True,
    )


@click.command()
@port_argument
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--confirm", metavar="MAC",
              help="The MAC of the board that is meant, where it is another one than the "
              "backup's: it gets the NVS alone.")  # fmt: skip
@click.option("-y", "--yes", is_flag=True, help="Do not ask, also on a terminal.")
@baud_option
@boot_options
@state_dir_option
@json_option
def restore(
    port: str,
    folder: Path,
    confirm: str | None,
    yes: bool,
    baud: int,
    boot_timeout: float,
    boot_restarts: int,
    boot_stable: float,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Put the backup in DIR back to the board at PORT, as far as the board starts with it.

    NVS goes to the partitions of the same names, whatever is in them. otadata and the partition
    table are put back only where an app then starts; where they stay, you are told why. What the
    board has meanwhile is kept on this computer's disk.
    """
    with files():
        saved = read_backup(folder)
        require_exists(port)
        console = err() if as_json else out()
        job = RestoreJob(
            port,
            saved,
            folder,
            state_dir=state_dir or default_state_dir(),
            confirm=confirm.lower().replace("-", ":") if confirm else None,
            baud=baud,
            boot=BootRules(boot_timeout, boot_stable, restarts=boot_restarts),
        )
        console.print(
            Text(
                f"Restoring {folder} (of {saved.mac}, {saved.made_at}) to the board at "
                f"{shown(port)}."
            ),
            soft_wrap=True,
        )
        hooks = _Terminal(console, port, "restore", ask=not (yes or as_json))
        try:
            with at_port(port, "esp32-ota restore", port) as opened:
                outcome = run_restore(opened, job, hooks)
        except KeyboardInterrupt:
            nothing = "Interrupted; nothing was written."
            raise Failure(f"Interrupted. {AGAIN}" if hooks.writing else nothing) from None
    _tell(console, outcome, as_json)
    if outcome.error is not None:
        raise SystemExit(1)


class _Terminal(Terminal):
    """Implements `RestoreHooks` for a person."""

    def planned(self, chip: ChipInfo, plan: RestorePlan) -> None:
        """Show it, and ask."""
        for one in plan.restored:
            keys = f"{one.keys} keys" if one.keys is not None else "what the backup has"
            where = f"{one.after.offset:#x} ({size(one.after.size_bytes)})"
            self.console.print(Text(f"{one.after.label} at {where}: {keys}", style="green"))
        for note in plan.notes:
            self.console.print(Text(note))
        if not plan.needed:
            self.console.print(Text("The board has all of that; nothing is written."))
        else:
            self.ask("Replace what this board has there?")


def _pieces(made: Backup) -> object:
    shown_table = table("Kept", "Place", "Size", "Keys", right=("Keys",))
    for piece in made.pieces:
        held = piece.nvs()
        keys = str(len(held.keys())) if isinstance(held, Nvs) else ""
        shown_table.add_row(Text(piece.label), f"{piece.offset:#x}", size(len(piece.data)), keys)
    return shown_table


def _tell(console: Console, outcome: RestoreOutcome, as_json: bool) -> None:
    if as_json:
        print_json({"ok": outcome.error is None, **own_words(outcome.to_dict())})
        return
    if outcome.error is not None:
        console.print(Text(f"Error: {line_of(outcome.error)}", style="bold red"))
        for line in outcome.boot_log[-20:]:
            console.print(Text(f"  | {line}", style="dim"))
    elif outcome.confirmed:
        console.print(Text("Done: the board has its backup, and was seen to start.", "green"))
    else:
        console.print(Text("Written and read back; the board's log showed nothing to judge by."))
    if outcome.version:
        console.print(Text(f'Its NVS holds version "{outcome.version}".'))
