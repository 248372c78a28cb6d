# SPDX-License-Identifier: GPL-3.0-or-later
"""Resets of boards whose port has no DTR and RTS: by GPIO lines of this computer, or by hand."""

from __future__ import annotations

import errno
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ota_service.errors import OtaError
from ota_service.link.ports import shown

if TYPE_CHECKING:  # a configuration is checked without opening ports
    from serial import SerialBase

    from ota_service.link.attachment import Reset

CONSUMER = "esp32-ota"
"""What others see who ask who has a line."""

EN_LOW_S = 0.1
"""As long as esptool holds EN (esptool 5.6.0, `classic_bootloader_reset`)."""

BY_HAND_S = 120.0
"""How long a person is waited for."""
_POLL_S = 0.05
_DOWNLOAD = b"download"
"""Is in what every ROM says when it waits in download mode."""


class ResetWay(Protocol):
    """By what a board is reset, as it was configured."""

    def held(self) -> AbstractContextManager[Reset]:
        """What resets it, for as long as its port is used."""


@dataclass(frozen=True, slots=True)
class ResetPins:
    """Lines of a GPIO chip that are wired to a board's EN and to its boot pin (GPIO0; GPIO9 on
    the newer chips).

    gpiochip: its device, such as "/dev/gpiochip0". en, boot: offsets of lines in it.
    """

    gpiochip: str
    en: int
    boot: int

    @contextmanager
    def held(self) -> Iterator[Pins]:
        """Both lines, let go; what a process that was killed had left pulled is undone first.

        Raises OtaError `no-reset` where they cannot be had, `permission`, and `port-busy`.
        """
        try:
            pins = Pins(self, _gpiod())
        except OSError as error:
            raise self._refused(error) from error
        try:
            yield pins
        finally:
            pins.close()

    def _refused(self, error: OSError) -> OtaError:
        lines = f"lines {self.en} and {self.boot} of {self.gpiochip}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return OtaError(
                "permission",
                f"This user may not use the {lines}.",
                remedy=f"Add the user that runs viam-server to the group of {self.gpiochip}, "
                "which is gpio on Raspberry Pi OS.",
            )
        if error.errno == errno.EBUSY:
            return OtaError("port-busy", f"Another program has the {lines}.")
        return OtaError(
            "no-reset",
            f"The board cannot be reset by the {lines}: {error.strerror or error}.",
            remedy="Correct `reset`: `gpioinfo` lists the chips and their lines.",
        )


def _gpiod() -> Any:
    """libgpiod's own package, which is an optional extra."""
    try:
        found = importlib.import_module("gpiod")
        importlib.import_module("gpiod.line")
        _ = found.request_lines  # version 1 of libgpiod has none
    except (ImportError, AttributeError) as error:
        raise OtaError(
            "no-reset",
            "The board cannot be reset by GPIO: the Python package gpiod, version 2, is not "
            "installed.",
            remedy="Install it into the module's environment: `.venv/bin/pip install gpiod` in "
            "the module's folder.",
        ) from error
    return found


class Pins:
    """A board's EN and boot pin, which are pulled low or let go. Implements `Reset`.

    They are requested open-drain: nothing here drives a pin high that the board may pull low.
    The boot pin is pulled only around EN's rise, since GPIO0 is a clock's input on some boards.
    """

    def __init__(self, wired: ResetPins, gpiod: Any) -> None:
        self._wired, self._gpiod, self._line = wired, gpiod, gpiod.line
        in_download = self._left_pulled(wired.boot)
        # The boot pin first: EN may have been left low.
        self._requests: dict[int, Any] = {}
        try:
            for pin in (wired.boot, wired.en):
                self._requests[pin] = self._request(
                    pin,
                    direction=self._line.Direction.OUTPUT,
                    drive=self._line.Drive.OPEN_DRAIN,
                    output_value=self._line.Value.ACTIVE,
                )
            if in_download:
                self._reset()
        except BaseException:
            self.close()
            raise

    def _request(self, pin: int, **settings: Any) -> Any:
        lines = {pin: self._gpiod.LineSettings(**settings)}
        return self._gpiod.request_lines(self._wired.gpiochip, consumer=CONSUMER, config=lines)

    def _left_pulled(self, pin: int) -> bool:
        """Whether a line is still driven low by a process that is dead. As an input it may be low
        by anything that is wired to it."""
        with self._gpiod.Chip(self._wired.gpiochip) as chip:
            info = chip.get_line_info(pin)
        if info.used or info.direction != self._line.Direction.OUTPUT:
            return False
        request = self._request(pin, direction=self._line.Direction.AS_IS)
        try:
            return bool(request.get_value(pin) == self._line.Value.INACTIVE)
        finally:
            request.release()

    def _pull(self, pin: int) -> None:
        self._requests[pin].set_value(pin, self._line.Value.INACTIVE)

    def _let_go(self) -> None:
        for pin, request in self._requests.items():
            request.set_value(pin, self._line.Value.ACTIVE)

    def into_download(self, port: SerialBase, held_s: float) -> None:
        """Reset with the boot pin held."""
        self._reset(held_s)

    def into_firmware(self, port: SerialBase, *, awaited: bool = True) -> None:
        """Reset with the boot pin let go."""
        self._reset()

    def _reset(self, boot_held_s: float = 0.0) -> None:
        en, boot = self._wired.en, self._wired.boot
        try:
            self._pull(en)
            time.sleep(EN_LOW_S)
            if boot_held_s:
                self._pull(boot)
                self._requests[en].set_value(en, self._line.Value.ACTIVE)
                time.sleep(boot_held_s)
        finally:
            self._let_go()

    def close(self) -> None:
        """Let both go, and give them up, the boot pin first, each whatever happens to
        the other."""
        with ExitStack() as last:
            for pin, request in reversed(self._requests.items()):
                last.callback(request.release)
                last.callback(request.set_value, pin, self._line.Value.ACTIVE)


@dataclass(frozen=True, slots=True)
class ByHand:
    """A person presses the board's buttons. say: tells what to press. stop: ends the waiting."""

    say: Callable[[str], None]
    stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def held(self) -> Iterator[_Hand]:
        """There is nothing to hold."""
        yield _Hand(self)


class _Hand:
    """Implements `Reset`. Raises OtaError `no-reset` where nobody presses anything."""

    def __init__(self, by: ByHand) -> None:
        self._by = by
        self._in_download = False

    def into_download(self, port: SerialBase, held_s: float) -> None:
        """Wait for the ROM's words, or for a port that goes away with the reset."""
        from ota_service.link.attachment import GONE  # a configuration is checked without it

        self._ask(port, "hold BOOT, press and let go RESET (EN), then let go BOOT")
        said = b""

        def in_download() -> bool:
            nonlocal said
            said = said[-len(_DOWNLOAD) :] + port.read(port.in_waiting)
            return _DOWNLOAD in said

        try:
            self._await(in_download)
        except GONE:
            self._in_download = True  # its own USB port went away with the reset
            raise
        self._in_download = True

    def into_firmware(self, port: SerialBase, *, awaited: bool = True) -> None:
        """The loader says nothing by itself, so what comes then is the reset's."""
        if self._in_download:
            self._in_download = False
            self._ask(port, "press and let go RESET (EN), with BOOT let go")
            if awaited:
                self._await(lambda: port.in_waiting > 0)

    def _ask(self, port: SerialBase, what: str) -> None:
        self._by.say(f"{shown(str(port.port))}: {what}.")

    def _await(self, happened: Callable[[], bool]) -> None:
        until_s = time.monotonic() + BY_HAND_S
        while not happened():
            if time.monotonic() >= until_s:
                raise OtaError("no-reset", f"Nobody has reset the board in {BY_HAND_S:g} s.")
            if self._by.stop.wait(_POLL_S):
                raise OtaError("cancelled")
