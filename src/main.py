# SPDX-License-Identifier: GPL-3.0-or-later
"""The entry: registers the models and runs the module for viam-server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from ota_service import linux_only

# esptool reads a configuration file of its own from the working or home folder, which could
# change how boards are reset. It looks when it is imported, so this stands before everything.
os.environ["ESPTOOL_CFGFILE"] = os.devnull

COMMAND = "esp32-ota"
"""The name under which the self-contained program is that command: one program, two names."""


async def stop_fleet() -> None:
    """Get boards in the middle of a write back into their old firmware."""
    service = sys.modules.get("ota_service.fleet.service")
    if service is not None:  # no service was ever configured otherwise
        await service.shutdown()


async def serve() -> None:
    """Serve under the module protocol until viam-server says stop."""
    from ota_service.module import plain
    from ota_service.module.logs import set_up_logging
    from ota_service.module.models import register
    from ota_service.module.server import OtaModule, end

    set_up_logging()
    register()
    plain.install()
    module = OtaModule.from_args()
    module.before_exit = stop_fleet
    await module.start()
    end()


def own_libraries() -> None:
    """What the self-contained program starts, such as a browser, finds the system's libraries:
    those of the archive are this program's alone, which has them already."""
    before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    if before is not None:
        os.environ["LD_LIBRARY_PATH"] = before
    else:
        os.environ.pop("LD_LIBRARY_PATH", None)


def main() -> None:
    """The module, as viam-server starts it; under its other name, the command."""
    linux_only()
    if getattr(sys, "frozen", False):
        own_libraries()
        if Path(sys.argv[0]).name == COMMAND:
            from ota_service.cli.main import main as command

            command()
    if len(sys.argv) == 1:  # viam-server always names where to serve
        print("This is started by viam-server; a person calls `esp32-ota`.", file=sys.stderr)
        sys.exit(2)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
