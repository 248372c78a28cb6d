# SPDX-License-Identifier: GPL-3.0-or-later
"""What is beside a service: the machine's resources, which it asks, and the companions, which ask
it, without loading what it needs."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from grpclib import GRPCError
from viam.components.sensor import Sensor
from viam.proto.common import ResourceName
from viam.resource.base import ResourceBase

from ota_service.fleet.settings import NoSuchResource, RobotCall

if TYPE_CHECKING:
    from ota_service.module.service_attributes import RestartCondition

Dependencies = Mapping[ResourceName, ResourceBase]
SENSOR_TIMEOUT_S = 5.0


class Neighbours:
    """Implements `robot.Robot` by the resources that one configuration of a service names.

    Viam gives them when it adds the service, and adds it anew when one of them is built anew; so a
    run that goes on asks those of the newest instance. One that is missing says no to everything.
    """

    def __init__(
        self, condition: RestartCondition | None, found: Dependencies, service: str,
        logger: logging.Logger,
    ) -> None:  # fmt: skip
        self._condition = condition
        self._found = found
        self._service = service
        self._logger = logger
        self._said = ""

    async def may_restart(self) -> bool:
        """Whether the sensor of `allow_restart` says yes; no sure yes is a no."""
        condition = self._condition
        if condition is None:
            return True
        try:
            named = self._named(condition.sensor)
            sensor = next((one for one in named if isinstance(one, Sensor)), None)
            if sensor is None:
                raise NoSuchResource("this machine has no such sensor now")
            async with asyncio.timeout(SENSOR_TIMEOUT_S):  # one of this process minds no other
                readings = await sensor.get_readings(timeout=SENSOR_TIMEOUT_S)
            value = readings.get(condition.key)
            now = "" if isinstance(value, bool) else f'it has no true or false "{condition.key}"'
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # else it was the sensor's own: it was closed meanwhile
            value, now = False, f"{type(error).__name__}: {error}"
        if now and now != self._said:
            text = "%s: sensor %s cannot be read, so boards are not restarted: %s"
            self._logger.warning(text, self._service, condition.sensor, now)
        self._said = now
        return value is True

    async def ask(self, call: RobotCall) -> Mapping[str, Any]:
        """The reply of a DoCommand. Raises NoSuchResource, and what the resource raises."""
        resource = next(self._named(call.resource), None)
        if resource is None:
            raise NoSuchResource(f'this machine has no resource "{call.resource}" now')
        try:
            return await resource.do_command(call.command, timeout=call.timeout_s)
        except GRPCError as error:  # its own text is a tuple
            raise RuntimeError(error.message or error.status.name) from None

    def _named(self, name: str) -> Iterator[ResourceBase]:
        """The resources with this short or whole name."""
        whole, _, short = name.rpartition("/")
        for at, resource in self._found.items():
            if at.name == short and whole in ("", f"{at.namespace}:{at.type}:{at.subtype}"):
                yield resource


async def directory() -> Any:
    """The module `fleet.directory`; None while this process has had no service.

    It brings esptool along, which the first service loads anyway, and a companion alone must not.
    """
    if "ota_service.fleet.service" not in sys.modules:
        return None
    # In a thread: the service's own import may be going on in another one.
    return await asyncio.to_thread(importlib.import_module, "ota_service.fleet.directory")


async def statuses() -> dict[str, dict[str, Any]]:
    """The status of every service of this process, by its name."""
    found = await directory()
    return {} if found is None else found.statuses()
