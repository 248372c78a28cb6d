# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota flash`: write a Merged Binary to one board, after showing what that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ota_service.cli.options import baud_option, boot_options, state_dir_option
from ota_service.cli.output import err, json_option, out, print_json
from ota_service.cli.ports import port_argument
from ota_service.cli.remedies import line_of, own_text, own_words
from ota_service.cli.show import files, size, table
from ota_service.cli.whole_board import Terminal
from ota_service.client.failure import Failure
from ota_service.formats.merge import describe_app
from ota_service.formats.partitions import PartitionTable
from ota_service.link.at_port import at_port
from ota_service.link.chip import ChipInfo
from ota_service.link.ports import require_exists, shown
from ota_service.module.folders import default_state_dir
from ota_service.update.flash_merged import (
    FlashJob,
    FlashOutcome,
    FlashPhase,
    again,
    plan_dict,
    run_flash,
)
from ota_service.update.flash_plan import Before, FlashPlan, MergedFile, check_merged
from ota_service.update.session import BootRules


@click.command()
@port_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keep-nvs", is_flag=True, help="Carry all keys of the board's NVS over.")
@click.option("--confirm", metavar="MAC", help="Only if the board has this MAC.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, also on a terminal.")
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@baud_option
@boot_options
@state_dir_option
@json_option
def flash(
    port: str,
    file: Path,
    keep_nvs: bool,
    confirm: str | None,
    yes: bool,
    dry_run: bool,
    baud: int,
    boot_timeout: float,
    boot_stable: float,
    boot_restarts: int,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Write the Merged Binary FILE to the board at PORT: everything on it is replaced.

    What the board has and will have is shown first, and on a terminal you are asked. With
    --keep-nvs its keys stay, also where their partition moves. What it had (NVS, otadata,
    partition table) is kept on this computer's disk in any case; `restore` puts it back.
    """
    with files():
        merged = check_merged(file.read_bytes())
        require_exists(port)
        console = err() if as_json else out()
        if not dry_run:
            console.print(
                Text(f"Writing {file} ({merged_text(merged)}) to {shown(port)}."), soft_wrap=True
            )
        job = FlashJob(
            port,
            merged,
            keep_nvs=keep_nvs,
            state_dir=state_dir or default_state_dir(),
            confirm=confirm.lower().replace("-", ":") if confirm else None,
            baud=baud,
            boot=BootRules(boot_timeout, boot_stable, restarts=boot_restarts),
        )
        hooks = _Terminal(console, job, yes or as_json, dry_run)
        try:
            with at_port(port, "esp32-ota flash", port) as opened:
                outcome = run_flash(opened, job, hooks)
        except KeyboardInterrupt:
            hooks.close()
            nothing = "Interrupted; nothing was written."
            words = f"Interrupted. {own_text(again(keep_nvs))}"
            raise Failure(words if hooks.writing else nothing) from None
        except _Enough as enough:
            if as_json:
                print_json({"ok": True, "dry_run": True, **enough.plan})
            return
        finally:
            hooks.close()
    _tell(hooks.console, outcome, as_json)
    if outcome.error is not None:
        raise SystemExit(1)


def merged_text(file: MergedFile) -> str:
    """What kind of file it is, its app, and how much of the flash it fills."""
    app = f" with {describe_app(file.app)}" if file.app is not None else ""
    return f"a Merged Binary for {file.merged.chip}{app}, {len(file.data):,} bytes"


class _Enough(Exception):
    """A dry run has shown what it was asked for."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self.plan = plan


class _Terminal(Terminal):
    """Implements `FlashHooks` for a person: draws a bar as well."""

    def __init__(self, console: Console, job: FlashJob, yes: bool, dry_run: bool) -> None:
        super().__init__(console, job.name, "flash", ask=not yes and not dry_run)
        self._job = job
        self._dry_run = dry_run
        self._bar: Progress | None = None
        self._last_percent = 0

    def planned(self, chip: ChipInfo, before: Before, plan: FlashPlan) -> None:
        """Show it, and ask."""
        file = self._job.file
        show_plan(self.console, chip, before, file, plan, self._job.keep_nvs)
        if self._dry_run:
            raise _Enough({"mac": chip.mac, "chip": chip.name, **plan_dict(before, file, plan)})
        self.ask("Replace everything on this board?")

    def phase(self, name: FlashPhase) -> None:
        """A line each; a bar for the writing."""
        if name == "booting":
            self.close()
        drawn = self._bar is not None or (name == "writing" and self.console.is_terminal)
        if not drawn:
            super().phase(name)
            return
        self.writing = name in ("writing", "verifying")
        if self._bar is None:
            self._bar = Progress(
                TextColumn("Writing"),
                BarColumn(bar_width=32),
                DownloadColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self._bar.add_task("flash", total=None)
            self._bar.start()

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Move the bar, or say each quarter."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=bytes_done, total=bytes_total)
            return
        percent = bytes_done * 100 // bytes_total // 25 * 25 if bytes_total else 100
        if percent > self._last_percent:
            self._last_percent = percent
            self.console.print(f"  {percent} % of {bytes_total:,} bytes")

    def cancelled(self) -> bool:
        """Ctrl-C ends the process itself."""
        return False

    def stopping(self) -> bool:
        """The same."""
        return False

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def show_plan(
    console: Console,
    chip: ChipInfo,
    before: Before,
    file: MergedFile,
    plan: FlashPlan,
    keep_nvs: bool,
) -> None:
    """What the board has, what it will have, and what becomes of its keys."""
    flash_text = size(chip.flash_bytes) if chip.flash_bytes else "unknown"
    revision = f"v{chip.revision // 100}.{chip.revision % 100}"
    console.print(Text(f"{chip.name}, revision {revision}, flash {flash_text}"))
    if before.table is None:
        why = before.table_problem.message if before.table_problem is not None else ""
        console.print(Text(f"Before: no partition table. {why}"))
    console.print(_tables(before.table, file.merged.table))
    app = file.app
    if app is not None:
        console.print(Text(f"It will start {file.booted.label}: {describe_app(app)}"))
    for part in plan.kept:
        where = "stay where they are"
        if not part.in_place:
            was = part.before
            origin = "from this computer's disk "
            if was is not None:
                origin = f"from {was.offset:#x} ({size(was.size_bytes)}) "
            where = f"move {origin}to {part.after.offset:#x} ({size(part.after.size_bytes)})"
        console.print(Text(f"{part.label}: {part.keys} keys {where}", style="green"))
    if keep_nvs and not plan.kept:
        console.print(Text("The board's NVS holds no keys to keep."))
    for label in plan.lost:
        console.print(
            Text(
                f"{label}: what the board has there is LOST, such as Wi-Fi credentials and robot "
                "secrets (--keep-nvs, with make KEEP_NVS=1, carries them over)",
                style="red",
            )
        )
    if not keep_nvs and not plan.lost:
        console.print(Text("Keys that the board may have in NVS are not kept; none were found."))
    for note in plan.notes:
        console.print(Text(note))


def _tables(before: PartitionTable | None, after: PartitionTable) -> Any:
    made = table("Partition", "Type", "Before", "After")
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


def _tell(console: Console, outcome: FlashOutcome, as_json: bool) -> None:
    if as_json:
        print_json({"ok": outcome.error is None, **own_words(outcome.to_dict())})
        return
    error = outcome.error
    if error is not None:
        console.print(Text(f"Error: {line_of(error)}", style="bold red"))
        for line in outcome.boot_log:
            console.print(Text(f"  | {line}", style="dim"))
    elif outcome.confirmed:
        app = outcome.file.app
        what = describe_app(app) if app is not None else "the app"
        console.print(
            Text(f"Done: the board runs {what} from {outcome.file.booted.label}.", "green")
        )
    else:
        console.print(Text("Written and read back; the board's log showed nothing to judge by."))
    if outcome.version:
        console.print(Text(f'Its NVS holds version "{outcome.version}".'))
