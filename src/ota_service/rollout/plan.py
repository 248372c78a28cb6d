# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a rollout: a file that a person writes, checked, and its waves. Pure but for reading.

docs/rollout.schema.json is made from these models (docs/generate.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from ota_service.firmware.files import TEXT_BYTES, read_file
from ota_service.formats.text import natural
from ota_service.module.checks import (
    Strict,
    a_fault,
    check_firmware_url,
    check_sha256,
    check_text,
    check_version,
    nearest,
    optional_type,
    sentences,
    where,
)
from ota_service.rollout.document import DocumentError, parse

Mode = Literal["variables", "attributes"]
KEYS = ("url", "version", "sha256")
"""What a rollout changes, by the names of the service's attributes."""

_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_DURATION = r"^\d+(\.\d+)?[smh]$"
_DECIMAL = r"[-+]?(0|[1-9]\d*)"
_PERCENT = r"^(100|\d{1,2}(\.\d+)?)%$"
_DURATION_SCHEMA = {"type": "string", "pattern": _DURATION}
_NAMES_SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_COUNT_SCHEMA = {"type": "integer", "minimum": 1}
_PERCENT_SCHEMA = {"type": "string", "pattern": _PERCENT}


class PlanError(ValueError):
    """What is wrong with a plan: every fault, each with its place before it."""


@dataclass(frozen=True, slots=True)
class Share:
    """A number of machines, or a percentage of all of them."""

    count: int | None = None
    percent: float | None = None

    def up(self, total: int) -> int:
        """Of `total` machines, at least one."""
        return max(1, math.ceil(self._of(total)))

    def down(self, total: int) -> int:
        """Of `total` machines, rounded down."""
        return math.floor(self._of(total))

    def _of(self, total: int) -> float:
        if self.count is not None:
            return self.count
        # Of 300 machines 7 % are 21, whatever binary fractions make of it.
        return round(total * (self.percent or 0) / 100, 6)


def _check_duration(value: object) -> float:
    text = check_text(value, 'such as "90s", "10m" or "1h"')
    if not re.fullmatch(_DURATION, text):
        raise a_fault('must be a number with its unit s, m or h, such as "90s", "10m" or "1h"')
    return float(text[:-1]) * _UNITS_S[text[-1]]


def _check_share(value: object, low: int) -> Share:
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return Share(count=value)
    if isinstance(value, str) and re.fullmatch(_PERCENT, value):
        return Share(percent=float(value[:-1]))
    raise a_fault(f'must be a whole number from {low} on, or a percentage, such as "25%"')


def _check_id(value: object) -> str:
    text = check_text(value)
    if not text.strip() or not text.isprintable():
        raise a_fault("is empty, or holds characters that cannot be printed")
    return text


Duration = Annotated[float, BeforeValidator(_check_duration), WithJsonSchema(_DURATION_SCHEMA)]
Name = Annotated[str, BeforeValidator(_check_id)]


class Wave(Strict):
    """One wave: how many machines, or which; and how long they are watched once they are good."""

    machines: list[Name] | None = None
    share: Share | None = None
    soak_s: float | None = None


def _check_wave(value: object) -> Wave:
    """A count, a percentage, a list of names, or an object with one of these and its own soak."""
    soak_s: float | None = None
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in ("machines", "count", "percent", "soak")]
        given = [key for key in ("machines", "count", "percent") if key in value]
        if unknown or len(given) != 1:
            raise a_fault('must have just one of "machines", "count" and "percent"; and "soak"')
        if "soak" in value:
            soak_s = _check_duration(value["soak"])
        value = value[given[0]]
        if given[0] == "percent" and not isinstance(value, str):
            value = f"{value}%"
    if isinstance(value, list):
        if not value:
            raise a_fault("names no machine")
        return Wave(machines=[_check_id(name) for name in value], soak_s=soak_s)
    if value in (0, "0%"):
        raise a_fault("must have at least one machine")
    return Wave(share=_check_share(value, 1), soak_s=soak_s)


_WAVE_SCHEMA = {
    "anyOf": [
        {**_COUNT_SCHEMA, "description": "How many machines."},
        {**_PERCENT_SCHEMA, "description": "How many of all machines, rounded up."},
        {**_NAMES_SCHEMA, "description": "Which machines."},
        *(
            {
                "type": "object",
                "properties": {name: schema, "soak": _DURATION_SCHEMA},
                "required": [name],
                "additionalProperties": False,
            }
            for name, schema in (
                ("count", _COUNT_SCHEMA),
                ("percent", {"anyOf": [_PERCENT_SCHEMA, {"type": "number", "maximum": 100}]}),
                ("machines", _NAMES_SCHEMA),
            )
        ),
    ]
}
_MAX_FAILED_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, _PERCENT_SCHEMA]}


class Select(Strict):
    """Which machines. Each of what is given narrows the choice."""

    organization: Name | None = Field(
        None,
        description="The organisation's id. Needed only where the key is for several, and no "
        "locations are given.",
    )
    locations: list[Name] | None = Field(
        None, description="Only machines of these locations (ids)."
    )
    fragment: Name | None = Field(
        None, description="Only machines whose configuration has this fragment (id)."
    )
    machines: list[Name] | None = Field(
        None, description="Only these machines: their names, or their ids."
    )

    @model_validator(mode="after")
    def _something(self) -> Select:
        if not any((self.organization, self.locations, self.fragment, self.machines)):
            raise a_fault("names no organization, locations, fragment or machines")
        return self


class Target(Strict):
    """The firmware, as the service's attributes have it."""

    url: Annotated[str, BeforeValidator(check_firmware_url)] = Field(
        description="The address of the App Image, or of a manifest."
    )
    version: Annotated[str, BeforeValidator(check_version)] = Field(description="Its tag.")
    sha256: Annotated[str | None, optional_type(check_sha256)] = Field(
        None,
        description="Its digest. Without it, a digest that a machine has is taken away: it is "
        "another file's.",
    )


class Variables(Strict):
    """Which of the fragment's variables hold the url, the version and the digest."""

    url: Name
    version: Name
    sha256: Name | None = None


class Plan(Strict):
    """A rollout: which machines get which firmware, in which steps."""

    select: Select = Field(description="Which machines: see below.")
    service: Name = Field("OTA", description="The name of the OTA service in the configurations.")
    target: Target = Field(description="The firmware: see below.")
    mode: Mode = Field(
        description="`variables`: the variables of the fragment, in each machine's part. "
        "`attributes`: the attributes of the service, in the part itself."
    )
    waves: list[Annotated[Wave, BeforeValidator(_check_wave), WithJsonSchema(_WAVE_SCHEMA)]] = (
        Field(
            min_length=1,
            description="Each a count, a percentage of all machines, a list of names, or an object "
            "of one of these with a `soak` of its own. The last one takes all that are left.",
        )
    )
    soak_s: Duration = Field(
        600.0,
        alias="soak",
        description="How long a wave is watched, once it is good, before the next one begins.",
        json_schema_extra={"type": "string", "default": "10m"},
    )
    max_failed: Annotated[
        Share,
        BeforeValidator(lambda value: _check_share(value, 0)),
        WithJsonSchema(_MAX_FAILED_SCHEMA),
    ] = Field(
        Share(count=0),
        description="How many machines may fail: a count, or a percentage of all, rounded down. "
        "With one more the rollout halts.",
        json_schema_extra={"default": 0},
    )
    timeout_s: Duration = Field(
        3600.0,
        alias="timeout",
        description="How long a machine may take to become good.",
        json_schema_extra={"type": "string", "default": "1h"},
    )
    fragment_variables: Variables | None = Field(
        None,
        description="`url`, `version` and perhaps `sha256`: the names of the fragment's variables. "
        "Default: those that the fragment has at the service's attributes.",
    )

    @property
    def digest(self) -> str:
        """What tells one rollout from another. The brakes may be set otherwise on the way."""
        waves = [wave.model_dump(exclude={"soak_s"}) for wave in self.waves]
        brakes = {"soak_s", "max_failed", "timeout_s", "waves"}
        whole = [self.model_dump(mode="json", exclude=brakes), waves]
        text = json.dumps(whole, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def soak_of(self, wave: int) -> float:
        """In seconds, of the wave of this number."""
        own = self.waves[wave].soak_s if wave < len(self.waves) else None
        return self.soak_s if own is None else own


def read_plan(path: Path) -> Plan:
    """The plan in a file: YAML, or JSON. Raises PlanError with every fault, and OtaError
    "file-access"."""
    text = read_file(path, TEXT_BYTES).decode("utf-8", "replace")
    return parse_plan(text, json_form=path.suffix == ".json")


def parse_plan(text: str, *, json_form: bool = False) -> Plan:
    """The plan that a text is. Raises PlanError."""
    given = _json(text) if json_form else _yaml(text)
    if not isinstance(given, dict):
        raise PlanError("It must be an object with select, target, mode and waves.")
    try:
        return Plan.model_validate(given)
    except ValidationError as error:
        faults = (_in_words(dict(found)) for found in error.errors(include_url=False))
        raise PlanError(sentences(faults)) from None


def _json(text: str) -> Any:
    try:
        return parse(text)
    except DocumentError as error:
        raise PlanError(f"It cannot be read as JSON: {error}") from None


def _yaml(text: str) -> Any:
    """As a person means it: YAML would take the second of two alike keys, and 010 for 8."""
    import yaml  # type: ignore[import-untyped]

    def check(node: yaml.Node) -> None:
        line = f"line {node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise PlanError(f'The key "{twice}" stands twice ({line}).')
        elif node.tag.endswith(":int") and not re.fullmatch(_DECIMAL, node.value):
            raise PlanError(
                f"{node.value} is another number for YAML ({line}): write it as a decimal number, "
                "or in quotes."
            )

    try:
        seen: dict[int, Any] = {}
        waiting = [yaml.compose(text, Loader=yaml.SafeLoader)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, yaml.Node) and id(node) not in seen:
                check(node)
                seen[id(node)] = node
                inner = node.value if isinstance(node, yaml.CollectionNode) else ()
                # Of a mapping each is a pair.
                waiting += chain.from_iterable(e if isinstance(e, tuple) else [e] for e in inner)
        return yaml.safe_load(text)
    except PlanError:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        # Its own words quote the line, and a url may hold a password.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise PlanError(
            f"It cannot be read as YAML: {line}{problem or type(error).__name__}."
        ) from None


def _in_words(found: dict[str, Any]) -> str:
    loc: tuple[str | int, ...] = found["loc"]
    place = where(loc)
    models: dict[str, type[Strict]] = {
        "select": Select,
        "target": Target,
        "fragment_variables": Variables,
    }
    model = models.get(str(loc[0]), Plan) if len(loc) > 1 else Plan
    known = [field.alias or name for name, field in model.model_fields.items()]
    match found["type"]:
        case "missing":
            return f"{place}: is missing"
        case "extra_forbidden":
            hint = nearest(str(loc[-1]), known)
            words = f"did you mean {hint}?" if hint else f"there are {', '.join(known)}"
            return f"{place}: is no key here; {words}"
        case _:
            return f"{place}: {found['msg']}" if place else str(found["msg"])


# --- waves


def assign(waves: Sequence[Wave], names: Sequence[str]) -> list[list[str]]:
    """The machines of each wave, from all their names; every name is in just one wave.

    Machines go in the natural order of their names; those that a wave names are kept for it. The
    last wave takes all that are left. A wave that nobody is left for is empty. Raises PlanError
    where a wave names a machine that there is not, or that another wave has.
    """
    named: dict[str, int] = {}
    for number, wave in enumerate(waves):
        for name in wave.machines or ():
            if name not in names:
                raise PlanError(
                    f'waves[{number}]: there is no machine "{name}" among those selected.'
                )
            if name in named:
                raise PlanError(f'waves[{number}]: wave {named[name] + 1} has "{name}", too.')
            named[name] = number
    free: Iterator[str] = iter(sorted((n for n in names if n not in named), key=natural))
    made: list[list[str]] = []
    for wave in waves:
        if wave.machines is not None:
            made.append(list(wave.machines))
        else:
            assert wave.share is not None
            made.append(list(islice(free, wave.share.up(len(names)))))
    made[-1] += free
    return made
