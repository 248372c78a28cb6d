# SPDX-License-Identifier: GPL-3.0-or-later
"""Leaves a board that was looked at: back into its firmware, as it was found, whatever happened."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ota_service.errors import OtaError
from ota_service.formats.table_places import find_table
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Flash
from ota_service.update.carry_out import rearm

_GONE = ("link-lost", "no-answer", "wrong-board")
"""Where nothing but a reset can be done: the board that was looked at does not answer."""


class Visited(Flash, Protocol):
    """A link to a chip, as far as leaving it needs one.

    chip: what it is. running: it was restarted into its firmware.
    """

    @property
    def chip(self) -> ChipInfo:
        """What it is."""

    @property
    def running(self) -> bool:
        """Whether it was restarted into its firmware."""

    def restart(self) -> None:
        """Reset it into its firmware."""


def give_time_again(link: Visited) -> None:
    """An app that waits for confirmation gets its whole time again (`rearm`): the bootloader that
    the next restart passes would turn it down. Where that cannot be, the board is left alone."""
    with contextlib.suppress(OtaError):
        table = find_table(link.read, flash_bytes=link.chip.flash_bytes)
        if table.otadata is not None:
            rearm(link, table)


def put_back(link: Visited, *, waits: bool = True) -> None:
    """Restart a board that was only looked at. waits: its app may wait for confirmation, and is
    to get its time again. Raises OtaError `link-lost`."""
    if waits:
        give_time_again(link)
    link.restart()


@contextmanager
def left_running(link: Visited, *, waits: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Where the visit fails, the board is not left in download mode, as far as its port allows.

    waits: as in `put_back`, asked when it fails.
    """
    try:
        yield
    except BaseException as error:
        if not link.running:
            lost = isinstance(error, OtaError) and error.code in _GONE
            with contextlib.suppress(Exception):
                put_back(link, waits=not lost and waits())
        raise
