# SPDX-License-Identifier: GPL-3.0-or-later
"""What a board is to run: a url, a version, and optionally the image's digest."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from ota_service.firmware import secrets
from ota_service.firmware.urls import redact_url

Headers = tuple[tuple[str, str | Path], ...]

# The version is an NVS string; the contract sets its longest length.
VERSION_MAX_BYTES = 128
NAME_MAX_BYTES = 64


def check_name(name: str) -> str | None:
    """What is wrong with `name` as one that is shown in a line, in words; None: nothing is."""
    size_bytes = len(name.encode(errors="replace"))
    if not name.strip():
        return "is empty"
    if size_bytes > NAME_MAX_BYTES:
        return f"{size_bytes} bytes; the limit is {NAME_MAX_BYTES}"
    return None if name.isprintable() else "holds characters that cannot be printed"


def check_version(version: str) -> str | None:
    """What is wrong with `version` as a tag for a board's NVS, in words; None: nothing is."""
    if not version:
        return 'is empty; fill in the tag of the firmware at url, such as "1.0.0"'
    try:
        size_bytes = len(version.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode text"
    if size_bytes > VERSION_MAX_BYTES:
        return f"{size_bytes} bytes; the limit is {VERSION_MAX_BYTES}"
    if "\0" in version:
        return "holds a NUL character, which ends a string in a board's NVS"
    return None


def check_sha256(digest: str) -> str | None:
    """What is wrong with `digest` as a SHA-256, in words; None: nothing is."""
    if re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
        return None
    what = "other characters are in it"
    if len(digest) != 64:
        what = f"these are {len(digest)} characters"
    return f"must be 64 hex digits, as `sha256sum` prints them; {what}"


@dataclass(frozen=True, repr=False)
class Target:
    """A firmware to bring boards to.

    url: http or https, may hold user info and tokens; show `shown_url` instead.
    version: the tag, 1 to 128 bytes of UTF-8, as stored in the boards' NVS.
    sha256: the digest that the image must have, 64 lower-case hex digits, or None.
    headers: request headers for the url's own server, each a name with its value, or with the
    file that holds it. Another value makes no other target.
    """

    url: str
    version: str
    sha256: str | None = None
    headers: Headers = field(default=(), compare=False)

    def __post_init__(self) -> None:
        secrets.tell(self.version, self.sha256)
        secrets.learn(self.url, {n: v for n, v in self.headers if isinstance(v, str)})

    @cached_property
    def shown_url(self) -> str:
        """The url without its secrets, for the log, the status and errors."""
        return redact_url(self.url)

    @cached_property
    def key(self) -> str:
        """32 hex digits that name this target and give nothing of it away."""
        text = json.dumps([self.url, self.version, self.sha256])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @classmethod
    def noted(cls, key: str, url: str, version: str, sha256: str | None) -> Target:
        """One as the journal has it, which keeps no secrets of its url: to be told from others,
        not to be fetched."""
        made = cls(url, version, sha256)
        made.__dict__["key"] = key
        return made

    def pinned(
        self,
        *,
        url: str | None = None,
        version: str | None = None,
        sha256: str | None = None,
        headers: Headers | None = None,
    ) -> Target:
        """The target of a board that has some of the three for itself.

        What the board leaves out is the service's, except that the service's digest belongs to
        the service's url: with a url of its own a board has only a digest of its own. Headers
        are for a server: at another one a board has only headers of its own.
        """
        return Target(
            url=url or self.url,
            version=version or self.version,
            sha256=sha256 or (None if url and url != self.url else self.sha256),
            headers=headers or (() if url and _server(url) != _server(self.url) else self.headers),
        )

    def __repr__(self) -> str:
        digest = f", sha256={self.sha256!r}" if self.sha256 else ""
        return f"Target(url={self.shown_url!r}, version={self.version!r}{digest})"


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
