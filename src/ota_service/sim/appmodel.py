# SPDX-License-Identifier: GPL-3.0-or-later
"""The app that runs on a simulated board: prints what ESP-IDF apps print, obeys its image."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ota_service.sim.core import Core
from ota_service.sim.images import Behaviour, Ending, find_behaviour, read_descriptor
from ota_service.sim.layouts import Partition


class App:
    """One run of one app, from its start to the reset that it causes, if any."""

    def __init__(
        self,
        *,
        core: Core,
        image: bytes,
        partition: Partition,
        time_scale: float,
        record: Callable[..., None],
        set_baud: Callable[[int], None],
    ) -> None:
        self.core = core
        self.partition = partition
        self.behaviour = find_behaviour(image) or Behaviour()
        self.info = read_descriptor(image)
        self._scale = time_scale
        self._record = record
        self._set_baud = set_baud
        self._clock_ms = 280

    def describe(self) -> dict[str, Any]:
        """What runs, for the control channel."""
        return {
            "slot": self.partition.label,
            "offset": self.partition.offset,
            "project": self.info.project if self.info else "",
            "version": self.info.version if self.info else "",
        }

    def log(self, level: str, tag: str, text: str) -> None:
        """A line of ESP-IDF's log, unless the build has it off."""
        self._clock_ms += 4
        if not self.behaviour.log_level_off:
            colour = {"I": "32", "W": "33", "E": "31"}[level]
            self.print(f"\x1b[0;{colour}m{level} ({self._clock_ms}) {tag}: {text}\x1b[0m")

    def print(self, line: str) -> None:
        """A line of the app's own."""
        if self.behaviour.console_baud:
            self.core.print(line + "\r\n")

    async def run(self) -> Ending:
        """Live; returns how the app brought about its own reset."""
        if self.behaviour.console_baud:
            self._set_baud(self.behaviour.console_baud)
        self.start_lines()
        self._record("app", **self.describe())
        await asyncio.Event().wait()
        return "run"

    def start_lines(self) -> None:
        """ESP-IDF's own lines at an app's start (v5: app_init, cpu_start)."""
        self.log("I", "cpu_start", "Multicore app")
        self.log("I", "cpu_start", "cpu freq: 160000000 Hz")
        if self.info is not None:
            self.log("I", "app_init", "Application information:")
            self.log("I", "app_init", f"Project name:     {self.info.project}")
            self.log("I", "app_init", f"App version:      {self.info.version}")
            self.log("I", "app_init", f"Compile time:     {self.info.date} {self.info.time}")
            self.log("I", "app_init", f"ELF file SHA256:  {self.info.elf_sha256.hex()[:16]}...")
            self.log("I", "app_init", f"ESP-IDF:          {self.info.idf_version}")
        self.log("I", "main_task", "Calling app_main()")
