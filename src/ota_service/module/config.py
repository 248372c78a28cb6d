# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's attributes: read from Viam, checked, and explained where they are wrong.

All faults of one configuration are reported at once. Checking touches neither network nor
ports nor files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from ota_service.errors import OtaError
from ota_service.module.checks import (
    UNSET,
    check_firmware_url,
    check_key,
    check_mac,
    check_name,
    check_sensor,
    check_version,
    nearest,
    sentences,
    where,
)
from ota_service.module.service_attributes import BoardConfig, RestartCondition, ServiceConfig


def parse_config(attributes: Mapping[str, Any]) -> ServiceConfig:
    """Check the attributes of one service.

    An attribute that is null counts as not given; so does an optional one that is empty text.
    Raises OtaError config-invalid whose message names every fault, each with the attribute's
    name before it.
    """
    given = {name: value for name, value in attributes.items() if value is not None}
    faults: list[str] = []
    config: ServiceConfig | None = None
    try:
        config = ServiceConfig.model_validate(given)
    except ValidationError as error:
        faults += (_in_words(dict(found), given) for found in error.errors(include_url=False))
    faults += _faults_between_boards(given.get("boards"))
    if faults or config is None:
        raise OtaError("config-invalid", sentences(faults))
    return config


# --- faults in words


def _in_words(found: dict[str, Any], given: Mapping[str, Any]) -> str:
    loc: tuple[str | int, ...] = found["loc"]
    place = where(loc)
    match found["type"]:
        case "missing":
            return f"{place}: {_missing(loc, given)}"
        case "extra_forbidden":
            known = list(_model_at(loc[:-1]).model_fields)
            return f"{place}: is no attribute here; did you mean {nearest(str(loc[-1]), known)}?"
        case "list_type":
            return f"{place}: must be a list of objects, such as {_BOARDS_EXAMPLE}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{place}: must be an object, such as {_OBJECT_EXAMPLES[str(loc[0])]}"
        case _:
            return f"{place}: {found['msg']}"


_BOARDS_EXAMPLE = '[{"name": "kitchen", "mac": "24:0a:c4:12:34:56"}]'
_OBJECT_EXAMPLES = {
    "boards": '{"name": "kitchen", "mac": "24:0a:c4:12:34:56"}',
    "allow_restart": '{"sensor": "door", "key": "closed"}',
}


def _missing(loc: Sequence[str | int], given: Mapping[str, Any]) -> str:
    check = {"url": check_firmware_url, "version": check_version}.get(str(loc[-1]), check_name)
    if loc[0] == "allow_restart":
        check = check_sensor if loc[-1] == "sensor" else check_key
    try:
        check("")
    except PydanticCustomError as error:
        words = error.message()
        return words.replace("is empty", "is missing", 1)
    raise AssertionError("every required attribute refuses empty text")


def _model_at(loc: Sequence[str | int]) -> type[BaseModel]:
    if not loc:
        return ServiceConfig
    return BoardConfig if loc[0] == "boards" else RestartCondition


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
        own = {_comparable(board.get(key)) for key in ("name", "mac", "port")} - {""}
        for key in ("name", "mac", "port"):
            value = _comparable(board.get(key))
            if value and value in owners:
                yield f"boards[{index}].{key}: boards[{owners[value]}] already has it"
        for value in own:
            owners.setdefault(value, index)


def _comparable(value: object) -> str:
    if not isinstance(value, str):
        return ""
    try:
        return check_mac(value) or ""
    except PydanticCustomError:
        return value
