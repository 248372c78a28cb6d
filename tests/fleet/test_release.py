# SPDX-License-Identifier: GPL-3.0-or-later
"""A port whose USB device is another one than before is closed until release."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet import engine
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.journal import open_journal
from ota_service.fleet.journal_rows import BoardRecord, NameRecord, PortRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.places import Place, place_entry, stands_in, without_twins
from ota_service.fleet.service import FleetService, shutdown
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.link.ownership import mark_rewritten, rewrite_mark
from ota_service.link.ports import PortInfo

# A device that exists everywhere, and is none that could be restarted.
PORT = "/dev/null"


def _settings(folder: Path) -> Settings:
    """One board at a port, and nothing that is done by itself."""
    return Settings(
        service="OTA",
        target=Target("http://127.0.0.1:9/x.bin", "1"),
        boards=(BoardEntry("a", port=PORT),),
        auto_update=False,
        state_dir=folder / "state",
        cache_dir=folder / "cache",
    )


async def test_release_forgets_the_usb_device_that_was_learned(tmp_path: Path) -> None:
    """Until then the board is wrong-board; nothing is opened for it."""
    settings = _settings(tmp_path)
    with open_journal(settings.state_dir) as journal:
        journal.learn_port(PORT, "24:0a:c4:00:00:01", location="1-2", serial="0001")
        service = await FleetService.open(settings)
        try:
            for _ in range(400):
                if service.status()["boards"]["a"]["state"] == "set_aside":
                    break
                await asyncio.sleep(0.05)  # the status has no event to await
            assert service.status()["boards"]["a"]["error"]["code"] == "wrong-board"
            await service.command("release", {"all": True})
            assert journal.get(PortRecord, port=PORT) is None
            assert service.status()["boards"]["a"]["state"] == "unknown"
        finally:
            await shutdown()


MAC, OTHER = "24:0a:c4:00:00:01", "24:0a:c4:00:00:02"


async def _placed(service: FleetService) -> None:
    """Wait until the service has looked at its journal, and then for its boards' ports."""
    for _ in range(400):
        if service.status()["boards"]["a"].get("port"):
            return
        await asyncio.sleep(0.05)  # the status has no event to await
    raise TimeoutError("the board was not placed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "how", "state"),
    [
        *[("1", None, "up_to_date"), ("1", "cut", "unknown"), ("1", "failed", "unknown")],
        *[("1", "cancelled", "unknown"), ("1", "other", "unknown"), ("1", "read", "up_to_date")],
        *[("0", None, "outdated"), ("0", "cut", "outdated")],
    ],
)
async def test_a_version_that_was_read_before_a_lost_session_is_no_evidence(
    tmp_path: Path, stored: str, how: str | None, state: str
) -> None:
    """A board is not called up to date by what was read of it before an attempt that failed."""
    settings = _settings(tmp_path)
    with open_journal(settings.state_dir) as journal:
        journal.put(NameRecord("OTA", "a", MAC))
        journal.put(BoardRecord(MAC, version=stored, version_read_at=utc_now()))
        tried = "another target" if how == "other" else settings.target.key
        codes = {"failed": "link-lost", "other": "link-lost", "read": "link-lost"}
        if how is not None:
            journal.begin_attempt(MAC, tried)
        if how not in (None, "cut"):
            code = codes.get(str(how), str(how))
            journal.end_attempt(MAC, tried, succeeded=False, error=OtaError(code))
        if how == "read":  # and looked at since then
            journal.update_board(MAC, version_read_at=utc_now())
        service = await FleetService.open(settings)
        try:
            await _placed(service)
            assert service.status()["boards"]["a"]["state"] == state
        finally:
            await shutdown()


def test_what_was_read_before_an_attempt_does_not_stand_in_for_a_look(tmp_path: Path) -> None:
    """Nor where the attempt was at another target, and the first is configured again."""
    info = PortInfo("/dev/ttyACM0", location="1-1.2", appeared_at=utc_now())
    place = Place("a", "here", info.device, info, MAC)
    with open_journal(tmp_path) as journal:
        memory = Memory(journal, "OTA")
        journal.update_board(MAC, version="1", version_read_at=utc_now())
        assert stands_in(place, memory, "1")
        assert not stands_in(place, memory, "2")
        journal.begin_attempt(MAC, "another target")
        assert not stands_in(place, memory, "1")
        journal.end_attempt(MAC, "another target", succeeded=False, error=OtaError("link-lost"))
        assert not stands_in(place, memory, "1")


@pytest.mark.parametrize(("stored", "state"), [("1", "unknown"), ("0", "outdated")])
async def test_a_released_board_is_not_believed_to_be_up_to_date(
    tmp_path: Path, stored: str, state: str
) -> None:
    """It was set aside by an attempt that failed behind the reading of its version."""
    settings = _settings(tmp_path)
    with open_journal(settings.state_dir) as journal:
        journal.put(NameRecord("OTA", "a", MAC))
        journal.put(BoardRecord(MAC, version=stored, version_read_at=utc_now()))
        journal.set_attempt_state(
            MAC, settings.target.key, "set_aside", error=OtaError("link-lost")
        )
        service = await FleetService.open(settings)
        try:
            await _placed(service)
            service._engine.boards["a"].shown.state = "set_aside"
            await service.command("release", {"all": True})
            assert service.status()["boards"]["a"]["state"] == state
        finally:
            await shutdown()


def test_a_board_that_was_moved_is_the_one_at_whose_port_it_was_seen_last(tmp_path: Path) -> None:
    """What is at its old port now is closed until release, and does not take its place."""
    old, new = tmp_path / "old", tmp_path / "new"
    with open_journal(tmp_path / "state") as journal:
        memory = Memory(journal, "OTA")
        entries = [BoardEntry("old", port=str(old)), BoardEntry("new", port=str(new))]
        for entry in entries:
            Path(str(entry.port)).touch()
            journal.learn_port(str(entry.port), MAC)
            memory.learn_place(entry.name, str(entry.port), None, MAC)
        found = without_twins([place_entry(entry, [], memory) for entry in entries], memory)
        assert [place.kind for place in found] == ["wrong_board", "here"]
        assert found[0].error is not None
        assert found[0].error.code == "duplicate-board"


@pytest.mark.parametrize(
    ("location", "serial", "kind"),
    [
        ("1-2:1.0", MAC.upper(), "here"),
        ("1-3:1.0", MAC.upper(), "absent"),
        ("1-2:1.0", "24:0A:C4:00:00:99", "absent"),
    ],
    ids=["renamed", "moved", "another"],
)
def test_a_board_whose_own_usb_port_came_back_by_another_name(
    tmp_path: Path, location: str, serial: str, kind: str
) -> None:
    """It is followed within its USB socket; what somebody has plugged in elsewhere is not."""
    port = str(tmp_path / "ttyACM0")
    info = PortInfo("/dev/ttyACM7", None, location, 0x303A, 0x1001, serial)
    with open_journal(tmp_path / "state") as journal:
        journal.learn_port(port, MAC, location="1-2:1.0", serial=MAC.upper())
        place = place_entry(BoardEntry("a", port=port), [info], Memory(journal, "OTA"))
    assert (place.kind, place.port) == (kind, info.device if kind == "here" else port)


async def test_what_another_program_has_written_to_a_board_is_shown_as_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A living service forgets what it knew of a board that `esp32-ota flash` or `restore` has
    rewritten, which it can only learn from what they leave behind; not of one that it has looked
    at since then, also where the clock was set back."""
    monkeypatch.setattr(engine, "POLL_S", 0.02)
    tomorrow_s = utc_now().timestamp() + 86400
    with monkeypatch.context() as jumped:
        jumped.setattr(os, "utime", partial(os.utime, times=(tomorrow_s, tomorrow_s)))
        mark_rewritten(OTHER)
    settings = _settings(tmp_path)
    with open_journal(settings.state_dir) as journal:
        for name, mac, at in (("a", MAC, PORT), ("b", OTHER, "/dev/zero")):
            journal.put(NameRecord("OTA", name, mac))
            seen = BoardRecord(mac, version="1", version_read_at=utc_now(), port=at)
            journal.put(replace(seen, rewritten=rewrite_mark(mac)))
        entries = (BoardEntry("a", port=PORT), BoardEntry("b", port="/dev/zero"))
        service = await FleetService.open(replace(settings, boards=entries))

        def shown(name: str) -> tuple[str, str | None]:
            board = service.status()["boards"][name]
            return board["state"], board.get("version")

        try:
            await _placed(service)
            assert shown("a") == shown("b") == ("up_to_date", "1")
            mark_rewritten(MAC)
            async with asyncio.timeout(20):
                while shown("a") != ("unknown", None):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # the status has no event to await
            assert shown("b") == ("up_to_date", "1")
            known = journal.board(MAC)
            assert known is not None
            assert (known.version, known.port) == (None, PORT)
        finally:
            await shutdown()
