# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated boards in a process of their own, behind ports: the whole link, esptool included."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from esp32_sim.config import FLASH_FILE
from esp32_sim.control import ControlError
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.link.serial_port import open_port
from ota_service.update import session
from ota_service.update.session import Job, Outcome
from tests.formats.nvs_firmware import Rules
from tests.prove.board import Notes, Op, as_op
from tests.prove.bootloader import Bootloader
from tests.prove.cells import Cells
from tests.prove.nvs_init import PLAYED

FLASH_BYTES = 8 << 20
CONFIRM_WAIT_S = 2.0

T = TypeVar("T")
R = TypeVar("R")


class RealBoard:
    """A simulated board over its port; implements `board.Board`."""

    def __init__(self, running: RunningBoard) -> None:
        self.running = running
        self.control = running.control
        self.file = running.dir / FLASH_FILE
        self._events = 0
        self._erased = 0

    def load(self, flash: bytes, bootloader: Bootloader, **config: Any) -> None:
        """Another flash and bootloader; the board is then in download mode, never booted.
        config: further settings of the board."""
        control = self.control
        control.power_off()
        with self.file.open("r+b") as file:
            file.write(flash)
        control.configure(**bootloader.config(), **config)
        control.set_faults(stuck_in_download=True)
        self._erased = control.counters().get("nvs-erased", 0)
        since = control.state()["events"]
        control.power_on()
        control.wait_for("download", since=since)
        control.set_faults(stuck_in_download=False)
        self.plugged()

    def plugged(self) -> None:
        """Wait for the port, which a board's own USB takes along when its power goes."""
        since = 0
        while self.control.state()["plugged"] is None:
            since = self.control.wait_for("plugged", since=since)["number"]

    @property
    def cells(self) -> Cells:
        """The flash as it is now."""
        return Cells(self.file.read_bytes())

    @property
    def nvs_erased(self) -> bool:
        """Whether an app has erased NVS since the flash was loaded."""
        return self.control.counters().get("nvs-erased", 0) > self._erased

    @property
    def rules(self) -> tuple[Rules, ...]:
        """Of the app that is played here, since each session ends with its start."""
        return (PLAYED,)

    def session(self, job: Job, notes: Notes) -> Outcome:
        """One session over the port."""
        self._events = self.control.state()["events"]
        port = open_port(self.running.url)
        try:
            return session.run(port, job, notes)
        finally:
            port.close()

    def time_passes(self) -> None:
        """Wait for the app to confirm itself, if it is one that does."""
        try:
            self.control.wait_for("confirmed", since=self._events, timeout_s=CONFIRM_WAIT_S)
        except ControlError:
            return

    def record(self, job: Job, notes: Notes) -> tuple[Outcome, list[Op]]:
        """One session, and every operation that reached the flash in it."""
        marks: list[tuple[int, str]] = []

        def mark(phase: str) -> None:
            marks.append((self.control.state()["flash_ops"], phase))

        notes.on_phase = mark
        self.control.start_trace()
        outcome = self.session(job, notes)
        if job.confirm is None and outcome.end == "awaiting_confirmation":
            self.time_passes()
        ops = []
        for op in self.control.stop_trace():
            phase = next((name for at, name in reversed(marks) if at < op["number"]), "")
            data = bytes.fromhex(op["data"])
            known = as_op(op["kind"], op["address"], op["size"], data)
            ops.append(Op(op["who"], known, phase))
        return outcome, ops


class Boards:
    """Some boards in one simulator process, each used by one thread at a time.

    count: of each of the chips.
    """

    def __init__(
        self, folder: Path, count: int, *, seed: int = 0, chips: Sequence[str] = ("esp32",)
    ) -> None:
        blank, config = b"\xff" * FLASH_BYTES, {"boots_at_start": False}
        self._chips = [chip for chip in chips for _ in range(count)]
        specs = [SimBoard(flash=blank, chip=chip, config=config) for chip in self._chips]
        self._sim = SimProcess(folder, specs, seed=seed)
        self._idle: dict[str, SimpleQueue[RealBoard]] = {chip: SimpleQueue() for chip in chips}
        self._pool = ThreadPoolExecutor(len(specs))
        self._stop = threading.Event()

    def __enter__(self) -> Boards:
        self._sim.__enter__()
        for chip, running in zip(self._chips, self._sim.boards, strict=True):
            self._idle[chip].put(RealBoard(running))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._sim.__exit__(kind, error, trace)

    @contextmanager
    def board(self, chip: str = "esp32") -> Iterator[RealBoard]:
        """A board that nobody else uses meanwhile."""
        board = self._idle[chip].get()
        try:
            yield board
        finally:
            self._idle[chip].put(board)

    def each(
        self,
        act: Callable[[RealBoard, T], R],
        items: Sequence[T],
        chip_of: Callable[[T], str] = lambda _: "esp32",
    ) -> Iterator[R]:
        """`act` on every item with some board, several at once; results in their order."""

        def one(item: T) -> R:
            with self.board(chip_of(item)) as board:
                return act(board, item)

        yield from self._pool.map(one, items)
