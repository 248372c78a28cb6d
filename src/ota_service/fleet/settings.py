# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service was configured to do, as plain values: the module's configuration, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from ota_service.firmware.target import Headers, Target
    from ota_service.link.resets import ResetWay


Override = Literal["not-allowed-now", "stopped", "other-project"]
OVERRIDES: tuple[Override, ...] = get_args(Override)
"""What a person's update may override, by the code of the error that it would end with."""


class NoSuchResource(Exception):
    """The machine has no such resource now, so it has heard of nothing."""


@dataclass(frozen=True, slots=True)
class RobotCall:
    """A DoCommand to a resource of the machine; its reply is a yes where it has what `expect` has,
    None: whatever it is. timeout_s: of the call; of a health check: of all of its calls.
    on_no_answer: what becomes of a board whose health check nobody answers.
    """

    resource: str
    command: Mapping[str, Any] = field(hash=False)
    expect: Mapping[str, Any] | None = field(default=None, hash=False)
    timeout_s: float = 30.0
    on_no_answer: Literal["stay", "back"] = "stay"


@dataclass(frozen=True, slots=True)
class BoardEntry:
    """One entry of `boards`: a name, and either a MAC ("aa:bb:cc:dd:ee:ff") or a port.

    url, version and sha256 pin the board to a target of its own; None: the service's. headers:
    those of its own server. reset: by what it is reset, if not by its port's lines. The others: as
    in `Settings.of`.
    """

    name: str
    mac: str | None = None
    port: str | None = None
    url: str | None = field(default=None, repr=False)  # it may hold a password
    version: str | None = None
    sha256: str | None = None
    headers: Headers | None = field(default=None, repr=False)
    baud: int | None = None
    boot_timeout_s: float | None = None
    boot_stable_s: float | None = None
    boot_expect: str | None = None
    version_store: str | None = None
    before_restart: RobotCall | None = None
    after_restart: RobotCall | None = None
    health_check: RobotCall | None = None
    reset: ResetWay | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the board has a target of its own."""
        return any(value is not None for value in (self.url, self.version, self.sha256))


@dataclass(frozen=True, slots=True)
class Settings:
    """One service's configuration. Names and defaults are the contract's attributes.

    boards: None where the attribute is not set (then boards are found by themselves).
    version_store: "nvs", or "host" for boards whose NVS cannot be read.
    state_dir: journal and history; shares_state: with other processes that share it as well (a
    command at a terminal). probes: a person's word alone opens no generic bridge, `probe` does.
    cache_dir: downloads. trusting: root at a terminal passes the host's policy of trust by.
    """

    service: str
    target: Target
    boards: tuple[BoardEntry, ...] | None = None
    auto_update: bool = True
    check_on_start: bool = True
    adopt: bool = False
    baud: int = 921_600
    max_parallel: int = 8
    canary: bool = True
    boot_timeout_s: float = 20.0
    boot_stable_s: float = 5.0
    boot_expect: str | None = None
    boot_restarts: int = 0
    confirm_timeout_s: float = 120.0
    max_attempts: int = 3
    version_store: str = "nvs"
    before_restart: RobotCall | None = None
    after_restart: RobotCall | None = None
    health_check: RobotCall | None = None
    ca_file: str | None = None
    max_image_bytes: int = 16_777_216
    state_dir: Path = field(default_factory=Path)
    shares_state: bool = False
    probes: bool = False
    cache_dir: Path = field(default_factory=Path)
    trusting: bool = False

    def of(self, entry: BoardEntry | None) -> Settings:
        """The same for one board: its entry's, where that says something else."""
        given = {name: getattr(entry, name, None) for name in _OF_A_BOARD}
        own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, **own)


_OF_A_BOARD = (
    *("baud", "boot_timeout_s", "boot_stable_s", "boot_expect", "version_store"),
    *("before_restart", "after_restart", "health_check"),
)
