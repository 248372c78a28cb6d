# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's entry: registers the models and runs the module for viam-server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

# esptool reads a configuration file of its own from the working or home folder, which could
# change how boards are reset. It looks when it is imported, so this stands before everything.
os.environ["ESPTOOL_CFGFILE"] = os.devnull

from ota_service.module import plain
from ota_service.module.logs import set_up_logging
from ota_service.module.models import register
from ota_service.module.server import OtaModule, end


async def stop_fleet() -> None:
    """Get boards in the middle of a write back into their old firmware."""
    service = sys.modules.get("ota_service.fleet.service")
    if service is not None:  # no service was ever configured otherwise
        await service.shutdown()


async def main() -> None:
    """Serve under the module protocol until viam-server says stop."""
    set_up_logging()
    register()
    plain.install()
    module = OtaModule.from_args()
    module.before_exit = stop_fleet
    await module.start()
    end()


if __name__ == "__main__":
    if len(sys.argv) == 1:  # viam-server always names where to serve
        print("run.sh is started by viam-server; try `make demo`.", file=sys.stderr)
        sys.exit(2)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(main())
