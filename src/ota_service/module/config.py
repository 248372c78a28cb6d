# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes: read from Viam, checked, and explained where they are wrong.

All faults of one configuration are reported at once. Checking touches neither network nor
ports nor files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

from ota_service.errors import OtaError
from ota_service.module.checks import UNSET, Strict, check_mac, nearest, sentences, where, words_of
from ota_service.module.service_attributes import (
    CALLS,
    BoardConfig,
    HealthCheckConfig,
    RestartCondition,
    ServiceConfig,
)

Attributes = TypeVar("Attributes", bound=Strict)

_BOARDS_EXAMPLE = '[{"name": "kitchen", "mac": "24:0a:c4:12:34:56"}]'
_OBJECTS: dict[str | int, tuple[type[Strict], str]] = {
    "boards": (BoardConfig, _BOARDS_EXAMPLE[1:-1]),
    "allow_restart": (RestartCondition, '{"sensor": "door", "key": "closed"}'),
    **dict.fromkeys(
        CALLS,
        (
            HealthCheckConfig,
            '{"resource": "arm", "command": {"do": "park"}, "expect": {"ok": true}}',
        ),
    ),
}
"""Attributes that hold objects, with an example of one."""


def parse_config(attributes: Mapping[str, Any]) -> ServiceConfig:
    """Check the attributes of one service; see `read_attributes`."""
    return read_attributes(attributes, ServiceConfig)


def read_attributes(attributes: Mapping[str, Any], model: type[Attributes]) -> Attributes:
    """Check the attributes of the service, or of a companion.

    An attribute that is null counts as not given; so does an optional one that is empty text.
    Raises OtaError config-invalid whose message names every fault, each with the attribute's
    name before it.
    """
    given = {name: value for name, value in attributes.items() if value is not None}
    faults: list[str] = []
    checked: Attributes | None = None
    try:
        checked = model.model_validate(given)
    except ValidationError as error:
        faults += (_in_words(dict(found), model) for found in error.errors(include_url=False))
    faults += _faults_between_boards(given.get("boards"))
    if faults or checked is None:
        raise OtaError("config-invalid", sentences(faults))
    return checked


# --- faults in words


def _in_words(found: dict[str, Any], model: type[Strict]) -> str:
    loc: tuple[str | int, ...] = found["loc"]
    place, name = where(loc), str(loc[-1])
    within = [part for part in loc[:-1] if part in _OBJECTS]
    if within:
        model = _OBJECTS[within[-1]][0]
    match found["type"]:
        case "missing":
            return f"{place}: {_missing(name, model)}"
        case "extra_forbidden":
            known = list(model.model_fields)
            hint = nearest(name, known)
            words = f"did you mean {hint}?" if hint else f"there are {', '.join(known)}"
            return f"{place}: is no attribute here; {words}"
        case "list_type":
            return f"{place}: must be a list of objects, such as {_BOARDS_EXAMPLE}"
        case "model_type" | "model_attributes_type" | "dict_type":
            named = [part for part in loc if part in _OBJECTS]
            return f"{place}: must be an object, such as {_OBJECTS[named[-1]][1]}"
        case _:
            return f"{place}: {words_of(found)}"


def _missing(name: str, model: type[Strict]) -> str:
    """The words of an attribute's own check for empty text."""
    for check in model.model_fields[name].metadata:
        if isinstance(check, BeforeValidator):
            try:
                check.func("")  # type: ignore[call-arg]  # of the two forms, without an info
            except PydanticCustomError as error:
                return error.message().replace("is empty", "is missing", 1)
    raise AssertionError("every required attribute refuses empty text")


def _faults_between_boards(boards: object) -> Iterator[str]:
    """What pydantic cannot see in one field: mac or port, and names that clash.

    Works on the raw value, so that these faults are reported along with all others.
    """
    if not isinstance(boards, list):
        return
    owners: dict[str, int] = {}
    for index, board in enumerate(boards):
        if not isinstance(board, Mapping):
            continue
        has = [key for key in ("mac", "port") if board.get(key) not in UNSET]
        if not has:
            yield f"boards[{index}]: needs a mac or a port, to say which board it is"
        elif len(has) == 2:
            yield f"boards[{index}]: has a mac and a port; give only one of them"
        # Verbs take names, MACs and ports alike, so none may stand for two boards.
        own = {key: _comparable(board.get(key)) for key in ("name", "mac", "port")}
        for key, value in own.items():
            if value and value in owners:
                yield f"boards[{index}].{key}: boards[{owners[value]}] already has it"
        for value in own.values():
            owners.setdefault(value, index)


def _comparable(value: object) -> str:
    if not isinstance(value, str):
        return ""
    try:
        return check_mac(value)
    except PydanticCustomError:
        return value
