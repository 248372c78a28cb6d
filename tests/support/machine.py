# SPDX-License-Identifier: GPL-3.0-or-later
"""A module with a machine around it: the SDK's own robot server as its parent, over real gRPC.

It passes calls on as viam-server does, so a resource of the module that depends on another one
reaches it through its parent, and a client of the machine reaches both.

    async with Machine.start(tmp_path) as machine:
        await machine.add(SERVICE, "OTA", attributes)
        await machine.add(SENSOR, "ota", {"service": "OTA"})
        readings = await machine.sensor("ota").get_readings()
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grpclib.client import Channel
from viam.components.sensor import Sensor
from viam.components.sensor.client import SensorClient
from viam.proto.app.robot import ComponentConfig
from viam.proto.common import ResourceName
from viam.proto.module import (
    AddResourceRequest,
    ReadyRequest,
    RemoveResourceRequest,
    ValidateConfigRequest,
)
from viam.resource.base import ResourceBase
from viam.resource.types import API
from viam.robot.client import RobotClient
from viam.rpc.dial import DialOptions
from viam.rpc.server import Server
from viam.services.discovery import Discovery
from viam.services.discovery.client import DiscoveryClient
from viam.services.generic import Generic
from viam.services.generic.client import GenericClient
from viam.utils import dict_to_struct

from tests.support.module_client import (
    ADD_TIMEOUT_S,
    READY_TIMEOUT_S,
    REMOVE_TIMEOUT_S,
    VALIDATE_TIMEOUT_S,
    ModuleProcess,
)


class _Service(Generic):
    """How the machine passes calls on to a service of the module."""

    def __init__(self, name: str, channel: Channel) -> None:
        super().__init__(name)
        self._client = GenericClient(name, channel)

    async def do_command(self, command: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        return await self._client.do_command(command)

    async def get_status(self, **_: Any) -> Mapping[str, Any]:
        return await self._client.get_status()


class _Sensor(Sensor):
    """The same for a sensor."""

    def __init__(self, name: str, channel: Channel) -> None:
        super().__init__(name)
        self._client = SensorClient(name, channel)

    async def get_readings(self, **_: Any) -> Mapping[str, Any]:
        return await self._client.get_readings()


class _Discovery(Discovery):
    """The same for a discovery service."""

    def __init__(self, name: str, channel: Channel) -> None:
        super().__init__(name)
        self._client = DiscoveryClient(name, channel)

    async def discover_resources(
        self, *, extra: Mapping[str, Any] | None = None, **_: Any
    ) -> list[ComponentConfig]:
        return await self._client.discover_resources(extra=extra)


@dataclass(frozen=True)
class Kind:
    """A model, with its API and how the machine passes calls on to it."""

    api: str
    model: str
    passed_on: Callable[[str, Channel], Generic | Sensor | Discovery]


SERVICE = Kind("rdk:service:generic", "rdk:generic:ota_service", _Service)
SENSOR = Kind("rdk:component:sensor", "rdk:generic:ota_sensor", _Sensor)
DISCOVERY = Kind("rdk:service:discovery", "rdk:generic:ota_discovery", _Discovery)


class _Child(ModuleProcess):
    """The module, told at Ready where its parent is; without one it has none."""

    parent_address: ClassVar[str] = ""

    async def ready(self) -> list[str]:
        request = ReadyRequest(parent_address=self.parent_address)
        reply = await self._stub.Ready(request, timeout=READY_TIMEOUT_S)
        assert reply.ready
        self.models = [model for handler in reply.handlermap.handlers for model in handler.models]
        return self.models

    @property
    def channel(self) -> Channel:
        """To the module itself."""
        assert self._channel is not None
        return self._channel


class Machine:
    """Made by `Machine.start`. module: its process."""

    def __init__(self, module: _Child, server: Server, address: str) -> None:
        self.module = module
        self.address = address
        self._server = server

    @classmethod
    @asynccontextmanager
    async def start(
        cls, folder: Path, *, parent: bool = True, tcp: bool = False
    ) -> AsyncIterator[Machine]:
        """Start both. parent False: the module alone, as the demonstration runs it. tcp: the
        machine is at HOST:PORT, as users give it."""
        sockets = tempfile.mkdtemp(prefix="ota-")
        address = f"{sockets}/parent.sock"
        server = Server([])
        if tcp:
            await server._server.start("127.0.0.1", 0)
            address = f"127.0.0.1:{_port_of(server)}"
        else:
            await server._server.start(path=address)

        class Child(_Child):
            parent_address = address

        env = {"VIAM_NO_MODULE_PARENT": "false" if parent else "true"}
        try:
            async with Child.start(folder, env=env) as module:
                assert isinstance(module, _Child)
                yield cls(module, server, address)
        finally:
            server._server.close()
            await server._server.wait_closed()
            shutil.rmtree(sockets, ignore_errors=True)

    async def validate(
        self, kind: Kind, name: str, attributes: Mapping[str, Any]
    ) -> tuple[list[str], list[str]]:
        """ValidateConfig; returns required and optional dependencies, raises GRPCError."""
        request = ValidateConfigRequest(config=_config(kind, name, attributes))
        reply = await self.module._stub.ValidateConfig(request, timeout=VALIDATE_TIMEOUT_S)
        return list(reply.dependencies), list(reply.optional_dependencies)

    def have(self, resource: ResourceBase) -> None:
        """The machine has a resource of another module from now on."""
        self._server.register(resource)

    async def lose(self, resource: ResourceBase) -> None:
        """The machine has it no more."""
        await self._server.remove_resource(resource.get_resource_name(resource.name))

    async def add(self, kind: Kind, name: str, attributes: Mapping[str, Any]) -> None:
        """As viam-server does: ValidateConfig, then AddResource with the whole names of the
        dependencies that it named, of optional ones those that are there; from then on clients of
        the machine find the resource."""
        required, optional = await self.validate(kind, name, attributes)
        here = {at.name for at in self._server.resources}
        depends = [*required, *(name for name in optional if name in here)]
        request = AddResourceRequest(
            config=_config(kind, name, attributes),
            dependencies=[self._whole_name(short) for short in depends],
        )
        await self.module._stub.AddResource(request, timeout=ADD_TIMEOUT_S)
        self._server.register(kind.passed_on(name, self.module.channel))

    async def remove(self, kind: Kind, name: str) -> None:
        """RemoveResource; clients of the machine no longer find it."""
        request = RemoveResourceRequest(name=f"{kind.api}/{name}")
        await self.module._stub.RemoveResource(request, timeout=REMOVE_TIMEOUT_S)
        namespace, type_, subtype = kind.api.split(":")
        await self._server.remove_resource(
            ResourceName(namespace=namespace, type=type_, subtype=subtype, name=name)
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RobotClient]:
        """A client of the machine, as a user's program has one."""
        dial = DialOptions(insecure=True, disable_webrtc=True)
        options = RobotClient.Options(dial_options=dial, check_connection_interval=0)
        robot = await RobotClient.at_address(self.address, options)
        try:
            yield robot
        finally:
            await robot.close()  # type: ignore[no-untyped-call]

    def service(self, name: str) -> GenericClient:
        """The SDK's client of a service of the module."""
        return GenericClient(name, self.module.channel)

    def sensor(self, name: str) -> SensorClient:
        """The SDK's client of a sensor of the module."""
        return SensorClient(name, self.module.channel)

    def discovery(self, name: str) -> DiscoveryClient:
        """The SDK's client of a discovery service of the module."""
        return DiscoveryClient(name, self.module.channel)

    def _whole_name(self, short: str) -> str:
        for name in self._server.resources:
            if name.name == short:
                return f"{API(name.namespace, name.type, name.subtype)}/{short}"
        return f"{SERVICE.api}/{short}"


def _port_of(server: Server) -> int:
    listening = server._server._server
    assert isinstance(listening, asyncio.Server)
    return int(listening.sockets[0].getsockname()[1])


def _config(kind: Kind, name: str, attributes: Mapping[str, Any]) -> ComponentConfig:
    return ComponentConfig(
        name=name, api=kind.api, model=kind.model, attributes=dict_to_struct(dict(attributes))
    )


async def eventually(
    ask: Any, condition: Any, *, timeout_s: float = 30.0, interval_s: float = 0.05
) -> Any:
    """The first answer of `ask` that fulfils `condition`: Viam has no way to be told of one."""
    answer = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                answer = await ask()
                if condition(answer):
                    return answer
                await asyncio.sleep(interval_s)
    raise TimeoutError(f"not within {timeout_s} s; the last answer was {answer}")


__all__: Sequence[str] = ("DISCOVERY", "SENSOR", "SERVICE", "Kind", "Machine", "eventually")
