# SPDX-License-Identifier: GPL-3.0-or-later
"""Drives a rollout: finds out what happened, tells the tables, and does what follows.

Each turn looks at the machines that it is time for, lets the tables decide, and writes at most a
handful of machines: what is true is on disk before and after. It may be killed at any point; the
next `start` reads each machine again and goes on where it really is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

from ota_service.client.failure import Failure
from ota_service.client.machine import Machine
from ota_service.rollout import change, gate, policy
from ota_service.rollout.change import UnfitError, Values
from ota_service.rollout.cloud import (
    ATTEMPTS,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MAX_PARALLEL,
    Cloud,
    Conflict,
    KeyRefused,
    NotSent,
    Part,
    at_once,
)
from ota_service.rollout.document import same
from ota_service.rollout.plan import Plan
from ota_service.rollout.state import KEPT_ANSWERS, Order, Record, Rollout, StateFile

POLL_FIRST_S, POLL_MOST_S = 1.0, 10.0
"""Between two looks at a machine that is waited for; machines ask for their configuration each
10 s by default."""
POLL_GOOD_S, POLL_PASSED_S, POLL_OFFLINE_S = 5.0, 60.0, 10.0
SILENCE_S = 60.0
"""A machine that is silent for less may be the network of whoever asks."""
DIALLED_AGAIN_S = 60.0
"""Between two tries to reach a machine that the app calls offline."""
ORDERS_S = 0.5
FRESH_S = 600.0
"""How old a sensor's captured readings may be for its machine to count as reachable."""
LOOKS_A_SOAK = 20
LOOKS_A_SECOND = 20
"""So much of dialling and asking is left to the machines that are written meanwhile."""
LOOKS_A_TURN = 4 * MAX_PARALLEL
KEPT_CONNECTIONS = 2 * MAX_PARALLEL
LOG_LINES = 12
TURNS_AT_ONCE = 1000
LOOKED_AT: tuple[policy.MachineState, ...] = ("waiting", "good", "offline")
PROGRESS_S = 1.0
_NAMED_AT_MOST = 3

Tell = Callable[[Mapping[str, Any]], None]

CHANGED_BY_OTHERS = "its configuration was changed by somebody else: {now}. It is left as it is."
CHANGED_MEANWHILE = (
    "its configuration was changed by somebody else while it was about to be written ({words}). "
    "Nothing of it was touched; `resume` tries again."
)


def clock_s() -> float:
    """Seconds since 1970: what the state file counts in, from one process to the next."""
    return datetime.now(UTC).timestamp()


async def recall_all(plan: Plan, cloud: Cloud, rollout: Rollout) -> None:
    """Where no state file of a rollout is left: note what each machine that has the target had
    before, as Viam keeps it. Raises Failure."""

    async def recall(record: Record) -> None:
        if record.values is None or not change.holds(record.values, rollout.target):
            record.why = record.why or "it does not have the target"
            return
        try:
            async for text in cloud.history(record.part):
                values = change.values(text, change.spots(plan, text, record.source))
                if not change.holds(values, rollout.target):
                    record.state, record.values, record.text = "waiting", values, text
                    return
        except (UnfitError, Failure) as error:
            record.happened("refused", f"of what it had before: {_lasting(error)}")
            return
        record.happened("refused", "its history does not say what it had before")

    await at_once(recall, rollout.machines)


class Drive:
    """One process's work on one rollout, whose state file it owns.

    tell: gets what happens, as it happens.
    """

    def __init__(
        self,
        plan: Plan,
        cloud: Cloud,
        file: StateFile,
        rollout: Rollout,
        tell: Tell,
    ) -> None:
        self.plan, self.rollout = plan, rollout
        self._cloud, self._file, self._tell = cloud, file, tell
        self._target = change.wanted(plan)
        self._machines = _Connections(cloud, plan.service)
        # The date may jump, also in the middle of a soak: what this process waits for, it counts.
        self._due: dict[str, float] = {}
        self._settled_s = -math.inf
        self._pause_s: dict[str, float] = {}
        # When one that is offline was last dialled.
        self._dialled_at: dict[str, float] = {}
        self._saved_at = 0.0
        self._progress = False

    async def run(self, *, once: bool) -> None:
        """Go on until it is halted, aborted or done; once: until there is only waiting left.

        Raises Failure, once also where the app cannot be asked: what is true is on disk.
        """
        if not once:  # what a process before has missed may be long ago
            for record in self.rollout.machines:
                record.missed_at = None
        try:
            for turn in count():
                self._orders()
                try:
                    changed = await self._turn(everybody=once)
                except Failure as error:
                    if once or not error.unreachable:
                        raise
                    # An outage ends; the machines go on meanwhile.
                    self._tell({"event": "waits", "why": str(error)})
                    await asyncio.sleep(LONGEST_PAUSE_S)
                    continue
                if self.rollout.state in ("halted", "aborted", "done"):
                    return
                if once and (not changed or turn > TURNS_AT_ONCE):
                    return
                if not changed:
                    await self._rest()
        finally:
            self._save()
            await self._machines.close()

    async def undo(self) -> None:
        """Give every machine that was touched its values of before, and nothing else."""
        try:
            self._rollout_event("abort", "undo")
            self._save()
            machines = self.rollout.machines
            for first in range(0, len(machines), MAX_PARALLEL):
                await at_once(self._undo, machines[first : first + MAX_PARALLEL])
                self._save()
        finally:
            self._save()
            await self._machines.close()

    # --- one turn

    async def _turn(self, *, everybody: bool) -> bool:
        """Whether anything happened that may lead to more."""
        before = self._stamp()
        await self._look(everybody)
        if self._decide():
            await self._write_some()
            self._decide()
        changed = self._stamp() != before
        if changed or (self._progress and clock_s() - self._saved_at > PROGRESS_S):
            self._save()
        return changed

    def _stamp(self) -> object:
        rollout = self.rollout
        return (
            rollout.state,
            [(wave.began_at, wave.settled_at) for wave in rollout.waves],
            [(record.state, record.why if record.state != "waiting" else "")
             for record in rollout.machines],
        )  # fmt: skip

    def _decide(self) -> bool:
        """What the machines' states mean, until nothing more follows; whether to write."""
        while True:
            found = self._course()
            self._settle(found.settled)
            if found.event is None or not self._follow(found.event):
                return found.may_write and self.rollout.state in policy.WRITABLE

    def _course(self) -> policy.Course:
        rollout, now_s, timeout_s = self.rollout, clock_s(), self.plan.timeout_s
        machines, newest = rollout.machines, rollout.newest
        return policy.course(
            rollout.state,
            rollout.states,
            rollout.begun,
            silent=sum(record.is_silent for record in machines),
            may_fail=self.plan.max_failed.down(len(machines)),
            proven=any(record.state == "good" and record.good for record in machines),
            soaked=self._soaked(now_s),
            late=newest is not None and now_s > (newest.began_at or now_s) + timeout_s,
        )

    def _soaked(self, now_s: float) -> bool:
        """Whether the newest wave was decided for as long as its soak, and looked at since."""
        begun, newest = self.rollout.begun, self.rollout.newest
        if newest is None or newest.settled_at is None:
            return False
        soak_s = self.plan.soak_of(begun - 1)
        over_at = newest.settled_at + soak_s
        over = now_s >= over_at and time.monotonic() >= self._settled_s + soak_s
        good = (record for record in self.rollout.of_wave(begun - 1) if record.state == "good")
        return over and all((record.seen_at or 0.0) >= over_at for record in good)

    def _settle(self, settled: bool) -> None:
        """The newest wave is decided since now, or still, or not."""
        rollout, newest = self.rollout, self.rollout.newest
        if newest is None or rollout.state not in policy.WRITABLE:
            return
        if not settled:
            newest.settled_at = None
        elif newest.settled_at is None:
            newest.settled_at, self._settled_s = clock_s(), time.monotonic()
            # They are looked at once more when the soak is over.
            for record in rollout.of_wave(rollout.begun - 1):
                self._wait(record, self._interval_s(record))

    def _follow(self, event: policy.RolloutEvent) -> bool:
        """Whether there may be more to decide."""
        rollout, now_s = self.rollout, clock_s()
        begun = rollout.begun
        if event in ("next", "finish") and rollout.newest is not None:
            rollout.newest.passed_at = now_s
            self._tell({"event": "wave", "wave": begun, "state": "passed"})
        why = {"too-many": self._failures, "unproven": self._unproven}.get(event, str)()
        self._rollout_event(event, why)
        if event == "next":
            rollout.waves[begun].began_at = now_s
            machines = [record.name for record in rollout.of_wave(begun)]
            self._tell({"event": "wave", "wave": begun + 1, "state": "begun", "machines": machines})
        return event == "next"

    def _failures(self) -> str:
        machines = self.rollout.machines
        failed = [record for record in machines if record.state == "failed" or record.is_silent]
        may = self.plan.max_failed.down(len(self.rollout.machines))
        some = "; ".join(f"{r.name}: {r.why}" for r in failed[:_NAMED_AT_MOST])
        more = f"; and {len(failed) - _NAMED_AT_MOST} more" if len(failed) > _NAMED_AT_MOST else ""
        count = (
            "1 machine has failed" if len(failed) == 1 else f"{len(failed)} machines have failed"
        )
        return f"{count}, and {may or 'none'} may: {some}{more}"

    def _unproven(self) -> str:
        return (
            f"no board of wave {self.rollout.begun} has shown the firmware, so nothing speaks for "
            "giving it to more machines"
        )

    # --- looking

    async def _look(self, everybody: bool) -> None:
        now_s = time.monotonic()
        asked = [
            record
            for record in self.rollout.machines
            if record.state in LOOKED_AT
            and self.rollout.state != "aborted"
            and (everybody or self._due.get(record.part, 0.0) <= now_s)
        ]
        if not everybody:  # a few at a time, so that orders and failures are not kept waiting
            asked.sort(key=lambda record: self._due.get(record.part, 0.0))
            del asked[LOOKS_A_TURN:]
        await at_once(self._look_at, asked)

    async def _look_at(self, record: Record) -> None:
        if record.state == "offline" and await self._stays_away(record):
            self._wait(record, POLL_OFFLINE_S)
            return
        since_s = max(record.written_at or 0.0, record.seen_at or 0.0)
        status, captured_s, why = await self._status(record, since=since_s)
        now_s = clock_s()
        if record.state == "offline":
            if status is not None:
                self._event(record, "returned", "it can be reached again")
                if self.rollout.state == "done":
                    self._rollout_event("go-on", f"{record.name} is back")
            self._wait(record, POLL_OFFLINE_S)
            return
        by_sensor = captured_s is not None
        seen = None if status is None else self._judged(record, status, by_sensor)
        if (seen is None or not seen.arrived) and await self._foreign(record):
            return
        if seen is None:
            self._missed(record, why, now_s)
        else:
            record.missed_at = None
            # What was captured before a soak was over says nothing of its end.
            record.seen_at = now_s if captured_s is None else min(captured_s, now_s)
            await self._seen(record, seen, now_s)
        pause_s = self._interval_s(record)
        # Readings come when they come.
        self._wait(record, max(pause_s, POLL_GOOD_S) if by_sensor else pause_s)

    def _missed(self, record: Record, why: str, now_s: float) -> None:
        """Silence is neither good nor bad; a wave that has passed is not held up by it."""
        record.missed_at, since_s = record.missed_at or now_s, record.seen_at
        if record.state == "waiting":
            self._told(record, why)
            since_s = record.began_at
        elif record.wave < self.rollout.begun - 1:
            return
        # Where nobody has looked for a night, the first look proves nothing.
        asked = now_s >= record.missed_at + SILENCE_S
        if asked and now_s > (since_s or now_s) + self.plan.timeout_s:
            self._event(record, "lost", f"it has the firmware, and cannot be asked: {why}")

    async def _seen(self, record: Record, seen: gate.Look, now_s: float) -> None:
        self._shown(record, seen)
        late = now_s > (record.began_at or now_s) + self.plan.timeout_s
        if seen.verdict == "good":
            self._event(record, "good", seen.words)
        elif seen.verdict == "bad" or (late and record.state == "waiting"):
            await self._failed(record, seen)
        elif self._event(record, "worse", seen.words):
            record.began_at = now_s
        else:
            self._told(record, seen.words)

    async def _stays_away(self, record: Record) -> bool:
        """Whether it is not worth the time that dialling takes: the app has not heard of it."""
        tried_at = self._dialled_at.get(record.part)
        if tried_at is not None and time.monotonic() < tried_at + DIALLED_AGAIN_S:
            try:
                return (await self._cloud.part(record.part)).offline
            except Failure as error:
                _lasting(error)
                return True
        self._dialled_at[record.part] = time.monotonic()
        return False

    def _judged(self, record: Record, status: gate.Status, by_sensor: bool) -> gate.Look:
        pinned: set[str] = set()
        if by_sensor:  # a status names them itself
            with suppress(ValueError):
                pinned = change.pinned(record.text or "{}", self.plan.service)
        seen = gate.look(status, self.plan.target, record.known or gate.Before(), pinned)
        waits = seen.verdict == "wait" and seen.arrived and status.get("state") == "idle"
        if record.note and waits:
            return replace(seen, words=f"{seen.words}; {record.note}")
        return seen

    def _told(self, record: Record, why: str) -> None:
        if record.why != why:
            record.why, self._progress = why, True

    def _shown(self, record: Record, seen: gate.Look) -> None:
        numbers = (seen.good, seen.total, round(seen.percent, 1))
        if numbers != (record.good, record.total, record.percent):
            record.good, record.total, record.percent = numbers
            self._progress = True

    async def _failed(self, record: Record, seen: gate.Look) -> None:
        bad = seen.verdict == "bad"
        words = seen.words if bad else f"not good after {self.plan.timeout_s:.0f} s: {seen.words}"
        record.board = seen.board
        if seen.board:
            with suppress(Failure):
                record.log = await self._boot_log(record, seen.board)
        self._event(record, "bad" if bad else "late", words)

    async def _boot_log(self, record: Record, board: str) -> list[str]:
        """The last lines of the board's last watched start."""
        async with self._machines.of(record) as machine:
            arguments = {"board": board, "limit": 1, "boot_log": True}
            reply = await machine.command("history", arguments)
        for run in reply.get("runs", []):
            entry = dict(run.get("boards", {})).get(board, {})
            return [str(line) for line in entry.get("boot_log", [])][-LOG_LINES:]
        return []

    async def _foreign(self, record: Record) -> bool:
        """Whether somebody else has changed a machine's values since they were ours."""
        try:
            _, found = await self._found(record)
        except UnfitError as error:
            return self._event(record, "refused", str(error))
        except Failure as error:
            _lasting(error)
            return False  # who does not say is silent, and counts as that
        return not change.holds(found, self._target) and self._conflicts(record, found)

    def _conflicts(self, record: Record, found: Values) -> bool:
        if not self._event(record, "foreign", CHANGED_BY_OTHERS.format(now=_in_words(found))):
            return False
        record.theirs = found
        return True

    async def _status(
        self, record: Record, *, since: float | None = None
    ) -> tuple[gate.Status | None, float | None, str]:
        """What a machine shows, when that was captured where it is a sensor's readings, and why
        it shows nothing."""
        try:
            async with self._machines.of(record) as machine:
                return await machine.status(), None, ""
        except Failure as error:
            why = error.message
        if record.sensor:
            with suppress(Failure):
                found = await self._cloud.readings(record.part, record.sensor)
                fresh = max(clock_s() - FRESH_S, since or 0.0)
                if found is not None and found[0] >= fresh:
                    return gate.from_readings(found[1]), found[0], ""
        return None, None, why

    def _interval_s(self, record: Record) -> float:
        """Until the next look at a machine; where many have begun, each is looked at less often."""
        many = sum(one.wave < self.rollout.begun for one in self.rollout.machines)
        return max(self._own_interval_s(record), many / LOOKS_A_SECOND)

    def _own_interval_s(self, record: Record) -> float:
        begun = self.rollout.begun
        if record.state == "waiting":
            pause_s = self._pause_s.get(record.part, POLL_FIRST_S)
            self._pause_s[record.part] = min(1.4 * pause_s, POLL_MOST_S)
            return pause_s
        if record.state != "good" or record.wave < begun - 1:
            return POLL_PASSED_S
        settled_at = self.rollout.waves[begun - 1].settled_at
        if settled_at is None:
            return POLL_GOOD_S
        soak_s = self.plan.soak_of(begun - 1)
        if (record.seen_at or 0.0) >= settled_at + soak_s:
            return POLL_PASSED_S
        if record.missed_at is not None:
            return POLL_GOOD_S
        pace_s = min(max(POLL_GOOD_S, soak_s / LOOKS_A_SOAK), POLL_PASSED_S)
        return min(pace_s, max(settled_at + soak_s - clock_s(), 0.0))

    def _wait(self, record: Record, pause_s: float) -> None:
        self._due[record.part] = time.monotonic() + pause_s

    async def _rest(self) -> None:
        """Until it is time for a machine, or there is an order."""
        times = [
            self._due.get(record.part, 0.0)
            for record in self.rollout.machines
            if record.state in LOOKED_AT
        ]
        now_s = time.monotonic()
        until = max(min(times, default=now_s + POLL_MOST_S), now_s + 0.05)
        while (left_s := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, ORDERS_S))
            if self._orders():
                return

    # --- writing

    async def _write_some(self) -> None:
        """Prepare a handful of machines of the waves that have begun, keep what they have, and
        then write them."""
        begun = self.rollout.begun
        todo = [r for r in self.rollout.machines if r.wave < begun and r.state == "writing"]
        new = [r for r in self.rollout.machines if r.wave < begun and r.state == "pending"]
        new = new[: max(0, MAX_PARALLEL - len(todo))]
        await at_once(self._prepare, new)
        todo += [record for record in new if record.state == "writing"]
        if todo or new:
            self._save()
        self._orders()
        if todo and self.rollout.state in policy.WRITABLE:
            await at_once(self._send, todo)
            self._save()

    async def _prepare(self, record: Record) -> None:
        """Look at a machine, and remember what it has. Writes nothing."""
        status, _, why = await self._status(record)
        if status is None:
            if await self._was_written(record):
                record.written_at = clock_s()
            self._event(record, "lost", why)
            self._wait(record, POLL_OFFLINE_S)
            return
        # Who has it, and can't be read, is as silent as before.
        read = await self._read(record, "refused" if record.written_at is None else "lost")
        if read is None:
            self._wait(record, POLL_OFFLINE_S)
            return
        part, found = read
        record.address = part.address
        if record.values is None:
            record.values = found
        is_target = change.holds(found, self._target)
        if record.known is None:
            since = is_target and not change.holds(found, record.values)
            record.known = gate.before(status, since=since)
        if change.holds(found, record.values) and (is_target or record.written_at is None):
            record.text = part.text
        elif not is_target:  # also the value before, where it was the target meanwhile
            self._conflicts(record, found)
            return
        self._wait(record, 0.0)
        self._pause_s.pop(record.part, None)
        record.began_at, record.missed_at = clock_s(), None
        if is_target:
            record.written_at = record.written_at or record.began_at
            self._event(record, "already", "it has the target already")
        else:
            self._event(record, "begin")

    async def _read(
        self, record: Record, unread: policy.MachineEvent = "refused"
    ) -> tuple[Part, Values] | None:
        """A machine's part and its values now; None: it is left as it is, with the reason. unread:
        what happens where the app does not show it."""
        try:
            return await self._found(record)
        except UnfitError as error:
            self._event(record, "refused", str(error))
        except Failure as error:
            self._event(record, unread, _lasting(error))
        return None

    async def _found(self, record: Record) -> tuple[Part, Values]:
        """Raises UnfitError, Failure."""
        part = await self._cloud.part(record.part)
        return part, change.values(part.text, change.spots(self.plan, part.text, record.source))

    async def _was_written(self, record: Record) -> bool:
        """Whether a machine got the target since the rollout began, though its record does not
        say so: where the state file is an older one that was put back."""
        if record.written_at is None and record.values is not None:
            try:
                _, found = await self._found(record)
                return change.holds(found, self._target) and not change.holds(found, record.values)
            except (UnfitError, Failure) as error:
                _lasting(error)
        return False

    async def _send(self, record: Record) -> None:
        """Write a machine's part, unless it is as it should be, and read it again."""
        await self._replace(record, self._target, record.values or {}, "sent", change.written)

    async def _replace(
        self,
        record: Record,
        new: Values,
        old: Values,
        event: policy.MachineEvent,
        made: Callable[[str, change.Spots, Values], str],
    ) -> None:
        """Bring a part from its old values to new ones. What counts is what is read afterwards."""
        pause_s, refused = FIRST_PAUSE_S, ""
        sent = event == "sent" and record.written_at is not None  # before an outage
        unread: policy.MachineEvent = event if sent else "refused"
        for _ in range(ATTEMPTS):
            read = await self._read(record, unread)
            if read is None:
                return
            part, found = read
            if change.holds(found, new):
                if event == "sent":
                    record.written_at = record.began_at = clock_s()
                self._event(record, event, record.note)
                return
            if not change.holds(found, old):
                self._conflicts(record, found)
                return
            if refused:
                self._event(record, "refused", CHANGED_MEANWHILE.format(words=refused))
                return
            try:
                where = change.spots(self.plan, part.text, record.source)
                text = made(part.text, where, new)
                if event == "sent":  # from here on it may have it, and is watched
                    unread, record.written_at = event, clock_s()
                    record.began_at = record.written_at
                await self._cloud.write(part, text)
            except (UnfitError, Failure) as error:
                self._event(record, "refused", _lasting(error))
                return
            except Conflict as error:
                # Nobody documents with which status; what is read next says whether it is one.
                refused = str(error)
            except NotSent:
                # It may have arrived: what is read next says so.
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise Failure(
            f"The configuration of {record.name} could not be written.",
            "Try again later: `start` goes on with it.",
            code="unreachable",
        )

    # --- undoing

    async def _undo(self, record: Record) -> None:
        if record.state == "undone":  # who gave it the target since was not this rollout
            return
        known = record.text is not None or record.written_at is not None
        if not known and not await self._was_written(record):
            return
        before = record.values or {}

        def made(text: str, where: change.Spots, new: Values) -> str:
            whole = record.text
            if whole is not None:
                with suppress(UnfitError):
                    then = change.spots(self.plan, whole, record.source)
                    if same(text, change.written(whole, then, self._target)):
                        return whole
            return change.restored(text, where, new)

        await self._replace(record, before, self._target, "undone", made)

    # --- telling

    def _event(self, record: Record, event: policy.MachineEvent, why: str = "") -> bool:
        old = (record.state, record.why)
        if not record.happened(event, why):
            return False
        if old != (record.state, record.why):
            told: dict[str, Any] = {"machine": record.name, "state": record.state, "why": why}
            if record.state == "failed":
                told |= {"board": record.board, "boot_log": record.log}
            self._tell({"event": "machine", **told})
        return True

    def _rollout_event(self, event: policy.RolloutEvent, why: str = "") -> None:
        old = self.rollout.state
        if self.rollout.happened(event, why) and self.rollout.state != old:
            self._tell({"event": "rollout", "state": self.rollout.state, "why": why})

    def _orders(self) -> bool:
        """Follow what others have asked; whether there was anything."""
        orders = [one for one in self._file.orders() if one.key not in self.rollout.answered]
        for order in orders:
            if obey(self.rollout, order, clock_s()):
                self._tell({"event": "rollout", "state": self.rollout.state, "why": order.verb})
        if orders:
            self._save()
        return bool(orders)

    def _save(self) -> None:
        self._saved_at = clock_s()
        self._progress = False
        self._file.save(self.rollout)


def obey(rollout: Rollout, order: Order, now_s: float) -> bool:
    """Carry out a person's pause, resume or abort, once; whether there was a row for it."""
    answered = rollout.answered
    if order.key not in answered:
        answered[order.key] = rollout.happened(order.verb)
        for old in list(answered)[:-KEPT_ANSWERS]:
            del answered[old]
        if order.verb == "resume" and answered[order.key]:
            _again(rollout, now_s)
    return answered[order.key]


def _again(rollout: Rollout, now_s: float) -> None:
    """What has failed is to be looked at again."""
    for record in rollout.machines:
        if record.theirs is not None:
            # What somebody else has put there is what it has before ours.
            record.values, record.text, record.theirs = record.theirs, None, None
        if record.happened("again"):
            record.board, record.log, record.written_at = "", [], None
    for wave in rollout.waves:
        wave.settled_at = None
    if rollout.newest is not None:
        rollout.newest.began_at = now_s


def _lasting(error: UnfitError | Failure) -> str:
    """What keeps a machine from being read or written; what is not about it is raised again."""
    if isinstance(error, KeyRefused) or (isinstance(error, Failure) and error.unreachable):
        raise error
    return str(error)


def _in_words(values: Values) -> str:
    shown = {key: change.shown(value) for key, value in values.items() if value}
    return ", ".join(f"{key} is {value}" for key, value in shown.items()) or "it has no values"


class _Connections:
    """To machines' services: those used last are kept."""

    def __init__(self, cloud: Cloud, service: str) -> None:
        self._credentials, self._service = cloud.credentials, service
        self._kept: OrderedDict[str, Machine] = OrderedDict()

    @asynccontextmanager
    async def of(self, record: Record) -> AsyncIterator[Machine]:
        """One machine's service, for the length of a block."""
        machine = self._kept.pop(record.part, None)
        if machine is None:
            machine = Machine(self._credentials.access(record.address, self._service))
        try:
            yield machine
        finally:
            self._kept[record.part] = machine
            while len(self._kept) > KEPT_CONNECTIONS:
                await self._kept.popitem(last=False)[1].close()

    async def close(self) -> None:
        """Disconnect from all."""
        while self._kept:
            await self._kept.popitem()[1].close()
