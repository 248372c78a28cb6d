# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans one board's update: a pure function of what is wanted, what is there and what is known.

A plan is an ordered list of steps, with the reason for them. Everything that can be known before
the first write is checked here, so a plan that is not a refusal can be carried out as it is:
the edits of otadata and NVS in it were already computed, and proven on a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ota_service.errors import OtaError
from ota_service.formats import nvs, otadata
from ota_service.formats.chips import chip_name
from ota_service.formats.image import AppImage, BootHeader, load_doubt, require_revision
from ota_service.formats.otadata import OtaState
from ota_service.formats.partitions import Partition
from ota_service.update.bootable import signature_refusal
from ota_service.update.facts import BoardFacts, SlotFact, Staged
from ota_service.update.inspect import NAMESPACE, VERSION_KEY, Inspection

Action = Literal["none", "write", "switch", "record", "refuse"]
Course = Literal["update", "look", "plan", "stage", "activate", "rollback", "log"]
"""What a session is for. look: nothing is planned. plan: an update's plan, and no more. stage: all
of an update that can be done while nothing that boots changes; activate: the rest, without its
image. rollback: to the firmware in the other slot."""


@dataclass(frozen=True, slots=True)
class WriteSlot:
    """Write the image into a spare slot but for its magic byte, and read its digest back."""

    slot: Partition


@dataclass(frozen=True, slots=True)
class SealSlot:
    """Program the magic byte of an image that stands in a slot but for that; then read back the
    digest of all its `size_bytes`, which is `md5`."""

    slot: Partition
    size_bytes: int
    md5: str


@dataclass(frozen=True, slots=True)
class SwitchOtadata:
    """Make the bootloader start another slot from now on."""

    edit: otadata.OtaEdit


@dataclass(frozen=True, slots=True)
class RecordVersion:
    """Store the version in NVS."""

    edit: nvs.NvsEdit


@dataclass(frozen=True, slots=True)
class WatchBoot:
    """Watch the board start from `slot`, and roll it back if it does not come up.

    confirms: the bootloader uses rollback, so the app itself must confirm.
    """

    slot: Partition
    confirms: bool


Step = WriteSlot | SealSlot | SwitchOtadata | RecordVersion | WatchBoot


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done to one board, and why.

    code: the error's code of a refusal, "rolled-back" where the board had gone back by itself.
    steps: in their order; the board is restarted after them in any case. slot: the one that will
    run afterwards. from_version, to_version: the stored tag before and after. of_image: whether
    what comes of it speaks of the image, which is in that slot, or was turned down by otadata.
    replaces: the version of the firmware that a stage overwrites; "": none that boots.
    """

    action: Action
    reason: str
    code: str | None = None
    error: OtaError | None = None
    steps: tuple[Step, ...] = ()
    slot: Partition | None = None
    from_version: str = ""
    to_version: str = ""
    rolled_back: bool = False
    of_image: bool = False
    replaces: str = ""

    def to_dict(self) -> dict[str, str]:
        """{"action", "reason", "code"}, as a dry run replies; no code, no key."""
        shown = {"action": self.action, "reason": self.reason}
        if self.code is not None:
            shown["code"] = self.code
        return shown


def plan(
    found: Inspection,
    *,
    version: str,
    image: AppImage | None,
    facts: BoardFacts,
    course: Course = "update",
    force: bool = False,
    adopted: bool = True,
    rescue: bool = False,
) -> Plan:
    """What brings the board to `version` and `image`.

    image None: only what can be told without one. course: of "stage", too, it is the whole way
    (`staging` has its part); of "activate" what is staged in `facts` is the image. force: although
    the version is equal. adopted: the board may be updated whatever project it runs; otherwise it
    must hold VIAM_NS and run the image's project. rescue: for a board on which nothing boots, and
    only for such a one.
    Never raises for what is on the board: a board that cannot be updated gets a refusal.
    """
    try:
        # Where the version is stored already there may be nothing to activate.
        if course == "activate" and (facts.staged is not None or found.version != version):
            require_staged(facts.staged, version)
        return _Wanted(found, version, image, facts, course, force, adopted, rescue).plan()
    except OtaError as error:
        return refuse(error, found.version)


def refuse(error: OtaError, from_version: str = "") -> Plan:
    """The plan of a board that is left as it is."""
    return Plan(
        "refuse",
        error.message,
        code=error.code,
        error=error,
        from_version=from_version,
        to_version=from_version,
    )


OTHER = "up to date by its version, though another image runs"
READY = "spare slot already holds this image: switch only"
STAGED = "this image is staged in the spare slot: seal and switch only"


def staging(whole: Plan, replaces: str = "") -> Plan:
    """What of an update's plan can be done beforehand, while nothing that boots changes.

    Its slot is the one that an activation starts, None where there is nothing to activate; the
    board keeps its version.
    """
    if whole.action == "refuse":
        return whole
    steps = tuple(step for step in whole.steps if isinstance(step, WriteSlot))
    ready = whole.action in ("write", "switch") or (whole.of_image and whole.action == "record")
    return replace(
        whole,
        action="write" if steps else "none",
        reason=whole.reason if ready else f"nothing to stage: {whole.reason}",
        steps=steps,
        slot=whole.slot if ready else None,
        to_version=whole.from_version,
        rolled_back=False,
        of_image=False,
        replaces=replaces if steps else "",
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is there, what is wanted, and what is known; fields as the arguments of `plan`."""

    found: Inspection
    version: str
    image: AppImage | None
    facts: BoardFacts
    course: Course
    force: bool
    adopted: bool
    rescue: bool

    def plan(self) -> Plan:
        """May it be changed, is it ours, has it the version already, may it run the image?"""
        found = self.found
        running = found.changeable()
        if running is None:
            return self._rescue()
        if self.rescue:
            raise OtaError(
                "board-boots", f"The board boots {running.name}, so nothing was written."
            )
        if self.course == "stage" and self._has_yet_to_confirm(running):
            raise OtaError("awaiting-confirmation")
        header = self._header()
        if not self.adopted:
            _require_ours(found, header)
        equal = found.version == self.version or self._turned_down()
        if equal and not self.force and (kept := self._kept(running)) is not None:
            return kept
        _require_runnable(found, self._given(header))
        if not found.holds(running):
            return self._write(running)
        return self._watched_again(running) if equal and self.force else self._record(running)

    def _header(self) -> AppImage | BootHeader | None:
        """Where the image runs, and what its app says of itself."""
        staged = self.facts.staged if self.course == "activate" else None
        return staged.header if staged is not None else self.image

    def _given(self, header: AppImage | BootHeader | None) -> AppImage | BootHeader:
        if header is not None:
            return header
        if self.course == "activate":
            raise OtaError("not-staged")
        raise OtaError("no-board", "No image was given to plan an update with.")

    def _kept(self, running: Partition) -> Plan | None:
        """The firmware stays, where the stored tag is the target's and not that of another one."""
        corrected = self._rolled_back(running)
        if corrected is None and not self._tag_of_another(running):
            return self._up_to_date(running)
        return corrected

    def _rescue(self) -> Plan:
        """A board on which nothing boots by its bootloader's own rules: a new firmware cannot make
        that worse, but it is a person who says so."""
        found, image = self.found, self.image
        if image is not None:
            _require_runnable(found, image)
        if image is None or not self.rescue or not found.running.dead:
            raise found.running.why or OtaError("otadata-invalid")
        if not self.adopted:
            _require_namespace(found)
        slot = _that_fits(found.parts.ota_slots, image)
        return self._switch(slot, "rescued: nothing on the board boots", write=True)

    def _write(self, running: Partition) -> Plan:
        found, image = self.found, self.image
        if image is not None and (self.facts.silent or found.silent):
            _require_certain(image)
        if found.version != self.version:
            why = f'version differs: stored "{found.version}", configured "{self.version}"'
        elif self.force:
            why = f'forced: "{self.version}" is stored already'
        else:
            why = "the board does not run this image"
        spares = _spares(found.parts.ota_slots, running)
        ready = next((slot for slot in spares if found.holds(slot)), None)
        if ready is not None:
            return self._switch(ready, f"{why}; {READY}")
        staged = next((slot for slot in spares if slot.offset in found.staged), None)
        if staged is not None:
            return self._switch(staged, f"{why}; {STAGED}", seal=True)
        if image is None:
            assert self.facts.staged is not None
            raise OtaError(
                "not-staged",
                f"{self.facts.staged.slot} no longer holds what was staged there: its digest is "
                "another one, so something else has written it.",
            )
        return self._switch(_that_fits(spares, image, running), why, write=True)

    def _tag_of_another(self, running: Partition) -> bool:
        """Whether the stored tag is the target's, and another firmware runs, because an
        interruption fell between otadata and the version: on the way to another target, or on the
        way back from this one. Without a memory of the board, the target's image in another slot
        says so."""
        facts, found = self.facts, self.found
        if found.asked is None or found.holds(running):
            return False
        forgotten = facts.last_slot is None and bool(found.holding)
        return facts.unwatched or facts.interrupted or forgotten

    def _made(
        self, action: Action, reason: str, slot: Partition, *steps: Step,
        version: str | None = None, rolled_back: bool = False,
    ) -> Plan:  # fmt: skip
        """version: the tag afterwards; None: as it is."""
        before = self.found.version
        after = before if version is None else version
        of_image = action in ("write", "switch") or self.found.holds(slot)
        if rolled_back:
            of_image = bool(self.found.holding) and self._rejected()
        return Plan(action, reason, None, None, steps, slot, before, after, rolled_back, of_image)

    def _up_to_date(self, running: Partition) -> Plan:
        facts, confirms = self.facts, self._has_yet_to_confirm(running)
        unseen = facts.confirmed is None and self.found.holds(running)
        unseen = unseen or (facts.unwatched and facts.last_slot is None)
        if confirms or unseen or _moved(running, facts):
            return self._made(
                "none",
                "up to date; the boot of the slot that runs was never watched",
                running,
                WatchBoot(running, confirms),
            )
        other = self.found.asked is not None and not self.found.holds(running)
        return self._made("none", OTHER if other else "up to date", running)

    def _watched_again(self, running: Partition) -> Plan:
        """Forced, and there is nothing to write: the spare slot keeps the way back."""
        return self._made(
            "none",
            "forced: the board runs this image already; it is restarted and watched",
            running,
            WatchBoot(running, self._has_yet_to_confirm(running)),
        )

    def _rejected(self) -> bool:
        """Whether the board has turned the target down: its newest entry says so of a slot that is
        not known to hold another firmware."""
        entries, slots = self.found.entries, self.found.parts.ota_slots
        if entries.newest is None or not entries.newest_rejected:
            return False
        named = slots[entries.entries[entries.newest].slot_index(len(slots))]
        return not self.found.holding or self.found.holds(named)

    def _turned_down(self) -> bool:
        """Whether a board whose version the host keeps has gone back from this very image, before
        the host could note that it had it. (Other boards have it in NVS by then.)"""
        found = self.found
        return found.on_host and self.facts.unwatched and bool(found.holding) and self._rejected()

    def _rolled_back(self, running: Partition) -> Plan | None:
        """Equal tags are not enough: after the board went back by itself its tag is wrong."""
        found, facts, version = self.found, self.facts, self.version
        if found.holds(running):
            return None
        rejected = self._rejected()
        # Another slot than ours, of which nothing else is known, is an update by somebody else.
        moved = _moved(running, facts) and (facts.reached or _own_fact(found, facts) is not None)
        if (facts.unwatched or facts.interrupted) and moved and not rejected:
            moved = False  # our own switch was interrupted; nothing was ever seen to go back
        if not rejected and not moved:
            return None
        tag = own_tag(found, running, _own_fact(found, facts))
        if tag == version:
            return None  # the tag is right for what runs
        why = "rolled back by its bootloader"
        if not rejected:
            why = f"{facts.last_slot} runs no more ({why}, or damaged)"
        return self._made(
            "record",
            f'{why}: tag corrected; {running.name} runs, which is "{tag}", not "{version}"',
            running,
            *_recorded(found, tag),
            version=tag,
            rolled_back=True,
        )

    def _record(self, running: Partition) -> Plan:
        version = self.version
        return self._made(
            "record",
            "running image is already this one: record the version only",
            running,
            *_recorded(self.found, version),
            WatchBoot(running, self._has_yet_to_confirm(running)),
            version=version,
        )

    def _switch(
        self, slot: Partition, reason: str, *, write: bool = False, seal: bool = False
    ) -> Plan:
        found, version = self.found, self.version
        running = found.running.partition
        # Where nothing runs there is nothing that a bootloader could go back to.
        confirms = running is not None and otadata.shows_rollback(
            found.entries,
            has_factory=found.parts.factory is not None,
            n_slots=len(found.parts.ota_slots),
        )
        state = OtaState.NEW if confirms else OtaState.UNDEFINED
        edit = found.switched(found.otadata_raw, slot, running or slot, state)
        return self._made(
            "write" if write else "switch",
            reason,
            slot,
            *([WriteSlot(slot)] if write else []),
            *([self._seal(slot)] if write or seal else []),
            SwitchOtadata(edit),
            *_recorded(found, version),
            WatchBoot(slot, confirms),
            version=version,
        )

    def _seal(self, slot: Partition) -> SealSlot:
        asked = self.found.asked
        assert asked is not None, "the board is looked at for the image that it is to have"
        return SealSlot(slot, asked.size_bytes, asked.md5)

    def _has_yet_to_confirm(self, running: Partition) -> bool:
        """Whether the restart makes the running slot's entry PENDING_VERIFY: an update was cut off
        between its switch and its first start. (An entry that is still NEW after a start shows
        that the bootloader does not use rollback.)"""
        found, facts = self.found, self.facts
        active, slots = found.entries.active, found.parts.ota_slots
        started = found.running.evidence == "log" or (
            not facts.unwatched and facts.last_slot == running.name
        )
        if active is None or running not in slots or started:
            return False
        entry = found.entries.entries[active]
        return entry.state == OtaState.NEW and entry.slot_index(len(slots)) == slots.index(running)


def require_staged(staged: Staged | None, version: str) -> Staged:
    """What waits on a board to be activated. version: the target's.

    Raises OtaError `not-staged`, or `stage-stale` where it is of another target.
    """
    if staged is None:
        raise OtaError("not-staged")
    if staged.stale:
        raise OtaError(
            "stage-stale",
            f'"{staged.version}" is staged in {staged.slot}, and not "{version}" as it is '
            "configured now."
            if staged.version != version
            else f'Another file is staged as "{version}" than the one that is configured now.',
        )
    return staged


def _moved(running: Partition, facts: BoardFacts) -> bool:
    """Whether another slot runs than at the last success. (A label alone is what was noted before
    two partitions of one label were told apart: it may mean this one.)"""
    return facts.last_slot not in (None, running.name, running.label)


def _own_fact(found: Inspection, facts: BoardFacts) -> SlotFact | None:
    """What the journal has of what runs, where it is that still."""
    running = found.running.partition
    fact = facts.slots.get(running.name) if running is not None else None
    return fact if fact is not None and fact.md5 == found.running.md5 else None


def own_tag(found: Inspection, slot: Partition, fact: SlotFact | None) -> str:
    """The tag that belongs to a slot, whatever is stored: the journal's, else its descriptor's."""
    if fact is not None and fact.version is not None:
        return fact.version
    about = found.about(slot)
    return about.version if about is not None else ""


def tag_of_running(found: Inspection, facts: BoardFacts) -> str | None:
    """The tag to go back to what runs with: the stored one, None where none is. Where another slot
    runs than at the last success that may be the other one's, and this one's own counts."""
    running, fact = found.running.partition, _own_fact(found, facts)
    if running is not None and _moved(running, facts) and fact is not None:
        return own_tag(found, running, fact) or None
    if found.on_host:
        return found.version or None
    return found.nvs.get_string(NAMESPACE, VERSION_KEY) if found.nvs is not None else None


def half_left(found: Inspection, facts: BoardFacts) -> Partition | None:
    """The slot that the board has left by a way back of which the host has not seen the end: it
    ran at the last success, another one runs now, and its entry in otadata was taken away or the
    stored tag is still its own."""
    running, fact, slots = found.running.partition, _own_fact(found, facts), found.parts.ota_slots
    if running is None or fact is None or not _moved(running, facts):
        return None
    left = next((slot for slot in slots if slot.name == facts.last_slot), None)
    theirs = facts.slots.get(left.name) if left is not None else None
    if left is None or theirs is None:
        return None
    entries = found.otadata.entries if found.otadata is not None else ()
    taken = any(one.taken_away and slots[one.slot_index(len(slots))] == left for one in entries)
    tagged = found.version == theirs.version not in (None, fact.version)
    return left if taken or (tagged and not found.on_host) else None


def _recorded(found: Inspection, version: str) -> tuple[RecordVersion, ...]:
    """The step that stores a tag on the board; none where the host keeps it."""
    if found.on_host:
        return ()
    at = found.store
    assert at is not None
    if at.read_only:
        raise OtaError("nvs-missing", "The board's NVS partition is marked read-only.")
    edit = nvs.set_string(
        found.nvs_raw, base=at.offset, namespace=NAMESPACE, key=VERSION_KEY, value=version
    )
    return (RecordVersion(edit),)


def _spares(slots: tuple[Partition, ...], running: Partition) -> tuple[Partition, ...]:
    """The slots behind the running one, in a circle; all of them where no OTA slot runs.

    The first of them is the firmware's own choice (esp_ota_ops.c,
    esp_ota_get_next_update_partition).
    """
    if running not in slots:
        return slots
    at = slots.index(running)
    return slots[at + 1 :] + slots[:at]


def _that_fits(
    slots: tuple[Partition, ...], image: AppImage, running: Partition | None = None
) -> Partition:
    """The first slot that is large enough: slots of one board may differ."""
    for slot in slots:
        if image.total_bytes <= slot.size_bytes:
            return slot
    small = ", ".join(f"{slot.name} has {slot.size_bytes}" for slot in slots)
    larger = ""
    if (
        running is not None
        and running.ota_index is not None
        and image.total_bytes <= running.size_bytes
    ):
        larger = f" {running.name} has {running.size_bytes}, but it runs and is never written."
    raise OtaError(
        "image-too-large",
        f"The image has {image.total_bytes} bytes, and the slots that may be written fewer: "
        f"{small}.{larger}",
    )


def _require_namespace(found: Inspection) -> None:
    if found.on_host:
        text = "The board's NVS is encrypted, so it cannot be told whether it holds VIAM_NS."
        raise OtaError("other-project", text)
    if found.nvs is None or all(ns != NAMESPACE for ns, _ in found.nvs.keys()):  # noqa: SIM118
        raise OtaError("other-project", "The board's NVS holds no VIAM_NS, so it is not ours.")


def _require_ours(found: Inspection, image: AppImage | BootHeader | None) -> None:
    _require_namespace(found)
    app = found.running_app
    project = app.descriptor.project if app is not None and app.descriptor is not None else ""
    about = image.descriptor if image is not None else None
    if about is not None and project != about.project:
        raise OtaError(
            "other-project",
            f'The board runs the project "{project}", the image is of "{about.project}".',
        )


def _require_certain(image: AppImage) -> None:
    """Refuse what a bootloader that prints nothing may pass over: nobody would see that it does,
    and the next update would write what runs."""
    doubt = load_doubt(image.segments, image.chip_id)
    if doubt:
        raise OtaError(
            "image-corrupt",
            "The board's bootloader prints nothing, so it could not be told whether it starts a "
            f"slot that {doubt}.",
        )


def _require_runnable(found: Inspection, image: AppImage | BootHeader) -> None:
    """Refuse what the chip or its bootloader would not run. (Of what is staged, the signature was
    looked at when it was.)"""
    chip, about = found.chip, image.descriptor
    if image.chip_id != chip.chip_id:
        raise OtaError(
            "wrong-chip",
            f"The image is for {chip_name(image.chip_id)}, the board's chip is {chip.name}.",
        )
    require_revision(chip.revision, image.min_revision, image.max_revision)
    if about is not None:
        chip.require_blocks(about)
    refused = signature_refusal(image, chip) if isinstance(image, AppImage) else None
    if refused is not None:
        raise refused
    secure_version = about.secure_version if about is not None else 0
    runs = found.running.partition
    lowest = found.secure_version_of(runs) if runs is not None else 0
    fused = found.secure_floor(chip.secure_version)
    if secure_version < max(lowest, fused):
        what = (
            f"the running app's {lowest}" if lowest >= fused else f"the board's fuses hold {fused}"
        )
        raise OtaError(
            "secure-version",
            f"The image's secure version is {secure_version}, {what}.",
        )
