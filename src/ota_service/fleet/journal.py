# SPDX-License-Identifier: GPL-3.0-or-later
"""What must last: one journal a process, shared by its services.

It lies in the state folder (mode 700) as `journal.sqlite3` (mode 600) and survives killed
processes and power cuts. A module has it for itself; commands at a terminal share one. All of its
methods block, some for as long as a disk takes: call them in threads. They are safe in any thread.

    open_journal(state_dir) -> Journal      counted: each one needs its close()
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.journal_lock import FolderLock
from ota_service.fleet.journal_rows import (
    AttemptRecord,
    AttemptState,
    BoardRecord,
    BroughtRecord,
    FirmwareRecord,
    PendingRecord,
    PortRecord,
    SlotRecord,
    StagedRecord,
    StopRecord,
    TargetRecord,
)
from ota_service.fleet.journal_runs import Runs
from ota_service.fleet.journal_store import FILE_NAME, whole
from ota_service.link.ownership import rewrite_mark

MAX_ATTEMPT_ROWS = 2000
"""Rows of boards with old targets beyond this are forgotten, the oldest first."""
MAX_CONFIRMED = 200
_ENDED = "The process ended during the attempt."


class Journal(Runs):
    """The journal of one state folder: boards, how they fared with targets, runs.

    Made by `open_journal`. A board is named by its MAC, or by its configured name while no MAC is
    known; a target by its key. What has no rule of its own is had by `get`, `put` and `drop`.
    alone: no other process had the folder when it was opened.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        """Open or begin the journal. Raises `state-busy`; nothing else stops it, see `problem`."""
        lock = FolderLock(folder, shared=shared)
        with lock.opening():
            busy = lock.refusal()
            if busy is not None:
                raise busy
            try:
                super().__init__(lock)
            except BaseException:
                lock.release()
                raise
            if lock.alone:
                self._close_interrupted_attempts()
                self._close_interrupted_runs()
        self.folder, self.alone = folder, lock.alone
        self._uses = 1

    def close(self) -> None:
        """End one use; the last one closes the file and gives the folder up."""
        global _open
        with _opening:
            self._uses -= 1
            if self._uses == 0:
                _open = None if _open is self else _open
                super().close()

    # --- boards

    def board(self, mac: str) -> BoardRecord | None:
        """What was last seen on the board with this MAC; what it holds is forgotten where a program
        with another journal has replaced that since then."""
        record = self.get(BoardRecord, mac=mac)
        if record is None or rewrite_mark(mac) in (None, record.rewritten):
            return record
        return self.forget_contents(mac)

    @whole
    def forget_contents(self, mac: str) -> BoardRecord:
        """What a board holds is replaced, or was: what was known of that is void."""
        for kind in (SlotRecord, StagedRecord, BroughtRecord, PendingRecord):
            self.drop(kind, mac=mac)
        known = self.get(BoardRecord, mac=mac) or BoardRecord(mac)
        places = ("port", "usb_location", "usb_serial", "seen_at", "chip", "flash_bytes")
        kept = {name: getattr(known, name) for name in places}
        record = BoardRecord(mac, **kept, rewritten=rewrite_mark(mac))
        self.put(record)
        return record

    @whole
    def update_board(self, mac: str, **changes: Any) -> BoardRecord:
        """Change some fields of a board's record, begun if need be; the record as it is now.

        A board is at one place, so others lose that port. What was replaced since `board` was asked
        is forgotten by the next `board` alone: a session's end is noted when others may have the
        port already.
        """
        known = self.get(BoardRecord, mac=mac) or BoardRecord(mac, rewritten=rewrite_mark(mac))
        record = replace(known, **changes)
        self.write(
            "UPDATE boards SET port = NULL, usb_location = NULL "
            "WHERE (port = ? OR usb_location = ?) AND mac != ?",
            *(record.port, record.usb_location, mac),
        )
        self.put(record)
        return record

    @whole
    def learn_port(
        self, port: str, mac: str, location: str | None = None, serial: str | None = None
    ) -> PortRecord:
        """Note what is behind a configured port at its first success.

        What was learned before stays: the answer is what holds, for the caller to compare.
        """
        known = self.get(PortRecord, port=port)
        if known is None:
            known = PortRecord(port, mac, location, serial, utc_now())
            self.put(known)
        return known

    # --- attempts

    def attempt(self, board: str, target: str) -> AttemptRecord:
        """How a board fared with a target; a blank record where it never met it."""
        found = self.get(AttemptRecord, board=board, target=target)
        return found or AttemptRecord(board, target)

    @whole
    def begin_attempt(self, board: str, target: str) -> AttemptRecord:
        """Note that something is about to be written, before it is.

        An attempt that was begun and has not ended counts as failed: then or at the next start.
        What was read of the board before it proves nothing any more; what runs is the same.
        """
        known = self.attempt(board, target)
        failed = known.failed + (known.open_since is not None)
        self.write("UPDATE boards SET version_read_at = NULL WHERE mac = ?", board)
        record = self._keep(replace(known, failed=failed, open_since=utc_now()))
        self.write(
            "DELETE FROM attempts WHERE open_since IS NULL AND seq < "
            "(SELECT seq FROM attempts ORDER BY seq DESC LIMIT 1 OFFSET ?)",
            MAX_ATTEMPT_ROWS - 1,
        )
        return record

    @whole
    def end_attempt(
        self,
        board: str,
        target: str,
        *,
        succeeded: bool,
        error: OtaError | None = None,
        counts: bool | None = None,
    ) -> AttemptRecord:
        """Note how an attempt ended.

        A success forgets earlier failures. counts: whether a failure uses up an attempt; by
        default as the table of errors says.
        """
        if succeeded:
            return self._keep(AttemptRecord(board, target))
        if counts is None:
            counts = error is None or error.kind.counts
        known = self.attempt(board, target)
        ended = replace(known, failed=known.failed + counts, code=None, message=None)
        return self._keep(replace(ended, open_since=None, **_reason(error)))

    @whole
    def set_attempt_state(
        self, board: str, target: str, state: AttemptState, error: OtaError | None = None
    ) -> AttemptRecord:
        """Note what became of a board with a target: set aside, rolled back, held, awaiting.

        error: the reason; without one, the last error's stays.
        """
        known = self.attempt(board, target)
        since = known.since if known.state == state else utc_now()
        return self._keep(replace(known, state=state, since=since, **_reason(error)))

    def _keep(self, record: AttemptRecord) -> AttemptRecord:
        (row,) = self.read("SELECT coalesce(max(seq), 0) + 1 AS seq FROM attempts")
        record = replace(record, updated_at=utc_now(), seq=row["seq"])
        self.put(record)
        return record

    @whole
    def release(self, *keys: str) -> None:
        """Let boards be taken up again.

        keys: everything that names the boards: MACs, names, ports, USB locations. Forgets their
        attempts, "not ours", and what was learned of a port with the wrong board behind it. An
        attempt in progress is still known.
        """
        for key in keys:
            self.write("DELETE FROM attempts WHERE board = ? AND open_since IS NULL", key)
            self.write(
                "UPDATE attempts SET failed = 0, state = 'none', code = NULL, message = NULL, "
                "since = NULL WHERE board = ?",
                key,
            )
            self.write("DELETE FROM not_ours WHERE place = ?1 OR mac = ?1", key)
            self.write(
                "DELETE FROM ports WHERE wrong_board IS NOT NULL AND (port = ?1 OR mac = ?1)", key
            )

    def _close_interrupted_attempts(self) -> None:
        """At the start: attempts that a dead process left open count as failed, but for those that
        have come as far as a start which the app has to confirm: that is still to be seen."""
        self.write(
            "UPDATE attempts SET failed = failed + 1, open_since = NULL, "
            "code = 'link-lost', message = ?, updated_at = ? WHERE open_since IS NOT NULL AND "
            "NOT EXISTS (SELECT 1 FROM pending AS p WHERE p.mac = board "
            "AND p.target = attempts.target)",
            *(_ENDED, utc_now()),
        )

    # --- targets

    @whole
    def set_target(self, service: str, key: str) -> bool:
        """Note a service's target; whether it is another one than before."""
        before = self.get(TargetRecord, service=service)
        if before is not None and before.key == key:
            return False
        self.put(TargetRecord(service, key, utc_now()))
        return True

    def stop(self, service: str, target: str, reason: str) -> None:
        """Give this target to no further board of a service, also after a restart."""
        self.put(StopRecord(service, target, reason, utc_now()))

    @whole
    def stops(self, service: str, targets: Collection[str]) -> dict[str, str]:
        """The targets of a service that are stopped, and why; forgets those that it has no more."""
        for record in self.all(StopRecord, service=service):
            if record.target not in targets:
                self.drop(StopRecord, service=service, target=record.target)
        return {r.target: r.reason for r in self.all(StopRecord, service=service)}

    @whole
    def confirm_firmware(self, sha256: str) -> None:
        """Note that a board was seen running this firmware well, so that no canary is needed."""
        self.put(FirmwareRecord(sha256, utc_now()))
        self.write(
            "DELETE FROM confirmed_firmware WHERE sha256 != ? AND sha256 NOT IN "
            "(SELECT sha256 FROM confirmed_firmware ORDER BY at DESC LIMIT ?)",
            *(sha256, MAX_CONFIRMED),
        )


def _reason(error: OtaError | None) -> dict[str, Any]:
    return {} if error is None else {"code": error.code, "message": error.message}


_opening = threading.Lock()
_open: Journal | None = None


def open_journal(state_dir: Path | str, *, shared: bool = False) -> Journal:
    """The journal of `state_dir`, the one that is open already where there is one.

    shared: with other processes that open it so. Raises `state-busy`, naming the other processes
    that have it, and `config-invalid`, naming both folders, where this process has the journal of
    another folder open, or it is one of the host's policy of trust.
    """
    global _open
    folder = Path(os.path.realpath(Path(state_dir).expanduser()))
    trust.require_apart(folder, "state_dir")
    with _opening:
        if _open is None:
            _open = Journal(folder, shared=shared)
            return _open
        if _open.folder != folder:
            raise OtaError(
                "config-invalid",
                f"The services of this module name two state folders, {_open.folder} and {folder}.",
                remedy="Set state_dir of all services to the same folder, or leave it out.",
            )
        _open._uses += 1
        return _open


__all__ = ["FILE_NAME", "Journal", "open_journal"]
