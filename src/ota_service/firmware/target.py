# SPDX-License-Identifier: GPL-3.0-or-later
"""What a board is to run: a url, a version, and optionally the image's digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from ota_service.firmware import secrets
from ota_service.firmware.urls import redact_url


@dataclass(frozen=True, repr=False)
class Target:
    """A firmware to bring boards to.

    url: http or https, may hold user info and tokens; show `shown_url` instead.
    version: the tag, 1 to 128 bytes of UTF-8, as stored in the boards' NVS.
    sha256: the digest that the image must have, 64 lower-case hex digits, or None.
    """

    url: str
    version: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        secrets.learn(self.url)

    @cached_property
    def shown_url(self) -> str:
        """The url without its secrets, for the log, the status and errors."""
        return redact_url(self.url)

    @cached_property
    def key(self) -> str:
        """32 hex digits that name this target and give nothing of it away."""
        text = json.dumps([self.url, self.version, self.sha256])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def pinned(
        self, *, url: str | None = None, version: str | None = None, sha256: str | None = None
    ) -> Target:
        """The target of a board that has some of the three for itself.

        What the board leaves out is the service's, except that the service's digest belongs to
        the service's url: with a url of its own a board has only a digest of its own.
        """
        return Target(
            url=url or self.url,
            version=version or self.version,
            sha256=sha256 or (None if url and url != self.url else self.sha256),
        )

    def __repr__(self) -> str:
        digest = f", sha256={self.sha256!r}" if self.sha256 else ""
        return f"Target(url={self.shown_url!r}, version={self.version!r}{digest})"
