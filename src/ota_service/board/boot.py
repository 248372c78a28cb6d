# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges a boot from its log: a state machine that is fed lines and times, without I/O.

Facts: esp32.md, "The boot log". The usual failure is not at 0.3 s but seconds later, in the
app's own start, so seeing the version line is not enough: the app must then run for
`stable_s` without a reset, a panic or a loop. Mere silence proves nothing either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

MAX_LINE_CHARS = 1000
MAX_LINE_BYTES = 8192
"""Longer lines are dropped from there on: a part of one could begin within a secret."""
KEPT_LINES = 200
LINES_BEHIND = 8
"""How many lines behind the one that decided are kept: a register dump, a backtrace."""


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_RESET = re.compile(r"\brst:0x([0-9a-f]+) \((\w+)\)")
_LOADED = re.compile(r"Loaded app from partition at offset 0x([0-9a-f]+)")
_NOT_BOOTABLE = re.compile(
    r"OTA app partition slot \d+ is not bootable|No bootable app partitions|"
    r"Factory app partition is not bootable"
)
_DOWNLOAD = re.compile(r"waiting for download")
_PANIC = re.compile(
    r"Guru Meditation Error|abort\(\) was called|assert failed:|"
    r"stack overflow in task|CORRUPT HEAP"
)
_PROJECT = re.compile(r"\b(?:app_init|cpu_start): Project name:\s+(\S.*)$")
_VERSION = re.compile(r"\b(?:app_init|cpu_start): App version:\s+(\S.*)$")
_ELF_SHA = re.compile(r"\b(?:app_init|cpu_start): ELF file SHA256:\s+([0-9a-f]{4,64})")

MAX_POWER_ON_RESETS = 3
"""A board that is powered again while it is watched (somebody's plug) starts over, but a board
that keeps browning out is a failed boot: its supply does not carry the new app."""


class Matcher(Protocol):
    """Whether a line of the log is what the new app must print."""

    def __call__(self, line: str) -> bool:
        """True where it is."""


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


class Verdict(Enum):
    """What a watched boot came to."""

    RUNNING = "running"
    SILENT = "silent"
    FAILED = "failed"


@dataclass(slots=True)
class BootMonitor:
    """Fed with the log of one boot; `verdict` is None until it is decided.

    timeout_s: how long the app may take to show that it starts. stable_s: how long it must then
    run. Times given to `feed` and `tick` are seconds since the reset.
    """

    expected: Expected
    timeout_s: float
    stable_s: float
    redact: Callable[[str], str] = str
    verdict: Verdict | None = None
    reason: str = ""
    loaded_offset: int | None = None
    shown_at_s: float | None = None
    expectation_met: bool = False
    resets: int = 0
    lines: list[str] = field(default_factory=list)
    descriptor_at_s: float | None = None
    _behind: int = 0
    _partial: bytes = b""
    _overlong: bool = False
    _why_not: str = ""
    _power_ons: int = 0
    _window_from_s: float = 0.0

    def feed(self, data: bytes, now_s: float) -> None:
        """Bytes as they came from the port at `now_s`."""
        self._partial += data
        *whole, self._partial = self._partial.split(b"\n")
        if whole and self._overlong:
            del whole[0]
            self._overlong = False
        if len(self._partial) > MAX_LINE_BYTES:
            if not self._overlong:
                whole.append(self._partial)
            self._partial, self._overlong = b"", True
        for raw in whole:
            self._line(raw, now_s)
        self.tick(now_s)

    @property
    def due_s(self) -> float | None:
        """When time alone will show that the app runs; None while it has yet to show itself."""
        return None if self.shown_at_s is None else self.shown_at_s + self.stable_s

    def tick(self, now_s: float) -> None:
        """Time has passed; decides where time alone decides."""
        if self.verdict is not None:
            return
        must_match = self.expected.matches is not None
        if self.shown_at_s is not None and now_s - self.shown_at_s >= self.stable_s:
            if self.expectation_met or not must_match:
                self._decide(Verdict.RUNNING, "")
                return
        elif self.shown_at_s is not None:
            return
        if now_s - self._window_from_s >= self.timeout_s:
            if must_match and not self.expectation_met:
                self._decide(
                    Verdict.FAILED,
                    f"the app did not print what boot_expect asks for within {self.timeout_s:g} s",
                )
            elif self.shown_at_s is None:
                self._decide(
                    Verdict.SILENT, f"the log showed nothing to judge by in {self.timeout_s:g} s"
                )

    def _line(self, raw: bytes, now_s: float) -> None:
        text = _CONTROL.sub("", _ANSI.sub("", raw.decode("utf-8", "replace"))).strip()
        if not text:
            return
        if self.verdict is not None:
            # What tells why is before; a board that restarts would push it out of the log.
            if self._behind >= LINES_BEHIND or _RESET.search(text):
                self._behind = LINES_BEHIND
                return
            self._behind += 1
        self.lines.append(self.redact(text)[:MAX_LINE_CHARS])
        del self.lines[:-KEPT_LINES]
        if self.verdict is None:
            self._judge(text[:MAX_LINE_CHARS], now_s)

    def _judge(self, text: str, now_s: float) -> None:
        if match := _RESET.search(text):
            self._reset(match[2], int(match[1], 16), now_s)
        elif _DOWNLOAD.search(text):
            self._decide(Verdict.FAILED, "the board waits in download mode instead of booting")
        elif _NOT_BOOTABLE.search(text):
            self._why_not = text
        elif _PANIC.search(text):
            self._decide(
                Verdict.FAILED,
                f"the app panicked {self._age(now_s)} after its start: {self.redact(text)}",
            )
        elif match := _LOADED.search(text):
            self._loaded(int(match[1], 16), now_s)
        else:
            self._descriptor(text, now_s)
        matches = self.expected.matches
        if matches is not None and not self.expectation_met and matches(text):
            self.expectation_met = True
            if self.shown_at_s is None:
                self.shown_at_s = now_s

    def _reset(self, name: str, cause: int, now_s: float) -> None:
        self.resets += 1
        if self.resets == 1 and self.shown_at_s is None:
            return  # our own reset; ports on native USB lose this line
        if cause == 1 and self._power_ons < MAX_POWER_ON_RESETS:
            # 0x1 is POWERON_RESET: power or the EN line, not the app
            self._power_ons += 1
            self._window_from_s = now_s
            self.shown_at_s = self.descriptor_at_s = self.loaded_offset = None
            self.expectation_met = False
            return
        self._decide(
            Verdict.FAILED,
            f"the board restarted by itself {self._age(now_s)} after its start ({name})",
        )

    def _loaded(self, offset: int, now_s: float) -> None:
        self.loaded_offset = offset
        wanted = self.expected.offset
        if wanted is not None and offset != wanted:
            why = f" ({self._why_not})" if self._why_not else ""
            self._decide(
                Verdict.FAILED,
                f"the bootloader started the app at {offset:#x} instead of {wanted:#x}{why}",
            )
        else:
            self.shown_at_s = now_s

    def _descriptor(self, text: str, now_s: float) -> None:
        wanted = self.expected
        for pattern, what, value in (
            (_PROJECT, "project", wanted.project),
            (_VERSION, "app version", wanted.version),
            (_ELF_SHA, "ELF digest", wanted.elf_sha256),
        ):
            if match := pattern.search(text):
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
