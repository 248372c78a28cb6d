# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's knowledge of boards: what is on them, and where they are attached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ota_service.fleet.journal_rows import (
    BoardRecord,
    BridgeRecord,
    LineRecord,
    NameRecord,
    NotOursRecord,
    PortRecord,
    SlotRecord,
    SpeedRecord,
    now,
    upsert,
)
from ota_service.fleet.journal_store import Store


class BoardsPart:
    """Boards, slots, names, ports, places and speeds. Each write is one transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- boards

    def board(self, mac: str) -> BoardRecord | None:
        """What was last seen on the board with this MAC."""
        return self._store.get(BoardRecord, "boards", mac=mac)

    def boards(self) -> list[BoardRecord]:
        """Every board that was ever seen, by MAC."""
        return self._store.all(BoardRecord, "boards", "mac")

    def board_at(self, place: str) -> BoardRecord | None:
        """The board that was last seen at a port or USB location."""
        newest = "seen_at DESC"
        found = self._store.all(BoardRecord, "boards", newest, port=place)
        found += self._store.all(BoardRecord, "boards", newest, usb_location=place)
        return next(iter(found), None)

    def save_board(self, record: BoardRecord) -> None:
        """Store a board whole. A board is at one place, so others lose that port."""
        self._store.write(
            (
                "UPDATE boards SET port = NULL, usb_location = NULL WHERE port = ? AND mac != ?",
                (record.port, record.mac),
            ),
            upsert("boards", record, "mac"),
        )

    def update_board(self, mac: str, **changes: Any) -> BoardRecord:
        """Change some fields of a board's record, begun if need be; the record as it is now."""
        with self._store.exclusive():
            record = replace(self.board(mac) or BoardRecord(mac), **changes)
            self.save_board(record)
            return record

    # --- slots

    def slots(self, mac: str) -> dict[str, SlotRecord]:
        """What is known of the slots of a board, by their names (`Partition.name`)."""
        return {slot.slot: slot for slot in self._store.all(SlotRecord, "slots", mac=mac)}

    def record_slot(self, record: SlotRecord) -> None:
        """Store what a slot holds, in place of what it held."""
        self._store.put("slots", record, "mac", "slot")

    def forget_slot(self, mac: str, slot: str) -> None:
        """Forget what a slot held. Called before its first byte is overwritten."""
        self._store.drop("slots", mac=mac, slot=slot)

    def forget_slots(self, mac: str) -> None:
        """Forget all slots of a board: a Merged Binary is about to be written."""
        self._store.drop("slots", mac=mac)

    # --- names and ports

    def learn_name(self, service: str, name: str, mac: str) -> None:
        """Note which board a configured name stands for."""
        self._store.put("names", NameRecord(service, name, mac), "service", "name")

    def mac_of(self, service: str, name: str) -> str | None:
        """The MAC that a configured name was found to have."""
        found = self._store.get(NameRecord, "names", service=service, name=name)
        return found.mac if found is not None else None

    def learn_port(
        self, port: str, mac: str, *, location: str | None = None, serial: str | None = None
    ) -> PortRecord:
        """Note what is behind a configured port at its first success.

        What was learned before stays: the answer is what holds, for the caller to compare.
        """
        with self._store.exclusive():
            known = self.known_port(port)
            if known is None:
                known = PortRecord(port, mac, location, serial, now())
                self._store.put("ports", known, "port")
            return known

    def known_port(self, port: str) -> PortRecord | None:
        """What was learned of a configured port."""
        return self._store.get(PortRecord, "ports", port=port)

    def set_wrong_board(self, port: str, reason: str) -> None:
        """Keep a known port closed, until `release` or `forget_port`."""
        self._store.write(("UPDATE ports SET wrong_board = ? WHERE port = ?", (reason, port)))

    def forget_port(self, port: str) -> None:
        """Accept whatever is behind the port at the next success."""
        self._store.drop("ports", port=port)

    # --- places that were found without being configured

    def mark_not_ours(self, place: str, reason: str, mac: str | None = None) -> None:
        """Leave what is attached at a place alone, until `release`."""
        self._store.put("not_ours", NotOursRecord(place, reason, mac, now()), "place")

    def not_ours(self, place: str) -> NotOursRecord | None:
        """Why what is attached at a place is left alone; None: it is not."""
        return self._store.get(NotOursRecord, "not_ours", place=place)

    def remember_bridge(self, place: str, identity: str | None, mac: str | None = None) -> None:
        """Know a generic bridge as ours: a person has had it opened, and a board answered."""
        self._store.put("bridges", BridgeRecord(place, identity, mac, now()), "place")

    def known_bridge(self, place: str, identity: str | None) -> BridgeRecord | None:
        """The bridge at a place, if it is known as ours and still the same USB device."""
        return self._store.get(BridgeRecord, "bridges", place=place, identity=identity)

    # --- speeds

    def carried_baud(self, mac: str, port: str) -> int | None:
        """A speed at which a port carried a whole slot to a board without an error."""
        found = self._store.get(LineRecord, "lines", mac=mac, port=port)
        return found.baud if found is not None else None

    def record_carried(self, mac: str, port: str, baud: int) -> None:
        """Note it; 0: there were errors, so that nothing is known any more."""
        if baud:
            self._store.put("lines", LineRecord(mac, port, baud), "mac")
        else:
            self._store.drop("lines", mac=mac)

    def fallback_baud(self, port: str) -> int | None:
        """The speed that a port has fallen back to."""
        found = self._store.get(SpeedRecord, "speeds", port=port)
        return found.baud if found is not None else None

    def record_baud(self, port: str, baud: int) -> None:
        """Note the speed that a port has proven, or has fallen back to."""
        self._store.put("speeds", SpeedRecord(port, baud), "port")
