# SPDX-License-Identifier: GPL-3.0-or-later
"""A real viam-server with a configuration of its own, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from viam.robot.client import RobotClient
from viam.rpc.dial import DialOptions
from viam.services.generic import Generic

ROOT = Path(__file__).parents[2]
# The first start of the module may have to make its environment.
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0

SERVICE = {"api": "rdk:service:generic", "model": "rdk:generic:ota_service"}
SENSOR = {"api": "rdk:component:sensor", "model": "rdk:generic:ota_sensor"}
DISCOVERY = {"api": "rdk:service:discovery", "model": "rdk:generic:ota_discovery"}


class ViamServer:
    """One viam-server. Made by `ViamServer.start`.

    folder: its home; the same folder again means the same machine.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.address = f"localhost:{port}"
        self._port = port
        self._file = folder / "viam.json"
        self._written = 0
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    @asynccontextmanager
    async def start(cls, folder: Path, **config: Any) -> AsyncIterator[ViamServer]:
        """Start it with a configuration, and stop it at the end."""
        folder.mkdir(parents=True, exist_ok=True)
        server = cls(folder, _free_port())
        server.configure(**config)
        try:
            await server.run()
            yield server
        finally:
            await server.stop()

    def configure(self, *, module: Mapping[str, Any] | None = None, **config: Any) -> None:
        """Write the configuration, which viam-server watches. module: further keys of ours."""
        self._written += 1
        whole = {
            "network": {"bind_address": f"127.0.0.1:{self._port}"},
            "modules": [
                {
                    "type": "local",
                    "name": "ota",
                    "executable_path": str(ROOT / "run.sh"),
                    **(module or {}),
                }
            ],
            **config,
        }
        # In place, since the file itself is watched; never the same text, which is passed over.
        self._file.write_text(json.dumps(whole) + "\n" * self._written)

    async def run(self) -> None:
        """Start the process, and wait until a client can connect."""
        program = os.environ["VIAM_SERVER"]
        environment = {key: item for key, item in os.environ.items() if key != "VIAM_HOME"}
        log = (self.folder / "viam-server.log").open("ab")
        with log:
            self._process = await asyncio.create_subprocess_exec(
                program,
                "-config",
                str(self._file),
                cwd=self.folder,
                # A home of its own: nothing of this user's machine is read.
                env={**environment, "HOME": str(self.folder)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                if self._process.returncode is not None:
                    raise RuntimeError(f"viam-server ended; its log:\n{self.log[-4000:]}")
                with contextlib.suppress(Exception):
                    async with self.client():
                        return
                await asyncio.sleep(0.2)

    async def terminate(self) -> None:
        """SIGTERM, as its service manager sends it, and wait for the end."""
        assert self._process is not None
        self._process.terminate()
        await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)

    async def stop(self) -> None:
        """End it, in good order if it can be had; its modules end with it."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(TimeoutError):
                await self.terminate()
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL, where it still runs; its module notices by itself."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def kill_module(self) -> None:
        """SIGKILL to the module's process, as a crash."""
        assert self._process is not None
        os.kill(_module_of(self._process.pid), signal.SIGKILL)

    @property
    def log(self) -> str:
        """What it and its module have printed so far."""
        return (self.folder / "viam-server.log").read_text(errors="replace")

    # --- clients

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RobotClient]:
        """A client of the machine."""
        dial = DialOptions(insecure=True, disable_webrtc=True)
        options = RobotClient.Options(dial_options=dial, check_connection_interval=0)
        robot = await RobotClient.at_address(self.address, options)
        try:
            yield robot
        finally:
            await robot.close()  # type: ignore[no-untyped-call]

    async def command(self, verb: str, *, name: str = "OTA", **arguments: Any) -> dict[str, Any]:
        """DoCommand of a service."""
        async with self.client() as robot:
            service = Generic.from_robot(robot, name)
            return dict(await service.do_command({"command": verb, **arguments}, timeout=120))

    async def wait_status(
        self, condition: Any, *, name: str = "OTA", timeout_s: float = 120.0
    ) -> dict[str, Any]:
        """The first status that fulfils `condition`, through whatever happens meanwhile."""
        status: Any = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(Exception):
                        status = await self.command("status", name=name)
                        if condition(status):
                            return dict(status)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise TimeoutError(f"the last status: {status}; log:\n{self.log[-4000:]}") from None


def _module_of(pid: int) -> int:
    """The process of our module below viam-server: the one that runs src/main.py."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            stat = (folder / "stat").read_text()
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(
                int(folder.name)
            )
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            with contextlib.suppress(OSError):
                if b"src/main.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
            waiting.append(child)
    raise LookupError("viam-server runs no module of ours")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
