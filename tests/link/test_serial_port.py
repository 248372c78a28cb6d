# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening and closing ports: pseudo-terminals, sockets, and everything that can go wrong."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial
import serial.rfc2217

from ota_service.errors import OtaError
from ota_service.link import serial_port
from ota_service.link.serial_port import close_port, open_port


@pytest.fixture
def pty() -> Iterator[tuple[int, str]]:
    """The near end (a descriptor) and the name of the far end of a pseudo-terminal."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.close(slave)
    yield master, name
    os.close(master)


def test_a_pty_opens_and_carries_data(pty: tuple[int, str]) -> None:
    """A terminal without control lines opens; it is raw."""
    master, name = pty
    opened = open_port(name, timeout_s=5)
    try:
        os.write(master, b"\x00\x03\r\n\xff")
        assert opened.read(5) == b"\x00\x03\r\n\xff"
        opened.write(b"\xc0\n\xc0")
        assert os.read(master, 10) == b"\xc0\n\xc0"
        assert not opened.dtr
        assert not opened.rts
    finally:
        close_port(opened)


def test_hupcl_is_cleared_and_stays_so(pty: tuple[int, str]) -> None:
    """Closing must not lower the lines: HUPCL is off, also after a change of speed."""
    before = os.open(pty[1], os.O_RDWR | os.O_NOCTTY)
    attributes = termios.tcgetattr(before)
    attributes[2] |= termios.HUPCL
    termios.tcsetattr(before, termios.TCSANOW, attributes)
    opened = open_port(pty[1])
    os.close(before)
    try:
        for baud in (115200, 921600):
            opened.baudrate = baud
            assert not termios.tcgetattr(opened.fd)[2] & termios.HUPCL
    finally:
        close_port(opened)


def test_both_lines_are_lowered_in_one_request(
    pty: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While opening there is exactly one change of modem lines, and it clears DTR and RTS.

    A pseudo-terminal has no lines, so the request is looked at where it leaves the process.
    """
    requests = []
    real = fcntl.ioctl

    def spy(fd: int, request: int, *rest: object) -> object:
        if request in (termios.TIOCMBIC, termios.TIOCMBIS, termios.TIOCMSET):
            requests.append((request, rest[0]))
            return b""
        return real(fd, request, *rest)  # type: ignore[call-overload]

    monkeypatch.setattr(fcntl, "ioctl", spy)
    opened = open_port(pty[1])
    both = (termios.TIOCM_DTR | termios.TIOCM_RTS).to_bytes(4, sys.byteorder)
    assert requests[0] == (termios.TIOCMBIC, both)
    assert all(request == termios.TIOCMBIC for request, _ in requests)
    opened.dtr = True
    assert requests[-1][0] == termios.TIOCMBIS, "afterwards each line is its own again"
    close_port(opened)


def test_a_second_open_is_refused(pty: tuple[int, str]) -> None:
    """The device is locked, so even root's second open is `port-busy`."""
    opened = open_port(pty[1])
    try:
        with pytest.raises(OtaError, match="in use by") as caught:
            open_port(pty[1], board="left")
        assert (caught.value.code, caught.value.board) == ("port-busy", "left")
    finally:
        close_port(opened)
    close_port(open_port(pty[1]))


def test_a_lock_of_another_program_is_port_busy_with_its_name(pty: tuple[int, str]) -> None:
    """Where another process has the device locked, the error names it."""
    code = (
        "import sys, serial; p = serial.Serial(sys.argv[1], exclusive=True);"
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, pty[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(OtaError, match=f"pid {child.pid} ") as caught:
            open_port(pty[1])
        assert caught.value.code == "port-busy"
    finally:
        child.kill()
        child.communicate()


def test_other_users_are_kept_out(pty: tuple[int, str]) -> None:
    """While the port is open, the kernel refuses further opens of it to anyone but root."""
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root; without it the kernel refuses this process")
    os.chmod(pty[1], 0o666)
    opened = open_port(pty[1])
    try:
        assert _open_as_nobody(pty[1]) == errno.EBUSY
    finally:
        close_port(opened)
    assert _open_as_nobody(pty[1]) == 0


def _open_as_nobody(name: str) -> int:
    """What opening `name` gives to a user without rights: an error number, or 0."""
    nobody = pwd.getpwnam("nobody").pw_uid
    code = (
        f"import os\nos.setuid({nobody})\n"
        f"try:\n    os.open({name!r}, os.O_RDWR | os.O_NOCTTY)\n"
        "except OSError as error:\n    raise SystemExit(error.errno)"
    )
    return subprocess.run([sys.executable, "-S", "-c", code], check=False).returncode


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_permission_names_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A refused open says which group to join; root is refused nothing, so the kernel's answer
    is put in its place."""
    device = tmp_path / "ttyUSB0"
    device.touch(0o660)
    os.chmod(device, 0o660)
    real = os.open

    def refuse(path: object, flags: int, *rest: object, **more: object) -> int:
        if path == str(device):
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("grp.getgrgid", lambda gid: type("G", (), {"gr_name": "dialout"}))
    with pytest.raises(OtaError) as caught:
        open_port(str(device))
    assert caught.value.code == "permission"
    assert "group dialout" in caught.value.remedy
    os.chmod(device, 0o600)
    with pytest.raises(OtaError, match="udev rule"):
        open_port(str(device))


def test_a_missing_port(tmp_path: Path) -> None:
    """No device, or a simulated board that is not there: `port-missing`."""
    for port in (str(tmp_path / "ttyUSB0"), f"esp32sim://{tmp_path}/board"):
        with pytest.raises(OtaError, match="does not exist") as caught:
            open_port(port, board="left")
        assert (caught.value.code, caught.value.board) == ("port-missing", "left")


def test_what_is_no_serial_port(tmp_path: Path) -> None:
    """A file and a folder are said to be no serial ports, and are left as they were."""
    path = tmp_path / "file"
    path.write_text("precious")
    for port in (path, tmp_path, Path("/dev/null")):
        with pytest.raises(OtaError, match="is not a serial port") as caught:
            open_port(str(port))
        assert caught.value.code == "port-missing"
    assert path.read_text() == "precious"


def test_an_unknown_kind_of_url() -> None:
    """A url that nothing here opens is a mistake in the configuration; secrets stay hidden."""
    with pytest.raises(OtaError, match="gopher://\\*\\*\\*@host") as caught:
        open_port("gopher://hunter2@host")
    assert caught.value.code == "config-invalid"
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_socket_url_opens(listener: socket.socket) -> None:
    """`socket://` works, as emulators offer it."""
    opened = open_port(f"socket://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5)
    peer, _ = listener.accept()
    with peer:
        peer.sendall(b"hello")
        assert opened.read(5) == b"hello"
        close_port(opened)


def serve_rfc2217(listener: socket.socket, far: serial.SerialBase) -> None:
    """pyserial's own RFC 2217 server for one client; `far` (`loop://`) is its serial port."""
    link, _ = listener.accept()
    sender = type("Sender", (), {"write": staticmethod(link.sendall)})
    manager = serial.rfc2217.PortManager(far, sender)
    with link, contextlib.suppress(OSError):
        while data := link.recv(1024):
            far.write(b"".join(manager.filter(data)))
            link.sendall(b"".join(manager.escape(far.read(far.in_waiting))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:serial.rfc2217")
def test_the_stock_rfc2217_client_opens(listener: socket.socket) -> None:
    """It refuses a write timeout, which must not stop it; the far end's lines are released."""
    far = serial.serial_for_url("loop://")
    far.dtr = far.rts = True
    server = threading.Thread(target=serve_rfc2217, args=(listener, far))
    server.start()
    opened = open_port(f"rfc2217://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5)
    assert not far.dtr
    assert not far.rts
    opened.write(b"hello\xff")
    assert opened.read(6) == b"hello\xff"
    close_port(opened)
    server.join(10)
    assert not server.is_alive()


@pytest.mark.parametrize("scheme", ["socket", "rfc2217"])
def test_nothing_listens(listener: socket.socket, scheme: str) -> None:
    """A url where nobody answers is `no-answer`, and says why."""
    number = listener.getsockname()[1]
    listener.close()
    with pytest.raises(OtaError, match="Connection refused") as caught:
        open_port(f"{scheme}://127.0.0.1:{number}?logging=error")
    assert caught.value.code == "no-answer"


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's own words are given, not those of a system error with its number.

    The resolver is replaced, as asking it would leave this machine.
    """

    def resolve(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(OtaError, match="Name or service not known") as caught:
        open_port("socket://nowhere.invalid:1")
    assert caught.value.code == "no-answer"


def test_closing_never_raises(pty: tuple[int, str]) -> None:
    """None, closed, and a port whose descriptor has gone: all close in silence."""
    close_port(None)
    opened = open_port(pty[1])
    close_port(opened)
    close_port(opened)
    broken = open_port(pty[1])
    os.close(broken.fd)
    close_port(broken)
    assert not broken.is_open


def test_a_vanished_device_is_noticed() -> None:
    """When the far end goes, reads raise."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.close(slave)
    opened = open_port(name, timeout_s=5)
    os.close(master)
    with pytest.raises(serial.SerialException):
        opened.read(1)
    close_port(opened)


def test_no_descriptor_stays_behind(pty: tuple[int, str], tmp_path: Path) -> None:
    """200 opens, half of them failures, leave the process with the files it had."""
    (tmp_path / "file").touch()
    close_port(open_port(pty[1]))
    before = len(os.listdir("/proc/self/fd"))
    for index in range(100):
        close_port(open_port(pty[1]))
        with contextlib.suppress(OtaError):
            open_port(str(tmp_path / ("file" if index % 2 else "gone")))
    assert len(os.listdir("/proc/self/fd")) == before


def test_url_handlers_are_registered_once() -> None:
    """Registering again changes nothing, and pyserial's own handlers stay."""
    serial_port.register_url_handlers()
    first = list(serial.protocol_handler_packages)
    serial_port.register_url_handlers()
    assert serial.protocol_handler_packages == first
    assert "serial.urlhandler" in first
    assert len(set(first)) == len(first)
