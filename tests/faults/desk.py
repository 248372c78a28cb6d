# SPDX-License-Identifier: GPL-3.0-or-later
"""A service in this very process with simulated boards, to break its links and count what stays.

    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        before = await desk.look()
        await desk.updated("1.1.0", max_attempts=2)
        await desk.truth(before, "1.1.0")

The module's process is left out, so that its threads and file descriptors can be counted, and
the pauses between two attempts are short.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esp32_sim.control import BoardControl
from esp32_sim.images import Behaviour, build_app
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.fleet import policy
from ota_service.fleet.service import FleetService, shutdown
from ota_service.module.config import parse_config
from tests.support.firmware_server import FirmwareServer

SERVICE = "OTA"
PROJECT = "micro-rdk-server"
IMAGE_BYTES = 60_000
BOOT = {"boot_timeout_s": 3, "boot_stable_s": 0.5}
PAUSES_S = (0.05, 0.05, 0.05, 0.05)
VERSION_AT = ("VIAM_NS", "OTA_VERSION")

# The ways in which an update may end on a board that was not brought to its target.
CLEAN_ENDS = frozenset(
    {"failed", "set_aside", "outdated", "absent", "unrecognised", "rolled_back", "unsupported"}
)


@dataclass(frozen=True)
class Shown:
    """What a board really is, by the simulator: the app that runs, and its NVS.

    version: of the running app. tag: of OTA_VERSION, None where the key is missing. keys: all
    other keys.
    """

    version: str
    slot: str
    tag: str | None
    keys: dict[tuple[str, str], Any] = field(repr=False)


def look(control: BoardControl, *, boot_timeout_s: float = 10.0) -> Shown:
    """Power-cycle a board, let it boot by itself, and look at what runs and what it keeps."""
    control.set_faults(
        no_answer=False, garbage=False, stuck_in_download=False, to_board={}, from_board={}
    )
    control.power_off()
    since = control.state()["events"]  # not before: a reset just made might boot meanwhile
    control.power_on()
    boot = control.wait_for("boot", since=since, timeout_s=boot_timeout_s)
    app = control.state()["app"]
    store = nvs_init(bytearray(partition(control, 2)))
    assert store.error is None, f"the firmware's NVS would not start: {store.error}"
    items = dict(store.items)
    tag = items.pop(VERSION_AT, None)
    value = tag[1].decode() if tag is not None else None
    return Shown(app["version"], str(boot["slot"]), value, items)


def partition(control: BoardControl, data_subtype: int) -> bytes:
    """The bytes of a data partition (0 otadata, 2 NVS), found in the board's own table."""
    table = control.read_flash(0x8000, 0xC00)
    for at in range(0, len(table), 32):
        entry = table[at : at + 32]
        if entry[:4] == b"\xaa\x50\x01" + bytes([data_subtype]):
            offset, size = (int.from_bytes(entry[k : k + 4], "little") for k in (4, 8))
            return control.read_flash(offset, size)
    raise LookupError(f"no data partition of subtype {data_subtype}")


def require_truth(control: BoardControl, board: dict[str, Any], before: Shown, new: str) -> Shown:
    """Hold what the status says of a board against the board itself.

    Up to date: the new app runs, and the tag says so. Anything else is clean where the old or
    the new app runs. All other keys are in place in any case.
    """
    state = board["state"]
    shown = look(control)
    assert shown.keys == before.keys, "keys other than the version were changed"
    if state == "up_to_date":
        assert (shown.version, shown.tag) == (new, new), (shown, board)
        assert board["version"] == new, board
        return shown
    assert state in CLEAN_ENDS, board
    assert "error" in board, board
    assert shown.version in (before.version, new), (shown, board)
    if state in ("failed", "set_aside", "rolled_back") and shown.version == before.version:
        assert shown.tag in (before.tag, new), (shown, board)
    return shown


@dataclass
class Desk:
    """One service, its boards and its firmware server."""

    folder: Path
    sim: SimProcess
    server: FirmwareServer
    names: list[str]
    service: FleetService | None = None
    ports: dict[str, str] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def start(cls, folder: Path, boards: Sequence[SimBoard]) -> AsyncIterator[Desk]:
        """Start the boards and the server; end the service and them at the end."""
        names = [chr(ord("a") + index) for index in range(len(boards))]
        pauses, policy.RETRY_PAUSES_S = policy.RETRY_PAUSES_S, PAUSES_S
        try:
            with SimProcess(folder / "boards", boards) as sim:
                async with FirmwareServer.start() as server:
                    desk = cls(folder, sim, server, names)
                    try:
                        yield desk
                    finally:
                        await shutdown()
        finally:
            policy.RETRY_PAUSES_S = pauses

    def board(self, name: str = "a") -> RunningBoard:
        """A board's url, files and control channel."""
        return self.sim.boards[self.names.index(name)]

    def serve(self, version: str, *, behaviour: Behaviour | None = None, **options: Any) -> str:
        """Serve an App Image of `version`; returns its url."""
        image = build_app(
            PROJECT, version, size_bytes=options.pop("size_bytes", IMAGE_BYTES),
            behaviour=behaviour or Behaviour(), **options,
        )  # fmt: skip
        return self.server.put(f"/{version}.bin", image)

    async def configure(self, **attributes: Any) -> FleetService:
        """Add the service, or change its attributes; `boards` defaults to all by their urls."""
        boards = [
            {"name": name, "port": self.ports.get(name, self.board(name).url)}
            for name in self.names
        ]
        checked = parse_config({"boards": boards, **BOOT, **attributes})
        settings = checked.settings(
            SERVICE, state_dir=self.folder / "state", cache_dir=self.folder / "cache"
        )
        if self.service is not None:
            await self.service.close()
        self.service = await FleetService.open(settings)
        return self.service

    def status(self) -> dict[str, Any]:
        """The service's status."""
        assert self.service is not None
        return self.service.status()

    async def wait(
        self, condition: Callable[[dict[str, Any]], object], *, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """The first status that fulfils `condition`."""
        end_s = time.monotonic() + timeout_s
        while not condition(status := self.status()):
            if time.monotonic() > end_s:
                raise TimeoutError(f"not within {timeout_s} s; the last status was {status}")
            await asyncio.sleep(0.01)  # the status has no event; clients poll it as well
        return status

    def run_id(self) -> str | None:
        """The id of the last run."""
        return self.status().get("run", {}).get("id") if self.service is not None else None

    async def next_run(self, before: str | None, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """The status when a run other than `before` has ended."""
        return await self.wait(
            lambda status: (
                status.get("run", {}).get("id") not in (None, before)
                and status["run"]["outcome"] != "running"
            ),
            timeout_s=timeout_s,
        )

    async def updated(
        self, version: str, *, timeout_s: float = 60.0, **attributes: Any
    ) -> dict[str, Any]:
        """Configure `version` (served, if no url is given) and wait for the end of its run."""
        before = self.run_id()
        url = attributes.pop("url", None) or self.serve(version)
        await self.configure(url=url, version=version, **attributes)
        return await self.next_run(before, timeout_s=timeout_s)

    async def command(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """A verb."""
        assert self.service is not None
        return await self.service.command(verb, arguments)

    async def look(self, name: str = "a") -> Shown:
        """What a board really is; see `look`."""
        return await asyncio.to_thread(look, self.board(name).control)

    async def truth(self, before: Shown, new: str, name: str = "a") -> Shown:
        """See `require_truth`, for the present status."""
        board = self.status()["boards"][name]
        return await asyncio.to_thread(require_truth, self.board(name).control, board, before, new)


@dataclass(frozen=True)
class Held:
    """What this process has: open file descriptors (their targets) and threads (their names)."""

    files: list[str]
    threads: list[str]

    @classmethod
    def now(cls) -> Held:
        """Count."""
        files = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                files.append(os.readlink(f"/proc/self/fd/{name}"))
        # Workers of pools stay by design, bounded by their pool; everything else must go.
        threads = [
            thread.name
            for thread in threading.enumerate()
            if not thread.name.startswith(("board_", "asyncio_"))
        ]
        return Held(sorted(files), sorted(threads))

    def more_than(self, other: Held) -> dict[str, list[str]]:
        """What is held beyond `other`, by kind; sockets are compared by their number."""
        extra: dict[str, list[str]] = {}
        if len(self.files) > len(other.files):
            rest = list(self.files)
            for path in other.files:
                if path in rest:
                    rest.remove(path)
            extra["files"] = rest
        if len(self.threads) > len(other.threads):
            extra["threads"] = self.threads
        return extra
