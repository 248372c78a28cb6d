# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a rollout: a file beside its plan, with one owner at a time.

Two files: PLAN.state.json is replaced as a whole and reaches the disk before anything is done that
it speaks of. PLAN.state.lock is locked by the process that drives the rollout; others leave their
orders in it (pause, resume, abort), a line each with a key. That an order was followed stands in
the state, since by the time that somebody looks the rollout may have gone further, or have ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ota_service.client.failure import Failure
from ota_service.firmware.files import read_file, write_file
from ota_service.rollout import policy
from ota_service.rollout.change import Source, Values
from ota_service.rollout.gate import Before

Verb = Literal["pause", "resume", "abort"]
MAX_BYTES = 1 << 30
LOOKS, LOOK_S = 3, 0.1
KEPT_ANSWERS = 100
_ORDER = re.compile(rf"^({'|'.join(get_args(Verb))}) (\S+)$", re.MULTILINE)


class Order(NamedTuple):
    """What a person asks for. key: of this one order, however often it is seen."""

    verb: Verb
    key: str


class Record(BaseModel):
    """One machine's part.

    source: where its values are. values: before the rollout, each as the JSON
    text that stood there. text: the whole configuration before our change, as soon as there may
    be one.
    written_at: from when on it has the target, or may have it; began_at: from when on its time
    counts; seen_at: when it last showed how it is; missed_at: since when it does not, though it is
    asked. note: what its boards wait for, where it is known.
    known: what it showed before. board, log: of the board that failed, with its start's last lines.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    part: str
    wave: int
    address: str = ""
    sensor: str = ""
    state: policy.MachineState = "pending"
    why: str = ""
    note: str = ""
    source: Source = Source()
    values: Values | None = None
    text: str | None = None
    theirs: Values | None = None
    written_at: float | None = None
    began_at: float | None = None
    seen_at: float | None = None
    missed_at: float | None = None
    known: Before | None = None
    board: str = ""
    log: list[str] = []
    good: int = 0
    total: int = 0
    percent: float = 0.0

    @property
    def is_silent(self) -> bool:
        """Whether it has the target, for all that is known, and can't be asked how it is."""
        return self.state == "offline" and self.written_at is not None

    def happened(self, event: policy.MachineEvent, why: str = "") -> bool:
        """Go where the table says; whether there is a row for it."""
        to = policy.MACHINE.get((self.state, event))
        if to is None:
            return False
        self.state, self.why = to, why
        return True


class WaveRecord(BaseModel):
    """One wave. began_at: of its first machine; settled_at: since when all of it is decided."""

    model_config = ConfigDict(extra="forbid")

    began_at: float | None = None
    settled_at: float | None = None
    passed_at: float | None = None


class Rollout(BaseModel):
    """All that is known of one. digest: of the plan; target: what it brings, for people.
    answered: by the keys of the newest orders, whether there was a row for each."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    digest: str
    target: Values
    state: policy.RolloutState = "running"
    why: str = ""
    started_at: float
    waves: list[WaveRecord]
    machines: list[Record]
    answered: dict[str, bool] = {}

    @property
    def begun(self) -> int:
        """How many waves have begun."""
        return sum(wave.began_at is not None for wave in self.waves)

    @property
    def newest(self) -> WaveRecord | None:
        """The wave that has begun last."""
        return self.waves[self.begun - 1] if self.begun else None

    @property
    def states(self) -> list[list[policy.MachineState]]:
        """Of the machines of each wave."""
        states: list[list[policy.MachineState]] = [[] for _ in self.waves]
        for record in self.machines:
            states[record.wave].append(record.state)
        return states

    def happened(self, event: policy.RolloutEvent, why: str = "") -> bool:
        """Go where the table says; whether there is a row for it."""
        to = policy.ROLLOUT.get((self.state, event))
        if to is None:
            return False
        self.state, self.why = to, why
        return True

    def of_wave(self, number: int) -> list[Record]:
        """The machines of a wave."""
        return [machine for machine in self.machines if machine.wave == number]


class StateFile:
    """The state of the plan at `plan`. One instance owns it at a time, in `owned`."""

    def __init__(self, plan: Path) -> None:
        self.path = plan.with_name(f"{plan.name}.state.json")
        self._lock = plan.with_name(f"{plan.name}.state.lock")
        self._read = 0

    def load(self) -> Rollout | None:
        """What is on disk; None: no rollout was begun. Raises OtaError "file-access", Failure."""
        if not self.path.exists():
            return None
        try:
            return Rollout.model_validate_json(read_file(self.path, MAX_BYTES))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise Failure(
                f"{self.path} is no state of a rollout that this version knows ({first['msg']}).",
                "Put a copy of it back, or take it away and `undo` from the machines' histories.",
                code="file-access",
            ) from None

    def save(self, rollout: Rollout) -> None:
        """Put it on disk before anything else happens. Raises OSError."""
        write_file(self.path, rollout.model_dump_json(exclude_defaults=True).encode())

    def put_aside(self, rollout: Rollout) -> None:
        """Make room for another one; of the same plan there may be several. Raises OSError."""
        name = f"{self.path.name}.{rollout.digest[:8]}-{rollout.started_at:.3f}"
        places = (self.path.with_name(f"{name}-{again}") for again in count(1))
        self.path.rename(next(place for place in places if not place.exists()))

    @contextmanager
    def owned(self, looks: int = LOOKS) -> Iterator[None]:
        """Be the one that drives it. Raises Failure where another process does, also when it was
        looked for so many times more."""
        fd = self._taken()
        for _ in range(looks):  # whoever only looks has it for a moment, too
            if fd is None:
                time.sleep(LOOK_S)
                fd = self._taken()
        if fd is None:
            raise Failure(
                f"Another process drives this rollout ({self._holder()}).",
                "`status --watch` follows it; `pause` and `abort` reach it.",
                code="state-busy",
            )
        try:
            yield
        finally:
            os.close(fd)

    @property
    def is_driven(self) -> bool:
        """Whether some process drives it now. Raises OSError."""
        if not self._lock.exists():
            return False
        fd = self._taken()
        if fd is not None:
            os.close(fd)
        return fd is None

    def orders(self) -> list[Order]:
        """What others have asked of the owner since the last time."""
        with contextlib.suppress(OSError), self._lock.open("rb") as file:
            file.seek(self._read)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read += len(whole)
            found = _ORDER.findall(whole.decode("ascii", "replace"))
            return [Order(verb, key) for verb, key in found]
        return []

    def ask(self, order: Order) -> None:
        """Leave an order to the owner, unless it lies there: a new owner empties the lock. Raises
        OSError."""
        fd = os.open(self._lock, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        line = f"{order.verb} {order.key}\n".encode()
        try:
            if line not in os.read(fd, os.fstat(fd).st_size):
                os.write(fd, line)
        finally:
            os.close(fd)

    # --- inside

    def _taken(self) -> int | None:
        """The lock; None: another process has it. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._lock, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        os.ftruncate(fd, 0)
        self._read = 0  # somebody may ask before the next line
        os.write(fd, f"pid {os.getpid()}\n".encode())
        return fd

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            found = re.search(r"^pid \d+$", self._lock.read_text("ascii", "replace"), re.MULTILINE)
            return found[0] if found else "pid"
        return "its pid is not known"
