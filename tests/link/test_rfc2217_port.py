# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards behind an RFC 2217 server: pyserial's PortManager in a process of its own."""

from __future__ import annotations

import socket
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from bench import boards, ours
from bench.network import served
from esp32_sim.process import SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.link.link import EspLink
from ota_service.link.serial_port import close_port, open_port
from ota_service.link.urlhandler import telnet
from tests.link import test_hostile_ports
from tests.link.test_hostile_ports import CONSENT


@pytest.mark.slow
def test_an_update_over_the_network() -> None:
    """Resets, speeds, the slot, otadata, NVS and the watched boot, all through the server."""
    data = boards.flash("random", 100_000)
    image = boards.image(300_000)
    with boards.board(data, 1, timed=False) as board, served(board.url) as url:
        measured = ours.measure(board, image, 921_600, url=url)
        assert board.control.running()["version"] == boards.NEW
        assert measured.ops["ota_1"]["program"] > 1000


@pytest.mark.slow
def test_opening_and_closing_leave_the_board_running(tmp_path: Path) -> None:
    """The lines are released before anything else, so the app goes on."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim:
        control = sim.boards[0].control
        control.wait_for("app")
        before = control.counters()["reset"]
        with served(sim.boards[0].url) as url:
            close_port(open_port(url))
            close_port(open_port(url))
        assert control.counters()["reset"] == before
        assert control.running()


def test_timeouts_are_its_own_affair(tmp_path: Path) -> None:
    """A change of the timeout sends nothing, a speed that is set already sends nothing."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, served(sim.boards[0].url) as url:
        port = open_port(url)
        sent: list[bytes] = []
        real = port._send

        def send(data: bytes) -> None:
            sent.append(data)
            real(data)

        port._send = send
        begun_s = time.monotonic()
        for step in range(100):
            port.timeout = 0.1 + step / 1000
            port.baudrate = 115_200
        assert not sent
        assert time.monotonic() - begun_s < 0.5
        port.baudrate = 460_800
        assert sent == [telnet.command(telnet.SET_BAUD, telnet.baud(460_800))]
        close_port(port)


def answering(replies: bytes, *, baud: bytes | None = None) -> AbstractContextManager[str]:
    """A server that sends `replies`, and answers each SET-BAUDRATE with `baud`, then ends."""

    def serve(link: socket.socket) -> None:
        link.sendall(replies)
        while baud is not None and (data := link.recv(4096)):
            for number in (telnet.SET_CONTROL, telnet.PURGE):
                if bytes((telnet.SB, telnet.COM_PORT, number)) in data:
                    link.sendall(telnet.command(number + 100, b"\0"))
            if bytes((telnet.SB, telnet.COM_PORT, telnet.SET_BAUD)) in data:
                link.sendall(telnet.command(telnet.SET_BAUD + 100, baud))

    return test_hostile_ports.served(serve)


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        (telnet.negotiate(telnet.DONT, telnet.COM_PORT), "no-answer"),
        (b"Port already in use\r\n", "port-busy"),
        (b"", "no-answer"),
    ],
)
def test_servers_that_give_no_port(replies: bytes, code: str) -> None:
    """No COM-PORT option, a port that someone else has, a server that hangs up."""
    with answering(replies) as url, pytest.raises(OtaError) as caught:
        open_port(url)
    assert caught.value.code == code


def test_a_speed_that_the_server_refuses() -> None:
    """It answers with the speed that it has: that is no success."""
    with answering(CONSENT, baud=telnet.baud(115_200)) as url:
        port = open_port(url)
        with pytest.raises(ValueError, match="cannot be set"):
            port.baudrate = 3_000_000
        close_port(port)


def test_nothing_listens() -> None:
    """A refused connection is `no-answer`, at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rfc2217://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(OtaError) as caught:
        open_port(url)
    assert caught.value.code == "no-answer"


@pytest.mark.slow
def test_a_server_that_ends_in_the_middle(tmp_path: Path) -> None:
    """The link is lost, as with a cable that is pulled."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim:
        with served(sim.boards[0].url) as url:
            port = open_port(url)
            link = EspLink.connect(port, baud=460_800)
        with pytest.raises(OtaError) as caught:
            link.read(0x8000, 32)
        assert caught.value.code == "link-lost"
        close_port(port)
