# SPDX-License-Identifier: GPL-3.0-or-later
"""Viam's app API, as far as a rollout needs it: machines, their parts, fragments, readings.

What passes by itself (UNAVAILABLE, RESOURCE_EXHAUSTED, a lost connection) is tried again later and
later. A write is sent once: whether it arrived is for the caller to read. Every other failure is a
`Failure` in a person's words.

The SDK's messages and stubs are used without its clients, which leave something out: a part's time
of change is a Timestamp here (a datetime has no nanoseconds, and an older time is a conflict), its
history has pages, and a connection that is not let in is closed.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ota_service.client.addresses import is_loopback
from ota_service.client.failure import Failure
from ota_service.client.machine import Access
from ota_service.firmware import secrets
from ota_service.rollout import document
from ota_service.rollout.plan import Select

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from grpclib import Status
    from grpclib.client import Channel
    from viam.proto.app import Robot

DEFAULT_URL = "https://app.viam.com"
CALL_TIMEOUT_S = 30.0
MAX_PARALLEL = 16
ATTEMPTS = 8
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
HISTORY_PAGE = 50
HISTORY_ENTRIES = 1000
CHECKED_AT_ONCE = 100

PERMISSIONS = ("read_robot", "read_robot_config", "write_robot", "control_robot")
"""What a key needs for each machine. Names: viam-sdk's `check_permissions`."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks whom. url: of the app; http is for the loopback interface alone."""

    key_id: str
    key: str = field(repr=False)
    url: str = DEFAULT_URL

    def access(self, address: str, service: str) -> Access:
        """How to get to a machine's service: without a key only on this computer."""
        if is_here(address):
            return Access(address, service)
        return Access(address, service, self.key, self.key_id)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a machine, as it was read. text: its configuration; "" where it may not be read.
    offline: the app has not heard of it lately."""

    id: str
    name: str
    main: bool
    address: str
    text: str
    updated: Timestamp
    offline: bool = False


class Conflict(Exception):
    """The app refused a write; in its words. Whether because of another's is for reading."""


class KeyRefused(Failure):
    """The app does not know the key (any more), which says nothing of a machine."""


class NotSent(Exception):
    """A write got no reply: it may have arrived."""


class Cloud:
    """A connection to the app, made at the first call; to be closed (`contextlib.closing`)."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        secrets.learn("", {"api-key": credentials.key})

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.channel.close()

    # --- machines

    async def robots(self, select: Select) -> list[Robot]:
        """The machines of the organisation or locations that are selected, by name where given.

        Raises Failure.
        """
        from viam.proto.app import ListLocationsRequest, ListRobotsForLocationsRequest

        locations = select.locations
        if not locations:
            organization = select.organization or await self._organization()
            reply = await self._call(
                "ListLocations", ListLocationsRequest(organization_id=organization)
            )
            locations = [location.id for location in reply.locations]
        if not locations:
            return []
        request = ListRobotsForLocationsRequest(location_ids=locations)
        reply = await self._call("ListRobotsForLocations", request)
        # One that several locations share is listed in each.
        robots: dict[str, Robot] = {robot.id: robot for robot in reply.robots}
        if select.machines is None:
            return list(robots.values())
        wanted = set(select.machines)
        found = [robot for robot in robots.values() if {robot.id, robot.name} & wanted]
        missing = wanted - {name for robot in found for name in (robot.id, robot.name)}
        if missing:
            raise Failure(
                f"There is no machine {', '.join(sorted(missing))}.",
                "Correct select.machines, or the key's access.",
                code="not-found",
            )
        return found

    async def parts(self, robot: Robot) -> list[Part]:
        """The parts of a machine, the main one first. Raises Failure."""
        from viam.proto.app import GetRobotPartsRequest

        reply = await self._call("GetRobotParts", GetRobotPartsRequest(robot_id=robot.id))
        return sorted(map(_part, reply.parts), key=lambda part: not part.main)

    async def part(self, part_id: str) -> Part:
        """A part as it is now. Raises Failure."""
        from viam.proto.app import GetRobotPartRequest

        return _part((await self._call("GetRobotPart", GetRobotPartRequest(id=part_id))).part)

    async def write(self, part: Part, text: str) -> None:
        """Replace the configuration of a part as it was read, and of no other.

        Raises Conflict, NotSent, and Failure where the key may not.
        """
        from viam.proto.app import UpdateRobotPartRequest
        from viam.utils import dict_to_struct

        # The JSON form is what is stored. An app without it would change nothing without the other.
        try:
            struct = dict_to_struct(document.parse(text))
        except (ValueError, OverflowError) as error:  # a number or a text that it cannot hold
            why = f"its configuration cannot be sent ({error})"
            raise Failure(why, "Change it in the app.", code="refused") from None
        request = UpdateRobotPartRequest(
            id=part.id,
            name=part.name,
            last_known_update=part.updated,
            robot_config=struct,
            robot_config_json=text,
        )
        await self._call("UpdateRobotPart", request, once=True)

    async def history(self, part_id: str) -> AsyncIterator[str]:
        """The configurations that a part had, the newest first, and not the one that it has.

        Raises Failure, also where they come in another order, which is promised nowhere.
        """
        from viam.proto.app import GetRobotPartHistoryRequest

        token, seen = "", 0
        last_ns: float = math.inf
        while seen < HISTORY_ENTRIES:
            request = GetRobotPartHistoryRequest(
                id=part_id, page_token=token, page_limit=HISTORY_PAGE
            )
            reply = await self._call("GetRobotPartHistory", request)
            times = [last_ns, *(entry.when.ToNanoseconds() for entry in reply.history)]
            if times != sorted(times, reverse=True):
                words = "Viam's app gives the history in another order than the newest first."
                raise Failure(words, "Look it up in the app.", code="refused")
            for entry in reply.history:
                yield _text(entry.old)
            last_ns = times[-1]
            seen += len(reply.history)
            token = reply.next_page_token
            if not token:
                return

    async def fragment(self, fragment_id: str, version: str) -> dict[str, Any]:
        """The configuration of a fragment's version (a revision or a tag; "": the newest).

        Raises Failure.
        """
        from viam.proto.app import GetFragmentRequest
        from viam.utils import struct_to_dict

        request = GetFragmentRequest(id=fragment_id, version=version or None)
        fragment = (await self._call("GetFragment", request)).fragment
        if fragment.HasField("fragment_config_json"):
            try:
                return document.parse(fragment.fragment_config_json)
            except document.DocumentError as error:
                words = f"The fragment {fragment_id} cannot be read: {error}."
                raise Failure(words, "Correct it in the app.", code="refused") from None
        return struct_to_dict(fragment.fragment)

    async def readings(self, part_id: str, sensor: str) -> tuple[float, dict[str, Any]] | None:
        """The newest captured readings of a sensor, and when they were (seconds since 1970)."""
        from viam.proto.app.data import GetLatestTabularDataRequest
        from viam.utils import struct_to_dict

        request = GetLatestTabularDataRequest(
            part_id=part_id,
            resource_name=sensor,
            resource_subtype="rdk:component:sensor",
            method_name="Readings",
        )
        reply = await self._call("GetLatestTabularData", request)
        if not reply.payload:
            return None
        payload = struct_to_dict(reply.payload)
        # As viam-server captures them: {"readings": {...}}.
        inner = payload.get("readings")
        shown = dict(inner) if isinstance(inner, dict) else payload
        return reply.time_captured.ToNanoseconds() / 1e9, shown

    async def missing_permissions(self, robots: Iterable[Robot]) -> dict[str, list[str]] | None:
        """Of each machine's name: what the key may not do there. None: the app doesn't say."""
        from viam.proto.app import AuthorizedPermissions, CheckPermissionsRequest

        asked = list(robots)
        missing: dict[str, list[str]] = {}
        for first in range(0, len(asked), CHECKED_AT_ONCE):
            some = asked[first : first + CHECKED_AT_ONCE]
            request = CheckPermissionsRequest(
                permissions=[
                    AuthorizedPermissions(
                        resource_type="robot", resource_id=robot.id, permissions=PERMISSIONS
                    )
                    for robot in some
                ]
            )
            try:
                reply = await self._call("CheckPermissions", request)
            except Failure:
                return None
            allowed = {
                each.resource_id: set(each.permissions) for each in reply.authorized_permissions
            }
            for robot in some:
                lacks = [name for name in PERMISSIONS if name not in allowed.get(robot.id, ())]
                if lacks:
                    missing[robot.name] = lacks
        return missing

    # --- inside

    async def _organization(self) -> str:
        from viam.proto.app import ListOrganizationsRequest

        reply = await self._call("ListOrganizations", ListOrganizationsRequest())
        found = [organization.id for organization in reply.organizations]
        if len(found) != 1:
            raise Failure(
                f"The key is for {len(found) or 'no'} organisations.",
                "Name one in select.organization, or locations.",
                code="config-invalid",
            )
        return str(found[0])

    async def _call(self, method: str, request: Any, *, once: bool = False) -> Any:
        """One call, and its reply. once: it is not sent again where that could do it twice."""
        from grpclib import GRPCError, Status
        from grpclib.exceptions import StreamTerminatedError

        pause_s, words, renewed = FIRST_PAUSE_S, "", False
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            connection = None
            try:
                connection = await self._connected()
                stub = connection.data if method == "GetLatestTabularData" else connection.app
                return await getattr(stub, method)(
                    request, metadata=connection.metadata, timeout=CALL_TIMEOUT_S
                )
            except GRPCError as error:
                words = f"{error.message or error.status.name.lower()}"
                expired = error.status is Status.UNAUTHENTICATED and not renewed
                if expired and connection is not None:
                    # A token lasts hours, and a rollout days.
                    renewed = True
                    await self._forget(connection)
                else:
                    refused = method if connection else "Authenticate"
                    why = _refusal(error.status, refused, words, once=once)
                    if why is not None:
                        raise why from None
            except (StreamTerminatedError, OSError, TimeoutError) as error:
                words = str(error) or type(error).__name__
                if once and connection is not None:
                    raise NotSent(words) from None
        raise Failure(
            f"Viam's app cannot be asked ({method}: {words}).",
            "Try again later: what was done so far is kept, and `start` goes on with it.",
            code="unreachable",
        )

    async def _connected(self) -> _Connection:
        from grpclib.client import Channel
        from viam.proto.app import AppServiceStub
        from viam.proto.app.data import DataServiceStub
        from viam.proto.rpc.auth import AuthenticateRequest, AuthServiceStub
        from viam.proto.rpc.auth import Credentials as Secret

        async with self._connecting:
            if self._connection is None:
                given, at = self.credentials, urlsplit(self.credentials.url)
                safe = at.scheme != "http"
                channel = Channel(at.hostname, at.port or (443 if safe else 80), ssl=safe or None)
                request = AuthenticateRequest(
                    entity=given.key_id, credentials=Secret(type="api-key", payload=given.key)
                )
                try:
                    reply = await AuthServiceStub(channel).Authenticate(
                        request, timeout=CALL_TIMEOUT_S
                    )
                except BaseException:
                    channel.close()
                    raise
                self._connection = _Connection(
                    channel,
                    {"authorization": f"Bearer {reply.access_token}"},
                    AppServiceStub(channel),
                    DataServiceStub(channel),
                )
            return self._connection

    async def _forget(self, connection: _Connection) -> None:
        async with self._connecting:
            if self._connection is connection:
                self.close()


@dataclass(frozen=True, slots=True)
class _Connection:
    """Its channel, what authorises a call, and the services."""

    channel: Channel
    metadata: dict[str, str]
    app: Any
    data: Any


def is_here(address: str) -> bool:
    """Whether a host, host:port or url is this computer."""
    return is_loopback(urlsplit(address if "://" in address else f"//{address}").hostname or "")


async def at_once(
    do: Callable[[Item], Awaitable[Result]], items: Iterable[Item], limit: int = MAX_PARALLEL
) -> list[Result]:
    """What each comes to, in their order, at most `limit` at work; raises once all have ended."""
    waiting = list(items)
    # Not a task an item: closing a connection asks each task of the loop who it is.
    left, found = iter(enumerate(waiting)), dict[int, Result]()

    async def work() -> None:
        for number, item in left:
            found[number] = await do(item)

    workers = (work() for _ in range(min(limit, len(waiting))))
    for ended in await asyncio.gather(*workers, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended
    return [found[number] for number in range(len(waiting))]


# --- inside


def _refusal(status: Status, method: str, words: str, *, once: bool) -> Exception | None:
    """What a refused call comes to; None: it passes by itself, and is sent again."""
    if status.name in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        of_all = status.name == "UNAUTHENTICATED" or method == "Authenticate"
        return (KeyRefused if of_all else Failure)(
            f"The key may not do that: {method}: {words}.",
            "Check VIAM_API_KEY and VIAM_API_KEY_ID; the key needs to be an owner of the machines.",
            code="refused",
        )
    if status.name not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"):
        refused = Failure(f"Viam's app refuses {method}: {words}.", code="refused")
        return Conflict(words) if once else refused
    return NotSent(words) if once and status.name != "RESOURCE_EXHAUSTED" else None


def _part(given: Any) -> Part:
    from viam.proto.app import OnlineState

    return Part(
        id=given.id,
        name=given.name,
        main=given.main_part,
        address=given.fqdn,
        text=_text(given),
        updated=given.last_updated,
        offline=given.online_state == OnlineState.ONLINE_STATE_OFFLINE,
    )


def _text(given: Any) -> str:
    """A part's configuration as text: as it was saved, else made of the Struct."""
    from viam.utils import struct_to_dict

    if given.robot_config_json:
        return str(given.robot_config_json)
    if given.HasField("robot_config"):
        return document.dumps(struct_to_dict(given.robot_config))
    return ""
