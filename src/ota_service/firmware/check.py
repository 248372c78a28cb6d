# SPDX-License-Identifier: GPL-3.0-or-later
"""From a file's bytes to a firmware that may be written, a manifest of several, or the reason why
it is neither."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware import manifest, trust
from ota_service.firmware.manifest import Manifest
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


@dataclass(frozen=True)
class ManifestFile:
    """A checked manifest; what is not its own is as a `Firmware`'s.

    place: where the file is, an address or a path: what its images' urls are relative to.
    """

    manifest: Manifest
    sha256: str
    file: bytes = field(repr=False)
    place: str = field(default="", repr=False)
    changed_from: str | None = None
    allowed_by: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    asked: tuple[Policy, ...] = field(default=(), repr=False)


class IsManifest(OtaError):
    """The file in an image's place is a manifest. found: that."""

    def __init__(self, found: ManifestFile, shown: str) -> None:
        super().__init__(
            "not-an-image",
            f"The file at {shown} is a manifest, which names several firmwares.",
            remedy="Give the url of one of its App Images; a manifest is for a service's own url.",
        )
        self.found = found


def check_file(
    data: bytes,
    *,
    sha256: str | None = None,
    policies: Sequence[Policy] | None = None,
    grants: Sequence[Grant] = (),
) -> Firmware | ManifestFile:
    """As `check_firmware`, for a file that may be a manifest as well.

    A manifest carries no signature of its own: keys are asked of each of its images. Raises also
    `manifest-invalid`.
    """
    if not manifest.is_json(data):
        return check_firmware(data, sha256=sha256, policies=policies, grants=grants)
    digest = _require_digest(data, sha256)
    found = manifest.parse_manifest(data)
    asked = trust.policies() if policies is None else tuple(policies)
    allowed_by = trust.require(asked, data, (), grants)
    return ManifestFile(found, digest, bytes(data), allowed_by=allowed_by, asked=asked)


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
    digest = _require_digest(data, sha256)
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


def _require_digest(data: bytes, sha256: str | None) -> str:
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise OtaError(
            "digest-mismatch",
            f"The file's SHA-256 is {digest}, and sha256 is configured as {sha256.lower()}.",
        )
    return digest
