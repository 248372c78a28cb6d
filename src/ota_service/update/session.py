# SPDX-License-Identifier: GPL-3.0-or-later
"""One board's session, from the open port to what the board shows in the end.

Blocking; runs in a thread of its own. Everything it learns on the way goes to `Hooks`, and what
came out of it is an `Outcome`. Whatever happens, the board is not left in download mode as long
as its port can be used.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from serial import SerialBase

from ota_service.errors import OtaError
from ota_service.formats.image import AppImage
from ota_service.formats.otadata import OtaState, parse_otadata
from ota_service.formats.partitions import Partition
from ota_service.link.flash import apply_verified
from ota_service.link.link import EspLink, leave_download_mode
from ota_service.link.stream import STREAMS
from ota_service.update.boot import UNJUDGED, BootMonitor, Expected, Matcher, Verdict
from ota_service.update.carry_out import (
    RollbackPlan,
    carry_out,
    plan_go_back,
    plan_rollback,
)
from ota_service.update.facts import BoardFacts, KnownImage
from ota_service.update.first_look import FirstLook, first_look
from ota_service.update.inspect import NAMESPACE, VERSION_KEY, Inspection, inspect
from ota_service.update.leave import left_running, put_back
from ota_service.update.plan import Plan, WatchBoot, WriteSlot, plan, refuse
from ota_service.update.secrets import Redactor
from ota_service.update.watch import watch

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
]

FIRST_LOOK_S = 3.0
"""How long a board runs that is started in the middle of a session: to see what runs, or so that
its firmware repairs its NVS."""


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
        return KnownImage(len(self.data), self.md5, self.data[:512])


@dataclass(frozen=True, slots=True)
class BootRules:
    """How a start is judged; the configuration's boot_* attributes."""

    timeout_s: float = 20.0
    stable_s: float = 5.0
    matches: Matcher | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Awaited:
    """An update whose app was left alone to confirm itself: which slot (its name), and the tag
    before.

    power_failed: its power failed before it had confirmed itself, as far as was seen.
    """

    slot: str
    previous_version: str | None
    power_failed: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What to do with one board.

    name: for messages. version, image: what to bring the board to; image None with dry_run or
    read_only only. known: other checked images, as evidence for what runs. baud: the highest
    speed. force: although the version is equal. adopted: it may be updated whatever project it
    runs. rescue: the MAC of a board on which nothing boots, to be written all the same.
    read_only: look, and plan nothing. go_back: to the firmware in the other slot. rearm: an app
    found waiting for confirmation gets its time again (first contact), instead of being passed
    by the bootloader.
    confirm: the look at a board whose app had its time. refusal: why the board is left as it
    is, whatever is found on it. log: the service's, which says whose board it is.
    """

    name: str
    version: str = ""
    image: Image | None = None
    known: tuple[KnownImage, ...] = ()
    baud: int = 921_600
    boot: BootRules = field(default_factory=BootRules)
    force: bool = False
    adopted: bool = True
    rescue: str | None = None
    read_only: bool = False
    go_back: bool = False
    dry_run: bool = False
    rearm: bool = True
    confirm: Awaited | None = None
    refusal: OtaError | None = None
    log: logging.Logger | logging.LoggerAdapter[logging.Logger] = field(default=LOGGER, repr=False)


class Hooks(Protocol):
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

    def restarting(self, reason: str) -> None:
        """The board is restarted now, and why."""

    def carried(self, baud: int) -> None:
        """A whole slot went to the board at this speed without an error; 0: there were errors."""

    def cancelled(self) -> bool:
        """Whether to stop at the next place where that leaves the board bootable."""

    def stopping(self) -> bool:
        """Whether the process ends: then boots are no longer watched either."""


@dataclass(slots=True)
class Outcome:
    """What came of a session: what the board shows, not what a tool returned.

    end: "unjudged" where the board holds the new firmware, and nothing that was seen speaks for
    or against it (`error` says why). version: the tag stored at the end. slot: what runs.
    confirmed: the boot was seen to be good; False where its log showed nothing to judge by; None
    where no boot was watched.
    boot_log: what was seen of each watched start, under its heading, without the board's secrets.
    power_failed: the power failed during a start that the app must confirm. baud: the speed that
    was used.
    """

    end: End
    plan: Plan | None = None
    found: Inspection | None = None
    version: str | None = None
    slot: Partition | None = None
    confirmed: bool | None = None
    error: OtaError | None = None
    previous_version: str | None = None
    boot_log: tuple[str, ...] = ()
    power_failed: bool = False
    baud: int | None = None


def run(port: SerialBase, job: Job, hooks: Hooks) -> Outcome:
    """Do `job` with the board behind `port`, which is open with its lines released.

    Raises OtaError where the board could not be reached or was lost; it may then be in any
    state that the next session can start from.
    """
    return _Session(port, job, hooks).run()


class _Session:
    def __init__(self, port: SerialBase, job: Job, hooks: Hooks) -> None:
        self.port = port
        self.job = job
        self.hooks = hooks
        self.facts = BoardFacts()
        self.redact = Redactor()
        self.log: list[str] = []
        self._first: FirstLook | None = None
        self._bootloader_speaks: bool | None = None
        self._waits = job.rearm and job.confirm is None  # as far as is known

    def run(self) -> Outcome:
        self.hooks.phase("connecting")
        self.hooks.restarting("into download mode, to be looked at")
        try:
            link = EspLink.connect(self.port, baud=self.job.baud, identified=self._identified)
        except BaseException:
            leave_download_mode(self.port)
            raise
        try:
            outcome = self._connected(link)
        finally:
            if link.carried_baud is not None:
                self.hooks.carried(link.carried_baud)
        outcome.baud = link.baud
        return outcome

    def _connected(self, link: EspLink) -> Outcome:
        with left_running(link, waits=lambda: self._waits):
            self.hooks.phase("inspecting")
            found = self._look(link)
            if self.job.confirm is not None:
                return self._confirm(link, found, self.job.confirm)
            if self.job.go_back:
                return self._go_back(link, found)
            if self.job.read_only:
                put_back(link, waits=self._waits)
                return Outcome(
                    "read", found=found, version=found.version, slot=found.running.partition
                )
            made = self._plan(found)
            if made.code == "nvs-invalid" and self._may_start(found):
                found = self._repaired(link)
                made = self._plan(found)
            self.hooks.planned(made)
            if self.job.dry_run or made.action == "refuse":
                put_back(link, waits=self._waits)
                return self._refused(found, made)
            return self._update(link, found, made)

    def _identified(self, mac: str) -> int | None:
        if self.job.rescue not in (None, mac):
            raise OtaError(
                "wrong-board",
                f"The board is {mac}, and {self.job.rescue} was confirmed.",
                remedy="Confirm the MAC of the board that is to be rescued.",
            )
        self.facts = self.hooks.identified(mac)
        return self.facts.carried_baud

    def _look(self, link: EspLink) -> Inspection:
        job = self.job
        found = self._inspect(link)
        if found.pending and not job.rearm and job.confirm is None:
            # Nobody's update of ours, and its app has had its time: let the bootloader decide.
            if not self._first_look(link).restarted:
                raise OtaError("cancelled" if self.hooks.cancelled() else "no-reset")
            found = self._inspect(link)
        self._waits = self._waits and found.pending
        self.redact = Redactor(found.secrets)
        self.hooks.inspected(found)
        return found

    def _inspect(self, link: EspLink) -> Inspection:
        may_restart = self.job.confirm is None
        return inspect(
            link,
            link.chip,
            facts=self.facts,
            known=self.job.known,
            firmware=self.job.image.known if self.job.image is not None else None,
            look=(lambda: self._first_look(link)) if may_restart else None,
        )

    def _first_look(self, link: EspLink) -> FirstLook:
        """One ordinary restart, to read from the bootloader's log what it starts."""
        if self._first is None:
            self._first = self._watch_first(link)
        return self._first

    def _watch_first(self, link: EspLink) -> FirstLook:
        monitor = self._start_once(
            link,
            "to see which slot runs",
            until=lambda seen: (
                seen.loaded_offset is not None or seen.app_speaks or seen.verdict is not None
            ),
        )
        if monitor is None:
            return FirstLook(restarted=False)
        self._bootloader_speaks = monitor.bootloader_speaks
        return first_look(monitor.lines, monitor.loaded_offset)

    def _start_once(
        self, link: EspLink, why: str, until: Callable[[BootMonitor], bool]
    ) -> BootMonitor | None:
        """One ordinary start of the firmware for at most `FIRST_LOOK_S`, then download mode.

        None where it never left download mode, or was stopped before its time.
        """
        self.hooks.restarting(f"once into its firmware, {why}")
        link.restart()
        monitor = BootMonitor(Expected(), FIRST_LOOK_S, FIRST_LOOK_S)
        whole = watch(
            self.port,
            monitor,
            until=until,
            stopped=self.hooks.cancelled,
            limit_s=FIRST_LOOK_S,
            in_download=link.in_download,
        )
        if monitor.in_download and not monitor.heard:
            link.stay()
        else:
            link.reconnect()
        return None if monitor.in_download or not whole else monitor

    @staticmethod
    def _may_start(found: Inspection) -> bool:
        """Whether a start cannot make the board's app one that waits for its confirmation, which
        the next reset would turn down."""
        if found.running.partition is None or found.pending or found.otadata is None:
            return False
        return all(entry.state != OtaState.NEW for entry in found.otadata.entries)

    def _repaired(self, link: EspLink) -> Inspection:
        """The board after one start of its firmware, which repairs what a cut has left in NVS."""
        # Its time is not cut short by what it prints: NVS is opened some time after that.
        self._start_once(link, "so that it repairs its NVS", until=lambda seen: False)
        return self._look(link)

    def _plan(self, found: Inspection) -> Plan:
        job = self.job
        if job.refusal is not None:
            return refuse(job.refusal, found.version)
        return plan(
            found,
            version=job.version,
            image=job.image.parsed if job.image is not None else None,
            facts=self.facts,
            force=job.force,
            adopted=job.adopted,
            rescue=job.rescue is not None,
        )

    def _refused(self, found: Inspection, made: Plan) -> Outcome:
        end: End = "read" if self.job.dry_run else "refused"
        if found.pending and not self.job.dry_run:
            end = "awaiting_confirmation"
        return Outcome(
            end,
            plan=made,
            found=found,
            version=found.version,
            slot=found.running.partition,
            error=made.error,
        )

    # --- the update

    def _update(self, link: EspLink, found: Inspection, made: Plan) -> Outcome:
        if made.action != "none":
            slots = [step.slot for step in made.steps if isinstance(step, WriteSlot)]
            self._require_writable(link, found, slots)
        self._write(link, found, made)
        boot = next((step for step in made.steps if isinstance(step, WatchBoot)), None)
        self.hooks.phase("booting")
        outcome = Outcome(
            "rolled_back" if made.rolled_back else "up_to_date",
            plan=made,
            found=found,
            version=made.to_version,
            slot=made.slot,
            previous_version=_stored(found),
        )
        if boot is None:
            if not made.rolled_back:
                return self._restarted(link, outcome)
            link.restart()
            outcome.error = OtaError(
                "boot-failed", f"The board went back by itself: {made.reason}."
            )
            return outcome
        monitor = self._boot(link, boot.slot, self._expected(found, made, boot.slot))
        if monitor.verdict is Verdict.FAILED:
            return self._roll_back(link, found, outcome, boot.slot, monitor.reason)
        if boot.confirms and monitor.verdict is not Verdict.NO_RESET:
            # After a power failure, too, only otadata decides: a restart would turn the app down.
            outcome.end = "awaiting_confirmation"
            outcome.confirmed = monitor.verdict is Verdict.RUNNING
            outcome.power_failed = monitor.outside_resets > 0
            return outcome
        return self._judged(outcome, monitor)

    def _judged(self, outcome: Outcome, monitor: BootMonitor) -> Outcome:
        """By a watched start that has not failed."""
        assert outcome.slot is not None
        outcome.confirmed = monitor.verdict is Verdict.RUNNING
        outcome.power_failed = monitor.outside_resets > 0
        if monitor.verdict in UNJUDGED:
            code = UNJUDGED[monitor.verdict]
            outcome.end = "unjudged"
            outcome.error = self._unjudged(code, outcome.slot, monitor.reason)
            outcome.boot_log = tuple(self.log)
        return outcome

    def _restarted(self, link: EspLink, outcome: Outcome) -> Outcome:
        """Restart into what needs no judgement, and see that the board left download mode."""
        if not self._leaves(link):
            outcome.end = "unjudged"
            outcome.confirmed = None
            outcome.error = OtaError("no-reset")
        return outcome

    def _leaves(self, link: EspLink) -> bool:
        """Restart the board; whether it left download mode, as far as can be seen."""
        link.restart()
        monitor = BootMonitor(Expected(), FIRST_LOOK_S, FIRST_LOOK_S)
        watch(
            self.port,
            monitor,
            until=lambda seen: seen.in_download or seen.from_flash,
            stopped=self.hooks.stopping,
            limit_s=FIRST_LOOK_S,
            in_download=link.in_download,
        )
        return not monitor.in_download

    @staticmethod
    def _unjudged(code: str, slot: Partition, why: str) -> OtaError:
        return OtaError(
            code, f"The firmware in {slot.name} was started, and cannot be judged: {why}."
        )

    def _require_writable(
        self, link: EspLink, found: Inspection, slots: Sequence[Partition] = ()
    ) -> None:
        """Refuse a flash whose protection bits cover what will be written."""
        assert found.table is not None
        places = [found.table.otadata, found.store, *slots]
        status = link.protection()
        for place in places:
            if place is not None and status.covers(place.offset, place.size_bytes):
                raise OtaError(
                    "flash-protected",
                    f"The flash chip's protection bits cover {place.name}, so nothing was written.",
                )

    def _write(self, link: EspLink, found: Inspection, made: Plan) -> None:
        """The plan's writes; where they fail behind the switch, the switch is taken back."""
        job = self.job
        stream = None
        if any(isinstance(step, WriteSlot) for step in made.steps):
            assert job.image is not None
            stream = STREAMS.get(job.image.sha256, job.image.data)
        total = len(job.image.data) if job.image is not None else 0
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
            carry_out(made, link, stream, phase=phase, progress=progress)
        except OtaError as error:
            if switching and error.code != "link-lost" and made.slot is not None:
                self._take_back(link, found, made.slot)
            raise

    def _take_back(self, link: EspLink, found: Inspection, slot: Partition) -> None:
        with contextlib.suppress(OtaError):
            apply_verified(link, self._plan_back(link, found, slot).ops)

    # --- the boot

    def _boot(
        self, link: EspLink, slot: Partition, expected: Expected, *, known_good: bool = False
    ) -> BootMonitor:
        """Restart into a slot, and watch it start; known_good: it ran before."""
        rules, timeout_s = self.job.boot, self.job.boot.timeout_s
        if known_good and self._bootloader_speaks is False:
            # It will not say more than the new firmware's start has said.
            timeout_s = min(timeout_s, max(rules.stable_s, FIRST_LOOK_S))
        monitor = BootMonitor(
            expected, timeout_s, rules.stable_s, restarts=rules.restarts, redact=self.redact
        )
        self.hooks.restarting(f"into {slot.name}, and watched")
        link.restart()

        def in_download() -> bool:
            found = link.in_download()
            if found:
                self.job.log.warning(
                    "%s: still in download mode; press its reset button, with BOOT released",
                    self.job.name,
                )
            return found

        watch(self.port, monitor, stopped=self.hooks.stopping, in_download=in_download)
        self.log += [f"--- start of {slot.name}", *monitor.told]
        if monitor.heard:
            self._bootloader_speaks = monitor.bootloader_speaks
        if monitor.verdict is None:
            raise OtaError(
                "cancelled",
                "The updater was stopped before the board's start was judged.",
                remedy="The next start of the module looks at the board and goes on.",
            )
        return monitor

    def _expected(self, found: Inspection, made: Plan, slot: Partition) -> Expected:
        """What the start must show; the image's descriptor only where the image is in the slot."""
        image, rules = self.job.image, self.job.boot
        holds = made.action in ("write", "switch") or found.holds(slot)
        if image is None or not holds:
            return Expected(offset=slot.offset, matches=rules.matches)
        about = image.parsed.descriptor
        return Expected(
            offset=slot.offset,
            project=about.project,
            version=about.version,
            elf_sha256=about.elf_sha256.hex(),
            matches=rules.matches,
        )

    # --- back

    def _go_back(self, link: EspLink, found: Inspection) -> Outcome:
        """To the firmware in the other slot, because a person says so."""
        if found.problem is not None:
            raise found.problem
        if found.pending:
            raise OtaError("awaiting-confirmation")
        running = found.running.partition
        if running is None:
            raise found.running.why or OtaError("otadata-invalid")
        self._require_writable(link, found)
        back = plan_go_back(
            link,
            found,
            running=running,
            fused=link.chip.secure_version,
            version_of=lambda slot: self._tag_of(found, slot),
        )
        self.hooks.phase("rolling_back")
        apply_verified(link, back.ops)
        outcome = Outcome("rolled_back", found=found, version=back.version or "", slot=back.slot)
        monitor = self._boot(link, back.slot, Expected(offset=back.slot.offset))
        if monitor.verdict is Verdict.FAILED:
            return self._roll_back(link, found, outcome, back.slot, monitor.reason)
        outcome.confirmed = monitor.verdict is Verdict.RUNNING
        outcome.boot_log = tuple(self.log)
        if monitor.verdict in UNJUDGED:
            code = UNJUDGED[monitor.verdict]
            outcome.error = self._unjudged(code, back.slot, monitor.reason)
        return outcome

    def _tag_of(self, found: Inspection, slot: Partition) -> str:
        """The version that belongs to a slot: the journal's, else its descriptor's."""
        fact = self.facts.slots.get(slot.name)
        if fact is not None and fact.version is not None:
            return fact.version
        app = found.app(slot)
        return app.descriptor.version if app is not None and app.descriptor else ""

    def _plan_back(self, link: EspLink, found: Inspection, bad: Partition) -> RollbackPlan:
        before = found.running.partition

        def version_of(slot: Partition) -> str | None:
            awaited = self.job.confirm
            if awaited is not None:
                known = awaited.previous_version
            elif before is not None and slot == before != bad:
                known = _stored(found)
            else:
                return self._tag_of(found, slot)
            if known == self.job.version and not self.job.force:
                # The new firmware's own: an interruption had left it with the old one.
                return self._tag_of(found, slot)
            return known

        fused = link.chip.secure_version
        return plan_rollback(link, found, bad=bad, fused=fused, version_of=version_of)

    def _roll_back(
        self, link: EspLink, found: Inspection, outcome: Outcome, bad: Partition, why: str,
        *, power_failed: bool = False,
    ) -> Outcome:  # fmt: skip
        """Back to the firmware before: otadata and the version, then watch that one start.

        power_failed: that is why, so that nothing speaks against the firmware.
        """
        name = self.job.name
        self.job.log.warning("%s: %s; rolling back", name, why)
        self.hooks.phase("rolling_back")
        outcome.boot_log = tuple(self.log)
        outcome.confirmed = None
        if link.running:
            self.hooks.restarting("into download mode, to be rolled back")
            link.reconnect()
        back = self._plan_back(link, found, bad)
        apply_verified(link, back.ops)
        monitor = self._boot(link, back.slot, Expected(offset=back.slot.offset), known_good=True)
        outcome.boot_log = tuple(self.log)
        outcome.version = back.version or ""
        outcome.slot = back.slot
        if monitor.verdict is Verdict.FAILED:
            outcome.end = "failed"
            outcome.error = OtaError(
                "boot-failed",
                f"The new firmware did not come up ({why}), and neither did the one before "
                f"({monitor.reason}).",
                remedy="Look at the board's power and wiring; its previous firmware and version "
                "are in place.",
            )
            return outcome
        back_on = f'The board is back on {back.slot.name} with version "{back.version or ""}".'
        if monitor.verdict in UNJUDGED:
            back_on += f" Its start was not seen: {monitor.reason}."
        if power_failed:
            outcome.end = "unjudged"
            outcome.error = OtaError("brown-out", f"{why}. {back_on}")
        else:
            outcome.end = "rolled_back"
            outcome.error = OtaError(
                "boot-failed", f"The new firmware did not come up: {why}. {back_on}"
            )
        return outcome

    def _confirm(self, link: EspLink, found: Inspection, awaited: Awaited) -> Outcome:
        """The app's time to confirm itself is over: what does otadata say?"""
        at = found.table.otadata if found.table is not None else None
        if found.table is None or at is None:
            raise found.problem or OtaError("otadata-invalid")
        slots = found.table.ota_slots
        otadata = parse_otadata(link.read(at.offset, at.size_bytes))
        entries = otadata.entries
        named = [p for p in slots if awaited.slot in (p.name, p.label)]
        if len(named) > 1 and otadata.newest is not None:  # noted before labels were told apart
            named = [slots[entries[otadata.newest].slot_index(len(slots))]]
        if not named:
            gone = f"The board has no slot {awaited.slot} any more."
            raise found.problem or OtaError("otadata-invalid", gone)
        slot = named[0]
        index = slots.index(slot)
        states = [e.state for e in entries if e.written and e.slot_index(len(slots)) == index]
        outcome = Outcome("up_to_date", found=found, version=found.version, slot=slot)
        if OtaState.VALID in states:
            outcome.confirmed = True
            if found.problem is not None:
                # Of the version or of what else the app keeps: its update is over all the same.
                outcome.version, outcome.error = None, found.problem
            return self._restarted(link, outcome)
        if found.problem is not None:
            raise found.problem
        if OtaState.NEW in states and self.job.rearm:
            # Either it never started, or this bootloader does not use rollback: after one more
            # start it is the latter, and nothing takes the firmware back.
            outcome.end = "awaiting_confirmation"
            return self._restarted(link, outcome)
        if OtaState.NEW in states:
            monitor = self._boot(link, slot, Expected(offset=slot.offset))
            if monitor.verdict is Verdict.FAILED:
                return self._roll_back(link, found, outcome, slot, monitor.reason)
            return self._judged(outcome, monitor)
        if OtaState.PENDING_VERIFY in states:
            why = "its app did not confirm itself in time"
        elif awaited.power_failed:
            why = "The board's power failed before its new app confirmed itself"
            return self._roll_back(link, found, outcome, slot, why, power_failed=True)
        else:
            why = "the board's bootloader went back by itself"
        return self._roll_back(link, found, outcome, slot, why)


def _stored(found: Inspection) -> str | None:
    """The tag in NVS, None where the key is missing."""
    return found.nvs.get_string(NAMESPACE, VERSION_KEY) if found.nvs is not None else None
