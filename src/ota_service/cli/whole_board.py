# SPDX-License-Identifier: GPL-3.0-or-later
"""What concerns a board as a whole: `esp32-ota flash`, `backup` and `restore`.

They show what a board has and will have, and on a terminal they ask before the first write.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ota_service.cli.options import (
    baud_option,
    boot_options,
    mac,
    no_trust_option,
    reset_option,
    state_dir_option,
    yes_option,
)
from ota_service.cli.output import err, files, json_option, out, print_json, size, table
from ota_service.cli.ports import port_argument
from ota_service.client.failure import Failure
from ota_service.client.remedies import line_of, own_text, own_words
from ota_service.errors import OtaError
from ota_service.firmware.files import FIRMWARE_BYTES, read_file
from ota_service.firmware.supply import Supply
from ota_service.fleet.journal import open_journal
from ota_service.formats.image import revision_text
from ota_service.formats.merge import describe_app
from ota_service.formats.nvs import Nvs
from ota_service.formats.partitions import PartitionTable
from ota_service.link.at_port import at_port
from ota_service.link.chip import ChipInfo
from ota_service.link.ports import require_exists, shown
from ota_service.link.resets import ResetWay
from ota_service.module.folders import default_cache_dir, default_state_dir
from ota_service.update.backup import Backup
from ota_service.update.backup_files import holds_backup, read_backup, to_dict, write_backup
from ota_service.update.backup_run import AGAIN, RestoreJob, run_backup, run_restore
from ota_service.update.flash_merged import FlashJob, again, plan_dict, run_flash
from ota_service.update.flash_plan import Before, FlashPlan, MergedFile, check_merged
from ota_service.update.restore import RestorePlan
from ota_service.update.rewrite import WriteOutcome, WritePhase
from ota_service.update.session import BootRules

_PHASES: dict[WritePhase, str] = {
    "connecting": "Connecting",
    "inspecting": "Looking at what the board has",
    "writing": "Writing",
    "verifying": "Reading back",
    "booting": "Watching the board start",
}
_FOLDER = click.Path(file_okay=False, path_type=Path)


# --- both


class _Terminal:
    """Implements `WriteHooks` for a person: shows and asks; a bar for the writing on a terminal."""

    def __init__(self, console: Console, port: str, command: str, *, ask: bool) -> None:
        self.console = console
        self._port = port
        self._command = command
        self._ask = ask and sys.stdin.isatty() and console.is_terminal
        self._writing = False
        self._bar: Progress | None = None
        self._last_percent = 0

    @contextmanager
    def interrupted(self, again: str) -> Iterator[None]:
        """Say at Ctrl-C what it left behind; again: what to do about a board half written."""
        try:
            yield
        except (KeyboardInterrupt, click.Abort):
            words = (
                f"Interrupted. {again}" if self._writing else "Interrupted; nothing was written."
            )
            raise Failure(words, code="cancelled") from None
        finally:
            self._close()

    def identified(self, mac: str) -> None:
        """The chip answered."""
        self.console.print(f"The board {mac} answers.")

    def ask(self, question: str) -> None:
        """On a terminal. Raises OtaError cancelled where the answer is no."""
        if self._ask and not click.confirm(question):
            raise OtaError(
                "cancelled",
                "Nothing was written.",
                remedy=f"Call {self._command} again if it is meant.",
            )

    def kept(self, folder: Path) -> None:
        """Said before the first write: it holds whatever comes now."""
        self.console.print(
            f"What it has (NVS, otadata, partition table) is kept in {folder}; "
            f"`esp32-ota restore {shown(self._port)} {folder}` puts it back.",
            soft_wrap=True,
        )

    def phase(self, name: WritePhase) -> None:
        """A line each."""
        self._writing = name in ("writing", "verifying")
        if not self._writing:
            self._close()
        if self._bar is None:
            self.console.print(f"{_PHASES[name]} ...")

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Move the bar, or say each quarter."""
        if self.console.is_terminal:
            if self._bar is None:
                self._bar = Progress(
                    BarColumn(bar_width=32),
                    DownloadColumn(),
                    TextColumn("{task.percentage:>3.0f} %"),
                    TimeRemainingColumn(compact=True),
                    console=self.console,
                )
                self._bar.add_task("", total=bytes_total)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=bytes_done)
            return
        percent = bytes_done * 100 // bytes_total // 25 * 25 if bytes_total else 100
        if percent > self._last_percent:
            self._last_percent = percent
            self.console.print(f"  {percent} % of {bytes_total:,} bytes")

    def _close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _about(options: dict[str, Any]) -> dict[str, Any]:
    """What the options say of a job."""
    return {
        "state_dir": options["state_dir"] or default_state_dir(),
        "confirm": mac(options["confirm"]) if options["confirm"] is not None else None,
        "baud": options["baud"],
        "boot": BootRules(
            options["boot_timeout_s"], options["boot_stable_s"], restarts=options["boot_restarts"]
        ),
    }


def _tell(
    console: Console, outcome: WriteOutcome, shown: dict[str, Any], as_json: bool, done: str
) -> None:
    """How it ended; exit code 1 where not well. done: the words for a start that was seen."""
    error = outcome.error
    if as_json:
        print_json({"ok": error is None, **own_words(shown)})
    else:
        if error is not None:
            console.print(f"Error: {line_of(error)}", style="bold red")
            for line in outcome.boot_log:
                console.print(f"  | {line}", style="dim")
        elif outcome.confirmed:
            console.print(Text(done, "green"))
        else:
            console.print(f"Written and read back; {outcome.notice}.")
        if outcome.version:
            console.print(Text(f'Its NVS holds version "{outcome.version}".'))
    if error is not None:
        raise SystemExit(1)


# --- flash


@click.command()
@port_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keep-nvs", is_flag=True, help="Carry all keys of the board's NVS over.")
@click.option("--confirm", metavar="MAC", help="Only if the board has this MAC.")
@yes_option
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@baud_option
@reset_option
@boot_options
@state_dir_option
@no_trust_option
@json_option
def flash(
    port: str,
    file: Path,
    keep_nvs: bool,
    yes: bool,
    dry_run: bool,
    no_trust: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the Merged Binary FILE to the board at PORT: everything on it is replaced.

    What the board has and will have is shown first, and on a terminal you are asked. With
    --keep-nvs its keys stay, also where their partition moves. What it had (NVS, otadata,
    partition table) is kept on this computer's disk in any case; `restore` puts it back.
    """
    about = _about(options)
    with files():
        merged = _held_against_policy(file, no_trust=no_trust)
        require_exists(port)
        console = err() if as_json else out()
        if not dry_run:
            console.print(
                f"Writing {file} ({_merged_text(merged)}) to {shown(port)}.", soft_wrap=True
            )
        job = FlashJob(port, merged, keep_nvs, **about)
        hooks = _Flash(console, job, ask=not (yes or as_json or dry_run), dry_run=dry_run)
        noted = _noted(file, job, no_trust=no_trust and not dry_run)
        with noted as outcomes, hooks.interrupted(own_text(again(keep_nvs))):
            try:
                with at_port(port, "esp32-ota flash", port, reset=options["reset"]) as opened:
                    outcome = run_flash(opened, job, hooks)
                    outcomes.append(outcome)
            except _Enough as enough:
                if as_json:
                    print_json({"ok": True, "dry_run": True, **enough.plan})
                return
    app = outcome.file.app
    what = describe_app(app) if app is not None else "the app"
    runs = f"Done: the board runs {what} from {outcome.file.booted.label}."
    _tell(console, outcome, outcome.to_dict(), as_json, runs)


def _held_against_policy(file: Path, *, no_trust: bool) -> MergedFile:
    """The file, checked. Raises OtaError."""
    if no_trust and os.geteuid() != 0:
        raise click.UsageError("Only root may give --no-trust.")
    place = str(file.absolute())
    supply = Supply(default_cache_dir(), trusting=no_trust)
    asked, grants = asyncio.run(supply.granted(place))
    data = read_file(grants[0].url if grants else place, FIRMWARE_BYTES)
    return check_merged(data, policies=asked, grants=grants)


@contextmanager
def _noted(file: Path, job: FlashJob, *, no_trust: bool) -> Iterator[list[WriteOutcome]]:
    """Leave in the history that the host's policy was passed by, and what came of it, which is put
    into the list. Raises OtaError `state-busy`."""
    if not no_trust:
        yield []
        return
    journal = open_journal(job.state_dir, shared=True)
    try:
        run, about = uuid.uuid4().hex[:12], {"purpose": "flash", "file": str(file)}
        journal.start_run(run, "esp32-ota", "command", {**about, "no_trust": True})
        outcomes: list[WriteOutcome] = []
        try:
            yield outcomes
        finally:
            good = outcomes and outcomes[0].error is None
            journal.finish_run(run, "succeeded" if good else "failed")
    finally:
        journal.close()


def _merged_text(file: MergedFile) -> str:
    """What kind of file it is, its app, and how much of the flash it fills."""
    app = f" with {describe_app(file.app)}" if file.app is not None else ""
    return f"a Merged Binary for {file.merged.chip}{app}, {len(file.data):,} bytes"


class _Enough(Exception):
    """A dry run has shown what it was asked for."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self.plan = plan


class _Flash(_Terminal):
    """Implements `FlashHooks` for a person."""

    def __init__(self, console: Console, job: FlashJob, *, ask: bool, dry_run: bool) -> None:
        super().__init__(console, job.name, "flash", ask=ask)
        self._job = job
        self._dry_run = dry_run

    def planned(self, chip: ChipInfo, before: Before, plan: FlashPlan) -> None:
        """Show it, and ask."""
        file = self._job.file
        _show_plan(self.console, chip, before, file, plan, self._job.keep_nvs)
        if self._dry_run:
            raise _Enough({"mac": chip.mac, "chip": chip.name, **plan_dict(before, file, plan)})
        self.ask("Replace everything on this board?")

    def cancelled(self) -> bool:
        """Ctrl-C ends the process itself."""
        return False

    def stopping(self) -> bool:
        """The same."""
        return False


def _show_plan(
    console: Console,
    chip: ChipInfo,
    before: Before,
    file: MergedFile,
    plan: FlashPlan,
    keep_nvs: bool,
) -> None:
    """What the board has, what it will have, and what becomes of its keys."""
    flash_text = size(chip.flash_bytes) if chip.flash_bytes else "unknown"
    revision = revision_text(chip.revision)
    console.print(f"{chip.name}, revision {revision}, flash {flash_text}")
    if before.table is None:
        why = before.table_problem.message if before.table_problem is not None else ""
        console.print(f"Before: no partition table. {why}")
    console.print(_tables(before.table, file.merged.table))
    app = file.app
    if app is not None:
        console.print(f"It will start {file.booted.label}: {describe_app(app)}")
    for part in plan.kept:
        where = "stay where they are"
        if not part.in_place:
            was = part.before
            origin = "from this computer's disk "
            if was is not None:
                origin = f"from {was.offset:#x} ({size(was.size_bytes)}) "
            where = f"move {origin}to {part.after.offset:#x} ({size(part.after.size_bytes)})"
        console.print(f"{part.label}: {part.keys} keys {where}", style="green")
    if keep_nvs and not plan.kept:
        console.print("The board's NVS holds no keys to keep.")
    for label in plan.lost:
        console.print(
            f"{label}: what the board has there is LOST, such as Wi-Fi credentials and robot "
            "secrets (--keep-nvs, with make KEEP_NVS=1, carries them over)",
            style="red",
        )
    if not keep_nvs and not plan.lost:
        console.print("Keys that the board may have in NVS are not kept; none were found.")
    for note in plan.notes:
        console.print(Text(note))


def _tables(before: PartitionTable | None, after: PartitionTable) -> Table:
    made = table("partition", "kind", "before", "after")
    labels = list(
        dict.fromkeys(
            part.label
            for found in (before, after)
            if found is not None
            for part in sorted(found.partitions, key=lambda part: part.offset)
        )
    )
    for label in labels:
        old = before.by_label(label) if before is not None else None
        new = after.by_label(label)
        kind = new.kind if new is not None else old.kind if old is not None else ""
        texts = [
            f"{part.offset:#x} {size(part.size_bytes)}" if part is not None else "-"
            for part in (old, new)
        ]
        style = "" if texts[0] == texts[1] else "yellow"
        made.add_row(Text(label), kind, texts[0], texts[1], style=style)
    return made


# --- backup and restore


@click.command()
@port_argument
@click.argument("folder", metavar="DIR", type=_FOLDER)
@baud_option
@reset_option
@json_option
def backup(port: str, folder: Path, baud: int, reset: ResetWay | None, as_json: bool) -> None:
    """Keep the NVS, otadata and partition table of the board at PORT in DIR. Restarts it.

    Nothing is written to the board. DIR then holds its credentials, in files that only this user
    can read; `restore` puts them back. A backup of the same board that is there is replaced.
    """
    with files():
        require_exists(port)
        old = read_backup(folder) if holds_backup(folder) else None
        console = err()
        console.print(
            f"Restarting the board at {shown(port)} to read it; nothing is written to it.",
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

        try:
            with at_port(port, "esp32-ota backup", port, reset=reset) as opened:
                made = run_backup(opened, baud=baud, identified=identified)
        except KeyboardInterrupt:
            words = f"Interrupted; the board is in its firmware, and {folder} is as it was."
            raise Failure(words, code="cancelled") from None
        if old is not None and not made.covers(old, by_name=True):
            raise Failure(
                f"{folder} holds a backup of this board with keys that the board has no longer, "
                "so it was left as it is.",
                "Name another folder; `esp32-ota restore` puts the keys back.",
                code="backup-kept",
            )
        write_backup(folder, made)
    if as_json:
        print_json({"ok": True, "dir": str(folder), **to_dict(made)})
        return
    console = out()
    flash = size(made.flash_bytes) if made.flash_bytes else "unknown"
    console.print(f"{made.mac}: {made.chip}, flash {flash}")
    console.print(_pieces(made))
    console.print(
        f"Kept in {folder}, which holds the board's credentials now; "
        f"`esp32-ota restore {shown(port)} {folder}` puts them back.",
        soft_wrap=True,
    )


@click.command()
@port_argument
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--confirm", metavar="MAC",
              help="The MAC of the board that is meant, where it is another one than the "
              "backup's: it gets the NVS alone.")  # fmt: skip
@yes_option
@baud_option
@reset_option
@boot_options
@state_dir_option
@json_option
def restore(port: str, folder: Path, yes: bool, as_json: bool, **options: Any) -> None:
    """Put the backup in DIR back to the board at PORT, as far as the board starts with it.

    NVS goes to the partitions of the same names, whatever is in them. otadata and the partition
    table are put back only where an app then starts; where they stay, you are told why. What the
    board has meanwhile is kept on this computer's disk.
    """
    about = _about(options)
    with files():
        saved = read_backup(folder)
        require_exists(port)
        console = err() if as_json else out()
        job = RestoreJob(port, saved, folder, **about)
        console.print(
            f"Restoring {folder} (of {saved.mac}, {saved.made_at}) to the board at {shown(port)}.",
            soft_wrap=True,
        )
        hooks = _Restore(console, port, "restore", ask=not (yes or as_json))
        with (
            hooks.interrupted(AGAIN),
            at_port(port, "esp32-ota restore", port, reset=options["reset"]) as opened,
        ):
            outcome = run_restore(opened, job, hooks)
    done = "Done: the board has its backup, and was seen to start."
    _tell(console, outcome, outcome.to_dict(), as_json, done)


class _Restore(_Terminal):
    """Implements `RestoreHooks` for a person."""

    def planned(self, chip: ChipInfo, plan: RestorePlan) -> None:
        """Show it, and ask."""
        for one in plan.restored:
            keys = f"{one.keys} keys" if one.keys is not None else "what the backup has"
            where = f"{one.after.offset:#x} ({size(one.after.size_bytes)})"
            self.console.print(f"{one.after.label} at {where}: {keys}", style="green")
        for note in plan.notes:
            self.console.print(Text(note))
        if not plan.needed:
            self.console.print("The board has all of that; nothing is written.")
        else:
            self.ask("Replace what this board has there?")


def _pieces(made: Backup) -> Table:
    shown_table = table("kept", "place", "size", "keys", right=("keys",))
    for piece in made.pieces:
        held = piece.nvs()
        keys = str(len(held.keys())) if isinstance(held, Nvs) else ""
        shown_table.add_row(Text(piece.label), f"{piece.offset:#x}", size(len(piece.data)), keys)
    return shown_table
