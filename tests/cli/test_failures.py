# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong, in one line: from the module, through the SDK, to the terminal."""

from __future__ import annotations

import pytest

from ota_service.client.failure import Failure
from ota_service.client.machine import Access, from_module
from ota_service.errors import ERRORS, OtaError


@pytest.mark.parametrize("code", sorted(ERRORS))
@pytest.mark.parametrize("prefix", ["", "rpc error: code = Unknown desc = "])
def test_an_error_of_the_module_keeps_its_words_and_loses_the_trimmings(
    code: str, prefix: str
) -> None:
    """As the SDK sends it, and as a viam-server in between passes it on."""
    error = OtaError(code, "What - really - happened.", board="kitchen")
    sent = f"{prefix}OtaError - {error} - file_name='/x/y.py' func_name='f' line_num=3"
    failure = from_module(sent)
    assert failure.message == "kitchen: What - really - happened."
    assert (failure.remedy, failure.code) == (ERRORS[code].remedy, code)
    assert str(failure) == str(error)


def test_other_exceptions_are_told_as_they_are() -> None:
    """A wrong verb's words already say what exists."""
    text = "ValueError - there is no board \"x\"; the boards are: a - file_name='y' line_num=1"
    assert str(from_module(text)) == 'there is no board "x"; the boards are: a [refused]'
    assert str(from_module("strange [not-a-code]")) == "strange [not-a-code] [refused]"
    assert str(from_module("")) == "The service failed without a word. [refused]"


def test_a_failure_as_json_has_no_empty_values() -> None:
    """The page shows what is there."""
    assert Failure("a", code="tls").to_dict() == {"message": "a", "code": "tls"}


def test_a_key_is_not_part_of_what_is_shown() -> None:
    """Traces and logs hold reprs."""
    assert "s3cret" not in repr(Access("a:1", api_key="s3cret", api_key_id="i"))
