# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes of the companions, which have few: read from Viam, checked, faults in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic_core import PydanticCustomError
from viam.proto.app.robot import ComponentConfig

from ota_service.errors import OtaError
from ota_service.module.checks import nearest
from ota_service.module.plain import from_struct


def read_attributes(
    config: ComponentConfig, checks: Mapping[str, Callable[[object], Any]]
) -> dict[str, Any]:
    """Every attribute of `checks`, in the form that its check makes of it.

    A check gets None where the attribute is null or not given. Raises OtaError config-invalid
    whose message names every fault, each with the attribute's name before it.
    """
    given = {
        name: item for name, item in from_struct(config.attributes).items() if item is not None
    }
    faults = list(_unknown(given, list(checks)))
    values: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            values[name] = check(given.get(name))
        except PydanticCustomError as error:
            faults.append(f"{name}: {error.message()}")
    if faults:
        raise OtaError("config-invalid", " | ".join(faults))
    return values


def _unknown(given: Mapping[str, Any], known: list[str]) -> Iterator[str]:
    for name in given:
        if name not in known:
            yield f"{name}: is no attribute here; did you mean {nearest(name, known)}?"
