# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way to a board behind a port: claimed, opened, and closed whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from serial import SerialBase

from ota_service.link.attachment import Attachment, attach
from ota_service.link.ownership import PORT_OWNERS
from ota_service.link.ports import canonical, require_exists
from ota_service.link.resets import ResetWay
from ota_service.link.serial_port import close_port, open_port


@contextmanager
def at_port(
    port: str,
    owner: str,
    board: str | None = None,
    *,
    timeout_s: float = 0.1,
    reset: ResetWay | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[SerialBase]:
    """The open port, for `owner` ("service OTA") alone, by whatever name it comes back at a reset.

    board: its name for errors. reset: by what the board is reset, if not by its port's lines.
    stopped: whether the process ends, so that a port that went away is not waited for.
    Raises OtaError `port-missing`, `port-busy` and what `open_port` and `reset` raise.
    """
    require_exists(port, board)
    with ExitStack() as claims, ExitStack() as resets:
        claimed = ""

        def claim(name: str) -> None:
            nonlocal claimed
            if canonical(name) != claimed:
                claims.close()  # the old name may be another board's by now
                claimed = ""
                claims.enter_context(PORT_OWNERS.claim(name, owner, board))
                claimed = canonical(name)

        claim(port)
        by = resets.enter_context(reset.held()) if reset is not None else None
        about = Attachment(port, by, claim, stopped)
        opened = open_port(port, board=board, timeout_s=timeout_s)
        attach(opened, about)
        try:
            yield opened
        finally:
            try:
                about.settle(opened)
            finally:
                close_port(opened)


def require_free(port: str, owner: str, board: str | None = None) -> None:
    """Raise `port-busy` where somebody has the port; it is not opened."""
    with PORT_OWNERS.claim(port, owner, board):
        pass
