# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated ESP32: a board for tests and demonstrations, without hardware.

`__all__` is what other programs may rely on (docs/python.md). The names are loaded when they are
asked for: pyserial looks into this package for the url of simulated boards also where there is
none, and must not load the simulator for that.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esp32_sim.config import BoardConfig
    from esp32_sim.control import BoardControl, ControlError
    from esp32_sim.images import Behaviour, build_app
    from esp32_sim.launch_esptool import configure_esptool, install_handler
    from esp32_sim.process import RunningBoard, SimBoard, SimProcess

__all__ = [
    "Behaviour",
    "BoardConfig",
    "BoardControl",
    "ControlError",
    "RunningBoard",
    "SimBoard",
    "SimProcess",
    "build_app",
    "configure_esptool",
    "install_handler",
]

_HOMES = {
    "Behaviour": "images",
    "BoardConfig": "config",
    "BoardControl": "control",
    "ControlError": "control",
    "RunningBoard": "process",
    "SimBoard": "process",
    "SimProcess": "process",
    "build_app": "images",
    "configure_esptool": "launch_esptool",
    "install_handler": "launch_esptool",
}

if not TYPE_CHECKING:  # or a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
