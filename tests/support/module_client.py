# SPDX-License-Identifier: GPL-3.0-or-later
"""Drives the module as viam-server does: starts its process and makes the same calls.

    async with ModuleProcess.start(tmp_path) as module:
        await module.add("OTA", {"url": url, "version": "1.2.3"})
        await module.wait_status("OTA", lambda status: status["state"] == "idle")
        reply = await module.command("OTA", {"command": "version"})

The process gets folders of its own under `tmp_path`, so nothing of the user's is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from grpclib.client import Channel
from viam.proto.app.robot import ComponentConfig
from viam.proto.module import (
    AddResourceRequest,
    ModuleServiceStub,
    ReadyRequest,
    ReconfigureResourceRequest,
    RemoveResourceRequest,
    ValidateConfigRequest,
)
from viam.services.generic.client import GenericClient
from viam.utils import dict_to_struct

ROOT = Path(__file__).parents[2]
API = "rdk:service:generic"
MODEL = "rdk:generic:ota_service"
BUILTIN_MODEL = "rdk:builtin:ota_service"

# No board, and nothing to download: for tests of what needs neither.
IDLE_ATTRIBUTES: dict[str, Any] = {
    "url": "http://user:hunter2@127.0.0.1:9/app.bin?token=s3cret",
    "version": "1.2.3",
    "boards": [],
    "auto_update": False,
}

# What viam-server allows for each call (viam.md, "Life of a module").
READY_TIMEOUT_S = 3.0
VALIDATE_TIMEOUT_S = 5.0
REMOVE_TIMEOUT_S = 30.0
ADD_TIMEOUT_S = 120.0


def cpu_s(pid: int) -> float:
    """The processor's time that a process has used (proc_pid_stat(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ModuleProcess:
    """One running module. Made by `ModuleProcess.start`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        # The processor's time from its start to the answer to Ready, whatever else runs meanwhile.
        self.start_cpu_s = 0.0
        # The models that the module offers, as Ready names them.
        self.models: list[str] = []
        self._log: list[str] = []
        self._log_changed = asyncio.Condition()
        self._channel: Channel | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        tcp: bool = False,
        executable: Sequence[str | Path] | None = None,
        arguments: Sequence[str] = (),
        cwd: Path = ROOT,
        start_timeout_s: float = 30.0,
    ) -> AsyncIterator[ModuleProcess]:
        """Start the module and wait until it is ready; kill it at the end if it still runs.

        folder: gets `viam` (VIAM_HOME) and `data` (VIAM_MODULE_DATA); the same folder again
        means the same machine. executable: instead of this Python and src/main.py.
        """
        command = list(executable or (sys.executable, ROOT / "src" / "main.py"))
        # A Unix socket's path has 107 bytes at most, so it is not in `folder`.
        sockets = tempfile.mkdtemp(prefix="ota-")
        address = f"127.0.0.1:{_free_port()}" if tcp else f"{sockets}/m.sock"
        own = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *command,
            address,
            *(["--tcp-mode"] if tcp else []),
            *arguments,
            cwd=cwd,
            env={
                **own,
                "HOME": str(folder),
                "VIAM_HOME": str(folder / "viam"),
                "VIAM_MODULE_DATA": str(folder / "data"),
                "VIAM_MODULE_NAME": "ota",
                "VIAM_MODULE_ROOT": str(ROOT),
                "VIAM_NO_MODULE_PARENT": "true",
                **(env or {}),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        module = cls(process, folder)
        reading = asyncio.create_task(module._read_log())
        try:
            await module.wait_log("Serving on", timeout_s=start_timeout_s)
            if tcp:
                host, _, port = address.rpartition(":")
                module._channel = Channel(host, int(port))
            else:
                module._channel = Channel(path=address)
            await module.ready()
            module.start_cpu_s = cpu_s(process.pid)
            yield module
        finally:
            if module._channel is not None:
                module._channel.close()
            await module.kill()
            await reading
            shutil.rmtree(sockets, ignore_errors=True)

    # --- the calls of viam-server

    async def ready(self) -> list[str]:
        """Ready; returns (and keeps in `models`) the models that the module offers."""
        reply = await self._stub.Ready(ReadyRequest(), timeout=READY_TIMEOUT_S)
        assert reply.ready
        self.models = [model for handler in reply.handlermap.handlers for model in handler.models]
        return self.models

    async def validate(
        self, attributes: Mapping[str, Any], *, name: str = "OTA", model: str = MODEL
    ) -> tuple[list[str], list[str]]:
        """ValidateConfig; returns required and optional dependencies, raises GRPCError."""
        request = ValidateConfigRequest(config=_config(name, attributes, model))
        reply = await self._stub.ValidateConfig(request, timeout=VALIDATE_TIMEOUT_S)
        return list(reply.dependencies), list(reply.optional_dependencies)

    async def add(
        self,
        name: str,
        attributes: Mapping[str, Any],
        *,
        model: str = MODEL,
        dependencies: Sequence[str] = (),
        timeout: float = ADD_TIMEOUT_S,  # noqa: ASYNC109 - the call's deadline, as on the wire
    ) -> None:
        """AddResource, after ValidateConfig as viam-server does it."""
        await self.validate(attributes, name=name, model=model)
        request = AddResourceRequest(
            config=_config(name, attributes, model), dependencies=list(dependencies)
        )
        await self._stub.AddResource(request, timeout=timeout)

    async def remove(self, name: str) -> None:
        """RemoveResource."""
        request = RemoveResourceRequest(name=f"{API}/{name}")
        await self._stub.RemoveResource(request, timeout=REMOVE_TIMEOUT_S)

    async def change(self, name: str, attributes: Mapping[str, Any], *, model: str = MODEL) -> None:
        """A changed attribute, as viam-server applies it: RemoveResource, then AddResource."""
        await self.remove(name)
        await self.add(name, attributes, model=model)

    async def reconfigure(
        self, name: str, attributes: Mapping[str, Any], *, model: str = MODEL
    ) -> None:
        """A changed attribute, as servers from before mid-2026 apply it."""
        request = ReconfigureResourceRequest(config=_config(name, attributes, model))
        await self._stub.ReconfigureResource(request, timeout=ADD_TIMEOUT_S)

    # --- the calls of a client

    async def command(
        self,
        name: str,
        command: Mapping[str, Any],
        timeout: float = 60.0,  # noqa: ASYNC109 - the call's deadline, as on the wire
    ) -> dict[str, Any]:
        """DoCommand through the SDK's own client."""
        return dict(await self._generic(name).do_command(command, timeout=timeout))

    async def status(self, name: str) -> dict[str, Any]:
        """GetStatus through the SDK's own client."""
        return dict(await self._generic(name).get_status(timeout=10.0))

    async def wait_status(
        self,
        name: str,
        condition: Callable[[dict[str, Any]], object],
        *,
        timeout_s: float = 60.0,
        interval_s: float = 0.05,
    ) -> dict[str, Any]:
        """The first status that fulfils `condition`. Raises TimeoutError, naming the last one."""
        end = time.monotonic() + timeout_s
        while True:
            status = await self.status(name)
            if condition(status):
                return status
            if time.monotonic() > end:
                raise TimeoutError(f"not within {timeout_s} s; the last status was {status}")
            # The protocol has no way to be told of a change; clients ask again.
            await asyncio.sleep(interval_s)

    # --- the process

    @property
    def log(self) -> str:
        """What the process has printed so far, both streams."""
        return "".join(self._log)

    async def wait_log(self, text: str, *, times: int = 1, timeout_s: float = 30.0) -> None:
        """Wait until the log holds `text` so many times. Raises TimeoutError or, where it ended,
        RuntimeError."""
        try:
            async with asyncio.timeout(timeout_s), self._log_changed:
                while self.log.count(text) < times:
                    if self.process.returncode is not None or self._log[-1:] == [""]:
                        raise RuntimeError(f"the module ended; its log:\n{self.log}")
                    await self._log_changed.wait()
        except TimeoutError:
            raise TimeoutError(f"no {text!r} within {timeout_s} s in:\n{self.log}") from None

    async def terminate(self, *, timeout_s: float = 20.0) -> int:
        """SIGTERM, and wait for the end; returns the exit code."""
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), timeout_s)

    async def kill(self) -> None:
        """SIGKILL, where it still runs, and wait for the end."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()

    # --- inside

    @property
    def _stub(self) -> ModuleServiceStub:
        assert self._channel is not None
        return ModuleServiceStub(self._channel)

    def _generic(self, name: str) -> GenericClient:
        assert self._channel is not None
        return GenericClient(name, self._channel)

    async def _read_log(self) -> None:
        assert self.process.stdout is not None
        while True:
            line = await self.process.stdout.readline()
            async with self._log_changed:
                self._log.append(line.decode(errors="replace"))
                self._log_changed.notify_all()
            if not line:
                return


def _config(name: str, attributes: Mapping[str, Any], model: str) -> ComponentConfig:
    return ComponentConfig(
        name=name, api=API, model=model, attributes=dict_to_struct(dict(attributes))
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
