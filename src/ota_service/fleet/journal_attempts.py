# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's memory of attempts: how boards fared with targets, and what waits or is held."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ota_service.errors import ERRORS
from ota_service.fleet.journal_rows import (
    AttemptRecord,
    AttemptState,
    PendingRecord,
    TargetRecord,
    iso,
    now,
    upsert,
)
from ota_service.fleet.journal_store import Store

MAX_ATTEMPT_ROWS = 2000
"""Rows of boards with old targets beyond this are forgotten, the oldest first."""
MAX_CONFIRMED = 200
_KEYS = ("board", "target")
_PRUNE = (
    "DELETE FROM attempts WHERE open_since IS NULL AND updated_at < "
    "(SELECT updated_at FROM attempts ORDER BY updated_at DESC LIMIT 1 OFFSET ?)"
)
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
        with self._store.exclusive():
            known, moment = self.attempt(board, target), now()
            failed = known.failed + (known.open_since is not None)
            record = replace(known, failed=failed, open_since=moment, updated_at=moment)
            self._store.write(upsert("attempts", record, *_KEYS), (_PRUNE, (MAX_ATTEMPT_ROWS - 1,)))
            return record

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
        if counts is None:
            counts = ERRORS[code].counts if code in ERRORS else True
        record = AttemptRecord(board, target)
        with self._store.exclusive():
            if not succeeded:
                known = self.attempt(board, target)
                record = replace(
                    known, failed=known.failed + counts, code=code, message=message, open_since=None
                )
            return self._keep(record)

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
        with self._store.exclusive():
            known = self.attempt(board, target)
            since = known.since if known.state == state else now()
            code, message = code or known.code, message or known.message
            return self._keep(replace(known, state=state, since=since, code=code, message=message))

    def _keep(self, record: AttemptRecord) -> AttemptRecord:
        record = replace(record, updated_at=now())
        self._store.put("attempts", record, *_KEYS)
        return record

    def attempt(self, board: str, target: str) -> AttemptRecord:
        """How a board fared with a target; a blank record where it never met it."""
        found = self._store.get(AttemptRecord, "attempts", board=board, target=target)
        return found or AttemptRecord(board, target)

    def attempts(self, board: str) -> list[AttemptRecord]:
        """How a board fared with all targets, the newest first."""
        return self._store.all(AttemptRecord, "attempts", "updated_at DESC", board=board)

    def release(self, *keys: str) -> None:
        """Let boards be taken up again.

        keys: everything that names the boards: MACs, names, ports, USB locations. Forgets their
        attempts, "not ours", what was learned of a port with the wrong board behind it, and the
        speed that a port has fallen back to. An attempt in progress is still known.
        """
        self._store.write(
            *(
                statement
                for key in keys
                for statement in (
                    ("DELETE FROM attempts WHERE board = ? AND open_since IS NULL", (key,)),
                    (
                        "UPDATE attempts SET failed = 0, state = 'none', code = NULL, "
                        "message = NULL, since = NULL WHERE board = ?",
                        (key,),
                    ),
                    ("DELETE FROM not_ours WHERE place = ? OR mac = ?", (key, key)),
                    (
                        "DELETE FROM ports WHERE wrong_board IS NOT NULL AND (port = ? OR mac = ?)",
                        (key, key),
                    ),
                    ("DELETE FROM speeds WHERE port = ?", (key,)),
                )
            )
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
        self._store.put("pending", record, "mac")

    def pending(self, mac: str) -> PendingRecord | None:
        """What a board's new app has to confirm itself by; None: nothing waits for it."""
        return self._store.get(PendingRecord, "pending", mac=mac)

    def clear_pending(self, mac: str) -> None:
        """The board has been looked at: it may be reset again."""
        self._store.drop("pending", mac=mac)

    # --- targets

    def target(self, service: str) -> TargetRecord | None:
        """A service's last target."""
        return self._store.get(TargetRecord, "targets", service=service)

    def set_target(self, service: str, key: str) -> bool:
        """Note a service's target; whether it is another one than before."""
        with self._store.exclusive():
            before = self.target(service)
            if before is not None and before.key == key:
                return False
            self._store.put("targets", TargetRecord(service, key, now()), "service")
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
        for target in [target for target in found if target not in targets]:
            del found[target]
            self._store.drop("stops", service=service, target=target)
        return found

    def lift(self, service: str) -> None:
        """Let a service's stopped targets be tried again."""
        self._store.drop("stops", service=service)

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
