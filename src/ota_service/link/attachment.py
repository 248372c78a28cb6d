# SPDX-License-Identifier: GPL-3.0-or-later
"""How a board hangs on its open port: by what it is reset, and where it is found again.

A chip's own USB port may go away at a reset, for as long as hub and host take, and come back by
another name. It is then opened again in place: whoever has the port object goes on with it.
"""

from __future__ import annotations

import contextlib
import termios
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from esp_pylib.serial_reset import (
    execute_custom_reset,
    hard_reset,
    unix_tight_bootloader_reset,
    usb_jtag_bootloader_reset,
)
from serial import SerialBase, SerialException

from ota_service.errors import OtaError
from ota_service.link.ports import describe, find_again, is_url, shown
from ota_service.link.serial_port import close_port, reopen_port

BOOT_HELD_S = (0.05, 0.55)
"""How long the boot pin is held behind the reset, in turn: EN rises slowly, and on some boards very
slowly (as esptool's own resets, 5.6.0, `loader.py`)."""
RESET_INTO_DOWNLOAD = "D0|R1|W0.1|D1|R0|W{held_s}|D0"
"""DTR asserted = IO0 low, RTS asserted = EN low; IO0 is sampled when EN has risen. Software that
serves a CDC port takes RTS let go under DTR for the same wish (ESP-IDF, usb_console.c)."""

RETURN_TIMEOUT_S = 12.0
"""How long a chip's own USB port may take to come back: hubs and hosts were seen to take 5 s."""
LEAVES_WITHIN_S = 0.5
"""A port that goes away by a reset has gone by then: a hub tells of it every 0.25 s."""
RETRY_S = 0.1
"""Devices are made by the kernel, and opened up by udev: there is no event to await."""

PINS_BY_WATCHDOG = ("ESP32-C3", "ESP32-S3")
GPIO_STRAP, NO_DOWNLOAD = 0x6000_4038, 1 << 3
"""Of these chips: what the pins said at the last reset that looked at them (their technical
reference manuals, GPIO_STRAP_REG; the bit is GPIO9's, or GPIO0's)."""

GONE = (SerialException, OSError, TypeError, termios.error)
"""What using a port raises whose device went away (TypeError: pyserial, under a read;
termios.error, which is no OSError: where it flushes)."""


class Reset(Protocol):
    """Resets a board otherwise than by its port."""

    def into_download(self, port: SerialBase, held_s: float) -> None:
        """Into download mode. held_s: how long the boot pin is held behind the reset."""

    def into_firmware(self, port: SerialBase, *, awaited: bool = True) -> None:
        """Into what is in flash. awaited: where it takes a person, wait for them."""


class Attachment:
    """What is known of the device behind an open port. by: what resets the board; None: the
    port's lines. claim: called with each further name of the port before it is opened by it;
    raises `port-busy`. stopped: whether nothing is waited for any more."""

    def __init__(
        self,
        port: str,
        by: Reset | None = None,
        claim: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.by = by
        self.info = self._first = describe(port)
        self._name = port
        self._claim = claim
        self._stopped = stopped
        self._restarted_s: float | None = None

    @property
    def native(self) -> bool:
        """Whether it is the chip's own USB port, on which baud means nothing."""
        return self.info is not None and self.info.native

    @property
    def may_return(self) -> bool:
        """Whether the port may go away at a reset."""
        return self.info is not None and self.info.may_return

    # --- resets

    def resets(self, port: SerialBase) -> tuple[Callable[[], None], ...] | None:
        """What resets the board into download mode, in turn; None: esptool's ways for a bridge's
        device. Those open a port that has gone by its old name, so no other port is left to them.
        """
        if self.by is not None:
            return tuple(partial(self.by.into_download, port, held_s) for held_s in BOOT_HELD_S)
        if self.info is not None and self.info.serial_jtag:
            return (partial(usb_jtag_bootloader_reset, port),)
        if self.native or is_url(str(port.port)):
            # esptool's first choice sets both lines with one ioctl, which a url does not have.
            ways = (RESET_INTO_DOWNLOAD.format(held_s=held_s) for held_s in BOOT_HELD_S)
            return tuple(partial(execute_custom_reset, port, way) for way in ways)
        if self.may_return:
            return (partial(unix_tight_bootloader_reset, port),)
        return None

    def restart(self, port: SerialBase, esp: Any | None = None) -> bool:
        """Reset the board into its firmware; whether its port stayed. esp: esptool's object, where
        the chip answers to it.

        Raises what esptool and pyserial raise.
        """
        try:
            if self.by is not None:
                self.by.into_firmware(port, awaited=esp is not None)
            elif esp is not None and self._reads_no_pins(esp):
                esp.watchdog_reset()
            elif esp is not None:
                esp.hard_reset()
            else:
                hard_reset(port)
            return True
        except GONE:
            if not self.may_return:
                raise
            return False  # it went away with the reset
        finally:
            self._restarted_s = time.monotonic()

    def _reads_no_pins(self, esp: Any) -> bool:
        """Whether a reset by the port leads back into download mode: USB-Serial-JTAG resets without
        a look at the pins, which said so at the last one (somebody held BOOT). The watchdog's
        reset looks at them; C6 and H2 lose their port by it (esptool, targets/esp32c6.py)."""
        if self.info is None or not self.info.serial_jtag or esp.CHIP_NAME not in PINS_BY_WATCHDOG:
            return False
        return not esp.read_reg(GPIO_STRAP) & NO_DOWNLOAD

    # --- going and coming

    def reopen(
        self,
        port: SerialBase,
        why: BaseException | None,
        *,
        stopped: Callable[[], bool] = lambda: False,
        within_s: float | None = None,
    ) -> None:
        """Open the port again, which is closed or whose device went away, when that is back.

        within_s: how long it is waited for at the most, whoever says that it has to stop.
        Raises OtaError `link-lost` where it does not come back, and `cancelled` where `stopped`
        says so meanwhile, or the owner's own.
        """
        timeout_s = RETURN_TIMEOUT_S if within_s is None else min(within_s, RETURN_TIMEOUT_S)
        close_port(port)
        until_s = time.monotonic() + timeout_s
        while not self._opened(port):
            if within_s is None and (stopped() or self._stopped()):
                raise OtaError("cancelled")
            if time.monotonic() >= until_s:
                text = f"The port {shown(self._name)} went away, and was not back in "
                raise OtaError("link-lost", f"{text}{timeout_s:g} s.") from why
            time.sleep(RETRY_S)

    def _opened(self, port: SerialBase) -> bool:
        name = find_again(self._name, self._first)
        if name is None:
            return False
        try:
            if self._claim is not None:
                self._claim(name)
            reopen_port(port, name)
        except (*GONE, OtaError):
            close_port(port)
            return False
        self.info = describe(name) or self.info  # it may be gone again
        self._restarted_s = None
        return True

    def settle(self, port: SerialBase) -> None:
        """See a restart through: a port that it takes away is back before its owner gives it up,
        so that its coming is not taken for somebody's plugging in."""
        if self._restarted_s is None or not self.may_return:
            return
        try:
            while (left_s := self._restarted_s + LEAVES_WITHIN_S - time.monotonic()) > 0:
                _ = port.in_waiting
                time.sleep(min(RETRY_S, left_s))
        except GONE as error:
            with contextlib.suppress(OtaError):
                self.reopen(port, error)


_ATTACHED: WeakKeyDictionary[SerialBase, Attachment] = WeakKeyDictionary()


def attach(port: SerialBase, attachment: Attachment) -> None:
    """Note how a board hangs on a port that was just opened."""
    _ATTACHED[port] = attachment


def attachment(port: SerialBase) -> Attachment:
    """How a board hangs on an open port: as noted, else as the port's name says."""
    found = _ATTACHED.get(port)
    if found is None:
        found = _ATTACHED[port] = Attachment(str(port.port))
    return found
