# SPDX-License-Identifier: GPL-3.0-or-later
"""How a port's client and its simulated board talk over a socket: framed, in order.

One connection is one open port. The client sends a hello line (JSON), the board answers with
one; after that both send frames: type (1 byte), length (u32, big-endian), payload.

    client to board   DATA bytes | LINES flags, time | BAUD u32 | DRAIN token
    board to client   DATA bytes | DRAIN token | GONE

Line changes carry the client's monotonic clock, so that a busy board process does not distort
the reset circuit, whose outcome depends on a few tens of milliseconds.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = 0x44
LINES = 0x4C
BAUD = 0x42
DRAIN = 0x46
GONE = 0x47

HEADER = struct.Struct(">BI")
MAX_FRAME_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 16
LINES_BODY = struct.Struct(">Bd")
BAUD_BODY = struct.Struct(">I")

FLAG_DTR = 1
FLAG_RTS = 2

PORT_FILE = "port.json"
CONTROL_FILE = "control.json"


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame, ready for the socket."""
    return HEADER.pack(kind, len(payload)) + payload


class FrameReader:
    """Collects bytes from the socket and yields whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (type, payload) for each frame that `data` completes. Raises ValueError for one
        that is too long to be one."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer, at)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = at + HEADER.size + length
            if len(self._buffer) < end:
                break
            yield kind, bytes(self._buffer[at + HEADER.size : end])
            at = end
        del self._buffer[:at]


def read_address(directory: Path, name: str) -> dict[str, Any]:
    """The address file of a running board: {"host", "port", "token"}, a port's with its "usb".

    Raises FileNotFoundError where the board does not run or is unplugged.
    """
    address: dict[str, Any] = json.loads((directory / name).read_text())
    return address


def write_address(
    directory: Path, name: str, host: str, port: int, token: str, **more: object
) -> None:
    """Publish an address; atomically, so that no client reads half of it."""
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / (name + ".part")
    part.touch(mode=0o600)
    part.write_text(json.dumps({"host": host, "port": port, "token": token, **more}))
    part.replace(directory / name)
