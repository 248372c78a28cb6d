# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of a board: does it boot, what, and is every key still there?

Judged by the simulator's boot model and NVS code, which share nothing with `formats/`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ota_service.sim.flash import NorFlash
from ota_service.sim.imagecheck import BadImageError, verify_app
from ota_service.sim.layouts import Layout
from ota_service.sim.nvsmodel import NvsState
from tests.prove.bootloader import Bootloader
from tests.prove.cells import Cells
from tests.prove.images import Firmware, named
from tests.prove.nvs_init import nvs_of

Key = tuple[str, str]
VERSION: Key = ("VIAM_NS", "OTA_VERSION")


@dataclass(frozen=True)
class Problem:
    """kind: lost (does not boot as it should), keys, or converge."""

    kind: str
    text: str


def region_of(cells: Cells, layout: Layout) -> bytes:
    """The NVS partition's bytes."""
    store = layout.find("nvs")
    return cells.read(store.offset, store.size)


def keys_of(state: NvsState) -> dict[Key, tuple[str, bytes]]:
    """Every key but the version."""
    return {key: value for key, value in state.items.items() if key != VERSION}


def running(cells: Cells, bootloader: Bootloader) -> tuple[Firmware | None, str]:
    """What a copy of this board boots; a word for it."""
    copy = cells.copy()
    result = bootloader.boot(copy)
    if result.image is None:
        return None, result.error
    firmware = named(copy.read(result.image.offset, result.image.size))
    return firmware, f"{firmware.name if firmware else 'an unknown image'} in {result.slot}"


@dataclass(frozen=True)
class Judge:
    """Knows what has to stay. boots: the firmwares that may run; tags: the versions that may be
    stored (None: none); keys: every other key and its value; spares: what stood in the slots.
    early: a version that must not be stored while the old firmware, the first of `boots`, boots.
    """

    layout: Layout
    bootloader: Bootloader
    keys: dict[Key, tuple[str, bytes]]
    boots: tuple[Firmware, ...]
    tags: tuple[object, ...]
    spares: dict[str, bytes]
    early: str | None = None

    def problems(self, cells: Cells, *, own: bool = False) -> list[Problem]:
        """All that is wrong with a board whose power failed with this flash.

        own: while the board itself was writing, so that its bootloader may have gone back.
        """
        found = [*self._boot(cells), *self._slots(cells), *self.nvs(cells)]
        if self.early is not None and not own and stored(cells, self.layout) == self.early:
            firmware, _ = running(cells, self.bootloader)
            if firmware == self.boots[0]:
                found.append(Problem("keys", "the old firmware runs with the new version"))
        return found

    def _boot(self, cells: Cells) -> list[Problem]:
        after = cells.copy()
        # Power may fail again and again: each further pass may write.
        for passed in range(3 if self.bootloader.rollback else 2):
            result = self.bootloader.boot(after)
            if result.image is None:
                return [Problem("lost", f"pass {passed}: boots nothing: {result.error}")]
            firmware = named(after.read(result.image.offset, result.image.size))
            if firmware not in self.boots:
                name = firmware.name if firmware else "an unknown image"
                return [Problem("lost", f"pass {passed}: boots {name} in {result.slot}")]
            if not result.writes:
                break
        return []

    def _slots(self, cells: Cells) -> list[Problem]:
        """A slot that is being written must not look like an image."""
        found = []
        for label, before in self.spares.items():
            at = self.layout.find(label)
            head = cells.read(at.offset, 1)
            if head != b"\xe9" or cells.read(at.offset, len(before)) == before:
                continue
            try:
                verify_app(NorFlash(cells), at.offset, at.size)  # type: ignore[arg-type]
            except BadImageError as error:
                found.append(Problem("lost", f"{label} looks like an image: {error}"))
        return found

    def nvs(self, cells: Cells, *, any_tag: bool = False) -> list[Problem]:
        """NVS by the firmware's own rules; any_tag: the version is looked at elsewhere."""
        state = nvs_of(region_of(cells, self.layout))
        if state.error is not None:
            return [Problem("keys", f"NVS does not start: {state.error}")]
        found = []
        if state.free_pages < 1:
            found.append(Problem("keys", "NVS has no free page"))
        now = keys_of(state)
        changed = sorted(key for key in self.keys | now if self.keys.get(key) != now.get(key))
        if changed:
            found.append(Problem("keys", f"{len(changed)} keys changed, such as {changed[0]}"))
        if not any_tag and state.items.get(VERSION) not in self.tags:
            found.append(Problem("keys", f"the version is {state.items.get(VERSION)}"))
        return found


def stored(cells: Cells, layout: Layout) -> str | None:
    """The version in NVS."""
    return nvs_of(region_of(cells, layout)).string(*VERSION)
