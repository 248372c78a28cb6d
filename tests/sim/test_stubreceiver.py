# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stub loader's receiver takes and what it loses, byte by byte and over the port."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from esp32_sim import loader_common as lc
from esp32_sim import slip
from esp32_sim.chips import ESP32
from esp32_sim.stubreceiver import FRAME_LIMIT_BYTES, StubReceiver
from tests.sim.conftest import StartBoard
from tests.sim.stub_bench import BYTE_S, Bench, read_reg, request

Connect = Callable[..., Any]

PADDING = bytes(128)


def frames(*writes: bytes) -> list[bytes]:
    """What a main loop without anything else to do gets; each write is a batch of its own."""
    receiver = StubReceiver(0.0)
    for number, write in enumerate(writes):
        receiver.add(write, number + 1.0, 0.0)
    return drain(receiver)


def taken(receiver: StubReceiver, idle_s: float, now_s: float) -> Any:
    """What `take` gives; anything may be compared with it."""
    return receiver.take(idle_s, now_s)


def drain(receiver: StubReceiver, idle_s: float = 0.0) -> list[bytes]:
    """All frames, each worked on in no time."""
    got = []
    while (found := receiver.take(idle_s, float("inf"))) is not None:
        got.append(found[1])
    return got


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([b"\xc0ab\xc0"], [b"ab"]),
        # Whatever stands outside is ignored, and a frame may come in pieces.
        ([b"xy\xc0a", b"b\xc0"], [b"ab"]),
        ([b"\xc0\xdb\xdc\xdb\xdd\xdb", b"\xdc\xc0"], [b"\xc0\xdb\xc0"]),
        # An empty frame swallows the next one's beginning: sender and receiver are out of phase.
        ([b"\xc0\xc0ab\xc0", b"\xc0cd\xc0", b"\xc0ef\xc0"], []),
        # One delimiter more, and they are in phase again.
        ([b"\xc0\xc0ab\xc0", b"\xc0", b"\xc0cd\xc0"], [b"cd"]),
        # A wrong escape spoils the frame; an end in a later batch is taken for a beginning.
        ([b"\xc0a\xdbb\xc0", b"\xc0cd\xc0"], [b"cd"]),
        ([b"\xc0a\xdbb", b"\xc0", b"\xc0cd\xc0", b"\xc0", b"\xc0ef\xc0"], [b"ef"]),
        ([b"\xc0a\xdb\xdb\xdc", b"\xc0cd\xc0"], [b"cd"]),
        ([b"\xc0a\xdb\xc0", b"\xc0cd\xc0"], [b"cd"]),
        ([b"\xc0" + bytes(FRAME_LIMIT_BYTES) + b"\xc0"], [bytes(FRAME_LIMIT_BYTES)]),
        ([b"\xc0" + bytes(FRAME_LIMIT_BYTES + 1), b"\xc0cd\xc0"], [b"cd"]),
        ([b"\xc0" + b"\xdb\xdc" * (FRAME_LIMIT_BYTES + 1), b"\xc0cd\xc0"], [b"cd"]),
        # What stands behind a frame in the same batch is lost.
        ([b"\xc0ab\xc0\xc0cd\xc0"], [b"ab"]),
        ([b"\xc0ab\xc0\xc0cd\xc0", b"\xc0ef\xc0"], [b"ab", b"ef"]),
        # A beginning is lost with it, the rest comes in the next batch: out of phase.
        ([b"\xc0ab\xc0\xc0c", b"d\xc0", b"\xc0ef\xc0"], [b"ab"]),
    ],
)
def test_state_machine(writes: list[bytes], expected: list[bytes]) -> None:
    """A frame needs its beginning, an armed buffer, and nothing wrong within."""
    assert frames(*writes) == expected


@pytest.mark.parametrize(
    ("first_bytes", "padding_bytes", "expected"),
    [
        # 32 bytes with both delimiters: the next frame begins a batch.
        (30, 0, 2),
        (29, 0, 1),
        (29, 1, 2),
        # The delimiter that ends the frame is a batch's first byte: the 31 behind it are lost.
        (31, 30, 1),
        (31, 31, 2),
    ],
)
@pytest.mark.parametrize("byte_s", [0.0, BYTE_S])
def test_batches_of_32_bytes(
    first_bytes: int, padding_bytes: int, expected: int, byte_s: float
) -> None:
    """In one write batches are counted in bytes, with and without times."""
    receiver = StubReceiver(0.0)
    write = slip.encode(b"a" * first_bytes) + bytes(padding_bytes) + slip.encode(b"second")
    receiver.add(write, 1.0, byte_s)
    assert len(drain(receiver)) == expected


@pytest.mark.parametrize(("pause_bytes", "expected"), [(0.0, 1), (9.9, 1), (10.1, 2)])
def test_an_idle_line_ends_a_batch(pause_bytes: float, expected: int) -> None:
    """Writes that follow one another closely share a batch; ten byte times divide them."""
    receiver = StubReceiver(0.0)
    first, second = slip.encode(b"first"), slip.encode(b"second")
    receiver.add(first, 1.0, BYTE_S)
    receiver.add(second, 1.0 + (pause_bytes + len(second)) * BYTE_S, BYTE_S)
    assert len(drain(receiver)) == expected


def test_a_frame_is_there_when_its_batch_is_taken() -> None:
    """A full batch with its last byte, another ten byte times after it."""
    receiver = StubReceiver(0.0)
    receiver.add(slip.encode(b"short"), 1.0, BYTE_S)
    assert receiver.due_s == pytest.approx(1.0 + 10 * BYTE_S)
    assert taken(receiver, 0.0, 1.0) is None
    assert taken(receiver, 0.0, 1.0 + 11 * BYTE_S) == (pytest.approx(1.0 + 10 * BYTE_S), b"short")
    receiver.add(slip.encode(bytes(30)), 2.0, BYTE_S)
    assert taken(receiver, 1.5, 2.0) == (pytest.approx(2.0), bytes(30))
    assert receiver.due_s is None


def test_one_frame_while_the_main_loop_works() -> None:
    """The second waits, the third is lost; after the next poll there is room again."""
    receiver = StubReceiver(0.0)
    for number in range(5):
        receiver.add(slip.encode(b"frame %d" % number), 1.0 + number, BYTE_S)
    assert taken(receiver, 0.0, 10.0) == (pytest.approx(1.0, abs=0.001), b"frame 0")
    # Worked on from 1.0 to 3.5: frame 1 finds the other buffer, frame 2 none.
    assert taken(receiver, 3.5, 10.0) == (pytest.approx(2.0, abs=0.001), b"frame 1")
    assert taken(receiver, 3.6, 10.0) == (pytest.approx(4.0, abs=0.001), b"frame 3")


def test_a_frame_that_begins_before_the_poll_is_lost() -> None:
    """Its end is then taken for a beginning, as after any lost one."""
    receiver = StubReceiver(0.0)
    for number in range(2):
        receiver.add(slip.encode(b"frame %d" % number), 1.0 + number, BYTE_S)
    receiver.add(slip.encode(bytes(1000)), 3.0, BYTE_S)
    assert taken(receiver, 0.0, 10.0) is not None
    # The poll comes in the middle of the third.
    assert taken(receiver, 3.0 - 500 * BYTE_S, 10.0) == (pytest.approx(2.0, abs=0.001), b"frame 1")
    receiver.add(slip.encode(b"frame 3"), 4.0, BYTE_S)
    assert taken(receiver, 3.5, 10.0) is None
    receiver.add(b"\xc0", 5.0, BYTE_S)
    receiver.add(slip.encode(b"frame 4"), 6.0, BYTE_S)
    found = taken(receiver, 3.5, 10.0)
    assert found is not None
    assert found[1] == b"frame 4"


def test_an_erroneous_frame_takes_a_buffer_until_the_poll() -> None:
    """It is dropped, but only the main loop drops it."""
    receiver = StubReceiver(0.0)
    receiver.add(slip.encode(b"first"), 1.0, BYTE_S)
    receiver.add(b"\xc0wrong\xdb!", 2.0, BYTE_S)
    receiver.add(slip.encode(b"lost"), 3.0, BYTE_S)
    receiver.add(slip.encode(b"last"), 5.0, BYTE_S)
    assert taken(receiver, 0.0, 10.0) == (pytest.approx(1.0, abs=0.001), b"first")
    assert taken(receiver, 4.0, 10.0) == (pytest.approx(5.0, abs=0.001), b"last")


def test_a_line_that_is_never_idle() -> None:
    """Megabytes without a pause: nothing is lost but what has to be, and little is kept."""
    receiver = StubReceiver(0.0)
    block = slip.encode(bytes(range(256)) * 64) + PADDING
    now_s = 0.0
    for _ in range(200):
        now_s += len(block) * BYTE_S
        receiver.add(block, now_s, BYTE_S)
        found = taken(receiver, now_s - len(block) * BYTE_S, now_s)
        assert found is not None
        assert now_s - 200 * BYTE_S < found[0] <= now_s
    assert len(receiver._trains) == 1
    assert len(receiver._trains[0].data) < 1 << 18
    assert len(receiver._trains[0].parts) < 20


# --- with the stub behind it


ANSWER = slip.encode(lc.response(lc.READ_REG, ESP32.magic, b"", b"\x00\x00"))


def answers(port: Any, count: int) -> bytes:
    """So many answers, or what there is of them when nothing more comes."""
    port.timeout = 2.0
    data: bytes = port.read(count * len(ANSWER))
    return data


def silent(port: Any) -> bool:
    """Whether nothing comes, for much longer than an answer takes."""
    port.timeout = 0.3
    return not port.read(1)


@pytest.mark.slow
@pytest.mark.parametrize("timed", [False, True])
def test_requests_in_one_write(start: StartBoard, connect: Connect, timed: bool) -> None:
    """Two with 128 zeros between them are answered both; side by side the second is lost."""
    port = connect(start(config={"timed": timed}))._port
    port.write(read_reg() + PADDING + read_reg())
    assert answers(port, 2) == ANSWER * 2
    # 28 bytes are one batch: all of the second one is lost, and the next one is received.
    port.write(read_reg() * 2)
    assert answers(port, 1) == ANSWER
    assert silent(port)
    port.write(read_reg())
    assert answers(port, 1) == ANSWER
    # 42 bytes are two. The second one holds the third request's end, and takes it for a
    # beginning. Further requests do not get through ...
    port.write(read_reg() * 3)
    assert answers(port, 1) == ANSWER
    port.write(read_reg())
    assert silent(port)
    # ... until one delimiter alone ends what was begun with the last one's.
    port.write(b"\xc0")
    assert silent(port)
    port.write(read_reg())
    assert answers(port, 1) == ANSWER


@pytest.mark.slow
def test_second_request_is_lost_and_the_receiver_out_of_phase(
    start: StartBoard, connect: Connect
) -> None:
    """The lost one is longer than the batch: its end is taken for a beginning."""
    port = connect(start())._port
    sync = slip.encode(struct.pack("<BBHI", 0, lc.SYNC, 36, 0) + b"\x07\x07\x12\x20" + b"U" * 32)
    port.write(read_reg() + sync)
    assert answers(port, 1) == ANSWER
    for _ in range(3):
        port.write(read_reg())
        assert silent(port)
    port.write(b"\xc0")
    port.write(read_reg())
    assert answers(port, 1) == ANSWER


@pytest.mark.slow
def test_read_flash_has_its_acknowledgements_received(start: StartBoard, connect: Connect) -> None:
    """Each is a frame of its own; many packets and the digest come through."""
    board = start(layout="guide")
    esp = connect(board)
    assert esp.read_flash(0x10000, 0x8000) == board.control.read_flash(0x10000, 0x8000)


# --- in the chip's own time


@pytest.mark.slow
async def test_a_second_block_waits_and_a_third_is_lost() -> None:
    """Three blocks within the erase of the first one's place, whenever the simulator runs."""
    bench = Bench()
    await bench.answers(1)
    bench.receive(request(lc.FLASH_BEGIN, struct.pack("<IIII", 65536, 4, 16384, 0x10000)), 0.1)
    block = b"\xa5" * 1024
    for seq, begins_s in enumerate((0.11, 0.13, 0.15)):
        data = struct.pack("<IIII", len(block), seq, 0, 0)
        bench.receive(request(lc.FLASH_DATA, data, block), begins_s)
    bench.receive(read_reg(), 0.5)
    sent = await bench.answers(5)
    assert [frame[1] for _, frame in sent[1:]] == [
        lc.FLASH_BEGIN, lc.FLASH_DATA, lc.FLASH_DATA, lc.READ_REG,
    ]  # fmt: skip
    # Begun at 0.1, the block's erase ends 0.175 later; then come four pages and the second.
    assert sent[3][0] == pytest.approx(0.277, abs=0.002)
    bench.task.cancel()


async def test_a_late_simulator_loses_nothing() -> None:
    """Requests a millisecond apart are all answered, although their task runs after all came."""
    bench = Bench()
    await bench.answers(1)
    for number in range(20):
        bench.receive(read_reg(), 0.02 + number / 1000)
    await bench.answers(21)
    assert [at_s for at_s, _ in bench.sent[1:]] == [
        pytest.approx(0.02 + number / 1000, abs=0.0005) for number in range(20)
    ]
    bench.task.cancel()


@pytest.mark.slow
async def test_what_arrives_before_the_greeting_is_lost() -> None:
    """The stub attaches its receiver 10 ms after its start; then it greets."""
    bench = Bench()
    bench.receive(read_reg(), 0.005)
    bench.receive(read_reg(), 0.0105)
    bench.receive(read_reg(), 0.02)
    sent = await bench.answers(3)
    assert sent[0][0] == pytest.approx(0.01, abs=1e-6)
    assert sent[0][1] == b"OHAI"
    assert [frame[1] for _, frame in sent[1:]] == [lc.READ_REG, lc.READ_REG]
    assert sent[1][0] == pytest.approx(0.0105, abs=0.0005)
    bench.task.cancel()
