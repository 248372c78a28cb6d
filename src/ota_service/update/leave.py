# SPDX-License-Identifier: GPL-3.0-or-later
"""Leaves a board that was looked at: back into its firmware, as it was found, whatever happened."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ota_service.errors import OtaError
from ota_service.formats.flashops import SECTOR_BYTES, Program
from ota_service.formats.otadata import OtaState, parse_otadata
from ota_service.formats.partitions import OTADATA_BYTES
from ota_service.formats.table_places import find_table
from ota_service.link.flash import apply_verified
from ota_service.link.link import EspLink

_GONE = ("link-lost", "no-answer", "wrong-board")
"""Where nothing but a reset can be done: the board that was looked at does not answer."""
_STATE_AT = 24
"""Of ota_state in an otadata entry (esp32.md, "otadata")."""


def _give_time_again(link: EspLink) -> None:
    """An app that waits for confirmation gets its whole time again: the bootloader that the next
    restart passes would turn it down. Where that cannot be, the board is left alone.

    NEW is PENDING_VERIFY with one bit cleared, and the entry's CRC does not cover the state, so
    one program turns it back.
    """
    with contextlib.suppress(OtaError):
        at = find_table(link.read, flash_bytes=link.chip.flash_bytes).otadata
        if at is None:
            return
        entries = parse_otadata(link.read(at.offset, OTADATA_BYTES)).entries
        for sector, entry in enumerate(entries):
            if entry.counts and entry.state == OtaState.PENDING_VERIFY:
                place = at.offset + sector * SECTOR_BYTES + _STATE_AT
                apply_verified(link, [Program(place, bytes(4), "its time to confirm again")])


def put_back(link: EspLink, *, waits: bool = True) -> None:
    """Restart a board that was only looked at. waits: its app may wait for confirmation, and is
    to get its time again. Raises OtaError `link-lost`."""
    if waits:
        _give_time_again(link)
    link.restart()


@contextmanager
def left_running(link: EspLink, *, waits: Callable[[], bool] = lambda: True) -> Iterator[None]:
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
        if isinstance(error, OtaError):
            error.baud = link.baud
        raise
