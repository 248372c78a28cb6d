# SPDX-License-Identifier: GPL-3.0-or-later
"""The groups of a service: those of a block of steps, those of a process before, and who waits.

go(run, block, orders, alone)   a block of steps that groups span
resume(run, record)             what a process that ended had begun, forward or back
Groups                                  those that are at work: whatever else is asked waits
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ota_service.errors import OtaError
from ota_service.firmware.manifest import Block
from ota_service.firmware.target import Target
from ota_service.fleet import group_policy, policy
from ota_service.fleet.group import Group, Member
from ota_service.fleet.journal_rows import GroupRecord
from ota_service.fleet.orders import Order
from ota_service.fleet.places import Place
from ota_service.fleet.policy import Permits

if TYPE_CHECKING:
    from ota_service.fleet.board import Board
    from ota_service.fleet.manifests import Pairs
    from ota_service.fleet.run import Run

# --- a block of steps

Alone = Callable[[Sequence[str], "Pairs"], Awaitable[OtaError | None]]
"""Carries out the orders of a step that are of no group; why nothing follows, None: it is good."""


async def go(run: Run, block: Block, orders: Mapping[str, Pairs], alone: Alone) -> OtaError | None:
    """Carry a block out; why what follows is not begun, None where every board is good.

    orders: image -> the orders to its boards, which were asked of nobody yet; when this returns,
    those of the groups are answered.
    """
    groups = _groups(run, block, orders)
    names = {name for group in groups for name in group.names}
    try:  # others of the same boards have ended before
        await run.unless_cancelled(run.engine.groups.free(names))
        with run.engine.groups.at_work(groups):
            try:
                why = await _go(run, groups, block, orders, alone)
            except Exception as error:  # whatever it is, no group is left half for it
                run.engine.log.exception("the groups of a run failed")
                why = OtaError.unforeseen(error)
                await asyncio.gather(*(group.fail(why) for group in groups))
    except OtaError as error:  # cancelled before it was its turn
        why = error
        await asyncio.gather(*(group.fail(why) for group in groups))
    finally:
        for group in groups:
            await group.settle()
    return _tell(run, groups) or why


def _tell(run: Run, groups: Sequence[Group]) -> OtaError | None:
    """What came of a run's groups is what is said of it."""
    error = next((group.error for group in groups if group.error is not None), None)
    if error is not None and error.code != "cancelled":
        run.error = error
    return error


def _groups(run: Run, block: Block, orders: Mapping[str, Pairs]) -> list[Group]:
    course, groups = run.course, []
    assert course is not None
    assigned = course.assignment
    stops = tuple(sorted({assigned.base.key, *assigned.keys}))
    for images in block.groups:
        at = {image: n for n, step in enumerate(block.steps) for image in step}
        everyone = [
            Member(board.shown.name, image, board, order, step)
            for image, step in sorted(at.items(), key=lambda one: one[1])
            for order, board in orders.get(image, ())
        ]
        members = [member for member in everyone if member.image in images]
        others = [member for member in everyone if member.image not in images]
        names = [name for name, image in assigned.images.items() if image in images]
        id = f"{run.id}:{min(images)}"  # an image is in one group
        if names:
            unused = [image for image in assigned.unused if image in images]
            groups.append(Group(run, id, members, names, stops, unused=unused, others=others))
    return groups


async def _go(
    run: Run, groups: Sequence[Group], block: Block, orders: Mapping[str, Pairs], alone: Alone
) -> OtaError | None:
    members = [member for group in groups for member in group.members]
    pairs = [(m.order, m.board) for m in members if m.board and not m.order.answer.done()]
    await run.renew(pairs)
    why = await _begin(groups) or await _step_by_step(run, groups, block, orders, alone)
    if why is not None:  # what is not at its end is not left in the middle
        await asyncio.gather(*(group.fail(why) for group in groups))
    return why


async def _step_by_step(
    run: Run, groups: Sequence[Group], block: Block, orders: Mapping[str, Pairs], alone: Alone
) -> OtaError | None:
    grouped = frozenset().union(*block.groups)
    for number, step in enumerate(block.steps):
        pairs = [pair for image in step if image not in grouped for pair in orders.get(image, ())]
        switched = [group.switch(number) for group in groups if group.has(number)]
        if switched:
            groups[0].course.at(step)
        whys = await asyncio.gather(*switched, alone(step, pairs))
        if (why := next(filter(None, whys), None)) is not None:
            return why
    return None


async def _begin(groups: Sequence[Group]) -> OtaError | None:
    """Have all of them staged, and the journal say that they are switched; why they are not."""
    ready = all([await group.complete() for group in groups])
    ready = ready and all(await asyncio.gather(*(group.stage() for group in groups)))
    for group in groups if ready else ():
        ready = ready and await group.begin()
    whys = (group.why for group in groups if group.why is not None)
    return None if ready else next(whys, OtaError("cancelled"))


# --- what a process that ended had begun


async def resume(run: Run, record: GroupRecord) -> None:
    """Finish a group as the journal says, forward or back."""
    group = await _recalled(run, record)
    with run.engine.groups.at_work([group]):
        try:
            if record.phase == "switching":
                await group.go_on()
            elif record.phase == "going_back":
                await group.go_back()
            else:
                await group.pay()
        finally:
            await group.settle()
    _tell(run, [group])


async def _recalled(run: Run, record: GroupRecord) -> Group:
    """A group as it was left, with the boards that its members are by now."""
    found = await run.engine.roster.find(None, Permits(), probe=False, by_person=False)
    by_mac = {place.mac or board.shown.mac: board for board, place in found.items()}
    data = record.data

    def recalled(entry: Mapping[str, Any]) -> Member:
        board = by_mac.get(entry["mac"])
        place = found[board] if board is not None else Place(entry["name"], "absent")
        target = Target.noted(entry["key"], entry["url"], entry["version"], entry.get("sha256"))
        if board is not None and board.target.key == target.key:
            target = board.target  # with its secrets: it may have to be fetched
        order = Order("update", target, place, run.trigger)
        name = board.shown.name if board is not None else entry["name"]
        member = Member(name, entry["image"], board, order, int(entry["step"]), entry["mac"])
        member.switch = entry["switch"]
        return member

    members = [recalled(entry) for entry in data["members"]]
    for member in members:
        if member.board is not None:
            run.orders[member.name] = (member.order, member.board)
    group = Group(
        run, record.id, members, data["names"], tuple(data["stops"]), record.phase,
        others=[recalled(entry) for entry in data["others"]],
    )  # fmt: skip
    await group.recall(data.get("why"))
    return group


def members_of(record: GroupRecord) -> dict[str | None, str]:
    """MAC -> name, of the members that are left in it."""
    return {entry["mac"]: entry["name"] for entry in record.data["members"]}


class Groups:
    """A service's groups that are at work, and what waits until one has ended.

    known: the journal was asked what a process before has left. left: ids of those that the journal
    has yet to finish -> how often that was tried, and when it is again, in the event loop's time.
    orphans: ids of those whose process was not alive any more at the start; None: the journal is
    shared with no other process.
    """

    def __init__(self) -> None:
        self.known = asyncio.Event()
        self._active: list[Group] = []
        self._due: dict[str, tuple[frozenset[str], asyncio.Event]] = {}
        self._later: dict[Board, Callable[[], None]] = {}
        self.left: dict[str, tuple[int, float]] = {}
        self.orphans: set[str] | None = None

    @property
    def run(self) -> Run | None:
        """The run of a group that is at work."""
        return self._active[0].run if self._active else None

    def of(self, names: Collection[str]) -> bool:
        """Whether all of these boards are a group's that is at work."""
        return any(set(names) <= group.names_now for group in self._active)

    def has(self, name: str) -> bool:
        """Whether a board is of a group that is at work, or is about to be."""
        due = any(name in names for names, _ in self._due.values())
        return due or any(name in group.names_now for group in self._active)

    def later(self, board: Board, call: Callable[[], None]) -> None:
        """Make a call about a board: now, or when its group has ended that is in the middle of a
        switch; instead of any that waits for that."""
        self._later.pop(board, None)
        if any(g.state in group_policy.JOURNALLED and board in g.boards for g in self._active):
            self._later[board] = call
        else:
            call()

    async def let_go(self, board: Board) -> None:
        """Until a board is of no group at work."""
        while group := next((g for g in self._active if board in g.boards), None):
            await group.ended.wait()

    async def free(self, names: Collection[str] | None = None) -> None:
        """Until none of these boards (None: no board at all) is one of a group at work."""
        await self.known.wait()
        while busy := next(self._busy(names), None):
            await busy.wait()

    def _busy(self, names: Collection[str] | None) -> Iterator[asyncio.Event]:
        at_work = [(group.names_now, group.ended) for group in self._active]
        for of, ended in (*at_work, *self._due.values()):
            if names is None or not of.isdisjoint(names):
                yield ended

    @contextmanager
    def at_work(self, groups: Sequence[Group]) -> Iterator[None]:
        """While these groups are, which were due, or for which their boards are free."""
        self._active += groups
        try:
            yield
        finally:
            for group in groups:
                self._active.remove(group)
                group.ended.set()
                unfinished = group.state not in ("final", "gone_back", "kept", "not_begun")
                if unfinished and group.id not in self._due:  # `over` counts those that were due
                    self._leave(group.id)
                for board in group.boards:
                    self._later.pop(board, lambda: None)()

    def ours(self, records: list[GroupRecord], here: Collection[str | None]) -> list[GroupRecord]:
        """Those that are this process's to finish: where the journal is shared, orphans whose
        boards are all here, and what it has begun to finish."""
        if self.orphans is None:
            return records
        known = [one for one in records if one.id in self.orphans]
        whole = {one.id for one in known if members_of(one).keys() <= set(here)}
        return [one for one in records if one.id in whole | self.left.keys()]

    def forget_all_but(self, ids: Collection[str]) -> None:
        """What the journal has no more was finished."""
        self.left = {id: tried for id, tried in self.left.items() if id in ids}

    def due(self, record: GroupRecord, *, at_once: bool) -> bool:
        """A group is about to be taken up from the journal; False: it is already, others of its
        boards are at work, or it was left a moment ago, where it is not to be `at_once`."""
        names, now_s = set(record.data["names"]), asyncio.get_running_loop().time()
        if record.id in self._due or any(names & group.names_now for group in self._active):
            return False
        if not at_once and now_s < self.left.get(record.id, (0, 0.0))[1]:
            return False
        self._due[record.id] = (frozenset(record.data["names"]), asyncio.Event())
        return True

    def over(self, record: GroupRecord) -> None:
        """What was due is done with."""
        _, ended = self._due.pop(record.id)
        ended.set()
        self._leave(record.id)

    def _leave(self, id: str) -> None:
        """What the journal has left of a group is tried again later and later."""
        failed = self.left.get(id, (0, 0.0))[0] + 1
        again_s = asyncio.get_running_loop().time() + policy.download_pause_s(failed)
        self.left[id] = failed, again_s
