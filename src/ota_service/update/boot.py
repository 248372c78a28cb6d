# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges a boot from its log: a state machine that is fed lines and times, without I/O.

Facts: esp32.md, "The boot log". The usual failure is not at 0.3 s but seconds later, in the
app's own start, so seeing the version line is not enough: the app must then run for
`stable_s` without a reset, a panic or a loop. Mere silence proves nothing either way.

Only what the ROM, the bootloader or the panic handler prints in its own form, at the start of a
line, decides anything: apps quote their last crash, and pass on the log of other chips.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ota_service.formats.chips import ResetCause, reset_cause
from ota_service.formats.image import AppDescriptor
from ota_service.formats.partitions import Partition
from ota_service.update.first_look import theirs

MAX_LINE_CHARS = 1000
MAX_LINE_BYTES = 8192
"""Longer lines are dropped from there on: a part of one could begin within a secret."""
KEPT_LINES = 200
LINES_BEFORE = 20
"""How many lines before the one that decided are kept."""
LINES_BEHIND = 60
"""And from there on: a register dump, a stack, a backtrace."""
KEPT_LINE_CHARS = 240
"""Of each kept line, so that two starts fit into a run's entry in the history."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

# The ROM's.
_RESET = re.compile(r"rst:0x([0-9a-f]+) \(([^)]*)\),boot:0x[0-9a-f]+(?: \((.*)\))?")
_ROM_HEAD = re.compile(r"ets [A-Z][a-z]{2} |ESP-ROM:|Build:|Saved PC:")
_DOWNLOAD = re.compile(r"(?:waiting for download|wait (?:uart\d*|usb) download)$")

# A line of ESP-IDF's log; the time may be left out, or be one of day.
_LOG = r"[EWIDV] (?:\([^)]*\) )?"
_LOG_LINE = re.compile(_LOG + r"(?!esp_core_dump)[\w.:/-]+: ")  # the panic handler logs its dump
_APP = _LOG + r"(?:app_init|cpu_start): "
_PROJECT = re.compile(_APP + r"Project name:\s+(\S.*)$")
_VERSION = re.compile(_APP + r"App version:\s+(\S.*)$")
_ELF_SHA = re.compile(_APP + r"ELF file SHA256:\s+([0-9a-f]{4,64})")
_BROWN_OUT = re.compile(rf"(?:{_LOG}BOD: )?Brownout detector was triggered$")
_TASK_WATCHDOG = re.compile(_LOG + "task_wdt: ")

# The bootloader's.
_SECOND_STAGE = re.compile(_LOG + r"boot: ESP-IDF .* 2nd stage bootloader")
_LOADED = re.compile(_LOG + r"boot: Loaded app from partition at offset 0x([0-9a-f]+)")
_NOT_BOOTABLE = re.compile(
    _LOG + r"boot: (?:OTA app partition slot \d+ is not bootable|No bootable app partitions|"
    r"Factory app partition is not bootable)"
)

# The ROM's own word for an exception. It is heard of an app that falls before it has handlers of
# its own, and then nothing until the bootloader's watchdog (9 s). An app that has printed something
# has them: it passes on the log of a co-processor, whose ROM may say the same.
_FATAL = re.compile(r"Fatal exception \(\d+\): ")

# The panic handler's, and of what ends in it.
_REGISTERS = re.compile(r"Core +\d+ register dump:$")
_PANIC = re.compile(
    r"Guru Meditation Error: Core +\d+ panic'ed|abort\(\) was called at PC 0x|assert failed: |"
    r'assertion ".*" failed: file |\*\*\*ERROR\*\*\* A stack overflow in task |CORRUPT HEAP: '
)
_PANIC_BEHIND = re.compile(
    r"Guru Meditation Error: Core  \d panic'ed \(|abort\(\) was called at PC 0x[0-9a-f]{8}|"
    r"\*\*\*ERROR\*\*\* A stack overflow in task "
)
"""Behind an unfinished line of the app: in the very form, and proven by what comes next."""
_PANIC_END = re.compile(r"Rebooting\b.*\.\.\.$|CPU halted\.$")

_NOT_THE_APPS = (_PROJECT, _VERSION, _ELF_SHA, _BROWN_OUT, _REGISTERS, _PANIC, _PANIC_END,
                 re.compile("Backtrace:"))  # fmt: skip


def not_the_apps_own(text: str) -> bool:
    """Whether a line of a log is the ROM's, the bootloader's, the panic handler's, or of what
    ESP-IDF says of an app: none of them prints what the app keeps."""
    return theirs(text) or any(pattern.match(text) for pattern in _NOT_THE_APPS)


_DECIDES = (_PANIC, _FATAL, _BROWN_OUT, _TASK_WATCHDOG, _NOT_BOOTABLE,
            re.compile(r"E (?:\([^)]*\) )?(?:boot|esp_image): "))  # fmt: skip
HEADING = "--- start of "
"""Of each start in a boot log as it is kept."""


def decisive(log: Sequence[str]) -> list[str]:
    """The few lines of a kept boot log by which its first start was judged: what went wrong with
    what led there and the backtrace; where no line says it, the last ones."""
    first: list[str] = []
    for line in log:
        if not line.startswith(HEADING):
            first.append(line)
        elif first:
            break
    for at, line in enumerate(first):
        if any(pattern.search(line) for pattern in _DECIDES):
            behind = [text for text in first[at + 1 :] if text.startswith("Backtrace:")]
            return first[max(0, at - 2) : at + 1] + behind[:1]
    return first[-4:]


PANIC_S = 2.0
"""A panic is at its end, at the latest: the registers, the stack and the backtrace take less. An
app that only quotes one goes on with its own log meanwhile."""

MAX_OUTSIDE_RESETS = 3
"""A board that is powered again while it is watched (somebody's plug, a dip) starts over; one
whose power keeps failing cannot be judged."""


MAX_UNEXPLAINED = 3
"""Restarts without a reason, on ports that lose the ROM's line, that may be wakes from sleep."""


Matcher = Callable[[str], bool]
"""Whether a line of the log is what the new app must print."""


@dataclass(frozen=True, slots=True)
class BootRules:
    """How a start is judged; the configuration's boot_* attributes.

    timeout_s: how long the app may take to show that it starts. stable_s: how long it must then
    run; twice as long where it prints nothing. restarts: how many planned restarts it may make.
    """

    timeout_s: float = 20.0
    stable_s: float = 5.0
    matches: Matcher | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """What a good boot shows.

    offset: flash address of the slot that must be loaded. project, version, elf_sha256 (hex):
    the image's descriptor; compared where the log prints them. matches: where the configuration
    has `boot_expect`.
    """

    offset: int | None = None
    project: str | None = None
    version: str | None = None
    elf_sha256: str | None = None
    matches: Matcher | None = None

    @classmethod
    def of(cls, slot: Partition, about: AppDescriptor | None, matches: Matcher | None) -> Expected:
        """The start of an app in a slot; None: of one that is not known."""
        if about is None:
            return cls(offset=slot.offset, matches=matches)
        digest = about.elf_sha256.hex()
        return cls(slot.offset, about.project, about.version, digest, matches)


class Verdict(Enum):
    """What a watched boot came to.

    FAILED is evidence against the firmware. POWER and NO_RESET say nothing of it: its power
    failed, or it was never started.
    """

    RUNNING = "running"
    SILENT = "silent"
    FAILED = "failed"
    POWER = "power"
    NO_RESET = "no reset"


SAYS_NOTHING = "starts, but says nothing: not confirmed"
NOTHING_TO_JUDGE_BY = "its log shows nothing to judge its start by: not confirmed"

_LEGIBLE = re.compile(r"[^\ufffd]{3,}$")
"""What a line of an app looks like at least; one at another speed comes as something else."""

UNJUDGED = {Verdict.POWER: "brown-out", Verdict.NO_RESET: "no-reset"}
"""The error's code, where a boot was watched and the firmware cannot be judged by it."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a start while it is watched, for one who looks on.

    raw: lines as they came, with the board's secrets: only `shown` is for anybody's eyes, and its
    search takes longer than a line takes to come, so it is left to who looks on. hides: the
    secrets are not known. verdict: how the start was judged, in words, at its end.
    """

    raw: tuple[str, ...] = field(default=(), repr=False)
    redact: Callable[[str], str] = field(default=str, repr=False)
    hides: bool = False
    verdict: str = ""

    def shown(self) -> list[str]:
        """The lines, as a boot log is kept."""
        lines = (self.redact(line)[:MAX_LINE_CHARS].strip() for line in self.raw)
        return [
            line[:KEPT_LINE_CHARS] for line in lines if not self.hides or not_the_apps_own(line)
        ]


Hears = Callable[[Heard], None]


@dataclass(slots=True)
class BootMonitor:
    """Fed with the log of one boot; `verdict` is None until it is decided.

    hides: the secrets that `redact` would leave out are not known. hears: gets what comes, and the
    verdict. Times given to `feed` and `tick` are seconds since the reset.
    heard: something came from the board. in_download: it waits in download mode, by the ROM's words
    or because whoever feeds this has asked it. bootloader_speaks: its bootloader prints a log.
    app_speaks: the app printed its descriptor; app_prints: it printed something.
    outside_resets: how often its power failed or it was reset from outside. port_went: how
    often its port went away meanwhile, so that lines are lost.
    """

    expected: Expected
    rules: BootRules
    redact: Callable[[str], str] = str
    hides: bool = False
    hears: Hears = lambda heard: None
    verdict: Verdict | None = None
    reason: str = ""
    loaded_offset: int | None = None
    shown_at_s: float | None = None
    descriptor_at_s: float | None = None
    app_speaks: bool = False
    app_prints: bool = False
    expectation_met: bool = False
    heard: bool = False
    in_download: bool = False
    bootloader_speaks: bool = False
    outside_resets: int = 0
    port_went: int = 0
    _raw: list[str] = field(default_factory=list)
    _dropped: int = 0
    _decisive: int | None = None
    _ended: bool = False
    _partial: bytes = b""
    _overlong: bool = False
    _why_not: str = ""
    _restarted: int = 0
    _unexplained: int = 0
    _reset_seen: bool = False
    _window_from_s: float = 0.0
    _panic: str = ""
    _panic_at_s: float | None = None
    _brown_out: bool = False
    _task_watchdog: bool = False

    def feed(self, data: bytes, now_s: float, *, more: bool = False) -> None:
        """Bytes as they came from the port at `now_s`. more: others are there already, which may
        say something else than time alone would."""
        self.heard = self.heard or bool(data)
        self._partial += data
        *whole, self._partial = self._partial.split(b"\n")
        if whole and self._overlong:
            del whole[0]
            self._overlong = False
        if len(self._partial) > MAX_LINE_BYTES:
            if not self._overlong:
                whole.append(self._partial)
            self._partial, self._overlong = b"", True
        before = self._number
        for raw in whole:
            self._line(raw, now_s)
        if self._number > before:
            new = tuple(self._raw[before - self._number :])
            self.hears(Heard(new, self.redact, self.hides))
        if not more:
            self.tick(now_s)

    def port_left(self, now_s: float) -> None:
        """The board's port went away: one that the chip serves itself goes with a reset, whose
        reason nobody saw then. The first time it went by the reset that began this boot."""
        ours = self.shown_at_s is None and not self.port_went
        self.port_went += 1
        self._partial, self._overlong = b"", False
        if self.verdict is not None:
            return
        if self._panic:
            self._panicked(now_s)
        elif self.in_download:
            self.in_download = False
            self._start_over(now_s)
        elif not ours:
            self._unexplained_reset("its port went away", now_s)

    @property
    def from_flash(self) -> bool:
        """Whether its ROM was seen to start what is in flash, or that to run."""
        started = self._reset_seen or self.bootloader_speaks or self.app_speaks
        return started and not self.in_download

    @property
    def confirmed(self) -> bool:
        """Whether the app itself was seen to run: not by its bootloader's word alone."""
        return self.verdict is Verdict.RUNNING and (self.app_prints or self.expectation_met)

    @property
    def words(self) -> str:
        """How it was judged, for people."""
        runs = self.notice or "its firmware runs"
        return runs if self.verdict is Verdict.RUNNING else self.reason

    @property
    def notice(self) -> str:
        """Why a start that has not failed is not confirmed, in words; "" where it is."""
        if self.confirmed or self.verdict not in (Verdict.RUNNING, Verdict.SILENT):
            return ""
        return NOTHING_TO_JUDGE_BY if self.app_prints else SAYS_NOTHING

    @property
    def due_s(self) -> float | None:
        """When time alone will show that the app runs; None while it has yet to show itself."""
        if self.shown_at_s is None:
            return None
        # By the bootloader's word alone: its watchdog (9 s) resets an app that hangs at its start.
        mute = self.bootloader_speaks and not (self.app_prints or self.expectation_met)
        return self.shown_at_s + self.rules.stable_s * (2 if mute else 1)

    @property
    def lines(self) -> list[str]:
        """The last lines, without secrets."""
        # Only what is shown is searched for secrets: for each line as it comes that would take
        # longer than the line, and what comes meanwhile would be lost.
        return [self.redact(line)[:MAX_LINE_CHARS].strip() for line in self._raw]

    @property
    def told(self) -> list[str]:
        """What of the log is worth keeping: what decided, with what led there and what followed;
        of a boot that went well its end."""
        if self._decisive is None:
            kept = self._raw[-LINES_BEFORE:]
        else:
            at = max(0, self._decisive - self._dropped)
            kept = self._raw[max(0, at - LINES_BEFORE) : at + LINES_BEHIND]
        return Heard(tuple(kept), self.redact, self.hides).shown()

    def tick(self, now_s: float) -> None:
        """Time has passed; decides where time alone decides."""
        if self.verdict is not None:
            return
        if self._panic_at_s is not None:
            if now_s - self._panic_at_s >= PANIC_S:
                self._panicked(now_s)
            return
        must_match = self.expected.matches is not None
        due_s = self.due_s
        if due_s is not None and now_s >= due_s:
            if self.expectation_met or not must_match:
                self._decide(Verdict.RUNNING, "")
                return
        elif self.shown_at_s is not None:
            return
        if now_s - self._window_from_s >= self.rules.timeout_s:
            self._time_is_over(must_match)

    def _time_is_over(self, must_match: bool) -> None:
        timeout_s = self.rules.timeout_s
        if self.in_download and self.shown_at_s is None:
            self._decide(
                Verdict.NO_RESET, "the board is in download mode and has not started its firmware"
            )
        elif must_match and not self.expectation_met:
            self._decide(
                Verdict.FAILED,
                f"the app did not print what boot_expect asks for within {timeout_s:g} s",
            )
        elif self.shown_at_s is None:
            self._decide(Verdict.SILENT, f"the log showed nothing to judge by in {timeout_s:g} s")

    # --- lines

    def _line(self, raw: bytes, now_s: float) -> None:
        text = _CONTROL.sub("", _ANSI.sub("", raw.decode("utf-8", "replace"))).rstrip()
        if not text.strip():
            return
        if self.verdict is not None:
            # What tells why is before; a board that restarts would push it out of the log.
            self._ended = self._ended or bool(_RESET.match(text) or _ROM_HEAD.match(text))
            if self._ended or self._number - (self._decisive or 0) > LINES_BEHIND:
                return
        self._raw.append(text)
        self._dropped += max(0, len(self._raw) - KEPT_LINES)
        del self._raw[:-KEPT_LINES]
        if self.verdict is None:
            self._judge(text[:MAX_LINE_CHARS], now_s)

    @property
    def _number(self) -> int:
        """Of the line in hand."""
        return self._dropped + len(self._raw) - 1

    def _judge(self, text: str, now_s: float) -> None:
        brown_out, self._brown_out = self._brown_out, False
        known = self._rom(text, now_s, brown_out) or self._bootloader(text, now_s, brown_out)
        if not known and not self._panics(text, now_s):
            self._descriptor(text, now_s)
            self.app_prints |= bool(_LEGIBLE.match(text)) and not theirs(text)
        self._task_watchdog = _TASK_WATCHDOG.match(text) is not None
        matches = self.expected.matches
        if matches is not None and not self.expectation_met and matches(text):
            self.expectation_met = True
            if self.shown_at_s is None:
                self.shown_at_s = now_s

    def _rom(self, text: str, now_s: float, brown_out: bool) -> bool:
        """Whether the ROM prints a line, or the brown-out detector."""
        if match := _RESET.match(text):
            name, download = match[2], (match[3] or "").startswith("DOWNLOAD")
            self._reset(int(match[1], 16), name, now_s, brown_out=brown_out, download=download)
        elif _BROWN_OUT.match(text):
            self._brown_out = True
        elif _ROM_HEAD.match(text):
            self._brown_out = brown_out
        elif _DOWNLOAD.match(text) and self._number == 0:
            self.in_download = True  # behind a line of the ROM's that was lost
        else:
            return False
        return True

    def _bootloader(self, text: str, now_s: float, brown_out: bool) -> bool:
        """Whether the bootloader prints a line that says what it does."""
        if _SECOND_STAGE.match(text):
            self._again(now_s, brown_out=brown_out)
        elif match := _LOADED.match(text):
            self._again(now_s, brown_out=brown_out)
            if self.verdict is None:
                self._loaded(int(match[1], 16), now_s)
        elif _NOT_BOOTABLE.match(text):
            self._why_not = text
        else:
            return False
        return True

    # --- panics

    def _panics(self, text: str, now_s: float) -> bool:
        """Whether a line belongs to a panic. The verdict falls at the panic's end, so that its
        registers and backtrace are in the log."""
        if _PANIC_END.match(text) and self._panic:
            self._panicked(now_s)
            return True
        if _LOG_LINE.match(text):
            # An app that goes on has not panicked: it told of an earlier time.
            self._panic, self._panic_at_s, self._decisive = "", None, None
            return False
        starts = _PANIC.match(text) or (None if self._task_watchdog else _REGISTERS.match(text))
        if not self.app_prints:
            starts = starts or _FATAL.match(text)
        begins = starts or (_PANIC_BEHIND.search(text) if not self._panic else None)
        if begins is None:
            return False
        if not self._panic:
            # What the app had printed on the same line is its own, and may be a secret.
            self._panic, self._decisive = text[begins.start() :].lstrip(), self._number
        if starts and self._panic_at_s is None:
            self._panic_at_s = now_s
        return True

    def _panicked(self, now_s: float) -> None:
        since = self._panic_at_s if self._panic_at_s is not None else now_s
        self._decide(
            Verdict.FAILED,
            f"the app panicked {self._age(since)} after its start: {self.redact(self._panic)}",
        )

    # --- resets

    def _reset(
        self, code: int, name: str, now_s: float, *, brown_out: bool, download: bool
    ) -> None:
        cause = ResetCause.OUTSIDE if brown_out else reset_cause(code)
        ours = not self._reset_seen and self.shown_at_s is None
        self._reset_seen = True
        if self._panic_at_s is not None and not brown_out:
            self._panicked(now_s)
        elif self.in_download or download:
            self.in_download = download  # somebody pressed its reset button, or holds BOOT down
            self._start_over(now_s)
        elif not ours or brown_out or self._panic:
            self._by_itself(cause, name, now_s)

    def _again(self, now_s: float, *, brown_out: bool) -> None:
        """The bootloader runs; if it ran before, its port lost the ROM's line and the reason."""
        name = "its bootloader ran again"
        if brown_out:
            self._by_itself(ResetCause.OUTSIDE, name, now_s)
        elif self._panic:
            self._panicked(now_s)
        elif self.loaded_offset is not None:
            self._unexplained_reset(name, now_s)

    def _unexplained_reset(self, name: str, now_s: float) -> None:
        self._unexplained += 1  # which may have been a wake
        if self._unexplained > MAX_UNEXPLAINED:
            self._by_itself(ResetCause.WATCHDOG, name, now_s)
        else:
            self._start_over(now_s)

    def _by_itself(self, cause: ResetCause, name: str, now_s: float) -> None:
        """A reset that is not ours."""
        if cause is ResetCause.SLEEP:
            self.loaded_offset = None  # the bootloader runs again; the app's time goes on
        elif cause is ResetCause.OUTSIDE:
            self.outside_resets += 1
            if self.outside_resets > MAX_OUTSIDE_RESETS:
                self._decide(
                    Verdict.POWER,
                    f"the board lost its power, or was reset from outside, {self.outside_resets} "
                    f"times while its start was watched ({name})",
                )
            else:
                self._start_over(now_s)
        elif self._panic:
            self._panicked(now_s)
        elif cause is ResetCause.SOFTWARE and self._restarted < self.rules.restarts:
            self._restarted += 1
            self._start_over(now_s)
        else:
            self._decide(
                Verdict.FAILED,
                f"the board restarted by itself {self._age(now_s)} after its start ({name})",
            )

    def _start_over(self, now_s: float) -> None:
        self._window_from_s = now_s
        self.shown_at_s = self.descriptor_at_s = self.loaded_offset = None
        self.expectation_met = False
        self._panic, self._panic_at_s, self._decisive = "", None, None

    # --- what starts

    def _loaded(self, offset: int, now_s: float) -> None:
        self.loaded_offset, self.bootloader_speaks = offset, True
        wanted = self.expected.offset
        if wanted is None or offset == wanted:
            if self.shown_at_s is None:
                self.shown_at_s = now_s
                self.app_prints = False  # whatever came before was not its
            return
        why = f" ({self._why_not})" if self._why_not else ""
        what = f"the bootloader started the app at {offset:#x} instead of {wanted:#x}{why}"
        if self.outside_resets and not self._why_not:
            # A bootloader with rollback turns down an app that had no time to confirm itself.
            self._decide(Verdict.POWER, f"after its power failed, {what}")
        else:
            self._decide(Verdict.FAILED, what)

    def _descriptor(self, text: str, now_s: float) -> None:
        wanted = self.expected
        for pattern, what, value in (
            (_PROJECT, "project", wanted.project),
            (_VERSION, "app version", wanted.version),
            (_ELF_SHA, "ELF digest", wanted.elf_sha256),
        ):
            if match := pattern.match(text):
                self.app_speaks = True
                shown = match[1].strip()
                same = value is None or (
                    value.startswith(shown) if pattern is _ELF_SHA else shown == value.strip()
                )
                if not same:
                    self._decide(
                        Verdict.FAILED,
                        f"another app started: its {what} is {shown}, not {value}",
                    )
                elif self.descriptor_at_s is None and (
                    self.loaded_offset is not None or value is not None
                ):
                    self.shown_at_s = self.descriptor_at_s = now_s
                return

    def _age(self, now_s: float) -> str:
        since = self.shown_at_s if self.shown_at_s is not None else self._window_from_s
        return f"{max(0.0, now_s - since):.1f} s"

    def _decide(self, verdict: Verdict, reason: str) -> None:
        self.verdict = verdict
        self.reason = self.redact(reason).rstrip(".")
        if self._decisive is None and self._raw and verdict is not Verdict.RUNNING:
            self._decisive = self._number
        self.hears(Heard(verdict=self.words))
