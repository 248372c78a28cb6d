# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine's own addresses, as boards' hosts in the same network can reach them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING

from ota_service.errors import OtaError

if TYPE_CHECKING:
    from aiohttp.web import AppRunner

_ANY = ("0.0.0.0", "::", "")
# ioctl number of Linux: an interface's IPv4 address (linux/sockios.h).
_SIOCGIFADDR = 0x8915
# Bridges and tunnels of containers and virtual machines: nobody outside reaches them.
_INNER = ("docker", "br-", "veth", "virbr", "cni", "flannel", "lxc", "podman")
# Nothing is sent there: connecting a datagram socket only asks for the route (RFC 5737).
_ELSEWHERE = ("192.0.2.1", 9)


def own_addresses() -> list[str]:
    """IPv4 addresses, that of the default route first; the loopback's where there is no other.

    Private ones come before public ones, which are rarely meant.
    """
    found = [address for address in (_routed(), *_of_interfaces()) if address is not None]
    usable = list(dict.fromkeys(address for address in found if not _loopback(address)))
    usable.sort(key=lambda address: not ipaddress.ip_address(address).is_private)
    return usable or ["127.0.0.1"]


async def listen(runner: AppRunner, host: str, port: int) -> list[str]:
    """Let a server listen; where others reach it ("http://10.0.0.5:3001"), the likeliest first.

    port 0: any that is free. Raises OtaError `address-in-use`.
    """
    from aiohttp.web import TCPSite

    try:
        await TCPSite(runner, host, port).start()
    except OSError as error:
        # asyncio makes a long sentence of it, with the address once more.
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        raise OtaError(
            "address-in-use", f"Port {port} of {host} cannot be listened at ({why})."
        ) from None
    names = own_addresses() if host in _ANY else [host]
    bound = runner.addresses[0][1]
    return [
        f"http://[{name}]:{bound}" if ":" in name else f"http://{name}:{bound}" for name in names
    ]


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches this name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_unspecified or parsed.is_link_local


def _routed() -> str | None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_ELSEWHERE)
        return str(probe.getsockname()[0])
    return None


def _of_interfaces() -> list[str]:
    try:
        import fcntl
    except ImportError:  # no such calls on this system
        return []
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if name.startswith(_INNER):
                continue
            with contextlib.suppress(OSError):
                asked = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
                found.append(socket.inet_ntoa(answer[20:24]))
    return found
