# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a board before it is looked at: from the journal and the cache, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ota_service.firmware.target import Target
from ota_service.formats.image import AppDescriptor, BootHeader, parse_boot_header


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An App Image that was checked whole, so a slot with its digest is bootable.

    head: its first bytes (at least the app descriptor's end), to tell cheaply what it is not.
    md5: of the whole image, as the stub loader computes it, hex. staged_md5: of all that stands
    behind its magic byte; "": nobody asks whether it is staged.
    """

    size_bytes: int
    md5: str
    head: bytes
    staged_md5: str = ""


@dataclass(frozen=True, slots=True)
class Staged:
    """A checked App Image that was written into a slot whole, but for its magic byte.

    target: the key of the target that it is of; stale: another one is the board's now. version:
    the tag that the board gets with it. slot: its name. head: the image's first bytes, as of a
    `KnownImage`. md5, staged_md5: as there. since: when it was staged.
    """

    target: str
    version: str
    slot: str
    size_bytes: int
    sha256: str
    md5: str
    staged_md5: str
    head: bytes
    since: datetime
    stale: bool = False

    def is_of(self, target: Target) -> bool:
        """Whether this is the target's: also the very file, by its digest, that had the same tag
        when it lay elsewhere."""
        same = self.sha256, self.version
        return self.target == target.key or same == (target.sha256, target.version)

    @property
    def known(self) -> KnownImage:
        """As evidence for what a slot holds."""
        return KnownImage(self.size_bytes, self.md5, self.head, self.staged_md5)

    @property
    def header(self) -> BootHeader:
        """Where the image runs."""
        return parse_boot_header(self.head)

    @property
    def descriptor(self) -> AppDescriptor | None:
        """What its app says of itself."""
        return self.header.descriptor


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
    ended. failed: by slot, what was started from it last and did not come up, or was refused by the
    robot. silent: its bootloader prints nothing, so that there is nothing to restart it for.
    staged: what waits in one of its slots to be activated.
    """

    slots: Mapping[str, SlotFact] = field(default_factory=dict)
    version: str = ""
    last_slot: str | None = None
    confirmed: bool | None = None
    reached: bool = False
    unwatched: bool = False
    interrupted: bool = False
    silent: bool = False
    staged: Staged | None = None
    failed: Mapping[str, SlotFact] = field(default_factory=dict)
