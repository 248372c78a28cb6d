# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator's process: N boards until it is stopped.

    python -m esp32_sim --boards 2 --dir /tmp/boards --times off

prints one port url a line, flushed, before anything else, and runs until SIGTERM or SIGINT.
Boards keep their flash in their directories: what exists there is used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esp32_sim.chips import CHIP_NAMES, CHIPS, ESP32
from esp32_sim.claim import Claimed, claim
from esp32_sim.config import FLASH_FILE, BoardConfig
from esp32_sim.factory import create_board, make_flash
from esp32_sim.host import BoardHost
from esp32_sim.images import build_app
from esp32_sim.layouts import OTA_LAYOUTS
from esp32_sim.loader_stub import known_stubs

SCHEME = "esp32sim://"
LARGEST_DUMP_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What is simulated.

    dir: where the boards' files go; boards: how many; layout: the partition table of all, by
    default those with OTA slots in turn; chip: of those that are new; flash: a dump to start
    from; seed: of MACs, contents and faults. board_dir: prepared boards instead;
    boards_from_stdin: their folders come a line each on stdin, and its end is the simulator's.
    """

    boards: int = 1
    dir: Path | None = None
    layout: str | None = None
    chip: str | None = None
    times: str = "on"
    flash: Path | None = None
    bridge_latency_ms: float = 1.0
    seed: int = 0
    board_dir: Sequence[Path] = ()
    boards_from_stdin: bool = False

    @property
    def prepared(self) -> bool:
        """Whether the boards were made by somebody else."""
        return bool(self.board_dir) or self.boards_from_stdin


class Refused(Exception):
    """The boards cannot be simulated: another process does."""


def prepare(options: Options) -> list[Path]:
    """Claim the boards, and create those that do not exist yet; their directories.

    Raises Refused, OSError, and ValueError for a flash that cannot be made, or a board that has
    another chip.
    """
    if options.prepared:
        directories = [Path(os.path.abspath(directory)) for directory in options.board_dir]
        for directory in directories:
            _claim(directory, directory)
        return directories
    assert options.dir is not None
    folder = Path(os.path.abspath(options.dir))
    directories = [folder / f"board-{index + 1}" for index in range(options.boards)]
    # All of them first: nothing of another simulator's boards may change.
    for directory in directories:
        _claim(directory, folder)
    chip = options.chip or ESP32.name
    for index, directory in enumerate(directories):
        seed = options.seed + index
        if not (directory / FLASH_FILE).exists():
            if options.flash is not None:
                flash: bytes | bytearray = whole_chip(_dump(options.flash))
            else:
                layout = options.layout or OTA_LAYOUTS[index % len(OTA_LAYOUTS)]
                app = build_app(version="1.0.0", seed=options.seed, chip=chip)
                flash = make_flash(layout, app=app, seed=seed, chip=chip)
            create_board(directory, flash, board_config(options, index, chip))
        else:
            kept = BoardConfig.load(directory).chip
            if options.chip not in (None, kept):
                raise ValueError(f"the board in {directory} is an {CHIPS[kept].title} already")
            board_config(options, index, kept).save(directory)
    return directories


def _claim(directory: Path, named: Path) -> None:
    """Hold a board's folder until this process ends. named: what the refusal calls it."""
    try:
        claim(directory)
    except Claimed as error:
        raise Refused(
            f"The boards in {named} are simulated already, by process {error.pid}."
        ) from None


def _dump(path: Path) -> bytes:
    """A flash dump: a device or a FIFO is no file that ends."""
    if not path.is_file() or path.stat().st_size > LARGEST_DUMP_BYTES:
        raise Refused(f"{path} is no file of 32 MiB or less.")
    return path.read_bytes()


def whole_chip(dump: bytes) -> bytes:
    """A dump filled up to the size of a chip: 1, 2, 4, 8, 16 or 32 MiB."""
    size = 1 << 20
    while size < len(dump):
        size *= 2
    return dump.ljust(size, b"\xff")


def board_config(options: Options, index: int, chip: str) -> BoardConfig:
    """Settings of board number `index`; MACs differ, and differ with the seed."""
    number = (options.seed * 256 + index + 1) & 0xFFFFFF
    return BoardConfig(
        chip=chip,
        mac=":".join(f"{byte:02x}" for byte in b"\x24\x0a\xc4" + number.to_bytes(3, "big")),
        timed=options.times == "on",
        bridge_latency_ms=options.bridge_latency_ms,
        seed=options.seed + index,
    )


async def serve(directories: Sequence[Path], *, boards_from_stdin: bool = False) -> None:
    """Serve boards until SIGTERM or SIGINT, or until stdin closes where boards come from it."""
    loop = asyncio.get_running_loop()
    # Reading them takes longer than esptool waits for the start of a stub (0.2 s) under load.
    for chip in CHIP_NAMES:
        known_stubs(chip)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
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
            _claim(Path(line), Path(line))
            await start(Path(line))
            announce(Path(line))

    more: asyncio.Task[None] | None = None
    try:
        for directory in directories:
            await start(directory)
        for directory in directories:
            announce(directory)
        if boards_from_stdin:
            more = asyncio.create_task(start_more())
            more.add_done_callback(lambda _: stop.set())  # also where it failed
        await stop.wait()
        if more is not None and more.done():
            more.result()
    finally:
        if more is not None:
            more.cancel()
        for host in hosts:
            await host.stop()


def run(options: Options) -> None:
    """Simulate until stopped. Raises as `prepare`."""
    directories = prepare(options)
    # epoll rounds timers up to whole milliseconds; select does not.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with contextlib.closing(loop):
        loop.run_until_complete(serve(directories, boards_from_stdin=options.boards_from_stdin))
