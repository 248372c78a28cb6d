# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the module as viam-server does, for a person without one: the same calls, the same socket.

Used by the demonstration. What a machine runs is viam-server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from grpclib.client import Channel
from viam.proto.app.robot import ComponentConfig
from viam.proto.module import (
    AddResourceRequest,
    ModuleServiceStub,
    ReadyRequest,
    RemoveResourceRequest,
    ValidateConfigRequest,
)
from viam.services.generic.client import GenericClient
from viam.utils import dict_to_struct

MAIN = Path(__file__).parents[1] / "src" / "main.py"
API = "rdk:service:generic"
MODEL = "rdk:generic:ota_service"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


class LocalModule:
    """A running module and the calls that viam-server and its clients make."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stub = ModuleServiceStub(channel)

    async def configure(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Add the service; raises GRPCError with the reason where it is refused."""
        config = ComponentConfig(
            name=name, api=API, model=MODEL, attributes=dict_to_struct(attributes)
        )
        await self._stub.ValidateConfig(ValidateConfigRequest(config=config))
        await self._stub.AddResource(AddResourceRequest(config=config))

    async def reconfigure(self, name: str, attributes: Mapping[str, Any]) -> None:
        """A changed attribute: remove, then add."""
        await self._stub.RemoveResource(RemoveResourceRequest(name=f"{API}/{name}"))
        await self.configure(name, attributes)

    def client(self, name: str) -> GenericClient:
        """The Viam SDK's client of the service."""
        return GenericClient(name, self._channel)


@asynccontextmanager
async def local_module(folder: Path, log: Path) -> AsyncIterator[LocalModule]:
    """Start the module, and stop it at the end.

    folder: its VIAM_HOME and VIAM_MODULE_DATA. log: file for its output.
    Raises RuntimeError with the log's end where it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="ota-") as sockets, log.open("wb") as output:
        socket = Path(sockets) / "m.sock"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(MAIN),
            str(socket),
            env={
                **os.environ,
                "VIAM_HOME": str(folder / "viam"),
                "VIAM_MODULE_DATA": str(folder / "data"),
                "VIAM_NO_MODULE_PARENT": "true",
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
        )
        channel = Channel(path=str(socket))
        try:
            await _ready(channel, process, log)
            yield LocalModule(channel)
        finally:
            channel.close()
            await _stop(process)


async def _ready(channel: Channel, process: asyncio.subprocess.Process, log: Path) -> None:
    """Ask until the module is ready, as viam-server does."""
    deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline_s and process.returncode is None:
        with contextlib.suppress(Exception):
            reply = await ModuleServiceStub(channel).Ready(ReadyRequest(), timeout=3.0)
            if reply.ready:
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"The module did not start. The end of its log:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
