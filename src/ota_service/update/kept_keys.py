# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of several contents of one NVS partition a whole flash carries over.

A flash that did not finish leaves the board's keys on this computer's disk, and they count where
the board has lost its own: its NVS was not written yet, or a firmware that could not read it has
erased it. Where the board went on with them meanwhile, the saved ones are out of date.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.update.backup import NVS_KIND, Key, values
from ota_service.update.flash_plan import Before
from ota_service.update.inspect import NAMESPACE, VERSION_KEY

_OF_IDF = frozenset({"phy", "nvs.net80211", "dhcp_state"})
"""Namespaces that ESP-IDF itself writes at a start: an NVS that was erased has them at once."""
_NUMBER_TYPES = range(0x01, 0x21)
"""Item types of integers, which are often equal by chance."""


def to_keep(before: Before, saved: Mapping[Path, Mapping[str, bytes]]) -> dict[str, bytes]:
    """The NVS contents to carry over, by label: the board's, or those of runs that were cut.

    saved: on the disk, folder -> label -> contents, the newest first. Raises OtaError where the
    board has none that can be read and nothing was saved, as `parse_nvs` where none of a label's
    can be read, and "nvs-invalid" where it cannot be told which ones count.
    """
    problem = before.table_problem
    if before.table is not None and any(
        part.kind == NVS_KIND and part.encrypted for part in before.table.partitions
    ):
        problem = OtaError("flash-encrypted", "The board encrypts its NVS.")
    if problem is not None and not saved:
        raise OtaError(
            problem.code,
            f"The board's keys cannot be kept: {problem.message}",
            remedy="Flash without keep_nvs if they may be lost, and provision the board anew.",
        )
    held: list[tuple[Path | None, Mapping[str, bytes]]] = [(None, before.nvs), *saved.items()]
    labels = dict.fromkeys(label for _, one in held for label in one)
    return {
        label: _best(label, [(at, one[label]) for at, one in held if label in one])
        for label in labels
    }


def _best(label: str, held: list[tuple[Path | None, bytes]]) -> bytes:
    best: tuple[Path | None, bytes, Nvs] | None = None
    problem: OtaError | None = None
    for at, data in held:
        try:
            nvs = parse_nvs(data)
        except OtaError as error:
            problem = problem or error
            continue
        if best is None or _counts(label, best[0], best[2], at, nvs):
            best = (at, data, nvs)
    if best is None:
        assert problem is not None
        raise problem
    return best[1]


def _counts(label: str, at: Path | None, newer: Nvs, folder: Path | None, older: Nvs) -> bool:
    """Whether the older of two count. Raises OtaError where that cannot be told."""
    if newer.keys() >= older.keys():
        return False
    now, then = values(newer), values(older)
    same = now.items() & then.items()
    if len(same) == len(now):
        return True  # nothing of its own: blank, or a part of it is gone
    if any(_survives(key) for key, _ in same):
        return False  # it was not erased: a firmware removed some and changed others
    if not _of_apps(now) and _of_apps(then):
        return True  # erased, and started since
    where, remedy = f"in {at}", "Look which are right, and move the other folder elsewhere."
    if at is None:
        where = "on the board"
        remedy = (
            f"If the backup's are right, put them back with `esp32-ota restore PORT {folder}`; if "
            f"the board's are, move {folder} elsewhere."
        )
    raise OtaError(
        "nvs-invalid",
        f"The keys of {label} {where} and those in {folder}, from before a whole flash that did "
        "not finish, are different ones, and it cannot be told which are to be kept. Nothing was "
        "written.",
        remedy=f"{remedy} Then flash again.",
    )


def _of_apps(contents: Mapping[Key, bytes]) -> bool:
    return any(space not in _OF_IDF for space, _, _ in contents)


def _survives(key: Key) -> bool:
    """Whether it tells that an NVS was not erased, where its value is still the same."""
    space, name, kind = key
    ours = (space, name) == (NAMESPACE, VERSION_KEY)
    return space not in _OF_IDF and kind not in _NUMBER_TYPES and not ours
