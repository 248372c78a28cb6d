# SPDX-License-Identifier: GPL-3.0-or-later
"""The unchanged idftool command, taught the url of simulated boards."""

from __future__ import annotations

import sys

from esp32_sim.launch_esptool import configure_esptool, install_handler


def main() -> None:
    """Run idftool's own entry point."""
    install_handler()
    configure_esptool()
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="idftool")
    sys.argv[0] = "idftool"
    script.load()()


if __name__ == "__main__":
    main()
