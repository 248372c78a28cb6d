# SPDX-License-Identifier: GPL-3.0-or-later
"""Our way between dictionaries and protobuf means the same as viam-sdk's."""

from __future__ import annotations

from typing import Any

import pytest
import viam.utils
from hypothesis import given, settings
from hypothesis import strategies as st
from viam.errors import ViamGRPCError

from ota_service.module.plain import MAX_COMMAND_BYTES, plain, read_command, to_struct
from ota_service.module.verbs import MESSAGE_MAX_CHARS

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.dictionaries(st.text(), VALUES | st.floats() | st.binary() | st.tuples(VALUES)))
def test_a_reply_is_what_viam_sdk_would_make_of_it(reply: dict[str, Any]) -> None:
    """Bit by bit the same message, for everything that `plain` lets through; it arrives as it was
    sent: in particular there is no None, which would arrive as 0."""
    wanted = plain(reply)
    sent = to_struct(wanted)
    assert sent == viam.utils.dict_to_struct(wanted)
    assert viam.utils.struct_to_dict(sent) == wanted


@pytest.mark.slow
@settings(max_examples=30)
@given(st.dictionaries(st.text(), VALUES))
def test_a_command_is_read_as_it_was_sent(command: dict[str, Any]) -> None:
    """Null with it, which viam-sdk's own reader would make 0."""
    assert read_command(viam.utils.dict_to_struct(command)) == command


def test_a_command_of_megabytes_is_refused_before_it_is_read() -> None:
    """With its size and the limit, and without its words."""
    struct = to_struct({"command": "update", "boards": ["x" * MAX_COMMAND_BYTES]})
    with pytest.raises(ViamGRPCError, match=f"the limit is {MAX_COMMAND_BYTES}") as caught:
        read_command(struct)
    assert len(str(caught.value)) < 200
    struct = to_struct({"command": "x" * (MAX_COMMAND_BYTES - 100)})
    assert len(read_command(struct)["command"]) > MESSAGE_MAX_CHARS
