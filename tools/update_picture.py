# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the README's picture of an update in a terminal anew: a real one, of simulated boards.

./setup.sh --dev -- -m tools.update_picture docs/images/update.svg
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.cli.live import frame
from ota_service.cli.report import print_run
from ota_service.client.machine import Access, connect
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SERVICE, Machine

PROJECT = "arm-controller"
PANICS = Behaviour(ending="panic", ending_after_s=2.0)
BOARDS = ("gripper", "lift", "mast")
COLUMNS = 92
COMMAND = "esp32-ota remote update --address localhost:8080"
POLL_S = 0.1
# A picture that loads fonts from elsewhere is none of the repository's own.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S)


async def update(console: Console, folder: Path) -> None:
    """Two boards get their firmware, the third goes back; shown once in the middle, and its end."""
    specs = [
        SimBoard(layout, app=build_app(PROJECT, "2.3.1"), version="2.3.1", config={"timed": True})
        for layout in ("guide", "micro-rdk", "micro-rdk-8mb")
    ]
    with SimProcess(folder / "boards", specs) as sim:
        async with (
            FirmwareServer.start() as server,
            Machine.start(folder, tcp=True) as machine,
            connect(Access(machine.address)) as service,
        ):
            good = server.put("/arm.bin", build_app(PROJECT, "2.4.0", size_bytes=600_000))
            bad = server.put("/rc.bin", build_app(PROJECT, "2.5.0", behaviour=PANICS))
            boards: list[dict[str, Any]] = [
                {"name": name, "port": board.url}
                for name, board in zip(BOARDS, sim.boards, strict=True)
            ]
            boards[2] |= {"url": bad, "version": "2.5.0"}
            attributes = {"url": good, "version": "2.4.0", "boards": boards, "auto_update": False}
            await machine.add(SERVICE, "OTA", attributes)
            run = (await service.command("update", {}))["run"]["id"]
            status = await service.status()
            while dict(status["boards"]["gripper"].get("progress", {})).get("percent", 0) < 55:
                await asyncio.sleep(POLL_S)
                status = await service.status()
            console.print(f"[bold green]$[/] {COMMAND}")
            console.print(frame(status, columns=COLUMNS))
            console.print("[dim]   ...[/]\n")
            await service.command("update", {"wait_s": 120}, wait_s=120)  # joins it
            found = await service.command("history", {"id": run})
            print_run(console, found["runs"][0])


def main() -> int:
    """The command; returns the exit code."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/update.svg")
    console = Console(
        file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True, highlight=False
    )
    with tempfile.TemporaryDirectory(prefix="esp32-") as folder:
        asyncio.run(update(console, Path(folder)))
    svg = console.export_svg(
        title="esp32-ota", theme=SVG_EXPORT_THEME, code_format=FORMAT, unique_id="update"
    )
    out.write_text(svg + "\n", "utf-8")
    print(f"{out}: {out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
