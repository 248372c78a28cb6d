# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes into the documentation what the code knows: `python docs/generate.py`.

Between `<!-- generated: NAME -->` and `<!-- end -->` stands what this script makes; a test fails
where that is not what the code says today.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ota_service.errors import ERRORS
from ota_service.firmware.manifest import ImageEntry, Manifest
from ota_service.fleet import group_policy, policy
from ota_service.module.discovery import DiscoveryAttributes, ProbeArguments
from ota_service.module.sensor import SensorAttributes
from ota_service.module.service_attributes import BoardConfig, HealthCheckConfig, ServiceConfig
from ota_service.module.verbs import VERBS
from ota_service.rollout import policy as rollout_policy
from ota_service.rollout.plan import Plan, Select, Share, Target

ROOT = Path(__file__).parents[1]
PAGES = (
    "docs/architecture.md",
    "docs/errors.md",
    "docs/manifests.md",
    "docs/ota_service.md",
    "docs/ota_discovery.md",
    "docs/ota_sensor.md",
    "docs/fleets.md",
)
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.S)

BLAMES = {
    "config": "The configuration or the command",
    "firmware": "The file at the url, or the way to it",
    "board": "What is on the board, or what the board is",
    "link": "The port, the cable, the way to the board",
    "policy": "Nothing is wrong: it may not happen now",
    "host": "This computer",
}


# What a person meets on the way from an empty configuration to the first update, in that order.
FREQUENT = (
    "config-invalid",
    "no-board",
    "permission",
    "port-busy",
    "no-answer",
    "http-status",
    "merged-binary",
    "no-ota-slots",
    "other-project",
    "changed-elsewhere",
    "boot-failed",
)


def frequent_errors() -> str:
    """The rows of the errors that are met most."""
    rows = (ERRORS[code] for code in FREQUENT)
    return "| Code | What happened | What to do |\n|---|---|---|\n" + "".join(
        f"| `{row.code}` | {row.message} | {row.remedy} |\n" for row in rows
    )


def errors() -> str:
    """The table of errors, grouped by whose fault they are."""
    parts = []
    for blame, title in BLAMES.items():
        parts.append(f"### {title}\n\n| Code | What happened | What to do | Retried | Counts |\n")
        parts.append("|---|---|---|---|---|\n")
        parts += [
            f"| `{row.code}` | {row.message} | {row.remedy} "
            f"| {'by itself' if row.transient else ''} | {'yes' if row.counts else ''} |\n"
            for row in ERRORS.values()
            if row.blame == blame
        ]
        parts.append("\n")
    return "".join(parts)


# --- tables of attributes and arguments


def table(model: type[BaseModel], head: str = "Name") -> str:
    """One row a field: name, type, whether it must be given, default, description."""
    rows = [f"| {head} | Type | Inclusion | Default | Description |\n|---|---|---|---|---|\n"]
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        said = extra.get("type") if isinstance(extra, dict) else None
        of = str(said or kind(field.annotation))
        cells = (f"`{field.alias or name}`", of, inclusion(field), default(field))
        rows.append("|".join(["", *(f" {cell} " if cell else " " for cell in cells), ""]))
        rows.append(f" {description(field)} |\n")
    return "".join(rows)


def kind(annotation: Any) -> str:
    """A type in the words of JSON and of Viam's pages."""
    if get_origin(annotation) in (UnionType, Union):  # what may be left out is "X | None"
        (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
    if get_origin(annotation) is Literal:
        (annotation,) = set(map(type, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    of = get_origin(annotation) or annotation
    if of is Literal:
        return "string"
    if issubclass(of, BaseModel):
        return "object"
    return {
        bool: "bool",
        dict: "object",
        float: "number",
        int: "int",
        list: "list",
        Share: "int or percentage",
        str: "string",
        tuple: "list",
    }[of]


def inclusion(field: FieldInfo) -> str:
    """Required, Optional, or Either: just one of those that say so."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "inclusion" in extra:
        return str(extra["inclusion"])
    return "Required" if field.is_required() else "Optional"


def default(field: FieldInfo) -> str:
    """What stands for a field that is not given, as JSON; empty where nothing does."""
    if field.is_required() or field.default is None:
        return ""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:  # as a person writes it
        return f"`{json.dumps(extra['default'])}`"
    whole = isinstance(field.default, float) and field.default.is_integer()
    return f"`{json.dumps(int(field.default) if whole else field.default)}`"


def description(field: FieldInfo) -> str:
    """A sentence, with the field's bounds in the place of `{range}`."""
    text = field.description or ""
    for low, high in bounds(field):
        text = text.replace("{range}", f"{low} to {high}")
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}.".replace("|", "\\|")


def bounds(field: FieldInfo) -> Iterator[tuple[int, int]]:
    """The lowest and the highest value that a number may have."""
    for check in field.metadata:
        function = getattr(check, "func", None)
        if isinstance(function, partial):
            yield function.keywords["low"], function.keywords["high"]


def policy_rows(rows: Iterable[tuple[Iterable[str], Iterable[str], str | None, str, str]]) -> str:
    """The rows of a table of a board or a group, in its order."""
    head = "| In | When | Then | It does | Why |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| {_words(states)} | {_words(events)} | {f'`{state}`' if state else 'stays'} "
        f"| {action.replace('_', ' ')} | {why} |\n"
        for states, events, state, action, why in rows
    )


def rollout_rows(rows: Iterable[tuple[Iterable[str], Iterable[str], str, str]]) -> str:
    """The rows of a table of a rollout, in its order."""
    head = "| In | When | Then | Why |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {_words(states)} | {_words(events)} | `{state}` | {why} |\n"
        for states, events, state, why in rows
    )


def schema(model: type[BaseModel]) -> str:
    """The JSON Schema of a file, for editors and validators."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


BLOCKS: dict[str, Callable[[], str]] = {
    "board-policy": lambda: policy_rows(policy.ROWS),
    "firmware-policy": lambda: policy_rows(policy.FIRMWARE_ROWS),
    "group-policy": lambda: policy_rows(group_policy.ROWS),
    "rollout-machine-policy": lambda: rollout_rows(rollout_policy.MACHINE_ROWS),
    "rollout-policy": lambda: rollout_rows(rollout_policy.ROLLOUT_ROWS),
    "rollout-plan": lambda: table(Plan, "Key"),
    "rollout-select": lambda: table(Select, "Key"),
    "rollout-target": lambda: table(Target, "Key"),
    "errors": errors,
    "frequent-errors": frequent_errors,
    "manifest-fields": lambda: table(Manifest),
    "manifest-image-fields": lambda: table(ImageEntry),
    "service-attributes": lambda: table(ServiceConfig),
    "board-attributes": lambda: table(BoardConfig),
    "robot-call": lambda: table(HealthCheckConfig),
    "sensor-attributes": lambda: table(SensorAttributes),
    "discovery-attributes": lambda: table(DiscoveryAttributes),
    "discovery-arguments": lambda: table(ProbeArguments),
    **{
        f"{verb.name}-arguments": partial(table, verb.arguments, "Argument")
        for verb in VERBS.values()
        if verb.arguments.model_fields
    },
}


def generated(text: str) -> str:
    """A page with its blocks made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}{found[3]}", text)


WHOLE: dict[str, Callable[[], str]] = {
    "docs/manifest.schema.json": partial(schema, Manifest),
    "docs/rollout.schema.json": partial(schema, Plan),
}
"""Files that are made from their first byte to their last."""


def main() -> int:
    """Write the pages; returns the exit code."""
    for page in (*PAGES, *WHOLE):
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = WHOLE[page]() if page in WHOLE else generated(text)
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
