# SPDX-License-Identifier: GPL-3.0-or-later
"""The Generic service that Viam sees, under both of its names.

An instance is thin: it turns a configuration into a fleet's settings and commands into the
fleet's calls. Updates live in the fleet, outside of instances and of the calls' handlers, since
Viam removes and adds an instance at every change of an attribute.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from grpclib import Status
from viam.errors import ViamGRPCError
from viam.proto.app.robot import ComponentConfig
from viam.resource.registry import Registry, ResourceCreatorRegistration
from viam.resource.types import Model, ModelFamily
from viam.services.generic import Generic

from ota_service.errors import OtaError
from ota_service.firmware.urls import redact
from ota_service.fleet.settings import Settings
from ota_service.module import discovery, sensor
from ota_service.module.config import parse_config
from ota_service.module.discovery import OtaDiscovery
from ota_service.module.folders import default_cache_dir, default_state_dir
from ota_service.module.neighbours import Dependencies, Neighbours
from ota_service.module.plain import from_struct, plain
from ota_service.module.sensor import OtaSensor
from ota_service.module.service_attributes import ServiceConfig
from ota_service.module.verbs import help_reply, parse_command

if TYPE_CHECKING:
    from ota_service.fleet.service import FleetService

# The explicit name, and the one that viam-server makes of a plain "model": "ota_service".
MODELS = (
    Model(ModelFamily("rdk", "generic"), "ota_service"),
    Model(ModelFamily("rdk", "builtin"), "ota_service"),
)
META = Path(__file__).parents[3] / "meta.json"
"""Beside run.sh; a package that was installed by itself has none."""


class OtaService(Generic):
    """The OTA service of one configuration."""

    def __init__(
        self, name: str, config: ServiceConfig, dependencies: Dependencies | None = None
    ) -> None:
        super().__init__(name)
        robot = Neighbours(config.allow_restart, dependencies or {}, name, self.logger)
        self.settings = config.settings(
            name, state_dir=default_state_dir(), cache_dir=default_cache_dir()
        )
        # Made here and not at the first command: an update begins with the configuration.
        self._fleet: asyncio.Task[FleetService] = asyncio.get_running_loop().create_task(
            _open_fleet(self.settings, robot, self.logger)
        )

    @classmethod
    def new(cls, config: ComponentConfig, dependencies: Dependencies) -> Self:
        """Make the service of a configuration. Raises OtaError config-invalid."""
        return cls(config.name, _checked(config), dependencies)

    @classmethod
    def validate_config(cls, config: ComponentConfig) -> tuple[Sequence[str], Sequence[str]]:
        """Check a configuration; returns the names of required and of optional dependencies: none
        is required, so that a dead one takes the service away from nobody.

        Raises OtaError config-invalid, which names every fault.
        """
        return [], _checked(config).resources

    async def opened(self) -> None:
        """Wait until the fleet has taken over. Raises OtaError where it refuses."""
        await asyncio.shield(self._fleet)

    async def do_command(self, command: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        """Carry out one verb. Raises ViamGRPCError, whose text reaches the client as it is."""
        with _plain_words(self.logger):
            verb, arguments = parse_command(command)
            if verb == "help":
                return help_reply()
            fleet = await asyncio.shield(self._fleet)
            reply = await fleet.command(verb, arguments)
            return {"ok": True, **plain(reply)}

    async def get_status(self, **_: Any) -> Mapping[str, Any]:
        """What the verb status replies."""
        with _plain_words(self.logger):
            fleet = await asyncio.shield(self._fleet)
            return {"ok": True, **plain(fleet.status())}

    async def close(self) -> None:
        """Let go of the boards; a run goes on for its grace."""
        try:
            fleet = await self._fleet
        except Exception:
            return  # it never had them, which opened() has told
        await fleet.close()


def register() -> None:
    """Tell the SDK about the service's two models and about its companions, also under the names
    that a publisher gave them."""
    resources = (
        (Generic.API, OtaService, MODELS),
        (OtaDiscovery.API, OtaDiscovery, (discovery.MODEL,)),
        (OtaSensor.API, OtaSensor, (sensor.MODEL,)),
    )
    for api, kind, models in resources:
        creator = ResourceCreatorRegistration(kind.new, kind.validate_config)
        for model in (*models, *published_models(models[0].name)):
            Registry.register_resource_creator(api, model, creator)


def published_models(name: str) -> list[Model]:
    """The models called `name` that meta.json has in a publisher's namespace.

    Viam's registry takes models only in the namespace of the organisation that publishes them
    (`make module NAMESPACE=acme`), and a machine's configuration then says `acme:generic:...`.
    """
    try:
        listed = json.loads(META.read_text("utf-8"))["models"]
        found = [Model.from_string(entry["model"]) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [m for m in found if m.name == name and m.model_family.namespace != "rdk"]


def _checked(config: ComponentConfig) -> ServiceConfig:
    """Raises OtaError config-invalid."""
    checked = parse_config(from_struct(config.attributes))
    if config.name in checked.resources:
        raise OtaError(
            "config-invalid",
            f'"{config.name}" is this service itself, which has no word of its own on whether a '
            "board may be restarted or works: name another resource.",
        )
    return checked


async def _open_fleet(
    settings: Settings, robot: Neighbours, logger: logging.Logger
) -> FleetService:
    # Imported here, in a thread: it brings esptool along, and the module must be ready before.
    service = await asyncio.to_thread(importlib.import_module, "ota_service.fleet.service")
    fleet: FleetService = await service.FleetService.open(settings, robot=robot, logger=logger)
    return fleet


@contextlib.contextmanager
def _plain_words(logger: logging.Logger) -> Iterator[None]:
    """Give the client an error's words and nothing else: no names of exceptions, no files.

    A failure that nobody foresaw has its trace in the log.
    """
    try:
        yield
    except OtaError as error:
        status = Status.FAILED_PRECONDITION
        if error.kind.blame == "config":
            status = Status.INVALID_ARGUMENT
        raise ViamGRPCError(plain(str(error)), status) from None
    except ValueError as error:
        raise ViamGRPCError(plain(str(error)), Status.INVALID_ARGUMENT) from None
    except Exception as error:
        logger.error("unforeseen failure", exc_info=True)
        told = OtaError.unforeseen(error)
        if told.code == "internal":
            words = redact(str(error)) or "Something nobody foresaw went wrong."
            told = OtaError("internal", words)
        raise ViamGRPCError(plain(str(told)), Status.INTERNAL) from None
