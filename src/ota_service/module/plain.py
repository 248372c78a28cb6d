# SPDX-License-Identifier: GPL-3.0-or-later
"""Values in the form that survives the way through Viam.

On that way None becomes 0, and times, sets and bytes raise. So a key without a value is left
out, and everything else becomes text, numbers, booleans, lists and dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from types import NoneType
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value


def plain(value: Any) -> Any:
    """`value` as text, numbers, booleans, lists and dictionaries, without None anywhere.

    Times become ISO 8601 in UTC ("2026-01-02T03:04:05Z"), bytes hex digits, enums their
    values, dataclasses dictionaries. Numbers that are not finite count as no value. Returns
    None only where `value` itself has no value.
    """
    for kind, way in _WAYS:
        if isinstance(value, kind):
            return way(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in fields(value)})
    return str(value)


def iso_utc(moment: datetime) -> str:
    """`moment` in UTC, to the second: "2026-01-02T03:04:05Z"; without a zone it is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_struct(struct: Struct) -> dict[str, Any]:
    """A protobuf Struct's values with null as None, which the SDK's own reader makes 0."""
    return {name: _from_value(value) for name, value in struct.fields.items()}


def _from_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
        case "string_value":
            return value.string_value
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def _entries(values: Mapping[Any, Any]) -> dict[str, Any]:
    found = {str(key): plain(item) for key, item in values.items()}
    return {key: value for key, value in found.items() if value is not None}


_WAYS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: plain(value.value)),
    ((NoneType, bool, str), lambda value: value),
    ((int, float), lambda value: value if math.isfinite(value) else None),
    (datetime, iso_utc),
    ((bytes, bytearray), lambda value: value.hex()),
    (Mapping, _entries),
    ((set, frozenset), lambda value: plain(sorted(value, key=str))),
    (Iterable, lambda value: [kept for kept in map(plain, value) if kept is not None]),
)
"""What becomes of a value of some kind; the first that fits."""
