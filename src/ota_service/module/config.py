# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's attributes: read from Viam, checked, and explained where they are wrong.

All faults of one configuration are reported at once. Checking touches neither network nor
ports nor files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.firmware.urls import check_url
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.module.patterns import pattern_problem

# The version is an NVS string; the contract sets its longest length.
VERSION_MAX_BYTES = 128
NAME_MAX_BYTES = 64
# Ports by url: RFC 2217, a bare socket (an emulator's), and the simulated board.
PORT_SCHEMES = ("rfc2217", "socket", "esp32sim")

_UNSET = ("", None)


def _fault(words: str) -> PydanticCustomError:
    # The words are no template: braces in them stand for themselves.
    return PydanticCustomError("fault", "{words}", {"words": words})


def _text(value: object, words: str = "") -> str:
    if not isinstance(value, str):
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise _fault(f'must be text: write it in quotation marks, "{value:g}"')
        raise _fault("must be text" + (f", {words}" if words else ""))
    return value


def _url(value: object) -> str:
    url = _text(value)
    problem = check_url(url)
    if problem:
        raise _fault(problem)
    return url


def _version(value: object) -> str:
    version = _text(value)
    if not version:
        raise _fault('is empty; fill in the tag of the firmware at url, such as "1.0.0"')
    try:
        size_bytes = len(version.encode())
    except UnicodeEncodeError:
        raise _fault("is not valid Unicode text") from None
    if size_bytes > VERSION_MAX_BYTES:
        raise _fault(f"{size_bytes} bytes; the limit is {VERSION_MAX_BYTES}")
    if "\0" in version:
        raise _fault("holds a NUL character, which ends a string in a board's NVS")
    return version


def _sha256(value: object) -> str | None:
    if value in _UNSET:
        return None
    digest = _text(value, "64 hex digits")
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
        raise _fault(
            f"must be 64 hex digits, as `sha256sum` prints them; these are {len(digest)} characters"
            if len(digest) != 64
            else "must be 64 hex digits, as `sha256sum` prints them; other characters are in it"
        )
    return digest.lower()


def _name(value: object) -> str:
    name = _text(value)
    if not name.strip():
        raise _fault('is empty; give the board a name, such as "kitchen"')
    if len(name.encode(errors="replace")) > NAME_MAX_BYTES:
        raise _fault(f"{len(name.encode(errors='replace'))} bytes; the limit is {NAME_MAX_BYTES}")
    if not name.isprintable():
        raise _fault("holds characters that cannot be printed")
    return name


def _sensor(value: object) -> str:
    if not value:
        raise _fault('is empty; fill in the name of a sensor of this machine, such as "door"')
    return _name(value)


def _key(value: object) -> str:
    if not value:
        raise _fault(
            "is empty; fill in the key of the sensor's reading that is true when boards may be "
            "restarted"
        )
    return _name(value)


def _mac(value: object) -> str | None:
    if value in _UNSET:
        return None
    digits = _text(value, 'such as "24:0a:c4:12:34:56"').replace("-", ":").lower()
    if re.fullmatch(r"[0-9a-f]{12}", digits):
        digits = ":".join(digits[at : at + 2] for at in range(0, 12, 2))
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", digits):
        raise _fault('must be six pairs of hex digits, such as "24:0a:c4:12:34:56"')
    return digits


def _port(value: object) -> str | None:
    if value in _UNSET:
        return None
    port = _text(value, "the path or url of a port")
    scheme, separator, rest = port.partition("://")
    if separator:
        if scheme not in PORT_SCHEMES or not rest:
            known = ", ".join(f"{name}://" for name in PORT_SCHEMES)
            raise _fault(f"is not the url of a port; those known begin with {known}")
    elif not (port.startswith("/") or re.fullmatch(r"COM\d+", port)):
        raise _fault(
            'must be a device\'s whole path, such as "/dev/serial/by-path/..." or "/dev/ttyUSB0", '
            "or the url of a port"
        )
    elif not port.isprintable():
        raise _fault("holds characters that cannot be printed")
    return port


def _number(value: object, low: float, high: float, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fault(f"must be a number, from {low:,g} to {high:,g}{unit}")
    # NaN compares false with everything, so it must not slip through "too low or too high".
    if not low <= value <= high:
        raise _fault(f"{value:,.15g} is out of range; it may be {low:,.15g} to {high:,.15g}{unit}")
    return float(value)


def _whole(value: object, low: int, high: int, unit: str) -> int:
    # Viam carries every number as a float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fault(f"must be a whole number, from {low:,} to {high:,}{unit}")
    if isinstance(value, float) and not value.is_integer():
        raise _fault(f"{value:g} is not a whole number")
    if not low <= value <= high:
        raise _fault(f"{value:,.15g} is out of range; it may be {low:,} to {high:,}{unit}")
    return int(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _fault("must be true or false, without quotation marks")
    return value


def _path(value: object) -> str | None:
    if value in _UNSET:
        return None
    path = _text(value, "the path of a file or folder")
    if "\0" in path or not os.path.expanduser(path).startswith("/"):
        raise _fault("must be a whole path, from / on")
    return os.path.expanduser(path)


def _pattern(value: object) -> str | None:
    if value in _UNSET:
        return None
    pattern = _text(value, "a regular expression")
    problem = pattern_problem(pattern)
    if problem:
        raise _fault(problem)
    return pattern


def _whole_type(low: int, high: int, unit: str = "") -> BeforeValidator:
    return BeforeValidator(lambda value: _whole(value, low, high, unit))


def _number_type(low: float, high: float, unit: str = "") -> BeforeValidator:
    return BeforeValidator(lambda value: _number(value, low, high, unit))


Flag = Annotated[bool, BeforeValidator(_flag)]
Url = Annotated[str, BeforeValidator(_url)]
Version = Annotated[str, BeforeValidator(_version)]
Digest = Annotated[str | None, BeforeValidator(_sha256)]
FilePath = Annotated[str | None, BeforeValidator(_path)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class BoardConfig(_Strict):
    """One entry of `boards`: a name, a mac or a port, and what pins the board."""

    name: Annotated[str, BeforeValidator(_name)]
    mac: Annotated[str | None, BeforeValidator(_mac)] = None
    port: Annotated[str | None, BeforeValidator(_port)] = None
    url: Annotated[str | None, BeforeValidator(lambda v: None if v in _UNSET else _url(v))] = None
    version: Annotated[
        str | None, BeforeValidator(lambda v: None if v in _UNSET else _version(v))
    ] = None
    sha256: Digest = None


class RestartCondition(_Strict):
    """`allow_restart`: the sensor, and the key of its reading that must be true."""

    sensor: Annotated[str, BeforeValidator(_sensor)]
    key: Annotated[str, BeforeValidator(_key)]

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
    baud: Annotated[int, _whole_type(9_600, 4_000_000)] = 921_600
    max_parallel: Annotated[int, _whole_type(1, 64)] = 8
    canary: Flag = True
    boot_timeout_s: Annotated[float, _number_type(1, 600, " s")] = 20.0
    boot_stable_s: Annotated[float, _number_type(0, 600, " s")] = 5.0
    boot_expect: Annotated[str | None, BeforeValidator(_pattern)] = None
    confirm_timeout_s: Annotated[float, _number_type(1, 86_400, " s")] = 120.0
    max_attempts: Annotated[int, _whole_type(1, 100)] = 3
    ca_file: FilePath = None
    # The largest flash that an ESP32-family chip addresses is 128 MiB.
    max_image_bytes: Annotated[int, _whole_type(1_024, 128 << 20, " bytes")] = 16_777_216
    state_dir: FilePath = Field(default=None)

    def settings(self, service: str, *, state_dir: Path, cache_dir: Path) -> Settings:
        """The same as plain values for the fleet; `state_dir` holds where none is configured."""
        boards = None
        if self.boards is not None:
            boards = tuple(BoardEntry(**board.model_dump()) for board in self.boards)
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
    where = _where(loc)
    match found["type"]:
        case "missing":
            return f"{where}: {_missing(loc, given)}"
        case "extra_forbidden":
            model = _model_at(loc[:-1])
            return f"{where}: is no attribute here; did you mean {_nearest(str(loc[-1]), model)}?"
        case "list_type":
            return f"{where}: must be a list of objects, such as {_BOARDS_EXAMPLE}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where}: must be an object, such as {_OBJECT_EXAMPLES[str(loc[0])]}"
        case _:
            return f"{where}: {found['msg']}"


_BOARDS_EXAMPLE = '[{"name": "kitchen", "mac": "24:0a:c4:12:34:56"}]'
_OBJECT_EXAMPLES = {
    "boards": '{"name": "kitchen", "mac": "24:0a:c4:12:34:56"}',
    "allow_restart": '{"sensor": "door", "key": "closed"}',
}


def _where(loc: Sequence[str | int]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _missing(loc: Sequence[str | int], given: Mapping[str, Any]) -> str:
    check = {"url": _url, "version": _version}.get(str(loc[-1]), _name)
    if loc[0] == "allow_restart":
        check = _sensor if loc[-1] == "sensor" else _key
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


def _nearest(name: str, model: type[BaseModel]) -> str:
    folded = name.casefold().replace("-", "_").replace(" ", "_")
    return get_close_matches(folded, list(model.model_fields), n=1, cutoff=0.0)[0]


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
        has = [key for key in ("mac", "port") if board.get(key) not in _UNSET]
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
        return _mac(value) or ""
    except PydanticCustomError:
        return value
