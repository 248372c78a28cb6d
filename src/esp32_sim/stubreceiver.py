# SPDX-License-Identifier: GPL-3.0-or-later
"""The stub loader's receiver, with what it loses.

Facts: espressif/esp-flasher-stub 1.4.1 (slip.c, frame_buffer.c, transport.c, main.c), which
esptool 5.6 ships. The UART's interrupt takes bytes in batches and feeds them to a SLIP receiver
that needs an empty buffer at a frame's beginning. Only the main loop, which polls between
commands, provides the next one. So what stands behind a complete frame in the same batch is
lost, and while a command is worked on no more than one other frame is received.

All of this is decided by the times at which bytes arrive and the main loop polls. When the
simulator gets to know of them does not matter: bytes are kept until the main loop asks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from esp32_sim.slip import END

# The interrupt comes at so many bytes in the FIFO (UART_CONF1.RXFIFO_FULL_THRHD), or when the
# line was idle for so many byte times (RX_TOUT_THRHD).
BATCH_BYTES = 32
IDLE_BYTES = 10
# A block of 16 KiB and its headers, and a bit more.
FRAME_LIMIT_BYTES = 16384 + 64

ESCAPE = b"\xdb"
ESCAPED = {0xDC: END, 0xDD: ESCAPE}

# So much that was looked at is kept before it is thrown away, on a line that is never idle.
_KEPT_BYTES = 1 << 16


@dataclass(slots=True)
class _Train:
    """Bytes that follow one another without the pause that would end a batch.

    parts: for each piece the position of its first byte, when that one arrives, and the time
    from one byte to the next. at: up to where the receiver has looked.
    """

    data: bytearray
    parts: list[tuple[int, float, float]]
    due_s: float
    at: int = 0

    def arrival_s(self, index: int) -> float:
        start, first_s, byte_s = next(part for part in reversed(self.parts) if part[0] <= index)
        return first_s + (index - start) * byte_s

    def batch_end(self, index: int) -> int:
        """Where the batch ends that holds a byte."""
        return min((index // BATCH_BYTES + 1) * BATCH_BYTES, len(self.data))

    def batch_s(self, index: int) -> float:
        """When the interrupt takes the batch that holds a byte."""
        end = self.batch_end(index)
        return self.due_s if end % BATCH_BYTES else self.arrival_s(end - 1)

    def forget(self) -> None:
        """Throw away whole batches that were looked at."""
        gone = self.at // BATCH_BYTES * BATCH_BYTES
        del self.data[:gone]
        self.at -= gone
        parts = [(start - gone, first_s, byte_s) for start, first_s, byte_s in self.parts]
        first = max(i for i, part in enumerate(parts) if i == 0 or part[0] <= 0)
        self.parts = parts[first:]


@dataclass(slots=True)
class StubReceiver:
    """The SLIP receiver and its two buffers, of which at most one is armed.

    armed_s: since when one is, or will be. The main loop arms the other buffer when it takes a
    complete frame out of the one, and gives that back before it polls again; so at each poll one
    is free, and between two polls one frame can be received.
    """

    armed_s: float
    _trains: deque[_Train] = field(default_factory=deque)
    _frame: bytearray = field(default_factory=bytearray)
    _in_frame: bool = False
    _escaping: bool = False

    def add(self, data: bytes, arrival_s: float, byte_s: float) -> None:
        """See `Receiver`. Without times (byte_s 0) each call begins a new batch."""
        if not data:
            return
        first_s = arrival_s - (len(data) - 1) * byte_s
        due_s = arrival_s + IDLE_BYTES * byte_s
        if self._trains and first_s - byte_s < self._trains[-1].due_s:
            train = self._trains[-1]
            train.parts.append((len(train.data), first_s, byte_s))
            train.data += data
            train.due_s = due_s
        else:
            self._trains.append(_Train(bytearray(data), [(0, first_s, byte_s)], due_s))

    @property
    def due_s(self) -> float | None:
        """See `Receiver`: a batch that is not full ends when the line was idle for long enough."""
        if not self._trains or self._trains[-1].at == len(self._trains[-1].data):
            return None
        return self._trains[-1].due_s

    def take(self, idle_s: float, now_s: float) -> tuple[float, bytes] | None:
        """See `Receiver`. Each call is a poll of the main loop that goes on until it succeeds."""
        while self._trains:
            train = self._trains[0]
            ended = len(self._trains) > 1 or now_s >= train.due_s
            size = len(train.data)
            frame = self._look(train, size if ended else size // BATCH_BYTES * BATCH_BYTES, idle_s)
            if train.at > _KEPT_BYTES:
                train.forget()
            if frame is not None or not ended:
                return frame
            self._trains.popleft()
        return None

    def _look(self, train: _Train, limit: int, idle_s: float) -> tuple[float, bytes] | None:
        """Go through bytes up to `limit`, a batch's end, or to the end of a frame's last batch."""
        while train.at < limit:
            delimiter = train.data.find(END, train.at, limit)
            if not self._in_frame:
                if delimiter < 0:
                    train.at = limit
                else:
                    train.at = delimiter + 1
                    self._in_frame = train.batch_s(delimiter) >= self.armed_s
                continue
            end = limit if delimiter < 0 else delimiter
            spoilt = self._append(bytes(train.data[train.at : end]))
            if spoilt is not None:
                # The main loop drops it, but until then the receiver is without a buffer.
                self._close(train, train.at + spoilt, idle_s)
            elif delimiter < 0:
                train.at = limit
            elif self._escaping:
                self._close(train, delimiter, idle_s)
            elif not self._frame:
                # An empty frame: the buffer stays armed, but the receiver waits for another
                # beginning. What follows now is outside, and a sender's frame without a second
                # delimiter in front is lost: from here on both are out of phase.
                self._in_frame = False
                train.at = delimiter + 1
            else:
                frame = bytes(self._frame)
                return self._close(train, delimiter, idle_s), frame
        return None

    def _close(self, train: _Train, index: int, idle_s: float) -> float:
        """A frame ends at a byte, well or not; when the interrupt took its batch.

        The rest of the batch finds no armed buffer: the main loop does not run in the interrupt.
        """
        taken_s = train.batch_s(index)
        self.armed_s = max(idle_s, taken_s)
        self._in_frame = self._escaping = False
        self._frame.clear()
        train.at = train.batch_end(index)
        return taken_s

    def _append(self, raw: bytes) -> int | None:
        """Take bytes of a frame; the index of the first that spoils it."""
        at = 0
        for number, piece in enumerate(raw.split(ESCAPE)):
            if number:
                if self._escaping:
                    return at
                self._escaping = True
                at += 1
            if self._escaping and piece:
                plain = ESCAPED.get(piece[0])
                if plain is None or len(self._frame) == FRAME_LIMIT_BYTES:
                    return at
                self._escaping = False
                self._frame += plain
                piece = piece[1:]
                at += 1
            room = FRAME_LIMIT_BYTES - len(self._frame)
            if len(piece) > room:
                return at + room
            self._frame += piece
            at += len(piece)
        return None
