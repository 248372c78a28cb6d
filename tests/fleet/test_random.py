# SPDX-License-Identifier: GPL-3.0-or-later
"""A service with four simulated boards under random orders, unplugs, restarts and bad firmware.

After each step: nobody has a port twice, every order was answered, and what the status says goes
together. In the end, when all is quiet and a good firmware is configured, every board runs it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from esp32_sim.images import Behaviour
from esp32_sim.process import SimBoard
from ota_service.errors import OtaError
from ota_service.fleet import policy
from ota_service.fleet.service import shutdown
from tests.faults.desk import Desk, look

NAMES = ("a", "b", "c", "d")
PANICS = Behaviour(ending="panic", ending_after_s=0.1)
names = st.sampled_from(NAMES)


class Fleet(RuleBasedStateMachine):
    """The service and its boards, driven from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="ota-"))
        self.stack = AsyncExitStack()
        self.number = 0
        self.unplugged: set[str] = set()
        self.went_back: set[str] = set()
        self.url = self.version = ""
        boards = [SimBoard(layout) for layout in ("guide", "micro-rdk", "guide", "micro-rdk")]
        self.desk: Desk = self.runner.run(
            self.stack.enter_async_context(Desk.start(self.folder, boards))
        )
        self.before = {
            name: self.run(asyncio.to_thread(look, self.control(name))) for name in NAMES
        }
        self.target(bad=False)

    def run(self, work: Any) -> Any:
        """Carry out something of the service's."""
        return self.runner.run(work)

    def control(self, name: str) -> Any:
        """A board's control channel."""
        return self.desk.board(name).control

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any] | None:
        """A verb; its reply, None where it is refused, which names why."""
        try:
            reply: dict[str, Any] = self.run(self.desk.command(verb, **arguments))
        except OtaError as error:
            assert error.code in ("stopped", "no-board"), error
            return None
        assert reply["ok"] is True
        return reply

    # --- what happens

    @rule(bad=st.booleans())
    def target(self, bad: bool) -> None:
        """Another firmware is configured; a bad one panics as it starts."""
        self.number += 1
        self.version = f"2.{self.number}.0"
        self.url = self.desk.serve(self.version, behaviour=PANICS if bad else None)
        self.configure()

    def configure(self) -> None:
        """Add the service, or change its attributes."""
        self.run(self.desk.configure(url=self.url, version=self.version, max_attempts=2))

    @rule(board=names, force=st.booleans(), wait_s=st.sampled_from([0, 2]))
    def update(self, board: str, force: bool, wait_s: float) -> None:
        """A person updates a board."""
        self.ask("update", boards=[board], force=force, wait_s=wait_s)

    @rule(verb=st.sampled_from(["stage", "activate"]), board=names, wait_s=st.sampled_from([0, 2]))
    def part(self, verb: str, board: str, wait_s: float) -> None:
        """A part of an update."""
        self.ask(verb, boards=[board], wait_s=wait_s)

    @rule(verb=st.sampled_from(["version", "verify", "rollback"]), board=names)
    def order(self, verb: str, board: str) -> None:
        """A read or a rollback, which may take longer than is waited."""
        if verb == "rollback":
            self.went_back.add(board)
        self.ask(verb, boards=[board], wait_s=2)

    @rule(board=names)
    def cancel(self, board: str) -> None:
        """What is under way for a board is cancelled."""
        self.ask("cancel", boards=[board])

    @rule()
    def lift(self) -> None:
        """Everything may be tried again."""
        self.ask("release", stopped=True)
        self.ask("release", all=True)

    @rule(board=names)
    def unplug(self, board: str) -> None:
        """Somebody pulls a board out, or plugs it in again."""
        if board in self.unplugged:
            self.control(board).plug()
        else:
            self.control(board).unplug()
        self.unplugged ^= {board}

    @rule()
    def restart(self) -> None:
        """The process ends, and the next one takes over."""
        self.run(shutdown())
        self.desk.service = None
        self.configure()

    @rule(seconds=st.sampled_from([0.3, 1.5]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.run(asyncio.sleep(seconds))

    # --- what must hold

    @invariant()
    def holds(self) -> None:
        """One owner a port; states and errors that go together; attempts within their limit."""
        status = self.desk.status()
        for name, board in status["boards"].items():
            counters = self.control(name).counters()
            opened, closed = counters.get("opened", 0), counters.get("closed", 0)
            assert closed <= opened <= closed + 1, (name, counters)
            assert board.get("attempts", 0) <= 2, board
            if board["state"] in ("set_aside", "rolled_back", "failed", "absent"):
                # A person's rollback is no failure.
                by_a_person = board["state"] == "rolled_back" and name in self.went_back
                assert "error" in board or by_a_person, board
            if board["state"] == "up_to_date":
                assert board["version"] == self.version, board
            if board["state"] == "outdated" and "version" in board:
                assert board["version"] != self.version, board
        assert self.desk.service is not None
        for board in self.desk.service._engine.boards.values():
            assert (board.state in policy.SESSIONS) == (board._attempt is not None), board.state

    def teardown(self) -> None:
        """All is quiet, a good firmware is there: every board comes to it."""
        try:
            for name in self.unplugged:
                self.control(name).plug()
            self.unplugged.clear()
            self.target(bad=False)
            self.run(self.desk.wait(lambda now: now["state"] == "idle", timeout_s=90))
            self.lift()
            self.ask("update", wait_s=120)
            status = self.desk.status()
            for name in NAMES:
                board = status["boards"][name]
                assert board["state"] == "up_to_date", (name, board)
                self.run(self.desk.truth(self.before[name], self.version, name))
            for engine_run in self.desk.service._engine.runs if self.desk.service else ():
                for order, _ in engine_run.orders.values():
                    assert order.answer.done()
        finally:
            self.run(self.stack.aclose())
            self.runner.close()
            shutil.rmtree(self.folder, ignore_errors=True)


Fleet.TestCase.settings = settings(
    max_examples=3,
    stateful_step_count=10,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestFleet(Fleet.TestCase):  # type: ignore[misc,valid-type]
    """Three lives of ten steps each; hypothesis shrinks what fails."""
