# SPDX-License-Identifier: GPL-3.0-or-later
"""Updates the firmware of ESP32 boards from the computer that they are attached to.

`__all__` is what other programs may rely on (docs/python.md). The names are loaded when they are
asked for: most programs need a few, and `esp32-ota --help` none.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

__version__: str = "0.2.0"
"""Of the package, the command and the module."""

if TYPE_CHECKING:
    from ota_service.api.engine import BoardReport, Engine, Options, Order, Report
    from ota_service.api.load import load_firmware
    from ota_service.api.single import (
        Progress,
        inspect_board,
        plan_update,
        roll_back_board,
        update_board,
    )
    from ota_service.errors import OtaError
    from ota_service.firmware.check import Firmware
    from ota_service.update.inspect import Inspection
    from ota_service.update.plan import Plan

__all__ = [
    "BoardReport",
    "Engine",
    "Firmware",
    "Inspection",
    "Options",
    "Order",
    "OtaError",
    "Plan",
    "Progress",
    "Report",
    "__version__",
    "inspect_board",
    "load_firmware",
    "plan_update",
    "roll_back_board",
    "update_board",
]

_HOMES = {
    "BoardReport": "api.engine",
    "Engine": "api.engine",
    "Firmware": "firmware.check",
    "Inspection": "update.inspect",
    "Options": "api.engine",
    "Order": "api.engine",
    "OtaError": "errors",
    "Plan": "update.plan",
    "Progress": "api.single",
    "Report": "api.engine",
    "inspect_board": "api.single",
    "load_firmware": "api.load",
    "plan_update": "api.single",
    "roll_back_board": "api.single",
    "update_board": "api.single",
}


def linux_only() -> None:
    """End the program with one sentence where it cannot work, instead of with a trace."""
    if sys.platform.startswith("linux"):
        return
    sys.exit(
        f"ota_service runs on Linux alone, and this system is {sys.platform}: install it on the "
        "Linux computer that the boards are attached to."
    )


if not TYPE_CHECKING:  # or a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
