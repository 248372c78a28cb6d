# SPDX-License-Identifier: GPL-3.0-or-later
"""Which serial ports there are, and what each looks like, without opening any.

Opening a port can restart what is attached to it, so everything here comes from the names under
/dev, from sysfs and from udev's database; other systems than Linux are asked through pyserial's
own list. A port is a device path or a url that pyserial opens (`rfc2217://`, `socket://`, a
simulated board's `esp32sim://`).
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ota_service.errors import OtaError
from ota_service.firmware.urls import redact_url
from ota_service.formats.text import natural, visible

ESPRESSIF_VID = 0x303A
"""Espressif's own USB vendor id (USB-Serial-JTAG and USB-OTG of S2, S3, C3, C6, H2, P4...)."""
SERIAL_JTAG_PID = 0x1001
"""The product id of USB-Serial-JTAG on all chips (esptool 5.6.0, `USB_JTAG_SERIAL_PID`)."""
USB_BRIDGE_PID = 0x1002
"""An ESP32-S2 or S3 that is a bridge to another chip's UART (espressif/esp-usb-bridge)."""

BRIDGES: dict[int, str] = {
    0x10C4: "CP210x",  # Silicon Labs; Linux drivers/usb/serial/cp210x.c
    0x1A86: "CH34x",  # WCH, CH340 to CH9102; Linux drivers/usb/serial/ch341.c, cdc-acm
    0x0403: "FTDI",  # Linux drivers/usb/serial/ftdi_sio_ids.h
    0x067B: "PL2303",  # Prolific; Linux drivers/usb/serial/pl2303.h
}
"""USB vendor ids of the usual serial bridges. What is behind one may be no ESP32 at all."""

CandidateKind = Literal["native", "bridge", "other"]

_SETTLED_NS = 2_000_000_000
"""A folder may change twice within a tick of its time stamp; by then it has another one."""
_NAMES = ("ttyUSB*", "ttyACM*", "ttyAMA*", "ttyS*", "ttyXRUSB*", "ttyAP*", "ttyTHS*", "rfcomm*")
_SIM_SCHEME = "esp32sim"
_SCHEMES = ("rfc2217", "socket", _SIM_SCHEME)
"""The kinds of url that are ports. pyserial opens more, of which some write files (`spy://`), open
whatever device fits (`hwgrep://`, `alt://`) or are no boards."""
_SIM_ADDRESS = "port.json"  # in the simulated board's folder while it is plugged in
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:[:-]?[0-9A-Fa-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the system keeps its devices; tests point these at folders of their own."""

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    udev: Path = Path("/run/udev/data")


SYSTEM = Roots()


@dataclass(frozen=True, slots=True)
class PortInfo:
    """What is known of a port without opening it.

    device: the device itself, links resolved. by_path: its name under /dev/serial/by-path, which
    follows the USB socket. location: USB place, bus-port.port ("1-1.2"), with the interface
    ("1-1.2:1.0") where the device has several; it survives a re-plug into the same socket.
    vid, pid, serial_number, product, manufacturer: from the USB descriptors.
    appeared_at: when the device appeared, UTC (see `_appeared_at`).
    """

    device: str
    by_path: str | None = None
    location: str | None = None
    vid: int | None = None
    pid: int | None = None
    serial_number: str | None = None
    product: str | None = None
    manufacturer: str | None = None
    appeared_at: datetime | None = None

    @property
    def native(self) -> bool:
        """Whether this is Espressif's own USB: an ESP32 for certain."""
        return self.vid == ESPRESSIF_VID and self.bridge is None

    @property
    def mac(self) -> str | None:
        """The chip's MAC, "aa:bb:cc:dd:ee:ff", where the USB serial number of a native port is it.

        USB-Serial-JTAG always does so; an app that brings its own USB stack may choose another.
        """
        if not self.native or not self.serial_number or not _MAC.fullmatch(self.serial_number):
            return None
        digits = re.sub("[:-]", "", self.serial_number).lower()
        return ":".join(digits[i : i + 2] for i in range(0, 12, 2))

    @property
    def serial_jtag(self) -> bool:
        """Whether this is USB-Serial-JTAG, which the chip's hardware does by itself."""
        return self.native and self.pid == SERIAL_JTAG_PID

    @property
    def may_return(self) -> bool:
        """Whether this is USB without a bridge: it goes away at a reset, and comes back."""
        return self.vid is not None and self.bridge is None

    @property
    def bridge(self) -> str | None:
        """The family of the USB bridge ("CP210x", "CH34x", "FTDI", ...), if it is one."""
        if (self.vid, self.pid) == (ESPRESSIF_VID, USB_BRIDGE_PID):
            return "ESP USB Bridge"
        return BRIDGES.get(self.vid) if self.vid is not None else None

    @property
    def likely_esp32(self) -> bool:
        """Whether an ESP32 may well be behind it: native USB, or a usual bridge."""
        return self.native or self.bridge is not None

    @property
    def place(self) -> str:
        """The key under which this port is remembered: its USB location, else its device."""
        return self.location or self.device

    @property
    def identity(self) -> str | None:
        """Which USB device it is, wherever it is plugged: "303a:1001:SERIAL"; None if not USB."""
        if self.vid is None or self.pid is None:
            return None
        return f"{self.vid:04x}:{self.pid:04x}:{self.serial_number or ''}"


def candidate_kind(info: PortInfo) -> CandidateKind:
    """How a port may come to be opened: by itself (native), by a person's word, or as listed."""
    if info.native:
        return "native"
    return "bridge" if info.bridge else "other"


def list_ports(roots: Roots = SYSTEM) -> list[PortInfo]:
    """Every serial port of this machine, in natural order. Opens none."""
    if not sys.platform.startswith("linux"):
        return _list_elsewhere()
    devices = {path for name in _NAMES for path in roots.dev.glob(name)}
    by_path = _by_path(roots)
    found = (_describe_linux(path, roots, by_path) for path in devices if _present(path, roots))
    return sorted(found, key=lambda info: natural(info.device))


def describe(port: str, roots: Roots = SYSTEM) -> PortInfo | None:
    """What is known of one configured port, links resolved; None for missing ones, and for urls
    but a simulated board's, whose address file says what its USB descriptors would."""
    if is_simulated(port):
        return _describe_simulated(port)
    if is_url(port) or not os.path.exists(port):
        return None
    device = os.path.realpath(port)
    if not sys.platform.startswith("linux"):
        listed = {os.path.realpath(info.device): info for info in _list_elsewhere()}
        return listed.get(device, PortInfo(device, appeared_at=_node_time(Path(device))))
    return _describe_linux(Path(device), roots, _by_path(roots))


def is_url(port: str) -> bool:
    """Whether `port` is a url for pyserial rather than a device path."""
    return "://" in port


def problem(port: str) -> str | None:
    """Why `port` is none, in words that go on after its name; None: as far as can be known without
    opening it, it is one."""
    if not port.isprintable():
        return "holds characters that cannot be printed"
    scheme, separator, rest = port.partition("://")
    if not separator:
        return None
    if scheme not in _SCHEMES or not rest:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        return f"is not the url of a port; those known begin with {known}"
    if scheme != _SIM_SCHEME:
        try:
            address = urlsplit(port)
            whole = bool(address.hostname and address.port)
        except ValueError:
            whole = False
        if not whole:
            return f"needs a host and a port number, as in {scheme}://192.168.1.20:4000"
    return None


def no_lines(port: str) -> str | None:
    """What to do about a board that does not answer behind `port`, where nothing can reset it."""
    if not is_socket(port):
        return None
    return (
        "A socket:// port has no lines to reset a board by: hold its BOOT button at a reset "
        "before, or let the server speak RFC 2217 and write rfc2217:// instead."
    )


def is_socket(port: str) -> bool:
    """Whether `port` is a url of bytes alone: it tells nothing of lines and speeds."""
    return port.lower().startswith("socket://")


def is_simulated(port: str) -> bool:
    """Whether `port` is the url of a simulated board."""
    return port.lower().startswith(f"{_SIM_SCHEME}://")


def canonical(port: str) -> str:
    """One name for one port: device paths, also those of simulated boards, with their links
    resolved, other urls as they are."""
    if is_simulated(port):
        return f"{_SIM_SCHEME}://{os.path.realpath(port.split('://', 1)[1])}"
    return port if is_url(port) else os.path.realpath(port)


def shown(port: str) -> str:
    """`port` as it may be shown and logged: a url without its secrets (`redact_url`)."""
    return redact_url(port)


def exists(port: str) -> bool:
    """Whether the port is there now: the device, or the simulated board's address file.

    Of other urls nothing can be known without opening them; they count as there.
    """
    if is_simulated(port):
        return _sim_address(port).exists()
    return is_url(port) or os.path.exists(port)


def _sim_address(port: str) -> Path:
    return Path(port.split("://", 1)[1]) / _SIM_ADDRESS


def _describe_simulated(port: str) -> PortInfo | None:
    try:
        usb = json.loads(_sim_address(port).read_text("utf-8"))["usb"]
        return PortInfo(
            device=port,
            vid=usb["vid"],
            pid=usb["pid"],
            serial_number=usb["serial_number"],
            appeared_at=_node_time(_sim_address(port)),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def ports_beside(port: str) -> list[PortInfo]:
    """The ports among which a device may be that was at `port`: this machine's, or those of the
    simulated boards beside it."""
    if not is_simulated(port):
        return [] if is_url(port) else list_ports()
    folders = sorted(_sim_address(port).parents[1].glob(f"*/{_SIM_ADDRESS}"))
    found = (_describe_simulated(f"{_SIM_SCHEME}://{file.parent}") for file in folders)
    return [info for info in found if info is not None]


def find_again(port: str, before: PortInfo | None) -> str | None:
    """Where the device is now that was at `port`, perhaps by another name; None: nowhere.

    Another device that has got the name meanwhile is not taken for it.
    """
    now = describe(port)
    if before is None or before.vid is None:
        return port if exists(port) else None
    if now is not None and same_device(before, now):
        return port
    others = ports_beside(port)
    return next((info.device for info in others if same_device(before, info)), None)


def same_device(before: PortInfo, now: PortInfo) -> bool:
    """Whether two looks at ports have seen one device: by its MAC, else by its USB socket, and of a
    bridge by what it says of itself.

    A chip's own port has another number of interfaces, and no MAC, while its ROM serves it.
    """
    if before.mac is not None and now.mac is not None:
        return before.mac == now.mac
    if before.location is None or now.location is None:
        return (before.device, before.identity) == (now.device, now.identity)
    if before.native or now.native:
        return before.location.split(":")[0] == now.location.split(":")[0]
    return (before.location, before.identity) == (now.location, now.identity)


def require_exists(port: str, board: str | None = None) -> None:
    """Raise `config-invalid` if it is none, and `port-missing` if it is not there, or is a device
    of another kind."""
    wrong = problem(port)
    if wrong is not None:
        raise OtaError("config-invalid", f"The port {visible(shown(port))} {wrong}.", board=board)
    if not exists(port):
        raise OtaError("port-missing", f"The port {shown(port)} does not exist.", board=board)
    if _is_other_device(port):
        raise OtaError("port-missing", f"{shown(port)} is not a serial port.", board=board)


def _is_other_device(port: str) -> bool:
    """Whether a device is known to be no terminal, such as /dev/null, which any number of programs
    have open; without opening it (Linux Documentation/admin-guide/sysfs-rules.rst)."""
    try:
        about = os.stat(port)
        number = f"{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}"
        kind = os.path.basename(os.readlink(SYSTEM.sys / "dev" / "char" / number / "subsystem"))
    except OSError:
        return False
    return stat.S_ISCHR(about.st_mode) and kind != "tty"


def find_mac(mac: str, infos: Iterable[PortInfo]) -> PortInfo | None:
    """The native port whose serial number is `mac` ("aa:bb:cc:dd:ee:ff"), if it is attached."""
    wanted = mac.lower().replace("-", ":")
    return next((info for info in infos if info.mac == wanted), None)


# --- Linux


def _by_path(roots: Roots) -> dict[str, str]:
    """Device -> its name under /dev/serial/by-path."""
    folder = roots.dev / "serial" / "by-path"
    try:
        changed_ns = folder.stat().st_mtime_ns
    except OSError:
        return {}
    if time.time_ns() - changed_ns < _SETTLED_NS:
        return _names_in(folder)
    return _settled(folder, changed_ns)


@lru_cache(maxsize=4)
def _settled(folder: Path, changed_ns: int) -> dict[str, str]:
    """Each board that is looked for asks, each second: the links are followed when they change."""
    return _names_in(folder)


def _names_in(folder: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    try:
        links = sorted(folder.iterdir(), key=lambda link: link.name)
    except OSError:
        return names
    # Since systemd 255 a port has two names, one with the USB version ("usbv2") in it. The older
    # form comes first in the order and is the one that every system understands.
    for link in links:
        names.setdefault(os.path.realpath(link), str(link))
    return names


def _present(path: Path, roots: Roots) -> bool:
    """Whether a device stands for real hardware.

    A PC has up to 32 ttyS names; those without a UART behind them have type 0 (PORT_UNKNOWN,
    linux/serial_core.h).
    """
    return _line(roots.sys / "class" / "tty" / path.name / "type") != "0"


def _describe_linux(path: Path, roots: Roots, by_path: dict[str, str]) -> PortInfo:
    info = PortInfo(
        device=str(path),
        by_path=by_path.get(os.path.realpath(path)),
        appeared_at=_appeared_at(path, roots),
    )
    entry = roots.sys / "class" / "tty" / path.name / "device"
    if not entry.exists():
        return info
    node = entry.resolve()
    subsystem = (node / "subsystem").resolve().name
    # A bridge's tty hangs below its interface through a usb-serial node; a CDC-ACM tty hangs on
    # the interface itself.
    if subsystem == "usb-serial":
        interface = node.parent
    elif subsystem == "usb":
        interface = node
    else:
        return info
    device = interface.parent
    several = (_line(device / "bNumInterfaces") or "1").strip() not in ("0", "1")
    return replace(
        info,
        location=interface.name if several else device.name,
        vid=_hex(_line(device / "idVendor")),
        pid=_hex(_line(device / "idProduct")),
        serial_number=_line(device / "serial"),
        product=_line(device / "product"),
        manufacturer=_line(device / "manufacturer"),
    )


def _appeared_at(path: Path, roots: Roots) -> datetime | None:
    """When the device appeared, in today's wall clock.

    udev stores the moment at which it first handled the device, as microseconds of
    CLOCK_MONOTONIC in an `I:` line of its database, and drops it when the device goes. Counted
    back from now, it follows later corrections of the wall clock, and a suspend can only make it
    look later, which at worst reads a board once more. Without udev (containers) the node's
    ctime serves: it changes with owner and mode, which is just after the start, whereas mtime
    and atime change with every use of the port and sysfs invents its times at first sight.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    if stat.S_ISCHR(status.st_mode):
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        since = _udev_initialized_us(roots.udev / f"c{major}:{minor}")
        if since is not None:
            age_us = max(0.0, time.monotonic_ns() / 1000 - since)
            return datetime.now(UTC) - timedelta(microseconds=age_us)
    return datetime.fromtimestamp(status.st_ctime, UTC)


def _udev_initialized_us(entry: Path) -> int | None:
    try:
        lines = entry.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("I:") and line[2:].isdigit():
            return int(line[2:])
    return None


def _line(path: Path) -> str | None:
    """The first line of a sysfs attribute, stripped; None where there is none."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return None
    return text.split("\n", 1)[0].strip() or None


def _hex(text: str | None) -> int | None:
    try:
        return int(text, 16) if text else None
    except ValueError:
        return None


# --- other systems


def _list_elsewhere() -> list[PortInfo]:
    from serial.tools.list_ports import comports

    return [
        PortInfo(
            device=port.device,
            location=port.location,
            vid=port.vid,
            pid=port.pid,
            serial_number=port.serial_number,
            product=port.product,
            manufacturer=port.manufacturer,
            appeared_at=_node_time(Path(port.device)),
        )
        for port in sorted(comports(), key=lambda port: natural(port.device))
    ]


def _node_time(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_ctime, UTC)
    except OSError:
        return None
