# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches a service until a run is over, whether it is in this process or on a machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from ota_service.cli.live import Live

POLL_S = 0.25

Result = TypeVar("Result")


class Service(Protocol):
    """What is asked of a service: `Machine`, or a fleet in this process."""

    async def status(self) -> dict[str, Any]:
        """Everything that it knows."""

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        """Carry out a verb."""


def running(status: Mapping[str, Any]) -> bool:
    """Whether a run is in progress."""
    return dict(status.get("run", {})).get("outcome") == "running"


async def follow_run(
    service: Service, live: Live, run_id: str, *, poll_s: float = POLL_S
) -> dict[str, Any]:
    """Show the boards until this run is over; the run, as the history has it."""
    while True:
        status = await service.status()
        live.show(status)
        run = dict(status.get("run", {}))
        if run.get("id") != run_id or run.get("outcome") != "running":
            break
        await asyncio.sleep(poll_s)
    while True:  # another run may have begun since, and boards of ours may still be at work
        found = await find_run(service, run_id)
        if found is not None and found.get("outcome") != "running":
            return found
        if found is None:
            return dict(status.get("run", {}))
        await asyncio.sleep(poll_s)
        live.show(await service.status())


async def find_run(service: Service, run_id: str) -> dict[str, Any] | None:
    """A run of the history by its id."""
    reply = await service.command("history", {"id": run_id})
    return next((dict(run) for run in reply["runs"]), None)


async def follow_call(
    service: Service, live: Live, call: Awaitable[Result], *, poll_s: float = POLL_S
) -> Result:
    """Show the boards until a command replies; its reply."""
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            live.show(await service.status())
            await asyncio.wait({task}, timeout=poll_s)
        return task.result()
    finally:
        task.cancel()


async def until(
    service: Service, live: Live, condition: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Any]:
    """Show the boards until a status fulfils `condition`; that status."""
    while True:
        status = await service.status()
        live.show(status)
        if condition(status):
            return status
        await asyncio.sleep(POLL_S)
