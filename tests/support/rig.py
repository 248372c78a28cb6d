# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that an end-to-end test needs: boards, a firmware server, and the module.

async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
    url = rig.serve("1.1.0")
    await rig.configure(url=url, version="1.1.0")
    status = await rig.settled()
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from tests.support.firmware_server import FirmwareServer
from tests.support.module_client import ModuleProcess

NAME = "OTA"
PROJECT = "micro-rdk-server"
IMAGE_BYTES = 100_000

# Short enough for tests, long enough for what the apps in them do.
BOOT = {"boot_timeout_s": 4, "boot_stable_s": 1}


@dataclass
class Rig:
    """The parts of one test. names: of the boards, in their order ("a", "b", ...)."""

    folder: Path
    sim: SimProcess
    server: FirmwareServer
    module: ModuleProcess
    names: list[str]

    @classmethod
    @asynccontextmanager
    async def start(
        cls, folder: Path, boards: Sequence[SimBoard], executable: Sequence[str] | None = None
    ) -> AsyncIterator[Rig]:
        """Start all of it, and stop it at the end. executable: as for the module's process."""
        names = [chr(ord("a") + index) for index in range(len(boards))]
        with SimProcess(folder / "boards", boards) as sim:
            async with (
                FirmwareServer.start() as server,
                ModuleProcess.start(folder / "machine", executable=executable) as module,
            ):
                yield cls(folder, sim, server, module, names)

    def board(self, name: str = "a") -> RunningBoard:
        """A board's url, files and control channel."""
        return self.sim.boards[self.names.index(name)]

    def image(self, version: str, **options: Any) -> bytes:
        """An App Image whose app says that it is `version`."""
        behaviour = options.pop("behaviour", None) or Behaviour()
        size = options.pop("size_bytes", IMAGE_BYTES)
        return build_app(
            options.pop("project", PROJECT), version, size_bytes=size, behaviour=behaviour,
            **options,
        )  # fmt: skip

    def serve(self, version: str, *, path: str | None = None, **options: Any) -> str:
        """Serve an App Image of `version`; returns its url."""
        return self.server.put(path or f"/{version}.bin", self.image(version, **options))

    def attributes(self, **attributes: Any) -> dict[str, Any]:
        """A configuration that lists all boards; `pins` maps a name to attributes of its own."""
        pins: Mapping[str, Mapping[str, Any]] = attributes.pop("pins", {})
        boards = [
            {"name": name, "port": self.board(name).url, **pins.get(name, {})}
            for name in self.names
        ]
        return {"boards": boards, **BOOT, **attributes}

    async def configure(self, **attributes: Any) -> None:
        """Add the service, or change its attributes."""
        wanted = self.attributes(**attributes)
        with contextlib.suppress(Exception):
            await self.module.remove(NAME)
        await self.module.add(NAME, wanted)

    async def command(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """DoCommand."""
        return await self.module.command(NAME, {"command": verb, **arguments})

    async def settled(
        self, version: str | None = None, *, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """The status once the run is over (for the target of `version`, where given)."""

        def over(status: dict[str, Any]) -> bool:
            if version is not None and status["target"]["version"] != version:
                return False
            run = status.get("run", {})
            return bool(run) and run["outcome"] != "running"

        return await self.module.wait_status(NAME, over, timeout_s=timeout_s)

    async def updated(self, version: str, **attributes: Any) -> dict[str, Any]:
        """Serve `version`, configure it, and wait for the end of the run that follows."""
        before = await self._run_id()
        await self.configure(url=self.serve(version), version=version, **attributes)
        return await self.next_run(before)

    async def next_run(self, before: str | None, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """The status when a run other than `before` has ended."""
        return await self.module.wait_status(
            NAME,
            lambda status: (
                status.get("run", {}).get("id") not in (None, before)
                and status["run"]["outcome"] != "running"
            ),
            timeout_s=timeout_s,
        )

    async def run_id(self) -> str | None:
        """The id of the last run, None where there is none."""
        return await self._run_id()

    async def _run_id(self) -> str | None:
        with contextlib.suppress(Exception):
            return str((await self.module.status(NAME))["run"]["id"])
        return None

    def nvs(self, name: str = "a") -> bytes:
        """A board's NVS partition as it stands in flash."""
        at = self.partition(name, "nvs")
        return self.board(name).control.read_flash(at[0], at[1])

    def otadata(self, name: str = "a") -> bytes:
        """A board's otadata as it stands in flash."""
        at = self.partition(name, "otadata")
        return self.board(name).control.read_flash(at[0], at[1])

    async def configure_and_wait(self, version: str, before: str | None) -> dict[str, Any]:
        """Serve and configure `version`; the status when a run other than `before` has ended."""
        await self.configure(url=self.serve(version), version=version)
        return await self.next_run(before)

    def partition(self, name: str, label: str) -> tuple[int, int]:
        """A partition's offset and size, from the board's own table."""
        table = self.board(name).control.read_flash(0x8000, 0xC00)
        for at in range(0, len(table), 32):
            entry = table[at : at + 32]
            if entry[:2] == b"\xaa\x50" and entry[12:28].rstrip(b"\0").decode() == label:
                return int.from_bytes(entry[4:8], "little"), int.from_bytes(entry[8:12], "little")
        raise LookupError(label)

    def flash_digest(self, name: str = "a") -> str:
        """A digest of a board's whole flash."""
        return hashlib.sha256((self.board(name).dir / "flash.bin").read_bytes()).hexdigest()


__all__ = ["BOOT", "LAYOUTS", "NAME", "PROJECT", "Rig"]
