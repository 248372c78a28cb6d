# SPDX-License-Identifier: GPL-3.0-or-later
"""pyserial's view of a simulated board: a serial port with data, DTR, RTS and baud.

The module's name and the class `Serial` are what `serial.serial_for_url` looks for.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

from serial.serialutil import (
    PortNotOpenError,
    SerialBase,
    SerialException,
    SerialTimeoutException,
    to_bytes,
)

from esp32_sim import wire

SCHEME = "esp32sim://"
# What a tty and a bridge hold before a write blocks (Linux N_TTY: 4 KiB).
WRITE_BUFFER_BYTES = 4096
# What no reset sequence waits for less than. Changes of the lines that follow one another faster
# belong together, and a busy machine's delays between them are none of the circuit's: they are
# told the board as one USB frame apart.
SHORTEST_WAIT_S = 0.045
LINE_CHANGE_S = 0.001
# What is taken at once, the rest waits at the board: so many pieces.
PIECE_BYTES = 1 << 18
MAX_PIECES = 64
# How long the last bytes may take to leave the wire beyond their own time.
FLUSH_TIMEOUT_S = 30.0


def line_time_s() -> float:
    """When a line changes: what the reset circuit makes of it depends on the times between."""
    return time.monotonic()


class Serial(SerialBase):  # type: ignore[misc]
    """A port that leads to a simulated board, with pyserial's usual interface.

    Errors are pyserial's: a board that does not run or is unplugged gives `SerialException`
    with errno ENOENT, an open one EBUSY, one that vanishes while open EIO.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._socket: socket.socket | None = None
        self._reader = wire.FrameReader()
        self._received = bytearray()
        self._gone = False
        self._drained: set[bytes] = set()
        self._drain_count = 0
        self._timed = False
        self._line_changed_s = 0.0
        self._sent_until_s = 0.0
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self._cancel_read_pipe: tuple[int, int] | None = None
        self.is_open: bool = False
        super().__init__(*args, **kwargs)

    # --- open and close

    def open(self) -> None:
        """Open the port; raises SerialException (ENOENT, EBUSY)."""
        if self._port is None:
            raise SerialException("Port must be configured before it can be used.")
        if self.is_open:
            raise SerialException("Port is already open.")
        self._reconfigure_port()
        hello = self._connect()
        self._timed = bool(hello.get("timed"))
        self._sent_until_s = 0.0
        self._reader = wire.FrameReader()
        self._received.clear()
        self._drained.clear()
        self._gone = False
        self._cancel_read_pipe = os.pipe()
        os.set_blocking(self._cancel_read_pipe[0], False)
        self.is_open = True

    def _directory(self) -> Path:
        url = str(self._port)
        if not url.lower().startswith(SCHEME):
            raise SerialException(f"expected a url like {SCHEME}/path/of/the/board, not {url!r}")
        return Path(url[len(SCHEME) :])

    def _connect(self) -> dict[str, Any]:
        missing = f"could not open port {self._port}: [Errno 2] No such file or directory"
        try:
            address = wire.read_address(self._directory(), wire.PORT_FILE)
            link = socket.create_connection((address["host"], address["port"]), timeout=10)
        except (OSError, ValueError, KeyError) as error:
            raise SerialException(errno.ENOENT, missing) from error
        try:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            flags = (wire.FLAG_DTR if self._dtr_state else 0) | (
                wire.FLAG_RTS if self._rts_state else 0
            )
            hello = {
                "token": address["token"],
                "lines": flags,
                "time": line_time_s(),
                "baud": self._baudrate,
                "pid": os.getpid(),
            }
            link.sendall(json.dumps(hello).encode() + b"\n")
            answer = dict(json.loads(_read_line(link)))
        except (OSError, ValueError, TypeError) as error:
            link.close()
            raise SerialException(errno.ENOENT, missing) from error
        if answer.get("error") == "busy":
            link.close()
            raise SerialException(
                errno.EBUSY,
                f"could not open port {self._port}: port is busy (process {answer.get('pid')})",
            )
        if "error" in answer:
            link.close()
            raise SerialException(errno.ENOENT, missing)
        link.setblocking(False)
        self._socket = link
        return answer

    def close(self) -> None:
        """Close the port; both lines fall, as a tty's do."""
        if not self.is_open:
            return
        self.is_open = False
        link, self._socket = self._socket, None
        if link is not None:
            link.close()
        pipe, self._cancel_read_pipe = self._cancel_read_pipe, None
        if pipe is not None:
            os.close(pipe[0])
            os.close(pipe[1])

    # --- settings

    def _reconfigure_port(self) -> None:
        if not 0 < self._baudrate < 2**32:
            raise ValueError(f"invalid baudrate: {self._baudrate!r}")
        if self.is_open and self._baudrate != getattr(self, "_told_baud", None):
            self._send(wire.BAUD, wire.BAUD_BODY.pack(self._baudrate))
        self._told_baud = self._baudrate

    def _update_dtr_state(self) -> None:
        self._send_lines()

    def _update_rts_state(self) -> None:
        self._send_lines()

    def set_lines(self, *, dtr: bool, rts: bool) -> None:
        """Set both lines at once, which pyserial itself cannot."""
        self._dtr_state = dtr
        self._rts_state = rts
        if self.is_open:
            self._send_lines()

    def _send_lines(self) -> None:
        flags = (wire.FLAG_DTR if self._dtr_state else 0) | (
            wire.FLAG_RTS if self._rts_state else 0
        )
        now_s = line_time_s()
        if now_s - self._line_changed_s < SHORTEST_WAIT_S:
            now_s = self._line_changed_s + LINE_CHANGE_S
        self._line_changed_s = now_s
        self._send(wire.LINES, wire.LINES_BODY.pack(flags, now_s))

    def _update_break_state(self) -> None:
        """A break condition means nothing to the boot ROM."""

    @property
    def cts(self) -> bool:
        """Not wired on the boards in question."""
        self._check_open()
        return True

    @property
    def dsr(self) -> bool:
        """Not wired on the boards in question."""
        self._check_open()
        return True

    @property
    def ri(self) -> bool:
        """Not wired on the boards in question."""
        self._check_open()
        return False

    @property
    def cd(self) -> bool:
        """Not wired on the boards in question."""
        self._check_open()
        return True

    # --- data

    @property
    def in_waiting(self) -> int:
        """Bytes that have arrived and were not read yet."""
        self._check_open()
        with self._receive_lock:
            self._receive()
            if not self._received and self._gone:
                raise self._vanished()
            return len(self._received)

    def read(self, size: int = 1) -> bytes:
        """Up to `size` bytes, fewer where the timeout passes first."""
        self._check_open()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        out = bytearray()
        while True:
            with self._receive_lock:
                if len(self._received) < size - len(out):
                    self._receive()
                take = min(size - len(out), len(self._received))
                out += self._received[:take]
                del self._received[:take]
            if len(out) >= size:
                return bytes(out)
            if self._gone:
                if out:
                    return bytes(out)
                raise self._vanished()
            wait_s = None if deadline is None else deadline - time.monotonic()
            if wait_s is not None and wait_s <= 0:
                return bytes(out)
            if not self._wait_readable(wait_s):
                return bytes(out)

    def _wait_readable(self, wait_s: float | None) -> bool:
        """False when the read was cancelled or the port closed meanwhile."""
        link, pipe = self._socket, self._cancel_read_pipe
        if link is None or pipe is None:
            return False
        try:
            ready, _, _ = select.select([link.fileno(), pipe[0]], [], [], wait_s)
        except (OSError, ValueError) as error:
            if self.is_open:
                raise self._vanished() from error
            return False
        if pipe[0] in ready:
            os.read(pipe[0], 1024)
            return False
        return True

    def _receive(self) -> None:
        link = self._socket
        if link is None:
            return
        for _ in range(MAX_PIECES):
            if self._gone or len(self._received) >= MAX_PIECES * PIECE_BYTES:
                return
            try:
                data = link.recv(PIECE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._gone = True
                return
            try:
                self._take(data)
            except ValueError:
                self._gone = True
            if len(data) < PIECE_BYTES:
                return  # that was all

    def _take(self, data: bytes) -> None:
        for kind, payload in self._reader.feed(data):
            if kind == wire.DATA:
                self._received += payload
            elif kind == wire.DRAIN and len(self._drained) < MAX_PIECES:
                self._drained.add(payload)
            elif kind == wire.GONE:
                self._gone = True

    def cancel_read(self) -> None:
        """Let a `read` in another thread return at once with what it has."""
        if self._cancel_read_pipe is not None:
            os.write(self._cancel_read_pipe[1], b"x")

    def cancel_write(self) -> None:
        """Writes do not block for long; there is nothing to cancel."""

    def write(self, data: Any) -> int:
        """Send bytes; blocks like a tty while more than its buffer waits for the wire."""
        self._check_open()
        payload = to_bytes(data)
        with self._receive_lock:
            self._receive()
        if self._gone:
            raise self._vanished()
        self._send(wire.DATA, payload)
        if self._timed:
            now = time.monotonic()
            byte_s = 10 / self._baudrate
            self._sent_until_s = max(self._sent_until_s, now) + len(payload) * byte_s
            wait_s = self._sent_until_s - now - WRITE_BUFFER_BYTES * byte_s
            if self._write_timeout is not None and wait_s > self._write_timeout:
                time.sleep(self._write_timeout)
                raise SerialTimeoutException("Write timeout")
            if wait_s > 0:
                time.sleep(wait_s)
        return len(payload)

    def flush(self) -> None:
        """Wait until everything written has left the wire."""
        self._check_open()
        self._drain_count += 1
        token = str(self._drain_count).encode()
        self._send(wire.DRAIN, token)
        left_s = max(0.0, self._sent_until_s - time.monotonic())
        deadline_s = time.monotonic() + left_s + FLUSH_TIMEOUT_S
        while time.monotonic() < deadline_s:
            with self._receive_lock:
                self._receive()
                if token in self._drained:
                    self._drained.discard(token)
                    return
            if self._gone:
                raise self._vanished()
            link = self._socket
            if link is None:
                return
            select.select([link], [], [], 1.0)
        raise self._vanished()

    def reset_input_buffer(self) -> None:
        """Forget what has arrived."""
        self._check_open()
        with self._receive_lock:
            self._receive()
            self._received.clear()
            if self._gone:
                raise self._vanished()

    def reset_output_buffer(self) -> None:
        """What was written is on its way already; nothing to take back."""
        self._check_open()

    @property
    def out_waiting(self) -> int:
        """Bytes written that have not left the wire yet."""
        self._check_open()
        left_s = self._sent_until_s - time.monotonic()
        return max(0, int(left_s * self._baudrate / 10)) if self._timed else 0

    def _send(self, kind: int, payload: bytes) -> None:
        link = self._socket
        if link is None:
            return
        view = memoryview(wire.frame(kind, payload))
        with self._send_lock:
            while view:
                try:
                    view = view[link.send(view) :]
                except BlockingIOError:
                    select.select([], [link], [], 1.0)
                except OSError as error:
                    self._gone = True
                    raise self._vanished() from error

    def _check_open(self) -> None:
        if not self.is_open:
            raise PortNotOpenError()

    def _vanished(self) -> SerialException:
        return SerialException(
            errno.EIO,
            "device reports readiness to read but returned no data (device disconnected?): "
            f"{self._port}",
        )


def _read_line(link: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        data = link.recv(1) if len(line) < wire.MAX_LINE_BYTES else b""
        if not data:
            raise OSError(errno.ECONNRESET, "the board closed the connection")
        line += data
    return bytes(line)
