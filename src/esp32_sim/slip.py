# SPDX-License-Identifier: GPL-3.0-or-later
"""SLIP framing (RFC 1055) as the boot ROM and the stub loader speak it."""

from __future__ import annotations

END = b"\xc0"


def encode(payload: bytes) -> bytes:
    """A frame with both delimiters."""
    return END + payload.replace(b"\xdb", b"\xdb\xdd").replace(END, b"\xdb\xdc") + END


class Decoder:
    """Bytes in, whole frames out; what stands between frames is lost, as on the chip."""

    # Longer than any command: a flood without delimiters is not kept.
    LIMIT_BYTES = 1 << 18

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, unescaped, without empty ones."""
        self._buffer += data
        if END not in data:
            if len(self._buffer) > self.LIMIT_BYTES:
                self._buffer.clear()
            return []
        *parts, rest = bytes(self._buffer).split(END)
        self._buffer = bytearray(rest)
        return [
            part.replace(b"\xdb\xdc", END).replace(b"\xdb\xdd", b"\xdb") for part in parts if part
        ]

    def reset(self) -> None:
        """Forget a frame that has begun."""
        self._buffer.clear()
