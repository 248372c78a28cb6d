# SPDX-License-Identifier: GPL-3.0-or-later
"""Every attribute of the service: its type, its default, its bounds, and what it is for.

The descriptions are the tables of docs/ota_service.md (docs/generate.py); `{range}` in one stands
for the bounds of its field. Names and defaults are part of the product's outside.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ota_service.firmware.target import Headers, Target
from ota_service.fleet.settings import BoardEntry, RobotCall, Settings
from ota_service.link.resets import ResetPins
from ota_service.module.checks import (
    Strict,
    check_expected,
    check_firmware_url,
    check_headers,
    check_mac,
    check_name,
    check_number,
    check_path,
    check_pattern,
    check_port,
    check_reset,
    check_sha256,
    check_text,
    check_values,
    check_version,
    check_whole,
    name_type,
    number_type,
    one_of,
    optional_type,
    whole_type,
)

Digest = Annotated[str | None, optional_type(check_sha256)]
RequestHeaders = Annotated[
    Headers | None,
    optional_type(check_headers),
    Field(repr=False, json_schema_extra={"type": "object"}),
]
FilePath = Annotated[str | None, optional_type(check_path)]
Pattern = Annotated[str | None, optional_type(check_pattern)]

# From the slowest speed that bridges are used at to the fastest that esptool offers.
_baud = partial(check_whole, low=9_600, high=4_000_000, unit="")
_boot_timeout = partial(check_number, low=1, high=600, unit=" s")
_boot_stable = partial(check_number, low=0, high=600, unit=" s")
_store, _no_answer = one_of("nvs", "host"), one_of("stay", "back")


class RobotCallConfig(Strict):
    """A DoCommand to a resource of this machine."""

    resource: Annotated[str, name_type('the name of a resource of this machine, such as "arm"')] = (
        Field(description="The resource: a component or a service, by its name.")
    )
    command: Annotated[dict[str, Any], BeforeValidator(check_values)] = Field(
        json_schema_extra={"type": "object"}, description="The DoCommand that it is sent."
    )
    expect: Annotated[dict[str, Any] | None, optional_type(check_expected)] = Field(
        None,
        json_schema_extra={"type": "object"},
        description="What a yes has: each of these keys is in the reply, with an equal value "
        "(objects likewise, numbers by their value; `true` is not 1). Without it every reply is a "
        "yes.",
    )
    timeout_s: Annotated[float, number_type(1, 600, " s")] = Field(
        30.0, description="How long a reply may take, {range}."
    )


class HealthCheckConfig(RobotCallConfig):
    """`health_check`: the same, asked again and again."""

    timeout_s: Annotated[float, number_type(1, 86_400, " s")] = Field(
        120.0,
        description="`health_check`: how long to ask for an answer, {range}; one reply may take "
        "all of it. `before_restart` and `after_restart`: how long one may take; default 30, at "
        "most 600.",
    )
    on_no_answer: Annotated[str, BeforeValidator(_no_answer)] = Field(
        "stay",
        description="`health_check` only: what becomes of a board whose check nobody answered. "
        '`"back"` takes the firmware back.',
    )


CALLS = ("before_restart", "after_restart", "health_check")
"""The attributes that are DoCommands, of the service and of a board."""
_as_call = AfterValidator(lambda config: RobotCall(**dict(config)))
"""The fleet's own value, of one that was checked."""
Call = Annotated[RobotCallConfig, _as_call]
HealthCheck = Annotated[HealthCheckConfig, _as_call]


def _its_own(name: str) -> Any:
    """The field of a board that stands for the service's of the same name."""
    return Field(None, description=f"Its own. Default: the service's `{name}`.")


class BoardConfig(Strict):
    """One entry of `boards`: a name, a mac or a port, and what pins the board."""

    name: Annotated[str, BeforeValidator(check_name)] = Field(
        description="What the board is called in the status and in commands, at most 64 bytes."
    )
    mac: Annotated[str | None, optional_type(check_mac)] = Field(
        None,
        description="The board's MAC, such as `24:0a:c4:12:34:56`; capitals and dashes are fine.",
        json_schema_extra={"inclusion": "Either"},
    )
    port: Annotated[str | None, optional_type(check_port)] = Field(
        None,
        description="Instead of `mac`: a device's whole path, best one below "
        "`/dev/serial/by-path/`; `rfc2217://host:port`; `socket://host:port`, which has no lines "
        "to reset a board by; or a simulated board's url.",
        json_schema_extra={"inclusion": "Either"},
    )
    url: Annotated[str | None, optional_type(check_firmware_url)] = Field(
        None,
        description="Pins the board to an App Image of its own: an address or a path. Default: "
        "the service's `url`.",
    )
    version: Annotated[str | None, optional_type(check_version)] = Field(
        None, description="Pins the board to this version. Default: the service's `version`."
    )
    sha256: Digest = Field(
        None,
        description="The digest of the board's own App Image. Default: the service's `sha256` "
        "where the `url` is the service's, too; else none.",
    )
    headers: RequestHeaders = Field(
        None,
        description="Request headers of the board's own. Default: the service's `headers` where "
        "its `url` is at the same server; else none.",
    )
    baud: Annotated[int | None, optional_type(_baud)] = Field(
        None, description="The highest speed to use for it. Default: the service's `baud`."
    )
    boot_timeout_s: Annotated[float | None, optional_type(_boot_timeout)] = Field(
        None,
        description="Its own, such as for an app that is slow to start, or a log that says "
        "nothing. Default: the service's `boot_timeout_s`.",
    )
    boot_stable_s: Annotated[float | None, optional_type(_boot_stable)] = _its_own("boot_stable_s")
    boot_expect: Pattern = Field(
        None,
        description="What a line of its own app's log must match. Default: the service's "
        "`boot_expect`.",
    )
    version_store: Annotated[str | None, optional_type(_store)] = Field(
        None,
        description="`host` for a board whose NVS cannot be read. Default: the service's "
        "`version_store`.",
    )
    before_restart: Call | None = _its_own("before_restart")
    after_restart: Call | None = _its_own("after_restart")
    health_check: HealthCheck | None = _its_own("health_check")
    reset: Annotated[ResetPins | None, optional_type(check_reset)] = Field(
        None,
        json_schema_extra={"type": "object"},
        description="Where DTR and RTS of the port do not reach the board: the lines of this "
        'computer that do, `{"gpiochip": "/dev/gpiochip0", "pins": {"en": 17, "boot": 18}}`; see '
        "[Boards on a header](machine.md#boards-on-a-header).",
    )
    note: Annotated[str | None, optional_type(check_text)] = Field(
        None,
        description="For people, such as what [discovery](ota_discovery.md) found. It has no "
        "effect.",
    )


class RestartCondition(Strict):
    """`allow_restart`: the sensor, and the key of its reading that must be true."""

    sensor: Annotated[str, name_type('the name of a sensor of this machine, such as "door"')]
    key: Annotated[
        str,
        name_type("the key of the sensor's reading that is true when boards may be restarted"),
    ]


class ServiceConfig(Strict):
    """Every attribute of the service."""

    url: Annotated[str, BeforeValidator(check_firmware_url)] = Field(
        description="The http or https address of the App Image, or of a [manifest](manifests.md) "
        "of several. `user:password@` and tokens in the query are allowed; they are shown as `***` "
        "everywhere. Or an absolute path: of a file, or of a folder with a `manifest.json` or just "
        "one `*.bin`, as `${packages.module.NAME}` becomes: see "
        "[Firmware on the machine](firmware.md#firmware-on-the-machine)."
    )
    version: Annotated[str, BeforeValidator(check_version)] = Field(
        description="The tag of that firmware, 1 to 128 bytes of UTF-8. It is stored in the "
        "boards' NVS."
    )
    sha256: Digest = Field(None, description="64 hex digits. Another file at the url is refused.")
    headers: RequestHeaders = Field(
        None,
        description='Request headers, such as `{"Authorization": "Bearer ..."}`; instead of a '
        'value `{"file": PATH}`, whose one line is read at each download. They are secrets like '
        "passwords, and are sent to no other server than that of `url`.",
    )
    boards: list[BoardConfig] | None = Field(
        None,
        description="The boards to update, and no others: see [below](#boards). Without it, "
        "boards are found: see [Which boards are touched](#which-boards-are-touched).",
    )
    auto_update: bool = Field(
        True,
        description="Update by itself when a version differs: at configuration, and when a board "
        "is plugged in. `false`: only on command.",
    )
    check_on_start: bool = Field(
        True,
        description="`false`: a start of the module by itself reads no board. A new target still "
        "does.",
    )
    adopt: bool = Field(
        False,
        description="Without `boards`: also update OTA-capable boards that hold no `VIAM_NS` yet, "
        "or that run another project than the image's.",
    )
    allow_restart: RestartCondition | None = Field(
        None,
        description='`{"sensor": NAME, "key": KEY}`: boards are restarted only while this '
        "sensor's reading KEY is true. Where it is false or cannot be read, the run waits "
        "(`not-allowed-now`); an `update` with `override` does not ask. The sensor becomes an "
        "optional dependency of the service: where it is missing, boards are not restarted.",
    )
    before_restart: Call | None = Field(
        None,
        description='`{"resource": NAME, "command": {..}, "expect": {..}, "timeout_s": 30}`: what '
        "is asked of a resource before a board's port is opened; see "
        "[The robot's own word](#the-robots-own-word). No yes: the run waits "
        "(`not-allowed-now`).",
    )
    after_restart: Call | None = Field(
        None,
        description="Likewise, what a resource is told when the session is over, however it ended.",
    )
    health_check: HealthCheck | None = Field(
        None,
        description="Likewise, what a resource is asked of a new firmware that runs, until it says "
        "yes or `timeout_s` (120) are over. A no takes the firmware back (`check-failed`). "
        "Without an answer the board is not good (`check-unanswered`), or, with "
        '`"on_no_answer": "back"`, goes back as well.',
    )
    baud: Annotated[int, BeforeValidator(_baud)] = Field(
        921_600, description="The highest speed to use, {range}. It falls back by itself."
    )
    max_parallel: Annotated[int, whole_type(1, 64)] = Field(
        8, description="How many boards are written at once, {range}."
    )
    canary: bool = Field(
        True,
        description="With more than 3 boards and a firmware that none has confirmed yet: update "
        "one first, then the rest.",
    )
    boot_timeout_s: Annotated[float, BeforeValidator(_boot_timeout)] = Field(
        20.0, description="How long the new app may take to show that it starts, {range}."
    )
    boot_stable_s: Annotated[float, BeforeValidator(_boot_stable)] = Field(
        5.0, description="How long it must then run without a reset, a panic or a loop, {range}."
    )
    boot_expect: Pattern = Field(
        None,
        description="A regular expression (RE2's syntax, which is also Go's) that a line of the "
        "new app's log must match for the app to count as running. RE2 has no back-references "
        "and no look-arounds, so the search always ends.",
    )
    boot_restarts: Annotated[int, whole_type(0, 10)] = Field(
        0,
        description="How many planned restarts a new app may make while it is watched, {range}: "
        "resets by software without a panic. After each, the watch starts over.",
    )
    confirm_timeout_s: Annotated[float, number_type(1, 86_400, " s")] = Field(
        120.0,
        description="Where the bootloader uses rollback: how long a board is left alone so that "
        "its app can confirm itself, {range}.",
    )
    max_attempts: Annotated[int, whole_type(1, 100)] = Field(
        3,
        description="How many attempts may fail, {range}, before a board is set aside until "
        "`url`, `version` or `sha256` change, or until `release`.",
    )
    version_store: Annotated[str, BeforeValidator(_store)] = Field(
        "nvs",
        description='`"host"`: the version of a board whose NVS is encrypted, and whose flash is '
        "not, is kept on this machine: see [below](#boards-whose-nvs-is-encrypted). A board whose "
        "NVS can be read keeps it there.",
    )
    ca_file: FilePath = Field(
        None, description="A file with a further certificate authority for https."
    )
    # The largest flash that an ESP32-family chip addresses is 128 MiB.
    max_image_bytes: Annotated[int, whole_type(1_024, 128 << 20, " bytes")] = Field(
        16_777_216,
        description="The largest file to download, {range} bytes. Larger ones are refused.",
    )
    state_dir: FilePath = Field(
        None,
        description="Where the journal and the history are kept; default "
        "`$VIAM_HOME/ota-service`, where there is no VIAM_HOME `ota-service` in the user's XDG "
        "state folder (`~/.local/state`). All services of one module use the same folder.",
    )

    def settings(self, service: str, *, state_dir: Path, cache_dir: Path) -> Settings:
        """The same as plain values for the fleet; `state_dir` holds where none is configured."""
        boards = [
            BoardEntry(**{name: value for name, value in board if name != "note"})
            for board in self.boards or ()
        ]
        own = ("url", "version", "sha256", "headers", "boards", "allow_restart", "state_dir")
        return Settings(
            service=service,
            target=Target(self.url, self.version, self.sha256, self.headers or ()),
            boards=None if self.boards is None else tuple(boards),
            state_dir=Path(self.state_dir) if self.state_dir else state_dir,
            cache_dir=cache_dir,
            **{name: value for name, value in self if name not in own},
        )

    @property
    def resources(self) -> list[str]:
        """The resources of the machine that it names, each once."""
        found = [self.allow_restart.sensor] if self.allow_restart is not None else []
        calls = (getattr(one, name) for one in (self, *(self.boards or ())) for name in CALLS)
        found += [call.resource for call in calls if call is not None]
        return list(dict.fromkeys(name.rpartition("/")[2] for name in found))
