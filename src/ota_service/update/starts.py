# SPDX-License-Identifier: GPL-3.0-or-later
"""The starts of a board in a session: its log is read in real time and fed to a `BootMonitor`.

The port stays open from before the reset, with DTR and RTS released. Ports on native USB vanish
at a reset and come back: they are opened again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from serial import SerialBase

from ota_service.errors import OtaError
from ota_service.formats.partitions import Partition
from ota_service.link.attachment import GONE, RETRY_S, RETURN_TIMEOUT_S, attachment
from ota_service.link.link import EspLink
from ota_service.update.boot import (
    HEADING,
    BootMonitor,
    BootRules,
    Expected,
    Heard,
    Hears,
    Verdict,
)
from ota_service.update.first_look import FirstLook, first_look, hands_over
from ota_service.update.leave import put_back
from ota_service.update.secrets import Redactor

FIRST_LOOK_S = 3.0
"""How long a board runs that is started in the middle of a session: to see what runs, or so that
its firmware repairs its NVS."""

SILENT_S = 1.0
"""A bootloader that has printed nothing for so long behind the ROM's last line will not print."""

READ_TIMEOUT_S = 0.05
SHORTEST_S = 0.001
CATCH_UP_S = 10.0
"""How long a log may come faster than it is read, until time decides all the same."""

ASK_AFTER_S = 2.0
"""A board that has printed nothing by then (or in half of its time, where that is less) is asked
whether it is in download mode still."""


def watch(
    port: SerialBase,
    monitor: BootMonitor,
    in_download: Callable[[], tuple[bool, bytes]],
    *,
    until: Callable[[BootMonitor], bool] = lambda monitor: monitor.verdict is not None,
    stopped: Callable[[], bool],
    limit_s: float | None = None,
) -> bool:
    """Read until `until` holds, `stopped` says so, or `limit_s` are over; False where it was
    stopped.

    in_download: asks the chip whether it is in download mode still, and hands over what came
    meanwhile; called once, where it has printed nothing.
    Raises OtaError `link-lost` where the port is gone: one that a reset takes away has to come
    back; behind any other there may be another board then.
    """
    log = _Log(port)
    ask_after_s = min(ASK_AFTER_S, monitor.rules.timeout_s / 2)
    while not until(monitor):
        if stopped():
            return False
        try:
            data = log.read(monitor.due_s)
        except GONE as error:
            if not log.comes_back(monitor, error, stopped):
                return False
            data = b""
        if not data and not monitor.heard and log.now_s >= ask_after_s:
            ask_after_s = math.inf
            monitor.in_download, data = in_download()
        now_s = log.now_s
        more = log.lags(data, now_s)
        if data:
            monitor.feed(data, now_s, more=more)
        if not more:
            monitor.tick(now_s)
        if limit_s is not None and now_s >= limit_s:
            break
    return True


class _Log:
    """A board's log as it comes from its port, and the time since its start, without that in
    which the port was away and nobody could see what it prints."""

    def __init__(self, port: SerialBase) -> None:
        self._port = port
        self._start_s = time.monotonic()
        self._away_s = self._kept_up_s = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    def read(self, due_s: float | None) -> bytes:
        """What has come, or comes until a verdict may be due."""
        wait_s = read_timeout_s(due_s, self.now_s)
        if self._port.timeout != wait_s:
            self._port.timeout = wait_s
        data: bytes = self._port.read(max(1, min(self._port.in_waiting, 4096)))
        return data

    def comes_back(
        self, monitor: BootMonitor, error: BaseException, stopped: Callable[[], bool]
    ) -> bool:
        """Wait for the port, which went away with `error`; False where that was stopped.

        Raises OtaError `link-lost`.
        """
        at, left_s = attachment(self._port), self.now_s
        if not at.may_return or self._away_s > RETURN_TIMEOUT_S * (1 + monitor.rules.restarts):
            text = "The port went away while the board's start was watched."
            raise OtaError("link-lost", text) from error
        monitor.port_left(left_s)
        time.sleep(RETRY_S)
        try:
            at.reopen(self._port, error, stopped=stopped)
        except OtaError as lost:
            if lost.code == "cancelled":
                return False
            raise
        away_s = self.now_s - left_s
        self._away_s += away_s
        self._start_s += away_s
        return True

    def lags(self, data: bytes, now_s: float) -> bool:
        """Whether more has come than `data`, which was read; not for ever: then time decides."""
        if not data or not self._more_waits():
            self._kept_up_s = now_s
            return False
        return now_s - self._kept_up_s < CATCH_UP_S

    def _more_waits(self) -> bool:
        with contextlib.suppress(*GONE):
            return bool(self._port.in_waiting)
        return False


def read_timeout_s(due_s: float | None, now_s: float) -> float:
    """How long to wait for a log's next bytes: the last wait is a short one, so that the verdict
    comes when it is due. Past that (where boot_expect has yet to be met) nothing is due."""
    left_s = due_s - now_s if due_s is not None else 0.0
    return min(READ_TIMEOUT_S, max(SHORTEST_S, left_s)) if left_s > 0 else READ_TIMEOUT_S


class StartHooks(Protocol):
    """What is told and asked while a board is started; called from the session's thread."""

    def restarting(self, reason: str) -> None:
        """The board is restarted now, and why."""

    def cancelled(self) -> bool:
        """Whether to stop at the next place where that leaves the board bootable."""

    def stopping(self) -> bool:
        """Whether the process ends: then boots are no longer watched either."""


class Starts:
    """The starts of one board. name: for messages. redact: keeps its secrets out of the log.

    hides: those secrets are not known, so nothing of the app's own lines is kept. log: what was
    seen of each watched start, under its heading. hears: gets it as it comes.
    """

    def __init__(
        self,
        link: EspLink,
        port: SerialBase,
        name: str,
        rules: BootRules,
        hooks: StartHooks,
        logger: logging.Logger | logging.LoggerAdapter[logging.Logger],
        hears: Hears = lambda heard: None,
    ) -> None:
        self.log: list[str] = []
        self._hears = hears
        self.redact = Redactor()
        self.hides = False
        self._link, self._port, self._name = link, port, name
        self._rules, self._hooks, self._logger = rules, hooks, logger
        self._first: FirstLook | None = None
        self._bootloader_speaks: bool | None = None

    def first_look(self) -> FirstLook:
        """One ordinary restart, to read from the bootloader's log what it starts; the first one
        counts for the whole session."""
        if self._first is None:
            self._first = self._look()
        return self._first

    def _look(self) -> FirstLook:
        spoken, spoken_s = 0, time.monotonic()

        def told(seen: BootMonitor) -> bool:
            nonlocal spoken, spoken_s
            if len(seen.lines) != spoken:
                spoken, spoken_s = len(seen.lines), time.monotonic()
            silent = bool(seen.lines) and hands_over(seen.lines[-1])
            return (
                seen.loaded_offset is not None
                or seen.app_speaks
                or seen.verdict is not None
                or seen.port_went > 0  # with it the bootloader's lines
                or (silent and time.monotonic() - spoken_s >= SILENT_S)
            )

        monitor = self._once("to see which slot runs", told, self._hooks.cancelled)
        if monitor is None:
            return FirstLook(restarted=False)
        self._bootloader_speaks = monitor.bootloader_speaks
        found = first_look(monitor.lines, monitor.loaded_offset)
        if found.silent and (monitor.port_went or not monitor.heard):
            return replace(found, silent=None)  # the port's silence, as far as can be told
        if found.silent:
            text = "%s: its bootloader prints nothing, so what it runs is read whole"
            self._logger.info(text, self._name)
        return found

    def repair(self, *, on_the_way_back: bool = False) -> bool:
        """One start, in which the firmware repairs its NVS, and back into download mode; whether
        it had its time. on_the_way_back: which a cancel does not stop."""
        stopped = self._hooks.stopping if on_the_way_back else self._hooks.cancelled
        # Its time is not cut short by what it prints: NVS is opened some time after that.
        seen = self._once("so that it repairs its NVS", lambda seen: False, stopped)
        return seen is not None

    def _once(
        self, why: str, until: Callable[[BootMonitor], bool], stopped: Callable[[], bool]
    ) -> BootMonitor | None:
        """None where it never left download mode, or was stopped before its time."""
        self._hooks.restarting(f"once into its firmware, {why}")
        monitor, whole = self._seen(until, stopped)
        if monitor.in_download and not monitor.heard and not monitor.port_went:
            self._link.stay()
        else:
            self._link.reconnect()
        return None if monitor.in_download or not whole else monitor

    def leaves(self) -> bool:
        """Restart the board; whether it left download mode, as far as can be seen."""
        monitor, _ = self._seen(
            lambda seen: seen.in_download or seen.from_flash, self._hooks.stopping
        )
        return not monitor.in_download

    def _seen(
        self, until: Callable[[BootMonitor], bool], stopped: Callable[[], bool]
    ) -> tuple[BootMonitor, bool]:
        """An ordinary start, watched for at most `FIRST_LOOK_S`; whether nobody stopped it."""
        self._link.restart()
        monitor = BootMonitor(Expected(), BootRules(FIRST_LOOK_S, FIRST_LOOK_S))
        whole = watch(
            self._port,
            monitor,
            self._link.in_download,
            until=until,
            stopped=stopped,
            limit_s=FIRST_LOOK_S,
        )
        if whole and monitor.port_went and not monitor.heard:
            monitor.in_download, said = self._link.in_download()
            monitor.feed(said, FIRST_LOOK_S)
        return monitor, whole

    def _require_same(self) -> None:
        """A port that went away once more than its reset took it may be another board's, where it
        tells no MAC: then the chip is asked, before anybody believes what was seen of it."""
        info = attachment(self._port).info
        if info is None or info.mac is None:
            self._link.reconnect()
            put_back(self._link)

    def watched(
        self,
        slot: Partition | None,
        expected: Expected | None = None,
        *,
        known_good: bool = False,
    ) -> BootMonitor:
        """Restart into a slot (None: into whatever the board starts), and watch it start.
        expected: None: this slot, whatever is in it. known_good: it ran before."""
        name = slot.name if slot is not None else "its firmware"
        expected = expected or Expected(offset=slot.offset if slot is not None else None)
        rules = self._rules
        if known_good and self._bootloader_speaks is False:
            # It will not say more than the new firmware's start has said.
            longest_s = max(rules.stable_s, FIRST_LOOK_S)
            rules = replace(rules, timeout_s=min(rules.timeout_s, longest_s))
        heading = f"{HEADING}{name}"
        monitor = BootMonitor(expected, rules, self.redact, hides=self.hides, hears=self._hears)
        self._hooks.restarting(f"into {name}, and watched")
        self._hears(Heard((heading,)))
        self._link.restart()

        def in_download() -> tuple[bool, bytes]:
            found, said = self._link.in_download()
            if found:
                self._logger.warning(
                    "%s: still in download mode; press its reset button, with BOOT released",
                    self._name,
                )
            return found, said

        watch(self._port, monitor, in_download, stopped=self._hooks.stopping)
        if monitor.verdict is Verdict.RUNNING and monitor.port_went > 1:
            self._require_same()
        self.log += [heading, *monitor.told]
        if monitor.heard:
            self._bootloader_speaks = monitor.bootloader_speaks
        if monitor.verdict is None:
            raise OtaError(
                "cancelled",
                "The updater was stopped before the board's start was judged.",
                remedy="The next start of the module looks at the board and goes on.",
            )
        return monitor
