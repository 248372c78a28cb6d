# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine for boards that are attached here, without Viam: the service's own code.

Lives in one event loop; what blocks runs in threads. Each board has a task that alone acts on it,
so orders for boards that are busy join, wait or are refused as the service's do
(docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import urlsplit

from ota_service.api.load import Source, is_url, load_firmware, stock
from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.check import Firmware
from ota_service.firmware.target import Target
from ota_service.firmware.urls import is_path
from ota_service.fleet import engine as core
from ota_service.fleet.board_state import State
from ota_service.fleet.orders import UPDATES
from ota_service.fleet.run import Run, RunOutcome
from ota_service.fleet.service import FleetService
from ota_service.fleet.settings import Override, Settings
from ota_service.link.ports import canonical, shown
from ota_service.link.resets import ResetWay
from ota_service.module.checks import check_mac
from ota_service.module.config import parse_config
from ota_service.module.folders import default_cache_dir, default_state_dir
from ota_service.module.verbs import help_reply, parse_command

LOGGER = logging.getLogger("ota_service.fleet")
logging.getLogger("ota_service").addHandler(logging.NullHandler())  # programs say where logs go
SERVICE = "esp32-ota"
"""Under which its runs stand in the journal; a second engine at the same time gets a number."""

POLL_S = 0.1
_HISTORY = 100
"""Runs that are looked through for what was staged."""
_NAME_MAX_CHARS = 64
_NOWHERE = "http://127.0.0.1/none"
"""Stands for the firmware in a configuration while none was named."""

_open: set[str] = set()


class Options(TypedDict, total=False):
    """How an engine updates; meaning, bounds and defaults are those of the service's attributes.

    state_dir: what must last, by default the service's folder (`$VIAM_HOME/ota-service`, without
    that `~/.local/state/ota-service`). cache_dir: firmware that was loaded, by default
    `$VIAM_MODULE_DATA`, without that `~/.cache/ota-service`. reset: by what the boards are reset
    where DTR and RTS of their ports do not reach them (`ota_service.link.resets`). no_trust: pass
    this host's policy of trust by, which only root may, and which the history says (docs/trust.md).
    """

    baud: int
    boot_expect: str | None
    boot_restarts: int
    boot_stable_s: float
    boot_timeout_s: float
    ca_file: str | None
    cache_dir: Path
    canary: bool
    confirm_timeout_s: float
    max_attempts: int
    max_image_bytes: int
    max_parallel: int
    reset: ResetWay | None
    no_trust: bool
    state_dir: Path


class Asked(TypedDict, total=False):
    """What an order about a firmware takes beside it.

    sha256: the digest that a file or url must have. boards: names, MACs or ports; None: all.
    probe: also open candidates, where the engine finds its boards.
    """

    sha256: str | None
    boards: Iterable[str] | None
    probe: bool


class AskedOfUpdate(Asked, total=False):
    """And an update. force: although the version is equal. override: codes of errors that are not
    to matter: "stopped", "other-project". rescue: the MAC of the one board that is meant and on
    which nothing boots."""

    force: bool
    override: Iterable[Override]
    rescue: str | None


@dataclass(frozen=True, slots=True)
class BoardReport:
    """What came of an order for one board. What the order does not tell has no value.

    name: as in the engine. mac, port: of the board. outcome: the board's state at the end of an
    update ("up_to_date", "rolled_back", "failed", ..: docs/architecture.md). action: what an
    update does to it: "none", "write", "switch", "record" or "refuse"; reason: why. replaces:
    {"project", "by"}, where its firmware is another project's. staged: {"version", "slot",
    "digest", "since"} of what waits to be activated, with "replaces", the version of the firmware
    that was overwritten for it, where there was one. before, version: the tag stored
    before, and now. slot: where a rollback led. matches: whether it runs
    the firmware, of `verify`. seconds: by phase. boot_log: lines of watched starts, where one did
    not go well. error: what went wrong.
    """

    name: str
    mac: str | None = None
    port: str | None = None
    outcome: State | None = None
    action: Literal["none", "write", "switch", "record", "refuse"] | None = None
    reason: str = ""
    replaces: Mapping[str, str] | None = None
    staged: Mapping[str, str] | None = None
    before: str | None = None
    version: str | None = None
    slot: str | None = None
    matches: bool | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    boot_log: tuple[str, ...] = ()
    error: OtaError | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of an order.

    outcome: "succeeded" (for every board), "partly", "failed" or "cancelled". boards: by name.
    error: what concerns no single board, such as the firmware. record: the same as the service's
    history shows a run (docs/ota_service.md), without secrets.
    """

    outcome: RunOutcome
    boards: Mapping[str, BoardReport]
    error: OtaError | None
    record: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> BoardReport:
        return self.boards[name]

    def require(self) -> Report:
        """Raise the OtaError of an order that did not succeed for every board; else this."""
        if self.outcome == "succeeded":
            return self
        errors = [board.error for board in self.boards.values() if board.error is not None]
        if self.error is not None:
            errors.append(self.error)  # a board's own says it more precisely
        raise next(
            iter(errors), OtaError("cancelled" if self.outcome == "cancelled" else "no-board")
        )


class Order:
    """Something that an engine was asked to do. It goes on whoever looks on.

    `await order` gives its `Report`; `async for status in order` follows it with the engine's
    status, several times a second, until it has ended. Both can be done by any number of tasks,
    and raise or end early without any effect on it: see `cancel`.
    """

    def __init__(self, engine: Engine, begin: Awaitable[Run]) -> None:
        self._engine = engine
        self._run: Run | None = None
        self._unwanted = False
        self._task = asyncio.ensure_future(self._go(begin))
        engine._orders.add(self)
        self._task.add_done_callback(lambda _: engine._orders.discard(self))

    def __await__(self) -> Generator[Any, None, Report]:
        return asyncio.shield(self._task).__await__()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        over = False
        while not over:
            over = self._task.done()
            if self._run is not None:  # it has begun
                yield self._engine.status()
            await asyncio.wait({self._task}, timeout=POLL_S)

    @property
    def boards(self) -> dict[str, BoardReport]:
        """What has come of it so far, by the boards' names."""
        return _reports(self._run) if self._run is not None else {}

    def cancel(self) -> None:
        """Stop it where that leaves every board bootable, with whatever else its boards wait for.

        What is behind the switch finishes; what only reads does, too. Await it to see the end.
        """
        self._unwanted = True
        if self._run is not None and not self._run.done.is_set():
            self._engine._fleet.cancel(self._run.names)

    async def ended(self) -> None:
        """Wait until an order that was cancelled is over; raises nothing of its."""
        if self._run is None:  # it has not begun, and never does
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _go(self, begin: Awaitable[Run]) -> Report:
        self._run = run = await begin
        if self._unwanted:
            self.cancel()
        await run.done.wait()
        record = await self._engine._record(run)
        return Report(run.outcome, _reports(run), run.error, record)


class Engine:
    """Boards that are attached here, updated as the service does it, without Viam.

    boards: name -> port, or ports alone, which are then named by their last part. A port is a
    device (`/dev/ttyUSB0`), `rfc2217://host:port`, or a simulated board's url; whatever board is
    there now is meant: what was learned of the port before, and what held its board back, is
    forgotten when the engine opens.

    None: the boards that are attached, as they come and go, by the rules of a service without
    `boards`: those on Espressif's own USB, and those at ports that a person has had opened before.
    Each goes by its MAC, or by its port while that is not known. Other USB bridges are in the
    status as "candidate", and are opened by an order with `probe` alone: what is behind them may
    be no board. They have one firmware together; an order for all of them leaves out a board that
    holds no `VIAM_NS` or runs another project (`other-project`), one that names a board means it.

    options: `Options`.

    Opening raises OtaError: `config-invalid`, `duplicate-board` where two names stand for one
    port, and `state-busy` where another process has the folder. Leaving it ends what goes on, with
    every board in a firmware that boots.
    """

    def __init__(
        self,
        boards: Mapping[str, str] | Iterable[str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._state_dir = Path(options.pop("state_dir", default_state_dir()))
        self._cache_dir = Path(options.pop("cache_dir", default_cache_dir()))
        self._reset = options.pop("reset", None)
        self._trusting = options.pop("no_trust", False)
        if self._trusting:
            trust.require_root()
        self._finds = boards is None
        self._options: dict[str, Any] = {**options, "auto_update": False}
        if boards is not None:
            if not isinstance(boards, Mapping):
                boards = named([boards] if isinstance(boards, str) else list(boards))
            _require_distinct(boards.values())
            self._options["boards"] = [{"name": n, "port": _whole(p)} for n, p in boards.items()]
        self._orders: set[Order] = set()
        self._name = SERVICE
        self._settings = self._configuration(Target(_NOWHERE, "none"))
        self._core: core.Engine | None = None
        self._ending = False

    async def __aenter__(self) -> Self:
        self._name = next(name for name in _names() if name not in _open)
        _open.add(self._name)
        self._settings = replace(self._settings, service=self._name)
        engine = core.Engine(self._settings, LOGGER)
        try:
            self._core = engine
            await engine.open()
            await engine.configure(self._settings, first=True)
            await engine.forget_ports()
            await engine.look_around()
            here = engine.boards.items()
            await self.release(boards=[n for n, b in here if b.shown.state != "unrecognised"])
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._core is not None:
            self._ending = True
            await self._core.end()
            for order in list(self._orders):
                await order.ended()
            self._core, self._ending = None, False
        _open.discard(self._name)

    @property
    def _fleet(self) -> core.Engine:
        if self._core is None:
            raise RuntimeError("the engine is not open: use `async with`")
        return self._core

    def status(self) -> dict[str, Any]:
        """Everything known, at once, from memory: as the service's verb `status`, without a
        `target` while no firmware was named."""
        status = FleetService(self._fleet).status()
        if self._settings.target.url == _NOWHERE:
            del status["target"]
            for board in status["boards"].values():
                if board["state"] == "outdated" and "target" not in board:
                    board["state"] = "unknown"
        return status

    @property
    def uses_firmware(self) -> bool:
        """Whether an order goes on that another firmware would end, or be told of."""
        going = (run for run in self._fleet.runs if not run.done.is_set())
        return any(run.purpose in (*UPDATES, "plan", "verify") for run in going)

    @property
    def service(self) -> Service:
        """The same as a service with its verbs, for what shows and commands one."""
        return Service(self)

    async def aim(
        self, firmware: Source | None, version: str | None = None, *, sha256: str | None = None
    ) -> None:
        """Make it the firmware of all boards, and do nothing to them: what the verbs of `service`
        mean from now on. Arguments as for `update`; None: no firmware. Raises OtaError."""
        target = Target(_NOWHERE, "none")
        if firmware is not None:
            target = await self._target(firmware, version, sha256)
        await self._aim(target, None)

    # --- orders

    def update(
        self, firmware: Source, version: str | None = None, **asked: Unpack[AskedOfUpdate]
    ) -> Order:
        """Bring boards to a firmware, watch them start, and take back what does not come up.

        firmware: where it is a manifest, each board gets the image that is for it. version: the
        tag to store, by default the one in the image's app descriptor, or of a manifest's file; a
        manifest at a url needs it. asked: `AskedOfUpdate`. Other boards that were named when the
        engine was opened keep the firmware that they were last given here, but for a manifest. The
        order raises OtaError for what is wrong with the arguments, and ValueError for a board that
        there is not.
        """
        return self._asked("update", firmware, version, asked)

    def plan(
        self, firmware: Source, version: str | None = None, **asked: Unpack[AskedOfUpdate]
    ) -> Order:
        """What `update` would do, and why; restarts the boards and writes nothing."""
        return self._asked("update", firmware, version, asked, dry_run=True)

    def stage(self, firmware: Source, version: str | None = None, **asked: Unpack[Asked]) -> Order:
        """Write a firmware into spare slots and verify it, for `activate`.

        Arguments as for `update`. The boards are down meanwhile, and keep their firmware; what
        stood in the slots is overwritten. That the switch and the way back will fit is proven
        before.
        """
        return self._asked("stage", firmware, version, asked)

    def activate(
        self, firmware: Source | None = None, version: str | None = None, **asked: Unpack[Asked]
    ) -> Order:
        """Switch boards to what is staged on them, in about a second each; then as `update`.

        firmware, version, sha256: of what was staged, as they were given then; without them what
        boards were last given here, or else what was last staged with this `state_dir`. A board on
        which that is not staged has the error `not-staged` or `stage-stale`.
        """
        return self._asked("activate", firmware, version, asked)

    def verify(self, firmware: Source, version: str | None = None, **asked: Unpack[Asked]) -> Order:
        """Whether boards run this firmware, by its digest. Restarts them. Arguments as for
        `update`; the version matters for a manifest at a url alone."""
        return self._asked("verify", firmware, version, asked)

    def version(self, *, boards: Iterable[str] | None = None, probe: bool = False) -> Order:
        """The tags that boards have stored. Restarts them."""
        return Order(self, self._begin("version", _listed(boards), probe=probe))

    def roll_back(self, *, boards: Iterable[str] | None = None, probe: bool = False) -> Order:
        """Back to the firmware in the other slot, with its version. A board is then held until
        another firmware is named for it, or `release`."""
        return Order(self, self._begin("rollback", _listed(boards), probe=probe))

    async def watch_start(
        self, *, boards: Iterable[str] | None = None, probe: bool = False
    ) -> dict[str, Any]:
        """Restart boards and watch their start; nothing is written. Replies at once, as the verb
        `version`; the history then has the log, and `follow` has it meanwhile."""
        arguments = {"boards": _listed(boards), "probe": probe, "wait_s": 0}
        return await self._command("log", arguments)

    def follow(self, board: str) -> AsyncGenerator[dict[str, str], None]:
        """What a board prints in the starts that are watched, as it comes, without its secrets:
        {"line"} each, then {"verdict"}. Raises ValueError for a board that there is not."""
        return FleetService(self._fleet).follow(board)

    async def release(
        self, *, boards: Iterable[str] | None = None, stopped: bool = False
    ) -> list[str]:
        """Let boards that were set aside or rolled back be taken up again; the names of those.

        stopped: instead, let a firmware be tried again that was stopped for all.
        """
        names = _listed(boards)
        arguments = {"boards": names, "all": names is None, "stopped": stopped}
        reply = await FleetService(self._fleet).command("release", arguments)
        return list(reply["released"])

    # --- inside

    async def _record(self, run: Run) -> dict[str, Any]:
        """A run as the history has it."""
        if self._ending:  # and the journal with it
            return {**run.to_dict(), "boards": run.boards_now()}
        service = FleetService(self._fleet)
        reply = await service.command("history", {"id": run.id})
        return dict(next(iter(reply["runs"]), run.to_dict()))

    def _asked(
        self,
        verb: str,
        firmware: Source | None,
        version: str | None,
        asked: Mapping[str, Any],
        **arguments: Any,
    ) -> Order:
        known = (AskedOfUpdate if verb == "update" else Asked).__annotations__
        if unknown := asked.keys() - known.keys():  # which a type checker finds, too
            words = ", ".join(sorted(unknown))
            raise TypeError(f"{verb} has no argument {words}; it takes {', '.join(known)}")
        arguments |= asked
        sha256, rescue = arguments.pop("sha256", None), arguments.pop("rescue", None)
        names = _listed(arguments.pop("boards", None))
        if rescue is not None:
            arguments |= {"rescue": True, "confirm": check_mac(rescue)}
            names = names or list(self._fleet.boards)

        async def begin() -> Run:
            if firmware is not None:
                await self._aim(await self._target(firmware, version, sha256), names)
            elif not self._is_aimed:
                await self._aim_at_staged()
            return await self._begin(verb, names, **arguments)

        return Order(self, begin())

    async def _begin(self, verb: str, names: list[str] | None, **arguments: Any) -> Run:
        if verb not in UPDATES or arguments.get("dry_run"):
            arguments["wait_s"] = 0
        reply = await self._command(verb, {"boards": names, **arguments})
        return next(run for run in self._fleet.runs if run.id == reply["run"]["id"])

    async def _command(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A verb of the fleet's. Whoever names a board means it, whatever it runs."""
        given = dict(arguments)
        if self._finds and verb in UPDATES and given.get("boards") is not None:
            given["override"] = [*given.get("override", ()), "other-project"]
        return await FleetService(self._fleet).command(verb, given)

    @property
    def _is_aimed(self) -> bool:
        """Whether a firmware was named, for all or for some."""
        settings = self._settings
        pinned = any(entry.is_pinned for entry in settings.boards or ())
        return pinned or settings.target.url != _NOWHERE

    async def _aim_at_staged(self) -> None:
        """What a process before has staged last; its url is known but for secrets in it."""
        for run in (await self._command("history", {"limit": _HISTORY}))["runs"]:
            about = run["target"]
            if about.get("purpose") == "stage" and about["url"] != _NOWHERE:
                target = Target(about["url"], about["version"], about.get("sha256"))
                return await self._aim(target, None)

    async def _target(self, firmware: Source, version: str | None, sha256: str | None) -> Target:
        if not is_url(firmware):
            assert isinstance(firmware, Firmware | Path | str)
            return await asyncio.to_thread(stock, firmware, version, sha256, self._cache_dir)
        if version is None:
            ca_file = self._settings.ca_file
            loaded = await load_firmware(
                str(firmware),
                sha256=sha256,
                ca_file=Path(ca_file) if ca_file is not None else None,
                cache_dir=self._cache_dir,
            )
            version = loaded.image.descriptor.version
        target = Target(str(firmware), version, sha256)
        self._configuration(target, target.url)
        return target

    async def _aim(self, target: Target, names: list[str] | None) -> None:
        """Make it the firmware of these boards, and of nobody else; but a manifest is for all, and
        so is any where the boards are found."""
        settings = self._configuration(target)
        if names is not None and not self._finds and not _may_be_manifest(target.url):
            boards = self._fleet.boards
            meant = {n for n, b in boards.items() if any(w == n or b.answers_to(w) for w in names)}
            url, version, sha256 = target.url, target.version, target.sha256
            entries = tuple(
                replace(entry, url=url, version=version, sha256=sha256)
                if entry.name in meant
                else entry
                for entry in self._settings.boards or ()
            )
            settings = replace(self._settings, boards=entries)
        self._settings = settings
        await self._fleet.configure(settings, first=False)

    def _configuration(self, target: Target, url: str = _NOWHERE) -> Settings:
        """Checked as the service's is, with this url. Raises OtaError `config-invalid`."""
        given = {"url": url, "version": target.version, "sha256": target.sha256, **self._options}
        settings = parse_config(given).settings(
            self._name, state_dir=self._state_dir, cache_dir=self._cache_dir
        )
        if settings.boards is not None:
            boards = tuple(replace(entry, reset=self._reset) for entry in settings.boards)
            settings = replace(settings, boards=boards)
        return replace(
            settings, target=target, shares_state=True, probes=True, trusting=self._trusting
        )


class Service:
    """An engine's boards as a service has them: `status`, and `command` with the service's verbs
    and their replies (docs/ota_service.md); `probe` is an argument of each that opens ports. Its
    firmware is what the engine was last aimed at. Raises OtaError, and ValueError for what cannot
    be meant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def status(self) -> dict[str, Any]:
        """As `Engine.status`."""
        return self._engine.status()

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        """One verb; `wait_s` stands in its arguments, where it has any."""
        engine, given = self._engine, dict(arguments or {})
        opens = verb in ("stage", "activate", "version", "verify", "rollback")
        probe = given.pop("probe", False) if opens else False
        if not isinstance(probe, bool):  # "false" would open a lidar's port
            raise ValueError(f"{verb}: probe: must be true or false, without quotation marks.")
        verb, arguments = parse_command({"command": verb, **given})
        if verb == "help":
            return help_reply()
        if verb in ("update", "stage", "verify") and not engine._is_aimed:
            raise OtaError(
                "config-invalid", "No firmware is named yet.", remedy="Choose a firmware first."
            )
        more = {"probe": True} if probe else {}
        return await engine._command(verb, {**arguments, **more})


def _reports(run: Run) -> dict[str, BoardReport]:
    boards = {}
    for order, board in run.orders.values():
        name = board.shown.name
        answer = order.answer.result() if order.answer.done() else None  # nobody was asked yet
        told: dict[str, Any] = {**order.report, **run.results.get(name, {})}
        replaces = told.get("replaces")
        if run.purpose == "plan" and told.get("action") in ("write", "switch"):
            # As a session tells it that goes on to write; this one has just read what runs.
            before = board.shown.running.get("project")
            after = run.engine.firmwares.about.get(order.target.key, {}).get("project")
            if before and after and before != after:
                replaces = {"project": before, "by": after}
        boards[name] = BoardReport(
            name,
            mac=board.shown.mac,
            port=board.shown.port,
            outcome=order.report.get("outcome"),
            action=told.get("action"),
            reason=told.get("reason", ""),
            replaces=replaces if isinstance(replaces, Mapping) else None,
            staged=_staged(told),
            before=told.get("from"),
            version=told.get("version", told.get("to")),
            slot=told.get("slot"),
            matches=told.get("matches"),
            seconds=dict(told.get("phases", {})),
            boot_log=tuple(told.get("boot_log", ())),
            error=answer.error if answer is not None else None,
        )
    return boards


def _staged(told: Mapping[str, Any]) -> dict[str, str] | None:
    if "staged" not in told:
        return None
    kept = {"replaces": told["replaces"]} if "replaces" in told else {}
    return {**told["staged"], **kept}


def named(ports: Sequence[str]) -> dict[str, str]:
    """Each port by its last part, or whole where two would be called alike. Raises OtaError
    `duplicate-board` where one stands there twice."""
    _require_distinct(ports)
    short = [(port.rstrip("/").rpartition("/")[2] or port)[:_NAME_MAX_CHARS] for port in ports]
    return {
        name if short.count(name) == 1 else port: port
        for name, port in zip(short, ports, strict=True)
    }


def _require_distinct(ports: Iterable[str]) -> None:
    """Raise OtaError `duplicate-board` where two names stand for one port, naming both."""
    seen: dict[str, str] = {}
    for port in ports:
        key = canonical(_whole(port))
        if key in seen:
            one, other = shown(seen[key]), shown(port)
            text = f"{one} and {other} are one and the same port."
            text = f"{one} is named twice." if one == other else text
            raise OtaError("duplicate-board", text, remedy="Name each board once.")
        seen[key] = port


def _may_be_manifest(url: str) -> bool:
    return is_path(url) or urlsplit(url).path.endswith(".json")


def _whole(port: str) -> str:
    """A port as it may be configured: urls as they are, devices by their whole path."""
    return port if "://" in port else os.path.abspath(port)


def _listed(boards: Iterable[str] | None) -> list[str] | None:
    return [boards] if isinstance(boards, str) else list(boards) if boards is not None else None


def _names() -> Iterable[str]:
    return itertools.chain([SERVICE], (f"{SERVICE} {n}" for n in itertools.count(2)))
