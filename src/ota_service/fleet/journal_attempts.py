# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's memory of attempts: how boards fared with targets, and what waits or is held."""

from __future__ import annotations

from collections.abc import Collection

from ota_service.errors import ERRORS
from ota_service.fleet.journal_rows import (
    AttemptRecord,
    AttemptState,
    PendingRecord,
    Statement,
    TargetRecord,
    from_row,
    iso,
    now,
    upsert,
)
from ota_service.fleet.journal_store import Store

MAX_ATTEMPT_ROWS = 2000
"""Rows of boards with old targets beyond this are forgotten, the oldest first."""
MAX_CONFIRMED = 200
_KEY = "board = ? AND target = ?"
_ENDED = "The process ended during the attempt."


class AttemptsPart:
    """Attempts, boards awaiting confirmation, targets. Each write is one transaction.

    A board is named by its MAC, or by its configured name while no MAC is known; a target by its
    key.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- attempts

    def begin_attempt(self, board: str, target: str) -> AttemptRecord:
        """Note that something is about to be written, before it is.

        An attempt that was begun and has not ended counts as failed: then or at the next start.
        """
        moment = iso(now())
        self._store.write(
            (
                "INSERT INTO attempts (board, target, open_since, updated_at) "
                "VALUES (?, ?, ?, ?) ON CONFLICT (board, target) DO UPDATE SET "
                "failed = failed + (open_since IS NOT NULL), "
                "open_since = excluded.open_since, updated_at = excluded.updated_at",
                (board, target, moment, moment),
            ),
            (
                "DELETE FROM attempts WHERE open_since IS NULL AND updated_at < "
                "(SELECT updated_at FROM attempts ORDER BY updated_at DESC LIMIT 1 OFFSET ?)",
                (MAX_ATTEMPT_ROWS - 1,),
            ),
        )
        return self.attempt(board, target)

    def end_attempt(
        self,
        board: str,
        target: str,
        *,
        succeeded: bool,
        counts: bool | None = None,
        code: str | None = None,
        message: str | None = None,
    ) -> AttemptRecord:
        """Note how an attempt ended.

        A success forgets earlier failures. counts: whether a failure uses up an attempt; by
        default as the table of errors says for `code`.
        """
        moment = iso(now())
        if counts is None:
            counts = ERRORS[code].counts if code in ERRORS else True
        statement: Statement
        if succeeded:
            statement = (
                "INSERT INTO attempts (board, target, updated_at) VALUES (?, ?, ?) "
                "ON CONFLICT (board, target) DO UPDATE SET failed = 0, state = 'none', "
                "code = NULL, message = NULL, since = NULL, open_since = NULL, "
                "updated_at = excluded.updated_at",
                (board, target, moment),
            )
        else:
            statement = (
                "INSERT INTO attempts (board, target, failed, code, message, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (board, target) DO UPDATE SET "
                "failed = failed + excluded.failed, code = excluded.code, "
                "message = excluded.message, open_since = NULL, updated_at = excluded.updated_at",
                (board, target, int(counts), code, message, moment),
            )
        self._store.write(statement)
        return self.attempt(board, target)

    def set_attempt_state(
        self,
        board: str,
        target: str,
        state: AttemptState,
        *,
        code: str | None = None,
        message: str | None = None,
    ) -> AttemptRecord:
        """Note what became of a board with a target: set aside, rolled back, held, awaiting.

        code, message: the reason; where left out, the last error's stay.
        """
        moment = iso(now())
        self._store.write(
            (
                "INSERT INTO attempts (board, target, state, code, message, since, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (board, target) DO UPDATE SET "
                "since = CASE WHEN state = excluded.state THEN since ELSE excluded.since END, "
                "state = excluded.state, code = coalesce(excluded.code, code), "
                "message = coalesce(excluded.message, message), updated_at = excluded.updated_at",
                (board, target, state, code, message, moment, moment),
            )
        )
        return self.attempt(board, target)

    def attempt(self, board: str, target: str) -> AttemptRecord:
        """How a board fared with a target; a blank record where it never met it."""
        row = self._store.read_one(f"SELECT * FROM attempts WHERE {_KEY}", (board, target))
        return from_row(AttemptRecord, row) if row else AttemptRecord(board, target)

    def attempts(self, board: str | None = None) -> list[AttemptRecord]:
        """How one board, or every one, fared with all targets, the newest first."""
        rows = self._store.read(
            "SELECT * FROM attempts WHERE ? IS NULL OR board = ? ORDER BY updated_at DESC",
            (board, board),
        )
        return [from_row(AttemptRecord, row) for row in rows]

    def release(self, *keys: str) -> int:
        """Let boards be taken up again; how many entries that held them there were.

        keys: everything that names the boards: MACs, names, ports, USB locations. Forgets their
        attempts, "not ours", what was learned of a port with the wrong board behind it, and the
        speed that a port has fallen back to.
        """
        if not keys:
            return 0
        marks = ", ".join("?" * len(keys))
        both = keys + keys
        held = (
            f"SELECT count(*) AS n FROM attempts WHERE board IN ({marks}) "
            "AND (state != 'none' OR failed > 0)",
            f"SELECT count(*) AS n FROM not_ours WHERE place IN ({marks}) OR mac IN ({marks})",
            "SELECT count(*) AS n FROM ports WHERE wrong_board IS NOT NULL "
            f"AND (port IN ({marks}) OR mac IN ({marks}))",
        )
        with self._store.exclusive():
            count = 0
            for sql, parameters in zip(held, (keys, both, both), strict=True):
                row = self._store.read_one(sql, parameters)
                count += int(row["n"]) if row else 0
            self._release(marks, keys, both)
        return count

    def _release(self, marks: str, keys: tuple[str, ...], both: tuple[str, ...]) -> None:
        self._store.write(
            (f"DELETE FROM attempts WHERE board IN ({marks}) AND open_since IS NULL", keys),
            (
                "UPDATE attempts SET failed = 0, state = 'none', code = NULL, message = NULL, "
                f"since = NULL WHERE board IN ({marks})",
                keys,
            ),
            (f"DELETE FROM not_ours WHERE place IN ({marks}) OR mac IN ({marks})", both),
            (
                "DELETE FROM ports WHERE wrong_board IS NOT NULL "
                f"AND (port IN ({marks}) OR mac IN ({marks}))",
                both,
            ),
            (f"DELETE FROM speeds WHERE port IN ({marks})", keys),
        )

    def _close_interrupted_attempts(self) -> None:
        """At the start: attempts that a dead process left open count as failed."""
        self._store.write(
            (
                "UPDATE attempts SET failed = failed + 1, open_since = NULL, "
                "code = 'link-lost', message = ?, updated_at = ? WHERE open_since IS NOT NULL",
                (_ENDED, iso(now())),
            )
        )

    # --- boards awaiting confirmation

    def set_pending(self, record: PendingRecord) -> None:
        """Note that a board may not be reset before `until`. Before its restart."""
        self._store.write(upsert("pending", record, "mac"))

    def pending(self, mac: str) -> PendingRecord | None:
        """What a board's new app has to confirm itself by; None: nothing waits for it."""
        row = self._store.read_one("SELECT * FROM pending WHERE mac = ?", (mac,))
        return from_row(PendingRecord, row) if row else None

    def clear_pending(self, mac: str) -> None:
        """The board has been looked at: it may be reset again."""
        self._store.write(("DELETE FROM pending WHERE mac = ?", (mac,)))

    # --- targets

    def target(self, service: str) -> TargetRecord | None:
        """A service's last target."""
        row = self._store.read_one("SELECT * FROM targets WHERE service = ?", (service,))
        return from_row(TargetRecord, row) if row else None

    def set_target(self, service: str, key: str) -> bool:
        """Note a service's target; whether it is another one than before."""
        with self._store.exclusive():
            before = self.target(service)
            if before and before.key == key:
                return False
            self._store.write(upsert("targets", TargetRecord(service, key, now()), "service"))
            return True

    def stop(self, service: str, target: str, reason: str) -> None:
        """Give this target to no further board of a service, also after a restart."""
        self._store.write(
            (
                "INSERT OR REPLACE INTO stops VALUES (?, ?, ?, ?)",
                (service, target, reason, iso(now())),
            )
        )

    def stops(self, service: str, targets: Collection[str]) -> dict[str, str]:
        """The targets of a service that are stopped, and why; forgets those that it has no more."""
        rows = self._store.read("SELECT target, reason FROM stops WHERE service = ?", (service,))
        found = {str(row["target"]): str(row["reason"]) for row in rows}
        gone = "DELETE FROM stops WHERE service = ? AND target = ?"
        for target in [target for target in found if target not in targets]:
            del found[target]
            self._store.write((gone, (service, target)))
        return found

    def lift(self, service: str) -> None:
        """Let a service's stopped targets be tried again."""
        self._store.write(("DELETE FROM stops WHERE service = ?", (service,)))

    def confirm_firmware(self, sha256: str) -> None:
        """Note that a board was seen running this firmware well, so that no canary is needed."""
        self._store.write(
            (
                "INSERT INTO confirmed_firmware VALUES (?, ?) "
                "ON CONFLICT (sha256) DO UPDATE SET at = excluded.at",
                (sha256, iso(now())),
            ),
            (
                "DELETE FROM confirmed_firmware WHERE sha256 NOT IN "
                "(SELECT sha256 FROM confirmed_firmware ORDER BY at DESC LIMIT ?)",
                (MAX_CONFIRMED,),
            ),
        )

    def firmware_confirmed(self, sha256: str) -> bool:
        """Whether a board was seen running this firmware well."""
        sql = "SELECT 1 FROM confirmed_firmware WHERE sha256 = ?"
        return self._store.read_one(sql, (sha256,)) is not None
