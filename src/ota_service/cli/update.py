# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota update PORT`: one board without Viam, by the same code as the service."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from ota_service.cli.options import (
    asked_options,
    baud_option,
    boot_options,
    no_trust_option,
    reset_option,
    stop_asking,
)
from ota_service.cli.output import err, json_option, on_stop, out, print_json
from ota_service.cli.ports import port_argument
from ota_service.cli.remedies import own_words
from ota_service.errors import OtaError


def _digest(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch("[0-9A-Fa-f]{64}", given):
        raise click.BadParameter("give 64 hex digits, as `sha256sum` prints them.")
    return given


@click.command()
@port_argument
@click.option(
    "--url",
    help="http or https address of the App Image, or a whole path: of a file, or of a folder "
    "with just one *.bin.",
)
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The App Image, instead of a url.",
)
@click.option(
    "--version",
    help="Tag to store in the board's NVS; with --file by default the "
    "version in the image's app descriptor.",
)
@click.option(
    "--sha256",
    metavar="HEX",
    callback=_digest,
    help="Refuse an image with another digest (64 hex digits, as `sha256sum` prints them).",
)
@asked_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read the board, say what would be done and why, and write nothing.",
)
@baud_option
@reset_option
@click.option(
    "--boot-expect",
    metavar="REGEX",
    help="What a line of the new app's log must match for the app to count as running.",
)
@boot_options
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="A further certificate authority for https.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the journal is kept, by default where the service keeps it: "
    "$VIAM_HOME/ota-service, without that ~/.local/state/ota-service. Commands share "
    "it; a service has it for itself. Firmware is kept in $VIAM_MODULE_DATA, "
    "else ~/.cache/ota-service.",
)
@no_trust_option
@json_option
def update(
    port: str,
    file: Path | None,
    url: str | None,
    version: str | None,
    sha256: str | None,
    as_json: bool,
    dry_run: bool,
    asked: dict[str, Any],
    **options: Any,
) -> None:
    """Update one attached board, without Viam. Restarts it.

    The App Image is checked, written to the slot that does not run, and read back; then the board
    is switched to it, gets the version in its NVS, and is watched while it boots. If the new
    firmware does not come up, the board goes back to its old firmware and version. Where the
    stored version is equal already, nothing is written without --force. A slot that may be the
    one that runs is never written, whatever is asked.

    Ctrl-C stops where that leaves the board bootable.

    \b
    esp32-ota update /dev/ttyUSB0 --url http://10.0.0.5:3001/app.bin --version 1.2.3
    esp32-ota update /dev/ttyUSB0 --file build/app.bin
    """
    from ota_service.cli.report import plan_table, print_run
    from ota_service.firmware.urls import check_url

    if (file is None) == (url is None):
        raise click.UsageError("Give either --url or --file.")
    if url is not None and not version:
        raise click.UsageError("Give --version, the tag to be stored with the firmware of --url.")
    if url is not None and (problem := check_url(url)):
        raise click.UsageError(f"--url {problem}.")
    _quiet_logs()
    asked["rescue"] = asked.pop("confirm", None)
    given = {"version": version, "sha256": sha256, **asked}
    console = err() if as_json else out()
    try:
        reply = asyncio.run(_run(console, port, file or url, given, dry_run, options))
    except OtaError as error:
        if error.code != "config-invalid":
            raise
        # What was given is wrong, not a machine's configuration.
        raise click.UsageError(error.message) from None
    reply = own_words(reply)
    if as_json:
        print_json(reply)
    elif dry_run:
        console.print(plan_table(reply["plan"]))
    else:
        print_run(console, reply, words=_said_of(reply, force="force" in asked))
    if not dry_run and reply.get("outcome") != "succeeded":
        raise SystemExit(1)


async def _run(
    console: Console,
    port: str,
    firmware: Any,
    given: Mapping[str, Any],
    dry_run: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The run as the history has it, or the plan as a dry run replies. Raises OtaError."""
    from ota_service.api.engine import Engine
    from ota_service.cli.live import Live

    known: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    async with Engine([port], **known) as engine:
        order = (engine.plan if dry_run else engine.update)(firmware, **given)

        def stop() -> None:
            console.print("Stopping where that leaves the board bootable...")
            stop_asking(known.get("reset"))
            order.cancel()

        with on_stop(stop), Live(console, transient=True) as live:
            noted: set[str] = set()
            async for status in order:
                for name, board in order.boards.items():
                    if board.replaces is not None and name not in noted:
                        noted.add(name)  # before it is shown that anything is written
                        _note(console, board.replaces)
                live.show(status)
        report = await order
        run = dict(report.record)
        if dry_run:
            if report.error is not None and not report.boards:
                raise report.error
            run = {"ok": True, "run": _short(run), **run.get("result", {"plan": {}})}
            for name, planned in run["plan"].items():
                replaces = _would_replace(engine.status(), name, planned)
                if replaces is not None:
                    planned["replaces"] = replaces
                    _note(console, replaces)
        elif report.outcome == "cancelled":
            _say_what_runs(console, engine.status())
    return run


def _note(console: Console, replaces: Mapping[str, str]) -> None:
    project, by = replaces["project"], replaces["by"]
    console.print(Text(f'Note: replaces the project "{project}" by "{by}".'))


def _would_replace(
    status: Mapping[str, Any], name: str, planned: Mapping[str, Any]
) -> dict[str, str] | None:
    """The same for a dry run, which has just read what the board runs."""
    before = status["boards"][name].get("running", {}).get("project")
    after = status.get("target", {}).get("project")
    writes = planned.get("action") in ("write", "switch")
    differs = before and after and before != after
    return {"project": before, "by": after} if writes and differs else None


def _short(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as the status has it."""
    keys = ("id", "trigger", "started_at", "outcome", "finished_at")
    return {key: run[key] for key in keys if key in run}


def _said_of(run: Mapping[str, Any], *, force: bool) -> str:
    """What an update that succeeded did to the board, where it is less than one expects; "": all
    that an update does."""
    if run.get("outcome") != "succeeded":
        return ""
    board: Mapping[str, Any] = next(iter(dict(run.get("boards", {})).values()), {})
    if board.get("cancel"):
        return "Too late to stop: the update was finished."
    if force and board.get("action") == "none":
        return "Nothing was written: the board runs this image already; its start was watched."
    hint = "" if force else " (--force writes anyway)"
    return {
        "none": f'Nothing was written: the board has version "{board.get("to", "")}" '
        f"already{hint}.",
        "switch": "The image was in the other slot already: nothing was written to it, the board "
        "was only switched.",
        "record": "The board ran the image already: only the version was stored.",
    }.get(str(board.get("action", "")), "")


def _say_what_runs(console: Console, status: Mapping[str, Any]) -> None:
    for board in dict(status.get("boards", {})).values():
        running = board.get("running")
        if running:
            app = f"{running.get('project', '')} {running.get('app_version', '')}".strip()
            console.print(f"The board is left bootable: it runs {running['slot']} ({app}).")
        elif not board.get("mac"):
            console.print("The board was not touched.")


def _quiet_logs() -> None:
    """The display says it all; ESP32_OTA_DEBUG=1 shows the log beside it."""
    if os.environ.get("ESP32_OTA_DEBUG"):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        return
    logger = logging.getLogger("ota_service")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
