# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards on their own USB: whole sessions over ports that go away at each reset, or at none."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.formats.image import parse_app_image
from ota_service.link import attachment as attachment_module
from ota_service.link.at_port import at_port
from ota_service.update import session
from ota_service.update.boot import BootMonitor, BootRules, Expected, Verdict
from ota_service.update.session import Image, Job, Outcome
from tests.prove.board import Notes, Told
from tests.prove.cells import Cells
from tests.prove.judge import stored

LAYOUT = LAYOUTS["guide"]
EVERY: dict[str, Any] = {"usb_leaves_at": "every-reset", "usb_back_s": 0.2}
TALKS = Behaviour(tick_s=0.1)
PANICS = Behaviour(tick_s=0.1, ending="panic", ending_after_s=0.8)


@contextmanager
def boards(folder: Path, *specs: SimBoard) -> Iterator[list[RunningBoard]]:
    """Boards whose apps run."""
    with SimProcess(folder, list(specs)) as sim:
        for board in sim.boards:
            board.control.running()
        yield sim.boards


def on_usb(chip: str, usb: str = "serial-jtag", **config: Any) -> SimBoard:
    """A board on its chip's own port."""
    return SimBoard("guide", chip=chip, config={"usb": usb, **config})


def job(chip: str, version: str = "2.0.0", behaviour: Behaviour = TALKS, **more: Any) -> Job:
    """An update to a firmware of this version."""
    data = build_app(version=version, size_bytes=40_000, chip=chip, behaviour=behaviour)
    image = Image(
        data,
        hashlib.sha256(data).hexdigest(),
        hashlib.md5(data, usedforsecurity=False).hexdigest(),
        parse_app_image(data),
    )
    rules = BootRules(timeout_s=1.6, stable_s=1.0)
    return Job("board", version=version, image=image, boot=rules, **more)


def run(url: str, wanted: Job, notes: Notes | None = None) -> Outcome:
    """One session, as the service has it."""
    with at_port(url, "test", "board") as port:
        return session.run(port, wanted, notes or Notes())


def tag(board: RunningBoard) -> str | None:
    """The version in a board's NVS, by the simulator's own reading."""
    return stored(Cells((board.dir / "flash.bin").read_bytes()), LAYOUT)


@pytest.mark.slow
def test_an_update_over_usb_otg(tmp_path: Path) -> None:
    """By a port whose ROM says nothing, which each reset takes along: the new firmware runs."""
    with boards(tmp_path, on_usb("esp32s3", "otg", **EVERY)) as (board,):
        outcome = run(board.url, job("esp32s3"))
        assert (outcome.end, outcome.confirmed, outcome.error) == ("up_to_date", False, None)
        assert (board.control.running()["version"], tag(board)) == ("2.0.0", "2.0.0")


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["esp32c3", "esp32s3"])
def test_a_board_that_was_plugged_in_with_boot_held(tmp_path: Path, chip: str) -> None:
    """As people do it whose firmware is broken: resets by its port lead back into download mode,
    since they do not look at the pins again."""
    with boards(tmp_path, on_usb(chip, usb_back_s=0.2)) as (board,):
        since = board.control.state()["events"]
        board.control.reset(boot_button=True)
        board.control.wait_for("plugged", since=since)
        outcome = run(board.url, job(chip))
        assert (outcome.end, outcome.confirmed, outcome.error) == ("up_to_date", True, None)
        assert (board.control.running()["version"], tag(board)) == ("2.0.0", "2.0.0")


PHASES = ("inspecting", "writing", "verifying", "switching", "recording", "booting")


class Unplugs(Told):
    """Pulls the cable, and the power with it, when a phase begins."""

    board: RunningBoard
    at: str = ""

    def phase(self, name: str) -> None:
        """It may be the one."""
        if name == self.at:
            self.board.control.unplug(keep_power=False)


@pytest.mark.slow
def test_unplugged_at_each_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is lost, the old firmware or the new one runs when the cable is back, and the next
    session comes to the target."""
    monkeypatch.setattr(attachment_module, "RETURN_TIMEOUT_S", 0.2)
    with boards(tmp_path, on_usb("esp32c3")) as (board,):
        for number, phase in enumerate((*PHASES, "rolling_back")):
            wanted = job("esp32c3", f"2.{number}.0", PANICS if phase == "rolling_back" else TALKS)
            notes = Unplugs()
            notes.board, notes.at = board, phase
            with pytest.raises(OtaError) as caught:
                run(board.url, wanted, notes)
            assert caught.value.code == "link-lost", phase
            board.control.plug()
            board.control.running()
            last = job("esp32c3", f"3.{number}.0")
            outcome = run(board.url, last)
            assert (outcome.end, outcome.confirmed) == ("up_to_date", True), phase
            assert (board.control.running()["version"], tag(board)) == (last.version, last.version)


class Meanwhile(Told):
    """Lets something happen when the board is restarted into its firmware for the first time."""

    happens: Callable[[], None]

    def restarting(self, reason: str) -> None:
        """The second restart of a session."""
        super().restarting(reason)
        if len(self.restarts) == 2:
            self.happens()


@pytest.mark.slow
def test_two_boards_that_swap_their_names_meanwhile(tmp_path: Path) -> None:
    """The session goes on with its own board, under the other's name, and the other is not
    touched."""
    with boards(tmp_path, on_usb("esp32c3", **EVERY), on_usb("esp32c3", **EVERY)) as (one, two):
        one.control.configure(usb_name=two.dir.name)
        two.control.configure(usb_name=one.dir.name)
        # From the way into download mode on, the first board has the second one's name. That one
        # must be gone by then.
        two.control.reset()
        outcome = run(one.url, job("esp32c3"))
        assert outcome.end == "up_to_date"
        assert one.control.running()["version"] == "2.0.0"
        assert two.control.running()["version"] == "1.0.0"
        assert two.control.counters().get("flash_ops") == 0
        assert two.control.counters().get("download", 0) == 0


@pytest.mark.slow
def test_another_board_in_the_port_is_refused(tmp_path: Path) -> None:
    """A bridge tells nothing of the board behind it: its MAC is asked for after each return."""
    with boards(tmp_path, SimBoard("guide")) as (board,):
        notes = Meanwhile()
        notes.happens = lambda: board.control.configure(mac="24:0a:c4:00:00:99")
        with pytest.raises(OtaError) as caught:
            run(board.url, job("esp32"), notes)
        assert caught.value.code == "wrong-board"
        assert board.control.counters()["flash_ops"] == 0


@pytest.mark.slow
def test_stopped_while_the_port_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the process is not held up by a port that takes its time."""

    class Ends(Told):
        ends = threading.Event()

        def phase(self, name: str) -> None:
            if name == "booting":
                board.control.configure(usb_back_s=60)
                self.ends.set()

        def stopping(self) -> bool:
            return self.ends.is_set()

    monkeypatch.setattr(attachment_module, "LEAVES_WITHIN_S", 0)
    with boards(tmp_path, on_usb("esp32c3", **EVERY)) as (board,):
        with pytest.raises(OtaError) as caught:
            run(board.url, job("esp32c3"), Ends())
        assert caught.value.code == "cancelled"


# --- what a port's going says of a boot


def monitor() -> BootMonitor:
    """Of a boot whose app prints its descriptor."""
    return BootMonitor(Expected(version="2.0.0"), BootRules())


SHOWN = b"I (30) app_init: App version:      2.0.0\r\n"
PANIC = b"Guru Meditation Error: Core  0 panic'ed (Load access fault). Exception was unhandled.\r\n"


def test_a_port_that_goes_with_the_reset_that_began_the_boot() -> None:
    """Says nothing; the same once more is somebody else's reset, and the watch starts over."""
    seen = monitor()
    seen.port_left(0.1)
    seen.feed(SHOWN, 1.0)
    seen.tick(6.1)
    assert seen.verdict is Verdict.RUNNING
    seen = monitor()
    seen.port_left(0.1)
    seen.feed(SHOWN, 1.0)
    seen.port_left(4.0)
    seen.tick(7.0)
    assert seen.verdict is None
    seen.tick(24.1)
    assert seen.verdict is Verdict.SILENT


def test_a_port_that_goes_again_and_again() -> None:
    """An app whose watchdog resets it all the time, for which no line is left: it does not run."""
    seen = monitor()
    for at_s in range(6):
        seen.port_left(at_s + 0.0)
        seen.feed(SHOWN, at_s + 0.5)
    assert seen.verdict is Verdict.FAILED
    assert "its port went away" in seen.reason


def test_a_port_that_goes_with_a_panic() -> None:
    """Half of the panic's text is enough."""
    seen = monitor()
    seen.feed(SHOWN + PANIC, 1.0)
    seen.port_left(1.1)
    assert seen.verdict is Verdict.FAILED
    assert "panicked" in seen.reason


def test_a_port_that_goes_out_of_download_mode() -> None:
    """Somebody pressed reset: from then on the app has its time."""
    seen = monitor()
    seen.in_download = True
    seen.port_left(9.0)
    assert not seen.in_download
    seen.tick(25.0)
    assert seen.verdict is None
