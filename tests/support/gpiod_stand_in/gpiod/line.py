# SPDX-License-Identifier: GPL-3.0-or-later
"""As libgpiod's `gpiod.line`: the part that is used."""

from enum import Enum


class Direction(Enum):
    """Of a line."""

    AS_IS = 1
    INPUT = 2
    OUTPUT = 3


class Drive(Enum):
    """How an output is driven."""

    PUSH_PULL = 1
    OPEN_DRAIN = 2


class Value(Enum):
    """Of a line; of an open drain, ACTIVE is let go."""

    INACTIVE = 0
    ACTIVE = 1
