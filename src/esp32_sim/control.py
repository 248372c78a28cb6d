# SPDX-License-Identifier: GPL-3.0-or-later
"""The test's end of the control channel: look into a board, break it, wait for events.

control = BoardControl(Path("/dir/of/board"))
control.cut_power_at(12, "torn")
event = control.wait_for("power-cut", timeout_s=10)
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from esp32_sim import wire
from esp32_sim.flash import CutMode


class ControlError(Exception):
    """The board refused a request, or a wait ran out of time."""


class BoardControl:
    """Synchronous, usable from several threads; each call opens a connection of its own."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def _request(self, do: str, patience_s: float = 30.0, /, **arguments: Any) -> Any:
        address = wire.read_address(self.directory, wire.CONTROL_FILE)
        with socket.create_connection((address["host"], address["port"]), patience_s) as link:
            hello = {"token": address["token"], "control": True}
            request = {"do": do, **arguments}
            link.sendall(json.dumps(hello).encode() + b"\n" + json.dumps(request).encode() + b"\n")
            with link.makefile("rb") as lines:
                lines.readline()
                line = lines.readline()
        if not line:
            raise ControlError(f"{do}: the board ended the connection")
        answer = json.loads(line)
        if not answer["ok"]:
            raise ControlError(f"{do}: {answer['error']}")
        return answer["value"]

    # --- looking

    def state(self) -> dict[str, Any]:
        """{"state", "app", "baud", "plugged", "events", "console", "counters", "flash_ops", ...}.

        state: off, reset, download, stub, bootloader, app or crashed. app: slot, offset,
        project, version of the app that runs, else empty. events, console: how much there is
        so far, to be given as `since`.
        """
        state: dict[str, Any] = self._request("state")
        return state

    def running(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """Wait until an app runs; its slot, offset, project and version. Raises ControlError.

        A board that was just started or restarted is on its way for a moment, and no app
        runs on it meanwhile.
        """
        app = self._request("running", timeout_s + 10, timeout_s=timeout_s)
        if app is None:
            raise ControlError(f"no app ran within {timeout_s} s, but: {self.state()['state']}")
        result: dict[str, Any] = app
        return result

    def counters(self) -> dict[str, int]:
        """Event name to how often it happened, and flash_ops."""
        state = self.state()
        return {**state["counters"], "flash_ops": state["flash_ops"]}

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """Events after number `since`, oldest first; see `events.History`."""
        events: list[dict[str, Any]] = self._request("events", since=since)
        return events

    def console(self, since: int = 0) -> str:
        """What boot ROM, bootloader and app have printed, whether or not anybody listened."""
        text: str = self._request("console", since=since)
        return text

    def wait_for(
        self, event: str, *, since: int = 0, timeout_s: float = 10.0, **match: Any
    ) -> dict[str, Any]:
        """Wait for the first event of that name after number `since`; raises ControlError."""
        found = self._request(
            "wait", timeout_s + 10, event=event, since=since, match=match, timeout_s=timeout_s
        )
        if found is None:
            raise ControlError(f"no event {event} {match or ''} within {timeout_s} s")
        result: dict[str, Any] = found
        return result

    def wait_for_text(self, text: str, *, since: int = 0, timeout_s: float = 10.0) -> int:
        """Wait until the console shows `text` at or after a position; returns the one behind."""
        found = self._request(
            "wait-text", timeout_s + 10, text=text, since=since, timeout_s=timeout_s
        )
        if found is None:
            raise ControlError(f"the console does not show {text!r} within {timeout_s} s")
        return int(found)

    # --- the flash

    def read_flash(self, address: int, size_bytes: int) -> bytes:
        """Bytes as they stand in the flash."""
        return bytes.fromhex(self._request("read-flash", address=address, size=size_bytes))

    def write_flash(self, address: int, data: bytes) -> None:
        """Overwrite bytes, without NOR rules, as a test's set-up."""
        self._request("write-flash", address=address, data=data.hex())

    def start_trace(self) -> None:
        """Record flash operations from now on."""
        self._request("trace", on=True)

    def stop_trace(self) -> list[dict[str, Any]]:
        """Stop recording; the operations: number, kind, address, size, data (hex), who, outcome."""
        self._request("trace", on=False)
        return self.trace()

    def trace(self) -> list[dict[str, Any]]:
        """The operations recorded so far."""
        ops: list[dict[str, Any]] = self._request("ops")
        return ops

    # --- faults

    def cut_power_at(self, op_from_now: int, mode: CutMode = "whole") -> None:
        """Lose power at the k-th flash operation from now; see `NorFlash.cut_power_at`."""
        self._request("cut-power", op=op_from_now, mode=mode)

    def cancel_cut(self) -> None:
        """Forget a cut that has not happened yet."""
        self._request("cancel-cut")

    def power_off(self) -> None:
        """Take power away now."""
        self._request("power", on=False)

    def power_on(self) -> None:
        """Apply power; the board boots."""
        self._request("power", on=True)

    def power_cycle(self) -> None:
        """Off and on."""
        self.power_off()
        self.power_on()

    def reset(self, *, boot_button: bool = False) -> None:
        """Press the EN button; boot_button: while IO0's is held, which enters download mode."""
        self._request("reset", boot_button=boot_button)

    def pull(self, *, en: bool = False, io0: bool = False) -> None:
        """Pull EN and IO0 low from now on, or let them go, as pins that are wired to them do."""
        self._request("pull", en=en, io0=io0)

    def set_faults(self, **faults: Any) -> None:
        """Switch faults: stuck_in_download, no_answer, garbage (booleans); to_board, from_board.

        The last two are dictionaries of rates per byte, 0 to 1: lose, double, change.
        """
        self._request("faults", **faults)

    def unplug(self, *, keep_power: bool = True) -> None:
        """The port vanishes; an open client gets errors. Most boards lose their power, too."""
        self._request("unplug", power=keep_power)

    def plug(self, directory: Path | None = None) -> str:
        """The port comes back, perhaps under another directory's name; returns its url."""
        url: str = self._request("plug", directory=str(directory) if directory else None)
        return url

    def configure(self, **changes: Any) -> None:
        """Change settings of the running board, such as mac or rollback; see `BoardConfig`."""
        self._request("configure", **changes)

    def protect_flash(self, level: int = 7, *, locked: bool = True, bottom: bool = False) -> None:
        """Set block-protect bits; locked: the status register cannot be written (WP pin)."""
        self._request("protect", level=level, locked=locked, bottom=bottom)

    def ignore_program(self, on: bool = True) -> None:
        """Let the flash ignore page program in silence."""
        self._request("ignore-program", on=on)
