# SPDX-License-Identifier: GPL-3.0-or-later
"""A watched start: what is waited for, what is asked, and what a port that goes away comes to."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from serial import SerialException

from ota_service.errors import OtaError
from ota_service.formats.partitions import Partition
from ota_service.link.attachment import Attachment, attach
from ota_service.link.link import EspLink
from ota_service.link.serial_port import close_port, open_port
from ota_service.update import starts
from ota_service.update.boot import BootMonitor, BootRules, Expected, Verdict
from ota_service.update.leave import left_running
from ota_service.update.starts import READ_TIMEOUT_S, SHORTEST_S, Starts, read_timeout_s, watch
from tests.prove.board import Notes

LOGGER = logging.getLogger("tests")


@pytest.mark.parametrize(
    ("due_s", "now_s", "wait_s"),
    [
        (None, 3.0, READ_TIMEOUT_S),
        (5.0, 3.0, READ_TIMEOUT_S),
        (5.0, 4.98, 0.02),
        (5.0, 4.9999, SHORTEST_S),
        (5.0, 5.0, READ_TIMEOUT_S),
        (5.0, 9.0, READ_TIMEOUT_S),
    ],
)
def test_only_the_last_wait_before_a_verdict_is_short(
    due_s: float | None, now_s: float, wait_s: float
) -> None:
    """An app that runs but has yet to print what boot_expect asks for must not make it spin."""
    assert read_timeout_s(due_s, now_s) == pytest.approx(wait_s)


class Port:
    """A port in memory. answers: what comes to a question; departs: how often its device goes."""

    port = name = "/dev/none"
    timeout = 0.0

    def __init__(self, *answers: bytes, departs: int = 0) -> None:
        self.answers, self.departs = list(answers), departs
        self.coming: list[bytes] = []
        self.flushed = 0

    @property
    def in_waiting(self) -> int:
        """A device that has gone raises here first."""
        if self.departs:
            self.departs -= 1
            raise SerialException("gone")
        return len(self.coming[0]) if self.coming else 0

    def read(self, size_bytes: int) -> bytes:
        """The next piece."""
        return self.coming.pop(0)[:size_bytes] if self.coming else b""

    def write(self, data: bytes) -> None:
        """Only questions are written."""
        assert data[:3] == b"\xc0\x00\x08"
        self.coming += self.answers

    def reset_input_buffer(self) -> None:
        """Throws away what an app has said."""
        self.flushed += 1


def on(port: Any) -> EspLink:
    """A link of which only the port is there."""
    link = EspLink.__new__(EspLink)
    link._port = port
    return link


ANSWER = b"\xc0\x01\x08\x04\x00\x07\x12\x20\x55\x00\x00\x00\x00\xc0"
UP = b"I (2400) app: MY APP IS UP\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "in_download", "verdict"),
    [
        ((UP,), False, Verdict.RUNNING),
        ((UP[:9], UP[9:]), False, Verdict.RUNNING),
        ((b"\xc0\x01", b"\n" + UP), False, Verdict.RUNNING),
        ((ANSWER,) * 8, True, Verdict.FAILED),
        ((ANSWER[:2], ANSWER[2:] + ANSWER), True, Verdict.FAILED),
    ],
    ids=["an-app", "in-pieces", "half-an-answer", "the-rom", "the-stub-loader-in-pieces"],
)
def test_what_comes_to_the_question_is_not_thrown_away(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[bytes, ...], in_download: bool, verdict: Verdict
) -> None:
    """An app's first words may come just then; a loader's answers are none of them."""
    port = Port(*answers)
    attach(port, Attachment(port.port))
    monitor = BootMonitor(Expected(matches=lambda text: "IS UP" in text), BootRules(0.2, 0.05))
    watch(port, monitor, on(port).in_download, stopped=lambda: False)
    assert (monitor.in_download, monitor.heard) == (in_download, not in_download)
    assert monitor.verdict is (Verdict.NO_RESET if in_download else verdict)
    assert port.flushed == 0


def test_a_peer_that_hangs_up_at_once_ends_the_watch() -> None:
    """It would be reopened for ever, and no time would pass for the verdict."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = open_port(f"socket://127.0.0.1:{server.getsockname()[1]}")
        server.accept()[0].close()
        monitor = BootMonitor(Expected(), BootRules(1.0, 0.5))
        with pytest.raises(OtaError) as caught:
            watch(port, monitor, lambda: (False, b""), stopped=lambda: False)
        assert (caught.value.code, monitor.verdict) == ("link-lost", None)
        close_port(port)


def native(port: Any, monkeypatch: pytest.MonkeyPatch, mac: str | None = None) -> None:
    """Make it a port that comes back by itself."""
    at = SimpleNamespace(
        may_return=True,
        info=SimpleNamespace(mac=mac),
        reopen=lambda port, why, *, stopped: None,
    )
    monkeypatch.setattr(starts, "attachment", lambda port: at)
    monkeypatch.setattr(starts, "RETRY_S", 0.001)


def test_a_port_that_goes_without_end_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no verdict ends the watch."""
    port = Port(departs=10**9)
    native(port, monkeypatch)
    monkeypatch.setattr(starts, "RETURN_TIMEOUT_S", 0.05)
    with pytest.raises(OtaError) as caught:
        watch(
            port,
            BootMonitor(Expected(), BootRules(1.0, 0.5)),
            lambda: (False, b""),
            until=lambda monitor: False,
            stopped=lambda: False,
            limit_s=1.0,
        )
    assert caught.value.code == "link-lost"


class Link:
    """What is asked of a link, in its order."""

    baud = 460_800
    running = False

    def __init__(self, *, download: bool = False, said: bytes = b"") -> None:
        self.asked: list[str] = []
        self.download, self.said = download, said

    def in_download(self) -> tuple[bool, bytes]:
        """As it was made."""
        return self.download, self.said

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.asked.append(name)


def begun(link: Link, port: Port, rules: BootRules | None = None) -> Starts:
    """The starts of a session over these."""
    rules = rules or BootRules(0.3, 0.01)
    return Starts(link, port, "b", rules, Notes(), logging.getLogger())  # type: ignore[arg-type]


@pytest.mark.parametrize("download", [True, False])
def test_a_reset_that_led_into_download_mode_again(
    monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    """It is seen behind a port that went with it, and the ROM that answers then is no stub loader
    to go on with."""
    port, link = Port(departs=1), Link(download=download)
    native(port, monkeypatch)
    assert begun(link, port).first_look().restarted is not download
    assert link.asked == ["restart", "reconnect"]


@pytest.mark.parametrize(
    ("departs", "mac", "asked"),
    [
        (1, None, ["restart"]),
        (2, None, ["restart", "reconnect", "chip", "restart"]),
        (2, "24:0a:c4:00:00:01", ["restart"]),
    ],
)
def test_whose_start_was_seen(
    monkeypatch: pytest.MonkeyPatch, departs: int, mac: str | None, asked: list[str]
) -> None:
    """A port that went away once more than by its reset, and tells no MAC, may be another's."""
    port, link = Port(departs=departs), Link()
    port.coming.append(b"I (30) app_init: App version:      2.0.0\r\n")
    native(port, monkeypatch, mac)
    monkeypatch.setattr(
        starts, "put_back", lambda link: (link.asked.append("chip"), link.restart())
    )
    slot = Partition("ota_0", 0, 0x10, 0x10000, 0x100000)
    seen = begun(link, port).watched(slot, Expected(version="2.0.0"))
    assert (seen.verdict, link.asked) == (Verdict.RUNNING, asked)


def test_an_error_tells_the_speed_at_which_it_happened() -> None:
    """Which may be below the one that was asked for."""
    with pytest.raises(OtaError) as caught, left_running(Link()):  # type: ignore[arg-type]
        raise OtaError("verify-failed")
    assert caught.value.baud == 460_800


@pytest.mark.parametrize(
    ("printed", "port_went", "silent"),
    [
        (b"rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n", False, True),
        (b"I (31) boot: ESP-IDF v5.1\r\n", False, False),
        (b"rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n", True, None),
        (b"", False, None),
    ],
)
def test_a_bootloader_is_silent_only_where_it_could_have_been_heard(
    monkeypatch: pytest.MonkeyPatch, printed: bytes, port_went: bool, silent: bool | None
) -> None:
    """That is remembered for good: a port that went, or on which nothing at all came, is no proof
    of it."""
    monitor = BootMonitor(Expected(), BootRules(3.0, 3.0))
    if printed:
        monitor.feed(printed, 0.1)
    if port_went:
        monitor.port_left(0.2)
    none: Any = None
    starts = Starts(none, none, "a", BootRules(), Notes(), LOGGER)
    monkeypatch.setattr(starts, "_once", lambda why, until, stopped: monitor)
    assert starts.first_look().silent is silent
