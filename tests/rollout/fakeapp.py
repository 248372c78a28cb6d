# SPDX-License-Identifier: GPL-3.0-or-later
"""Viam's app, as far as a rollout meets it: the one part that can't run here for real.

Made of viam-sdk's own service bases and messages on a grpclib server, so that every client of the
SDK connects to it unchanged. How it behaves where the messages don't say it is taken from Viam's
documentation (docs.viam.com: "Fleet management API", "Role-Based Access Control", "Fragments") and
from what the SDK's clients promise of it.

    async with FakeApp.start() as app:
        site = app.location("site")
        machine = app.machine(site, "m1", {"services": [...]}, fqdn="localhost:40001")
        environment = app.environment()         # VIAM_API_KEY, VIAM_API_KEY_ID, VIAM_APP_URL
        app.fail("UpdateRobotPart", Status.UNAVAILABLE, times=2)
        ...
        assert app.written == [machine.part.id]

What is asked of it can be watched and disturbed at three moments of every call (`listen`):
"arrives" (nothing has happened yet), "done" (it has, and the reply has not left) and "answered".

What it does not have: metering, audit, users, the registry, data capture by itself. What nobody
documents is a choice here, and named as such: the status of a conflict (`conflict`), the order of
lists, what operators see of a part (all but its configuration).
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import inspect
import json
import uuid
import weakref
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from viam.gen.app.data.v1.data_grpc import UnimplementedDataServiceBase
from viam.gen.app.v1.app_grpc import UnimplementedAppServiceBase
from viam.gen.proto.rpc.v1.auth_grpc import UnimplementedAuthServiceBase
from viam.proto import app as pb
from viam.proto.app.data import GetLatestTabularDataRequest, GetLatestTabularDataResponse
from viam.proto.rpc.auth import AuthenticateRequest, AuthenticateResponse
from viam.utils import dict_to_struct, struct_to_dict

Moment = Literal["arrives", "done", "answered"]
SUMMARIES_LIMIT = 100
HISTORY_LIMIT = 100

# The strings that CheckPermissions knows, of those that matter here (documentation of
# check_permissions: "Valid arguments for permissions").
OPERATOR = frozenset({"read_organization", "read_location", "read_robot", "control_robot"})
OWNER = OPERATOR | {
    "write_organization", "read_fragment", "write_fragment", "write_location",
    "read_location_secret", "read_robot_secret", "read_robot_config", "read_robot_logs",
    "write_robot", "read_robot_history", "read_organization_data_management",
    "read_location_data_management", "read_robot_data_management",
}  # fmt: skip


class LostReply(Exception):
    """Raised by a listener at "done": the effect stands, and the connection breaks."""


@dataclass
class Call:
    """One call. number: of all calls, from 1; nth: of its method. status: once it is answered."""

    number: int
    method: str
    nth: int
    request: Any
    key_id: str | None = None
    status: Status | None = None


Listener = Callable[[Call, Moment], Awaitable[None] | None]


@dataclass
class Key:
    """An API key. scope: what it was made for, ("organization" | "location" | "robot", id), with
    everything inside; None: everything there is."""

    id: str
    secret: str
    permissions: frozenset[str]
    scope: tuple[str, str] | None = None


@dataclass
class Location:
    id: str
    name: str
    organization_id: str


@dataclass
class Revision:
    """One state of a fragment."""

    id: str
    text: str
    at: datetime


@dataclass
class Fragment:
    """Its revisions, the newest last; tags: tag -> revision."""

    id: str
    name: str
    organization_id: str
    revisions: list[Revision]
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, version: str = "") -> Revision:
        """What a version (a revision, or a tag; the newest without one) stands for now."""
        wanted = self.tags.get(version, version)
        for revision in reversed(self.revisions):
            if not version or revision.id == wanted:
                return revision
        raise GRPCError(Status.NOT_FOUND, f"fragment {self.id} has no version {version!r}")


@dataclass
class Part:
    """text: its configuration as it was written, byte for byte. json_form: whether the app gives
    it back in that form, which it does for every part that was saved since it knows that form."""

    id: str
    name: str
    robot_id: str
    location_id: str
    fqdn: str
    text: str
    updated: datetime
    main: bool = True
    json_form: bool = True
    history: list[pb.RobotPartHistoryEntry] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration, parsed."""
        config: dict[str, Any] = json.loads(self.text)
        return config


@dataclass
class Machine:
    """A machine with its parts, the main one first. online: what the app shows of it."""

    id: str
    name: str
    location_id: str
    parts: list[Part]
    online: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> Part:
        """Its main part."""
        return next(part for part in self.parts if part.main)


class _Dropped(asyncio.Protocol):
    """A connection to somebody who is not there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class Door(Server):
    """A server that keeps its port while it is not there (`open`), so that nobody else gets it;
    what comes meanwhile is dropped."""

    def __init__(self, services: Sequence[Any]) -> None:
        super().__init__(services)
        self.open = True
        self._protocols: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> Any:
        if not self.open:
            return _Dropped()
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    @asynccontextmanager
    async def served(self) -> AsyncIterator[int]:
        """Serve it on a port of the loopback interface, which is told, for the length of a
        block."""
        await self.start("127.0.0.1", 0)
        assert isinstance(self._server, asyncio.Server)
        try:
            yield self._server.sockets[0].getsockname()[1]
        finally:
            self.close()
            self.drop()
            await self.wait_closed()
            await asyncio.sleep(0)  # a transport closes in the loop's next round

    def drop(self) -> None:
        """Break every connection there is."""
        for protocol in list(self._protocols):
            if hasattr(protocol, "connection"):
                protocol.connection._transport.abort()


class FakeApp:
    """Made by `FakeApp.start`. Everything that it knows may be read and changed by tests."""

    def __init__(self) -> None:
        self.organization_id = str(uuid.uuid4())
        self.locations: dict[str, Location] = {}
        self.machines: dict[str, Machine] = {}
        self.parts: dict[str, Part] = {}
        self.fragments: dict[str, Fragment] = {}
        self.keys: dict[str, Key] = {}
        # (part, resource, api, method) -> when captured, and the readings
        self.data: dict[tuple[str, str, str, str], tuple[datetime, dict[str, Any]]] = {}
        self.calls: list[Call] = []
        # What a conflict is refused with: the SDK says "a GRPCError", and no more.
        self.conflict = Status.FAILED_PRECONDITION
        # The most calls that were under way at once, of the app and of all its machines.
        self.busiest = 0
        self._busy = 0
        self.url = ""
        self.door = Door([])
        self._counts: Counter[str] = Counter()
        self._listeners: list[Listener] = []
        self._watchers: list[Callable[[str], None]] = []
        self._tokens: dict[str, Key] = {}
        self._last = datetime(2026, 1, 1, tzinfo=UTC)
        self._default_key: Key | None = None

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[FakeApp]:
        """Serve it on a port of the loopback interface for the length of a block."""
        app = cls()
        services = [
            _Served(UnimplementedAppServiceBase().__mapping__(), app._serve),
            _Served(UnimplementedDataServiceBase().__mapping__(), app._serve),
            _Served(UnimplementedAuthServiceBase().__mapping__(), app._serve),
        ]
        app.door = Door(services)
        async with app.door.served() as port:
            app.url = f"http://127.0.0.1:{port}"
            yield app

    def environment(self, key: Key | None = None) -> dict[str, str]:
        """What the command finds it by; key: default, an owner's of the organisation."""
        if key is None:
            key = self._default_key = self._default_key or self.key()
        return {
            "VIAM_API_KEY": key.secret,
            "VIAM_API_KEY_ID": key.id,
            "VIAM_APP_URL": self.url,
        }

    # --- what is in it

    def key(
        self,
        permissions: Iterable[str] = OWNER,
        *,
        without: Iterable[str] = (),
        scope: tuple[str, str] | None = None,
    ) -> Key:
        """A new key."""
        key = Key(
            str(uuid.uuid4()), uuid.uuid4().hex, frozenset(permissions) - frozenset(without), scope
        )
        self.keys[key.id] = key
        return key

    def expire_tokens(self) -> None:
        """Everybody has to authenticate again."""
        self._tokens.clear()

    def location(self, name: str) -> Location:
        """A new location of the organisation."""
        location = Location(f"loc{len(self.locations):07}", name, self.organization_id)
        self.locations[location.id] = location
        return location

    def machine(
        self,
        location: Location,
        name: str,
        config: Mapping[str, Any] | str,
        *,
        fqdn: str = "",
        online: bool = True,
        json_form: bool = True,
    ) -> Machine:
        """A new machine with one part. config: as text, it stays as it is, byte for byte."""
        robot_id = str(uuid.uuid4())
        part = Part(
            id=str(uuid.uuid4()),
            name=f"{name}-main",
            robot_id=robot_id,
            location_id=location.id,
            fqdn=fqdn or f"{name}-main.{location.id}.viam.invalid",
            text=config if isinstance(config, str) else json.dumps(config),
            updated=self._now(),
            json_form=json_form,
        )
        machine = Machine(robot_id, name, location.id, [part], online)
        self.machines[machine.id] = machine
        self.parts[part.id] = part
        return machine

    def fragment(self, name: str, config: Mapping[str, Any]) -> Fragment:
        """A new fragment with one revision."""
        fragment = Fragment(str(uuid.uuid4()), name, self.organization_id, [])
        self.fragments[fragment.id] = fragment
        self.revise(fragment, config)
        return fragment

    def revise(self, fragment: Fragment, config: Mapping[str, Any] | str) -> Revision:
        """Another revision of a fragment, as a person would save it."""
        text = config if isinstance(config, str) else json.dumps(config)
        at = self._now()
        digest = hashlib.sha256(f"{fragment.id}{len(fragment.revisions)}{text}".encode())
        revision = Revision(digest.hexdigest()[:12], text, at)
        fragment.revisions.append(revision)
        self._changed(self.parts)
        return revision

    def edit(self, part: Part, change: Callable[[dict[str, Any]], None]) -> None:
        """A change by somebody else's hand: `change` gets the configuration and alters it."""
        config = part.config
        change(config)
        self._save(part, part.name, json.dumps(config), by="somebody@example.com")

    def resolved(self, part: Part) -> dict[str, Any]:
        """What the machine gets: the part's configuration with its fragments, their variables and
        `fragment_mods`, all in one, and `errors` of fragments that can't be had."""
        config = part.config
        whole = {key: value for key, value in config.items() if key[:8] != "fragment"}
        errors = self._add_fragments(whole, config, depth=0)
        return {**whole, "errors": errors} if errors else whole

    def revision(self, part: Part) -> str:
        """What the machine reports as its configuration's revision: another one for each."""
        return hashlib.sha256(json.dumps(self.resolved(part)).encode()).hexdigest()[:12]

    # --- watching and disturbing it

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Be told of every call at each moment, before it goes on; an exception that is raised
        there (GRPCError; LostReply at "done") is what the client gets. Returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def watch(self, changed: Callable[[str], None]) -> None:
        """Be told of each part whose configuration may have changed, as machines ask for it."""
        self._watchers.append(changed)

    def fail(self, method: str, status: Status, *, times: int = 1, words: str = "") -> None:
        """Refuse the next calls of a method, which have no effect."""
        left = times

        def refuse(call: Call, moment: Moment) -> None:
            nonlocal left
            if call.method == method and moment == "arrives" and left > 0:
                left -= 1
                raise GRPCError(status, words or f"{method} is not served just now")

        self.listen(refuse)

    def lose_reply(self, method: str, *, nth: int = 1, moment: Moment = "done") -> None:
        """The nth call of a method from now has no reply, and its effect where that is "done"."""
        first = self._counts[method] + nth

        def lose(call: Call, now: Moment) -> None:
            if (call.method, call.nth, now) == (method, first, moment):
                raise LostReply

        self.listen(lose)

    def hold(self, method: str, *, nth: int = 1) -> Gate:
        """The nth call of a method from now waits before its effect until it is let go."""
        first, gate = self._counts[method] + nth, Gate()

        async def wait(call: Call, moment: Moment) -> None:
            if (call.method, call.nth, moment) == (method, first, "arrives"):
                gate.arrived.set()
                await gate.released.wait()

        self.listen(wait)
        return gate

    def edit_before_write(self, change: Callable[[dict[str, Any]], None], *, nth: int = 1) -> None:
        """Just before the nth UpdateRobotPart from now, somebody changes the same part."""
        first = self._counts["UpdateRobotPart"] + nth

        def edit(call: Call, moment: Moment) -> None:
            if (call.method, call.nth, moment) == ("UpdateRobotPart", first, "arrives"):
                self.edit(self.parts[call.request.id], change)

        self.listen(edit)

    @property
    def written(self) -> list[str]:
        """The parts that were written through the API, in order."""
        return [
            call.request.id
            for call in self.calls
            if call.method == "UpdateRobotPart" and call.status is Status.OK
        ]

    def asked(self, method: str) -> list[Call]:
        """The calls of a method."""
        return [call for call in self.calls if call.method == method]

    # --- serving

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A call is under way."""
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            yield
        finally:
            self._busy -= 1

    async def _serve(self, method: str, stream: Any) -> None:
        with self.busy():
            await self._answer(method, stream)

    async def _answer(self, method: str, stream: Any) -> None:
        request = await stream.recv_message()
        self._counts[method] += 1
        call = Call(len(self.calls) + 1, method, self._counts[method], request)
        self.calls.append(call)
        try:
            await self._tell(call, "arrives")
            answer = getattr(self, f"_on_{method}", None)
            if answer is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"{method} is not part of the fake app")
            if method == "Authenticate":
                reply = answer(request)
            else:
                key = self._key_of(stream.metadata.get("authorization", ""))
                call.key_id = key.id
                reply = answer(key, request)
            await self._tell(call, "done")
        except LostReply:
            call.status = Status.OK
            stream._stream._transport.abort()
            return
        except GRPCError as error:
            call.status = error.status
            raise
        call.status = Status.OK
        await stream.send_message(reply)
        await stream.send_trailing_metadata()
        await self._tell(call, "answered")

    async def _tell(self, call: Call, moment: Moment) -> None:
        for listener in list(self._listeners):
            waited = listener(call, moment)
            if inspect.isawaitable(waited):
                await waited

    def _key_of(self, authorization: str) -> Key:
        key = self._tokens.get(authorization.removeprefix("Bearer "))
        if key is None:
            raise GRPCError(Status.UNAUTHENTICATED, "invalid or expired access token")
        return key

    def _may(self, key: Key, permission: str, kind: str, id: str) -> bool:
        """Whether a key has a permission for one organisation, location or machine."""
        if permission not in key.permissions:
            return False
        above = {(kind, id)}
        if kind == "robot" and id in self.machines:
            above.add(("location", self.machines[id].location_id))
        if id in self.machines or id in self.locations:
            above.add(("organization", self.organization_id))
        return key.scope is None or key.scope in above

    def _need(self, key: Key, permission: str, kind: str, id: str) -> None:
        if not self._may(key, permission, kind, id):
            raise GRPCError(Status.PERMISSION_DENIED, f"no permission to {permission} {kind} {id}")

    def _part(self, key: Key, id: str, permission: str) -> Part:
        part = self.parts.get(id)
        if part is None:
            raise GRPCError(Status.NOT_FOUND, f"part {id} not found")
        self._need(key, permission, "robot", part.robot_id)
        return part

    def _machine(self, key: Key, id: str, permission: str) -> Machine:
        if id not in self.machines:
            raise GRPCError(Status.NOT_FOUND, f"robot {id} not found")
        self._need(key, permission, "robot", id)
        return self.machines[id]

    # --- keys

    def _on_Authenticate(self, request: AuthenticateRequest) -> AuthenticateResponse:
        key = self.keys.get(request.entity)
        given = request.credentials
        if key is None or given.type != "api-key" or given.payload != key.secret:
            raise GRPCError(Status.UNAUTHENTICATED, "invalid credentials")
        token = uuid.uuid4().hex
        self._tokens[token] = key
        return AuthenticateResponse(access_token=token)

    def _on_CheckPermissions(self, key: Key, request: Any) -> Any:
        if not request.permissions:
            raise GRPCError(Status.INVALID_ARGUMENT, "no permissions to check")
        return pb.CheckPermissionsResponse(
            authorized_permissions=[
                pb.AuthorizedPermissions(
                    resource_type=asked.resource_type,
                    resource_id=asked.resource_id,
                    permissions=[
                        name
                        for name in asked.permissions
                        if self._may(key, name, asked.resource_type, asked.resource_id)
                    ],
                )
                for asked in request.permissions
            ]
        )

    # --- organisations, locations, machines

    def _on_ListOrganizations(self, key: Key, request: Any) -> Any:
        return pb.ListOrganizationsResponse(organizations=[self._organization()])

    def _on_GetOrganization(self, key: Key, request: Any) -> Any:
        self._organization_of(key, request.organization_id)
        return pb.GetOrganizationResponse(organization=self._organization())

    def _on_ListLocations(self, key: Key, request: Any) -> Any:
        if request.organization_id != self.organization_id:
            raise GRPCError(Status.NOT_FOUND, f"organization {request.organization_id} not found")
        return pb.ListLocationsResponse(
            locations=[
                _location(location)
                for location in self.locations.values()
                if self._may(key, "read_location", "location", location.id)
            ]
        )

    def _on_GetLocation(self, key: Key, request: Any) -> Any:
        self._robots_in(key, request.location_id)
        return pb.GetLocationResponse(location=_location(self.locations[request.location_id]))

    def _on_ListRobots(self, key: Key, request: Any) -> Any:
        return pb.ListRobotsResponse(robots=self._robots_in(key, request.location_id))

    def _on_ListRobotsForLocations(self, key: Key, request: Any) -> Any:
        return pb.ListRobotsForLocationsResponse(
            robots=[robot for id in request.location_ids for robot in self._robots_in(key, id)]
        )

    def _on_ListRobotsForOrg(self, key: Key, request: Any) -> Any:
        self._organization_of(key, request.org_id)
        return pb.ListRobotsForOrgResponse(
            robots=[self._robot(machine) for machine in self.machines.values()]
        )

    def _on_GetRobot(self, key: Key, request: Any) -> Any:
        return pb.GetRobotResponse(robot=self._robot(self._machine(key, request.id, "read_robot")))

    def _on_GetRobotParts(self, key: Key, request: Any) -> Any:
        machine = self._machine(key, request.robot_id, "read_robot")
        return pb.GetRobotPartsResponse(parts=[self._shown(key, part) for part in machine.parts])

    def _on_GetRobotPart(self, key: Key, request: Any) -> Any:
        part = self._part(key, request.id, "read_robot")
        # What viam-server is started with, not what the part is configured to.
        start = {"cloud": {"app_address": self.url, "id": part.id, "secret": "***"}}
        return pb.GetRobotPartResponse(part=self._shown(key, part), config_json=json.dumps(start))

    def _on_GetRobotPartByNameAndLocation(self, key: Key, request: Any) -> Any:
        for part in self.parts.values():
            if (part.name, part.location_id) == (request.name, request.location_id):
                self._need(key, "read_robot", "robot", part.robot_id)
                return pb.GetRobotPartByNameAndLocationResponse(part=self._shown(key, part))
        raise GRPCError(Status.NOT_FOUND, f"part {request.name} not found")

    def _on_GetRobotPartHistory(self, key: Key, request: Any) -> Any:
        part = self._part(key, request.id, "read_robot_history")
        entries = [
            entry
            for entry in reversed(part.history)
            if not (request.HasField("start") and _time(entry.when) < _time(request.start))
            and not (request.HasField("end") and _time(entry.when) > _time(request.end))
        ]
        first = int(request.page_token or 0)
        last = first + (request.page_limit or HISTORY_LIMIT)
        return pb.GetRobotPartHistoryResponse(
            history=entries[first:last], next_page_token=str(last) if last < len(entries) else ""
        )

    def _on_UpdateRobotPart(self, key: Key, request: Any) -> Any:
        part = self._part(key, request.id, "write_robot")
        if not request.name:
            raise GRPCError(Status.INVALID_ARGUMENT, "name is required")
        if request.HasField("last_known_update") and part.updated > _time(
            request.last_known_update
        ):
            raise GRPCError(
                self.conflict, "the part was updated since the last known update; load it again"
            )
        text = part.text
        if request.HasField("robot_config_json"):
            text = request.robot_config_json
            try:
                whole = isinstance(json.loads(text), dict)
            except ValueError:
                whole = False
            if not whole:
                raise GRPCError(Status.INVALID_ARGUMENT, "robot_config_json is no JSON object")
        elif request.HasField("robot_config"):
            # A Struct has neither integers nor an order of keys.
            text = json.dumps(struct_to_dict(request.robot_config), sort_keys=True)
        self._save(part, request.name, text, by=key.id)
        part.json_form = part.json_form or request.HasField("robot_config_json")
        return pb.UpdateRobotPartResponse(part=self._shown(key, part))

    def _on_SetConfigProperty(self, key: Key, request: Any) -> Any:
        raise GRPCError(Status.UNIMPLEMENTED, "SetConfigProperty has no guard: not for rollouts")

    def _on_GetRobotMetadata(self, key: Key, request: Any) -> Any:
        machine = self._machine(key, request.id, "read_robot")
        return pb.GetRobotMetadataResponse(data=dict_to_struct(machine.metadata))

    def _on_UpdateRobotMetadata(self, key: Key, request: Any) -> Any:
        machine = self._machine(key, request.id, "write_robot")
        machine.metadata = dict(struct_to_dict(request.data))
        return pb.UpdateRobotMetadataResponse()

    def _on_GetRobotPartMetadata(self, key: Key, request: Any) -> Any:
        part = self._part(key, request.id, "read_robot")
        return pb.GetRobotPartMetadataResponse(data=dict_to_struct(part.metadata))

    def _on_UpdateRobotPartMetadata(self, key: Key, request: Any) -> Any:
        part = self._part(key, request.id, "write_robot")
        part.metadata = dict(struct_to_dict(request.data))
        return pb.UpdateRobotPartMetadataResponse()

    def _on_ListMachineSummaries(self, key: Key, request: Any) -> Any:
        if request.organization_id != self.organization_id:
            raise GRPCError(Status.NOT_FOUND, f"organization {request.organization_id} not found")
        left = request.limit if request.HasField("limit") else SUMMARIES_LIMIT
        found: dict[str, list[Machine]] = {}
        for machine in self.machines.values():
            asked = not request.location_ids or machine.location_id in request.location_ids
            used = {id for part in machine.parts for id in _fragment_ids(part.config)}
            if request.fragment_ids and not used & set(request.fragment_ids):
                continue
            if asked and left > 0 and self._may(key, "read_robot", "robot", machine.id):
                found.setdefault(machine.location_id, []).append(machine)
                left -= 1
        return pb.ListMachineSummariesResponse(
            location_summaries=[
                pb.LocationSummary(
                    location_id=id,
                    location_name=self.locations[id].name,
                    machine_summaries=[self._summary(machine) for machine in machines],
                )
                for id, machines in found.items()
            ]
        )

    # --- fragments

    def _on_ListFragments(self, key: Key, request: Any) -> Any:
        self._fragment_right(key, "read_fragment")
        return pb.ListFragmentsResponse(
            fragments=[self._fragment(fragment) for fragment in self.fragments.values()]
        )

    def _on_GetFragment(self, key: Key, request: Any) -> Any:
        fragment = self._fragment_of(key, request.id, "read_fragment")
        return pb.GetFragmentResponse(
            fragment=self._fragment(fragment, request.version),
            revisions=[
                pb.FragmentRevision(revision=revision.id, created_at=_stamp(revision.at))
                for revision in reversed(fragment.revisions)
            ],
            tags=_tags(fragment),
        )

    def _on_UpdateFragment(self, key: Key, request: Any) -> Any:
        fragment = self._fragment_of(key, request.id, "write_fragment")
        if request.HasField("last_known_update") and fragment.at().at > _time(
            request.last_known_update
        ):
            raise GRPCError(self.conflict, "the fragment was updated since the last known update")
        if request.HasField("fragment_config_json"):
            self.revise(fragment, request.fragment_config_json)
        else:
            self.revise(fragment, json.dumps(struct_to_dict(request.config), sort_keys=True))
        return pb.UpdateFragmentResponse(fragment=self._fragment(fragment))

    def _on_GetFragmentHistory(self, key: Key, request: Any) -> Any:
        fragment = self._fragment_of(key, request.id, "read_fragment")
        return pb.GetFragmentHistoryResponse(
            history=[
                pb.FragmentHistoryEntry(
                    fragment=fragment.id,
                    edited_on=_stamp(revision.at),
                    revision=revision.id,
                    config=dict_to_struct(json.loads(revision.text)),
                )
                for revision in reversed(fragment.revisions)
            ]
        )

    def _on_SetFragmentTag(self, key: Key, request: Any) -> Any:
        fragment = self._fragment_of(key, request.fragment_id, "write_fragment")
        fragment.tags[request.tag] = fragment.at(request.revision).id
        self._changed(self.parts)
        return pb.SetFragmentTagResponse(tags=_tags(fragment))

    def _on_DeleteFragmentTag(self, key: Key, request: Any) -> Any:
        fragment = self._fragment_of(key, request.fragment_id, "write_fragment")
        fragment.tags.pop(request.tag, None)
        self._changed(self.parts)
        return pb.DeleteFragmentTagResponse(tags=_tags(fragment))

    def _on_GetFragmentUsage(self, key: Key, request: Any) -> Any:
        fragment = self._fragment_of(key, request.fragment_id, "read_fragment")
        used = Counter(
            entry["version"]
            for part in self.parts.values()
            for entry in _fragment_entries(part.config)
            if entry["id"] == fragment.id
        )
        return pb.GetFragmentUsageResponse(
            version_usages=[
                pb.FragmentUsage(
                    fragment_id=fragment.id,
                    organizations=1,
                    machines=count,
                    machines_in_current_org=count,
                    version=version or None,
                )
                for version, count in used.items()
            ]
        )

    # --- captured data

    def _on_GetLatestTabularData(self, key: Key, request: GetLatestTabularDataRequest) -> Any:
        part = self._part(key, request.part_id, "read_robot_data_management")
        place = (
            part.id, request.resource_name, request.resource_subtype, request.method_name,
        )  # fmt: skip
        if place not in self.data:
            return GetLatestTabularDataResponse()
        captured, readings = self.data[place]
        return GetLatestTabularDataResponse(
            time_captured=_stamp(captured),
            time_synced=_stamp(captured),
            payload=dict_to_struct({"readings": readings}),
        )

    # --- inside

    def _now(self) -> datetime:
        """Later than ever before, in whole milliseconds as a database keeps them."""
        now = datetime.now(UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._last = max(now, self._last + timedelta(milliseconds=1))
        return self._last

    def _save(self, part: Part, name: str, text: str, *, by: str) -> None:
        old = self._proto(part)
        part.name, part.text, part.updated = name, text, self._now()
        part.history.append(
            pb.RobotPartHistoryEntry(
                part=part.id,
                robot=part.robot_id,
                when=_stamp(part.updated),
                old=old,
                edited_by=pb.AuthenticatorInfo(value=by),
            )
        )
        self._changed([part.id])

    def _changed(self, part_ids: Iterable[str]) -> None:
        for id in list(part_ids):
            for watcher in self._watchers:
                watcher(id)

    def _proto(self, part: Part) -> Any:
        machine = self.machines[part.robot_id]
        return pb.RobotPart(
            id=part.id,
            name=part.name,
            robot=part.robot_id,
            location_id=part.location_id,
            main_part=part.main,
            fqdn=part.fqdn,
            local_fqdn=part.fqdn,
            last_updated=_stamp(part.updated),
            online_state=_state(machine),
            robot_config=dict_to_struct(part.config),
            robot_config_json=part.text if part.json_form else None,
        )

    def _shown(self, key: Key, part: Part) -> Any:
        shown = self._proto(part)
        if not self._may(key, "read_robot_config", "robot", part.robot_id):
            shown.ClearField("robot_config")
            shown.ClearField("robot_config_json")
        return shown

    def _robot(self, machine: Machine) -> Any:
        return pb.Robot(
            id=machine.id,
            name=machine.name,
            location=machine.location_id,
            online_state=_state(machine),
        )

    def _robots_in(self, key: Key, location_id: str) -> list[Any]:
        if location_id not in self.locations:
            raise GRPCError(Status.NOT_FOUND, f"location {location_id} not found")
        if key.scope is None or key.scope[0] != "robot":
            self._need(key, "read_location", "location", location_id)
        return [
            self._robot(machine)
            for machine in self.machines.values()
            if machine.location_id == location_id
            and self._may(key, "read_robot", "robot", machine.id)
        ]

    def _summary(self, machine: Machine) -> Any:
        return pb.MachineSummary(
            machine_id=machine.id,
            machine_name=machine.name,
            part_summaries=[
                pb.PartSummary(
                    part_id=part.id,
                    part_name=part.name,
                    is_main_part=part.main,
                    online_state=_state(machine),
                    seconds_since_online=0 if machine.online else 3600,
                    fragments=[
                        pb.FragmentSummary(id=id, name=self.fragments[id].name)
                        for id in _fragment_ids(part.config)
                        if id in self.fragments
                    ],
                )
                for part in machine.parts
            ],
        )

    def _organization(self) -> Any:
        return pb.Organization(id=self.organization_id, name="acme")

    def _organization_of(self, key: Key, id: str) -> None:
        if id != self.organization_id:
            raise GRPCError(Status.NOT_FOUND, f"organization {id} not found")
        self._need(key, "read_organization", "organization", id)

    def _fragment_right(self, key: Key, permission: str) -> None:
        # Location and machine owners see the fragments that they use (RBAC, "Fragments").
        if permission not in key.permissions:
            raise GRPCError(Status.PERMISSION_DENIED, f"no permission to {permission}")

    def _fragment_of(self, key: Key, id: str, permission: str) -> Fragment:
        self._fragment_right(key, permission)
        if id not in self.fragments:
            raise GRPCError(Status.NOT_FOUND, f"fragment {id} not found")
        return self.fragments[id]

    def _fragment(self, fragment: Fragment, version: str = "") -> Any:
        revision = fragment.at(version)
        return pb.Fragment(
            id=fragment.id,
            name=fragment.name,
            organization_owner=fragment.organization_id,
            fragment=dict_to_struct(json.loads(revision.text)),
            fragment_config_json=revision.text,
            last_updated=_stamp(revision.at),
            revision=revision.id,
        )

    def _add_fragments(
        self, whole: dict[str, Any], config: Mapping[str, Any], *, depth: int
    ) -> list[str]:
        errors: list[str] = []
        for entry in _fragment_entries(config):
            fragment = self.fragments.get(entry["id"])
            if fragment is None or depth > 5:
                errors.append(f"fragment {entry['id']} can't be had")
                continue
            try:
                text = fragment.at(entry["version"]).text
            except GRPCError as error:
                errors.append(str(error.message))
                continue
            inner = _with_variables(json.loads(text), entry["variables"], errors)
            for mods in config.get("fragment_mods", []):
                if mods["fragment_id"] == fragment.id:
                    _modify(inner, mods["mods"])
            for key, value in inner.items():
                if isinstance(value, list) and key[:8] != "fragment":
                    whole[key] = [*whole.get(key, []), *value]
                elif key[:8] != "fragment":
                    whole.setdefault(key, value)
            errors += self._add_fragments(whole, inner, depth=depth + 1)
        return errors


class Gate:
    """A call that waits. arrived: it is there; `release` lets it go on."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.released = asyncio.Event()

    def release(self) -> None:
        """Let it go on."""
        self.released.set()


class _Served:
    """One of the SDK's services with each of its methods going to `serve`."""

    def __init__(
        self, mapping: dict[str, Handler], serve: Callable[[str, Any], Awaitable[None]]
    ) -> None:
        def handler(path: str) -> Callable[[Any], Awaitable[None]]:
            return lambda stream: serve(path.rpartition("/")[2], stream)

        self._mapping = {
            path: handled._replace(func=handler(path)) for path, handled in mapping.items()
        }

    def __mapping__(self) -> dict[str, Handler]:
        return self._mapping


def _fragment_entries(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fragments that a configuration names, in either form: an id, or an object."""
    return [
        {"id": entry, "version": "", "variables": {}}
        if isinstance(entry, str)
        else {
            "id": entry["id"],
            "version": entry.get("version", ""),
            "variables": entry.get("variables", {}),
        }
        for entry in config.get("fragments", [])
    ]


def _fragment_ids(config: Mapping[str, Any]) -> list[str]:
    return [entry["id"] for entry in _fragment_entries(config)]


def _with_variables(value: Any, variables: Mapping[str, Any], errors: list[str]) -> Any:
    """`value` with each {"$variable": {"name": NAME}} replaced ("Fragments", "Add variable
    templates"); one that the machine does not set is told, and left out."""
    if isinstance(value, dict):
        if set(value) == {"$variable"}:
            name = value["$variable"]["name"]
            if name not in variables:
                errors.append(f"the fragment's variable {name!r} has no value")
                return None
            return copy.deepcopy(variables[name])
        pairs = ((k, _with_variables(v, variables, errors)) for k, v in value.items())
        return {key: item for key, item in pairs if item is not None}
    if isinstance(value, list):
        return [_with_variables(item, variables, errors) for item in value]
    return value


def _modify(config: dict[str, Any], mods: Iterable[Mapping[str, Any]]) -> None:
    """Apply `fragment_mods`: "$set" and "$unset" of COLLECTION.NAME.PATH."""
    for mod in mods:
        for path, value in mod.get("$set", {}).items():
            place, last = _place(config, path)
            place[last] = copy.deepcopy(value)
        for path in mod.get("$unset", {}):
            place, last = _place(config, path)
            place.pop(last, None)


def _place(config: dict[str, Any], path: str) -> tuple[Any, Any]:
    collection, name, *rest = path.split(".")
    place: Any = next(item for item in config[collection] if item["name"] == name)
    for key in rest[:-1]:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    last: Any = rest[-1]
    return place, int(last) if isinstance(place, list) else last


def _location(location: Location) -> Any:
    return pb.Location(
        id=location.id,
        name=location.name,
        organizations=[
            pb.LocationOrganization(organization_id=location.organization_id, primary=True)
        ],
        primary_org_identity=pb.OrganizationIdentity(id=location.organization_id, name="acme"),
    )


def _tags(fragment: Fragment) -> list[Any]:
    return [pb.FragmentTag(tag=tag, revision=id) for tag, id in fragment.tags.items()]


def _state(machine: Machine) -> Any:
    return (
        pb.OnlineState.ONLINE_STATE_ONLINE
        if machine.online
        else pb.OnlineState.ONLINE_STATE_OFFLINE
    )


def _stamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def _time(stamp: Any) -> datetime:
    time: datetime = stamp.ToDatetime(tzinfo=UTC)
    return time
