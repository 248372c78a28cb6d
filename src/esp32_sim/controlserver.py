# SPDX-License-Identifier: GPL-3.0-or-later
"""The board's end of the control channel: JSON lines, one answer for each request."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esp32_sim.config import from_json

if TYPE_CHECKING:
    from esp32_sim.host import BoardHost


class Control:
    """Serves one control connection of one board."""

    def __init__(self, host: BoardHost) -> None:
        self.host = host
        self.board = host.board

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the connection ends."""
        writer.write(b'{"ok": true}\n')
        while line := await reader.readline():
            request = json.loads(line)
            try:
                handler = getattr(self, "do_" + str(request.pop("do")).replace("-", "_"))
                answer = handler(**request)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                reply = {"ok": True, "value": answer}
            except (TypeError, ValueError, AttributeError, OSError) as error:
                reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()

    # --- looking

    def do_state(self) -> dict[str, Any]:
        """Everything about the present."""
        board = self.board
        return {
            "state": board.state,
            "app": board.app,
            "baud": board.chip_baud,
            "plugged": str(self.host.port_directory) if self.host.port_directory else None,
            "events": len(board.history.events),
            "console": board.history.console_dropped + len(board.history.console),
            "counters": board.history.counters,
            "flash_ops": board.flash.op_count,
            "flash_programs": board.flash.program_count,
            "flash_erases": board.flash.erase_count,
            "flash_ops_by": board.ops_by,
            "mac": board.config.mac,
        }

    async def do_running(self, timeout_s: float) -> dict[str, Any] | None:
        """The app that runs, waiting for one."""
        board = self.board
        found: dict[str, Any] | None = await board.history.wait(
            lambda: board.app if board.state == "app" else None, timeout_s
        )
        return found

    def do_events(self, since: int = 0) -> list[dict[str, Any]]:
        """Events after number `since`."""
        return self.board.history.events[since:]

    def do_console(self, since: int = 0) -> str:
        """Console output from position `since` on."""
        history = self.board.history
        start = max(0, since - history.console_dropped)
        return history.console[start:].decode("utf-8", "replace")

    async def do_wait(
        self, event: str, since: int, match: dict[str, Any], timeout_s: float
    ) -> dict[str, Any] | None:
        """The first matching event after `since`, waiting for it."""
        history = self.board.history
        found: dict[str, Any] | None = await history.wait(
            lambda: history.find(event, since, match), timeout_s
        )
        return found

    async def do_wait_text(self, text: str, since: int, timeout_s: float) -> int | None:
        """The console position behind `text`, waiting for it."""
        history = self.board.history
        found: int | None = await history.wait(
            lambda: history.find_text(text.encode(), since), timeout_s
        )
        return found

    # --- the flash

    def do_read_flash(self, address: int, size: int) -> str:
        """Bytes, in hex."""
        return self.board.flash.read(address, size).hex()

    def do_write_flash(self, address: int, data: str) -> None:
        """Overwrite bytes (hex) without any rule."""
        self.board.flash.poke(address, bytes.fromhex(data))

    def do_trace(self, on: bool) -> None:
        """Start (empty) or stop recording flash operations."""
        self.board.flash.tracing = on
        if on:
            self.board.flash.trace.clear()

    def do_ops(self) -> list[dict[str, Any]]:
        """The recorded flash operations."""
        return [op.to_json() for op in self.board.flash.trace]

    # --- faults

    def do_cut_power(self, op: int, mode: str) -> None:
        """Lose power at the op-th flash operation from now."""
        if mode not in ("before", "whole", "torn", "torn-prefix", "torn-bits"):
            raise ValueError(f"no cut is called {mode!r}")
        self.board.flash.cut_power_at(op, mode)  # type: ignore[arg-type]

    def do_cancel_cut(self) -> None:
        """Forget a cut that has not happened yet."""
        self.board.flash.cancel_cut()

    def do_power(self, on: bool) -> None:
        """Switch power."""
        if on:
            self.board.power_on()
        else:
            self.board.power_off()

    def do_reset(self, boot_button: bool = False) -> None:
        """Press the EN button."""
        self.board.reset_button(boot_button=boot_button)

    def do_pull(self, en: bool, io0: bool) -> None:
        """Pull EN and IO0 low, or let them go, as pins of another computer do."""
        self.board.pull(en=en, io0=io0)

    def do_faults(self, **faults: Any) -> None:
        """Switch faults on or off; see `faults.Faults`."""
        self.board.faults.update(faults)

    def do_unplug(self, power: bool = True) -> None:
        """The port vanishes; power: whether the board keeps it."""
        self.host.pull()
        if not power:
            self.board.power_off()

    def do_plug(self, directory: str | None = None) -> str:
        """Plug in again, perhaps at another place; returns the port's url."""
        where = Path(directory) if directory else self.host.directory
        self.board.power_on()
        self.host.place = where
        self.host.plug(where)
        return f"esp32sim://{where}"

    def do_configure(self, **changes: Any) -> None:
        """Change settings (`config.BoardConfig`) of the running board."""
        self.board.set_config(**from_json(changes))
        if self.board.config.usb == "bridge":
            self.host.bridged()

    def do_protect(self, level: int, locked: bool, bottom: bool = False) -> None:
        """Set the block-protect bits: 0 nothing, 7 all, else 1/64 to 1/2 of the flash."""
        flash = self.board.flash
        flash.status1 = (level & 7) << 2 | (0x20 if bottom else 0) | (0x80 if locked else 0)
        flash.status_locked = locked

    def do_ignore_program(self, on: bool) -> None:
        """Let the flash ignore page program in silence."""
        self.board.flash.ignore_program = on
