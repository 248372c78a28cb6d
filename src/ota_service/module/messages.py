# SPDX-License-Identifier: GPL-3.0-or-later
"""Replies and commands of the Generic service between dictionaries and protobuf, in little time.

viam-sdk's own way asks three runtime protocols of every value of a reply: 9 ms for the status of
32 boards, in which nothing else is answered. Our replies are plain already (`plain`), and protobuf
takes such a dictionary as it is, in 0.4 ms. And its reading of a command of many megabytes takes
seconds, so such a command is refused before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import viam.services.generic.service as generic
from google.protobuf.struct_pb2 import Struct
from grpclib import Status
from viam.errors import ViamGRPCError
from viam.utils import struct_to_dict

MAX_COMMAND_BYTES = 1 << 20


def to_struct(reply: Mapping[str, Any]) -> Struct:
    """A reply of text, numbers, booleans, lists and dictionaries, as viam-sdk would make it."""
    struct = Struct()
    struct.update(reply)
    return struct


def read_command(struct: Struct) -> dict[str, Any]:
    """A command as viam-sdk reads it. Raises ViamGRPCError for one that is too large to be one."""
    size_bytes = struct.ByteSize()
    if size_bytes > MAX_COMMAND_BYTES:
        raise ViamGRPCError(
            f"The command has {size_bytes} bytes; the limit is {MAX_COMMAND_BYTES}. Firmware is "
            "given by its url or by a path on this machine.",
            Status.INVALID_ARGUMENT,
        )
    return dict(struct_to_dict(struct))


def install() -> None:
    """Have viam-sdk's handlers of the Generic service use these two; idempotent."""
    vars(generic).update(dict_to_struct=to_struct, struct_to_dict=read_command)
