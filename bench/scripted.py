# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways users script an update today, with the unchanged commands, until the app shows.

separate: what scripts that exist do, one esptool call for each thing. best: the fewest calls, one
read and one write; it is not safe, for it erases NVS and both entries of otadata before their
new contents arrive.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import boards
from bench.ours import Measured
from esp32_sim.process import RunningBoard, child_environment
from ota_service.update.session import Image

TIMEOUT_S = 900
ESPTOOL = "esp32_sim.launch_esptool"


def _call(module: str, arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=child_environment(),
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {arguments} failed: {done.stdout[-800:]}{done.stderr[-800:]}")


class _Script:
    """Calls of the esptool command, each timed, and the boot that follows the last one."""

    def __init__(self, board: RunningBoard, baud: int) -> None:
        self._board = board
        self._to = ["--port", board.url, "--baud", str(baud)]
        self._begun_s = time.monotonic()
        self.phases: dict[str, float] = {}

    def call(self, name: str, *arguments: str, module: str = ESPTOOL) -> None:
        """Run one command, timed under `name`."""
        begun_s = time.monotonic()
        self._before = self._board.control.state()["events"]
        _call(module, [*self._to, *arguments])
        self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - begun_s

    def end(self) -> Measured:
        """Wait for the app that starts behind the last call; all of it."""
        begun_s, control = time.monotonic(), self._board.control
        control.wait_for("closed", since=self._before)
        told = control.events(self._before)
        # At its own USB a board may be up before the command has ended.
        reset = max(event["number"] for event in told if event["event"] == "reset")
        control.wait_for("app", since=reset, version=boards.NEW, timeout_s=20)
        now_s = time.monotonic()
        self.phases["boot"] = now_s - begun_s
        return Measured(now_s - self._begun_s, self.phases)


def _files(folder: str, data: bytes, image: Image) -> dict[str, str]:
    new = boards.edited(data)
    files = {"app": image.data, "otadata": new.otadata, "nvs": new.nvs}
    for name, content in files.items():
        Path(folder, name).write_bytes(content)
    return {name: str(Path(folder, name)) for name in files}


def separate(board: RunningBoard, data: bytes, image: Image, baud: int) -> Measured:
    """Read table, otadata and NVS; write the slot, otadata, NVS: six calls."""
    with tempfile.TemporaryDirectory() as folder:
        files = _files(folder, data, image)
        script = _Script(board, baud)
        out = str(Path(folder, "read"))
        script.call("read table", "read-flash", "0x8000", "0xc00", out)
        for label in ("otadata", "nvs"):
            at, size = boards.place(label)
            script.call(f"read {label}", "read-flash", hex(at), hex(size), out)
        for label, file in (("ota_1", "app"), ("otadata", "otadata"), ("nvs", "nvs")):
            at, _ = boards.place(label)
            script.call(f"write {file}", "write-flash", hex(at), files[file])
        return script.end()


def best(board: RunningBoard, data: bytes, image: Image, baud: int) -> Measured:
    """One read from the table to the end of otadata and NVS, one write of three files."""
    with tempfile.TemporaryDirectory() as folder:
        files = _files(folder, data, image)
        script = _Script(board, baud)
        end = max(sum(boards.place(label)) for label in ("otadata", "nvs"))
        script.call("read", "read-flash", hex(boards.TABLE), hex(end - boards.TABLE),
                    str(Path(folder, "read")))  # fmt: skip
        pairs = [("ota_1", "app"), ("otadata", "otadata"), ("nvs", "nvs")]
        where = [text for label, file in pairs
                 for text in (hex(boards.place(label)[0]), files[file])]  # fmt: skip
        script.call("write", "write-flash", *where)
        return script.end()
