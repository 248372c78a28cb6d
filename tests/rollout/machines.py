# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines on the fake app: what clients of a machine connect to, and what is behind it.

`RealMachine`: our module in a process of its own, configured as viam-server would do it with what
the app has for its part. `FakeMachine`: a few lines that answer `status`, for tests that need many
machines or odd ones. Both take their configuration when it changes instead of asking every ten
seconds, and are offline by `online = False`: connections break, new ones are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import GRPCError, Status
from grpclib.const import Handler
from viam.gen.proto.rpc.v1.auth_grpc import UnimplementedAuthServiceBase
from viam.gen.robot.v1.robot_grpc import UnimplementedRobotServiceBase
from viam.gen.service.generic.v1.generic_grpc import (
    GenericServiceStub,
    UnimplementedGenericServiceBase,
)
from viam.proto.common import DoCommandResponse, GetStatusResponse, ResourceName
from viam.proto.robot import (
    ConfigStatus,
    GetMachineStatusResponse,
    GetVersionResponse,
    ResourceNamesResponse,
    ResourceStatus,
)
from viam.proto.rpc.auth import AuthenticateRequest, AuthenticateResponse
from viam.utils import struct_to_dict

from tests.rollout.fakeapp import Door, FakeApp, Location, Machine
from tests.support.module_client import API, ModuleProcess

NAME = "OTA"
ANSWERS_AFTER_S = 0.001


class MachineServer:
    """What a machine shows: the SDK's RobotService and GenericService, and its authentication.

    names: of its generic services. before: called at each call of a service; it may raise, and
    ConnectionError breaks the connection. asked: how many such calls there were.
    """

    def __init__(self, app: FakeApp, machine: Machine) -> None:
        self.app = app
        self.machine = machine
        self.names: list[str] = []
        self.before: Callable[[], None] = lambda: None
        self.asked = 0
        self._door = Door(
            [
                _Table(UnimplementedAuthServiceBase(), Authenticate=self._authenticate),
                _Table(
                    UnimplementedRobotServiceBase(),
                    ResourceNames=self._resource_names,
                    GetMachineStatus=self._machine_status,
                    GetVersion=self._version,
                ),
                _Table(
                    UnimplementedGenericServiceBase(),
                    DoCommand=self._do_command,
                    GetStatus=self._get_status,
                ),
            ]
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve it for the length of a block; the part's address is set in the app."""
        async with self._door.served() as port:
            self.machine.part.fqdn = f"localhost:{port}"
            yield

    @property
    def online(self) -> bool:
        """Whether the app has it online; while it is not, nobody reaches it."""
        return self.machine.online

    @online.setter
    def online(self, online: bool) -> None:
        self.machine.online = self.reachable = online
        if online:
            self.came_back()

    @property
    def reachable(self) -> bool:
        """False: it is online for the app, and no client gets through to it."""
        return self._door.open

    @reachable.setter
    def reachable(self, reachable: bool) -> None:
        self._door.open = reachable
        if not reachable:
            self._door.drop()

    def came_back(self) -> None:
        """It is online again, and takes what changed meanwhile."""

    async def reply(self, method: str, name: str, request: Any) -> Any:
        """The reply of one of its services."""
        raise NotImplementedError

    # --- the calls

    async def _authenticate(self, stream: Any) -> None:
        request: AuthenticateRequest = await stream.recv_message()
        key = self.app.keys.get(request.entity)
        if key is None or request.credentials.payload != key.secret:
            raise GRPCError(Status.UNAUTHENTICATED, "invalid credentials")
        if not self.app._may(key, "control_robot", "robot", self.machine.id):
            raise GRPCError(Status.PERMISSION_DENIED, "no permission to control this machine")
        await stream.send_message(AuthenticateResponse(access_token="machine"))

    def _resources(self) -> list[ResourceName]:
        namespace, kind, subtype = API.split(":")
        return [
            ResourceName(namespace=namespace, type=kind, subtype=subtype, name=name)
            for name in self.names
        ]

    async def _resource_names(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(ResourceNamesResponse(resources=self._resources()))

    async def _version(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(GetVersionResponse(platform="rdk", version="0.100.0"))

    async def _machine_status(self, stream: Any) -> None:
        await stream.recv_message()
        at = Timestamp()
        at.FromDatetime(self.machine.part.updated)
        revision = self.app.revision(self.machine.part)
        await stream.send_message(
            GetMachineStatusResponse(
                resources=[
                    ResourceStatus(name=name, state=ResourceStatus.STATE_READY, revision=revision)
                    for name in self._resources()
                ],
                config=ConfigStatus(revision=revision, last_updated=at),
                state=GetMachineStatusResponse.STATE_RUNNING,
            )
        )

    async def _do_command(self, stream: Any) -> None:
        await self._pass(stream, "DoCommand")

    async def _get_status(self, stream: Any) -> None:
        await self._pass(stream, "GetStatus")

    async def _pass(self, stream: Any, method: str) -> None:
        request = await stream.recv_message()
        self.asked += 1
        try:
            self.before()
        except ConnectionError:
            stream._stream._transport.abort()
            return
        if request.name not in self.names:
            raise GRPCError(Status.NOT_FOUND, f"resource {API}/{request.name} not found")
        with self.app.busy():
            # A machine takes its time, so that calls that come at once are seen to do so.
            await asyncio.sleep(ANSWERS_AFTER_S)
            await stream.send_message(await self.reply(method, request.name, request))


class _Table:
    """One of the SDK's services, with some of its methods served."""

    def __init__(self, base: Any, **methods: Any) -> None:
        self._mapping: dict[str, Handler] = {
            path: handler._replace(func=methods.get(path.rpartition("/")[2], handler.func))
            for path, handler in base.__mapping__().items()
        }

    def __mapping__(self) -> dict[str, Handler]:
        return self._mapping


def attributes_of(app: FakeApp, machine: Machine) -> dict[str, Any] | None:
    """The OTA service's attributes as the machine gets them; None where it has no such service."""
    for service in app.resolved(machine.part).get("services", []):
        if service["name"] == NAME:
            attributes: dict[str, Any] = service.get("attributes", {})
            return attributes
    return None


# --- fake machines

# What becomes of a machine that gets a firmware.
GOOD, BACK, FAILED, STUCK, STOPPED = "good", "rolled_back", "failed", "stuck", "stopped"
# Nobody hears of it any more.
GONE = "gone"

Judge = Callable[[str, str], str]
"""(machine's name, version) -> one of the above."""


class FakeMachine(MachineServer):
    """A machine with boards that are only a table.

    judge: what becomes of an update. takes_s: how long one lasts. got: the versions that it was
    given, in order: what reached it, whatever the app or the tool say.
    """

    def __init__(
        self,
        app: FakeApp,
        machine: Machine,
        *,
        boards: Sequence[str] = ("a",),
        judge: Judge = lambda name, version: GOOD,
        takes_s: float = 0.0,
    ) -> None:
        super().__init__(app, machine)
        self.judge = judge
        self.takes_s = takes_s
        self.got: list[str] = []
        # Set at each change of what it shows.
        self.changed = asyncio.Event()
        self._target: dict[str, Any] = {}
        self._error: dict[str, Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.boards: dict[str, dict[str, Any]] = {
            name: self._board(index) for index, name in enumerate(boards)
        }
        self._applied: dict[str, Any] | None = None
        app.watch(lambda id: self.apply() if id == machine.part.id else None)
        self.apply()
        self._end()  # as it has been for long

    def _board(self, index: int) -> dict[str, Any]:
        return {
            "port": f"/dev/ttyUSB{index}",
            "mac": f"24:0a:c4:00:00:{index:02x}",
            "chip": "ESP32",
            "state": "unknown",
        }

    def came_back(self) -> None:
        self.apply()

    def apply(self) -> None:
        """Take what the app has for it, as a machine does that is online."""
        if not self.online:
            return
        attributes = attributes_of(self.app, self.machine)
        self.names = [] if attributes is None else [NAME]
        if attributes is None or attributes == self._applied:
            return
        self._applied = attributes
        target = {key: attributes.get(key) for key in ("url", "version", "sha256")}
        if target == self._target or not target["version"]:
            return
        self._target, self._error = target, None
        self.got.append(str(target["version"]))
        if attributes.get("auto_update") is False:
            for name in self._followers():
                self.boards[name].update(state="outdated", good=False)
            self.changed.set()
        else:
            self.update()

    def update(self) -> None:
        """As the verb does, and a new target where `auto_update` is not false."""
        for name in self._followers():
            self.boards[name].update(state="updating", phase="writing", good=False)
            self.boards[name].pop("error", None)
        self.changed.set()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self.takes_s, self._end)

    def _followers(self) -> list[str]:
        """The boards that are not pinned to a version of their own, and are there."""
        pinned = {
            board["name"]: board.get("version")
            for board in (self._applied or {}).get("boards", [])
            if board.get("version")
        }
        for name, version in pinned.items():
            if name in self.boards:  # it has a target of its own, and its state is its own affair
                self.boards[name]["target"] = {"version": version}
        return [
            name
            for name, board in self.boards.items()
            if name not in pinned and board["state"] not in ("absent", "unsupported")
        ]

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        version = str(self._target.get("version", ""))
        became = self.judge(self.machine.name, version)
        for name in self._followers():
            board = self.boards[name]
            if became in (STUCK, GONE):
                continue
            board.pop("phase", None)
            if became == GOOD:
                board.update(state="up_to_date", version=version, good=True, confirmed=True)
            elif became == STOPPED:
                board.update(state="outdated", good=False)
            else:
                board.update(state=became, good=False, error=_error("boot-failed"))
        if became == STOPPED:
            self._error = _error("stopped")
        if became == GONE:
            self.online = False
        self.changed.set()

    def status(self) -> dict[str, Any]:
        """As `status` of the service."""
        busy = any(board["state"] == "updating" for board in self.boards.values())
        status: dict[str, Any] = {
            "ok": True,
            "state": "updating" if busy else "idle",
            "target": {key: value for key, value in self._target.items() if value is not None},
            "boards": {name: dict(board) for name, board in self.boards.items()},
            "run": {
                "id": f"run{len(self.got)}",
                "trigger": "configured",
                "started_at": "2026-01-02T03:04:05Z",
                "outcome": "running" if busy else "succeeded",
            },
        }
        if self._error is not None:
            status["error"] = self._error
        return status

    def history(self) -> dict[str, Any]:
        """As `history` with `boot_log`."""
        run = {
            "id": f"run{len(self.got)}",
            "outcome": "failed",
            "boards": {
                name: {
                    "outcome": board["state"],
                    "boot_log": ["rst:0x3", f"abort() was called on {self.machine.name}/{name}"],
                }
                for name, board in self.boards.items()
            },
        }
        return {"ok": True, "runs": [run]}

    async def reply(self, method: str, name: str, request: Any) -> Any:
        if method == "GetStatus":
            return GetStatusResponse(result=_struct(self.status()))
        command = struct_to_dict(request.command)
        verb = command.get("command", next(iter(command), ""))
        told = {"status": self.status, "history": self.history}.get(str(verb))
        if told is None:
            raise GRPCError(Status.UNKNOWN, f"ValueError - {verb} is not for rollouts")
        return DoCommandResponse(result=_struct(told()))


def _struct(value: Mapping[str, Any]) -> Struct:
    """As the SDK's dict_to_struct, which takes ten times as long."""
    struct = Struct()
    struct.update(value)
    return struct


def _error(code: str) -> dict[str, str]:
    return {"code": code, "message": f"It is {code}.", "remedy": "Look at its boot log."}


# --- real ones


class RealMachine(MachineServer):
    """Our module's process, configured with what the app has, as viam-server does it."""

    def __init__(self, app: FakeApp, machine: Machine, module: ModuleProcess) -> None:
        super().__init__(app, machine)
        self.module = module
        # The configuration that the module has; each change of it is told.
        self.applied: dict[str, Any] | None = None
        self.refused: str = ""
        self._added = asyncio.Event()
        self._wake = asyncio.Event()
        self._wake.set()
        app.watch(lambda id: self._wake.set() if id == machine.part.id else None)

    @classmethod
    @asynccontextmanager
    async def start(
        cls, app: FakeApp, location: Location, name: str, config: Mapping[str, Any], folder: Path
    ) -> AsyncIterator[RealMachine]:
        """A machine in the app, its module, and its server, for the length of a block."""
        async with AsyncExitStack() as stack:
            module = await stack.enter_async_context(ModuleProcess.start(folder))
            machine = cls(app, app.machine(location, name, config), module)
            await stack.enter_async_context(machine.serving())
            following = asyncio.create_task(machine._follow())
            try:
                yield machine
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following

    async def settled(self, version: str | None = None) -> dict[str, Any]:
        """The status once nothing runs (with this target, where given)."""
        await asyncio.wait_for(self._added.wait(), 60.0)
        return await self.module.wait_status(
            NAME,
            lambda status: (
                status["state"] == "idle" and version in (None, status["target"]["version"])
            ),
        )

    def came_back(self) -> None:
        self._wake.set()

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.online:
                await self._take(attributes_of(self.app, self.machine))

    async def _take(self, attributes: dict[str, Any] | None) -> None:
        """What viam-server does with a changed resource: it is validated, removed and added."""
        if attributes == self.applied:
            return
        try:
            if attributes is not None:
                await self.module.validate(attributes, name=NAME)
        except GRPCError as error:
            # It keeps what it has, and logs the error.
            self.refused = str(error.message)
            return
        if self.applied is not None:
            self.names = []
            await self.module.remove(NAME)
        self.applied, self.refused = attributes, ""
        if attributes is not None:
            await self.module.add(NAME, attributes)
            self.names = [NAME]
            self._added.set()

    async def reply(self, method: str, name: str, request: Any) -> Any:
        channel = self.module._channel
        assert channel is not None
        stub = GenericServiceStub(channel)
        return await getattr(stub, method)(request, timeout=60.0)


__all__: Sequence[str] = (
    "BACK",
    "FAILED",
    "GONE",
    "GOOD",
    "NAME",
    "STOPPED",
    "STUCK",
    "FakeMachine",
    "MachineServer",
    "RealMachine",
    "attributes_of",
)
