# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's history: what each run did, to which boards, how long, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ota_service.fleet.board_state import utc_now
from ota_service.fleet.journal_rows import Outcome, Run, RunBoardRecord, dump, without_none
from ota_service.fleet.journal_store import Store, whole

MAX_RUNS = 1000
MAX_HISTORY_BYTES = 4 * 1024 * 1024
"""Of JSON text over all runs; the oldest go first. A run in progress is never removed."""
MAX_ENTRY_BYTES = 64 * 1024
"""Of JSON text for one board of one run; beyond it, the longest texts go."""

_SIZE = (
    "length(target) + coalesce(length(result), 0) + coalesce(length(error), 0) + "
    "(SELECT coalesce(sum(length(data)), 0) FROM run_boards WHERE run = runs.id)"
)
_PRUNE = f"""
DELETE FROM runs WHERE finished_at IS NOT NULL AND rowid IN (
    SELECT nth FROM (
        SELECT nth, row_number() OVER newest AS number, sum(size) OVER newest AS total
        FROM (SELECT rowid AS nth, {_SIZE} AS size FROM runs)
        WINDOW newest AS (ORDER BY nth DESC)
    ) WHERE number > ? OR total > ?
)"""
_TAKEN_UP = 2
"""In place of 1 in `interrupted`: it is being carried on, or needs not be."""


class Runs(Store):
    """The history of runs."""

    @whole
    def start_run(self, run_id: str, service: str, trigger: str, target: dict[str, Any]) -> None:
        """Begin a run's entry, and forget the oldest ones beyond the bounds."""
        moment = utc_now()
        self.put(Run(run_id, service, trigger, target, moment, moment))
        self._prune()

    @whole
    def update_run_board(self, run_id: str, name: str, entry: dict[str, Any]) -> None:
        """Store what the run did to a board so far, whole.

        entry: freely structured; its "mac" and "port" serve to find it.
        """
        mac, port = (str(entry[key]) if entry.get(key) else None for key in ("mac", "port"))
        self.put(RunBoardRecord(run_id, name, mac, port, _bounded(without_none(entry))))
        self.write("UPDATE runs SET updated_at = ? WHERE id = ?", utc_now(), run_id)

    def update_run_target(self, run_id: str, target: dict[str, Any]) -> None:
        """Store what the run's target is by now: a manifest, and how far it came with it."""
        self.write(
            "UPDATE runs SET target = ?, updated_at = ? WHERE id = ?", target, utc_now(), run_id
        )

    @whole
    def finish_run(
        self,
        run_id: str,
        outcome: Outcome,
        *,
        error: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        interrupted: bool = False,
    ) -> None:
        """Note how a run ended. interrupted: its process was asked to end, so that the next one
        takes it up."""
        self.write(
            "UPDATE runs SET outcome = ?1, error = ?2, result = ?3, interrupted = ?4, "
            "updated_at = ?5, finished_at = ?5 WHERE id = ?6",
            *(outcome, error, result, interrupted, utc_now(), run_id),
        )
        self._prune()

    def history(
        self,
        service: str | None = None,
        board: Sequence[str] | None = None,
        limit: int = 20,
        *,
        run_id: str | None = None,
    ) -> list[Run]:
        """Runs, newest first. board: whatever one is called by (names, MAC, ports); its runs then
        show that board alone."""
        words = json.dumps(board)
        rows = self.read(
            "SELECT * FROM runs WHERE (?1 IS NULL OR service = ?1) AND (?2 IS NULL OR id = ?2) AND "
            f"(?3 = 'null' OR id IN (SELECT run FROM run_boards WHERE {_called('?3')})) "
            "ORDER BY rowid DESC LIMIT ?4",
            *(service, run_id, words, max(0, min(limit, MAX_RUNS))),
        )
        runs = [Run.from_row(row) for row in rows]
        for run in runs:
            boards = self.read(
                f"SELECT * FROM run_boards WHERE run = ?1 AND (?2 = 'null' OR {_called('?2')}) "
                "ORDER BY name",
                *(run.id, words),
            )
            found = map(RunBoardRecord.from_row, boards)
            run.boards.update({entry.name: entry.data for entry in found})
        return runs

    @whole
    def take_up(self, service: str) -> list[Run]:
        """The runs of a service whose process ended in the middle of them; each is told once."""
        runs = self.all(Run, service=service, interrupted=1)
        self.write(
            "UPDATE runs SET interrupted = ? WHERE service = ? AND interrupted = 1",
            *(_TAKEN_UP, service),
        )
        return runs

    def _close_interrupted_runs(self) -> None:
        """At the start: runs that a dead process left open have failed, when last heard of."""
        self.write(
            "UPDATE runs SET outcome = 'failed', interrupted = 1, finished_at = updated_at "
            "WHERE finished_at IS NULL"
        )

    def _prune(self) -> None:
        self.write(_PRUNE, MAX_RUNS, MAX_HISTORY_BYTES)
        self.write("DELETE FROM run_boards WHERE run NOT IN (SELECT id FROM runs)")


def _called(words: str) -> str:
    """A condition on rows of `run_boards`; words: the parameter that has them as a JSON list."""
    of_them = f"IN (SELECT value FROM json_each({words}))"
    return f"(name {of_them} OR mac {of_them} OR port {of_them})"


def _bounded(entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` in at most MAX_ENTRY_BYTES of JSON, if leaving out its longest values (a boot log,
    as a rule) makes it so."""
    while len(dump(entry)) > MAX_ENTRY_BYTES and len(entry) > 1:
        longest = max(entry, key=lambda key: len(json.dumps(entry[key], default=str)))
        entry = {key: value for key, value in entry.items() if key != longest}
        entry["truncated"] = True
    return entry
