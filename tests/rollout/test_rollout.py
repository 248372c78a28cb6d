# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `esp32-ota rollout` over many machines: waves, the brake, and what it may write.

The machines are tables that answer `status`; what is proved here is the tool, by what the app has
been asked, by the configurations byte for byte, and by what reached the machines.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError, Status

from ota_service.rollout import drive
from tests.rollout.fakeapp import OPERATOR, OWNER, Call, Moment
from tests.rollout.machines import (
    BACK,
    FAILED,
    GONE,
    GOOD,
    NAME,
    STOPPED,
    STUCK,
    FakeMachine,
    attributes_of,
)
from tests.rollout.tool import BAD, NEW, OLD, Fleet, simulated, url, with_target

pytestmark = pytest.mark.slow

MODES = ("attributes", "variables")
BAD_TARGET = {"url": url(BAD), "version": BAD}


def untouched(fleet: Fleet, *names: str) -> bool:
    """Whether these machines' configurations are what they were, byte for byte."""
    return all(fleet.text(name) == fleet.texts[name] for name in names or fleet.machines)


def times(fleet: Fleet) -> dict[str, list[float]]:
    """When each machine is written, by the loop's clock, from now on."""
    names = {fake.machine.part.id: name for name, fake in fleet.machines.items()}
    found: dict[str, list[float]] = {}

    def note(call: Call, moment: Moment) -> None:
        if call.method == "UpdateRobotPart" and moment == "done":
            at_s = asyncio.get_running_loop().time()
            found.setdefault(names[call.request.id], []).append(at_s)

    fleet.app.listen(note)
    return found


# --- three waves


@pytest.mark.parametrize("mode", MODES)
@simulated
async def test_plan_shows_each_machine_and_touches_nothing(tmp_path: Path, mode: str) -> None:
    """A diff of each machine; nothing is written, nowhere."""
    async with Fleet.start(tmp_path, mode=mode) as fleet:
        done = await fleet.run("plan")
        assert done.code == 0, done
        assert all(done.out.count(name) >= 1 for name in fleet.machines)
        assert done.out.count(NEW) >= len(fleet.machines)
        assert not fleet.writes
        assert not fleet.state.exists()
        assert untouched(fleet)


@pytest.mark.parametrize("mode", MODES)
@simulated
async def test_three_waves_and_every_other_byte_stays(tmp_path: Path, mode: str) -> None:
    """Each wave waits for the one before it to be good and its soak to be over; each machine is
    written once, guarded, in the JSON form, under its part's own name."""
    async with Fleet.start(tmp_path, 5, mode=mode) as fleet:
        at = times(fleet)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert sorted(fleet.writes) == sorted(fleet.machines)
        for name in fleet.machines:
            assert fleet.text(name) == with_target(fleet.texts[name])
        assert fleet.got() == [[OLD, NEW]] * 5
        first, second, third = fleet.writes[:1], fleet.writes[1:3], fleet.writes[3:]
        for earlier, later in ((first, second), (second, third)):
            ended_s = max(at[name][0] for name in earlier) + 2.0
            assert min(at[name][0] for name in later) >= ended_s + 10.0
        for call in fleet.app.asked("UpdateRobotPart"):
            part = fleet.app.parts[call.request.id]
            assert call.request.HasField("last_known_update")
            assert call.request.HasField("robot_config_json")
            assert call.request.name == part.name
        again = await fleet.run("start")
        assert (again.code, len(fleet.writes)) == (0, 5)


@simulated
async def test_without_a_soak_the_next_wave_begins_at_once(tmp_path: Path) -> None:
    """Nobody waits for the next time that a machine would be asked anyway."""
    async with Fleet.start(tmp_path, 3, soak="0s", waves=[1, 1, 1]) as fleet:
        at = times(fleet)
        done = await fleet.run("start")
        assert done.code == 0, done
        first, second, third = (at[name][0] for name in fleet.writes)
        assert second - first < 10
        assert third - second < 10


@simulated
async def test_each_write_follows_a_read_of_its_own(tmp_path: Path) -> None:
    """What somebody changed since the rollout began is kept, though it is another value."""
    async with Fleet.start(tmp_path, 3) as fleet:
        part = fleet.machines["m02"].machine.part

        def meanwhile(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and call.nth == 1 and moment == "answered":
                fleet.app.edit(part, lambda config: config.update(theirs=[1, 2]))

        fleet.app.listen(meanwhile)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert part.config["theirs"] == [1, 2]
        assert fleet.got() == [[OLD, NEW]] * 3


@pytest.mark.parametrize("mode", MODES)
@simulated
async def test_what_was_there_is_on_disk_before_the_write(tmp_path: Path, mode: str) -> None:
    """Whatever happens from the write on, the state file has the whole configuration of before."""
    async with Fleet.start(tmp_path, 3, mode=mode) as fleet:
        kept: list[bool] = []

        def look(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "arrives":
                name = fleet.app.machines[fleet.app.parts[call.request.id].robot_id].name
                records = json.loads(fleet.state.read_text())["machines"]
                kept.append(any(record.get("text") == fleet.texts[name] for record in records))

        fleet.app.listen(look)
        assert (await fleet.run("start")).code == 0
        assert kept == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waves", "sizes"),
    [
        ([1, "50%", "100%"], [1, 3, 2]),
        ([["m03"], {"count": 2, "soak": "1m"}, {"percent": 100}], [1, 2, 3]),
        ([{"machines": ["m04", "m05"], "soak": "0s"}, "100%"], [2, 4]),
    ],
)
@simulated
async def test_waves_are_counts_percentages_or_names(
    tmp_path: Path, waves: list[Any], sizes: list[int]
) -> None:
    """Whatever the form, each machine is in one wave, and named ones come where they are named."""
    async with Fleet.start(tmp_path, 6, waves=waves) as fleet:
        at = times(fleet)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert sorted(fleet.writes) == sorted(fleet.machines)
        first = waves[0]
        named = (
            first
            if isinstance(first, list)
            else first.get("machines", [])
            if isinstance(first, dict)
            else []
        )
        assert sorted(fleet.writes[: len(named)]) == sorted(named)
        begins_s = [min(at[name][0] for name in fleet.writes[:1])]
        written = sum(sizes[:1])
        for size in sizes[1:]:
            ended_s = max(at[name][0] for name in fleet.writes[:written])
            begins_s.append(min(at[name][0] for name in fleet.writes[written:]))
            assert begins_s[-1] > ended_s
            written += size
        assert written == 6


# --- the brake


@pytest.mark.parametrize(
    ("mode", "became"), [("attributes", BACK), ("variables", FAILED), ("attributes", STOPPED)]
)
@simulated
async def test_a_bad_release_halts_in_its_first_wave(
    tmp_path: Path, mode: str, became: str
) -> None:
    """The other machines are as they were; the halt names the machine, its board and why."""
    async with Fleet.start(
        tmp_path, mode=mode, target=BAD_TARGET,
        judge=lambda name, version: GOOD if version == OLD else became,
    ) as fleet:  # fmt: skip
        done = await fleet.run("start")
        assert done.code == 1, done
        (name,) = fleet.writes
        assert untouched(fleet, *(other for other in fleet.machines if other != name))
        told = done.out + done.err
        assert name in told
        if became != STOPPED:
            assert f"abort() was called on {name}/a" in told
        again = await fleet.run("start")
        assert (again.code, fleet.writes) == (1, [name])
        status = await fleet.run("status")
        assert status.code == 1
        assert name in status.out


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "code"), [(("m01",), 0), (("m01", "m02"), 1)])
@simulated
async def test_so_many_may_fail_and_one_more_halts(
    tmp_path: Path, bad: tuple[str, ...], code: int
) -> None:
    """max_failed: what a rollout goes on with, and each machine is told."""
    async with Fleet.start(
        tmp_path, 6, max_failed=1, waves=[["m00"], ["m01", "m02", "m03"], "100%"],
        judge=lambda name, version: BACK if name in bad and version == NEW else GOOD,
    ) as fleet:  # fmt: skip
        done = await fleet.run("start")
        assert done.code == code, done
        assert all(name in done.out + done.err for name in bad)
        if code:
            assert untouched(fleet, "m04", "m05")
        else:
            assert sorted(fleet.writes) == sorted(fleet.machines)


@simulated
async def test_a_board_that_never_ends_halts_when_the_time_is_over(tmp_path: Path) -> None:
    """Neither good nor bad is not good."""
    async with Fleet.start(
        tmp_path, timeout="3m", judge=lambda name, version: GOOD if version == OLD else STUCK
    ) as fleet:
        done = await fleet.run("start")
        assert done.code == 1, done
        assert len(fleet.writes) == 1


@simulated
async def test_boards_go_bad_while_their_wave_soaks(tmp_path: Path) -> None:
    """The soak is looked at, not slept through."""
    async with Fleet.start(tmp_path, 3, soak="3m") as fleet:
        board = fleet.machines["m00"].boards["a"]

        def worse(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered" and call.nth == 1:
                asyncio.get_running_loop().call_later(
                    60.0, lambda: board.update(state=BACK, good=False, version=OLD)
                )

        fleet.app.listen(worse)
        done = await fleet.run("start")
        assert done.code == 1, done
        assert fleet.writes == ["m00"]


@pytest.mark.slow
@simulated
async def test_silence_since_the_write_is_not_good(tmp_path: Path) -> None:
    """A release that takes a wave's machines off the net: nobody says that it is bad, and nothing
    says that it is good. No further wave gets it."""
    waves = [["m00"], ["m01", "m02"], "100%"]
    async with Fleet.start(tmp_path, 6, waves=waves, timeout="5m") as fleet:

        def off(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered" and call.nth in (2, 3):
                name = fleet.app.machines[fleet.app.parts[call.request.id].robot_id].name
                fleet.machines[name].online = False

        fleet.app.listen(off)
        done = await fleet.run("start")
        assert done.code == 1, done
        assert sorted(fleet.writes) == ["m00", "m01", "m02"]
        assert untouched(fleet, "m03", "m04", "m05")
        assert "m01" in done.out + done.err


@pytest.mark.slow
@simulated
async def test_silence_in_the_soak_is_not_good(tmp_path: Path) -> None:
    """A machine was good, and is gone before its soak is over: no further wave gets the release,
    also where each look is a process of its own."""
    async with Fleet.start(tmp_path, 3, waves=[["m00"], "100%"], timeout="5m") as fleet:
        while "m00 is good" not in (done := await fleet.run("start", "--once")).out:
            assert done.code == 3, done
            await asyncio.sleep(2)
        fleet.machines["m00"].online = False
        while done.code == 3:
            await asyncio.sleep(60)
            done = await fleet.run("start", "--once")
        assert done.code == 1, done
        assert fleet.writes == ["m00"]
        fleet.machines["m00"].online = True
        assert (await fleet.run("resume")).code == 0
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 3


@simulated
@pytest.mark.parametrize("missed", [False, True])
async def test_the_first_silence_after_a_night_is_no_failure(tmp_path: Path, missed: bool) -> None:
    """The tool was stopped in a soak, also just as a machine did not answer, and is started a day
    later, before its network is there."""
    async with Fleet.start(tmp_path, 2, waves=[["m00"], "100%"], timeout="5m") as fleet:
        while "m00 is good" not in (done := await fleet.run("start", "--once")).out:
            assert done.code == 3, done
            await asyncio.sleep(2)
        fleet.machines["m00"].online = not missed
        assert (await fleet.run("start", "--once")).code == 3
        await asyncio.sleep(86400)
        fleet.machines["m00"].online = False

        def back(call: Call, moment: Moment) -> None:
            if call.method == "GetRobotPart" and moment == "answered":  # it was silent once
                fleet.machines["m00"].online = True

        fleet.app.listen(back)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 2


@pytest.mark.slow
@simulated
async def test_silence_is_waited_for(tmp_path: Path) -> None:
    """As long as the wave's time lasts; when the machines are back and good, it goes on."""
    waves = [["m00"], ["m01", "m02"], "100%"]
    async with Fleet.start(tmp_path, 6, waves=waves, timeout="5m") as fleet:

        def off(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered" and call.nth in (2, 3):
                name = fleet.app.machines[fleet.app.parts[call.request.id].robot_id].name
                fleet.machines[name].online = False
                asyncio.get_running_loop().call_later(120.0, back, name)

        def back(name: str) -> None:
            fleet.machines[name].online = True

        fleet.app.listen(off)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 6


@simulated
async def test_pinned_and_absent_boards_hold_nobody_up(tmp_path: Path) -> None:
    """Boards with a version of their own, that were away or can't be updated before: told, not
    counted."""
    async with Fleet.start(tmp_path, 1, waves=["100%"]) as fleet:
        fake = fleet.machines["m00"]
        for name, state in (("b", "absent"), ("c", "unsupported"), ("d", "failed")):
            fake.boards[name] = {"port": f"/dev/{name}", "state": state, "version": "0.9.0"}

        def pin(config: dict[str, Any]) -> None:
            attributes = config["services"][1]["attributes"]
            attributes["boards"] += [{"name": name, "port": f"/dev/{name}"} for name in "bc"]
            attributes["boards"].append({"name": "d", "port": "/dev/d", "version": "0.9.0"})

        fleet.app.edit(fake.machine.part, pin)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fake.boards["a"]["version"] == NEW
        assert fake.boards["d"]["version"] == "0.9.0"
        assert all(name in done.out for name in "bc")


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0])
@simulated
async def test_the_date_jumps_in_a_soak(tmp_path: Path, jump_s: float) -> None:
    """Back, or on, as where a computer without a clock of its own gets the time: boards that go
    bad before the soak is over still halt it."""
    async with Fleet.start(tmp_path, 2, waves=[["m00"], "100%"], soak="3m") as fleet:
        board = fleet.machines["m00"].boards["a"]
        loop, before = asyncio.get_running_loop(), drive.clock_s

        def jump() -> None:
            drive.clock_s = lambda: before() + jump_s

        def written(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered" and call.nth == 1:
                loop.call_later(60.0, jump)
                loop.call_later(120.0, lambda: board.update(state=BACK, good=False, version=OLD))

        fleet.app.listen(written)
        began_s = loop.time()
        done = await fleet.run("start")
        assert done.code == 1, done
        assert fleet.writes == ["m00"]
        assert loop.time() - began_s < 300


# --- pausing, going on, giving up, going back


@pytest.mark.slow
@simulated
async def test_pause_holds_the_next_writes_and_resume_goes_on(tmp_path: Path) -> None:
    """From another terminal, while `start` runs."""
    async with Fleet.start(tmp_path) as fleet:
        running = asyncio.create_task(fleet.run("start"))
        await fleet.wrote(1)
        assert (await fleet.run("pause")).code == 0
        await asyncio.sleep(60)
        assert len(fleet.writes) == 1
        assert (await fleet.run("resume")).code == 0
        done = await running
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 4


@simulated
async def test_resume_after_a_halt_looks_again(tmp_path: Path) -> None:
    """Still bad: it halts again, with nothing written; mended by hand: it goes on to the end."""
    async with Fleet.start(tmp_path, 3, target=BAD_TARGET) as fleet:
        fake = fleet.machines["m00"]
        assert (await fleet.run("start")).code == 1
        assert (await fleet.run("resume")).code == 0
        assert (await fleet.run("start")).code == 1
        assert fleet.writes == ["m00"]
        for machine in fleet.machines.values():
            machine.judge = lambda name, version: GOOD
        fake.boards["a"].pop("error")
        fake.boards["a"].update(state="up_to_date", good=True, version=BAD)
        assert (await fleet.run("resume")).code == 0
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.writes == ["m00", "m01", "m02"]


@simulated
async def test_status_is_watched_from_elsewhere(tmp_path: Path) -> None:
    """Until the end, whose exit code and table it shows; it needs no key and asks nobody."""
    async with Fleet.start(tmp_path, 3) as fleet:
        running = asyncio.create_task(fleet.run("start"))
        await fleet.wrote(1)
        fleet.environment = {"VIAM_API_KEY": "", "VIAM_API_KEY_ID": ""}
        watched = await fleet.run("status", "--watch")
        assert (watched.code, (await running).code) == (0, 0)
        assert all(name in watched.out for name in fleet.machines)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("with_file", [True, False])
@simulated
async def test_abort_changes_nothing_and_undo_is_exact(
    tmp_path: Path, mode: str, with_file: bool
) -> None:
    """Aborted after the first wave: nothing more; undone: every byte as before, with the state
    file or from the parts' history."""
    async with Fleet.start(tmp_path, mode=mode) as fleet:
        while len(fleet.writes) < 2:
            assert (await fleet.run("start", "--once")).code == 3
            await asyncio.sleep(5)
        assert (await fleet.run("abort")).code in (0, 1)
        written = fleet.writes
        after = [fleet.text(name) for name in fleet.machines]
        assert (await fleet.run("start")).code != 0
        assert (fleet.writes, [fleet.text(name) for name in fleet.machines]) == (written, after)
        if not with_file:
            fleet.state.unlink()
        undone = await fleet.run("undo")
        assert undone.code == 0, undone
        assert untouched(fleet)
        assert sorted(fleet.writes[len(written) :]) == sorted(written)
        for call in fleet.app.asked("UpdateRobotPart"):
            assert call.request.HasField("last_known_update")
        fleet_again = await fleet.run("undo")
        assert fleet_again.code == 0 or not with_file
        assert len(fleet.writes) == 2 * len(written)


@simulated
async def test_who_cannot_be_read_after_its_write_is_watched(tmp_path: Path) -> None:
    """The app takes the new value of a machine and fails to show it: the machine has the release,
    and that it is a bad one for it counts."""
    async with Fleet.start(
        tmp_path, 3, waves=[["m00"], ["m01"], "100%"], soak="1s",
        judge=lambda name, version: BACK if (name, version) == ("m01", NEW) else GOOD,
    ) as fleet:  # fmt: skip
        part = fleet.machines["m01"].machine.part

        def fail(call: Call, moment: Moment) -> None:
            asked = call.method == "GetRobotPart" and moment == "arrives"
            if asked and call.request.id == part.id and part.id in fleet.app.written:
                raise GRPCError(Status.INTERNAL, "oops")

        fleet.app.listen(fail)
        done = await fleet.run("start")
        assert done.code == 1, done
        assert "abort() was called on m01/a" in done.out
        assert untouched(fleet, "m02")


@simulated
async def test_who_comes_back_and_cannot_be_read_still_counts_as_silent(tmp_path: Path) -> None:
    """It has the release, and nobody has seen it well since."""
    async with Fleet.start(
        tmp_path, 3, waves=[["m00"], ["m01"], "100%"], soak="1s", timeout="2m", takes_s=30.0
    ) as fleet:
        fake = fleet.machines["m01"]
        part, back = fake.machine.part, False

        def fail(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered":
                fake.reachable = part.id not in fleet.app.written
            asked = call.method == "GetRobotPart" and moment == "arrives"
            if back and asked and call.request.id == part.id:
                raise GRPCError(Status.INTERNAL, "oops")

        fleet.app.listen(fail)
        assert (await fleet.run("start")).code == 1
        fake.reachable = back = True
        assert (await fleet.run("resume")).code == 0
        done = await fleet.run("start")
        assert done.code == 1, done
        assert "m01 is offline" in done.out
        assert untouched(fleet, "m02")


@simulated
async def test_undo_by_a_history_in_another_order_touches_nothing(tmp_path: Path) -> None:
    """The oldest value is not the one before; which one is, nobody promises."""
    async with Fleet.start(tmp_path, 1, waves=["100%"]) as fleet:
        part = fleet.machines["m00"].machine.part
        fleet.app.edit(
            part, lambda config: config["services"][1]["attributes"].update(version="0.9.9")
        )
        assert (await fleet.run("start")).code == 0
        after = fleet.text("m00")
        fleet.state.unlink()
        part.history.reverse()
        undone = await fleet.run("undo")
        assert undone.code == 1, undone
        assert "in another order" in undone.out
        assert fleet.text("m00") == after


@simulated
async def test_undo_leaves_what_others_changed_since(tmp_path: Path) -> None:
    """A machine whose target somebody changed is not ours to restore; another key is kept."""
    async with Fleet.start(tmp_path, 3, waves=["100%"]) as fleet:
        assert (await fleet.run("start")).code == 0
        theirs, besides = (fleet.machines[name].machine.part for name in ("m00", "m01"))
        fleet.app.edit(
            theirs, lambda config: config["services"][1]["attributes"].update(version="9.9.9")
        )
        fleet.app.edit(besides, lambda config: config.update(theirs=1))
        done = await fleet.run("undo")
        assert done.code == 1, done
        assert "m00" in done.out + done.err
        assert theirs.config["services"][1]["attributes"]["version"] == "9.9.9"
        assert besides.config["theirs"] == 1
        assert fleet.machines["m01"].got[-1] == fleet.machines["m02"].got[-1] == OLD
        assert fleet.text("m02") == fleet.texts["m02"]


@simulated
async def test_what_was_undone_is_not_undone_again(tmp_path: Path) -> None:
    """Where undo is called once more, say for a machine that could not be reached, whoever has
    given another one that firmware since keeps it."""
    async with Fleet.start(tmp_path, 1, waves=["100%"], soak="0s") as fleet:
        assert (await fleet.run("start")).code == 0
        assert (await fleet.run("undo")).code == 0
        part, target = fleet.machines["m00"].machine.part, {"url": url(NEW), "version": NEW}
        fleet.app.edit(part, lambda config: config["services"][1]["attributes"].update(target))
        assert (await fleet.run("undo")).code == 0
        assert part.config["services"][1]["attributes"]["version"] == NEW
        assert len(fleet.writes) == 2


@simulated
async def test_a_refusal_on_the_way_does_not_forget_what_was_before(tmp_path: Path) -> None:
    """The app refuses to show a machine that was written: that is silence, and no conflict that
    counts for nothing; and after `resume`, undo still knows what was there."""
    async with Fleet.start(
        tmp_path, 2, waves=[["m00"], "100%"], timeout="2m", takes_s=30.0
    ) as fleet:
        fake = fleet.machines["m00"]

        def refuse(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered":
                fake.reachable = False
            if call.method == "GetRobotPart" and not fake.reachable and moment == "arrives":
                if '"waiting"' not in fleet.state.read_text():
                    return  # read again after the write
                raise GRPCError(Status.PERMISSION_DENIED, "not now")

        fleet.app.listen(refuse)
        done = await fleet.run("start")
        assert done.code == 1, done
        told = json.loads((await fleet.run("status", "--json")).out)
        assert told["machines"]["m00"]["state"] == "offline"
        fake.reachable = True
        assert (await fleet.run("resume")).code == 0
        assert (await fleet.run("start", "--once")).code in (1, 3)
        undone = await fleet.run("undo")
        assert undone.code == 0, undone
        assert untouched(fleet)


@simulated
async def test_who_was_written_before_an_outage_is_watched_though_it_cannot_be_read(
    tmp_path: Path,
) -> None:
    """The reply to the write is lost, then the app is, and then it refuses to show what it has."""
    async with Fleet.start(tmp_path, 1, waves=["100%"]) as fleet:
        asked = 0

        def fail(call: Call, moment: Moment) -> None:
            nonlocal asked
            if call.method == "UpdateRobotPart" and moment == "answered":
                asked = 1
                raise GRPCError(Status.UNAVAILABLE, "gone")
            if call.method == "GetRobotPart" and moment == "arrives" and asked:
                asked += 1
                status = Status.UNAVAILABLE if asked < 11 else Status.PERMISSION_DENIED
                raise GRPCError(status, "not now")

        fleet.app.listen(fail)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]]


@simulated
async def test_a_service_that_comes_back_after_a_conflict_is_undone_to_what_it_was(
    tmp_path: Path,
) -> None:
    """Somebody takes the service out for a while, with our target in it; then a resume."""
    async with Fleet.start(tmp_path, 1, waves=["100%"]) as fleet:
        fake = fleet.machines["m00"]
        part = fake.machine.part
        await fleet.run("start", "--once")
        ours = part.text
        fleet.app.edit(part, lambda config: config["services"].pop())
        assert (await fleet.run("start", "--once")).code != 0
        assert '"conflict"' in fleet.state.read_text()
        fleet.app.edit(part, lambda config: config.update(json.loads(ours)))
        assert (await fleet.run("resume")).code in (0, 1)
        await fleet.run("start", "--once")
        assert (await fleet.run("undo")).code == 0
        assert part.config == json.loads(fleet.texts["m00"])


@simulated
async def test_who_was_put_back_by_hand_while_away_is_not_written_again(tmp_path: Path) -> None:
    """Its value is the one before, and it was the target meanwhile: a hand was there."""
    async with Fleet.start(
        tmp_path, 2, waves=["100%"], max_failed=1, timeout="2m",
        judge=lambda name, version: GONE if (name, version) == ("m00", NEW) else GOOD,
    ) as fleet:  # fmt: skip
        fake = fleet.machines["m00"]
        assert (await fleet.run("start")).code == 0
        before = json.loads(fleet.texts["m00"])
        fleet.app.edit(fake.machine.part, lambda config: config.update(before))
        fake.online = True
        done = await fleet.run("start")
        assert (done.code, fleet.writes.count("m00")) == (1, 1), done
        assert fake.machine.part.config == before
        assert "changed by somebody else" in done.out


@pytest.mark.parametrize("became", [GONE, "absent"])
@simulated
async def test_an_older_state_file_put_back_judges_what_was_written_since(
    tmp_path: Path, became: str
) -> None:
    """As where a CI job's cache is older than the last job: a machine that the release took off
    the net is silent, and a board that it took away was not away before; nothing is written twice,
    and undo reaches it."""
    async with Fleet.start(
        tmp_path, 4, waves=[["m00", "m01"], "100%"], timeout="2m",
        judge=lambda name, version: became if (name, version) == ("m01", NEW) else GOOD,
    ) as fleet:  # fmt: skip
        older: list[str] = []

        def keep(call: Call, moment: Moment) -> None:
            if call.method == "GetRobotPart" and moment == "arrives" and not older:
                older.append(fleet.state.read_text())

        fleet.app.listen(keep)
        await fleet.run("start", "--once")
        await asyncio.sleep(10)
        fleet.state.write_text(older[0])
        done = await fleet.run("start")
        assert done.code == 1, done
        assert sorted(fleet.writes) == ["m00", "m01"]
        assert untouched(fleet, "m02", "m03")
        fleet.state.write_text(older[0])
        assert (await fleet.run("undo")).code == 0
        assert untouched(fleet)


@simulated
async def test_each_rollout_of_a_file_keeps_its_state(tmp_path: Path) -> None:
    """Forth and back and forth: what each one found stays on disk."""
    async with Fleet.start(tmp_path, 1, waves=["100%"], soak="0s") as fleet:
        for version in (NEW, OLD, NEW, OLD):
            fleet.plan["target"] = {"url": url(version), "version": version}
            assert (await fleet.run("start")).code == 0
        assert len(list(tmp_path.glob("plan.json.state.json*"))) == 4


# --- others


@pytest.mark.parametrize(
    "status", [Status.FAILED_PRECONDITION, Status.ABORTED, Status.INVALID_ARGUMENT]
)
@simulated
async def test_a_concurrent_edit_is_never_overwritten(tmp_path: Path, status: Status) -> None:
    """Somebody saves between our read and our write: theirs stays, and the machine is told."""
    async with Fleet.start(tmp_path, waves=["100%"]) as fleet:
        fleet.app.conflict = status

        def theirs(config: dict[str, Any]) -> None:
            config["services"][1]["attributes"]["version"] = "9.9.9"

        fleet.app.edit_before_write(theirs, nth=2)
        done = await fleet.run("start")
        assert done.code == 1, done
        edited = [name for name in fleet.machines if "9.9.9" in fleet.text(name)]
        assert len(edited) == 1
        assert edited[0] not in fleet.writes
        assert edited[0] in done.out + done.err


@simulated
async def test_a_hand_that_changed_the_target_is_noticed(tmp_path: Path) -> None:
    """Between the first wave and its own, a machine gets another version: not ours any more."""
    async with Fleet.start(tmp_path, 3, waves=[["m00"], "100%"]) as fleet:
        part = fleet.machines["m01"].machine.part

        def meanwhile(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and call.nth == 1 and moment == "answered":
                fleet.app.edit(
                    part, lambda config: config["services"][1]["attributes"].update(version="7.7.7")
                )

        fleet.app.listen(meanwhile)
        done = await fleet.run("start")
        assert done.code == 1, done
        assert "m01" in done.out + done.err
        assert part.config["services"][1]["attributes"]["version"] == "7.7.7"
        assert "m01" not in fleet.writes


@simulated
async def test_a_machine_that_is_deleted_stops_itself_alone(tmp_path: Path) -> None:
    """One that is gone from the app is told; the others go on."""
    async with Fleet.start(tmp_path, 3, waves=[["m00"], "100%"]) as fleet:
        part = fleet.machines["m01"].machine.part

        def meanwhile(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and call.nth == 1 and moment == "answered":
                del fleet.app.parts[part.id]

        fleet.app.listen(meanwhile)
        done = await fleet.run("start")
        assert done.code == 1, done
        assert fleet.writes == ["m00", "m02"]
        status = await fleet.run("status", "--json")
        states = {name: it["state"] for name, it in json.loads(status.out)["machines"].items()}
        assert states == {"m00": "good", "m01": "conflict", "m02": "good"}


@simulated
async def test_two_starts_at_once(tmp_path: Path) -> None:
    """One owner: the second one says so and changes nothing."""
    async with Fleet.start(tmp_path) as fleet:
        running = asyncio.create_task(fleet.run("start"))
        await fleet.wrote(1)
        second = await fleet.run("start")
        assert second.code in (1, 2), second
        assert (await running).code == 0
        assert fleet.got() == [[OLD, NEW]] * 4
        assert len(fleet.writes) == 4


@simulated
async def test_a_plan_that_was_changed_is_not_the_one_that_runs(tmp_path: Path) -> None:
    """Another target under way is refused, before anything is changed."""
    async with Fleet.start(tmp_path) as fleet:
        assert (await fleet.run("start", "--once")).code == 3
        written = list(fleet.writes)
        fleet.plan["target"] = BAD_TARGET
        done = await fleet.run("start")
        assert done.code == 2, done
        assert fleet.writes == written


# --- machines that are away


@pytest.mark.slow
@simulated
async def test_a_machine_that_is_away_gets_its_turn_when_it_is_back(tmp_path: Path) -> None:
    """It holds nobody up, and is retargeted within the rollout's life."""
    async with Fleet.start(tmp_path) as fleet:
        fleet.machines["m01"].online = False
        running = asyncio.create_task(fleet.run("start"))
        await fleet.wrote(3)
        await asyncio.sleep(60)
        fleet.machines["m01"].online = True
        done = await running
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 4


@pytest.mark.slow
@simulated
async def test_a_machine_that_stays_away_is_told(tmp_path: Path) -> None:
    """When the rollout's life is over the others are done, and it is named."""
    async with Fleet.start(tmp_path, timeout="3m") as fleet:
        fleet.machines["m02"].online = False
        done = await fleet.run("start")
        assert "m02" in done.out + done.err
        assert fleet.got("m00", "m01", "m03") == [[OLD, NEW]] * 3
        assert fleet.got("m02") == [[OLD]]


@pytest.mark.slow
@simulated
async def test_a_machine_goes_away_in_the_middle(tmp_path: Path) -> None:
    """Written and gone: its wave waits for it, and nobody takes silence for good."""
    async with Fleet.start(tmp_path, takes_s=30.0) as fleet:
        running = asyncio.create_task(fleet.run("start"))
        await fleet.wrote(1)
        first = fleet.machines[fleet.writes[0]]
        first.online = False
        await asyncio.sleep(90)
        first.online = True
        done = await running
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 4


# --- keys and the app's troubles


@pytest.mark.parametrize("missing", ["write_robot", "read_robot_config", "control_robot"])
@simulated
async def test_a_missing_permission_is_named_before_anything_is_changed(
    tmp_path: Path, missing: str
) -> None:
    """On one machine of several, the last one of all."""
    async with Fleet.start(tmp_path) as fleet:
        done = await fleet.run("start", key=fleet.app.key(without=[missing]))
        assert done.code in (1, 2), done
        assert missing in done.out + done.err
        assert not fleet.writes
        assert untouched(fleet)


@simulated
async def test_an_operators_key_changes_nothing(tmp_path: Path) -> None:
    """Operators see machines, and no configuration."""
    async with Fleet.start(tmp_path, mode="variables") as fleet:
        done = await fleet.run("start", key=fleet.app.key(OPERATOR))
        assert done.code in (1, 2), done
        assert not fleet.writes


@pytest.mark.slow
@simulated
async def test_a_key_for_one_location_is_enough(tmp_path: Path) -> None:
    """Nothing of the organisation's is asked for that the rollout does not need."""
    async with Fleet.start(tmp_path) as fleet:
        key = fleet.app.key(OWNER, scope=("location", fleet.site.id))
        fleet.plan["select"] = {"locations": [fleet.site.id]}
        done = await fleet.run("start", key=key)
        assert done.code == 0, done
        assert len(fleet.writes) == 4


@simulated
async def test_a_wrong_key_is_said_and_never_shown(tmp_path: Path) -> None:
    """The secret stands nowhere."""
    async with Fleet.start(tmp_path) as fleet:
        key = fleet.app.key()
        del fleet.app.keys[key.id]
        done = await fleet.run("start", key=key)
        assert done.code in (1, 2), done
        assert key.secret not in done.out + done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "mode"),
    [(Status.UNAVAILABLE, "variables"), (Status.RESOURCE_EXHAUSTED, "attributes")],
)
@simulated
async def test_transient_errors_of_the_app_back_off(
    tmp_path: Path, status: Status, mode: str
) -> None:
    """Every method that is asked fails three times in a row; each attempt waits longer."""
    async with Fleet.start(tmp_path, 2, mode=mode) as fleet:
        at: dict[str, list[float]] = {}
        methods = (
            "Authenticate", "ListLocations", "ListRobotsForLocations", "ListMachineSummaries",
            "GetRobotParts", "GetRobotPart", "GetFragment", "UpdateRobotPart", "CheckPermissions",
        )  # fmt: skip

        def note(call: Call, moment: Moment) -> None:
            if moment == "arrives":
                at.setdefault(call.method, []).append(asyncio.get_running_loop().time())

        fleet.app.listen(note)
        for method in methods:
            fleet.app.fail(method, status, times=3)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 2
        first, second, third, fourth = at["UpdateRobotPart"][:4]
        assert 0 < second - first < third - first < fourth - first
        assert fourth - third > second - first


@simulated
async def test_a_lost_reply_is_not_taken_for_somebody_elses_edit(tmp_path: Path) -> None:
    """Our value is there: the machine goes on, and what was before is still what was before."""
    async with Fleet.start(tmp_path) as fleet:
        fleet.app.lose_reply("UpdateRobotPart", nth=1)
        fleet.app.lose_reply("UpdateRobotPart", nth=3)
        fleet.app.lose_reply("UpdateRobotPart", nth=4, moment="arrives")
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 4
        assert (await fleet.run("undo")).code == 0
        assert untouched(fleet)


@pytest.mark.parametrize(
    "status", [Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.INTERNAL, Status.UNKNOWN]
)
@simulated
async def test_an_error_after_the_effect_is_not_taken_at_its_word(
    tmp_path: Path, status: Status
) -> None:
    """Whatever the app, or a proxy before it, says: what is read afterwards counts, and a machine
    that has the firmware is watched."""
    async with Fleet.start(tmp_path, 3) as fleet:

        def fail(call: Call, moment: Moment) -> None:
            if (call.method, call.nth, moment) == ("UpdateRobotPart", 1, "done"):
                raise GRPCError(status, "something went wrong")

        fleet.app.listen(fail)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 3


@pytest.mark.slow
@simulated
async def test_a_token_that_expires_is_renewed(tmp_path: Path) -> None:
    """A rollout lasts longer than a token."""
    async with Fleet.start(tmp_path) as fleet:

        def expire(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered":
                fleet.app.expire_tokens()

        fleet.app.listen(expire)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 4


@simulated
async def test_a_key_that_is_taken_away_leaves_no_machine_out(tmp_path: Path) -> None:
    """That says nothing of a machine: the tool ends, and goes on with another key."""
    async with Fleet.start(tmp_path, 3, waves=[1, "100%"], soak="1s") as fleet:
        gone = True

        def refuse(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered":
                fleet.app.expire_tokens()
            if call.method == "Authenticate" and moment == "arrives" and gone and fleet.writes:
                raise GRPCError(Status.UNAUTHENTICATED, "no such key")

        fleet.app.listen(refuse)
        done = await fleet.run("start")
        assert done.code == 1, done
        assert "Authenticate: no such key" in done.out + done.err
        told = json.loads((await fleet.run("status", "--json")).out)
        assert told["state"] == "running"
        assert "conflict" not in {machine["state"] for machine in told["machines"].values()}
        gone = False
        done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 3


# --- what configurations look like


@simulated
async def test_a_part_without_the_json_form_keeps_its_integers(tmp_path: Path) -> None:
    """It was last saved before the app knew that form: all there is, is a Struct."""
    async with Fleet.start(tmp_path, 1, waves=["100%"]) as fleet:
        part = fleet.machines["m00"].machine.part
        part.json_form = False
        part.text = json.dumps({**part.config, "big": 4194304})
        before = part.config
        done = await fleet.run("start")
        assert done.code == 0, done
        assert "921600.0" not in part.text
        after = part.config
        attributes = after["services"][1]["attributes"]
        assert (attributes["version"], attributes["baud"]) == (NEW, 921600)
        attributes.update(url=url(OLD), version=OLD)
        assert after == before


@pytest.mark.parametrize("mode", MODES)
@simulated
async def test_a_digest_comes_and_goes(tmp_path: Path, mode: str) -> None:
    """It is added with the target, and undo takes it away again, byte for byte."""
    async with Fleet.start(
        tmp_path, 1, mode="attributes", waves=["100%"],
        target={"url": url(NEW), "version": NEW, "sha256": "ab" * 32},
    ) as fleet:  # fmt: skip
        done = await fleet.run("start")
        assert done.code == 0, done
        part = fleet.machines["m00"].machine.part
        assert part.config["services"][1]["attributes"]["sha256"] == "ab" * 32
        whole = json.loads(fleet.text("m00"))
        whole["services"][1]["attributes"].pop("sha256")
        assert whole == json.loads(with_target(fleet.texts["m00"]))
        assert (await fleet.run("undo")).code == 0
        assert untouched(fleet)


@pytest.mark.slow
@simulated
async def test_a_hundred_and_twenty_machines_of_a_fragment(tmp_path: Path) -> None:
    """The app's list ends at a hundred by itself; nobody is left out."""
    async with Fleet.start(tmp_path, 120, mode="variables", waves=["100%"]) as fleet:
        fleet.plan["select"] = {
            "organization": fleet.app.organization_id,
            "fragment": fleet.fragment.id,
        }
        done = await fleet.run("plan")
        assert done.code == 0, done
        assert all(name in done.out for name in fleet.machines)


@simulated
async def test_another_file_under_the_same_version_is_told(tmp_path: Path) -> None:
    """Boards go by the version: they would not be written, and be good as they are."""
    async with Fleet.start(tmp_path, 2, target={"url": url(NEW), "version": OLD}) as fleet:
        done = await fleet.run("plan")
        assert (done.code, "2 of the machines are at version 1.0.0 already" in done.out) == (
            0,
            True,
        )
        fleet.plan["target"]["version"] = NEW
        assert "already" not in (await fleet.run("plan")).out


@pytest.mark.parametrize("commanded", [True, False])
@simulated
async def test_a_machine_that_waits_for_a_command_is_named_before_and_waited_for(
    tmp_path: Path, commanded: bool
) -> None:
    """Its `auto_update` is false: plan says so, start before it writes anything, and the table
    while its boards wait; somebody's `update` there lets the rollout go on, and none fails it."""
    waits = '"auto_update" false'
    async with Fleet.start(tmp_path, 1, waves=["100%"], timeout="3m") as fleet:
        text = fleet.texts["m00"].replace('"baud"', '"auto_update": false, "baud"')
        async with fleet.add("manual", text) as fake:
            plan = await fleet.run("plan")
            told = json.loads((await fleet.run("plan", "--json")).out)
            assert (plan.code, plan.out.count(waits)) == (0, 1), plan
            assert '"auto_update" is false on manual: the boards there wait' in plan.out
            assert waits in told["machines"]["manual"]["note"]
            assert "note" not in told["machines"]["m00"]
            assert "180 s of its turn" in told["notes"][0]
            running = asyncio.create_task(fleet.run("start"))
            await fleet.wrote(2)
            await asyncio.sleep(60)
            known = json.loads((await fleet.run("status", "--json")).out)["machines"]["manual"]
            assert known["state"] == "waiting"
            assert "a is outdated; its service has" in known["why"]
            if commanded:
                fake.update()
            done = await running
            assert done.code == (0 if commanded else 1), done
            assert told["notes"][0] in done.err
            assert (waits in done.out.splitlines()[-1]) != commanded
            undone = await fleet.run("undo")
            assert undone.code == 0
            assert f"manual is undone: its service has {waits}" in undone.out


@simulated
async def test_a_fragment_in_a_fragment(tmp_path: Path) -> None:
    """A part sets the variables of its own fragments alone. Which of them has the service, or has
    the fragment that has it, is said, and what to name instead: variables that are handed on."""
    async with Fleet.start(tmp_path, 0, mode="variables", waves=["100%"]) as fleet:
        inner, select = fleet.fragment, fleet.plan["select"]
        handed = {name: {"$variable": {"name": f"fw_{name}"}} for name in ("url", "version")}
        outer = fleet.app.fragment("outer", {"fragments": [{"id": inner.id, "variables": handed}]})
        odd, itself = (fleet.app.fragment(name, {}) for name in ("odd", "itself"))
        fleet.app.revise(odd, '{"a": 1, "a": 2}')
        fleet.app.revise(itself, {"fragments": [itself.id]})
        other = fleet.app.fragment("other", {"fragments": ["not-to-be-had", odd.id, itself.id]})
        variables = {"fw_url": url(OLD), "fw_version": OLD}
        used = [other.id, {"id": outer.id, "variables": variables}]
        async with fleet.add("nested", json.dumps({"fragments": used})) as fake:
            for named, words in (
                (outer.id, f"not in fragment {outer.id} but in {inner.id}, which that includes"),
                (inner.id, f"it has fragment {inner.id} only by way of fragment {outer.id}"),
                (None, f"not in fragment {outer.id} but in {inner.id}"),
            ):
                fleet.plan["select"] = {**select, "fragment": named} if named else {
                    key: value for key, value in select.items() if key != "fragment"
                }  # fmt: skip
                done = await fleet.run("plan")
                assert (done.code, words in done.out) == (1, True), done
            fleet.plan["select"] = {**select, "fragment": outer.id}
            fleet.plan["fragment_variables"] = {"url": "fw_url", "version": "fw_version"}
            done = await fleet.run("start")
            assert (done.code, fake.got) == (0, [OLD, NEW]), done


@simulated
async def test_a_machine_without_the_service_is_told_before(tmp_path: Path) -> None:
    """It can't take the target: named, and not written."""
    async with Fleet.start(tmp_path, 2) as fleet, fleet.add("other", '{"services": []}'):
        done = await fleet.run("plan")
        assert "other" in done.out + done.err
        await fleet.run("start")
        assert (await fleet.run("undo")).code == 0
        assert untouched(fleet)


# --- what it keeps and shows


@pytest.mark.slow
@simulated
async def test_once_does_what_it_can_and_goes(tmp_path: Path) -> None:
    """As cron or a CI job calls it: no call waits for a soak; the last one says that all is
    good."""
    async with Fleet.start(tmp_path, soak="5m") as fleet:
        loop = asyncio.get_running_loop()
        codes: list[int] = []
        while not codes or codes[-1] == 3:
            began_s = loop.time()
            codes.append((await fleet.run("start", "--once")).code)
            assert loop.time() - began_s < 60
            await asyncio.sleep(60)
        assert codes[-1] == 0
        assert len(codes) > 12
        assert fleet.got() == [[OLD, NEW]] * 4


@simulated
async def test_status_accounts_for_every_machine(tmp_path: Path) -> None:
    """As a table, and as JSON lines for programs, at any time; it asks and changes nothing else."""
    async with Fleet.start(tmp_path, 6) as fleet:
        fleet.machines["m05"].online = False
        await fleet.run("start", "--once")
        written = list(fleet.writes)
        shown = await fleet.run("status")
        assert all(name in shown.out for name in fleet.machines), shown
        told = await fleet.run("status", "--json")
        values = [json.loads(line) for line in told.out.splitlines()]
        assert values
        assert all(name in told.out for name in fleet.machines)
        assert fleet.writes == written


@simulated
async def test_secrets_stand_in_no_output_and_the_state_is_the_owners(tmp_path: Path) -> None:
    """A url's password and token, and the key."""
    target = {"url": "http://user:hunter2@firmware.invalid/x.bin?token=s3cret", "version": NEW}
    async with Fleet.start(tmp_path, 1, waves=["100%"], target=target) as fleet:
        plan = await fleet.run("plan")
        done = await fleet.run("start")
        status = await fleet.run("status", "--json")
        assert (plan.code, done.code) == (0, 0), done
        told = "".join(each.out + each.err for each in (plan, done, status))
        for secret in ("hunter2", "s3cret", fleet.key.secret):
            assert secret not in told
        assert fleet.key.secret not in fleet.state.read_text()
        assert fleet.state.stat().st_mode & 0o077 == 0


SENSOR = {
    "name": "ota-state",
    "api": "rdk:component:sensor",
    "model": "rdk:generic:ota_sensor",
    "attributes": {"service": NAME},
}


def readings(state: str, version: str) -> dict[str, Any]:
    """What the sensor's page says that its readings are, of a machine with one board."""
    counts = {f"boards_{each}": 0 for each in ("updating", "rolled_back", "failed", "outdated")}
    return {
        "safe": True,
        "state": "idle",
        "target_version": version,
        "run_outcome": "succeeded",
        "last_error_code": "",
        "percent": 100,
        "boards_total": 1,
        **counts,
        f"boards_{state}": 1,
        "boards_not_good": 0 if state == "up_to_date" else 1,
        "version_a": version,
        "state_a": state,
    }


@pytest.mark.parametrize(("state", "code"), [("up_to_date", 0), (BACK, 1)])
@simulated
async def test_what_a_sensor_captured_stands_in_for_a_machine_out_of_reach(
    tmp_path: Path, state: str, code: int
) -> None:
    """It is online, and takes its configuration, but nobody can connect to it."""
    async with Fleet.start(tmp_path, 2, waves=[["m00"], "100%"]) as fleet:
        fake = fleet.machines["m00"]
        fleet.app.edit(fake.machine.part, lambda config: config["components"].append(SENSOR))
        fake.reachable = False
        place = (fake.machine.part.id, "ota-state", "rdk:component:sensor", "Readings")

        def capture(shown: str, version: str) -> None:
            now = datetime.fromtimestamp(time.time(), UTC)
            fleet.app.data[place] = (now, readings(shown, version))

        capture("up_to_date", OLD)

        def later(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and call.nth == 1 and moment == "answered":
                loop = asyncio.get_running_loop()
                loop.call_later(20.0, capture, state, NEW)
                loop.call_later(60.0, capture, state, NEW)

        fleet.app.listen(later)
        done = await fleet.run("start")
        assert done.code == code, done
        assert fleet.writes == (["m00"] if code else ["m00", "m01"])


@pytest.mark.slow
@simulated
async def test_a_reading_from_before_the_soaks_end_does_not_end_it(tmp_path: Path) -> None:
    """The sensor's last word is that all is good; then nothing more comes: no second wave."""
    async with Fleet.start(tmp_path, 2, waves=[["m00"], "100%"], soak="1m", timeout="2m") as fleet:
        fake = fleet.machines["m00"]
        fleet.app.edit(fake.machine.part, lambda config: config["components"].append(SENSOR))
        fake.reachable = False
        place = (fake.machine.part.id, "ota-state", "rdk:component:sensor", "Readings")

        def capture(version: str, age_s: float = 0.0) -> None:
            then = datetime.fromtimestamp(time.time() - age_s, UTC)
            fleet.app.data[place] = (then, readings("up_to_date", version))

        capture(OLD)

        def later(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and call.nth == 1 and moment == "answered":
                asyncio.get_running_loop().call_later(20.0, capture, NEW)
                # What was captured in the soak may come to the app when that is over.
                asyncio.get_running_loop().call_later(110.0, capture, NEW, 40.0)

        fleet.app.listen(later)
        done = await fleet.run("start")
        assert done.code == 1, done
        assert fleet.writes == ["m00"]


@simulated
async def test_a_reading_from_before_the_last_look_is_no_news(tmp_path: Path) -> None:
    """The machine was seen to be good, and is out of reach for a while; what its sensor said while
    it was being updated does not undo that."""
    async with Fleet.start(tmp_path, 1, waves=["100%"], soak="1m") as fleet:
        fake = fleet.machines["m00"]
        fleet.app.edit(fake.machine.part, lambda config: config["components"].append(SENSOR))
        place = (fake.machine.part.id, "ota-state", "rdk:component:sensor", "Readings")

        def written(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "answered":
                loop = asyncio.get_running_loop()
                now = datetime.fromtimestamp(time.time() + 1.0, UTC)
                fleet.app.data[place] = (now, readings("updating", NEW))
                loop.call_later(20.0, setattr, fake, "reachable", False)
                loop.call_later(50.0, setattr, fake, "reachable", True)

        fleet.app.listen(written)
        done = await fleet.run("start")
        assert done.code == 0, done
        assert done.out.count("m00 is waiting") == 1, done.out


@pytest.mark.slow
@simulated
async def test_the_app_is_away_for_a_while(tmp_path: Path) -> None:
    """Connections break and are refused: it is waited for, and nothing is done twice."""
    async with Fleet.start(tmp_path) as fleet:

        def away(call: Call, moment: Moment) -> None:
            if call.method == "UpdateRobotPart" and moment == "done" and call.nth in (1, 2):
                fleet.app.door.open = False
                fleet.app.door.drop()
                asyncio.get_running_loop().call_later(20.0, back)

        def back() -> None:
            fleet.app.door.open = True

        fleet.app.listen(away)
        done = await fleet.run("start")
        while done.code == 1 and "cannot be asked" in done.err:
            await asyncio.sleep(30)
            done = await fleet.run("start")
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 4


@simulated
async def test_two_machines_of_one_name(tmp_path: Path) -> None:
    """Names are unique within a location only: both are accounted for, and both are updated."""
    async with Fleet.start(tmp_path, 2) as fleet:
        elsewhere = fleet.app.location("elsewhere")
        twin = fleet.app.machine(elsewhere, "m00", fleet.texts["m00"])
        fake = FakeMachine(fleet.app, twin)
        fleet.plan["select"] = {"locations": [fleet.site.id, elsewhere.id]}
        async with fake.serving():
            done = await fleet.run("start")
            assert done.code == 0, done
            assert fleet.got() == [[OLD, NEW]] * 2
            assert fake.got == [OLD, NEW]
            told = json.loads((await fleet.run("status", "--json")).out)
            assert len(told["machines"]) == 3


@simulated
async def test_a_fragment_named_by_its_id_alone_gets_its_variables(tmp_path: Path) -> None:
    """The short form of a fragment in a part: it can hold no variables, so it becomes the long
    one, or the machine is told to be unfit; undone, it is what it was."""
    async with Fleet.start(tmp_path, 1, mode="variables", waves=["100%"]) as fleet:
        text = f'{{"fragments": ["{fleet.fragment.id}"], "n": 1.0}}'
        async with fleet.add("short", text):
            done = await fleet.run("start")
            assert "short" in done.out + done.err
            part = fleet.machines["short"].machine.part
            if part.text != text:
                attributes = attributes_of(fleet.app, fleet.machines["short"].machine)
                assert attributes is not None
                assert attributes["version"] == NEW
                assert (await fleet.run("undo")).code == 0
            assert part.text == text


@simulated
async def test_a_plan_in_yaml_and_a_key_in_a_file(tmp_path: Path) -> None:
    """As people write it, and where the environment holds no key; no key comes by an option."""
    async with Fleet.start(tmp_path, 2) as fleet:
        plan = tmp_path / "release.yaml"
        plan.write_text(
            f"# the release\nselect:\n  locations: [{fleet.site.id}]\n"
            f"target:\n  url: {url(NEW)}\n  version: '{NEW}'\n"
            "waves: [1, 100%]\nsoak: 10s\nmode: attributes\n"
        )
        key = tmp_path / "key"
        key.write_text(f"VIAM_API_KEY={fleet.key.secret}\nVIAM_API_KEY_ID={fleet.key.id}\n")
        key.chmod(0o600)
        fleet.environment = {"VIAM_APP_URL": fleet.app.url}
        assert (await fleet.run("start", file=plan)).code == 2
        done = await fleet.run("start", "--key-file", str(key), file=plan)
        assert done.code == 0, done
        assert fleet.got() == [[OLD, NEW]] * 2
        assert (tmp_path / "release.yaml.state.json").exists()


@simulated
async def test_json_lines_of_a_start(tmp_path: Path) -> None:
    """For CI: each line is an object; the last one has every machine with its state."""
    async with Fleet.start(tmp_path, 3, target=BAD_TARGET) as fleet:
        done = await fleet.run("start", "--json")
        assert done.code == 1
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert len(lines) > 3
        assert set(lines[-1]["machines"]) == set(fleet.machines)
        assert lines[-1]["machines"]["m00"]["state"] == "failed"
        assert lines[-1]["machines"]["m02"]["state"] == "pending"


PLANS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no waves": lambda plan: plan.pop("waves"),
    "unknown key": lambda plan: plan.update(wave=[1]),
    "no target": lambda plan: plan.pop("target"),
    "negative": lambda plan: plan.update(waves=[-1]),
    "percent": lambda plan: plan.update(waves=["120%"]),
    "mode": lambda plan: plan.update(mode="both"),
    "soak": lambda plan: plan.update(soak="soon"),
    "machine": lambda plan: plan.update(waves=[["nobody"], "100%"]),
}


@pytest.mark.parametrize("fault", PLANS)
@simulated
async def test_a_plan_with_a_fault_is_usage(tmp_path: Path, fault: str) -> None:
    """Said in words, with exit code 2, and nothing is changed."""
    async with Fleet.start(tmp_path, 1) as fleet:
        PLANS[fault](fleet.plan)
        done = await fleet.run("start")
        assert done.code == 2, done
        assert done.err
        assert not fleet.writes
