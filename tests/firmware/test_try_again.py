# SPDX-License-Identifier: GPL-3.0-or-later
"""A firmware that could not be had for now is asked for again, by the service itself."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import build_app
from esp32_sim.process import SimProcess
from ota_service.firmware import download
from ota_service.firmware.download import Patience
from ota_service.firmware.target import Target
from ota_service.fleet import policy
from ota_service.fleet.service import FleetService, shutdown
from ota_service.fleet.settings import BoardEntry, Settings
from tests.support.firmware_server import FirmwareServer

pytestmark = pytest.mark.slow


async def until(
    service: FleetService, condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """The first status that fulfils `condition`."""
    async with asyncio.timeout(60):
        while True:
            status = service.status()
            if condition(status):
                return status
            await asyncio.sleep(0.05)  # the status has no event to await


async def test_a_server_that_comes_back_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine may start before its network, and a file be published after it is configured."""
    caplog.set_level(logging.INFO, "ota_service.fleet")
    monkeypatch.setattr(policy, "DOWNLOAD_PAUSES_S", (0.3,))
    monkeypatch.setattr(download, "Patience", lambda: Patience(delays_s=(0.01,)))
    with SimProcess(tmp_path / "boards", 1) as sim:
        async with FirmwareServer.start() as server:
            url = server.put("/a.bin", build_app(version="1.1.0", size_bytes=60_000))
            for _ in range(2):
                server.fail_next("/a.bin", 503)
            wanted = Settings(
                service="OTA",
                target=Target(url, "1.1.0"),
                boards=(BoardEntry("a", port=sim.boards[0].url),),
                boot_timeout_s=4,
                boot_stable_s=0.5,
                state_dir=tmp_path / "state",
                cache_dir=tmp_path / "cache",
            )
            service = await FleetService.open(wanted)
            try:
                first = await until(service, lambda s: s.get("run", {}).get("outcome") == "failed")
                assert first["error"]["code"] == "http-status"
                assert first["state"] == "idle"
                status = await until(service, lambda s: s["run"]["outcome"] == "succeeded")
                assert status["run"]["trigger"] == "resumed"
                assert status["boards"]["a"]["version"] == "1.1.0"
                assert "error" not in status

                monkeypatch.setattr(policy, "MISSING_PAUSES_S", (0.05,))
                later = Target(server.url("/later.bin"), "1.2.0")
                service = await FleetService.open(dataclasses.replace(wanted, target=later))
                await until(service, lambda s: s["run"]["outcome"] == "failed")
                # What is told of the run's end stands before the next look.
                await server.wait_requests(len(server.requests) + 1)
                lines = len(caplog.records)
                # Looked for, again and again, without a run or a line in the log.
                await server.wait_requests(len(server.requests) + 3)
                assert service.status()["run"]["outcome"] == "failed"
                assert len(caplog.records) - lines <= 1
                server.put("/later.bin", build_app(version="1.2.0", size_bytes=60_000))
                status = await until(service, lambda s: s["run"]["outcome"] == "succeeded")
                assert status["run"]["trigger"] == "resumed"
                assert status["boards"]["a"]["version"] == "1.2.0"
                runs = (await service.command("history", {}))["runs"]
                assert [run["outcome"] for run in runs[:2]] == ["succeeded", "failed"]
            finally:
                await shutdown()


async def test_each_firmware_is_looked_for_by_itself_and_with_the_token_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever runs meanwhile; and not at all once nothing is to happen by itself."""
    monkeypatch.setattr(policy, "MISSING_PAUSES_S", (0.05,))
    one, two = (build_app(version=v, size_bytes=60_000) for v in ("1.1.0", "1.2.0"))
    with SimProcess(tmp_path / "boards", 2) as sim:
        async with FirmwareServer.start() as server:
            wanted = Settings(
                service="OTA",
                target=Target(server.url("/one.bin"), "1.1.0", headers=(("X-Token", "old"),)),
                boards=(
                    BoardEntry("a", port=sim.boards[0].url),
                    BoardEntry(
                        "b", port=sim.boards[1].url, url=server.url("/two.bin"), version="1.2.0"
                    ),
                ),
                boot_timeout_s=4,
                boot_stable_s=0.5,
                state_dir=tmp_path / "state",
                cache_dir=tmp_path / "cache",
            )
            service = await FleetService.open(wanted)
            try:
                await until(service, lambda s: s.get("run", {}).get("outcome") == "failed")
                await service.command("update", {"boards": ["a"], "wait_s": 10})
                renewed = dataclasses.replace(wanted.target, headers=(("X-Token", "new"),))
                wanted = dataclasses.replace(wanted, target=renewed)
                service = await FleetService.open(wanted)
                seen = len(server.requests)
                await server.wait_requests(seen + 2)  # which may have been on their way
                asked = server.requests[seen + 2 :]
                while {found.path for found in asked} != {"/one.bin", "/two.bin"}:
                    await server.wait_requests(len(server.requests) + 1)
                    asked = server.requests[seen + 2 :]
                tokens = {found.headers.get("X-Token") for found in asked}
                assert tokens == {"new"}
                server.put("/two.bin", two)
                await until(service, lambda s: s["boards"]["b"].get("version") == "1.2.0")
                server.put("/one.bin", one)
                await until(service, lambda s: s["boards"]["a"].get("version") == "1.1.0")

                gone = Target(server.url("/gone.bin"), "1.3.0")
                wanted = dataclasses.replace(wanted, target=gone)
                service = await FleetService.open(wanted)
                await until(service, lambda s: s["run"]["outcome"] == "failed")
                quiet = dataclasses.replace(wanted, auto_update=False)
                service = await FleetService.open(quiet)
                assert service._engine is not None
                async with asyncio.timeout(30):
                    while service._engine._unfetched:  # noqa: ASYNC110 - it has no event
                        await asyncio.sleep(0.01)
                server.put("/gone.bin", one)
                assert service.status()["run"]["outcome"] == "failed"
            finally:
                await shutdown()
