# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards in memory that `flash` and `restore` write, cut anywhere, with the product's own steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.bootmodel import boot
from esp32_sim.layouts import LAYOUTS
from esp32_sim.nvsmodel import nvs_init
from ota_service.formats.flashops import FlashOp
from ota_service.link.chip import ChipInfo
from ota_service.link.flash import Protection
from ota_service.update import backup_run, flash_merged
from ota_service.update.backup_files import read_backup
from ota_service.update.backup_run import RestoreJob
from ota_service.update.flash_merged import FlashJob
from ota_service.update.flash_plan import Before, FlashPlan, check_merged
from ota_service.update.restore import RestorePlan
from ota_service.update.rewrite import rewrite
from tests.prove.cells import Cells
from tests.prove.tears import tears_of, torn
from tests.support.memory_flash import MemoryFlash, PowerCut

MIB = 1 << 20
MAC = "24:0a:c4:00:00:01"
OTHER_MAC = "24:0a:c4:00:00:02"


def chip(flash_bytes: int = 4 * MIB, **changes: Any) -> ChipInfo:
    """A plain ESP32."""
    values = {"name": "ESP32", "chip_id": 0, "mac": MAC, "revision": 301, **changes}
    return ChipInfo(flash_bytes=flash_bytes, **values)


class MemoryLink(MemoryFlash):
    """A board in download mode: implements what a flash and a restore ask of a link."""

    def __init__(
        self, data: bytes | bytearray, *, cut_at: int | None = None, mac: str = MAC
    ) -> None:
        super().__init__(data, cut_at=cut_at)
        self.chip = chip(len(data), mac=mac)

    def protection(self) -> Protection:
        """No protection bit is set."""
        return Protection(0, len(self.data))


class Hooks:
    """Nobody stops it. kept_at: what was told of the backup."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.kept_at: Path | None = None
        self.plan: Any = None

    def identified(self, mac: str) -> None:
        pass

    def planned(self, *args: ChipInfo | Before | FlashPlan | RestorePlan) -> None:
        self.plan = args[-1]

    def kept(self, folder: Path) -> None:
        assert not {"writing", "verifying"} & set(self.phases)
        self.kept_at = folder

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        assert 0 <= bytes_done <= bytes_total

    def cancelled(self) -> bool:
        return False

    def stopping(self) -> bool:
        return False


_checked = lru_cache(check_merged)


def flash(link: Any, data: bytes, state: Path, *, keep: bool) -> flash_merged.FlashOutcome:
    """What `flash` does up to the restart; the board's start is then taken for good."""
    job = FlashJob("a", _checked(data), keep_nvs=keep, state_dir=state)
    outcome = flash_merged._prepare(link, job, Hooks())
    rewrite(link, outcome.plan, Hooks(), outcome, again="")
    return outcome


def restore(link: Any, folder: Path, state: Path) -> backup_run.RestoreOutcome:
    """What `restore` does up to the restart."""
    job = RestoreJob("a", read_backup(folder), folder, state_dir=state, confirm=link.chip.mac)
    outcome = backup_run._prepare(link, job, Hooks())
    if outcome.plan.needed:
        rewrite(link, outcome.plan, Hooks(), outcome, again="")
    return outcome


def cuts(trace: Sequence[FlashOp]) -> Iterator[tuple[int, str]]:
    """Each operation at which power can fail: its number, and how it is torn ("": not begun).

    One way of each operation, so that all of them are met in turn.
    """
    for index, op in enumerate(trace):
        yield index, ""
        ways = tears_of(op)
        yield index, ways[index % len(ways)]


def cut(act: Callable[[Any], object], start: bytes, at: int, how: str, op: FlashOp) -> bytearray:
    """The flash that `act`, given a link, leaves where its power fails at an operation."""
    link = MemoryLink(start, cut_at=at)
    with pytest.raises(PowerCut):
        act(link)
    if how:
        for left in torn(Cells(bytes(link.data)), op, how, random.Random(at)):
            return bytearray(left.read(0, len(left)))
    return link.data


def keys(raw: bytes) -> dict[tuple[str, str], Any]:
    """What the simulator's reader finds in an NVS partition."""
    state = nvs_init(bytearray(raw))
    assert state.error is None
    return dict(state.items)


def nvs_of(data: bytes | bytearray, layout: str) -> bytes:
    """The nvs partition as it stands in flash."""
    part = LAYOUTS[layout].find("nvs")
    return bytes(data[part.offset : part.end])


def boots(data: bytes | bytearray) -> str | None:
    """The label of the slot that the simulator's bootloader starts."""
    return boot(bytearray(data)).slot
