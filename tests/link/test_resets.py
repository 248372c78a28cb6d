# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards whose port has no DTR and RTS: reset by GPIO lines that are wired to them, or by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serial import serial_for_url

from esp32_sim.process import RunningBoard, SimBoard, SimProcess, child_environment
from ota_service.errors import OtaError
from ota_service.link import identify, resets
from ota_service.link import link as link_module
from ota_service.link.at_port import at_port
from ota_service.link.attachment import Attachment, attach
from ota_service.link.link import EspLink
from ota_service.link.resets import ByHand, Pins, ResetPins, ResetWay
from ota_service.link.serial_port import close_port, open_port
from ota_service.update import session
from ota_service.update.session import Job, Outcome
from tests.prove.board import Notes
from tests.support.wired import EN, IO0, STAND_IN, edges, pulled, wire
from tests.update.test_native_usb import job, tag

from esptool.loader import ESPLoader  # isort: skip  (after esptool_setup)
from esptool.util import FatalError  # isort: skip

NO_LINES = {"reset_lines": False}


@pytest.fixture
def gpiod(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in in libgpiod's place."""
    monkeypatch.syspath_prepend(STAND_IN)
    yield
    for name in ("gpiod", "gpiod.line"):
        sys.modules.pop(name, None)


@contextmanager
def one_board(folder: Path, **fields: Any) -> Iterator[RunningBoard]:
    """A board that nothing but its pins and buttons resets."""
    config = {**NO_LINES, **fields.pop("config", {})}
    with SimProcess(folder, [SimBoard("guide", config=config, **fields)]) as sim:
        sim.boards[0].control.running()
        yield sim.boards[0]


def run(board: RunningBoard, wanted: Job, reset: ResetWay) -> Outcome:
    """One session, as the service has it."""
    with at_port(board.url, "test", "board", reset=reset) as port:
        return session.run(port, wanted, Notes())


@pytest.mark.slow
@pytest.mark.usefixtures("gpiod")
def test_a_board_that_is_reset_by_pins(tmp_path: Path) -> None:
    """It is updated; BOOT is held around EN's rise and at no other time; both are let go."""
    with one_board(tmp_path / "boards") as board:
        pins = wire(tmp_path / "gpiochip0", board)
        outcome = run(board, job("esp32"), pins)
        assert (outcome.end, outcome.confirmed, outcome.error) == ("up_to_date", True, None)
        assert (board.control.running()["version"], tag(board)) == ("2.0.0", "2.0.0")
        assert pulled(tmp_path / "gpiochip0") == {EN: False, IO0: False}
        en_low, held = False, 0
        for pin, low in edges(tmp_path / "gpiochip0"):
            if pin == IO0:
                held += low
                assert en_low is low, "BOOT goes down while EN is low, and up when EN is up"
            en_low = low if pin == EN else en_low
        assert held == 2, "into download mode, and again after the look at what runs"


EDGES = """
import sys
from ota_service.link.resets import ResetPins
with ResetPins(sys.argv[1], 17, 18).held() as pins:
    pins.into_download(None, 0.05)
    pins.into_firmware(None)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("gpiod")
def test_killed_at_each_edge(tmp_path: Path) -> None:
    """The next start leaves no board in reset, and none in download mode with BOOT held. Killed
    behind the last edge of the way in, the board is as any that was left in download mode: the
    next session starts it."""
    expected = ["reset", "reset", "download", "download", "reset", "app"]
    with one_board(tmp_path / "boards") as board:
        pins = wire(tmp_path / "gpiochip0", board)
        for number, state in enumerate(expected, 1):
            since = board.control.state()["events"]
            environment = {**child_environment(), "GPIOD_DIES_AT": str(number)}
            environment["PYTHONPATH"] += f"{os.pathsep}{STAND_IN}"
            dead = subprocess.run(
                [sys.executable, "-c", EDGES, pins.gpiochip],
                env=environment, timeout=60, check=False,
            )  # fmt: skip
            assert dead.returncode == -9
            if state != "reset":
                board.control.wait_for(state, since=since)
            assert board.control.state()["state"] == state, number
            with pins.held():
                assert pulled(tmp_path / "gpiochip0") == {EN: False, IO0: False}
            if number == 4:
                found = run(board, Job("board", course="look"), pins).found
                assert found is not None
            assert board.control.running()["version"] == "1.0.0", number


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (
            lambda folder, patch: patch.setitem(sys.modules, "gpiod", None),
            "no-reset", "gpiod, version 2, is not installed",
        ),
        (
            lambda folder, patch: patch.setitem(sys.modules, "gpiod", SimpleNamespace()),
            "no-reset", "gpiod, version 2, is not installed",
        ),
        (lambda folder, patch: patch.syspath_prepend(STAND_IN), "no-reset", "No such file"),
        (lambda folder, patch: held(folder, patch), "port-busy", "has the lines 17 and 18"),
    ],
    ids=["not-installed", "version-1", "no-such-chip", "busy"],
)  # fmt: skip
def test_pins_that_cannot_be_had(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Path, pytest.MonkeyPatch], None],
    code: str,
    words: str,
) -> None:
    """Each in words of its own, before the port is opened."""
    prepare(tmp_path, monkeypatch)
    try:
        with (
            pytest.raises(OtaError, match=words) as caught,
            ResetPins(str(tmp_path), 17, 18).held(),
        ):
            pass
        assert caught.value.code == code
    finally:
        sys.modules.pop("gpiod", None)
        sys.modules.pop("gpiod.line", None)


def held(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A chip whose lines another process has."""
    patch.syspath_prepend(STAND_IN)
    state = {"direction": 2, "value": 1, "pid": os.getppid()}
    (folder / "wiring.json").write_text(json.dumps({"17": ["x", "en"], "18": ["x", "io0"]}))
    (folder / "lines.json").write_text(json.dumps({"17": state, "18": state}))


@pytest.mark.slow
@pytest.mark.parametrize("usb", ["bridge", "serial-jtag"])
def test_a_board_that_is_reset_by_hand(tmp_path: Path, usb: str) -> None:
    """Somebody presses what they are told, each time they are told; an app that talks meanwhile
    is not taken for a reset."""
    asked: list[str] = []
    with one_board(tmp_path, chip="esp32c3", config={"usb": usb, "usb_back_s": 0.1}) as board:

        def press(what: str) -> None:
            asked.append(what.removeprefix(f"{board.url}: "))
            board.control.reset(boot_button="hold BOOT" in what)

        outcome = run(board, job("esp32c3"), ByHand(press))
        assert outcome.end == "up_to_date"
        assert board.control.running()["version"] == "2.0.0"
    into, out = (
        "hold BOOT, press and let go RESET (EN), then let go BOOT.",
        "press and let go RESET (EN), with BOOT let go.",
    )
    assert asked == [into, out, into, out]


@pytest.mark.slow
def test_nobody_presses_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after a time, and at once where the person has had enough."""
    with one_board(tmp_path) as board:
        asked: list[str] = []

        def enough(what: str) -> None:
            asked.append(what)
            by_hand.stop.set()

        by_hand = ByHand(enough)
        with pytest.raises(OtaError) as caught:
            run(board, job("esp32"), by_hand)
        assert caught.value.code == "cancelled"
        assert len(asked) == 1, "it never was in download mode"
        monkeypatch.setattr(resets, "BY_HAND_S", 0.1)
        with pytest.raises(OtaError, match=r"Nobody has reset the board in 0\.1 s") as caught:
            run(board, job("esp32"), ByHand(lambda _: None))
        assert caught.value.code == "no-reset"
        assert board.control.counters()["app"] == 1, "it was not touched"


ANSWER = b"\xc0\x01\x08\x04\x00\x07\x12\x20\x55\x00\x00\x00\x00\xc0"


@pytest.mark.slow
@pytest.mark.parametrize("heeds", [True, False])
def test_a_board_behind_a_socket_is_reset_by_what_was_configured(heeds: bool) -> None:
    """esptool resets nothing there. Where the board does not answer all the same, the reset is not
    said to be missing."""
    resets_seen: list[float] = []

    def serve(server: socket.socket) -> None:
        link, _ = server.accept()
        with link:
            while link.recv(4096):
                if resets_seen and heeds:
                    link.sendall(ANSWER * 8)

    by = SimpleNamespace(into_download=lambda port, held_s: resets_seen.append(held_s))
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = threading.Thread(target=serve, args=(server,), daemon=True)
        peer.start()
        port = open_port(f"socket://127.0.0.1:{server.getsockname()[1]}")
        attach(port, Attachment(str(port.port), by))
        finder = ESPLoader(port, 115_200)
        if heeds:
            identify._synchronise(finder, 1)
        else:
            with pytest.raises(FatalError) as caught:
                identify._synchronise(finder, 2)
            assert (
                "BOOT button at a reset"
                not in link_module._not_connected(caught.value, port).remedy
            )
        close_port(port)
        peer.join(5)
    assert resets_seen == ([0.05] if heeds else [0.05, 0.55])


def test_a_socket_is_used_at_the_roms_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells nothing of a speed, and the UART behind it keeps its own."""
    speeds: list[int] = []
    monkeypatch.setattr(
        EspLink, "_connected", classmethod(lambda cls, port, baud, *_: speeds.append(baud))
    )
    for name in ("socket://h:1", "rfc2217://h:1"):
        EspLink.connect(serial_for_url(name, do_not_open=True), baud=921_600)
    assert speeds == [115_200, 921_600]


def test_both_pins_are_given_up_whatever_becomes_of_one() -> None:
    """The boot pin first, and EN also where the kernel refuses the other."""
    told: list[str] = []

    class Request(SimpleNamespace):
        def set_value(self, pin: int, value: object) -> None:
            told.append(f"{pin} let go")
            if pin == IO0:
                raise OSError("gone")

        def release(self) -> None:
            told.append(f"{self.pin} given up")

    pins = Pins.__new__(Pins)
    pins._line = SimpleNamespace(Value=SimpleNamespace(ACTIVE=1))
    pins._requests = {IO0: Request(pin=IO0), EN: Request(pin=EN)}
    with pytest.raises(OSError, match="gone"):
        pins.close()
    assert told == [f"{IO0} let go", f"{IO0} given up", f"{EN} let go", f"{EN} given up"]


def test_a_port_that_goes_while_somebody_presses() -> None:
    """Whatever the port raises then: it is in download mode, and has to be led out of it."""

    class Gone:
        port = "/dev/none"
        in_waiting = 1

        def read(self, size_bytes: int) -> bytes:
            raise TypeError  # pyserial's, under a read

    asked: list[str] = []
    with ByHand(asked.append).held() as hand:
        with pytest.raises(TypeError):
            hand.into_download(Gone(), 0.05)
        hand.into_firmware(Gone(), awaited=False)
    assert len(asked) == 2
