# SPDX-License-Identifier: GPL-3.0-or-later
"""pyserial's `rfc2217://` with cached settings, for ports behind ser2net or esp_rfc2217_server.

pyserial's own client sleeps at each change of a control line and settles all settings again
whenever a timeout changes, which esptool does at every command: minutes instead of seconds
(pyserial 3.5, `rfc2217.py`). This one sends what has changed, and timeouts are its own affair.

The module's name and the class `Serial` are what `serial.serial_for_url` looks for.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from serial.serialutil import (
    PortNotOpenError,
    SerialBase,
    SerialException,
    SerialTimeoutException,
    to_bytes,
)

from ota_service.link.urlhandler import telnet
from ota_service.link.urlhandler.telnet import EndlessError, Negotiation

ANSWER_TIMEOUT_S = 3.0
"""How long a server may take to agree, or to answer a command."""
LINES_TIMEOUT_S = 0.5
"""How long the answer to a line's change is waited for: not every server sends one."""
PIECE_BYTES = 1 << 16
"""What is received at once, and what is kept ahead of the reader. The rest waits at the server."""
MAX_UNREAD_BYTES = 1 << 20
"""How much may arrive before what is waited for: a minute and a half of a boot log."""

_PARITY = {"N": 1, "O": 2, "E": 3, "M": 4, "S": 5}
_STOP_BITS = {1: 1, 2: 2, 1.5: 3}
_DECLINE = {telnet.DO: telnet.WONT, telnet.WILL: telnet.DONT}
_OURS = (telnet.BINARY, telnet.SUPPRESS_GO_AHEAD, telnet.COM_PORT)


class Serial(SerialBase):  # type: ignore[misc]
    """A serial port behind an RFC 2217 server, with pyserial's usual interface, for one thread.

    What a server sends takes neither memory nor time without bounds. Raises pyserial's
    SerialException: ECONNREFUSED and the like where nothing listens, "port is busy" where the
    server says so, EIO where the connection ends, EPROTO where the server sends without end.
    """

    _scheme = "rfc2217"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._socket: socket.socket | None = None
        self._decoder = telnet.Decoder()
        self._received = bytearray()
        self._unread_bytes = 0  # with what was no data
        self._asked: int | None = None
        self._answer: bytes | None = None
        self._agreed: set[int] = set()
        self._refused = False
        self._declined: set[Negotiation] = set()
        self._told: dict[int, bytes] = {}
        self._gone = False
        self.is_open: bool = False
        super().__init__(*args, **kwargs)

    # --- open and close

    def open(self) -> None:
        """Connect, agree on the COM-PORT option, set the port up with its lines as they are."""
        if self._port is None:
            raise SerialException("Port must be configured before it can be used.")
        if self.is_open:
            raise SerialException("Port is already open.")
        self._decoder = telnet.Decoder()
        self._forget()
        self._agreed.clear()
        self._declined.clear()
        self._told.clear()
        self._gone = self._refused = False
        host, port = self._address()
        try:
            self._socket = socket.create_connection((host, port), timeout=ANSWER_TIMEOUT_S)
        except OSError as error:
            raise SerialException(
                error.errno or errno.EIO, f"could not open the port: {error}"
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self.is_open = True
        try:
            self._agree()
            # Before anything else: the lines decide whether the board restarts.
            self._update_dtr_state()
            self._update_rts_state()
            self._reconfigure_port()
            self.reset_input_buffer()
        except BaseException:
            self.close()
            raise

    def _address(self) -> tuple[str, int]:
        parts = urlsplit(str(self._port))
        host, port = parts.hostname, parts.port
        if parts.scheme.lower() != self._scheme or not host or port is None:
            raise ValueError(f"expected a url like {self._scheme}://host:port")
        return host, port

    def _agree(self) -> None:
        """Offer the option and await the server's consent."""
        asked = b"".join(
            telnet.negotiate(verb, option)
            for option in _OURS
            for verb in ((telnet.WILL, telnet.DO) if option != telnet.COM_PORT else (telnet.WILL,))
        )
        self._send(asked)

        def agreed() -> bool:
            return telnet.COM_PORT in self._agreed or self._refused

        if not self._await(agreed, ANSWER_TIMEOUT_S) or self._refused:
            raise SerialException("the server does not speak RFC 2217")

    def close(self) -> None:
        """End the connection."""
        self.is_open = False
        link, self._socket = self._socket, None
        if link is not None:
            link.close()

    # --- settings

    def _reconfigure_port(self) -> None:
        if not 0 < self._baudrate < 2**32:
            raise ValueError(f"invalid baudrate: {self._baudrate!r}")
        if self.is_open:
            self._tell(telnet.SET_DATA_SIZE, bytes((self._bytesize,)))
            self._tell(telnet.SET_PARITY, bytes((_PARITY[self._parity],)))
            self._tell(telnet.SET_STOP_SIZE, bytes((_STOP_BITS[self._stopbits],)))
            self._tell(telnet.SET_CONTROL, bytes((telnet.CONTROL_NO_FLOW,)))
            self._set_baud()

    def _tell(self, number: int, value: bytes) -> None:
        if self._told.get(number) != value:
            self._send(telnet.command(number, value))
            self._told[number] = value

    def _set_baud(self) -> None:
        wanted = telnet.baud(self._baudrate)
        if self._told.get(telnet.SET_BAUD) == wanted:
            return
        answer = self._ask(telnet.SET_BAUD, wanted, ANSWER_TIMEOUT_S)
        if answer is None:
            raise SerialException("the server does not answer")
        if answer != wanted:
            self._told.pop(telnet.SET_BAUD, None)
            raise ValueError(f"the server's port cannot be set to {self._baudrate} baud")
        self._told[telnet.SET_BAUD] = wanted

    def _ask(
        self, number: int, value: bytes, timeout_s: float, *, keep: bool = True
    ) -> bytes | None:
        """Send a command and wait for the server's answer to it. keep: what arrives before."""
        self._asked, self._answer = number, None
        self._unread_bytes = len(self._received)
        self._send(telnet.command(number, value))

        def answered() -> bool:
            if not keep:
                self._forget()
            return self._answer is not None

        self._await(answered, timeout_s)
        return self._answer

    def _set_line(self, code: int) -> None:
        # The answer is awaited, so that the pauses of a reset sequence begin when it is done.
        if self.is_open:
            self._ask(telnet.SET_CONTROL, bytes((code,)), LINES_TIMEOUT_S)

    def _update_dtr_state(self) -> None:
        self._set_line(telnet.CONTROL_DTR_ON if self._dtr_state else telnet.CONTROL_DTR_OFF)

    def _update_rts_state(self) -> None:
        self._set_line(telnet.CONTROL_RTS_ON if self._rts_state else telnet.CONTROL_RTS_OFF)

    # --- data

    @property
    def in_waiting(self) -> int:
        """Bytes that have arrived and were not read yet."""
        self._check_open()
        self._look()
        if not self._received and self._gone:
            raise self._vanished()
        return len(self._received)

    def read(self, size: int = 1) -> bytes:
        """Up to `size` bytes, fewer where the timeout passes first."""
        self._check_open()
        try:
            self._await(lambda: len(self._received) >= size, self._timeout)
        except SerialException:
            if not self._received:
                raise
        taken = bytes(self._received[:size])
        del self._received[:size]
        self._unread_bytes = len(self._received)
        return taken

    def write(self, data: Any) -> int:
        """Send bytes; raises SerialTimeoutException where the connection takes none."""
        self._check_open()
        payload = to_bytes(data)
        self._look()
        if self._gone:
            raise self._vanished()
        self._send(self._escape(payload))
        return len(payload)

    def flush(self) -> None:
        """What was written is with the server; it does not tell when it has left the port."""
        self._check_open()

    def reset_input_buffer(self) -> None:
        """Forget what has arrived, at the server too."""
        self._check_open()
        self._ask(telnet.PURGE, bytes((telnet.PURGE_RECEIVED,)), LINES_TIMEOUT_S, keep=False)
        self._forget()

    def _forget(self) -> None:
        self._received.clear()
        self._unread_bytes = 0

    def reset_output_buffer(self) -> None:
        """Forget what the server has not sent yet."""
        self._check_open()
        self._send(telnet.command(telnet.PURGE, bytes((telnet.PURGE_TO_SEND,))))

    # --- the connection

    def _await(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Receive until `condition` holds; False where it does not in time (None: for ever)."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not condition():
            if not self._receive():
                if self._gone:
                    if condition():
                        return True
                    raise self._vanished()
                wait_s = _left_s(deadline_s)
                if self._socket is None or not _ready(self._socket, select.POLLIN, wait_s):
                    return condition()
            elif deadline_s is not None and time.monotonic() > deadline_s:
                return condition()
        return True

    def _look(self) -> None:
        """Take what has arrived, unless there is enough to read already."""
        if len(self._received) < PIECE_BYTES:
            self._receive()

    def _receive(self) -> bool:
        """Take a piece of what has arrived apart; never waits. False: there was nothing."""
        link = self._socket
        if link is None or self._gone:
            return False
        try:
            data = link.recv(PIECE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._gone = True
            return False
        self._unread_bytes += len(data)
        try:
            self._take(data)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                raise EndlessError
        except EndlessError:
            self._gone = True
            self._forget()
            raise SerialException(errno.EPROTO, "the server sends without end") from None
        return True

    def _take(self, data: bytes) -> None:
        for part in self._decoder.feed(data):
            if isinstance(part, bytes):
                self._received += part
            elif isinstance(part, Negotiation):
                self._negotiated(part)
            elif part.command == self._asked:
                self._answer = part.value

    def _escape(self, data: bytes) -> bytes:
        return telnet.escape(data)

    def _negotiated(self, said: Negotiation) -> None:
        if said.option in _OURS:
            if said.verb == telnet.DO:
                self._agreed.add(said.option)
            elif said.verb == telnet.DONT and said.option == telnet.COM_PORT:
                self._refused = True
        elif said.verb in _DECLINE and said not in self._declined:
            self._declined.add(said)  # said once: a server that insists gets no second answer
            self._send(telnet.negotiate(_DECLINE[said.verb], said.option))

    def _send(self, data: bytes) -> None:
        limit_s = self._write_timeout
        deadline_s = None if limit_s is None else time.monotonic() + limit_s
        link, view = self._socket, memoryview(data)
        while link is not None and view:
            try:
                view = view[link.send(view) :]
            except BlockingIOError:
                if not _ready(link, select.POLLOUT, _left_s(deadline_s)):
                    raise SerialTimeoutException("Write timeout") from None
            except OSError as error:
                self._gone = True
                raise self._vanished() from error

    def _check_open(self) -> None:
        if not self.is_open:
            raise PortNotOpenError()

    def _vanished(self) -> SerialException:
        said = bytes(self._received[:80]).decode("utf-8", "replace").strip()
        if not self._agreed and "in use" in said.lower():
            return SerialException(errno.EBUSY, f"the port is busy ({said})")
        return SerialException(errno.EIO, "the server ended the connection")


def _left_s(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def _ready(link: socket.socket, event: int, wait_s: float | None) -> bool:
    poll = select.poll()  # not select(), which knows 1024 descriptors
    poll.register(link, event)
    return bool(poll.poll(None if wait_s is None else wait_s * 1000))
