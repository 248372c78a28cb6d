# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs of the service for the boards that are attached here, without Viam: `esp32-ota update`,
`stage`, `activate`, `version`, `verify` and `rollback`, by the service's own code.

Each is a row of `_VERBS`; what they show is what `esp32-ota remote` shows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from ota_service.cli.live import Live, in_order
from ota_service.cli.options import (
    asked_options,
    baud_option,
    boot_options,
    dry_run_option,
    no_trust_option,
    reset_option,
    state_dir_option,
    stop_asking,
    yes_option,
)
from ota_service.cli.output import Command, err, json_option, on_stop, out
from ota_service.cli.ports import WHICH, attached, boards_here, meant, named
from ota_service.client.remedies import own_words
from ota_service.errors import OtaError

if TYPE_CHECKING:
    from ota_service.api.engine import BoardReport, Engine, Order, Report

Reply = dict[str, Any]


def _digest(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch("[0-9A-Fa-f]{64}", given):
        raise click.BadParameter("give 64 hex digits, as `sha256sum` prints them.")
    return given


_FIRMWARE = (
    click.option(
        "--url",
        help="http or https address of the App Image or manifest, or a whole path: of a file, or "
        "of a folder with a manifest.json or just one *.bin.",
    ),
    click.option(
        "--file",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="The App Image or manifest, instead of a url.",
    ),
    click.option(
        "--version",
        help="Tag to store in the boards' NVS; with --file by default the version in the image's "
        "app descriptor, or in the manifest.",
    ),
    click.option(
        "--sha256",
        metavar="HEX",
        callback=_digest,
        help="Refuse a file with another digest (64 hex digits, as `sha256sum` prints them).",
    ),
    click.option(
        "--ca-file",
        type=click.Path(exists=True, dir_okay=False, resolve_path=True),
        help="A further certificate authority for https.",
    ),
    no_trust_option,
)
_START = (
    click.option(
        "--boot-expect",
        metavar="REGEX",
        help="What a line of the new app's log must match for the app to count as running.",
    ),
    boot_options,
)


@dataclass(frozen=True, slots=True)
class _Verb:
    """One row. does: its line, and what follows in its help. examples: its arguments. firmware: it
    is about one, and what is to be given of it. options: what else it has beyond those of all."""

    does: str
    more: str
    examples: tuple[str, ...]
    firmware: str = ""
    options: tuple[Callable[[Command], Command], ...] = ()


_VERBS = {
    "update": _Verb(
        "Update attached boards, without Viam. Restarts them.",
        """
    The App Image is checked, written to the slot that does not run, and read back; then the board
    is switched to it, gets the version in its NVS, and is watched while it boots. If the new
    firmware does not come up, the board goes back to its old firmware and version. Where the
    stored version is equal already, nothing is written without --force. A slot that may be the
    one that runs is never written, whatever is asked. Of a manifest each board gets the image that
    is for it; with more than three boards one goes first, and the others when it is good.

    Ctrl-C stops where that leaves every board bootable.
""",
        (
            "--file build/app.bin",
            "/dev/ttyUSB0 /dev/ttyUSB1 --file build/app.bin",
            "/dev/ttyUSB0 --url http://10.0.0.5/app.bin --version 1.2.3",
            "--all --file release/manifest.json",
        ),
        "url and version",
        (asked_options, dry_run_option, *_START),
    ),
    "stage": _Verb(
        "Write a firmware into boards' spare slots, for `activate`. Restarts them.",
        """
    Each board is down while it is written and keeps its firmware; what stood in its spare slot,
    usually the firmware before, is overwritten, which is told. Ctrl-C stops it.
""",
        ("/dev/ttyUSB0 --file build/app.bin", "--all --file build/app.bin"),
        "url and version",
    ),
    "activate": _Verb(
        "Switch boards to what is staged on them, in about a second. Restarts them.",
        """
    Then each is watched as by an update. Without --url or --file it is what was staged last with
    this state folder; with them, the same as was given then. A board on which that is not staged
    is left as it is (`not-staged`, `stage-stale`).
""",
        ("/dev/ttyUSB0", "--all"),
        "optional",
        _START,
    ),
    "version": _Verb(
        "Read the version in boards' NVS. Restarts them.",
        "",
        ("", "--all --json"),
    ),
    "verify": _Verb(
        "Check whether boards run a firmware, by its digest. Restarts them.",
        """
    Exit code 0 only if all of them do.
""",
        ("/dev/ttyUSB0 --file build/app.bin", "--all --file build/app.bin"),
        "url",
    ),
    "rollback": _Verb(
        "Go back to the firmware in boards' other slots. Restarts them.",
        """
    Where its image is whole, and with the version that belongs to it; its start is watched.
    On a terminal it asks where no port is named.
""",
        ("/dev/ttyUSB0", "--all --yes"),
        options=(yes_option, *_START),
    ),
}


def _made(name: str) -> click.Command:
    """The subcommand of a row: its options in the order in which they are told."""
    verb = _VERBS[name]

    def call(
        boards: tuple[str, ...],
        all_boards: bool,
        probe: bool,
        as_json: bool,
        yes: bool = True,
        dry_run: bool = False,
        asked: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> None:
        from ota_service.api.engine import Options
        from ota_service.cli.report import LOOKS, end

        known = given.keys() & Options.__annotations__.keys()
        options = {key: one for key in known if (one := given.pop(key)) is not None}
        firmware, more = _firmware(verb.firmware, **given)
        more |= asked or {}
        if "confirm" in more:
            more["rescue"] = more.pop("confirm")
        _quiet_logs()
        find: Callable[[Reply], Reply] = partial(meant, all_boards=all_boards, probe=probe)
        if not (boards or yes) and sys.stdin.isatty():
            told = asyncio.run(attached(find, options.get("state_dir")))
            click.confirm(f"Roll back {', '.join(told)}?", abort=True, err=True)
            more["boards"] = list(told)  # and none that has come since
            find = partial(_those, told)
        ask = "plan" if dry_run else {"rollback": "roll_back"}.get(name, name)
        calls = _Call(
            name,
            boards,
            lambda engine: getattr(engine, ask)(*firmware, probe=probe, **more),
            find,
            reads="plan" if dry_run else "boards" if name in LOOKS else "",
            as_json=as_json,
        )
        try:
            reply = asyncio.run(_run(calls, options))
        except OtaError as error:
            if error.code != "config-invalid":
                raise
            # What was given is wrong, not a machine's configuration.
            raise click.UsageError(error.message) from None
        reply = own_words(reply)
        said = _said_of(calls, reply, force="force" in more)
        end(name, reply, as_json=as_json, said=said)

    lines = "\n".join(f"    esp32-ota {name} {example}".rstrip() for example in verb.examples)
    call.__doc__ = f"{verb.does}\n{verb.more}{WHICH}\n    \b\n{lines}\n"
    own = (*_FIRMWARE, *verb.options) if verb.firmware else verb.options
    options = (boards_here, *own, baud_option, reset_option, state_dir_option, json_option)
    return click.command(name)(reduce(lambda made, option: option(made), reversed(options), call))


def _those(names: Mapping[str, str], status: Reply) -> Reply:
    """Boards that were agreed to. Raises click.UsageError where one has gone."""
    there = {name: board for name, board in status["boards"].items() if name in names}
    if len(there) < len(names):
        raise click.UsageError(f"{', '.join(names.keys() - there.keys())} is no longer attached.")
    return there


def _firmware(
    needs: str,
    url: str | None = None,
    file: Path | None = None,
    version: str | None = None,
    sha256: str | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The firmware that an order is about, as its arguments. Raises click.UsageError."""
    from ota_service.firmware.urls import check_url

    if not needs:
        return (), {}
    given = {"version": version, "sha256": sha256}
    if needs == "optional" and not (file or url or any(given.values())):
        return (None,), {}
    if (file is None) == (url is None):
        raise click.UsageError("Give either --url or --file.")
    if url is not None and not version and (needs != "url" or url.endswith(".json")):
        raise click.UsageError("Give --version, the tag that belongs to the firmware of --url.")
    if url is not None and (problem := check_url(url)):
        raise click.UsageError(f"--url {problem}.")
    return (file or url,), given


@dataclass(frozen=True, slots=True)
class _Call:
    """What was called: a verb for the boards at `ports`, or for those that `find` means of an
    engine's status. order: gives it to an engine. reads: under which key it replies for each board;
    "": it is a run."""

    verb: str
    ports: tuple[str, ...]
    order: Callable[[Engine], Order]
    find: Callable[[Reply], Reply]
    reads: str
    as_json: bool


async def _run(call: _Call, options: Mapping[str, Any]) -> Reply:
    """The run as the history has it, or the reply of a verb that has one. Raises OtaError."""
    from ota_service.api.engine import Engine

    console = err() if call.as_json or call.reads == "boards" else out()
    async with Engine(call.ports or None, **options) as engine:
        names = None
        if not call.ports:
            found = call.find(engine.status())
            names = [word for name, board in found.items() for word in (name, board["port"])]
            for name, board in found.items():
                if name != board["port"]:
                    console.print(Text(f"{name} is at {board['port']}."), soft_wrap=True)
        order = call.order(engine)

        def stop() -> None:
            every = "the board" if len(order.boards) == 1 else "every board"
            words = "This is finished first: it" if call.reads else "Stopping where that"
            console.print(f"{words} leaves {every} bootable...")
            stop_asking(options.get("reset"))
            order.cancel()

        with on_stop(stop) as stopped, Live(console, names, transient=True) as live:
            noted: set[str] = set()
            async for status in order:
                _note(console, order.boards, noted)
                if console.is_terminal or call.reads != "boards":
                    live.show(status)
        report = await order
        return _reply(call, console, engine.status(), report, stopped=stopped.is_set())


def _reply(call: _Call, console: Console, status: Reply, report: Report, *, stopped: bool) -> Reply:
    """What came of it, without ports that stayed closed, which are named; and what was not told
    before."""
    run = dict(report.record)
    closed = {} if call.ports else {
        name: str(board["port"])
        for name, board in status["boards"].items()
        if board["state"] == "candidate"
    }  # fmt: skip
    run["boards"] = {name: b for name, b in run["boards"].items() if name not in closed}
    for port in closed.values():
        err().print(Text(f"Not opened: {named(port)}; --probe opens it."), soft_wrap=True)
    if not call.reads:
        if stopped and report.outcome != "succeeded":
            _say_what_runs(console, status, run["boards"])
        return run
    if report.error is not None and not report.boards:
        raise report.error
    result = run.get("result", {})
    told = {n: b for n, b in in_order(result.get(call.reads, {})).items() if n not in closed}
    for name, planned in told.items():
        if call.reads == "plan" and (replaces := report.boards[name].replaces) is not None:
            planned["replaces"] = replaces
    return {"ok": True, "run": _short(run), **result, call.reads: told}


def _note(console: Console, boards: Mapping[str, BoardReport], noted: set[str]) -> None:
    """Whose firmware is replaced: once, and before it is shown that anything is written."""
    for name, board in boards.items():
        if board.replaces is not None and name not in noted:
            noted.add(name)
            project, by = board.replaces["project"], board.replaces["by"]
            which = "" if len(boards) == 1 else f" on {name}"
            console.print(Text(f'Note: replaces the project "{project}" by "{by}"{which}.'))


def _short(run: Reply) -> Reply:
    """A run as the status has it."""
    keys = ("id", "trigger", "started_at", "outcome", "finished_at", "manifest")
    return {key: run[key] for key in keys if key in run}


def _said_of(call: _Call, run: Reply, *, force: bool) -> dict[str, list[str]]:
    """What was done where it is less than one expects, of what succeeded, and to which boards."""
    said: dict[str, list[str]] = {}
    for name, board in run.get("boards", {}).items():
        done = "error" not in board and ("staged" in board or board.get("outcome") == "up_to_date")
        if done and (words := _less(call.verb, board, force=force)):
            said.setdefault(words, []).append(name)
    return said


def _less(verb: str, board: Reply, *, force: bool) -> str:
    from ota_service.update.plan import OTHER

    action = str(board.get("action", ""))
    if board.get("cancel"):
        return "Too late to stop: the update was finished."
    if force and action == "none":
        return "Nothing was written: the board runs this image already; its start was watched."
    if action == "none" and "staged" not in board:
        hint = " (--force writes anyway)" if verb == "update" and not force else ""
        has = board.get("to", board.get("attempted", ""))
        other = ", though it runs another image than this" if board.get("reason") == OTHER else ""
        return f'Nothing was written: the board has version "{has}" already{other}{hint}.'
    return {
        ("update", "switch"): "The image was in the other slot already: nothing was written to "
        "it, the board was only switched.",
        ("update", "record"): "The board ran the image already: only the version was stored.",
    }.get((verb, action), "")


def _say_what_runs(console: Console, status: Reply, boards: Mapping[str, Reply]) -> None:
    """Of boards that the stop kept from what was asked for."""
    for name in boards:
        board = status["boards"].get(name, {})
        running, who = board.get("running"), "The board" if len(boards) == 1 else name
        if boards[name].get("outcome") == "up_to_date":
            continue
        if running:
            app = f"{running.get('project', '')} {running.get('app_version', '')}".strip()
            console.print(Text(f"{who} is left bootable: it runs {running['slot']} ({app})."))
        elif not board.get("mac"):
            console.print(Text(f"{who} was not touched."))


def _quiet_logs() -> None:
    """The display says it all; ESP32_OTA_DEBUG=1 shows the log beside it."""
    if os.environ.get("ESP32_OTA_DEBUG"):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        return
    logger = logging.getLogger("ota_service")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


update, stage, activate, version, verify, rollback = map(_made, _VERBS)
