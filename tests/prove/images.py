# SPDX-License-Identifier: GPL-3.0-or-later
"""The App Images of the proof, small so that slots take few operations, and their tags.

The tags differ from the images' own versions: taking one for the other must show.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from esp32_sim.images import Behaviour, build_app
from ota_service.formats.image import parse_app_image
from ota_service.update.session import Image

CONFIRM_S = 0.05
SECURE_VERSION = 1
"""Of the images that a bootloader with anti-rollback starts here."""


@dataclass(frozen=True)
class Firmware:
    """An App Image with its tag. starts: it comes up. confirms: it confirms itself, too.

    described: it has an app descriptor; else `image.parsed` is of one that has.
    """

    name: str
    tag: str
    image: Image = field(repr=False)
    starts: bool = True
    confirms: bool = True
    described: bool = True

    @property
    def version(self) -> str:
        """What its descriptor says."""
        return self.image.parsed.descriptor.version if self.described else ""

    @property
    def data(self) -> bytes:
        """The image's bytes."""
        return self.image.data


def _firmware(
    name: str, tag: str, version: str, size_bytes: int, *, starts: bool = True,
    confirms: bool = True, hash_appended: bool = True, secure_version: int = SECURE_VERSION,
    described: bool = True, chip: str = "esp32",
) -> Firmware:  # fmt: skip
    behaviour = Behaviour(
        confirm_after_s=CONFIRM_S if confirms else None,
        ending="run" if starts else "panic",
        ending_after_s=0.02,
    )
    options: dict[str, Any] = {
        "version": version, "size_bytes": size_bytes, "seed": len(name), "behaviour": behaviour,
        "hash_appended": hash_appended, "secure_version": secure_version, "chip": chip,
    }  # fmt: skip
    parsed = parse_app_image(build_app(**options))
    data = build_app(**options, described=described)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    image = Image(data, hashlib.sha256(data).hexdigest(), md5, parsed)
    return Firmware(name, tag, image, starts, confirms, described)


OLD = _firmware("old", "rel-1", "1.0.0", 19_000)
NEW = _firmware("new", "rel-2", "1.1.0", 20_400)
PLAIN = _firmware("plain", "rel-2", "1.1.0", 20_416, hash_appended=False)
"""A new firmware without the SHA-256 at its end: the bootloader has its checksum only."""
PANICS = _firmware("panics", "rel-2", "1.1.0-panics", 20_000, starts=False, confirms=False)
SHY = _firmware("shy", "rel-2", "1.1.0-shy", 20_000, confirms=False)
"""A new firmware that never confirms itself."""
NEXT = _firmware("next", "rel-3", "1.2.0", 20_000)
OTHER = _firmware("other", "", "0.9.0", 21_000, secure_version=0)
"""What stands in slots that do not run."""
BARE = _firmware("bare", "rel-1", "1.0.0", 19_600, described=False)
"""An old firmware without an app descriptor."""
LARGE = _firmware("large", "rel-2", "1.1.0", 400_000)
"""A new firmware whose slot is erased while it travels. The others are too small for that."""

ALL = (OLD, NEW, PLAIN, PANICS, SHY, NEXT, OTHER, BARE)


@cache
def of_chip(chip: str) -> tuple[Firmware, Firmware]:
    """An old firmware and a new one for another chip."""
    old = _firmware("old", "rel-1", "1.0.0", 19_000, chip=chip)
    return old, _firmware("new", "rel-2", "1.1.0", 20_400, chip=chip)


def named(data: bytes) -> Firmware | None:
    """The firmware with these bytes."""
    return _BY_DATA.get(data)


_BY_DATA = {firmware.data: firmware for firmware in ALL}
SIZES = tuple(sorted({len(firmware.data) for firmware in ALL}))
