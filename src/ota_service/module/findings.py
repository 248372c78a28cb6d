# SPDX-License-Identifier: GPL-3.0-or-later
"""What discovery knows of each port, and the configurations that follow from it: values only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ota_service.errors import OtaError
from ota_service.formats.text import visible
from ota_service.link.ports import CandidateKind, PortInfo, candidate_kind, is_url

if TYPE_CHECKING:
    from ota_service.update.inspect import Inspection

NAME = "OTA"
UNSURE = "OTA-unprobed"
OF_BOARD = ("chip", "mac", "version", "project", "app_version")
"""What a service and the journal know of a board, by the same names as a finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One port, and what is known of what is behind it.

    port: as a person gave it, else the device. info: None for urls. listed: a person named it
    in `ports`. mac, chip, version ("" where the board stores none), project, app_version: of the
    board; ota_slots: how many it has; None where they are not known. probed: it was opened
    just now. service, board, state, status: the service of this process that has it, the name
    there, and its state. problem: why it was not, or could not be, looked at.
    """

    port: str
    info: PortInfo | None = None
    listed: bool = False
    mac: str | None = None
    chip: str | None = None
    version: str | None = None
    project: str | None = None
    app_version: str | None = None
    ota_slots: int | None = None
    probed: bool = False
    service: str | None = None
    board: str | None = None
    state: str | None = None
    status: dict[str, Any] | None = None
    problem: OtaError | None = None

    @property
    def kind(self) -> CandidateKind:
        """What the port looks like by its USB descriptors."""
        return candidate_kind(self.info) if self.info is not None else "other"

    @property
    def may_be_probed(self) -> bool:
        """Whether a person's word may open it: never what a service or a program has."""
        return (
            self.service is None
            and self.problem is None
            and (self.listed or self.kind in ("native", "bridge"))
        )

    @property
    def is_board(self) -> bool:
        """Whether an ESP32 is there, as far as is known, or a person said so by naming it."""
        known = self.mac is not None or self.kind == "native" or self.listed
        return known and self.problem is None

    @property
    def in_words(self) -> str:
        """All of it in one line, without the port."""
        service = f"in service {self.service}" if self.service is not None else None
        return _joined(
            ", ",
            service and _joined(", ", service, self.state),
            _joined(" ", self.chip, self.mac),
            _told(self.version, "version {}", "no version stored"),
            self.project and _joined(" ", self.project, self.app_version),
            _told(self.ota_slots, "{} OTA slots", "no OTA slots"),
            f"{self.problem.message} [{self.problem.code}]" if self.problem else self._unread,
        )

    @property
    def _unread(self) -> str | None:
        """Why nothing is known of it, where nothing is."""
        if self.probed or self.service is not None or self.mac is not None:
            return None
        if self.kind == "native":
            return "an ESP32 by its own USB, not probed"
        if self.kind == "bridge" and self.info is not None:
            return (
                f"perhaps an ESP32 behind a {self.info.bridge} bridge, not probed: take it out "
                "if anything else is attached there"
            )
        return "not probed"


def _joined(between: str, *words: str | None) -> str:
    return between.join(word for word in words if word)


def _told(value: object, some: str, none: str) -> str | None:
    """A value in words; None where nothing is known of it."""
    return None if value is None else some.format(value) if value else none


def of_inspection(finding: Finding, found: Inspection) -> Finding:
    """What a probe has found at a port."""
    app = found.running_app
    about = app.descriptor if app is not None else None
    return replace(
        finding,
        probed=True,
        mac=found.chip.mac,
        chip=found.chip.name,
        version=found.version if found.nvs is not None else None,
        project=about.project if about is not None else None,
        app_version=about.version if about is not None else None,
        ota_slots=len(found.table.ota_slots) if found.table is not None else None,
        problem=found.problem,
    )


def report_of(finding: Finding) -> dict[str, Any]:
    """A finding as `discover` replies it; what is not known is left out."""
    info = finding.info
    own = ("probed", *OF_BOARD, "ota_slots", "service", "board", "state")
    values: dict[str, Any] = {
        "by_path": info.by_path if info is not None else None,
        "usb_serial_number": info.serial_number if info is not None else None,
        "kind": "listed" if finding.listed else finding.kind,
        **{name: getattr(finding, name) for name in own},
        "error": finding.problem.to_dict() if finding.problem is not None else None,
    }
    return {name: value for name, value in values.items() if value is not None}


# --- configurations


def configurations(
    found: Sequence[Finding], taken: Collection[str] = ()
) -> list[tuple[str, dict[str, Any]]]:
    """Names and attributes of the services that the findings make.

    First a new one with the boards that are known to be ESP32s and belong to nobody, then one
    with bridges that were not probed, which may have something else behind them, then the
    services that exist, with what they know. In the new ones url and version are empty: the one
    thing that a person must fill in. taken: names of services that exist.
    """
    free = [item for item in found if item.service is None]
    sure = [item for item in free if item.is_board]
    unsure = [
        item
        for item in free
        if not item.is_board and item.kind == "bridge" and item.problem is None
    ]
    made = []
    for name, items in ((NAME, sure), (UNSURE, unsure)):
        if items:
            made.append((unused(name, taken), _attributes("", "", items)))
    for service in sorted({item.service for item in found if item.service is not None}):
        items = [item for item in found if item.service == service]
        made.append((service, _attributes(*_target(items), items)))
    return made


def _target(items: Iterable[Finding]) -> tuple[str, str]:
    """The url and version of a service, empty where they cannot be shown whole."""
    for item in items:
        target = (item.status or {}).get("target", {})
        url, version = str(target.get("url", "")), str(target.get("version", ""))
        return ("" if "***" in url else url), version
    return "", ""


def _attributes(url: str, version: str, items: Sequence[Finding]) -> dict[str, Any]:
    names: list[str] = []
    for index, item in enumerate(items):
        names.append(unused(item.board or _board_name(item, index + 1), names))
    boards = [
        {"name": name, **_where(item), "note": visible(item.in_words)}
        for name, item in zip(names, items, strict=True)
    ]
    return {"url": url, "version": version, "boards": boards}


def _where(item: Finding) -> dict[str, str]:
    """The MAC where the port is the chip's own USB, else the port, best by its USB socket."""
    info = item.info
    if info is not None and info.mac is not None and item.mac in (None, info.mac):
        return {"mac": info.mac}
    if info is None or (item.listed and is_url(item.port)):
        return {"port": item.port}
    return {"port": info.by_path or item.port}


def _board_name(item: Finding, number: int) -> str:
    if item.mac is None:
        return f"board-{number}"
    chip = (item.chip or "esp32").lower()
    return f"{chip}-{item.mac.replace(':', '')[-6:]}"


def unused(name: str, taken: Collection[str], joint: str = "-") -> str:
    """The name, with the first number behind it that makes it another than those taken."""
    number, chosen = 1, name
    while chosen in taken:
        number += 1
        chosen = f"{name}{joint}{number}"
    return chosen
