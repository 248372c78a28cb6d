# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of ports, read from a sysfs, /dev and udev database made for the test."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from esp32_sim import wire
from ota_service.errors import OtaError
from ota_service.link import ports
from ota_service.link.ports import PortInfo, Roots


class FakeSystem:
    """Folders that look like /dev, /sys and /run/udev/data of a Linux machine."""

    def __init__(self, top: Path) -> None:
        self.roots = Roots(top / "dev", top / "sys", top / "udev")
        self.roots.udev.mkdir(parents=True)
        (self.roots.dev / "serial" / "by-path").mkdir(parents=True)
        (self.roots.sys / "bus" / "usb").mkdir(parents=True)
        (self.roots.sys / "bus" / "usb-serial").mkdir(parents=True)
        (self.roots.sys / "class" / "tty").mkdir(parents=True)

    def usb_tty(
        self,
        name: str,
        *,
        device: str,
        interface: str = "1.0",
        acm: bool = False,
        interfaces: int = 1,
        links: tuple[str, ...] = (),
        **attributes: str,
    ) -> Path:
        """A tty of a USB device, laid out as the kernel does it."""
        usb = self.roots.sys / "devices" / "usb1" / device
        face = usb / f"{device}:{interface}"
        node = face if acm else face / name
        node.mkdir(parents=True)
        bus = self.roots.sys / "bus" / ("usb" if acm else "usb-serial")
        (node / "subsystem").symlink_to(bus)
        (usb / "bNumInterfaces").write_text(f" {interfaces}\n")
        for key, value in attributes.items():
            (usb / key).write_text(f"{value}\n")
        entry = self.roots.sys / "class" / "tty" / name
        entry.mkdir()
        (entry / "device").symlink_to(node)
        return self._node(name, links)

    def uart(self, name: str, kind: int) -> Path:
        """A built-in UART; kind 0 is one that does not exist."""
        entry = self.roots.sys / "class" / "tty" / name
        entry.mkdir()
        (entry / "type").write_text(f"{kind}\n")
        return self._node(name, ())

    def _node(self, name: str, links: tuple[str, ...]) -> Path:
        node = self.roots.dev / name
        node.touch()
        for link in links:
            (self.roots.dev / "serial" / "by-path" / link).symlink_to(f"../../{name}")
        return node

    def list(self) -> dict[str, PortInfo]:
        """The listed ports by their short names."""
        return {os.path.basename(info.device): info for info in ports.list_ports(self.roots)}


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    """An empty machine."""
    return FakeSystem(tmp_path)


def test_bridge_is_described_from_its_usb_device(system: FakeSystem) -> None:
    """A CP2102's tty carries its USB device's identity, place and by-path name."""
    system.usb_tty(
        "ttyUSB0",
        device="1-1.2",
        links=("pci-0000:00:14.0-usb-0:1.2:1.0-port0", "pci-0000:00:14.0-usbv2-0:1.2:1.0-port0"),
        idVendor="10c4",
        idProduct="ea60",
        serial="0001",
        product="CP2102 USB to UART Bridge Controller",
    )
    info = system.list()["ttyUSB0"]
    assert (info.vid, info.pid, info.serial_number) == (0x10C4, 0xEA60, "0001")
    assert info.location == info.place == "1-1.2"
    assert info.identity == "10c4:ea60:0001"
    assert info.by_path is not None
    assert info.by_path.endswith("by-path/pci-0000:00:14.0-usb-0:1.2:1.0-port0")
    assert (info.bridge, info.native, info.mac, info.likely_esp32) == ("CP210x", False, None, True)
    assert ports.candidate_kind(info) == "bridge"


def test_native_usb_tells_its_mac(system: FakeSystem) -> None:
    """On Espressif's own USB the serial number is the MAC, and the port can be found by it."""
    system.usb_tty(
        "ttyACM0",
        device="1-2",
        acm=True,
        interfaces=3,
        idVendor="303a",
        idProduct="1001",
        serial="7C:DF:A1:00:11:22",
    )
    info = system.list()["ttyACM0"]
    assert info.native
    assert info.mac == "7c:df:a1:00:11:22"
    assert info.location == "1-2:1.0"
    assert info.bridge is None
    assert ports.candidate_kind(info) == "native"
    assert ports.find_mac("7C:DF:A1:00:11:22", system.list().values()) == info
    assert ports.find_mac("7c:df:a1:00:11:23", system.list().values()) is None


@pytest.mark.parametrize(
    ("serial", "mac"),
    [("7CDFA1001122", "7c:df:a1:00:11:22"), ("123456", None), ("my-board", None), (None, None)],
)
def test_only_a_mac_is_taken_for_one(serial: str | None, mac: str | None) -> None:
    """An app with a USB stack of its own may choose any serial number; only a MAC counts."""
    assert PortInfo("/dev/ttyACM0", vid=0x303A, pid=0x4001, serial_number=serial).mac == mac


def test_a_bridge_with_a_mac_like_serial_number_is_no_native_port() -> None:
    """The MAC is believed of Espressif's own USB only."""
    assert PortInfo("/dev/ttyUSB0", vid=0x10C4, serial_number="7CDFA1001122").mac is None


def test_ports_of_one_device_have_places_of_their_own(system: FakeSystem) -> None:
    """Two boards on one FT2232 differ by the interface, so neither is taken for the other."""
    for name, interface in (("ttyUSB0", "1.0"), ("ttyUSB1", "1.1")):
        usb = system.roots.sys / "devices" / "usb1" / "1-3"
        if usb.exists():
            (usb / "bNumInterfaces").unlink()
        system.usb_tty(
            name, device="1-3", interface=interface, interfaces=2, idVendor="0403", idProduct="6010"
        )
    places = [info.place for info in system.list().values()]
    assert places == ["1-3:1.0", "1-3:1.1"]


def test_uarts_without_hardware_are_left_out(system: FakeSystem) -> None:
    """A PC's 31 unused ttyS names are no ports; a real UART is one, but no likely ESP32."""
    system.uart("ttyS0", 4)
    system.uart("ttyS1", 0)
    listed = system.list()
    assert list(listed) == ["ttyS0"]
    assert not listed["ttyS0"].likely_esp32
    assert ports.candidate_kind(listed["ttyS0"]) == "other"


def test_natural_order(system: FakeSystem) -> None:
    """ttyUSB2 comes before ttyUSB10."""
    for index in (10, 2, 1):
        system.usb_tty(f"ttyUSB{index}", device=f"1-{index}", idVendor="1a86", idProduct="7523")
    assert list(system.list()) == ["ttyUSB1", "ttyUSB2", "ttyUSB10"]


def test_broken_sysfs_is_survived(system: FakeSystem) -> None:
    """A device that is being unplugged while it is read is still listed, with what was there."""
    system.usb_tty("ttyUSB0", device="1-1", idVendor="zz", idProduct="7523")
    info = system.list()["ttyUSB0"]
    assert (info.vid, info.pid, info.bridge, info.identity) == (None, 0x7523, None, None)


def test_describe_resolves_links(system: FakeSystem) -> None:
    """A by-path name and the device are the same port."""
    node = system.usb_tty("ttyUSB7", device="1-4", links=("x",), idVendor="1a86", idProduct="7523")
    link = system.roots.dev / "serial" / "by-path" / "x"
    info = ports.describe(str(link), system.roots)
    assert info == ports.describe(str(node), system.roots)
    assert info is not None
    assert info.device == str(node)
    assert info.bridge == "CH34x"
    assert ports.canonical(str(link)) == str(node)
    assert ports.describe(str(node) + "x", system.roots) is None
    assert ports.describe("socket://localhost:1", system.roots) is None


@contextmanager
def pty_name() -> Iterator[str]:
    """A character device that appeared just now."""
    master, slave = os.openpty()
    try:
        yield os.ttyname(slave)
    finally:
        os.close(slave)
        os.close(master)


def test_appearance_without_udev_is_the_node_s_ctime() -> None:
    """Where there is no udev, the device node's own age counts."""
    before = datetime.now(UTC)
    with pty_name() as name:
        info = ports.describe(name, Roots(udev=Path("/nonexistent")))
        assert info is not None
        assert info.appeared_at is not None
        assert before - timedelta(seconds=1) <= info.appeared_at <= datetime.now(UTC)


def test_appearance_from_udev_counts_back_from_now(system: FakeSystem) -> None:
    """Udev's monotonic microseconds become a time of the wall clock."""
    with pty_name() as name:
        number = os.stat(name).st_rdev
        entry = system.roots.udev / f"c{os.major(number)}:{os.minor(number)}"
        entry.write_text(f"S:serial/x\nI:{(time.monotonic_ns() // 1000) - 90_000_000}\nE:A=b\n")
        info = ports.describe(name, system.roots)
        assert info is not None
        assert info.appeared_at is not None
        age = datetime.now(UTC) - info.appeared_at
        assert timedelta(seconds=89.5) < age < timedelta(seconds=95)


def test_listing_opens_nothing(system: FakeSystem) -> None:
    """A fifo blocks whoever opens it, so a listing that ends has not opened it."""
    system.usb_tty("ttyUSB0", device="1-1", idVendor="10c4", idProduct="ea60")
    (system.roots.dev / "ttyUSB0").unlink()
    os.mkfifo(system.roots.dev / "ttyUSB0")
    assert list(system.list()) == ["ttyUSB0"]


def test_this_machine_can_be_listed() -> None:
    """The real system's list works, whatever is attached."""
    for info in ports.list_ports():
        assert os.path.exists(info.device)


def test_exists(tmp_path: Path) -> None:
    """Devices by their path, simulated boards by their address file, other urls always."""
    board = tmp_path / "board one"
    url = f"esp32sim://{board}"
    assert not ports.exists(url)
    board.mkdir()
    assert not ports.exists(url)
    (board / wire.PORT_FILE).touch()
    assert ports.exists(url)
    assert ports.exists("rfc2217://10.0.0.1:4000")
    assert not ports.exists(str(tmp_path / "ttyUSB0"))
    with pytest.raises(OtaError, match="ttyUSB0 does not exist") as caught:
        ports.require_exists(str(tmp_path / "ttyUSB0"), "left")
    assert caught.value.code == "port-missing"
    assert caught.value.board == "left"


@pytest.mark.parametrize(
    ("port", "text"),
    [
        ("/dev/ttyUSB0", "/dev/ttyUSB0"),
        ("rfc2217://10.0.0.1:4000", "rfc2217://10.0.0.1:4000"),
        (
            "rfc2217://me:hunter2@10.0.0.1:4000/x?key=hunter2",
            "rfc2217://***@10.0.0.1:4000/x?key=***",
        ),
        ("socket://hunter2@h:notaport?hunter2#hunter2", "socket://***"),
        ("esp32sim:///tmp/board", "esp32sim:///tmp/board"),
    ],
)
def test_shown_hides_secrets(port: str, text: str) -> None:
    """User info, query and fragment of a url are never shown, even of a malformed one."""
    assert ports.shown(port) == text


def test_links_are_followed_again_where_their_folder_changes(tmp_path: Path) -> None:
    """And not for each of 200 boards each second."""
    roots = Roots(dev=tmp_path / "dev", sys=tmp_path / "sys", udev=tmp_path / "udev")
    folder = roots.dev / "serial" / "by-path"
    folder.mkdir(parents=True)
    for name in ("ttyUSB0", "ttyUSB1"):
        (roots.dev / name).touch()
    (folder / "first").symlink_to("../../ttyUSB0")
    os.utime(folder, (1, 1))
    known = {str(roots.dev / "ttyUSB0"): str(folder / "first")}
    assert ports._by_path(roots) == known
    assert ports._by_path(roots) is ports._by_path(roots)
    (folder / "second").symlink_to("../../ttyUSB1")
    both = known | {str(roots.dev / "ttyUSB1"): str(folder / "second")}
    assert ports._by_path(roots) == both
