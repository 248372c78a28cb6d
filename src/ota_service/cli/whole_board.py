# SPDX-License-Identifier: GPL-3.0-or-later
"""What is common to the commands that write a board as a whole: `flash` and `restore`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from ota_service.errors import OtaError
from ota_service.link.ports import shown
from ota_service.update.rewrite import WritePhase

_PHASES: dict[WritePhase, str] = {
    "connecting": "Connecting",
    "inspecting": "Looking at what the board has",
    "writing": "Writing",
    "verifying": "Reading back",
    "booting": "Watching the board start",
}


class Terminal:
    """Implements `WriteHooks` for a person: shows and asks. writing: has begun, and not ended."""

    def __init__(self, console: Console, port: str, command: str, *, ask: bool) -> None:
        self.console = console
        self._port = port
        self._command = command
        self._ask = ask and sys.stdin.isatty() and console.is_terminal
        self.writing = False

    def identified(self, mac: str) -> None:
        """The chip answered."""
        self.console.print(Text(f"The board {mac} answers."))

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
            Text(
                f"What it has (NVS, otadata, partition table) is kept in {folder}; "
                f"`esp32-ota restore {shown(self._port)} {folder}` puts it back."
            ),
            soft_wrap=True,
        )

    def phase(self, name: WritePhase) -> None:
        """A line each."""
        self.writing = name in ("writing", "verifying")
        self.console.print(f"{_PHASES[name]} ...")

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """It takes seconds."""
