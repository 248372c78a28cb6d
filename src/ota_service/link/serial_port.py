# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening a serial port without disturbing the board behind it, and closing it likewise.

The two lines that matter are DTR (asserted: IO0 low, "enter download mode") and RTS (asserted: EN
low, "reset"); both asserted do nothing on the usual two-transistor circuit. On open, Linux
asserts both at once. Lowering them one after the other, DTR first, holds the board in reset in
between, so `open_port` lowers both in one request. On close, Linux lowers the lines where HUPCL
is set; it is cleared.

Everything here blocks and is called in threads. Who else has the port is asked before, see
`ownership`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import importlib.util
import os
import re
import struct
import termios
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import serial
from serial.serialutil import SerialBase, SerialException

from ota_service.errors import OtaError
from ota_service.link.ownership import Holder, holders, process_name
from ota_service.link.ports import canonical, is_url, require_exists, shown

ROM_BAUD = 115200
"""The speed of the boot log and of the ROM loader (esp32.md, "The boot log")."""

WRITE_TIMEOUT_S = 10.0
"""When a stuck bridge counts as lost."""

_NETWORK = (
    "Check the address, the network and its firewalls, and that the port's server (ser2net, "
    "esp_rfc2217_server, an emulator) runs there."
)

HANDLER_PACKAGES = ("ota_service.link.urlhandler", "esp32_sim.urlhandler")
"""Packages with pyserial url handlers of our own, where they exist; the first one wins."""

_MISSING = {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.ELOOP}
_BUSY = {errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK}
_GONE = {errno.EIO, errno.EBADF, *_MISSING}
_MEANINGS = (
    (_MISSING, "port-missing", "The port PORT does not exist."),
    ({errno.EACCES, errno.EPERM}, "permission", "This user may not open the port PORT."),
    ({errno.EPROTO}, "link-lost", "The server at PORT sends without end: it is no serial port's."),
    ({errno.ENOTTY, errno.EISDIR}, "port-missing", "PORT is not a serial port."),
)
"""What a failed open means by the system's number, but for a busy port."""
_BOTH_LINES = struct.pack("I", termios.TIOCM_DTR | termios.TIOCM_RTS)


def _told(real: Callable[..., Any]) -> Callable[..., Any]:
    """A method of pyserial's port that tells of a device that has gone by an OSError alone.

    pyserial also lets out the terminal interface's own error, which is none, the TypeError of a
    descriptor that is None, and a ValueError for a speed that nobody takes any more (3.5,
    `serialposix.py`).
    """

    @wraps(real)
    def method(port: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return real(port, *args, **kwargs)
        except (termios.error, TypeError, ValueError, SerialException) as error:
            number = next(_numbers(error), None)
            if port.fd is None and isinstance(error, TypeError):
                number = errno.EBADF
            if number not in _GONE and not isinstance(error, termios.error):
                raise
            number = number or errno.EIO
            raise SerialException(number, os.strerror(number)) from error

    return method


class _QuietSerial(serial.Serial):  # type: ignore[misc, unused-ignore]
    """A device port that lowers DTR and RTS in one request while it opens."""

    _reconfigure_port = _told(serial.Serial._reconfigure_port)
    _update_rts_state = _told(serial.Serial._update_rts_state)
    _reset_input_buffer = _told(serial.Serial._reset_input_buffer)
    in_waiting = property(_told(serial.Serial.in_waiting.fget))
    read = _told(serial.Serial.read)
    write = _told(serial.Serial.write)
    flush = _told(serial.Serial.flush)
    reset_input_buffer = _told(serial.Serial.reset_input_buffer)
    reset_output_buffer = _told(serial.Serial.reset_output_buffer)

    @_told
    def _update_dtr_state(self) -> None:
        if self.is_open or self._dtr_state or self._rts_state:
            super()._update_dtr_state()
        else:
            fcntl.ioctl(self.fd, termios.TIOCMBIC, _BOTH_LINES)

    def close(self) -> None:
        # The mark of TIOCEXCL belongs to the terminal and would outlive us while anyone has it.
        with contextlib.suppress(Exception):
            fcntl.ioctl(self.fd, termios.TIOCNXCL)
        super().close()


def register_url_handlers() -> None:
    """Let pyserial (and with it esptool) open our own kinds of url; idempotent."""
    ours = [name for name in HANDLER_PACKAGES if _is_package(name)]
    others = [name for name in serial.protocol_handler_packages if name not in ours]
    # Before pyserial's own, so that a better client of ours takes the place of a stock one.
    serial.protocol_handler_packages[:] = ours + others


def _is_package(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def open_port(
    port: str,
    *,
    board: str | None = None,
    timeout_s: float = 0.1,
) -> SerialBase:
    """Open `port`, a device path or url, for this process alone, with DTR and RTS released.

    timeout_s: how long a read waits. board: the name for errors.

    Raises OtaError: `port-missing`, `permission`, `port-busy`, `no-answer` (a url where nothing
    answers), `link-lost`, `config-invalid` (an unknown kind of url).
    """
    require_exists(port, board)
    register_url_handlers()
    opened: SerialBase | None = None
    try:
        if is_url(port):
            opened = serial.serial_for_url(port, do_not_open=True)
        else:
            opened = _QuietSerial()
            opened.port = port
        opened.write_timeout = WRITE_TIMEOUT_S
        opened.baudrate = ROM_BAUD
        opened.timeout = timeout_s
        opened.exclusive = True
        opened.dtr = False
        opened.rts = False
        opened.open()
        _keep_to_ourselves(opened)
    except (OSError, ValueError, termios.error) as error:
        close_port(opened)
        raise _open_error(error, port, board) from error
    except BaseException:
        close_port(opened)
        raise
    return opened


def reopen_port(opened: SerialBase, port: str) -> None:
    """Open a closed port again, perhaps by another name, as quietly as `open_port`.

    Raises pyserial's SerialException, and OSError.
    """
    opened.dtr = False
    opened.rts = False
    opened.port = port
    opened.open()
    _keep_to_ourselves(opened)


def close_port(opened: SerialBase | None) -> None:
    """Close a port, whatever state it is in: a board that is gone must not raise once more."""
    if opened is None:
        return
    with contextlib.suppress(Exception):
        opened.close()
    # pyserial gives up half-way if one of its descriptors is gone.
    opened.is_open = False


def _keep_to_ourselves(opened: SerialBase) -> None:
    """Clear HUPCL, refuse further opens of the device (TIOCEXCL; root is not refused), and ask
    the bridge's driver for short answers: FTDI's waits 16 ms with each otherwise."""
    if not isinstance(opened, serial.Serial):
        return
    with contextlib.suppress(OSError, ValueError):
        opened.set_low_latency_mode(True)
    with contextlib.suppress(OSError, termios.error):
        attributes = termios.tcgetattr(opened.fd)
        attributes[2] &= ~termios.HUPCL
        termios.tcsetattr(opened.fd, termios.TCSANOW, attributes)
    with contextlib.suppress(OSError):
        fcntl.ioctl(opened.fd, termios.TIOCEXCL)


def _open_error(error: Exception, port: str, board: str | None) -> OtaError:
    """What a failed open means, from the system's error number or, of a url, from the text."""
    code, message = _open_failure(error, port, shown(port), next(_numbers(error), None))
    remedy = _group_remedy(port) if code == "permission" else None
    if code == "no-answer" and _scheme(port) in ("rfc2217", "socket"):
        remedy = _NETWORK
    return OtaError(code, message, board=board, remedy=remedy)


def _open_failure(error: Exception, port: str, name: str, number: int | None) -> tuple[str, str]:
    text, url = str(error).lower(), is_url(port)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        if url and "protocol" in text:
            return "config-invalid", f"The port {name} is of a kind that is not known."
        why = _reason(error, port)
        return "config-invalid", f"The port {name} cannot be opened as configured ({why})."
    if number in _BUSY or (url and "busy" in text):
        names = [str(holder) for holder in holders(port) or _named_holder(text)]
        return "port-busy", f"The port {name} is in use by {', '.join(names)}."
    if url and "errno 2]" in text:
        number = errno.ENOENT
    for numbers, code, message in _MEANINGS:
        if number in numbers:
            return code, message.replace("PORT", name)
    if url:
        return "no-answer", f"Nothing answers at {name} ({_reason(error, port)})."
    return "link-lost", f"The port {name} could not be opened ({_reason(error, port)})."


def _scheme(port: str) -> str:
    return port.partition("://")[0].lower()


def _named_holder(text: str) -> list[Holder]:
    """Who has the port, by the words of a url's handler ("port is busy (process 123)")."""
    found = re.search(r"\bprocess (\d+)", text)
    if not found:
        return [Holder(None, "another program")]
    pid = int(found.group(1))
    return [Holder(pid, process_name(pid))]


def _numbers(error: BaseException) -> Iterator[int]:
    """The system's error numbers along the chain of causes, the outermost first."""
    for link in _chain(error):
        if isinstance(link, OSError) and isinstance(link.errno, int):
            yield link.errno
        elif isinstance(link, termios.error) and link.args and isinstance(link.args[0], int):
            yield link.args[0]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes: pyserial often drops the system's error from its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException, port: str) -> str:
    """A short reason: the system's own words, else pyserial's, without secrets."""
    for link in _chain(error):
        if isinstance(link, OSError) and not isinstance(link, SerialException) and link.strerror:
            return link.strerror
    number = next(_numbers(error), None)
    if number is not None:
        return os.strerror(number)
    first = (str(error) or type(error).__name__).splitlines()[0]
    return first.replace(port, shown(port))[:200]


def _group_remedy(port: str) -> str | None:
    """How to get at the device: by its group, if its group may use it."""
    if is_url(port):
        return None
    try:
        status = os.stat(canonical(port))
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return None
    if status.st_mode & 0o060 != 0o060 or group == "root":
        return (
            f"Only its owner may use {port}: add a udev rule that gives the port to the group "
            "dialout (or uucp), and add the user that runs viam-server to that group."
        )
    return (
        f"Add the user that runs viam-server to the group {group} "
        f"(sudo usermod -aG {group} USER), then log in again or restart viam-server."
    )
