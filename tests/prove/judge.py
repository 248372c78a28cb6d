# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of a board: does it boot, what, and is every key still there?

Judged by the simulator's boot model and by the tests' own NVS code with the rules of all versions
of ESP-IDF, which share nothing with `formats/`.
"""

from __future__ import annotations

from dataclasses import dataclass

from esp32_sim.flash import NorFlash
from esp32_sim.imagecheck import BadImageError, verify_app
from esp32_sim.layouts import Layout
from tests.formats.nvs_firmware import ALL_RULES, Rules
from tests.prove.bootloader import Bootloader
from tests.prove.cells import Cells
from tests.prove.images import Firmware, named
from tests.prove.nvs_init import Key, NvsState, Value, nvs_of, starts_by

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


def keys_of(state: NvsState) -> dict[Key, Value]:
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
    stored (None: none); before: the NVS partition as it was; spares: what stood in the slots.
    early: a version that must not be stored while the old firmware, the first of `boots`, boots.
    staging: the slot in which nothing new may boot, whatever otadata may say of it later.
    """

    layout: Layout
    bootloader: Bootloader
    before: bytes
    boots: tuple[Firmware, ...]
    tags: tuple[object, ...]
    spares: dict[str, bytes]
    early: str | None = None
    staging: str | None = None

    def problems(
        self, cells: Cells, *, own: bool = False, rules: tuple[Rules, ...] = ALL_RULES
    ) -> list[Problem]:
        """All that is wrong with a board whose power failed with this flash.

        own: while the board itself was writing, so that its bootloader may have gone back.
        rules: as in `nvs`.
        """
        found = [*self._boot(cells), *self._slots(cells), *self.nvs(cells, rules)]
        if self.early is not None and not own and stored(cells, self.layout) == self.early:
            firmware, _ = running(cells, self.bootloader)
            if firmware == self.boots[0]:
                found.append(Problem("keys", "the old firmware runs with the new version"))
        return found

    def _elsewhere(self, key: Key) -> list[Value | None]:
        """A key as any version read it before: one that another version had lost by itself may
        be there all the same."""
        return [state.items.get(key) for one in ALL_RULES for state in starts_by(self.before, one)]

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
            else:
                if label == self.staging:
                    found.append(Problem("lost", f"what is staged in {label} boots"))
        return found

    def nvs(
        self, cells: Cells, rules: tuple[Rules, ...] = ALL_RULES, *, any_tag: bool = False
    ) -> list[Problem]:
        """NVS by the rules of versions, at two starts in a row.

        rules: those of the app that has started with this NVS, and repaired it by them; all where
        none has. any_tag: the version is looked at elsewhere. What a version did not start with
        before, or read otherwise at its second start, is not asked of it.
        """
        found: dict[str, None] = {}
        region = region_of(cells, self.layout)
        for one in rules:
            before = starts_by(self.before, one)
            if any(state.error for state in before):
                continue
            for number, state in enumerate(starts_by(region, one), 1):
                for words in self._nvs_start(before, state, any_tag):
                    found.setdefault(f"{words} (ESP-IDF {one.name}, start {number})")
        return [Problem("keys", words) for words in found]

    def _nvs_start(
        self, before: tuple[NvsState, NvsState], state: NvsState, any_tag: bool
    ) -> list[str]:
        if state.error is not None:
            return [f"NVS does not start: {state.error}"]
        found = []
        now, (first, second) = keys_of(state), map(keys_of, before)
        if now != first:
            changed = sorted(
                key
                for key in first | second | now
                if now.get(key) not in (first.get(key), second.get(key))
                and not (key not in first | second and now.get(key) in self._elsewhere(key))
            )
            if changed:
                found.append(f"{len(changed)} keys changed, such as {changed[0]}")
        if not any_tag and state.items.get(VERSION) not in self.tags:
            found.append(f"the version is {state.items.get(VERSION)}")
        return found


def stored(cells: Cells, layout: Layout) -> str | None:
    """The version in NVS."""
    return nvs_of(region_of(cells, layout)).string(*VERSION)
