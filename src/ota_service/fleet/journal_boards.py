# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's knowledge of boards: what is on them, and where they are attached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ota_service.fleet.journal_rows import (
    BoardRecord,
    BridgeRecord,
    NotOursRecord,
    PortRecord,
    SlotRecord,
    from_row,
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
        row = self._store.read_one("SELECT * FROM boards WHERE mac = ?", (mac,))
        return from_row(BoardRecord, row) if row else None

    def boards(self) -> list[BoardRecord]:
        """Every board that was ever seen, by MAC."""
        rows = self._store.read("SELECT * FROM boards ORDER BY mac")
        return [from_row(BoardRecord, row) for row in rows]

    def board_at(self, place: str) -> BoardRecord | None:
        """The board that was last seen at a port or USB location."""
        row = self._store.read_one(
            "SELECT * FROM boards WHERE port = ? OR usb_location = ? ORDER BY seen_at DESC LIMIT 1",
            (place, place),
        )
        return from_row(BoardRecord, row) if row else None

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
        rows = self._store.read("SELECT * FROM slots WHERE mac = ? ORDER BY slot", (mac,))
        return {str(row["slot"]): from_row(SlotRecord, row) for row in rows}

    def record_slot(self, record: SlotRecord) -> None:
        """Store what a slot holds, in place of what it held."""
        self._store.write(upsert("slots", record, "mac", "slot"))

    def forget_slot(self, mac: str, slot: str) -> None:
        """Forget what a slot held. Called before its first byte is overwritten."""
        self._store.write(("DELETE FROM slots WHERE mac = ? AND slot = ?", (mac, slot)))

    def forget_slots(self, mac: str) -> None:
        """Forget all slots of a board: a Merged Binary is about to be written."""
        self._store.write(("DELETE FROM slots WHERE mac = ?", (mac,)))

    # --- names and ports

    def learn_name(self, service: str, name: str, mac: str) -> None:
        """Note which board a configured name stands for."""
        self._store.write(
            (
                "INSERT INTO names VALUES (?, ?, ?) "
                "ON CONFLICT (service, name) DO UPDATE SET mac = excluded.mac",
                (service, name, mac),
            )
        )

    def mac_of(self, service: str, name: str) -> str | None:
        """The MAC that a configured name was found to have."""
        row = self._store.read_one(
            "SELECT mac FROM names WHERE service = ? AND name = ?", (service, name)
        )
        return str(row["mac"]) if row else None

    def learn_port(
        self, port: str, mac: str, *, location: str | None = None, serial: str | None = None
    ) -> PortRecord:
        """Note what is behind a configured port at its first success.

        What was learned before stays: the answer is what holds, for the caller to compare.
        """
        record = PortRecord(port, mac, location, serial, now())
        sql, values = upsert("ports", record, "port")
        self._store.write((sql.split(" DO UPDATE")[0] + " DO NOTHING", values))
        return self.known_port(port) or record

    def known_port(self, port: str) -> PortRecord | None:
        """What was learned of a configured port."""
        row = self._store.read_one("SELECT * FROM ports WHERE port = ?", (port,))
        return from_row(PortRecord, row) if row else None

    def set_wrong_board(self, port: str, reason: str) -> None:
        """Keep a known port closed, until `release` or `forget_port`."""
        self._store.write(("UPDATE ports SET wrong_board = ? WHERE port = ?", (reason, port)))

    def forget_port(self, port: str) -> None:
        """Accept whatever is behind the port at the next success."""
        self._store.write(("DELETE FROM ports WHERE port = ?", (port,)))

    # --- places that were found without being configured

    def mark_not_ours(self, place: str, reason: str, mac: str | None = None) -> None:
        """Leave what is attached at a place alone, until `release`."""
        record = NotOursRecord(place, reason, mac, now())
        self._store.write(upsert("not_ours", record, "place"))

    def not_ours(self, place: str) -> NotOursRecord | None:
        """Why what is attached at a place is left alone; None: it is not."""
        row = self._store.read_one("SELECT * FROM not_ours WHERE place = ?", (place,))
        return from_row(NotOursRecord, row) if row else None

    def remember_bridge(self, place: str, identity: str | None, mac: str | None = None) -> None:
        """Know a generic bridge as ours: a person has had it opened, and a board answered."""
        record = BridgeRecord(place, identity, mac, now())
        self._store.write(upsert("bridges", record, "place"))

    def known_bridge(self, place: str, identity: str | None) -> BridgeRecord | None:
        """The bridge at a place, if it is known as ours and still the same USB device."""
        row = self._store.read_one(
            "SELECT * FROM bridges WHERE place = ? AND identity IS ?", (place, identity)
        )
        return from_row(BridgeRecord, row) if row else None

    # --- speeds

    def carried_baud(self, mac: str, port: str) -> int | None:
        """A speed at which a port carried a whole slot to a board without an error."""
        row = self._store.read_one("SELECT baud FROM lines WHERE mac = ? AND port = ?", (mac, port))
        return int(row["baud"]) if row else None

    def record_carried(self, mac: str, port: str, baud: int) -> None:
        """Note it; 0: there were errors, so that nothing is known any more."""
        if not baud:
            self._store.write(("DELETE FROM lines WHERE mac = ?", (mac,)))
            return
        self._store.write(
            (
                "INSERT INTO lines VALUES (?, ?, ?) "
                "ON CONFLICT (mac) DO UPDATE SET port = excluded.port, baud = excluded.baud",
                (mac, port, baud),
            )
        )

    def fallback_baud(self, port: str) -> int | None:
        """The speed that a port has fallen back to."""
        row = self._store.read_one("SELECT baud FROM speeds WHERE port = ?", (port,))
        return int(row["baud"]) if row else None

    def record_baud(self, port: str, baud: int) -> None:
        """Note the speed that a port has proven, or has fallen back to."""
        self._store.write(
            (
                "INSERT INTO speeds VALUES (?, ?) "
                "ON CONFLICT (port) DO UPDATE SET baud = excluded.baud",
                (port, baud),
            )
        )
