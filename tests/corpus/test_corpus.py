# SPDX-License-Identifier: GPL-3.0-or-later
"""Every bad input of the corpus gets its error, in words; nothing is opened or written for it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from esp32_sim.process import SimBoard
from ota_service.errors import ERRORS, OtaError
from ota_service.firmware.check import check_firmware
from ota_service.module.config import parse_config
from ota_service.update.facts import BoardFacts
from ota_service.update.inspect import inspect
from ota_service.update.plan import plan
from tests.corpus import make
from tests.faults.desk import Desk
from tests.support.memory_board import Firmware, MemoryBoard
from tests.support.memory_flash import MemoryFlash

FILES = list(make.files())
BOARDS = list(make.boards())
CONFIGS = list(make.configs())


def named(cases: list[make.File] | list[make.Board] | list[make.Config]) -> list[str]:
    """The ids of test cases."""
    return [case.name for case in cases]


def readable(error: OtaError) -> None:
    """Assert that an error speaks to a person: a sentence, a remedy, no traces of code."""
    assert error.code in ERRORS
    for text in (error.message, error.remedy):
        assert text, error
        assert text.rstrip()[-1] in ".!?)", text
        assert text.isprintable(), text
        assert "Error(" not in text, text
        assert "Traceback" not in text, text


def test_the_corpus_is_large_and_always_the_same() -> None:
    """At least 150 cases, with names of their own, and the same bytes at each run."""
    assert len(FILES) + len(BOARDS) + len(CONFIGS) >= 150
    for cases in (FILES, BOARDS, CONFIGS):
        names = named(cases)
        assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    again = {file.name: hashlib.sha256(file.data).digest() for file in make.files()}
    assert again == {file.name: hashlib.sha256(file.data).digest() for file in FILES}


@pytest.fixture(scope="module")
def board() -> MemoryBoard:
    """A board with the OTA guide's layout."""
    return MemoryBoard(bytearray(BOARDS[0].flash()))


@pytest.mark.parametrize("file", FILES, ids=named(FILES))
def test_file(file: make.File, board: MemoryBoard) -> None:
    """A file is accepted or gets its code: from its bytes alone, or for the board in question."""
    code: str | None = None
    try:
        firmware = check_firmware(file.data, sha256=file.sha256)
    except OtaError as error:
        assert not file.board, f"told without a board: {error}"
        readable(error)
        code, message = error.code, error.message
    else:
        assert file.data.startswith(firmware.data)
        _, made = board.plan(Firmware.of(firmware.data), "9.9.9")
        code, message = made.code, made.reason
        if made.error is not None:
            assert file.board, f"not told by the file: {made.error}"
            readable(made.error)
    assert code == file.code, message
    assert file.says.lower() in message.lower()


@pytest.mark.parametrize("case", BOARDS, ids=named(BOARDS))
def test_board(case: make.Board) -> None:
    """A board is planned for, or refused with its code; looking at it writes nothing."""
    found_board = MemoryBoard(bytearray(case.flash()))
    chip = dataclasses.replace(found_board.chip, **case.chip)
    firmware = Firmware.of(make.good())
    flash = MemoryFlash(found_board.data)
    found = inspect(flash, chip, facts=BoardFacts(), firmware=firmware.known, look=None)
    made = plan(found, version="9.9.9", image=firmware.parsed, facts=BoardFacts())
    assert flash.trace == []
    assert made.code == case.code, (made.reason, case.code)
    if case.code is None:
        assert made.action == "write"
        after = found_board.carry_out(made, firmware)
        assert after.trace
        assert found_board.boot().offset == made.slot.offset if made.slot else None
        return
    assert made.error is not None
    readable(made.error)
    assert case.says in made.error.message


@pytest.mark.parametrize("case", CONFIGS, ids=named(CONFIGS))
def test_config(case: make.Config) -> None:
    """A configuration is refused, by the name of what is wrong."""
    with pytest.raises(OtaError) as caught:
        parse_config(case.attributes)
    assert caught.value.code == "config-invalid"
    assert case.says in caught.value.message
    assert "hunter2" not in str(caught.value)


# Some of each kind, over HTTP and with a board on its port.
OVER_HTTP = (
    *("empty", "HTML", "JSON", "gzip", "zip", "ELF", "16 MiB of zeros", "twice", "bootloader"),
    *("Merged Binary, bootloader at 0x1000, chip 0", "cut after 288 bytes", "sent as text"),
    *("another digest configured", "SHA-256, byte 0", "ESP8266 image", "17 segments"),
)
ON_THE_BOARD = ("chip id 9", "a block larger than the slot", "up to revision 100")


@pytest.mark.slow
async def test_bad_files_over_http_open_no_port(tmp_path: Path) -> None:
    """What the bytes tell is told before a board is touched; what the board tells, before a
    byte is written."""
    by_name = {file.name: file for file in FILES}
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        control = desk.board().control
        before = await desk.look()
        control.start_trace()
        opened = control.counters().get("opened", 0)
        for index, name in enumerate((*OVER_HTTP, *ON_THE_BOARD)):
            file = by_name[name]
            url = desk.server.put(f"/{index}.bin", file.data)
            status = await desk.updated(f"9.{index}", url=url, sha256=file.sha256)
            assert status["run"]["outcome"] == "failed", (name, status)
            if name in OVER_HTTP:
                assert status["error"]["code"] == file.code, (name, status)
                assert control.counters().get("opened", 0) == opened, name
            else:
                board = status["boards"]["a"]
                assert (board["state"], board["error"]["code"]) == ("unsupported", file.code)
        assert [op for op in control.stop_trace() if op["who"] == "loader"] == []
        assert await desk.look() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [("flash-encrypted", {"flash_crypt_cnt": 1}), ("secure-boot", {"secure_boot_v1": True})],
)
async def test_secured_boards_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, config: dict[str, object]
) -> None:
    """By the real fuses, over the real link."""
    async with Desk.start(tmp_path, [SimBoard("guide", config=config)]) as desk:
        control = desk.board().control
        control.start_trace()
        status = await desk.updated("1.1.0")
        board = status["boards"]["a"]
        assert (board["state"], board["error"]["code"]) == ("unsupported", name), board
        assert [op for op in control.stop_trace() if op["who"] == "loader"] == []
        control.wait_for("app", since=len(control.events()) - 4)
