# SPDX-License-Identifier: GPL-3.0-or-later
"""Which port each board is at, without opening any.

The rules are the contract's ("Which boards are touched"): opening a port can restart what is
attached to it, and a usual serial bridge may belong to a lidar or a motor controller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from ota_service.errors import OtaError
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.journal_rows import PortRecord
from ota_service.fleet.memory import Memory
from ota_service.fleet.settings import BoardEntry
from ota_service.link.ownership import duplicate
from ota_service.link.ports import (
    PortInfo,
    describe,
    exists,
    find_mac,
    is_simulated,
    is_url,
    ports_beside,
    shown,
)

Kind = Literal["here", "absent", "candidate", "not_ours", "wrong_board"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a board is, or why its port stays closed.

    name: as in `boards`, else the MAC, else the port. port: to open; None where there is none.
    info: what is known of a port without opening it; None for urls.
    """

    name: str
    kind: Kind
    port: str | None = None
    info: PortInfo | None = None
    mac: str | None = None
    error: OtaError | None = None


def place_entry(entry: BoardEntry, infos: Iterable[PortInfo], memory: Memory) -> Place:
    """Where a board of `boards` is now."""
    if entry.port is not None:
        return _at_port(entry.name, entry.port, infos, memory)
    assert entry.mac is not None
    return _of_mac(entry.name, entry.mac, infos, memory)


def _at_port(name: str, port: str, infos: Iterable[PortInfo], memory: Memory) -> Place:
    if not exists(port):
        moved = _renamed(name, port, infos, memory)
        error = OtaError("port-missing", f"The port {shown(port)} does not exist.", board=name)
        return moved or Place(name, "absent", port, error=error)
    info = describe(port)
    known = memory.journal.get(PortRecord, port=port)
    if known is not None and info is not None and info.mac not in (None, known.mac):
        moved = _renamed(name, port, infos, memory)
        if moved is not None:
            return moved
    if known is not None and known.wrong_board is not None:
        return Place(name, "wrong_board", port, info, error=_wrong(name, known.wrong_board))
    if known is not None and info is not None:
        before = (known.usb_location, known.usb_serial)
        if before != (info.location, info.serial_number):
            why = f"The USB device at {shown(port)} is another one than before."
            return Place(name, "wrong_board", port, info, error=_wrong(name, why))
    return Place(name, "here", port, info, mac=known.mac if known is not None else None)


def _wrong(name: str, why: str) -> OtaError:
    return OtaError("wrong-board", why, board=name)


def _renamed(name: str, port: str, infos: Iterable[PortInfo], memory: Memory) -> Place | None:
    """Where a board is whose own USB port came back by another name, in the same socket."""
    native = [info for info in _where_it_may_be(port, infos) if info.mac is not None]
    known = memory.journal.get(PortRecord, port=port) if native else None
    found = find_mac(known.mac, native) if known is not None else None
    if known is None or found is None or found.location != known.usb_location:
        return None
    return Place(name, "here", found.device, found, known.mac)


def _where_it_may_be(port: str | None, infos: Iterable[PortInfo]) -> Iterable[PortInfo]:
    """The ports to look for a board on that was at `port`."""
    beside = ports_beside(port) if port is not None and is_simulated(port) else ()
    return [*infos, *beside]


def _of_mac(name: str, mac: str, infos: Iterable[PortInfo], memory: Memory) -> Place:
    record = memory.journal.board(mac)
    if record is not None and record.port is not None and exists(record.port):
        info = describe(record.port)
        same = info is None or (record.usb_location, record.usb_serial) == (
            info.location,
            info.serial_number,
        )
        if same:
            return Place(name, "here", record.port, info, mac)
    found = find_mac(mac, _where_it_may_be(record.port if record is not None else None, infos))
    if found is not None:
        return Place(name, "here", found.device, found, mac)
    error = OtaError(
        "no-board",
        f"The board {mac} is not attached where it was last seen, nor on a native USB port.",
        board=name,
        remedy="Attach the board; if it is on a generic USB bridge, call update with probe once.",
    )
    return Place(name, "absent", mac=mac, error=error)


def without_twins(places: list[Place], memory: Memory) -> list[Place]:
    """Leave one board closed under all of its names but one, as far as that is known beforehand.

    The one is that at whose port it was seen last, so that no other one writes it in turn.
    """
    by_mac: dict[str, list[Place]] = {}
    for place in places:
        if place.kind == "here" and place.mac is not None:
            by_mac.setdefault(place.mac, []).append(place)
    closed: dict[str, OtaError] = {}
    for mac, same in by_mac.items():
        if len(same) > 1:
            record = memory.journal.board(mac)
            seen_at = record.port if record is not None else None
            one = next((place for place in same if place.port == seen_at), same[0])
            others = [place.name for place in same if place is not one]
            closed |= {name: duplicate(one.name, name, mac) for name in others}
    return [
        replace(place, kind="wrong_board", error=closed[place.name])
        if place.name in closed
        else place
        for place in places
    ]


def place_found(
    infos: Iterable[PortInfo],
    memory: Memory,
    *,
    by_person: bool,
    probe: bool = False,
    other_project: bool = False,
) -> list[Place]:
    """The boards of a service without `boards`, at ports that no other service has.

    by_person: a person called update, which may open generic bridges for the first time.
    probe: and any other serial port as well. other_project: also boards that were found not to be
    ours.
    """
    places = []
    for info in infos:
        record = memory.board_at(info)
        mac = record.mac if record is not None else info.mac
        name = mac or info.device
        other = None if other_project else memory.not_ours(info)
        if other is not None:
            error = OtaError("other-project", other.reason, board=name)
            places.append(Place(name, "not_ours", info.device, info, mac, error))
        elif probe or _may_be_opened(info, memory, by_person):
            places.append(Place(name, "here", info.device, info, mac))
        elif info.bridge is not None:
            places.append(Place(name, "candidate", info.device, info, mac))
    return places


def _may_be_opened(info: PortInfo, memory: Memory, by_person: bool) -> bool:
    return info.native or memory.is_our_bridge(info) or (by_person and info.bridge is not None)


def stands_in(place: Place, memory: Memory, version: str) -> bool:
    """Whether the journal proves that the board needs no reading (contract).

    An entry newer than the appearance of the port's device stands in for reading the board;
    ports without a device file are always read.
    """
    if place.mac is None:
        return False
    record = memory.journal.board(place.mac)
    if record is None or record.version != version or record.version_read_at is None:
        return False
    if record.unchecked:  # the robot is asked behind a look
        return False
    return is_fresh(place, record.version_read_at)


def is_fresh(place: Place, moment: datetime | None) -> bool:
    """Whether what was seen of a board at a moment still holds: its port's device has been there
    since. Ports without a device file prove nothing."""
    if place.port is None or place.info is None or is_url(place.port) or moment is None:
        return False
    appeared_at = place.info.appeared_at
    # An entry from the future comes from a clock that was set back: it proves nothing.
    return appeared_at is not None and appeared_at < moment <= utc_now()
