# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes of the companions, which have few: read from Viam, checked, faults in words."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from viam.proto.app.robot import ComponentConfig

from ota_service.errors import OtaError
from ota_service.module.checks import Strict, nearest, sentences, where
from ota_service.module.plain import from_struct

Attributes = TypeVar("Attributes", bound=Strict)


def read_attributes(config: ComponentConfig, model: type[Attributes]) -> Attributes:
    """The attributes of one companion, checked.

    A field's check gets None where the attribute is null or not given. Raises OtaError
    config-invalid whose message names every fault, each with the attribute's name before it.
    """
    given: dict[str, Any] = dict.fromkeys(model.model_fields)
    given |= {
        name: item for name, item in from_struct(config.attributes).items() if item is not None
    }
    try:
        return model.model_validate(given)
    except ValidationError as error:
        faults = [_in_words(dict(found), model) for found in error.errors(include_url=False)]
        raise OtaError("config-invalid", sentences(faults)) from None


def _in_words(found: dict[str, Any], model: type[Strict]) -> str:
    place = where(found["loc"])
    if found["type"] == "extra_forbidden":
        known = list(model.model_fields)
        return f"{place}: is no attribute here; did you mean {nearest(place, known)}?"
    return f"{place}: {found['msg']}"
