# SPDX-License-Identifier: GPL-3.0-or-later
"""The robot's own word: what it is asked around each session with a board, and about new firmware.

`before_restart` is asked before the port is claimed, so that a module which drives the board can
let go of it; `after_restart` is owed from that moment on, whatever comes: the journal knows it
before anything is asked, and the next process pays what a killed one owed. Where several boards
have the same `after_restart`, the last of those that are in a session at a time pays for all: a
robot that was parked for two boards does not drive off while one of them is being written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ota_service.errors import OtaError
from ota_service.firmware.urls import redact
from ota_service.fleet import policy
from ota_service.fleet.board_state import utc_now
from ota_service.fleet.journal_rows import OwedCallRecord
from ota_service.fleet.settings import NoSuchResource, RobotCall, Settings

if TYPE_CHECKING:
    from ota_service.fleet.around import Around

Result = TypeVar("Result")
ENDING_S = 2.0
"""How long a call may take when the process ends: the boards need the rest of its 10 s."""
ASKED_AGAIN_S = 5 * policy.ROBOT_POLL_S
"""How long the journal keeps what is not owed after a no: who asks again meanwhile needs no row."""
_WORDS_MAX_CHARS = 200


class Robot(Protocol):
    """The machine's resources, as this moment's configuration gives them to the service."""

    async def may_restart(self) -> bool:
        """Whether `allow_restart`'s sensor says yes; no sure yes is a no."""

    async def ask(self, call: RobotCall) -> Mapping[str, Any]:
        """The reply of a DoCommand. Raises NoSuchResource, and whatever the way to the resource,
        or itself, raises."""


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a call: none where nobody answered. words: the reply that is no yes, or why
    there is none. sent: whether the resource may have heard of it."""

    answer: Literal["yes", "no", "none"]
    words: str = ""
    sent: bool = True


@dataclass(eq=False)
class Stop:
    """How a session is told to stop. at_all: for whatever reason; ending: the process ends."""

    at_all: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Event = field(default_factory=asyncio.Event)


def fits(expected: Any, value: Any) -> bool:
    """Whether a reply's value is the expected one: numbers by value, and of an object each of the
    keys that are expected."""
    if isinstance(expected, Mapping):
        return isinstance(value, Mapping) and all(
            key in value and fits(wanted, value[key]) for key, wanted in expected.items()
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(expected)
            and all(map(fits, expected, value))
        )
    # True is 1 for Python, and for nobody else.
    return isinstance(expected, bool) == isinstance(value, bool) and bool(expected == value)


def _words(text: str) -> str:
    """What a resource said, safe to show in a line."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(redact(text).split()))
    return text if len(text) <= _WORDS_MAX_CHARS else f"{text[:_WORDS_MAX_CHARS]}..."


async def unless(stop: asyncio.Event, work: Awaitable[Result], grace_s: float = 0.0) -> Result:
    """What something comes to, unless `stop` is set `grace_s` before. Raises OtaError
    `cancelled`."""

    async def stopped() -> None:
        await stop.wait()
        await asyncio.sleep(grace_s)

    task, other = asyncio.ensure_future(work), asyncio.ensure_future(stopped())
    try:
        await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise OtaError("cancelled")
        return task.result()
    finally:
        for one in (task, other):
            one.cancel()
        await asyncio.gather(task, other, return_exceptions=True)


class Calls:
    """One service's calls."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._given_back = asyncio.Condition()
        # The sessions that go on, by what is to be called after them; a board may be renamed.
        self._out: defaultdict[str, set[Stop]] = defaultdict(set)
        self._late: set[str] = set()
        # Rows of the journal for which nothing is owed, since the robot has just said no.
        self._refused: dict[tuple[str, str], object] = {}

    async def ask(self, call: RobotCall, timeout_s: float | None = None) -> Said:
        """One call. What a resource raises is no answer: only its reply can be a no."""
        robot, limit_s = self._around.robot, call.timeout_s if timeout_s is None else timeout_s
        try:
            if robot is None:
                raise NoSuchResource("there is no machine around this program")
            async with asyncio.timeout(limit_s):
                reply = await robot.ask(call)
        except NoSuchResource as error:
            return Said("none", str(error), sent=False)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Said("none", f"{call.resource} has given up")  # it was closed meanwhile
        except TimeoutError:
            return Said("none", f"{call.resource} did not answer within {limit_s:g} s")
        except Exception as error:
            return Said("none", f"{call.resource}: {_words(str(error)) or type(error).__name__}")
        if call.expect is None or fits(call.expect, reply):
            return Said("yes")
        text = json.dumps(reply, ensure_ascii=False, default=str)
        return Said("no", f"{call.resource} replied {_words(text)}")

    @contextlib.asynccontextmanager
    async def around(
        self, board: str, settings: Settings, stop: Stop, *, overridden: bool
    ) -> AsyncIterator[None]:
        """A session with a board goes on within.

        overridden: before_restart is called all the same, so that the port is let go of, but its
        no is not minded. Raises OtaError `not-allowed-now`, and `cancelled`.
        """
        before, after, owed = settings.before_restart, settings.after_restart, True
        if after is not None:  # it may just be called for others, which may take long
            await unless(stop.at_all, self._go_out(after, stop))
        try:
            if after is not None:
                await self._owe(_key(after), board)
            if before is not None:
                said = await unless(stop.at_all, self.ask(before))
                if said.answer != "yes" and not overridden:
                    # Who says no has done nothing; of who said nothing nobody knows.
                    owed = said.answer == "none" and said.sent
                    raise OtaError(
                        "not-allowed-now", f"The robot does not allow it now: {said.words}."
                    )
            yield
        finally:
            if after is not None:
                await self._pay(board, after, stop, owed=owed)

    async def _owe(self, key: str, board: str) -> None:
        """In the journal, before anything is asked."""
        if self._refused.pop((key, board), None) is None:
            record = OwedCallRecord(self._service, board, key, utc_now())
            await self._around.journaled(self._around.memory.journal.put, record)

    async def given_back(self, after: RobotCall | None) -> None:
        """Return when no board is in a session that has the same `after_restart`."""
        async with self._given_back:
            await self._given_back.wait_for(lambda: after is None or not self._out[_key(after)])

    async def _go_out(self, after: RobotCall, stop: Stop) -> None:
        key = _key(after)
        async with self._locks[key]:
            self._out[key].add(stop)

    async def _pay(self, board: str, after: RobotCall, stop: Stop, *, owed: bool) -> None:
        """A board's session is over, or there was none. The last one pays for all that owe it."""
        key = _key(after)
        try:
            async with self._locks[key]:
                if not owed:
                    no = self._refused[key, board] = object()
                    self._around.spawn(self._let_be(key, board, no))
                if self._out[key] == {stop} and await self._rows(call=key):
                    await self._call_now(key, board, after, stop)
        finally:  # whatever becomes of the journal: others wait for it
            self._out[key].discard(stop)
            async with self._given_back:
                self._given_back.notify_all()

    async def _let_be(self, key: str, board: str, no: object) -> None:
        """A row for which nothing is owed goes, unless the board asks again soon."""
        try:
            await asyncio.sleep(ASKED_AGAIN_S)
        finally:
            if self._refused.get((key, board)) is no:
                del self._refused[key, board]
                await self._forget(call=key, board=board)

    async def _call_now(self, key: str, board: str, after: RobotCall, stop: Stop) -> None:
        try:
            said = await unless(stop.ending, self.ask(after), ENDING_S)
        except OtaError:
            said = Said("none", "the process ends")
        if said.answer == "yes":
            await self._paid(key)
            return
        text = "%s: after_restart is called again later: %s"
        self._around.log.warning(text, board, said.words)
        if not stop.ending.is_set():
            self._around.spawn(self._until_paid(key, policy.RETRY_PAUSES_S))

    async def owed(self) -> None:
        """What a process owed that has died is paid now."""
        rows = await self._rows()
        for key in {row.call for row in rows}:
            names = ", ".join(row.board for row in rows if row.call == key)
            self._around.log.info("%s: after_restart was not called; it is now", names)
            self._around.spawn(self._until_paid(key, (0.0, *policy.RETRY_PAUSES_S)))

    async def _until_paid(self, key: str, pauses_s: tuple[float, ...]) -> None:
        """Until nobody owes it any more; a session that goes on pays by itself."""
        if key in self._late:
            return
        self._late.add(key)
        try:
            call = RobotCall(**json.loads(key))
            for pause_s in chain(pauses_s, repeat(pauses_s[-1])):
                await asyncio.sleep(pause_s)
                async with self._locks[key]:
                    if self._out[key]:
                        continue
                    said = await self.ask(call) if await self._rows(call=key) else Said("yes")
                    given_up = said.answer != "yes" and not self._names(call.resource)
                    if given_up:
                        text = "%s is not in the configuration any more: its after_restart is %s"
                        self._around.log.warning(text, call.resource, "not called again")
                    if given_up or said.answer == "yes":
                        await self._paid(key)
                        break
        finally:
            self._late.discard(key)

    def _names(self, resource: str) -> bool:
        """Whether the configuration, as it is by now, has the robot say something by it."""
        settings = self._around.settings
        of_boards = map(settings.of, (None, *(settings.boards or ())))
        calls = ((of.before_restart, of.after_restart, of.health_check) for of in of_boards)
        return any(call is not None and call.resource == resource for call in chain(*calls))

    async def _paid(self, key: str) -> None:
        """Nobody owes it any more."""
        for known in [known for known in self._refused if known[0] == key]:
            del self._refused[known]
        await self._forget(call=key)

    @property
    def _service(self) -> str:
        return self._around.settings.service

    async def _rows(self, **where: str) -> list[OwedCallRecord]:
        journal = self._around.memory.journal
        found = partial(journal.all, OwedCallRecord, service=self._service, **where)
        rows = await self._around.journaled(found)
        return [row for row in rows if (row.call, row.board) not in self._refused]

    async def _forget(self, **where: str) -> None:
        journal, service = self._around.memory.journal, self._service
        await self._around.journaled(journal.drop, OwedCallRecord, service=service, **where)


def _key(call: RobotCall) -> str:
    """A call as text, by which the journal knows it."""
    shown = {"resource": call.resource, "command": call.command, "timeout_s": call.timeout_s}
    if call.expect is not None:
        shown["expect"] = call.expect
    return json.dumps(shown, sort_keys=True, ensure_ascii=False)
