# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's process: the SDK's module, with our answers to three of its moments.

- A faulty configuration is refused in our words alone.
- A service counts as added only when its fleet has taken over, so that a refusal (another
  service has the board, another process the state folder) is seen in Viam.
- A signal to stop gives boards in the middle of a write the time to get back into their old
  firmware, even when it is repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import NoReturn

from grpclib import GRPCError, Status
from grpclib.metadata import Deadline
from viam.module.module import NO_MODULE_PARENT, Module
from viam.proto.common import ResourceName
from viam.proto.module import AddResourceRequest, ValidateConfigRequest, ValidateConfigResponse
from viam.resource.base import ResourceBase
from viam.resource.registry import Registry
from viam.resource.types import API, Model

from ota_service.errors import OtaError
from ota_service.module.models import OtaService
from ota_service.module.plain import plain

LOGGER = logging.getLogger("ota_service.module")

# The process ends within 10 s of its first signal, whatever blocks; viam-server kills after 13 s.
END_LIMIT_S = 9.5
# Boards need most of it.
SHUTDOWN_LIMIT_S = 9.0
# Python 3.12 waits for connections that the other side keeps open.
CLOSING_LIMIT_S = 2.0


class OtaModule(Module):
    """The module, as its process runs it."""

    # Awaited once a signal asks the process to stop, beside the end of the server.
    before_exit: Callable[[], Awaitable[None]] | None = None

    async def validate_config(self, request: ValidateConfigRequest) -> ValidateConfigResponse:
        """Check a configuration."""
        try:
            config = request.config
            validate = Registry.lookup_validator(
                API.from_string(config.api), Model.from_string(config.model)
            )
            required, optional = validate(config)
        except OtaError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, plain(str(error))) from None
        return ValidateConfigResponse(
            dependencies=list(required), optional_dependencies=list(optional)
        )

    async def _get_resource(self, name: ResourceName) -> ResourceBase:
        """A dependency: from viam-server, and where there is none (as in tests) one of our own."""
        if self.parent is None and NO_MODULE_PARENT:
            return self.server.get_resource(ResourceBase, name)  # type: ignore[type-abstract]
        return await super()._get_resource(name)

    async def add_resource(
        self, request: AddResourceRequest, *, deadline: Deadline | None = None
    ) -> None:
        """Add a service, and wait until its fleet has taken over."""
        try:
            await super().add_resource(request, deadline=deadline)
            api = API.from_string(request.config.api)
            name = OtaService.get_resource_name(request.config.name)
            if (api.resource_type, api.resource_subtype) != (name.type, name.subtype):
                return
            service = self.server.get_resource(OtaService, name)
            try:
                await service.opened()
            except BaseException:
                await self.server.remove_resource(name)
                raise
        except OtaError as error:
            raise GRPCError(Status.FAILED_PRECONDITION, plain(str(error))) from None

    async def start(self) -> None:
        """Serve until a signal arrives, then stop in order."""
        stop = asyncio.Event()

        def on_signal(received: signal.Signals) -> None:
            if not stop.is_set():
                LOGGER.info("%s: stopping", received.name)
                timer = threading.Timer(END_LIMIT_S, end)
                timer.daemon = True
                timer.start()
            stop.set()

        serving = asyncio.ensure_future(super().start())  # type: ignore[no-untyped-call]
        # The SDK's server takes the signals at its first step, and ends the process at the
        # second signal. viam-server sends two within 4 s, so ours come after it.
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            await self._stop(serving)
        if serving.done() and not serving.cancelled():
            serving.result()

    async def _stop(self, serving: asyncio.Future[None]) -> None:
        if self.before_exit is not None:
            try:
                await asyncio.wait_for(self.before_exit(), SHUTDOWN_LIMIT_S)
            except TimeoutError:
                LOGGER.warning("boards are still busy; stopping all the same")
            except Exception as error:
                LOGGER.error("while stopping: %s", error)
        self.server._server.close()
        await asyncio.wait({serving}, timeout=CLOSING_LIMIT_S)
        if not serving.done():
            serving.cancel()
            await asyncio.wait({serving}, timeout=CLOSING_LIMIT_S)


def end() -> NoReturn:
    """End the process now: Python would wait for each thread, and one may be in a call that does
    not return, of a name server or a disk that is gone."""
    logging.shutdown()
    os._exit(0)
