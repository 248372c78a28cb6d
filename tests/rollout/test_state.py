# SPDX-License-Identifier: GPL-3.0-or-later
"""Orders to a rollout reach whoever drives it, each one once, whenever that begins or ends."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from ota_service.cli.rollout import rollout as command
from ota_service.rollout.drive import obey
from ota_service.rollout.policy import RolloutState
from ota_service.rollout.state import Order, Record, Rollout, StateFile, WaveRecord

PLAN = {
    "select": {"organization": "o"},
    "target": {"url": "http://a/b.bin", "version": "2"},
    "mode": "attributes",
    "waves": ["100%"],
}


@contextmanager
def driven(
    folder: Path, state: RolloutState, drive: Callable[[StateFile, Rollout], None]
) -> Iterator[Path]:
    """A plan's file and its rollout, which somebody has, and drives by `drive` once it is asked."""
    path = folder / "plan.json"
    path.write_text(json.dumps(PLAN))
    file, ready = StateFile(path), threading.Event()
    failed = Record(name="m", part="p", wave=0, state="failed")
    known = Rollout(digest="d", target={}, started_at=1.0, waves=[WaveRecord()], machines=[failed])
    known.state = state
    file.save(known)

    def owner() -> None:
        with file.owned():
            ready.set()
            drive(file, known)

    thread = threading.Thread(target=owner)
    thread.start()
    ready.wait()
    yield path
    thread.join()


def asked(file: StateFile) -> Order:
    """The order that comes."""
    while True:
        for order in file.orders():
            return order
        threading.Event().wait(0.005)


def run(path: Path, verb: str) -> Result:
    """The command, as a person calls it."""
    return CliRunner().invoke(command, [verb, str(path), "--json"])


def test_what_was_followed_is_not_followed_again_when_its_owner_has_ended(tmp_path: Path) -> None:
    """`resume` is obeyed, the rollout halts anew at once and `start` ends: what failed since stays
    failed, and the rollout halted, as nobody has asked for more."""

    def drive(file: StateFile, known: Rollout) -> None:
        assert obey(known, asked(file), 2.0)
        known.machines[0].state = "failed"
        known.happened("too-many", "again")
        file.save(known)

    with driven(tmp_path, "halted", drive) as path:
        done = run(path, "resume")
    assert done.exit_code == 0, done
    assert json.loads(done.stdout)["state"] == "halted"
    left = StateFile(path).load()
    assert left is not None
    assert (left.state, left.machines[0].state) == ("halted", "failed")


def test_a_pause_that_was_lifted_at_once_is_known_to_have_been_followed(tmp_path: Path) -> None:
    """Between two looks of whoever asked for it; it does not wait for a state that has gone by."""
    ended = threading.Event()

    def drive(file: StateFile, known: Rollout) -> None:
        assert obey(known, asked(file), 2.0)
        assert obey(known, Order("resume", "another"), 2.0)
        file.save(known)
        ended.wait(20.0)

    with driven(tmp_path, "running", drive) as path:
        with mock.patch("ota_service.cli.rollout.ANSWER_S", 2.0):
            done = run(path, "pause")
        ended.set()
    assert done.exit_code == 0, done
    assert json.loads(done.stdout)["state"] == "running"


@pytest.mark.parametrize(("verb", "then"), [("resume", "running"), ("abort", "aborted")])
def test_who_ends_without_a_look_leaves_the_order_to_who_gave_it(
    tmp_path: Path, verb: str, then: str
) -> None:
    """`start` has done its last look at its orders when one comes."""

    def drive(file: StateFile, known: Rollout) -> None:
        asked(file)

    with driven(tmp_path, "halted", drive) as path:
        done = run(path, verb)
    assert done.exit_code == 0, done
    assert json.loads(done.stdout)["state"] == then
    left = StateFile(path).load()
    assert left is not None
    assert left.state == then


def test_what_it_cannot_follow_any_more_is_said(tmp_path: Path) -> None:
    """It was running when `pause` was typed, and is done by now."""

    def drive(file: StateFile, known: Rollout) -> None:
        known.happened("finish")
        assert not obey(known, asked(file), 2.0)
        file.save(known)

    with driven(tmp_path, "running", drive) as path:
        done = run(path, "pause")
    assert "The rollout is done: it cannot pause." in str(done.exception or done.output)


def test_a_new_owner_gets_what_lies_there_for_it_and_nothing_twice(tmp_path: Path) -> None:
    """The lock is emptied by who takes it; an order that comes just then, or that is left again
    since it is gone, is read."""
    path, order = tmp_path / "plan.json", Order("resume", "a1")
    owner, other = StateFile(path), StateFile(path)
    emptied = os.ftruncate

    def meanwhile(fd: int, size: int) -> None:
        emptied(fd, size)
        other.ask(order)

    with mock.patch("os.ftruncate", meanwhile), owner.owned():
        other.ask(order)
        assert owner.orders() == [order]
        other.ask(order)
        assert owner.orders() == []
    with owner.owned():
        assert owner.orders() == []
        other.ask(order)
        other.ask(Order("pause", "b2"))
        assert owner.orders() == [order, ("pause", "b2")]


def test_an_order_is_obeyed_once(tmp_path: Path) -> None:
    """However often it is seen; and those of long ago are forgotten."""
    known = Rollout(digest="d", target={}, started_at=1.0, waves=[], machines=[])
    assert obey(known, Order("pause", "1"), 2.0)
    assert obey(known, Order("resume", "2"), 2.0)
    assert obey(known, Order("pause", "1"), 2.0)
    assert known.state == "running"
    assert not obey(known, Order("resume", "3"), 2.0)
    for number in range(200):
        obey(known, Order("resume", f"later{number}"), 2.0)
    assert 3 < len(known.answered) <= 100
