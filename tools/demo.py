# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo`: two simulated boards updated before your eyes, and one of them rolled back; then
three of them as one group, which goes back as a whole.

Real parts throughout: the module runs as viam-server would run it, downloads from a web server,
and flashes with esptool through a serial port into simulated boards with true wire times.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.cli.live import Live
from ota_service.cli.report import status_table
from tools.local_module import LocalModule, local_module

NAME = "OTA"
OLD, NEW, BAD, TOGETHER = "1.0.0", "1.1.0", "1.2.0", "2.0.0"
PROJECT = "micro-rdk-server"
IMAGE_BYTES = 400_000
STEP_TIMEOUT_S = 90.0
POLL_S = 0.1
LAYOUTS = {"left": "guide", "right": "micro-rdk-8mb"}
THIRD = "eyes"
PHASES = {
    "staging": "both firmwares are staged on their boards, where nothing can start them",
    "switching": "everything is in place: the boards are switched, step by step",
    "confirming": "all are switched: each has to show that it runs well",
    "going_back": "one of them failed: all that were switched go back",
}

Status = Mapping[str, Any]


class Shown(Exception):
    """The demonstration did not show what it promises."""


async def demo(console: Console) -> bool:
    """Run it; whether everything was seen that it promises."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="esp32-ota-demo-") as folder:
        place = Path(folder)
        sim = SimProcess(
            place / "boards",
            [
                SimBoard(layout, version=OLD, config={"timed": True})
                for layout in (*LAYOUTS.values(), "guide")
            ],
        )
        with sim:
            ports = {name: b.url for name, b in zip(LAYOUTS, sim.boards, strict=False)}
            console.print(f"[bold]Two simulated boards[/], running {PROJECT} {OLD}:")
            for name, layout in LAYOUTS.items():
                console.print(f"  {name:<6} partition table {layout!r}")
            async with _server() as url:
                console.print(f"[bold]A firmware server[/] at {url}")
                async with local_module(place, place / "module.log") as module:
                    console.print("[bold]The module[/], started as viam-server starts it\n")
                    seen = await _show(console, module, url, ports)
                    ports[THIRD] = sim.boards[2].url
                    seen = await _show_group(console, module, url, ports) and seen
    console.print(f"\nDone in {time.monotonic() - began_s:.0f} s.")
    if seen:
        console.print("With boards of your own: README.md, or [bold].venv/bin/esp32-ota[/].")
    return seen


async def _show(console: Console, module: LocalModule, url: str, ports: Mapping[str, str]) -> bool:
    boards = [{"name": name, "port": port} for name, port in ports.items()]
    config: dict[str, Any] = {"url": f"{url}/good.bin", "version": NEW, "boards": boards}
    console.print(f"[bold]1. Configured[/] with the url of {PROJECT} {NEW} and version {NEW}:")
    await module.configure(NAME, config)
    status = await _follow(console, module, {"left": "up_to_date", "right": "up_to_date"})
    good = all(_runs(status, name, "up_to_date", NEW) for name in ports)
    _say(console, good, f"both boards run {NEW} and hold version {NEW}")

    console.print(
        f"\n[bold]2. The board right is pinned[/] to {PROJECT} {BAD}, which panics 2 s after its "
        "start:"
    )
    boards[1] = {**boards[1], "url": f"{url}/panics.bin", "version": BAD}
    await module.reconfigure(NAME, {**config, "boards": boards})
    status = await _follow(console, module, {"left": "up_to_date", "right": "rolled_back"})
    back = _runs(status, "right", "rolled_back", NEW) and _runs(status, "left", "up_to_date", NEW)
    _say(console, back, f"right was rolled back to {NEW}, left was left alone")
    error = status["boards"].get("right", {}).get("error", {})
    if error:
        console.print(Text(f"   {error.get('code')}: {error.get('message')}", style="dim"))

    console.print("\n[bold]3. The status[/], asked through the Viam SDK's client:")
    client = module.client(NAME)
    table = status_table(await client.get_status(timeout=10.0), without=("read", "port"))
    console.print(Padding(table, (0, 0, 0, 3)))
    read = await client.do_command({"command": "version"}, timeout=60.0)
    stored = {name: board.get("version") for name, board in _dict(read["boards"]).items()}
    held = stored == dict.fromkeys(ports, NEW)
    told = ", ".join(f"{name} {version}" for name, version in sorted(stored.items()))
    _say(console, held, f"read back from both boards' NVS: {told}")
    return good and back and held


async def _show_group(
    console: Console, module: LocalModule, url: str, ports: Mapping[str, str]
) -> bool:
    """Two firmwares of one manifest on three boards that go together; one of them panics."""
    console.print(
        f"\n[bold]4. A manifest[/] of two firmwares {TOGETHER} that go together: motor for left "
        f"and right, and then vision for a third board, {THIRD}, which panics 2 s after its start:"
    )
    boards = [{"name": name, "port": port} for name, port in ports.items()]
    config = {"url": f"{url}/manifest.json", "version": TOGETHER, "boards": boards}
    await module.reconfigure(NAME, config)
    wanted = {"left": "outdated", "right": "outdated", THIRD: "rolled_back"}
    status = await _follow(console, module, wanted)
    console.print(Padding(status_table(status, without=("read", "port")), (0, 0, 0, 3)))
    before = {"left": NEW, "right": NEW, THIRD: OLD}
    back = all(_runs(status, name, wanted[name], version) for name, version in before.items())
    switched = [name for name in ("left", "right") if name in await _switched(module)]
    _say(console, switched == ["left", "right"], f"left and right had run {TOGETHER}")
    _say(console, back, "all three are back on the firmware and the version that they had")
    error = _dict(status.get("error", {}))
    stopped = error.get("code") == "stopped"
    if error:
        console.print(Text(f"   {error.get('message')}", style="dim"))
    return back and stopped and switched == ["left", "right"]


async def _switched(module: LocalModule) -> list[str]:
    """The boards that the last run has taken back with their group, as the history has it."""
    reply = await module.client(NAME).do_command({"command": "history", "limit": 1}, timeout=10.0)
    boards = _dict(_dict(next(iter(reply["runs"])))["boards"])
    return [name for name, board in boards.items() if _dict(board).get("by") == "its group"]


async def _follow(
    console: Console, module: LocalModule, wanted: Mapping[str, str]
) -> dict[str, Any]:
    """Show the boards' progress until their run is over, and their states are as wanted."""
    client = module.client(NAME)
    deadline_s, told = time.monotonic() + STEP_TIMEOUT_S, None
    with Live(console) as live:
        while True:
            status = dict(await client.get_status(timeout=10.0))
            phase = _dict(_dict(status.get("run", {})).get("manifest", {})).get("phase")
            if phase != told and phase in PHASES:
                console.print(f"   [bold]{PHASES[phase]}[/]")
            told = phase
            live.show(status)
            over = _dict(status.get("run", {})).get("outcome", "running") != "running"
            states = {name: b.get("state") for name, b in _dict(status["boards"]).items()}
            if over and all(states.get(name) == state for name, state in wanted.items()):
                return status
            if time.monotonic() > deadline_s:
                return status
            await asyncio.sleep(POLL_S)


def _runs(status: Status, name: str, state: str, version: str) -> bool:
    board = _dict(status["boards"]).get(name, {})
    running = board.get("running", {})
    return (board.get("state"), board.get("version"), running.get("app_version")) == (
        state,
        version,
        version,
    )


def _say(console: Console, seen: bool, what: str) -> None:
    console.print(f"   [green]✓[/] {what}" if seen else f"   [red]✗ not seen:[/] {what}")


def _dict(value: Any) -> dict[str, Any]:
    return dict(value)


@asynccontextmanager
async def _server() -> AsyncIterator[str]:
    """Serves both firmwares on loopback; yields the address."""
    runs, panics = Behaviour(), Behaviour(ending="panic", ending_after_s=2.0)
    files = {
        f"/{name}": build_app(PROJECT, version, size_bytes=size_bytes, seed=seed, behaviour=does)
        for seed, (name, version, does, size_bytes) in enumerate(
            (
                ("good.bin", NEW, runs, IMAGE_BYTES),
                ("panics.bin", BAD, panics, IMAGE_BYTES),
                ("motor.bin", TOGETHER, runs, IMAGE_BYTES // 2),
                ("vision.bin", TOGETHER, panics, IMAGE_BYTES // 2),
            ),
            1,
        )
    }
    images = {
        name: {"url": f"{name}.bin", "sha256": hashlib.sha256(files[f"/{name}.bin"]).hexdigest()}
        for name in ("motor", "vision")
    }
    manifest = {
        "format": 1,
        "version": TOGETHER,
        "images": images,
        "boards": {"left": "motor", "right": "motor", THIRD: "vision"},
        "order": [["motor"], ["vision"]],
        "together": [["motor", "vision"]],
    }
    files["/manifest.json"] = json.dumps(manifest).encode()

    def handler(data: bytes) -> Callable[[web.Request], Any]:
        async def serve(_: web.Request) -> web.Response:
            return web.Response(body=data, content_type="application/octet-stream")

        return serve

    app = web.Application()
    for path, data in files.items():
        app.router.add_get(path, handler(data))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def main() -> int:
    """The command; returns the exit code."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        return 0 if asyncio.run(demo(console)) else 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 1


if __name__ == "__main__":
    sys.exit(main())
