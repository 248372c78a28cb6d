# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a board before it is looked at: from the journal and the cache, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An App Image that was checked whole, so a slot with its digest is bootable.

    head: its first bytes (at least the app descriptor's end), to tell cheaply what it is not.
    md5: of the whole image, as the stub loader computes it, hex.
    """

    size_bytes: int
    md5: str
    head: bytes


@dataclass(frozen=True, slots=True)
class SlotFact:
    """What the journal has of one slot's content when it was last written or seen running.

    version: the tag that belonged to it; None where none is known.
    """

    size_bytes: int
    md5: str
    version: str | None = None
    project: str | None = None
    app_version: str | None = None


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """All that the journal has of one board which a plan may depend on.

    version: the tag that was last read or stored; for boards that cannot keep it themselves. slots:
    by name, slots whose content was seen running. last_slot: name of the slot that ran
    at the last success. confirmed: whether the start of what runs was seen; None: it was not
    watched. reached: the last thing done to this board was a success of this target. unwatched: an
    update of this board to this target began and never ended, so that its boot was never judged.
    interrupted: the last thing done to this board was an update to another target, which never
    ended. silent: its bootloader prints nothing, so that there is nothing to restart it for.
    """

    slots: Mapping[str, SlotFact] = field(default_factory=dict)
    version: str = ""
    last_slot: str | None = None
    confirmed: bool | None = None
    reached: bool = False
    unwatched: bool = False
    interrupted: bool = False
    silent: bool = False
