# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota inspect PORT`: what is on one attached board."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from ota_service.cli.options import baud_option
from ota_service.cli.output import err, json_option, out, print_json
from ota_service.cli.ports import port_argument
from ota_service.cli.remedies import line_of, own_words
from ota_service.cli.show import size, table
from ota_service.client.failure import Failure
from ota_service.formats.partitions import TABLE_OFFSET

if TYPE_CHECKING:
    from ota_service.update.facts import BoardFacts
    from ota_service.update.inspect import App, Inspection
    from ota_service.update.plan import Plan
    from ota_service.update.session import Phase

OWNER = "esp32-ota inspect"

_EVIDENCE = {
    "journal": "by its digest",
    "image": "by its digest",
    "log": "by the bootloader's log",
    "verified": "by otadata and its whole image",
    "none": "",
}


@click.command()
@port_argument
@baud_option
@json_option
def inspect(port: str, baud: int, as_json: bool) -> None:
    """Show what is on one attached board. Restarts it.

    Prints its chip and MAC, partition table, otadata, the slots with their apps, and the version
    in NVS. PORT is a device such as /dev/ttyUSB0, or an address such as rfc2217://host:port.

    The board is restarted into download mode to be read, once more if it takes its own log to
    tell which slot runs, and at the end into its firmware. Nothing is written.
    """
    console = err()
    words = [f"Restarting the board at {_shown(port)} to read it; nothing is written."]
    with console.status("connecting") as spinner:

        def phase(name: str) -> None:
            if words:  # now that it is known to be a port, and open
                console.print(words.pop())
            spinner.update(name.replace("_", " "))

        found = look(port, baud, phase)
    if as_json:
        print_json({"port": _shown(port), **describe(found)})
    else:
        show_board(out(), port, found)


def look(port: str, baud: int, phase: Any) -> Inspection:
    """Read the board at `port`. Blocks for seconds, in the main thread. Raises OtaError, and
    Failure after Ctrl-C, when the board is back in its firmware."""
    from ota_service.link.at_port import at_port
    from ota_service.update import session

    hooks = _Hooks(phase)
    with _stopping(hooks), at_port(port, OWNER) as opened:
        job = session.Job("board", baud=baud, read_only=True)
        outcome = session.run(opened, job, hooks)
    if hooks.stopped:
        raise Failure("Stopped; the board was restarted into its firmware.")
    assert outcome.found is not None
    return outcome.found


@contextmanager
def _stopping(hooks: _Hooks) -> Iterator[None]:
    """At Ctrl-C the session ends where that leaves the board in its firmware; at the second one,
    at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if hooks.stopped:
            raise KeyboardInterrupt
        hooks.stopped = True
        click.echo("Stopping; the board is restarted into its firmware...", err=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Hooks:
    """Implements `session.Hooks` for a look: nothing is known, nothing is kept.

    stopped: a person wants no more of it.
    """

    def __init__(self, phase: Any) -> None:
        self._phase = phase
        self.stopped = False

    def identified(self, mac: str) -> BoardFacts:
        from ota_service.update.facts import BoardFacts

        return BoardFacts()

    def inspected(self, found: Inspection) -> None: ...

    def planned(self, made: Plan) -> None: ...

    def phase(self, name: Phase) -> None:
        self._phase(name)

    def progress(self, bytes_done: int, bytes_total: int) -> None: ...

    def restarting(self, reason: str) -> None: ...

    def cancelled(self) -> bool:
        return self.stopped

    def carried(self, baud: int) -> None:
        """Nothing is kept of it."""

    def stopping(self) -> bool:
        return False


# --- as values


def describe(found: Inspection) -> dict[str, Any]:
    """An inspection as JSON; what is not known is left out."""
    chip, problem = found.chip, found.problem or found.running.why
    told: dict[str, Any] = {
        "mac": chip.mac,
        "chip": {
            "name": chip.name,
            "revision": revision_text(chip.revision),
            "flash_bytes": chip.flash_bytes,
            "flash_encrypted": chip.flash_encrypted,
            "secure_boot": chip.secure_boot,
            "secure_download": chip.secure_download,
        },
        "version": found.version if found.nvs is not None else None,
        "running": _running(found),
        "table_offset": found.table.offset if found.table is not None else None,
        "partitions": [
            {
                "label": part.label,
                "kind": part.kind,
                "offset": part.offset,
                "size_bytes": part.size_bytes,
                "encrypted": part.encrypted,
                "read_only": part.read_only,
            }
            for part in (found.table.partitions if found.table is not None else ())
        ],
        "otadata": _otadata(found),
        "apps": [_app(found, app) for app in found.apps],
        "problem": own_words(problem.to_dict()) if problem is not None else None,
    }
    return {key: value for key, value in told.items() if value is not None}


def _running(found: Inspection) -> dict[str, Any] | None:
    running = found.running
    if running.partition is None:
        return None
    told: dict[str, Any] = {"slot": running.partition.name, "evidence": running.evidence}
    app = found.running_app
    if app is not None and app.descriptor is not None:
        told |= {"project": app.descriptor.project, "app_version": app.descriptor.version}
    return told


def _otadata(found: Inspection) -> dict[str, Any] | None:
    otadata, table = found.otadata, found.table
    if otadata is None or table is None:
        return None
    slots = table.ota_slots
    entries = []
    for index, entry in enumerate(otadata.entries):
        told: dict[str, Any] = {"sector": index, "written": entry.written, "blank": entry.blank}
        if entry.written:
            told |= {
                "seq": entry.seq,
                "state": entry.state_name,
                "slot": slots[entry.slot_index(len(slots))].name if slots else None,
            }
        entries.append({key: value for key, value in told.items() if value is not None})
    named = otadata.slot_index(len(slots)) if slots else None
    told = {
        "entries": entries,
        "active": otadata.active,
        "names": slots[named].name if named is not None else None,
        "pending": found.pending,
    }
    return {key: value for key, value in told.items() if value is not None}


def _app(found: Inspection, app: App) -> dict[str, Any]:
    about = app.descriptor
    told: dict[str, Any] = {
        "slot": app.partition.name,
        "offset": app.partition.offset,
        "size_bytes": app.partition.size_bytes,
        "running": found.running.partition == app.partition,
        "empty": about is None and not app.head.strip(b"\xff"),
    }
    if about is not None:
        told |= {
            "project": about.project,
            "app_version": about.version,
            "idf_version": about.idf_version,
            "built": f"{about.date} {about.time}".strip(),
            "secure_version": about.secure_version,
        }
    return told


def revision_text(revision: int) -> str:
    """A full chip revision as Espressif writes it: 301 is "v3.1"."""
    return f"v{revision // 100}.{revision % 100}"


# --- for people


def show_board(console: Console, port: str, found: Inspection) -> None:
    """An inspection for people."""
    chip, told = found.chip, describe(found)
    flash = size(chip.flash_bytes) if chip.flash_bytes is not None else "unknown size"
    _field(console, "port", _shown(port))
    _field(console, "chip", f"{chip.name} {revision_text(chip.revision)}, {flash} of flash")
    _field(console, "MAC", chip.mac)
    locks = [
        name
        for name, on in (
            ("flash encryption", chip.flash_encrypted),
            ("secure boot", chip.secure_boot),
            ("secure download mode", chip.secure_download),
        )
        if on
    ]
    if locks:
        _field(console, "security", ", ".join(locks))
    running = told.get("running")
    if running is not None:
        app = f"{running.get('project', '')} {running.get('app_version', '')}".strip()
        how = _EVIDENCE[running["evidence"]]
        _field(console, "running", f"{running['slot']}: {app or 'no app descriptor'} ({how})")
    if "version" in told:
        _field(console, "version", f"{told['version'] or 'none'} (VIAM_NS/OTA_VERSION in NVS)")
    if found.table is not None:
        if found.table.offset != TABLE_OFFSET:
            _field(console, "table", f"at {found.table.offset:#x}, not at {TABLE_OFFSET:#x}")
        console.print()
        console.print(_partitions(told))
    if "otadata" in told:
        console.print()
        _show_otadata(console, told["otadata"])
    problem = found.problem or found.running.why
    if problem is not None:
        console.print()
        console.print(Text.assemble(("It cannot be updated: ", "bold red"), line_of(problem)))


def _field(console: Console, name: str, value: str) -> None:
    console.print(Text.assemble((f"{name:<9}", "bold"), value))


def _partitions(told: dict[str, Any]) -> Any:
    apps = {app["offset"]: app for app in told["apps"]}
    made = table("partition", "kind", "offset", "size", "app", right=("offset", "size"))
    for part in told["partitions"]:
        app = apps.get(part["offset"])
        text = Text("")
        if app is not None and "project" in app:
            text = Text(f"{app['project']} {app['app_version']}")
        elif app is not None:
            text = Text("empty" if app["empty"] else "no app descriptor", style="dim")
        if app is not None and app["running"]:
            text.append("  running", style="green")
        made.add_row(
            part["label"], part["kind"], f"{part['offset']:#x}", size(part["size_bytes"]), text
        )
    return made


def _show_otadata(console: Console, told: dict[str, Any]) -> None:
    for entry in told["entries"]:
        active = told.get("active") == entry["sector"]
        words = "blank" if entry["blank"] else "damaged"
        if entry["written"]:
            words = f"seq {entry['seq']}, {entry['state']}, names {entry.get('slot', '?')}"
        line = Text.assemble((f"otadata {entry['sector']}  ", "bold"), words)
        if active:
            line.append("  decides", style="green")
        console.print(line)
    if told["pending"]:
        console.print("An app waits for its confirmation; it got its time again.")


def _shown(port: str) -> str:
    from ota_service.link.ports import shown

    return shown(port)
