# SPDX-License-Identifier: GPL-3.0-or-later
"""A visit to a board: into download mode, and back into its firmware, whatever came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from serial import SerialBase

from ota_service.board.backup import Backup, take_backup
from ota_service.board.boot import BootMonitor, Expected
from ota_service.board.carry_out import rearm
from ota_service.board.inspect import NAMESPACE, VERSION_KEY
from ota_service.board.link import EspLink, leave_download_mode
from ota_service.board.secrets import Redactor
from ota_service.board.session import BootRules
from ota_service.board.watch import watch
from ota_service.errors import OtaError
from ota_service.formats.nvs import Nvs
from ota_service.formats.otadata import parse_otadata


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


def put_back(link: EspLink) -> None:
    """Restart a board that was only looked at: an app that waits for confirmation gets its whole
    time again. Raises OtaError `link-lost`."""
    with contextlib.suppress(OtaError):
        found = take_backup(link, link.chip)
        if is_pending(found):
            rearm(link, found.partitions)
    link.restart()


@contextmanager
def left_running(link: EspLink) -> Iterator[None]:
    """Where the visit fails, the board is not left in download mode, as far as its port allows."""
    try:
        yield
    except BaseException as error:
        if not link.running:
            lost = isinstance(error, OtaError) and error.code == "link-lost"
            with contextlib.suppress(Exception):
                link.restart() if lost else put_back(link)
        raise


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
