# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota rollout ...`: a firmware for many machines, in waves, through Viam's app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ota_service.cli.output import (
    Command,
    clean,
    err,
    files,
    json_option,
    on_stop,
    out,
    print_line,
    say,
    table,
    time_text,
)
from ota_service.cli.remote import check_access
from ota_service.client.failure import Failure
from ota_service.client.machine import Access
from ota_service.firmware.files import TEXT_BYTES, read_file
from ota_service.rollout import change, policy
from ota_service.rollout.cloud import DEFAULT_URL, Cloud, Credentials, is_here
from ota_service.rollout.drive import Drive, clock_s, obey, recall_all
from ota_service.rollout.plan import Plan, PlanError, read_plan
from ota_service.rollout.state import LOOK_S, Order, Record, Rollout, StateFile, Verb
from ota_service.rollout.survey import survey

EXIT_HALTED, EXIT_UNFINISHED = 1, 3
WATCH_S = 0.5
ANSWER_S = 90.0
"""How long the process that drives a rollout may take to follow an order: it may just be dialling
machines that do not answer."""

_HINTS = {
    "paused": "`resume` lets it go on.",
    "halted": "`resume` looks again at what failed; `undo` goes back.",
    "aborted": "It has ended. To begin anew, take its state file away.",
}

_NOT_DRIVEN = "No process drives it: `start` goes on with it."

STYLES = {
    "good": "green",
    "waiting": "cyan",
    "writing": "cyan",
    "failed": "red",
    "conflict": "red",
    "offline": "yellow",
    "undone": "yellow",
    "pending": "dim",
    "running": "cyan",
    "paused": "yellow",
    "halted": "red",
    "aborted": "red",
    "done": "green",
}

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
plan_argument = click.argument("path", metavar="PLAN", type=_FILE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def rollout() -> None:
    """Bring a firmware to many machines, in waves, through Viam's app.

    PLAN is a file, YAML or JSON: which machines, which firmware, which waves. What happens is
    kept beside it (PLAN.state.json), so that `start` goes on where it was, and `undo` knows what
    each machine had. Keep that file, and to yourself: configurations may hold secrets.

    \b
    esp32-ota rollout plan release.yaml      what would be changed; touches nothing
    esp32-ota rollout start release.yaml     wave by wave, until it is done or halted
    esp32-ota rollout status release.yaml --watch

    Keys come from VIAM_API_KEY and VIAM_API_KEY_ID, or from --key-file. Exit codes: 0 good,
    1 halted or failed, 2 wrong usage, 3 not finished yet.
    """


def _credentials(function: Command) -> Command:
    @click.option(
        "--key-file",
        type=_FILE,
        help="A file with the lines VIAM_API_KEY=.. and VIAM_API_KEY_ID=..; default: the "
        "environment.",
    )
    @click.option("--app-url", envvar="VIAM_APP_URL", default=DEFAULT_URL, hidden=True)
    @wraps(function)
    def with_credentials(key_file: Path | None, app_url: str, **rest: Any) -> Any:
        return function(credentials=_read_key(key_file, app_url), **rest)

    return with_credentials  # type: ignore[return-value]


def _read_key(file: Path | None, url: str) -> Credentials:
    """Raises click.UsageError."""
    import os

    given: Mapping[str, str] = os.environ
    if file is not None:
        lines = read_file(file, TEXT_BYTES).decode("utf-8", "replace").splitlines()
        pairs = (line.removeprefix("export ").partition("=") for line in lines)
        given = {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}
    key, key_id = given.get("VIAM_API_KEY"), given.get("VIAM_API_KEY_ID")
    if not key or not key_id:
        place = f"{file} has" if file else "The environment has"
        raise click.UsageError(
            f"{place} no VIAM_API_KEY and VIAM_API_KEY_ID: an API key of the organisation, "
            "location or machines."
        )
    check_access(Access("", "", key, key_id))
    if url.startswith("http://") and not is_here(url):
        raise click.UsageError("A key is sent by https alone, but for this computer.")
    return Credentials(key_id, key, url)


def _read(path: Path) -> tuple[Plan, StateFile]:
    try:
        return read_plan(path), StateFile(path)
    except PlanError as error:
        raise click.UsageError(f"{path}: {error}") from None


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    try:
        with files():
            return asyncio.run(call)
    except PlanError as error:
        raise click.UsageError(str(error)) from None


# --- plan


@rollout.command(short_help="Show what would be changed, machine by machine. Touches nothing.")
@plan_argument
@json_option
@_credentials
def plan(path: Path, credentials: Credentials, as_json: bool) -> None:
    """Show what would be changed on each machine, as a diff, wave by wave. Touches nothing.

    Exit code 1 where a machine cannot be changed as PLAN says.
    """
    wanted, _ = _read(path)

    async def look() -> tuple[Rollout, list[str]]:
        with closing(Cloud(credentials)) as cloud:
            return await survey(wanted, cloud, clock_s())

    found, notes = _run(look())
    if as_json:
        print_line(_survey_json(found, notes))
    else:
        _print_survey(found, notes)
    if any(record.values is None for record in found.machines):
        raise SystemExit(1)


def _survey_json(found: Rollout, notes: list[str]) -> dict[str, Any]:
    return {
        "target": _shown(found.target),
        "waves": [[record.name for record in its] for _, its in _by_wave(found)],
        "notes": notes,
        "machines": {
            record.name: {
                "wave": record.wave + 1,
                **(
                    {"unfit": record.why}
                    if record.values is None
                    else {"diff": change.diff(record.values, found.target)}
                ),
                **({"note": record.note} if record.note else {}),
            }
            for record in found.machines
        },
    }


def _print_survey(found: Rollout, notes: list[str]) -> None:
    console = out()
    for number, its in _by_wave(found):
        console.print(Text(f"Wave {number + 1}: {_machines(len(its))}", style="bold"))
        for record in its:
            unfit = record.values is None
            lines = [] if unfit else change.diff(record.values or {}, found.target)
            words = record.why or ("" if lines else "has the target already")
            shown = Text(f"  {record.name}").append(f"  {words}", "red" if unfit else "dim")
            console.print(shown, soft_wrap=True)
            for line in lines:
                style = "red" if line.startswith("-") else "green"
                console.print(Text(f"    {line}", style=style), soft_wrap=True)
            if record.note:
                console.print(Text(f"    {record.note}", style="yellow"), soft_wrap=True)
    for note in notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)


# --- start


@rollout.command(short_help="Begin it, or go on with it.")
@plan_argument
@click.option("--once", is_flag=True, help="Go as far as it goes without waiting, and exit: for "
              "cron and CI. Exit code 3: not finished yet.")  # fmt: skip
@json_option
@_credentials
def start(path: Path, credentials: Credentials, once: bool, as_json: bool) -> None:
    """Begin the rollout, or go on with it, until it is done or halted.

    Ctrl-C stops this process alone; nothing is lost, and `start` goes on. Exit code 0: every
    machine is good, or was set aside because it is offline; 1: halted, or a machine was left out.
    """
    wanted, file = _read(path)
    shown = _Shown(as_json)

    async def go() -> Rollout:
        with closing(Cloud(credentials)) as cloud, file.owned():
            state = await _begun(wanted, file, cloud)
            if state.state in _HINTS:
                say(_HINTS[state.state], err=True)
                return state
            drive = Drive(wanted, cloud, file, state, shown.tell)
            work = asyncio.ensure_future(drive.run(once=once))
            with shown.live(lambda: state), on_stop(work.cancel):
                try:
                    await work
                except asyncio.CancelledError:
                    say("Stopped; `start` goes on where it was.", err=True)
            return state

    state: Rollout = _run(go())
    shown.end(state)
    raise SystemExit(_exit_code(state))


async def _begun(wanted: Plan, file: StateFile, cloud: Cloud) -> Rollout:
    """The state on disk, or a new one. Raises Failure where they are of two rollouts."""
    state = file.load()
    if state is not None and state.digest == wanted.digest:
        return state
    if state is not None and state.state not in ("done", "aborted"):
        raise click.UsageError(
            f"The plan has changed since its rollout began, which is {state.state}. Put it back as "
            "it was (soak, max_failed and timeout may change), or `abort` first."
        )
    begun, notes = await survey(wanted, cloud, clock_s())
    for note in notes:
        say(note, err=True)
    if state is not None:
        file.put_aside(state)
    file.save(begun)
    return begun


def _exit_code(state: Rollout) -> int:
    if state.state in ("running", "paused"):
        return EXIT_UNFINISHED
    left_out = any(record.state == "conflict" for record in state.machines)
    return EXIT_HALTED if state.state != "done" or left_out else 0


# --- status


@rollout.command(short_help="Show how far it is. Asks no machine.")
@plan_argument
@click.option("--watch", is_flag=True, help="Go on showing it until it is done or halted.")
@json_option
def status(path: Path, watch: bool, as_json: bool) -> None:
    """Show the waves and machines as the process that drives the rollout has last seen them.

    Exit code 1 where the rollout is halted.
    """
    _, file = _read(path)
    with files():
        state = _loaded(file)
        shown = _Shown(as_json)
        if watch:
            with shown.live(lambda: state):
                while state.state in ("running", "paused"):
                    shown.changed(state)
                    time.sleep(WATCH_S)
                    state = _loaded(file)
        waits = state.state == "running" and not file.is_driven
    shown.end(state)
    if waits and not as_json:
        say(_NOT_DRIVEN, err=True)
    if state.state == "halted":
        raise SystemExit(EXIT_HALTED)


def _loaded(file: StateFile) -> Rollout:
    state = file.load()
    if state is None:
        raise Failure(
            "There is no rollout of this plan yet.", "`start` begins it.", code="not-found"
        )
    return state


# --- orders


def _order(path: Path, verb: Verb, as_json: bool) -> None:
    """Reach the process that drives it, or do it here where there is none (any more)."""
    _, file = _read(path)
    order, until = Order(verb, uuid4().hex), time.monotonic() + ANSWER_S
    with files():
        state = _loaded(file)
        follows = (state.state, verb) in policy.ROLLOUT
        while follows and order.key not in state.answered:
            try:
                with file.owned(looks=0):
                    state = _loaded(file)
                    obey(state, order, clock_s())
                    file.save(state)
            except Failure as error:
                if error.code != "state-busy":
                    raise
                if time.monotonic() > until:
                    raise Failure(
                        "The process that drives the rollout has not answered yet.",
                        "It follows the order as soon as it can; `status` shows it.",
                        code="not-finished",
                    ) from None
                file.ask(order)
                time.sleep(LOOK_S)
                state = _loaded(file)
        if not (follows and state.answered[order.key]):
            raise Failure(f"The rollout is {state.state}: it cannot {verb}.", code="refused")
        waits = state.state == "running" and not file.is_driven
    if as_json:
        print_line(state_json(state))
    else:
        say(f"The rollout is {state.state}.")
        if waits:
            say(_NOT_DRIVEN, err=True)


@rollout.command(short_help="Write to no further machine until `resume`.")
@plan_argument
@json_option
def pause(path: Path, as_json: bool) -> None:
    """Write to no further machine until `resume`; those that were written are still watched."""
    _order(path, "pause", as_json)


@rollout.command(short_help="Go on after a pause, or after a halt.")
@plan_argument
@json_option
def resume(path: Path, as_json: bool) -> None:
    """Let a rollout go on that was paused, or that has halted.

    Machines that have failed, or that were changed by others, are looked at again; where they
    still fail, it halts again. Without a process that drives it, `start` goes on with it.
    """
    _order(path, "resume", as_json)


@rollout.command(short_help="Change nothing further, for good.")
@plan_argument
@json_option
def abort(path: Path, as_json: bool) -> None:
    """End the rollout. Nothing is changed any more, and nothing back: `undo` does that."""
    _order(path, "abort", as_json)


@rollout.command(short_help="Give each machine that was changed what it had before.")
@plan_argument
@json_option
@_credentials
def undo(path: Path, credentials: Credentials, as_json: bool) -> None:
    """Give each machine that was changed what it had before, and nothing else; ends the rollout.

    A machine that somebody else has changed since is left alone, and told. Without PLAN.state.json
    the values come from the machines' histories in Viam's app. Exit code 1 where a machine was
    left alone.
    """
    wanted, file = _read(path)
    shown = _Shown(as_json)

    async def go() -> Rollout:
        with closing(Cloud(credentials)) as cloud, file.owned():
            state = file.load()
            if state is None:
                state, _ = await survey(wanted, cloud, clock_s())
                await recall_all(wanted, cloud, state)
            elif state.digest != wanted.digest:
                raise click.UsageError(
                    "The plan is not the one that was rolled out. Put it back as it was, or "
                    "take its state file away."
                )
            await Drive(wanted, cloud, file, state, shown.tell).undo()
            return state

    state: Rollout = _run(go())
    shown.end(state)
    # What could not be changed in the first place has nothing to get back.
    if any(record.state == "conflict" and record.values for record in state.machines):
        raise SystemExit(1)


# --- showing


class _Shown:
    """Shows a rollout while it goes on: JSON lines; bars on a terminal; else plain lines."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = err() if as_json else out()
        self._bars = self._console.is_terminal and not self._console.is_dumb_terminal
        self._said: Any = None

    def tell(self, event: Mapping[str, Any]) -> None:
        """Something has happened."""
        if self._as_json:
            print_line({key: value for key, value in event.items() if value not in ("", [])})
        elif not self._bars:
            self._console.print(Text(_sentence(event)), soft_wrap=True)

    def changed(self, state: Rollout) -> None:
        """As it is now, where nobody tells what happens."""
        now = state_json(state)
        if now != self._said:
            self._said = now
            if self._as_json:
                print_line(now)
            elif not self._bars:
                self._console.print(Text(summary(state)), soft_wrap=True)

    def live(self, now: Callable[[], Rollout]) -> Any:
        """Bars, for the length of a block, where there is a terminal; now: as it is by then."""
        if not self._bars or self._as_json:
            return nullcontext()

        def drawn() -> RenderableType:
            size = self._console.size
            return frame(now(), columns=size.width, lines=size.height - 1)

        return Live(console=self._console, refresh_per_second=4, get_renderable=drawn,
                    transient=True)  # fmt: skip

    def end(self, state: Rollout) -> None:
        """The whole of it, at the end."""
        if self._as_json:
            print_line(state_json(state))
        else:
            print_state(self._console, state)


def _sentence(event: Mapping[str, Any]) -> str:
    why = f": {event['why']}" if event.get("why") else ""
    match event["event"]:
        case "machine":
            return f"{event['machine']} is {event['state']}{why}"
        case "wave":
            machines = event.get("machines")
            return f"Wave {event['wave']} has {event['state']}" + (
                f": {', '.join(machines)}" if machines else ""
            )
        case "waits":
            return str(event["why"])
        case _:
            return f"The rollout is {event['state']}{why}"


def _shown(values: change.Values) -> dict[str, str]:
    return {key: change.shown(value) for key, value in values.items() if value}


def state_json(state: Rollout) -> dict[str, Any]:
    """The state for programs, without the machines' configurations."""
    made: dict[str, Any] = {
        "state": state.state,
        "target": _shown(state.target),
        "started_at": f"{datetime.fromtimestamp(state.started_at, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "wave": state.begun,
        "waves": [
            {"machines": len(its), "state": _wave_state(state, number),
             **{to: sum(record.state == to for record in its) for to in policy.MACHINE_STATES}}
            for number, its in _by_wave(state)
        ],
        "machines": {record.name: _record_json(record) for record in state.machines},
    }  # fmt: skip
    return {**made, "why": state.why} if state.why else made


def _record_json(record: Record) -> dict[str, Any]:
    known = record.known.leave if record.known is not None else ()
    values = {
        "state": record.state,
        "wave": record.wave + 1,
        "part": record.part,
        "why": record.why,
        "board": record.board,
        "boot_log": record.log,
        "boards_good": record.good,
        "boards_total": record.total,
        "boards_not_counted": list(known),
    }
    return {key: value for key, value in values.items() if value not in ("", [])}


def _by_wave(state: Rollout) -> list[tuple[int, list[Record]]]:
    return [(number, state.of_wave(number)) for number in range(len(state.waves))]


def _wave_state(state: Rollout, number: int) -> str:
    wave = state.waves[number]
    if wave.began_at is None:
        return "pending"
    if wave.passed_at is not None:
        return "passed"
    return "soaking" if wave.settled_at is not None else "running"


def _machines(count: int) -> str:
    return "1 machine" if count == 1 else f"{count} machines"


def _counts(records: list[Record]) -> str:
    counts = {to: sum(record.state == to for record in records) for to in policy.MACHINE_STATES}
    return ", ".join(f"{count} {to}" for to, count in counts.items() if count)


def summary(state: Rollout) -> str:
    """The rollout in one line."""
    why = f": {state.why}" if state.why else ""
    where = f"wave {state.begun} of {len(state.waves)}"
    return f"The rollout is {state.state}{why} ({where}; {_counts(state.machines)})"


def frame(state: Rollout, *, columns: int = 80, lines: int = 24) -> RenderableType:
    """What a terminal of this size shows: a bar a wave, then the machines that matter now."""
    width = min(30, max(8, columns - 60))
    waves = Table.grid(padding=(0, 1, 0, 0))
    for number, its in _by_wave(state):
        done = sum(record.state in ("good", "undone") for record in its)
        bar = _bar(done, max(1, len(its)), width)
        what = _wave_state(state, number)
        settled_at = state.waves[number].settled_at
        if what == "soaking" and settled_at is not None:
            what = f"soaking for {time_text(max(0.0, clock_s() - settled_at))}"
        waves.add_row(Text(f"wave {number + 1}"), bar, Text(f"{what}; {_counts(its)}"))
    urgent = {"failed": 0, "conflict": 1, "writing": 2, "waiting": 3, "offline": 4, "good": 5}
    begun = [r for r in state.machines if r.wave < state.begun]
    begun.sort(key=lambda record: urgent.get(record.state, 6))
    room = max(1, lines - len(state.waves) - 2)
    machines = Table.grid(padding=(0, 1, 0, 0))
    for record in begun[:room]:
        bar = _bar(record.percent, 100, width)
        words = Text(record.why, no_wrap=True, overflow="ellipsis")
        machines.add_row(Text(record.name), bar, _styled(record.state), words)
    last = Text(summary(state), style=STYLES[state.state], no_wrap=True, overflow="ellipsis")
    return Group(waves, machines, last)


def _bar(done: float, whole: float, width: int) -> ProgressBar:
    return ProgressBar(
        total=whole, completed=done, width=width, complete_style="cyan", finished_style="green"
    )


def _styled(word: str) -> Text:
    return Text(word, style=STYLES.get(word, ""))


def print_state(console: Console, state: Rollout) -> None:
    """The table at the end."""
    made = table("machine", "wave", "state", "boards", "why", right=("wave",))
    for record in sorted(state.machines, key=lambda record: record.wave):
        boards = f"{record.good} of {record.total} good" if record.total else ""
        made.add_row(record.name, str(record.wave + 1), _styled(record.state), boards, record.why)
    console.print(made)
    for record in state.machines:
        if record.known is not None and record.known.leave:
            names = ", ".join(record.known.leave)
            console.print(Text(f"{record.name}: not counted, as before: {names}"), soft_wrap=True)
        if record.log:
            console.print(Text(f"{record.name}: {record.board} printed at last:"), soft_wrap=True)
            for line in record.log:
                console.print(Text(f"   {clean(line)}"), soft_wrap=True)
    console.print(Text(summary(state), style=STYLES[state.state]), soft_wrap=True)
