# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of a machine: what it does when the machine goes, comes back, or is another one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ota_service.client.failure import Failure
from ota_service.client.machine import Access, connect

MACHINE = """
import asyncio, sys
from viam.rpc.server import Server
from viam.services.generic import Generic

class Ota(Generic):
    async def get_status(self, **_):
        return {"state": "idle"}
    async def do_command(self, command, **_):
        raise ValueError("not today")

class Other(Generic):
    async def do_command(self, command, **_):
        return {}

async def main():
    server = Server([Ota("OTA"), Other("other")])
    await server._server.start("127.0.0.1", int(sys.argv[1]))
    print(server._server._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""A robot server with a service that has little, and with one of somebody else."""


@asynccontextmanager
async def machine(port: int = 0) -> AsyncIterator[int]:
    """It in a process of its own, killed at the end; its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MACHINE, str(port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await asyncio.wait_for(process.stdout.readline(), 20))
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.slow
async def test_it_connects_again_when_the_machine_is_back() -> None:
    """A page that stays open outlives restarts of viam-server; meanwhile the failure says that
    asking again may help."""
    async with machine() as port:
        access = Access(f"127.0.0.1:{port}")
        async with connect(access) as client:
            assert await client.status() == {"state": "idle"}
    async with connect(access) as client:
        with pytest.raises(Failure) as gone:
            await client.status()
        assert gone.value.unreachable
        async with machine(port):
            assert await client.status() == {"state": "idle"}
        with pytest.raises(Failure) as gone:
            await client.status()
        assert gone.value.unreachable
        async with machine(port):
            assert await client.status() == {"state": "idle"}


async def test_refusals_keep_the_connection_and_lose_the_trimmings() -> None:
    """An exception of the service is told in its own words."""
    async with machine() as port, connect(Access(f"127.0.0.1:{port}")) as client:
        with pytest.raises(Failure, match=r"^not today \[refused\]$") as refused:
            await client.command("update")
        assert not refused.value.unreachable
        assert await client.status() == {"state": "idle"}


@pytest.mark.slow
async def test_another_generic_service_is_told_from_ours() -> None:
    """It exists, so the name is not wrong; but it has no status."""
    async with machine() as port, connect(Access(f"127.0.0.1:{port}", name="other")) as client:
        with pytest.raises(Failure, match="does not answer as the OTA service") as other:
            await client.status()
        assert "--name" in other.value.remedy
    async with machine() as port, connect(Access(f"127.0.0.1:{port}", name="none")) as client:
        with pytest.raises(Failure, match="its generic services are OTA, other"):
            await client.status()
