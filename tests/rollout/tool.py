# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs `esp32-ota rollout ..` against the fake app, in this process and on a clock that jumps.

The command itself runs, in a thread; what it gives to `asyncio.run` runs on the test's loop, beside
the fake app and its machines. Where everybody waits, time passes at once, so soaks, polls and
pauses between attempts cost nothing. A kill leaves what a SIGKILL leaves: the files and the app as
they are at that moment, and nothing that the tool did later.

    @simulated
    async def test_something(tmp_path: Path) -> None:
        async with Fleet.start(tmp_path, 4) as fleet:
            done = await fleet.run("start")
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import io
import json
import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec
from unittest import mock

from grpclib import GRPCError, Status

from ota_service.cli.main import main
from ota_service.rollout import drive
from tests.rollout.fakeapp import Call, FakeApp, Fragment, Key, Location, Moment
from tests.rollout.machines import BACK, GOOD, NAME, FakeMachine, Judge
from tests.support.command import Done
from tests.support.simulated_time import SimulatedLoop

OLD, NEW, BAD = "1.0.0", "1.1.0", "6.6.6"
P = ParamSpec("P")
LONGEST_S = 14 * 86400.0
# What a busy kernel may take to pass on what was sent to ourselves.
PATIENCE_S = 0.0002


class Loop(SimulatedLoop):
    """As the simulated one, for sockets on the loopback interface, and for threads that are asked
    something: both answer before any time passes."""

    def __init__(self) -> None:
        super().__init__(patience_s=PATIENCE_S)

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """Without a thread: for what it takes, the clock would jump."""
        return socket.getaddrinfo(host, port, **options)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """At once, for the same reason."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def time(self) -> float:
        """Seconds; nothing here lasts for weeks."""
        now_s = super().time()
        if now_s > LONGEST_S:
            raise RuntimeError("whoever waits here, waits for ever")
        return now_s


def simulated(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """A test on that clock."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(test(*args, **kwargs))  # type: ignore[arg-type]

    return run


def url(version: str) -> str:
    """Where a version's firmware is; nobody but machines fetches it."""
    return f"http://firmware.invalid:3001/{version}.bin"


def variables_text(fragment: Fragment, name: str) -> str:
    """A part that sets the fragment's variables, as people write: an order of keys of their own,
    numbers that a Struct or a float would change, letters beyond ASCII, and spaces as they come."""
    return (
        '{\n  "network": {"bind": ":8080", "a": 1e3},\n'
        f'  "fragments": [ {{"version": "stable", "id": "{fragment.id}", "variables":'
        f' {{"site": 7, "url": "{url(OLD)}",  "version": "{OLD}"}} }} ],\n'
        f'  "fragment_mods": [{{"fragment_id": "{fragment.id}", "mods": [{{"$set":'
        ' {"services.OTA.attributes.boards": [{"name": "a", "port": "/dev/ttyUSB0"}]}}]}],\n'
        f'  "big": 9007199254740993, "ratio": 1.50, "who": "{name} \\u00fc ü \\/"\n}}\n'
    )


def attributes_text(fragment: Fragment, name: str) -> str:
    """A part that has the service itself, likewise."""
    return (
        '{"components": [], "services": [\n'
        '    {"name": "other", "attributes": {"version": "1.0.0-other", "n": 3}},\n'
        f'    {{"name": "{NAME}", "api": "rdk:service:generic", "model": "rdk:generic:ota_service",'
        f'\n     "attributes": {{"baud": 921600, "version": "{OLD}", "url": "{url(OLD)}",'
        ' "boards": [{"name": "a", "port": "/dev/ttyUSB0"}], "boot_stable_s": 1.0}}\n'
        f'  ],\n  "big": 9007199254740993, "who": "{name} \\u00fc ü"}}'
    )


TEXTS = {"variables": variables_text, "attributes": attributes_text}


def with_target(text: str, version: str = NEW, before: str = OLD) -> str:
    """What a rollout may make of such a text: the two values, and no other byte."""
    for old, new in ((f'"{before}"', f'"{version}"'), (f'"{url(before)}"', f'"{url(version)}"')):
        assert text.count(old) == 1, text
        text = text.replace(old, new)
    return text


class Killed(Exception):
    """The tool was killed, where a test had it killed."""


@dataclass
class Kill:
    """A moment at which the tool is killed: the nth of those of its kind, or of all.

    kinds: "METHOD arrives|done|answered" of the app, "save begins|ended" of a file of its own.
    """

    nth: int = 0
    only: Callable[[str], bool] = lambda kind: True
    seen: list[str] = field(default_factory=list)
    happened: bool = False

    def counts(self, kind: str) -> bool:
        """Whether this is the moment."""
        if self.happened or not self.only(kind):
            return False
        self.seen.append(kind)
        self.happened = len(self.seen) == self.nth
        return self.happened


@dataclass
class Fleet:
    """An organisation with machines, each with its fake, and a plan. Made by `Fleet.start`."""

    folder: Path
    app: FakeApp
    site: Location
    fragment: Fragment
    machines: dict[str, FakeMachine]
    texts: dict[str, str]
    plan: dict[str, Any]
    key: Key
    # Where a test has it killed; set before `run`.
    kill: Kill | None = None
    # What the command has instead of a key and the app's address.
    environment: dict[str, str] | None = None
    _running: list[asyncio.Future[Any]] = field(default_factory=list)
    _wrote: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        folder: Path,
        count: int = 4,
        *,
        mode: str = "attributes",
        judge: Judge = lambda name, version: BACK if version == BAD else GOOD,
        takes_s: float = 2.0,
        **plan: Any,
    ) -> AsyncIterator[Fleet]:
        """Machines m00, m01, .. with one board each, running OLD, and a plan to NEW in waves of
        1, 2 and the rest. plan: keys of the plan instead."""
        async with AsyncExitStack() as stack:
            app = await stack.enter_async_context(FakeApp.start())
            site = app.location("site")
            whole: dict[str, Any] = {
                "select": {"organization": app.organization_id, "locations": [site.id]},
                "service": NAME,
                "target": {"url": url(NEW), "version": NEW},
                "waves": [1, 2, "100%"],
                "soak": "10s",
                "max_failed": 0,
                "mode": mode,
                "timeout": "1h",
                **plan,
            }
            service = {
                "name": NAME,
                "api": "rdk:service:generic",
                "model": "rdk:generic:ota_service",
                "attributes": {
                    "url": {"$variable": {"name": "url"}},
                    "version": {"$variable": {"name": "version"}},
                    "boards": [],
                },
            }
            fragment = app.fragment("esp32", {"services": [service]})
            fragment.tags["stable"] = fragment.at().id
            if mode == "variables":
                whole["select"] |= {"fragment": fragment.id}
            fleet = cls(folder, app, site, fragment, {}, {}, whole, app.key())
            for index in range(count):
                name = f"m{index:02}"
                await stack.enter_async_context(fleet.add(name, judge=judge, takes_s=takes_s))
            stack.enter_context(fleet._patched())
            yield fleet

    @asynccontextmanager
    async def add(
        self, name: str, text: str | None = None, **options: Any
    ) -> AsyncIterator[FakeMachine]:
        """Another machine, with this configuration (one of the plan's mode), for the length of a
        block."""
        if text is None:
            text = TEXTS[self.plan["mode"]](self.fragment, name)
        machine = self.app.machine(self.site, name, text)
        fake = FakeMachine(self.app, machine, **options)
        async with fake.serving():
            self.machines[name], self.texts[name] = fake, text
            yield fake

    # --- the command

    @property
    def file(self) -> Path:
        """The plan's file."""
        return self.folder / "plan.json"

    @property
    def state(self) -> Path:
        """The state file beside it."""
        return self.folder / "plan.json.state.json"

    async def run(
        self, verb: str, *options: str, key: Key | None = None, file: Path | None = None
    ) -> Done:
        """One command to its end. Raises Killed where it was killed. Several may run at once.

        file: a plan that is there already, instead of `plan`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if file is None:
            self.file.write_text(json.dumps(self.plan))
        given = self.environment
        os.environ.update(self.app.environment(key or self.key) if given is None else given)
        loop = asyncio.get_running_loop()
        out, err = io.StringIO(), io.StringIO()
        ended: asyncio.Future[int] = loop.create_future()

        def in_thread() -> None:
            code = 0
            try:
                main(["rollout", verb, str(file or self.file), *options])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException as error:  # whatever it is, the test is told
                words = "".join(traceback.format_exception(error))
                loop.call_soon_threadsafe(ended.set_exception, Failed(words))
                return
            loop.call_soon_threadsafe(ended.set_result, code)

        context = contextvars.copy_context()
        context.run(_printed.set, (out, err))
        # A daemon, since it waits for the loop, which a test that fails leaves behind.
        thread = threading.Thread(target=context.run, args=(in_thread,), daemon=True)
        thread.start()
        try:
            code = await ended
        except Failed:
            if self.kill is None or not self.kill.happened:
                raise
            code = -9
        thread.join()
        if self.kill is not None and self.kill.happened:
            self.kill = None
            shutil.rmtree(self.folder)
            self._frozen.rename(self.folder)
            raise Killed
        return Done(code, out.getvalue(), err.getvalue())

    # --- what came of it

    async def wrote(self, count: int) -> None:
        """Wait until so many machines were written."""
        while len(self.writes) < count:
            self._wrote.clear()
            await self._wrote.wait()

    def text(self, name: str) -> str:
        """A machine's configuration in the app, as it is written."""
        return self.machines[name].machine.part.text

    def got(self, *names: str) -> list[list[str]]:
        """The versions that reached these machines (all), in order."""
        return [self.machines[name].got for name in names or self.machines]

    @property
    def writes(self) -> list[str]:
        """The names of the machines that were written, in order."""
        names = {fake.machine.part.id: name for name, fake in self.machines.items()}
        return [names[part_id] for part_id in self.app.written]

    # --- inside

    @property
    def _frozen(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.frozen"

    def _freeze(self) -> None:
        """Keep the files as they are, and have everything end that runs."""
        shutil.rmtree(self._frozen, ignore_errors=True)
        shutil.copytree(self.folder, self._frozen)
        for each in self._running:
            each.get_loop().call_soon_threadsafe(each.cancel)

    def _on_call(self, call: Call, moment: Moment) -> None:
        if moment == "answered" and call.method == "UpdateRobotPart":
            self._wrote.set()
        if self.kill is None:
            return
        if self.kill.happened:  # the tool is dead; what it still says reaches nobody
            raise GRPCError(Status.UNAVAILABLE)
        if self.kill.counts(f"{call.method} {moment}"):
            self._freeze()
            if moment == "arrives":
                raise GRPCError(Status.UNAVAILABLE)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        loop, real_replace = asyncio.get_running_loop(), os.replace

        async def kept(coroutine: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._running.append(task)
            try:
                return await coroutine
            finally:
                self._running.remove(task)

        def on_loop(coroutine: Any, **_: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(kept(coroutine), loop).result()

        def replace(source: Any, target: Any, **options: Any) -> None:
            ours = self.folder in Path(target).parents
            if ours and self.kill is not None and self.kill.counts("save begins"):
                self._freeze()
            real_replace(source, target, **options)
            if ours and self.kill is not None and self.kill.counts("save ended"):
                self._freeze()

        self.app.listen(self._on_call)
        with (
            mock.patch.dict(os.environ),
            mock.patch("asyncio.run", on_loop),
            mock.patch("os.replace", replace),
            mock.patch("sys.stdout", _Printed(0)),
            mock.patch("sys.stderr", _Printed(1)),
            _wall_time(loop),
        ):
            yield


class Failed(Exception):
    """The command ended with an exception that is no exit."""


# Where the command of this thread, and what it runs on the loop, prints.
_printed: contextvars.ContextVar[tuple[io.StringIO, io.StringIO]] = contextvars.ContextVar(
    "printed"
)


class _Printed(io.TextIOBase):
    """stdout or stderr of whichever command prints."""

    encoding = "utf-8"

    def __init__(self, which: int) -> None:
        self._which = which

    def write(self, text: str) -> int:
        return _printed.get((io.StringIO(), io.StringIO()))[self._which].write(text)

    def writable(self) -> bool:
        return True


@contextmanager
def _wall_time(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """The date and the seconds that the command reads go with the loop's clock."""
    ahead_s = time.time() - loop.time()

    def now() -> float:
        nonlocal ahead_s
        ahead_s += 1e-6  # no two readings are the same, as with a real clock
        return loop.time() + ahead_s

    with (
        mock.patch("time.time", now),
        mock.patch("time.monotonic", loop.time),
        mock.patch.object(drive, "clock_s", now),
    ):
        yield


__all__: Sequence[str] = (
    "BAD",
    "NEW",
    "OLD",
    "Failed",
    "Fleet",
    "Kill",
    "Killed",
    "simulated",
    "url",
    "with_target",
)
