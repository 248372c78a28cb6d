# SPDX-License-Identifier: GPL-3.0-or-later
"""A port whose USB device is another one than before is closed until release."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ota_service.firmware.target import Target
from ota_service.fleet.journal import open_journal
from ota_service.fleet.service import FleetService, shutdown
from ota_service.fleet.settings import BoardEntry, Settings

# A device that exists everywhere, and is none that could be restarted.
PORT = "/dev/null"


async def test_release_forgets_the_usb_device_that_was_learned(tmp_path: Path) -> None:
    """Until then the board is wrong-board; nothing is opened for it."""
    settings = Settings(
        service="OTA",
        target=Target("http://127.0.0.1:9/x.bin", "1"),
        boards=(BoardEntry("a", port=PORT),),
        auto_update=False,
        state_dir=tmp_path / "state",
        cache_dir=tmp_path / "cache",
    )
    with open_journal(settings.state_dir) as journal:
        journal.learn_port(PORT, "24:0a:c4:00:00:01", location="1-2", serial="0001")
        service = await FleetService.open(settings)
        try:
            for _ in range(400):
                if service.status()["boards"]["a"]["state"] == "set_aside":
                    break
                await asyncio.sleep(0.05)  # the status has no event to await
            assert service.status()["boards"]["a"]["error"]["code"] == "wrong-board"
            await service.command("release", {})
            assert journal.known_port(PORT) is None
            assert service.status()["boards"]["a"]["state"] == "unknown"
        finally:
            await shutdown()
