# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the documentation's picture of the dashboard anew, with simulated boards.

./setup.sh --dev -- -m tools.dashboard_picture docs/images/dashboard.png
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.client.machine import Access, connect
from ota_service.dashboard.guard import Guard
from ota_service.dashboard.server import serving
from tests.support.browser import Browser
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SERVICE, Machine

PROJECT = "arm-controller"
PANICS = Behaviour(ending="panic", ending_after_s=2.0)


async def picture(out: Path, folder: Path) -> None:
    """One board up to date, one rolled back, one being written."""
    specs = [
        SimBoard(layout, app=build_app(PROJECT, "2.3.1"), version="2.3.1", config={"timed": True})
        for layout in ("guide", "micro-rdk", "micro-rdk-8mb")
    ]
    with SimProcess(folder / "boards", specs) as sim:
        async with (
            FirmwareServer.start() as server,
            Machine.start(folder, tcp=True) as machine,
            connect(Access(machine.address)) as service,
            serving(service, Guard("127.0.0.1"), "127.0.0.1", 0, label="localhost:8080") as url,
            Browser.start() as browser,
        ):
            good = server.put("/arm.bin", build_app(PROJECT, "2.4.0", size_bytes=1_000_000))
            bad = server.put("/rc.bin", build_app(PROJECT, "2.5.0", behaviour=PANICS))
            boards: list[dict[str, Any]] = [
                {"name": name, "port": board.url}
                for name, board in zip(("gripper", "lift", "mast"), sim.boards, strict=True)
            ]
            boards[2] |= {"url": bad, "version": "2.5.0"}
            attributes = {"url": good, "version": "2.4.0", "boards": boards, "auto_update": False}
            await machine.add(SERVICE, "OTA", attributes)
            first = {"boards": ["lift", "mast"], "wait_s": 90}
            await service.command("update", first, wait_s=90)
            await service.command("update", {"boards": ["gripper"]})
            page = await browser.open(url)
            await page.appear(width=1180, height=900)
            await page.until("document.querySelector('[data-board=gripper] progress')?.value > 40")
            await page.screenshot(out)


def main() -> int:
    """The command; returns the exit code."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/dashboard.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="esp32-") as folder:
        asyncio.run(picture(out, Path(folder)))
    print(f"{out}: {out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
