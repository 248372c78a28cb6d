# SPDX-License-Identifier: GPL-3.0-or-later
"""One board's session, from the open port to what the board shows in the end.

Blocking; runs in a thread of its own. Everything it learns on the way goes to `Hooks`, and what
came out of it is an `Outcome`. Whatever happens, the board is not left in download mode as long
as its port can be used.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from serial import SerialBase

from ota_service.errors import OtaError
from ota_service.formats.image import AppDescriptor, AppImage
from ota_service.formats.otadata import OtaData, OtaState
from ota_service.formats.partitions import Partition
from ota_service.link.flash import Flash, apply_verified
from ota_service.link.link import EspLink
from ota_service.link.sparse import digest
from ota_service.link.stream import STREAMS
from ota_service.update.boot import UNJUDGED, BootMonitor, BootRules, Expected, Hears, Verdict
from ota_service.update.carry_out import (
    RollbackPlan,
    carry_out,
    plan_go_back,
    plan_rollback,
    record_ops,
    rollback_after,
)
from ota_service.update.facts import BoardFacts, KnownImage, Staged
from ota_service.update.inspect import Inspection, inspect, read_otadata
from ota_service.update.leave import left_running, put_back
from ota_service.update.plan import (
    Course,
    Plan,
    WatchBoot,
    WriteSlot,
    half_left,
    own_tag,
    plan,
    refuse,
    staging,
    tag_of_running,
)
from ota_service.update.secrets import Redactor
from ota_service.update.starts import StartHooks, Starts

__all__ = ["Awaited", "BootRules", "Brought", "Hooks", "Image", "Job", "Outcome", "Phase", "run"]

LOGGER = logging.getLogger("ota_service.update")

Phase = Literal[
    "connecting",
    "inspecting",
    "writing",
    "verifying",
    "switching",
    "recording",
    "booting",
    "rolling_back",
]
End = Literal[
    "up_to_date",
    "rolled_back",
    "awaiting_confirmation",
    "unjudged",
    "refused",
    "failed",
    "read",
    "staged",
]


@dataclass(frozen=True, slots=True)
class Image:
    """A checked App Image, as a session needs it."""

    data: bytes
    sha256: str
    md5: str
    parsed: AppImage

    @property
    def known(self) -> KnownImage:
        """As evidence for what a slot holds."""
        return KnownImage(self.size_bytes, self.md5, self.data[:512], digest(self.data[1:]))

    @property
    def size_bytes(self) -> int:
        """Of all that is written."""
        return len(self.data)

    @property
    def descriptor(self) -> AppDescriptor:
        """What its app says of itself."""
        return self.parsed.descriptor


@dataclass(frozen=True, slots=True)
class Awaited:
    """An update whose app was left alone to confirm itself: which slot (its name), and the tag
    before.

    power_failed: its power failed before it had confirmed itself, as far as was seen. version: the
    tag of the new one. target: whose it is; "": the target's at hand.
    """

    slot: str
    previous_version: str | None
    power_failed: bool = False
    version: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Brought:
    """What an update brought to a board: a slot's name and the digest of what it wrote there
    (`size_bytes`, MD5 in hex), its tag, and the tag before; "" for none.

    code, why: of the error that its way back ends with; "": it ends without one.
    """

    slot: str
    size_bytes: int
    md5: str
    version: str
    previous_version: str | None = None
    code: str = ""
    why: str = "it is to be taken back"


@dataclass(frozen=True, slots=True)
class Job:
    """What to do with one board.

    name: for messages. version, image: what to bring the board to; image None where the course,
    what the session is for, needs none. known: other checked images, as evidence for what runs.
    baud: the highest speed. force: although the version is equal. adopted: it may be updated
    whatever project it runs. rescue: the MAC of a board on which nothing boots, to be written all
    the same. host_store: the journal keeps the version where NVS is encrypted. whole: several
    boards go forward or back together. rearm: an app found
    waiting for confirmation gets its time again (first contact), instead of being passed by the
    bootloader.
    confirm: the look at a board whose app had its time; of a rollback, the way back from it.
    back_of: what an update brought is taken back, firmware and tag, if it is still what the board
    has; also from an app that could confirm itself yet. refusal: why the board is left as it is,
    whatever is found on it. log: the service's, which says whose board it is. hears: gets what
    it prints in the starts that are watched.
    """

    name: str
    version: str = ""
    image: Image | None = None
    course: Course = "update"
    known: tuple[KnownImage, ...] = ()
    baud: int = 921_600
    boot: BootRules = field(default_factory=BootRules)
    force: bool = False
    adopted: bool = True
    rescue: str | None = None
    host_store: bool = False
    whole: bool = False
    rearm: bool = True
    confirm: Awaited | None = None
    back_of: Brought | None = None
    refusal: OtaError | None = None
    log: logging.Logger | logging.LoggerAdapter[logging.Logger] = field(default=LOGGER, repr=False)
    hears: Hears = field(default=lambda heard: None, repr=False)


class Hooks(StartHooks, Protocol):
    """What a session tells while it goes on; called from its thread."""

    def identified(self, mac: str) -> BoardFacts:
        """The chip answered; returns what is known of it. Raises OtaError `wrong-board`."""

    def inspected(self, found: Inspection) -> None:
        """The board was looked at."""

    def planned(self, made: Plan) -> None:
        """What will be done with it."""

    def phase(self, name: Phase) -> None:
        """A phase begins."""

    def progress(self, bytes_done: int, bytes_total: int) -> None:
        """Bytes of the image that were sent."""


@dataclass(slots=True)
class Outcome:
    """What came of a session: what the board shows, not what a tool returned.

    end: "unjudged" where the board holds the new firmware, and nothing that was seen speaks for
    or against it (`error` says why). "staged": everything that can be done before an activation
    is done; `plan.slot` is the one that it will start, None where there is none. version: the tag
    stored at the end. slot: what runs. confirmed: the app was seen to run; False where its log
    showed nothing to judge by, and `notice` says so; None where no boot was watched.
    boot_log: what was seen of each watched start, under its heading, without the board's secrets.
    power_failed: the power failed during a start that the app must confirm. image: size and MD5
    of what `slot` holds, of a board that was gone back with and whose version the host keeps.
    of_image: it speaks of the job's image, which was written, switched to, or there.
    """

    end: End
    plan: Plan | None = None
    found: Inspection | None = None
    version: str | None = None
    slot: Partition | None = None
    confirmed: bool | None = None
    notice: str = ""
    error: OtaError | None = None
    previous_version: str | None = None
    boot_log: tuple[str, ...] = ()
    power_failed: bool = False
    image: tuple[int, str] | None = None
    of_image: bool = False


def run(port: SerialBase, job: Job, hooks: Hooks) -> Outcome:
    """Do `job` with the board behind `port`, which is open with its lines released.

    Raises OtaError where the board could not be reached or was lost; it may then be in any
    state that the next session can start from.
    """
    return _Session(port, job, hooks).run()


class _Session:
    link: EspLink
    starts: Starts

    def __init__(self, port: SerialBase, job: Job, hooks: Hooks) -> None:
        self.port = port
        self.job = job
        self.hooks = hooks
        self.facts = BoardFacts()
        self._looks_again = job.confirm is not None or job.back_of is not None
        self._waits = job.rearm and not self._looks_again  # as far as is known

    def run(self) -> Outcome:
        job, hooks = self.job, self.hooks
        hooks.phase("connecting")
        hooks.restarting("into download mode, to be looked at")
        self.link = EspLink.connect(self.port, baud=job.baud, identified=self._identified)
        self.starts = Starts(self.link, self.port, job.name, job.boot, hooks, job.log, job.hears)
        return self._visit()

    def _visit(self) -> Outcome:
        course = self.job.course
        with left_running(self.link, waits=lambda: self._waits):
            self.hooks.phase("inspecting")
            found = self._look()
            if self.job.confirm is not None:
                return self._confirm(found, self.job.confirm)
            if self.job.back_of is not None:
                return self._take_back(found, self.job.back_of)
            if course == "rollback":
                return self._go_back(found)
            if course == "look":
                put_back(self.link, waits=self._waits)
                return Outcome(
                    "read", found=found, version=found.version, slot=found.running.partition
                )
            if course == "log":
                return self._watch(found)
            made = self._plan(found)
            if made.code == "nvs-invalid" and self._may_start(found):
                found = self._repaired()
                made = self._plan(found)
            self.hooks.planned(made)
            if course == "plan" or made.action == "refuse":
                put_back(self.link, waits=self._waits)
                return self._refused(found, made)
            return self._stage(found, made) if course == "stage" else self._update(found, made)

    def _identified(self, mac: str) -> None:
        if self.job.rescue not in (None, mac):
            raise OtaError(
                "wrong-board",
                f"The board is {mac}, and {self.job.rescue} was confirmed.",
                remedy="Confirm the MAC of the board that is to be rescued.",
            )
        self.facts = self.hooks.identified(mac)

    def _look(self) -> Inspection:
        job = self.job
        found = self._inspect()
        if found.pending and not job.rearm and not self._looks_again:
            # Nobody's update of ours, and its app has had its time: let the bootloader decide.
            if not self.starts.first_look().restarted:
                raise OtaError("cancelled" if self.hooks.cancelled() else "no-reset")
            found = self._inspect()
        self._waits = job.rearm and not self._looks_again and found.pending
        self.starts.redact, self.starts.hides = Redactor(found.secrets), found.hidden_nvs
        self.hooks.inspected(found)
        return found

    def _inspect(self) -> Inspection:
        firmware = self._firmware()
        return inspect(
            self.link,
            self.link.chip,
            facts=self.facts,
            known=self.job.known,
            firmware=firmware.known if firmware is not None else None,
            look=None if self._looks_again else self.starts.first_look,
            host_store=self.job.host_store,
        )

    def _firmware(self) -> Image | Staged | None:
        """What the board is to run, as far as it is known by now."""
        return self.facts.staged if self.job.course == "activate" else self.job.image

    @staticmethod
    def _may_start(found: Inspection) -> bool:
        """Whether a start cannot make the board's app one that waits for its confirmation, which
        the next reset would turn down."""
        if found.running.partition is None or found.pending or found.otadata is None:
            return False
        # What stands as PENDING_VERIFY and is not `pending` has nobody to confirm it.
        return not any(e.counts and e.state == OtaState.NEW for e in found.otadata.entries)

    def _repaired(self) -> Inspection:
        """The board after one start of its firmware, which repairs what a cut has left in NVS."""
        self.starts.repair()
        return self._look()

    def _plan(self, found: Inspection) -> Plan:
        job = self.job
        if job.refusal is not None:
            return refuse(job.refusal, found.version)
        made = plan(
            found,
            version=job.version,
            image=job.image.parsed if job.image is not None else None,
            facts=self.facts,
            course=job.course,
            force=job.force,
            adopted=job.adopted,
            rescue=job.rescue is not None,
        )
        if job.course != "stage" and not (job.whole and job.course == "plan"):
            return made
        try:
            self._require_way_back(found, made)
        except OtaError as error:
            if error.code == "link-lost":
                raise
            return refuse(error, found.version)
        if job.course == "plan":
            return made
        return staging(made, self._tag_in(found, made.slot) if made.slot is not None else "")

    def _refused(self, found: Inspection, made: Plan) -> Outcome:
        end: End = "read" if self.job.course == "plan" else "refused"
        if found.pending and self.job.course in ("update", "activate"):
            end = "awaiting_confirmation"
        return Outcome(
            end,
            plan=made,
            found=found,
            version=found.version if found.has_version else None,
            slot=found.running.partition,
            error=made.error,
        )

    def _watch(self, found: Inspection) -> Outcome:
        """One start of what it runs, for its log alone."""
        if found.pending:
            raise OtaError("awaiting-confirmation")
        unread = found.nvs is None and (found.table is None or bool(found.table.nvs_stores))
        self.starts.hides = self.starts.hides or unread
        self.hooks.phase("booting")
        runs = found.running.partition
        monitor = self.starts.watched(runs)
        return Outcome(
            "read",
            found=found,
            version=found.version,
            slot=runs,
            confirmed=monitor.confirmed,
            notice=monitor.words,
            boot_log=tuple(self.starts.log),
        )

    # --- what can be done before an update

    def _require_way_back(self, found: Inspection, whole: Plan) -> None:
        """Refuse a board whose update, as it is planned, could not be taken back.

        Raises OtaError, with nothing written.
        """
        running = found.running.partition
        if whole.action not in ("write", "switch") or running is None or whole.slot is None:
            return
        if self.job.whole and self.job.image is not None:
            new = self.job.image.descriptor.secure_version
            now = found.secure_version_of(running)
            if new > now:
                raise OtaError(
                    "secure-version",
                    f"The image's secure version is {new}, and {now} that of what runs: once it "
                    "has run, the board's fuses need not let it go back with its group.",
                )
        ahead, slot = rollback_after(self.link, found, whole), None
        try:
            back = self._plan_back(found, whole.slot, ahead)
            slot, problem = back.slot, back.problem
        except OtaError as error:
            if error.code != "boot-failed":
                raise
            problem = None
        if problem is not None:
            raise problem
        if slot != running:
            raise OtaError(
                "otadata-invalid",
                f"From {whole.slot.name} the board would not go back to {running.name}, which runs "
                "now, so nothing was written.",
            )

    def _stage(self, found: Inspection, made: Plan) -> Outcome:
        """The image into its slot, as far as nothing that boots changes."""
        outcome = Outcome(
            "staged", plan=made, found=found, version=found.version, slot=found.running.partition
        )
        if made.slot is not None:
            self._require_writable(found, (made.slot,))
        if made.steps and made.slot is not None:
            self._write(found, made)
            image = self.job.image
            assert image is not None
            behind = self.link.md5(made.slot.offset + 1, image.size_bytes - 1)
            if behind != image.known.staged_md5:
                raise OtaError(
                    "verify-failed", f"The image in {made.slot.name} is not what was written."
                )
        self.hooks.phase("booting")
        if not self.starts.leaves():
            outcome.error = OtaError("no-reset")
        return outcome

    def _tag_in(self, found: Inspection, slot: Partition) -> str:
        """The version of the firmware that stands in a slot; "" for none, or none that boots."""
        about, fact = found.about(slot), self.facts.slots.get(slot.name)
        if about is None:
            return ""
        app = (about.project, about.version)
        same = fact is not None and (fact.project, fact.app_version) == app
        return (fact.version if fact is not None and same else None) or about.version

    # --- the update

    def _update(self, found: Inspection, made: Plan) -> Outcome:
        if made.action != "none":
            slots = [step.slot for step in made.steps if isinstance(step, WriteSlot)]
            self._require_writable(found, slots)
        self._write(found, made)
        boot = next((step for step in made.steps if isinstance(step, WatchBoot)), None)
        self.hooks.phase("booting")
        outcome = Outcome(
            "rolled_back" if made.rolled_back else "up_to_date",
            plan=made,
            found=found,
            version=made.to_version,
            slot=made.slot,
            previous_version=tag_of_running(found, self.facts),
            of_image=made.of_image,
        )
        if boot is None:
            if not made.rolled_back:
                return self._restarted(outcome)
            seen = "" if self.starts.leaves() else " It waits in download mode still."
            outcome.error = OtaError(
                "boot-failed", f"The board went back by itself: {made.reason}.{seen}"
            )
            return outcome
        monitor = self.starts.watched(boot.slot, self._expected(found, made, boot.slot))
        if monitor.verdict is Verdict.FAILED:
            return self._roll_back(found, outcome, boot.slot, monitor.reason)
        if boot.confirms and monitor.verdict is not Verdict.NO_RESET:
            # After a power failure, too, only otadata decides: a restart would turn the app down.
            outcome.end = "awaiting_confirmation"
            outcome.confirmed = monitor.confirmed
            outcome.power_failed = monitor.outside_resets > 0
            return outcome
        return self._judged(outcome, monitor)

    def _judged(self, outcome: Outcome, monitor: BootMonitor) -> Outcome:
        """By a watched start that has not failed."""
        assert outcome.slot is not None
        outcome.confirmed, outcome.notice = monitor.confirmed, monitor.notice
        outcome.power_failed = monitor.outside_resets > 0
        if monitor.verdict in UNJUDGED:
            outcome.confirmed, code = None, UNJUDGED[monitor.verdict]
            outcome.end = "unjudged"
            outcome.error = OtaError(
                code,
                f"The firmware in {outcome.slot.name} was started, and cannot be judged: "
                f"{monitor.reason}.",
            )
            outcome.boot_log = tuple(self.starts.log)
        return outcome

    def _restarted(self, outcome: Outcome) -> Outcome:
        """Restart into what needs no judgement, and see that the board left download mode."""
        if not self.starts.leaves():
            outcome.end = "unjudged"
            outcome.confirmed = None
            outcome.error = OtaError("no-reset")
        return outcome

    def _require_writable(self, found: Inspection, slots: Sequence[Partition] = ()) -> None:
        """Refuse a flash whose protection bits cover what will be written."""
        places = [found.parts.otadata, found.store, *slots]
        status = self.link.protection()
        for place in places:
            if place is not None and status.covers(place.offset, place.size_bytes):
                raise OtaError(
                    "flash-protected",
                    f"The flash chip's protection bits cover {place.name}, so nothing was written.",
                )

    def _write(self, found: Inspection, made: Plan) -> None:
        """The plan's writes; where they fail behind the switch, the switch is taken back."""
        job = self.job
        stream = None
        if any(isinstance(step, WriteSlot) for step in made.steps):
            assert job.image is not None
            stream = STREAMS.get(job.image.sha256, job.image.data)
        total = job.image.size_bytes if job.image is not None else 0
        switching = False

        def phase(name: Phase) -> None:
            nonlocal switching
            if not switching and self.hooks.cancelled():
                raise OtaError("cancelled")
            switching = switching or name == "switching"
            self.hooks.phase(name)

        def progress(done: int) -> None:
            if self.hooks.cancelled():
                raise OtaError("cancelled")
            self.hooks.progress(done, total)

        try:
            carry_out(made, self.link, stream, phase=phase, progress=progress)
        except OtaError as error:
            if switching and error.code != "link-lost" and made.slot is not None:
                with contextlib.suppress(OtaError):
                    apply_verified(self.link, self._plan_back(found, made.slot).ops)
            raise

    def _expected(self, found: Inspection, made: Plan, slot: Partition) -> Expected:
        """What the start must show; the image's descriptor only where the image is in the slot."""
        firmware = self._firmware()
        holds = made.action in ("write", "switch") or found.holds(slot)
        app = firmware.descriptor if firmware is not None and holds else None
        return Expected.of(slot, app, self.job.boot.matches)

    # --- back

    def _go_back(self, found: Inspection) -> Outcome:
        """To the firmware in the other slot, because a person says so."""
        try:
            back = self._plan_go_back(found)
        except OtaError as error:
            if error.code != "nvs-invalid" or not self._may_start(found):
                raise
            found = self._repaired()
            back = self._plan_go_back(found)
        self.hooks.phase("rolling_back")
        apply_verified(self.link, back.ops)
        outcome = Outcome(
            "rolled_back", found=found, version=back.version or "", slot=back.slot, image=back.image
        )
        monitor = self.starts.watched(back.slot)
        if monitor.verdict is Verdict.FAILED:
            failed = f"The firmware in {back.slot.name} did not come up"
            return self._roll_back(found, outcome, back.slot, monitor.reason, failed=failed)
        outcome = self._judged(outcome, monitor)
        outcome.end, outcome.boot_log = "rolled_back", tuple(self.starts.log)
        return outcome

    def _plan_go_back(self, found: Inspection) -> RollbackPlan:
        running = found.changeable()
        if running is None:
            raise found.running.why or OtaError("otadata-invalid")
        self._require_writable(found)
        fused, version_of = self.link.chip.secure_version, partial(self._tag_of, found)
        if (left := half_left(found, self.facts)) is not None:
            # Going back once more would lead to where the person wanted to leave.
            return plan_rollback(self.link, found, bad=left, fused=fused, version_of=version_of)
        back = plan_go_back(
            self.link, found, running=running, fused=fused, version_of=version_of,
            failed=self._failed(found),
        )  # fmt: skip
        if back.problem is not None:
            raise back.problem
        return back

    def _failed(self, found: Inspection) -> dict[Partition, str]:
        """Slots that hold what was seen to fail on this very board, and in words what that is."""
        words = {}
        for slot in found.parts.ota_slots:
            fact = self.facts.failed.get(slot.name)
            if fact is not None and self.link.md5(slot.offset, fact.size_bytes) == fact.md5:
                words[slot] = f'holds "{fact.version}", which did not come up on this board before'
        return words

    def _tag_of(self, found: Inspection, slot: Partition) -> str:
        return own_tag(found, slot, self.facts.slots.get(slot.name))

    def _plan_back(
        self, found: Inspection, bad: Partition, flash: Flash | None = None
    ) -> RollbackPlan:
        """flash: as it is to be looked at; None: the board's."""
        before = found.running.partition

        def version_of(slot: Partition) -> str | None:
            awaited = self.job.confirm or self.job.back_of
            if awaited is not None:
                known = awaited.previous_version
            elif before is not None and slot == before != bad:
                known = tag_of_running(found, self.facts)
            else:
                return self._tag_of(found, slot)
            new = awaited.version if awaited is not None else ""
            if known == (new or self.job.version) and not self.job.force:
                # The new firmware's own: an interruption had left it with the old one.
                return self._tag_of(found, slot)
            return known

        fused, flash = self.link.chip.secure_version, flash or self.link
        return plan_rollback(flash, found, bad=bad, fused=fused, version_of=version_of)

    def _take_back(self, found: Inspection, brought: Brought) -> Outcome:
        """From what an update brought to the firmware before it, whatever its app is at."""
        if found.problem is not None:
            raise found.problem
        slot = self._slot_named(found, read_otadata(self.link, found), brought.slot)
        self._require_brought(found, slot, brought)
        self._require_writable(found)
        outcome = Outcome("rolled_back", found=found, of_image=True)
        return self._roll_back(found, outcome, slot, brought.why, code=brought.code)

    def _require_brought(self, found: Inspection, slot: Partition, brought: Brought) -> None:
        """That nobody has changed the board since; an earlier way back may have begun.

        Raises OtaError `changed-elsewhere`.
        """
        runs, tags = found.running.partition, (brought.version, brought.previous_version or "")
        if self.link.md5(slot.offset, brought.size_bytes) != brought.md5:
            what = f"{slot.name} holds another firmware than the update's"
        elif runs is not None and runs != slot and not self._ran_before(runs):
            what = f"{runs.name} runs another one by now"
        elif found.version not in tags and not found.on_host:
            what = f'its version is "{found.version}"'
        else:
            return
        raise OtaError(
            "changed-elsewhere",
            f'The update to "{brought.version}" is not taken back: {what}.',
            remedy="Look at what was done with the board since; call update to go on.",
        )

    def _ran_before(self, slot: Partition) -> bool:
        """Whether a slot holds what was seen to run there."""
        fact = self.facts.slots.get(slot.name)
        return fact is not None and self.link.md5(slot.offset, fact.size_bytes) == fact.md5

    def _roll_back(
        self, found: Inspection, outcome: Outcome, bad: Partition, why: str,
        *, code: str = "boot-failed", failed: str = "The new firmware did not come up",
    ) -> Outcome:  # fmt: skip
        """Back to the firmware before: otadata and the version, then watch that one start.

        code: of the outcome's error: `brown-out` where nothing speaks against the firmware; ""
        for none. failed: what a `boot-failed` begins with.
        """
        name = self.job.name
        self.job.log.warning("%s: %s; rolling back", name, why)
        self.hooks.phase("rolling_back")
        outcome.boot_log = tuple(self.starts.log)
        outcome.confirmed = None
        if self.link.running:
            self.hooks.restarting("into download mode, to be rolled back")
            self.link.reconnect()
        back = self._plan_back(found, bad)
        apply_verified(self.link, back.ops)
        problem = self._recorded_late(found, back) if back.problem is not None else None
        monitor = self.starts.watched(back.slot, known_good=True)
        outcome.boot_log = tuple(self.starts.log)
        outcome.version = (back.version or "") if problem is None else None
        outcome.slot, outcome.image = back.slot, back.image
        if monitor.verdict is Verdict.FAILED:
            in_place = "and version are in place."
            if problem is not None:
                in_place = f"is in place, and its version could not be put right: {problem.message}"
            outcome.end = "failed"
            outcome.error = OtaError(
                "boot-failed",
                f"{failed} ({why}), and neither did the one before ({monitor.reason})."
                if code == "boot-failed"
                else f"{why}; the firmware before did not come up ({monitor.reason}).",
                remedy=f"Look at the board's power and wiring; its previous firmware {in_place}",
            )
            return outcome
        back_on = f'The board went back to {back.slot.name} with version "{back.version or ""}".'
        if problem is not None:
            back_on = (
                f"The board went back to {back.slot.name}, and its version could not be put right: "
                f"{problem.message}"
            )
        if monitor.verdict in UNJUDGED:
            back_on += f" Its start was not seen: {monitor.reason}."
        else:
            outcome.confirmed, outcome.notice = monitor.confirmed, monitor.notice
        outcome.end = "unjudged" if code == "brown-out" else "rolled_back"
        words = f"{failed}: {why}" if code == "boot-failed" else why
        outcome.error = OtaError(code, f"{words}. {back_on}") if code else None
        return outcome

    def _recorded_late(self, found: Inspection, back: RollbackPlan) -> OtaError | None:
        """The version stored after one start of the firmware gone back to, which repairs its NVS;
        or why it still cannot be, or that start might be one that its app must confirm."""
        now = read_otadata(self.link, found)
        if now.on_trial:
            return back.problem
        if not self.starts.repair(on_the_way_back=True):
            return back.problem
        try:
            apply_verified(self.link, record_ops(self.link, found, back.version))
        except OtaError as error:
            if error.code == "link-lost":
                raise
            return error
        return None

    def _confirm(self, found: Inspection, awaited: Awaited) -> Outcome:
        """The app's time to confirm itself is over: what does otadata say?"""
        if found.table is None or found.table.otadata is None:
            raise found.problem or OtaError("otadata-invalid")
        otadata = read_otadata(self.link, found)
        slot = self._slot_named(found, otadata, awaited.slot)
        slots = found.table.ota_slots
        here = (e for e in otadata.entries if e.written)
        states = [e.state for e in here if slots[e.slot_index(len(slots))] == slot]
        version = awaited.version if found.on_host else found.version
        outcome = Outcome(
            "up_to_date", found=found, version=version, slot=slot, of_image=found.holds(slot)
        )
        by_person = self.job.course == "rollback"
        if OtaState.VALID in states:
            if by_person:
                return self._go_back(found)
            outcome.confirmed = True
            if found.problem is not None:
                # Of the version or of what else the app keeps: its update is over all the same.
                outcome.version, outcome.error = None, found.problem
            return self._restarted(outcome)
        if found.problem is not None:
            raise found.problem
        if by_person:
            outcome = self._roll_back(found, outcome, slot, "a person asks, and it is unconfirmed")
            outcome.error = None if outcome.end == "rolled_back" else outcome.error
            return outcome
        if OtaState.NEW in states:
            return self._not_started(found, outcome, slot)
        pending = OtaState.PENDING_VERIFY in states
        code, why = _why_unconfirmed(pending=pending, power_failed=awaited.power_failed)
        return self._roll_back(found, outcome, slot, why, code=code)

    def _not_started(self, found: Inspection, outcome: Outcome, slot: Partition) -> Outcome:
        """Either it never started, or this bootloader does not use rollback: after one more start
        it is the latter, and nothing takes the firmware back."""
        if self.job.rearm:
            outcome.end = "awaiting_confirmation"
            return self._restarted(outcome)
        monitor = self.starts.watched(slot)
        if monitor.verdict is Verdict.FAILED:
            return self._roll_back(found, outcome, slot, monitor.reason)
        return self._judged(outcome, monitor)

    @staticmethod
    def _slot_named(found: Inspection, otadata: OtaData, name: str) -> Partition:
        slots = found.parts.ota_slots
        named = [part for part in slots if name in (part.name, part.label)]
        if len(named) > 1 and otadata.newest is not None:  # noted before labels were told apart
            return slots[otadata.entries[otadata.newest].slot_index(len(slots))]
        if not named:
            gone = f"The board has no slot {name} any more."
            raise found.problem or OtaError("otadata-invalid", gone)
        return named[0]


def _why_unconfirmed(*, pending: bool, power_failed: bool) -> tuple[str, str]:
    """The error's code, and why an app whose time to confirm itself is over did not."""
    if pending:
        return "boot-failed", "its app did not confirm itself in time"
    if power_failed:
        return "brown-out", "The board's power failed before its new app confirmed itself"
    return "boot-failed", "the board's bootloader went back by itself"
