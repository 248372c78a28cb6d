# SPDX-License-Identifier: GPL-3.0-or-later
"""Values in the form that survives the way through Viam, and their way into and out of protobuf.

On that way None becomes 0, and what JSON does not have raises. So a key without a value is left
out, and everything else is text, numbers, booleans, lists and dictionaries.

viam-sdk's own way asks three runtime protocols of every value of a reply: 9 ms for the status of
32 boards, in which nothing else is answered. protobuf takes a plain dictionary as it is, in 0.4 ms.
And the SDK's reading of a command makes null 0, and takes seconds where the command has many
megabytes, so such a one is refused before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import viam.services.generic.service as generic
from google.protobuf.struct_pb2 import Struct, Value
from grpclib import Status
from viam.errors import ViamGRPCError

from ota_service.firmware.secrets import hide
from ota_service.formats.text import visible

MAX_COMMAND_BYTES = 1 << 20


def plain(value: Any) -> Any:
    """`value` as text, numbers, booleans, lists and dictionaries, without None anywhere.

    It is the last place before a reply leaves: no text keeps a secret of a url or of a header,
    nor a character that is not seen as what it is.

    Replies are made of what JSON has; whatever else is in one becomes its text. Numbers that are
    not finite count as no value. Returns None only where `value` itself has no value.
    """
    match value:
        case None | bool():
            return value
        case int() | float():
            return value if math.isfinite(value) else None
        case Mapping():
            found = {plain(str(key)): plain(item) for key, item in value.items()}
            return {key: item for key, item in found.items() if item is not None}
        case list() | tuple():
            return [item for item in map(plain, value) if item is not None]
        case _:
            return visible(hide(str(value)))


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


# --- commands and replies of the Generic service


def to_struct(reply: Mapping[str, Any]) -> Struct:
    """A plain reply, as viam-sdk would make it."""
    struct = Struct()
    struct.update(reply)
    return struct


def read_command(struct: Struct) -> dict[str, Any]:
    """A command. Raises ViamGRPCError for one that is too large to be one."""
    size_bytes = struct.ByteSize()
    if size_bytes > MAX_COMMAND_BYTES:
        raise ViamGRPCError(
            f"The command has {size_bytes} bytes; the limit is {MAX_COMMAND_BYTES}. Firmware is "
            "given by its url or by a path on this machine.",
            Status.INVALID_ARGUMENT,
        )
    return from_struct(struct)


def install() -> None:
    """Have viam-sdk's handlers of the Generic service use these two; idempotent."""
    vars(generic).update(dict_to_struct=to_struct, struct_to_dict=read_command)
