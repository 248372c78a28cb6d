# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's history: what each run did, to which boards, how long, and how it ended."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from ota_service.fleet.journal_rows import (
    Outcome,
    Run,
    dump,
    from_row,
    iso,
    load,
    now,
    without_none,
)
from ota_service.fleet.journal_store import Store

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
DELETE FROM runs WHERE finished_at IS NOT NULL AND seq IN (
    SELECT seq FROM (
        SELECT seq, row_number() OVER newest AS number, sum(size) OVER newest AS total
        FROM (SELECT seq, {_SIZE} AS size FROM runs)
        WINDOW newest AS (ORDER BY seq DESC)
    ) WHERE number > ? OR total > ?
)"""
_PRUNE_BOARDS = "DELETE FROM run_boards WHERE run NOT IN (SELECT id FROM runs)"


class RunsPart:
    """The history of runs. Each write is one transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def start_run(
        self, service: str, trigger: str, target: dict[str, Any], *, run_id: str | None = None
    ) -> Run:
        """Begin a run's entry, and forget the oldest ones beyond the bounds."""
        moment = now()
        run = Run(
            id=run_id or uuid.uuid4().hex[:12],
            service=service,
            trigger=trigger,
            target=without_none(target),
            started_at=moment,
            updated_at=moment,
        )
        self._store.write(
            (
                'INSERT INTO runs (id, service, "trigger", target, started_at, updated_at, '
                "outcome) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(run.id, service, trigger, dump(run.target)),
                    *(iso(moment), iso(moment), run.outcome),
                ),
            ),
            (_PRUNE, (MAX_RUNS, MAX_HISTORY_BYTES)),
            (_PRUNE_BOARDS, ()),
        )
        return run

    def update_run_board(self, run_id: str, name: str, entry: dict[str, Any]) -> None:
        """Store what the run did to a board so far, whole.

        entry: freely structured; its "mac" and "port" serve to find it.
        """
        text = _bounded(without_none(entry))
        mac, port = entry.get("mac"), entry.get("port")
        self._store.write(
            (
                "INSERT INTO run_boards VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, name) DO UPDATE "
                "SET mac = excluded.mac, port = excluded.port, data = excluded.data",
                (
                    *(run_id, name),
                    *(str(mac) if mac is not None else None,),
                    *(str(port) if port is not None else None, text),
                ),
            ),
            ("UPDATE runs SET updated_at = ? WHERE id = ?", (iso(now()), run_id)),
        )

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
        moment = iso(now())
        self._store.write(
            (
                "UPDATE runs SET outcome = ?, error = ?, result = coalesce(?, result), "
                "finished_at = ?, updated_at = ?, interrupted = ? WHERE id = ?",
                (
                    *(outcome, dump(error) if error is not None else None),
                    *(dump(without_none(result)) if result is not None else None,),
                    *(moment, moment, int(interrupted), run_id),
                ),
            ),
            (_PRUNE, (MAX_RUNS, MAX_HISTORY_BYTES)),
            (_PRUNE_BOARDS, ()),
        )

    def run(self, run_id: str) -> Run | None:
        """One run."""
        runs = self._runs("WHERE id = ?", run_id)
        return runs[0] if runs else None

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
        conditions, values = ["1"], []
        for column, value in (("service", service), ("id", run_id)):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        if board is not None:
            conditions.append(f"id IN (SELECT run FROM run_boards WHERE {_called(board)})")
            values += [*board, *board, *board]
        limit = max(0, min(limit, MAX_RUNS))
        where = f"WHERE {' AND '.join(conditions)} ORDER BY seq DESC LIMIT {limit}"
        return self._runs(where, *values, board=board)

    def interrupted_runs(self, service: str | None = None) -> list[Run]:
        """Runs whose process ended in the middle of them and that were not taken up since."""
        return self._runs(
            "WHERE interrupted = 1 AND (? IS NULL OR service = ?) ORDER BY seq DESC",
            *(service, service),
        )

    def take_up(self, run_id: str) -> None:
        """An interrupted run is being carried on, or needs not be."""
        self._store.write(("UPDATE runs SET interrupted = 2 WHERE id = ?", (run_id,)))

    def _close_interrupted_runs(self) -> None:
        """At the start: runs that a dead process left open have failed, when last heard of."""
        if self._store.read_one("SELECT 1 FROM runs WHERE finished_at IS NULL"):
            self._store.write(
                (
                    "UPDATE runs SET outcome = 'failed', interrupted = 1, "
                    "finished_at = updated_at WHERE finished_at IS NULL",
                    (),
                )
            )

    def _runs(
        self, where: str, *values: str | None, board: Sequence[str] | None = None
    ) -> list[Run]:
        rows = self._store.read(f"SELECT * FROM runs {where}", values)
        meant = f" AND ({_called(board)})" if board is not None else ""
        words = [*(board or ()), *(board or ()), *(board or ())]
        runs = []
        for row in rows:
            run = from_row(Run, row)
            boards = self._store.read(
                f"SELECT name, data FROM run_boards WHERE run = ?{meant} ORDER BY name",
                (run.id, *words),
            )
            # In place of a copy: the record was made a line above, and nobody has it yet.
            for row_board in boards:
                try:
                    run.boards[str(row_board["name"])] = load(str(row_board["data"]))
                except ValueError:
                    run.boards[str(row_board["name"])] = {"truncated": True}
            runs.append(run)
        return runs


def _called(words: Sequence[str]) -> str:
    """A condition on rows of `run_boards`, whose values are the words three times."""
    marks = ", ".join("?" * len(words))
    return f"name IN ({marks}) OR mac IN ({marks}) OR port IN ({marks})"


def _bounded(entry: dict[str, Any]) -> str:
    """`entry` as JSON text of at most MAX_ENTRY_BYTES, if leaving out its longest values (a boot
    log, as a rule) makes it so."""
    text = dump(entry)
    left = dict(entry)
    while len(text) > MAX_ENTRY_BYTES and left:
        longest = max(left, key=lambda key: len(json.dumps(left[key], default=str)))
        del left[longest]
        text = dump({**left, "truncated": True})
    return text
