# SPDX-License-Identifier: GPL-3.0-or-later
"""Which boards a service has, and where they are: from its configuration and from the ports."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ota_service.firmware.check import ManifestFile
from ota_service.firmware.target import Target
from ota_service.fleet import policy
from ota_service.fleet.around import Around
from ota_service.fleet.assignment import Assignment, Known
from ota_service.fleet.attempt import mac_at
from ota_service.fleet.board import Board
from ota_service.fleet.board_state import BoardState
from ota_service.fleet.groups import Groups
from ota_service.fleet.places import Place, place_entry, place_found, without_twins
from ota_service.fleet.settings import BoardEntry, Settings
from ota_service.fleet.sight import Sight
from ota_service.link.ownership import SERVICE_CLAIMS
from ota_service.link.ports import PortInfo, canonical, list_ports


class Roster:
    """The boards of one service by their names. retired: those that it had, until they are let go.
    assignment: what the manifest at the service's target gives them, where it is known to be one.
    """

    def __init__(self, around: Around, groups: Groups) -> None:
        self.boards: dict[str, Board] = {}
        self.retired: set[Board] = set()
        self.assignment: Assignment | None = None
        self._around, self._groups = around, groups

    @property
    def keys(self) -> set[str]:
        """The keys of all targets."""
        return {board.target.key for board in self.boards.values()} | self.service_keys

    @property
    def service_keys(self) -> set[str]:
        """Those of the service's own target, and of the images in the manifest that it is."""
        of_images = self.assignment.keys if self.assignment is not None else set()
        return {self._around.settings.target.key} | of_images

    def adopt(self, settings: Settings) -> list[str]:
        """Take the settings; returns the boards that are new or have another target now."""
        old, self.boards = self.boards, {}
        changed = []
        by_place = {_where(board.shown.entry): board for board in old.values()}
        self._adopt_assignment(settings, by_place)
        if settings.boards is None:
            self.boards = {n: b for n, b in old.items() if b.shown.entry is None}
            changed = [n for n, b in self.boards.items() if self._aim(b, self._target(settings, n))]
        for entry in settings.boards or ():
            board = by_place.pop(_where(entry), None)
            target = self._target(settings, entry.name, entry)
            if board is None:
                board = Board(entry.name, entry, target, self._around)
                changed.append(entry.name)
            else:  # under another name, perhaps
                board.post(partial(Sight.adopted, name=entry.name, entry=entry))
                changed += [entry.name] if self._aim(board, target) else []
            self.boards[entry.name] = board
        for board in set(old.values()) - set(self.boards.values()):
            self.retired.add(board)
            self._around.spawn(self._retire(board))
        return changed

    def _adopt_assignment(
        self, settings: Settings, by_place: Mapping[tuple[str | None, str | None] | None, Board]
    ) -> None:
        """A manifest stays what it is, on boards that may have other names now."""
        if self.assignment is None or self.assignment.base.key != settings.target.key:
            self.assignment = None
            return
        known = [_known(e.name, by_place.get(_where(e))) for e in settings.boards or ()
                 if not e.is_pinned]  # fmt: skip
        if settings.boards is None:
            known = [_known(b.shown.name, b) for b in by_place.values() if b.shown.entry is None]
        self.assignment = replace(self.assignment, base=settings.target).of(known)

    def assign(
        self, base: Target, found: ManifestFile, looked: Collection[Board] = ()
    ) -> Assignment:
        """Give each board the target of its image. base: the service's, at whose url the manifest
        is. looked: boards that were looked at just now."""
        self.assignment = Assignment(base, found.place, found.manifest)
        self._around.firmwares.named = {
            target.key: (found.manifest, name) for name, target in self.assignment.targets.items()
        }
        return self.reassign(looked) or self.assignment

    def reassign(self, looked: Collection[Board] = ()) -> Assignment | None:
        """The same by what is known of the boards by now."""
        if self.assignment is not None:
            boards = [board for board in self.boards.values() if not board.shown.is_pinned]
            known = [_known(b.shown.name, b, looked=b in looked) for b in boards]
            self.assignment = self.assignment.of(known)
        for name, board in self.boards.items():
            self._aim(board, self._target(self._around.settings, name, board.shown.entry))
        return self.assignment

    def _target(self, settings: Settings, name: str, entry: BoardEntry | None = None) -> Target:
        """What a board is to run: its own target where it is pinned, that of its image where the
        service's is a manifest, else the service's."""
        own, assignment = effective_target(settings, entry), self.assignment
        pinned = entry is not None and entry.is_pinned
        if pinned or assignment is None or name not in assignment.images:
            return own
        image = assignment.targets[assignment.images[name]]
        return own.pinned(url=image.url, version=image.version, sha256=image.sha256)

    def _aim(self, board: Board, target: Target) -> bool:
        """Give a board its target; whether it is another one. A group that is in the middle of its
        switch first ends."""
        changed = board.target.key != target.key
        self._groups.later(board, partial(_aim, board, target))
        return changed

    async def _retire(self, board: Board) -> None:
        await self._groups.let_go(board)
        await board.retire()
        self.retired.discard(board)

    def of(self, place: Place) -> Board | None:
        """The board at a place, as far as the service has it."""
        board = self.boards.get(place.name)
        if board is None and self._around.settings.boards is None:
            board = next((b for b in self.boards.values() if _may_be_at(b.shown, place)), None)
        return board

    async def find(
        self, names: Sequence[str] | None, permits: policy.Permits, *, probe: bool, by_person: bool
    ) -> dict[Board, Place]:
        """Where the boards of a run are; opens no port but what `probe` opens."""
        places = await asyncio.to_thread(self.places, permits, by_person=by_person, probe=probe)
        found = {}
        for place in places:
            board = self.of(place) or self.take(place)
            meant = names is None or any(
                name in (place.name, place.port, place.mac) or board.answers_to(name)
                for name in names
            )
            if meant:
                found[board] = place
        if probe:
            found |= await self._probe(found)
        return found

    def places(
        self, permits: policy.Permits, *, by_person: bool = False, probe: bool = False
    ) -> list[Place]:
        """Where boards are now, in a thread; opens no port."""
        settings, memory = self._around.settings, self._around.memory
        infos = list_ports()
        if settings.boards is not None:
            return without_twins(
                [place_entry(entry, infos, memory) for entry in settings.boards], memory
            )
        ours = (None, settings.service)
        if settings.probes:  # bridges, and nothing that is no candidate
            by_person, probe = by_person and probe, False
        return place_found(
            [info for info in infos if SERVICE_CLAIMS.owner(info.device) in ours],
            memory,
            by_person=by_person,
            probe=probe,
            other_project="other-project" in permits.override,
        )

    def take(self, place: Place) -> Board:
        """A board that was found by itself."""
        target = self._around.settings.target
        board = self.boards[place.name] = Board(place.name, None, target, self._around)
        return board

    async def _probe(self, found: Mapping[Board, Place]) -> dict[Board, Place]:
        """Look for boards known by their MAC on ports that nothing but a person's word opens."""
        lost = {
            board.shown.entry.mac: board
            for board, place in found.items()
            if board.shown.entry is not None and place.kind == "absent"
        }
        lost.pop(None, None)
        if not lost:
            return {}
        used = {canonical(b.shown.port) for b in self.boards.values() if b.shown.port is not None}

        def candidates() -> list[PortInfo]:
            return [
                info
                for info in list_ports()
                if info.device not in used and SERVICE_CLAIMS.owner(info.device) is None
            ]

        again = {}
        for info in await asyncio.to_thread(candidates):
            mac = await asyncio.to_thread(mac_at, info.device, self._around.owner)
            board = lost.get(mac) if mac is not None else None
            if board is not None:
                again[board] = Place(board.shown.name, "here", info.device, info, mac)
                self._around.log.info("%s: found at %s by probing", board.shown.name, info.device)
        return again

    def renamed(self, about: BoardState, mac: str) -> None:
        """A board that is not in `boards` goes by its MAC once that is known."""
        board = self.boards.get(about.name)
        if about.entry is not None or about.name == mac or board is None:
            return
        del self.boards[about.name]
        about.name = mac
        self.boards[mac] = board


def _may_be_at(about: BoardState, place: Place) -> bool:
    """Whether a board is at a place that goes by another name: at its port, where it is not known
    to be another USB device by now. An app with a USB stack of its own hides its chip's MAC."""
    if about.port != place.port:
        return False
    hidden = place.mac is None and place.info is not None and place.info.native
    return about.mac is None or about.mac == place.mac or hidden


def effective_target(settings: Settings, entry: BoardEntry | None) -> Target:
    """A board's own target where it is pinned, else the service's."""
    if entry is None:
        return settings.target
    return settings.target.pinned(
        url=entry.url, version=entry.version, sha256=entry.sha256, headers=entry.headers
    )


def _known(name: str, board: Board | None, *, looked: bool = False) -> Known:
    """What is known of what runs on a board. looked: just now, so there is no more to be had."""
    about = board.shown if board is not None else BoardState(name)
    none = "" if looked else None
    return Known(name, about.running.get("project") or none, about.chip or none)


def _aim(board: Board, target: Target) -> None:
    changed = board.target.key != target.key
    board.target = target  # also the same one may be had with another token
    if changed:
        board.tell("retarget", value=target)


def _where(entry: BoardEntry | None) -> tuple[str | None, str | None] | None:
    """What a board of `boards` is known by, whatever it is called."""
    if entry is None:
        return None
    return entry.mac, canonical(entry.port) if entry.port is not None else None
