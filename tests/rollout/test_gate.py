# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a machine is good, by its status alone."""

from __future__ import annotations

from typing import Any

import pytest

from ota_service.module.sensor import readings_of
from ota_service.rollout import gate
from ota_service.rollout.gate import Before
from ota_service.rollout.plan import Target
from ota_service.rollout.state import Record

TARGET = Target(url="http://user:pw@host/new.bin", version="2")
SHOWN = {"url": "http://***@host/new.bin", "version": "2"}
GOOD = {"state": "up_to_date", "version": "2", "good": True, "confirmed": True}
UNSEEN = {"state": "up_to_date", "version": "2", "good": False}
BACK = {"state": "rolled_back", "good": False, "error": {"code": "boot-failed", "message": "No."}}
PINNED = {"state": "failed", "good": False, "target": {"version": "1"}}
OF_IMAGE = {"image": "motor", "target": {"url": "http://host/motor.bin", "version": "1.9"}}
KNOWN = Before(leave=("old",), boards=("a", "b"), run="r1")
STOPPED = {"code": "stopped", "message": "Too many."}


def status(boards: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A service's, once the target has arrived."""
    return {"state": "idle", "target": SHOWN, "boards": boards, "run": {"id": "r2"}, **more}


CASES: list[tuple[str, dict[str, Any], Before, str]] = [
    ("all good", status({"a": GOOD, "b": GOOD}), KNOWN, "good"),
    ("another version yet", status({"a": GOOD}, target={"version": "1"}), KNOWN, "wait"),
    ("no target", status({"a": GOOD}, target={}), KNOWN, "wait"),
    ("one is busy", status({"a": GOOD, "b": {"state": "updating", "phase": "writing"}}), KNOWN,
     "wait"),
    ("not seen to start", status({"a": GOOD, "b": UNSEEN}), KNOWN, "wait"),
    ("outdated", status({"a": GOOD, "b": {"state": "outdated"}}), KNOWN, "wait"),
    ("one went back", status({"a": GOOD, "b": BACK}), KNOWN, "bad"),
    ("failed", status({"a": {"state": "failed"}, "b": GOOD}), KNOWN, "bad"),
    ("set aside", status({"a": {"state": "set_aside"}, "b": GOOD}), KNOWN, "bad"),
    ("cannot take it, now", status({"a": {"state": "unsupported"}, "b": GOOD}), KNOWN, "bad"),
    ("one went away", status({"a": GOOD, "b": {"state": "absent"}}), KNOWN, "wait"),
    ("one is no longer listed", status({"a": GOOD}), KNOWN, "wait"),
    ("absent before", status({"a": GOOD, "b": GOOD, "old": {"state": "absent"}}), KNOWN, "good"),
    ("unsupported before", status({"a": GOOD, "b": GOOD, "old": BACK}), KNOWN, "good"),
    ("pinned ones go their way", status({"a": GOOD, "b": GOOD, "p": PINNED}), KNOWN, "good"),
    ("a manifest's boards count", status({"a": {**GOOD, **OF_IMAGE, "version": "1.9"},
     "b": {"state": "outdated", **OF_IMAGE}}), KNOWN, "wait"),
    ("one went back, of a manifest", status({"a": {**BACK, **OF_IMAGE}, "b": GOOD}), KNOWN, "bad"),
    ("a manifest's are all good", status({"a": {**GOOD, **OF_IMAGE}, "b": GOOD}), KNOWN, "good"),
    ("a candidate is nobody's", status({"a": GOOD, "b": GOOD, "c": {"state": "candidate"}}),
     KNOWN, "good"),
    ("came since, and none of ours", status({"a": GOOD, "b": GOOD, "c": {"state": "unsupported"}}),
     KNOWN, "good"),
    ("came since, and went back", status({"a": GOOD, "b": GOOD, "c": BACK}), KNOWN, "bad"),
    ("stopped", status({"a": {"state": "outdated"}, "b": GOOD}, error=STOPPED), KNOWN, "bad"),
    ("stopped, of the run before", status({"a": {"state": "outdated"}, "b": GOOD},
     error=STOPPED, run={"id": "r1"}), KNOWN, "wait"),
    ("a file that is none", status({"a": {"state": "outdated"}, "b": GOOD},
     error={"code": "not-an-image"}, run={"id": "r2", "outcome": "failed"}), KNOWN, "bad"),
    ("a file that may yet come", status({"a": {"state": "outdated"}, "b": GOOD},
     error={"code": "download-failed"}, run={"id": "r2", "outcome": "failed"}), KNOWN, "wait"),
    ("its run goes on", status({"a": {"state": "outdated"}, "b": GOOD}, state="updating",
     error={"code": "not-an-image"}, run={"id": "r2", "outcome": "running"}), KNOWN, "wait"),
    ("the same version, from elsewhere", status({"a": GOOD},
     target={"version": "2", "url": "http://host/old.bin"}), Before(), "wait"),
    ("the same version, arrived", status({"a": GOOD}), Before(), "good"),
    ("no board at all", status({}), Before(), "good"),
    ("no board yet", status({}, state="checking"), Before(), "wait"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shown", "known", "verdict"), CASES, ids=[c[0] for c in CASES])
def test_the_gate(name: str, shown: dict[str, Any], known: Before, verdict: str) -> None:
    """What is not good is not good; what is bad is told with its board."""
    seen = gate.look(shown, TARGET, known)
    assert seen.verdict == verdict, seen
    assert seen.words
    if "went back" in name:
        assert seen.board
        assert "boot-failed" in seen.words


@pytest.mark.parametrize(
    ("name", "shown", "known", "verdict"),
    [case for case in CASES if "error" not in case[1] and "elsewhere" not in case[0]],
    ids=[case[0] for case in CASES if "error" not in case[1] and "elsewhere" not in case[0]],
)
def test_the_sensors_readings_say_the_same(
    name: str, shown: dict[str, Any], known: Before, verdict: str
) -> None:
    """Where the machine cannot be asked; pinned boards are known from the configuration."""
    seen = gate.look(gate.from_readings(readings_of(shown)), TARGET, known, ("p",))
    assert seen.verdict == verdict, seen


def test_a_digest_tells_two_files_of_one_address() -> None:
    """The version and the url were there before: only with its digest the target has arrived."""
    target = Target(url="http://host/new.bin", version="2", sha256="ab" * 32)
    for digest, verdict in ((None, "wait"), ("cd" * 32, "wait"), ("ab" * 32, "good")):
        shown = {"url": "http://host/new.bin", "version": "2", "sha256": digest}
        shown = {key: value for key, value in shown.items() if value is not None}
        seen = gate.look(status({"a": GOOD}, target=shown), target, Before())
        assert (seen.verdict, seen.arrived) == (verdict, verdict == "good")


def test_boards_whose_names_are_alike() -> None:
    """One that was away before excuses itself alone."""
    known = gate.before(status({"bow-1": {"state": "absent"}, "bow_1": GOOD}))
    seen = gate.look(status({"bow-1": {"state": "absent"}, "bow_1": BACK}), TARGET, known)
    assert (seen.verdict, seen.board) == ("bad", "bow_1")


def test_readings_of_a_stopped_firmware() -> None:
    """The one error of the service that a rollout must not wait for."""
    shown = status({"a": {"state": "outdated"}}, error=STOPPED)
    assert gate.look(gate.from_readings(readings_of(shown)), TARGET, Before()).verdict == "bad"


def test_what_is_remembered_from_before() -> None:
    """Boards that are told and not counted; those that count, without pinned ones."""
    boards = {
        "kitchen light": GOOD,
        "away": {"state": "absent"},
        "never": {"state": "unsupported"},
        "theirs": {"state": "unrecognised"},
        "p": PINNED,
        "tired": {"state": "set_aside"},
    }
    known = gate.before(status(boards))
    assert known.leave == ("away", "never", "theirs")
    assert known.boards == ("kitchen light", "tired")
    assert known.run == "r2"
    # The sensor's keys have no blanks.
    direct = status({"kitchen light": GOOD, "tired": GOOD, "p": PINNED})
    after = gate.from_readings(readings_of(direct))
    assert gate.look(after, TARGET, known, ("p",)).verdict == "good"
    assert gate.look(direct, TARGET, gate.before(after)).verdict == "good"


def test_what_an_older_version_remembered_is_taken() -> None:
    """A rollout goes on with a newer tool."""
    old = '{"name": "m", "part": "p", "wave": 0, "known": {"leave": ["old"], "version": "1"}}'
    assert Record.model_validate_json(old).known == Before(leave=("old",))


def test_numbers_for_people() -> None:
    """How many of those that count are good, and how far the others are."""
    half = {"state": "updating", "phase": "writing", "progress": {"percent": 50.0}}
    seen = gate.look(status({"a": GOOD, "b": half, "old": BACK, "p": PINNED}), TARGET, KNOWN)
    assert (seen.good, seen.total, seen.percent) == (1, 2, 75.0)
    of_images = status({name: {**GOOD, **OF_IMAGE} for name in ("a", "b")})
    assert gate.before(of_images).boards == ("a", "b")
    seen = gate.look(of_images, TARGET, KNOWN)
    assert (seen.good, seen.total) == (2, 2)
