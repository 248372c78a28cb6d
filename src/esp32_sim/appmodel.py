# SPDX-License-Identifier: GPL-3.0-or-later
"""The app that runs on a simulated board: prints what ESP-IDF apps print, obeys its image."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from esp32_sim import layouts
from esp32_sim.bootmodel import PENDING_VERIFY, VALID, Select
from esp32_sim.chips import Chip
from esp32_sim.core import Core
from esp32_sim.flash import SECTOR_BYTES
from esp32_sim.images import Behaviour, Ending, find_behaviour, read_descriptor
from esp32_sim.layouts import Partition
from esp32_sim.logs import BROWNOUTS, ROM_EXCEPTION
from esp32_sim.nvsformat import SECTOR, NvsError, Region
from esp32_sim.nvsmodel import FlashRegion, MemoryRegion, NvsStore, Write, with_key

NAMESPACE = "VIAM_NS"
WATCHDOG_S = 5.0
# The bootloader's, which an app stops at the end of its start (CONFIG_BOOTLOADER_WDT_TIME_MS).
START_WATCHDOG_S = 9.0
# Between two flash operations of the app's own NVS writer: long enough to be met by a reset.
WRITER_PAUSE_S = 0.004
# A life shorter than this would keep the simulator's process busy for nothing.
SHORTEST_LIFE_S = 0.05


class App:
    """One run of one app, from its start to the reset that it causes, if any."""

    def __init__(
        self,
        *,
        core: Core,
        chip: Chip,
        image: bytes,
        partition: Partition,
        partitions: tuple[Partition, ...],
        life: int,
        time_scale: float,
        record: Callable[..., None],
        set_baud: Callable[[int], None],
        burn: Callable[[int], None] | None = None,
        nvs_key: str = "",
    ) -> None:
        """Make one.

        life: how many came before it since power or EN. burn: sets the eFuses' secure version,
        where the build has anti-rollback. nvs_key: of an encrypted NVS.
        """
        self.core = core
        self.chip = chip
        self.partition = partition
        self.behaviour = find_behaviour(image) or Behaviour()
        self.info = read_descriptor(image)
        self._partitions = partitions
        self._life = life
        self._scale = time_scale
        self._record = record
        self._set_baud = set_baud
        self._burn = burn
        self._nvs_key = nvs_key
        self._clock_ms = 280
        self._store: NvsStore | None = None
        self._nvs: Partition | None = None
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._pending: Iterator[Write] = iter(())
        self._counter = 0

    def describe(self) -> dict[str, Any]:
        """What runs, for the control channel."""
        return {
            "slot": self.partition.label,
            "offset": self.partition.offset,
            "project": self.info.project if self.info else "",
            "version": self.info.version if self.info else "",
        }

    # --- its console

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

    def _start_lines(self) -> None:
        """ESP-IDF's own lines at an app's start (v5: app_init, cpu_start)."""
        self.log("I", "cpu_start", "Multicore app" if self.chip.cores > 1 else "Unicore app")
        self.log("I", "cpu_start", "cpu freq: 160000000 Hz")
        if self.info is not None:
            self.log("I", "app_init", "Application information:")
            self.log("I", "app_init", f"Project name:     {self.info.project}")
            self.log("I", "app_init", f"App version:      {self.info.version}")
            self.log("I", "app_init", f"Compile time:     {self.info.date} {self.info.time}")
            self.log("I", "app_init", f"ELF file SHA256:  {self.info.elf_sha256.hex()[:16]}...")
            self.log("I", "app_init", f"ESP-IDF:          {self.info.idf_version}")
        self.log("I", "main_task", "Calling app_main()")

    # --- its life

    async def run(self) -> Ending:
        """Live; returns how the app brought about its own reset."""
        behaviour = self.behaviour
        if behaviour.ending in ("exception", "stuck"):
            for line in ROM_EXCEPTION if behaviour.ending == "exception" else ():
                self.core.print(line + "\r\n")
            self._record("hang")
            await self.core.sleep(START_WATCHDOG_S * self._scale)
            return behaviour.ending
        if behaviour.console_baud:
            self._set_baud(behaviour.console_baud)
        self._start_lines()
        self._record("app", **self.describe())
        self._start_nvs()
        if behaviour.confirm_after_s is not None:
            self._plan(behaviour.confirm_after_s, "confirm")
        if behaviour.say:
            self._plan(behaviour.say_after_s, "say")
        if behaviour.tick_s:
            self._plan(behaviour.tick_s, "tick")
        if behaviour.nvs_writes and self._store is not None:
            self._plan(0.0, "nvs")
        lives = behaviour.ending_lives
        if behaviour.ending != "run" and (lives == 0 or self._life < lives):
            shortest = SHORTEST_LIFE_S / max(self._scale, 1e-6)
            self._plan(max(behaviour.ending_after_s, shortest), "end")
        started_s = self.core.time_s
        while self._due:
            due, _, what = heapq.heappop(self._due)
            self.core.catch_up()
            await self.core.sleep(max(0.0, started_s + due * self._scale - self.core.time_s))
            if what == "end":
                return await self._end()
            await self._act(what, due)
        await asyncio.Event().wait()
        raise AssertionError("an app that runs for ever ends by a reset from outside")

    def _plan(self, due: float, what: str) -> None:
        heapq.heappush(self._due, (due, next(self._order), what))

    async def _act(self, what: str, due: float) -> None:
        if what == "confirm":
            self._confirm()
        elif what == "say":
            for line in self.behaviour.say.split("\n"):
                self.print(line)
            self._record("said", text=self.behaviour.say)
        elif what == "tick":
            self.log("I", "app", "alive")
            self._plan(due + self.behaviour.tick_s, "tick")
        elif what == "nvs":
            self._write_nvs_step()
            self._plan(due + WRITER_PAUSE_S / max(self._scale, 1e-6), "nvs")

    async def _end(self) -> Ending:
        ending = self.behaviour.ending
        if ending == "panic":
            for line in self.chip.panics[self.behaviour.panic]:
                self.print(line)
            self._record("panic")
        elif ending in ("loop", "restart"):
            self.log("I", "app", "restarting")
        elif ending in BROWNOUTS:
            for line in BROWNOUTS[ending]:
                self.print(line)
        elif ending == "deep-sleep":
            self.log("I", "app", "entering deep sleep")
            self._record("asleep")
            await self.core.sleep(self.behaviour.sleep_s * self._scale)
        elif ending in ("hang", "watchdog"):
            self._record("hang")
            if ending == "hang":
                await asyncio.Event().wait()
            await self.core.sleep(WATCHDOG_S * self._scale)
        return ending

    # --- otadata

    def _confirm(self) -> None:
        """esp_ota_mark_app_valid_cancel_rollback: PENDING_VERIFY becomes VALID."""
        otadata = next(iter(self._all(layouts.DATA_OTA)), None)
        if otadata is None:
            return
        flash = self.core.flash
        entries = [
            Select.parse(flash.read(otadata.offset + i * SECTOR_BYTES, 32)) for i in range(2)
        ]
        active = max(
            (i for i in range(2) if entries[i].counts),
            key=lambda i: entries[i].seq,
            default=None,
        )
        if active is None or entries[active].state != PENDING_VERIFY:
            return
        entry = entries[active]
        address = otadata.offset + active * SECTOR_BYTES
        flash.erase(address, SECTOR_BYTES, "app")
        flash.program(address, Select(entry.seq, VALID, entry.crc, entry.label).encode(), "app")
        self.log("I", "app", "confirmed: rollback cancelled")
        self._record("confirmed", **self.describe())
        if self._burn is not None and self.info is not None:
            self._burn(self.info.secure_version)

    def _all(self, subtype: int) -> list[Partition]:
        """The data partitions of a kind, in the table's order."""
        wanted = (layouts.TYPE_DATA, subtype)
        return [p for p in self._partitions if (p.type, p.subtype) == wanted]

    # --- NVS

    def _start_nvs(self) -> None:
        """nvs_flash_init for each NVS partition, that with the label "nvs" first.

        The version is read from the first that has it, as micro-RDK's newer builds do.
        """
        partitions = sorted(self._all(layouts.DATA_NVS), key=lambda p: p.label != "nvs")
        stores = [self._open_nvs(partition) for partition in partitions]
        if not stores:
            return
        self._nvs, self._store = partitions[0], stores[0]
        versions = [store.get(NAMESPACE, "OTA_VERSION") for store in stores]
        version = next((found[1] for found in versions if found), b"")
        text = version.decode("utf-8", "replace")
        self.log("I", "app", f"{NAMESPACE} OTA_VERSION: {text!r}")
        if self.behaviour.print_secrets:
            for (space, key), (kind, value) in stores[0].read_all().items():
                if space == NAMESPACE and kind == "string":
                    self.print(f"{key}={value.decode('utf-8', 'replace')}")

    def _open_nvs(self, partition: Partition) -> NvsStore:
        """Initialise one; stock apps erase everything where that fails."""
        flash = self.core.flash
        region: Region = FlashRegion(flash, partition.offset, partition.size)
        if partition.flags & layouts.FLAG_READ_ONLY:
            # Nothing is repaired there; NVS itself sees what the repairs would have led to.
            region = MemoryRegion(bytearray(flash.read(partition.offset, partition.size)))
        region = with_key(region, self._nvs_key)
        store = NvsStore(region)
        try:
            store.init()
        except NvsError as error:
            self.log("E", "app", f"nvs_flash_init failed: {error}")
            self.log("W", "app", "erasing NVS")
            for offset in range(0, region.size, SECTOR):
                region.erase_sector(offset)
            self._record("nvs-erased", error=str(error), label=partition.label)
            store = NvsStore(region)
            store.init()
        return store

    def _write_nvs_step(self) -> None:
        """One flash operation of an endless series of NVS writes."""
        assert self._nvs is not None
        write = next(self._pending, None)
        if write is None:
            self._pending = iter(self._next_writes())
            return
        region = FlashRegion(self.core.flash, self._nvs.offset, self._nvs.size)
        if write.data:
            region.program(write.offset, write.data)
        else:
            region.erase_sector(write.offset)

    def _next_writes(self) -> list[Write]:
        """What setting a counter and a note would write, found on a copy in memory."""
        assert self._nvs is not None
        copy = MemoryRegion(bytearray(self.core.flash.read(self._nvs.offset, self._nvs.size)))
        store = NvsStore(with_key(copy, self._nvs_key))
        store.init()
        self._counter += 1
        store.set("app", "counter", self._counter)
        store.set("app", "note", f"{self._counter}: " + "x" * 150)
        return copy.writes
