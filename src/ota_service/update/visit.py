# SPDX-License-Identifier: GPL-3.0-or-later
"""A visit to a board: into download mode, and its start afterwards (on leaving it: `leave`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from serial import SerialBase

from ota_service.formats.nvs import Nvs
from ota_service.formats.otadata import parse_otadata
from ota_service.link.link import EspLink, leave_download_mode
from ota_service.update.backup import Backup
from ota_service.update.boot import BootMonitor, Expected
from ota_service.update.inspect import NAMESPACE, VERSION_KEY
from ota_service.update.secrets import Redactor
from ota_service.update.session import BootRules
from ota_service.update.watch import watch


def connect(port: SerialBase, *, baud: int, identified: Callable[[str], None]) -> EspLink:
    """The board behind an open port, in download mode.

    identified: called with its MAC before anything but fuses is read; raises to go no further,
    and the board is reset. Raises OtaError as `EspLink.connect` does.
    """

    def known(mac: str) -> int | None:
        identified(mac)
        return None

    try:
        return EspLink.connect(port, baud=baud, identified=known)
    except BaseException:
        leave_download_mode(port)
        raise


def is_pending(backup: Backup) -> bool:
    """Whether a restart may take the board's app for one that did not confirm itself."""
    return parse_otadata(backup.selection).may_be_pending


def watch_start(
    port: SerialBase,
    link: EspLink,
    expected: Expected,
    rules: BootRules,
    *,
    nvs: Iterable[Nvs],
    stopped: Callable[[], bool],
) -> BootMonitor:
    """Restart a board and watch its log. nvs: what it may print at its start, to be left out."""
    secrets = [
        value
        for keys in nvs
        for space, key, value in keys.strings()
        if (space, key) != (NAMESPACE, VERSION_KEY)
    ]
    monitor = BootMonitor(
        expected,
        rules.timeout_s,
        rules.stable_s,
        restarts=rules.restarts,
        redact=Redactor(secrets),
    )
    link.restart()
    watch(port, monitor, stopped=stopped, in_download=link.in_download)
    return monitor
