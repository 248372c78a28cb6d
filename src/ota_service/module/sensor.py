# SPDX-License-Identifier: GPL-3.0-or-later
"""A sensor beside the service: its status as flat readings, for data capture and maintenance.

The service is looked for in this process first, where it lives as long as both are of one
machine: the answer then neither waits for viam-server, which may be the one that asks, nor
misses an update that goes on after its service was removed. A service elsewhere (of a remote
machine) is asked as the dependency that it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self, get_args

from pydantic import Field
from viam.components.sensor import Sensor
from viam.proto.app.robot import ComponentConfig
from viam.proto.common import ResourceName
from viam.resource.base import ResourceBase
from viam.resource.types import Model, ModelFamily
from viam.services.generic import Generic

from ota_service.errors import OtaError
from ota_service.fleet.board_state import State
from ota_service.module.checks import Strict, name_type
from ota_service.module.config import read_attributes
from ota_service.module.findings import unused
from ota_service.module.neighbours import statuses
from ota_service.module.plain import from_struct, plain

MODEL = Model(ModelFamily("rdk", "generic"), "ota_sensor")

# viam-server gives its maintenance sensor 5 s.
ASK_TIMEOUT_S = 4.0

Reading = bool | float | str

# What a board waits for without anything being written, for as long as it takes.
_IDLE_WAITS = ("not-allowed-now", "port-busy")
_WRITING = ("writing", "verifying", "switching", "recording", "booting", "rolling_back")
_WRITTEN = ("switching", "recording", "booting", "rolling_back")


class OtaSensor(Sensor):
    """The readings of one OTA service."""

    def __init__(self, name: str, service: str, elsewhere: Generic | None = None) -> None:
        super().__init__(name)
        self.service = service
        self._elsewhere = elsewhere

    @classmethod
    def new(
        cls, config: ComponentConfig, dependencies: Mapping[ResourceName, ResourceBase]
    ) -> Self:
        """Make the sensor of a configuration. Raises OtaError config-invalid."""
        service = _service_of(config)
        elsewhere = next(
            (
                resource
                for name, resource in dependencies.items()
                if name.name == service and isinstance(resource, Generic)
            ),
            None,
        )
        return cls(config.name, service, elsewhere)

    @classmethod
    def validate_config(cls, config: ComponentConfig) -> tuple[Sequence[str], Sequence[str]]:
        """Check a configuration; the service is a required dependency.

        Raises OtaError config-invalid, which names every fault.
        """
        return [_service_of(config)], []

    async def get_readings(self, **_: Any) -> Mapping[str, Reading]:
        """The readings; see `readings_of`. Raises OtaError where there is no such service."""
        readings: Mapping[str, Reading] = plain(readings_of(await self._status()))
        return readings

    async def get_status(self, **_: Any) -> Mapping[str, Reading]:
        """The same as the readings."""
        return await self.get_readings()

    async def _status(self) -> Mapping[str, Any]:
        here = (await statuses()).get(self.service)
        if here is not None:
            return here
        if self._elsewhere is not None:
            return await self._elsewhere.get_status(timeout=ASK_TIMEOUT_S)
        raise OtaError(
            "config-invalid",
            f'There is no OTA service "{self.service}" on this machine now.',
            remedy="Set the sensor's attribute service to the name of the OTA service.",
        )


# --- readings


def readings_of(status: Mapping[str, Any]) -> dict[str, Reading]:
    """The readings that a service's status makes: flat, and the same keys at all times.

    boards_total, boards_STATE, boards_not_good: counts. percent: mean progress of the boards that
    are being updated, 100 where there are none. state, target_version, run_outcome,
    last_error_code: text, "" where there is none. version_NAME, state_NAME: of each board. safe:
    whether no board is being updated, so that nothing is lost if the machine restarts now.
    """
    boards: Mapping[str, Mapping[str, Any]] = status.get("boards", {})
    busy = [board for board in boards.values() if _is_busy(board)]
    readings: dict[str, Reading] = {
        "state": str(status.get("state", "")),
        "target_version": str(status.get("target", {}).get("version", "")),
        "run_outcome": str(status.get("run", {}).get("outcome", "")),
        "last_error_code": _last_error(status, boards),
        "percent": _percent(busy),
        "safe": not busy,
        "boards_total": len(boards),
    }
    for state in get_args(State):
        readings[f"boards_{state}"] = sum(board.get("state") == state for board in boards.values())
    readings["boards_not_good"] = sum(
        not board.get("good") and board.get("state") != "candidate" for board in boards.values()
    )
    for board, key in zip(boards.values(), _keys(boards), strict=True):
        readings[f"version_{key}"] = str(board.get("version", ""))
        readings[f"state_{key}"] = str(board.get("state", ""))
    return readings


def _is_busy(board: Mapping[str, Any]) -> bool:
    """Whether a board is being updated, or is about to be.

    One that waits for a sensor's leave or for a busy port may wait all night; the machine must
    not be held up by it.
    """
    phase = board.get("phase")
    if phase in _WRITING:
        return True
    waits = phase == "waiting" and board.get("error", {}).get("code") in _IDLE_WAITS
    return board.get("state") == "updating" and not waits


def _percent(busy: Sequence[Mapping[str, Any]]) -> float:
    if not busy:
        return 100.0
    done = [
        100.0 if board.get("phase") in _WRITTEN else board.get("progress", {}).get("percent", 0.0)
        for board in busy
    ]
    return round(sum(done) / len(done), 1)


def _last_error(status: Mapping[str, Any], boards: Mapping[str, Mapping[str, Any]]) -> str:
    """The service's own error, else that of the first board which has one."""
    for place in (status, *(boards[name] for name in sorted(boards))):
        if "error" in place:
            return str(place["error"].get("code", ""))
    return ""


def _keys(names: Iterable[str]) -> list[str]:
    """Names as parts of keys: letters, digits and underscores, and no two alike."""
    keys: list[str] = []
    for name in names:
        clean = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "board"
        keys.append(unused(clean, keys, "_"))
    return keys


# --- attributes


class SensorAttributes(Strict):
    """Every attribute of the sensor; the description stands in docs/ota_sensor.md."""

    service: Annotated[str, name_type('the name of the OTA service, such as "OTA"')] = Field(
        description="The name of the OTA service. It becomes a dependency of the sensor."
    )


def _service_of(config: ComponentConfig) -> str:
    """The service's short name, also where the whole resource name was given."""
    given = read_attributes(from_struct(config.attributes), SensorAttributes)
    return given.service.rpartition("/")[2]
