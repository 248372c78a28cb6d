# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way to a board behind a port: claimed, opened, and closed whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serial import SerialBase

from ota_service.link.ownership import PORT_OWNERS
from ota_service.link.ports import require_exists
from ota_service.link.serial_port import close_port, open_port


@contextmanager
def at_port(
    port: str, owner: str, board: str | None = None, *, timeout_s: float = 0.1
) -> Iterator[SerialBase]:
    """The open port, for `owner` ("service OTA") alone.

    board: its name for errors. Raises OtaError `port-missing`, `port-busy` and what `open_port`
    raises.
    """
    require_exists(port, board)
    with PORT_OWNERS.claim(port, owner, board):
        opened = open_port(port, board=board, timeout_s=timeout_s)
        try:
            yield opened
        finally:
            close_port(opened)


def require_free(port: str, owner: str, board: str | None = None) -> None:
    """Raise `port-busy` where somebody has the port; it is not opened."""
    with PORT_OWNERS.claim(port, owner, board):
        pass
