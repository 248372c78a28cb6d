# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports as the world has them: peers that send without end or nonsense, devices that vanish, urls
of other kinds. Each row: what is there, the code that a user sees, and what must not be seen."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import serial
from hypothesis import given, settings
from hypothesis import strategies as st
from serial import SerialException

from esp32_sim import wire
from esp32_sim.urlhandler import protocol_esp32sim
from ota_service.errors import OtaError
from ota_service.link import esptool_setup, ports
from ota_service.link.at_port import at_port
from ota_service.link.link import EspLink, leave_download_mode
from ota_service.link.registers import await_answer
from ota_service.link.serial_port import close_port, open_port
from ota_service.link.urlhandler import protocol_rfc2217, protocol_socket, telnet
from tests.support.command import here

from esptool.loader import ESPLoader  # isort: skip  (after esptool_setup)
from esptool.util import FatalError  # isort: skip

Serve = Callable[[socket.socket], object]
CONSENT = telnet.negotiate(telnet.DO, telnet.COM_PORT)
BEGINS = bytes((telnet.IAC, telnet.SB, telnet.COM_PORT))
EMPTY_MESSAGES = telnet.command(107, b"") * 1000
STALE = b"\xc0" + bytes((1, 99, 2, 0)) + bytes(6) + b"\xc0"


@contextmanager
def served(serve: Serve, scheme: str = "rfc2217") -> Iterator[str]:
    """The url of a server that does `serve` with its one client, and then hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        link, _ = listener.accept()
        with link, contextlib.suppress(OSError):
            serve(link)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(10)
        listener.close()
    assert not thread.is_alive()


def flood(piece: bytes, first: bytes = CONSENT) -> Serve:
    """Sends `first`, then `piece` until the other end has gone."""

    def serve(link: socket.socket) -> None:
        link.sendall(first)
        while True:
            link.sendall(piece)

    return serve


# --- peers

FLOODS: dict[str, Serve] = {
    "bytes before any consent": flood(b"\0" * 65_536, b""),
    "bytes": flood(b"\0" * 65_536),
    "a message without end": flood(b"x" * 65_536, CONSENT + BEGINS),
    "the same before any consent": flood(b"x" * 65_536, BEGINS),
    "doubled marks in a message": flood(b"\xff" * 65_536, CONSENT + BEGINS),
    "messages": flood(EMPTY_MESSAGES),
    "offers": flood(b"".join(telnet.negotiate(telnet.WILL, n) for n in range(45, 250)) * 50),
    "demands": flood(b"".join(telnet.negotiate(telnet.DO, n) for n in range(45, 250)) * 50),
    "the same consent again and again": flood(CONSENT * 10_000),
    "nothing but marks": flood(b"\xff" * 65_536),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_ends_in_a_lost_link(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a bounded memory."""
    most, bound = 0, 3 * protocol_rfc2217.PIECE_BYTES
    monkeypatch.setattr(protocol_rfc2217, "MAX_UNREAD_BYTES", bound)
    real = protocol_rfc2217.Serial._receive

    def receive(self: Any) -> bool:
        nonlocal most
        found = real(self)
        most = max(most, len(self._received), len(self._decoder._rest))
        return found

    monkeypatch.setattr(protocol_rfc2217.Serial, "_receive", receive)
    with served(FLOODS[what]) as url, pytest.raises(OtaError, match="without end") as caught:
        open_port(url)
    assert caught.value.code == "link-lost"
    assert most <= bound


def answering(link: socket.socket) -> None:
    """Settles whatever is asked, as RFC 2217 servers do."""
    link.sendall(CONSENT)
    with contextlib.suppress(TimeoutError):
        link.settimeout(5)
        while data := link.recv(4096):
            for number in (telnet.SET_CONTROL, telnet.PURGE):
                if bytes((telnet.COM_PORT, number)) in data:
                    link.sendall(telnet.command(number + 100, b"\0"))
            at = data.find(bytes((telnet.COM_PORT, telnet.SET_BAUD)))
            if at >= 0:
                link.sendall(telnet.command(telnet.SET_BAUD + 100, data[at + 2 : at + 6]))
                return


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["rfc2217", "socket"])
def test_a_flood_behind_an_open_port_stays_where_it_is(scheme: str) -> None:
    """Reads return what they are asked for in their time, and no more is taken than a piece."""

    def serve(link: socket.socket) -> None:
        if scheme == "rfc2217":
            answering(link)
        while True:
            link.sendall(b"\xc0aaa" * 16_384)

    with served(serve, scheme) as url:
        port = open_port(url, timeout_s=5)
        for _ in range(50):
            assert port.in_waiting <= 2 * protocol_rfc2217.PIECE_BYTES
            assert len(port.read(1000)) == 1000
        assert len(port._received) <= 2 * protocol_rfc2217.PIECE_BYTES
        port.reset_input_buffer()
        assert port.read(1)
        close_port(port)


def test_a_peer_that_reads_nothing_ends_a_write() -> None:
    """The time for a write is one for all of it, also where a few bytes go from time to time."""
    done = threading.Event()
    with served(lambda _: done.wait(20), "socket") as url:
        port = open_port(url)
        port.write_timeout = 0.05
        with pytest.raises(serial.SerialTimeoutException):
            port.write(bytes(1 << 24))
        close_port(port)
        done.set()


def test_a_demand_is_declined_once() -> None:
    """A server that insists gets no second answer, so two such ends do not talk for ever."""
    heard = bytearray()

    def serve(link: socket.socket) -> None:
        link.sendall(
            telnet.negotiate(telnet.DO, 24) * 100 + telnet.negotiate(telnet.WILL, 24) * 100
        )
        link.sendall(telnet.negotiate(telnet.DONT, telnet.COM_PORT))
        while data := link.recv(4096):
            heard.extend(data)

    with served(serve) as url, pytest.raises(OtaError):
        open_port(url)
    assert heard.count(telnet.negotiate(telnet.WONT, 24)) == 1
    assert heard.count(telnet.negotiate(telnet.DONT, 24)) == 1


BYTES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"\xff", b"\xff\xff", b"\xff\xfa", b"\xff\xf0", BEGINS, CONSENT]),
    st.lists(st.sampled_from([0xFF, 0xFA, 0xF0, 0xFB, 0xFD, 0xFE, 44, 101, 105, 112, 0])).map(
        bytes
    ),
    st.integers(1, 12).map(lambda n: telnet.command(n + 100, bytes(4))),
)
STREAMS = st.lists(BYTES, max_size=9).map(b"".join)


@pytest.mark.slow
@settings(max_examples=500, derandomize=True, deadline=None)
@given(STREAMS, st.integers(1, 9))
def test_whatever_comes_is_taken_apart_within_bounds(stream: bytes, step: int) -> None:
    """Any bytes in any pieces come out the same, what is kept is bounded, no data is made up."""
    whole, cut = telnet.Decoder(), telnet.Decoder()
    once = list(whole.feed(stream))
    parts: list[Any] = []
    for at in range(0, len(stream), step):
        parts += cut.feed(stream[at : at + step])
        assert len(cut._rest) <= telnet.MAX_MESSAGE_BYTES

    def data(found: list[Any]) -> bytes:
        return b"".join(one for one in found if isinstance(one, bytes))

    assert data(once) == data(parts)
    assert [one for one in once if not isinstance(one, bytes)] == [
        one for one in parts if not isinstance(one, bytes)
    ]
    assert len(data(once)) <= len(stream)


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """A listening socket of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.slow
@settings(max_examples=300, derandomize=True, deadline=None)
@given(stream=STREAMS, consents=st.booleans())
def test_whatever_a_server_says_it_is_told_in_words(
    listener: socket.socket, stream: bytes, consents: bool
) -> None:
    """Opening, reading and writing end in a port, or in pyserial's own error."""
    url = f"rfc2217://127.0.0.1:{listener.getsockname()[1]}"
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    with theirs, pytest.MonkeyPatch.context() as patch:
        for name in ("ANSWER_TIMEOUT_S", "LINES_TIMEOUT_S"):
            patch.setattr(protocol_rfc2217, name, 0.0)
        patch.setattr(socket, "create_connection", lambda *_, **__: ours)
        theirs.sendall((CONSENT if consents else b"") + stream)
        theirs.shutdown(socket.SHUT_WR)
        port = protocol_rfc2217.Serial(timeout=0)
        port.port = url
        with contextlib.suppress(SerialException, ValueError):
            port.open()
            port.read(port.in_waiting)
            port.write(b"\xff")
        port.close()


class Wire:
    """What esptool's reader sees of a port, which sends `piece` for ever; a read takes `takes_s`
    of the clock that it turns."""

    def __init__(self, piece: bytes, takes_s: float, clock: list[float]) -> None:
        self.piece, self.takes_s, self.clock = piece, takes_s, clock
        self.baudrate, self.timeout, self.taken = 115_200, 3.0, 0
        self.port = self.name = "rfc2217://x:1"

    @property
    def in_waiting(self) -> int:
        """How much has arrived."""
        return len(self.piece)

    def read(self, size_bytes: int) -> bytes:
        """A piece, behind the mark that begins an answer."""
        if not self.taken:
            self.taken = 1
            return b"\xc0"
        self.clock[0] += self.takes_s
        self.taken += min(size_bytes, len(self.piece))
        return self.piece[:size_bytes]

    def write(self, data: bytes) -> int:
        """Taken."""
        return len(data)

    def flushInput(self) -> None:
        """There is always more."""


@pytest.mark.parametrize(
    ("piece", "takes_s", "most_s"),
    [
        (b"a" * 60_000, 0.0, 0.0),
        (b"\xdb\xdc" * 30_000, 0.0, 0.0),
        (b"a", 2.9, 8.0),
        (b"\xdb\xdd", 2.9, 8.0),
    ],
)
def test_an_answer_that_does_not_end_is_none(
    piece: bytes, takes_s: float, most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in its length, nor in its time."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    esptool_setup.install()
    wire = Wire(piece, takes_s, clock)
    esp = ESPLoader(wire, 115_200)
    with pytest.raises(FatalError, match="does not end"):
        esp.read()
    assert wire.taken <= esptool_setup.MAX_ANSWER_BYTES + 4096
    assert clock[0] <= most_s


@pytest.mark.parametrize("asked", ["command", "await"])
def test_answers_to_other_requests_take_no_more_time_than_two(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """esptool takes a hundred of them, each within its timeout: five minutes for one request."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    esptool_setup.install()
    wire = Wire(STALE[1:] + STALE[:1], 2.9, clock)
    esp = ESPLoader(wire, 115_200)
    ask: dict[str, Any] = {
        "command": lambda: esp.command(8, timeout=3.0),
        "await": lambda: await_answer(esp, 8),
    }
    with pytest.raises(FatalError):
        ask[asked]()
    assert clock[0] < 12


def test_the_command_tells_of_a_flood_in_words() -> None:
    """What a person sees of all that."""
    with served(FLOODS["bytes"]) as url:
        done = here("inspect", url)
    assert done.code == 1
    assert "sends without end" in done.err
    assert done.err.rstrip().endswith("[link-lost]")


@pytest.mark.slow
def test_the_command_tells_of_a_socket_without_a_board() -> None:
    """What it cannot do there, and what a person can."""
    done_with = threading.Event()
    with served(lambda _: done_with.wait(60), "socket") as url:
        done = here("inspect", url)
        done_with.set()
    assert done.code == 1
    assert "has no lines to reset a board by" in done.err
    assert done.err.rstrip().endswith("[no-answer]")


# --- the simulated board's own peer


@pytest.mark.parametrize(
    "said",
    [
        b"x" * 100_000,
        b"[]\n",
        b'"text"\n',
        b"{}\n" + wire.HEADER.pack(wire.DATA, 0xFFFF_FFFF),
        b"{}\n" + wire.frame(wire.DRAIN, b"9") * 1000 + wire.frame(wire.GONE),
    ],
)
def test_what_is_no_simulated_board_is_a_port_that_is_gone(said: bytes, tmp_path: Path) -> None:
    """No line and no frame is waited for without a bound."""

    def serve(link: socket.socket) -> None:
        link.recv(4096)
        link.sendall(said)

    def talk() -> None:
        port = protocol_esp32sim.Serial(timeout=5)
        port.port = f"esp32sim://{tmp_path}"
        try:
            port.open()
            port.read(1)
        finally:
            assert len(port._drained) <= protocol_esp32sim.MAX_PIECES
            close_port(port)

    with served(serve) as url:
        host, _, number = url.removeprefix("rfc2217://").partition(":")
        wire.write_address(tmp_path, wire.PORT_FILE, host, int(number), "t")
        with pytest.raises(SerialException):
            talk()


# --- devices that vanish


@pytest.fixture
def vanished() -> Iterator[Any]:
    """An open port whose device has gone: the far end of a pseudo-terminal without its near one."""
    near, far = os.openpty()
    port = open_port(os.ttyname(far))
    os.close(far)
    os.close(near)
    yield port
    close_port(port)


ASKED: dict[str, Callable[[Any], object]] = {
    "speed": lambda port: setattr(port, "baudrate", 460_800),
    "a speed of its own": lambda port: setattr(port, "baudrate", 333_333),
    "timeout": lambda port: setattr(port, "timeout", 2.5),
    "dtr": lambda port: setattr(port, "dtr", True),
    "rts": lambda port: setattr(port, "rts", True),
    "waiting": lambda port: port.in_waiting,
    "read": lambda port: port.read(1),
    "write": lambda port: port.write(b"a"),
    "flush": lambda port: port.flush(),
    "forget input": lambda port: port.reset_input_buffer(),
    "forget input, as esptool says it": lambda port: port.flushInput(),
    "forget output": lambda port: port.reset_output_buffer(),
    "open again": lambda port: (port.close(), port.open()),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_device_that_vanished_is_told_by_an_oserror(vanished: Any, what: str) -> None:
    """Whatever is asked of it: pyserial lets termios.error, TypeError and ValueError out as well,
    which nobody above takes for what they are."""
    with contextlib.suppress(OSError):
        ASKED[what](vanished)


@pytest.mark.parametrize("what", sorted(set(ASKED) - {"open again"}))
def test_a_port_that_was_closed_meanwhile_is_told_so_too(vanished: Any, what: str) -> None:
    """By another thread, in the middle of a call: the descriptor is None."""
    descriptor, vanished.fd = vanished.fd, None
    try:
        with contextlib.suppress(OSError):
            ASKED[what](vanished)
    finally:
        vanished.fd = descriptor


def test_connecting_to_a_device_that_vanished_is_a_lost_link(
    vanished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not `internal`, which asks to report it; and nothing raises on the way out."""
    monkeypatch.setattr("esptool.reset.time.sleep", lambda _: None)
    with pytest.raises(OtaError) as caught:
        EspLink.connect(vanished, baud=460_800)
    assert caught.value.code == "link-lost"
    assert "Errno" not in caught.value.message
    leave_download_mode(vanished)


@pytest.mark.parametrize("reads", [0, 1, 3])
def test_the_command_tells_of_a_device_that_vanishes_while_it_connects(reads: int) -> None:
    """Before anything was asked, in the middle of it, and in the middle of an answer."""
    near, far = os.openpty()
    name = os.ttyname(far)

    def answer() -> None:
        for _ in range(reads):
            os.read(near, 4096)
            os.write(near, b"\xc0\x01\x08")
        if not reads:
            while not termios.tcgetattr(far)[2] & termios.CLOCAL:  # until it was opened
                time.sleep(0.01)
        os.close(far)
        os.close(near)

    thread = threading.Thread(target=answer)
    thread.start()
    done = here("inspect", name)
    thread.join()
    assert done.code == 1
    assert re.search(r"\[(link-lost|port-missing)\]$", done.err.rstrip()), done.err
    for words in ("report", "Errno", "(5,", "--before"):
        assert words not in done.err


TROUBLE: dict[str, Callable[[], BaseException]] = {
    "termios.error": lambda: termios.error(5, "Input/output error"),
    "OSError": lambda: OSError(5, "Input/output error"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("call", range(9))
def test_vanishing_at_each_call_while_a_device_is_opened(
    trouble: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each request to the system: the port opens (what failed was not needed), or its link is
    lost; it is closed then, and no longer claimed."""
    near, far = os.openpty()
    name = os.ttyname(far)
    os.close(far)
    count = 0

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def method(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count > call:
                raise TROUBLE[trouble]()
            return real(*args)

        return method

    try:
        with monkeypatch.context() as patch:
            for function in ("tcgetattr", "tcsetattr", "tcflush"):
                patch.setattr(termios, function, failing(getattr(termios, function)))
            patch.setattr("fcntl.ioctl", failing(serial.serialposix.fcntl.ioctl))
            try:
                with at_port(name, "service OTA", "left") as port:
                    assert port.is_open
            except OtaError as error:
                assert error.code == "link-lost"
        with at_port(name, "service OTA"):
            pass
    finally:
        os.close(near)


# --- urls of other kinds

OTHER_KINDS = (
    "spy:///dev/null?file={folder}/seen",
    "SPY:///dev/null?file={folder}/seen",
    "hwgrep://.*",
    "hwgrep://0403:6001&n=1",
    "loop://",
    "loop://logging=debug",
    "alt:///dev/null?class=PosixPollSerial",
    "cp2110://",
    "rfc2217+x://h:1",
    "../spy://x",
    "://x",
    "esp32sim://",
    "rfc2217://",
    "rfc2217://host",
    "rfc2217://host:0",
    "rfc2217://host:99999",
    "rfc2217://host:port",
    "rfc2217://:4000",
    "rfc2217://[::1:4000",
    "socket://host",
    "socket:///dev/ttyUSB0",
    "socket://h:1\n",
    "rfc2217://u:hunter2@h",
    "rfc2217://u:hunter2\x1b[31m@h:1",
)


@pytest.mark.parametrize("url", OTHER_KINDS)
def test_other_urls_are_no_ports(url: str, tmp_path: Path) -> None:
    """Refused before anything is opened, by whatever takes a port, in words, without secrets."""
    url = url.format(folder=tmp_path)
    with pytest.raises(OtaError) as caught, at_port(url, "service OTA", "left"):
        pass
    assert (caught.value.code, caught.value.board) == ("config-invalid", "left")
    with pytest.raises(OtaError):
        open_port(url)
    done = here("inspect", url)
    assert done.code == 2
    for said in (caught.value.message, done.err):
        assert "hunter2" not in said
        assert "\x1b" not in said
        assert any(word in said for word in ("rfc2217://", "printed", "host"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "port",
    [
        "/dev/ttyUSB0",
        "ttyUSB0",
        "COM3",
        "/dev/serial/by-path/platform-fd500000.pcie-usb-0:1.3:1.0-port0",
        "rfc2217://192.168.1.20:4000",
        "rfc2217://host.local:4000?ign_set_control",
        "rfc2217://[fe80::1]:4000",
        "rfc2217://user:word@host:4000",
        "socket://127.0.0.1:5555",
        "esp32sim:///tmp/boards/1",
    ],
)
def test_ports(port: str) -> None:
    """What people name."""
    assert ports.problem(port) is None


def test_a_socket_says_what_it_has_not() -> None:
    """A board behind it that does not answer cannot be reset from here; others can."""
    assert "BOOT" in (ports.no_lines("socket://h:1") or "")
    assert ports.no_lines("rfc2217://h:1") is None
    assert issubclass(protocol_socket.Serial, protocol_rfc2217.Serial)
