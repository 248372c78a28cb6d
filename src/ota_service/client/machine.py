# SPDX-License-Identifier: GPL-3.0-or-later
"""The OTA service on a machine, through the Viam SDK's client.

Connects when it is first asked, and again when the connection was lost; every failure is a
`Failure` in a person's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ota_service.client.failure import Failure
from ota_service.errors import ERRORS
from ota_service.firmware import secrets
from ota_service.formats.text import visible

if TYPE_CHECKING:
    from viam.robot.client import RobotClient
    from viam.services.generic.client import GenericClient

DEFAULT_NAME = "OTA"
STATUS_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 30.0
DIAL_TIMEOUT_S = 20.0

_KEY_HINT = " A machine that asks for a key gets it from VIAM_API_KEY and VIAM_API_KEY_ID."
# How the SDK writes an exception of a module, with the file and line that it came from.
_FROM_MODULE = re.compile(
    r"(?:rpc error: code = \w+ desc = )*(?:(\w+) - )?(.*?)"
    r"(?: - file_name=.*)?",
    re.DOTALL,
)
_CODE = re.compile(r"\s*\[([a-z][a-z-]+)\]\s*$")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the machine is and how to get in.

    address: HOST:PORT, a machine's address in the Viam app, or a Unix socket. Without a key the
    connection is not encrypted, as to a viam-server on this machine or in a closed network.
    """

    address: str
    name: str = DEFAULT_NAME
    api_key: str | None = field(default=None, repr=False)
    api_key_id: str | None = None


class Machine:
    """One service of one machine. Belongs to one event loop; `close` it at the end."""

    def __init__(self, access: Access) -> None:
        self.access = access
        if access.api_key is not None:
            secrets.learn("", {"api-key": access.api_key})
        self._robot: RobotClient | None = None
        self._client: GenericClient | None = None
        self._connecting = asyncio.Lock()

    async def status(self) -> dict[str, Any]:
        """Everything that the service knows. Raises Failure."""
        async with self._explained(STATUS_TIMEOUT_S):
            client = await self._connected()
            return _whole(await client.get_status(timeout=STATUS_TIMEOUT_S))

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        """One DoCommand; its reply. wait_s: how long the service may take. Raises Failure."""
        given = {key: value for key, value in (arguments or {}).items() if value is not None}
        timeout_s = COMMAND_TIMEOUT_S + wait_s
        async with self._explained(timeout_s):
            client = await self._connected()
            return _whole(await client.do_command({"command": verb, **given}, timeout=timeout_s))

    async def close(self) -> None:
        """Disconnect; the next question connects again."""
        robot, self._robot, self._client = self._robot, None, None
        if robot is not None:
            with contextlib.suppress(Exception):
                await robot.close()  # type: ignore[no-untyped-call]

    async def _connected(self) -> GenericClient:
        async with self._connecting:
            if self._client is None:
                self._robot = await _dial(self.access)
                try:
                    self._client = _service(self._robot, self.access.name)
                except BaseException:
                    await self.close()
                    raise
            return self._client

    @asynccontextmanager
    async def _explained(self, timeout_s: float) -> AsyncIterator[None]:
        from grpclib import GRPCError, Status
        from grpclib.exceptions import StreamTerminatedError

        try:
            yield
        except Failure:
            raise
        except GRPCError as error:
            if error.status in (Status.UNAVAILABLE, Status.UNAUTHENTICATED):
                await self.close()
            raise _refusal(error.status, error.message or "", self.access) from None
        except TimeoutError:
            await self.close()
            raise _unreached(self.access, f"did not answer within {timeout_s:.0f} s") from None
        except (StreamTerminatedError, OSError) as error:
            await self.close()
            why = f"is no longer connected ({_reason(error)})"
            raise _unreached(self.access, why) from None
        except NotImplementedError:
            raise _no_ota_service(self.access) from None
        except Exception as error:  # of the libraries below, which have many of their own
            await self.close()
            raise _unreached(self.access, f"could not be asked ({_reason(error)})") from error


@asynccontextmanager
async def connect(access: Access) -> AsyncIterator[Machine]:
    """A service of a machine for the length of a block. Raises Failure at the first question."""
    machine = Machine(access)
    try:
        yield machine
    finally:
        await machine.close()


async def _dial(access: Access) -> RobotClient:
    import viam.services.generic  # noqa: F401 - what is not imported gets no client
    from viam.robot.client import RobotClient
    from viam.rpc.dial import DialOptions

    # The SDK's native library logs on stdout, with whole traces, what is told in one line here.
    os.environ.setdefault("RUST_LOG", "off")
    if access.api_key is not None and access.api_key_id is not None:
        dial = DialOptions.with_api_key(access.api_key, access.api_key_id)
    else:
        dial = DialOptions(insecure=True, disable_webrtc=True)
    dial.timeout = dial.initial_connection_attempt_timeout = DIAL_TIMEOUT_S
    # Its own way of reconnecting ends the process where it fails; `Machine` reconnects instead.
    options = RobotClient.Options(
        dial_options=dial,
        check_connection_interval=0,
        attempt_reconnect_interval=0,
        disable_sessions=True,
        log_level=logging.CRITICAL + 1,
    )
    try:
        async with asyncio.timeout(2 * DIAL_TIMEOUT_S):
            return await RobotClient.at_address(access.address, options)
    except Exception as error:
        hint = "" if access.api_key else _KEY_HINT
        raise _unreached(access, f"cannot be reached ({_reason(error)})", hint) from None


def _service(robot: RobotClient, name: str) -> GenericClient:
    from viam.services.generic import Generic
    from viam.services.generic.client import GenericClient

    found = sorted(
        n.name
        for n in robot.resource_names
        if n.subtype == Generic.API.resource_subtype and n.type == Generic.API.resource_type
    )
    if name not in found:
        have = f"its generic services are {', '.join(found)}" if found else "it has none"
        raise Failure(
            f'The machine has no generic service "{name}"; {have}.',
            "Name it with --name, or add the service to the machine's configuration; if it is "
            "there, the machine's LOGS say why it was refused.",
            code="not-found",
        )
    client = robot.get_service(Generic.get_resource_name(name))
    assert isinstance(client, GenericClient)
    return client


def _refusal(status: Any, text: str, access: Access) -> Failure:
    """What a gRPC error means."""
    if status.name == "UNAVAILABLE":
        return _unreached(access, f"is not available ({text})")
    if status.name == "UNIMPLEMENTED" or text.startswith("NotImplementedError -"):
        return _no_ota_service(access)
    if status.name in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return Failure(
            f"{access.address} does not let us in ({text}).",
            "Check VIAM_API_KEY and VIAM_API_KEY_ID.",
            code="refused",
        )
    if status.name == "DEADLINE_EXCEEDED":
        return _unreached(access, "did not answer in time")
    return from_module(text)


def _unreached(access: Access, what: str, hint: str = "") -> Failure:
    remedy = ERRORS["unreachable"].remedy + hint
    return Failure(f"{access.address} {what}.", remedy, code="unreachable")


def _no_ota_service(access: Access) -> Failure:
    return Failure(
        f'"{access.name}" does not answer as the OTA service does.',
        "Name the OTA service with --name.",
        code="not-found",
    )


def from_module(text: str) -> Failure:
    """The failure behind an exception of the module, without the SDK's trimmings."""
    match = _FROM_MODULE.fullmatch(text.strip())
    words = (match.group(2) if match else text).strip()
    code = _CODE.search(words)
    if code is None or code.group(1) not in ERRORS:
        return Failure(words or "The service failed without a word.", code="refused")
    words = words[: code.start()].strip()
    remedy = ERRORS[code.group(1)].remedy
    if words.endswith(remedy):
        return Failure(words.removesuffix(remedy).strip(), remedy, code=code.group(1))
    return Failure(words, code=code.group(1))


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")


def _whole(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A reply as it is shown: with every whole float as an int, since on its way through Viam each
    int became one, and its texts such that they are seen as they are, whoever made them."""
    return {visible(key): whole_numbers(value) for key, value in reply.items()}


def whole_numbers(value: Any) -> Any:
    """`value` with every whole float in it as an int, and every text visible."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return _whole(value)
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list | tuple):
        return [whole_numbers(item) for item in value]
    return value
