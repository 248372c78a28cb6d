# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator's process: N boards until it is stopped.

    python -m ota_service.sim --boards 2 --dir /tmp/boards --times off

prints one port url a line, flushed, before anything else, and runs until SIGTERM or SIGINT.
Boards keep their flash in their directories: what exists there is used again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import selectors
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ota_service.sim.config import FLASH_FILE, BoardConfig
from ota_service.sim.factory import create_board, make_flash
from ota_service.sim.host import BoardHost
from ota_service.sim.images import build_app
from ota_service.sim.layouts import LAYOUTS, OTA_LAYOUTS
from ota_service.sim.loader_stub import known_stubs

SCHEME = "esp32sim://"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="esp32-ota sim", description="Simulated ESP32 boards, until stopped."
    )
    parser.add_argument("--boards", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--dir", type=Path, help="where their files go; needed without --board-dir")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="partition table of all boards")
    parser.add_argument("--times", choices=("on", "off"), default="on", help="real times")
    parser.add_argument("--flash", type=Path, help="a flash dump to start from")
    parser.add_argument(
        "--bridge-latency-ms", type=float, default=1.0, help="of the USB bridge: 1 or 16"
    )
    parser.add_argument("--seed", type=int, default=0, help="of MACs, contents and faults")
    parser.add_argument(
        "--board-dir", type=Path, action="append", default=[], help="serve a prepared board"
    )
    parser.add_argument(
        "--boards-from-stdin",
        action="store_true",
        help="serve the prepared boards named on stdin, a line each, and end when it closes",
    )
    options = parser.parse_args(argv)
    if not options.board_dir and not options.boards_from_stdin and options.dir is None:
        parser.error("--dir is needed")
    return options


def prepare(options: argparse.Namespace) -> list[Path]:
    """Create the boards that do not exist yet; their directories."""
    if options.board_dir or options.boards_from_stdin:
        return [Path(os.path.abspath(directory)) for directory in options.board_dir]
    directories: list[Path] = []
    for index in range(options.boards):
        directory = Path(os.path.abspath(options.dir)) / f"board-{index + 1}"
        directories.append(directory)
        seed = options.seed + index
        if not (directory / FLASH_FILE).exists():
            if options.flash is not None:
                flash: bytes | bytearray = whole_chip(options.flash.read_bytes())
            else:
                layout = options.layout or OTA_LAYOUTS[index % len(OTA_LAYOUTS)]
                flash = make_flash(
                    layout, app=build_app(version="1.0.0", seed=options.seed), seed=seed
                )
            create_board(directory, flash, board_config(options, index))
        else:
            board_config(options, index).save(directory)
    return directories


def whole_chip(dump: bytes) -> bytes:
    """A dump filled up to the size of a chip: 1, 2, 4, 8 or 16 MiB."""
    size = 1 << 20
    while size < len(dump):
        size *= 2
    return dump.ljust(size, b"\xff")


def board_config(options: argparse.Namespace, index: int) -> BoardConfig:
    """Settings of board number `index`; MACs differ, and differ with the seed."""
    number = (options.seed * 256 + index + 1) & 0xFFFFFF
    return BoardConfig(
        mac=":".join(f"{byte:02x}" for byte in b"\x24\x0a\xc4" + number.to_bytes(3, "big")),
        timed=options.times == "on",
        bridge_latency_ms=options.bridge_latency_ms,
        seed=options.seed + index,
    )


async def serve(directories: Sequence[Path], *, boards_from_stdin: bool = False) -> None:
    """Serve boards until SIGTERM or SIGINT, or until stdin closes where boards come from it."""
    loop = asyncio.get_running_loop()
    # Reading them takes longer than esptool waits for the start of a stub (0.2 s) under load.
    known_stubs()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    known_stubs()  # now, not when a board's time runs
    hosts: list[BoardHost] = []

    async def start(directory: Path) -> None:
        host = BoardHost(directory)
        await host.start()
        hosts.append(host)

    def announce(directory: Path) -> None:
        print(f"{SCHEME}{directory}", flush=True)

    async def start_more() -> None:
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := (await lines.readline()).decode().rstrip("\n"):
            await start(Path(line))
            announce(Path(line))
        stop.set()

    more: asyncio.Task[None] | None = None
    try:
        for directory in directories:
            await start(directory)
        for directory in directories:
            announce(directory)
        if boards_from_stdin:
            more = asyncio.create_task(start_more())
        await stop.wait()
        if more is not None and more.done():
            more.result()
    finally:
        if more is not None:
            more.cancel()
        for host in hosts:
            await host.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulator; returns the exit code."""
    options = parse(argv)
    try:
        directories = prepare(options)
    except (OSError, ValueError) as error:
        print(f"esp32-ota sim: {error}", file=sys.stderr)
        return 1
    # epoll rounds timers up to whole milliseconds; select does not.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with contextlib.closing(loop):
        loop.run_until_complete(serve(directories, boards_from_stdin=options.boards_from_stdin))
    return 0
