# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves one port over RFC 2217, as esp_rfc2217_server and pyserial's example server do.

    python -m bench.rfc2217_server esp32sim:///path/of/board

prints `rfc2217://127.0.0.1:PORT` and serves one client after the other.
pyserial's own `PortManager` answers the options, so that client and server share no code.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

import serial
import serial.rfc2217

from esp32_sim.launch_esptool import install_handler

CHUNK_BYTES = 65_536


class _ToClient:
    """What PortManager writes to."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Send all of it."""
        with self._lock:
            self._link.sendall(data)


def serve_one(link: socket.socket, port: serial.SerialBase) -> None:
    """Serve a client until it leaves."""
    to_client = _ToClient(link)
    manager = serial.rfc2217.PortManager(port, to_client)
    done = threading.Event()

    def from_port() -> None:
        with contextlib.suppress(OSError, serial.SerialException):
            while not done.is_set():
                data = port.read(1)
                if data:
                    data += port.read(port.in_waiting)
                    to_client.write(b"".join(manager.escape(data)))

    reader = threading.Thread(target=from_port, daemon=True)
    reader.start()
    try:
        while data := link.recv(CHUNK_BYTES):
            port.write(b"".join(manager.filter(data)))
    finally:
        done.set()
        port.cancel_read()
        reader.join(5)


def main() -> None:
    """Serve the port named on the command line."""
    install_handler()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"rfc2217://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            link, _ = listener.accept()
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            port = serial.serial_for_url(sys.argv[1], do_not_open=True)
            port.timeout = 0.2
            port.dtr = port.rts = False
            port.open()
            with contextlib.suppress(OSError), link, port:
                serve_one(link, port)


if __name__ == "__main__":
    main()
