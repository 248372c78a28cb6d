# SPDX-License-Identifier: GPL-3.0-or-later
"""From a file's bytes to a firmware that may be written, or the reason why not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.trust import Grant, Policy
from ota_service.formats.image import AppImage, parse_app_image


@dataclass(frozen=True)
class Firmware:
    """A checked App Image.

    data: what is written to a slot: the image with its signature, without the padding that may
    follow in the file. sha256: of the whole file, as `sha256sum` prints it and as it is
    configured. md5: of `data`, as the stub loader computes it. Both lower-case hex.
    changed_from: the SHA-256 that the same url gave under the same version before, where that
    was another one. allowed_by: how each policy of this host allowed it (`trust.require`).
    asked: those policies. file: the whole file. source: where it was had, if that is what allowed
    it; may hold secrets.
    """

    data: bytes = field(repr=False)
    sha256: str
    md5: str
    image: AppImage = field(repr=False)
    changed_from: str | None = field(default=None, compare=False)
    allowed_by: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, compare=False)
    asked: tuple[Policy, ...] = field(default=(), repr=False, compare=False)
    file: bytes = field(default=b"", repr=False, compare=False)
    source: str | None = field(default=None, repr=False, compare=False)

    @property
    def size_bytes(self) -> int:
        """How much is written to a slot."""
        return len(self.data)


def check_firmware(
    data: bytes,
    *,
    sha256: str | None = None,
    policies: Sequence[Policy] | None = None,
    grants: Sequence[Grant] = (),
) -> Firmware:
    """Check a whole file, and hold it against the host's policy of trust.

    sha256: the digest that the file must have, hex, or None. policies: None: those of now; ():
    none is asked. grants: what signed metadata says of this file.
    Raises OtaError digest-mismatch, and what `parse_app_image` and `trust.require` raise.
    """
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise OtaError(
            "digest-mismatch",
            f"The file's SHA-256 is {digest}, and sha256 is configured as {sha256.lower()}.",
        )
    image = parse_app_image(data)
    asked = trust.policies() if policies is None else tuple(policies)
    parts = [("The image", image.signatures)]
    allowed_by = trust.require(asked, data, parts, grants, image)
    written = data[: image.total_bytes]
    # MD5 is what the chip offers for comparing flash; nothing is proven by it.
    md5 = hashlib.md5(written, usedforsecurity=False).hexdigest()
    return Firmware(
        written, digest, md5, image, allowed_by=allowed_by, asked=asked, file=bytes(data)
    )
