# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota remote ...`: the OTA service on a machine, through the Viam SDK."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

from ota_service.cli.live import Live
from ota_service.cli.options import asked_options, dry_run_option, yes_option
from ota_service.cli.output import Command, err, json_option, out, print_json, say
from ota_service.cli.report import end, history_table, print_run, print_status
from ota_service.client.failure import Failure
from ota_service.client.machine import DEFAULT_NAME, Access, Machine, connect

READ_WAIT_S = 120.0
POLL_S = 0.25
_KEY_WARNING = (
    "Better set VIAM_API_KEY and VIAM_API_KEY_ID: everyone on this computer can see a command "
    "line, and shells keep it."
)

_WATCHED_ON = "No longer watching; a run in progress goes on. `esp32-ota remote cancel` stops it."

Result = TypeVar("Result")
Reply = dict[str, Any]
Asks = Callable[[Machine], Coroutine[Any, Any, Any]]


def access_options(function: Command, *, required: bool = True) -> Command:
    """The options that say which service is meant, as the one argument `access`; None where none
    has to be named and none is."""

    @click.option(
        "--address",
        required=required,
        metavar="HOST:PORT",
        envvar="ESP32_OTA_ADDRESS",
        help="Of the machine: a viam-server's, or its address in the Viam app.",
    )
    @click.option(
        "--name",
        default=DEFAULT_NAME,
        show_default=True,
        help="Of the service in the machine's configuration.",
    )
    @click.option("--api-key", metavar="KEY", envvar="VIAM_API_KEY", help=_KEY_WARNING)
    @click.option(
        "--api-key-id",
        metavar="ID",
        envvar="VIAM_API_KEY_ID",
        help="The key's id. Without a key the connection is not encrypted.",
    )
    @wraps(function)
    def with_access(
        address: str | None,
        name: str,
        api_key: str | None,
        api_key_id: str | None,
        **rest: Any,
    ) -> Any:
        if not address:
            return function(access=None, **rest)
        access = Access(address, name, api_key or None, api_key_id or None)
        check_access(access)
        return function(access=access, **rest)

    return with_access  # type: ignore[return-value]


def check_access(access: Access) -> None:
    """Refuse half a key before anything is asked. Raises click.UsageError."""
    from uuid import UUID

    if (access.api_key is None) != (access.api_key_id is None):
        raise click.UsageError("A key needs both VIAM_API_KEY and VIAM_API_KEY_ID.")
    if access.api_key_id is not None:
        try:
            UUID(access.api_key_id)
        except ValueError:
            raise click.UsageError("VIAM_API_KEY_ID is no UUID: is it the key itself?") from None


def ask(access: Access, asks: Asks, *, interrupted: str = "") -> Any:
    """Connect, ask, disconnect. interrupted: what to say at Ctrl-C."""

    async def go() -> Any:
        async with connect(access) as machine:
            return await asks(machine)

    try:
        return asyncio.run(go())
    except KeyboardInterrupt:
        if not interrupted:
            raise
        click.echo(interrupted, err=True)
        raise SystemExit(1) from None


boards_argument = click.argument("boards", nargs=-1, metavar="[BOARD]...")
no_wait_option = click.option("--no-wait", is_flag=True, help="Start it and do not watch.")
wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    default=READ_WAIT_S,
    show_default=True,
    metavar="S",
    help="Seconds to wait for the reply.",
)


def _named(boards: Sequence[str]) -> list[str] | None:
    return list(boards) or None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def remote() -> None:
    """Command and watch the OTA service of a machine, through the Viam SDK.

    Boards are named as in the service's configuration, or by MAC or port; without names all
    boards are meant.

    The machine's API key and its id are read from VIAM_API_KEY and VIAM_API_KEY_ID. Do not write
    them on the command line: everyone on this computer can see it, and shells keep it. Without a
    key the connection is not encrypted; use that for a viam-server on this machine or in a
    network that you trust.

    \b
    esp32-ota remote status --address localhost:8080
    esp32-ota remote update --address my-robot-main.abc123.viam.cloud kitchen cellar
    """


def verb(function: Command) -> click.Command:
    """A subcommand that asks a machine; a `boards` in its arguments are those that are meant."""
    asked = json_option(access_options(function))
    if "boards" in function.__annotations__:
        asked = boards_argument(asked)
    command = remote.command(short_help=(function.__doc__ or "").splitlines()[0])(asked)
    # What it alone has comes first in its help.
    common = ("as_json", "address", "name", "api_key", "api_key_id")
    command.params.sort(key=lambda param: param.name in common)
    return command


# --- runs


@verb
@asked_options
@click.option("--probe", is_flag=True, help="Also open ports that are not known to be an ESP32's.")
@dry_run_option
@no_wait_option
@wait_option
def update(
    access: Access,
    boards: tuple[str, ...],
    asked: Reply,
    probe: bool,
    dry_run: bool,
    no_wait: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Bring boards to the configured firmware, and watch. Restarts them.

    The update goes on on the machine whatever happens here; Ctrl-C stops the watching alone.
    Exit code 0 only if every board ended up to date.
    """
    arguments: Reply = {"boards": _named(boards), "probe": probe or None, **asked}
    if dry_run:
        arguments["dry_run"] = True
        reply = ask(access, lambda machine: _read(machine, "update", arguments, "plan", wait_s))
        end("update", reply, as_json=as_json)
        return

    _run(access, "update", arguments, no_wait, as_json)


@verb
@no_wait_option
def stage(access: Access, boards: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Write the configured firmware into spare slots, for `activate`. Restarts the boards.

    Each board is down while it is written and keeps its firmware; what stood in its spare slot,
    usually the firmware before, is overwritten. Exit code 0 only if every board has it.
    """
    _run(access, "stage", {"boards": _named(boards)}, no_wait, as_json)


@verb
@no_wait_option
def activate(access: Access, boards: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Switch boards to what is staged on them, and watch. Restarts them.

    Exit code 0 only if every board ended up to date.
    """
    _run(access, "activate", {"boards": _named(boards)}, no_wait, as_json)


def _run(access: Access, verb: str, arguments: Reply, no_wait: bool, as_json: bool) -> None:
    """Start a run, and watch it to its end."""

    async def asks(machine: Machine) -> Reply:
        reply = await machine.command(verb, arguments)
        if no_wait:
            return reply
        console = err() if as_json else out()
        if reply.get("joined"):
            console.print("A run for this firmware is in progress; watching it.")
        with Live(console, arguments["boards"], transient=True) as live:
            return await _follow(machine, live, str(reply["run"]["id"]))

    reply = ask(access, asks, interrupted=_WATCHED_ON)
    if not no_wait:
        end(verb, reply, as_json=as_json)
    elif as_json:
        print_json(reply)
    else:
        say(f"Run {reply['run']['id']} began.")


@verb
@click.option("--follow", is_flag=True, help="Go on with the next runs, until Ctrl-C.")
def watch(access: Access, boards: tuple[str, ...], follow: bool, as_json: bool) -> None:
    """Watch the run in progress to its end; without one, show the last one's. Restarts nothing."""
    console = err() if as_json else out()

    async def asks(machine: Machine) -> Reply:
        with Live(console, _named(boards), transient=True) as live:
            while True:
                status = await machine.status()
                live.show(status)
                run = dict(status.get("run", {}))
                if not follow or run.get("outcome") == "running":
                    break
                await asyncio.sleep(POLL_S)
            return await _follow(machine, live, str(run["id"])) if run else {}

    while True:
        run = ask(access, asks, interrupted=_WATCHED_ON)
        if run and not follow:
            end("update", run, as_json=as_json)
        elif as_json:
            print_json(run)
        elif run:
            print_run(console, run)
        else:
            click.echo("There was no run yet.")
        if not follow:
            return


async def _follow(machine: Machine, live: Live, run_id: str) -> Reply:
    """Show the boards until this run is over; the run, as the history has it."""
    while True:
        status = await machine.status()
        live.show(status)
        run = dict(status.get("run", {}))
        # Another run may have begun since, and boards of ours may still be at work.
        if run.get("id") != run_id or run.get("outcome") != "running":
            found = await _run_of(machine, run_id)
            if found is None or found.get("outcome") != "running":
                return found or run
        await asyncio.sleep(POLL_S)


async def _run_of(machine: Machine, run_id: str) -> Reply | None:
    """A run of the history by its id."""
    reply = await machine.command("history", {"id": run_id})
    return next((dict(run) for run in reply["runs"]), None)


@verb
def cancel(access: Access, boards: tuple[str, ...], as_json: bool) -> None:
    """Stop the run where that leaves every board bootable. Restarts those being written."""
    reply = ask(access, lambda machine: machine.command("cancel", {"boards": _named(boards)}))
    if as_json:
        print_json(reply)
    elif reply.get("cancelled"):
        click.echo("Cancelled; boards before the switch keep their firmware.")
    else:
        click.echo("Nothing was in progress.")


@verb
@click.option("--all", "all_boards", is_flag=True, help="Every board.")
@click.option("--stopped", is_flag=True, help="Instead, a firmware that was stopped for all.")
def release(
    access: Access, boards: tuple[str, ...], all_boards: bool, stopped: bool, as_json: bool
) -> None:
    """Let boards that were set aside, rolled back, wrong or not ours be taken up again."""
    if [bool(boards), all_boards, stopped].count(True) != 1:
        raise click.UsageError("Name boards, or give --all or --stopped.")
    arguments = {"boards": _named(boards), "all": all_boards, "stopped": stopped}
    reply: Reply = ask(access, lambda machine: machine.command("release", arguments))
    if as_json:
        print_json(reply)
    elif stopped:
        click.echo("The firmware may be tried again.")
    else:
        say(f"Released: {', '.join(map(str, reply.get('released', []))) or 'no board'}.")


# --- what is known


@verb
def status(access: Access, as_json: bool) -> None:
    """Show everything that the service knows. Restarts nothing."""
    reply = ask(access, lambda machine: machine.status())
    if as_json:
        print_json(reply)
    else:
        print_status(out(), reply)


@verb
@click.option("--board", help="Only runs of this board: its name, MAC or port.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many runs at most.",
)
@click.option("--id", "run_id", help="Show one run: what it did to each board.")
def history(
    access: Access, board: str | None, limit: int, run_id: str | None, as_json: bool
) -> None:
    """Show what runs did, newest first. Restarts nothing."""

    async def asks(machine: Machine) -> list[Reply]:
        if run_id is None:
            reply = await machine.command("history", {"board": board, "limit": limit})
            return [dict(run) for run in reply["runs"]]
        found = await _run_of(machine, run_id)
        if found is None:
            raise Failure(
                f"The history has no run {run_id}.",
                "`esp32-ota remote history` lists them.",
                code="not-found",
            )
        return [found]

    runs = ask(access, asks)
    if as_json:
        print_json({"ok": True, "runs": runs})
    elif run_id is not None:
        print_run(out(), runs[0])
    elif runs:
        out().print(history_table(runs))
    else:
        click.echo("There was no run yet.")


# --- what is asked of the boards


@verb
@wait_option
def version(access: Access, boards: tuple[str, ...], wait_s: float, as_json: bool) -> None:
    """Read the version in the boards' NVS, now. Restarts them."""

    _look(access, "version", boards, wait_s, as_json)


@verb
@wait_option
def verify(access: Access, boards: tuple[str, ...], wait_s: float, as_json: bool) -> None:
    """Check whether the boards run the target image, by its digest. Restarts them.

    Exit code 0 only if all of them do.
    """
    _look(access, "verify", boards, wait_s, as_json)


@verb
@yes_option
@wait_option
def rollback(
    access: Access, boards: tuple[str, ...], yes: bool, wait_s: float, as_json: bool
) -> None:
    """Go back to the firmware in the other slot. Restarts the boards.

    A board that was rolled back is held until its target changes or `release`.
    """
    if not boards and not yes and sys.stdin.isatty():
        click.confirm("Roll back all boards of this service?", abort=True, err=True)
    _look(access, "rollback", boards, wait_s, as_json)


def _look(access: Access, verb: str, boards: Sequence[str], wait_s: float, as_json: bool) -> None:
    """A verb that replies for each board."""
    arguments = {"boards": _named(boards)}
    reply: Reply = ask(access, lambda machine: _read(machine, verb, arguments, "boards", wait_s))
    end(verb, reply, as_json=as_json)


async def _read(machine: Machine, verb: str, arguments: Reply, key: str, wait_s: float) -> Reply:
    """A verb that replies when the boards have answered; shows meanwhile what happens to them."""
    call = machine.command(verb, {**arguments, "wait_s": wait_s}, wait_s=wait_s)
    console = err()
    if console.is_terminal:
        with Live(console, arguments.get("boards"), transient=True) as live:
            reply = await _shown_meanwhile(machine, live, call)
    else:
        reply = await call
    if dict(reply.get("run", {})).get("outcome") == "running":
        run_id = reply["run"]["id"]
        raise Failure(
            f"The boards have not all answered within {wait_s:.0f} s; the reading goes on.",
            f"`esp32-ota remote history --id {run_id}` shows its end; --wait waits longer.",
            code="not-finished",
        )
    if not reply.get(key):
        reply[key] = {}
    return reply


async def _shown_meanwhile(machine: Machine, live: Live, call: Awaitable[Result]) -> Result:
    """Show the boards until a command replies; its reply."""
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            live.show(await machine.status())
            await asyncio.wait({task}, timeout=POLL_S)
        return task.result()
    finally:
        task.cancel()
