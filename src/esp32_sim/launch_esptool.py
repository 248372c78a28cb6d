# SPDX-License-Identifier: GPL-3.0-or-later
"""The unchanged esptool command, taught the url of simulated boards.

python -m esp32_sim.launch_esptool --port esp32sim:///path/of/board chip-id
"""

from __future__ import annotations

import sys
from pathlib import Path

import serial

from esp32_sim import wire
from esp32_sim.urlhandler.protocol_esp32sim import SCHEME

HANDLER_PACKAGE = "esp32_sim.urlhandler"


def install_handler() -> None:
    """Let pyserial find `esp32sim://` urls in this process."""
    if HANDLER_PACKAGE not in serial.protocol_handler_packages:
        serial.protocol_handler_packages.append(HANDLER_PACKAGE)


def usb_ids(port: str) -> tuple[int, int]:
    """VID and PID of a simulated board's port. Raises OSError where it is not there."""
    usb = wire.read_address(Path(port.removeprefix(SCHEME)), wire.PORT_FILE)["usb"]
    return usb["vid"], usb["pid"]


def configure_esptool() -> None:
    """Make esptool reset boards behind urls as it does those behind devices.

    It chooses the way by the port's USB ids, which it looks up for devices only. For boards
    behind a bridge it first tries one that sets both lines in one call, for which a url has no
    file descriptor; the way that it would try next stands in for that.
    """
    import esptool.loader as loader

    known = loader.get_port_vid_pid
    if known.__module__ == __name__:
        return

    def get_port_vid_pid(port: str) -> tuple[int | None, int | None]:
        if not port.startswith(SCHEME):
            found: tuple[int | None, int | None] = known(port)
            return found
        try:
            return usb_ids(port)
        except OSError:
            return None, None

    loader.get_port_vid_pid = get_port_vid_pid
    loader.UnixTightReset = loader.ClassicReset


def main(argv: list[str] | None = None) -> None:
    """Run esptool's own entry point with `argv` (without the program's name)."""
    install_handler()
    configure_esptool()
    import esptool

    if argv is not None:
        sys.argv = ["esptool", *argv]
    esptool._main()


if __name__ == "__main__":
    main()
