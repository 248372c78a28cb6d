# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota update PORT`: one board without Viam, by the same code as the service.

The fleet runs in this process with one board in its configuration. A person who names a port
means whatever board is attached there now, so what was learned of the port before, and what held
the board back, is forgotten first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from ota_service.cli.follow import follow_call, follow_run
from ota_service.cli.live import Live
from ota_service.cli.options import asked_options, baud_option, boot_options
from ota_service.cli.output import err, json_option, out, print_json
from ota_service.cli.ports import port_argument
from ota_service.cli.remedies import own_words
from ota_service.cli.report import plan_table, print_run
from ota_service.errors import OtaError

if TYPE_CHECKING:
    from ota_service.firmware.target import Target
    from ota_service.fleet.service import FleetService
    from ota_service.fleet.settings import Settings

SERVICE = "esp32-ota"
_PLAN_WAIT_S = 600.0


@click.command()
@port_argument
@click.option("--url", help="http or https address of the App Image.")
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
@click.option("--sha256", help="Refuse an image with another digest (64 hex digits).")
@asked_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read the board, say what would be done and why, and write nothing.",
)
@baud_option
@click.option(
    "--boot-expect",
    metavar="REGEX",
    help="What a line of the new app's log must match for the app to count as running.",
)
@boot_options
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False),
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
@json_option
def update(
    port: str,
    file: Path | None,
    url: str | None,
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
    if (file is None) == (url is None):
        raise click.UsageError("Give either --url or --file.")
    if url is not None and not options["version"]:
        raise click.UsageError("Give --version, the tag to be stored with the firmware of --url.")
    _quiet_logs()
    settings = _settings(port, url, file, options)
    console = err() if as_json else out()
    with _replaced(console) as replaced:
        reply = asyncio.run(_run(settings, console, replaced, asked=asked, dry_run=dry_run))
    reply = own_words(reply)
    for name, board in reply.get("plan" if dry_run else "boards", {}).items():
        board |= {"replaces": replaced.found[name]} if name in replaced.found else {}
    if as_json:
        print_json(reply)
    if dry_run:
        if not as_json:
            console.print(plan_table(reply["plan"]))
        return
    if not as_json:
        print_run(console, reply, words=said_of(reply, force="force" in asked))
    if reply.get("outcome") != "succeeded":
        raise SystemExit(1)


def said_of(run: Mapping[str, Any], *, force: bool = False) -> str:
    """What an update that succeeded did to the board, where it is less than one expects; "": all
    that an update does."""
    if run.get("outcome") != "succeeded":
        return ""
    board: Mapping[str, Any] = next(iter(dict(run.get("boards", {})).values()), {})
    if board.get("cancel"):
        return "Too late to stop: the update was finished."
    hint = "" if force else " (--force writes anyway)"
    if force and board.get("action") == "none":
        return "Nothing was written: the board runs this image already; its start was watched."
    return {
        "none": f'Nothing was written: the board has version "{board.get("to", "")}" '
        f"already{hint}.",
        "switch": "The image was in the other slot already: nothing was written to it, the board "
        "was only switched.",
        "record": "The board ran the image already: only the version was stored.",
    }.get(str(board.get("action", "")), "")


def board_name(port: str) -> str:
    """What the board is called in the display: its port's last part."""
    return port.rstrip("/").rpartition("/")[2] or port


def _settings(
    port: str, url: str | None, file: Path | None, options: Mapping[str, Any]
) -> Settings:
    """The configuration of a service that has this one board. Raises OtaError."""
    from ota_service.module.config import parse_config
    from ota_service.module.folders import default_cache_dir, default_state_dir

    cache_dir = default_cache_dir()
    target = _stocked(file, options, cache_dir) if file is not None else None
    given = {
        "url": url or "http://127.0.0.1/file",
        "version": target.version if target is not None else options["version"],
        "sha256": target.sha256 if target is not None else options["sha256"],
        "boards": [{"name": board_name(port)[:64], "port": _whole(port)}],
        "auto_update": False,
        "baud": options["baud"],
        "boot_timeout_s": options["boot_timeout"],
        "boot_stable_s": options["boot_stable"],
        "boot_expect": options["boot_expect"],
        "boot_restarts": options["boot_restarts"],
        "ca_file": str(Path(options["ca_file"]).absolute()) if options["ca_file"] else None,
    }
    state_dir = options["state_dir"] or default_state_dir()
    try:
        config = parse_config(given)
    except OtaError as error:  # what was given is wrong, not a machine's configuration
        raise click.UsageError(error.message) from None
    settings = config.settings(SERVICE, state_dir=state_dir, cache_dir=cache_dir)
    return replace(settings, target=target or settings.target, shares_state=True)


def _whole(port: str) -> str:
    """A port as it may be configured: urls as they are, devices by their whole path."""
    return port if "://" in port else os.path.abspath(port)


def _stocked(file: Path, options: Mapping[str, Any], cache_dir: Path) -> Target:
    """Check a file and lay it into the firmware cache, where its digest finds it without any
    download. Raises OtaError."""
    from ota_service.firmware.cache import Cache, Known
    from ota_service.firmware.check import check_firmware
    from ota_service.firmware.target import Target

    data = file.read_bytes()
    firmware = check_firmware(data, sha256=options["sha256"] or None)
    url = file.absolute().as_uri()
    version = options["version"] or firmware.image.descriptor.version
    cache = Cache(cache_dir)
    part = cache.part(len(data))
    try:
        part.append(data)
        sha256 = part.keep()
    finally:
        part.discard()
    cache.remember(url, Known(sha256, version))
    return Target(url, version, sha256)


# --- the run


class _Local:
    """Implements `follow.Service` for a fleet in this process."""

    def __init__(self, fleet: FleetService) -> None:
        self._fleet = fleet

    async def status(self) -> dict[str, Any]:
        return self._fleet.status()

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        return await self._fleet.command(verb, dict(arguments or {}))


async def _run(
    settings: Settings,
    console: Console,
    replaced: _Replaced,
    *,
    asked: dict[str, Any],
    dry_run: bool,
) -> dict[str, Any]:
    """The update, or its plan. Raises OtaError."""
    from ota_service.fleet import service as fleets

    fleet = await fleets.FleetService.open(settings)
    local = _Local(fleet)
    if "rescue" in asked:
        asked = {**asked, "boards": [entry.name for entry in settings.boards or ()]}
    try:
        await fleet.forget_ports()
        await local.command("release", {"all": True})
        with _stop_signals(local, console), Live(console, transient=True) as live:
            if dry_run:
                call = local.command("update", {**asked, "dry_run": True, "wait_s": _PLAN_WAIT_S})
                reply = await follow_call(local, live, call)
                _would_replace(replaced, await local.status(), reply["plan"])
                return reply
            reply = await local.command("update", asked)
            run = await follow_run(local, live, reply["run"]["id"])
        if run.get("outcome") == "cancelled":
            _say_what_runs(console, await local.status())
        return run
    finally:
        await fleet.close()
        await fleets.shutdown()


class _Replaced(logging.Handler):
    """Prints that another project's firmware is replaced; called before anything is written."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.found: dict[str, dict[str, str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """A record of anything else is not for here."""
        told = getattr(record, "replaced", None)
        if told is not None:
            self.say(*told)

    def say(self, name: str, before: str, after: str) -> None:
        """Once for a board, however often it is tried."""
        if name not in self.found:
            self.found[name] = {"project": before, "by": after}
            self._console.print(Text(f'Note: replaces the project "{before}" by "{after}".'))


def _would_replace(
    replaced: _Replaced, status: Mapping[str, Any], plan: Mapping[str, Mapping[str, Any]]
) -> None:
    """The same for a dry run, which has just read what the boards run."""
    after = str(dict(status.get("target", {})).get("project", ""))
    for name, board in dict(status.get("boards", {})).items():
        before = str(dict(board.get("running", {})).get("project", ""))
        writes = plan.get(name, {}).get("action") in ("write", "switch")
        if writes and before and after and before != after:
            replaced.say(name, before, after)


@contextmanager
def _replaced(console: Console) -> Iterator[_Replaced]:
    """Say which project is replaced by which, as soon as the fleet finds it out."""
    handler = _Replaced(console)
    logger = logging.getLogger("ota_service.fleet")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def _say_what_runs(console: Console, status: Mapping[str, Any]) -> None:
    for board in dict(status.get("boards", {})).values():
        running = board.get("running")
        if running:
            app = f"{running.get('project', '')} {running.get('app_version', '')}".strip()
            console.print(f"The board is left bootable: it runs {running['slot']} ({app}).")
        elif not board.get("mac"):
            console.print("The board was not touched.")


@contextmanager
def _stop_signals(local: _Local, console: Console) -> Iterator[None]:
    """At Ctrl-C or SIGTERM the run is cancelled, and its end is waited for."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()

    def stop() -> None:
        console.print("Stopping where that leaves the board bootable...")
        tasks.add(loop.create_task(local.command("cancel")))

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _quiet_logs() -> None:
    """The display says it all; ESP32_OTA_DEBUG=1 shows the log beside it."""
    if os.environ.get("ESP32_OTA_DEBUG"):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        return
    logger = logging.getLogger("ota_service")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    with contextlib.suppress(ImportError):
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
