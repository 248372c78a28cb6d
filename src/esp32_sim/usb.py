# SPDX-License-Identifier: GPL-3.0-or-later
"""The chips' own USB ports: what DTR and RTS do there, which resets they outlive, who they are.

Sources: ESP32-C3 Technical Reference Manual, "USB Serial/JTAG Controller" (reset by RTS and DTR);
ESP-IDF's esp_usb_cdc_rom_console/usb_console.c and espressif/esp-stub-lib (esp32s3/src/usb_otg.c)
for CDC by software; esptool's esp_pylib (constants.py). That USB-Serial-JTAG stays on the bus
through resets by RTS is what esptool relies on, and what logs of boards show; others report that
it goes, so `BoardConfig.usb_leaves_at` has both.
"""

from __future__ import annotations

from typing import Literal

from esp32_sim.chips import ResetKind
from esp32_sim.config import BoardConfig

Lines = tuple[bool, bool]
"""DTR and RTS; true: asserted."""

# In place of a baud: full speed USB carries about so many bits of payload, ten for a byte.
USB_BAUD = 6_000_000

ESPRESSIF_VID = 0x303A
SERIAL_JTAG_PID = 0x1001
# A CP2102, as on many boards.
BRIDGE_VID_PID = (0x10C4, 0xEA60)

# Resets of the processor or by the port itself leave USB-Serial-JTAG, and a CDC port whose
# software asks for it, as they are. All others take the port along.
OUTLIVED: frozenset[ResetKind] = frozenset({"cpu", "usb"})

# USB-Serial-JTAG, by (DTR, RTS): a mark leads the next reset into download mode.
SERIAL_JTAG_ACTIONS: dict[Lines, Literal["", "mark", "unmark", "reset"]] = {
    (True, False): "mark",
    (False, False): "unmark",
    (False, True): "reset",
    (True, True): "",
}


def leaves_bus(config: BoardConfig, reason: ResetKind) -> bool:
    """Whether a board's port is gone for a moment after a reset."""
    if config.usb == "bridge":
        return False
    return config.usb_leaves_at == "every-reset" or reason not in OUTLIVED


def otg_action(before: Lines, now: Lines) -> Literal["", "restart", "download"]:
    """What software makes of its CDC port's lines: a reset when RTS falls, DTR says into what."""
    if before[1] and not now[1]:
        return "download" if now[0] else "restart"
    return ""


def identity(config: BoardConfig) -> dict[str, int | str]:
    """What the host's list of ports says of a board's: VID, PID and serial number."""
    if config.usb == "bridge":
        vid, pid = BRIDGE_VID_PID
        return {"vid": vid, "pid": pid, "serial_number": "0001"}
    pid = SERIAL_JTAG_PID if config.usb == "serial-jtag" else config.chip_facts.id
    return {"vid": ESPRESSIF_VID, "pid": pid, "serial_number": config.mac.upper()}
