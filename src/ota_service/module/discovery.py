# SPDX-License-Identifier: GPL-3.0-or-later
"""Discovery beside the service: what is attached, as configurations that only lack a firmware.

Without `extra={"probe": true}` no port is opened: what is known comes from USB descriptors, from
the journal, and from the services of this process, whose boards are reported and never probed.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError
from viam.proto.app.robot import ComponentConfig
from viam.proto.common import ResourceName
from viam.resource.base import ResourceBase
from viam.resource.types import Model, ModelFamily
from viam.services.discovery import Discovery
from viam.utils import dict_to_struct

from ota_service.errors import OtaError
from ota_service.link.ownership import PORT_OWNERS, SERVICE_CLAIMS, holders
from ota_service.link.ports import canonical, describe, exists, list_ports, shown
from ota_service.module.checks import UNSET, Strict, a_fault, check_port, words_of
from ota_service.module.config import read_attributes
from ota_service.module.findings import OF_BOARD, Finding, configurations, of_inspection, report_of
from ota_service.module.folders import default_state_dir
from ota_service.module.neighbours import directory, statuses
from ota_service.module.plain import from_struct, plain

LOGGER = logging.getLogger("ota_service.module")

MODEL = Model(ModelFamily("rdk", "generic"), "ota_discovery")
PROBES = ThreadPoolExecutor(max_workers=8, thread_name_prefix="probe")
"""Apart from the event loop's own threads, which the services need while probes go on."""


class OtaDiscovery(Discovery):
    """Finds boards. ports: further ones to look at, by path or url."""

    def __init__(self, name: str, ports: Sequence[str] = ()) -> None:
        super().__init__(name)
        self.ports = tuple(ports)
        self._owner = f"discovery {name}"
        self._probing = asyncio.Lock()
        self._given_up: set[threading.Event] = set()

    @classmethod
    def new(
        cls, config: ComponentConfig, dependencies: Mapping[ResourceName, ResourceBase]
    ) -> Self:
        """Make the service of a configuration. Raises OtaError config-invalid."""
        given = read_attributes(from_struct(config.attributes), DiscoveryAttributes)
        return cls(config.name, given.ports)

    @classmethod
    def validate_config(cls, config: ComponentConfig) -> tuple[Sequence[str], Sequence[str]]:
        """Check a configuration; it depends on nothing. Raises OtaError config-invalid."""
        read_attributes(from_struct(config.attributes), DiscoveryAttributes)
        return [], []

    async def discover_resources(
        self, *, extra: Mapping[str, Any] | None = None, **_: Any
    ) -> list[ComponentConfig]:
        """Configurations of the OTA service for the boards that are attached.

        extra: {"probe": true} also opens the ports that may have a board, which restarts what
        is behind them. Other keys are passed over. Raises ValueError where probe is no bool.
        """
        found = await self.find(probe=_wants_probe(extra or {}))
        return [
            ComponentConfig(
                name=name,
                namespace="rdk",
                type="generic",
                api="rdk:service:generic",
                model="rdk:generic:ota_service",
                attributes=dict_to_struct(attributes),
            )
            for name, attributes in configurations(found, set(await statuses()))
        ]

    async def do_command(self, command: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        """`{"command": "discover", "probe": bool}`: what was found, port by port."""
        given = dict(command)
        verb = given.pop("command", None)
        if verb != "discover":
            raise ValueError('there is only one command here: {"command": "discover"}')
        for name in given:
            if name != "probe":
                raise ValueError(f"discover has no argument {name}; it takes probe")
        found = await self.find(probe=_wants_probe(given))
        ports = {shown(item.port): report_of(item) for item in found}
        return {"ok": True, "ports": plain(ports)}

    async def close(self) -> None:
        """Give up looks that go on; their boards are still put back."""
        for given_up in self._given_up:
            given_up.set()

    async def find(self, *, probe: bool) -> list[Finding]:
        """What is attached, in the order of the ports."""
        if not probe:
            return await self._look()
        async with self._probing:  # two at a time would find each other's ports busy
            return await self._probe(await self._look())

    async def _look(self) -> list[Finding]:
        """What is known while all ports stay closed."""
        services, known = await statuses(), await directory()
        return await asyncio.to_thread(_look, self.ports, services, known, self._owner)

    async def _probe(self, found: list[Finding]) -> list[Finding]:
        probing = await asyncio.to_thread(importlib.import_module, "ota_service.fleet.directory")
        given_up = threading.Event()
        self._given_up.add(given_up)
        loop = asyncio.get_running_loop()

        def look(finding: Finding) -> Finding:
            try:
                inspection = probing.probe(finding.port, self._owner, given_up)
            except OtaError as error:
                return replace(finding, probed=True, problem=error)
            probing.remember(default_state_dir(), finding.port, finding.info, inspection)
            return of_inspection(finding, inspection)

        async def one(finding: Finding) -> Finding:
            if not finding.may_be_probed:
                return finding
            seen = await loop.run_in_executor(PROBES, look, finding)
            LOGGER.info("%s: %s", shown(finding.port), seen.in_words)
            return seen

        try:
            return list(await asyncio.gather(*(one(finding) for finding in found)))
        finally:
            given_up.set()
            self._given_up.discard(given_up)


# --- looking without opening anything; called in threads


def _look(
    ports: Sequence[str], services: Mapping[str, Any], directory: Any, owner: str
) -> list[Finding]:
    """services: their statuses by their names. directory: the journal's, if there is one. owner:
    who is looking."""
    infos = {info.device: info for info in list_ports()}
    found = [Finding(device, info) for device, info in infos.items()]
    for port in ports:
        device = canonical(port)
        finding = Finding(port, infos.get(device) or describe(port), listed=True)
        found = [other for other in found if other.port != device] + [finding]
    return [_recognise(finding, services, directory, owner) for finding in found]


def _recognise(
    finding: Finding, services: Mapping[str, Any], directory: Any, owner: str
) -> Finding:
    """Fill in what can be known of a port while it stays closed."""
    info = finding.info
    finding = replace(finding, mac=info.mac if info is not None else None)
    if info is not None and directory is not None and (seen := directory.recall(info)) is not None:
        finding = replace(finding, **{name: getattr(seen, name) for name in OF_BOARD})
        if directory.awaits_confirmation(seen.mac):
            return replace(finding, problem=OtaError("awaiting-confirmation"))
    if not exists(finding.port):
        return replace(finding, problem=OtaError("port-missing"))
    owned = _of_a_service(finding, services)
    return owned or replace(finding, problem=_held(finding.port, owner))


def _of_a_service(finding: Finding, services: Mapping[str, Any]) -> Finding | None:
    """The finding with what a service of this process knows, where one has the port."""
    device = canonical(finding.port)
    owners = (SERVICE_CLAIMS.owner(key) for key in (device, finding.mac) if key is not None)
    claimed = next((owner for owner in owners if owner is not None), None)
    for service, status in services.items():
        for name, board in status.get("boards", {}).items():
            here = canonical(board.get("port", "")) == device if board.get("port") else False
            same = finding.mac is not None and board.get("mac") == finding.mac
            # A candidate is a port that the service has not opened and may never open.
            if (here or same) and (service == claimed or board["state"] != "candidate"):
                has = {**board, **board.get("running", {})}
                known = {key: has[key] for key in OF_BOARD if key in has}
                mine = {"service": service, "board": name, "state": board["state"]}
                return replace(finding, **mine, status=status, **known)
    return replace(finding, service=claimed) if claimed is not None else None


def _held(port: str, looking: str) -> OtaError | None:
    """Who else has the port open, as an error; nobody: None."""
    owner = PORT_OWNERS.owner(port)
    if owner == looking:
        return None
    names = [owner] if owner is not None else [str(holder) for holder in holders(port)]
    if not names:
        return None
    return OtaError("port-busy", f"The port {shown(port)} is in use by {', '.join(names)}.")


# --- what is given


class ProbeArguments(Strict):
    """What discovery can be asked for; the description stands in docs/ota_discovery.md."""

    probe: bool = Field(
        False,
        description="Open the ports that may have a board, up to 8 at once: Espressif's own USB, "
        "USB bridges, and those in `ports`. Takes a few seconds. A USB bridge behind which a "
        "board answered is known from then on, so that a service without `boards` may open it by "
        "itself.",
    )


def _wants_probe(given: Mapping[str, Any]) -> bool:
    try:
        return ProbeArguments(probe=given.get("probe", False)).probe
    except ValidationError as error:
        raise ValueError(f"probe: {words_of(error.errors()[0])}") from None


def _check_ports(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise a_fault('must be a list of ports, such as ["rfc2217://10.0.0.7:4000"]')
    return tuple(dict.fromkeys(check_port(item) for item in value if item not in UNSET))


class DiscoveryAttributes(Strict):
    """Every attribute of discovery; the description stands in docs/ota_discovery.md."""

    ports: Annotated[tuple[str, ...], BeforeValidator(_check_ports)] = Field(
        (),
        description="Further ports to look at: a device's whole path, `rfc2217://host:port`, "
        "`socket://host:port`, or a simulated board's url.",
    )
