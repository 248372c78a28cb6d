# SPDX-License-Identifier: GPL-3.0-or-later
"""`socket://`: a connection that carries a port's bytes and nothing else, as emulators offer it.

pyserial's own client has no bounds: a peer that sends without end is read without end.
The module's name and the class `Serial` are what `serial.serial_for_url` looks for.
"""

from __future__ import annotations

from ota_service.link.urlhandler import protocol_rfc2217
from ota_service.link.urlhandler.protocol_rfc2217 import LINES_TIMEOUT_S


class Serial(protocol_rfc2217.Serial):
    """A port without settings and lines, with the bounds of `rfc2217://`."""

    _scheme = "socket"

    def _escape(self, data: bytes) -> bytes:
        return data

    def _agree(self) -> None:
        """There is nothing to agree on."""

    def _tell(self, number: int, value: bytes) -> None:
        """The other end has its settings."""

    def _set_baud(self) -> None:
        """It has its speed, too."""

    def _set_line(self, code: int) -> None:
        """Nobody would hear of it."""

    def _take(self, data: bytes) -> None:
        self._received += data

    def reset_input_buffer(self) -> None:
        """Forget what has arrived, up to a bound in time: the next read tells of a flood."""
        self._check_open()
        self._await(self._emptied, LINES_TIMEOUT_S)

    def _emptied(self) -> bool:
        self._forget()
        return not self._receive()

    def reset_output_buffer(self) -> None:
        """What was written is on its way."""
        self._check_open()
