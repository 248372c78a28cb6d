# SPDX-License-Identifier: GPL-3.0-or-later
"""The sensor that says whether boards may be restarted: only a clear yes is one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from grpclib import GRPCError, Status
from viam.components.generic import Generic
from viam.components.sensor import Sensor
from viam.proto.common import ResourceName
from viam.resource.base import ResourceBase

from ota_service.fleet.settings import NoSuchResource, RobotCall
from ota_service.module import neighbours
from ota_service.module.neighbours import Neighbours
from ota_service.module.service_attributes import RestartCondition

CONDITION = RestartCondition(sensor="rdk:component:sensor/door", key="closed")


class Door(Sensor):
    """A sensor whose reading the test sets; an exception is raised."""

    def __init__(self, reading: Any) -> None:
        super().__init__("door")
        self.reading = reading

    async def get_readings(self, **_: Any) -> Mapping[str, Any]:
        """What the test has set."""
        if isinstance(self.reading, BaseException):
            raise self.reading
        return dict(self.reading)

    @property
    def found(self) -> dict[ResourceName, ResourceBase]:
        """The sensor as Viam hands over a dependency."""
        return {Sensor.get_resource_name("door"): self}


class Hangs(Door):
    """One that never has a reading."""

    async def get_readings(self, **_: Any) -> Mapping[str, Any]:
        """Never."""
        await asyncio.Event().wait()
        return {}


def asked(found: Any) -> Neighbours:
    """What is beside a service called OTA."""
    return Neighbours(CONDITION, found, "OTA", logging.getLogger("resource"))


@pytest.mark.parametrize(
    ("reading", "allowed"),
    [
        ({"closed": True}, True),
        ({"closed": False}, False),
        ({}, False),
        ({"closed": 1.0}, False),
        ({"closed": "true"}, False),
        (RuntimeError("no power"), False),
        (TimeoutError(), False),
        (asyncio.CancelledError(), False),  # it was closed while it was asked
    ],
)
async def test_only_a_clear_yes_allows_a_restart(reading: Any, allowed: bool) -> None:
    """A sensor that is broken must not let boards be restarted."""
    assert await asked(Door(reading).found).may_restart() is allowed


async def test_the_reason_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A run asks every few seconds, perhaps all night; a new reason is said again."""
    caplog.set_level(logging.INFO, logger="resource")
    door = Door({})
    ask = asked(door.found).may_restart
    for _ in range(3):
        await ask()
    assert len(caplog.records) == 1
    assert caplog.text.count("OTA: sensor ") == 1
    assert 'no true or false "closed"' in caplog.text
    door.reading = RuntimeError("no power")
    await ask()
    assert "no power" in caplog.text
    door.reading = {"closed": True}
    assert await ask()
    door.reading = {}
    await ask()
    assert len(caplog.records) == 3


async def test_a_call_that_is_given_up_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A cancelled run must not hang at its sensor."""
    asking = asyncio.ensure_future(asked(Hangs({}).found).may_restart())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert caplog.records == []


async def test_a_sensor_that_is_not_there_allows_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor does another resource of that name; the service is there all the same."""
    caplog.set_level(logging.INFO, logger="resource")
    assert await asked({}).may_restart() is False
    assert "no such sensor now" in caplog.text
    other: Any = {Generic.get_resource_name("door"): Door({"closed": True})}
    assert await asked(other).may_restart() is False


async def test_a_sensor_that_hangs_allows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of this process knows no deadline."""
    monkeypatch.setattr(neighbours, "SENSOR_TIMEOUT_S", 0.01)

    async with asyncio.timeout(10):
        assert await asked(Hangs({}).found).may_restart() is False


async def test_a_failed_call_is_told_in_its_own_words() -> None:
    """Not as the library's tuple."""

    class Arm(Generic):
        async def do_command(self, command: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
            raise GRPCError(Status.UNKNOWN, command.get("says"))

    named: dict[ResourceName, ResourceBase] = {Arm.get_resource_name("arm"): Arm("arm")}
    for says, words in (("it is stuck", "it is stuck"), (None, "UNKNOWN")):
        with pytest.raises(RuntimeError) as caught:
            await asked(named).ask(RobotCall("arm", {"says": says}))
        assert str(caught.value) == words


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("arm", True),
        ("rdk:component:generic/arm", True),
        ("rdk:service:generic/arm", False),
        ("leg", False),
        ("", False),
    ],
)
async def test_a_resource_is_asked_by_its_short_or_its_whole_name(name: str, found: bool) -> None:
    """One that is not there has heard of nothing, which is said so."""

    class Arm(Generic):
        async def do_command(self, command: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
            return {"heard": command}

    named: dict[ResourceName, ResourceBase] = {Arm.get_resource_name("arm"): Arm("arm")}
    call = RobotCall(name, {"do": "x"})
    if found:
        assert await asked(named).ask(call) == {"heard": {"do": "x"}}
    else:
        with pytest.raises(NoSuchResource, match=f'no resource "{name}" now'):
            await asked(named).ask(call)
