# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of boards that go forward or back as a whole, in a whole service over boards in memory.

What each board starts, and the tag in its NVS, are told by the simulator's bootloader and a reader
of its own; minutes take milliseconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ota_service.errors import OtaError
from ota_service.firmware.target import Target
from ota_service.fleet.board import heard
from ota_service.fleet.group import Group
from ota_service.fleet.service import FleetService, shutdown
from ota_service.fleet.settings import RobotCall
from tests.prove import images
from tests.prove.board import quiet
from tests.prove.cells import Cells
from tests.prove.groups import NAMES, Scene, phase_of, settled, unfinished, until
from tests.prove.prover import edits_remembered
from tests.prove.robot import Fault, Killed, Robot, RobotLink

pytestmark = pytest.mark.slow

GOOD, PANICS, SHY = images.NEW, images.PANICS, images.SHY
OLD = dict.fromkeys(NAMES, ("old", "rel-1"))
NEW = dict.fromkeys(NAMES, ("new", "rel-2"))
Act = Callable[[FleetService, Robot], Awaitable[Any]]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    with quiet(), edits_remembered():
        yield


def scene(*brings: images.Firmware, **more: Any) -> Scene:
    """Three boards; what is not said is good."""
    firmwares = (*brings, GOOD, GOOD, GOOD)[:3]
    return Scene("test", firmwares, **more)  # type: ignore[arg-type]


async def to_the_end(service: FleetService, robot: Robot) -> dict[str, Any]:
    """The status when everything has come to its end."""
    await settled(service, robot)
    robot.apps_live()
    return service.status()


def runs(robot: Robot) -> dict[str, tuple[str, str | None]]:
    """What each board starts, and its tag."""
    return {name: robot.generation(name) for name in NAMES}


def states(status: Mapping[str, Any]) -> dict[str, str]:
    """Of the boards."""
    return {name: board["state"] for name, board in status["boards"].items()}


async def phases(service: FleetService, seen: list[str]) -> None:
    """Note each phase that the status shows."""
    while True:
        phase = phase_of(service.status())
        if not seen or seen[-1] != phase:
            seen.append(phase)
        await asyncio.sleep(0.01)


def test_all_good_is_final(tmp_path: Path) -> None:
    """Staged, switched, confirmed: every board has the new generation, and the journal is done."""
    robot, seen = scene().robot(tmp_path), []  # type: ignore[var-annotated]

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        watching = asyncio.ensure_future(phases(service, seen))
        status = await to_the_end(service, robot)
        watching.cancel()
        return status

    status = robot.live(act)
    assert runs(robot) == NEW
    assert set(states(status).values()) == {"up_to_date"}
    assert all(board["good"] for board in status["boards"].values())
    assert status["run"]["outcome"] == "succeeded"
    assert "error" not in status
    assert unfinished(robot) == []
    assert [phase for phase in seen if phase not in ("", "over")] == [
        "staging",
        "switching",
        "confirming",
    ]


def test_a_group_that_is_good_stays_so(tmp_path: Path) -> None:
    """Another start, or a person's update, does nothing and succeeds; a board behind the group
    still gets its firmware."""
    robot = scene(order=(NAMES[:2], NAMES[2:])).robot(tmp_path)
    edit_manifest(robot, together=[list(NAMES[:2])])
    robot.live(to_the_end)
    for act in (to_the_end, update_now):
        status = robot.live(act)
        assert (status["run"]["outcome"], status.get("error")) == ("succeeded", None)

    async def eyes_again(service: FleetService, robot: Robot) -> dict[str, Any]:
        await service.command("rollback", {"boards": ["eyes"], "wait_s": 60.0})
        await service.command("release", {"all": True})
        return await update_now(service, robot)

    robot.live(eyes_again, auto_update=False)
    assert runs(robot) == NEW
    assert unfinished(robot) == []


def edit_manifest(robot: Robot, **changes: Any) -> None:
    """Change some of what the manifest says."""
    file = robot.folder / "files" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("order", "rollback"),
    [
        ((NAMES,), False),
        ((("eyes",), NAMES[:2]), False),
        ((("arm",), ("base", "eyes")), True),
    ],
)
def test_one_that_does_not_start_takes_all_back(
    tmp_path: Path, order: tuple[tuple[str, ...], ...], rollback: bool
) -> None:
    """Also those that are good by then, or have confirmed themselves: firmware and version. The
    target is stopped; the run failed."""
    robot = scene(GOOD, GOOD, PANICS, order=order, rollback=rollback).robot(tmp_path)
    status = robot.live(to_the_end)
    assert runs(robot) == OLD
    assert states(status) == {"arm": "outdated", "base": "outdated", "eyes": "rolled_back"}
    assert {board["version"] for board in status["boards"].values()} == {"rel-1"}
    assert (status["run"]["outcome"], status["error"]["code"]) == ("failed", "stopped")
    assert "eyes" in status["error"]["message"]
    assert unfinished(robot) == []
    back = [tick.who for tick in robot.ticks if tick.what.startswith("rolling_back")]
    switched = ["eyes"] if order[0] == ("eyes",) else ["eyes", "base", "arm"]
    assert list(dict.fromkeys(back)) == switched

    async def again(service: FleetService, robot: Robot) -> dict[str, Any]:
        status = await to_the_end(service, robot)
        with pytest.raises(OtaError) as refused:
            await service.command("update", {})
        assert refused.value.code == "stopped"
        return status

    began = {name: len(robot.cells[name].changed) for name in NAMES}
    status = robot.live(again)  # another process: nothing is tried again
    assert runs(robot) == OLD
    assert {name: len(robot.cells[name].changed) for name in NAMES} == began
    assert states(status)["eyes"] == "rolled_back"


def test_a_group_is_not_begun_without_one_of_its_boards(tmp_path: Path) -> None:
    """It is named; nothing is written. When it is there, the group begins by itself."""
    robot = scene().robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> None:
        status = await to_the_end(service, robot)
        assert status["error"]["code"] == "manifest-incomplete"
        assert "eyes" in status["error"]["message"]
        assert (status["run"]["outcome"], runs(robot)) == ("failed", OLD)
        assert not any(tick.what.startswith("writing") for tick in robot.ticks)
        robot.plug("eyes")
        await asyncio.sleep(3)
        status = await to_the_end(service, robot)
        assert status["run"]["outcome"] == "succeeded"

    robot.unplug("eyes")
    robot.live(act)
    assert runs(robot) == NEW


def test_a_group_is_not_begun_where_no_board_gets_one_of_its_images(tmp_path: Path) -> None:
    """A board may have another name by now: the others do not go without it."""
    robot = scene().robot(tmp_path)
    edit_manifest(robot, boards={"arm": "arm", "torso": "base", "eyes": "eyes"})
    status = robot.live(to_the_end)
    assert status["error"]["code"] == "manifest-incomplete"
    assert "no board gets base" in status["error"]["message"]
    assert runs(robot) == OLD
    assert not any(tick.what.startswith("writing") for tick in robot.ticks)


@pytest.mark.slow
def test_a_person_who_names_some_of_a_group_is_told_of_the_others(tmp_path: Path) -> None:
    """No board of a group goes alone; where the others are good already, it does."""
    robot = scene().robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> None:
        await service.command("update", {"boards": ["arm", "base"], "wait_s": 60.0})
        status = service.status()
        assert status["error"]["code"] == "manifest-incomplete"
        assert "eyes" in status["error"]["message"]
        assert runs(robot) == OLD
        await service.command("update", {"wait_s": 60.0})
        assert runs(robot) == NEW

    robot.live(act, auto_update=False)


@pytest.mark.parametrize("at", ["staging", "switching", "going_back"])
def test_cancel_before_the_end_takes_the_group_back(tmp_path: Path, at: str) -> None:
    """Whatever it is at: staged boards keep what they have, switched ones go back. No board is
    held, and no firmware is stopped, since nothing speaks against it."""
    one = PANICS if at == "going_back" else GOOD
    robot = scene(GOOD, GOOD, one, order=(NAMES[:2], NAMES[2:])).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        await until(service, lambda now: phase_of(now) == at)
        await service.command("cancel", {})
        return await to_the_end(service, robot)

    status = robot.live(act)
    assert runs(robot) == OLD
    assert unfinished(robot) == []
    if at == "going_back":
        assert status["error"]["code"] == "stopped"
    else:
        assert status["run"]["outcome"] == "cancelled"
        assert set(states(status).values()) == {"outdated"}
        assert robot.live(update_now)["run"]["outcome"] == "succeeded"
        assert runs(robot) == NEW


@pytest.mark.parametrize("at", ["staging", "switching"])
def test_a_cancel_of_one_member_takes_the_group_back(tmp_path: Path, at: str) -> None:
    """Also of one whose step is yet to come."""
    robot = scene(order=(("arm",), ("base",), ("eyes",)), rollback=True).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        await until(service, lambda now: phase_of(now) == at)
        await service.command("cancel", {"boards": ["eyes"]})
        return await to_the_end(service, robot)

    status = robot.live(act)
    assert runs(robot) == OLD
    assert status["run"]["outcome"] == "cancelled"
    assert unfinished(robot) == []


async def update_now(service: FleetService, robot: Robot) -> dict[str, Any]:
    """A person asks."""
    await service.command("update", {"wait_s": 300.0})
    return await to_the_end(service, robot)


@pytest.mark.slow
@pytest.mark.parametrize("last", [GOOD, PANICS])
def test_another_target_waits_for_the_end_of_the_group(
    tmp_path: Path, last: images.Firmware
) -> None:
    """Forward or back; then every board gets what is wanted by now."""
    robot = scene(GOOD, GOOD, last, order=(NAMES[:2], NAMES[2:])).robot(tmp_path)
    (tmp_path / "next.bin").write_bytes(images.NEXT.data)
    ended: list[Any] = []
    outcomes: list[Any] = []
    settle = Group.settle

    async def settle_late(group: Group) -> None:
        await heard(group.boards)  # they are held against the other target by then
        await settle(group)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        await until(service, lambda now: phase_of(now) == "switching")
        first = service._engine.last_run
        assert first is not None
        target = Target(str(tmp_path / "next.bin"), "rel-3")
        service = await FleetService.open(robot.settings(target=target))
        await first.done.wait()
        ended.append(runs(robot))
        (noted,) = (await service.command("history", {"id": first.id}))["runs"]
        outcomes.append((noted["outcome"], {one["outcome"] for one in noted["boards"].values()}))
        return await to_the_end(service, robot)

    with patch.object(Group, "settle", settle_late):
        status = robot.live(act)
    assert ended == [NEW if last is GOOD else OLD]
    good, back = ("succeeded", {"up_to_date"}), ("failed", {"outdated", "rolled_back"})
    assert outcomes == [good if last is GOOD else back]
    assert runs(robot) == dict.fromkeys(NAMES, ("next", "rel-3"))
    assert status["run"]["outcome"] == "succeeded"


def killed_in(robot: Robot, phase: str) -> None:
    """A life that ends without warning when its group comes to a phase."""

    async def act(service: FleetService, robot: Robot) -> None:
        await until(service, lambda now: phase_of(now) == phase)
        robot.dead = True
        raise Killed

    with pytest.raises(Killed):
        robot.live(act)


@pytest.mark.parametrize("phase", ["switching", "going_back"])
def test_another_process_first_finishes_what_the_journal_says(tmp_path: Path, phase: str) -> None:
    """The configuration was changed while the module was down, in the middle of a switch."""
    last = GOOD if phase == "switching" else PANICS
    robot = scene(GOOD, GOOD, last, order=(NAMES[:2], NAMES[2:])).robot(tmp_path)
    (tmp_path / "next.bin").write_bytes(images.NEXT.data)

    async def killed(service: FleetService, robot: Robot) -> None:
        await until(service, lambda now: phase_of(now) == phase)
        robot.faults = ()
        robot._due = {len(robot.ticks) + 3: Fault(0, "kill")}
        await asyncio.sleep(600)

    robot.live_apart(killed)
    assert robot.dead
    assert unfinished(robot) == [phase]
    (tmp_path / "files" / "manifest.json").unlink()
    ended: list[Any] = []

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        await until(service, lambda _: len(service._engine.runs) > 1)
        first, *_ = service._engine.runs
        await first.done.wait()
        ended.append(runs(robot))
        return await to_the_end(service, robot)

    robot.live(act, target=Target(str(tmp_path / "next.bin"), "rel-3"))
    assert ended[0] in (NEW, OLD)
    assert phase != "going_back" or ended == [OLD]
    assert runs(robot) == dict.fromkeys(NAMES, ("next", "rel-3"))


def test_what_was_begun_is_fetched_with_the_secrets_of_the_configuration(tmp_path: Path) -> None:
    """The journal has none; a member that has to be seen again may need its image."""
    robot = scene().robot(tmp_path)
    secret = (("X-Key", "s3cret-of-the-server"),)
    robot.options["target"] = replace(robot.options["target"], headers=secret)

    async def killed(service: FleetService, robot: Robot) -> None:
        await until(service, lambda now: phase_of(now) == "switching")
        robot._due = {len(robot.ticks) + 3: Fault(0, "kill")}
        await asyncio.sleep(600)

    robot.live_apart(killed)
    assert robot.dead

    async def act(service: FleetService, robot: Robot) -> None:
        await until(service, lambda _: len(service._engine.runs) > 0)
        first, *_ = service._engine.runs
        await first.done.wait()
        assert [order.target.headers for order, _ in first.orders.values()] == [secret] * 3

    robot.live(act)
    assert runs(robot) == NEW


def tick_of(robot: Robot, who: str, what: str) -> int:
    """The number of the last thing of its kind that happened to a board."""
    return max(n for n, t in enumerate(robot.ticks, 1) if t.who == who and t.what.startswith(what))


@pytest.mark.slow
@pytest.mark.parametrize("for_s", [20.0, 0.0])
def test_a_member_that_is_unplugged_behind_its_switch(tmp_path: Path, for_s: float) -> None:
    """Back within 5 minutes: the group goes on. Else it goes back, and the member when it is there
    again."""
    robot = scene().robot(tmp_path / "first")
    robot.live(to_the_end)
    tick = tick_of(robot, "base", "booting: restart")
    robot = scene().robot(tmp_path / "second")
    robot.faults = (Fault(tick, "unplug", for_s),)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        status = await to_the_end(service, robot)
        if not for_s:
            assert status["error"]["code"] == "link-lost"
            assert "base" in status["error"]["message"]
            assert {name: robot.generation(name) for name in ("arm", "eyes")} == {
                name: OLD[name] for name in ("arm", "eyes")
            }
            assert status["run"]["manifest"]["half"] == ["base"]
            before = status["run"]["id"]
            robot.plug("base")
            await until(service, lambda now: now["run"]["id"] != before)
        return await to_the_end(service, robot)

    status = robot.live(act)
    assert runs(robot) == (NEW if for_s else OLD)
    assert "half" not in status["run"]["manifest"]
    assert unfinished(robot) == []


@contextmanager
def deaf(name: str) -> Iterator[dict[str, bool]]:
    """A board that does not answer while `["now"]`, and is plugged in all the time."""
    right, is_deaf = RobotLink.reconnect, {"now": False}

    def reconnect(link: RobotLink) -> None:
        if link.name == name and is_deaf["now"]:
            raise OtaError("link-lost")
        right(link)

    with patch.object(RobotLink, "reconnect", reconnect):
        yield is_deaf


async def owing(service: FleetService, robot: Robot, is_deaf: dict[str, bool]) -> None:
    """A person cancels, and a board cannot be had for its way back."""
    await until(service, lambda now: "up_to_date" in states(now).values())
    is_deaf["now"] = True
    await service.command("cancel", {})
    await settled(service, robot)
    assert runs(robot) == {**OLD, "base": NEW["base"]}


async def for_a_minute(service: FleetService, robot: Robot) -> None:
    """A life in which nothing is to happen."""
    await asyncio.sleep(60)


@pytest.mark.parametrize("then", ["restart", "plug"])
def test_what_was_owed_is_void_when_the_group_has_gone_forward(tmp_path: Path, then: str) -> None:
    """Nothing takes a robot back that was updated again, and succeeded."""
    robot = scene(rollback=True).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> None:
        await owing(service, robot, is_deaf)
        is_deaf["now"] = False
        assert (await update_now(service, robot))["run"]["outcome"] == "succeeded"
        if then == "plug":
            robot.unplug("arm", 10.0)
            await asyncio.sleep(40)
            await settled(service, robot)

    with deaf("base") as is_deaf:
        robot.live(act)
        if then == "restart":
            robot.live(for_a_minute, auto_update=False)
    assert runs(robot) == NEW
    assert unfinished(robot) == []


def test_a_way_back_is_tried_again_while_its_board_is_there(tmp_path: Path) -> None:
    """A link that does not answer for a while is nobody's plug."""
    robot = scene(rollback=True).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> None:
        await owing(service, robot, is_deaf)
        await asyncio.sleep(300)
        assert runs(robot)["base"] == NEW["base"]
        is_deaf["now"] = False
        await asyncio.sleep(600)

    with deaf("base") as is_deaf:
        robot.live(act)
    assert runs(robot) == OLD
    assert unfinished(robot) == []


@pytest.mark.parametrize("where", ["_how", "_place", "_brought", "begin", "switch"])
def test_what_nobody_foresaw_leaves_no_group_half(tmp_path: Path, where: str) -> None:
    """Once, wherever it happens: the group goes back, or does so when it is tried again;
    everybody is answered, and the module goes on."""
    robot = scene(GOOD, GOOD, PANICS, order=(NAMES[:2], NAMES[2:])).robot(tmp_path)
    right, left = getattr(Group, where), [1 if where == "begin" else 2]

    async def fails(group: Group, *args: Any) -> Any:
        left[0] -= where == "begin" or group.state != "staging"
        if left[0] == 0:
            raise OSError("no more threads")
        return await right(group, *args)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        status = await to_the_end(service, robot)
        assert status["run"]["outcome"] != "succeeded"
        await asyncio.sleep(100)
        return await to_the_end(service, robot)

    with patch.object(Group, where, fails):
        status = robot.live(act)
    assert runs(robot) == OLD
    assert unfinished(robot) == []
    assert status["state"] == "idle"


class Word:
    """A robot that answers its health checks one after the other, and the last answer again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.allows: Callable[[], bool] = lambda: True

    async def may_restart(self) -> bool:
        """Unless told otherwise."""
        return self.allows()

    async def ask(self, call: RobotCall) -> Mapping[str, Any]:
        """The next answer."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise LookupError("it is away")
        return {"well": answer}


CHECK = RobotCall("arm", {"check": True}, {"well": True}, timeout_s=5.0)
STEPS = (("arm",), ("base", "eyes"))


@pytest.mark.parametrize("half", [True, False])
def test_the_robot_s_no_leaves_no_group_half(tmp_path: Path, half: bool) -> None:
    """In the middle of the switch it is heeded for five minutes, and so it is before the way back;
    before the first switch for as long as it lasts."""
    robot = scene(order=STEPS).robot(tmp_path)
    word = robot.word = Word(True)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        def allows() -> bool:
            now = service.status()
            begun = phase_of(now) in ("switching", "going_back")
            return not begun or (half and states(now)["arm"] not in ("up_to_date", "outdated"))

        word.allows = allows
        await until(service, lambda now: phase_of(now) == "switching")
        await asyncio.sleep(250)
        assert runs(robot) == (OLD | {"arm": NEW["arm"]} if half else OLD)
        assert service.status()["run"]["manifest"].get("half") == (["arm"] if half else None)
        await asyncio.sleep(1000)
        if not half:
            assert phase_of(service.status()) == "switching"
            word.allows = lambda: True
        return await to_the_end(service, robot)

    status = robot.live(act)
    assert runs(robot) == (OLD if half else NEW)
    assert unfinished(robot) == []
    assert status.get("error", {}).get("code") == ("not-allowed-now" if half else None)


@pytest.mark.parametrize("state", ["going_back", "checking", "updating"])
def test_the_end_of_the_process_begins_with_no_further_board(tmp_path: Path, state: str) -> None:
    """Whoever is at rest then stays so; the next start goes on."""
    back = state == "going_back"
    last, order = (SHY, (NAMES,)) if back else (GOOD, (NAMES[:2], NAMES[2:]))
    robot = scene(GOOD, GOOD, last, rollback=True, order=order).robot(tmp_path)
    phase = "going_back" if back else "switching"
    robot.word = Word(None if state == "checking" else True)

    async def act(service: FleetService, robot: Robot) -> set[str]:
        def at_it(now: Mapping[str, Any]) -> bool:
            boards = service._engine.boards.values()
            return phase_of(now) == phase and any(b.state == state for b in boards)

        await until(service, at_it)
        busy = {name for name, board in service._engine.boards.items() if not board.free}
        began = len(robot.ticks)
        await shutdown()
        return {tick.who for tick in robot.ticks[began:]} - {"journal", *busy}

    check = replace(CHECK, timeout_s=60.0)
    assert robot.live(act, health_check=check) == set()


@pytest.mark.parametrize(
    ("answers", "order", "ends"),
    [
        ((True,), (NAMES,), "final"),
        ((True, True, False), (NAMES,), "back"),
        ((True, True, False), STEPS, "back"),
        ((True, True, None), (NAMES,), "kept"),
        ((None,), STEPS, "back"),
    ],
)
def test_the_robot_s_word_counts_for_all_of_a_group(
    tmp_path: Path, answers: tuple[Any, ...], order: tuple[tuple[str, ...], ...], ends: str
) -> None:
    """A no takes all back, and speaks against the firmware. A missing answer does not where all
    are switched; but no further one is then, so where some are not, those that are go back."""
    robot = scene(order=order).robot(tmp_path)
    robot.word = Word(*answers)
    status = robot.live(to_the_end, health_check=CHECK)
    assert runs(robot) == (OLD if ends == "back" else NEW)
    assert unfinished(robot) == []
    error = status.get("error", {}).get("code")
    if ends == "final":
        assert (status["run"]["outcome"], error) == ("succeeded", None)
    elif ends == "kept":
        assert error == "check-unanswered"
        assert [b["good"] for b in status["boards"].values()].count(False) == 1
    else:
        assert error == ("stopped" if False in answers else "check-unanswered")
        assert status["run"]["outcome"] == "failed"


def test_a_no_behind_a_missing_answer_takes_all_back(tmp_path: Path) -> None:
    """Nobody answered when they were switched; when they are seen again, the robot does."""
    robot = scene().robot(tmp_path)
    word = robot.word = Word(None)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        status = await to_the_end(service, robot)
        assert (status["error"]["code"], runs(robot)) == ("check-unanswered", NEW)
        word.answers = [False]
        return await update_now(service, robot)

    status = robot.live(act, health_check=CHECK)
    assert runs(robot) == OLD
    assert status["error"]["code"] == "stopped"
    assert unfinished(robot) == []


def test_an_image_that_raises_a_secure_version_is_no_part_of_a_group(tmp_path: Path) -> None:
    """There may be no way back from it: it is refused before anything is written to any board."""
    raises = images._firmware("raises", "rel-2", "1.1.0", 20_000, secure_version=2)
    robot = scene(GOOD, GOOD, raises).robot(tmp_path)
    status = robot.live(to_the_end)
    assert status["error"]["code"] == "manifest-incomplete"
    assert "eyes: The image's secure version is 2" in status["error"]["message"]
    assert runs(robot) == OLD
    assert not any(tick.what.startswith("writing") for tick in robot.ticks)


@pytest.mark.slow
def test_two_groups_that_meet_in_a_step_have_their_own_ends(tmp_path: Path) -> None:
    """One goes back; the other one, which is whole, stays. Boards of no group come in their
    step."""
    robot = scene(GOOD, GOOD, PANICS, order=(("arm", "eyes"), ("base",))).robot(tmp_path)
    edit_manifest(robot, together=[["arm"], ["eyes"]])
    status = robot.live(to_the_end)
    assert runs(robot) == {"arm": NEW["arm"], "base": OLD["base"], "eyes": OLD["eyes"]}
    assert states(status) == {"arm": "up_to_date", "base": "outdated", "eyes": "rolled_back"}
    assert unfinished(robot) == []


def test_groups_whose_images_have_alike_names_are_told_apart(tmp_path: Path) -> None:
    """The journal has each by a name of its own."""
    robot, noted, note = scene().robot(tmp_path), set(), Group._note
    images = json.loads((tmp_path / "files" / "manifest.json").read_text())["images"]
    named = dict(zip(NAMES, ("a", "b", "a+b"), strict=True))
    edit_manifest(
        robot, images={named[name]: images[name] for name in NAMES}, boards=named, order=[],
        together=[["a", "b"], ["a+b"]],
    )  # fmt: skip

    async def seen(group: Group, *args: Any) -> None:
        noted.add(group.id)
        await note(group, *args)

    with patch.object(Group, "_note", seen):
        robot.live(to_the_end)
    assert len(noted) == 2
    assert runs(robot) == NEW


@pytest.mark.parametrize("together", [[["arm", "eyes"]], [["arm", "eyes"], ["base"]]])
@pytest.mark.parametrize("killed_at", ["arm", "base"])
def test_another_process_keeps_the_order_of_a_block(
    tmp_path: Path, together: list[list[str]], killed_at: str
) -> None:
    """A board that stands between two of a group, of another one or of none, is good before the
    second one is switched."""
    robot = scene(order=tuple((name,) for name in NAMES)).robot(tmp_path / "first")
    edit_manifest(robot, together=together)
    robot.live(to_the_end)
    tick = tick_of(robot, killed_at, "booting: restart")
    robot = scene(order=tuple((name,) for name in NAMES)).robot(tmp_path / "second")
    edit_manifest(robot, together=together)
    robot.faults = (Fault(tick, "kill"),)
    robot.live_apart(to_the_end)
    assert robot.dead
    robot.faults = ()

    async def late(service: FleetService, robot: Robot) -> dict[str, Any]:
        """What is waited for takes its time."""
        if len(together) > 1:
            robot.unplug("base", 60.0)
        return await to_the_end(service, robot)

    status = robot.live(late)
    assert runs(robot) == NEW
    assert status["run"]["outcome"] == "succeeded"
    assert unfinished(robot) == []
    order = [tick.who for tick in robot.ticks if tick.what.startswith("switching")]
    assert set(order[order.index("eyes") :]) == {"eyes"}
    told = [f"{tick.who} {tick.what.partition(':')[0]}" for tick in robot.ticks]
    assert "base booting" in told[: told.index("eyes switching")]


@pytest.mark.slow
def test_members_that_are_good_already_are_not_touched(tmp_path: Path) -> None:
    """Of one that is to be updated again, the others stay what they are, forward and back."""
    robot = scene().robot(tmp_path)
    robot.live(to_the_end)
    assert runs(robot) == NEW
    start = robot.starts["eyes"]
    robot.cells["eyes"] = Cells(start.contents())  # by somebody else
    before = {name: robot.cells[name].key() for name in NAMES}
    status = robot.live(update_now)
    assert status["run"]["outcome"] == "succeeded"
    assert runs(robot) == NEW
    assert {name: robot.cells[name].key() for name in NAMES[:2]} == {
        name: before[name] for name in NAMES[:2]
    }


@pytest.mark.slow
@pytest.mark.parametrize("order", [(NAMES,), STEPS])
@pytest.mark.parametrize("last", [GOOD, PANICS])
def test_a_group_is_staged_by_night_and_activated_as_a_whole(
    tmp_path: Path, order: tuple[tuple[str, ...], ...], last: images.Firmware
) -> None:
    """By its verbs: what is staged changes nothing; an activation needs no server, goes forward or
    back as an update does, and begins nothing where a member is not staged."""
    robot = scene(GOOD, GOOD, last, order=order).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        await service.command("stage", {"boards": ["arm", "base"], "wait_s": 60.0})
        await service.command("activate", {"wait_s": 60.0})
        assert service.status()["error"]["code"] == "manifest-incomplete"
        assert "eyes: Nothing is staged" in service.status()["error"]["message"]
        await service.command("stage", {"wait_s": 60.0})
        assert runs(robot) == OLD
        assert all("staged" in board for board in service.status()["boards"].values())
        for name in NAMES:
            (tmp_path / "files" / f"{name}.bin").unlink()
        await service.command("activate", {"wait_s": 60.0})
        return await to_the_end(service, robot)

    status = robot.live(act, auto_update=False)
    assert runs(robot) == (NEW if last is GOOD else OLD)
    assert status["run"]["outcome"] == ("succeeded" if last is GOOD else "failed")
    assert unfinished(robot) == []


def test_what_is_good_needs_no_activation(tmp_path: Path) -> None:
    """Where one board was taken back by a person, only that one is staged and activated again."""
    robot = scene().robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        for _ in range(2):
            await service.command("stage", {"wait_s": 60.0})
            await service.command("activate", {"wait_s": 60.0})
            assert runs(robot) == NEW
            await service.command("rollback", {"boards": ["eyes"], "wait_s": 60.0})
            await service.command("release", {"all": True})
            assert runs(robot) == {**NEW, "eyes": OLD["eyes"]}
        return await update_now(service, robot)

    status = robot.live(act, auto_update=False)
    assert runs(robot) == NEW
    assert status["run"]["outcome"] == "succeeded"


@pytest.mark.slow
def test_one_that_fails_stops_the_others_on_their_way(tmp_path: Path) -> None:
    """One that is before its switch keeps what it has; one that waits for its app's word is not
    waited for."""
    robot = scene(PANICS, SHY, SHY, rollback=True).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> float:
        await until(service, lambda now: phase_of(now) == "going_back")
        began_s = robot.now_s()
        await to_the_end(service, robot)
        return robot.now_s() - began_s

    lasted_s = robot.live(act)
    assert runs(robot) == OLD
    assert lasted_s < 45  # apps have 60 s to confirm themselves


@pytest.mark.slow
def test_power_fails_while_an_app_may_confirm_itself(tmp_path: Path) -> None:
    """Its bootloader goes back by itself; the tag goes with it, and all others."""
    robot = scene(rollback=True).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        await until(service, lambda now: now["boards"]["base"]["state"] == "awaiting_confirmation")
        robot.links["base"].boots_by_itself()
        return await to_the_end(service, robot)

    status = robot.live(act)
    assert runs(robot) == OLD
    assert unfinished(robot) == []
    assert states(status) == {"arm": "outdated", "base": "rolled_back", "eyes": "outdated"}


def test_a_member_that_gets_another_name_is_the_same_board(tmp_path: Path) -> None:
    """The configuration renames a board in the middle of the switch, which it may be known by in
    other runs: the group first ends, and nobody is lost."""
    robot = scene(rollback=True, order=tuple((name,) for name in NAMES)).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> float:
        await until(service, lambda now: phase_of(now) == "switching")
        first, began_s = service._engine.last_run, robot.now_s()
        assert first is not None
        boards = tuple(
            replace(b, name="torso") if b.name == "base" else b
            for b in robot.settings().boards or ()
        )
        service = await FleetService.open(replace(robot.settings(), boards=boards))
        await asyncio.sleep(2)
        free = asyncio.ensure_future(service._engine.groups.free(["torso"]))
        await first.done.wait()
        assert first.outcome == "succeeded"
        await free
        return robot.now_s() - began_s

    assert robot.live(act) < 240  # apps have 60 s each to confirm themselves
    assert runs(robot) == NEW
    assert unfinished(robot) == []


@pytest.mark.slow
def test_a_member_that_is_listed_no_more_ends_with_its_group(tmp_path: Path) -> None:
    """The configuration drops a board in the middle of the switch: the group first ends."""
    robot = scene(GOOD, GOOD, PANICS, order=(NAMES[:2], NAMES[2:])).robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> None:
        await until(service, lambda now: phase_of(now) == "switching")
        first = service._engine.last_run
        assert first is not None
        fewer = tuple(b for b in robot.settings().boards or () if b.name != "arm")
        service = await FleetService.open(replace(robot.settings(), boards=fewer))
        await first.done.wait()
        await to_the_end(service, robot)

    robot.live(act)
    assert runs(robot) == OLD
    assert unfinished(robot) == []


def test_without_a_journal_on_the_disk_no_group_is_switched(tmp_path: Path) -> None:
    """The next start might know nothing of it."""
    robot = scene().robot(tmp_path)

    async def act(service: FleetService, robot: Robot) -> dict[str, Any]:
        await until(service, lambda now: phase_of(now) == "staging")
        journal = service._engine.memory.journal
        journal.problem = OtaError("disk-full")
        with patch.object(type(journal), "_find_file", lambda self: None):
            return await to_the_end(service, robot)

    status = robot.live(act)
    assert status["error"]["code"] == "disk-full"
    assert runs(robot) == OLD


@pytest.mark.slow
def test_two_that_fail_at_the_same_time(tmp_path: Path) -> None:
    """Each goes back by itself, and the third one with them."""
    robot = scene(PANICS, GOOD, PANICS).robot(tmp_path)
    status = robot.live(to_the_end)
    assert runs(robot) == OLD
    assert states(status) == {"arm": "rolled_back", "base": "outdated", "eyes": "rolled_back"}
    assert unfinished(robot) == []


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_what_is_owed_is_taken_back_only_while_it_is_wanted(tmp_path: Path, same: bool) -> None:
    """By another process, too: with another target the member gets that, and is not taken back
    first; the journal forgets what was owed."""
    robot = scene().robot(tmp_path)
    (tmp_path / "next.bin").write_bytes(images.NEXT.data)
    other = scene().robot(tmp_path / "other")
    other.live(to_the_end)
    tick = tick_of(other, "base", "booting: restart")
    robot.faults = (Fault(tick, "unplug"),)
    robot.live(to_the_end)
    assert unfinished(robot) == ["owing"]
    robot.faults = ()
    robot.plug("base")
    assert robot.generation("base") == NEW["base"]
    if same:
        robot.live(to_the_end, auto_update=False)
        assert runs(robot) == OLD
    else:
        target = Target(str(tmp_path / "next.bin"), "rel-3")
        robot.live(to_the_end, target=target)
        assert runs(robot) == dict.fromkeys(NAMES, ("next", "rel-3"))
    assert unfinished(robot) == []
