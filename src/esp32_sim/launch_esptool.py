# SPDX-License-Identifier: GPL-3.0-or-later
"""The unchanged esptool command, taught the url of simulated boards.

python -m esp32_sim.launch_esptool --port esp32sim:///path/of/board chip-id
"""

from __future__ import annotations

import sys

import serial

HANDLER_PACKAGE = "esp32_sim.urlhandler"

# A url has no file descriptor for TIOCMSET, so esptool's first two reset strategies would fail
# one after the other (1.5 s); this is its third one, DTR and RTS set one by one.
RESET_SEQUENCE = "D0|R1|W0.1|D1|R0|W0.05|D0"


def install_handler() -> None:
    """Let pyserial find `esp32sim://` urls in this process."""
    if HANDLER_PACKAGE not in serial.protocol_handler_packages:
        serial.protocol_handler_packages.append(HANDLER_PACKAGE)


def configure_esptool() -> None:
    """Make esptool reset boards behind urls with one sequence that works there."""
    import esptool.loader

    esptool.loader.cfg["custom_reset_sequence"] = RESET_SEQUENCE


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
