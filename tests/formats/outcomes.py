# SPDX-License-Identifier: GPL-3.0-or-later
"""A call's value or its `OtaError`, for tests that accept both and look at both."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ota_service.errors import OtaError

P = ParamSpec("P")
T = TypeVar("T")


def outcome(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | OtaError:
    """What `function` returns, or the `OtaError` that it raises; anything else passes on."""
    try:
        return function(*args, **kwargs)
    except OtaError as error:
        return error
