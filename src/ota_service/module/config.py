# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's attributes: read from Viam, checked, and explained where they are wrong.

All faults of one configuration are reported at once. Checking touches neither network nor
ports nor files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.module.checks import (
    UNSET,
    check_firmware_url,
    check_flag,
    check_key,
    check_mac,
    check_name,
    check_path,
    check_pattern,
    check_port,
    check_sensor,
    check_sha256,
    check_text,
    check_version,
    nearest,
    number_type,
    optional_type,
    where,
    whole_type,
)

Flag = Annotated[bool, BeforeValidator(check_flag)]
Url = Annotated[str, BeforeValidator(check_firmware_url)]
Version = Annotated[str, BeforeValidator(check_version)]
Digest = Annotated[str | None, BeforeValidator(check_sha256)]
FilePath = Annotated[str | None, BeforeValidator(check_path)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class BoardConfig(_Strict):
    """One entry of `boards`: a name, a mac or a port, and what pins the board.

    note: for people, such as what discovery found; it has no effect.
    """

    name: Annotated[str, BeforeValidator(check_name)]
    mac: Annotated[str | None, BeforeValidator(check_mac)] = None
    port: Annotated[str | None, BeforeValidator(check_port)] = None
    url: Annotated[str | None, optional_type(check_firmware_url)] = None
    version: Annotated[str | None, optional_type(check_version)] = None
    sha256: Digest = None
    note: Annotated[str | None, optional_type(check_text)] = None


class RestartCondition(_Strict):
    """`allow_restart`: the sensor, and the key of its reading that must be true."""

    sensor: Annotated[str, BeforeValidator(check_sensor)]
    key: Annotated[str, BeforeValidator(check_key)]

    @property
    def sensor_name(self) -> str:
        """The sensor's short name, also where the whole resource name was given."""
        return self.sensor.rpartition("/")[2]


class ServiceConfig(_Strict):
    """Every attribute of the service. Names and defaults are part of the product's outside."""

    url: Url
    version: Version
    sha256: Digest = None
    boards: list[BoardConfig] | None = None
    auto_update: Flag = True
    check_on_start: Flag = True
    adopt: Flag = False
    allow_restart: RestartCondition | None = None
    # From the slowest speed that bridges are used at to the fastest that esptool offers.
    baud: Annotated[int, whole_type(9_600, 4_000_000)] = 921_600
    max_parallel: Annotated[int, whole_type(1, 64)] = 8
    canary: Flag = True
    boot_timeout_s: Annotated[float, number_type(1, 600, " s")] = 20.0
    boot_stable_s: Annotated[float, number_type(0, 600, " s")] = 5.0
    boot_expect: Annotated[str | None, BeforeValidator(check_pattern)] = None
    confirm_timeout_s: Annotated[float, number_type(1, 86_400, " s")] = 120.0
    max_attempts: Annotated[int, whole_type(1, 100)] = 3
    ca_file: FilePath = None
    # The largest flash that an ESP32-family chip addresses is 128 MiB.
    max_image_bytes: Annotated[int, whole_type(1_024, 128 << 20, " bytes")] = 16_777_216
    state_dir: FilePath = Field(default=None)

    def settings(self, service: str, *, state_dir: Path, cache_dir: Path) -> Settings:
        """The same as plain values for the fleet; `state_dir` holds where none is configured."""
        boards = None
        if self.boards is not None:
            boards = tuple(
                BoardEntry(**board.model_dump(exclude={"note"})) for board in self.boards
            )
        return Settings(
            service=service,
            target=Target(self.url, self.version, self.sha256),
            boards=boards,
            auto_update=self.auto_update,
            check_on_start=self.check_on_start,
            adopt=self.adopt,
            baud=self.baud,
            max_parallel=self.max_parallel,
            canary=self.canary,
            boot_timeout_s=self.boot_timeout_s,
            boot_stable_s=self.boot_stable_s,
            boot_expect=self.boot_expect,
            confirm_timeout_s=self.confirm_timeout_s,
            max_attempts=self.max_attempts,
            ca_file=self.ca_file,
            max_image_bytes=self.max_image_bytes,
            state_dir=Path(self.state_dir) if self.state_dir else state_dir,
            cache_dir=cache_dir,
        )


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
        raise OtaError("config-invalid", " | ".join(faults))
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
