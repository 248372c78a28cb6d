# SPDX-License-Identifier: GPL-3.0-or-later
"""One session with a simulated board: what is left of an app that waits for confirmation."""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import md5, sha256
from pathlib import Path

import pytest

from esp32_sim.bootmodel import ABORTED, Select
from esp32_sim.factory import make_flash
from esp32_sim.images import Behaviour, build_app
from esp32_sim.layouts import LAYOUTS
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.errors import OtaError
from ota_service.formats.image import parse_app_image
from ota_service.formats.otadata import parse_otadata
from ota_service.link.serial_port import ROM_BAUD, close_port, open_port
from ota_service.update import session, starts
from ota_service.update.boot import Heard
from ota_service.update.facts import BoardFacts, SlotFact
from ota_service.update.inspect import Inspection
from ota_service.update.session import Awaited, BootRules, Image, Job, Outcome
from tests.prove.board import Link, Notes, Told
from tests.prove.bootloader import Bootloader
from tests.prove.cells import Cells

pytestmark = pytest.mark.slow

BOOT = BootRules(timeout_s=4, stable_s=0.3)
FREEING = b"\xf8\xff\xff\xff"
"""The state of a page of NVS that is being freed."""
NEVER = Behaviour(confirm_after_s=None)


def run(board: RunningBoard, job: Job, notes: Notes | None = None) -> Outcome:
    """One session."""
    port = open_port(board.url)
    try:
        return session.run(port, job, notes or Notes())
    finally:
        close_port(port)


def states(board: RunningBoard, layout: str = "micro-rdk") -> list[str]:
    """The states in otadata, newest last."""
    at = LAYOUTS[layout].find("otadata").offset
    entries = parse_otadata(board.control.read_flash(at, 0x2000)).entries
    return [entry.state_name for entry in sorted(entries, key=lambda one: one.seq)]


class Refusing(Notes):
    """Somebody who wants no more of it as soon as the board was looked at."""

    def inspected(self, found: Inspection) -> None:
        assert found.pending
        raise OtaError("changed-elsewhere")


def test_a_session_that_fails_leaves_an_app_its_time_to_confirm(tmp_path: Path) -> None:
    """As one that only looks does: the bootloader that is passed on the way back turns down what
    has not confirmed itself."""
    app = build_app(size_bytes=60_000, behaviour=NEVER)
    spec = SimBoard(app=app, slot="ota_1", otadata="new", config={"rollback": True})
    with SimProcess(tmp_path, [spec]) as sim:
        board = sim.boards[0]
        for job, notes in (
            (Job("a", course="look"), Notes()),
            (Job("a", course="look"), Refusing()),
            (Job("a", course="rollback"), Notes()),
            (Job("a", course="log"), Notes()),
        ):
            assert board.control.running()["slot"] == "ota_1"
            assert states(board) == ["VALID", "PENDING_VERIFY"]
            try:
                run(board, job, notes)
            except OtaError as error:
                assert error.code in ("changed-elsewhere", "awaiting-confirmation")
            assert board.control.running()["slot"] == "ota_1"
            assert states(board) == ["VALID", "PENDING_VERIFY"]


def test_a_start_is_watched_without_a_write_or_a_secret(tmp_path: Path) -> None:
    """Also where a board's NVS cannot be read, so that nobody knows what to leave out: what the app
    says is left out then."""
    secret = "hunter2-of-the-robot"
    app = build_app(size_bytes=60_000, behaviour=Behaviour(print_secrets=True))
    nvs = {"robot_secret": secret, "OTA_VERSION": "1.0.0"}
    chips: list[dict[str, int]] = [{}, {"flash_crypt_cnt": 1}]
    boards = [SimBoard(app=app, nvs=nvs, config=config) for config in chips]
    with SimProcess(tmp_path, boards) as sim:
        for board, knows in zip(sim.boards, (True, False), strict=True):
            before, heard = board.control.read_flash(0, 0x20000), list[Heard]()
            outcome = run(board, Job("a", course="log", boot=BOOT, hears=heard.append))
            lines = [line for one in heard for line in one.shown()]
            assert secret not in "\n".join([*lines, *outcome.boot_log])
            assert any("***" in line for line in lines) is knows
            assert lines[0] == f"--- start of {'ota_0' if knows else 'its firmware'}"
            assert any("Project name" in line for line in lines)
            assert any("app: " in line for line in lines) is knows
            assert [one.verdict for one in heard if one.verdict] == ["its firmware runs"]
            assert (outcome.end, outcome.notice) == ("read", "its firmware runs")
            assert board.control.read_flash(0, 0x20000) == before


def firmware(version: str = "1.1.0", behaviour: Behaviour | None = None) -> Image:
    """A checked App Image."""
    app = build_app(version=version, size_bytes=60_000, behaviour=behaviour or Behaviour())
    return Image(app, sha256(app).hexdigest(), md5(app).hexdigest(), parse_app_image(app))


def test_a_way_back_that_was_cut_is_finished_by_the_same_again(tmp_path: Path) -> None:
    """The entry was taken away and the tag was not changed: going back from what runs now would
    lead to the firmware that the person wanted to leave."""
    old, new = firmware("1.0.0"), firmware("1.1.0")
    with SimProcess(tmp_path, [SimBoard(app=old.data)]) as sim:
        board = sim.boards[0]
        run(board, Job("a", "1.1.0", new, boot=BOOT))
        left = board.control.running()["slot"]
        came_from = "ota_0" if left == "ota_1" else "ota_1"
        facts = BoardFacts(
            slots={
                slot: SlotFact(len(image.data), image.md5, version=tag)
                for slot, image, tag in ((came_from, old, "1.0.0"), (left, new, "1.1.0"))
            },
            last_slot=left,
        )
        back = Job("a", course="rollback", boot=BOOT)
        board.control.cut_power_at(2, "torn")
        with pytest.raises(OtaError, match="lost"):
            run(board, back, Told(facts=facts))
        board.control.power_on()
        assert board.control.running()["slot"] == came_from
        run(board, back, Told(facts=facts))
        # And once more, where it was done but for the host's note of it.
        outcome = run(board, back, Told(facts=facts))
        assert outcome.slot is not None
        assert (outcome.end, outcome.slot.name, outcome.version) == (
            *("rolled_back", came_from, "1.0.0"),
        )
        assert board.control.running()["slot"] == came_from


def by_hand(board: RunningBoard) -> None:
    """Into download mode by its buttons."""
    since = board.control.state()["events"]
    board.control.reset(boot_button=True)
    board.control.wait_for("download", since=since)


@pytest.mark.parametrize("baud", [ROM_BAUD, 921_600])
def test_a_board_that_is_never_reset_is_never_done(tmp_path: Path, baud: int) -> None:
    """Not by the update, nor by the looks at it afterwards, whatever they find in otadata; and
    each session can talk to the stub loader that the one before has left."""
    spec = SimBoard(slot="ota_1", otadata="valid", config={"rollback": True, "reset_lines": False})
    job = Job("a", "1.1.0", firmware(), baud=baud, boot=BOOT)
    asked = replace(job, confirm=Awaited("ota_0", "1.0.0"))
    with SimProcess(tmp_path, [spec]) as sim:
        board = sim.boards[0]
        by_hand(board)
        # At the ROM's own speed, of which nothing is put back, two sessions show it.
        sessions = (job, asked, replace(asked, rearm=False)) if baud > ROM_BAUD else (job, asked)
        for again in sessions:
            outcome = run(board, again)
            assert outcome.error is not None
            assert (outcome.end, outcome.error.code) == ("unjudged", "no-reset")
            assert board.control.state()["state"] == "stub"
            assert states(board) == ["VALID", "NEW"]
        if baud == ROM_BAUD:
            return
        since = board.control.state()["events"]
        board.control.reset()
        board.control.wait_for("confirmed", since=since)
        for again in (asked, job):
            by_hand(board)
            outcome = run(board, again)
            assert outcome.error is not None
            assert (outcome.end, outcome.error.code) == ("unjudged", "no-reset")
            assert states(board) == ["VALID", "VALID"]


def test_a_board_that_went_back_by_itself_is_seen_to_start(tmp_path: Path) -> None:
    """Its tag is put right; and where its reset reaches nothing, that is said."""
    for lines in (True, False):
        flash = make_flash(
            "micro-rdk", app=firmware("1.0.0").data, otadata="first-boot", version="1.1.0"
        )
        at = LAYOUTS["micro-rdk"].find("otadata").offset + 0x1000
        flash[at : at + 32] = Select.make(2, ABORTED).encode()
        config = {"reset_lines": lines}
        with SimProcess(
            tmp_path / str(lines), [SimBoard(flash=bytes(flash), config=config)]
        ) as sim:
            board = sim.boards[0]
            if not lines:
                by_hand(board)
            outcome = run(board, Job("a", "1.1.0", firmware(), boot=BOOT))
            assert (outcome.end, outcome.version) == ("rolled_back", "1.0.0")
            assert outcome.error is not None
            assert outcome.error.code == "boot-failed"
            assert ("in download mode still" in outcome.error.message) == (not lines)
            assert (board.control.state()["state"] == "stub") == (not lines)


def test_a_bootloader_without_rollback_is_told_by_a_watched_start(tmp_path: Path) -> None:
    """Its entry stays NEW: the app is started once more, and judged by what it shows."""
    old, good, bad = (build_app(version=v, size_bytes=60_000, behaviour=b) for v, b in (
        ("1.0.0", Behaviour()), ("1.1.0", Behaviour()), ("1.1.0", Behaviour(ending="panic")),
    ))  # fmt: skip
    specs = [
        SimBoard(app=app, slot="ota_1", otadata="new", flash_options={"other_app": old})
        for app in (good, bad)
    ]
    with SimProcess(tmp_path, specs) as sim:
        job = Job("a", "1.1.0", boot=BOOT, confirm=Awaited("ota_1", "1.0.0"), rearm=False)
        outcome = run(sim.boards[0], job)
        assert (outcome.end, outcome.confirmed) == ("up_to_date", True)
        outcome = run(sim.boards[1], job)
        assert (outcome.end, outcome.version) == ("rolled_back", "1.0.0")
        assert sim.boards[1].control.running()["version"] == "1.0.0"


def test_an_app_that_has_had_its_time_without_a_reset(tmp_path: Path) -> None:
    """It still waits: nothing has reset it, and to wait again would have no end."""
    app = build_app(size_bytes=60_000, behaviour=NEVER)
    config = {"rollback": True, "reset_lines": False}
    with SimProcess(tmp_path, [SimBoard(app=app, slot="ota_1", otadata="new", config=config)]) as s:
        board = s.boards[0]
        assert board.control.running()["slot"] == "ota_1"
        by_hand(board)
        job = Job("a", "1.1.0", firmware(), boot=BOOT, rearm=False)
        with pytest.raises(OtaError) as caught:
            run(board, job)
        assert caught.value.code == "no-reset"
        assert states(board) == ["VALID", "PENDING_VERIFY"]


@pytest.mark.parametrize("held", [True, False])
def test_a_look_that_saw_no_start_proves_no_board_dead(tmp_path: Path, held: bool) -> None:
    """held: its BOOT button is, so that the ROM says that it waits for download. Else somebody
    wants no more of it before anything was seen."""
    flash = bytearray(make_flash("guide"))
    flash[LAYOUTS["guide"].find("factory").offset + 0x1000] ^= 1
    spec = SimBoard("guide", flash=bytes(flash), config={"bootloader_log": "none"})
    with SimProcess(tmp_path, [spec]) as sim:
        board = sim.boards[0]
        notes = Notes() if held else Impatient()
        board.control.set_faults(stuck_in_download=held)
        found = run(board, Job("a", course="look"), notes).found
        assert found is not None
        assert found.running.partition is None
        assert not found.running.dead
        assert found.running.why is not None
        assert "prints" not in found.running.why.message


class Impatient(Notes):
    """Somebody who wants no more of it when the board is restarted to be seen."""

    gone = False

    def restarting(self, reason: str) -> None:
        self.gone = self.gone or reason.startswith("once into")

    def cancelled(self) -> bool:
        return self.gone


def test_an_app_that_has_confirmed_itself_is_taken_at_its_word() -> None:
    """Its NVS cannot be read by now: said, and the update is over."""
    flash = make_flash("micro-rdk", slot="ota_1", otadata="valid")
    nvs = LAYOUTS["micro-rdk"].find("nvs")
    page = FREEING + flash[nvs.offset + 4 : nvs.offset + 0x1000]
    flash[nvs.offset : nvs.offset + 2 * len(page)] = 2 * page
    job = Job("a", "1.1.0", boot=BOOT, confirm=Awaited("ota_1", "1.0.0"))
    outcome = Link(Cells(bytes(flash)), Bootloader(rollback=True)).session(job, Notes())
    assert (outcome.end, outcome.confirmed, outcome.version) == ("up_to_date", True, None)
    assert outcome.error is not None
    assert outcome.error.code == "nvs-invalid"


def test_a_bootloader_that_prints_nothing_is_listened_to_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the end of the time: the ROM's last line is followed by nothing. The next session is
    told, restarts nothing to see what runs, and comes to the same answer."""
    monkeypatch.setattr(starts, "FIRST_LOOK_S", 30.0)
    app = build_app(version="1.0.0", behaviour=Behaviour(console_baud=0), size_bytes=20_000)
    flash = make_flash("guide", app=app)
    spec = SimBoard("guide", flash=bytes(flash), config={"bootloader_log": "none"})
    with SimProcess(tmp_path, [spec]) as sim:
        begun_s = time.monotonic()
        first = Told()
        found = run(sim.boards[0], Job("a", course="look"), first).found
        assert time.monotonic() - begun_s < 25
        assert found is not None
        assert (found.running.evidence, found.silent) == ("verified", True)
        assert len(first.restarts) == 2
        again = Told(facts=BoardFacts(silent=True))
        known = run(sim.boards[0], Job("a", course="look"), again).found
        assert known is not None
        assert (known.running, known.silent) == (found.running, None)
        assert len(again.restarts) == 1
